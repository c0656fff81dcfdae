"""Every probe's documented answer, found by stepping through all it can do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import ContinuousSpace, make, probes

GAMMA = 0.9


def episode(lane, key, actions):
    """Rewards and flags of one episode, without automatic reset."""
    observation, state = lane.reset(key)
    observations, rewards = [np.asarray(observation)], []
    for action in actions:
        after = lane.step(key, state, jnp.asarray(action))
        state = after.state
        rewards.append(float(after.reward))
        observations.append(np.asarray(after.observation))
        if after.terminated or after.truncated:
            return observations, rewards, bool(after.terminated), bool(after.truncated)
    raise AssertionError("the episode did not end")


def cue_keys(lane):
    """A key for each sign of the cue."""
    keys = [jax.random.key(i) for i in range(30)]
    cues = [float(lane.reset(key)[1].cue) for key in keys]
    assert set(cues) == {-1.0, 1.0}
    return {cue: keys[cues.index(cue)] for cue in (-1.0, 1.0)}


def test_constant_value_is_one():
    observations, rewards, terminated, truncated = episode(probes.constant_value(), jax.random.key(0), [0])
    assert rewards == [1.0]
    assert terminated
    assert not truncated
    assert observations[0].tolist() == [0.0]


def test_observation_value_is_the_observation():
    lane = probes.observation_value()
    for cue, key in cue_keys(lane).items():
        for action in (0, 1):
            observations, rewards, terminated, _ = episode(lane, key, [action])
            assert observations[0].tolist() == [cue] == rewards
            assert terminated


def test_discount_values_are_gamma_and_one():
    observations, rewards, terminated, _ = episode(probes.discount(), jax.random.key(0), [0, 1])
    assert [o.tolist() for o in observations[:2]] == [[0.0], [1.0]]
    values = [rewards[0] + GAMMA * rewards[1], rewards[1]]
    assert values == [GAMMA, 1.0]
    assert terminated


def test_action_one_is_the_best():
    rewards = [episode(probes.action(), jax.random.key(0), [a])[1][0] for a in (0, 1)]
    assert rewards == [-1.0, 1.0]


def test_continuous_action_answer():
    lane = probes.action(continuous=True)
    assert isinstance(lane.spec.action_space, ContinuousSpace)
    grid = np.linspace(-1, 1, 201)
    rewards = np.array([episode(lane, jax.random.key(0), [[a]])[1][0] for a in grid])
    assert grid[rewards.argmax()] == pytest.approx(0.5)
    assert rewards.max() == pytest.approx(0.0, abs=1e-6)
    assert np.trapezoid(rewards, grid) / 2 == pytest.approx(-7 / 12, abs=1e-3)
    assert episode(lane, jax.random.key(0), [[7.0]])[1] == pytest.approx([-0.25])  # clipped to 1


def test_observation_action_answer():
    lane = probes.observation_action()
    table = {cue: [episode(lane, key, [a])[1][0] for a in (0, 1)] for cue, key in cue_keys(lane).items()}
    assert table == {-1.0: [1.0, -1.0], 1.0: [-1.0, 1.0]}
    np.testing.assert_array_equal(np.mean(list(table.values()), axis=0), 0.0)  # a blind policy


def test_continuous_observation_action_answer():
    lane = probes.observation_action(continuous=True)
    keys = cue_keys(lane)
    grid = np.linspace(-1, 1, 41)
    rewards = {cue: np.array([episode(lane, key, [[a]])[1][0] for a in grid]) for cue, key in keys.items()}
    for cue in keys:
        assert grid[rewards[cue].argmax()] == pytest.approx(cue / 2)
        assert rewards[cue].max() == pytest.approx(0.0, abs=1e-6)
    blind = (rewards[-1.0] + rewards[1.0]) / 2
    assert blind.max() == pytest.approx(-0.25, abs=1e-6)


@pytest.mark.parametrize("steps", [2, 4])
def test_memory_answer(steps):
    lane = probes.memory(steps)
    keys = cue_keys(lane)
    last = {}
    for cue, key in keys.items():
        for answer in (0, 1):
            observations, rewards, terminated, _ = episode(lane, key, [1 - answer] * (steps - 1) + [answer])
            assert terminated
            assert len(rewards) == steps
            assert rewards == [0.0] * (steps - 1) + [cue * (2 * answer - 1)]
            assert observations[0].tolist() == [cue, 0.0]
            assert all(o[0] == 0 for o in observations[1:])
            assert [o[1] for o in observations[:-1]] == [0.0] * (steps - 1) + [1.0]
            discounted = sum(GAMMA**t * r for t, r in enumerate(rewards))
            assert abs(discounted) == pytest.approx(GAMMA ** (steps - 1))
            last[cue, answer] = rewards[-1]
    for answer in (0, 1):  # nothing but the cue tells the answer
        assert last[-1.0, answer] + last[1.0, answer] == 0


def test_truncation_answer_needs_the_bootstrap():
    observations, rewards, terminated, truncated = episode(probes.truncation(), jax.random.key(0), [0] * 9)
    assert truncated
    assert not terminated
    assert rewards == [1.0] * 5
    assert all(o.tolist() == [0.0] for o in observations)
    value = 1 / (1 - GAMMA)
    assert sum(GAMMA**t for t in range(5)) + GAMMA**5 * value == pytest.approx(value)


@pytest.mark.parametrize("name", probes.registered())
def test_make_runs_every_probe_under_jit(name):
    env = make(f"probe/{name}", 8)
    assert env.spec.name == f"probe/{name}"
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    assert timestep.observation.shape == (8, *env.spec.observation_shape)
    step = jax.jit(env.step)
    ended = np.zeros(8, bool)
    for t in range(6):
        state, timestep = step(jax.random.key(t), state, jnp.zeros(8, jnp.int32))
        ended |= np.asarray(timestep.episode.done)
        np.testing.assert_array_equal(timestep.truncated, timestep.episode.done & (name == "truncation"))
    assert ended.all()


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="unknown probe 'actoin'. Did you mean 'action'.*Known are: action, "):
        make("probe/actoin", 1)
    with pytest.raises(ValueError, match="no parameter continuous; its parameters are: none"):
        make("probe/discount", 1, continuous=True)
    with pytest.raises(ValueError, match="no parameter length; its parameters are: steps"):
        make("probe/memory", 1, length=3)
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        probes.memory(1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        probes.truncation(0)
