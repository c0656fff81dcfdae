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
    # Random high bits with the index below them: one operand, which sorts four times faster on CPU than a key with a value.
    # Ties of the random bits stay in order of their indices, next to each other, so mostly in one minibatch.
    index_bits = max(count - 1, 1).bit_length()
    random = jax.random.bits(key, (epochs, count)) >> index_bits << index_bits
    order = jax.lax.sort(random | jax.lax.broadcasted_iota(jnp.uint32, (epochs, count), 1), is_stable=False)
    order = (order & jnp.uint32((1 << index_bits) - 1)).astype(jnp.int32)
    return order.reshape(epochs * num_minibatches, count // num_minibatches)
