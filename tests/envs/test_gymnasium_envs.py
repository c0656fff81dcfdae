"""The Gymnasium adapter against a hand loop over Gymnasium."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import ContinuousSpace, DiscreteSpace, gymnasium_envs, make
from jaxrl_off.envs.workers import Lanes, Layout

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
def test_results_do_not_depend_on_the_number_of_workers():
    actions = jax.random.randint(jax.random.key(1), (40, 5), 0, 2)
    outs = []
    for workers in (1, 2, 3):
        env = make("gymnasium/CartPole-v1", 5, workers=workers)
        outs.append(run(env, jax.random.key(0), actions))
        env.close()
    assert outs[0][1].episode.done.all(1).sum() == 0  # lanes fall at different times
    assert outs[0][1].episode.done.any(0).all()
    jax.tree.map(np.testing.assert_array_equal, *outs[:2])
    jax.tree.map(np.testing.assert_array_equal, *outs[1:])


LAYOUT = Layout((1,), "float32", (), "int32")


class Slow(gymnasium.Env):
    """Observes the process it runs in; action 1 sleeps, 2 fails, 3 dies."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        return np.full(1, os.getpid(), np.float32), {}

    def step(self, action):
        if action == 1:
            time.sleep(0.02)
        if action == 2:
            raise OSError("out of joint")
        if action == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(1, os.getpid(), np.float32), 0.0, False, False, {}


def alive(pids):
    return [pid for pid in pids if pid != os.getpid() and os.path.exists(f"/proc/{pid}")]


def slow_lanes(workers, lanes=4):
    made = Lanes(Slow, lanes, LAYOUT, workers, "slow")
    return made, [int(pid) for pid in made.reset(np.arange(lanes))[:, 0]]


@pytest.mark.slow
def test_workers_share_the_lanes_and_work_at_once():
    one, pids = slow_lanes(1)
    assert set(pids) == {os.getpid()}
    two, pids = slow_lanes(2)
    assert pids[0] == pids[1] == os.getpid() != pids[2] == pids[3]
    seconds = []
    for made in (one, two):
        start = time.perf_counter()
        for _ in range(5):
            made.step(np.ones(4, int))
        seconds.append(time.perf_counter() - start)
    assert seconds[0] > 0.4
    assert seconds[1] < 0.8 * seconds[0]  # half of it and some overhead
    two.close()
    two.close()
    assert not alive(pids)
    with pytest.raises(RuntimeError, match="the lanes of slow are closed; build the environment again"):
        two.step(np.zeros(4, int))


@pytest.mark.slow
def test_a_worker_that_fails_or_dies_is_named_and_the_others_are_closed():
    made, pids = slow_lanes(3, 5)
    with pytest.raises(
        RuntimeError, match=r"worker 2 of 3 of slow \(lanes 2 to 3\) failed during step:(.|\n)*out of joint"
    ):
        made.step(np.array([0, 0, 0, 2, 0]))
    assert not alive(pids)
    made, pids = slow_lanes(2)
    with pytest.raises(
        RuntimeError, match=r"worker 2 of 2 of slow \(lanes 2 to 3\) died during step with exit code -9"
    ):
        made.step(np.array([0, 0, 0, 3]))
    assert not alive(pids)
    made, pids = slow_lanes(2)
    with pytest.raises(OSError, match="out of joint"):  # in this process: as it is
        made.step(np.array([2, 0, 0, 0]))
    assert not alive(pids)
    here = os.getpid()

    def fails_elsewhere():
        if os.getpid() != here:
            raise ValueError("no room")
        return Slow()

    with pytest.raises(
        RuntimeError, match=r"worker 2 of 2 of slow \(lanes 1 to 1\) failed during start:(.|\n)*no room"
    ):
        Lanes(fails_elsewhere, 2, LAYOUT, 2, "slow")

    def dies_elsewhere():
        if os.getpid() != here:
            os._exit(3)
        return Slow()

    with pytest.raises(RuntimeError, match=r"died during start with exit code 3 .*__main__"):
        Lanes(dies_elsewhere, 2, LAYOUT, 2, "slow")
    env = gymnasium_envs.from_function(Slow, 2, "slow", workers=2)
    state, timestep = env.reset(jax.random.key(0))
    with pytest.raises(Exception, match="worker 2 of 2 of slow .*died during step"):
        jax.block_until_ready(env.step(jax.random.key(0), state, jnp.array([0, 3])))
    assert not alive(timestep.observation[:, 0].astype(int).tolist())


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed():
    script = """
import os, numpy as np
from jaxrl_off.envs.workers import Lanes, Layout
from test_gymnasium_envs import LAYOUT, Slow
if __name__ == "__main__":
    print(Lanes(Slow, 2, LAYOUT, 2, "slow").reset(np.arange(2))[:, 0].astype(int).tolist(), flush=True)
    os.kill(os.getpid(), 9)
"""
    path = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    pids = [int(pid) for pid in done.stdout.strip(" []\n").split(",")]
    deadline = time.monotonic() + 10
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pids)


class Keeper(gymnasium.Env):
    """Keeps its actions, and earns the one before."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    kept = np.zeros(1)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        earned, self.kept = float(self.kept[0]), action
        return np.zeros(1, np.float32), earned, False, False, {}


def test_kept_actions_and_returned_arrays_stay_what_they_were():
    lanes = Lanes(Keeper, 2, Layout((1,), "float32", (1,), "float32"), 1, "keeper")
    lanes.reset(np.arange(2))
    outs = [lanes.step(np.full((2, 1), value, np.float32)) for value in (1, 2, 3)]
    np.testing.assert_array_equal([out.reward[0] for out in outs], [0, 1, 2])


class Shaped(gymnasium.Env):
    """The reward is the weighted sum of the action, whose shape is given."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, shape):
        self.action_space = gymnasium.spaces.Box(-2.0, 3.0, shape)
        self.weights = 1.0 + np.arange(max(1, int(np.prod(shape)))).reshape(shape)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert np.shape(action) == self.action_space.shape
        return np.zeros(1, np.float32), float(np.sum(self.weights * action)), False, False, {}


@pytest.mark.parametrize(("shape", "inside", "outside"), [((2, 3), 21.0, 63.0), ((), 1.0, 3.0)])
def test_actions_may_have_any_shape(shape, inside, outside):
    env = gymnasium_envs.from_function(lambda: Shaped(shape), 2, "shaped")
    size = int(np.prod(shape))
    assert env.spec.action_space == ContinuousSpace(shape, (-2.0,) * size, (3.0,) * size)
    state, _ = env.reset(jax.random.key(0))
    state, timestep = env.step(jax.random.key(1), state, jnp.ones((2, *shape)))
    np.testing.assert_allclose(timestep.reward, inside)
    _, timestep = env.step(jax.random.key(1), state, jnp.full((2, *shape), 9.0))  # clipped to 3
    np.testing.assert_allclose(timestep.reward, outside)


class Unbounded(Odd):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


class Several(Odd):
    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


def test_errors_say_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match="HalfChetah.*Did you mean: `HalfCheetah`"):
        make("gymnasium/HalfChetah-v5", 1)
    with pytest.raises(
        ImportError, match="'no_such_module:Id-v0' asks for the module 'no_such_module' to be imported first"
    ):
        make("gymnasium/no_such_module:Id-v0", 1)
    with pytest.raises(ValueError, match="with {'wheels': 3}"):
        make("gymnasium/CartPole-v1", 1, wheels=3)
    with pytest.raises(ValueError, match="only boxes are taken.*FlattenObservation"):
        make("gymnasium/FrozenLake-v1", 1)
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make("gymnasium/CartPole-v1", 0)
    for workers in (0, 3):
        with pytest.raises(ValueError, match=rf"workers must be 1 .* to num_envs=2, got {workers}"):
            make("gymnasium/CartPole-v1", 2, workers=workers)
    with pytest.raises(ValueError, match="finite bounds"):
        gymnasium_envs.from_function(Unbounded, 1, "unbounded")
    with pytest.raises(ValueError, match="several has actions in MultiDiscrete.*only Discrete and Box"):
        gymnasium_envs.from_function(Several, 1, "several")
    assert {"CartPole-v1", "HalfCheetah-v5"} <= set(gymnasium_envs.registered())
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[mujoco\]"'):
        make("gymnasium/CartPole-v1", 1)
