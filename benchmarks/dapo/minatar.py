"""Divergence-Augmented Policy Optimization (Wang et al., NeurIPS 2019) on MinAtar: does the divergence pay, and where?

`python -m benchmarks.dapo.minatar --preset quick|cpu|long|gpu|paper [--workers N] [--finished] [--output FILE]`

Every method is tuned with the same budget (12 settings: 4 learning rates x 3 values of its second parameter) on tuning seeds
in each regime, and judged on fresh seeds with the chosen setting. Score of a run: mean training return over the last fifth of
its samples, as the paper scores training actors. The map varies reuse, replay, publication and learning rate around PPO and
PPO+DA.

The preset `long` takes two cores a day or two. It may be stopped at any time and goes on where it stopped, each run of one seed
being a job of its own; `--finished` writes the results of what has been run so far.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks import machinery
from benchmarks.dapo.claims import last_fifth, run_score, tables
from benchmarks.dapo.jobs import Job, run_job
from benchmarks.machinery.jobs import finished, merged, pairs, run_all, split, write_json
from benchmarks.machinery.results import provenance

ALL_GAMES = ("Breakout", "Asterix", "SpaceInvaders", "Freeway")

# method -> (agent preset, static overrides, name and values of the parameter tuned beside the learning rate)
METHODS: dict[str, tuple[str, dict[str, Any], str, tuple[float, ...]]] = {
    "PPO": ("ppo", {}, "clip_epsilon", (0.1, 0.2, 0.3)),
    "PPO+Entropy": ("ppo_entropy", {}, "divergence_coefficient", (0.01, 0.03, 0.1)),
    "PPO+DA (1-step)": ("ppo_da_one_step", {}, "divergence_coefficient", (0.2, 0.5, 1.0)),
    "PPO+DA": ("ppo_da", {}, "divergence_coefficient", (0.2, 0.5, 1.0)),
    # PPO tunes its clip; the others keep the paper's 0.2. This row separates the clip's effect from the divergence's.
    "PPO+DA (clip 0.3)": ("ppo_da", {"clip_epsilon": 0.3}, "divergence_coefficient", (0.1, 0.2, 0.5)),
    "IS (no clip, no divergence)": ("importance_weighted", {}, "entropy_coefficient", (0.0, 0.003, 0.01)),
    "DAPO (eq. 13)": ("dapo", {}, "divergence_coefficient", (0.5, 1.0, 2.0)),
    "V-trace": ("vtrace", {}, "entropy_coefficient", (0.0, 0.003, 0.01)),
}
MAIN_METHODS = ("PPO", "PPO+DA", "IS (no clip, no divergence)", "DAPO (eq. 13)")
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# Where agents are trained for long: lower rates, and the paper's clip of 0.2 for all, tuned for none.
LONG_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
LONG_SECOND: dict[str, tuple[str, tuple[float, ...]]] = {"PPO": ("entropy_coefficient", (0.0, 0.003, 0.01))}
LONG_METHODS = tuple(method for method in METHODS if method != "PPO+DA (clip 0.3)")
REGIMES: dict[str, dict[str, Any]] = {
    # Each sample is used 8 times (paper: about 7) from a stale replay: 512 updates of buffer life.
    "data-scarce": dict(num_envs=16, reuse=8.0, replay_capacity=32768, steps_factor=1),
    # Four times the actors and samples, as the paper's 64 against 16; each sample is used once, within 32 updates.
    "data-rich": dict(num_envs=64, reuse=1.0, replay_capacity=16384, steps_factor=4),
}
LOOP = dict(collect_length=32, rollout_length=32, batch_size=512, burn_in=1024, log_points=20)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the benchmark; `steps` are those of the data-scarce regime (`steps_factor` times as many in the other).

    `second` names the parameter tuned beside the learning rate where it is another than in `METHODS`. `longer` are games that
    are run for more samples: game -> (methods, samples). With `members_per_job` of 0 all members of a cell are one job.
    """

    games: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]  # by regime
    steps: int
    seeds: int
    rates: tuple[float, ...] = LEARNING_RATES
    second: dict[str, tuple[str, tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    tuning_games: tuple[str, ...] = ()
    tuning_seeds: int = 0
    tuning_steps: int = 0
    longer: dict[str, tuple[tuple[str, ...], int]] = dataclasses.field(default_factory=dict)
    map_games: tuple[str, ...] = ()
    map_reuse: tuple[float, ...] = ()
    map_capacity: tuple[int, ...] = ()
    map_publish: tuple[int, ...] = (1,)
    map_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    map_steps: int = 0
    map_seeds: int = 0
    members_per_job: int = 0

    def grid(self, method: str, rate: float) -> list[dict[str, float]]:
        """The settings of a method at one learning rate; equally many over all rates for every method."""
        name, values = self.second.get(method, METHODS[method][2:])
        return [{"learning_rate": rate, name: value} for value in values]


PRESETS = {
    "quick": Preset(
        games=("Breakout",),
        methods={"data-scarce": MAIN_METHODS, "data-rich": MAIN_METHODS},
        steps=50_000,
        seeds=2,
    ),
    "cpu": Preset(
        # In 50,000 samples nothing learns on Asterix (tuning scores stay at a random policy's 0.5), and Freeway's episodes
        # of 2,500 steps leave one or two a lane. They belong to the presets with more samples.
        games=("Breakout", "SpaceInvaders"),
        methods={"data-scarce": tuple(METHODS), "data-rich": tuple(METHODS)},
        steps=60_000,
        seeds=5,
        tuning_games=("Breakout", "SpaceInvaders"),
        tuning_seeds=1,
        tuning_steps=50_000,
        map_games=("Breakout",),
        map_reuse=(1.0, 4.0, 16.0),
        map_capacity=(2048, 16384),
        map_rates=(1e-3, 3e-3),
        map_steps=40_000,
        map_seeds=5,
    ),
    "long": Preset(
        games=("Breakout", "SpaceInvaders", "Asterix", "Freeway"),
        methods={"data-scarce": LONG_METHODS, "data-rich": ("PPO", "PPO+DA")},
        steps=2_000_000,
        seeds=5,
        rates=LONG_RATES,
        second=LONG_SECOND,
        tuning_games=("Breakout", "SpaceInvaders"),
        tuning_seeds=1,
        tuning_steps=500_000,
        longer={"Breakout": (MAIN_METHODS, 10_000_000)},
        map_games=("Breakout",),
        map_reuse=(1.0, 4.0, 8.0),
        map_capacity=(32768, 262144),
        map_publish=(1, 100),
        map_rates=(1e-3,),
        map_steps=1_000_000,
        map_seeds=5,
        members_per_job=1,
    ),
    "gpu": Preset(
        games=ALL_GAMES,
        methods={"data-scarce": LONG_METHODS, "data-rich": LONG_METHODS},
        steps=2_000_000,
        seeds=10,
        rates=LONG_RATES,
        second=LONG_SECOND,
        tuning_games=("Breakout", "Asterix"),
        tuning_seeds=3,
        tuning_steps=500_000,
        map_games=ALL_GAMES,
        map_reuse=(1.0, 4.0, 16.0),
        map_capacity=(2048, 32768, 262144),
        map_steps=1_000_000,
        map_seeds=10,
    ),
    "paper": Preset(
        games=ALL_GAMES,
        methods={"data-scarce": LONG_METHODS, "data-rich": LONG_METHODS},
        steps=10_000_000,
        seeds=10,
        rates=LONG_RATES,
        second=LONG_SECOND,
        tuning_games=ALL_GAMES,
        tuning_seeds=3,
        tuning_steps=2_000_000,
        map_games=ALL_GAMES,
        map_reuse=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        map_capacity=(2048, 16384, 131072),
        map_steps=2_000_000,
        map_seeds=10,
    ),
}


def make_job(
    game: str,
    method: str,
    conditions: dict[str, Any],
    steps: int,
    members: list[tuple[dict[str, float], int]],
    **cell: Any,
) -> Job:
    """A job of this benchmark; `members` are (overrides of reals, seed)."""
    preset_name, static, _, _ = METHODS[method]
    settings = {**LOOP, **conditions, "total_steps": steps * conditions["steps_factor"]}
    num_envs = settings.pop("num_envs")
    del settings["steps_factor"]
    return Job(
        environment=f"{game}-MinAtar",
        num_envs=num_envs,
        method=method,
        preset=preset_name,
        static=pairs(static),
        settings=pairs(settings),
        members=tuple((pairs(reals), seed) for reals, seed in members),
        cell=pairs({"game": game, **cell}),
    )


def tuning_jobs(preset: Preset, regime: str) -> list[Job]:
    """Every method, tuning game and setting, on seeds that the final runs do not use."""
    return [
        make_job(
            game,
            method,
            REGIMES[regime],
            preset.tuning_steps,
            [(setting, 1000 + s) for setting in preset.grid(method, rate) for s in range(preset.tuning_seeds)],
            stage="tuning",
            regime=regime,
        )
        for game in preset.tuning_games
        for method in preset.methods[regime]
        for rate in preset.rates
    ]


def choose(results: list[dict[str, Any]], preset: Preset, regime: str) -> dict[str, dict[str, float]]:
    """Best setting by method: highest mean over games of the score, each game scaled by its best cell.

    Without a tuning stage every method keeps its preset's defaults.
    """
    chosen: dict[str, dict[str, float]] = {method: {} for method in preset.methods[regime]}
    means: dict[tuple[str, tuple], dict[str, list[float]]] = {}
    for result in results:
        for run in result["runs"]:
            cell = means.setdefault((result["method"], pairs(run["reals"])), {})
            cell.setdefault(result["game"], []).append(run_score(run))
    scores = {key: {game: sum(found) / len(found) for game, found in cell.items()} for key, cell in means.items()}
    best = {game: max(cell[game] for cell in scores.values()) for game in preset.tuning_games} if scores else {}
    for method in chosen:
        scaled = {s: sum(v / max(best[g], 1e-9) for g, v in c.items()) for (m, s), c in scores.items() if m == method}
        if scaled:
            chosen[method] = dict(max(scaled, key=scaled.__getitem__))
    return chosen


def on_edge(chosen: dict[str, dict[str, float]], preset: Preset) -> dict[str, list[str]]:
    """By method, the tuned parameters whose best value is the largest or smallest that was tried; 0 is no edge.

    Evidence from such a method is weak: the grid has to be widened, for all methods, until there is none.
    """
    edges: dict[str, list[str]] = {}
    for method, setting in chosen.items():
        tried: dict[str, set[float]] = {}
        for rate in preset.rates:
            for found in preset.grid(method, rate):
                for name, value in found.items():
                    tried.setdefault(name, set()).add(value)
        extreme = [name for name, v in setting.items() if v and v in (min(tried[name]), max(tried[name]))]
        if extreme:
            edges[method] = extreme
    return edges


def final_jobs(preset: Preset, chosen: dict[str, dict[str, float]], regime: str) -> list[Job]:
    """Every method with its chosen setting on fresh seeds."""
    return [
        make_job(
            game,
            method,
            REGIMES[regime],
            preset.steps,
            [(chosen[method], seed) for seed in range(preset.seeds)],
            stage="final",
            regime=regime,
        )
        for game in preset.games
        for method in preset.methods[regime]
    ]


def longer_jobs(preset: Preset, chosen: dict[str, dict[str, float]]) -> list[Job]:
    """Some games and methods where data are scarce, with the same settings, for more samples."""
    return [
        make_job(
            game,
            method,
            REGIMES["data-scarce"],
            steps,
            [(chosen[method], seed) for seed in range(preset.seeds)],
            stage="longer",
            regime=f"data-scarce, {steps:,} samples",
        )
        for game, (methods, steps) in preset.longer.items()
        for method in methods
    ]


def map_jobs(preset: Preset) -> list[Job]:
    """The divergence on and off (1/eta of 0.5 and 0), with and without a clip, over reuse, replay, publication and rate.

    Without divergence PPO+DA is PPO, and DAPO is plain importance sampling: both members of a pair are one program.
    """
    return [
        make_job(
            game,
            method,
            {**REGIMES["data-scarce"], "reuse": reuse, "replay_capacity": capacity} | _publish(interval),
            preset.map_steps,
            [
                ({"learning_rate": rate, "divergence_coefficient": coefficient}, 2000 + s)
                for coefficient in (0.0, 0.5)
                for rate in preset.map_rates
                for s in range(preset.map_seeds)
            ],
            stage="map",
            regime="map",
            reuse=reuse,
            capacity=capacity,
            **_publish(interval),
        )
        for game in preset.map_games
        for reuse in preset.map_reuse
        for capacity in preset.map_capacity
        for interval in preset.map_publish
        for method in ("PPO+DA", "DAPO (eq. 13)")
    ]


def _publish(interval: int) -> dict[str, int]:
    """Publication after every update is the loop's default, and has no part in the names of finished jobs."""
    return {} if interval == 1 else {"publish_interval": interval}


def run(preset_name: str, *, workers: int, cache: Path, output: Path, only_finished: bool = False) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written.

    With `only_finished` nothing is run: the file holds what is in the cache, and says what is missing.
    """
    preset = PRESETS[preset_name]
    started = time.perf_counter()
    done: dict[str, list[dict[str, Any]]] = {"tuning": [], "final": [], "longer": [], "map": []}
    chosen: dict[str, dict[str, dict[str, float]]] = {}
    missing: dict[str, str] = {}

    def stage(name: str, title: str, jobs: list[Job]) -> bool:
        """Whether all of it is done."""
        pieces = [piece for job in jobs for piece in split(job, preset.members_per_job)]
        if only_finished:
            results = finished(pieces, cache)
        else:
            results = run_all(pieces, cache, workers=workers, title=title, runner=run_job)
        done[name] += merged(results)
        if len(results) < len(pieces):
            missing[title] = f"{len(pieces) - len(results)} of {len(pieces)} jobs"
        return len(results) == len(pieces)

    for regime in preset.methods:
        if stage("tuning", f"tuning, {regime}", tuning_jobs(preset, regime) if preset.tuning_seeds else []):
            chosen[regime] = choose([r for r in done["tuning"] if r["regime"] == regime], preset, regime)
            stage("final", f"final runs, {regime}", final_jobs(preset, chosen[regime], regime))
    if "data-scarce" in chosen:
        stage("longer", "longer runs", longer_jobs(preset, chosen["data-scarce"]))
    stage("map", "map", map_jobs(preset) if preset.map_seeds else [])
    content = {
        "benchmark": "dapo_minatar",
        "preset": preset_name,
        "provenance": provenance(),
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 1),
        "compute_seconds": round(sum(r["compile_seconds"] + r["run_seconds"] for rs in done.values() for r in rs), 1),
        "sizes": dataclasses.asdict(preset),
        "missing": missing,
        "chosen": chosen,
        "on_edge": {regime: on_edge(found, preset) for regime, found in chosen.items()},
        "final": done["final"],
        "longer": done["longer"],
        "tuning": [_without_curves(result) for result in done["tuning"]],
        "map": [_without_curves(result) for result in done["map"]],
    }
    write_json(output, content)
    return content


def _without_curves(result: dict[str, Any]) -> dict[str, Any]:
    """Keep scores instead of curves, so that a committed file stays small."""
    runs = [
        {
            "reals": run["reals"],
            "seed": run["seed"],
            "score": run_score(run),
            "half_squared_log_ratio": last_fifth(run["curves"]["half_squared_log_ratio"]),
            "staleness_mean": last_fifth(run["curves"]["staleness_mean"]),
        }
        for run in result["runs"]
    ]
    return {**result, "runs": runs}


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "dapo_minatar",
        PRESETS,
        run,
        tables,
        description=__doc__,
        cache="dapo_minatar",
        resumable=True,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
