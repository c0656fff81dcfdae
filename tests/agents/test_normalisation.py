"""Normalisation of observations and rewards: moments, what agents see, what evaluation leaves alone, resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents.normalisation import (
    add_samples,
    empty_moments,
    normalised_policy,
    standard_deviation,
    standardised,
)
from jaxrl_off.envs.base import ContinuousSpace
from jaxrl_off.training import LoopSettings, make_loop

SETTINGS = LoopSettings(total_steps=256, collect_length=16, rollout_length=4, batch_size=16, reuse=1.0, log_points=2)


def test_moments_are_those_of_all_samples_at_once():
    rng = np.random.default_rng(0)
    samples = rng.normal(1e3, [1.0, 5.0], size=(7, 11, 2)).astype(np.float32)
    mask = rng.random((7, 11)) < 0.7
    moments = empty_moments((2,))
    step = jax.jit(add_samples)
    for x, m in zip(samples, mask, strict=True):
        moments = step(moments, x[None], m[None])
    moments = step(moments, samples[:1], np.zeros((1, 11), bool))  # nothing changes nothing
    kept = samples[mask].astype(np.float64)
    assert float(moments.count) == len(kept)
    np.testing.assert_allclose(moments.mean, kept.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(standard_deviation(moments), kept.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(
        standardised(moments, samples[0]), (samples[0] - kept.mean(axis=0)) / kept.std(axis=0), atol=1e-2
    )


def test_what_has_not_varied_keeps_its_unit():
    moments = add_samples(empty_moments((1,)), jnp.full((4, 1), 3.0), jnp.ones(4, bool))
    np.testing.assert_allclose(standardised(moments, jnp.array([[3.0], [5.0], [99.0]])), [[0.0], [2.0], [10.0]])
    np.testing.assert_allclose(standardised(empty_moments((1,)), jnp.array([[3.0]])), [[3.0]])


def test_small_units_are_standardised_and_rounding_is_no_variation():
    small = 1e-6 * np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    moments = add_samples(empty_moments((1,)), small, jnp.ones(4, bool))
    np.testing.assert_allclose(standard_deviation(moments), [1e-6 * np.std([0, 1, 2, 3])], rtol=1e-4)
    np.testing.assert_allclose(standardised(moments, small).std(), 1.0, rtol=1e-4)
    moments = empty_moments((1,))
    for _ in range(5):
        moments = add_samples(moments, np.full((7, 1), 1234.567, np.float32), jnp.ones(7, bool))
    assert float(standard_deviation(moments)[0]) == 1.0


@pytest.fixture(scope="module")
def run():
    """A short run of PPO on Pendulum with both normalisations."""
    env = envs.make("Pendulum-v1", 4)
    config = agents.preset("ppo_continuous", sizes=(8,))
    agent = agents.make(config, env.spec, total_updates=10)
    loop = make_loop(agent, env, SETTINGS)
    start = jax.jit(loop.init)(jax.random.key(0))
    after, metrics = jax.jit(loop.iterate)(start)
    return env, config, agent, loop, start, after, metrics


def test_the_learner_keeps_the_moments_of_what_it_acted_on(run):
    env, _, agent, _, start, after, _ = run
    assert float(start.agent.observation.count) == 0.0

    def replay(state):
        """The chunk that the iteration collected, played again."""
        observations, rewards = [], []
        key, act_key, step_key = jax.random.split(state.key, 3)
        env_state, observation, core = state.environment, state.observation, state.core
        for a, s in zip(jax.random.split(act_key, 16), jax.random.split(step_key, 16), strict=True):
            acted = agent.act(state.agent, a, observation, core, state.first)
            observations.append(observation)
            env_state, timestep = env.step(s, env_state, acted.action)
            rewards.append(timestep.reward)
            observation = timestep.observation
        return np.asarray(observations, np.float64), np.asarray(rewards, np.float64)

    observations, rewards = replay(start)
    moments = after.agent.observation
    assert float(moments.count) == 64.0
    np.testing.assert_allclose(moments.mean, observations.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(standard_deviation(moments), observations.std(axis=(0, 1)), rtol=1e-3)
    totals, returns = np.zeros(4), []
    for reward in rewards:
        totals = reward + 0.99 * totals
        returns.append(totals)
    np.testing.assert_allclose(standard_deviation(after.agent.discounted_return), np.std(returns), rtol=1e-3)
    np.testing.assert_allclose(after.core.discounted_return, totals, rtol=1e-4)  # goes on in the next chunk


def test_acting_and_evaluation_use_the_moments_and_leave_them_alone(run):
    _, config, agent, _, _, after, _ = run
    observation = after.observation
    policy = agent.policy(after.agent, observation)
    seen = standardised(after.agent.observation, observation)
    assert float(jnp.max(jnp.abs(seen - observation))) > 0.1
    inner = agents.make_policy(config.replace(normalise_observations=False), envs.make("Pendulum-v1", 4).spec)
    np.testing.assert_array_equal(policy.mean, inner(after.agent.agent, seen).mean)
    again = normalised_policy(inner)(after.agent, observation)
    np.testing.assert_array_equal(policy.mean, again.mean)
    acted = agent.act(after.agent, jax.random.key(1), observation, after.core, after.first, greedy=True)
    np.testing.assert_allclose(acted.action, 2.0 * policy.mean, rtol=1e-5)  # Pendulum's box is [-2, 2]


def test_reported_returns_are_the_environments(run):
    metrics = run[-1]
    assert -20.0 < float(metrics["reward_mean"]) < -1.0  # Pendulum's raw rewards


@pytest.mark.parametrize("name", ["sac", "npg"])
def test_other_families_normalise(name):
    env = envs.make("Pendulum-v1", 2)
    sizes = dict(policy_sizes=(8,), critic_sizes=(8,)) if name == "sac" else dict(policy_sizes=(8,), value_sizes=(8,))
    config = agents.preset(name, normalise_observations=True, normalise_rewards=True, **sizes)
    agent = agents.make(config, env.spec, total_updates=10)
    shape = (
        dict(rollout_length=1, replay_capacity=64, batch_size=8)
        if name == "sac"
        else dict(rollout_length=8, batch_size=16)
    )
    settings = LoopSettings(total_steps=64, collect_length=8, reuse=1.0, log_points=1, **shape)
    loop = make_loop(agent, env, settings)
    state, _ = jax.jit(lambda key: loop.iterate(loop.init(key)))(jax.random.key(0))
    assert float(state.agent.observation.count) == 16.0
    assert float(state.agent.discounted_return.count) == 16.0
    if name == "sac":  # the replay holds what the environment gave
        stored = np.asarray(state.replay.experience.reward).ravel()[:16]
        assert stored.min() < -1.0
        np.testing.assert_allclose(np.var(stored), np.var(stored.astype(np.float64)), rtol=1e-4)


def test_demonstrations_and_normalisation_are_refused_together():
    with pytest.raises(ValueError, match="normalise_observations=True does not go with demonstrations"):
        agents.preset("dapg", normalise_observations=True)
    with pytest.raises(ValueError, match="normalise_rewards=True does not go with demonstrations"):
        agents.preset("sacfd", normalise_rewards=True)


@pytest.mark.parametrize(
    ("low", "high", "shape"), [(-1.0, 1.0, (1,)), (-0.01, 0.01, (1,)), (0.0, 1000.0, ()), (-3.0, 5.0, (2, 3))]
)
def test_actions_are_scaled_to_the_box(low, high, shape):
    """Whatever the box and the shape, the policy begins in its middle with half of its width as standard deviation."""
    size = int(np.prod(shape))
    spec = envs.make("Pendulum-v1", 4).spec._replace(action_space=ContinuousSpace(shape, (low,) * size, (high,) * size))
    agent = agents.make(agents.preset("ppo_gae", sizes=(4,), initial_log_std=np.log(0.5)), spec, total_updates=1)
    state = agent.init(jax.random.key(0))
    observation = jax.random.normal(jax.random.key(1), (512, 3))
    acted = agent.act(state, jax.random.key(2), observation, agent.initial_core(512), jnp.ones(512, bool))
    assert acted.action.shape == (512, *shape)
    half = 0.5 * (high - low)
    assert float(acted.action.mean()) == pytest.approx(0.5 * (high + low), abs=0.15 * half)
    assert float(acted.action.std()) == pytest.approx(0.5 * half, rel=0.1)
