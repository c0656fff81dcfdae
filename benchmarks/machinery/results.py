"""The result file of a benchmark: its numbers, and the hardware, versions, command and date that stand beside them."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.machinery.jobs import write_json

PLACES = {"--cache", "--output", "--curves", "--peer-python", "--purejaxrl", "--experts", "--data"}


def write_results(
    output: Path, benchmark: str, preset_name: str, preset: Any, found: list[dict[str, Any]], results: list[Any]
) -> dict[str, Any]:
    """Write the results of a preset with its sizes, time and provenance; returns the content of the file.

    Args:
        output: file.
        benchmark: its name, as in the names of files and in the report.
        preset_name: key of its presets.
        preset: the sizes of that preset.
        found: results of `run_all`, whose `seconds` are added up.
        results: the part of them that the file keeps.
    """
    content = {
        "benchmark": benchmark,
        "preset": preset_name,
        "provenance": provenance(),
        "compute_seconds": round(sum(job["seconds"] for job in found), 1),
        "sizes": preset,
        "results": results,
    }
    write_json(output, content)
    return content


def provenance() -> dict[str, Any]:
    """Hardware, versions, command and date, to stand beside every number."""
    import jax

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    packages = (
        "jax", "jaxlib", "flax", "optax", "gymnax", "flashbax", "brax", "ale-py", "gymnasium", "gymnasium-robotics", "mujoco",
        "rejax", "numpy",
    )  # fmt: skip
    return {
        "command": _command(sys.argv),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := version(name))},
    }


def _command(words: list[str]) -> str:
    """The command line, without the places that only the caller's machine has."""
    kept = [word for before, word in zip(["", *words[1:]], words[1:], strict=False) if not {before, word} & PLACES]
    return " ".join(["python", "-m", _module(Path(words[0])), *kept])


def _module(script: Path) -> str:
    """`benchmarks.room.name` of the file that Python was started with."""
    parts = script.with_suffix("").parts
    return ".".join(parts[parts.index("benchmarks") :] if "benchmarks" in parts else parts[-1:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
