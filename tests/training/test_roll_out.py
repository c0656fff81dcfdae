"""Trajectories recorded in environments, Monte Carlo values, and policies out of agents' parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.data.trajectories import check
from jaxrl_off.envs.base import DiscreteSpace, EnvironmentSpec, LaneEnvironment, Transitioned, vectorise
from jaxrl_off.training.trajectories import monte_carlo_value, policy_functions, roll_out


def counter():
    """Each episode lasts as long as its first observation, 1 to 6, says; observations count down to 0, rewards up.

    Episodes of even length terminate, others are truncated.
    """

    def reset(key):
        length = jax.random.randint(key, (), 1, 7)
        return length.astype(jnp.float32)[None], (length, length)

    def step(key, state, action):
        length, left = state
        left = left - 1
        reward = (length - left).astype(jnp.float32) + action
        ended = left == 0
        return Transitioned(left.astype(jnp.float32)[None], (length, left), reward, ended & (length % 2 == 0), ended)

    return LaneEnvironment(EnvironmentSpec("counter", (1,), "float32", DiscreteSpace(2)), reset, step)


def biased(key, observation):
    """Action 1 with probability 1/4."""
    action = (jax.random.uniform(key, observation.shape[:1]) < 0.25).astype(jnp.int32)
    return action, jnp.where(action == 1, jnp.log(0.25), jnp.log(0.75))


@pytest.fixture(scope="module")
def recorded():
    return roll_out(biased, vectorise(counter(), 40), jax.random.key(0), episodes=90, horizon=20)


def test_exactly_the_first_episode_of_every_lane(recorded):
    data, report = check(recorded, require=[name for name in recorded._fields if name != "behaviour_estimated"])
    assert report.rows == 90
    lengths = data.observations[:, 0, 0].astype(int)
    np.testing.assert_array_equal(data.mask.sum(axis=1), lengths)
    ends = data.terminated | data.truncated
    np.testing.assert_array_equal(np.argmax(ends, axis=1) + 1, lengths)
    np.testing.assert_array_equal(ends.sum(axis=1), 1)
    np.testing.assert_array_equal(data.terminated.any(axis=1), lengths % 2 == 0)
    # what followed the last step is before the reset, not after
    np.testing.assert_array_equal(data.final_observation, 0.0)
    expected = np.where(data.mask, np.arange(1, 21) + data.actions, 0.0)
    np.testing.assert_array_equal(data.rewards, expected)
    np.testing.assert_allclose(data.behaviour_log_prob, np.log(np.where(data.actions == 1, 0.25, 0.75)), rtol=1e-6)
    # short episodes are not favoured: lengths are uniform over 1 .. 6, mean 3.5, standard deviation 1.71
    assert abs(lengths.mean() - 3.5) < 4 * 1.71 / np.sqrt(90)
    # another batch of lanes is another draw
    assert (lengths[:40] != lengths[40:80]).any()


def test_horizon_is_no_end():
    data = roll_out(biased, vectorise(counter(), 60), jax.random.key(1), episodes=60, horizon=3)
    lengths = np.asarray(data.observations[:, 0, 0])
    np.testing.assert_array_equal(np.asarray(data.mask).sum(axis=1), np.minimum(lengths, 3))
    np.testing.assert_array_equal(np.asarray(data.terminated).any(axis=1), lengths == 2)
    np.testing.assert_array_equal(np.asarray(data.truncated).any(axis=1), np.isin(lengths, [1, 3]))
    np.testing.assert_array_equal(data.final_observation[:, 0], np.maximum(lengths - 3, 0))


def test_jit_and_vmap_change_nothing(recorded):
    def run(key):
        return roll_out(biased, vectorise(counter(), 40), key, episodes=90, horizon=20)

    together = jax.jit(jax.vmap(run))(jnp.stack([jax.random.key(1), jax.random.key(0)]))
    for one, other in zip(jax.tree.leaves(recorded), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other[1], rtol=1e-6)


def test_monte_carlo_value(recorded):
    lanes = vectorise(counter(), 40)
    value, error = monte_carlo_value(biased, lanes, jax.random.key(0), episodes=90, horizon=20, discount=0.9)
    # the same episodes, not stored
    returns = np.asarray(recorded.rewards, np.float64) @ 0.9 ** np.arange(20)
    np.testing.assert_allclose([value, error], [returns.mean(), returns.std(ddof=1) / np.sqrt(90)], rtol=1e-5)
    earned = [sum(0.9**t * (t + 1 + 0.25) for t in range(length)) for length in range(1, 7)]
    assert abs(value - np.mean(earned)) < 4 * error


def test_one_program_serves_all_keys_and_discounts():
    """The policy is traced once; the caller may compile too, and then gets arrays."""
    calls = []

    def counted(key, observation):
        calls.append(0)
        return biased(key, observation)

    lanes = vectorise(counter(), 10)
    values = []
    for seed, discount in ((0, 1.0), (1, 1.0), (1, 0.5)):
        values.append(
            monte_carlo_value(counted, lanes, jax.random.key(seed), episodes=20, horizon=6, discount=discount)
        )
        values.append(len(calls))
    assert values[1] == values[3] == values[5]
    assert values[0] != values[2]
    assert values[4][0] < values[2][0]
    traced = jax.jit(lambda key: monte_carlo_value(counted, lanes, key, episodes=20, horizon=6, discount=0.5))
    np.testing.assert_allclose(traced(jax.random.key(1)), values[4], rtol=1e-6)
    before = roll_out(counted, lanes, jax.random.key(0), episodes=5, horizon=2)
    traces = len(calls)
    after = roll_out(counted, lanes, jax.random.key(0), episodes=5, horizon=2)
    assert len(calls) == traces
    np.testing.assert_array_equal(before.rewards, after.rewards)


def test_environments_outside_jax():
    pytest.importorskip("gymnasium")
    lanes = envs.make("gymnasium/CartPole-v1", 3)
    try:
        data = roll_out(biased, lanes, jax.random.key(0), episodes=7, horizon=30)
    finally:
        lanes.close()
    data, _ = check(data)
    # steps are one chain
    assert len(np.unique(data.observations[:, 0, 0])) == 7
    assert (data.mask.sum(axis=1) > 5).all()
    np.testing.assert_array_equal(data.rewards, data.mask)
    fell = np.abs(data.final_observation[:, 2]) > 12 * np.pi / 180
    np.testing.assert_array_equal(fell, data.terminated.any(axis=1))


def test_what_cannot_be_rolled_out():
    lanes, key = vectorise(counter(), 2), jax.random.key(0)
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        roll_out(biased, lanes, key, episodes=0, horizon=1)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        roll_out(biased, lanes, key, episodes=1, horizon=0)
    with pytest.raises(ValueError, match="returns both"):
        roll_out(lambda key, observation: biased(key, observation)[0], lanes, key, episodes=1, horizon=1)
    with pytest.raises(ValueError, match="at least 2 episodes"):
        monte_carlo_value(biased, lanes, key, episodes=1, horizon=1)
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\]"):
        monte_carlo_value(biased, lanes, key, episodes=2, horizon=1, discount=1.5)


def test_policy_of_ppo_has_the_agents_own_probabilities():
    lanes = envs.make("CartPole-v1", 6)
    config = agents.preset("ppo", sizes=(8,))
    agent = agents.make(config, lanes.spec, total_updates=1)
    state = jax.jit(agent.init)(jax.random.key(0))
    # the published parameters act, not the learner's
    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    policy = policy_functions(config, lanes.spec, state)
    observation, key = jax.random.normal(jax.random.key(1), (6, 4)), jax.random.key(2)
    own = jax.jit(agent.act)(state, key, observation, (), jnp.zeros(6, bool))
    action, log_prob = jax.jit(policy.act)(key, observation)
    np.testing.assert_array_equal(action, own.action)
    np.testing.assert_allclose(log_prob, own.log_prob, rtol=1e-6)
    # any leading axes
    both = jnp.broadcast_to(jnp.arange(2), (6, 2))
    everything = jax.jit(policy.log_prob)(jnp.broadcast_to(observation[:, None], (6, 2, 4)), both)
    np.testing.assert_allclose(jnp.exp(everything).sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.take_along_axis(everything, action[:, None], axis=1)[:, 0], log_prob, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo_continuous", "npg"])
def test_policies_of_continuous_actions_have_the_density_of_what_was_done(name):
    lanes = envs.make("Pendulum-v1", 4)
    sizes = dict(sizes=(8,)) if name == "ppo_continuous" else dict(policy_sizes=(8,), value_sizes=(8,))
    config = agents.preset(name, **sizes)
    agent = agents.make(config, lanes.spec, total_updates=1)
    state = jax.jit(agent.init)(jax.random.key(0))
    policy = policy_functions(config, lanes.spec, state)
    data = roll_out(policy.act, lanes, jax.random.key(1), episodes=4, horizon=5)
    assert data.actions.shape == (4, 5, 1)
    np.testing.assert_allclose(policy.log_prob(data.observations, data.actions), data.behaviour_log_prob, rtol=1e-5)
    # it begins near N(0, 1) in units of half the box of [-2, 2]: per unit of torque, half that density
    torque = data.actions[..., 0]
    expected = -0.5 * (torque / 2.0) ** 2 - 0.5 * np.log(2.0 * np.pi) - np.log(2.0)
    np.testing.assert_allclose(data.behaviour_log_prob, expected, atol=0.1)
    # the agent says the same of its own actions, in units of half the box
    acted = agent.act(state, jax.random.key(2), data.observations[:, 0], agent.initial_core(4), jnp.ones(4, bool))
    found = policy.log_prob(data.observations[:, 0], acted.action)
    np.testing.assert_allclose(acted.log_prob, found + np.log(2.0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["tanh_normal", "normal"])
def test_policy_of_sac_has_a_density(kind):
    lanes = envs.make("Pendulum-v1", 4)
    config = agents.preset("sac", policy_sizes=(8,), policy=kind)
    agent = agents.make(config, lanes.spec, total_updates=1)
    state = jax.jit(agent.init)(jax.random.key(0))._replace(updates=jnp.ones((), jnp.int32))
    policy = policy_functions(config, lanes.spec, state)
    observation = jax.random.normal(jax.random.key(1), (4, 3))
    # a density over torques, which go from -2 to 2 and for the unbounded policy beyond
    reach = 2.0 if kind == "tanh_normal" else 30.0
    torques = jnp.linspace(-reach, reach, 40_001)
    density = jnp.exp(jax.jit(policy.log_prob)(jnp.broadcast_to(observation[0], (40_001, 3)), torques[:, None]))
    np.testing.assert_allclose(jnp.sum(density[1:-1]) * (torques[1] - torques[0]), 1.0, rtol=5e-3)
    # it is what the agent does, and what it does has this density
    own = jax.jit(jax.vmap(lambda key: agent.act(state, key, observation, (), jnp.zeros(4, bool)).action))
    keys = jax.random.split(jax.random.key(3), 2000)
    theirs, (ours, log_prob) = own(keys), jax.jit(jax.vmap(lambda key: policy.act(key, observation)))(keys)
    np.testing.assert_allclose(theirs.mean(axis=0), ours.mean(axis=0), atol=0.2)
    np.testing.assert_allclose(theirs.std(axis=0), ours.std(axis=0), rtol=0.1)
    asked = jax.jit(policy.log_prob)(jnp.broadcast_to(observation, (2000, 4, 3)), ours)
    np.testing.assert_allclose(asked, log_prob, atol=5e-3)
    acted = agent.act(state, keys[0], observation, (), jnp.zeros(4, bool))
    np.testing.assert_allclose(acted.log_prob - np.log(2.0), policy.log_prob(observation, acted.action), atol=5e-3)


def test_policies_that_cannot_be():
    spec = envs.make("CartPole-v1", 1).spec
    with pytest.raises(ValueError, match="core_size=4"):
        policy_functions(agents.preset("ppo", core_size=4), spec, None)
    with pytest.raises(ValueError, match="continuous actions"):
        policy_functions(agents.preset("dapg"), spec, None)
    with pytest.raises(ValueError, match="a tuple is not the state of an agent of DivergenceAugmentedConfig"):
        policy_functions(agents.preset("ppo"), spec, ())
    config = agents.preset("ppo", sizes=(8,))
    policy = policy_functions(config, spec, jax.jit(agents.make(config, spec, total_updates=1).init)(jax.random.key(0)))
    with pytest.raises(ValueError, match="do not fit together"):
        policy.log_prob(jnp.zeros((3, 2, 4)), jnp.zeros((2, 3), jnp.int32))
