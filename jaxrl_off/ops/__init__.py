"""Mathematics on arrays; functions of time take one trajectory `[T]` (use `jax.vmap` for more).

Importance weights, returns and traces, divergences and surrogates of policies, natural gradients; intervals, quantiles,
confidence sequences and empirical likelihood; kernels and Gaussian processes; quadratic programmes on the simplex.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.ops import (
        chunked,
        confidence_sequences,
        divergence,
        empirical_likelihood,
        gaussian_process,
        importance,
        intervals,
        kernels,
        keys,
        natural_gradient,
        quantiles,
        returns,
        simplex,
        sparse_gaussian_process,
        surrogates,
    )

__all__ = [
    "chunked",
    "confidence_sequences",
    "divergence",
    "empirical_likelihood",
    "gaussian_process",
    "importance",
    "intervals",
    "kernels",
    "keys",
    "natural_gradient",
    "quantiles",
    "returns",
    "simplex",
    "sparse_gaussian_process",
    "surrogates",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
