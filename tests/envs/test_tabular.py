"""Tabular processes: closed forms, identities, Monte Carlo, and the environment made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import make, tabular, vectorise
from jaxrl_off.envs.tabular import TabularMDP


def random_policy(key, num_states, num_actions):
    weight = jax.random.uniform(key, (num_states, num_actions))
    return weight / weight.sum(1, keepdims=True)


def test_two_state_closed_form():
    # Action 0 stays, action 1 goes to the other state; reward 1 in state 1 whatever is done.
    stay, move = np.eye(2), np.eye(2)[::-1]
    mdp = TabularMDP(
        transition=jnp.asarray(np.stack([stay, move], axis=1)),
        reward=jnp.asarray([[0.0, 0.0], [1.0, 1.0]]),
        initial=jnp.asarray([1.0, 0.0]),
        discount=jnp.asarray(0.9),
    )
    policy = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])  # go to state 1 and stay
    np.testing.assert_allclose(tabular.state_values(mdp, policy), [9.0, 10.0], rtol=1e-5)
    np.testing.assert_allclose(tabular.state_action_values(mdp, policy), [[8.1, 9.0], [10.0, 9.1]], rtol=1e-5)
    np.testing.assert_allclose(tabular.state_distribution(mdp, policy), [0.1, 0.9], rtol=1e-5)


def test_identities_in_float64():
    with jax.enable_x64(True):
        mdp = tabular.random_mdp(jax.random.key(0), 7, 3, 0.95)
        policy = random_policy(jax.random.key(1), 7, 3)
        values = tabular.state_values(mdp, policy)
        action_values = tabular.state_action_values(mdp, policy)
        distribution = tabular.state_distribution(mdp, policy)
        assert values.dtype == action_values.dtype == distribution.dtype == jnp.float64
        np.testing.assert_allclose(jnp.sum(policy * action_values, 1), values, rtol=1e-12)
        np.testing.assert_allclose(jnp.sum(distribution), 1.0, rtol=1e-12)
        assert (distribution > 0).all()
        from_distribution = jnp.sum(distribution[:, None] * policy * mdp.reward) / (1 - mdp.discount)
        np.testing.assert_allclose(from_distribution, mdp.initial @ values, rtol=1e-11)
        # Independent: iterate the Bellman operator and the forward recursion in NumPy.
        transition = np.einsum("sa,sat->st", policy, mdp.transition)
        v, d, visited = np.zeros(7), np.asarray(mdp.initial), np.zeros(7)
        for t in range(1000):
            v = (np.asarray(policy) * np.asarray(mdp.reward)).sum(1) + 0.95 * transition @ v
            visited += 0.05 * 0.95**t * d
            d = d @ transition
        np.testing.assert_allclose(values, v, rtol=1e-10)
        np.testing.assert_allclose(distribution, visited, rtol=1e-10)


def test_vmap_over_processes_and_gradient():
    keys = jax.random.split(jax.random.key(0), 3)
    policy = random_policy(jax.random.key(1), 5, 2)
    mdps = jax.vmap(lambda k: tabular.random_mdp(k, 5, 2, 0.9))(keys)
    together = jax.vmap(tabular.state_values, (0, None))(mdps, policy)
    for i, key in enumerate(keys):
        one = tabular.state_values(tabular.random_mdp(key, 5, 2, 0.9), policy)
        np.testing.assert_allclose(together[i], one, rtol=1e-5)
    # dJ/dr(s, a) is the unnormalised occupancy.
    mdp = tabular.random_mdp(keys[0], 5, 2, 0.9)
    gradient = jax.grad(lambda r: mdp.initial @ tabular.state_values(mdp._replace(reward=r), policy))(mdp.reward)
    np.testing.assert_allclose(gradient, 10 * tabular.state_distribution(mdp, policy)[:, None] * policy, rtol=1e-4)


def test_environment_returns_agree_with_the_exact_value():
    gamma, horizon, lanes = 0.8, 40, 4000  # 0.8^40 of the value, 1e-4, is cut off
    env = make("tabular/random", lanes, seed=3, num_states=6, num_actions=2, gamma=gamma, horizon=horizon)
    mdp = tabular.random_mdp(jax.random.key(3), 6, 2, gamma)
    policy = random_policy(jax.random.key(4), 6, 2)

    @jax.jit
    def simulate(key):
        state, timestep = env.reset(key)

        def body(carry, step_key):
            state, observation = carry
            action = jax.random.categorical(jax.random.fold_in(step_key, 1), jnp.log(observation @ policy))
            state, timestep = env.step(step_key, state, action)
            return (state, timestep.observation), (observation, timestep)

        return jax.lax.scan(body, (state, timestep.observation), jax.random.split(key, horizon))[1]

    observations, out = jax.tree.map(np.asarray, simulate(jax.random.key(0)))
    weights = gamma ** np.arange(horizon)[:, None]
    returns = (weights * out.reward).sum(0)
    error = returns.std() / np.sqrt(lanes)
    exact = float(mdp.initial @ tabular.state_values(mdp, policy))
    assert abs(returns.mean() - exact) < 4 * error
    assert error < 0.02
    visited = (1 - gamma) * (weights[..., None] * observations).sum(0).mean(0)
    np.testing.assert_allclose(visited, tabular.state_distribution(mdp, policy), atol=0.01)
    assert out.truncated[-1].all()
    assert not out.truncated[:-1].any()
    assert not out.terminated.any()
    np.testing.assert_allclose(out.episode.episode_return[-1], out.reward.sum(0), rtol=1e-5)
    assert (observations.sum(-1) == 1).all()
    # The next episode starts somewhere new, the kept observation is the last of the old one.
    assert len(np.unique(out.observation[-1].argmax(-1))) == 6
    assert not np.array_equal(out.observation[-1], out.final_observation[-1])


def test_own_process_with_a_deterministic_start():
    mdp = tabular.random_mdp(jax.random.key(0), 4, 2, 0.9)._replace(initial=jnp.eye(4)[2])
    env = vectorise(tabular.lane_environment(mdp, 3, "mine"), 50)
    _, timestep = env.reset(jax.random.key(0))
    assert env.spec.name == "mine"
    assert (timestep.observation.argmax(-1) == 2).all()


def test_errors_say_what_is_allowed():
    mdp = tabular.random_mdp(jax.random.key(0), 4, 2, 0.9)
    with pytest.raises(AssertionError, match="shape"):
        tabular.state_values(mdp, jnp.ones((2, 4)) / 4)
    with pytest.raises(ValueError, match="gamma must be in"):
        tabular.random_mdp(jax.random.key(0), 4, 2, 1.0)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 2"):
        tabular.random_mdp(jax.random.key(0), 0, 2, 0.9)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        tabular.lane_environment(mdp, 0)
    with pytest.raises(ValueError, match="known are: random"):
        make("tabular/chain", 1)
    with pytest.raises(ValueError, match="no parameter states; its parameters are: seed, num_states"):
        make("tabular/random", 1, states=3)
