"""Replay of roll-outs on flashbax, and sampling of fresh data without replacement."""

from __future__ import annotations

from typing import Any

import flashbax
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array, PyTree


def make_rollout_replay(capacity: int, batch_size: int) -> Any:
    """A ring of roll-outs that is sampled uniformly with replacement.

    Args:
        capacity: number of roll-outs kept; the oldest are overwritten.
        batch_size: roll-outs in a sample.

    Returns:
        A flashbax buffer: `init(rollout)`, `add(state, rollouts[R])`, `sample(state, key).experience -> rollouts[B]`.
        Pure and functional; sizes are static.
    """
    return flashbax.make_item_buffer(
        max_length=capacity, min_length=1, sample_batch_size=batch_size, add_sequences=False, add_batches=True
    )


def empty_replay(replay: Any, rollouts: PyTree) -> PyTree:
    """State of an empty replay for roll-outs like `rollouts[R, ...]` (shapes and dtypes only; arrays or structs)."""
    return replay.init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), rollouts))


def minibatch_indices(key: Array, count: int, num_minibatches: int, epochs: int) -> Array:
    """Split `count` roll-outs into minibatches, each epoch in a new order.

    Args:
        key: consumed.
        count: number of roll-outs R.
        num_minibatches: divides R.
        epochs: passes over the data.

    Returns:
        Indices `int32[epochs * num_minibatches, R / num_minibatches]` into the roll-outs.
    """
    keys = jax.random.split(key, epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, count))(keys)
    return order.reshape(epochs * num_minibatches, count // num_minibatches)
