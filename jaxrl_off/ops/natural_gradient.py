"""Natural gradients: products with the Fisher information of a policy, and with its inverse by conjugate gradients.

Reference: Kakade, "A Natural Policy Gradient", NeurIPS 2001; the products are Pearlmutter's (1994), of the Hessian of a KL.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxrl_off.types import Array, PyTree


def fisher_product(
    divergence: Callable[[PyTree], Array], params: PyTree, damping: Array | float
) -> Callable[[PyTree], PyTree]:
    """`v -> (F + damping I) v`, F the Hessian of the divergence at `params`.

    Args:
        divergence: `params -> float[]`, mean KL from the policy of `params`, so that F is its Fisher information.
        params: where the divergence is 0.
        damping: at least 0.

    Returns:
        The product, linear and on pytrees like `params`. What it shares between vectors is computed here, once.
    """
    _, hessian_product = jax.linearize(jax.grad(divergence), params)

    def product(vector: PyTree) -> PyTree:
        return jax.tree.map(lambda h, v: (h + damping * v).astype(v.dtype), hessian_product(vector), vector)

    return product


def natural_direction(
    divergence: Callable[[PyTree], Array],
    params: PyTree,
    gradient: PyTree,
    damping: Array | float,
    iterations: int,
) -> PyTree:
    """`(F + damping I)^-1 gradient` by conjugate gradients from 0.

    Args:
        divergence, params, damping: see `fisher_product`.
        gradient: like `params`.
        iterations: at most; fewer once the residual is 1e-10 of the gradient.

    Returns:
        A pytree like `params`. However few the iterations, its product with the gradient is its own squared length in
        `F + damping I`, so that the step's length needs no further product.

    Example:
        >>> import jax.numpy as jnp
        >>> bowl = lambda x: 0.5 * (x[0] ** 2 + 4.0 * x[1] ** 2)
        >>> natural_direction(bowl, jnp.zeros(2), jnp.array([1.0, 2.0]), 0.0, 10)
        Array([1. , 0.5], dtype=float32)
    """
    product = fisher_product(divergence, params, damping)
    return jax.scipy.sparse.linalg.cg(product, gradient, tol=1e-10, maxiter=iterations)[0]
