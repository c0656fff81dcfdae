"""The four ways to improve a policy, the learned prior, pre-training and offline updates of the KL-regularised family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import envs
from jaxrl_off.agents.kl_regularised import make
from jaxrl_off.agents.kl_regularised_config import preset
from jaxrl_off.agents.kl_regularised_losses import actor_loss, prior_loss
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.networks import GaussianPolicy
from jaxrl_off.references import Uniform
from jaxrl_off.types import Transition

SPEC = envs.make("Pendulum-v1", 1).spec
SMALL = dict(policy_sizes=(16,), critic_sizes=(16,))


def transitions(size=200, seed=0):
    """An expert that plays 2 (0.3 x_0 - 0.2) in Pendulum's units, the reward being -(x_0 + action)^2."""
    keys = jax.random.split(jax.random.key(seed), 3)
    observation = jax.random.uniform(keys[0], (size, 3), minval=-1.0)
    action = 2.0 * (0.3 * observation[:, :1] - 0.2)
    return Transition(
        observation=observation,
        action=action,
        reward=-jnp.square(observation[:, 0] + action[:, 0]),
        terminated=jnp.ones(size, bool),
        next_observation=observation,
        reference=(),
        next_reference=(),
    )


def normal(mean, std, size=5):
    return DiagonalNormal(jnp.full((size, 1), mean), jnp.full((size, 1), np.log(std)))


def batch_with(reference, action=0.0, size=5):
    zeros = jnp.zeros(size)
    row = transitions(size)
    return row._replace(action=jnp.full((size, 1), action), reward=zeros, reference=reference, next_reference=reference)


def test_mpo_moves_to_the_reweighted_reference():
    """Of pi_0 = N(0, s^2) and Q = a, the target pi_0 exp(Q / alpha) is N(s^2 / alpha, s^2), its KL to pi_0 s^2 / 2 alpha^2."""
    config = preset("bm_mpo", mpo_samples=20_000)
    std, alpha = 0.1, 0.08
    batch = batch_with(normal(0.0, std, 2), size=2)

    def loss(mean, log_std):
        policy = DiagonalNormal(jnp.full((2, 1), mean), jnp.full((2, 1), log_std))
        output = actor_loss(config, jax.random.key(0), jnp.array(alpha), policy, lambda a: a[:, 0], batch)
        return output.loss, output.kl

    arguments = (jnp.array(std**2 / alpha), jnp.log(std))
    (_, kl), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(*arguments)
    np.testing.assert_allclose(kl, std**2 / (2 * alpha**2), rtol=0.05)
    np.testing.assert_allclose(slopes, 0.0, atol=0.3)  # the scale of a score is 1 / std = 10
    away = jax.grad(loss, has_aux=True)(jnp.array(0.0), jnp.log(std))[0]
    np.testing.assert_allclose(away, -(1.0 / std**2) * std**2 / alpha, rtol=0.05)


def test_mpo_needs_a_reference_that_samples():
    batch = batch_with(Uniform(jnp.zeros(5)))
    with pytest.raises(ValueError, match="a Uniform gives none; take a Gaussian one"):
        actor_loss(preset("bm_mpo"), jax.random.key(0), jnp.array(1.0), normal(0.0, 0.1), lambda a: a[:, 0], batch)


def test_advantage_weights_by_hand():
    """-min(exp(A / alpha), w_max) log pi(a|s), A = Q(s,a) - Q(s,a_pi); no gradient through the weight."""
    config = preset("awac", advantage_weight_max=5.0)
    policy, action, alpha = normal(0.2, 1e-6), 0.5, 0.4
    for slope, weight in ((1.0, np.exp(0.3 / alpha)), (-1.0, np.exp(-0.3 / alpha)), (100.0, 5.0)):

        def loss(mean, slope=slope):
            moved = policy._replace(mean=mean, log_std=jnp.log(jnp.full((5, 1), 0.3)))
            quiet = moved._replace(log_std=policy.log_std)
            value = lambda a: slope * a[:, 0]  # noqa: E731
            batch = batch_with((), action)
            return actor_loss(config, jax.random.key(0), jnp.array(alpha), quiet, value, batch).loss

        mean = policy.mean
        expected = -weight * float(policy.log_prob(jnp.full((5, 1), action))[0])
        np.testing.assert_allclose(loss(mean), expected, rtol=1e-4)
        gradient = jax.grad(loss)(mean)
        np.testing.assert_allclose(gradient.sum(), -weight * (action - 0.2) / 1e-12, rtol=1e-4)


def test_cloning_is_the_negative_log_likelihood():
    config, policy = preset("bc"), normal(0.2, 0.3)
    output = actor_loss(config, jax.random.key(0), jnp.array(0.1), policy, lambda a: 1e9 * a[:, 0], batch_with((), 0.5))
    np.testing.assert_allclose(output.loss, -policy.log_prob(jnp.full((5, 1), 0.5))[0], rtol=1e-6)


def test_the_prior_learns_from_advantageous_actions_only():
    """Of actions -0.5 and 0.5, with pi at 0 and Q = a, only the second is imitated."""
    policy, prior = normal(0.0, 1e-6, 2), normal(0.1, 0.3, 2)
    batch = batch_with((), size=2)._replace(action=jnp.array([[-0.5], [0.5]]))
    loss = prior_loss(jax.random.key(0), prior, policy, lambda a: a[:, 0], batch)
    np.testing.assert_allclose(loss, -prior.log_prob(batch.action)[1] / 2, rtol=1e-6)


def test_pretraining_reaches_the_reference():
    """The reverse KL to a Gaussian reference that the policy can represent falls to almost nothing."""

    def reference(params, observation):
        return DiagonalNormal(
            params * jnp.tanh(observation[..., :1]), jnp.full_like(observation[..., :1], jnp.log(0.2))
        )

    config = preset("nppac_hand", policy_sizes=(32,), critic_sizes=(8,), pretrain_updates=1500, learning_rate=3e-3)
    demonstrations = transitions()
    agent = make(
        config, SPEC, total_updates=1, reference=reference, reference_params=0.5, demonstrations=demonstrations
    )
    state = jax.jit(agent.init)(jax.random.key(0))
    policy = GaussianPolicy(1, (32,), squash=False).apply({"params": state.policy}, demonstrations.observation)
    assert float(policy.kl(reference(0.5, demonstrations.observation)).mean()) < 0.02
    assert state.demonstrations == ()  # they are of no use after the start
    assert int(state.updates) == 0


def test_pretraining_without_a_reference_clones():
    config = preset("bc", **SMALL, pretrain_updates=1500)
    agent = make(
        config.replace(learning_rate=3e-3), SPEC, total_updates=1, demonstrations=(demonstrations := transitions())
    )
    state = jax.jit(agent.init)(jax.random.key(0))
    acted = agent.act(state, jax.random.key(1), demonstrations.observation, (), None, greedy=True).action
    np.testing.assert_allclose(acted, demonstrations.action, atol=0.15)


@pytest.mark.parametrize("name", ["awac", "abm"])
def test_offline_updates_learn_from_demonstrations(name):
    """Mixed actions of which the good ones, with reward, are on one side: offline the policy goes there, a clone does not."""
    actions = jnp.where(jnp.arange(400) % 2 == 0, 0.5, -0.5)[:, None] * 2.0
    rows = transitions(400)._replace(action=actions, reward=actions[:, 0])
    config = preset(name, **SMALL, offline_updates=1500, learning_rate=3e-3, critic_learning_rate=3e-3)
    agent = make(config, SPEC, total_updates=1, demonstrations=rows)
    state = jax.jit(agent.init)(jax.random.key(0))
    acted = agent.act(state, jax.random.key(1), rows.observation, (), None, greedy=True).action / 2.0
    assert float(acted.mean()) > 0.25
    assert int(state.updates) == 0
    assert state.demonstrations.reward.shape == (400,)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nppac", dict(prior="advantage_filtered"), "set with_reference=False or prior='frozen'"),
        ("sac", dict(actor="mpo"), "actor='mpo' samples from a reference"),
        ("awac", dict(alpha=0.0), "actor='advantage_weighted' divides by alpha; alpha must be positive, got 0.0"),
        ("bc", dict(pretrain_batch=0), "pretrain_batch=0 is not allowed"),
    ],
)
def test_settings_that_are_invalid(name, changes, message):
    with pytest.raises(ValueError, match=message):
        preset(name, **changes)
