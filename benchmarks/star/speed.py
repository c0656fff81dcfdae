"""Speed of off-policy evaluation from trajectories: all estimators in one call, bootstraps, and STAR's grid.

`python -m benchmarks.star.speed [--quick] [--output FILE]`

Against SCOPE-RL 0.2.1 in a process of its own; libraries take turns, and ratios are of runs of one round. The first run makes
`.venv-ope` with it and the torch that it needs for import. obp 0.5.7, whose bootstrap is the same loop over
`np.mean(np.random.choice(...))`, asks for Python below 3.11 and does not install.

SCOPE-RL's interval resamples per-trajectory terms. For `pdis` and `dr`, which are means of such terms, that is the same
bootstrap as ours, and takes both the time of a million random draws. The terms of `wis` and `cwpdis` hold sums of weights over
*all* data, which a resample has to compute anew: SCOPE-RL's interval does not, and is that of another statistic; "anew" is its
estimator called for every resample (ten of them, times a hundred).
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.machinery import turns
from benchmarks.machinery.results import provenance
from benchmarks.star.speed_worker import CELLS, RESAMPLES, SETS, TOGETHER, WINDOWS

WORKER = Path(__file__).with_name("speed_worker.py")
# torch is imported and not used; an index with a build for CPU alone serves
SCOPE = (("torch==2.13.0",), ("scope-rl==0.2.1", "d3rlpy==2.8.1"))
TASKS: tuple[turns.Task, ...] = (
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
    options = turns.speed_command(__doc__, "ope_speed").parse_args()
    pythons = {"ours": Path(sys.executable), "scope": turns.peer_python(turns.ROOT / ".venv-ope", SCOPE)}
    workers = {name: turns.Worker(python, name, script=WORKER) for name, python in pythons.items()}
    source = provenance()
    source["versions"] |= dict(package.split("==") for packages in SCOPE for package in packages)
    record, loads = turns.measured(TASKS, workers, 3 if options.quick else 7)
    memory = {task: workers["ours"].ask("compile", task)["value"] for task in MEMORY}
    for worker in workers.values():
        worker.close()
    rows = []
    for task in TASKS:
        turns.refuse_disagreement(record, task, ("value",), 1e-6)  # SCOPE-RL adds 1e-10 to sums of weights
        kind, count, horizon = task[0].split()
        label = f"{LABELS[kind]}; {int(count):,} trajectories of {horizon}"
        rows.append(turns.speed_row(record, task, label, ("scope",)))
    header = ["what", "ours, s", "processor, s", "first call, s", "SCOPE-RL, s", "ours faster by", "bar"]
    content = {
        "benchmark": "ope_speed",
        "provenance": source,
        "record": record,
        "memory": memory,
        "header": header,
        "rows": [*rows, memory_row(memory), turns.load_row(loads, len(header))],
    }
    turns.publish(content, options.output)


def memory_row(memory: dict[str, float]) -> list[str]:
    """Bytes by size, which grow no faster than the data."""
    shown = ", ".join(f"{int(task.split()[1]):,}: {size / 2**20:.1f} MiB" for task, size in memory.items())
    tasks = list(memory)
    growth = memory[tasks[-1]] / memory[tasks[0]]
    data = int(tasks[-1].split()[1]) / int(tasks[0].split()[1])
    label = "memory of the call of all but el, beside its data, by trajectories of 200"
    return [label, shown, "", "", "", "", f"{growth:.1f} times for {data:.0f} times the data; at most linear"]


if __name__ == "__main__":
    main()
