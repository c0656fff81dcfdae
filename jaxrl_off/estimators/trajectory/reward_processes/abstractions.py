"""Abstractions: functions phi that put every observation into one of |Z| cells, for `star`.

An `Abstraction` takes observations `[n, T, ...]` and gives `int32[n, T]` in [0, num_states); what it gives in the
padding is arbitrary. To abstract what followed the last steps, give it `final_observation[:, None]` and take `[:, 0]`.

| function | cell |
|---|---|
| `tabular` | the observation, which is a number of a state |
| `time` | t |
| `state_and_time` | a cell of another abstraction, and t |
| `nearest_centroid` | the nearest of some points; `random_centroids` as in STAR's code, `k_means` fitted |
| `tiles` | of a grid |
| `hashed` | the sides of random hyperplanes |

phi may be chosen by observations of the trajectories that it is used on, but not by their rewards, if errors and
intervals are to hold. All is float64 within; see `float64` for `jax.jit` and `jax.vmap`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete
from jaxrl_off.types import Array

LAWS = ("uniform", "normal")
_BLOCK = 1024  # points whose distances are held at once
_LARGEST_CODE = 20  # bits; a process of 2^20 cells is beyond all memory
_MOST = 2**31  # cells that int32 can number
_ROUNDING = 1e-12  # a deviation below this share of the largest number is none


@dataclasses.dataclass(frozen=True)
class Abstraction:
    """A function of observations and its number of cells.

    Attributes:
        function: `observations [n, T, ...] -> int32[n, T]`.
        num_states: |Z|.

    Example:
        >>> phi = tiles([0.0], [1.0], [4])
        >>> phi(np.array([[0.1, 0.6, 7.0]])).tolist(), phi.num_states
        ([[0, 2, 3]], 4)
    """

    function: Callable[[Any], Array]
    num_states: int

    def __call__(self, observations: Any) -> Array:
        """The cells of observations."""
        return self.function(observations)


def tabular(num_states: int) -> Abstraction:
    """`phi(s) = s`, for observations that are numbers of states, `int[n, T]` or `int[n, T, 1]`.

    Numbers outside [0, num_states) stay as they are: padding may hold anything, and `star` looks at all other steps.

    Raises:
        ValueError: for observations that are not integers of these shapes; at the call.
    """
    _check_at_least_one(num_states=num_states)

    def function(observations: Any) -> Array:
        shape = jnp.shape(observations)
        if len(shape) == 3 and shape[2] == 1:
            observations = jnp.reshape(observations, shape[:2])
        elif len(shape) != 2:
            raise ValueError(f"tabular observations must be [n, T] or [n, T, 1], got shape {shape}.")
        observations = jnp.asarray(observations)
        if not jnp.issubdtype(observations.dtype, jnp.integer):
            raise ValueError(f"tabular observations must be integers, got {observations.dtype}; use tiles for numbers.")
        return observations.astype(jnp.int32)

    return Abstraction(function, num_states)


def time(horizon: int) -> Abstraction:
    """`phi(s, t) = t`, whatever is observed; steps after the horizon are in its last cell."""
    _check_at_least_one(horizon=horizon)

    def function(observations: Any) -> Array:
        n, length = jnp.shape(observations)[:2]
        return jnp.broadcast_to(jnp.minimum(jnp.arange(length, dtype=jnp.int32), horizon - 1), (n, length))

    return Abstraction(function, horizon)


def state_and_time(abstraction: Abstraction, horizon: int) -> Abstraction:
    """`phi(s, t) = t |Z| + z`, z the cell of another abstraction; keeps a process with a horizon Markov.

    Args:
        abstraction: the other one.
        horizon: T; later steps are taken for the last one.
    """
    _check_at_least_one(horizon=horizon)
    inner = abstraction.num_states
    _check_number(inner * horizon)

    def function(observations: Any) -> Array:
        cells = abstraction(observations)
        return cells + inner * jnp.minimum(jnp.arange(cells.shape[1], dtype=jnp.int32), horizon - 1)

    return Abstraction(function, inner * horizon)


def nearest_centroid(centroids: Any, *, centre: Any = 0.0, scale: Any = 1.0) -> Abstraction:
    """`phi(s) = argmin_k |(s - centre) / scale - m_k|`, Euclidean; the first of equals, and for NaN.

    Args:
        centroids: `float[|Z|, d]`, m. Observations are `[n, T, ...]` of d numbers a step.
        centre: `float[d]` or a number.
        scale: likewise, positive.

    Raises:
        ValueError: for centroids that are no finite table, or a scale that is not positive.
    """
    if jnp.ndim(centroids) != 2 or 0 in jnp.shape(centroids):
        raise ValueError(f"centroids must be [|Z|, d], got shape {jnp.shape(centroids)}.")
    if is_concrete(centroids, centre, scale):
        if not np.isfinite(centroids).all() or not np.isfinite(centre).all():
            raise ValueError("centroids and centre must be finite.")
        if not (np.asarray(scale) > 0).all():
            raise ValueError(f"scale must be positive, got {scale}; leave out what does not vary.")
    size, dimension = jnp.shape(centroids)

    def function(observations: Any) -> Array:
        with float64(observations, centroids, centre, scale):
            rows = _rows(observations, dimension, None)
            places = [jnp.asarray(x, jnp.float64) for x in (centroids, centre, scale)]
            return _nearest(rows.reshape(-1, dimension), *places).reshape(rows.shape[:2])

    return Abstraction(function, size)


def random_centroids(key: Array, num_states: int, dimension: int, *, law: str = "uniform") -> Abstraction:
    """`nearest_centroid` of points drawn at random, the abstractions that the released code of STAR has ("CluSTAR").

    Its experiments have "uniform" on [0, 1]^d for CartPole and Asterix and standard "normal" for one-hot states of
    ICU-Sepsis. The latter puts almost all states into one cell, that of the shortest point: the lengths of such points
    differ by far more than what a state is nearer to one than to another. Draw once, and keep for all data sets.

    Args:
        key: consumed.
        num_states: |Z|.
        dimension: d.
        law: "uniform" or "normal".

    Raises:
        ValueError: for sizes below 1 or an unknown law.

    Reference: `exps/clustar_creation.py` of the authors' code.
    """
    _check_at_least_one(num_states=num_states, dimension=dimension)
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}.")
    draw = jax.random.uniform if law == "uniform" else jax.random.normal
    with float64(key):
        return nearest_centroid(draw(key, (num_states, dimension), jnp.float64))


def k_means(
    key: Array, observations: Any, num_states: int, *, mask: Any = None, standardise: bool = False, iterations: int = 50
) -> Abstraction:
    """`nearest_centroid` of the means of cells, found by Lloyd's iteration from a k-means++ start.

    The start takes each further point with probability proportional to its squared distance from the nearest one taken.
    Then points go to their nearest mean and means to the middle of their points, `iterations` times or until nothing
    moves; a mean without points stays. Costs `iterations |Z| n T d` operations, and memory for the data once.

    Args:
        key: consumed.
        observations: `[n, T, ...]`.
        num_states: |Z|.
        mask: `bool[n, T]`, which steps were made, or None for all.
        standardise: divide each dimension by its standard deviation first (one that does not vary is left as it is).
        iterations: at most.

    Raises:
        ValueError: for sizes below 1, a mask that does not fit or is empty, or observations that are not finite.

    Reference: Lloyd, "Least Squares Quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """
    _check_at_least_one(num_states=num_states, iterations=iterations)
    shape = jnp.shape(observations)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"observations must be [n, T, ...], got shape {shape}.")
    dimension = math.prod(shape[2:])
    with float64(key, observations, mask):
        rows = _rows(observations, dimension)
        weight = jnp.ones(shape[:2]) if mask is None else jnp.asarray(mask, jnp.float64)
        if weight.shape != shape[:2] or (is_concrete(weight) and not bool(jnp.any(weight > 0))):
            raise ValueError(f"mask must be bool{list(shape[:2])} and not all False, got shape {weight.shape}.")
        rows, weight = jnp.where(weight[..., None] > 0, rows, 0.0).reshape(-1, dimension), weight.ravel()
        if is_concrete(rows) and not bool(jnp.all(jnp.isfinite(rows))):
            raise ValueError(
                "observations must be finite at all steps that were made; fix the data, or pass their mask."
            )
        centre, scale = jnp.zeros(dimension), jnp.ones(dimension)
        if standardise:
            centre = jnp.sum(weight[:, None] * rows, axis=0) / jnp.sum(weight)
            deviation = jnp.sqrt(jnp.sum(weight[:, None] * jnp.square(rows - centre), axis=0) / jnp.sum(weight))
            varies = deviation > _ROUNDING * jnp.max(jnp.abs(rows), axis=0)
            scale = jnp.where(varies, deviation, 1.0)
        centroids = _lloyd(key, (rows - centre) / scale, weight, num_states, iterations)
        return nearest_centroid(centroids, centre=centre, scale=scale)


def tiles(low: Sequence[float], high: Sequence[float], bins: Sequence[int]) -> Abstraction:
    """A grid: `floor((s_j - low_j) / (high_j - low_j) bins_j)` in each dimension j, the last of which counts fastest.

    What is beyond an end is in the tile at that end, and so is NaN, in the first.

    Args:
        low: d numbers.
        high: d numbers above these.
        bins: d numbers of tiles.

    Raises:
        ValueError: for lengths that differ or are 0, ends that are not in order, or bins below 1.
    """
    if not len(low) == len(high) == len(bins) >= 1:
        raise ValueError(f"low, high and bins must have one length, got {len(low)}, {len(high)} and {len(bins)}.")
    ends = np.asarray([low, high], np.float64)
    if not np.isfinite(ends).all() or not (ends[0] < ends[1]).all():
        raise ValueError(f"low must be below high, all finite, got {list(low)} and {list(high)}.")
    for number in bins:
        _check_at_least_one(bins=number)
    _check_number(math.prod(bins))
    strides = np.append(np.cumprod(bins[:0:-1])[::-1], 1)

    def function(observations: Any) -> Array:
        with float64(observations):
            place = (_rows(observations, len(bins)) - ends[0]) / (ends[1] - ends[0]) * np.asarray(bins)
            place = jnp.clip(jnp.nan_to_num(jnp.floor(place)), 0, np.asarray(bins) - 1).astype(jnp.int32)
            return jnp.sum(place * strides, axis=-1).astype(jnp.int32)

    return Abstraction(function, math.prod(bins))


def hashed(key: Array, dimension: int, bits: int, *, centre: Any = 0.0) -> Abstraction:
    """SimHash: `sum_k 2^k 1[a_k . (s - centre) > 0]` of standard normal a_k; |Z| = 2^bits.

    Two observations differ in a bit with probability angle / pi, seen from the centre. One key, one code.

    Args:
        key: consumed.
        dimension: d.
        bits: 1 to 20.
        centre: `float[d]` or a number; for observations that are all positive their mean, as all are on one side
            otherwise.

    Raises:
        ValueError: if a size is invalid.

    Reference: Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002.
    """
    _check_at_least_one(dimension=dimension, bits=bits)
    if bits > _LARGEST_CODE:
        raise ValueError(f"bits must be at most {_LARGEST_CODE}, got {bits}; there are 2^bits cells.")
    with float64(key, centre):
        normals = jax.random.normal(key, (bits, dimension), jnp.float64)

    def function(observations: Any) -> Array:
        with float64(observations, normals, centre):
            sides = (_rows(observations, dimension) - centre) @ normals.T > 0
            return jnp.sum(sides * 2 ** np.arange(bits), axis=-1).astype(jnp.int32)

    return Abstraction(function, 2**bits)


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")


def _check_number(cells: int) -> None:
    if cells > _MOST:
        raise ValueError(f"there are {cells:,} cells, more than int32 can number; make the abstraction coarser.")


def _rows(observations: Any, dimension: int, dtype: Any = jnp.float64) -> Array:
    """Observations `[n, T, ...]` as `[n, T, d]`, in their own type where none is given."""
    shape = jnp.shape(observations)
    if len(shape) < 2 or math.prod(shape[2:]) != dimension:
        raise ValueError(f"observations must be [n, T, ...] of {dimension} numbers a step, got shape {shape}.")
    return jnp.asarray(observations, dtype).reshape(*shape[:2], dimension)


@jax.jit
def _nearest(points: Array, centroids: Array, centre: Array | float = 0.0, scale: Array | float = 1.0) -> Array:
    """Index of the centroid nearest to `(point - centre) / scale`, `int32[N]`; some points at a time, to take little memory."""
    middle = jnp.mean(centroids, axis=0)  # no cancellation far from the origin
    centroids = centroids - middle
    lengths = jnp.sum(jnp.square(centroids), axis=1)

    def index(point: Array) -> Array:
        place = (point.astype(centroids.dtype) - centre) / scale - middle
        return jnp.argmin(lengths - 2.0 * centroids @ place).astype(jnp.int32)

    return jax.lax.map(index, points, batch_size=_BLOCK)


@functools.partial(jax.jit, static_argnames=("num_states", "iterations"))
def _lloyd(key: Array, points: Array, weight: Array, num_states: int, iterations: int) -> Array:
    """Means `[num_states, d]` of points `[N, d]`."""
    keys = jax.random.split(key, num_states)

    def take(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        taken, distance = carry
        # where all points are taken already any of them will do
        chance = jnp.where(jnp.any(weight * distance > 0), weight * distance, weight)
        point = points[jax.random.categorical(keys[k], jnp.log(chance))]
        return taken.at[k].set(point), jnp.minimum(distance, jnp.sum(jnp.square(points - point), axis=-1))

    start = (jnp.zeros((num_states, points.shape[1])), jnp.full(len(points), jnp.finfo(points.dtype).max))
    taken, _ = jax.lax.fori_loop(0, num_states, take, start)

    def move(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, means, _ = carry
        cells = _nearest(points, means)
        size = jax.ops.segment_sum(weight, cells, num_states)[:, None]
        middle = jax.ops.segment_sum(weight[:, None] * points, cells, num_states) / jnp.where(size > 0, size, 1.0)
        moved = jnp.where(size > 0, middle, means)
        return step + 1, moved, jnp.any(moved != means)

    def going_on(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < iterations) & carry[2]

    return jax.lax.while_loop(going_on, move, (jnp.zeros((), jnp.int32), taken, jnp.array(True)))[1]
