"""A metric for kernels of several actions, in which the bias of smoothing cancels.

Smoothing with `K_h(R (a - tau))`, `|det R| = 1`, has the bias `h^2 / 2 M2 tr(A^-1 H)` to second order, `A = R^T R`, H the
Hessian of q in the action at tau, and to first order the same variance for every R. So A is chosen to make `|tr(A^-1 H)|`
least. With eigenvalues l_i and eigenvectors of H, and A of the same eigenvectors with eigenvalues a_i, that trace is
`sum_i l_i / a_i` under `prod_i a_i = 1`:

* all l_i of one sign: `a_i` in proportion to `|l_i|`, by the inequality of the means;
* both signs: `a_i` in proportion to `p |l_i|`, p the number of eigenvalues of the same sign: every sign then adds up to the
  same, and the trace is 0.

A metric from the Hessian of the reward in which positive and negative parts cancel is the idea of KMIS, whose abstract alone
was at hand. The form is derived here; regularisation and constants of the paper may differ.

Reference: Lee et al., "Local Metric Learning for Off-Policy Evaluation in Contextual Bandits with Continuous Actions",
NeurIPS 2022.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrl_off.estimators.common import float64, is_concrete
from jaxrl_off.types import Array


def kernel_metric(hessian: Any, *, floor: float = 0.05) -> Array:
    """R for `Smoothing.metric`: the symmetric root of A, of determinant 1.

    Args:
        hessian: `float[..., A, A]`, of q in the action, in units of `Smoothing.scale`, at the target: of
            `nuisances.fit_curvature`, or known. Only the symmetric part matters.
        floor: eigenvalues below this share of the largest are taken for it, with their sign: a kernel must not be
            boundless in a direction in which q is flat. The trace is then not quite the least. 1 gives balls for one sign.

    Returns:
        `float64[..., A, A]`; the identity where the Hessian is 0.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or a floor outside (0, 1].

    Example:
        >>> print(kernel_metric([[16.0, 0.0], [0.0, 1.0]]).round(4).tolist())
        [[2.0, 0.0], [0.0, 0.5]]
    """
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor must be in (0, 1], got {floor}.")
    with float64(hessian):
        given = jnp.asarray(hessian, jnp.float64)
        if given.ndim < 2 or given.shape[-1] != given.shape[-2]:
            raise ValueError(f"hessian has shape {given.shape}; [..., A, A] is needed.")
        if is_concrete(given) and not bool(jnp.all(jnp.isfinite(given))):
            raise ValueError("hessian must be finite; give 0 where there is none.")
        values, vectors = jnp.linalg.eigh(0.5 * (given + jnp.swapaxes(given, -1, -2)))
        sizes = jnp.abs(values)
        largest = jnp.max(sizes, axis=-1, keepdims=True)
        sizes = jnp.where(largest > 0, jnp.maximum(sizes, floor * largest), 1.0)
        negative = jnp.sum(values < 0, axis=-1, keepdims=True)
        alike = jnp.where(values < 0, negative, values.shape[-1] - negative)
        logs = jnp.log(sizes) + jnp.log(jnp.where(largest > 0, alike, 1))
        logs = logs - jnp.mean(logs, axis=-1, keepdims=True)
        return jnp.einsum("...ik,...k,...jk->...ij", vectors, jnp.exp(0.5 * logs), vectors)
