"""Speed of kernelised estimators for deterministic policies: all of them with their nuisances, and of a bandit beside obp.

`python -m benchmarks.deterministic_speed [--quick] [--output FILE]`

obp 0.5.7 has the bandit's three estimators; it runs in a process of its own, libraries take turns, and ratios are of runs of
one round. The first run makes `.venv-obp` with it. It asks for Python below 3.11 and for versions of 2022, and is installed
against its own word with those of today, with which these estimators run. Both libraries draw n rows for each resample, which
is most of what takes time. obp resamples the terms of its self-normalised estimator with the sum of weights kept; ours
computes that anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.jobs import provenance, write_json
from benchmarks.peers.deterministic_worker import RESAMPLES
from benchmarks.throughput import ROOT, Worker, peer_python, spread, summary

WORKER = Path(__file__).parent / "peers" / "deterministic_worker.py"
NEEDED = ("numpy", "scipy", "scikit-learn", "pandas", "tqdm", "matplotlib", "seaborn", "pyyaml")
# torch is imported and not used; an index with a build for CPU alone serves
OBP = (("torch==2.13.0",), NEEDED, ("--ignore-requires-python", "--no-deps", "obp==0.5.7"))
# task, libraries, bar: seconds, or a multiple of obp's speed
TASKS: tuple[tuple[str, tuple[str, ...], str], ...] = (
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repeats instead of seven")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "deterministic_speed.json")
    options = parser.parse_args()
    pythons = {"ours": Path(sys.executable), "obp": peer_python(ROOT / ".venv-obp", OBP)}
    workers = {name: Worker(python, name, script=WORKER) for name, python in pythons.items()}
    source, loads, record = provenance(), [os.getloadavg()[0]], {}
    source["versions"]["obp"] = "0.5.7"
    for task, libraries, _ in TASKS:
        first = {name: workers[name].ask("compile", task) for name in libraries}
        entry: dict[str, Any] = {name: {"first": first[name], "runs": []} for name in libraries}
        for _ in range(3 if options.quick else 7):
            for name in libraries:
                entry[name]["runs"].append(workers[name].ask("run", task))
        record[task] = entry
        loads.append(os.getloadavg()[0])
        print(task, {name: f"{statistics.median(seconds_of(entry, name)):.4g} s" for name in libraries}, flush=True)
    for worker in workers.values():
        worker.close()
    content = {
        "benchmark": "deterministic_speed",
        "provenance": source,
        "record": record,
        "header": ["what", "ours, s", "processor, s", "first call, s", "obp, s", "ours faster by", "bar"],
        "rows": [*rows_of(record), growth_row(record), load_row(loads)],
    }
    for row in content["rows"]:
        print(" | ".join(row))
    write_json(options.output, content)
    print(f"wrote {options.output}")


def seconds_of(entry: dict[str, Any], library: str, clock: str = "seconds") -> list[float]:
    """Seconds of the timed runs."""
    return [run[clock] for run in entry[library]["runs"]]


def rows_of(record: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each task.

    Raises:
        ValueError: if libraries that compute the same do not agree.
    """
    rows = []
    for task, libraries, bar in TASKS:
        entry = record[task]
        kind, count, horizon = task.split()
        values = [entry[name]["first"]["value"] for name in libraries]
        if any(abs(value - values[0]) > 1e-9 * abs(values[0]) for value in values):
            raise ValueError(f"{task}: {dict(zip(libraries, values, strict=True))} do not agree.")
        row = [
            f"{LABELS[kind]}; n = {int(count):,}, H = {horizon}",
            spread(summary(seconds_of(entry, "ours")), 4),
            f"{statistics.median(seconds_of(entry, 'ours', 'cpu_seconds')):.4f}",
            f"{entry['ours']['first']['seconds']:.1f}",
        ]
        if "obp" in libraries:
            turns = zip(seconds_of(entry, "obp"), seconds_of(entry, "ours"), strict=True)
            ratio = summary([a / b for a, b in turns])
            met = "met" if ratio["median"] >= float(bar) else "not met"
            row += [spread(summary(seconds_of(entry, "obp")), 4), spread(ratio, 1), f"{bar}: {met}"]
        else:
            row += ["", "", bar]
        rows.append(row)
    return rows


def growth_row(record: dict[str, dict[str, Any]]) -> list[str]:
    """Processor time against n and H; a machine that is shared tells little by the clock on the wall."""

    def taken(task: str) -> float:
        return statistics.median(seconds_of(record[task], "ours", "cpu_seconds"))

    whole = taken("all 10000 50")
    shown = f"n: {whole / taken('all 2500 50'):.1f} times for 4 times; H: {whole / taken('all 10000 25'):.1f} for 2"
    return ["growth of processor time of all", shown, "", "", "", "", "linear"]


def load_row(loads: list[float]) -> list[str]:
    """What else the machine did: on a busy one wall clock is long, and ratios and processor time tell more."""
    shown = f"{min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    return ["load of the machine while this was measured", shown, "", "", "", "", ""]


if __name__ == "__main__":
    main()
