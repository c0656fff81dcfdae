"""The loss of the divergence-augmented family, on a batch of roll-outs.

    loss = - weight(ratio) x (A - D / eta) + penalty + b * value loss - entropy bonus

A, D, the value targets and every ratio inside them are constants; only `ratio` (or log pi) and V carry gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_off.agents.divergence_augmented_config import DivergenceAugmentedConfig
from jaxrl_off.ops import surrogates
from jaxrl_off.ops.divergence import divergence_terms, kl_k3, multi_step_divergence
from jaxrl_off.ops.importance import effective_sample_size, importance_ratio, masked_mean
from jaxrl_off.ops.returns import generalised_advantages, successor_values, vtrace
from jaxrl_off.types import Array, PyTree, Rollout


def family_loss(
    config: DivergenceAugmentedConfig,
    params: PyTree,
    state: Any,
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
        state: the learner's `AgentState`, for schedules and adaptive factors.
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
    clipped = jnp.abs(constant_ratio - centre) > config.clip_epsilon

    dual_loss = jnp.zeros(())
    if config.weight == "exponential":
        temperature = jnp.exp(params["log_temperature"])
        psi, dual_loss = surrogates.exponential_weights(
            augmented.ravel(), temperature, config.temperature_target, mask.ravel()
        )
        policy_loss = -jnp.sum(psi * log_prob.ravel())
    else:
        policy_loss = -masked_mean(_surrogate(config, ratio, log_prob, augmented, centre, ess), mask)

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
        "kl_to_behaviour": masked_mean(kl_k3(batch.behaviour_log_prob, jax.lax.stop_gradient(log_prob)), mask),
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


def _surrogate(
    config: DivergenceAugmentedConfig, ratio: Array, log_prob: Array, augmented: Array, centre: Array, ess: Array
) -> Array:
    """The surrogate of every sample, `[B, T]`, for every weight but `exponential`."""
    if callable(config.weight):
        return config.weight(ratio, log_prob, augmented)
    if config.weight == "identity":
        return surrogates.identity(ratio, augmented)
    if config.weight in ("clip", "centred_clip"):
        return surrogates.centred_clip(ratio, augmented, centre, config.clip_epsilon, config.clip_epsilon)
    if config.weight == "acer":
        return surrogates.truncate_with_correction(ratio, log_prob, augmented, config.weight_cap)
    cap = ess if config.weight == "effective_sample_size" else config.weight_cap
    return surrogates.truncate(ratio, log_prob, augmented, cap)


def _penalty_factor(
    config: DivergenceAugmentedConfig, params: PyTree, state: Any, ess: Array, exact: Array, total_updates: int
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
