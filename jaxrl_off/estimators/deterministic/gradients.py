"""Gradients of kernelised values: the sums that `estimates` lists, their errors and their intervals.

A gradient is a statistic `counts [n] -> [P]` of whole trajectories, as values are, and so has everything that these have:
errors by the infinitesimal jackknife, intervals from them or by resampling trajectories, for each parameter by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import effective_size, standard_error
from jaxrl_off.estimators.deterministic.nuisances import Nuisances
from jaxrl_off.estimators.trajectory.statistics import Settings, Statistic
from jaxrl_off.estimators.trajectory.steps import (
    Steps,
    held,
    quotient,
    scaled_weights,
    weight_diagnostics,
    weights_of,
)
from jaxrl_off.estimators.trajectory.weights import forms as means
from jaxrl_off.ops import intervals
from jaxrl_off.types import Array, PyTree


class GradientEstimate(NamedTuple):
    """A gradient of a policy's value; float64.

    Attributes:
        value: as the parameters.
        standard_error: as the parameters, of each one; infinite where something was not finite.
        lower: as the parameters, bounds of each one by itself, or None where no level was asked.
        upper: likewise.
        covariance: `[P, P]` of the estimate, parameters in the order of `jax.flatten_util.ravel_pytree`.
        effective_sample_size: as of `Estimate`, of the last weights.
        diagnostics: as of `estimates.evaluate`; `finite` is 1 where all components are finite.
    """

    value: PyTree
    standard_error: PyTree
    lower: PyTree | None
    upper: PyTree | None
    covariance: Array
    effective_sample_size: Array
    diagnostics: dict[str, Array]


def estimate_gradient(
    statistic: Statistic,
    steps: Steps,
    log_weight: Array,
    settings: Settings,
    *,
    diagnostics: dict[str, Array] | None = None,
    size: int | None = None,
) -> GradientEstimate:
    """A `GradientEstimate` with vectors `[P]` in the place of parameters; see `statistics.estimate_statistic`.

    Args:
        statistic: `counts [n] -> gradient [P]`, differentiable, a function of the shares `counts / sum(counts)`.
        steps: columns; their counts are those of the data.
        log_weight: `float64[n]`, of the weights that say how many trajectories count.
        settings: of `statistics.settings_of`.
        diagnostics: further ones.
        size: as there.
    """
    counts, total = steps.counts, jnp.sum(steps.counts)
    value, slope = statistic(counts), jax.jacrev(statistic)(counts)
    finite = jnp.isfinite(value) & jnp.all(jnp.where(counts > 0, jnp.isfinite(slope), True), axis=1)
    influence = jnp.where((counts > 0) & finite[:, None], total * slope, 0.0)
    centred = influence - (influence @ counts / total)[:, None]
    covariance = (centred * counts) @ centred.T / (total * jnp.maximum(total - 1.0, 1.0))
    error = jnp.where(finite, jax.vmap(standard_error, (None, 0))(counts, influence), jnp.inf)
    lower = upper = None
    if settings.level is not None:
        lower, upper = _bounds(statistic, value, centred, counts, settings, size)
        lower, upper = jnp.where(finite, lower, -jnp.inf), jnp.where(finite, upper, jnp.inf)
    effective = effective_size(counts, scaled_weights(log_weight, counts))
    found = weight_diagnostics(steps, log_weight) | {
        "below_floor": (effective < settings.floor).astype(counts.dtype),
        "finite": jnp.all(finite).astype(counts.dtype),
    }
    return GradientEstimate(value, error, lower, upper, covariance, effective, found | (diagnostics or {}))


def restored(found: GradientEstimate, restore: Callable[[Array], PyTree]) -> GradientEstimate:
    """The same with what belongs to parameters as these are."""
    names = ("value", "standard_error", "lower", "upper")
    columns = {name: getattr(found, name) for name in names}
    return found._replace(**{name: None if x is None else restore(x) for name, x in columns.items()})


def _bounds(
    statistic: Statistic, value: Array, centred: Array, counts: Array, settings: Settings, size: int | None
) -> intervals.Interval:
    """Ends `[P]`."""
    shared = dict(level=settings.level, sides=settings.sides)
    if settings.interval in ("bootstrap", "bca"):
        method = intervals.percentile_interval if settings.interval == "bootstrap" else intervals.bca_interval
        key = jax.random.key(settings.seed)

        def one(place: Array) -> intervals.Interval:  # resamples are drawn once for all
            resampled = dict(resamples=settings.resamples, size=size)
            return method(key, lambda counts: statistic(counts)[place], counts, **resampled, **shared)

        return jax.vmap(one)(jnp.arange(len(value)))
    method = intervals.normal_interval if settings.interval == "normal" else intervals.student_t_interval
    return jax.vmap(lambda terms: method(terms, counts, **shared))(value[:, None] + centred)


def gradient_statistic(
    steps: Steps,
    scores: Array,
    log_weight: Array,
    nuisances: Nuisances,
    *,
    weights: str,
    valued: bool,
    normalised: bool,
) -> Statistic:
    """`counts [n] -> gradient [P]`; see `estimates` for the sums.

    Args:
        steps: columns.
        scores: `float64[n, T, P]`, g_t.
        log_weight: `float64[n, T]`, log lambda_t or log mu_t.
        nuisances: 0 in the padding; derivatives that are not needed `[1, 1, 1]`.
        weights: "cumulative", "marginal" or "none".
        valued: whether it is the gradient of a value; else `sum_t gamma^t weight_t g_t q_t`.
        normalised: whether weights are divided by their means.
    """
    q, v, q_slope, v_slope = nuisances.q, nuisances.v, nuisances.q_gradient, nuisances.v_gradient
    if weights == "none":
        return lambda counts: counts @ v_slope[:, 0] / jnp.sum(counts)
    if not valued:
        # with weights that are only divided, not derived
        weight = scaled_weights(log_weight, steps.counts) if normalised else weights_of(log_weight)
        terms = steps.discounts[:, None] * (weight * q)[..., None] * scores
        if not normalised:
            return _mean_of(jnp.sum(terms, axis=1))
        return lambda counts: jnp.sum(
            quotient(jnp.tensordot(counts, terms, axes=1), (counts @ weight)[:, None]), axis=0
        )
    weight, derivative = _weights_and_derivatives(steps, scores, log_weight, nuisances, weights, normalised)
    errors = weight * (steps.rewards - q)
    derived = derivative * (steps.rewards - q)[..., None] - weight[..., None] * q_slope
    before, derivative_before = means.before(weight, 1.0), means.before(derivative, 0.0)
    values = before * v
    values_derived = before[..., None] * v_slope + derivative_before * v[..., None]
    if not normalised:
        return _mean_of(jnp.einsum("t,ntp->np", steps.discounts, derived + values_derived))

    def statistic(counts: Array) -> Array:
        shares = counts / jnp.sum(counts)
        total, total_slope = shares @ weight, jnp.tensordot(shares, derivative, axes=1)
        total_before = jnp.concatenate([jnp.ones(1), total[:-1]])
        slope_before = jnp.concatenate([jnp.zeros_like(total_slope[:1]), total_slope[:-1]])
        parts = _quotient_rule(shares @ errors, jnp.tensordot(shares, derived, axes=1), total, total_slope)
        parts += _quotient_rule(
            shares @ values, jnp.tensordot(shares, values_derived, axes=1), total_before, slope_before
        )
        return steps.discounts @ parts

    return statistic


def _mean_of(terms: Array) -> Statistic:
    return lambda counts: counts @ terms / jnp.sum(counts)


def _weights_and_derivatives(
    steps: Steps, scores: Array, log_weight: Array, nuisances: Nuisances, weights: str, normalised: bool
) -> tuple[Array, Array]:
    """mu_t and d_t, or lambda_t and lambda_t G_t; up to a factor in each step where they are to be normalised."""
    if weights == "cumulative":
        base, factor, slope = log_weight, 1.0, jnp.cumsum(scores, axis=1)
    else:  # mu itself is no factor of d where w = 0
        ratio = nuisances.ratio
        slope = nuisances.ratio_gradient + ratio[..., None] * scores
        base, factor = (held(column, steps.mask) for column in (steps.log_ratio, ratio))
        slope = jax.vmap(held, (-1, None), -1)(slope, steps.mask)
    weight = scaled_weights(base, steps.counts) if normalised else weights_of(base)
    return weight * factor, weight[..., None] * slope


def _quotient_rule(numerator: Array, slope: Array, denominator: Array, denominator_slope: Array) -> Array:
    """The derivative `[T, P]` of `numerator / denominator [T]`."""
    inverse = quotient(jnp.ones_like(denominator), denominator)[:, None]
    return inverse * (slope - numerator[:, None] * inverse * denominator_slope)
