"""Model-based evaluation with networks: a linear-quadratic system that may end at any step, with values by recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.values import fitting_model as model_training
from jaxrl_off.estimators.trajectory.values.fitting_model import FittedModelConfig
from jaxrl_off.estimators.trajectory.values.model import fit_model, model_based, model_values
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Trajectories

ROWS, HORIZON, GAMMA, ENDS = 200, 35, 0.95, 0.03
DYNAMICS, CONTROL, NOISE = 0.9, 0.5, 0.1
CONFIG = FittedModelConfig(sizes=(32, 32), members=3, updates=2500, batch_size=128, learning_rate=3e-3)
BRIEF = FittedModelConfig(sizes=(4,), members=2, updates=3, batch_size=8)
TARGET, BEHAVIOUR = (-0.8, 0.2), (0.05, 0.4)  # gains, and deviations of actions


def simulated(seed=0, rows=ROWS, policy=BEHAVIOUR):
    """`s' = 0.9 s + 0.5 a + noise`, reward `1 - s^2 - 0.1 a^2`; every step ends it with probability 0.03."""
    random = np.random.default_rng(seed)
    state, alive, columns = 1.0 + 0.3 * random.normal(size=rows), np.ones(rows, bool), []
    for _ in range(HORIZON):
        action = policy[0] * state + policy[1] * random.normal(size=rows)
        end = alive & (random.random(rows) < ENDS)
        columns.append((state, action, 1.0 - state**2 - 0.1 * action**2, alive, end))
        state, alive = DYNAMICS * state + CONTROL * action + NOISE * random.normal(size=rows), alive & ~end
    states, actions, rewards, mask, end = (np.stack(x, axis=1) for x in zip(*columns, strict=True))
    hole = np.where(mask, 0.0, np.nan)
    gain, deviation = BEHAVIOUR
    logged = -0.5 * ((actions - gain * states) / deviation) ** 2 - np.log(deviation)
    return Trajectories(
        (states + hole)[..., None], (actions + hole)[..., None], rewards + hole, logged + hole, mask, end, end & False,
        state[:, None],
    )  # fmt: skip


def act(key, observation):
    gain, deviation = TARGET
    return gain * observation + deviation * jax.random.normal(key, observation.shape)


def exact_values(policy):
    """`p_t, c_t` with `V_t(s) = c_t - p_t s^2` of the T - t steps that are left, and of s_T."""
    gain, deviation = policy
    quadratic, constant = np.zeros(HORIZON + 1), np.zeros(HORIZON + 1)
    closed = DYNAMICS + CONTROL * gain
    spread = (CONTROL * deviation) ** 2 + NOISE**2
    for t in reversed(range(HORIZON)):
        follows = GAMMA * (1.0 - ENDS)
        quadratic[t] = 1.0 + 0.1 * gain**2 + follows * closed**2 * quadratic[t + 1]
        constant[t] = 1.0 - 0.1 * deviation**2 + follows * (constant[t + 1] - spread * quadratic[t + 1])
    return quadratic, constant


@pytest.fixture(scope="module")
def fitted():
    data = simulated()
    return data, fit_model(data, jax.random.key(0), CONFIG)


def test_value_is_that_of_the_recursion():
    """Rewards of the last ten steps are a quarter of the value, so that a roll-out that is cut is seen to be."""
    data = simulated(1)
    quadratic, constant = exact_values(TARGET)
    start = data.observations[:, 0, 0]
    truth = np.mean(constant[0] - quadratic[0] * start**2)
    found = model_based(data, act, jax.random.key(1), CONFIG, discount=GAMMA, rollouts=5, level=0.9)
    other = exact_values(BEHAVIOUR)
    gap = truth - np.mean(other[1][0] - other[0][0] * start**2)
    late = np.sum((GAMMA * (1.0 - ENDS)) ** np.arange(25, HORIZON))
    assert late > 0.5
    assert gap > 5.0
    assert abs(float(found.value) - truth) < 0.3
    assert float(found.lower) < float(found.value) < float(found.upper)
    assert 0.0 < float(found.standard_error) < 0.2
    assert 0.0 < float(found.diagnostics["member_deviation"]) < 1.0
    assert float(found.diagnostics["outside"]) < 0.01
    short = model_based(data, act, jax.random.key(1), CONFIG, discount=GAMMA, rollouts=5, horizon=25)
    assert float(found.value) - float(short.value) == pytest.approx(late * 0.9, abs=0.15)


def test_values_along_trajectories_and_doubly_robust(fitted):
    data, model = fitted
    quadratic, constant = exact_values(TARGET)
    found = model_values(model, data, act, jax.random.key(2), CONFIG, discount=GAMMA, rollouts=2)
    states = np.where(data.mask, data.observations[..., 0], 0.0)
    v = np.where(data.mask, constant[:-1] - quadratic[:-1] * states**2, 0.0)
    assert np.mean(np.abs(np.asarray(found.v) - v)[data.mask]) < 0.5
    assert np.corrcoef(np.asarray(found.v)[data.mask], v[data.mask])[0, 1] > 0.98
    # Q - V is what the logged action is worth, which v alone cannot tell
    actions = np.where(data.mask, data.actions[..., 0], 0.0)
    after = DYNAMICS * states + CONTROL * actions
    q = 1.0 - states**2 - 0.1 * actions**2
    q += GAMMA * (1.0 - ENDS) * (constant[1:] - quadratic[1:] * (after**2 + NOISE**2))
    advantage, expected = (np.asarray(x)[data.mask] for x in (found.q - found.v, q - v))
    assert np.corrcoef(advantage, expected)[0, 1] > 0.8
    assert np.all(np.asarray(found.q)[~data.mask] == 0.0)
    lengths = data.mask.sum(axis=1)
    ended = data.terminated.any(axis=1)
    assert np.all(np.asarray(found.final)[ended | (lengths == HORIZON)] == 0.0)
    gain, deviation = TARGET
    log_prob = -0.5 * ((actions - gain * states) / deviation) ** 2 - np.log(deviation)
    short = np.where(np.arange(HORIZON) < 4, log_prob, np.where(data.mask, data.behaviour_log_prob, 0.0))
    corrected_value = corrected.doubly_robust(data, short, found.q, found.v, discount=GAMMA)
    assert np.isfinite(float(corrected_value.value))


def test_padding_counts_and_several_axes(fitted):
    """Rows that count 0 and padding are not looked at; observations of any shape are flattened."""
    data, _ = fitted
    counts = np.where(np.arange(ROWS) < 150, 1.0, 0.0)
    dirty = jax.tree.map(lambda x: np.where(counts.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, np.nan), data)
    dirty = dirty._replace(mask=data.mask, terminated=data.terminated, truncated=data.truncated)
    one, other = (fit_model(x, jax.random.key(3), BRIEF, counts=counts) for x in (data, dirty))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    square = data._replace(
        observations=np.tile(data.observations[..., None], (1, 1, 2, 1)),
        final_observation=np.tile(data.final_observation[..., None], (1, 2, 1)),
    )
    model = fit_model(square, jax.random.key(3), BRIEF)
    assert model.units.low.shape == (2,)
    assert model.units.inputs.observation_mean.shape == (2, 1)


def test_discrete_actions_and_steps_that_know_no_successor():
    """Rewards are the action, and nobody knows what the last step led to; q of what was done, v of what is."""
    random = np.random.default_rng(0)
    actions = random.integers(0, 3, (100, 2))
    yes = np.ones((100, 2), bool)
    data = Trajectories(random.normal(size=(100, 2, 1)), actions, actions + 0.0, None, yes, ~yes, ~yes, None)
    config = FittedModelConfig(sizes=(16,), members=2, updates=1000, batch_size=64, learning_rate=1e-2)
    model = fit_model(data, jax.random.key(0), config, num_actions=3)

    def last(key, observation):
        return jnp.full(len(observation), 2), None

    found = model_values(model, data, last, jax.random.key(1), config, discount=0.5)
    np.testing.assert_allclose(found.q, actions + np.array([1.0, 0.0]), atol=0.1)
    np.testing.assert_allclose(found.v, np.tile([3.0, 2.0], (100, 1)), atol=0.1)
    assert found.final is None


def test_one_program_for_many_keys(fitted):
    data, _ = fitted
    keys = jax.random.split(jax.random.key(5), 2)
    with jax.enable_x64(True):
        value = lambda d, key: model_based(d, act, key, BRIEF, rollouts=1, discount=GAMMA).value  # noqa: E731
        values = np.asarray(jax.jit(jax.vmap(value, in_axes=(None, 0)))(jax.tree.map(jnp.asarray, data), keys))
    alone = [float(model_based(data, act, key, BRIEF, rollouts=1, discount=GAMMA).value) for key in keys]
    np.testing.assert_allclose(values, alone, rtol=1e-3)
    size = model_training.roll_out._cache_size()
    model_based(simulated(9), act, keys[0], BRIEF, rollouts=1, discount=0.5)
    assert model_training.roll_out._cache_size() == size


def test_what_cannot_be_meant(fitted):
    data, _ = fitted
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rollouts and horizon must be"):
        model_based(data, act, key, BRIEF, rollouts=0)
    with pytest.raises(ValueError, match="discount must be in"):
        model_based(data, act, key, BRIEF, discount=1.5)
    with pytest.raises(ValueError, match="level must be"):
        model_based(data, act, key, BRIEF, level=2.0)
    with pytest.raises(ValueError, match="integers"):
        fit_model(data, key, BRIEF, num_actions=2)
    first = jax.tree.map(lambda x: x[:, :1], data._replace(final_observation=None))
    with pytest.raises(ValueError, match="no step has a successor"):
        fit_model(first, key, BRIEF)
    with pytest.raises(ValueError, match="members 2"):
        FittedModelConfig(members=1)
