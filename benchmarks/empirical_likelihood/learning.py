"""Learning a policy from another's log: on the weights of the likelihood and of the lower bound, against IPS (Figure 3).

`python -m benchmarks.empirical_likelihood.learning --preset quick|cpu [--workers N] [--data DIR] [--output FILE]`

The contest of `shootout` with parts of 20, 20 and 60 %: sixty passes for the logging policy, four for the target, whose
accuracy on the last part is its value. Policies are regressions of costs, `ips` as the authors' or weighted (`importance`), see
`supervised.make_logger`. IPS updates with the importance `10 w` (the factor is the authors': their learning
rate is 0.1), the challengers with `10 w omega(w, r)`, see `bandit.likelihood_weights`: before each pass omega is that of the
policy's weights on the whole log. Where the law asks for weights that the log lacks, omega has no bound, and 0 is taken, as the
authors' code does. All three see the same logs.
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

LEVEL = 0.95
CHALLENGERS = {"lower bound": LEVEL, "likelihood": None}
# wins, ties and losses against IPS on 40 data sets: the authors' repository, Figure 3
PAPER = {
    "epsilon 0.05": ("16/18/6", "11/26/3"),
    "epsilon 0.1": ("16/19/5", "13/24/3"),
    "epsilon 0.25": ("15/22/3", "3/34/3"),
    "bag 10": ("21/18/1", "11/28/1"),
    "bag 32": ("10/26/4", "7/31/2"),
    "cover 10": ("18/21/1", "6/30/4"),
    "cover 32": ("9/29/2", "6/34/0"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(
        repetitions=20,
        chosen=("ds_1413_3", "ds_1455_2", "ds_1464_2", "ds_1489_2"),
        loggers=("epsilon 0.1", "bag 10", "cover 10"),
        costs=("ips",),
        passes=10,
    ),
    "cpu": dict(repetitions=60, chosen=(), loggers=tuple(LOGGERS), costs=("ips", "importance"), passes=60),
}


def run_contest(job: Contest) -> dict[str, Any]:
    """All data sets of a job."""
    import jax

    from jaxrl_off.envs.labelled_bandit import make_logger

    settings = dict(job.settings)
    logger = make_logger(num_actions=job.padded[2], learning_rate=0.1, costs=settings["costs"], **LOGGERS[job.logger])
    programs, started, results = programs_of(logger), time.perf_counter(), []
    for file in job.files:
        data = load(file, job.padded)
        first, second = data.size // 5, 2 * (data.size // 5)
        key = jax.random.key(2112)
        keys = jax.random.split(jax.random.fold_in(key, 1), job.repetitions)
        state = programs.train(key, data.features, data.labels, first, settings["passes"])
        log = programs.record(keys, state, data.features, data.labels)
        judged = slice(second, data.size)

        def accuracy(greedy: Any, data: Any = data, judged: slice = judged) -> np.ndarray:
            return np.mean(np.asarray(greedy)[:, judged] == data.labels[judged], axis=1)

        values = {}
        for name in ("IPS", *CHALLENGERS):
            states = copies(state, job.repetitions)
            for number in range(PASSES):
                factors = np.ones((job.repetitions, data.size))
                if name != "IPS":
                    greedy = programs.greedy(states, data.features)
                    factors[:, first:second] = omega(
                        greedy, log, slice(first, second), logger.weight_max, CHALLENGERS[name]
                    )
                factors = np.pad(factors, [(0, 0), (0, len(data.labels) - data.size)]).T.astype(np.float32)
                pass_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                importances = 10.0 * factors / log.propensities
                states = programs.learn(pass_keys, states, data.features, log, importances, first, second)
            values[name] = accuracy(programs.greedy(states, data.features))
        results.append(
            {
                "data": data.name,
                "logger": job.logger,
                "costs": settings["costs"],
                "logging": rounded(accuracy(programs.greedy(copies(state, 1), data.features)).mean()),
                "accuracy": {name: rounded(value.mean()) for name, value in values.items()},
                "pairs": {name: compare(values[name] - values["IPS"]) for name in CHALLENGERS},
            }
        )
    return {"seconds": round(time.perf_counter() - started, 1), "results": results}


def omega(greedy: Any, log: Any, rows: slice, largest: float, level: float | None) -> np.ndarray:
    """`float64[R, rows]`: what each row of a pass is to count if the policy agrees with the log on it."""
    import jax
    import jax.numpy as jnp

    actions, rewards, propensities = (np.asarray(column)[rows].T for column in log)
    weights, full = matched_weights(np.asarray(greedy)[:, rows], actions, propensities, largest)
    extra = (0, 0), (0, -weights.shape[1] % 256)
    columns = [np.pad(column.astype(np.float64), extra) for column in (weights, rewards, np.ones_like(weights), full)]
    with jax.enable_x64(True):
        found = np.asarray(_omega_program(level)(*map(jnp.asarray, columns), largest))[:, : weights.shape[1]]
    return np.where(found < 1e6, found, 0.0)


@functools.cache
def _omega_program(level: float | None) -> Callable[..., Any]:
    import jax

    from jaxrl_off.estimators import bandit

    def program(weights: Any, rewards: Any, counts: Any, full: Any, largest: Any) -> Any:
        log = dict(weights=weights, rewards=rewards, counts=counts)
        return bandit.likelihood_weights(**log, weight_range=(0.0, largest), level=level, at=(full, rewards))

    return jax.jit(jax.vmap(program, (0, 0, 0, 0, None)))


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: wins/ties/losses by logger, the paper's in brackets, and accuracies."""
    names, made = ("logging policy", "IPS", *CHALLENGERS), []
    for costs in content["sizes"]["costs"]:
        counts, values = [], []
        for logger in content["sizes"]["loggers"]:
            rows = [row for row in content["results"] if (row["logger"], row["costs"]) == (logger, costs)]
            verdicts = (tally(row["pairs"][name]["verdict"] for row in rows) for name in CHALLENGERS)
            counts.append([logger, *(f"{ours} [{paper}]" for ours, paper in zip(verdicts, PAPER[logger], strict=True))])
            means = [np.mean([row["logging"] for row in rows])]
            means += [np.mean([row["accuracy"][name] for row in rows]) for name in names[1:]]
            values.append([logger, *(f"{mean:.4f}" for mean in means)])
        title = f"learning with costs '{costs}', against IPS: wins/ties/losses [the paper's, 40 data sets]"
        made.append((title, ["logger", *CHALLENGERS], counts))
        made.append((f"accuracy with costs '{costs}', mean over data sets", ["logger", *names], values))
    return made


def claims(content: dict[str, Any]) -> list[Claim]:
    """That each challenger beats IPS, with the authors' costs."""
    results = [row for row in content["results"] if row["costs"] == "ips"]
    return [
        contest_claim(
            f"policies updated on the weights of the {name} beat those of IPS",
            [counts[place] for counts in PAPER.values()],
            results,
            name,
        )
        for place, name in enumerate(CHALLENGERS)
    ]


def run(preset_name: str, *, data: Path, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    sizes = preset["repetitions"], preset["chosen"], preset["loggers"]
    jobs = [
        job
        for costs in preset["costs"]
        for job in contests("learning", data, *sizes, costs=costs, passes=preset["passes"])
    ]
    found = run_all(jobs, cache, workers=workers, title="learning", runner=run_contest)
    return write_results(
        output, "el_learning", preset_name, preset, found, [row for job in found for row in job["results"]]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "el_learning",
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
