"""Estimators of the form `mean(a) + sum(b) / sum(d)`: their standard errors and intervals; `weighted` says which they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.common import (
    check_level,
    effective_size,
    is_concrete,
    standard_error,
    weighted_mean,
)
from jaxrl_off.ops import confidence_sequences, intervals
from jaxrl_off.types import Array, Estimate

ASYMPTOTIC = ("normal", "student_t", "bootstrap", "bca")
BOUNDED = ("hoeffding", "empirical_bernstein", "clopper_pearson", "betting")
_RANGED = {
    "hoeffding": intervals.hoeffding_interval,
    "empirical_bernstein": intervals.empirical_bernstein_interval,
    "clopper_pearson": functools.partial(intervals.clopper_pearson_interval, round_outwards=False),
}


class Terms(NamedTuple):
    """Columns of an estimator.

    Attributes:
        mean: `float[n]`, a.
        numerator: `float[n]`, b, or None without a ratio.
        denominator: `float[n]`, d, or None.
        weights: `float[n]`, the weights that rewards end up with, for diagnostics.
        range: least and greatest a, where there is no ratio; None if they are not known.
        needs_weights: whether a log without any weight says nothing about the value.
    """

    mean: Array
    numerator: Array | None
    denominator: Array | None
    weights: Array
    range: tuple[Array, Array] | None
    needs_weights: Array | bool = True


class Settings(NamedTuple):
    """What is asked for; static.

    Attributes:
        level: of confidence, or None.
        sides: "two", "lower" or "upper".
        interval: its kind.
        resamples: of the bootstrap.
        seed: of the bootstrap, and of the order in which "betting" reads rows.
        ordered: whether the order of rows is time, so that "betting" reads them as they are.
    """

    level: float | None
    sides: str
    interval: str
    resamples: int
    seed: int
    ordered: bool = False


def settings_of(
    level: float | None,
    sides: str,
    interval: str,
    resamples: int,
    seed: int,
    why_unbounded: str | None,
    ordered: bool = False,
) -> Settings:
    """Checked settings.

    Args:
        level: as given.
        sides: as given.
        interval: as given.
        resamples: as given.
        seed: as given.
        why_unbounded: why there is no range of terms that an interval could use, or None if there is one.
        ordered: as given.

    Raises:
        ValueError: for invalid settings.
    """
    check_level(level, sides)
    if interval not in (*ASYMPTOTIC, *BOUNDED):
        raise ValueError(f"interval must be one of {', '.join((*ASYMPTOTIC, *BOUNDED))}, got {interval!r}.")
    if level is not None and interval in BOUNDED and why_unbounded:
        raise ValueError(f"interval={interval!r} needs a known range: {why_unbounded}; use {', '.join(ASYMPTOTIC)}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    if ordered and interval != "betting":
        raise ValueError(
            f"ordered=True is for interval='betting', the only one that depends on the order; got {interval!r}."
        )
    return Settings(level, sides, interval, resamples, seed, ordered)


def unbounded(weight_range: Sequence[float] | None, largest: Any, ratio: bool) -> str | None:
    """Why terms have no known range, for `settings_of`; `largest` is what weights can be at most."""
    if ratio:
        return "the estimator is a ratio"
    if not is_concrete(largest) or not math.isinf(largest):
        return None
    return "weight_range was not given" if weight_range is None else "weight_range is infinite"


@functools.partial(jax.jit, static_argnames=("settings", "size"))
def estimate_terms(
    counts: Array, weights: Array, terms: Terms, reward_range: tuple[Array, Array], *, settings: Settings, size: int
) -> Estimate:
    """The estimate, its standard error, and the interval that was asked for, cut to the reward range; that of terms whose
    weights were changed, to their own.

    One rule for values and intervals: the value is never cut, and `lower <= value <= upper`. The interval is cut to the range;
    it is the whole range if it would lie outside it or if no row has any weight; and where the value is outside the interval,
    the interval is stretched to it (`diagnostics["stretched"]` is 1).

    Args:
        counts: `float[n]`.
        weights: `float[n]`, before anything was done to them.
        terms: columns.
        reward_range: of the rewards, which the value cannot leave.
        settings: of `settings_of`.
        size: most observations that a bootstrap resample has to hold.
    """

    def statistic(counts: Array) -> Array:
        value = weighted_mean(counts, terms.mean)
        if terms.numerator is None:
            return value
        total = jnp.sum(counts * terms.denominator)
        ratio = jnp.sum(counts * terms.numerator) / jnp.where(total > 0, total, 1.0)
        return value + jnp.where(total > 0, ratio, jnp.nan)

    value, influence = statistic(counts), terms.mean
    if terms.numerator is not None:
        scale = weighted_mean(counts, terms.denominator)
        ratio = value - weighted_mean(counts, terms.mean)
        influence += ratio + (terms.numerator - ratio * terms.denominator) / jnp.where(scale > 0, scale, 1.0)
    diagnostics = common.weight_diagnostics(counts, weights)
    changed = jnp.abs(weights - terms.weights) > 1e-12 * jnp.maximum(weights, 1.0)
    total_weight = jnp.sum(counts * weights)
    lost = jnp.sum(counts * jnp.maximum(weights - terms.weights, 0.0))
    diagnostics |= {
        "clipped_rows": weighted_mean(counts, changed.astype(weights.dtype)),
        "clipped_weight": lost / jnp.where(total_weight > 0, total_weight, 1.0),
    }
    lower = upper = None
    if settings.level is not None:
        drawn = _interval(counts, statistic, influence, terms, settings, size)
        # the mean of terms whose weights were changed may be outside the reward range
        free = (-jnp.inf, jnp.inf) if terms.range is None else terms.range
        touched = jnp.any(changed & (counts > 0))
        limits = [jnp.where(touched, own, plain) for own, plain in zip(free, reward_range, strict=True)]
        lower, upper = (jnp.clip(x, *limits) for x in drawn)
        # no estimate, no overlap, or an interval wholly outside what is possible: the data say nothing within the range
        needs_weights = terms.needs_weights & (diagnostics["no_overlap"] > 0)
        silent = jnp.isnan(value) | needs_weights | (drawn.lower > limits[1]) | (drawn.upper < limits[0])
        lower, upper = (
            jnp.where(silent | jnp.isnan(x), end, x) for end, x in zip(reward_range, (lower, upper), strict=True)
        )
        # the value is not cut: the interval is stretched to hold it
        diagnostics["stretched"] = ((value < lower) | (value > upper)).astype(counts.dtype)
        lower, upper = (
            jnp.where(jnp.isnan(value), x, f(x, value)) for x, f in ((lower, jnp.minimum), (upper, jnp.maximum))
        )
    error = standard_error(counts, influence)
    return Estimate(value, error, lower, upper, effective_size(counts, terms.weights), diagnostics)


def _interval(
    counts: Array, statistic: Any, influence: Array, terms: Terms, settings: Settings, size: int
) -> intervals.Interval:
    shared = dict(level=settings.level, sides=settings.sides)
    kind = settings.interval
    if kind in ("bootstrap", "bca"):
        method = intervals.percentile_interval if kind == "bootstrap" else intervals.bca_interval
        key = jax.random.key(settings.seed)
        return method(key, statistic, counts, resamples=settings.resamples, size=size, **shared)
    if kind in ("normal", "student_t"):
        method = intervals.normal_interval if kind == "normal" else intervals.student_t_interval
        return method(influence, counts, **shared)
    low, high = terms.range
    if kind == "betting":
        # rows may have been sorted by what they say; an order drawn by the seed knows nothing of it
        order = jnp.arange(len(counts))
        order = order if settings.ordered else jax.random.permutation(jax.random.key(settings.seed), order)
        return confidence_sequences.betting_interval(
            terms.mean[order], counts[order] > 0, minimum=low, maximum=high, **shared
        )
    return _RANGED[kind](terms.mean, counts, minimum=low, maximum=high, **shared)
