"""Chunks of a map: values of `jax.vmap`, and arrays that stay small whatever one item makes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops.chunked import chunked_map


def sizes(jaxpr):
    """Numbers in every array that is made."""
    for equation in jaxpr.eqns:
        yield from (math.prod(out.aval.shape) for out in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


@pytest.mark.parametrize("wide", [1, 40, 3000])
def test_chunks(wide):
    """Vectors of 300, of which the function makes arrays `wide` times as large, in an inner function."""
    items = jnp.asarray(np.random.default_rng(0).normal(size=(200, 300)), jnp.float32)
    inner = jax.jit(lambda x: jnp.sum(jnp.square(jnp.outer(x, jnp.arange(wide) + 1.0)), axis=0))

    def function(x):
        return jnp.max(inner(x))

    np.testing.assert_allclose(chunked_map(function, items), jax.vmap(function)(items), rtol=1e-5)
    largest = max(sizes(jax.make_jaxpr(lambda x: chunked_map(function, x))(items).jaxpr))
    assert largest <= max(2**18, 300 * wide)
    whole = max(sizes(jax.make_jaxpr(jax.vmap(function))(items).jaxpr))
    assert whole == 200 * 300 * wide
