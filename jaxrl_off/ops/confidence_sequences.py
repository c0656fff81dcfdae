"""Confidence sequences for the mean of bounded observations: they cover at every N, and at all of them at once.

`values` is `float64[n]` in the order of observation, `mask` is `bool[n]`, what was observed, or None for all; `level`, `sides`
and the results are those of `intervals`. If the lower bound is above the upper one, the data refute that each observation has
the same mean given those before it (sorted rows do so): the result is then the whole range, never a crossed interval.

All are pure, jittable and vmappable, and want float64 (`with jax.enable_x64(True)`).

Reference: Waudby-Smith and Ramdas, "Estimating Means of Bounded Random Variables by Betting", 2023.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.ops.intervals import Interval, error_probability, width_of, within
from jaxrl_off.types import Array

_BISECTIONS = 52
_LARGEST_BET = 0.5  # share of the capital at stake; Waudby-Smith and Ramdas advise 1/2 or 3/4


def bernstein_sequence(
    values: Array,
    mask: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """The predictable plug-in empirical Bernstein confidence sequence: one may look, and stop, after each observation.

    With values scaled to [0, 1], `mean_t = (1/2 + sum_{i <= t} x_i) / (t + 1)`,
    `variance_t = (1/4 + sum_{i <= t} (x_i - mean_i)^2) / (t + 1)` and
    `lambda_t = min(sqrt(2 log(1 / delta) / (variance_{t-1} t log(1 + t))), 1/2)`, the bounds after t observations are

    `(sum lambda_i x_i +- (log(1 / delta) + sum (x_i - mean_{i-1})^2 (-log(1 - lambda_i) - lambda_i))) / sum lambda_i`,

    and as all of them hold at once, each is the best so far. The values need not be independent: it suffices that each
    has the same mean given those before it.

    Args:
        values: `float64[n]` in [minimum, maximum], in the order of observation.
        mask: `bool[n]` or None, what was observed. No counts here: each observation has its place in the order.
        minimum: the smallest value that is possible, observed or not.
        maximum: the largest.
        level: in (0, 1): of covering at all times.
        sides: "two", "lower" or "upper".

    Returns:
        `Interval` of `float64[n]`, its entry i from `values[:i + 1]`. The last one is that of all data.

    Raises:
        ValueError: `level` or `sides` is none of these, or the range is empty.

    Reference: Waudby-Smith and Ramdas, "Estimating Means of Bounded Random Variables by Betting", 2023, theorem 2.
    """
    delta, width = error_probability(level, sides), width_of(minimum, maximum)
    scaled, mask = _scaled(values, mask, minimum, width)
    bets, means = _bets(scaled, mask, delta)
    bets = jnp.minimum(bets, _LARGEST_BET)
    stakes = jnp.cumsum(bets)
    costs = jnp.cumsum(jnp.square(scaled - means) * (-jnp.log1p(-bets) - bets))
    safe = jnp.where(stakes > 0, stakes, 1.0)
    centre, radius = jnp.cumsum(bets * scaled) / safe, (costs - jnp.log(delta)) / safe
    lower = jax.lax.cummax(jnp.where(stakes > 0, jnp.clip(centre - radius, 0.0, 1.0), 0.0))
    upper = jax.lax.cummin(jnp.where(stakes > 0, jnp.clip(centre + radius, 0.0, 1.0), 1.0))
    known = (lower <= upper) | (sides != "two")
    return within(Interval(minimum + width * lower, minimum + width * upper), known, sides, minimum, maximum)


def betting_interval(
    values: Array,
    mask: Array | None = None,
    *,
    minimum: Array | float,
    maximum: Array | float,
    level: Array | float = 0.95,
    sides: str = "two",
) -> Interval:
    """The means against which no gambler has multiplied his capital by `1 / delta` at any time: hedged capital.

    With values scaled to [0, 1] and lambda_t as in `bernstein_sequence` but uncapped, one gambler bets that the mean is
    above m, `K_t(m) = prod_{i <= t} (1 + min(lambda_i, 1 / (2 m)) (x_i - m))`, and another the same of 1 - x and 1 - m.
    If m is the mean, neither ever has `1 / delta`, but with probability delta (Ville). K_t(m) falls with m, and so does
    its largest value so far: the bound is found by bisection, to 2^-52 of the range, where the paper's code has a grid.
    It covers at whatever time the data were stopped, as do the intervals of all prefixes at once; mostly it is narrower
    than `bernstein_sequence`.

    Args and Raises: as `bernstein_sequence`.

    Returns:
        `Interval` of `float64[]`, that of all data.

    Reference: Waudby-Smith and Ramdas, 2023, theorem 3, with theta = c = 1/2: the interval is where
    `max(K^+ / 2, K^- / 2) < 1 / (1 - level)`, to which two bounds at `delta = (1 - level) / 2` amount.
    """
    delta, width = error_probability(level, sides), width_of(minimum, maximum)
    scaled, mask = _scaled(values, mask, minimum, width)
    bets, _ = _bets(scaled, mask, delta)

    def lower_bound(scaled: Array) -> Array:
        def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            growth = jnp.log1p(jnp.minimum(bets, _LARGEST_BET / middle) * (scaled - middle))
            refuted = jnp.max(jnp.cumsum(jnp.where(mask, growth, 0.0)), initial=0.0) >= -jnp.log(delta)
            return jnp.where(refuted, middle, low), jnp.where(refuted, high, middle)

        return jax.lax.fori_loop(0, _BISECTIONS, bisect, (jnp.zeros_like(delta), jnp.ones_like(delta)))[0]

    lower, missing = jax.lax.map(lower_bound, jnp.stack([scaled, 1.0 - scaled]))
    known = (lower + missing <= 1.0) | (sides != "two")
    return within(Interval(minimum + width * lower, maximum - width * missing), known, sides, minimum, maximum)


def _scaled(values: Array, mask: Array | None, minimum: Array | float, width: Array | float) -> tuple[Array, Array]:
    """The values scaled to [0, 1], and the mask."""
    chex.assert_rank(values, 1)
    mask = jnp.ones(values.shape, bool) if mask is None else mask.astype(bool)
    chex.assert_equal_shape([values, mask])
    return jnp.where(mask, (values - minimum) / width, 0.0), mask


def _bets(scaled: Array, mask: Array, delta: Array) -> tuple[Array, Array]:
    """lambda_t, 0 where nothing was observed, and mean_{t-1}; both know what was observed before t only."""
    time = jnp.cumsum(mask).astype(scaled.dtype)
    means = (0.5 + jnp.cumsum(scaled)) / (time + 1.0)
    variances = (0.25 + jnp.cumsum(jnp.where(mask, jnp.square(scaled - means), 0.0))) / (time + 1.0)
    earlier_means, earlier_variances = (
        jnp.concatenate([jnp.full(1, first), following[:-1]]) for first, following in ((0.5, means), (0.25, variances))
    )
    time = jnp.maximum(time, 1.0)
    bets = jnp.sqrt(-2.0 * jnp.log(delta) / (earlier_variances * time * jnp.log1p(time)))
    return jnp.where(mask, bets, 0.0), earlier_means
