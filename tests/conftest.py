"""What all tests share: cheap compilation, memory that is given back, and a summary of where the time went."""

import collections
import ctypes
import gc
import os
import shutil
import tempfile

import jax
import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    """One compilation cache for all workers and subprocesses of a run, since many tests compile the same programs."""
    if not hasattr(config, "workerinput") and _CACHE not in os.environ:
        config.compilation_cache = os.environ[_CACHE] = tempfile.mkdtemp(prefix="jaxrl_off_tests_")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        # jax has been imported, and reads its environment then; workers and subprocesses read it later
        jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_unconfigure(config):
    """Remove the cache of this run."""
    if hasattr(config, "compilation_cache"):
        del os.environ[_CACHE]
        shutil.rmtree(config.compilation_cache, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(request):
    """Nearly all time of most tests is compilation, which costs a quarter less without XLA's expensive optimisations.

    Modules that compute for long say so with `pytestmark = pytest.mark.optimised`.
    """
    if request.node.get_closest_marker("optimised"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for subprocesses
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """A process may hold so many pieces of memory (65,530 on Linux), and every program that JAX keeps takes some.

    Without this a worker that runs half of the tests crashes, and with the allocator's leftovers it grows to gigabytes.
    """
    yield
    jax.clear_caches()
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        pass


def pytest_terminal_summary(terminalreporter):
    """Seconds by test file, and in all, so that the next slow test is seen; `--durations` lists single tests."""
    seconds: collections.Counter[str] = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[report.nodeid.split("::")[0]] += report.duration
    terminalreporter.section("seconds by file, the fifteen slowest")
    for name, spent in seconds.most_common(15):
        terminalreporter.line(f"{spent:8.1f}  {name}")
    terminalreporter.line(f"{sum(seconds.values()):8.1f}  in all {len(seconds)} files, all workers together")
