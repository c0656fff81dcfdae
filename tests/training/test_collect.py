"""Recording: transitions are the environment's own, every lane gives its share, nothing unfinished or unwanted is kept."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.data.demonstrations import check, episode_returns
from jaxrl_off.data.minari_files import from_minari, to_minari
from jaxrl_off.data.policy_files import FilePolicy
from jaxrl_off.envs.base import LaneEnvironment, Transitioned, continuous_space, vectorise
from jaxrl_off.training import collect, policy_of, policy_of_file

BOX = continuous_space([-1.0], [1.0])


def push(key, observation):
    """Uniform actions that leave Pendulum's box [-2, 2] half of the time, and depend on what is seen."""
    noise = jax.random.uniform(key, (observation.shape[0], 1), minval=-4.0, maxval=4.0)
    return noise + 0.1 * observation[:, :1]


def coin_lengths(short=1, long=20, truncates=False) -> LaneEnvironment:
    """Episodes of `short` or `long` steps at even odds. Observation: (length, time); reward: the action."""
    spec = envs.EnvironmentSpec("coin", (2,), "float32", BOX)

    def observe(state):
        return jnp.stack(state).astype(jnp.float32)

    def reset(key):
        state = (jnp.where(jax.random.bernoulli(key), short, long), jnp.zeros((), jnp.int32))
        return observe(state), state

    def step(key, state, action):
        state = (state[0], state[1] + 1)
        over = state[1] >= state[0]
        reward = jnp.clip(action[0], -1.0, 1.0)
        return Transitioned(observe(state), state, reward, over & (not truncates), over & truncates)

    return LaneEnvironment(spec, reset, step)


def labelled(lengths) -> envs.Environment:
    """Lane i's episodes take `lengths[i]` steps; the observation is (lane, episode, time), the reward the time."""
    lanes = len(lengths)
    inner = vectorise(coin_lengths(), lanes)

    def observe(episode, time):
        return jnp.stack([jnp.arange(lanes), episode, time], axis=1).astype(jnp.float32)

    def reset(key):
        zeros = jnp.zeros(lanes, jnp.int32)
        return (zeros, zeros), inner.reset(key)[1]._replace(observation=observe(zeros, zeros))

    def step(key, state, action):
        episode, time = state[0], state[1] + 1
        over = time >= jnp.asarray(lengths)
        after = (episode + over, jnp.where(over, 0, time))
        timestep = reset(key)[1]._replace(
            observation=observe(*after), final_observation=observe(episode, time), reward=1.0 * time, truncated=over
        )
        return after, timestep

    spec = envs.EnvironmentSpec("labelled", (3,), "float32", BOX)
    return envs.Environment(spec, lanes, reset, step)


def still(key, observation):
    return jnp.zeros((observation.shape[0], 1))


def test_every_lane_gives_its_first_episodes_in_turn():
    demos = collect(still, labelled([2, 50, 3]), jax.random.key(0), episodes=8)
    first = np.flatnonzero(np.diff(demos.episode, prepend=-1))
    np.testing.assert_array_equal(demos.observation[first, 0], [0, 1, 2, 0, 1, 2, 0, 1])  # lane
    np.testing.assert_array_equal(demos.observation[first, 1], [0, 0, 0, 1, 1, 1, 2, 2])  # episode of that lane
    np.testing.assert_array_equal(demos.observation[first, 2], 0)
    lengths = np.bincount(demos.episode)
    np.testing.assert_array_equal(lengths, [2, 50, 3, 2, 50, 3, 2, 50])
    # Inside an episode time goes on, and the successor of the last step is that of the old episode.
    np.testing.assert_array_equal(demos.observation[:, 2], np.concatenate([np.arange(n) for n in lengths]))
    np.testing.assert_array_equal(demos.next_observation[:, 2], demos.observation[:, 2] + 1)
    np.testing.assert_array_equal(demos.next_observation[:, :2], demos.observation[:, :2])
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), np.append(first[1:], len(demos.episode)) - 1)
    assert not demos.terminated.any()
    np.testing.assert_array_equal(demos.reward, demos.observation[:, 2] + 1)
    assert [field.dtype.name for field in demos] == ["float32"] * 3 + ["bool"] * 2 + ["float32", "int32"]


def test_fewer_episodes_than_lanes_wait_for_the_first_lanes_only():
    demos = collect(still, labelled([5, 7, 9_999]), jax.random.key(0), episodes=2, max_steps=7)
    np.testing.assert_array_equal(np.bincount(demos.episode), [5, 7])


def test_the_same_policy_is_compiled_once():
    traces = []

    def counted(key, observation):
        traces.append(observation.shape)
        return still(key, observation)

    lanes = labelled([2, 3])
    first = collect(counted, lanes, jax.random.key(0), episodes=2)
    checks = len(traces)
    again = collect(counted, lanes, jax.random.key(1), episodes=2)
    assert len(traces) == checks
    np.testing.assert_array_equal(first.observation, again.observation)


def test_short_episodes_are_not_favoured():
    """What ends first would be nearly all short: in 16 lanes, 64 episodes of one step are over after some eight steps."""
    demos = collect(still, vectorise(coin_lengths(), 16), jax.random.key(1), episodes=64)
    lengths = np.bincount(demos.episode)
    assert set(lengths) == {1, 20}
    assert 0.25 < np.mean(lengths == 20) < 0.75  # four standard errors
    np.testing.assert_array_equal(lengths, demos.observation[np.flatnonzero(demos.terminated), 0])


@pytest.mark.parametrize("truncates", [False, True])
def test_ends_and_chunks(truncates, monkeypatch):
    lanes = vectorise(coin_lengths(3, 8, truncates), 4)
    demos = collect(push, lanes, jax.random.key(0), episodes=11)
    assert check(demos, lanes.spec)[1]["episodes"] == 11
    assert (demos.truncated if truncates else demos.terminated).sum() == 11
    assert not (demos.terminated if truncates else demos.truncated).any()
    module = importlib.import_module("jaxrl_off.training.demonstrations")
    for size in (1, 7):  # how steps are cut into compiled pieces does not matter
        monkeypatch.setattr(module, "CHUNK", size)
        again = collect(push, lanes, jax.random.key(0), episodes=11)
        for left, right in zip(demos, again, strict=True):
            np.testing.assert_array_equal(left, right)
    other = collect(push, lanes, jax.random.key(1), episodes=11)
    assert not np.array_equal(demos.action[:3], other.action[:3])


def test_pendulum_against_its_physics():
    """Every stored transition is one step of the pendulum, in float64, under the stored action, which is in the box."""
    lanes = envs.make("Pendulum-v1", 2)
    demos = collect(push, lanes, jax.random.key(0), episodes=3)
    np.testing.assert_array_equal(np.bincount(demos.episode), [200] * 3)
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), [199, 399, 599])
    cosine, sine, speed = demos.observation.astype(np.float64).T
    torque = demos.action[:, 0].astype(np.float64)
    angle = np.arctan2(sine, cosine)
    cost = angle**2 + 0.1 * speed**2 + 0.001 * torque**2
    np.testing.assert_allclose(demos.reward, -cost, rtol=1e-4, atol=1e-4)
    after = np.clip(speed + 0.05 * (15.0 * sine + 3.0 * torque), -8.0, 8.0)
    expected = np.stack([np.cos(angle + 0.05 * after), np.sin(angle + 0.05 * after), after], axis=1)
    np.testing.assert_allclose(demos.next_observation, expected, atol=1e-4)
    inside = np.flatnonzero(~demos.truncated)
    np.testing.assert_array_equal(demos.next_observation[inside], demos.observation[inside + 1])
    assert np.abs(torque).max() == 2.0
    assert 0.35 < np.mean(np.abs(torque) == 2.0) < 0.65
    assert len(np.unique(torque)) > 200  # fresh noise at every step
    assert not np.array_equal(demos.action[:200], demos.action[200:400])  # in every lane and episode


def test_the_key_reaches_first_and_later_resets():
    lanes = envs.make("probe/observation_action", 32, continuous=True)
    cues = [collect(still, lanes, jax.random.key(seed), episodes=64).observation[:, 0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(cues[0], cues[1])
    for part in (slice(0, 32), slice(32, 64)):
        assert 5 < np.sum(cues[0][part] != cues[2][part]) < 27
        assert 5 < np.sum(cues[0][part] == 1.0) < 27


def test_gymnasium_lanes_and_minari(tmp_path, monkeypatch):
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    lanes = envs.make("gymnasium/Pendulum-v1", 2, max_episode_steps=7)
    demos = collect(push, lanes, jax.random.key(0), episodes=5)
    lanes.close()
    np.testing.assert_array_equal(np.bincount(demos.episode), [7] * 5)
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), [6, 13, 20, 27, 34])
    raw = gymnasium.make("Pendulum-v1").unwrapped
    for i in range(35):
        cosine, sine, speed = demos.observation[i]
        raw.reset()
        raw.state = np.array([np.arctan2(sine, cosine), speed], np.float64)
        observation, reward, *_ = raw.step(demos.action[i])
        np.testing.assert_allclose(demos.next_observation[i], observation, atol=1e-4)
        np.testing.assert_allclose(demos.reward[i], reward, rtol=1e-3, atol=1e-4)
    to_minari(demos, "pendulum/push-v0", lanes.spec, environment_id="Pendulum-v1")
    for left, right in zip(from_minari("pendulum/push-v0"), demos, strict=True):
        np.testing.assert_array_equal(left, right)


def test_mujoco_terminates():
    pytest.importorskip("mujoco")
    lanes = envs.make("gymnasium/Hopper-v5", 2, max_episode_steps=1000)

    def flail(key, observation):
        return jax.random.normal(key, (2, 3))

    demos = collect(flail, lanes, jax.random.key(0), episodes=4)
    lanes.close()
    assert demos.terminated.sum() == 4
    assert check(demos, lanes.spec)[1]["clipped_actions"] == 0.0
    inside = np.flatnonzero(~demos.terminated)
    np.testing.assert_array_equal(demos.next_observation[inside], demos.observation[inside + 1])
    ends = np.flatnonzero(demos.terminated)[:-1]
    assert np.all(np.abs(demos.next_observation[ends] - demos.observation[ends + 1]).max(axis=1) > 0.1)


def test_keep_drops_whole_episodes_and_goes_on(capsys):
    calls = []

    def keep(episode_return, length):
        calls.append((episode_return, length))
        return length == 20

    lanes = vectorise(coin_lengths(), 4)
    demos = collect(push, lanes, jax.random.key(0), episodes=10, keep=keep)
    np.testing.assert_array_equal(np.bincount(demos.episode), [20] * 10)
    np.testing.assert_array_equal(np.bincount(demos.episode[demos.terminated]), 1)
    kept = [episode_return for episode_return, length in calls if length == 20]
    np.testing.assert_allclose(sorted(kept), sorted(episode_returns(demos)), rtol=1e-6)
    dropped = len(calls) - 10
    assert dropped > 0
    assert f"recorded 10 episodes of coin; {dropped} others were not to be kept" in capsys.readouterr().err
    collect(push, lanes, jax.random.key(0), episodes=1)
    assert capsys.readouterr().err == ""
    # Of each lane they are the first long ones: without keep the same come, with short ones between.
    every = collect(push, lanes, jax.random.key(0), episodes=80)
    long = np.flatnonzero(np.bincount(every.episode) == 20)
    for lane in range(4):
        theirs = every.action[np.isin(every.episode, long[long % 4 == lane][:2])]
        np.testing.assert_array_equal(demos.action[np.isin(demos.episode, [lane, lane + 4])], theirs)


def test_too_few_episodes_name_max_steps():
    with pytest.raises(ValueError, match=r"only 4 of 8 .*max_steps=99 \(up to 3 in each of 3 lanes\); 0 others"):
        collect(still, labelled([20, 100, 98]), jax.random.key(0), episodes=8, max_steps=99)
    assert collect(still, labelled([20, 99]), jax.random.key(0), episodes=2, max_steps=99).episode[-1] == 1
    with pytest.raises(ValueError, match=r"only 0 of 1 .*5 others were not to be kept. Raise max_steps"):
        collect(still, labelled([20]), jax.random.key(0), episodes=1, max_steps=119, keep=lambda *_: False)


def test_observations_and_actions_of_any_shape_are_flattened():
    space = continuous_space([[-1.0, -2.0], [-3.0, -4.0]], [[1.0, 2.0], [3.0, 4.0]])
    spec = envs.EnvironmentSpec("square", (2, 3), "uint8", space)
    seen = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3)

    def step(key, state, action):
        return Transitioned(seen, (), action[1, 0], jnp.ones((), bool), jnp.zeros((), bool))

    lanes = vectorise(LaneEnvironment(spec, lambda key: (seen, ()), step), 2)
    for shape in ((2, 4), (2, 2, 2)):
        demos = collect(lambda key, o, shape=shape: jnp.full(shape, 9.0), lanes, jax.random.key(0), episodes=2)
        np.testing.assert_array_equal(demos.observation, np.tile(np.arange(6.0, dtype=np.float32), (2, 1)))
        np.testing.assert_array_equal(demos.action, [[1, 2, 3, 4]] * 2)
        np.testing.assert_array_equal(demos.reward, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"act": lambda key, o: jnp.zeros((3, 1))}, r"act gives float32\[3, 1\]; .* float32\[2, 1\], is allowed"),
        ({"act": lambda key, o: jnp.zeros((2, 2))}, r"act gives float32\[2, 2\]"),
        ({"act": lambda key, o: jnp.zeros((2, 1), jnp.int32)}, r"act gives int32\[2, 1\]"),
        ({"environment": envs.make("CartPole-v1", 2)}, "continuous actions; CartPole-v1 has DiscreteSpace"),
    ],
)
def test_errors_come_before_any_step(change, message):
    def reset(key):
        raise AssertionError("the environment was reset")

    lanes = envs.make("Pendulum-v1", 2)._replace(reset=reset)
    arguments = {"act": push, "environment": lanes, "key": jax.random.key(0), "episodes": 1} | change
    with pytest.raises(ValueError, match=message):
        collect(**arguments)


def test_policy_of_an_agent():
    lanes = envs.make("Pendulum-v1", 3)
    agent = agents.make(agents.preset("ppo", sizes=(8,)), lanes.spec, total_updates=1)
    state, key = agent.init(jax.random.key(0)), jax.random.key(5)
    observation = jax.random.normal(jax.random.key(1), (3, 3))
    for greedy in (True, False):
        expected = agent.act(state, key, observation, (), jnp.zeros(3, bool), greedy=greedy).action
        np.testing.assert_array_equal(policy_of(agent, state, greedy=greedy)(key, observation), expected)
    greedy = policy_of(agent, state)
    np.testing.assert_array_equal(greedy(key, observation), greedy(jax.random.key(6), observation))
    demos = collect(greedy, lanes, jax.random.key(2), episodes=3)
    np.testing.assert_allclose(demos.action, greedy(key, jnp.asarray(demos.observation)), rtol=1e-4, atol=1e-6)


def test_policy_of_a_recurrent_agent_is_refused():
    lanes = envs.make("Pendulum-v1", 3)
    agent = agents.make(agents.preset("ppo", sizes=(8,), core_size=4), lanes.spec, total_updates=1)
    with pytest.raises(ValueError, match="recurrent state.*core_size=0"):
        policy_of(agent, agent.init(jax.random.key(0)))


def file_policy(sizes, noise_std):
    rng = np.random.default_rng(0)
    layers = tuple(
        (jnp.asarray(rng.normal(size=(after, before)) / np.sqrt(before), jnp.float32), jnp.zeros(after))
        for before, after in zip(sizes, sizes[1:], strict=False)
    )
    ones, out = jnp.ones(sizes[0]), jnp.ones(sizes[-1])
    return FilePolicy(layers, 0 * ones, ones, 0 * out, out, noise_std * out)


def test_policy_of_a_file():
    policy = file_policy((3, 8, 2), jnp.asarray([0.1, 2.0]))
    observation = jnp.tile(jnp.array([[0.5, -1.0, 2.0]]), (20_000, 1))
    quiet = policy_of_file(policy, noise=0.0)(jax.random.key(0), observation)
    np.testing.assert_array_equal(quiet, policy(observation))
    for arguments, factor in (({}, 1.0), ({"noise": 0.5}, 0.5)):
        noise = policy_of_file(policy, **arguments)(jax.random.key(0), observation) - quiet
        np.testing.assert_allclose(noise.std(axis=0), factor * np.array([0.1, 2.0]), rtol=0.02)
        np.testing.assert_allclose(noise.mean(axis=0) / noise.std(axis=0), 0.0, atol=0.03)


def test_adroit_with_a_policy_file():
    pytest.importorskip("gymnasium_robotics")
    lanes = envs.make("adroit/door", 2, max_episode_steps=30)
    policy = file_policy((39, 32, 28), 0.5)
    demos = collect(policy_of_file(policy), lanes, jax.random.key(0), episodes=2)
    lanes.close()
    with pytest.warns(UserWarning, match="do not vary"):  # the door is shut
        report = check(demos, lanes.spec)[1]
    assert (report["episodes"], report["steps"], report["clipped_actions"]) == (2, 60, 0.0)
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), [29, 59])
    assert np.mean(np.abs(demos.action) == 1.0) > 0.05
    errors = demos.action - np.clip(policy(jnp.asarray(demos.observation)), -1.0, 1.0)
    assert 0.2 < errors.std() < 0.6
