"""A bandit log in constant memory: a histogram of weights and rewards that keeps the moments estimators live on.

Each datum is shared among the four grid points around it so that its w, r and w r are kept exactly; only higher moments
(`w^2 r^2`) grow a little. Any estimator of weights and rewards then takes the grid as a log with counts.

The authors' online code (Karampatziakis et al. 2020) has this transform and ten buckets, rounds rewards to 0.01, and follows
the duals by one step a datum; here they are solved whenever they are asked for, which takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.common import check_range, is_concrete
from jaxrl_off.types import Array


class Histogram(NamedTuple):
    """Counts on a grid.

    Attributes:
        weights: `float64[B + 1]`, grid of weights: even in w up to 1 and in log w above.
        rewards: `float64[R + 1]`, even grid of rewards.
        counts: `float64[B + 1, R + 1]`.
    """

    weights: Array
    rewards: Array
    counts: Array


class Grid(NamedTuple):
    """A histogram as the columns of a log: `empirical_likelihood(*grid[:2], counts=grid.counts, ...)`.

    Attributes:
        weights: `float64[(B + 1) (R + 1)]`.
        rewards: `float64[(B + 1) (R + 1)]`.
        counts: `float64[(B + 1) (R + 1)]`.
    """

    weights: Array
    rewards: Array
    counts: Array


def make_histogram(
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    *,
    weight_buckets: int = 10,
    reward_buckets: int = 100,
) -> Histogram:
    """An empty histogram.

    Args:
        weight_range: (low, high) of the weights, finite.
        reward_range: (low, high) of the rewards.
        weight_buckets: B, at least 2.
        reward_buckets: R, at least 1; 1 loses nothing for rewards that are at the ends of their range.

    Raises:
        ValueError: if ranges or sizes are invalid.

    Example:
        >>> state = update_histogram(make_histogram((0.0, 4.0)), [0.5, 3.0], [1.0, 0.25])
        >>> import numpy as np
        >>> weights, rewards, counts = (np.asarray(column) for column in grid_of(state))
        >>> round(float((counts * weights * rewards).sum()), 12)
        1.25
    """
    low, high = common.check_weight_range(weight_range)
    least, most = check_range("reward_range", reward_range)
    if high == float("inf"):
        raise ValueError("a histogram needs a finite weight range; give the largest weight that is possible.")
    for name, value, fewest in (("weight_buckets", weight_buckets, 2), ("reward_buckets", reward_buckets, 1)):
        if value < fewest:
            raise ValueError(f"{name} must be at least {fewest}, got {value}.")
    with jax.enable_x64(True):
        ends = _stretched(jnp.asarray([low, high], jnp.float64))
        stretched = jnp.linspace(ends[0], ends[1], weight_buckets + 1)
        weights = (
            jnp.where(stretched <= 1.0, stretched, jnp.exp(stretched - 1.0)).at[jnp.array([0, -1])].set([low, high])
        )
        rewards = jnp.linspace(jnp.asarray(least, jnp.float64), most, reward_buckets + 1)
        return Histogram(weights, rewards, jnp.zeros((weight_buckets + 1, reward_buckets + 1), jnp.float64))


def _stretched(weights: Array) -> Array:
    return jnp.where(weights <= 1.0, weights, 1.0 + jnp.log(jnp.maximum(weights, 1.0)))


def update_histogram(state: Histogram, weights: Any, rewards: Any, counts: Any = None) -> Histogram:
    """Add one datum or a chunk of them; memory does not grow.

    Args:
        state: so far.
        weights: `float[]` or `float[n]`.
        rewards: as many.
        counts: multiplicities; None for 1 each.

    Raises:
        ValueError: for values outside the histogram's ranges.
    """
    with jax.enable_x64(True):
        weights, rewards = jnp.atleast_1d(jnp.asarray(weights)), jnp.atleast_1d(jnp.asarray(rewards))
        ranges = None, None
        if is_concrete(state):
            ranges = tuple(
                (float(grid[0]), float(grid[-1])) for grid in map(np.asarray, (state.weights, state.rewards))
            )
        rows = common.rows_of(weights, rewards, counts, *ranges)
        return _updated(state, rows.counts, rows.weights, rows.rewards)


@jax.jit
def _updated(state: Histogram, counts: Array, weights: Array, rewards: Array) -> Histogram:
    def place(values: Array, grid: Array) -> tuple[Array, Array]:
        """Lower neighbour, and the share of the upper one."""
        index = jnp.clip(jnp.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
        return index, (values - grid[index]) / (grid[index + 1] - grid[index])

    (i, x), (j, y) = place(weights, state.weights), place(rewards, state.rewards)
    total = state.counts
    for row, share in ((0, 1.0 - x), (1, x)):
        for column, part in ((0, 1.0 - y), (1, y)):
            total = total.at[i + row, j + column].add(counts * share * part)
    return state._replace(counts=total)


def grid_of(state: Histogram) -> Grid:
    """The histogram as columns of a log."""
    with jax.enable_x64(True):
        shape = state.counts.shape
        weights = jnp.broadcast_to(state.weights[:, None], shape).reshape(-1)
        return Grid(weights, jnp.broadcast_to(state.rewards, shape).reshape(-1), state.counts.reshape(-1))
