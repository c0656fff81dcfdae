"""Speed of empirical likelihood's interval, its closed-form sibling, and the online form.

`python -m benchmarks.empirical_likelihood.speed [--quick] [--output FILE]`

Against vw-estimators, which has Cressie-Read(-2) alone, and the same closed form in plain NumPy, in processes of their own that
take turns; first calls, which compile, apart. The authors' own code takes 205 s for one interval at n = 100,000 (measured
once for the reference of this library, not here). The first run makes `.venv-bandit` with vw-estimators.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.machinery import turns
from benchmarks.machinery.results import provenance

WORKER = Path(__file__).with_name("speed_worker.py")
VW = (("vw-estimators==0.2.2",),)
# task, libraries, what the first may take: seconds, or a multiple of the last library's time
TASKS: tuple[turns.Task, ...] = (
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
    options = turns.speed_command(__doc__, "el_speed").parse_args()
    pythons = {
        "ours": sys.executable,
        "numpy": sys.executable,
        "vw": turns.peer_python(turns.ROOT / ".venv-bandit", VW),
    }
    workers = {name: turns.Worker(python, name, script=WORKER) for name, python in pythons.items()}
    record, loads = turns.measured(TASKS, workers, 3 if options.quick else 7)
    for worker in workers.values():
        worker.close()
    rows = []
    for task in TASKS:
        # vw-estimators feeds its sums one datum at a time
        turns.refuse_disagreement(record, task, ("lower", "upper"), 1e-6)
        kind, count = task[0].split()
        rows.append(turns.speed_row(record, task, LABELS[kind].format(int(count)), ("vw", "numpy")))
    header = [
        "what",
        "ours, s",
        "processor, s",
        "first call, s",
        "vw-estimators, s",
        "NumPy, s",
        "ours faster by",
        "bar",
    ]
    content = {
        "benchmark": "el_speed",
        "provenance": provenance(),
        "record": record,
        "header": header,
        "rows": [*rows, turns.load_row(loads, len(header))],
    }
    turns.publish(content, options.output)


if __name__ == "__main__":
    main()
