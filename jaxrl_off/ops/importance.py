"""Importance ratios between the current and the behaviour policy, and what they are worth."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxrl_off.types import Array


def importance_ratio(log_prob: Array, behaviour_log_prob: Array, *, log_clip: float = 10.0) -> Array:
    """Ratio `pi(a|s) / pi_t(a|s)` from log-probabilities, with its logarithm clipped so that it stays finite.

    Args:
        log_prob: `float[...]`, log pi(a|s). Differentiable.
        behaviour_log_prob: `float[...]`, log pi_t(a|s) as stored at act time.
        log_clip: bound on the absolute log-ratio; 10 as the authors' code of Divergence-Augmented Policy Optimization
            (absent from their paper). `jnp.inf` turns it off.

    Returns:
        `float[...]`, `exp(clip(log pi - log pi_t, -log_clip, log_clip))`. The gradient is zero where clipped.
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    return jnp.exp(jnp.clip(log_prob - behaviour_log_prob, -log_clip, log_clip))


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` where `mask` is set; 0 where nothing is. Both `[...]`, the result is a scalar.

    What is not selected may be infinite or NaN; neither the mean nor its gradient sees it.
    """
    chex.assert_equal_shape([values, mask])
    selected = mask.astype(bool)
    return jnp.sum(jnp.where(selected, values, 0.0)) / jnp.maximum(jnp.sum(selected), 1)


def effective_sample_size(weights: Array, mask: Array | None = None) -> Array:
    """Kish's effective sample size as a share of the sample, `(sum w)^2 / (n sum w^2)`, in `[0, 1]`.

    Args:
        weights: `float[...]`, non-negative importance weights.
        mask: `bool[...]` or None, which of them count.

    Returns:
        `float[]`: 1 for equal weights, `1/n` when one weight dominates, 0 for an empty sample or when all weights are 0.

    Reference: Fakoor, Chaudhari, Smola, "P3O: Policy-on Policy-off Policy Optimization", UAI 2019, eq. 9.

    Example:
        >>> float(effective_sample_size(jnp.array([1.0, 1.0, 0.0, 0.0])))
        0.5
    """
    selected = jnp.ones(weights.shape, bool) if mask is None else mask.astype(bool)
    chex.assert_equal_shape([weights, selected])
    weights = jnp.where(selected, weights, 0.0)
    largest = jnp.max(weights, initial=0.0)
    scaled = weights / jnp.where(largest > 0, largest, 1.0)  # squares of very large or small weights leave float32
    squares = jnp.sum(jnp.square(scaled))
    share = jnp.square(jnp.sum(scaled)) / jnp.where(squares > 0, jnp.sum(selected) * squares, 1.0)
    return jnp.where(squares > 0, share, 0.0)
