"""Unrolled keys give what plain keys give."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops import keys
from jaxrl_off.ops.keys import unrolled_keys


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.bits(key, (5, 3)),
        lambda key: jax.random.bits(key, (7,), "uint8"),
        lambda key: jax.random.normal(key, (4,)),
        lambda key: jax.random.randint(key, (6,), 0, 1000),
        lambda key: jax.random.permutation(key, 9),
        lambda key: jax.random.uniform(jax.random.fold_in(key, 12345)),
        lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 4)),
        lambda key: jax.random.gumbel(jax.random.split(key, (2, 3))[1, 2], (8,)),
    ],
)
@pytest.mark.parametrize("seed", [0, 2**31 + 7])
def test_same_numbers(draw, seed):
    key = jax.random.key(seed)
    expected, given = draw(key), jax.jit(lambda key: draw(unrolled_keys(key)))(key)
    assert expected.dtype == given.dtype
    np.testing.assert_array_equal(given, expected)


def test_same_numbers_in_64_bits():
    with jax.enable_x64(True):
        key = jax.random.key(3)
        expected = jax.random.bits(key, (5,), "uint64")
        np.testing.assert_array_equal(jax.random.bits(unrolled_keys(key), (5,), "uint64"), expected)


def test_other_keys_are_left_alone():
    key = jax.random.key(0, impl="rbg")
    assert unrolled_keys(key) is key
    assert jnp.issubdtype(unrolled_keys(jax.random.key(0)).dtype, jax.dtypes.prng_key)


def test_doctests():
    assert doctest.testmod(keys).failed == 0
