"""Quadratic programs over the probability simplex: the weights of convex combinations of estimates."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array

_STEPS = 2000


def project(point: Array) -> Array:
    """The nearest point of the simplex, `float[m]`: `max(x - tau, 0)` with tau such that it sums to 1.

    Reference: Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient Projections onto the l1-Ball", ICML 2008, figure 1.

    Example:
        >>> [round(float(x), 6) for x in project(jnp.array([0.7, 0.6, -1.0]))]
        [0.55, 0.45, 0.0]
    """
    chex.assert_rank(point, 1)
    falling = jnp.sort(point)[::-1]
    thresholds = (jnp.cumsum(falling) - 1.0) / jnp.arange(1, len(point) + 1)
    last = jnp.sum(falling > thresholds) - 1
    return jnp.maximum(point - thresholds[last], 0.0)


def minimise_quadratic(matrix: Array) -> Array:
    """`argmin x^T A x` over the simplex, for a symmetric positive semi-definite A.

    2,000 steps of the accelerated projected gradient (Beck and Teboulle 2009) with a restart whenever momentum points uphill
    (O'Donoghue and Candes 2015). Where A is singular, one of the minimisers.

    Args:
        matrix: `float[m, m]`; m is small.

    Returns:
        `float[m]`, non-negative, sums to 1. Uniform where A is 0 or not finite.
    """
    chex.assert_rank(matrix, 2)
    size = matrix.shape[0]
    largest = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    fine = jnp.isfinite(largest) & (largest > 0)
    scaled = jnp.where(fine, matrix / jnp.where(fine, largest, 1.0), 0.0)
    start = jnp.full(size, 1.0 / size, matrix.dtype)

    def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        point, ahead, pace = carry
        # gradient 2 A x, of which 2 bounds the Lipschitz constant after scaling
        moved = project(ahead - scaled @ ahead)
        uphill = jnp.sum((ahead - moved) * (moved - point)) > 0
        faster = jnp.where(uphill, 1.0, 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * jnp.square(pace))))
        push = jnp.where(uphill, 0.0, (pace - 1.0) / faster)
        return moved, moved + push * (moved - point), faster

    return jax.lax.fori_loop(0, _STEPS, step, (start, start, jnp.ones((), matrix.dtype)))[0]
