"""N-PPAC on the Adroit hand tasks from few demonstrations with a sparse reward: does the Gaussian process cure the pathology?

`python -m benchmarks.nppac.adroit --preset quick|cpu|long|gpu [--workers N] [--finished] [--experts DIR] [--output FILE]`

Rewards are 1 for a step at the goal and 0 otherwise. Demonstrations are recorded from the expert policies of DAPG (weights in
`DIR`, by default those of `shared/data/nppac` beside the checkout), or, where there are none, from the clones of them that
`benchmarks/nppac/experts` holds. Every method is tuned with the same budget (four values of one parameter, on tuning seeds) and
judged on fresh seeds: share of greedy episodes with a success at every log point (area under the curve: sample
efficiency; last two points: final).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import machinery
from benchmarks.machinery.jobs import write_json
from benchmarks.machinery.results import provenance
from benchmarks.nppac.claims import tables
from benchmarks.nppac.jobs import Method, methods
from benchmarks.nppac.study import Study, run_study

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "data" / "nppac"
EXPERTS = SHARED if SHARED.is_dir() else None
# The authors' kernels; hammer has none, so it takes door's.
KERNELS = {"door": "matern12", "hammer": "matern12", "pen": "matern52", "relocate": "matern12"}
HORIZONS = {"door": 200, "hammer": 200, "pen": 100, "relocate": 200}


_ALL = tuple(methods(policy="normal", kernel="rbf", sizes=(), pretrain=0, fit={"gp": {}, "network": {}}))
PRESETS = {
    "quick": Study(
        tasks=("door",),
        methods=("N-PPAC (GP)", "N-PPAC (network)", "SAC"),
        demonstrations=10,
        steps=3_000,
        seeds=2,
        sizes=(64, 64),
        batch_size=128,
        pretrain=3_000,
        log_points=4,
        evaluation_episodes=10,
        fit={"gp": dict(fit_points=400, steps=100, capacity=1000), "network": dict(sizes=(64, 64), steps=3000)},
    ),
    "cpu": Study(
        tasks=("door", "relocate", "hammer", "pen"),
        methods=_ALL,
        demonstrations=10,
        steps=5_000,
        seeds=5,
        sizes=(64, 64),
        batch_size=128,
        pretrain=5_000,
        log_points=5,
        evaluation_episodes=10,
        fit={"gp": dict(fit_points=500, steps=150), "network": dict(sizes=(64, 64), steps=5000)},
        tuning_tasks=("door",),
        tuning_seeds=1,
        tuning_steps=4_000,
    ),
    "long": Study(
        tasks=("door", "relocate", "pen"),
        methods=("N-PPAC (GP)", "N-PPAC (network)", "N-PPAC (ensemble)", "AWAC", "RLPD (4 updates a step)", "BC"),
        demonstrations=10,
        steps=50_000,
        seeds=5,
        sizes=(64, 64),
        batch_size=128,
        pretrain=5_000,
        log_points=20,
        evaluation_episodes=10,
        fit={"gp": dict(fit_points=500, steps=150), "network": dict(sizes=(64, 64), steps=5000)},
        tuning_tasks=("door", "relocate"),
        tuning_seeds=3,
        tuning_steps=15_000,
        wide=True,
        members_per_job=1,
    ),
    "gpu": Study(
        tasks=("door", "relocate", "hammer", "pen"),
        methods=_ALL,
        demonstrations=25,
        steps=300_000,
        seeds=10,
        sizes=(256, 256, 256, 256),
        batch_size=1024,
        pretrain=43_000,
        log_points=60,
        evaluation_episodes=10,
        fit={"gp": {}, "network": {}},
        tuning_tasks=("door", "relocate"),
        tuning_seeds=2,
        tuning_steps=100_000,
    ),
}


def record(task: str, episodes: int, experts: Path | None, cache: Path) -> Path:
    """Demonstrations of a task's expert with its exploration noise, recorded once; the file in the cache."""
    import jax

    from jaxrl_off import envs
    from jaxrl_off.data.demonstrations import save
    from jaxrl_off.data.policy_files import load_policy
    from jaxrl_off.training.demonstrations import collect, policy_of_file

    named = experts / f"dapg_policy_{task}.npz" if experts else HERE / "experts" / f"{task}.npz"
    path = cache / f"{task}-{episodes}-{'dapg' if experts else 'clone'}.npz"
    if not path.exists():
        lanes = envs.make(f"adroit/{task}", min(episodes, 5), max_episode_steps=HORIZONS[task])
        act = policy_of_file(load_policy(named), noise=1.0)
        save(collect(act, lanes, jax.random.key(0), episodes=episodes), path)
        lanes.close()
    return path


def run(
    preset_name: str,
    *,
    workers: int,
    experts: Path | None,
    cache: Path,
    output: Path,
    only_finished: bool = False,
) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written. With `only_finished` no method is trained."""
    study, started = PRESETS[preset_name], time.perf_counter()
    cache.mkdir(parents=True, exist_ok=True)

    def method_of(task: str, name: str) -> Method:
        table = methods(
            policy="normal",
            kernel=KERNELS[task],
            sizes=study.sizes,
            pretrain=study.pretrain,
            fit=study.fit,
            wide=study.wide,
        )
        return table[name]

    def environment_of(task: str) -> dict[str, Any]:
        horizon = HORIZONS[task]
        return dict(environment=f"adroit/{task}", parameters={"max_episode_steps": horizon}, horizon=horizon)

    demonstrations = {task: record(task, study.demonstrations, experts, cache) for task in study.tasks}
    results = run_study(
        study, method_of, environment_of, demonstrations, workers=workers, cache=cache, only_finished=only_finished
    )
    content = {
        "benchmark": "nppac_adroit",
        "preset": preset_name,
        "provenance": provenance(),
        "experts": "DAPG's policies" if experts else "clones of DAPG's policies (benchmarks/nppac/experts)",
        "seconds": round(time.perf_counter() - started, 1),
        **results,
    }
    write_json(output, content)
    return content


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "nppac_adroit",
        PRESETS,
        run,
        tables,
        description=__doc__,
        cache="nppac",
        folders={"experts": EXPERTS},
        resumable=True,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
