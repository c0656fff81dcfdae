"""The Adroit hand tasks: rewards equal the simulator's own success, ends, seeds, and the published experts."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.data.policy_files import load_policy
from jaxrl_off.envs import ContinuousSpace, adroit, make

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("gymnasium_robotics")

SIZES = {"door": (39, 28), "hammer": (46, 26), "pen": (45, 24), "relocate": (39, 30)}
SUBNORMAL = 1e-37  # JAX's threads flush smaller numbers to zero, other processes do not
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "nppac"


def play(env, key, actions):
    @jax.jit
    def all_steps(key):
        state, first = env.reset(key)
        return first, jax.lax.scan(lambda s, a: env.step(key, s, a), state, actions)[1]

    return jax.tree.map(np.asarray, all_steps(key))


@pytest.mark.parametrize("task", adroit.registered())
def test_shapes_truncation_and_determinism(task):
    observation_size, action_size = SIZES[task]
    env = make(f"adroit/{task}", 2, max_episode_steps=6)
    assert env.spec.name == f"adroit/{task}"
    assert env.spec.observation_shape == (observation_size,)
    assert env.spec.action_space == ContinuousSpace((action_size,), (-1.0,) * action_size, (1.0,) * action_size)
    actions = 2.0 * jax.random.normal(jax.random.key(1), (14, 2, action_size))
    runs = [play(env, jax.random.key(seed), actions) for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    assert not np.array_equal(runs[0][0].observation, runs[2][0].observation)
    out = runs[0][1]
    np.testing.assert_array_equal(np.flatnonzero(out.truncated[:, 0]), [5, 11])
    assert not out.terminated.any()
    np.testing.assert_array_equal(out.episode.length[5], [6, 6])
    assert not np.array_equal(out.final_observation[5], out.observation[5])
    assert not np.array_equal(out.observation[5], out.observation[11])  # a new episode is not the old one again
    np.testing.assert_array_equal(out.reward, 0.0)  # random actions do not get there in six steps
    env.close()


def test_rewards_of_a_step_at_the_goal_and_off_it(monkeypatch):
    """A simulator that is at the goal on its second and third steps."""

    class Stub(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.time += 1
            at_goal = self.time in (2, 3)
            return np.zeros(1, np.float32), 123.0, False, self.time == 4, {"success": np.bool_(at_goal)}

    asked = []
    monkeypatch.setattr(gymnasium, "make", lambda name, **parameters: asked.append((name, parameters)) or Stub())
    expected = {
        "zero_one": [0, 1, 1, 0],
        "binary": [-1, 0, 0, -1],
        "sparse": [-0.1, 10, 10, -0.1],
        "dense": [123, 123, 123, 123],
    }
    for reward, values in expected.items():
        env = make("adroit/door", 1, reward=reward)
        _, out = play(env, jax.random.key(0), jnp.zeros((4, 1, 1)))
        np.testing.assert_allclose(out.reward[:, 0], values)
        assert asked[-1] == (f"AdroitHandDoor{'' if reward == 'dense' else 'Sparse'}-v1", {"max_episode_steps": 200})
        if reward != "dense":
            assert adroit.succeeded(out.episode.episode_return, out.episode.length, reward=reward)[-1, 0]


@pytest.mark.parametrize(("reward", "goal", "other"), [("zero_one", 1, 0), ("binary", 0, -1), ("sparse", 10, -0.1)])
def test_success_is_told_from_the_return(reward, goal, other):
    length = np.array([1, 100, 200, 1000])
    for at_goal in (0, 1, 2):
        steps = np.minimum(at_goal, length)
        returns = np.array(
            [
                np.sum(np.float32([goal] * n + [other] * (t - n)), dtype=np.float32)
                for n, t in zip(steps, length, strict=True)
            ]
        )
        np.testing.assert_array_equal(adroit.succeeded(returns, length, reward=reward), at_goal > 0)
    assert not adroit.succeeded(jnp.nan, 200, reward=reward)


def expert_run(task, lanes=4, **parameters):
    """One compiled episode of the published expert, and the observations and actions of every step."""
    policy = load_policy(SHARED / f"dapg_policy_{task}.npz")
    env = make(f"adroit/{task}", lanes, **parameters)

    @jax.jit
    def episode(key):
        def step(carry, _):
            state, observation = carry
            action = jnp.clip(policy(observation), -1.0, 1.0)
            state, timestep = env.step(key, state, action)
            return (state, timestep.observation), (action, timestep)

        state, first = env.reset(key)
        return jax.lax.scan(step, (state, first.observation), length=200)[1]

    out = jax.tree.map(np.asarray, episode(jax.random.key(3)))
    env.close()
    return out


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data is not on this machine")
@pytest.mark.parametrize(("task", "least"), [("door", 4), ("hammer", 4), ("relocate", 4), ("pen", 1)])
def test_experts_succeed_and_rewards_equal_success(task, least):
    actions, out = expert_run(task)
    np.testing.assert_array_equal(out.episode.length[-1], 200)
    won = adroit.succeeded(out.episode.episode_return[-1], out.episode.length[-1])
    assert won.sum() >= least
    seeds = jax.random.randint(jax.random.key(3), (4,), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
    raw = gymnasium.make(f"AdroitHand{task.capitalize()}Sparse-v1", max_episode_steps=200)
    for lane in (0, 1):
        raw.reset(seed=int(seeds[lane]))
        for t in range(200):
            observation, reward, _, truncated, info = raw.step(actions[t, lane])
            assert out.reward[t, lane] == float(info["success"]) == float(reward > 0)
            np.testing.assert_allclose(out.final_observation[t, lane], observation, rtol=1e-7, atol=SUBNORMAL)
            assert truncated == out.truncated[t, lane] == (t == 199)
    raw.close()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data is not on this machine")
def test_workers_and_rewards_change_nothing_else():
    _, plain = expert_run("door", 3)
    _, other = expert_run("door", 3, workers=2, reward="binary")
    np.testing.assert_allclose(plain.observation, other.observation, rtol=0, atol=SUBNORMAL)
    np.testing.assert_array_equal(plain.reward - 1.0, other.reward)
    assert plain.reward.any()


def test_errors_say_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match="unknown Adroit task 'knob'; known are: door, hammer, pen, relocate"):
        make("adroit/knob", 1)
    with pytest.raises(ValueError, match="unknown reward 'shaped'.*zero_one, binary, sparse, dense"):
        make("adroit/door", 1, reward="shaped")
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        make("adroit/door", 1, max_episode_steps=0)
    with pytest.raises(ValueError, match="workers must be 1"):
        make("adroit/door", 1, workers=2)
    with pytest.raises(ValueError, match="does not tell success under the reward 'dense'"):
        adroit.succeeded(1.0, 200, reward="dense")
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[adroit\]"'):
        make("adroit/door", 1)
