"""The pathology of KL-regularised RL from demonstrations, and its cure, taken apart (N-PPAC's Figure 1 and proposition).

`python -m benchmarks.nppac.pathology --preset quick|cpu [--workers N] [--experts DIR] [--output FILE]`

1. Calibration: standard deviation of every reference policy on, near and far from demonstrations, on a circle in the plane and
   on an Adroit task, over seeds of the fit; and on the plane of the states' first two principal components.
2. The proposition: N-PPAC on Pendulum towards references with one mean and a fixed standard deviation sigma_0. How the KL's
   gradient in training, and the returns, go with sigma_0.
3. The KL's gradient in training with fitted references on Pendulum: network against Gaussian process.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.machinery.jobs import rounded, run_all, write_json
from benchmarks.machinery.results import provenance
from benchmarks.nppac.adroit import EXPERTS, KERNELS, record
from benchmarks.nppac.claims import pathology_tables
from benchmarks.nppac.jobs import CachedJob, ExpertJob, Method, make_job, run_expert_job, run_nppac_job


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the benchmark."""

    tasks: tuple[str, ...]
    references: tuple[str, ...]
    trained: tuple[str, ...]
    fit_seeds: int
    steps: int
    seeds: int
    fixed: tuple[float, ...]
    network_steps: int
    gp: dict[str, Any]
    grid: int


PRESETS = {
    "quick": Preset(
        tasks=(),
        references=("network", "ensemble", "GP"),
        trained=("network", "GP"),
        fit_seeds=2,
        steps=3_000,
        seeds=1,
        fixed=(1.0, 0.1, 0.01),
        network_steps=3000,
        gp=dict(fit_points=400, steps=100),
        grid=24,
    ),
    "cpu": Preset(
        tasks=("door",),
        references=(
            "network",
            "network, entropy bonus",
            "network, weight decay",
            "network, sd at most 0.5",
            "ensemble",
            "dropout",
            "GP",
            "sparse GP",
        ),
        trained=("network", "network, entropy bonus", "ensemble", "GP"),
        fit_seeds=5,
        steps=4_000,
        seeds=5,
        fixed=(1.0, 0.3, 0.1, 0.03, 0.01),
        network_steps=5_000,
        gp=dict(fit_points=400, steps=120, capacity=1000),
        grid=32,
    ),
}


def references_of(preset: Preset, kernel: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> name and options of the references that are compared."""
    network = dict(sizes=(64, 64), steps=preset.network_steps)
    table = {
        "network": ("gaussian_network", network),
        "network, entropy bonus": ("gaussian_network", network | dict(entropy_bonus=0.5)),
        "network, weight decay": ("gaussian_network", network | dict(weight_decay=1e-3)),
        "network, sd at most 0.5": ("gaussian_network", network | dict(std_ceiling=0.5)),
        "ensemble": ("ensemble", network),
        "dropout": ("dropout", network),
        "GP": ("gp_icm", preset.gp | dict(kernel=kernel)),
        "sparse GP": ("gp_sparse", dict(kernel=kernel, steps=1000, inducing=64)),
    }
    return {name: table[name] for name in preset.references}


def circle() -> tuple[np.ndarray, np.ndarray]:
    """15 demonstrations of 60 points around a circle in the plane; the action is half the tangent plus noise of 0.05."""
    random = np.random.default_rng(0)
    angle = np.linspace(0.0, 2.0 * np.pi, 60) + 0.02 * random.normal(size=(15, 60))
    radius = 1.0 + 0.05 * random.normal(size=(15, 1))
    states = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    tangents = np.stack([-np.sin(angle), np.cos(angle)], axis=-1).reshape(-1, 2)
    return states, 0.5 * tangents + 0.05 * random.normal(size=states.shape)


@dataclasses.dataclass(frozen=True)
class CalibrationJob(CachedJob):
    """One reference on one set of demonstrations, for all seeds of its fit.

    Attributes:
        method: label.
        reference: name and options.
        seeds: of the fit.
        grid: points along each side of the plane.
        demonstrations: file in the cache; the circle's are made where it is empty.
    """

    method: str
    reference: tuple[str, tuple[tuple[str, Any], ...]]
    seeds: int
    grid: int
    demonstrations: str

    @property
    def cost(self) -> float:
        """The order of fits."""
        return {"ensemble": 5.0, "gp_icm": 3.0}.get(self.reference[0], 1.0)


def run_calibration(job: CalibrationJob) -> dict[str, Any]:
    """Fit, calibrate, and draw on the principal plane; the last demonstration is held out."""
    import jax

    from jaxrl_off import references
    from jaxrl_off.data.demonstrations import load

    if job.demonstrations:
        demos = load(job.cache / job.demonstrations)
        observations, actions = demos.observation, demos.action
        held_out = demos.episode == demos.episode[-1]
    else:
        observations, actions = circle()
        held_out = np.arange(len(actions)) >= 14 * 60
    name, options = job.reference
    reference = references.make(name, **dict(options))
    rows, panel = [], None
    started = time.perf_counter()
    for seed in range(job.seeds):
        params = reference.fit(jax.random.key(seed), observations[~held_out], actions[~held_out])
        result = references.calibrate(
            reference.apply,
            params,
            observations[~held_out],
            actions[~held_out],
            jax.random.key(100 + seed),
            held_out=(observations[held_out], actions[held_out]),
        )
        rows.append({k: [rounded(float(x)) for x in v] for k, v in result._asdict().items() if k != "states"})
        if seed == 0:
            plane = references.principal_plane(observations[~held_out])
            dots = plane.project(observations[~held_out])
            spans = [np.linspace(3.0 * dots[:, i].min(), 3.0 * dots[:, i].max(), job.grid) for i in (0, 1)]
            std = references.on_plane(reference.apply, params, plane, tuple(spans))
            panel = {
                "grid": [[rounded(float(x)) for x in span] for span in spans],
                "std": [[rounded(float(x)) for x in line] for line in std],
                "dots": [[rounded(float(x)) for x in dot] for dot in dots[:: max(1, len(dots) // 300)]],
                "explained": [rounded(float(x)) for x in plane.explained],
            }
    return {
        "environment": job.environment,
        "method": job.method,
        "states": list(result.states),
        "seeds": rows,
        "panel": panel,
        "fit_seconds": round(time.perf_counter() - started, 1),
        "run_seconds": 0.0,
    }


def run(preset_name: str, *, workers: int, experts: Path | None, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset, started = PRESETS[preset_name], time.perf_counter()
    cache.mkdir(parents=True, exist_ok=True)
    sets = {"circle": ("rbf", "")} | {
        task: (KERNELS[task], record(task, 10, experts, cache).name) for task in preset.tasks
    }
    calibration = run_all(
        [
            CalibrationJob(
                environment=where,
                method=label,
                reference=(name, tuple(sorted(options.items()))),
                seeds=preset.fit_seeds,
                grid=preset.grid,
                demonstrations=file,
                cache=cache,
            )
            for where, (kernel, file) in sets.items()
            for label, (name, options) in references_of(preset, kernel).items()
        ],
        cache,
        workers=workers,
        title="calibration",
        runner=run_calibration,
    )
    expert = ExpertJob("Pendulum-v1", cache, "{}", 12_000, (64, 64), 5, 1)
    (shown,) = run_all([expert], cache, workers=min(workers, 1), title="expert", runner=run_expert_job)

    def jobs(rows: dict[str, tuple[str, dict[str, Any]]], stage: str) -> list[Any]:
        static = dict(policy_sizes=(64, 64), critic_sizes=(64, 64), pretrain_updates=2_000)
        # the critic's values are some hundreds, so that the penalty weighs as much as on the other tasks
        method = {label: Method("nppac", static, reference, (("alpha",), (1.0,))) for label, reference in rows.items()}
        return [
            make_job(
                "Pendulum-v1",
                label,
                method[label],
                demonstrations=expert.demonstrations,
                loop={"total_steps": preset.steps, "batch_size": 128, "log_points": 4},
                members=[({"alpha": 1.0}, seed) for seed in range(preset.seeds)],
                evaluation=(10, 201),
                stage=stage,
                task="Pendulum",
            )
            for label in rows
        ]

    network = dict(sizes=(64, 64), steps=preset.network_steps)
    fixed = {f"sigma_0 = {std:g}": ("gaussian_network", network | dict(fixed_std=std)) for std in preset.fixed}
    sweep = run_all(jobs(fixed, "sweep"), cache, workers=workers, title="fixed sigma_0", runner=run_nppac_job)
    table = references_of(preset, "rbf")
    trained = jobs({name: table[name] for name in preset.trained}, "fitted")
    fitted = run_all(trained, cache, workers=workers, title="fitted", runner=run_nppac_job)
    content = {
        "benchmark": "nppac_pathology",
        "preset": preset_name,
        "provenance": provenance(),
        "experts": "DAPG's policies" if experts else "clones of DAPG's policies (benchmarks/nppac/experts)",
        "seconds": round(time.perf_counter() - started, 1),
        "compute_seconds": round(sum(r["fit_seconds"] + r["run_seconds"] for r in calibration + sweep + fitted), 1),
        "sizes": dataclasses.asdict(preset),
        "expert": shown,
        "calibration": calibration,
        "sweep": sweep,
        "fitted": fitted,
    }
    write_json(output, content)
    return content


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "nppac_pathology",
        PRESETS,
        run,
        pathology_tables,
        description=__doc__,
        cache="nppac",
        folders={"experts": EXPERTS},
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
