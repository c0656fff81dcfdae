"""Running many training jobs: one process a core on CPU, one batched program a job on a GPU, results written as they come.

A job is one compiled program: a game, a preset, loop settings and a list of members (overrides of the config's reals, and a
seed). Its result is a JSON file named by the job's content, so that an interrupted benchmark goes on where it stopped and
nothing is computed, or overwritten, twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

PLACES = {"--cache", "--output", "--curves", "--peer-python", "--purejaxrl", "--experts", "--data"}
CURVES = (
    "steps",
    "episode_return",
    "half_squared_log_ratio",
    "kl_to_behaviour",
    "clip_fraction",
    "effective_sample_size",
    "divergence",
    "entropy",
    "staleness_mean",
    "staleness_max",
    "reuse",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One compiled program.

    Attributes:
        environment: name for `envs.make`.
        num_envs: lanes.
        method: label in the tables.
        preset: key of `agents.PRESETS`.
        static: static overrides of the preset, as sorted pairs.
        settings: `LoopSettings` fields, as sorted pairs.
        members: pairs (overrides of reals as sorted pairs, seed).
        cell: further labels of the result (regime, stage, ...), as sorted pairs.
    """

    environment: str
    num_envs: int
    method: str
    preset: str
    static: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, Any], ...]
    members: tuple[tuple[tuple[tuple[str, float], ...], int], ...]
    cell: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Content hash, the file name of the result."""
        return digest(dataclasses.asdict(self))

    @property
    def cost(self) -> float:
        """Trained and collected samples, to start the longest first."""
        s = dict(self.settings)
        return s["total_steps"] * (1.0 + 2.0 * s["reuse"]) * len(self.members)


def digest(content: Any) -> str:
    """Hash of something JSON-able, to name a file by what it holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def pairs(mapping: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A dict as sorted pairs, hashable."""
    return tuple(sorted(mapping.items()))


def run_job(job: Job) -> dict[str, Any]:
    """Train all members of a job; returns labels, curves and times, JSON-ready."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl_off import agents, envs
    from jaxrl_off.training import LoopSettings, make_train, stack_configs, sweep

    environment = envs.make(job.environment, job.num_envs)
    configs = [agents.preset(job.preset, **dict(job.static), **dict(reals)) for reals, _ in job.members]
    keys = jnp.stack([jax.random.key(seed) for _, seed in job.members])
    train = make_train(agents.make, environment, LoopSettings(**dict(job.settings)))

    def curves(config: Any, key: Any) -> dict[str, Any]:
        metrics = train(config, key).metrics
        return {name: metrics[name] for name in CURVES}

    started = time.perf_counter()
    program = jax.jit(lambda c, k: sweep(curves, c, k)).lower(stack_configs(configs), keys).compile()
    compiled = time.perf_counter()
    results = jax.block_until_ready(program(stack_configs(configs), keys))
    finished = time.perf_counter()
    arrays = {name: np.asarray(value, np.float64) for name, value in results.items()}
    runs = [
        {
            "reals": dict(reals),
            "seed": seed,
            "curves": {name: [rounded(x) for x in value[i]] for name, value in arrays.items()},
        }
        for i, (reals, seed) in enumerate(job.members)
    ]
    return {
        "environment": job.environment,
        "method": job.method,
        "preset": job.preset,
        "static": dict(job.static),
        "settings": dict(job.settings),
        "num_envs": job.num_envs,
        **dict(job.cell),
        "compile_seconds": round(compiled - started, 2),
        "run_seconds": round(finished - compiled, 2),
        "device": jax.devices()[0].device_kind,
        "runs": runs,
    }


def rounded(x: float) -> float | None:
    """Five significant digits; None where there is no number."""
    return float(f"{x:.5g}") if x == x and abs(x) != float("inf") else None


def _pin(cores: Any) -> None:
    """Give this worker one core of its own, so that its XLA uses one thread."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"


def run_all(
    jobs: list[Any], cache: Path, *, workers: int, title: str, runner: Callable[[Any], dict[str, Any]] = run_job
) -> list[dict[str, Any]]:
    """Run the jobs that are not in the cache yet and return the results of all, in order.

    Args:
        jobs: what to run, picklable, with `name`, `cost`, `method` and `environment` as `Job` has; duplicates run once.
        cache: folder of finished results.
        workers: processes; 0 runs them in this process, as a GPU wants it.
        title: of the progress bar.
        runner: what runs one of them; a function of a module.

    Raises:
        RuntimeError: if a job failed; the others are finished and kept first.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

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
            with ProcessPoolExecutor(workers, context, initializer=_pin, initargs=(cores,)) as pool:
                futures = {pool.submit(runner, job): job for job in queue}
                for future in as_completed(futures):
                    error = future.exception()
                    finish(futures[future], None if error else future.result(), error)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(queue)} jobs failed:\n" + "\n".join(failures))
    return [json.loads((cache / f"{job.name}.json").read_text()) for job in jobs]


def command_line(description: str, presets: Iterable[str], cache: str) -> argparse.ArgumentParser:
    """What every benchmark of many jobs takes: `--preset`, `--workers`, `--cache` and `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(presets), default="quick")
    workers = "processes; default: cores on CPU, 0 (in process) on GPU"
    parser.add_argument("--workers", type=int, default=None, help=workers)
    parser.add_argument("--cache", type=Path, default=Path("results/cache") / cache, help="finished jobs")
    parser.add_argument("--output", type=Path, default=None)
    return parser


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


def write_results(
    output: Path, benchmark: str, preset_name: str, preset: Any, found: list[dict[str, Any]], results: list[Any]
) -> dict[str, Any]:
    """Write what a preset gave, with all that stands beside its numbers; returns what was written.

    Args:
        output: file.
        benchmark: module's name.
        preset_name: key of its presets.
        preset: its sizes.
        found: of `run_all`; their seconds are added up.
        results: what is to be told of them.
    """
    content = {
        "benchmark": benchmark,
        "preset": preset_name,
        "provenance": provenance(),
        "compute_seconds": round(sum(job["seconds"] for job in found), 1),
        "sizes": preset,
        "results": results,
    }
    write_json(output, content)
    return content


def provenance() -> dict[str, Any]:
    """Hardware, versions, command and date, to stand beside every number."""
    import importlib.metadata as metadata

    import jax

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = (
        "jax", "jaxlib", "flax", "optax", "gymnax", "flashbax", "brax", "ale-py", "gymnasium", "gymnasium-robotics", "mujoco",
        "rejax", "numpy", "rliable",
    )  # fmt: skip
    return {
        "command": _command(sys.argv),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := version(name))},
    }


def _command(words: list[str]) -> str:
    """The command line, without the places that only the caller's machine has."""
    kept = [word for before, word in zip(["", *words[1:]], words[1:], strict=False) if not {before, word} & PLACES]
    return " ".join(["python", "-m", _module(Path(words[0])), *kept])


def _module(script: Path) -> str:
    """`benchmarks.room.name` of the file that Python was started with."""
    parts = script.with_suffix("").parts
    return ".".join(parts[parts.index("benchmarks") :] if "benchmarks" in parts else parts[-1:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
