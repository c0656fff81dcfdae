"""Sections of the report for empirical likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.empirical_likelihood import estimation, learning, softmax
from benchmarks.empirical_likelihood.intervals import LEVEL, PAPER, SIZES, SWEEP_SIZE, tables
from benchmarks.machinery.report_parts import figure, pyplot, tables_part


def intervals_section(content: dict[str, Any], plots: Path) -> str:
    """Coverage and width: tables, and curves over n with the paper's empirical likelihood."""
    note = (
        f"{content['sizes']['repetitions']:,} repetitions a cell, nominal {LEVEL:.0%}; Monte Carlo standard errors beside "
        "the coverages. <i>EL, finite sample</i> is our calibration that covers at every n."
    )
    return tables_part(note, tables(content)) + figure(
        _curves(content), plots / f"el_intervals_{content['preset']}.png"
    )


def contest_section(content: dict[str, Any], plots: Path) -> str:
    """Wins, ties and losses on labelled data, of estimates or of learned policies."""
    del plots
    studies = {"el_estimation": estimation, "el_learning": learning, "el_softmax": softmax}
    data_sets = len({row["data"] for row in content["results"]})
    note = (
        f"{data_sets} data sets, {content['sizes']['repetitions']} repetitions of each log; a win or a loss is a mean paired "
        f"difference beyond two standard errors. {content['compute_seconds'] / 60:.0f} minutes of one core."
    )
    return tables_part(note, studies[content["benchmark"]].tables(content))


def _curves(content: dict[str, Any]) -> Any:
    plt = pyplot()
    rows = [row for row in content["results"] if row["n"] != SWEEP_SIZE]
    drawing, axes = plt.subplots(1, 2, figsize=(11, 4))
    for i, name in enumerate(rows[0]["cells"]):
        for axis, what in zip(axes, ("coverage", "width"), strict=True):
            axis.plot([row["n"] for row in rows], [row["cells"][name][what] for row in rows], color=f"C{i}", label=name)
    for axis, column in zip(axes, range(2), strict=True):
        axis.plot(SIZES, [cell[column] for cell in PAPER["EL"]], "k.", label="EL, the paper's")
        axis.set_xscale("log")
        axis.set_xlabel("n")
    axes[0].axhline(LEVEL, color="grey", linewidth=0.8)
    axes[0].set_ylabel("coverage")
    axes[1].set_ylabel("mean width")
    axes[1].set_yscale("log")
    drawing.tight_layout()
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing
