"""A study of N-PPAC: every method tuned with the same budget on its own seeds, then judged on fresh ones, task by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machinery.jobs import run_all
from benchmarks.nppac.claims import choose
from benchmarks.nppac.jobs import Method, make_job, run_nppac_job


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Sizes of a study.

    Attributes:
        tasks: labels.
        methods: keys of `jobs.methods`.
        demonstrations: trajectories.
        steps: samples of a run.
        seeds: of the final runs.
        sizes: hidden layers of all networks.
        batch_size: transitions in an update.
        pretrain: updates before the first sample.
        log_points: evaluations after the first.
        evaluation_episodes: greedy episodes in each.
        fit: see `jobs.methods`.
        tuning_tasks, tuning_seeds, tuning_steps: of the tuning stage; without one every method keeps its preset's setting.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    demonstrations: int
    steps: int
    seeds: int
    sizes: tuple[int, ...]
    batch_size: int
    pretrain: int
    log_points: int
    evaluation_episodes: int
    fit: dict[str, dict[str, Any]]
    tuning_tasks: tuple[str, ...] = ()
    tuning_seeds: int = 0
    tuning_steps: int = 0


def run_study(
    study: Study,
    method_of: Callable[[str, str], Method],
    environment_of: Callable[[str], dict[str, Any]],
    demonstrations: dict[str, Path],
    scales: dict[str, list[float]] | None = None,
    *,
    workers: int,
    cache: Path,
) -> dict[str, Any]:
    """Tune and judge.

    Args:
        study: sizes.
        method_of: `(task, name) -> Method`.
        environment_of: `task -> environment, parameters` of `make_job`, and `horizon`, its longest episode.
        demonstrations: file of each task, all in the cache.
        scales: see `claims.curve_of`.
        workers: processes.
        cache: finished jobs.

    Returns:
        Results, as they stand in the file: `sizes`, `chosen`, `tuning`, `final` and `compute_seconds`.
    """

    def jobs(stage: str, tasks: tuple[str, ...], steps: int, members: Callable[[str, Method], list[Any]]) -> list[Any]:
        made = []
        for task in tasks:
            environment = environment_of(task)
            horizon = environment.pop("horizon")
            for name in study.methods:
                method = method_of(task, name)
                made.append(
                    make_job(
                        method_name=name,
                        method=method,
                        demonstrations=demonstrations[task],
                        loop={"total_steps": steps, "batch_size": study.batch_size, "log_points": study.log_points},
                        members=members(name, method),
                        evaluation=(study.evaluation_episodes, horizon + 1),
                        stage=stage,
                        task=task,
                        **environment,
                    )
                )
        return made

    def trials(name: str, method: Method) -> list[tuple[dict[str, float], int]]:
        del name
        names, values = method.tuned
        return [(dict.fromkeys(names, value), 1000 + seed) for value in values for seed in range(study.tuning_seeds)]

    def run(title: str, queue: list[Any]) -> list[dict[str, Any]]:
        return run_all(queue, cache, workers=workers, title=title, runner=run_nppac_job)

    tuning = run("tuning", jobs("tuning", study.tuning_tasks, study.tuning_steps, trials))
    chosen = choose(tuning, study.methods, scales)
    final = run(
        "final runs",
        jobs("final", study.tasks, study.steps, lambda name, _: [(chosen[name], seed) for seed in range(study.seeds)]),
    )
    return {
        "sizes": dataclasses.asdict(study),
        "compute_seconds": round(sum(result["fit_seconds"] + result["run_seconds"] for result in tuning + final), 1),
        "chosen": chosen,
        "final": final,
        "tuning": tuning,
    }
