"""Speed of empirical likelihood's interval, its closed-form sibling, and the online form.

`python -m benchmarks.el_speed [--quick] [--output FILE]`

Against vw-estimators, which has Cressie-Read(-2) alone, and the same closed form in plain NumPy, in processes of their own that
take turns; first calls, which compile, apart. The authors' own code takes 205 s for one interval at n = 100,000 (measured
once for the reference of this library, not here). The first run makes `.venv-bandit` with vw-estimators.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.jobs import provenance, write_json
from benchmarks.throughput import ROOT, Worker, peer_python, spread, summary

WORKER = Path(__file__).parent / "peers" / "bandit_worker.py"
VW = (("vw-estimators==0.2.2",),)
# task, libraries, what the first may take: seconds, or a multiple of the last library's time
TASKS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("el 1000", ("ours",), ""),
    ("el 10000", ("ours",), ""),
    ("el 100000", ("ours",), "at most 0.5 s"),
    ("el 1000000", ("ours",), "at most 6 s"),
    ("resized 100000", ("ours",), ""),
    ("many 1000", ("ours",), "at most 3 s"),
    ("cr 10000", ("ours", "vw", "numpy"), ""),
    ("cr 1000000", ("ours", "numpy"), "at most 1.5 times NumPy"),
    ("online 1000000", ("ours",), "at most 10 s"),
)
LABELS = {
    "el": "empirical likelihood, interval, n = {:,} different weights",
    "resized": "the same, n = {:,} less ten rows, first call",
    "many": "1,000 intervals of n = {:,} in one call",
    "cr": "Cressie-Read(-2), interval, n = {:,}",
    "online": "histogram of {:,} data in chunks of 10,000, and an interval",
}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repeats instead of seven")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "el_speed.json")
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "numpy": sys.executable, "vw": peer_python(ROOT / ".venv-bandit", VW)}
    workers = {name: Worker(python, name, script=WORKER) for name, python in pythons.items()}
    record: dict[str, dict[str, Any]] = {}
    for task, libraries, _ in TASKS:
        first = {name: workers[name].ask("compile", task) for name in libraries}
        entry: dict[str, Any] = {name: {"first": first[name], "runs": []} for name in libraries}
        for _ in range(3 if options.quick else 7):
            for name in libraries:
                entry[name]["runs"].append(workers[name].ask("run", task))
        record[task] = entry
        print(task, {name: f"{statistics.median(seconds_of(entry, name)):.4g} s" for name in libraries}, flush=True)
    for worker in workers.values():
        worker.close()
    content = {
        "benchmark": "el_speed",
        "provenance": provenance(),
        "record": record,
        "header": ["what", "ours, s", "first call, s", "vw-estimators, s", "NumPy, s", "ours faster by", "bar"],
        "rows": rows_of(record),
    }
    for row in content["rows"]:
        print(" | ".join(row))
    write_json(options.output, content)
    print(f"wrote {options.output}")


def seconds_of(entry: dict[str, Any], library: str) -> list[float]:
    """Seconds of the timed runs."""
    return [run["seconds"] for run in entry[library]["runs"]]


def rows_of(record: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each task.

    Raises:
        ValueError: if libraries that compute the same do not agree.
    """
    rows = []
    for task, libraries, bar in TASKS:
        entry = record[task]
        kind, count = task.split()
        ends = [[entry[name]["first"][end] for end in ("lower", "upper")] for name in libraries]
        # vw-estimators feeds its sums one datum at a time
        if any(abs(a - b) > 1e-6 for pair in ends for a, b in zip(pair, ends[0], strict=True)):
            raise ValueError(f"{task}: {dict(zip(libraries, ends, strict=True))} do not agree.")
        row = [LABELS[kind].format(int(count)), spread(summary(seconds_of(entry, "ours")), 4)]
        row.append(f"{entry['ours']['first']['seconds']:.2f}")
        ratios = []
        for name in ("vw", "numpy"):
            row.append(spread(summary(seconds_of(entry, name)), 4) if name in libraries else "")
            if name in libraries:
                turns = zip(seconds_of(entry, name), seconds_of(entry, "ours"), strict=True)
                ratios.append(f"{name} {spread(summary([a / b for a, b in turns]))}")
        rows.append([*row, "; ".join(ratios), bar])
    return rows


if __name__ == "__main__":
    main()
