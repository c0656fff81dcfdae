"""Learning deterministic policies, on the linear-quadratic family whose best gain is 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.deterministic.process import Process, log_density, policy, simulate, truth
from jaxrl_off.estimators import deterministic as det

PROCESS = Process(4, 1.2, noise=0.1)
WIDTH = 0.35


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return jax.device_get(simulate(jax.random.key(0), 2000, PROCESS))


def slope_of_q(gain, process, states):
    """d_a q_t at the target: q_t = -x^2 - P_{t+1} (a - x)^2 - ..."""
    p = [0.0]
    for _ in range(process.horizon):
        p.append(1.0 + (gain - 1.0) ** 2 * p[-1])
    return -2.0 * np.array(p[::-1][1:])[:, None] * (gain - 1.0) * states


def test_plug_in_gradient_with_exact_nuisances_is_the_closed_form():
    """States of the policy itself: w = 1, and only Monte Carlo error is left."""
    with jax.enable_x64(True):
        own = jax.device_get(simulate(jax.random.key(1), 40_000, PROCESS._replace(behaviour=1.2, deviation=1e-9)))
        found = det.deterministic_policy_gradient(
            own,
            policy,
            1.2,
            slope_of_q(1.2, PROCESS, own.observations),
            det.Nuisances(ratio=np.ones(own.rewards.shape)),
        )
    wanted = truth(PROCESS)[1]
    assert abs(found.value - wanted) < 4 * found.standard_error
    assert found.standard_error < 0.02 * abs(wanted)
    np.testing.assert_allclose(found.covariance[0, 0], found.standard_error**2)


def test_plug_in_gradient_weighs_states_and_discounts_steps(data):
    random = np.random.default_rng(0)
    slope, ratio = random.normal(size=data.actions.shape), random.exponential(size=data.rewards.shape)
    found = det.deterministic_policy_gradient(data, policy, 1.2, slope, det.Nuisances(ratio=ratio), discount=0.9)
    terms = np.sum(0.9 ** np.arange(4) * ratio * slope[..., 0] * np.asarray(data.observations)[..., 0], axis=1)
    np.testing.assert_allclose(found.value, terms.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, terms.std(ddof=1) / len(terms) ** 0.5, rtol=1e-6)


def test_fitted_slopes_of_q_are_those_of_the_quadratic(data):
    found = det.fit_action_gradient(data, policy, 1.2, det.Smoothing(WIDTH, scale=np.array([0.5])))
    wanted = slope_of_q(1.2, PROCESS, data.observations)
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("objective", ["marginal_doubly_robust", "deterministic_policy_gradient"])
def test_learns_the_best_gain(data, objective):
    """From 1.2; a gradient of the wrong sign, or none, ends above it."""
    options = dict(objective=objective, steps=40, learning_rate=0.03)
    found = det.learn(data, policy, 1.2, det.Smoothing(WIDTH, form="soft", scale=1.0), **options)
    assert abs(found.parameters - 1.0) < 0.03
    assert found.path[0] == 1.2
    assert found.objective.shape == found.gradient_norm.shape == (40,)
    assert found.objective[-1] > found.objective[0]


def test_the_first_step_is_along_the_gradient(data):
    smoothing = det.Smoothing(WIDTH, form="soft", scale=1.0)
    learned = det.learn(data, policy, 1.2, smoothing, steps=4, refit=2)
    nuisances = det.fit_nuisances(data, policy, 1.2, smoothing, gradient=True)
    wanted = det.gradient("marginal_doubly_robust", data, policy, 1.2, smoothing, nuisances).value
    np.testing.assert_allclose(learned.gradient_norm[0], abs(wanted), rtol=1e-8)
    np.testing.assert_allclose(learned.path[1], 1.2 + 0.01 * np.sign(wanted), rtol=1e-6)
    # the second step leans on nuisances expanded about the first; the third has a fit of its own
    moved, names = learned.path[1] - 1.2, ("q", "v", "ratio")
    expanded = {
        name: getattr(nuisances, name) + getattr(nuisances, f"{name}_gradient")[..., 0] * moved for name in names
    }
    given = "marginal_doubly_robust", data, policy
    found = det.evaluate(*given, learned.path[1], smoothing, nuisances._replace(**expanded))
    np.testing.assert_allclose(learned.objective[1], found.value, rtol=1e-7)
    refitted = det.fit_nuisances(data, policy, learned.path[2], smoothing, gradient=True)
    found = det.evaluate(*given, learned.path[2], smoothing, refitted)
    np.testing.assert_allclose(learned.objective[2], found.value, rtol=1e-7)


def test_parameters_may_be_any_tree(data):
    def affine(parameters, observations):
        return observations @ parameters["gain"] + parameters["offset"]

    start = {"gain": np.array([[1.2]], np.float32), "offset": np.zeros(1, np.float32)}
    options = dict(objective="direct_method", steps=40, learning_rate=0.03)
    found = det.learn(data, affine, start, det.Smoothing(WIDTH, form="soft", scale=1.0), **options)
    assert found.path["gain"].shape == (40, 1, 1)
    assert abs(found.parameters["gain"][0, 0] - 1.0) < 0.05
    assert abs(found.parameters["offset"][0]) < 0.05


def test_split_keeps_every_trajectory_once(data):
    first, second = det.split(data, 0.25)
    assert len(first.rewards) == 500
    both = np.concatenate([first.actions, second.actions])[:, 0, 0]
    np.testing.assert_array_equal(np.sort(both), np.sort(data.actions[:, 0, 0]))
    assert not np.array_equal(det.split(data, 0.25, seed=1)[0].actions, first.actions)
    with pytest.raises(ValueError, match="at least one"):
        det.split(data, 1.0)


def test_what_cannot_be_meant_is_refused(data):
    smoothing = det.Smoothing(WIDTH, scale=1.0)
    with pytest.raises(ValueError, match="objective must be one of"):
        det.learn(data, policy, 1.2, smoothing, objective="marginal_policy_gradient")
    with pytest.raises(ValueError, match="multiple of refit"):
        det.learn(data, policy, 1.2, smoothing, steps=5, refit=2)
    with pytest.raises(ValueError, match="self_normalised"):
        det.learn(data, policy, 1.2, smoothing, objective="deterministic_policy_gradient", self_normalised=True)
    with pytest.raises(ValueError, match="behaviour_at_target"):
        det.learn(data, policy, 1.2, det.Smoothing(WIDTH, form="point", scale=1.0))
    with pytest.raises(ValueError, match="marginal ratio"):
        det.deterministic_policy_gradient(data, policy, 1.2, data.actions, det.Nuisances())
    with pytest.raises(ValueError, match="must be"):
        det.deterministic_policy_gradient(data, policy, 1.2, data.actions[:, 0], det.Nuisances(ratio=data.rewards))


def test_density_of_the_process_is_that_of_its_actions(data):
    np.testing.assert_allclose(
        data.behaviour_log_prob, log_density(PROCESS, data.observations, jnp.asarray(data.actions)), rtol=1e-6
    )
