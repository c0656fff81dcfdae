"""A fit that has not converged says so in its diagnostics, whatever the ensemble: networks for Q, models, occupancies."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
from jaxrl_off.estimators.trajectory.occupancy import network as occupancy
from jaxrl_off.estimators.trajectory.values import model, network, tabular
from jaxrl_off.estimators.trajectory.values.fitting_model import still_falling
from jaxrl_off.estimators.trajectory.values.fitting_q import rate_for
from jaxrl_off.estimators.warnings import warnings_of
from jaxrl_off.types import Estimate, Trajectories

N, T, DISCOUNT = 50, 10, 0.99
SMALL = network.FittedQConfig(sizes=(8,), updates=600, batch_size=64, members=2)
SLOW = SMALL.replace(target_rate=0.005)


def endless(states, rewards, final):
    """Rows that are cut after T steps of a process that goes on."""
    no = np.zeros((N, T), bool)
    cut = no | (np.arange(T) == T - 1)
    actions = np.random.default_rng(1).integers(0, 2, (N, T))
    return Trajectories(states, actions, rewards, None, ~no, no, cut, final)


@pytest.fixture(scope="module")
def signs():
    """A state of -1 or 1 that persists, reward 1 + s: the level of Q is far away, and so is what tells the states apart."""
    rng = np.random.default_rng(0)
    states = np.ones((N, T + 1))
    states[:, 0] = rng.choice([-1.0, 1.0], N)
    for t in range(T):
        states[:, t + 1] = np.where(rng.random(N) < 0.05, -states[:, t], states[:, t])
    return endless(states[:, :-1, None], 1.0 + states[:, :-1], states[:, -1, None])


@pytest.fixture(scope="module")
def target(signs):
    return target_actions(signs, np.full((N, T + 1, 2), 0.5))


def evaluated(data, target, config):
    options = dict(discount=DISCOUNT, horizon_exit=False, level=0.95)
    return network.fitted_q_evaluation(data, target, jax.random.key(0), config, **options)


def test_a_reward_of_1_forever_is_worth_100(signs, target):
    """Earlier versions gave 52.33 with the interval [52.325, 52.328] at their defaults, and said nothing."""
    data = signs._replace(rewards=np.ones((N, T)))
    found = evaluated(data, target, SMALL)
    np.testing.assert_allclose(found.value, 100.0, rtol=1e-3)
    assert abs(found.diagnostics["bellman_error"]) < 0.1
    np.testing.assert_allclose(found.diagnostics["initial_error_left"], 0.01, rtol=1e-6)
    assert found.diagnostics["unconverged"] == 0.0


def test_values_that_differ_by_state_converge_by_default_and_too_slow_a_target_is_reported(signs, target):
    numbered = signs._replace(
        observations=(signs.observations[..., 0] > 0).astype(int),
        final_observation=(signs.final_observation[:, 0] > 0).astype(int),
    )
    truth = tabular.model_based(numbered, np.full((2, 2), 0.5), discount=DISCOUNT, horizon_exit=False)
    found, slow = (evaluated(signs, target, config) for config in (SMALL, SLOW))
    np.testing.assert_allclose(found.value, truth.value, rtol=0.02)
    assert found.diagnostics["unconverged"] == 0.0
    assert not any("converged" in sentence for sentence in warnings_of(found))
    assert any("not converged (97 % of its initial error is left" in sentence for sentence in warnings_of(slow))
    assert any("do not include the error of the fit" in sentence for sentence in warnings_of(slow))
    # the formula: (1 - gamma) r U
    np.testing.assert_allclose(slow.diagnostics["initial_error_left"], np.exp(-0.01 * 0.005 * 600), rtol=1e-6)
    assert slow.diagnostics["unconverged"] == 1.0
    assert slow.diagnostics["member_deviation"] < 0.02 * slow.value  # members agree, which says nothing


def test_the_bellman_error_is_what_the_level_lacks():
    """Of a value that is wrong by a constant it is that constant, with the sign that puts it right."""
    weights = np.ones((N, T))
    given = network.Transitions(
        steps=jax.tree.map(jnp.asarray, _Steps(np.ones(N), np.ones((N, T)))),
        mask=weights > 0,
        observations=None,
        actions=None,
        target=None,
        usable=None,
        used=jnp.asarray(weights),
        continues=jnp.asarray(weights),
        discount=jnp.asarray(DISCOUNT),
    )
    gap = network.gap_of(given)
    np.testing.assert_allclose(gap, 0.01, rtol=1e-4)
    error = network._bellman_error(given, jnp.full((N, T), 52.33), jnp.full((N, T + 1), 52.33), gap)
    np.testing.assert_allclose(error, 47.67, rtol=1e-3)


class _Steps(NamedTuple):
    counts: np.ndarray
    rewards: np.ndarray


def test_the_target_rate_leaves_one_percent():
    np.testing.assert_allclose(rate_for(jnp.asarray(0.01), 10_000), 0.0460517, rtol=1e-5)
    assert rate_for(jnp.asarray(0.5), 10_000) == pytest.approx(0.005)  # slow enough to be stable, and done long before
    assert rate_for(jnp.asarray(0.001), 100) == 1.0


def test_how_much_a_loss_still_falls():
    line, flat = jnp.linspace(1.0, 0.0, 1000), jnp.concatenate([jnp.ones(10), jnp.zeros(990)])
    np.testing.assert_allclose(still_falling(line), 0.25 / 1.87, atol=0.01)
    assert still_falling(flat) == 0.0
    assert still_falling(jnp.ones(1)) == 0.0


def test_a_model_that_still_learns_is_reported(signs):
    brief = model.FittedModelConfig(sizes=(8,), members=2, updates=40, batch_size=32)

    def policy(key, observation):
        return jnp.zeros(len(observation), jnp.int32)

    short, long = (
        model.model_based(signs, policy, jax.random.key(0), config, num_actions=2, rollouts=1)
        for config in (brief.replace(learning_rate=1e-2), brief.replace(updates=2000, learning_rate=1e-2))
    )
    assert short.diagnostics["unconverged"] == 1.0
    assert short.diagnostics["still_falling"] > 0.05 > long.diagnostics["still_falling"]
    assert long.diagnostics["unconverged"] == 0.0
    assert any("loss was still falling" in sentence for sentence in warnings_of(short))
    assert not any("converged" in sentence for sentence in warnings_of(long))


def test_an_occupancy_that_does_not_solve_its_equations_is_reported(signs):
    config = occupancy.OccupancyConfig(sizes=(8,), members=2, updates=2, batch_size=32, features=16)
    options = dict(discount=DISCOUNT, horizon_exit=False)
    other = target_actions(signs, np.broadcast_to([1.0, 0.0], (N, T + 1, 2)))
    found = occupancy.minimax_weight(signs, other, jax.random.key(0), config, **options)
    assert found.diagnostics["flow_residual"] > 0.1
    assert found.diagnostics["unconverged"] == 1.0
    assert any("does not satisfy its flow equations" in sentence for sentence in warnings_of(found))


def test_rounds_that_do_not_converge_are_reported():
    numbers = {"settled": 0.0, "spectral_radius": 1.3}
    assert "spectral radius 1.3" in warnings_of(Estimate(1.0, 0.1, None, None, 20.0, numbers))[0]
    assert warnings_of(Estimate(1.0, 0.1, None, None, 20.0, numbers | {"settled": 1.0})) == ()
