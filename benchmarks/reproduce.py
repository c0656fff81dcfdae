"""Run the benchmarks of every paper (or one) with a preset, print their tables, and write `results/report.html`.

`python -m benchmarks.reproduce --preset quick|cpu|long|gpu|paper [--paper dapo]`

Finished jobs in `results/` are reused, so that a second call, or one after an interruption, computes only what is missing;
`--fresh` moves earlier results aside and starts again. Papers are the rooms of `benchmarks`, see `benchmarks.machinery.papers`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.machinery.papers import papers
from benchmarks.report import write_report

PRESETS = ("quick", "cpu", "long", "gpu", "paper")


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    rooms = papers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="sizes; default: quick")
    parser.add_argument("--paper", choices=rooms, help="this paper alone")
    parser.add_argument("--fresh", action="store_true", help="keep earlier results aside and compute everything again")
    options = parser.parse_args(arguments)

    results = Path("results")
    if options.fresh and results.exists():
        aside = Path(f"results-{time.strftime('%Y%m%d-%H%M%S')}")
        results.rename(aside)
        print(f"earlier results are now in {aside}/")
    started = time.perf_counter()
    for paper in rooms.values():
        if options.paper not in (None, paper.name):
            continue
        if options.preset not in paper.presets:
            print(f"{paper.name} has no preset {options.preset}; it has {', '.join(paper.presets)}.")
        for main_of, preset in paper.presets.get(options.preset, ()):
            main_of(["--preset", preset])
    print(f"report: {write_report(results)} ({time.perf_counter() - started:.0f} s in all)")


if __name__ == "__main__":
    main()
