"""Sections of the report for STAR, and for off-policy evaluation at large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machinery.report_parts import figure, pyplot, tables_part
from benchmarks.star import coverage, figure3, suite

_FIGURE_SHOWN = ("NAIVE", "IS", "WIS", "CWPDIS", "MB", "MAGIC-MB", "STAR best", "STAR median", "STAR mixture (OPERA)")
_SUITE_SHOWN = (
    "NAIVE",
    "PDIS",
    "WIS",
    "CWPDIS",
    "FQE",
    "DR",
    "WDR",
    "MAGIC",
    "MIS",
    "DRL",
    "STAR best",
    "STAR median",
    "STAR selected",
)


def figure3_section(content: dict[str, Any], plots: Path) -> str:
    """The claim beside the paper's values, all methods, and errors over the size of the data."""
    note = (
        "Best and median of STAR's grid are found with the truth in hand, selected ones are not (our rules). Direct methods "
        f"are tabular here. {content['compute_seconds'] / 60:.0f} minutes of processor time."
    )
    drawing = figure(_curves(content), plots / f"star_ope_{content['preset']}.png")
    return tables_part(note, figure3.tables(content)) + drawing


def _curves(content: dict[str, Any]) -> Any:
    plt = pyplot()
    domains = list(dict.fromkeys(case["domain"] for case in content["results"]))
    drawing, axes = plt.subplots(1, len(domains), figsize=(4.6 * len(domains), 4), squeeze=False)
    for axis, domain in zip(axes[0], domains, strict=True):
        cases = [case for case in content["results"] if case["domain"] == domain]
        sizes, rows = [case["n"] for case in cases], [figure3.rows_of(case) for case in cases]
        for i, name in enumerate(_FIGURE_SHOWN):
            points = [(n, row[name]["mse"]) for n, row in zip(sizes, rows, strict=True) if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), f"C{i}o-", label=name)
        for place, (label, mark) in enumerate((("STAR best", "kv"), ("STAR median", "k^"), ("best baseline", "kx"))):
            axis.plot(
                sizes, [figure3.PAPER[domain][n][place] for n in sizes], mark, label=f"the paper's {label}", alpha=0.5
            )
        axis.set_title(domain)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("trajectories")
    axes[0][0].set_ylabel("mean squared error")
    drawing.tight_layout()
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing


def suite_section(content: dict[str, Any], plots: Path) -> str:
    """Accuracy, intervals, rankings, decisions and time, and a picture of errors and coverage."""
    counts = " or ".join(map(str, sorted({case["repetitions"] for case in content["results"]})))
    note = (
        f"Means over {counts} data sets and several judged policies. STAR's best and median points "
        "are found with the truth in hand. Times are of single estimates in a batch, and of a busy machine."
    )
    return tables_part(note, suite.tables(content)) + figure(
        _errors(content), plots / f"ope_suite_{content['preset']}.png"
    )


def _errors(content: dict[str, Any]) -> Any:
    """Relative root mean squared error over coverage of 95 % intervals, a panel a domain."""
    plt = pyplot()
    cases = content["results"]
    drawing, axes = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 3.6), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for i, name in enumerate(_SUITE_SHOWN):
            row = case["methods"].get(name, {})
            if row.get("relative_mse") is not None:
                mark = "k*" if name == "NAIVE" else f"C{i % 10}{'o' if i < 10 else '^'}"
                axis.plot(100 * row["coverage"], row["relative_mse"] ** 0.5, mark, label=name)
        axis.axvline(95, color="grey", linewidth=0.8)
        axis.set_title(f"{case['domain']}, n = {case['n']:,}", fontsize=10)
        axis.set_yscale("log")
        axis.set_xlabel("coverage, %")
    axes[0][0].set_ylabel("relative root mean squared error")
    drawing.tight_layout()
    labels = {}
    for axis in axes[0]:
        handles, names = axis.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    drawing.legend(labels.values(), labels.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=7)
    return drawing


def coverage_section(content: dict[str, Any], plots: Path) -> str:
    """Coverage and width of every interval."""
    del plots
    note = (
        "Hoeffding, empirical Bernstein, betting, Anderson and the finite-sample likelihood cover at every n, all others as n "
        "grows; a star marks coverage that is short of the level by more than two standard errors. naive is held against the "
        f"behaviour policy's value. {content['compute_seconds'] / 60:.0f} minutes, one case after the other."
    )
    return tables_part(note, coverage.tables(content))
