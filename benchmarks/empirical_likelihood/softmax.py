"""Softmax policies learned from another's log: every objective of `bandit.learn` against IPS, wins, ties and losses.

`python -m benchmarks.empirical_likelihood.softmax --preset quick|cpu [--workers N] [--data DIR] [--output FILE]`

The data, logging policies and rule of `learning` with this library's own learner in the place of the authors' online
regressions: a linear softmax policy begins as the uniform one and moves by Adam along the gradient of an objective. The logging
policy learns on the first 20 % of the rows, the policies on what it logged on the next 500 (or 20 %), and the last 60 % judge
their greedy actions. All objectives take the same number of steps, with one learning rate and the defaults of `learn`; none was
tuned.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.empirical_likelihood.shootout import (
    LOGGERS,
    SHARED,
    Contest,
    compare,
    contest_claim,
    contests,
    copies,
    load,
    programs_of,
    tally,
)
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results

OBJECTIVES = {
    "SNIPS": "snips",
    "variance penalty": "variance_penalty",
    "likelihood": "likelihood",
    "lower bound, reweighted": "lower_bound_reweighted",
    "lower bound": "lower_bound",
}
BATCH, LARGEST, RATE = 100, 500, 0.02
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(
        repetitions=20,
        chosen=("ds_1464_2", "ds_1489_2"),
        loggers=("epsilon 0.1",),
        objectives=("likelihood", "lower bound, reweighted"),
        steps=100,
        passes=10,
    ),
    # the data sets of two classes and up to 16 features that fill their 500 rows: a log of one size, few programs
    "cpu": dict(
        repetitions=40,
        chosen=(
            "ds_1216_2",
            "ds_1217_2",
            "ds_1218_2",
            "ds_1235_2",
            "ds_1471_2",
            "ds_1236_2",
            "ds_1237_2",
            "ds_1238_2",
            "ds_1241_2",
            "ds_1460_2",
            "ds_1489_2",
        ),
        loggers=("epsilon 0.1", "bag 10", "cover 10"),
        objectives=tuple(OBJECTIVES),
        steps=200,
        passes=20,
    ),
}


def run_contest(job: Contest) -> dict[str, Any]:
    """All data sets of a job."""
    import jax

    from jaxrl_off.envs.labelled_bandit import make_logger

    settings = dict(job.settings)
    logger = make_logger(num_actions=job.padded[2], learning_rate=0.1, **LOGGERS[job.logger])
    programs, started, results = programs_of(logger), time.perf_counter(), []
    for file in job.files:
        data = load(file, job.padded)
        first = data.size // 5
        second = first + min(first, LARGEST)
        key = jax.random.key(2112)
        keys = jax.random.split(jax.random.fold_in(key, 1), job.repetitions)
        state = programs.train(key, data.features, data.labels, first, settings["passes"])
        log = programs.record(keys, state, data.features, data.labels)
        logged = [np.asarray(column)[first:second].T for column in log]
        features, judged = data.features[first:second], slice(2 * first, data.size)

        def accuracy(greedy: Any, data: Any = data, judged: slice = judged) -> np.ndarray:
            return np.mean(np.asarray(greedy)[..., judged] == data.labels[judged], axis=-1)

        values, chosen = {}, settings["objectives"]
        for name, objective in {"IPS": "ips", **{name: OBJECTIVES[name] for name in chosen}}.items():
            learn = _program(objective, job.padded[2], second - first, settings["steps"], logger.weight_max)
            values[name] = accuracy(learn(keys, features, *logged, data.features))
        results.append(
            {
                "data": data.name,
                "logger": job.logger,
                "logging": rounded(accuracy(programs.greedy(copies(state, 1), data.features)).mean()),
                "accuracy": {name: rounded(value.mean()) for name, value in values.items()},
                "pairs": {name: compare(values[name] - values["IPS"]) for name in chosen},
            }
        )
    return {"seconds": round(time.perf_counter() - started, 1), "results": results}


@functools.cache
def _program(objective: str, num_actions: int, rows: int, steps: int, largest: float) -> Callable[..., Any]:
    """`(keys [R], features [n, d], actions, rewards, propensities [R, n], all features) -> greedy actions [R, rows]`."""
    import jax

    from jaxrl_off.estimators import bandit

    size = min(BATCH, rows)
    # a pass of the lower bound is one step on all rows
    passes = steps if objective == "lower_bound" else -(-steps // (rows // size))
    options = dict(passes=passes, batch_size=size, learning_rate=RATE, weight_range=(0.0, largest))

    def program(key: Any, features: Any, actions: Any, rewards: Any, propensities: Any, everything: Any) -> Any:
        log = features, actions, rewards, propensities
        return bandit.learn(key, *log, num_actions, objective=objective, **options).policy.greedy(everything)

    return jax.jit(jax.vmap(program, (0, None, 0, 0, 0, None)))


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: wins/ties/losses against IPS by logging policy, and accuracies."""
    counts, values, objectives = [], [], list(content["results"][0]["pairs"])
    names = ("IPS", *objectives)
    for logger in content["sizes"]["loggers"]:
        rows = [row for row in content["results"] if row["logger"] == logger]
        counts.append([logger, *(tally(row["pairs"][name]["verdict"] for row in rows) for name in objectives)])
        means = [np.mean([row["logging"] for row in rows])]
        means += [np.mean([row["accuracy"][name] for row in rows]) for name in names]
        values.append([logger, *(f"{mean:.4f}" for mean in means)])
    return [
        ("softmax policies against IPS: wins/ties/losses", ["logger", *objectives], counts),
        ("accuracy of greedy actions, mean over data sets", ["logger", "logging policy", *names], values),
    ]


def claims(content: dict[str, Any]) -> list[Claim]:
    """That objectives of the paper beat IPS, with this library's own learner."""
    return [
        contest_claim(f"softmax policies learned on the {name} beat those of IPS", (), content["results"], name)
        for name in ("lower bound, reweighted", "likelihood")
        if name in content["results"][0]["pairs"]
    ]


def run(preset_name: str, *, data: Path, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    sizes = preset["repetitions"], preset["chosen"], preset["loggers"]
    jobs = contests("softmax", data, *sizes, **{name: preset[name] for name in ("objectives", "steps", "passes")})
    found = run_all(jobs, cache, workers=workers, title="softmax policies", runner=run_contest)
    return write_results(
        output, "el_softmax", preset_name, preset, found, [row for job in found for row in job["results"]]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "el_softmax",
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
