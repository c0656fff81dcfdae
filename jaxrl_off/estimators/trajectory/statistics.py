"""From a statistic of whole trajectories to an `Estimate`.

A trajectory counts `c_i` times (1, or 0 for padding, or what a resample drew). An estimator is a statistic `c -> V(c)` that
depends on the shares `c / sum c` alone, and everything else follows from it:

* value: V(1);
* standard error: the infinitesimal jackknife, `sqrt(sum_i u_i^2 / (N (N - 1)))` with the influence `u_i = N dV / dc_i` less its
  mean (Efron and Tibshirani 1993, 21.2): the delta method, whatever the statistic solves within;
* intervals: normal and Student t intervals of the influence terms; or bootstrap and BCa, which compute the statistic anew for
  every resample of whole trajectories; or, for means of terms of known range, the intervals of `bounds`, which cover at every
  number of trajectories.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import (
    check_level,
    did_you_mean,
    effective_size,
    is_concrete,
    named_options,
    padded_size,
    standard_error,
    weighted_mean,
)
from jaxrl_off.estimators.trajectory import bounds
from jaxrl_off.estimators.trajectory.steps import Steps, quotient, scaled_weights, weight_diagnostics
from jaxrl_off.ops import intervals
from jaxrl_off.types import Array, Estimate

RESAMPLED = ("bootstrap", "bca")


ASYMPTOTIC = ("student_t", "normal", *RESAMPLED)


INTERVALS = (*ASYMPTOTIC, *bounds.BOUNDED)


Statistic = Callable[[Array], Array]


class Settings(NamedTuple):
    """What is asked of an estimator; hashable.

    Attributes:
        level: of confidence, or None for an estimate alone.
        sides: "two", "lower" or "upper".
        interval: one of `INTERVALS`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        floor: effective sample size below which `diagnostics["below_floor"]` is 1.
    """

    level: float | None = None
    sides: str = "two"
    interval: str = "student_t"
    resamples: int = 1000
    seed: int = 0
    floor: float = 10.0

    @property
    def drawn(self) -> bool:
        """Whether the interval is from resamples."""
        return self.level is not None and self.interval in RESAMPLED


@named_options
def settings_of(
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
    *,
    bounded: bool = False,
) -> Settings:
    """Checked settings: the fields of `Settings`.

    Args:
        level: of confidence, or None.
        sides: "two", "lower" or "upper".
        interval: one of `INTERVALS`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        floor: effective sample size below which `diagnostics["below_floor"]` is 1.
        bounded: whether the estimator is a mean of terms, whose range may be known.

    Raises:
        ValueError: if a setting is invalid.
    """
    settings = Settings(level, sides, interval, resamples, seed, floor)
    check_level(settings.level, settings.sides)
    if settings.interval not in INTERVALS:
        hint = did_you_mean(str(settings.interval), INTERVALS)
        raise ValueError(f"interval must be one of {', '.join(INTERVALS)}, got {settings.interval!r}.{hint}")
    if settings.interval in bounds.BOUNDED and not bounded:
        raise ValueError(
            f"interval={settings.interval!r} is for means of terms of known range: trajectory_is, pdis and doubly_robust. "
            f"Here {', '.join(ASYMPTOTIC)} are allowed."
        )
    if settings.resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {settings.resamples}.")
    if not settings.floor >= 0:
        raise ValueError(f"floor must be a number of trajectories, 0 or more, got {settings.floor}.")
    return settings


def estimate_statistic(
    statistic: Statistic,
    steps: Steps,
    log_weight: Array,
    settings: Settings,
    *,
    diagnostics: dict[str, Array] | None = None,
    size: int | None = None,
    limits: bounds.Limits | None = None,
) -> Estimate:
    """An `Estimate` of a statistic of whole trajectories; see the module.

    Args:
        statistic: `counts [n] -> value []`, differentiable, a function of the shares `counts / sum(counts)`.
        steps: columns; their counts are those of the data.
        log_weight: `float64[n]`, of the weights that say how many trajectories count.
        settings: of `settings_of`.
        diagnostics: further ones.
        size: most trajectories that a resample has to hold; None for n, right where counts are 0 or 1.
        limits: ranges for intervals of `bounds`; the statistic is a mean of terms then.

    Returns:
        An `Estimate`. Its effective sample size is in trajectories. Diagnostics: those of `weight_diagnostics`, `below_floor`,
        `finite` (whether the value is a number; otherwise it is NaN, and the interval infinite), and the further ones. Where
        `no_overlap` is 1, the interval is what the value can be: `limits.value`, or everything.
    """
    counts = steps.counts
    total = jnp.sum(counts)
    value, slope = jax.value_and_grad(statistic)(counts)
    finite = jnp.isfinite(value) & jnp.all(jnp.where(counts > 0, jnp.isfinite(slope), True))
    influence = jnp.where((counts > 0) & finite, total * slope, 0.0)
    error = jnp.where(finite, standard_error(counts, influence), jnp.inf)
    lower = upper = None
    if settings.level is not None:
        lower, upper = _interval(statistic, value, influence, counts, settings, size, limits)
        lower, upper = jnp.where(finite, lower, -jnp.inf), jnp.where(finite, upper, jnp.inf)
    effective = effective_size(counts, scaled_weights(log_weight, counts))
    found = weight_diagnostics(steps, log_weight)
    if lower is not None and upper is not None:
        lower, upper = without_overlap(lower, upper, found["no_overlap"], settings.sides, limits)
    found |= {
        "below_floor": (effective < settings.floor).astype(counts.dtype),
        "finite": finite.astype(counts.dtype),
    }
    value = jnp.where(finite, value, jnp.nan)
    return Estimate(value, error, lower, upper, effective, found | (diagnostics or {}))


def without_overlap(
    lower: Array, upper: Array, no_overlap: Array, sides: str, limits: bounds.Limits | None = None
) -> tuple[Array, Array]:
    """An interval, or where most of what the target does is missing from the log, all that the value can be."""
    low, high = (-jnp.inf, jnp.inf) if limits is None else limits.value
    lower = jnp.where((no_overlap > 0) & (sides != "upper"), jnp.minimum(lower, low), lower)
    upper = jnp.where((no_overlap > 0) & (sides != "lower"), jnp.maximum(upper, high), upper)
    return lower, upper


def _interval(
    statistic: Statistic,
    value: Array,
    influence: Array,
    counts: Array,
    settings: Settings,
    size: int | None,
    limits: bounds.Limits | None,
) -> intervals.Interval:
    shared = dict(level=settings.level, sides=settings.sides)
    if settings.interval in RESAMPLED:
        method = intervals.percentile_interval if settings.interval == "bootstrap" else intervals.bca_interval
        key = jax.random.key(settings.seed)
        drawn = method(key, statistic, counts, resamples=settings.resamples, size=size, **shared)
        known = jnp.all(counts == jnp.floor(counts)) & ~jnp.isnan(drawn.lower + drawn.upper)
        return intervals.within(drawn, known, settings.sides)
    terms = value + influence - weighted_mean(counts, influence)
    if settings.interval in bounds.BOUNDED:
        return bounds.interval_of(settings.interval, terms, counts, limits, **shared)
    method = intervals.normal_interval if settings.interval == "normal" else intervals.student_t_interval
    return method(terms, counts, **shared)


def resample_size(counts: Any, *, drawn: bool = False) -> int | None:
    """Room that resamples need for these counts; None where each is 0 or 1, or where they are not known yet.

    Args:
        counts: as given.
        drawn: whether there are resamples, as `Settings.drawn` says.

    Raises:
        ValueError: for counts that are not whole where there are.
    """
    if counts is None or not is_concrete(counts):
        return None
    broken = np.not_equal(counts, np.floor(counts))
    if drawn and broken.any():
        raise ValueError(
            "resamples are drawn from whole trajectories, and counts must be whole numbers for them; row "
            f"{int(np.argmax(broken))} has {np.asarray(counts)[broken][0]:g}. Take interval='student_t' or 'normal'."
        )
    return max(len(counts), padded_size(int(np.ceil(np.sum(counts)))))


@functools.partial(jax.jit, static_argnames=("method", "settings", "size"))
def run(
    columns: Any,
    *,
    method: Callable[[Any, Array], tuple[Array, Array, dict[str, Array]]],
    settings: Settings,
    size: int | None,
) -> Estimate:
    """An `Estimate` of a method, a function of a module and not a closure: it is compiled once.

    Args:
        columns: checked.
        method: `(columns, counts) -> (value, weights, diagnostics)`, where `weights float64[n, T]` are those that the
            rewards of one copy of a trajectory have in the value.
        settings: of `statistics.settings_of`.
        size: of `statistics.resample_size`.

    Returns:
        An `Estimate` whose effective sample size is that of the trajectories' sums of weights.
    """
    counts = columns.steps.counts
    _, weights, diagnostics = method(columns, counts)
    weight = jnp.maximum(jnp.sum(weights, axis=1), 0.0)
    weight = quotient(weight, weighted_mean(counts, weight))
    log_weight = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), -jnp.inf)
    return estimate_statistic(
        lambda c: method(columns, c)[0], columns.steps, log_weight, settings, diagnostics=diagnostics, size=size
    )
