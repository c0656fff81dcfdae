"""Libraries in processes of their own that take turns, so that other load on the machine strikes all alike.

Every ratio is of two neighbouring runs, of one round. Processor time, over all threads of a process, is recorded beside wall
clock: on a busy machine it is the steadier of the two. First calls, which compile, are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machinery.jobs import write_json

ROOT = Path(__file__).parents[2]
CLOCKS = ("seconds", "cpu_seconds")
Record = dict[str, dict[str, Any]]
# name, libraries, the bar: a multiple of the peer's speed, or words
Task = tuple[str, tuple[str, ...], str]


class Worker:
    """A process with one library in it; see the workers in the rooms of `benchmarks`."""

    def __init__(
        self,
        python: str | Path,
        library: str,
        *arguments: str,
        script: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.library = library
        self._process = subprocess.Popen(
            [str(python), str(script), library, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, command: str, task: str, seed: int = 0) -> dict[str, float]:
        """Send a command, wait for its answer.

        Raises:
            RuntimeError: if the process has died; names the command that shows why.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"command": command, "task": task, "seed": seed}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            shown = " ".join(self._process.args)  # type: ignore[arg-type]
            raise RuntimeError(f"{self.library} died at {command!r}; send it that line by hand to see why: {shown}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def peer_python(directory: Path, installs: Sequence[Sequence[str]]) -> Path:
    """Python of a peer's environment, made on first use by `pip install` of each of `installs` in turn."""
    python = directory / "bin" / "python"
    ready = directory / "ready"
    if not ready.exists():
        print(f"making {directory} with {', '.join(installs[-1])} (minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        for packages in installs:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.touch()
    return python


def summary(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def spread(values: dict[str, float], digits: int = 2) -> str:
    """`median (low to high)`."""
    return f"{values['median']:.{digits}f} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def take_turns(programs: list[tuple[Worker, str]], repeats: int, compilations: int = 0) -> Record:
    """Compile all, run all once, then time `repeats` rounds.

    Returns:
        `{"library task": {"first": answer, "compilations": [answers], "runs": [answers]}}`; the first compilation, which starts
        the backend, is not among `compilations`.
    """
    record: Record = {f"{worker.library} {task}": {"compilations": [], "runs": []} for worker, task in programs}
    for i in range(1 + compilations):
        for (worker, task), entry in zip(programs, record.values(), strict=True):
            answer = worker.ask("compile", task)
            if i:
                entry["compilations"].append(answer)
            else:
                entry["first"] = answer
    for worker, task in programs:
        worker.ask("run", task)
    for seed in range(repeats):
        for (worker, task), entry in zip(programs, record.values(), strict=True):
            entry["runs"].append(worker.ask("run", task, seed))
    return record


def measured(tasks: Sequence[Task], workers: dict[str, Worker], repeats: int) -> tuple[Record, list[float]]:
    """One task after the other, and the machine's load before, between and after them."""
    record: Record = {}
    loads = [os.getloadavg()[0]]
    for task, libraries, _ in tasks:
        found = take_turns([(workers[library], task) for library in libraries], repeats)
        print({name: f"{statistics.median(times(found, name)):.4g} s" for name in found}, flush=True)
        record |= found
        loads.append(os.getloadavg()[0])
    return record, loads


def times(record: Record, name: str, what: str = "runs", clock: str = "seconds") -> list[float]:
    """One clock of all runs, or compilations, of a program."""
    return [answer[clock] for answer in record[name][what]]


def ratios(record: Record, above: str, below: str, what: str = "runs", clock: str = "seconds") -> list[float]:
    """Of each round."""
    pairs = zip(times(record, above, what, clock), times(record, below, what, clock), strict=True)
    return [a / b for a, b in pairs]


def refuse_disagreement(record: Record, task: Task, fields: Sequence[str], tolerance: float) -> None:
    """Check that libraries compute the same.

    Args:
        record: of `measured`.
        task: of its tasks.
        fields: of first answers.
        tolerance: relative.

    Raises:
        ValueError: if they do not.
    """
    name, libraries, _ = task
    found = {library: [record[f"{library} {name}"]["first"][field] for field in fields] for library in libraries}
    for values in zip(*found.values(), strict=True):
        if any(abs(value - values[0]) > tolerance * abs(values[0]) for value in values):
            raise ValueError(f"{name}: {found} do not agree in {', '.join(fields)}.")


def speed_row(record: Record, task: Task, label: str, peers: Sequence[str]) -> list[str]:
    """Ours: seconds, processor time, first call; seconds of peers; ratios; the bar, and whether a multiple was met."""
    name, libraries, bar = task
    ours = f"ours {name}"
    row = [
        label,
        spread(summary(times(record, ours)), 4),
        f"{statistics.median(times(record, ours, clock='cpu_seconds')):.4f}",
        f"{record[ours]['first']['seconds']:.1f}",
    ]
    faster = {}
    for peer in peers:
        theirs = f"{peer} {name}"
        row.append(spread(summary(times(record, theirs)), 4) if peer in libraries else "")
        if peer in libraries:
            faster[peer] = summary(ratios(record, theirs, ours))
    row.append("; ".join((f"{peer} " if len(peers) > 1 else "") + spread(ratio, 1) for peer, ratio in faster.items()))
    met = ""
    if faster and bar.replace(".", "", 1).isdigit():
        met = ": met" if min(ratio["median"] for ratio in faster.values()) >= float(bar) else ": not met"
    return [*row, bar + met]


def load_row(loads: Sequence[float], columns: int) -> list[str]:
    """What else the machine did: on a busy one wall clock is long, and ratios and processor time tell more."""
    shown = f"{min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    return ["load of the machine while this was measured", shown] + (columns - 2) * [""]


def speed_command(
    description: str, name: str, quick: str = "three repeats instead of seven"
) -> argparse.ArgumentParser:
    """What benchmarks of speed take: `--quick` and `--output`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    return parser


def publish(content: dict[str, Any], output: Path) -> None:
    """Print the rows of a table, and write all there is."""
    for row in content["rows"]:
        print(" | ".join(row))
    write_json(output, content)
    print(f"wrote {output}")
