"""The programs behind `empirical`: how the questions about a bandit log become those of `ops.empirical_likelihood`."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.common import effective_size
from jaxrl_off.ops import empirical_likelihood as el
from jaxrl_off.ops.quantiles import student_t_quantile
from jaxrl_off.types import Array, Estimate

_DINKELBACH_STEPS = 12


class _End(NamedTuple):
    """An objective seen from one end of its range: `E_Q[g] = offset + scale E_Q[gains]`, with gains of order 1.

    Attributes:
        gains: `float[n]`.
        corners: `float[J]`, the least gain at each corner of the support.
        offset: `float[]`.
        scale: `float[]`, negative for the upper end.
    """

    gains: Array
    corners: Array
    offset: Array
    scale: Array


class _Problem(NamedTuple):
    """Data, what is known, the objective from both ends, and the range of its value."""

    counts: Array
    moments: Array
    support: el.Support
    lower: _End
    upper: _End
    least: Array
    most: Array


def threshold_of(total: Array, level: float, sides: str, calibration: str) -> Array:
    """Delta, how much log-likelihood the interval may lose; see `empirical.empirical_likelihood`. For N < 2 that of N = 2."""
    tail = (1.0 - level) / 2.0 if sides == "two" else 1.0 - level
    if calibration == "finite_sample":
        return math.log(2.0 / tail) + jnp.log(total + 1.0)
    if calibration == "chi2":
        quantile = -jax.scipy.special.ndtri(jnp.asarray(tail, jnp.float64))
    else:
        quantile = student_t_quantile(jnp.asarray(tail, jnp.float64), jnp.maximum(total - 1.0, 1.0))
    return 0.5 * jnp.square(quantile)


def _weight_moments(weights: Array, limits: tuple[Array, Array], infinite: bool) -> tuple[Array, el.Support, Array]:
    """Moments, support and the weights at its corners (for an infinite range: weight per length of the direction).

    The basis is that of the corners, `m = ((high - w), (w - low)) / (high - low)`; for an infinite range `(1, w - low)`.
    """
    low, high = limits
    if infinite:
        moments = jnp.stack([jnp.ones_like(weights), weights - low], axis=-1)
        expectation = jnp.stack([jnp.ones_like(low), 1.0 - low])
        return moments, el.Support(expectation, jnp.eye(2), 1.0 / expectation), jnp.stack([low, jnp.ones_like(low)])
    width = high - low
    moments = jnp.stack([(high - weights) / width, (weights - low) / width], axis=-1)
    expectation = jnp.stack([(high - 1.0) / width, (1.0 - low) / width])
    return moments, el.Support(expectation, jnp.eye(2), jnp.ones(2)), jnp.stack([low, high])


def _value_problem(
    rows: common.Rows,
    corners: Array | None,
    ranges: tuple[tuple[Array, Array], tuple[Array, Array]],
    infinite: bool,
    doubly: bool,
) -> _Problem:
    counts, weights, rewards, others = rows
    limits, (least, most) = ranges
    moments, support, corner_weights = _weight_moments(weights, limits, infinite)
    if corners is not None:
        moments = jnp.concatenate([moments, others[0]], axis=1)
        corner_weights = corners[:, 0]
        basis = _weight_moments(corner_weights, limits, infinite)[0]
        zeros = jnp.zeros(corners.shape[1] - 1)
        support = el.Support(
            jnp.concatenate([support.expectation, zeros]),
            jnp.concatenate([basis, corners[:, 1:]], axis=1),
            jnp.concatenate([support.interior, zeros]),
        )
    span = most - least
    if doubly:
        predicted, predicted_target = others[-2:]
        total = weights * (rewards - predicted) + predicted_target
        # a reward and its prediction may be a whole range apart
        ends = (total - least) / span, (most - total) / span, -corner_weights
    else:
        ends = weights * (rewards - least) / span, weights * (most - rewards) / span, jnp.zeros_like(corner_weights)
    lower, upper = _End(ends[0], ends[2], least, span), _End(ends[1], ends[2], most, -span)
    return _Problem(counts, moments, support, lower, upper, least, most)


def _difference_problem(rows: common.Rows, ranges: tuple[tuple[Array, Array], ...]) -> _Problem:
    counts, first, rewards, (second,) = rows
    second = jnp.where(counts > 0, second, 1.0)
    (low, high), (second_low, second_high), (least, most) = ranges
    columns = (first - low) / (high - low), (second - second_low) / (second_high - second_low)
    corners = jnp.asarray([(1.0, u, w) for u in (0.0, 1.0) for w in (0.0, 1.0)])
    expectation = jnp.stack(
        [jnp.ones_like(low), (1.0 - low) / (high - low), (1.0 - second_low) / (second_high - second_low)]
    )
    support = el.Support(expectation, corners, jnp.asarray([1.0, 0.0, 0.0]))
    gap = low + (high - low) * corners[:, 1] - second_low - (second_high - second_low) * corners[:, 2]
    span = most - least
    gains = (first - second) * (rewards - least) / span
    # the least over rewards, which may be 0 after the shift
    lower = _End(gains, jnp.minimum(gap, 0.0), jnp.zeros_like(span), span)
    upper = _End(-gains, jnp.minimum(-gap, 0.0), jnp.zeros_like(span), -span)
    moments = jnp.stack([jnp.ones_like(first), *columns], axis=-1)
    return _Problem(counts, moments, support, lower, upper, -span, span)


def _probabilities(problem: _Problem, best: el.Likelihood, power: float = 0.0) -> Array:
    """The best Q at the data."""
    return problem.counts / jnp.sum(problem.counts) * el.tilt(problem.moments, best.multipliers) ** (power - 1.0)


def _identified(problem: _Problem, best: el.Likelihood, probabilities: Array) -> tuple[Array, Array]:
    """Least and greatest value under the best Q: what it puts on a corner has an unknown reward."""

    def end(side: _End) -> Array:
        return side.offset + side.scale * (
            jnp.sum(probabilities * side.gains) + jnp.sum(best.corner_mass * side.corners)
        )

    low, high = end(problem.lower), end(problem.upper)
    middle = 0.5 * (low + high)
    # equal but for rounding where nothing is missing
    return jnp.minimum(low, middle), jnp.maximum(high, middle)


def _bounds(
    problem: _Problem, best: el.Likelihood, level: float, sides: str, calibration: str
) -> tuple[Array, Array, Array]:
    """Lower and upper bound, and the threshold."""
    total = jnp.sum(problem.counts)
    threshold = threshold_of(total, level, sides, calibration)

    def end(side: _End) -> Array:
        bound = el.lower_bound(
            problem.counts, problem.moments, side.gains, problem.support, side.corners, best, threshold
        )
        return jnp.clip(side.offset + side.scale * bound.value, problem.least, problem.most)

    enough = total >= 2.0 if calibration == "f" else total > 0.0
    lower = problem.least if sides == "upper" else jnp.where(enough, end(problem.lower), problem.least)
    upper = problem.most if sides == "lower" else jnp.where(enough, end(problem.upper), problem.most)
    return lower, upper, threshold


@functools.partial(jax.jit, static_argnames=("infinite", "doubly", "level", "sides", "calibration", "power"))
def estimate_value(
    rows: common.Rows,
    corners: Array | None,
    ranges: tuple[tuple[Array, Array], tuple[Array, Array]],
    *,
    infinite: bool,
    doubly: bool = False,
    level: float | None = None,
    sides: str = "two",
    calibration: str = "f",
    power: float = 0.0,
) -> Estimate:
    """See `empirical.empirical_likelihood`, and for powers other than 0, without a level, `cressie_read.power_divergence`."""
    problem = _value_problem(rows, corners, ranges, infinite, doubly)
    best = el.fit(problem.counts, problem.moments, problem.support, power)
    centred = (rows.weights - 1.0)[:, None]
    if corners is not None:
        centred = jnp.concatenate([centred, rows.others[0]], axis=1)
    target = problem.lower.offset + problem.lower.scale * problem.lower.gains
    probabilities = _probabilities(problem, best, power)
    missing = {
        "missing_weight": jnp.maximum(1.0 - jnp.sum(probabilities * rows.weights), 0.0),
        "observed_mass": jnp.sum(probabilities),
    }
    error = common.regression_error(problem.counts, target, centred)
    return _assembled(problem, best, probabilities, rows.weights, error, missing, level, sides, calibration)


@functools.partial(jax.jit, static_argnames=("level", "sides", "calibration"))
def estimate_difference(
    rows: common.Rows, ranges: tuple[tuple[Array, Array], ...], *, level: float | None, sides: str, calibration: str
) -> Estimate:
    """See `empirical.empirical_likelihood_difference`."""
    problem = _difference_problem(rows, ranges)
    best = el.fit(problem.counts, problem.moments, problem.support)
    centred = jnp.stack([rows.weights - 1.0, jnp.where(rows.counts > 0, rows.others[0] - 1.0, 0.0)], axis=1)
    target = problem.lower.scale * problem.lower.gains
    error = common.regression_error(problem.counts, target, centred)
    return _assembled(problem, best, _probabilities(problem, best), rows.weights, error, {}, level, sides, calibration)


def _assembled(
    problem: _Problem,
    best: el.Likelihood,
    probabilities: Array,
    weights: Array,
    error: Array,
    extra: dict[str, Array],
    level: float | None,
    sides: str,
    calibration: str,
) -> Estimate:
    low, high = _identified(problem, best, probabilities)
    diagnostics = common.weight_diagnostics(problem.counts, weights) | {"value_low": low, "value_high": high} | extra
    lower = upper = None
    if level is not None:
        lower, upper, diagnostics["threshold"] = _bounds(problem, best, level, sides, calibration)
    size = effective_size(problem.counts, weights)
    return Estimate(0.5 * (low + high), error, lower, upper, size, diagnostics)


@functools.partial(jax.jit, static_argnames=("level", "sides", "calibration"))
def estimate_censored(
    rows: common.Rows,
    ranges: tuple[tuple[Array, Array], tuple[Array, Array]],
    *,
    level: float | None,
    sides: str,
    calibration: str,
) -> Estimate:
    """See `empirical.censored_empirical_likelihood`."""
    counts, weights, rewards, (observed,) = rows
    limits, (least, most) = ranges
    span = most - least
    moments, support, corner_weights = _weight_moments(weights, limits, False)
    best = el.fit(counts, moments, support)
    total = jnp.sum(counts)
    probabilities = counts / total / el.tilt(moments, best.multipliers)
    seen = probabilities * weights * observed
    weight, missing = jnp.sum(seen), jnp.sum(best.corner_mass * corner_weights)
    positive = weight > 1e-12
    divisor = jnp.where(positive, weight, 1.0)
    ratio = jnp.where(positive, jnp.sum(seen * rewards) / divisor, jnp.nan)
    low, high = (
        pick(ratio, (ratio * weight + missing * end) / (divisor + missing))
        for pick, end in ((jnp.minimum, least), (jnp.maximum, most))
    )
    value = 0.5 * (low + high)
    influence = weights * observed * (rewards - value) / divisor
    error = common.regression_error(counts, influence, (weights - 1.0)[:, None])
    diagnostics = common.weight_diagnostics(counts, weights)
    diagnostics |= {"value_low": low, "value_high": high, "observed_weight": weight}
    lower = upper = None
    if level is not None:
        threshold = diagnostics["threshold"] = threshold_of(total, level, sides, calibration)
        enough = positive & (total >= 2.0 if calibration == "f" else total > 0.0)

        def end(start: Array, edge: Array, sign: float) -> Array:
            def iterate(_: int, at: Array) -> Array:
                at = jax.lax.stop_gradient(at)
                gains = sign * weights * observed * (rewards - at) / span
                corners = sign * corner_weights * (edge - at) / span
                bound = el.lower_bound(counts, moments, gains, support, corners, best, threshold)
                observed_weight = jnp.sum(bound.probabilities * weights * observed) + jnp.sum(
                    bound.corner_mass * corner_weights
                )
                # Newton's step on the bound as a function of the value, whose slope is minus the weight observed
                return at + sign * span * bound.value / jnp.maximum(observed_weight, 1e-12)

            found = jax.lax.fori_loop(0, _DINKELBACH_STEPS, iterate, jax.lax.stop_gradient(start))
            return jnp.clip(jnp.where(enough, found, edge), least, most)

        lower = least if sides == "upper" else end(low, least, 1.0)
        upper = most if sides == "lower" else end(high, most, -1.0)
    size = effective_size(counts, weights * observed)
    return Estimate(value, error, lower, upper, size, diagnostics)


@functools.partial(jax.jit, static_argnames=("infinite", "pessimistic", "level", "calibration"))
def likelihood_weights(
    rows: common.Rows,
    at: tuple[Array, Array],
    ranges: tuple[tuple[Array, Array], tuple[Array, Array]],
    *,
    infinite: bool,
    pessimistic: bool,
    level: float = 0.95,
    calibration: str = "f",
) -> Array:
    """See `empirical.likelihood_weights`; `at` are the weights and rewards whose omega is asked for."""
    problem = _value_problem(rows, None, ranges, infinite, False)
    asked = common.Rows(jnp.ones_like(at[0]), *at, ())
    asked = _value_problem(asked, None, ranges, infinite, False)
    best = el.fit(problem.counts, problem.moments, problem.support)
    plain = 1.0 / el.tilt(asked.moments, best.multipliers)
    if not pessimistic:
        return plain
    total = jnp.sum(problem.counts)
    threshold = threshold_of(total, level, "two", calibration)
    side = problem.lower
    bound = el.lower_bound(problem.counts, problem.moments, side.gains, problem.support, side.corners, best, threshold)
    scale = bound.value + jnp.sum(bound.multipliers * problem.support.expectation)
    tilted = scale / (el.tilt(asked.moments, bound.multipliers) + asked.lower.gains)
    return jnp.where(jnp.any((problem.counts > 0) & (side.gains > 0)) & (total >= 2.0), tilted, plain)
