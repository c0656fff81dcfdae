"""One self-contained HTML page from the result files: fresh ones in `results/`, committed ones in `benchmarks/results/`.

`python -m benchmarks.report` writes `results/report.html` and the plots as PNG in `results/plots/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dapo.atari import atari_row
from benchmarks.deterministic.report import deterministic_section
from benchmarks.empirical_likelihood.report import contest_section, intervals_section
from benchmarks.machinery.report_parts import figure, pyplot, table, verdict_cell, where
from benchmarks.machinery.summaries import summarise_minatar
from benchmarks.nppac.report import learning_section, pathology_section
from benchmarks.star.coverage import coverage_section
from benchmarks.star.figures_report import star_section
from benchmarks.star.suite_report import suite_section

COMMITTED = Path(__file__).parent / "results"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13.5px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d9dee5; text-align: left; vertical-align: top; }
th { background: #f2f5f8; } img { max-width: 100%; } code { background: #f2f5f8; padding: 0 .2rem; }
.reproduced, .better, .holds { color: #11734b; font-weight: 600; } .not, .worse, .fails { color: #b3261e; font-weight: 600; }
.undecided { color: #7a5c00; }
.where { color: #5a6675; font-size: 13px; }
"""


def write_report(results: Path) -> Path:
    """Build the page from all result files; returns its path."""
    plots = results / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    contents = [
        json.loads(path.read_text()) for folder in (results, COMMITTED) for path in sorted(folder.glob("*.json"))
    ]
    sections = {
        "dapo_minatar": minatar_section,
        "dapo_atari": atari_section,
        "nppac_pathology": pathology_section,
        "nppac_adroit": learning_section,
        "nppac_locomotion": learning_section,
        "el_intervals": intervals_section,
        "el_estimation": contest_section,
        "el_learning": contest_section,
        "el_softmax": contest_section,
        "star_ope": star_section,
        "ope_coverage": coverage_section,
        "ope_suite": suite_section,
        "deterministic_dr": deterministic_section,
        "throughput": throughput_section,
        "throughput_kl": throughput_section,
        "el_speed": throughput_section,
        "ope_speed": throughput_section,
        "fqe_speed": throughput_section,
        "deterministic_speed": throughput_section,
    }
    body = ["<h1>jaxrl_off: results</h1>"]
    for kind, section in sections.items():
        for content in contents:
            if content.get("benchmark") == kind:
                body.append(section(content, plots))
    page = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>jaxrl_off: results</title><style>{STYLE}</style>"
    path = results / "report.html"
    path.write_text(f"{page}</head><body>{''.join(body)}</body></html>")
    return path


def minatar_section(content: dict[str, Any], plots: Path) -> str:
    """Tables, learning curves and the map of a MinAtar result file."""
    summary, name = summarise_minatar(content), f"dapo_minatar_{content['preset']}"
    sizes = content["sizes"]
    parts = [
        f"<h2>Divergence-Augmented Policy Optimization on MinAtar: preset <code>{content['preset']}</code></h2>",
        where(content),
        f"<p>{sizes['steps']:,} samples per run where data are scarce, {sizes['seeds']} seeds; score: mean training return "
        "over the last fifth of the samples. KL: half the mean squared log-ratio to the behaviour policy in the batches.</p>",
    ]
    claims = [
        [
            row["claim"],
            row["paper"],
            f"{row['ours']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            verdict_cell(row["verdict"]),
        ]
        for row in summary["claims"]
    ]
    parts.append("<h3>The paper's statements beside ours (95 % bootstrap intervals over seeds)</h3>")
    parts.append(table(["statement", "paper", "ours: relative difference", "verdict"], claims))
    for regime, scores in summary["scores"].items():
        games = list(next(iter(scores.values())))
        rows = []
        for method, by_game in scores.items():
            aggregate = summary["aggregate"][regime][method]
            low, high = aggregate["iqm_interval"]
            better = "-"
            if "improvement_on_ppo" in aggregate:
                worst, best = aggregate["improvement_interval"]
                better = f"{aggregate['improvement_on_ppo']:.2f} [{worst:.2f}, {best:.2f}]"
            setting = ", ".join(f"{k}={v:g}" for k, v in content["chosen"][regime][method].items()) or "defaults"
            rows.append(
                [
                    method,
                    *(f"{by_game[game]['mean']:.2f} ± {by_game[game]['standard_error']:.2f}" for game in games),
                    f"{aggregate['iqm']:.2f} [{low:.2f}, {high:.2f}]",
                    better,
                    f"{np.mean([by_game[game]['kl'] for game in games]):.4f}",
                    setting,
                ]
            )
        parts.append(f"<h3>{regime}</h3>")
        parts.append(
            table(
                ["method", *games, "IQM [95 %]", "P(better than PPO) [95 %]", "KL to behaviour", "tuned setting"], rows
            )
        )
    parts.append(figure(minatar_curves(content), plots / f"{name}_curves.png"))
    if summary["map"]:
        parts.append("<h3>Where the divergence pays: reuse, replay size and learning rate</h3>")
        parts.append(figure(minatar_map(summary["map"]), plots / f"{name}_map.png"))
        columns = [
            "game",
            "method",
            "reuse",
            "capacity",
            "learning_rate",
            "score",
            "standard_error",
            "seeds",
            "kl",
            "staleness",
        ]
        parts.append("<details><summary>numbers of the map</summary>")
        parts.append(table(columns, [[row[c] for c in columns] for row in summary["map"]]) + "</details>")
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
        return float(np.mean(cells))

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
    header = [
        "game",
        "method",
        "seed",
        "samples",
        "first",
        "last fifth",
        "paper at equal samples",
        "samples/s",
        "ended",
    ]
    return "".join(
        [
            f"<h2>Divergence-Augmented Policy Optimization on Atari: preset <code>{content['preset']}</code></h2>",
            where(content),
            table(header, [atari_row(run) for run in content["runs"]]),
            figure(drawing, plots / f"dapo_atari_{content['preset']}.png"),
        ]
    )


def throughput_section(content: dict[str, Any], plots: Path) -> str:
    """Speed against peers."""
    del plots
    subjects = {
        "throughput": "PPO",
        "throughput_kl": "the KL-regularised actor-critic and its Gaussian process",
        "el_speed": "empirical likelihood",
        "ope_speed": "off-policy evaluation from trajectories",
        "fqe_speed": "fitted Q-evaluation",
        "deterministic_speed": "kernelised estimators for deterministic policies",
    }
    title = f"<h2>Throughput of {subjects[content['benchmark']]}</h2>"
    return title + where(content) + table(content["header"], content["rows"])


def main() -> None:
    """Command line; see the module."""
    print(write_report(Path("results")))


if __name__ == "__main__":
    main()
