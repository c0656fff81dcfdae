"""What all estimators share: checks, float64, padding, weighted means and their standard errors.

Estimators compute in float64, also where JAX's default is float32. If you wrap one in your own `jit`, `vmap` or `grad`, do so
inside `with jax.enable_x64(True):`; otherwise a ValueError is raised (see `float64`).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.warnings import FEWEST_FOR_Z
from jaxrl_off.types import Array

SIDES = ("two", "lower", "upper")

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest of what is allowed, or nothing if none is near; to be added to an error."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def named_options(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """A function whose error for an unknown option lists all options that it has, and the nearest one."""
    parameters = inspect.signature(function).parameters
    known, options = list(parameters), [name for name, x in parameters.items() if x.default is not x.empty]

    @functools.wraps(function)
    def checked(*arguments: _Parameters.args, **keywords: _Parameters.kwargs) -> _Result:
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"{function.__name__} has no option {name!r}.{did_you_mean(name, known)} "
                    f"Its options are {', '.join(options)}."
                )
        return function(*arguments, **keywords)

    return checked


def is_concrete(*values: Any) -> bool:
    """Whether no value is a tracer, so that numbers can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def padded_size(count: int) -> int:
    """Rows that `count` rows are padded to: at most an eighth more, so that logs of many sizes share few programs."""
    if count <= 16:
        return 16
    step = 2 ** max(math.floor(math.log2(count - 1)) - 3, 0)
    return -(-count // step) * step


def check_range(name: str, given: Sequence[float], *, infinite: bool = False) -> tuple[float, float]:
    """A pair `low < high` of numbers.

    Raises:
        ValueError: if it is none.
    """
    try:
        low, high = given
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pair (low, high) of numbers, got {given!r}.") from error
    if is_concrete(low, high):
        finite = math.isfinite(low) and (math.isfinite(high) or (infinite and high == math.inf))
        if not finite or not low < high:
            kind = "numbers, of which the second may be infinite," if infinite else "finite numbers"
            raise ValueError(f"{name} must be {kind} with low < high, got ({low}, {high}).")
    return low, high


def check_level(level: float | None, sides: str) -> None:
    """Refuse a level outside (0, 1) and unknown sides.

    Raises:
        ValueError: saying what is allowed.
    """
    if sides not in SIDES:
        raise ValueError(f"sides must be one of {', '.join(SIDES)}, got {sides!r}.")
    if level is not None and not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}.")


def weighted_mean(counts: Array, values: Array) -> Array:
    """`sum c x / sum c`."""
    return jnp.sum(counts * values) / jnp.sum(counts)


def standard_error(counts: Array, influence: Array) -> Array:
    """`sqrt(sum c (x - mean)^2 / (N (N - 1)))` of the mean of an influence function; infinite for N <= 1."""
    total = jnp.sum(counts)
    squares = jnp.sum(counts * jnp.square(influence - weighted_mean(counts, influence)))
    variance = squares / jnp.where(total > 1, total * (total - 1.0), 1.0)
    # a square root whose derivative at 0 is 0
    error = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return jnp.where(total > 1, error, jnp.inf)


def z_score(mean: Array, expected: Array | float, error: Array, total: Array) -> Array:
    """Standard errors that a mean is away from what it should be.

    NaN for fewer than `FEWEST_FOR_Z` rows, where an error of a few rows says nothing; infinite where the mean is off and the
    rows do not vary.
    """
    apart = mean - expected
    # rounding of a constant is no distance
    apart = jnp.where(jnp.abs(apart) <= 1e-12 * (1.0 + jnp.abs(mean)), 0.0, apart)
    varies = error > 1e-12 * (1.0 + jnp.abs(mean))
    still = jnp.where(apart == 0, 0.0, jnp.sign(apart) * jnp.inf)
    score = jnp.where(varies, apart / jnp.where(varies, error, 1.0), still)
    return jax.lax.stop_gradient(jnp.where(total >= FEWEST_FOR_Z, score, jnp.nan))


def overflow_scale(counts: Array, weights: Array) -> Array:
    """1e200 if squares of weights would overflow, else 1; divide weights by it where only ratios matter.

    Not the largest weight itself, whose reciprocal may be too small for the processor, which takes it for 0.
    """
    largest = jnp.max(jnp.where(counts > 0, jnp.abs(weights), 0.0), initial=0.0)
    return jax.lax.stop_gradient(jnp.where(largest > 1e100, 1e200, 1.0))


def effective_size(counts: Array, weights: Array) -> Array:
    """Kish's `(sum c w)^2 / sum c w^2`, in rows; 0 without any weight."""
    weights = jnp.where(counts > 0, weights, 0.0) / overflow_scale(counts, weights)
    squares = jnp.sum(counts * jnp.square(weights))
    return jnp.square(jnp.sum(counts * weights)) / jnp.where(squares > 0, squares, 1.0)


def float64(*values: Any) -> AbstractContextManager[None]:
    """The context that estimators run in, `jax.enable_x64(True)`.

    Args:
        *values: what they were given.

    Raises:
        ValueError: if something of it is a tracer and x64 is off, so that the caller's transformation would round.
    """
    if not is_concrete(values) and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise ValueError(
            "jax.jit, jax.vmap and jax.grad of estimators on trajectories must run inside `with jax.enable_x64(True):`; "
            "else JAX rounds to float32 what it batches or derives. Put the outermost transformation, and its call, in it."
        )
    return jax.enable_x64(True)
