"""How good the policies are that PPO learns with the settings that a user gets, beside rejax.

`python -m benchmarks.dapo.quality [--quick] [--output FILE] [--peer-python PYTHON]`

CartPole and Acrobot at 200,000 steps, Pendulum at 300,000, ten seeds each. Ours is the preset and the regime `ppo` as they are
shipped; rejax is judged with its defaults, and with both of its normalisations (and a discount of 0.9 on Pendulum). Defaults of
the libraries differ in everything: lanes, batches, rates, networks. The score of a seed is the mean return of the stochastic
policy that training ends with, over 128 fresh episodes.

The first run makes `.venv-peers`; see `benchmarks.dapo.speed`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dapo.quality_worker import STEPS
from benchmarks.dapo.speed import REJAX
from benchmarks.machinery.results import provenance
from benchmarks.machinery.turns import ROOT, Worker, peer_python, publish, speed_command

WORKER = Path(__file__).with_name("quality_worker.py")
LIBRARIES = ("ours", "rejax", "rejax_normalised")
HEADER = ["task", "steps", "ours", "rejax", "rejax, normalised", "ours minus the better of these (95 %)"]


def interval(ours: list[float], theirs: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the difference of means; the seeds of two libraries have no common order."""
    random = np.random.default_rng(0)
    means = [random.choice(scores, (resamples, len(scores))).mean(axis=1) for scores in (ours, theirs)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)


def rows_of(tasks: list[dict[str, Any]]) -> list[list[str]]:
    """The table of the report: means with standard errors, and the difference to the better setting of rejax."""
    rows = []
    for task in tasks:
        scores = {name: entry["scores"] for name, entry in task["libraries"].items()}
        best = max(LIBRARIES[1:], key=lambda name: float(np.mean(scores[name])))
        difference = np.mean(scores["ours"]) - np.mean(scores[best])
        low, high = interval(scores["ours"], scores[best])
        cells = []
        for name in LIBRARIES:
            error = np.std(scores[name], ddof=1) / np.sqrt(len(scores[name]))
            cells.append(f"{np.mean(scores[name]):.1f} (standard error {error:.1f})")
        rows.append([task["task"], f"{task['steps']:,}", *cells, f"{difference:.1f} ({low:.1f} to {high:.1f})"])
    return rows


def main() -> None:
    """Command line; see the module."""
    parser = speed_command(__doc__, "quality", "two seeds instead of ten")
    parser.add_argument("--peer-python", type=Path, help="a Python that has rejax; default: make .venv-peers")
    options = parser.parse_args()
    seeds = 2 if options.quick else 10
    peer = options.peer_python or peer_python(ROOT / ".venv-peers", REJAX)
    tasks: list[dict[str, Any]] = [{"task": name, "steps": steps, "libraries": {}} for name, steps in STEPS.items()]
    for library in LIBRARIES:
        worker = Worker(sys.executable if library == "ours" else peer, library, script=WORKER)
        for task in tasks:
            print(f"{library}: {task['task']}, {seeds} seeds ...", flush=True)
            task["libraries"][library] = worker.ask("scores", task["task"], seeds)
        worker.close()
    content = {
        "benchmark": "quality",
        "provenance": provenance() | {"peer": list(REJAX[0])},
        "seeds": seeds,
        "header": HEADER,
        "rows": rows_of(tasks),
        "tasks": tasks,
    }
    publish(content, options.output)


if __name__ == "__main__":
    main()
