"""Sections of the report for divergence-augmented policy optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dapo.atari import table as atari_table
from benchmarks.dapo.claims import map_rows, tables
from benchmarks.machinery.report_parts import figure, pyplot, table


def minatar_section(content: dict[str, Any], plots: Path) -> str:
    """Tables, learning curves and the map of a MinAtar result file."""
    mapped, name = map_rows(content["map"]), f"dapo_minatar_{content['preset']}"
    sizes = content["sizes"]
    parts = [
        f"<p>{sizes['steps']:,} samples per run where data are scarce, {sizes['seeds']} seeds; score: mean training return "
        "over the last fifth of the samples. KL: half the mean squared log-ratio to the behaviour policy in the batches.</p>",
    ]
    if content.get("missing"):
        left = "; ".join(f"{stage}: {jobs}" for stage, jobs in content["missing"].items())
        parts.append(f"<p><b>Not all of it has been run.</b> Missing are {left}.</p>")
    for title, header, lines in tables(content):
        parts += [f"<h4>{title}</h4>", table(header, lines)]
    if content["final"]:
        parts.append(figure(minatar_curves(content), plots / f"{name}_curves.png"))
    if mapped:
        parts.append("<h4>Where the divergence pays: reuse, replay size, publication and learning rate</h4>")
        for interval in sorted({row["publish"] for row in mapped}):
            cells = [row for row in mapped if row["publish"] == interval]
            parts.append(f"<p>The policy is published to the actors every {interval} updates.</p>")
            parts.append(figure(minatar_map(cells), plots / f"{name}_map_{interval}.png"))
        columns = [
            "game",
            "method",
            "reuse",
            "capacity",
            "publish",
            "learning_rate",
            "score",
            "standard_error",
            "seeds",
            "kl",
            "staleness",
        ]
        parts.append("<details><summary>numbers of the map</summary>")
        parts.append(table(columns, [[row[c] for c in columns] for row in mapped]) + "</details>")
    return "".join(parts)


def minatar_curves(content: dict[str, Any]) -> Any:
    """Return (top of each pair) and KL to the behaviour policy (bottom) against samples, by regime and game."""
    plt = pyplot()
    games = content["sizes"]["games"]
    regimes = list(dict.fromkeys(result["regime"] for result in content["final"]))
    drawing, axes = plt.subplots(
        2 * len(regimes), len(games), figsize=(4.6 * len(games), 4.8 * len(regimes)), squeeze=False
    )
    methods = list(dict.fromkeys(result["method"] for result in content["final"]))
    for result in content["final"]:
        row, column = 2 * regimes.index(result["regime"]), games.index(result["game"])
        for offset, curve in enumerate(("episode_return", "half_squared_log_ratio")):
            axis = axes[row + offset, column]
            x = np.array(result["runs"][0]["curves"]["steps"])
            y = np.array([[np.nan if v is None else v for v in run["curves"][curve]] for run in result["runs"]])
            with np.errstate(all="ignore"):
                mean, error = np.nanmean(y, axis=0), np.nanstd(y, axis=0) / np.sqrt(len(y))
            colour = f"C{methods.index(result['method'])}"
            axis.plot(x, mean, label=result["method"], color=colour)
            axis.fill_between(x, mean - error, mean + error, alpha=0.2, color=colour)
            axis.set_title(f"{result['game']}, {result['regime']}", fontsize=10)
            axis.set_ylabel("return" if offset == 0 else "KL to behaviour")
            if offset:
                axis.set_yscale("log")
                axis.set_xlabel("samples")
    drawing.tight_layout()
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing


def minatar_map(rows: list[dict[str, Any]]) -> Any:
    """Relative gain of the divergence, with and without clip, over reuse and replay size; one column a learning rate."""
    plt = pyplot()
    pairings = (("PPO+DA", "PPO"), ("DAPO (eq. 13)", "IS (no clip, no divergence)"))
    rates, reuses, capacities = (sorted({row[key] for row in rows}) for key in ("learning_rate", "reuse", "capacity"))

    def mean(method: str, rate: float, reuse: float, capacity: int, field: str) -> float:
        cells = [
            row[field]
            for row in rows
            if (row["method"], row["learning_rate"], row["reuse"], row["capacity"]) == (method, rate, reuse, capacity)
        ]
        return float(np.mean(cells)) if cells else np.nan

    drawing, axes = plt.subplots(2, len(rates), figsize=(4.4 * len(rates), 6.4), squeeze=False)
    for i, (first, second) in enumerate(pairings):
        for j, rate in enumerate(rates):
            gain, labels = np.zeros((len(capacities), len(reuses))), {}
            for a, capacity in enumerate(capacities):
                for b, reuse in enumerate(reuses):
                    cell = (rate, reuse, capacity)
                    with_it, without = mean(first, *cell, "score"), mean(second, *cell, "score")
                    gain[a, b] = (with_it - without) / max(abs(without), 1e-9)
                    kls = mean(first, *cell, "kl"), mean(second, *cell, "kl")
                    labels[a, b] = f"{with_it:.2f} / {without:.2f}\n{gain[a, b]:+.0%}\nKL {kls[0]:.1g} / {kls[1]:.1g}"
            axis = axes[i, j]
            axis.imshow(gain, cmap="RdYlGn", vmin=-0.5, vmax=0.5, aspect="auto")
            for (a, b), label in labels.items():
                axis.text(b, a, label, ha="center", va="center", fontsize=8)
            axis.set_xticks(range(len(reuses)), [f"{reuse:g}" for reuse in reuses])
            axis.set_yticks(range(len(capacities)), [str(capacity) for capacity in capacities])
            axis.set_title(f"{first} / {second}, learning rate {rate:g}", fontsize=9)
            axis.set_xlabel("reuse")
            axis.set_ylabel("replay (samples)")
    drawing.tight_layout()
    return drawing


def atari_section(content: dict[str, Any], plots: Path) -> str:
    """Scores and curves of an Atari result file."""
    plt = pyplot()
    games = list(dict.fromkeys(run["game"] for run in content["runs"]))
    drawing, axes = plt.subplots(1, len(games), figsize=(5 * len(games), 3.6), squeeze=False)
    for run in content["runs"]:
        axis = axes[0, games.index(run["game"])]
        scores = [np.nan if value is None else value for value in run["curve"]["episode_return"]]
        (line,) = axis.plot(run["curve"]["steps"], scores, label=f"{run['method']}, seed {run['seed']}")
        last = run["curve"]["steps"][-1]
        paper = [point for point in run["paper"] if point[0] <= 1.2 * last]
        if len(paper) > 1:
            axis.plot(
                *zip(*paper, strict=True), "--", color=line.get_color(), label=f"{run['method']}, paper (digitised)"
            )
        axis.set_title(run["game"])
        axis.set_xlabel("samples (4 frames each)")
        axis.set_ylabel("game score, training")
        axis.legend(fontsize=8)
    _, header, lines = atari_table(content)
    return table(header, lines) + figure(drawing, plots / f"dapo_atari_{content['preset']}.png")
