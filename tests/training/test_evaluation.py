"""Evaluation: the first whole episode of each lane and no other, known answers, unfinished lanes told."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents.base import ActOutput, Agent
from jaxrl_off.envs.base import DiscreteSpace, Environment, EnvironmentSpec, fresh_timestep
from jaxrl_off.training import Evaluation, evaluate, summarise_evaluation
from jaxrl_off.types import EpisodeStatistics


def scripted(choose) -> Agent:
    """An agent without parameters: `choose(key, observation[N], greedy) -> action[N]`."""

    def act(state, key, observation, core, first, greedy=False):
        action = choose(key, observation, greedy)
        return ActOutput(action, jnp.zeros(action.shape[0]), None, (), core)

    return Agent(lambda key: (), lambda n: (), act, None, None, lambda state: state)


def always(action: int) -> Agent:
    return scripted(lambda key, observation, greedy: jnp.full(observation.shape[0], action, jnp.int32))


def staircase(lanes: int) -> Environment:
    """Lane i's first episode takes i + 2 steps of reward 1; each later one takes a single step of reward 100."""
    spec = EnvironmentSpec("staircase", (1,), "float32", DiscreteSpace(2))

    def reset(key):
        zeros = jnp.zeros(lanes, jnp.int32)
        return (zeros, zeros), fresh_timestep(jnp.zeros((lanes, 1)), lanes)

    def step(key, state, action):
        time, episode = state
        time = time + 1
        done = time >= jnp.where(episode == 0, jnp.arange(lanes) + 2, 1)
        reward = jnp.where(episode == 0, 1.0, 100.0)
        total = jnp.where(episode == 0, time.astype(jnp.float32), 100.0)
        timestep = fresh_timestep(jnp.zeros((lanes, 1)), lanes)._replace(
            reward=reward, terminated=done, first=done, episode=EpisodeStatistics(done, total, time)
        )
        return (jnp.where(done, 0, time), episode + done), timestep

    return Environment(spec, lanes, reset, step)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_counts_first_episodes_only_and_tells_unfinished(wrap):
    lanes = staircase(6)
    result = wrap(lambda key: evaluate(always(0), (), lanes, key, max_steps=5))(jax.random.key(0))
    np.testing.assert_array_equal(result.finished, [True, True, True, True, False, False])
    np.testing.assert_array_equal(result.episode_return, [2, 3, 4, 5, np.nan, np.nan])
    np.testing.assert_array_equal(result.length, [2, 3, 4, 5, 0, 0])
    assert summarise_evaluation(result) == {
        "evaluation_return": 3.5,
        "evaluation_standard_error": pytest.approx(np.std([2, 3, 4, 5], ddof=1) / 2),
        "evaluation_length": 3.5,
        "evaluation_episodes": 4,
        "evaluation_unfinished": 2,
    }


def test_stops_as_soon_as_all_lanes_are_done():
    calls = []
    lanes = staircase(3)

    def step(key, state, action):
        jax.debug.callback(lambda: calls.append(1))
        return lanes.step(key, state, action)

    jax.block_until_ready(evaluate(always(0), (), lanes._replace(step=step), jax.random.key(0), max_steps=1000))
    jax.effects_barrier()
    assert len(calls) == 4


def test_nothing_finished_is_nan_not_zero():
    summary = summarise_evaluation(evaluate(always(0), (), staircase(3), jax.random.key(0), max_steps=1))
    assert math.isnan(summary["evaluation_return"])
    assert math.isnan(summary["evaluation_standard_error"])
    assert (summary["evaluation_episodes"], summary["evaluation_unfinished"]) == (0, 3)


@pytest.mark.parametrize(("action", "value"), [(0, -1.0), (1, 1.0)])
def test_probe_with_known_answer(action, value):
    result = evaluate(always(action), (), envs.make("probe/action", 5), jax.random.key(0), max_steps=10)
    np.testing.assert_array_equal(result.episode_return, np.full(5, value))
    np.testing.assert_array_equal(result.length, np.ones(5))


def test_truncated_episodes_count_as_finished():
    result = evaluate(always(0), (), envs.make("probe/truncation", 3, steps=7), jax.random.key(0), max_steps=7)
    np.testing.assert_array_equal(result.finished, True)
    np.testing.assert_array_equal(result.episode_return, 7.0)


def test_cartpole_against_physics_in_numpy():
    """A constant push on CartPole: the pole's fall, integrated here in float64, has the same length in every lane."""
    lanes = envs.make("CartPole-v1", 16)
    key = jax.random.key(3)
    result = evaluate(always(1), (), lanes, key, max_steps=200)
    _, timestep = lanes.reset(jax.random.split(key)[0])
    for lane, start in enumerate(np.asarray(timestep.observation, np.float64)):
        assert result.length[lane] == fall_time(start), lane
    np.testing.assert_array_equal(result.episode_return, result.length)
    assert 7 < result.length.mean() < 12


def fall_time(state: np.ndarray) -> int:
    """Barto, Sutton and Anderson's cart-pole under force +10, Euler steps of 0.02 s."""
    x, x_dot, angle, angle_dot = state
    for steps in range(1, 500):
        inner = (10.0 + 0.05 * angle_dot**2 * np.sin(angle)) / 1.1
        fraction = 0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1)
        angle_acceleration = (9.8 * np.sin(angle) - np.cos(angle) * inner) / fraction
        acceleration = inner - 0.05 * angle_acceleration * np.cos(angle) / 1.1
        x, x_dot = x + 0.02 * x_dot, x_dot + 0.02 * acceleration
        angle, angle_dot = angle + 0.02 * angle_dot, angle_dot + 0.02 * angle_acceleration
        if abs(x) > 2.4 or abs(angle) > 12 * 2 * np.pi / 360:
            return steps
    raise AssertionError("the pole did not fall")


def test_greedy_reaches_the_agent():
    agent = scripted(
        lambda key, observation, greedy: jnp.where(
            greedy, 1, jax.random.randint(key, (observation.shape[0],), 0, 2)
        ).astype(jnp.int32)
    )
    lanes = envs.make("probe/action", 400)
    greedy = evaluate(agent, (), lanes, jax.random.key(0), greedy=True, max_steps=2).episode_return
    sampled = evaluate(agent, (), lanes, jax.random.key(0), max_steps=2).episode_return
    assert greedy.mean() == 1.0
    assert abs(sampled.mean()) < 0.2  # four standard errors


def test_vmap_over_agents_is_the_loop():
    lanes = envs.make("CartPole-v1", 4)
    agent = agents.make(agents.preset("ppo", sizes=(8,), core_size=4), lanes.spec, total_updates=1)
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(1), 2)

    def play(state, key) -> Evaluation:
        return evaluate(agent, state, lanes, key, greedy=True, max_steps=501)

    together = jax.jit(jax.vmap(play))(states, keys)
    for i in range(2):
        alone = jax.jit(play)(jax.tree.map(lambda leaf, i=i: leaf[i], states), keys[i])
        np.testing.assert_array_equal(together.length[i], alone.length)
    assert together.finished.all()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_environments_outside_jax(wrap):
    pytest.importorskip("gymnasium")
    lanes = envs.make("gymnasium/CartPole-v1", 3)
    try:
        result = wrap(lambda key: evaluate(always(1), (), lanes, key, max_steps=100))(jax.random.key(0))
        assert result.finished.all()
        assert ((result.length >= 8) & (result.length <= 11)).all()
        np.testing.assert_array_equal(result.episode_return, result.length)
    finally:
        lanes.close()


def test_max_steps_is_checked():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        evaluate(always(0), (), staircase(2), jax.random.key(0), max_steps=0)


def test_eager_calls_compile_once():
    """The second call with the same agent and environment traces nothing; another number of steps is another program."""
    traces = []

    def act(state, key, observation, core, first, greedy=False):
        traces.append(greedy)
        return always(1).act(state, key, observation, core, first, greedy=greedy)

    agent, lanes = always(1)._replace(act=act), staircase(2)
    first = evaluate(agent, (), lanes, jax.random.key(0), max_steps=50)
    count = len(traces)
    again = evaluate(agent, (), lanes, jax.random.key(0), max_steps=50)
    assert len(traces) == count > 0
    np.testing.assert_array_equal(first.episode_return, again.episode_return)
    evaluate(agent, (), lanes, jax.random.key(0), max_steps=50, greedy=True)
    assert traces[-1] is True
