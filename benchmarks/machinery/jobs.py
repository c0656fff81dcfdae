"""Running many jobs, one process a core on CPU, all in this process on an accelerator; results are written as they come.

A job has a name (a hash of its content), a cost, and labels for messages. Its result is a JSON file of that name, so that an
interrupted benchmark goes on where it stopped, and nothing is computed, or overwritten, twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Job(Protocol):
    """What `run_all` has to know of a job.

    Attributes:
        name: file name of the result; a `digest` of everything that the result depends on.
        cost: the longest jobs start first.
        method: label of failures, with `environment`.
        environment: label of failures.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def cost(self) -> float: ...  # noqa: D102

    @property
    def method(self) -> str: ...  # noqa: D102

    @property
    def environment(self) -> str: ...  # noqa: D102


def digest(content: Any) -> str:
    """Hash of something JSON-able, to name a file by what it holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def pairs(mapping: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A dict as sorted pairs, hashable."""
    return tuple(sorted(mapping.items()))


def rounded(x: float) -> float | None:
    """Five significant digits; None where there is no number."""
    return float(f"{x:.5g}") if x == x and abs(x) != float("inf") else None


def _pin(cores: Any, compiled: Path) -> None:
    """Give this worker one core of its own, so that its XLA uses one thread; workers share what they compile."""
    core = cores.get()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.resolve()))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"


def split(job: Any, size: int) -> list[Any]:
    """A job as several of `size` of its `members` each; 0 leaves it whole."""
    step = size or len(job.members)
    return [dataclasses.replace(job, members=job.members[i : i + step]) for i in range(0, len(job.members), step)]


def merged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of jobs that differ in their `runs` alone as one: runs in order, seconds added up."""
    together: dict[str, dict[str, Any]] = {}
    added = ("runs", "compile_seconds", "fit_seconds", "run_seconds")
    for result in results:
        same = together.setdefault(digest({k: v for k, v in result.items() if k not in added}), dict(result))
        if same["runs"] is not result["runs"]:
            same.update({key: same[key] + result[key] for key in added if key in result})
    return list(together.values())


def finished(jobs: Sequence[Job], cache: Path) -> list[dict[str, Any]]:
    """Results of those jobs that are in the cache, in order; runs nothing."""
    paths = [cache / f"{job.name}.json" for job in jobs]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def run_all(
    jobs: Sequence[Job], cache: Path, *, workers: int, title: str, runner: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run the jobs that are not in the cache yet and return the results of all, in order.

    Args:
        jobs: what to run, picklable; duplicates run once.
        cache: folder of finished results.
        workers: processes; 0 runs them in this process, as a GPU wants it.
        title: of the progress bar.
        runner: runs one job and returns its result, ready for JSON; has to be a function of a module.

    Raises:
        RuntimeError: if a job failed; the others are finished and kept first.
    """
    cache.mkdir(parents=True, exist_ok=True)
    todo = {job.name: job for job in jobs if not (cache / f"{job.name}.json").exists()}
    queue = sorted(todo.values(), key=lambda job: -job.cost)
    if len(queue) < len(jobs):
        print(f"{title}: {len(jobs) - len(queue)} of {len(jobs)} jobs are already in {cache}; reusing them.")
    failures: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=len(queue))

        def finish(job: Job, result: dict[str, Any] | None, error: BaseException | None) -> None:
            if error is not None:
                failures.append(f"{job.method} on {job.environment}: {error!r}")
            else:
                write_json(cache / f"{job.name}.json", result)
            progress.advance(task)

        if workers == 0:
            for job in queue:
                try:
                    finish(job, runner(job), None)
                except Exception as error:  # the other jobs go on; the failure is raised at the end
                    finish(job, None, error)
        elif queue:
            context = multiprocessing.get_context("spawn")
            cores = context.Queue()
            available = (
                sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
            )
            for i in range(workers):
                cores.put(list(available)[i % len(available)])
            with ProcessPoolExecutor(workers, context, initializer=_pin, initargs=(cores, cache / "compiled")) as pool:
                futures = {pool.submit(runner, job): job for job in queue}
                for future in as_completed(futures):
                    error = future.exception()
                    finish(futures[future], None if error else future.result(), error)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(queue)} jobs failed:\n" + "\n".join(failures))
    return finished(jobs, cache)


def default_workers(given: int | None) -> int:
    """Processes to use: as given, else one a core on CPU and none but this one on an accelerator."""
    if given is not None:
        return given
    import jax

    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 0


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a killed process leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, separators=(",", ":")))
    temporary.replace(path)
