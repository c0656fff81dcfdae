"""The Gymnasium adapter against a hand loop over Gymnasium."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import ContinuousSpace, DiscreteSpace, gymnasium_envs, make

gymnasium = pytest.importorskip("gymnasium")


def seeds_of(key, lanes):
    return np.asarray(jax.random.randint(key, (lanes,), 0, jnp.iinfo(jnp.int32).max, jnp.int32)).tolist()


def run(env, key, actions):
    """One compiled scan over given actions `[T, N, ...]`."""

    @jax.jit
    def all_steps(key):
        state, first = env.reset(key)
        return first, jax.lax.scan(lambda s, a: env.step(key, s, a), state, actions)[1]

    return jax.tree.map(np.asarray, all_steps(key))


def check_against_hand_loop(env, key, actions, first, out, **parameters):
    identifier = env.spec.name.removeprefix("gymnasium/")
    for lane, seed in enumerate(seeds_of(key, env.num_envs)):
        raw = gymnasium.make(identifier, **parameters)
        observation, _ = raw.reset(seed=seed)
        np.testing.assert_array_equal(first.observation[lane], np.float32(observation))
        total, length = 0.0, 0
        for t, action in enumerate(np.asarray(actions)[:, lane]):
            if isinstance(raw.action_space, gymnasium.spaces.Box):
                action = np.clip(action, raw.action_space.low, raw.action_space.high)
            observation, reward, terminated, truncated, _ = raw.step(action)
            total, length = total + reward, length + 1
            np.testing.assert_allclose(out.reward[t, lane], reward, rtol=1e-6)
            np.testing.assert_array_equal(out.final_observation[t, lane], np.float32(observation))
            assert out.terminated[t, lane] == terminated
            assert out.truncated[t, lane] == (truncated and not terminated)
            assert out.first[t, lane] == out.episode.done[t, lane] == (terminated or truncated)
            if terminated or truncated:
                np.testing.assert_allclose(out.episode.episode_return[t, lane], total, rtol=1e-5)
                assert out.episode.length[t, lane] == length
                observation, _ = raw.reset()
                total, length = 0.0, 0
            np.testing.assert_array_equal(out.observation[t, lane], np.float32(observation))
        raw.close()


def test_cartpole_equals_a_hand_loop():
    env = make("gymnasium/CartPole-v1", 3, max_episode_steps=25)
    assert not env.pure
    assert env.spec.action_space == DiscreteSpace(2)
    key = jax.random.key(0)
    actions = jax.random.randint(jax.random.key(1), (100, 3), 0, 2)
    first, out = run(env, key, actions)
    assert out.truncated.any()
    assert out.terminated.any()
    assert out.valid.all()
    check_against_hand_loop(env, key, actions, first, out, max_episode_steps=25)
    starts = out.observation[out.episode.done]
    assert len(np.unique(starts[:, 0])) == len(starts)
    env.close()


def test_pendulum_equals_a_hand_loop_and_clips_actions():
    env = make("gymnasium/Pendulum-v1", 2, max_episode_steps=30)
    assert env.spec.action_space == ContinuousSpace((1,), (-2.0,), (2.0,))
    assert env.spec.observation_dtype == "float32"
    key = jax.random.key(0)
    actions = 5.0 * jax.random.normal(jax.random.key(1), (65, 2, 1))
    first, out = run(env, key, actions)
    assert out.truncated.sum() == 4
    assert not out.terminated.any()
    check_against_hand_loop(env, key, actions, first, out, max_episode_steps=30)
    env.close()


def test_mujoco_equals_a_hand_loop():
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")  # which Gymnasium's MuJoCo environments import
    env = make("gymnasium/Hopper-v5", 2)  # float64 observations, falls by itself
    key = jax.random.key(2)
    actions = jax.random.normal(jax.random.key(1), (60, 2, 3))
    first, out = run(env, key, actions)
    assert out.terminated.any()
    check_against_hand_loop(env, key, actions, first, out)
    env.close()


def test_same_key_same_run_other_key_another():
    env = make("gymnasium/CartPole-v1", 2)
    actions = jnp.ones((15, 2), jnp.int32)  # falls after about ten steps, so that resets are compared too
    runs = [run(env, jax.random.key(k), actions)[1] for k in (0, 0, 1)]
    assert runs[0].episode.done.any()
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    assert not np.array_equal(runs[0].observation, runs[2].observation)
    env.close()


def test_step_outside_jit_equals_step_inside():
    env = make("gymnasium/CartPole-v1", 2)
    actions = jnp.ones((12, 2), jnp.int32)
    _, inside = run(env, jax.random.key(0), actions)
    state, _ = env.reset(jax.random.key(0))
    for t in range(12):
        state, timestep = env.step(jax.random.key(0), state, actions[t])
        jax.tree.map(lambda a, b, t=t: np.testing.assert_array_equal(a[t], b), inside, timestep)
    env.close()


class Odd(gymnasium.Env):
    """A uint8 picture of the time and actions 3, 4, 5; both ends at once on the third step."""

    observation_space = gymnasium.spaces.Box(0, 255, (200, 200, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros((200, 200, 3), np.uint8), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        return np.full((200, 200, 3), self.time, np.uint8), float(action), self.time == 3, self.time == 3, {}


def test_own_environment_with_pictures_and_shifted_actions():
    env = gymnasium_envs.from_function(Odd, 4, "odd")
    assert env.spec.observation_dtype == "uint8"
    actions = jnp.tile(jnp.array([0, 1, 2]), 4)[:, None].repeat(4, 1)
    first, out = run(env, jax.random.key(0), actions)
    assert first.observation.dtype == out.observation.dtype == np.uint8
    np.testing.assert_array_equal(out.reward[:, 0], np.tile([3.0, 4.0, 5.0], 4))
    np.testing.assert_array_equal(out.terminated[:, 0], np.tile([False, False, True], 4))
    assert not out.truncated.any()
    np.testing.assert_array_equal(out.final_observation[:, 1, 0, 0, 0], np.tile([1, 2, 3], 4))
    np.testing.assert_array_equal(out.observation[:, 1, 0, 0, 0], np.tile([1, 2, 0], 4))


@pytest.mark.slow
def test_asynchronous_equals_synchronous():
    actions = jax.random.randint(jax.random.key(1), (40, 2), 0, 2)
    outs = []
    for asynchronous in (False, True):
        env = make("gymnasium/CartPole-v1", 2, asynchronous=asynchronous)
        outs.append(run(env, jax.random.key(0), actions))
        env.close()
    assert outs[0][1].episode.done.any()
    jax.tree.map(np.testing.assert_array_equal, *outs)


class Unbounded(Odd):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


class Several(Odd):
    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


def test_errors_say_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match="HalfChetah.*Did you mean: `HalfCheetah`"):
        make("gymnasium/HalfChetah-v5", 1)
    with pytest.raises(ValueError, match="with {'wheels': 3}"):
        make("gymnasium/CartPole-v1", 1, wheels=3)
    with pytest.raises(ValueError, match="only boxes are taken.*FlattenObservation"):
        make("gymnasium/FrozenLake-v1", 1)
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make("gymnasium/CartPole-v1", 0)
    with pytest.raises(ValueError, match="finite bounds"):
        gymnasium_envs.from_function(Unbounded, 1, "unbounded")
    with pytest.raises(ValueError, match="several has actions in MultiDiscrete.*only Discrete and Box"):
        gymnasium_envs.from_function(Several, 1, "several")
    assert {"CartPole-v1", "HalfCheetah-v5"} <= set(gymnasium_envs.registered())
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[mujoco\]"'):
        make("gymnasium/CartPole-v1", 1)
