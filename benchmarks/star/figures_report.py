"""Section of the report for STAR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machinery.report_parts import figure, pyplot, tables_section
from benchmarks.star.figures import PAPER, rows_of, tables

_SHOWN = ("NAIVE", "IS", "WIS", "CWPDIS", "MB", "MAGIC-MB", "STAR best", "STAR median", "STAR mixture (OPERA)")


def star_section(content: dict[str, Any], plots: Path) -> str:
    """The claim beside the paper's values, all methods, and errors over the size of the data."""
    note = (
        "Best and median of STAR's grid are found with the truth in hand, selected ones are not (our rules). Direct methods "
        f"are tabular here. {content['compute_seconds'] / 60:.0f} minutes of processor time."
    )
    section = tables_section(
        "Off-policy evaluation by abstract reward processes (STAR)", content, note, tables(content)
    )
    return section + figure(_curves(content), plots / f"star_ope_{content['preset']}.png")


def _curves(content: dict[str, Any]) -> Any:
    plt = pyplot()
    domains = list(dict.fromkeys(case["domain"] for case in content["results"]))
    drawing, axes = plt.subplots(1, len(domains), figsize=(4.6 * len(domains), 4), squeeze=False)
    for axis, domain in zip(axes[0], domains, strict=True):
        cases = [case for case in content["results"] if case["domain"] == domain]
        sizes, rows = [case["n"] for case in cases], [rows_of(case) for case in cases]
        for i, name in enumerate(_SHOWN):
            points = [(n, row[name]["mse"]) for n, row in zip(sizes, rows, strict=True) if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), f"C{i}o-", label=name)
        for place, (label, mark) in enumerate((("STAR best", "kv"), ("STAR median", "k^"), ("best baseline", "kx"))):
            axis.plot(sizes, [PAPER[domain][n][place] for n in sizes], mark, label=f"the paper's {label}", alpha=0.5)
        axis.set_title(domain)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("trajectories")
    axes[0][0].set_ylabel("mean squared error")
    drawing.tight_layout()
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing
