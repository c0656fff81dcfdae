"""Run the benchmarks of every paper (or one) with a preset, print their tables, and write `results/report.html`.

`python -m benchmarks.reproduce --preset quick|cpu|gpu|paper [--paper dapo]`

What is already in `results/` is reused, so that a second call, or one after an interruption, computes only what is missing;
`--fresh` moves earlier results aside and starts again.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

# paper -> preset -> modules whose `main` runs it; `gpu` holds the paper's own sizes where there is no `paper`
PAPERS: dict[str, dict[str, tuple[str, ...]]] = {
    "dapo": {
        "quick": ("benchmarks.dapo.minatar",),
        "cpu": ("benchmarks.dapo.minatar",),
        "gpu": ("benchmarks.dapo.minatar", "benchmarks.dapo.atari"),
        "paper": ("benchmarks.dapo.minatar", "benchmarks.dapo.atari"),
    },
    "nppac": {
        "quick": ("benchmarks.nppac.pathology", "benchmarks.nppac.locomotion", "benchmarks.nppac.adroit"),
        "cpu": ("benchmarks.nppac.pathology", "benchmarks.nppac.locomotion", "benchmarks.nppac.adroit"),
        "gpu": ("benchmarks.nppac.pathology", "benchmarks.nppac.locomotion", "benchmarks.nppac.adroit"),
    },
    "el": {
        preset: (
            "benchmarks.empirical_likelihood.intervals",
            "benchmarks.empirical_likelihood.estimation",
            "benchmarks.empirical_likelihood.learning",
            "benchmarks.empirical_likelihood.softmax",
        )
        for preset in ("quick", "cpu")
    },
    "star": {
        preset: ("benchmarks.star.figures", "benchmarks.star.suite", "benchmarks.star.coverage")
        for preset in ("quick", "cpu")
    },
    "deterministic": {preset: ("benchmarks.deterministic.study",) for preset in ("quick", "cpu")},
}


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("quick", "cpu", "gpu", "paper"), default="quick")
    parser.add_argument("--paper", choices=PAPERS, help="only this one")
    parser.add_argument("--fresh", action="store_true", help="keep earlier results aside and compute everything again")
    options = parser.parse_args(arguments)

    results = Path("results")
    if options.fresh and results.exists():
        aside = Path(f"results-{time.strftime('%Y%m%d-%H%M%S')}")
        results.rename(aside)
        print(f"earlier results are now in {aside}/")
    started = time.perf_counter()
    for paper, presets in PAPERS.items():
        if options.paper in (None, paper):
            if options.preset not in presets:
                print(f"{paper} has no preset {options.preset}; its largest is {list(presets)[-1]}.")
            for module in presets.get(options.preset, ()):
                importlib.import_module(module).main(["--preset", options.preset])
    from benchmarks.report import write_report

    print(f"report: {write_report(results)} ({time.perf_counter() - started:.0f} s in all)")


if __name__ == "__main__":
    main()
