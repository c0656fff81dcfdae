"""High-confidence bounds: intervals that cover at every number of trajectories, from ranges that are known beforehand.

Means over trajectories of terms X_i that lie in a known range, `trajectory_is`, `pdis` and `doubly_robust`, have them:

| interval | range needed | note |
|---|---|---|
| "hoeffding" | both ends | worst |
| "empirical_bernstein" | both ends | Maurer and Pontil 2009 |
| "betting" | both ends | narrowest; reads trajectories one after the other, in an order drawn by `seed` unless `ordered` |
| "anderson" | for a lower bound the lower end, for an upper one the upper | bears heavy tails |

Ranges are what *can be*, not what was: they come from rewards and from `weight_max`, the largest weight that is possible. With
behaviour probabilities of at least p that is `p^-T`, and `p^-(t + 1)` for w_t: give an array `[T]` then. Bounds are as wide
as weights are large. A lower bound of returns that are not negative needs no largest weight in two ways: "anderson"; and
`truncation`, the c of `min(X_i, c)`, whose mean is below the value. c must not be chosen by the trajectories that the bound is
made from, but by others: Thomas et al. spend one in twenty on that. Where returns may be negative, shift rewards.

Reference: Thomas, Theocharous and Ghavamzadeh, "High-Confidence Off-Policy Evaluation", AAAI 2015, of which theorem 1 with one
truncation for all is empirical Bernstein with `truncation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import check_range, is_concrete
from jaxrl_off.ops import confidence_sequences, intervals
from jaxrl_off.types import Array

BOUNDED = ("hoeffding", "empirical_bernstein", "betting", "anderson")
_RANGED = {
    "hoeffding": intervals.hoeffding_interval,
    "empirical_bernstein": intervals.empirical_bernstein_interval,
    "anderson": intervals.anderson_interval,
}
_ROUNDING = 1e-6  # by how much, relatively, a weight may be above the largest one: that is float32's doing


class Known(NamedTuple):
    """What is known beforehand, as given.

    Attributes:
        name: of the range, as the caller calls it.
        range: (low, high), or None.
        weight_max: largest weight, `[]` or `[T]`, or None.
        truncation: c, or None.
    """

    name: str
    range: Sequence[float] | None
    weight_max: Any
    truncation: Any


class Limits(NamedTuple):
    """Ranges, least and greatest.

    Attributes:
        terms: of X.
        value: of the value.
        order: `int[n]`, in which "betting" reads trajectories; None for as they are.
    """

    terms: tuple[Array, Array]
    value: tuple[Array, Array]
    order: Array | None = None


def reading_order(interval: str, counts: Array, seed: int, ordered: bool) -> Array | None:
    """The order in which "betting" reads trajectories: drawn by the seed, not one that the data may have chosen (sorted files).

    Args:
        interval: name.
        counts: `float[n]`.
        seed: of the order.
        ordered: whether the order of trajectories is time, so that they are read as they are.
    """
    if interval != "betting" or ordered:
        return None
    return jax.random.permutation(jax.random.key(seed), len(counts))


def check_known(known: Known, clip: Any, settings: Any, counts: Any) -> None:
    """Refuse an interval for which too little is known.

    Args:
        known: as given.
        clip: largest ratio of a step, or None.
        settings: `level`, `sides` and `interval` of `statistics.Settings`.
        counts: as given.

    Raises:
        ValueError: if a range is invalid or missing, or "betting" is given counts above 1.
    """
    name, given, weight_max, truncation = known
    if weight_max is not None and is_concrete(weight_max) and not (np.asarray(weight_max) >= 1.0).all():
        raise ValueError(f"weight_max must be at least 1, as weights are 1 on average, got {weight_max}.")
    if truncation is not None and is_concrete(truncation) and not 0.0 < truncation < math.inf:
        raise ValueError(f"truncation must be positive and finite, got {truncation}.")
    if given is not None:
        check_range(name, given, infinite=True)
    if settings.level is None:
        return
    if truncation is not None and settings.sides != "lower":
        raise ValueError('the mean of truncated terms is below the value: with truncation, sides must be "lower".')
    if settings.interval not in BOUNDED:
        return
    if given is None:
        raise ValueError(f"interval={settings.interval!r} needs a known range: {name} was not given.")
    if settings.interval == "betting" and counts is not None and is_concrete(counts) and (np.asarray(counts) > 1).any():
        raise ValueError(
            "interval='betting' takes trajectories one after the other: counts must be 0 or 1; repeat them."
        )
    if not is_concrete(given, weight_max):
        return
    endless = clip is None and (weight_max is None or bool(np.isinf(weight_max).any()))
    one_sided = settings.sides if settings.interval == "anderson" else "two"
    if given[0] < 0 and endless and one_sided != "upper":
        raise ValueError(
            f"interval={settings.interval!r} needs a known range: {name} goes below 0 and weights have no largest. Give "
            "weight_max; or, for trajectory_is and pdis, shift rewards until they are not negative."
        )
    if (math.isinf(given[1]) or endless) and given[1] > 0 and truncation is None and one_sided != "lower":
        raise ValueError(
            f"interval={settings.interval!r} needs a known range: {name} has no end, or goes above 0 where weights have no "
            'largest. Give weight_max; or, for a lower bound, truncation, or interval="anderson" with sides="lower".'
        )


def largest_weights(log_weight: Array, shown: Array, weight_max: Any, window: int | None, clip: Any) -> Array:
    """What w_t can be at most, `float64[T]`; infinite where that is not known.

    Args:
        log_weight: `float64[n, T]`, of the data, before the clip.
        shown: `bool[n, T]`, which of them are looked at.
        weight_max: as given.
        window: of the weights.
        clip: largest ratio, or None.

    Raises:
        ValueError: for a weight_max of another shape, or below a weight of the data.
    """
    horizon = log_weight.shape[1]
    if weight_max is not None and jnp.shape(weight_max) not in ((), (horizon,)):
        raise ValueError(f"weight_max has shape {jnp.shape(weight_max)}; one number or [{horizon}] is allowed.")
    largest = jnp.full(horizon, jnp.inf if weight_max is None else jnp.asarray(weight_max, jnp.float64))
    if is_concrete(log_weight, shown, weight_max):
        above = shown & (log_weight > jnp.log(largest) + _ROUNDING)
        if bool(jnp.any(above)):
            row, step = np.argwhere(np.asarray(above))[0]
            raise ValueError(
                f"weight_max is what weights can be at most; that of step {step} of trajectory {row} is "
                f"{float(jnp.exp(log_weight[row, step])):g}, and {float(largest[step]):g} was given."
            )
    if clip is not None:
        ratios = jnp.minimum(jnp.arange(1, horizon + 1), horizon if window is None else window)
        largest = jnp.minimum(largest, jnp.maximum(jnp.asarray(clip, jnp.float64), 1.0) ** ratios)
    return largest


def check_within(known: Known, values: Array, shown: Array) -> None:
    """Refuse data outside their range.

    Raises:
        ValueError: naming the first.
    """
    if not is_concrete(known.range, values, shown):
        return
    low, high = known.range
    slack = _ROUNDING * max(abs(x) for x in (low, high) if math.isfinite(x))
    outside = np.asarray(shown & ~((values >= low - slack) & (values <= high + slack)))
    if outside.any():
        place = tuple(int(x) for x in np.argwhere(outside)[0])
        raise ValueError(
            f"{known.name} is what can be, [{low:g}, {high:g}]; at {place} there is {float(values[place]):g}, and "
            f"{int(outside.sum())} are outside. Give the range that holds for all."
        )


def discounted(discounts: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """Range of `sum_t gamma^t x_t`, each x_t between its ends, which may be infinite, `[T]`."""
    return tuple(jnp.sum(jnp.where(discounts > 0, discounts * x, 0.0)) for x in ends)


def product(given: Sequence[Any], largest: Array) -> tuple[Array, Array]:
    """Range of a weight in [0, largest] times a number of the given range; largest may be infinite."""
    low, high = (jnp.asarray(x, jnp.float64) for x in given)
    return (
        jnp.where(low < 0, low * jnp.where(low < 0, largest, 1.0), 0.0),
        jnp.where(high > 0, high * jnp.where(high > 0, largest, 1.0), 0.0),
    )


def interval_of(
    kind: str, terms: Array, counts: Array, limits: Limits, *, level: Array | float, sides: str
) -> intervals.Interval:
    """One of `BOUNDED` for the mean of terms `[n]`, within what the value can be."""
    low, high = limits.terms
    terms = jnp.clip(terms, low, high)
    shared = dict(minimum=low, maximum=high, level=level, sides=sides)
    if kind == "betting":
        if limits.order is not None:
            terms, counts = terms[limits.order], counts[limits.order]
        found = confidence_sequences.betting_interval(terms, counts > 0, **shared)
    else:
        found = _RANGED[kind](terms, counts, **shared)
    # the end that was not asked for is that of truncated terms
    found = intervals.within(found, True, sides)
    lower, upper = (jnp.clip(x, *limits.value) for x in found)
    # bounds that cross say that the trajectories are no independent draws: then nothing is known
    crossed = lower > upper
    return intervals.Interval(jnp.where(crossed, limits.value[0], lower), jnp.where(crossed, limits.value[1], upper))
