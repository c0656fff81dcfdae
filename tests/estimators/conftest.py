"""Estimators are compiled once and run on few numbers: tests of them take the time of compilation, so have less of it."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs without most of XLA's optimisations; other tests have all of them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
