"""N-PPAC on locomotion: expert demonstrations of our own, dense rewards, and how fast each method learns beyond them.

`python -m benchmarks.nppac.locomotion --preset quick|cpu|long|gpu [--workers N] [--finished] [--output FILE]`

Experts are SAC agents trained here on the task itself (the authors' demonstrations are not to be had); demonstrations are
recorded with their exploration noise. Scores are returns of the greedy policy, with a random policy at 0 and the mean of the
demonstrations at 1. Every method is tuned with the same budget (four values of one parameter, on tuning seeds) and
judged on fresh seeds.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import machinery
from benchmarks.machinery.jobs import run_all, write_json
from benchmarks.machinery.results import provenance
from benchmarks.nppac.claims import tables
from benchmarks.nppac.jobs import ExpertJob, methods, run_expert_job
from benchmarks.nppac.study import Study, run_study

# label -> name for `envs.make`, its parameters, most decisions of an episode
TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Pendulum": ("Pendulum-v1", {}, 200),
    "HalfCheetah-v5": ("gymnasium/HalfCheetah-v5", {}, 1000),
    "Walker2d-v5": ("gymnasium/Walker2d-v5", {}, 1000),
    "Hopper-v5": ("gymnasium/Hopper-v5", {}, 1000),
    "Ant-v5": ("gymnasium/Ant-v5", {}, 1000),
    "brax halfcheetah": ("brax/halfcheetah", {}, 1000),
    "brax walker2d": ("brax/walker2d", {}, 1000),
    "brax ant": ("brax/ant", {}, 1000),
    "brax hopper": ("brax/hopper", {}, 1000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocomotionStudy(Study):
    """Sizes of this benchmark.

    Attributes:
        expert_steps: samples that the expert of each task is trained on.
        expert_sizes: hidden layers of its networks.
        every: keep every so-many-th demonstrated step.
    """

    expert_steps: dict[str, int]
    expert_sizes: tuple[int, ...]
    every: int


_ALL = tuple(methods(policy="tanh_normal", kernel="rbf", sizes=(), pretrain=0, fit={"gp": {}, "network": {}}))
PRESETS = {
    "quick": LocomotionStudy(
        tasks=("Pendulum",),
        methods=("N-PPAC (GP)", "N-PPAC (network)", "SAC"),
        expert_steps={"Pendulum": 12_000},
        expert_sizes=(64, 64),
        demonstrations=5,
        every=1,
        steps=3_000,
        seeds=2,
        sizes=(64, 64),
        batch_size=128,
        pretrain=2_000,
        log_points=4,
        evaluation_episodes=10,
        fit={"gp": dict(fit_points=400, steps=100), "network": dict(sizes=(64, 64), steps=3000)},
    ),
    "cpu": LocomotionStudy(
        tasks=("HalfCheetah-v5", "Hopper-v5"),
        methods=(
            "N-PPAC (GP)",
            "N-PPAC (network)",
            "N-PPAC (ensemble)",
            "BRAC-v",
            "AWAC",
            "SAC",
            "SAC from demonstrations",
        ),
        expert_steps={"HalfCheetah-v5": 40_000, "Hopper-v5": 40_000},
        expert_sizes=(64, 64),
        demonstrations=15,
        every=10,
        steps=5_000,
        seeds=5,
        sizes=(64, 64),
        batch_size=128,
        pretrain=5_000,
        log_points=4,
        evaluation_episodes=4,
        fit={"gp": dict(fit_points=500, steps=150), "network": dict(sizes=(64, 64), steps=5000)},
        tuning_tasks=("HalfCheetah-v5",),
        tuning_seeds=1,
        tuning_steps=3_000,
    ),
    "long": LocomotionStudy(
        tasks=("HalfCheetah-v5", "Walker2d-v5"),
        methods=("N-PPAC (GP)", "N-PPAC (network)", "SAC", "RLPD (4 updates a step)"),
        expert_steps={"HalfCheetah-v5": 200_000, "Walker2d-v5": 200_000},
        expert_sizes=(64, 64),
        demonstrations=15,
        every=10,
        steps=100_000,
        seeds=5,
        sizes=(64, 64),
        batch_size=128,
        pretrain=5_000,
        log_points=20,
        evaluation_episodes=4,
        fit={"gp": dict(fit_points=500, steps=150), "network": dict(sizes=(64, 64), steps=5000)},
        tuning_tasks=("HalfCheetah-v5", "Walker2d-v5"),
        tuning_seeds=1,
        tuning_steps=20_000,
        wide=True,
        members_per_job=1,
    ),
    "gpu": LocomotionStudy(
        tasks=tuple(TASKS)[1:],
        methods=_ALL,
        expert_steps={name: 1_000_000 for name in tuple(TASKS)[1:]},
        expert_sizes=(256, 256),
        demonstrations=15,
        every=1,
        steps=1_000_000,
        seeds=10,
        sizes=(256, 256),
        batch_size=256,
        pretrain=94_000,
        log_points=50,
        evaluation_episodes=10,
        fit={"gp": {}, "network": {}},
        tuning_tasks=("HalfCheetah-v5", "brax walker2d"),
        tuning_seeds=2,
        tuning_steps=200_000,
    ),
}


def run(preset_name: str, *, workers: int, cache: Path, output: Path, only_finished: bool = False) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written. With `only_finished` experts alone are trained."""
    study, started = PRESETS[preset_name], time.perf_counter()
    cache.mkdir(parents=True, exist_ok=True)
    expert_jobs = {
        task: ExpertJob(
            environment=TASKS[task][0],
            parameters=json.dumps(TASKS[task][1]),
            steps=study.expert_steps[task],
            sizes=study.expert_sizes,
            episodes=study.demonstrations,
            every=study.every,
            cache=cache,
        )
        for task in study.tasks
    }
    trained = run_all(list(expert_jobs.values()), cache, workers=workers, title="experts", runner=run_expert_job)
    experts = dict(zip(study.tasks, trained, strict=True))
    scales = {
        task: [sum(expert[who]) / len(expert[who]) for who in ("random_returns", "returns")]
        for task, expert in experts.items()
    }
    table = methods(
        policy="tanh_normal",
        kernel="rbf",
        sizes=study.sizes,
        pretrain=study.pretrain,
        fit=study.fit,
        wide=study.wide,
    )

    def environment_of(task: str) -> dict[str, Any]:
        return dict(zip(("environment", "parameters", "horizon"), TASKS[task], strict=True))

    demonstrations = {task: job.demonstrations for task, job in expert_jobs.items()}
    results = run_study(
        study,
        lambda task, name: table[name],
        environment_of,
        demonstrations,
        scales,
        workers=workers,
        cache=cache,
        only_finished=only_finished,
    )
    results["compute_seconds"] += sum(expert["seconds"] for expert in trained)
    content = {
        "benchmark": "nppac_locomotion",
        "preset": preset_name,
        "provenance": provenance(),
        "scales": scales,
        "experts": experts,
        "seconds": round(time.perf_counter() - started, 1),
        **results,
    }
    write_json(output, content)
    return content


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "nppac_locomotion",
        PRESETS,
        run,
        tables,
        description=__doc__,
        cache="nppac",
        resumable=True,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
