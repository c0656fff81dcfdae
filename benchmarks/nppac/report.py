"""Sections of the report for N-PPAC: tables, learning curves, calibration on the principal plane, claims beside evidence."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machinery.report_parts import figure, pyplot, table, verdict_cell
from benchmarks.nppac.claims import calibration_table, comparisons, curve_of, gradient_table, table_of, verdicts


def learning_section(content: dict[str, Any], plots: Path) -> str:
    """Adroit or locomotion: table, claims and curves."""
    if content.get("missing"):
        left = "; ".join(f"{stage}: {jobs}" for stage, jobs in content["missing"].items())
        return f"<p><b>Not all of it has been run.</b> Missing are {left}.</p>"
    sizes, kind = content["sizes"], content["benchmark"]
    success = "scales" not in content
    what = (
        "share of greedy episodes with a success"
        if success
        else "greedy return, a random policy at 0 and the expert at 1"
    )
    header, lines = table_of(content)
    parts = [
        f"<p>{sizes['demonstrations']} demonstrations, {sizes['steps']:,} samples a run, {sizes['seeds']} seeds, networks "
        f"{tuple(sizes['sizes'])}, batches of {sizes['batch_size']}. Score: {what}; <i>final</i> is the mean of the last two "
        "evaluations, <i>area</i> the mean over all after the start, <i>start</i> what pre-training alone gives. IQM over "
        "tasks and seeds, 95 % bootstrap intervals. The KL's gradient is alpha |d log pi_0(a|s) / d a|, its largest 99th "
        "percentile in training (median over runs). Seeds share the demonstrations; each has references fitted anew."
        "</p>",
        *(f"<p>{html.escape(remark)}</p>" for remark in content.get("remarks", ())),
        table(header, lines),
        "<h4>N-PPAC with a Gaussian process against each other method</h4>",
        table(
            ["against", "mean difference in area [95 %]", "", "mean difference in the final score [95 %]", ""],
            [
                [
                    row["other"],
                    "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["area"]),
                    verdict_cell(row["area_verdict"]),
                    "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["final"]),
                    verdict_cell(row["final_verdict"]),
                ]
                for row in comparisons(content)
            ],
        ),
    ]
    parts.append(figure(_curves(content, what), plots / f"{kind}_{content['preset']}_curves.png"))
    return "".join(parts)


def _curves(content: dict[str, Any], what: str) -> Any:
    plt = pyplot()
    tasks, names = content["sizes"]["tasks"], content["sizes"]["methods"]
    drawing, axes = plt.subplots(2, len(tasks), figsize=(4.4 * len(tasks), 6.4), squeeze=False)
    for result in content["final"]:
        column, colour = tasks.index(result["task"]), f"C{names.index(result['method'])}"
        style = "-" if names.index(result["method"]) < 10 else "--"
        scale = content.get("scales", {}).get(result["task"])
        scores = np.array([curve_of(run, scale) for run in result["runs"]])
        steps = result["runs"][0]["curves"]["evaluation_steps"]
        axes[0, column].plot(steps, scores.mean(axis=0), style, color=colour, label=result["method"])
        spread = scores.std(axis=0) / np.sqrt(len(scores))
        axes[0, column].fill_between(
            steps, scores.mean(axis=0) - spread, scores.mean(axis=0) + spread, color=colour, alpha=0.15
        )
        gradients = np.array([run["curves"]["kl_gradient_p99"] for run in result["runs"]], float)
        if np.isfinite(gradients).any():
            axes[1, column].plot(steps[1:], np.median(gradients, axis=0), style, color=colour)
        axes[0, column].set_title(result["task"], fontsize=10)
    for axis in axes[1]:
        axis.set_yscale("log")
        axis.set_xlabel("samples")
    axes[0, 0].set_ylabel(what, fontsize=8)
    axes[1, 0].set_ylabel("p99 of the KL's gradient", fontsize=8)
    drawing.tight_layout()
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing


def pathology_section(content: dict[str, Any], plots: Path) -> str:
    """Calibration, the proposition and the gradients in training."""
    parts = [
        "<h4>Criteria</h4>",
        table(
            ["criterion (ours: the paper gives no numbers)", "measured", ""],
            [[row["statement"], row["ours"], verdict_cell(row["verdict"])] for row in verdicts(content)],
        ),
        "<h4>Standard deviation of the reference on and off the data</h4>",
        "<p>Geometric mean over states and action dimensions; states moved away by multiples of each observation dimension's "
        f"standard deviation; mean over {content['sizes']['fit_seeds']} fits, with the range of the ratio.</p>",
        table(*calibration_table(content)),
        "<h4>The KL's gradient in training on Pendulum</h4>",
        table(*gradient_table(content)),
    ]
    for place in dict.fromkeys(result["environment"] for result in content["calibration"]):
        parts.append(figure(_planes(content, place), plots / f"nppac_plane_{place}_{content['preset']}.png"))
    return "".join(parts)


def _planes(content: dict[str, Any], place: str) -> Any:
    from jaxrl_off.references import plot_calibration

    shown = [result for result in content["calibration"] if result["environment"] == place]
    planes = {result["method"]: np.array(result["panel"]["std"], float) for result in shown}
    panel = shown[0]["panel"]
    drawing = plot_calibration(planes, tuple(np.array(span) for span in panel["grid"]), np.array(panel["dots"]))
    drawing.suptitle(f"{place}: standard deviation on the plane of the first two principal components")
    return drawing
