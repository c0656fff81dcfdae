"""Speed of fitted Q-evaluation with networks against d3rlpy 2.8.1.

`python -m benchmarks.star.fqe_speed [--quick] [--output FILE]`

Gradient updates a second of Q networks of 2 x 256 ReLU units, batches of 256 from 50,000 transitions with 17 observations and
six actions (discrete) or numbers (continuous), Adam, the copy replaced every 100 updates. Libraries live in processes of
their own and take turns; ratios are of runs of one round. d3rlpy runs with as many threads as torch takes, and with one: on a
machine that is shared the latter is faster, as torch's threads wait for each other by spinning. The ratio that counts is to the
faster of the two in each round. That of processor time, over all threads, is to d3rlpy with one thread, and says what is left
where other programs have the machine's other cores; the load of the machine, which is stored, says how far to trust the rest.

Where the libraries do not do the same work:

* A run of ours is the whole public call `fit_network_q`: it also checks the data and evaluates all states. A run of d3rlpy is
  its public call `fit` without logging to files, which draws every batch from its replay buffer, one transition after the
  other in Python: that is its own work, and `one batch` measures it without that (`update` on a batch drawn before).
* d3rlpy asks the policy it evaluates for actions at every update, here a network of one unit; ours has candidates of all states
  beforehand, whose cost is not in the run.
* The discrete target is a sum over actions in ours, Q of one action in d3rlpy; the loss is squared in ours, and in d3rlpy
  squared or, of discrete actions, Huber's. Neither costs much.

The first run makes `.venv-d3rlpy` (torch's default build is large; a build for CPU alone is enough).
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.dapo.speed import matrix_product_rate
from benchmarks.machinery.results import provenance
from benchmarks.machinery.turns import (
    ROOT,
    Record,
    Worker,
    load_row,
    peer_python,
    publish,
    speed_command,
    spread,
    summary,
    take_turns,
)
from benchmarks.star.fqe_worker import ACTIONS, BATCH, OBSERVATIONS, WIDTHS

WORKER = Path(__file__).with_name("fqe_worker.py")
D3RLPY = (("d3rlpy==2.8.1",),)
KINDS = ("discrete", "continuous")
BAR = "5"
# name of the worker, library, environment
WORKERS = (
    ("ours", "ours", None),
    ("d3rlpy", "d3rlpy", None),
    ("d3rlpy, one thread", "d3rlpy", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
)


def flops_per_update(kind: str) -> int:
    """Floating-point operations of the matrix products of one update: two forward passes and a backward one."""
    inputs, outputs = (OBSERVATIONS, ACTIONS) if kind == "discrete" else (OBSERVATIONS + ACTIONS, 1)
    layers = [a * b for a, b in itertools.pairwise((inputs, *WIDTHS, outputs))]
    return 2 * BATCH * (3 * sum(layers) + sum(layers[1:]))


def rates_of(record: Record, task: str, name: str) -> list[float]:
    """Updates a second of each round."""
    return [run["updates"] / run["seconds"] for run in record[f"{name} {own_task(name, task)}"]["runs"]]


def own_task(name: str, task: str) -> str:
    """Ours has no part of its own without drawing batches."""
    return task.partition("_")[0] if name == "ours" else task


def rows_of(records: dict[str, Record], peak: float) -> list[list[str]]:
    """Rows of the table, of what `main` recorded for each task."""
    rows = []
    for task, record in records.items():
        kind, _, alone = task.partition("_")
        rates = {name: rates_of(record, task, name) for name, _, _ in WORKERS}
        faster = [ours / max(others) for ours, *others in zip(*rates.values(), strict=True)]
        one = WORKERS[-1][0]
        processor = [
            theirs["cpu_seconds"] / theirs["updates"] / (own["cpu_seconds"] / own["updates"])
            for theirs, own in zip(record[f"{one} {task}"]["runs"], record[f"ours {kind}"]["runs"], strict=True)
        ]
        share = statistics.median(rates["ours"]) * flops_per_update(kind) * 1e-9 / peak
        rows.append(
            [
                f"{kind} actions, {'d3rlpy on one batch' if alone else 'whole calls'}",
                *(spread(summary(rates[name]), 0) for name, _, _ in WORKERS),
                f"{100 * share:.0f} %",
                spread(summary(faster), 1),
                spread(summary(processor), 1),
                "" if alone else BAR,
            ]
        )
    return rows


def versions(python: Path) -> dict[str, str]:
    """Of d3rlpy and torch in the peer's environment."""
    code = "import importlib.metadata as m; print(m.version('d3rlpy'), m.version('torch'))"
    found = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("d3rlpy", "torch"), found, strict=True))


def main() -> None:
    """Command line; see the module."""
    options = speed_command(__doc__, "fqe_speed", "two rounds instead of seven").parse_args()
    pythons = {"ours": Path(sys.executable), "d3rlpy": peer_python(ROOT / ".venv-d3rlpy", D3RLPY)}
    workers = {
        name: Worker(pythons[library], library, script=WORKER, environment=environment)
        for name, library, environment in WORKERS
    }
    for name, worker in workers.items():
        worker.library = name
    source = provenance()
    source["versions"] |= versions(pythons["d3rlpy"])
    loads = [os.getloadavg()[0]]
    records: dict[str, Record] = {}
    for task in (*KINDS, *(f"{kind}_update" for kind in KINDS)):
        programs = [(worker, own_task(name, task)) for name, worker in workers.items()]
        records[task] = take_turns(programs, 2 if options.quick else 7)
        print(
            task, {name: round(statistics.median(rates_of(records[task], task, name))) for name in workers}, flush=True
        )
        loads.append(os.getloadavg()[0])
    for worker in workers.values():
        worker.close()
    peak = matrix_product_rate()
    header = [
        "updates/s",
        *(name for name, _, _ in WORKERS),
        "ours, of the matrix product",
        "ours over the faster d3rlpy: median (range)",
        "by processor time, over one thread",
        "bar",
    ]
    content = {
        "benchmark": "fqe_speed",
        "provenance": source,
        "matrix_product_gflops": peak,
        "flops_per_update": {kind: flops_per_update(kind) for kind in KINDS},
        "records": records,
        "header": header,
        "rows": [*rows_of(records, peak), load_row(loads, len(header))],
    }
    publish(content, options.output)


if __name__ == "__main__":
    main()
