"""Empirical likelihood with known moments and known support: the concave duals, and one solver for all of them.

Data `(m_i, g_i)` with multiplicities `c_i`, N = sum c. The law Q of `(m, g)` is unknown but for its support, whose convex hull
has J corners, and for its moments `E_Q[m] = e`. Two questions, each with a dual of few variables `theta`:

* *Which Q fits best?* `max_Q sum_i c_i log Q_i`, or another power divergence (Read and Cressie 1988), is
  `max_theta mean phi_p(theta . m_i) - theta . e + 1`, with `phi_p(s) = (s^p - 1) / p` and `phi_0 = log`; `Q_i = c_i / N
  (theta . m_i)^(p - 1)`.
* *How low may `E_Q[g]` be?* `min_Q E_Q[g]` over the Q whose log-likelihood is within `Delta` of the best is
  `max_theta exp(mean log(theta . m_i + g_i) - mean log(theta_best . m_i) - Delta / N) - theta . e`, with `Q_i = kappa c_i / N /
  (theta . m_i + g_i)` and kappa the exponential.

In both `theta . m + g >= 0` is required at every corner; the multiplier of that constraint is the mass that Q puts on the
corner though nothing was observed there. In contextual bandits `m = (1, w)` and `E[w] = 1`, see `estimators.bandit`.

The solver is a primal-dual interior-point method: some ten passes over the data whatever the data, faces and degenerate inputs
included. Multipliers it returns satisfy the constraints, so that a lower bound is never above the exact one but for rounding.
All functions want float64 (`with jax.enable_x64(True)`): the duals are small differences of large numbers.

References: Karampatziakis, Langford and Mineiro, "Empirical Likelihood for Contextual Bandits", NeurIPS 2020; Owen, "Empirical
Likelihood", 2001. The authors' code solves the same duals by general-purpose optimisers, with margins of 1e-5 from the
constraints; its bounds may lie inside the exact interval by some 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array

_MAX_STEPS = 80
_GAP = 1e-13  # duality gap at which the solver stops, relative to the scale of the objective


class Support(NamedTuple):
    """What is known of the law of `(m, g)` before any data.

    Attributes:
        expectation: `float[K]`, e.
        corners: `float[J, K]`, m at the corners of the support; for an unbounded support, also its extreme directions.
        interior: `float[K]`, some theta with `corners . theta > 0`.
    """

    expectation: Array
    corners: Array
    interior: Array


class Likelihood(NamedTuple):
    """The best-fitting Q.

    Attributes:
        multipliers: `float[K]`, theta; differentiable with respect to moments and counts.
        corner_mass: `float[J]`, mass (for a direction: its length) that Q puts on what was not observed; differentiable.
        mean_log: `float[]`, `mean log(theta . m_i)`; differentiable.
        steps: `int32[]`, passes over the data.
    """

    multipliers: Array
    corner_mass: Array
    mean_log: Array
    steps: Array


class Bound(NamedTuple):
    """The lowest `E_Q[g]`.

    Attributes:
        value: `float[]`; differentiable with respect to gains, moments and counts.
        probabilities: `float[n]`, Q at the data, which sum to 1 with the corners' mass.
        corner_mass: `float[J]`.
        multipliers: `float[K]`, theta.
        steps: `int32[]`, passes over the data.
    """

    value: Array
    probabilities: Array
    corner_mass: Array
    multipliers: Array
    steps: Array


class _Point(NamedTuple):
    """A concave objective at one place: value, gradient `[K]`, Hessian `[K, K]`."""

    value: Array
    gradient: Array
    hessian: Array


class _State(NamedTuple):
    theta: Array
    point: _Point
    slack: Array
    mass: Array
    barrier: Array
    length: Array
    steps: Array
    done: Array


def _sums(moments: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """`sum_i first_i m_i` and `sum_i second_i m_i m_i^T`, as sums of products: K is small and n is large."""
    columns = [moments[:, k] for k in range(moments.shape[1])]
    gradient = jnp.stack([jnp.sum(first * x) for x in columns])
    upper = {(j, k): jnp.sum(second * columns[j] * columns[k]) for k in range(len(columns)) for j in range(k + 1)}
    rows = [[upper[min(j, k), max(j, k)] for k in range(len(columns))] for j in range(len(columns))]
    return gradient, jnp.stack([jnp.stack(row) for row in rows])


def tilt(moments: Array, theta: Array) -> Array:
    """`theta . m`, `float[n]`, column by column.

    No matrix product, here and below: JAX derives or batches one where x64 may be off again, and then rounds it to float32.
    """
    columns = (moments[:, k] * theta[k] for k in range(moments.shape[1]))
    return sum(columns, start=jnp.zeros(moments.shape[0], moments.dtype))


def _log_mean(counts: Array, values: Array, total: Array) -> Array:
    return jnp.sum(jnp.where(counts > 0, counts * jnp.log(values), 0.0)) / total


def _solve_small(matrix: Array, right: Array) -> Array:
    """Solution of a positive definite system of K equations, scaled to a unit diagonal and written out for K = 2."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(matrix), jnp.finfo(matrix.dtype).tiny))
    scaled, right = scale[:, None] * matrix * scale, scale * right
    if matrix.shape[0] != 2:
        # moments may depend on one another, such as control variates that sum to w - 1
        return scale * jnp.linalg.solve(scaled + 1e-13 * jnp.eye(len(right)), right)
    determinant = scaled[0, 0] * scaled[1, 1] - jnp.square(scaled[0, 1])
    swapped = jnp.stack(
        [scaled[1, 1] * right[0] - scaled[0, 1] * right[1], scaled[0, 0] * right[1] - scaled[0, 1] * right[0]]
    )
    return scale * swapped / determinant


def _share_to_boundary(values: Array, steps: Array) -> Array:
    return jnp.minimum(1.0, 0.995 * jnp.min(jnp.where(steps < 0, -values / jnp.where(steps < 0, steps, -1.0), jnp.inf)))


def _maximise(
    evaluate: Callable[[Array], _Point], corners: Array, offsets: Array, start: Array
) -> tuple[Array, Array, Array]:
    """`max f(theta)` where `corners . theta + offsets >= 0`, by a primal-dual interior-point method.

    Newton's direction of `f + mu sum log(slack)`, with the Hessian of the barrier made of the multipliers
    (`mass / slack` instead of `mu / slack^2`), a step to at most 0.995 of the way to the boundary and backtracking on that
    merit; mu follows the duality gap.

    Args:
        evaluate: f, concave, with values of order 1.
        corners: `float[J, K]`.
        offsets: `float[J]`.
        start: `float[K]`, strictly inside.

    Returns:
        theta, the multipliers `float[J]` of the constraints, and the number of evaluations.
    """
    count = corners.shape[0]

    def slack_of(theta: Array) -> Array:
        return tilt(corners, theta) + offsets

    def step(state: _State) -> _State:
        theta, point, slack, mass, barrier, length, steps, _ = state
        slope = point.gradient + tilt(corners.T, barrier / slack)
        direction = _solve_small(_sums(corners, slack, mass / slack)[1] - point.hessian, slope)
        slack_step = tilt(corners, direction)
        mass_step = (barrier - mass * slack_step) / slack - mass
        taken = length * _share_to_boundary(slack, slack_step)
        new_theta = theta + taken * direction
        new_slack, new_point = slack_of(new_theta), evaluate(new_theta)
        new_mass = mass + _share_to_boundary(mass, mass_step) * mass_step
        new_mass = jnp.clip(new_mass, 1e-10 * barrier / new_slack, 1e10 * barrier / new_slack)
        gain = new_point.value - point.value + barrier * jnp.sum(jnp.log(new_slack / slack))
        accepted = gain >= 1e-4 * taken * jnp.sum(slope * direction) - 1e-14
        gap = jnp.sum(new_slack * new_mass)
        unbalanced = jnp.max(jnp.abs((new_point.gradient + tilt(corners.T, new_mass)) * new_theta))
        shrink = jnp.where(taken > 0.9, 0.02, 0.3)
        moved = _State(
            theta=new_theta,
            point=new_point,
            slack=new_slack,
            mass=new_mass,
            barrier=jnp.clip(shrink * gap / count, 1e-17, barrier),
            length=jnp.ones_like(length),
            steps=steps + 1,
            done=(gap < _GAP) & (unbalanced < 100.0 * _GAP),
        )
        stayed = state._replace(length=0.4 * length, steps=steps + 1, done=length < 1e-6)
        return jax.tree.map(lambda yes, no: jnp.where(accepted, yes, no), moved, stayed)

    slack = slack_of(start)
    barrier = jnp.asarray(0.1, start.dtype)
    state = _State(
        theta=start,
        point=evaluate(start),
        slack=slack,
        mass=barrier / slack,
        barrier=barrier,
        length=jnp.ones((), start.dtype),
        steps=jnp.ones((), jnp.int32),
        done=jnp.zeros((), bool),
    )
    state = jax.lax.while_loop(lambda state: ~state.done & (state.steps < _MAX_STEPS), step, state)
    return state.theta, state.mass, state.steps


def fit(counts: Array, moments: Array, support: Support, power: float = 0.0) -> Likelihood:
    """The Q that fits the data best.

    Args:
        counts: `float[n]`, multiplicities; rows of 0 carry no weight.
        moments: `float[n, K]`, inside the support, those of rows without weight included.
        support: known support and moments.
        power: p below 1. 0 is empirical likelihood; `lambda / (1 + lambda)` is Cressie and Read's divergence of parameter
            lambda above -1.

    Returns:
        A `Likelihood`; `Q_i = c_i / N (theta . m_i)^(p - 1)`.

    Raises:
        ValueError: if `power` is 1 or more.
    """
    chex.assert_rank([counts, moments], [1, 2])
    chex.assert_equal_shape_prefix([counts, moments], 1)
    if power >= 1.0:
        raise ValueError(
            f"power must be below 1, got {power}; the parameters lambda <= -1 have closed forms of their own."
        )
    total = jnp.sum(counts)

    def slope_of(moments: Array, counts: Array, theta: Array) -> Array:
        tilted = tilt(moments, theta)
        return (
            jnp.sum((counts * tilted ** (power - 1.0))[:, None] * moments, axis=0) / jnp.sum(counts)
            - support.expectation
        )

    def evaluate(theta: Array) -> _Point:
        tilted = tilt(moments, theta)
        value = (
            _log_mean(counts, tilted, total)
            if power == 0.0
            else (jnp.sum(counts * tilted**power) / total - 1.0) / power
        )
        first = counts * tilted ** (power - 1.0) / total
        gradient, hessian = _sums(moments, first, (power - 1.0) * first / tilted)
        return _Point(value - jnp.sum(theta * support.expectation) + 1.0, gradient - support.expectation, hessian)

    frozen = jax.lax.stop_gradient
    counts_, moments_ = counts, moments
    counts, moments = frozen(counts), frozen(moments)
    start = support.interior / jnp.sum(support.interior * support.expectation)
    offsets = jnp.zeros(support.corners.shape[0], moments.dtype)
    theta, mass, steps = _maximise(evaluate, support.corners, offsets, start)
    # the implicit function theorem: one step of Newton's method that is 0 but has the derivative of the solution
    weight = mass / tilt(support.corners, theta)
    matrix = _sums(support.corners, weight, weight)[1] - evaluate(theta).hessian
    slope = slope_of(moments_, counts_, theta)
    multipliers = theta + _solve_small(matrix, slope - frozen(slope))
    mass = mass - weight * tilt(support.corners, multipliers - theta)
    # the whole dual objective (its other terms cancel), whose derivative with respect to theta vanishes
    mean_log = _log_mean(counts_, tilt(moments_, theta), jnp.sum(counts_)) - jnp.sum(theta * support.expectation) + 1.0
    return Likelihood(multipliers, mass, mean_log, steps)


def lower_bound(
    counts: Array,
    moments: Array,
    gains: Array,
    support: Support,
    corner_gains: Array,
    best: Likelihood,
    threshold: Array,
) -> Bound:
    """The lowest `E_Q[g]` over the laws whose log-likelihood is at most `threshold` below the best one.

    Args:
        counts: `float[n]`, multiplicities.
        moments: `float[n, K]`.
        gains: `float[n]`, g, of order 1; an upper bound is minus the lower bound of -g.
        support: known support and moments.
        corner_gains: `float[J]`, the least g at each corner (for a direction: per length).
        best: of `fit` with power 0.
        threshold: `float[]`, Delta, positive: half a quantile of chi-square or F, see `estimators.bandit`.

    Returns:
        A `Bound`. If neither data nor corners have a gain, its value is 0.
    """
    chex.assert_rank([counts, moments, gains], [1, 2, 1])
    chex.assert_equal_shape_prefix([counts, moments, gains], 1)
    total = jnp.sum(counts)
    # without any gain the dual is linear along rays and its supremum, 0, is at the origin
    nothing = jnp.all(jnp.where(counts > 0, gains, 0.0) == 0.0) & jnp.all(corner_gains == 0.0)
    gains = jnp.where(nothing, 1.0, gains)
    level = best.mean_log + threshold / total

    def value_of(theta: Array, counts: Array, moments: Array, gains: Array, level: Array) -> tuple[Array, Array, Array]:
        tilted = tilt(moments, theta) + gains
        scale = jnp.exp(_log_mean(counts, tilted, jnp.sum(counts)) - level)
        return scale - jnp.sum(theta * support.expectation), scale, tilted

    frozen = jax.tree.map(jax.lax.stop_gradient, (counts, moments, gains, level))

    def evaluate(theta: Array) -> _Point:
        value, scale, tilted = value_of(theta, *frozen)
        first = jnp.where(frozen[0] > 0, frozen[0] / tilted, 0.0) / jax.lax.stop_gradient(total)
        gradient, hessian = _sums(frozen[1], first, first / tilted)
        return _Point(value, scale * gradient - support.expectation, scale * (jnp.outer(gradient, gradient) - hessian))

    squares = jnp.sum(frozen[0] * jnp.square(frozen[2]))
    size = jnp.sqrt(squares / (2.0 * threshold))
    inside = tilt(support.corners, support.interior)
    size = jnp.maximum(size, 20.0 * jnp.max(-corner_gains / inside))
    start = jax.lax.stop_gradient(size * (0.9 * best.multipliers + 0.1 * support.interior))
    theta, mass, steps = _maximise(evaluate, support.corners, corner_gains, start)
    value, scale, tilted = value_of(theta, counts, moments, gains, level)
    probabilities = scale * jnp.where(counts > 0, counts / tilted, 0.0) / total
    return Bound(jnp.where(nothing, 0.0, value), probabilities, mass, theta, steps)
