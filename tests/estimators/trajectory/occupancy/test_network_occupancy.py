"""Occupancy ratios by networks: a finite process with known values, whose tables say what networks should find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs.finite import sampler
from jaxrl_off.envs.tabular import TabularMDP
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.occupancy import network as networks
from jaxrl_off.estimators.trajectory.occupancy import tabular
from jaxrl_off.estimators.trajectory.occupancy.fitting import METHODS, OccupancyConfig
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected

STATES, GAMMA = 5, 0.8
CONFIG = OccupancyConfig(sizes=(32,), members=2, updates=1500, batch_size=128, features=64, learning_rate=3e-3)
BRIEF = OccupancyConfig(sizes=(4,), members=2, updates=3, batch_size=8, features=4)


@pytest.fixture(scope="module")
def walk():
    """A slippery walk whose right end pays; the behaviour policy wanders, the target goes to the right.

    Returns trajectories of numbered states and one-hot ones, the target, and the values of both policies.
    """
    transition = np.full((STATES, 2, STATES), 0.1 / STATES)
    for state in range(STATES):
        transition[state, 0, max(state - 1, 0)] += 0.9
        transition[state, 1, min(state + 1, STATES - 1)] += 0.9
    reward = np.zeros((STATES, 2))
    reward[-1], reward[:, 0] = 1.0, 0.1
    mdp = TabularMDP(transition, reward, np.eye(STATES)[1], np.float64(GAMMA))
    behaviour, target = np.full((STATES, 2), 0.5), np.tile([0.15, 0.85], (STATES, 1))

    def value(policy):
        under = np.einsum("sa,sat->st", policy, transition)
        return mdp.initial @ np.linalg.solve(np.eye(STATES) - GAMMA * under, np.sum(policy * reward, axis=1))

    data = sampler(mdp, 15, terminal=np.zeros(STATES, bool))(jax.random.key(0), 200, behaviour)
    data = jax.tree.map(np.asarray, data)
    hot = np.eye(STATES, dtype=np.float32)
    one_hot = data._replace(observations=hot[data.observations], final_observation=hot[data.final_observation])
    return data, one_hot, target, value(target), value(behaviour)


@pytest.mark.parametrize("method", METHODS)
def test_value_and_ratio_are_those_of_tables(walk, method):
    """Within a tenth of what separates the policies' values; and the ratio of every step, in the mean."""
    data, one_hot, table, truth, behaviour = walk
    target, options = target_actions(data, table), dict(discount=GAMMA, horizon_exit=False)
    # nothing bends the Lagrangian of gen_dice in zeta: it takes smaller steps
    config = CONFIG.replace(learning_rate=1e-3) if method == "gen_dice" else CONFIG
    found = getattr(networks, method)(one_hot, target, jax.random.key(1), config, level=0.9, **options)
    exact = getattr(tabular, method)(data, table, **options)
    assert abs(float(found.value) - float(exact.value)) < 0.1 * abs(truth - behaviour)
    assert abs(float(found.value) - truth) < 0.2 * abs(truth - behaviour)
    assert float(found.lower) < float(found.value) < float(found.upper)
    told = {name: float(x) for name, x in found.diagnostics.items()}
    assert told["finite"] == 1.0
    assert told["flow_residual"] < 0.1
    assert told["unconverged"] == 0.0
    assert told["normalisation"] == pytest.approx(1.0, abs=0.1)
    assert told["mean_ratio"] == pytest.approx(1.0, rel=1e-5)  # nothing ends
    assert 0.0 < told["member_spread"] < 0.1 * abs(truth - behaviour)
    assert (told["negative_ratio"] == 0.0) or method == "dual_dice"

    ratio = networks.density_ratio(one_hot, target, jax.random.key(1), config, method=method, **options)
    zeta = np.asarray(tabular.density_ratio(data, table, method=method, **options))
    assert np.mean(np.abs(np.asarray(ratio.ratio) - zeta[data.observations, data.actions])) < 0.15
    assert np.mean(np.abs(zeta[data.observations, data.actions] - 1.0)) > 0.4
    value = np.mean(np.asarray(ratio.ratio) * data.rewards) / (1.0 - GAMMA)
    assert value == pytest.approx(float(found.value), rel=1e-5)
    discounts = GAMMA ** np.arange(15)
    value = np.mean(np.sum(discounts * np.asarray(ratio.marginal_ratio) * data.rewards, axis=1))
    assert value == pytest.approx(float(found.value), rel=1e-5)


def test_cross_fitted_double_reinforcement_learning(walk):
    """Predictions for trajectories that count 0; with a Q that is wrong the ratio, with a bad ratio Q is right."""
    data, one_hot, table, truth, behaviour = walk
    target, zero = target_actions(data, table), np.zeros(data.rewards.shape)

    def fit(counts):
        return networks.density_ratio(
            one_hot, target, jax.random.key(2), CONFIG, discount=GAMMA, counts=counts, method="best_dice"
        )

    crossed = corrected.cross_fitted(fit, np.ones(200))
    assert bool(np.all(np.asarray(crossed.ratio) > 0.0))
    found = corrected.double_reinforcement_learning(data, crossed.marginal_ratio, zero, zero, discount=GAMMA)
    exact = float(tabular.minimax_weight(data, table, discount=GAMMA).value)  # rows that end are exits here
    assert abs(float(found.value) - exact) < 0.1 * abs(truth - behaviour)
    assert float(found.standard_error) > 0.0


def test_exits_and_padding(walk):
    """What stands in the padding and in rows that count 0 is not looked at; m counts the absorbing state."""
    data, one_hot, table, _, _ = walk
    mask = np.arange(15) < np.random.default_rng(0).integers(1, 16, 200)[:, None]
    counts = np.where(np.arange(200) < 150, 1.0, 0.0)
    cut = one_hot._replace(mask=mask)
    dirty = cut._replace(
        observations=np.where(mask[..., None] & (counts > 0)[:, None, None], cut.observations, np.nan),
        rewards=np.where(mask & (counts > 0)[:, None], cut.rewards, np.nan),
    )
    key, options = jax.random.key(3), dict(discount=GAMMA, counts=counts)
    target = target_actions(data, table)
    found, same = (networks.best_dice(x, target, key, BRIEF, **options) for x in (cut, dirty))
    assert float(found.value) == pytest.approx(float(same.value), rel=1e-6)
    zeta = np.asarray(networks.density_ratio(cut, target, key, BRIEF, method="best_dice", **options).ratio)
    assert np.all(zeta[~mask] == 0.0)
    last = mask & ~np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    share = (counts[:, None] * mask) / np.sum(counts[:, None] * mask)
    assert np.sum(share * zeta * (1.0 + GAMMA / (1.0 - GAMMA) * last)) == pytest.approx(1.0, rel=1e-5)


def test_continuous_actions_jit_and_seeds(walk):
    """Candidates drawn from a policy; one program for several keys, and float32 in it whatever the default."""
    data, one_hot, table, _, _ = walk
    probability = np.concatenate([np.full((*data.actions.shape, 1), 0.15), np.full((*data.actions.shape, 1), 0.85)], -1)
    weights = np.concatenate([probability, probability[:, :1]], axis=1)
    candidates = np.broadcast_to(np.arange(2.0)[:, None], (*weights.shape, 1))
    target = TargetActions(candidates, weights)
    numbers = one_hot._replace(actions=data.actions[..., None] + 0.0)
    keys = jax.random.split(jax.random.key(4), 3)
    with jax.enable_x64(True):
        one = jax.tree.map(jnp.asarray, (numbers, target))
        value = lambda d, target, key: networks.dual_dice(d, target, key, BRIEF, discount=GAMMA).value  # noqa: E731
        values = np.asarray(jax.jit(jax.vmap(value, in_axes=(None, None, 0)))(*one, keys))
    alone = networks.dual_dice(numbers, target, keys[1], BRIEF, discount=GAMMA).value
    assert values[1] == pytest.approx(float(alone), rel=1e-4)
    assert len(set(values)) == 3
    assert alone.dtype == jnp.float64
    # zeta >= 0 with mean 1: the value is one of mean rewards
    smooth = networks.minimax_weight(numbers, target, keys[1], BRIEF, discount=GAMMA, horizon_exit=False)
    assert data.rewards.min() <= (1.0 - GAMMA) * float(smooth.value) <= data.rewards.max()
    assert smooth.diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-5)


def test_what_cannot_be_meant(walk):
    data, one_hot, table, _, _ = walk
    target, key = target_actions(data, table), jax.random.key(0)
    with pytest.raises(ValueError, match="no normalised occupancy"):
        networks.gen_dice(one_hot, target, key, BRIEF, discount=1.0)
    with pytest.raises(ValueError, match="method must be one of"):
        networks.density_ratio(one_hot, target, key, BRIEF, discount=GAMMA, method="star")
    several = target._replace(weights=jnp.stack([target.weights, target.weights]))
    with pytest.raises(ValueError, match="one policy"):
        networks.gen_dice(one_hot, several, key, BRIEF, discount=GAMMA)
    with pytest.raises(TypeError, match="has no option|unexpected keyword"):
        networks.gen_dice(one_hot, target, key, BRIEF, discount=GAMMA, members=3)
    with pytest.raises(ValueError, match="at least 2"):
        OccupancyConfig(batch_size=1)


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_methods_know_their_names(method):
    function = getattr(networks, method)
    assert function.__name__ == method
    assert "discount" in function.__doc__
    assert function.__module__ == networks.__name__
