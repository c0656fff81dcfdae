"""The gymnax adapter against gymnax itself."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import ContinuousSpace, DiscreteSpace, gymnax_envs, make


def run(env, key, steps, act):
    def body(state, step_key):
        action = act(step_key)
        state, timestep = env.step(step_key, state, action)
        return state, (timestep, action)

    @jax.jit
    def all_steps(key):
        state, first = env.reset(key)
        return first, jax.lax.scan(body, state, jax.random.split(key, steps))[1]

    return jax.tree.map(np.asarray, all_steps(key))


def test_cartpole_equals_a_hand_loop_over_gymnax():
    env = make("CartPole-v1", 2)
    assert env.pure
    assert env.spec.action_space == DiscreteSpace(2)
    first, (out, actions) = run(env, jax.random.key(0), 60, lambda k: jax.random.randint(k, (2,), 0, 2))
    inner, params = gymnax.make("CartPole-v1")
    lane = 1
    _, state = inner.reset_env(jax.random.split(jax.random.key(0), 2)[lane], params)
    total = 0.0
    for t, key in enumerate(jax.random.split(jax.random.key(0), 60)):
        step_key, reset_key = jax.random.split(key, (2, 2))[lane]
        observation, state, reward, terminated, _ = inner.step_env(step_key, state, actions[t, lane], params)
        total += float(reward)
        np.testing.assert_allclose(out.final_observation[t, lane], observation, rtol=1e-5, atol=1e-6)
        assert bool(terminated) == out.terminated[t, lane]
        if terminated:
            assert out.episode.episode_return[t, lane] == total
            observation, state = inner.reset_env(reset_key, params)
            total = 0.0
        np.testing.assert_allclose(out.observation[t, lane], observation, rtol=1e-5, atol=1e-6)
    assert out.terminated[:, lane].sum() >= 2
    assert first.first.all()


def test_time_limit_truncates_and_a_fall_terminates():
    env = make("CartPole-v1", 4, max_steps_in_episode=12)
    _, (out, _) = run(env, jax.random.key(1), 60, lambda k: jax.random.randint(k, (4,), 0, 2))
    assert out.truncated.any()
    assert out.terminated.any()
    assert (out.episode.length[out.truncated] == 12).all()
    assert (out.episode.length[out.terminated] <= 12).all()


def test_pendulum_never_terminates_and_clips_its_action():
    env = make("Pendulum-v1", 2)
    assert isinstance(env.spec.action_space, ContinuousSpace)
    high = env.spec.action_space.high[0]
    state, _ = env.reset(jax.random.key(0))
    _, outside = env.step(jax.random.key(1), state, jnp.full((2, 1), 100.0))
    _, edge = env.step(jax.random.key(1), state, jnp.full((2, 1), high))
    np.testing.assert_array_equal(outside.observation, edge.observation)
    _, (out, _) = run(env, jax.random.key(0), 201, lambda k: jnp.zeros((2, 1)))
    assert out.truncated.sum() == 2
    assert not out.terminated.any()


def test_environments_can_be_built_inside_jit():
    def first(key):
        env = make("Pendulum-v1", 2)
        assert env.spec == make("Pendulum-v1", 2).spec
        return env.reset(key)[1].observation

    expected = make("Pendulum-v1", 2).reset(jax.random.key(0))[1].observation
    np.testing.assert_allclose(jax.jit(first)(jax.random.key(0)), expected, rtol=1e-6)


def test_minatar_is_boolean():
    env = make("Breakout-MinAtar", 2)
    _, timestep = env.reset(jax.random.key(0))
    assert timestep.observation.dtype == bool
    assert timestep.observation.shape == (2, 10, 10, 4) == (2, *env.spec.observation_shape)
    assert timestep.observation.any()


def test_same_key_same_run_other_key_another():
    env = make("CartPole-v1", 2)
    runs = [run(env, jax.random.key(k), 10, lambda k: jax.random.randint(k, (2,), 0, 2))[1][0] for k in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    assert not np.array_equal(runs[0].observation, runs[2].observation)


def test_errors_say_what_is_allowed():
    with pytest.raises(
        ValueError, match="unknown gymnax environment 'CartPole-v2'. Did you mean 'CartPole-v1'"
    ) as error:
        make("CartPole-v2", 1)
    assert len(str(error.value)) < 250  # not the whole registry
    with pytest.raises(ValueError, match="no parameter gravy. Did you mean 'gravity'.*Its parameters are: .*force_mag"):
        make("CartPole-v1", 1, gravy=1.0)
    assert "CartPole-v1" in gymnax_envs.registered()
