"""Power divergences in place of the likelihood: Cressie-Read(-2) and Euclidean in closed form, others by their dual.

The law Q that is nearest to the empirical one, in `sum_i c_i ((N Q_i / c_i)^-lambda - 1) / (lambda (lambda + 1))` of Cressie
and Read (1984), such that `sum Q = 1` and `sum Q w = 1`; `V = E_Q[w r]`. lambda = 0 is empirical likelihood. For lambda = -2
the divergence is a square, and everything is a function of six sums (of `1, w, w^2, w r, w^2 r, w^2 r^2`), at the price that Q
may be negative.

Reference: the notebooks beside the code of Karampatziakis, Langford and Mineiro (NeurIPS 2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.bandit.empirical_core import estimate_value, threshold_of
from jaxrl_off.estimators.common import check_level, check_range, is_concrete, z_score
from jaxrl_off.types import Array, Estimate


class _Sums(NamedTuple):
    """`sum c x` for x = 1, w, w^2, w r, w^2 r, w^2 r^2, and the largest weight."""

    n: Array
    w: Array
    ww: Array
    wr: Array
    wwr: Array
    wwrr: Array
    largest: Array


_CHUNK = 2**13  # rows that stay in a core's cache, and are too few for OpenBLAS to share among threads


def _sums_of(weights: Any, rewards: Any, counts: Any, limits: tuple[Any, Any], span: tuple[Any, Any]) -> _Sums:
    """The sums of a log, on the host where its numbers are at hand: one pass, which checks them too."""
    if counts is None and is_concrete(weights, rewards, limits, span):
        found = _sums_on_host(np.asarray(weights, np.float64), np.asarray(rewards, np.float64), limits, span)
        if found is not None:
            return found
    counts, w, r, _ = common.rows_of(weights, rewards, counts, limits, span)  # or the error that says what is wrong
    wr = w * r
    sums = (jnp.sum(counts * x) for x in (jnp.ones_like(w), w, w * w, wr, w * wr, wr * wr))
    return _Sums(*sums, jnp.max(jnp.where(counts > 0, w, 0.0)))


def _sums_on_host(
    weights: np.ndarray, rewards: np.ndarray, limits: tuple[float, float], span: tuple[float, float]
) -> _Sums | None:
    """The sums, or None if columns are invalid."""
    if weights.ndim != 1 or weights.shape != rewards.shape or not len(weights):
        return None
    total, largest = np.zeros(5), 0.0
    for start in range(0, len(weights), _CHUNK):
        w, r = weights[start : start + _CHUNK], rewards[start : start + _CHUNK]
        least, most = w.min(), w.max()
        # NaN fails every comparison
        if not (limits[0] <= least and most <= limits[1] and span[0] <= r.min() and r.max() <= span[1]):
            return None
        if np.isinf(most):
            return None
        wr = w * r
        total += (w.sum(), w @ w, wr.sum(), w @ wr, wr @ wr)
        largest = max(largest, most)
    return _Sums(*(np.float64(x) for x in (len(weights), *total, largest)))


def _described(s: _Sums) -> tuple[dict[str, Array], Array, Array]:
    """What `common` says of weights, the standard error after regression on them, and the effective sample size."""
    divisor = jnp.where(s.n > 1, s.n * (s.n - 1.0), 1.0)
    spread = jnp.maximum(s.ww - s.w * s.w / s.n, 0.0)
    error = jnp.sqrt(spread / divisor)
    diagnostics = {
        "rows": s.n,
        "mean_weight": s.w / s.n,
        "mean_weight_z": z_score(s.w / s.n, 1.0, error, s.n),
        "largest_weight": s.largest,
        "no_overlap": jnp.asarray(s.w == 0.0, jnp.float64),
    }
    # of w r - slope (w - 1), whose centre at 1 is known
    square, product = s.ww - 2.0 * s.w + s.n, s.wwr - s.wr
    slope = product / jnp.where(square > 0, square, 1.0)
    mean = (s.wr - slope * (s.w - s.n)) / s.n
    residual = s.wwrr - 2.0 * slope * product + slope * slope * square - s.n * mean * mean
    error = jnp.sqrt(jnp.where(s.n > 1, jnp.maximum(residual, 0.0) / divisor, jnp.inf))
    return diagnostics, error, s.w * s.w / jnp.where(s.ww > 0, s.ww, 1.0)


def cressie_read(
    weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
) -> Estimate:
    """Cressie-Read(-2): one datum is added at the end of the weight range that makes a mean of 1 possible; closed form.

    Estimate and interval are those of the authors' notebook; the interval's quantile is F(1, N). Where the rewards are a
    function of the weights the quadratic form is degenerate, and the bound is the end of the reward range, as there; but not,
    as there, also where the interval is merely narrow.

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        counts: `float[n]`, multiplicities.
        weight_range: (low, high) of the weights; high may be infinite.
        reward_range: (low, high) of the rewards.
        level: of confidence; None for an estimate alone.
        sides: "two", "lower" or "upper".

    Returns:
        An `Estimate` with diagnostics as `empirical_likelihood`. Its standard error is that of empirical likelihood.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    check_level(level, sides)
    limits, span = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    with jax.enable_x64(True):
        sums = _sums_of(weights, rewards, counts, limits, span)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (limits, span))
        infinite = is_concrete(limits[1]) and math.isinf(limits[1])
        return _cressie_read(sums, ranges, infinite=infinite, level=level, sides=sides)


@functools.partial(jax.jit, static_argnames=("infinite", "level", "sides"))
def _cressie_read(s: _Sums, ranges: Any, *, infinite: bool, level: float | None, sides: str) -> Estimate:
    limits, (least, most) = ranges
    if infinite:
        gamma, beta = -(1.0 + s.n) / s.n, jnp.zeros(())
        star = jnp.where(s.w < s.n, 1.0 + 1.0 / s.n, _excess(s, limits[0])[2])
        below = _excess(s, limits[0])
        gamma, beta = jnp.where(s.w < s.n, gamma, below[0]), jnp.where(s.w < s.n, beta, below[1])
    else:
        gamma, beta, star = _excess(s, jnp.where(s.w < s.n, limits[1], limits[0]))
    # without any variation of the weights, the added one included, there is nothing to tilt
    raw = (-gamma * s.wr - beta * s.wwr) / (1.0 + s.n)
    missing = jnp.maximum(1.0 - (-gamma * s.w - beta * s.ww) / (1.0 + s.n), 0.0)
    low, high = (jnp.clip(raw + missing * end, least, most) for end in (least, most))
    diagnostics, error, size = _described(s)
    diagnostics |= {"value_low": low, "value_high": high, "missing_weight": missing}
    lower = upper = None
    if level is not None:
        # F(1, N) is the square of Student's t with N degrees
        threshold = diagnostics["threshold"] = 2.0 * threshold_of(s.n + 1.0, level, sides, "f")
        phi = (-star - threshold) / (2.0 * (s.n + 1.0))
        lower = least if sides == "upper" else _end(s, phi, limits, least, 1.0, infinite)
        upper = most if sides == "lower" else _end(s, phi, limits, most, -1.0, infinite)
        lower, upper = jnp.clip(lower, least, most), jnp.clip(upper, least, most)
    return Estimate(jnp.clip(0.5 * (low + high), least, most), error, lower, upper, size, diagnostics)


def _excess(s: _Sums, added: Array) -> tuple[Array, Array, Array]:
    """gamma, beta and the divergence's excess with a datum of weight `added`."""
    a, b = (added + s.w) / (1.0 + s.n), (added * added + s.ww) / (1.0 + s.n)
    variance = b - a * a
    return (b - a) / -variance, (1.0 - a) / -variance, (s.n + 1.0) * jnp.square(a - 1.0) / variance


def _end(s: _Sums, phi: Array, limits: tuple[Array, Array], edge: Array, sign: float, infinite: bool) -> Array:
    """One end of the interval: the lowest value, over data added at either end of the weight range, with the worst reward."""
    # rewards less the edge, so that added data have none: with them, y is a difference of numbers of order `added^2`
    wr, wwr = s.wr - edge * s.w, s.wwr - edge * s.ww
    wwrr = s.wwrr - 2.0 * edge * s.wwr + jnp.square(edge) * s.ww
    candidates = []
    for end, added in enumerate(limits):
        if end == 1 and infinite:
            x = sign * (edge + wr / s.n)
            size = wwrr / (1.0 + s.n)
            y = jnp.square(wr) / (s.n * (1.0 + s.n)) - size
            z = phi + 1.0 / (2.0 * s.n)
        else:
            w, ww = (added + s.w) / (1.0 + s.n), (added**2 + s.ww) / (1.0 + s.n)
            mean, product, size = wr / (1.0 + s.n), wwr / (1.0 + s.n), wwrr / (1.0 + s.n)
            variance, covariance = ww - w * w, product - w * mean
            x = sign * (edge + mean + (1.0 - w) * covariance / variance)
            y = jnp.square(covariance) / variance - (size - jnp.square(mean))
            z = phi + 0.5 * jnp.square(1.0 - w) / variance
        # y is 0 but for rounding where the rewards are a function of the weights
        degenerate = ~(y < -1e-12 * size)
        root = jnp.sqrt(jnp.where(degenerate | (z > 0.0), 0.0, 2.0 * y * z))
        candidates.append(jnp.where(z <= 0.0, jnp.where(degenerate, sign * edge, x - root), jnp.inf))
    best = jnp.minimum(*candidates)
    return jnp.where(jnp.isfinite(best), sign * best, edge)


def euclidean(
    weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
) -> Estimate:
    """Euclidean likelihood: the Q of least squares, with the missing mass at the end of the weight range it is missing from.

    There is no interval: its statistic is not asymptotically chi-square with the end of the range in it.
    Arguments, result and errors as `cressie_read`; the weight range must be finite.
    """
    limits, span = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    if is_concrete(limits) and math.isinf(limits[1]):
        raise ValueError(
            "the Euclidean likelihood needs a finite weight range; give the largest weight that is possible."
        )
    with jax.enable_x64(True):
        sums = _sums_of(weights, rewards, counts, limits, span)
        return _euclidean(sums, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (limits, span)))


@jax.jit
def _euclidean(s: _Sums, ranges: Any) -> Estimate:
    limits, (least, most) = ranges
    w, ww, wr, wwr = (x / s.n for x in (s.w, s.ww, s.wr, s.wwr))
    end = jnp.where(w > 1.0, limits[0], limits[1])
    denominator = ww - 2.0 * end * w + end * end
    slope = (w - 1.0) / jnp.where(denominator > 0, denominator, 1.0)
    level = -slope * end
    value = wr - level * wr - slope * wwr
    missing = jnp.maximum(1.0 - (w - level * w - slope * ww), 0.0)
    low, high = value + missing * least, value + missing * most
    diagnostics, error, size = _described(s)
    diagnostics |= {"value_low": low, "value_high": high, "missing_weight": missing}
    return Estimate(0.5 * (low + high), error, None, None, size, diagnostics)


def power_divergence(
    weights: Any,
    rewards: Any,
    *,
    power: float,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
) -> Estimate:
    """The estimate under Cressie and Read's divergence of any parameter above -1 (2/3: theirs; 0: empirical likelihood).

    There is no interval; use `cressie_read` or `empirical_likelihood`.

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        power: lambda, above -1.
        counts: `float[n]`, multiplicities.
        weight_range: (low, high) of the weights; high may be infinite.
        reward_range: (low, high) of the rewards.

    Returns:
        An `Estimate` with diagnostics as `empirical_likelihood`.

    Raises:
        ValueError: if columns, ranges or the parameter are invalid.
    """
    if not power > -1.0 or math.isinf(power):
        raise ValueError(f"power must be a finite number above -1, got {power}; -2 is `cressie_read`.")
    limits, span = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    with jax.enable_x64(True):
        rows = common.rows_of(weights, rewards, counts, limits, span)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (limits, span))
        infinite = is_concrete(limits[1]) and math.isinf(limits[1])
        return estimate_value(rows, None, ranges, infinite=infinite, power=power / (1.0 + power))
