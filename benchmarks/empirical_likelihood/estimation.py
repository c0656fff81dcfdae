"""Estimating a learned policy's value from another's log: empirical likelihood against IPS, SNIPS and EMP (Table 1).

`python -m benchmarks.empirical_likelihood.estimation --preset quick|cpu [--workers N] [--data DIR] [--output FILE]`

The contest of `shootout` with parts of 20, 60 and 20 %: one pass for the logging policy, four for the target, whose value on
the last part is estimated from what the logging policy did there; squared error against its accuracy on the same rows. Two
forms of empirical likelihood: *paper's*, `s high + (1 - s) low` of the identified interval with s the SNIPS estimate, which is
what the authors' contest ran, and *middle*, the value that `empirical_likelihood` returns.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.empirical_likelihood.shootout import (
    LOGGERS,
    PASSES,
    SHARED,
    Contest,
    compare,
    contest_claim,
    contests,
    copies,
    load,
    matched_weights,
    programs_of,
    tally,
)
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results

CHALLENGERS = ("EL (paper's)", "EL (middle)", "Cressie-Read(-2)")
BASELINES = ("EMP", "IPS", "SNIPS")
# wins, ties and losses of empirical likelihood on 40 data sets: the authors' repository, Tables 1 and 4
PAPER = {
    "epsilon 0.05": ("24/13/3", "26/11/3", "5/34/1"),
    "epsilon 0.1": ("18/18/4", "27/10/3", "7/33/0"),
    "epsilon 0.25": ("5/32/3", "28/9/3", "1/37/2"),
    "bag 10": ("8/26/6", "13/19/8", "7/30/3"),
    "bag 32": ("18/16/6", "21/11/8", "5/32/3"),
    "cover 10": ("8/23/9", "15/16/9", "7/33/0"),
    "cover 32": ("10/17/13", "11/13/16", "6/28/6"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(
        repetitions=20,
        chosen=("ds_1413_3", "ds_1455_2", "ds_1464_2", "ds_1489_2"),
        loggers=("epsilon 0.1", "bag 10", "cover 10"),
    ),
    "cpu": dict(repetitions=60, chosen=(), loggers=tuple(LOGGERS)),
}


def run_contest(job: Contest) -> dict[str, Any]:
    """All data sets of a job."""
    import jax

    from jaxrl_off.envs.labelled_bandit import make_logger

    logger = make_logger(num_actions=job.padded[2], learning_rate=0.5, **LOGGERS[job.logger])
    programs, started, results = programs_of(logger), time.perf_counter(), []
    for file in job.files:
        data = load(file, job.padded)
        first, second = data.size // 5, 4 * data.size // 5
        key = jax.random.key(2112)
        keys = jax.random.split(jax.random.fold_in(key, 1), job.repetitions)
        state = programs.train(key, data.features, data.labels, first, 1)
        log = programs.record(keys, state, data.features, data.labels)
        states = copies(state, job.repetitions)
        for number in range(PASSES):
            pass_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            states = programs.learn(pass_keys, states, data.features, log, 1.0 / log.propensities, first, second)
        judged = slice(second, data.size)
        greedy = np.asarray(programs.greedy(states, data.features))[:, judged]
        actions, rewards, propensities = (np.asarray(column)[judged].T for column in log)
        weights = matched_weights(greedy, actions, propensities, logger.weight_max)[0]
        truth = np.mean(greedy == data.labels[judged], axis=1)
        estimates = estimate(weights, rewards, logger.weight_max)
        errors = {name: np.square(value - truth) for name, value in estimates.items()}
        pairs = {f"{a} vs {b}": compare(errors[b] - errors[a]) for a in CHALLENGERS for b in BASELINES}
        results.append(
            {
                "data": data.name,
                "logger": job.logger,
                "truth": rounded(truth.mean()),
                "rmse": {name: rounded(np.sqrt(error.mean())) for name, error in errors.items()},
                "bias": {name: rounded(np.mean(value - truth)) for name, value in estimates.items()},
                "pairs": pairs,
            }
        )
    return {"seconds": round(time.perf_counter() - started, 1), "results": results}


def estimate(weights: np.ndarray, rewards: np.ndarray, largest: float) -> dict[str, np.ndarray]:
    """Values `[R]` by method, of logs `[R, n]`; 0.5 where the authors' baselines say so for want of weight."""
    import jax
    import jax.numpy as jnp

    from jaxrl_off.estimators import bandit

    options = dict(weight_range=(0.0, largest))

    @jax.jit
    @jax.vmap
    def methods(weights: Any, rewards: Any, counts: Any) -> dict[str, Any]:
        log = dict(weights=weights, rewards=rewards, counts=counts)
        found = bandit.empirical_likelihood(**log, **options)
        ips, snips, emp = bandit.ips(**log).value, bandit.snips(**log).value, bandit.emp(**log, **options).value
        snips, emp = (jnp.where(jnp.isfinite(value), value, 0.5) for value in (snips, emp))
        low, high = found.diagnostics["value_low"], found.diagnostics["value_high"]
        return {
            "EMP": emp,
            "IPS": jnp.clip(ips, 0.0, 1.0),
            "SNIPS": snips,
            "EL (paper's)": snips * high + (1.0 - snips) * low,
            "EL (middle)": found.value,
            "Cressie-Read(-2)": bandit.cressie_read(**log, **options).value,
        }

    # one program for data sets of nearly one size
    extra = (0, 0), (0, -weights.shape[1] % 256)
    with jax.enable_x64(True):
        columns = (
            jnp.asarray(np.pad(column, extra), jnp.float64) for column in (weights, rewards, np.ones_like(weights))
        )
        return {name: np.asarray(value) for name, value in methods(*columns).items()}


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: wins/ties/losses by logger, the paper's in brackets, and the error of every method."""
    made = []
    for challenger in CHALLENGERS:
        lines = []
        for logger in content["sizes"]["loggers"]:
            rows = [row for row in content["results"] if row["logger"] == logger]
            line = [logger]
            for place, baseline in enumerate(BASELINES):
                text = tally(row["pairs"][f"{challenger} vs {baseline}"]["verdict"] for row in rows)
                line.append(f"{text} [{PAPER[logger][place]}]" if challenger == CHALLENGERS[0] else text)
            lines.append(line)
        mark = " [the paper's, 40 data sets]" if challenger == CHALLENGERS[0] else ""
        made.append(
            (f"{challenger}: wins/ties/losses{mark}", ["logger", *(f"against {name}" for name in BASELINES)], lines)
        )
    names = (*BASELINES, *CHALLENGERS)
    lines = []
    for logger in content["sizes"]["loggers"]:
        rows = [row for row in content["results"] if row["logger"] == logger]
        lines.append([logger, *(f"{np.mean([row['rmse'][name] for row in rows]):.4f}" for name in names)])
    made.append(("root mean squared error, mean over data sets", ["logger", *names], lines))
    return made


def claims(content: dict[str, Any]) -> list[Claim]:
    """That the authors' form of empirical likelihood is more accurate than each baseline."""
    return [
        contest_claim(
            f"empirical likelihood estimates a learned policy's value better than {baseline}",
            [counts[place] for counts in PAPER.values()],
            content["results"],
            f"{CHALLENGERS[0]} vs {baseline}",
        )
        for place, baseline in enumerate(BASELINES)
    ]


def run(preset_name: str, *, data: Path, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    jobs = contests("estimation", data, preset["repetitions"], preset["chosen"], preset["loggers"])
    found = run_all(jobs, cache, workers=workers, title="estimation", runner=run_contest)
    return write_results(
        output, "el_estimation", preset_name, preset, found, [row for job in found for row in job["results"]]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "el_estimation",
        PRESETS,
        run,
        tables,
        description=__doc__,
        cache="el",
        folders={"data": SHARED},
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
