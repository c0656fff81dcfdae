"""`vectorise`: automatic reset, final observations, statistics, both ways to reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import make
from jaxrl_off.envs.base import (
    ContinuousSpace,
    DiscreteSpace,
    EnvironmentSpec,
    LaneEnvironment,
    Transitioned,
    clip_action,
    continuous_space,
    vectorise,
)

SPEC = EnvironmentSpec("walk", (2,), "float32", DiscreteSpace(2))


def walk(limit: int = 5) -> LaneEnvironment:
    """A noisy walk from a random start; ends beyond 1, and is cut after `limit` steps (also where it ends)."""

    def observe(state):
        return jnp.stack([state["position"], state["time"].astype(jnp.float32)])

    def reset(key):
        state = {"position": 0.5 * jax.random.uniform(key), "time": jnp.zeros((), jnp.int32)}
        return observe(state), state

    def step(key, state, action):
        position = state["position"] + 0.3 * action + 0.1 * jax.random.normal(key)
        state = {"position": position, "time": state["time"] + 1}
        return Transitioned(observe(state), state, 2.0 * position, position > 1.0, state["time"] >= limit)

    return LaneEnvironment(SPEC, reset, step)


def roll(env, key, steps):
    reset_key, *keys = jax.random.split(key, steps + 1)
    state, first = jax.jit(env.reset)(reset_key)
    step = jax.jit(env.step)
    timesteps, actions = [first], []
    for step_key in keys:
        actions.append(jax.random.randint(step_key, (env.num_envs,), 0, 2))
        state, timestep = step(step_key, state, actions[-1])
        timesteps.append(timestep)
    return jax.tree.map(lambda *x: np.stack(x), *timesteps), np.stack(actions)


def test_ends_are_exclusive_and_statistics_equal_a_hand_loop():
    out, _ = roll(vectorise(walk(), 6), jax.random.key(0), 60)
    assert out.terminated.any()
    assert out.truncated.any()
    assert not (out.terminated & out.truncated).any()
    np.testing.assert_array_equal(out.episode.done, out.terminated | out.truncated)
    np.testing.assert_array_equal(out.first[1:], out.episode.done[1:])
    assert out.first[0].all()
    assert out.valid.all()
    for lane in range(6):
        total, length = 0.0, 0
        for t in range(1, 61):
            total, length = total + out.reward[t, lane], length + 1
            if out.episode.done[t, lane]:
                np.testing.assert_allclose(out.episode.episode_return[t, lane], total, rtol=1e-5)
                assert out.episode.length[t, lane] == length
                total, length = 0.0, 0


def test_final_observation_is_kept_and_resets_are_random_again():
    out, _ = roll(vectorise(walk(), 4), jax.random.key(1), 60)
    done = out.episode.done
    # The kept observation is the successor: its time counts the steps of the episode and its position tells the end.
    np.testing.assert_array_equal(out.final_observation[done][:, 1], out.episode.length[done])
    np.testing.assert_array_equal(out.final_observation[..., 0][1:] > 1.0, out.terminated[1:])
    np.testing.assert_allclose(2.0 * out.final_observation[1:, :, 0], out.reward[1:], rtol=1e-6)
    np.testing.assert_array_equal(out.observation[~done], out.final_observation[~done])
    starts = out.observation[done]
    assert (starts[:, 1] == 0).all()
    assert len(np.unique(starts[:, 0])) == len(starts) > 10


def test_expensive_reset_gives_the_same_numbers_as_the_cheap_one():
    cheap, _ = roll(vectorise(walk(), 3), jax.random.key(2), 40)
    lazy, _ = roll(vectorise(walk(), 3, cheap_reset=False), jax.random.key(2), 40)
    assert cheap.episode.done.any()
    jax.tree.map(np.testing.assert_array_equal, cheap, lazy)


def test_expensive_reset_is_not_run_while_no_lane_ends():
    calls = []
    lane = walk(limit=4)

    def counted_reset(key):
        jax.debug.callback(lambda: calls.append(1))
        return lane.reset(key)

    env = vectorise(LaneEnvironment(SPEC, counted_reset, lane.step), 2, cheap_reset=False)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    jax.effects_barrier()
    per_reset = len(calls)
    for t in range(8):
        state, timestep = step(jax.random.key(t), state, jnp.zeros(2, jnp.int32))
    jax.effects_barrier()
    assert timestep.truncated.all()
    assert len(calls) == 3 * per_reset


def test_vmap_over_environments_equals_a_loop():
    env = vectorise(walk(), 3, cheap_reset=False)
    keys = jax.random.split(jax.random.key(3), 2)

    def run(key):
        state, _ = env.reset(key)
        return jax.lax.scan(lambda s, k: env.step(k, s, jnp.ones(3, jnp.int32)), state, jax.random.split(key, 20))[1]

    together = jax.vmap(run)(keys)
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), together, run(keys[i]))


def test_step_compiles_once():
    env = vectorise(walk(), 2)
    step = jax.jit(env.step)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    for t in range(3):
        state, _ = step(jax.random.key(t), state, jnp.zeros(2, jnp.int32))
    assert step._cache_size() == 1


def test_boxes():
    space = continuous_space(np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
    assert space == ContinuousSpace((2,), (-1.0, 0.0), (1.0, 3.0))
    np.testing.assert_array_equal(clip_action(space, jnp.array([[-5.0, 5.0], [0.5, -1.0]])), [[-1.0, 3.0], [0.5, 0.0]])
    with pytest.raises(ValueError, match="finite bounds"):
        continuous_space([-np.inf], [1.0])


def test_make_takes_what_is_built_already():
    env = vectorise(walk(), 3)
    assert make(env, 3) is env
    lanes = make(walk(), 2)
    assert lanes.num_envs == 2
    assert lanes.spec == SPEC
    with pytest.raises(ValueError, match="walk has 3 lanes, but num_envs=2; build it with that many"):
        make(env, 2)
    with pytest.raises(ValueError, match="walk is built already and takes no parameters, got limit"):
        make(walk(), 2, limit=3)
    with pytest.raises(TypeError, match=r"got a builtins.object.*gymnasium_envs.from_function"):
        make(object(), 2)


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        vectorise(walk(), 0)
    with pytest.raises(ValueError, match="unknown environment family 'gymnasum'.*mean 'gymnasium'.*Known are: gymnax"):
        make("gymnasum/thing", 1)
