"""What all tests share."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """A process may hold so many pieces of memory (65,530 on Linux), and every program that JAX keeps takes some.

    Without this a worker that runs half of the tests crashes.
    """
    yield
    jax.clear_caches()
