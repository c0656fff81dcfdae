"""Updates of the KL-regularised actor-critic: the critics' target, and one step each of critics, policy, alpha and prior.

Every function takes the config and the networks first and touches nothing else, so that each can be called, tested and
replaced alone. `learn` is their order; the losses of the policy are in `kl_regularised_losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxrl_off.agents.base import stepped
from jaxrl_off.agents.kl_regularised_config import KLRegularisedConfig
from jaxrl_off.agents.kl_regularised_losses import (
    ActorOutput,
    actor_loss,
    kl_to_reference,
    prior_loss,
    reference_metrics,
    temperature,
)
from jaxrl_off.networks import CriticEnsemble, GaussianPolicy
from jaxrl_off.types import Array, PyTree, Transition

Metrics = dict[str, Array]


class Networks(NamedTuple):
    """Networks and rules of descent that a config asks for; no parameters.

    Attributes:
        policy: of the policy, and of a learned prior.
        critic: the ensemble.
        optimiser: of policy, critics and prior: Adam of a gradient that is clipped, without the learning rate.
        alpha_optimiser: of log alpha: Adam, without the learning rate.
    """

    policy: GaussianPolicy
    critic: CriticEnsemble
    optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation


class ActorCriticState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        policy, critic, prior: network parameters; `prior` is `()` unless it is learned.
        target_critic: their slow copy.
        log_alpha: `float32[]`; learned where `temperature` is a dual, else unused.
        policy_optimiser, critic_optimiser, alpha_optimiser, prior_optimiser: optax states.
        updates: `int32[]`, critic updates so far, those of `offline_updates` apart.
        reference: parameters of pi_0, frozen; `()` without one.
        demonstrations: `Transition[M]` that batches are mixed with, or `()`.
    """

    policy: PyTree
    critic: PyTree
    prior: PyTree
    target_critic: PyTree
    log_alpha: Array
    policy_optimiser: PyTree
    critic_optimiser: PyTree
    alpha_optimiser: PyTree
    prior_optimiser: PyTree
    updates: Array
    reference: PyTree
    demonstrations: PyTree


def networks_of(config: KLRegularisedConfig, action_size: int) -> Networks:
    """The networks of a config, for actions of `action_size` numbers."""
    adam = optax.scale_by_adam()
    return Networks(
        policy=GaussianPolicy(action_size, config.policy_sizes, config.policy == "tanh_normal"),
        critic=CriticEnsemble(config.critics, config.critic_sizes, config.critic_layer_norm),
        optimiser=optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam),
        alpha_optimiser=adam,
    )


def initial_state(
    config: KLRegularisedConfig, networks: Networks, key: Array, observation: Array, reference_params: PyTree
) -> ActorCriticState:
    """Fresh parameters, without demonstrations; `observation` is `[1, O]`, for its shape."""
    policy_key, critic_key = jax.random.split(key)
    policy = networks.policy.init(policy_key, observation)["params"]
    critic = networks.critic.init(critic_key, observation, jnp.zeros((1, networks.policy.action_size)))["params"]
    log_alpha = jnp.log(jnp.maximum(jnp.asarray(config.alpha, jnp.float32), 1e-30))
    prior: PyTree = ()
    if config.prior == "advantage_filtered":
        prior = networks.policy.init(jax.random.fold_in(key, 2), observation)["params"]
    return ActorCriticState(
        policy=policy,
        critic=critic,
        prior=prior,
        target_critic=critic,
        log_alpha=log_alpha,
        policy_optimiser=networks.optimiser.init(policy),
        critic_optimiser=networks.optimiser.init(critic),
        alpha_optimiser=networks.alpha_optimiser.init(log_alpha),
        prior_optimiser=networks.optimiser.init(prior),
        updates=jnp.zeros((), jnp.int32),
        # behind a barrier, or XLA spends its compile time on folding what is computed from constants
        reference=jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, reference_params)),
        demonstrations=(),
    )


def policy_of(networks: Networks, params: PyTree, observation: Array) -> Any:
    """The distribution of canonical actions that a policy or a prior with these parameters has."""
    return networks.policy.apply({"params": params}, observation)


def values_of(networks: Networks, params: PyTree, observation: Array, action: Array) -> Array:
    """Q of canonical actions by every critic, `float32[critics, ...]`."""
    return cast(Array, networks.critic.apply({"params": params}, observation, action))


def action_value(
    config: KLRegularisedConfig, networks: Networks, critic: PyTree, observation: Array
) -> Callable[[Array], Array]:
    """`action[B, D] -> Q(s, action)`, `float32[B]`, as the actor sees it: the critics' minimum or mean."""

    def value(action: Array) -> Array:
        values = values_of(networks, critic, observation, action)
        return jnp.min(values, axis=0) if config.actor_value == "min" else jnp.mean(values, axis=0)

    return value


def critic_target(
    config: KLRegularisedConfig,
    networks: Networks,
    state: ActorCriticState,
    key: Array,
    alpha: Array,
    batch: Transition,
) -> tuple[Array, Array]:
    """`c r + gamma (1 - terminated) (min_i Q_i(s', a') - alpha KL(s'))`, a' ~ pi, Q of the slow copy.

    Args:
        config: with the reward's factor c, gamma, the critics that the minimum goes over, and whether the KL enters.
        networks: of the config.
        state: of the learner.
        key: consumed.
        alpha: `float32[]`.
        batch: `Transition[B]`.

    Returns:
        The target `float32[B]`, a constant; and `float32[]`, the KL's share of the sizes of its three terms.
    """
    sample_key, subset_key = jax.random.split(key)
    distribution = policy_of(networks, state.policy, batch.next_observation)
    kl, action, _, _ = kl_to_reference(config, sample_key, distribution, batch.next_reference)
    values = values_of(networks, state.target_critic, batch.next_observation, action)
    if 0 < config.target_critics < config.critics:
        values = values[jax.random.permutation(subset_key, config.critics)[: config.target_critics]]
    value, penalty = jnp.min(values, axis=0), alpha * kl if config.value_penalty else jnp.zeros_like(kl)
    discount = config.gamma * (1.0 - batch.terminated.astype(jnp.float32))
    reward = config.reward_scale * batch.reward
    size = jnp.abs(reward) + discount * (jnp.abs(value) + jnp.abs(penalty))
    share = jnp.sum(discount * jnp.abs(penalty)) / jnp.maximum(jnp.sum(size), 1e-12)
    return jax.lax.stop_gradient(reward + discount * (value - penalty)), share


def critic_step(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, batch: Transition, target: Array
) -> tuple[dict[str, PyTree], Metrics]:
    """One step of all critics towards the target `[B]`, and of their slow copy: new fields of the state, and metrics."""

    def loss_of(params: PyTree) -> tuple[Array, Array]:
        values = values_of(networks, params, batch.observation, batch.action)
        return jnp.sum(jnp.mean(jnp.square(values - target), axis=1)), jnp.mean(values)

    (loss, value), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.critic)
    critic, optimiser = descended(
        networks, gradients, state.critic_optimiser, state.critic, config.critic_learning_rate
    )
    changed = dict(
        critic=critic,
        critic_optimiser=optimiser,
        target_critic=stepped(state.target_critic, jax.tree.map(jnp.subtract, state.target_critic, critic), config.tau),
    )
    return changed, {"critic_loss": loss, "value": value, "critic_gradient_norm": optax.global_norm(gradients)}


def policy_step(
    config: KLRegularisedConfig,
    networks: Networks,
    state: ActorCriticState,
    key: Array,
    alpha: Array,
    batch: Transition,
) -> tuple[dict[str, PyTree], Metrics]:
    """One step of the policy, and of alpha where it is a dual: new fields of the state, and metrics."""
    value = action_value(config, networks, state.critic, batch.observation)

    def loss_of(params: PyTree) -> tuple[Array, ActorOutput]:
        distribution = policy_of(networks, params, batch.observation)
        output = actor_loss(config, key, alpha, distribution, value, batch)
        return output.loss, output

    (_, output), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.policy)
    policy, optimiser = descended(networks, gradients, state.policy_optimiser, state.policy, config.learning_rate)
    changed = dict(policy=policy, policy_optimiser=optimiser)
    metrics = {
        "policy_loss": output.loss,
        "kl": output.kl,
        "entropy": -output.log_prob,
        "kl_clipped": output.clipped,
        "policy_gradient_norm": optax.global_norm(gradients),
    }
    metrics |= reference_metrics(config, alpha, output.action, batch.reference)
    return changed | alpha_step(config, networks, state, output), metrics


def alpha_step(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, output: ActorOutput
) -> dict[str, PyTree]:
    """One step of log alpha: up where the policy's entropy is below its target, or its KL above its budget."""
    if config.temperature == "kl":
        surplus = output.kl - config.kl_budget
    elif config.temperature == "entropy":
        surplus = output.log_prob + config.target_entropy * networks.policy.action_size
    else:
        return dict(log_alpha=state.log_alpha, alpha_optimiser=state.alpha_optimiser)
    step, optimiser = networks.alpha_optimiser.update(-surplus, state.alpha_optimiser)
    return dict(log_alpha=stepped(state.log_alpha, step, config.alpha_learning_rate), alpha_optimiser=optimiser)


def prior_step(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, key: Array, batch: Transition
) -> tuple[ActorCriticState, Transition]:
    """One step of the learned prior, and the batch with it as its reference; both unchanged without one."""
    if config.prior == "frozen":
        return state, batch
    acting = policy_of(networks, state.policy, batch.observation)
    value = action_value(config, networks, state.critic, batch.observation)

    def loss_of(params: PyTree) -> Array:
        return prior_loss(key, policy_of(networks, params, batch.observation), acting, value, batch)

    gradients = jax.grad(loss_of)(state.prior)
    prior, optimiser = descended(networks, gradients, state.prior_optimiser, state.prior, config.learning_rate)
    batch = batch._replace(
        reference=policy_of(networks, prior, batch.observation),
        next_reference=policy_of(networks, prior, batch.next_observation),
    )
    return state._replace(prior=prior, prior_optimiser=optimiser), batch


def learn(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, key: Array, batch: Transition
) -> tuple[ActorCriticState, Metrics]:
    """One update of everything: the prior first, then policy and critics, each by what the others were before.

    Args:
        config: of the agent.
        networks: of the config.
        state: of the learner.
        key: consumed.
        batch: `Transition[B]`.

    Returns:
        The new state, and metrics `float32[]`; those of the policy are NaN where it waits for its `policy_period`.
    """
    prior_key, target_key, policy_key = jax.random.split(key, 3)
    state, batch = prior_step(config, networks, state, prior_key, batch)
    alpha = temperature(config, state.log_alpha)
    target, share = critic_target(config, networks, state, target_key, alpha, batch)
    critics, metrics = critic_step(config, networks, state, batch, target)

    def improve() -> tuple[dict[str, PyTree], Metrics]:
        return policy_step(config, networks, state, policy_key, alpha, batch)

    def wait() -> tuple[dict[str, PyTree], Metrics]:
        changed, shapes = jax.eval_shape(improve)
        nothing = {name: jnp.full(leaf.shape, jnp.nan, leaf.dtype) for name, leaf in shapes.items()}
        return {name: getattr(state, name) for name in changed}, nothing

    if config.policy_period == 1:
        actor, actor_metrics = improve()
    else:
        due = (state.updates + 1) % config.policy_period == 0
        actor, actor_metrics = jax.lax.cond(due, improve, wait)
    state = state._replace(**actor, **critics, updates=state.updates + 1)
    finite = jnp.isfinite(metrics["critic_loss"] + optax.global_norm(state.policy))
    metrics |= actor_metrics | {
        "target": jnp.mean(target),
        "kl_share_of_target": share,
        "alpha": alpha,
        "nonfinite": 1.0 - finite.astype(jnp.float32),
    }
    return state, metrics


def imitate(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, key: Array, batch: Transition
) -> ActorCriticState:
    """One step of the policy alone, towards the reference, or without one towards the batch's actions (cloning)."""

    def loss_of(params: PyTree) -> Array:
        distribution = policy_of(networks, params, batch.observation)
        if config.with_reference:
            return jnp.mean(kl_to_reference(config, key, distribution, batch.reference)[2])
        return -jnp.mean(distribution.log_prob(batch.action))

    gradients = jax.grad(loss_of)(state.policy)
    policy, optimiser = descended(networks, gradients, state.policy_optimiser, state.policy, config.learning_rate)
    return state._replace(policy=policy, policy_optimiser=optimiser)


def descended(
    networks: Networks, gradients: PyTree, optimiser: PyTree, params: PyTree, learning_rate: Array | float
) -> tuple[PyTree, PyTree]:
    """Parameters and optimiser state after one step against the gradients."""
    steps, optimiser = networks.optimiser.update(gradients, optimiser)
    return stepped(params, steps, learning_rate), optimiser
