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
        "quick": ("benchmarks.dapo_minatar",),
        "cpu": ("benchmarks.dapo_minatar",),
        "gpu": ("benchmarks.dapo_minatar", "benchmarks.dapo_atari"),
        "paper": ("benchmarks.dapo_minatar", "benchmarks.dapo_atari"),
    },
    "nppac": {
        "quick": ("benchmarks.nppac_pathology", "benchmarks.nppac_locomotion", "benchmarks.nppac_adroit"),
        "cpu": ("benchmarks.nppac_pathology", "benchmarks.nppac_locomotion", "benchmarks.nppac_adroit"),
        "gpu": ("benchmarks.nppac_pathology", "benchmarks.nppac_locomotion", "benchmarks.nppac_adroit"),
    },
    "el": {
        preset: (
            "benchmarks.el_intervals",
            "benchmarks.el_estimation",
            "benchmarks.el_learning",
            "benchmarks.el_softmax",
        )
        for preset in ("quick", "cpu")
    },
    "star": {
        preset: ("benchmarks.star_ope", "benchmarks.ope_suite", "benchmarks.ope_coverage")
        for preset in ("quick", "cpu")
    },
    "deterministic": {preset: ("benchmarks.deterministic_dr",) for preset in ("quick", "cpu")},
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
