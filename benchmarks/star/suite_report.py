"""Section of the report for all estimators of off-policy values on all domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machinery.report_parts import figure, pyplot, tables_section
from benchmarks.star.suite import tables

_SHOWN = (
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


def suite_section(content: dict[str, Any], plots: Path) -> str:
    """Accuracy, intervals, rankings, decisions and time, and a picture of errors and coverage."""
    counts = " or ".join(map(str, sorted({case["repetitions"] for case in content["results"]})))
    note = (
        f"Means over {counts} data sets and several judged policies. STAR's best and median points "
        "are found with the truth in hand. Times are of single estimates in a batch, and of a busy machine."
    )
    section = tables_section("Off-policy evaluation: every estimator on every domain", content, note, tables(content))
    return section + figure(_errors(content), plots / f"ope_suite_{content['preset']}.png")


def _errors(content: dict[str, Any]) -> Any:
    """Relative root mean squared error over coverage of 95 % intervals, a panel a domain."""
    plt = pyplot()
    cases = content["results"]
    drawing, axes = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 3.6), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for i, name in enumerate(_SHOWN):
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
