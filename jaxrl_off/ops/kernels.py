"""Kernels: covariances of Gaussian processes, and densities that smooth.

The first, `KERNELS`, are stationary, of unit variance, with one lengthscale per input dimension (automatic relevance
determination). Reference: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapter 4.

The second, `SMOOTHING_KERNELS`, are symmetric densities K of one number, for `K_h(u) = K(u / h) / h`; of several numbers the
product. Reference: Silverman, "Density Estimation for Statistics and Data Analysis", 1986, table 3.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

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
    x, y = (points - jnp.mean(saved[1], axis=0) for points in saved)  # far from the origin products lose digits
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


class SmoothingKernel(NamedTuple):
    """A symmetric density of one number, and what is known of it.

    Attributes:
        log_density: `float[...] -> float[...]`, log K; -inf outside the support, with a finite derivative everywhere.
        distribution: its distribution function.
        support: K is 0 outside `[-support, support]`; infinite for the Gaussian.
        second_moment: `M2 = int u^2 K`, by which smoothing is biased.
        roughness: `R = int K^2`, which variances are proportional to.
    """

    log_density: Callable[[Array], Array]
    distribution: Callable[[Array], Array]
    support: float
    second_moment: float
    roughness: float


def _compact(log_density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def function(u: Array) -> Array:
        inside = jnp.abs(u) < 1.0
        return jnp.where(inside, log_density(jnp.where(inside, u, 0.0)), -jnp.inf)

    return function


def _from_halves(upper: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A distribution function from `u in [0, 1] -> P(0 < U < u)`."""

    def function(u: Array) -> Array:
        u = jnp.clip(u, -1.0, 1.0)
        # not by sign and abs, whose derivatives at 0 are 0: policies that are clipped have targets on a bound
        return jnp.where(u < 0.0, 0.5 - upper(-u), 0.5 + upper(u))

    return function


SMOOTHING_KERNELS: dict[str, SmoothingKernel] = {
    "gaussian": SmoothingKernel(
        lambda u: -0.5 * (jnp.square(u) + math.log(2.0 * math.pi)),
        jax.scipy.special.ndtr,
        math.inf,
        1.0,
        0.5 / math.sqrt(math.pi),
    ),
    "epanechnikov": SmoothingKernel(
        _compact(lambda u: math.log(0.75) + jnp.log1p(-jnp.square(u))),
        _from_halves(lambda u: 0.75 * u - 0.25 * u**3),
        1.0,
        1.0 / 5.0,
        3.0 / 5.0,
    ),
    "triangular": SmoothingKernel(
        _compact(lambda u: jnp.log1p(-jnp.abs(u))), _from_halves(lambda u: u - 0.5 * u**2), 1.0, 1.0 / 6.0, 2.0 / 3.0
    ),
    "cosine": SmoothingKernel(
        _compact(lambda u: math.log(0.25 * math.pi) + jnp.log(jnp.cos(0.5 * math.pi * u))),
        _from_halves(lambda u: 0.5 * jnp.sin(0.5 * math.pi * u)),
        1.0,
        1.0 - 8.0 / math.pi**2,
        math.pi**2 / 16.0,
    ),
    "uniform": SmoothingKernel(
        _compact(lambda u: jnp.full_like(u, math.log(0.5))), _from_halves(lambda u: 0.5 * u), 1.0, 1.0 / 3.0, 0.5
    ),
}


@functools.cache
def kernel_quadrature(name: str, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss' rule for a smoothing kernel: `int K(u) f(u) du = sum_m weight_m f(node_m)`, exact for degrees up to 2 order - 1.

    Args:
        name: key of `SMOOTHING_KERNELS`.
        order: number of nodes.

    Returns:
        Nodes and weights, `float64[order]`, read-only.

    Raises:
        ValueError: for an order below 1, or an unknown kernel.

    Example:
        >>> nodes, weights = kernel_quadrature("epanechnikov", 2)
        >>> print(f"{weights @ nodes**2:.6f}")
        0.200000
    """
    if order < 1:
        raise ValueError(f"a quadrature needs an order of at least 1, got {order}.")
    if name not in SMOOTHING_KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(SMOOTHING_KERNELS)}, got {name!r}.")
    if name == "gaussian":
        nodes, weights = np.polynomial.hermite_e.hermegauss(order)
        return _frozen(nodes), _frozen(weights / weights.sum())
    fine, mass = np.polynomial.legendre.leggauss(64)
    fine, mass = 0.5 * (fine + 1.0), 0.5 * mass * _DENSITIES[name](0.5 * (fine + 1.0))
    # recurrence of the orthogonal polynomials (Stieltjes), whose first coefficients vanish by symmetry
    points, mass = np.concatenate([-fine, fine]), np.concatenate([mass, mass]) / (2.0 * mass.sum())
    before, now, beta = np.zeros_like(points), np.ones_like(points), []
    for _ in range(order - 1):
        following = points * now - (beta[-1] if beta else 0.0) * before
        beta.append((mass @ following**2) / (mass @ now**2))
        before, now = now, following
    nodes, vectors = np.linalg.eigh(np.diag(np.sqrt(beta), 1) + np.diag(np.sqrt(beta), -1))
    return _frozen(nodes), _frozen(vectors[0] ** 2)


def _frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False  # all callers share it
    return values


_DENSITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "epanechnikov": lambda u: 1.0 - u**2,
    "triangular": lambda u: 1.0 - u,
    "cosine": lambda u: np.cos(0.5 * np.pi * u),
    "uniform": np.ones_like,
}  # on [0, 1], up to a factor; NumPy's, as rules are made while others trace
