"""Quadratic programmes over the simplex, against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrl_off.ops.simplex import minimise_quadratic, project


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_the_nearest_point(seed):
    point = np.random.default_rng(seed).normal(size=6)
    with jax.enable_x64(True):
        found = np.asarray(project(jnp.asarray(point)))
    assert found.sum() == pytest.approx(1.0)
    assert found.min() >= 0.0
    # the conditions of Karush, Kuhn and Tucker: one shift for all that are positive, at least that for the others
    shift = (point - found)[found > 0]
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)
    assert np.all(point[found == 0] <= shift[0] + 1e-12)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_minimum_is_that_of_scipy(rank):
    for seed in range(3):
        random = np.random.default_rng(seed)
        root = random.normal(size=(7, rank)) * 10.0 ** random.uniform(-1, 1, size=(7, 1))
        matrix = root @ root.T
        with jax.enable_x64(True):
            found = np.asarray(minimise_quadratic(jnp.asarray(matrix)))
        scale = np.abs(matrix).max()
        constraint = {"type": "eq", "fun": lambda x: x.sum() - 1}
        best = minimize(
            lambda x, a=matrix / scale: x @ a @ x,
            np.ones(7) / 7,
            bounds=[(0, 1)] * 7,
            constraints=constraint,
            tol=1e-14,
        )
        assert found @ matrix @ found / scale <= best.fun + 1e-7
        assert found.sum() == pytest.approx(1.0)


def test_what_has_no_minimum_of_its_own():
    np.testing.assert_allclose(minimise_quadratic(jnp.zeros((4, 4))), 0.25)
    np.testing.assert_allclose(minimise_quadratic(jnp.full((2, 2), jnp.nan)), 0.5)
    np.testing.assert_allclose(minimise_quadratic(jnp.diag(jnp.array([1.0, 3.0]))), [0.75, 0.25], atol=1e-6)
