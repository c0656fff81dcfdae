"""Replay of roll-outs on flashbax, sampling of fresh data without replacement, and keys that are cheap inside loops."""

from __future__ import annotations

import math
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

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


def unrolled_keys(keys: Array) -> Array:
    """Keys that give the same random numbers as `keys` by straight-line code.

    JAX compiles threefry to a loop on CPU, which costs more than the step of a small environment; written out it is fused
    with what uses it. On other backends, and for other kinds of keys, `keys` come back as they are.

    Example:
        >>> key = jax.random.key(0)
        >>> bool(jax.random.bits(unrolled_keys(key)) == jax.random.bits(key))
        True
    """
    if jax.default_backend() != "cpu" or jax.random.key_impl(keys) != "threefry2x32":
        return keys
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_UNROLLED)


def _threefry(key: Array, count: Array) -> tuple[Array, Array]:
    """Threefry 2x32 with 20 rounds (Salmon et al., SC 2011) of the counters `(0, count)`, element by element."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = schedule[0], count + schedule[1]
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + schedule[(block + 1) % 3]
        y = y + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return x, y


def _counts(shape: tuple[int, ...]) -> Array:
    return jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_threefry(key, _counts(shape)), axis=-1)


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    x, y = _threefry(key, _counts(shape))
    if bit_width == 64:
        return (x.astype(jnp.uint64) << 32) | y.astype(jnp.uint64)
    return (x ^ y).astype(f"uint{bit_width}")


def _fold_in(key: Array, data: Array) -> Array:
    return jnp.stack(_threefry(key, jnp.asarray(data, jnp.uint32)))


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="fryu",
)
