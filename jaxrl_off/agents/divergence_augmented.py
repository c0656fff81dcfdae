"""Divergence-augmented policy optimization and its family: PPO, PPO+DA, DAPO, V-trace, MDPO, P3O, GePPO, ACER, V-MPO.

One loss serves all (Wang et al., "Divergence-Augmented Policy Optimization", NeurIPS 2019; here called DA):

    loss = - weight(ratio) x (A - D / eta) + penalty + b * value loss - entropy bonus,

where A is an advantage, D a (multi-step) divergence to the behaviour policy that generated the sample, and the penalty an
exact state-wise KL. A, D, the value targets and every ratio inside them are constants; only `ratio` (or log pi) and V
carry gradient. `jaxrl_off.agents.config` says which member sets what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.config import DivergenceAugmentedConfig, check
from jaxrl_off.envs.base import DiscreteSpace, EnvironmentSpec
from jaxrl_off.networks import ActorCritic
from jaxrl_off.ops.divergence import divergence_terms, multi_step_divergence
from jaxrl_off.ops.importance import effective_sample_size, importance_ratio, masked_mean
from jaxrl_off.ops.returns import generalised_advantages, lambda_returns, successor_values, vtrace
from jaxrl_off.types import Array, PyTree, Rollout


class Duals(NamedTuple):
    """Scalars that adapt beside the network.

    Attributes:
        penalty: factor of the penalty under `penalty_schedule="adaptive"`.
        learning_rate_scale: under `adapt_learning_rate`.
    """

    penalty: Array
    learning_rate_scale: Array


class AgentState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        params: network parameters, and V-MPO's duals where used.
        actor_params: the published copy that acts.
        optimiser: optax state.
        duals: see `Duals`.
        updates: `int32[]`, optimiser steps taken.
        published_at: `int32[]`, optimiser steps behind `actor_params`.
    """

    params: PyTree
    actor_params: PyTree
    optimiser: PyTree
    duals: Duals
    updates: Array
    published_at: Array


def make(config: DivergenceAugmentedConfig, spec: EnvironmentSpec, *, total_updates: int) -> Agent:
    """Build a member of the family.

    Args:
        config: from `preset`; its reals may be tracers.
        spec: of the environment.
        total_updates: optimiser steps after which the learning rate reaches its final value.

    Returns:
        An `Agent`.

    Raises:
        ValueError: for a config that cannot be meant.

    Example:
        >>> from jaxrl_off import envs
        >>> from jaxrl_off.agents import preset
        >>> agent = make(preset("ppo_da"), envs.make("CartPole-v1", 4).spec, total_updates=100)
        >>> int(agent.init(jax.random.key(0)).updates)
        0
    """
    check(config)
    if total_updates < 1:
        raise ValueError(f"total_updates must be at least 1, got {total_updates}.")
    network = build_network(config, spec)
    optimiser = _make_optimiser(config)

    def evaluate(params: PyTree, observation: PyTree, core: PyTree, first: Array) -> tuple[Any, Array, PyTree]:
        return network.apply({"params": params["network"]}, observation, core, first)

    def init(key: Array) -> AgentState:
        first = jnp.ones((1, 1), bool)
        variables = network.init(key, spec.zero_observation(1, 1), network.initial_core(1), first)
        params = {"network": variables["params"]}
        if config.penalty_schedule == "learned":
            params["log_temperature"] = jnp.zeros(())
            params["log_penalty"] = jnp.log(jnp.asarray(config.penalty_coefficient, jnp.float32))
        duals = Duals(jnp.asarray(config.penalty_coefficient, jnp.float32), jnp.ones(()))
        zero = jnp.zeros((), jnp.int32)
        return AgentState(params, params, optimiser.init(params), duals, zero, zero)

    def act(
        state: AgentState, key: Array, observation: PyTree, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        distribution, value, cores = evaluate(state.actor_params, observation[None], core, first[None])
        distribution, value, cores = jax.tree.map(lambda leaf: leaf[0], (distribution, value, cores))
        action = distribution.mode() if greedy else distribution.sample(key)
        return ActOutput(
            action=action,
            log_prob=distribution.log_prob(action),
            value=None if config.separate_critic else value,
            parameters=distribution if config.needs_behaviour_parameters else (),
            core=cores,
        )

    def values_of(state: AgentState, observation: PyTree, core: PyTree, first: Array) -> Array:
        """Behaviour-time values of unrelated steps `[K, ...]`, each with its own recurrent state."""
        _, value, _ = evaluate(state.actor_params, observation[None], core, first[None])
        return value[0]

    def process(state: AgentState, chunk: Chunk, rollout_length: int) -> Rollout:
        length, lanes = chunk.reward.shape
        last_core = jax.tree.map(lambda leaf: leaf[-1], chunk.acted.core)
        bootstrap = values_of(state, chunk.last_observation, last_core, chunk.last_first)
        value = chunk.acted.value
        if value is None:
            flat = chunk.observation.reshape(length * lanes, *chunk.observation.shape[2:])
            value = values_of(state, flat, (), chunk.first.reshape(-1)).reshape(length, lanes)

        def final_values() -> Array:
            flat, cores = jax.tree.map(
                lambda leaf: leaf.reshape(length * lanes, *leaf.shape[2:]), (chunk.final_observation, chunk.acted.core)
            )
            final = values_of(state, flat, cores, jnp.zeros(length * lanes, bool)).reshape(length, lanes)
            return jnp.where(chunk.truncated, final, 0.0)

        final_value = jax.lax.cond(jnp.any(chunk.truncated), final_values, lambda: jnp.zeros_like(value))
        over_lanes = jax.vmap(successor_values, in_axes=(1, 0, 1, 1), out_axes=1)
        next_value = over_lanes(value, bootstrap, chunk.truncated, final_value)
        lane_wise = {"in_axes": (1, 1, 1, 1, None, None), "out_axes": 1}
        lambda_return = jax.vmap(lambda_returns, **lane_wise)(
            chunk.reward, next_value, chunk.terminated, chunk.truncated, config.gamma, config.lambda_
        )
        tail = config.lambda_ * lambda_return[1:] + (1.0 - config.lambda_) * value[1:]
        tail_value = jnp.concatenate([tail, bootstrap[None]])

        def cut(leaf: Array) -> Array:
            """`[L, N, ...] -> [R, T, ...]`."""
            pieces = leaf.reshape(length // rollout_length, rollout_length, lanes, *leaf.shape[2:])
            pieces = jnp.moveaxis(pieces, 2, 1)
            return pieces.reshape(-1, rollout_length, *leaf.shape[2:])

        def before(initial: Array, after: Array) -> Array:
            """Recurrent state before the first step of every roll-out."""
            starts = jnp.concatenate([initial[None], after[rollout_length - 1 : -1 : rollout_length]])
            return starts.reshape(-1, *after.shape[2:])

        steps = Rollout(
            observation=chunk.observation,
            action=chunk.acted.action,
            reward=chunk.reward,
            terminated=chunk.terminated,
            truncated=chunk.truncated,
            valid=chunk.valid,
            first=chunk.first,
            behaviour_log_prob=chunk.acted.log_prob,
            behaviour_value=value,
            final_value=final_value,
            behaviour_parameters=chunk.acted.parameters,
            advantage=lambda_return - value,
            lambda_return=lambda_return,
            tail_value=tail_value,
            core_state=(),
            policy_version=jnp.zeros((length, lanes), jnp.int32) + state.published_at,
        )
        pieces = jax.tree.map(cut, steps)
        return pieces._replace(
            tail_value=pieces.tail_value[:, -1],
            policy_version=pieces.policy_version[:, 0],
            core_state=jax.tree.map(before, chunk.initial_core, chunk.acted.core),
        )

    def loss(params: PyTree, state: AgentState, batch: Rollout) -> tuple[Array, dict[str, Array]]:
        distribution, value = _over_batch(evaluate, params, batch, bool(config.core_size))
        published = None
        if config.weight == "centred_clip":
            published, _ = _over_batch(evaluate, state.actor_params, batch, bool(config.core_size))
        return family_loss(config, params, state, batch, distribution, value, published, total_updates)

    def update(state: AgentState, key: Array, batch: Rollout) -> tuple[AgentState, dict[str, Array]]:
        del key
        chex.assert_rank([batch.reward, batch.behaviour_log_prob, batch.tail_value], [2, 2, 1])
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, state, batch)
        steps, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        progress = jnp.minimum(state.updates / total_updates, 1.0)
        learning_rate = config.learning_rate * (1.0 - progress * (1.0 - config.final_learning_rate_fraction))
        learning_rate = learning_rate * state.duals.learning_rate_scale
        params = jax.tree.map(lambda p, step: p - learning_rate * step, state.params, steps)
        age = (state.updates - batch.policy_version).astype(jnp.float32)
        metrics |= {
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": learning_rate,
            "staleness_mean": jnp.mean(age),
            "staleness_max": jnp.max(age),
            "nonfinite": 1.0 - jnp.isfinite(metrics["loss"]).astype(jnp.float32),
        }
        duals = _adapt(config, state.duals, metrics)
        state = state._replace(params=params, optimiser=optimiser_state, duals=duals, updates=state.updates + 1)
        return state, metrics

    def publish(state: AgentState) -> AgentState:
        return state._replace(actor_params=state.params, published_at=state.updates)

    return Agent(init, network.initial_core, act, process, update, publish)


def build_network(config: DivergenceAugmentedConfig, spec: EnvironmentSpec) -> ActorCritic:
    """The actor-critic a config asks for; `torso="auto"` looks at the observation's shape.

    Images of side 64 or more get the Nature network, smaller ones MinAtar's, anything else an MLP.
    """
    torso = config.torso
    if torso == "auto":
        image = len(spec.observation_shape) == 3
        torso = "mlp" if not image else ("nature" if min(spec.observation_shape[:2]) >= 64 else "minatar")
    default_sizes = {"mlp": (64, 64), "minatar": (128,), "nature": (512,), "impala": (256,)}
    discrete = isinstance(spec.action_space, DiscreteSpace)
    return ActorCritic(
        action_shape=() if discrete else spec.action_space.shape,
        num_actions=spec.action_space.num_actions if discrete else 0,
        torso=torso,
        sizes=config.sizes or default_sizes[torso],
        activation=config.activation,
        core_size=config.core_size,
        separate_critic=config.separate_critic,
    )


def family_loss(
    config: DivergenceAugmentedConfig,
    params: PyTree,
    state: AgentState,
    batch: Rollout,
    distribution: Any,
    value: Array,
    published: Any,
    total_updates: int,
) -> tuple[Array, dict[str, Array]]:
    """The loss of the family on a batch of roll-outs.

    Args:
        config: see `DivergenceAugmentedConfig`.
        params: for V-MPO's duals.
        state: for schedules and adaptive factors.
        batch: `[B, T]` roll-outs.
        distribution: pi(.|s), batch shape `[B, T]`; differentiable.
        value: `float32[B, T]`, V(s); differentiable.
        published: pi_k(.|s) of the published policy for `centred_clip`, else None.
        total_updates: for `mirror_descent`.

    Returns:
        Scalar loss and metrics.
    """
    mask = batch.valid
    log_prob = distribution.log_prob(batch.action)
    ratio = importance_ratio(log_prob, batch.behaviour_log_prob)
    constant_ratio = jax.lax.stop_gradient(ratio)

    target, advantage = _targets(config, batch, jax.lax.stop_gradient(value), constant_ratio)
    advantage = _normalise(config.advantage_normalisation, advantage, mask)
    divergence = _divergence(config, batch, log_prob, constant_ratio)
    augmented = jax.lax.stop_gradient(advantage - config.divergence_coefficient * divergence)

    ess = effective_sample_size(constant_ratio, mask)
    centre = jnp.ones_like(constant_ratio)
    if published is not None:
        centre = importance_ratio(published.log_prob(batch.action), batch.behaviour_log_prob)
        centre = jax.lax.stop_gradient(centre)
    low, high = centre - config.clip_epsilon, centre + config.clip_epsilon
    clipped = (constant_ratio < low) | (constant_ratio > high)

    dual_loss = jnp.zeros(())
    if config.weight == "exponential":
        policy_loss, dual_loss = _exponential_loss(config, params, augmented, log_prob, mask)
    else:
        policy_loss = masked_mean(_policy_loss(config, ratio, log_prob, augmented, low, high, ess), mask)

    penalty_loss = jnp.zeros(())
    if config.penalty != "none":
        behaviour = batch.behaviour_parameters
        exact = distribution.kl(behaviour) if config.penalty == "kl" else behaviour.kl(distribution)
        exact = masked_mean(exact, mask)
        factor, constraint = _penalty_factor(config, params, state, ess, exact, total_updates)
        penalty_loss = factor * exact
        dual_loss = dual_loss + constraint

    value_loss = masked_mean(_value_loss(config, value, target, batch.behaviour_value, constant_ratio), mask)
    entropy = masked_mean(distribution.entropy(), mask)
    total = (
        policy_loss
        + penalty_loss
        + dual_loss
        + config.value_coefficient * value_loss
        - config.entropy_coefficient * entropy
    )
    log_ratio = jax.lax.stop_gradient(log_prob) - batch.behaviour_log_prob
    metrics = {
        "loss": total,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "penalty_loss": penalty_loss,
        "entropy": entropy,
        "kl_to_behaviour": masked_mean(constant_ratio - 1.0 - log_ratio, mask),
        "half_squared_log_ratio": masked_mean(0.5 * jnp.square(log_ratio), mask),
        "total_variation": 0.5 * masked_mean(jnp.abs(constant_ratio - centre), mask),
        "clip_fraction": masked_mean(clipped.astype(jnp.float32), mask),
        "effective_sample_size": ess,
        "divergence": masked_mean(divergence, mask),
        "value": masked_mean(value, mask),
    }
    if config.penalty != "none":
        metrics["penalty_kl"] = exact
    return total, metrics


def _over_batch(evaluate: Any, params: PyTree, batch: Rollout, recurrent: bool) -> tuple[Any, Array]:
    """Distribution and value `[B, T]`; only a recurrent network needs time in front."""
    if not recurrent:
        distribution, value, _ = evaluate(params, batch.observation, (), batch.first)
        return distribution, value
    observation, first = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (batch.observation, batch.first))
    distribution, value, _ = evaluate(params, observation, batch.core_state, first)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (distribution, value))


def _targets(config: DivergenceAugmentedConfig, batch: Rollout, value: Array, ratio: Array) -> tuple[Array, Array]:
    """Value targets and advantages `[B, T]`, constants."""
    if config.advantage == "gae":
        return batch.lambda_return, batch.advantage
    next_value = jax.vmap(successor_values)(value, batch.tail_value, batch.truncated, batch.final_value)
    if config.advantage == "gae_current":
        advantage = jax.vmap(generalised_advantages, in_axes=(0, 0, 0, 0, 0, None, None))(
            batch.reward, value, next_value, batch.terminated, batch.truncated, config.gamma, config.lambda_
        )
        return advantage + value, advantage

    def one(*arrays: Array) -> tuple[Array, Array]:
        traced = vtrace(
            *arrays,
            config.gamma,
            rho_bar=config.rho_bar_value,
            c_bar=config.c_bar_value,
            lambda_=config.trace_lambda,
        )
        return traced.value_targets, traced.advantages

    return jax.vmap(one)(value, next_value, batch.reward, ratio, batch.terminated, batch.truncated)


def _normalise(how: str, advantage: Array, mask: Array) -> Array:
    """Normalise advantages over the batch; `rms` leaves their mean alone, so that 1/eta keeps its scale against D."""
    if how == "none":
        return advantage
    if how == "rms":
        mean_square = masked_mean(jnp.square(advantage), mask)
        return advantage / (jnp.sqrt(jnp.maximum(mean_square, 1e-8)) + 1e-4)
    centred = advantage - masked_mean(advantage, mask)
    return centred / (jnp.sqrt(masked_mean(jnp.square(centred), mask)) + 1e-8)


def _divergence(config: DivergenceAugmentedConfig, batch: Rollout, log_prob: Array, ratio: Array) -> Array:
    """D `[B, T]`, constant; zeros where the member uses none."""
    if config.divergence == "none":
        return jnp.zeros_like(ratio)
    terms = divergence_terms(config.divergence, log_prob, batch.behaviour_log_prob)
    if config.divergence_steps == "one":
        return terms

    def one(*arrays: Array) -> Array:
        return multi_step_divergence(
            *arrays,
            config.gamma,
            rho_bar=config.rho_bar_divergence,
            c_bar=config.c_bar_divergence,
            product_start=config.product_start,
            released_code=config.released_code,
        )

    return jax.vmap(one)(terms, ratio, batch.terminated, batch.truncated)


def _policy_loss(
    config: DivergenceAugmentedConfig,
    ratio: Array,
    log_prob: Array,
    augmented: Array,
    low: Array,
    high: Array,
    ess: Array,
) -> Array:
    """Per-sample policy loss `[B, T]` for every weight but `exponential`."""
    constant = jax.lax.stop_gradient(ratio)
    if config.weight == "identity":
        return -ratio * augmented
    if config.weight in ("clip", "centred_clip"):
        return jnp.maximum(-ratio * augmented, -jnp.clip(ratio, low, high) * augmented)
    cap = ess if config.weight == "effective_sample_size" else config.weight_cap
    weight = jnp.minimum(cap, constant)
    if config.weight == "acer":
        weight = weight + jnp.maximum(0.0, 1.0 - cap / constant)
    return -weight * augmented * log_prob


def _exponential_loss(
    config: DivergenceAugmentedConfig, params: PyTree, advantage: Array, log_prob: Array, mask: Array
) -> tuple[Array, Array]:
    """V-MPO: weighted maximum likelihood on the better half, and the loss of its temperature (rlax `vmpo_loss`)."""
    advantage, log_prob, mask = advantage.ravel(), log_prob.ravel(), mask.ravel()
    chosen = mask & (advantage >= jnp.nanmedian(jnp.where(mask, advantage, jnp.nan)))
    temperature = jnp.exp(params["log_temperature"])
    scaled = jnp.where(chosen, advantage / temperature, -jnp.inf)
    psi = jax.lax.stop_gradient(jax.nn.softmax(scaled))
    policy_loss = -jnp.sum(psi * log_prob)
    log_mean_exp = jax.nn.logsumexp(scaled) - jnp.log(jnp.maximum(jnp.sum(chosen), 1))
    return policy_loss, temperature * (config.temperature_target + log_mean_exp)


def _penalty_factor(
    config: DivergenceAugmentedConfig, params: PyTree, state: AgentState, ess: Array, exact: Array, total_updates: int
) -> tuple[Array, Array]:
    """Factor of the penalty (constant in the policy's gradient) and the loss of the factor itself, if it is learned."""
    zero = jnp.zeros(())
    if config.penalty_schedule == "adaptive":
        return state.duals.penalty, zero
    if config.penalty_schedule == "one_minus_effective_sample_size":
        return config.penalty_coefficient * (1.0 - ess), zero
    if config.penalty_schedule == "mirror_descent":
        step_size = jnp.maximum(1.0 - state.published_at / total_updates, 1e-2)
        return config.penalty_coefficient / step_size, zero
    if config.penalty_schedule == "learned":
        factor = jnp.exp(params["log_penalty"])
        constraint = factor * (config.penalty_target - jax.lax.stop_gradient(exact))
        return jax.lax.stop_gradient(factor), constraint
    return jnp.asarray(config.penalty_coefficient, jnp.float32), zero


def _value_loss(
    config: DivergenceAugmentedConfig, value: Array, target: Array, behaviour_value: Array, ratio: Array
) -> Array:
    """Per-sample value loss `[B, T]`, half a squared error."""
    squared = jnp.square(value - target)
    if config.value_loss == "weighted":
        squared = jnp.minimum(ratio, config.value_weight_cap) * squared
    elif config.value_loss == "clipped":
        near = behaviour_value + jnp.clip(value - behaviour_value, -config.clip_epsilon, config.clip_epsilon)
        squared = jnp.maximum(squared, jnp.square(near - target))
    return 0.5 * squared


def _adapt(config: DivergenceAugmentedConfig, duals: Duals, metrics: dict[str, Array]) -> Duals:
    """PPO's adaptive penalty and GePPO's adaptive step size."""
    if config.penalty_schedule == "adaptive":
        observed = metrics["penalty_kl"]
        grow = jnp.where(observed > 1.5 * config.penalty_target, 2.0, 1.0)
        shrink = jnp.where(observed < config.penalty_target / 1.5, 0.5, 1.0)
        duals = duals._replace(penalty=jnp.clip(duals.penalty * grow * shrink, 1e-4, 1e4))
    if config.adapt_learning_rate:
        too_far = metrics["total_variation"] > 0.5 * config.clip_epsilon
        duals = duals._replace(learning_rate_scale=duals.learning_rate_scale / jnp.where(too_far, 1.03, 1.0))
    return duals


def _make_optimiser(config: DivergenceAugmentedConfig) -> optax.GradientTransformation:
    """Clip by global norm, then precondition; the learning rate is applied by `update`."""
    scale = {
        "adam": lambda: optax.scale_by_adam(eps=config.adam_epsilon),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=config.adam_epsilon),
    }[config.optimiser]()
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), scale)
