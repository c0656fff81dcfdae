"""Domains of the STAR paper: data sets and true values, by rules that are written out here once more."""

import importlib.util

import jax
import numpy as np
import pytest

from benchmarks.star import domains as star_domains
from jaxrl_off.data.trajectories import check
from jaxrl_off.estimators.trajectory.weights.importance import naive
from jaxrl_off.types import Trajectories

N = 1000
# whose probabilities these are is known
KNOWN = [name for name in Trajectories._fields if name != "behaviour_estimated"]


@pytest.fixture(scope="module", params=["cartpole", "asterix"])
def drawn(request):
    domain = star_domains.DOMAINS[request.param]()
    draws = jax.vmap(lambda key: domain.sample(key, N, domain.behaviour))(jax.random.split(jax.random.key(0), 2))
    draws = [jax.tree.map(lambda x, row=row: x[row], draws) for row in range(2)]
    return domain, *(check(draw, require=KNOWN)[0] for draw in draws)


def test_value_of_the_behaviour_policy(drawn):
    domain, *draws = drawn
    values = [naive(data, discount=domain.discount) for data in draws]
    mean = np.mean([float(value.value) for value in values])
    error = np.hypot(float(values[0].standard_error) / np.sqrt(2), domain.behaviour_truth.standard_error)
    assert abs(mean - domain.behaviour_truth.value) < 4 * error
    assert values[0].value != values[1].value
    # who still acts at the horizon was not cut by anything else
    assert not any(data.truncated.any() for data in draws)
    lasted = [data.mask.all(axis=1) & ~data.terminated.any(axis=1) for data in draws]
    np.testing.assert_array_equal(lasted[0] | draws[0].terminated.any(axis=1), True)


def test_probabilities(drawn):
    domain, data, _ = drawn
    actions = {"cartpole": 2, "asterix": 6}[domain.name]
    assert data.rewards.shape == (N, domain.horizon)
    np.testing.assert_allclose(data.behaviour_log_prob, -np.log(actions), rtol=1e-6)
    frequencies = np.bincount(data.actions[data.mask], minlength=actions) / data.mask.sum()
    np.testing.assert_allclose(frequencies, 1 / actions, atol=4 * 0.5 / np.sqrt(data.mask.sum()))
    if domain.name == "cartpole":
        towards = (data.observations[..., 2] > 0) == (data.actions == 1)
        expected = np.log(np.where(towards, 0.9, 0.1))
    else:
        expected = np.log(np.array([0.01, 0.4, 0.05, 0.5, 0.02, 0.02]))[data.actions]
    np.testing.assert_allclose(domain.target_log_prob(data), expected, rtol=1e-5)


def test_rewards_and_observations(drawn):
    domain, data, _ = drawn
    if domain.name == "cartpole":
        np.testing.assert_array_equal(data.rewards, data.mask)
        assert data.observations.shape == (N, 50, 4)
        angle, place = np.abs(data.final_observation[:, 2]), np.abs(data.final_observation[:, 0])
        np.testing.assert_array_equal((angle > 12 * np.pi / 180) | (place > 2.4), data.terminated.any(axis=1))
        assert (np.abs(data.observations[:, 0]) <= 0.05).all()
        # one step of Gymnasium's equations, Euler, 0.02 s
        before, after = data.observations[:, 0].astype(np.float64), data.observations[:, 1]
        theta, speed = before[:, 2], before[:, 3]
        push = (np.where(data.actions[:, 0] == 1, 10.0, -10.0) + 0.05 * speed**2 * np.sin(theta)) / 1.1
        turning = (9.8 * np.sin(theta) - np.cos(theta) * push) / (0.5 * (4 / 3 - 0.1 * np.cos(theta) ** 2 / 1.1))
        moving = push - 0.05 * turning * np.cos(theta) / 1.1
        expected = before + 0.02 * np.stack([before[:, 1], moving, speed, turning], axis=1)
        np.testing.assert_allclose(after, expected, atol=1e-5)
    else:
        assert data.observations.shape == (N, 75, 400)
        assert data.observations.dtype == bool
        players = data.observations.reshape(N, 75, 10, 10, 4)[..., 0].sum(axis=(2, 3))
        np.testing.assert_array_equal(players[data.mask], 1)
        golds = (data.rewards[data.mask] - 0.1) / 10
        np.testing.assert_allclose(golds, np.round(golds), atol=1e-6)
        assert golds.max() >= 1.0


def test_cartpole_has_the_value_that_importance_sampling_cannot_find():
    found, _ = star_domains.measured("cartpole", 1, 20_000, lanes=10_000)
    truth = star_domains.TRUTHS["cartpole"][0]
    assert abs(found.value - truth.value) < 4 * np.hypot(found.standard_error, truth.standard_error)
    assert found.standard_error < 0.1


@pytest.mark.skipif(
    importlib.util.find_spec("icu_sepsis") is None,
    reason="icu-sepsis is not installed (pip install --no-deps icu-sepsis)",
)
def test_sepsis():
    domain = star_domains.DOMAINS["sepsis"]()
    assert domain.truth == (pytest.approx(0.7818447574, abs=1e-10), 0.0)
    assert domain.behaviour_truth == (pytest.approx(0.7810006254, abs=1e-10), 0.0)
    data, _ = check(domain.sample(jax.random.key(0), 5000, domain.behaviour))
    value = naive(data)
    assert abs(float(value.value) - domain.behaviour_truth.value) < 4 * float(value.standard_error)
    # one-step ratios are those of probabilities: their mean over logged actions is 1
    ratio = np.exp(np.asarray(domain.target_log_prob(data)) - data.behaviour_log_prob)[data.mask]
    assert ratio.max() < 2.32
    assert abs(ratio.mean() - 1.0) < 4 * ratio.std() / np.sqrt(len(ratio))
