"""Smoothing kernels: constants, distribution functions and quadratures against numerical integrals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops.kernels import SMOOTHING_KERNELS, kernel_quadrature, squared_distance

WANTED = {
    "gaussian": (1.0, 0.28209479),
    "epanechnikov": (0.2, 0.6),
    "triangular": (1 / 6, 2 / 3),
    "cosine": (0.18943, 0.61685),
    "uniform": (1 / 3, 0.5),
}


@pytest.mark.parametrize("name", SMOOTHING_KERNELS)
def test_constants_and_distribution_are_those_of_the_density(name):
    kernel = SMOOTHING_KERNELS[name]
    reach = min(kernel.support, 9.0)
    edges = np.linspace(-reach, reach, 8001)
    middle, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    with jax.enable_x64(True):
        density = np.exp(np.asarray(kernel.log_density(jnp.asarray(middle))))
        distribution = np.asarray(kernel.distribution(jnp.asarray(edges)))
    np.testing.assert_allclose(density.sum() * width, 1.0, atol=1e-6)
    np.testing.assert_allclose((density * middle**2).sum() * width, kernel.second_moment, atol=1e-6)
    np.testing.assert_allclose((density**2).sum() * width, kernel.roughness, atol=1e-6)
    np.testing.assert_allclose((kernel.second_moment, kernel.roughness), WANTED[name], atol=1e-5)
    np.testing.assert_allclose(np.diff(distribution), density * width, atol=1e-6)


@pytest.mark.parametrize("name", SMOOTHING_KERNELS)
def test_quadratures_are_exact_for_polynomials(name):
    nodes, weights = kernel_quadrature(name, 3)
    points, mass = np.polynomial.legendre.leggauss(80)
    reach = min(SMOOTHING_KERNELS[name].support, 12.0)
    halves = [np.concatenate([-(points + 1), points + 1]) * reach / 2, np.tile(mass, 2) * reach / 2]
    with jax.enable_x64(True):
        density = np.exp(np.asarray(SMOOTHING_KERNELS[name].log_density(jnp.asarray(halves[0]))))
    for power in range(6):
        wanted = (density * halves[1] * halves[0] ** power).sum()
        np.testing.assert_allclose(weights @ nodes**power, wanted, atol=1e-10)
    with pytest.raises(ValueError, match="at least 1"):
        kernel_quadrature(name, 0)
    with pytest.raises(ValueError, match="kernel must be one of"):
        kernel_quadrature("magic", 2)
    with pytest.raises(ValueError, match="read-only"):  # it is shared
        weights[0] = 1.0


@pytest.mark.parametrize("name", SMOOTHING_KERNELS)
def test_the_density_is_the_derivative_of_the_distribution(name):
    kernel, points = SMOOTHING_KERNELS[name], jnp.array([-0.9, -0.3, 0.0, 0.3, 0.9])
    slopes = jax.vmap(jax.grad(kernel.distribution))(points)
    np.testing.assert_allclose(slopes, np.exp(kernel.log_density(points)), rtol=1e-5)


def test_slopes_of_squared_distances_keep_their_digits_far_from_the_origin():
    random = np.random.default_rng(0)
    x, y, weight = random.normal(size=(4, 3)), random.normal(size=(5, 3)), random.normal(size=(4, 5))
    x, y = (np.round(points * 64) / 64 + 4096.0 for points in (x, y))  # exact in float32
    difference = x[:, None] - y[None]
    wanted = [2.0 * np.einsum("ij,ijo->io", weight, difference), -2.0 * np.einsum("ij,ijo->jo", weight, difference)]
    given = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    found = jax.grad(lambda x, y: jnp.sum(weight.astype(np.float32) * squared_distance(x, y)), (0, 1))(*given)
    for slope, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(slope, exact, atol=1e-4)


@pytest.mark.parametrize("name", SMOOTHING_KERNELS)
def test_derivatives_are_finite_in_and_outside_the_support(name):
    points = jnp.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    slopes = jax.vmap(jax.grad(SMOOTHING_KERNELS[name].log_density))(points)
    assert np.isfinite(np.asarray(slopes)).all()
