"""`jax.vmap` over many items, a few at a time, so that memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxrl_off.types import Array

_NUMBERS = 2**18  # that an array of one chunk may hold


def chunked_map(function: Callable[[Array], Array], items: Array) -> Array:
    """`jax.vmap(function)(items)`, in chunks of as many items as fit.

    A chunk is so large that none of the arrays that the function makes, shapes of which are known before it runs, holds more
    than 2^18 numbers for all of its items, and is one item if one alone makes a larger one.

    Args:
        function: `item -> Array`, jittable.
        items: `[m, ...]`.

    Returns:
        `[m, ...]`.
    """
    size = max(1, min(items.shape[0], _NUMBERS // _largest(jax.make_jaxpr(function)(items[0]).jaxpr)))
    return jax.lax.map(function, items, batch_size=size)


def _largest(jaxpr: Any) -> int:
    """Numbers in the largest array that is made, in inner functions, too."""
    inner = [getattr(x, "jaxpr", x) for equation in jaxpr.eqns for x in jax.tree.leaves(list(equation.params.values()))]
    made = [math.prod(out.aval.shape) for equation in jaxpr.eqns for out in equation.outvars]
    return max([1, *made, *(_largest(x) for x in inner if hasattr(x, "eqns"))])
