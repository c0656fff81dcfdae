"""Divergence-Augmented Policy Optimization on Atari: the paper's configuration on real games.

`python -m benchmarks.dapo.atari --preset smoke|gpu|paper [--games pong,breakout] [--methods ...] [--minutes M]`

Network, replay, optimiser and preprocessing are the paper's (Table 1, section 5, appendix A): Nature convolutions, LSTM of
256 on single frames, roll-outs of 32, batches of 1024, each sample used 7 times, Adam 1e-3 falling to 0. `smoke` keeps the
convolutions but sees four stacked 42x42 frames instead of an LSTM, with less reuse, so that learning starts within minutes
on two cores. Scores are the
training actors' unclipped whole-game returns, as in the paper, and are set beside its curves at equal samples where the
digitised curves are at hand (`--curves`).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.dapo.claims import last_fifth
from benchmarks.dapo.jobs import config_of
from benchmarks.machinery.command import Table, print_rows
from benchmarks.machinery.jobs import write_json
from benchmarks.machinery.results import provenance

SAMPLES_PER_HOUR = {16: 3500 * 3600, 64: 4 * 3500 * 3600}
METHODS = {"PPO": "ppo", "PPO+DA": "ppo_da", "PPO+DA (1-step)": "ppo_da_one_step", "PPO+Entropy": "ppo_entropy"}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the benchmark.

    Attributes:
        games: ROM names; empty for all 58 of the paper.
        methods: keys of `METHODS`.
        seeds: runs per game and method.
        num_envs: lanes (the paper's actors).
        settings: `LoopSettings` fields.
        agent: overrides of the preset.
        environment: parameters of `envs.make("ale/...")`.
        minutes: a run stops after this time even if samples are left; the learning rate still falls over `total_steps`.
    """

    games: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    num_envs: int
    settings: dict[str, Any]
    agent: dict[str, Any]
    environment: dict[str, Any]
    minutes: float


PAPER_SETTINGS = dict(
    collect_length=256,
    rollout_length=32,
    batch_size=1024,
    reuse=7.0,
    publish_interval=100,
    burn_in=1024,
    log_points=400,
)
PRESETS = {
    "smoke": Preset(
        games=("breakout",),
        methods=("PPO", "PPO+DA"),
        seeds=1,
        num_envs=16,
        settings=dict(
            total_steps=150_000,
            collect_length=32,
            rollout_length=32,
            batch_size=256,
            reuse=4.0,
            replay_capacity=16_384,
            publish_interval=1,
            burn_in=1024,
            log_points=40,
        ),
        agent=dict(torso="nature", sizes=(128,)),
        environment=dict(protocol="dapo", size=42),
        minutes=20.0,
    ),
    "gpu": Preset(
        games=("pong", "breakout", "freeway", "enduro"),
        methods=("PPO", "PPO+DA"),
        seeds=1,
        num_envs=16,
        settings=dict(PAPER_SETTINGS, total_steps=2_500_000, replay_capacity=262_144),
        agent=dict(core_size=256),
        environment=dict(protocol="dapo", stack=1),
        minutes=10.0,
    ),
    "paper": Preset(
        games=(),
        methods=tuple(METHODS),
        seeds=5,
        num_envs=16,
        settings=dict(PAPER_SETTINGS, total_steps=60_000_000, replay_capacity=262_144),
        agent=dict(core_size=256),
        environment=dict(protocol="dapo", stack=1),
        minutes=float("inf"),
    ),
}


def train_game(game: str, method: str, seed: int, preset: Preset) -> dict[str, Any]:
    """One run; returns its curve (`samples`, `score`, diagnostics per row), speed and why it ended."""
    import jax

    from jaxrl_off import agents, envs
    from jaxrl_off.training import LoopSettings, make_loop, plan

    environment = envs.make(f"ale/{game}", preset.num_envs, **preset.environment)
    settings = LoopSettings(**preset.settings)
    counts = plan(settings, preset.num_envs)
    config = config_of(METHODS[method], preset.agent, {})
    agent = agents.make(config, environment.spec, total_updates=counts.total_updates)
    loop = make_loop(agent, environment, settings)
    state = jax.jit(loop.init)(jax.random.key(seed))
    started = time.perf_counter()
    interval = jax.jit(loop.log_interval, donate_argnums=0).lower(state).compile()
    compile_seconds = time.perf_counter() - started

    rows: list[dict[str, float | None]] = []
    started = time.perf_counter()
    ended = "all samples"
    for point in range(counts.log_points):
        state, metrics = interval(state)
        row = {name: float(value) for name, value in metrics.items()}
        row["seconds"] = time.perf_counter() - started
        rows.append({name: None if value != value else round(value, 5) for name, value in row.items()})
        speed = row["steps"] / row["seconds"]
        print(
            f"{game} {method} seed {seed}: {row['steps']:.0f} samples, return {row['episode_return']:.2f} "
            f"over {row['episodes']:.0f} games, KL {row['half_squared_log_ratio']:.4f}, {speed:.0f} samples/s",
            flush=True,
        )
        if row["nonfinite"]:
            ended = "non-finite loss"
            break
        if row["seconds"] > 60.0 * preset.minutes and point + 1 < counts.log_points:
            ended = f"time limit of {preset.minutes} minutes"
            break
    environment.close()
    keep = (
        "steps",
        "episode_return",
        "episodes",
        "half_squared_log_ratio",
        "entropy",
        "staleness_mean",
        "reuse",
        "seconds",
    )
    return {
        "game": game,
        "method": method,
        "seed": seed,
        "ended": ended,
        "compile_seconds": round(compile_seconds, 1),
        "samples_per_second": round(speed),
        "curve": {name: [row[name] for row in rows] for name in keep},
    }


def paper_curve(curves: Path, game: str, method: str) -> list[tuple[float, float]]:
    """`(samples, score)` of the paper's Figure 3 (16 actors, 3500 samples/s) as digitised; empty if not at hand."""
    if not curves.exists():
        return []
    camel = "".join(part.capitalize() for part in game.split("_"))
    with curves.open() as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if (row["figure"], row["game"], row["method"]) == ("fig3", camel, method)
        ]
    return [(float(row["hours"]) * SAMPLES_PER_HOUR[16], float(row["score"])) for row in rows]


def run(preset: Preset, name: str, *, cache: Path, output: Path, curves: Path) -> dict[str, Any]:
    """Run what is not in `cache` yet, write and return the result file."""
    from jaxrl_off.envs.atari import PAPER_GAMES

    runs = []
    for game in preset.games or PAPER_GAMES:
        for method in preset.methods:
            for seed in range(preset.seeds):
                slug = method.replace(" ", "").replace("(", "_").replace(")", "")
                path = cache / f"{name}_{game}_{slug}_{seed}_{preset.settings['total_steps']}.json"
                if path.exists():
                    print(f"{path} exists; reusing it.")
                else:
                    write_json(path, train_game(game, method, seed, preset))
                runs.append(json.loads(path.read_text()) | {"paper": paper_curve(curves, game, method)})
    content = {
        "benchmark": "dapo_atari",
        "preset": name,
        "provenance": provenance(),
        "sizes": {**dataclasses.asdict(preset), "minutes": min(preset.minutes, 1e9)},
        "runs": runs,
    }
    write_json(output, content)
    return content


def table(content: dict[str, Any]) -> Table:
    """The last score of every run beside the paper's at the same number of samples."""
    header = [
        "game",
        "method",
        "seed",
        "samples",
        "first",
        "last fifth",
        "paper at equal samples",
        "samples/s",
        "ended",
    ]
    title = f"Atari, preset {content['preset']}: training return (not clipped, whole games)"
    return title, header, [[str(cell) for cell in atari_row(run)] for run in content["runs"]]


def atari_row(run_result: dict[str, Any]) -> list[Any]:
    """Cells of one run: game, method, seed, samples, first and last score, the paper's score, speed, end."""
    curve = run_result["curve"]
    scores = [score for score in curve["episode_return"] if score is not None]
    samples = curve["steps"][-1]
    nearest = min(run_result["paper"], key=lambda point: abs(point[0] - samples), default=None)
    # The paper's bins are ten minutes (2.1 M samples) apart in the digitised file.
    paper = f"{nearest[1]:.2f}" if nearest and nearest[0] > 0 and abs(nearest[0] - samples) < 1.1e6 else "-"
    return [
        run_result["game"],
        run_result["method"],
        run_result["seed"],
        int(samples),
        f"{scores[0]:.2f}" if scores else "-",
        f"{last_fifth(curve['episode_return']):.2f}" if scores else "-",
        paper,
        run_result["samples_per_second"],
        run_result["ended"],
    ]


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--games", help="comma-separated ROM names instead of the preset's")
    parser.add_argument("--methods", help="comma-separated methods instead of the preset's")
    parser.add_argument("--minutes", type=float, help="time limit of a run")
    parser.add_argument("--cache", type=Path, default=Path("results/cache/dapo_atari"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--curves", type=Path, default=Path("../shared/data/dapo_curves.csv"))
    options = parser.parse_args(arguments)
    changes: dict[str, Any] = {}
    if options.games:
        changes["games"] = tuple(options.games.split(","))
    if options.methods:
        changes["methods"] = tuple(options.methods.split(","))
        unknown = [method for method in changes["methods"] if method not in METHODS]
        if unknown:
            parser.error(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}.")
    if options.minutes is not None:
        changes["minutes"] = options.minutes
    preset = dataclasses.replace(PRESETS[options.preset], **changes)
    output = options.output or Path(f"results/dapo_atari_{options.preset}.json")
    content = run(preset, options.preset, cache=options.cache, output=output, curves=options.curves)
    print_rows(*table(content))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
