"""Speed of kernelised estimators for deterministic policies: all of them with their nuisances, and of a bandit beside obp.

`python -m benchmarks.deterministic.speed [--quick] [--output FILE]`

obp 0.5.7 has the bandit's three estimators; it runs in a process of its own, libraries take turns, and ratios are of runs of
one round. The first run makes `.venv-obp` with it. It asks for Python below 3.11 and for versions of 2022, and is installed
against its own word with those of today, with which these estimators run. Both libraries draw n rows for each resample, which
is most of what takes time. obp resamples the terms of its self-normalised estimator with the sum of weights kept; ours
computes that anew.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks.deterministic.speed_worker import RESAMPLES
from benchmarks.machinery import turns
from benchmarks.machinery.results import provenance

WORKER = Path(__file__).with_name("speed_worker.py")
NEEDED = ("numpy", "scipy", "scikit-learn", "pandas", "tqdm", "matplotlib", "seaborn", "pyyaml")
# torch is imported and not used; an index with a build for CPU alone serves
OBP = (("torch==2.13.0",), NEEDED, ("--ignore-requires-python", "--no-deps", "obp==0.5.7"))
TASKS: tuple[turns.Task, ...] = (
    ("all 10000 50", ("ours",), "at most 2 s"),
    ("all 5000 50", ("ours",), ""),
    ("all 2500 50", ("ours",), ""),
    ("all 10000 25", ("ours",), ""),
    ("is 1000 1", ("ours", "obp"), "20"),
    ("sn 1000 1", ("ours", "obp"), "20"),
    ("dr 1000 1", ("ours", "obp"), "20"),
    ("is 10000 1", ("ours", "obp"), "20"),
)
LABELS = {
    "all": "nuisances with derivatives, all values and gradients with errors",
    "is": f"kernel IS and interval, {RESAMPLES:,} resamples",
    "sn": f"self-normalised kernel IS and interval, {RESAMPLES:,} resamples; obp: sum of weights kept",
    "dr": f"kernel DR and interval, {RESAMPLES:,} resamples",
}


def main() -> None:
    """Command line; see the module."""
    options = turns.speed_command(__doc__, "deterministic_speed").parse_args()
    pythons = {"ours": Path(sys.executable), "obp": turns.peer_python(turns.ROOT / ".venv-obp", OBP)}
    workers = {name: turns.Worker(python, name, script=WORKER) for name, python in pythons.items()}
    source = provenance()
    source["versions"]["obp"] = "0.5.7"
    record, loads = turns.measured(TASKS, workers, 3 if options.quick else 7)
    for worker in workers.values():
        worker.close()
    rows = []
    for task in TASKS:
        turns.refuse_disagreement(record, task, ("value",), 1e-9)
        kind, count, horizon = task[0].split()
        rows.append(turns.speed_row(record, task, f"{LABELS[kind]}; n = {int(count):,}, H = {horizon}", ("obp",)))
    header = ["what", "ours, s", "processor, s", "first call, s", "obp, s", "ours faster by", "bar"]
    content = {
        "benchmark": "deterministic_speed",
        "provenance": source,
        "record": record,
        "header": header,
        "rows": [*rows, growth_row(record), turns.load_row(loads, len(header))],
    }
    turns.publish(content, options.output)


def growth_row(record: turns.Record) -> list[str]:
    """Processor time against n and H; on a shared machine wall-clock time says little."""

    def taken(task: str) -> float:
        return statistics.median(turns.times(record, f"ours {task}", clock="cpu_seconds"))

    whole = taken("all 10000 50")
    shown = f"n: {whole / taken('all 2500 50'):.1f} times for 4 times; H: {whole / taken('all 10000 25'):.1f} for 2"
    return ["growth of processor time of all", shown, "", "", "", "", "linear"]


if __name__ == "__main__":
    main()
