"""Confidence intervals for the mean of independent observations, and for any statistic of them by the bootstrap.

What covers at all N at once is in `confidence_sequences`.

Shared convention. `values` is `float64[n]` and `counts` is `float64[n]`, how often each was observed, or None for once
each; N = sum of counts. A row of count 0 is padding: nothing depends on its value, not even if it is NaN. `level` is
the probability that the interval covers; `sides` is "two", or "lower" or "upper" for that bound alone: the other end is
then that of the known range, or infinite. delta is the probability that a bound is wrong: `(1 - level) / 2` with two
sides, `1 - level` with one. All results are `Interval(lower, upper)`, within the known range where there is one.

| function | covers | needs |
|---|---|---|
| `normal_interval`, `student_t_interval` | as N grows; Student t: exactly for normal values | a finite variance |
| `percentile_interval`, `bca_interval` | as N grows, with errors O(N^-1/2) and O(N^-1) a side | a smooth statistic |
| `hoeffding_interval`, `empirical_bernstein_interval` | at every N | a known range |
| `anderson_interval` | at every N | the end of the range on the side of the bound |
| `clopper_pearson_interval` | at every N, if all values are at an end of the range; else customary | a known range |

All are pure, jittable and vmappable, and want float64 (`with jax.enable_x64(True)`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.ops.chunked import chunked_map
from jaxrl_off.ops.quantiles import beta_quantile, student_t_quantile
from jaxrl_off.types import Array


class Interval(NamedTuple):
    """A confidence interval, or a sequence of them.

    Attributes:
        lower: `float64[...]`.
        upper: `float64[...]`.
    """

    lower: Array
    upper: Array


def normal_interval(
    values: Array, counts: Array | None = None, *, level: Array | float = 0.95, sides: str = "two"
) -> Interval:
    """`mean +- z_delta s / sqrt(N)`, s^2 the unbiased sample variance. Asymptotic.

    Args:
        values: `float64[n]`.
        counts: `float64[n]` or None.
        level: in (0, 1).
        sides: "two", "lower" or "upper".

    Returns:
        `Interval` of `float64[]`; infinite when N < 2. The caller may clip it to a known range.

    Raises:
        ValueError: `level` or `sides` is none of these.
    """
    delta = error_probability(level, sides)
    total, mean, variance = _moments(values, counts)
    return _around(mean, -jax.scipy.special.ndtri(delta) * _safe_sqrt(variance / total), total >= 2.0, sides)


def student_t_interval(
    values: Array, counts: Array | None = None, *, level: Array | float = 0.95, sides: str = "two"
) -> Interval:
    """`mean +- t_{delta, N - 1} s / sqrt(N)`, s^2 the unbiased variance. Exact for normal values, else asymptotic.

    Args, Returns and Raises: as `normal_interval`.

    Example:
        >>> with jax.enable_x64(True):
        ...     lower, upper = student_t_interval(jnp.array([1.0, 2.0, 3.0]), level=0.9)
        ...     print(f"{lower:.6f} {upper:.6f}")
        0.314146 3.685854
    """
    delta = error_probability(level, sides)
    total, mean, variance = _moments(values, counts)
    quantile = student_t_quantile(delta, jnp.maximum(total - 1.0, 1.0))
    return _around(mean, quantile * _safe_sqrt(variance / total), total >= 2.0, sides)


def hoeffding_interval(
    values: Array,
    counts: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """`mean +- (maximum - minimum) sqrt(log(1 / delta) / (2 N))`. Covers at every N, whatever the law on the range.

    Args:
        values: `float64[n]` in [minimum, maximum].
        counts: `float64[n]` or None.
        minimum: the smallest value that is possible, observed or not.
        maximum: the largest.
        level: in (0, 1).
        sides: "two", "lower" or "upper".

    Returns:
        `Interval` of `float64[]`; the whole range when N = 0.

    Raises:
        ValueError: `level` or `sides` is none of these, or the range is empty.

    Reference: Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables", 1963, theorem 2.
    """
    delta = error_probability(level, sides)
    total, mean, _ = _moments(values, counts)
    width = width_of(minimum, maximum) * jnp.sqrt(-jnp.log(delta) / (2.0 * total))
    return _around(mean, width, total > 0, sides, minimum, maximum)


def empirical_bernstein_interval(
    values: Array,
    counts: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """`mean +- (s sqrt(2 log(2 / delta) / N) + 7/3 (maximum - minimum) log(2 / delta) / (N - 1))`. Covers at every N.

    s^2 is the unbiased sample variance; one half of delta pays for not knowing the variance.

    Args and Raises: as `hoeffding_interval`.

    Returns:
        `Interval` of `float64[]`; the whole range when N < 2.

    Reference: Maurer and Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT 2009, theorem 4,
    whose constant of 7/3 this is. The Open Bandit Pipeline has the same bound.
    """
    delta = error_probability(level, sides)
    total, mean, variance = _moments(values, counts)
    price = jnp.log(2.0 / delta)
    linear = 7.0 / 3.0 * width_of(minimum, maximum) * price / jnp.maximum(total - 1.0, 1.0)
    return _around(mean, _safe_sqrt(2.0 * price * variance / total) + linear, total >= 2.0, sides, minimum, maximum)


def anderson_interval(
    values: Array,
    counts: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """The means with the share `epsilon = sqrt(log(1 / delta) / (2 N))` of greatest values at `minimum`, of least at `maximum`.

    Covers at every N: the distribution function is nowhere more than epsilon above the empirical one but with probability
    delta. A lower bound needs no finite `maximum`, an upper one no `minimum`: of use for heavy tails on one side.

    Args, Returns and Raises: as `hoeffding_interval`, and either end of the range may be infinite.

    Reference: Anderson, "Confidence Limits for the Expected Value of an Arbitrary Bounded Random Variable with a Continuous
    Distribution Function", 1969; Massart, "The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality", 1990.
    """
    delta, _ = jnp.minimum(error_probability(level, sides), 0.5), width_of(minimum, maximum)
    counts = jnp.ones_like(values) if counts is None else counts
    chex.assert_equal_shape([values, counts])
    values = jnp.where(counts > 0, values, 0.0)
    order, total = jnp.argsort(values), jnp.sum(counts)
    share = jnp.cumsum(counts[order]) / jnp.where(total > 0, total, 1.0)
    moved = jnp.minimum(jnp.sqrt(-jnp.log(delta) / (2.0 * jnp.where(total > 0, total, 1.0))), 1.0)
    low = values[order] @ jnp.diff(jnp.minimum(share, 1.0 - moved), prepend=0.0)
    high = values[order] @ jnp.diff(jnp.maximum(share - moved, 0.0), prepend=0.0)
    return within(Interval(low + moved * minimum, high + moved * maximum), total > 0, sides, minimum, maximum)


def clopper_pearson_interval(
    values: Array,
    counts: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
    round_outwards: bool = True,
) -> Interval:
    """The binomial interval of `k = sum(values - minimum) / (maximum - minimum)` successes in N trials, scaled.

    Of a rate, `lower = beta_delta(k, N - k + 1)` and `upper = beta_{1 - delta}(k + 1, N - k)`, quantiles of beta laws.
    It covers at every N when each value is `minimum` or `maximum`. Between the ends the sum is no binomial count and
    coverage is not proven, though this is customary: Figure 1 of Karampatziakis, Langford and Mineiro, "Empirical
    Likelihood for Contextual Bandits", 2020, has it with k as it is. (vw-estimators has N / maximum trials instead, and
    thereby a narrower interval.)

    Args and Raises: as `hoeffding_interval`, and
        round_outwards: take k down to a whole number for the lower bound and up for the upper, or leave it as it is.

    Returns:
        `Interval` of `float64[]`; the whole range when N = 0.

    Reference: Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial",
    Biometrika 1934.
    """
    delta, width = error_probability(level, sides), width_of(minimum, maximum)
    total, mean, _ = _moments(values, counts)
    few = many = jnp.clip(total * (mean - minimum) / width, 0.0, total)
    if round_outwards:
        slack = 1e-9  # a sum of whole numbers stays one in spite of rounding
        few, many = jnp.floor(few * (1.0 + slack)), jnp.ceil(many * (1.0 - slack))
    successes = jnp.stack([few, many + 1.0])
    lower, upper = beta_quantile(
        jnp.stack([delta, 1.0 - delta]), successes, jnp.stack([total - few + 1.0, total - many])
    )
    ends = Interval(minimum + width * lower, minimum + width * upper)
    return within(ends, total > 0, sides, minimum, maximum)


def bootstrap_replicates(
    key: Array, statistic: Callable[[Array], Array], counts: Array, *, resamples: int, size: int | None = None
) -> Array:
    """The statistic of samples of N rows, drawn with replacement from the rows of `counts`.

    A resample is a vector of counts, multinomial with probabilities counts / N. They are drawn in chunks, so that
    memory is bounded whatever `resamples` and whatever arrays the statistic makes; one costs O(size) besides. Padding at
    the end does not change the draws.

    Args:
        key: random key.
        statistic: `counts -> float64[]`, of `float64[n]`; closes over the data, and must be jittable.
        counts: `float64[n]`, whole numbers.
        resamples: how many.
        size: observations that there is room for, at least N; the length of `counts` if None, which does for masks.

    Returns:
        `float64[resamples]`; NaN if N is 0 or above `size`.

    Raises:
        ValueError: `resamples` or `size` is below 1.

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6.
    """
    chex.assert_rank(counts, 1)
    size = counts.shape[0] if size is None else size
    for name, value in (("resamples", resamples), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    total = jnp.sum(counts)
    # One row index for each observation, so that a draw is a look-up.
    rows = jnp.repeat(jnp.arange(counts.shape[0]), counts.astype(jnp.int64), total_repeat_length=size)
    drawn = (jnp.arange(size) < total).astype(counts.dtype)

    def replicate(key: Array) -> Array:
        # 32 bits: JAX lowers the draw of 64 where x64 may be off again
        share = jax.random.bits(key, (size,), jnp.uint32).astype(counts.dtype) * 2.0**-32
        observations = jnp.floor(share * total).astype(jnp.int64)
        return statistic(jnp.zeros_like(counts).at[rows[observations]].add(drawn))

    replicates = chunked_map(replicate, jax.random.split(key, resamples))
    return jnp.where((total >= 1) & (total <= size), replicates, jnp.nan)


def percentile_interval(
    key: Array,
    statistic: Callable[[Array], Array],
    counts: Array,
    *,
    resamples: int = 1000,
    size: int | None = None,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """The delta and 1 - delta quantiles of those bootstrap replicates that are defined, interpolated linearly. Asymptotic.

    Args and Raises: as `bootstrap_replicates` and `normal_interval`.

    Returns:
        `Interval` of `float64[]`; infinite when N < 2, NaN when no replicate is defined.
    """
    delta = error_probability(level, sides)
    replicates = bootstrap_replicates(key, statistic, counts, resamples=resamples, size=size)
    # resamples in which the statistic is not defined are left out
    ends = jnp.nanquantile(replicates, jnp.stack([delta, 1.0 - delta]))
    return within(Interval(*ends), jnp.sum(counts) >= 2.0, sides)


def bca_interval(
    key: Array,
    statistic: Callable[[Array], Array],
    counts: Array,
    *,
    resamples: int = 1000,
    size: int | None = None,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """The bias-corrected and accelerated bootstrap. Asymptotic, and second-order accurate.

    The quantiles `Phi(z_0 + (z_0 +- z_delta) / (1 - a (z_0 +- z_delta)))` of the replicates. `Phi(z_0)` is the share of
    them below the statistic of the data (those that equal it count half); the acceleration is
    `a = sum u^3 / (6 (sum u^2)^{3/2})`, over the observations, with u the jackknife's mean less the statistic without
    one observation. The jackknife takes n evaluations of the statistic.

    Args and Raises: as `bootstrap_replicates` and `normal_interval`.

    Returns:
        `Interval` of `float64[]`, as `percentile_interval`. Where scipy answers NaN: no replicate below or above the
        statistic counts as half a replicate there; a jackknife without spread gives no acceleration.

    Reference: Efron, "Better Bootstrap Confidence Intervals", 1987; formulas of Efron and Tibshirani, 1993, 14.3.
    """
    delta = error_probability(level, sides)
    replicates = bootstrap_replicates(key, statistic, counts, resamples=resamples, size=size)
    observed = statistic(counts)
    # resamples in which the statistic is not defined are left out
    below = 0.5 + 0.5 * jnp.nanmean(jnp.sign(observed - replicates))
    bias = jax.scipy.special.ndtri(jnp.clip(below, 0.5 / resamples, 1.0 - 0.5 / resamples))

    def without(row: Array) -> Array:
        return statistic(counts.at[row].add(-1.0))

    left = chunked_map(without, jnp.arange(counts.shape[0]))
    # of a row of padding nothing can be left out; without some rows there may be no statistic
    left = jnp.where((counts > 0) & jnp.isfinite(left), left, observed)
    influence = jnp.where(counts > 0, jnp.sum(counts * left) / jnp.sum(counts) - left, 0.0)
    largest = jnp.max(jnp.abs(influence))
    influence = influence / jnp.where(largest > 1e-14 * jnp.abs(observed), largest, jnp.inf)
    spread = jnp.sum(counts * influence**2)
    acceleration = jnp.sum(counts * influence**3) / (6.0 * jnp.where(spread > 0, spread, 1.0) ** 1.5)

    shifted = bias + jax.scipy.special.ndtri(jnp.stack([delta, 1.0 - delta]))
    shares = jax.scipy.special.ndtr(bias + shifted / (1.0 - acceleration * shifted))
    return within(Interval(*jnp.nanquantile(replicates, shares)), jnp.sum(counts) >= 2.0, sides)


def error_probability(level: Array | float, sides: str) -> Array:
    """delta, the probability that a bound is wrong.

    Raises:
        ValueError: `level` or `sides` is none of those of the module.
    """
    if sides not in ("two", "lower", "upper"):
        raise ValueError(f'sides must be "two", "lower" or "upper", got {sides!r}')
    if isinstance(level, float | int) and not 0.0 < level < 1.0:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return (1.0 - jnp.asarray(level, jnp.float64)) / (2.0 if sides == "two" else 1.0)


def width_of(minimum: Array | float, maximum: Array | float) -> Array | float:
    """Length of a range.

    Raises:
        ValueError: if it is empty.
    """
    if isinstance(minimum, float | int) and isinstance(maximum, float | int) and not minimum < maximum:
        raise ValueError(f"minimum must be below maximum, got {minimum} and {maximum}")
    return maximum - minimum


def _moments(values: Array, counts: Array | None) -> tuple[Array, Array, Array]:
    """N, the mean (0 of nothing) and the unbiased variance."""
    chex.assert_rank(values, 1)
    counts = jnp.ones_like(values) if counts is None else counts
    chex.assert_equal_shape([values, counts])
    values = jnp.where(counts > 0, values, 0.0)
    total = jnp.sum(counts)
    mean = jnp.sum(counts * values) / jnp.where(total > 0, total, 1.0)
    return total, mean, jnp.sum(counts * jnp.square(values - mean)) / jnp.maximum(total - 1.0, 1.0)


def _safe_sqrt(squared: Array) -> Array:
    """Square root whose derivative at 0 is 0."""
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _around(
    mean: Array,
    radius: Array,
    known: Array,
    sides: str,
    minimum: Array | float = -jnp.inf,
    maximum: Array | float = jnp.inf,
) -> Interval:
    return within(Interval(mean - radius, mean + radius), known, sides, minimum, maximum)


def within(
    interval: Interval,
    known: Array | bool,
    sides: str,
    minimum: Array | float = -jnp.inf,
    maximum: Array | float = jnp.inf,
) -> Interval:
    """The interval within the range; where it is not known, or on the side that was not asked for, the range's end."""
    lower = jnp.where(known & (sides != "upper"), jnp.clip(interval.lower, minimum, maximum), minimum)
    upper = jnp.where(known & (sides != "lower"), jnp.clip(interval.upper, minimum, maximum), maximum)
    return Interval(lower, upper)
