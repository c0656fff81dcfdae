"""Stationary kernels of unit variance with one lengthscale per input dimension (automatic relevance determination).

Reference: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapter 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array

Kernel = Callable[[Array, Array, Array], Array]
_SQRT_3, _SQRT_5 = math.sqrt(3.0), math.sqrt(5.0)


def precise_dot(x: Array, y: Array) -> Array:
    """Matrix product with all bits: accelerators multiply float32 with fewer by default, too few for kernels and posteriors."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def squared_distance(x: Array, y: Array) -> Array:
    """`|x_i - y_j|^2`, `float[N, M]`, from differences: the expanded square loses digits where points are close.

    The gradient is written with matrix products; the derivative of the differences would need N x M x O numbers.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape_suffix([x, y], 1)

    def add(total: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.square(columns[0][:, None] - columns[1][None, :]), None

    return jax.lax.scan(add, jnp.zeros((x.shape[0], y.shape[0]), x.dtype), (x.T, y.T))[0]


def _squared_distance_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return squared_distance(x, y), (x, y)


def _squared_distance_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = saved
    by_x = jnp.sum(gradient, axis=1)[:, None] * x - precise_dot(gradient, y)
    by_y = jnp.sum(gradient, axis=0)[:, None] * y - precise_dot(gradient.T, x)
    return 2.0 * by_x, 2.0 * by_y


squared_distance.defvjp(_squared_distance_forward, _squared_distance_backward)


def _distance(x: Array, y: Array, lengthscale: Array) -> Array:
    squares = squared_distance(x / lengthscale, y / lengthscale)
    zero = squares <= 0.0
    # sqrt has an infinite slope at 0; where it is not taken its argument must not be 0 either.
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


def rbf(x: Array, y: Array, lengthscale: Array) -> Array:
    """Squared-exponential kernel `exp(-r^2 / 2)`, `r^2 = sum_o ((x_o - y_o) / lengthscale_o)^2`.

    Args:
        x: `float[N, O]`.
        y: `float[M, O]`.
        lengthscale: `float[O]`.

    Returns:
        `float[N, M]`.
    """
    return jnp.exp(-0.5 * squared_distance(x / lengthscale, y / lengthscale))


def matern12(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 1/2, `exp(-r)`; arguments as `rbf`. Its gradient at r = 0 is taken to be 0."""
    return jnp.exp(-_distance(x, y, lengthscale))


def matern32(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 3/2, `(1 + sqrt(3) r) exp(-sqrt(3) r)`; arguments as `rbf`."""
    r = _SQRT_3 * _distance(x, y, lengthscale)
    return (1.0 + r) * jnp.exp(-r)


def matern52(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 5/2, `(1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r)`; arguments as `rbf`."""
    r = _SQRT_5 * _distance(x, y, lengthscale)
    return (1.0 + r + jnp.square(r) / 3.0) * jnp.exp(-r)


KERNELS: dict[str, Kernel] = {"rbf": rbf, "matern12": matern12, "matern32": matern32, "matern52": matern52}
