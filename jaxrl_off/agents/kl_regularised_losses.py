"""Losses of the KL-regularised actor-critic: the KL to the reference, the temperature, and four ways to improve a policy.

The optimum of `E_{a~pi} Q(s,a) - alpha KL(pi || pi_0)` is `pi*(a|s) ~ pi_0(a|s) exp(Q(s,a) / alpha)`. The actor gets there

| `actor` | by minimising | of |
|---|---|---|
| `reparameterised` | `alpha KL(pi || pi_0) - Q(s, a_pi)`, gradient through the action | SAC, BRAC, N-PPAC, RLPD |
| `mpo` | `-sum_k w_k log pi(a_k|s)`, `a_k ~ pi_0`, `w = softmax(Q(s, a_k) / alpha)` | MPO, ABM |
| `advantage_weighted` | `-min(exp(A(s,a) / alpha), w_max) log pi(a|s)`, a from the replay | AWAC |
| `cloning` | `-log pi(a|s)`, a from the replay | behavioural cloning |

so that AWAC's lambda and MPO's eta are alpha, and MPO's dual function of eta is the dual of a KL budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.agents.kl_regularised_config import KLRegularisedConfig
from jaxrl_off.distributions import DiagonalNormal, TanhNormal
from jaxrl_off.types import Array, Transition


class ActorOutput(NamedTuple):
    """What an actor's loss is made of, averaged over the batch but for `action`.

    Attributes:
        loss: `float32[]`.
        kl: `float32[]`, what a `kl_budget` is compared with: KL(pi || pi_0) before `kl_clip`; for `mpo` the KL of its target
            to pi_0, estimated on the samples.
        log_prob: `float32[]`, log pi of its own actions.
        clipped: `float32[]`, share of the batch whose KL was clipped.
        action: `float32[B, D]`, sampled from pi.
    """

    loss: Array
    kl: Array
    log_prob: Array
    clipped: Array
    action: Array


def actor_loss(
    config: KLRegularisedConfig,
    key: Array,
    alpha: Array,
    policy: Any,
    value: Callable[[Array], Array],
    batch: Transition,
) -> ActorOutput:
    """Loss of the policy on a batch; see the table above.

    Args:
        config: which.
        key: consumed.
        alpha: `float32[]`.
        policy: pi(.|s), batch shape `[B]`; what is differentiated.
        value: `action[B, D] -> Q(s, action)`, `float32[B]`.
        batch: `Transition[B]`.

    Returns:
        An `ActorOutput`.

    Raises:
        ValueError: if `mpo` is to sample from a reference that cannot.

    References:
        MPO: Abdolmaleki et al., "Maximum a Posteriori Policy Optimisation", ICLR 2018 (the policy is fitted without their
        trust region). ABM: Siegel et al., "Keep Doing What Worked", ICLR 2020. AWAC: Nair et al., "AWAC: Accelerating Online
        Reinforcement Learning with Offline Datasets", 2020, with the weights of CORL's implementation.
    """
    key, sample_key = jax.random.split(key)
    kl, action, raw, log_prob = kl_to_reference(config, key, policy, batch.reference)
    budgeted = jnp.mean(raw)
    if config.actor == "reparameterised":
        loss = alpha * kl - value(action)
    elif config.actor == "mpo":
        if not hasattr(batch.reference, "sample"):
            raise ValueError(
                f"actor='mpo' draws actions from the reference, and a {type(batch.reference).__name__} gives none; take a "
                "Gaussian one, or another actor."
            )
        samples = jax.vmap(_floored(config, batch.reference).sample)(jax.random.split(sample_key, config.mpo_samples))
        samples = jnp.clip(samples, -1.0, 1.0)
        log_weights = jax.nn.log_softmax(jax.lax.stop_gradient(jax.vmap(value)(samples)) / alpha, axis=0)
        weights = jnp.exp(log_weights)
        loss = -jnp.sum(weights * jax.vmap(policy.log_prob)(samples), axis=0)
        budgeted = jnp.mean(jnp.sum(weights * log_weights, axis=0)) + jnp.log(config.mpo_samples)
    else:
        loss = -policy.log_prob(batch.action)
        if config.actor == "advantage_weighted":
            advantage = value(batch.action) - value(action)
            weight = jnp.minimum(jnp.exp(advantage / alpha), config.advantage_weight_max)
            loss = jax.lax.stop_gradient(weight) * loss
    return ActorOutput(jnp.mean(loss), budgeted, jnp.mean(log_prob), jnp.mean(kl != raw), action)


def prior_loss(key: Array, prior: Any, policy: Any, value: Callable[[Array], Array], batch: Transition) -> Array:
    """ABM's advantage-filtered prior: `-mean 1[A(s,a) >= 0] log prior(a|s)`, `A = Q(s,a) - Q(s,a_pi)`, on replayed actions.

    Siegel et al. (2020), equation 4 with f the indicator. Difference: their advantage is an n-step return minus a state value;
    this one compares action values, with one sampled action of pi for the state value.
    """
    advantage = jax.lax.stop_gradient(value(batch.action) - value(policy.sample(key)))
    return -jnp.mean(jnp.where(advantage >= 0.0, prior.log_prob(batch.action), 0.0))


def kl_to_reference(
    config: KLRegularisedConfig, key: Array, distribution: Any, reference: Any
) -> tuple[Array, Array, Array, Array]:
    """KL(pi || pi_0) of a batch, sampled or analytic, guard rails applied.

    Sampled: `mean_k log pi(a_k|s) - log pi_0(a_k|s)`, `a_k ~ pi`, with the gradient through `a_k`. Of a `TanhNormal`
    against a `DiagonalNormal` the reference is not truncated to the box (as in the released code): pi_0 has mass at most 1
    there, so the expected value stays non-negative.

    Args:
        config: which, and how many samples.
        key: consumed.
        distribution: pi(.|s), batch shape `[B]`.
        reference: pi_0(.|s), batch shape `[B]`, or `()` for the base measure.

    Returns:
        The KL `[B]`; one action `[B, D]` of pi; the KL before `kl_clip`; and `log pi` of the actions, `[B]`.

    Raises:
        ValueError: if `kl="analytic"` and the two are of different kinds.
    """
    reference = _floored(config, reference)
    actions, log_probs = jax.vmap(distribution.sample_and_log_prob)(jax.random.split(key, config.kl_samples))
    log_prob = jnp.mean(log_probs, axis=0)
    if config.kl == "analytic":
        if type(distribution) is not type(reference):
            raise ValueError(
                f"kl='analytic' needs policy and reference of one kind, got {type(distribution).__name__} and "
                f"{type(reference).__name__}; set kl='sampled' or policy='normal'."
            )
        raw = distribution.kl(reference)
    else:
        raw = log_prob
        if len(reference):
            raw = raw - jnp.mean(jax.vmap(reference.log_prob)(actions), axis=0)
    return jnp.minimum(raw, config.kl_clip), actions[0], raw, log_prob


def _floored(config: KLRegularisedConfig, reference: Any) -> Any:
    """The reference with the guard rail `reference_std_floor`; one without standard deviations comes back as it is."""
    if not isinstance(reference, (DiagonalNormal, TanhNormal)):
        return reference
    floor = jnp.log(jnp.asarray(config.reference_std_floor, jnp.float32))
    return reference._replace(log_std=jnp.maximum(reference.log_std, floor))


def reference_metrics(config: KLRegularisedConfig, alpha: Array, action: Array, reference: Any) -> dict[str, Array]:
    """Percentiles of sigma_0, and of `alpha |d log pi_0(a|s) / d a|`, the part of the gradient that explodes."""
    if not isinstance(reference, (DiagonalNormal, TanhNormal)):
        return {}
    std = jnp.exp(reference.log_std)
    slope = jax.grad(lambda a: jnp.sum(_floored(config, reference).log_prob(a)))(action)
    norms = alpha * jnp.sqrt(jnp.sum(jnp.square(slope), axis=-1))
    low, middle, high = jnp.quantile(std, jnp.array([0.01, 0.5, 0.99]))
    return {
        "reference_std_p01": low,
        "reference_std_p50": middle,
        "reference_std_p99": high,
        "reference_std_floored": jnp.mean(std < config.reference_std_floor),
        "kl_gradient_p50": jnp.quantile(norms, 0.5),
        "kl_gradient_p99": jnp.quantile(norms, 0.99),
    }


def temperature(config: KLRegularisedConfig, log_alpha: Array) -> Array:
    """Alpha, the coefficient of the KL, `float32[]`: learned where `temperature` is a dual, else the config's."""
    return jnp.exp(log_alpha) if config.temperature in ("entropy", "kl") else jnp.asarray(config.alpha, jnp.float32)
