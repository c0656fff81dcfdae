"""Divergence-Augmented Policy Optimization (Wang et al., NeurIPS 2019) on MinAtar: does the divergence pay, and where?

`python -m benchmarks.dapo.minatar --preset quick|cpu|gpu|paper [--workers N] [--output FILE]`

Every method is tuned with the same budget (12 settings: 4 learning rates x 3 values of its second parameter) on tuning seeds
in each regime, and judged on fresh seeds with the chosen setting. Score of a run: mean training return over the last fifth of
its samples, as the paper scores training actors. The map varies reuse, staleness and learning rate around PPO and PPO+DA.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks import machinery
from benchmarks.dapo.claims import last_fifth, run_score, tables
from benchmarks.dapo.jobs import Job, run_job
from benchmarks.machinery.jobs import pairs, run_all, write_json
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
REGIMES: dict[str, dict[str, Any]] = {
    # Each sample is used 8 times (paper: about 7) from a stale replay: 512 updates of buffer life.
    "data-scarce": dict(num_envs=16, reuse=8.0, replay_capacity=32768, steps_factor=1),
    # Four times the actors and samples, as the paper's 64 against 16; each sample is used once, within 32 updates.
    "data-rich": dict(num_envs=64, reuse=1.0, replay_capacity=16384, steps_factor=4),
}
LOOP = dict(collect_length=32, rollout_length=32, batch_size=512, burn_in=1024, log_points=20)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the benchmark; `steps` are those of the data-scarce regime (`steps_factor` times as many in the other)."""

    games: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]  # by regime
    steps: int
    seeds: int
    tuning_games: tuple[str, ...] = ()
    tuning_seeds: int = 0
    tuning_steps: int = 0
    map_games: tuple[str, ...] = ()
    map_reuse: tuple[float, ...] = ()
    map_capacity: tuple[int, ...] = ()
    map_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    map_steps: int = 0
    map_seeds: int = 0


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
    "gpu": Preset(
        games=ALL_GAMES,
        methods={"data-scarce": tuple(METHODS), "data-rich": tuple(METHODS)},
        steps=2_000_000,
        seeds=10,
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
        methods={"data-scarce": tuple(METHODS), "data-rich": tuple(METHODS)},
        steps=10_000_000,
        seeds=10,
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


def grid(method: str, rate: float) -> list[dict[str, float]]:
    """The settings of a method at one learning rate; twelve over all rates, for every method."""
    _, _, name, values = METHODS[method]
    return [{"learning_rate": rate, name: value} for value in values]


def tuning_jobs(preset: Preset) -> list[Job]:
    """Every method, regime, tuning game and setting, on seeds that the final runs do not use."""
    return [
        make_job(
            game,
            method,
            REGIMES[regime],
            preset.tuning_steps,
            [(setting, 1000 + s) for setting in grid(method, rate) for s in range(preset.tuning_seeds)],
            stage="tuning",
            regime=regime,
        )
        for game in preset.tuning_games
        for regime, methods in preset.methods.items()
        for method in methods
        for rate in LEARNING_RATES
    ]


def choose(results: list[dict[str, Any]], preset: Preset) -> dict[str, dict[str, dict[str, float]]]:
    """Best setting by regime and method: highest mean over games of the score, each game scaled by its best cell.

    Without a tuning stage every method keeps its preset's defaults.
    """
    chosen: dict[str, dict[str, dict[str, float]]] = {}
    for regime, methods in preset.methods.items():
        chosen[regime] = {method: {} for method in methods}
        table: dict[str, dict[tuple, dict[str, list[float]]]] = {}
        for result in results:
            if result["regime"] != regime:
                continue
            for run in result["runs"]:
                by_setting = table.setdefault(result["method"], {}).setdefault(pairs(run["reals"]), {})
                by_setting.setdefault(result["game"], []).append(run_score(run))
        means = {
            (method, setting): {game: sum(scores) / len(scores) for game, scores in games.items()}
            for method, settings in table.items()
            for setting, games in settings.items()
        }
        best = {game: max(cell[game] for cell in means.values()) for game in preset.tuning_games} if means else {}
        for method in table:
            scaled = {
                s: sum(v / max(best[g], 1e-9) for g, v in c.items()) for (m, s), c in means.items() if m == method
            }
            chosen[regime][method] = dict(max(scaled, key=scaled.__getitem__))
    return chosen


def final_jobs(preset: Preset, chosen: dict[str, dict[str, dict[str, float]]]) -> list[Job]:
    """Every method with its chosen setting on fresh seeds."""
    return [
        make_job(
            game,
            method,
            REGIMES[regime],
            preset.steps,
            [(chosen[regime][method], seed) for seed in range(preset.seeds)],
            stage="final",
            regime=regime,
        )
        for game in preset.games
        for regime, methods in preset.methods.items()
        for method in methods
    ]


def map_jobs(preset: Preset) -> list[Job]:
    """The divergence on and off (1/eta of 0.5 and 0), with and without a clip, over reuse, replay size and learning rate.

    Without divergence PPO+DA is PPO, and DAPO is plain importance sampling: both members of a pair are one program.
    """
    return [
        make_job(
            game,
            method,
            {**REGIMES["data-scarce"], "reuse": reuse, "replay_capacity": capacity},
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
        )
        for game in preset.map_games
        for reuse in preset.map_reuse
        for capacity in preset.map_capacity
        for method in ("PPO+DA", "DAPO (eq. 13)")
    ]


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    started = time.perf_counter()
    tuning = (
        run_all(tuning_jobs(preset), cache, workers=workers, title="tuning", runner=run_job)
        if preset.tuning_seeds
        else []
    )
    chosen = choose(tuning, preset)
    final = run_all(final_jobs(preset, chosen), cache, workers=workers, title="final runs", runner=run_job)
    mapped = run_all(map_jobs(preset), cache, workers=workers, title="map", runner=run_job) if preset.map_seeds else []
    content = {
        "benchmark": "dapo_minatar",
        "preset": preset_name,
        "provenance": provenance(),
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 1),
        "compute_seconds": round(sum(r["compile_seconds"] + r["run_seconds"] for r in tuning + final + mapped), 1),
        "sizes": dataclasses.asdict(preset),
        "chosen": chosen,
        "final": final,
        "tuning": [_without_curves(result) for result in tuning],
        "map": [_without_curves(result) for result in mapped],
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
    machinery.main("dapo_minatar", PRESETS, run, tables, description=__doc__, cache="dapo_minatar", arguments=arguments)


if __name__ == "__main__":
    main()
