"""Speed of off-policy evaluation from trajectories: all estimators in one call, bootstraps, and STAR's grid.

`python -m benchmarks.ope_speed [--quick] [--output FILE]`

Against SCOPE-RL 0.2.1 in a process of its own; libraries take turns, and ratios are of runs of one round. The first run makes
`.venv-ope` with it and the torch that it needs for import. obp 0.5.7, whose bootstrap is the same loop over
`np.mean(np.random.choice(...))`, asks for Python below 3.11 and does not install.

SCOPE-RL's interval resamples per-trajectory terms. For `pdis` and `dr`, which are means of such terms, that is the same
bootstrap as ours, and takes both the time of a million random draws. The terms of `wis` and `cwpdis` hold sums of weights over
*all* data, which a resample has to compute anew: SCOPE-RL's interval does not, and is that of another statistic; "anew" is its
estimator called for every resample (ten of them, times a hundred).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.jobs import provenance, write_json
from benchmarks.peers.ope_worker import CELLS, RESAMPLES, SETS, TOGETHER, WINDOWS
from benchmarks.throughput import ROOT, Worker, peer_python, spread, summary

WORKER = Path(__file__).parent / "peers" / "ope_worker.py"
# torch is imported and not used; an index with a build for CPU alone serves
SCOPE = (("torch==2.13.0",), ("scope-rl==0.2.1", "d3rlpy==2.8.1"))
# task, libraries, bar
TASKS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("together 1000 200", ("ours",), "at most 2 s"),
    ("together 10000 200", ("ours",), ""),
    ("pdis 1000 200", ("ours", "scope"), "50"),
    ("dr 1000 200", ("ours", "scope"), "50"),
    ("wis 1000 200", ("ours", "scope"), "50"),
    ("cwpdis 1000 200", ("ours", "scope"), "50"),
    ("again-wis 1000 200", ("ours", "scope"), "50"),
    ("again-cwpdis 1000 200", ("ours", "scope"), "50"),
    ("grid 100 50", ("ours",), ""),
)
MEMORY = tuple(f"memory {count} 200" for count in (1000, 2000, 4000))
LABELS = {
    "together": f"{', '.join(TOGETHER)}: {RESAMPLES:,} resamples each, one call",
    "pdis": f"pdis and interval, {RESAMPLES:,} resamples",
    "dr": f"dr and interval, {RESAMPLES:,} resamples",
    "wis": f"wis and interval, {RESAMPLES:,} resamples; SCOPE-RL: sums of weights kept",
    "cwpdis": f"cwpdis and interval, {RESAMPLES:,} resamples; SCOPE-RL: sums of weights kept",
    "again-wis": f"wis and interval, {RESAMPLES:,} resamples, anew for each",
    "again-cwpdis": f"cwpdis and interval, {RESAMPLES:,} resamples, anew for each",
    "grid": f"STAR, {len(CELLS)} abstractions, {len(WINDOWS)} windows, {SETS} data sets at once",
}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repeats instead of seven")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ope_speed.json")
    options = parser.parse_args()
    pythons = {"ours": Path(sys.executable), "scope": peer_python(ROOT / ".venv-ope", SCOPE)}
    workers = {name: Worker(python, name, script=WORKER) for name, python in pythons.items()}
    source, loads, record = provenance(), [os.getloadavg()[0]], {}
    source["versions"] |= dict(package.split("==") for packages in SCOPE for package in packages)
    for task, libraries, _ in TASKS:
        first = {name: workers[name].ask("compile", task) for name in libraries}
        entry: dict[str, Any] = {name: {"first": first[name], "runs": []} for name in libraries}
        for _ in range(3 if options.quick else 7):
            for name in libraries:
                entry[name]["runs"].append(workers[name].ask("run", task))
        record[task] = entry
        loads.append(os.getloadavg()[0])
        print(task, {name: f"{statistics.median(seconds_of(entry, name)):.4g} s" for name in libraries}, flush=True)
    memory = {task: workers["ours"].ask("compile", task)["value"] for task in MEMORY}
    for worker in workers.values():
        worker.close()
    content = {
        "benchmark": "ope_speed",
        "provenance": source,
        "record": record,
        "memory": memory,
        "header": ["what", "ours, s", "processor, s", "first call, s", "SCOPE-RL, s", "ours faster by", "bar"],
        "rows": [*rows_of(record), *memory_rows(memory), load_row(loads)],
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
        # SCOPE-RL adds 1e-10 to sums of weights
        if any(abs(value - values[0]) > 1e-6 * abs(values[0]) for value in values):
            raise ValueError(f"{task}: {dict(zip(libraries, values, strict=True))} do not agree.")
        row = [
            f"{LABELS[kind]}; {int(count):,} trajectories of {horizon}",
            spread(summary(seconds_of(entry, "ours")), 4),
        ]
        row.append(f"{statistics.median(seconds_of(entry, 'ours', 'cpu_seconds')):.4f}")
        row.append(f"{entry['ours']['first']['seconds']:.1f}")
        if "scope" in libraries:
            turns = zip(seconds_of(entry, "scope"), seconds_of(entry, "ours"), strict=True)
            ratio = summary([a / b for a, b in turns])
            met = "" if not bar else ": met" if ratio["median"] >= float(bar) else ": not met"
            row += [spread(summary(seconds_of(entry, "scope")), 4), spread(ratio, 1), f"{bar}{met}"]
        else:
            row += ["", "", bar]
        rows.append(row)
    return rows


def memory_rows(memory: dict[str, float]) -> list[list[str]]:
    """A row of bytes by size, which grow no faster than the data."""
    shown = ", ".join(f"{int(task.split()[1]):,}: {size / 2**20:.1f} MiB" for task, size in memory.items())
    tasks = list(memory)
    growth = memory[tasks[-1]] / memory[tasks[0]]
    data = int(tasks[-1].split()[1]) / int(tasks[0].split()[1])
    label = "memory of the call of all but el, beside its data, by trajectories of 200"
    return [[label, shown, "", "", "", "", f"{growth:.1f} times for {data:.0f} times the data; at most linear"]]


def load_row(loads: list[float]) -> list[str]:
    """What else the machine did: on a busy one wall clock is long, and ratios and processor time tell more."""
    shown = f"{min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    return ["load of the machine while this was measured", shown, "", "", "", "", ""]


if __name__ == "__main__":
    main()
