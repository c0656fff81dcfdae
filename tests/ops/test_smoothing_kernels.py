"""Smoothing kernels: constants, distribution functions and quadratures against numerical integrals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops.kernels import SMOOTHING_KERNELS, kernel_quadrature

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


@pytest.mark.parametrize("name", SMOOTHING_KERNELS)
def test_derivatives_are_finite_in_and_outside_the_support(name):
    points = jnp.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    slopes = jax.vmap(jax.grad(SMOOTHING_KERNELS[name].log_density))(points)
    assert np.isfinite(np.asarray(slopes)).all()
