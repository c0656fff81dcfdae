"""A study of N-PPAC: every method tuned with the same budget on its own seeds, then judged on fresh ones, task by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machinery.jobs import finished, merged, run_all, split
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
        wide: see `jobs.methods`.
        members_per_job: runs of a job, the unit that an interruption loses; 0 for all of a cell.
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
    wide: bool = False
    members_per_job: int = 0


def run_study(
    study: Study,
    method_of: Callable[[str, str], Method],
    environment_of: Callable[[str], dict[str, Any]],
    demonstrations: dict[str, Path],
    scales: dict[str, list[float]] | None = None,
    *,
    workers: int,
    cache: Path,
    only_finished: bool = False,
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
        only_finished: run nothing and take what is in the cache.

    Returns:
        Results, as they stand in the file: `sizes`, `chosen`, `tuning`, `final`, `compute_seconds`, and `missing`, which says
        what has not been run yet.
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

    missing: dict[str, str] = {}

    def run(title: str, queue: list[Any]) -> list[dict[str, Any]]:
        pieces = [piece for job in queue for piece in split(job, study.members_per_job)]
        if only_finished:
            results = finished(pieces, cache)
        else:
            results = run_all(pieces, cache, workers=workers, title=title, runner=run_nppac_job)
        if len(results) < len(pieces):
            missing[title] = f"{len(pieces) - len(results)} of {len(pieces)} jobs"
        return merged(results)

    tuning = run("tuning", jobs("tuning", study.tuning_tasks, study.tuning_steps, trials))
    chosen: dict[str, dict[str, float]] = {}
    final: list[dict[str, Any]] = []
    if not missing:
        chosen = choose(tuning, study.methods, scales)
        seeds = range(study.seeds)
        queue = jobs("final", study.tasks, study.steps, lambda name, _: [(chosen[name], seed) for seed in seeds])
        final = run("final runs", queue)
    return {
        "sizes": dataclasses.asdict(study),
        "compute_seconds": round(sum(result["fit_seconds"] + result["run_seconds"] for result in tuning + final), 1),
        "missing": missing,
        "chosen": chosen,
        "final": final,
        "tuning": tuning,
    }
