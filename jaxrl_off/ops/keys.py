"""Random keys that are cheap inside compiled loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

from jaxrl_off.types import Array


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


def _fold_in(key: Array, data: Array | int) -> Array:
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
