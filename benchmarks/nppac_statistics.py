"""Tables of the N-PPAC benchmarks: success or normalised return, sample efficiency, and how large the KL's gradient was."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.statistics import bootstrap_interval

OURS = "N-PPAC (GP)"


def curve_of(run: dict[str, Any], content_kind: str, scale: float = 1.0) -> np.ndarray:
    """Score at every log point, the start first: share of episodes with a success, or mean return over `scale`."""
    episodes = [[value for value in point if value is not None] for point in run["curves"]["evaluation"]]
    if content_kind == "success":
        return np.array([np.mean([value > 0.5 for value in point]) if point else 0.0 for point in episodes])
    return np.array([np.mean(point) / scale if point else 0.0 for point in episodes])


def scores_of(run: dict[str, Any], kind: str, scale: float = 1.0) -> dict[str, float]:
    """`start` (before the first step), `area` (mean over the log points after it) and `final` (mean of the last two)."""
    curve = curve_of(run, kind, scale)
    return {"start": curve[0], "area": float(np.mean(curve[1:])), "final": float(np.mean(curve[-2:]))}


def choose(
    tuning: list[dict[str, Any]], names: tuple[str, ...], kind: str = "success", scales: dict[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """Setting of each method with the highest mean area over tuning tasks and seeds; its preset's own without tuning."""
    chosen: dict[str, dict[str, float]] = {name: {} for name in names}
    table: dict[str, dict[tuple, list[float]]] = {}
    for result in tuning:
        for run in result["runs"]:
            setting = tuple(sorted(run["reals"].items()))
            score = scores_of(run, kind, (scales or {}).get(result["task"], 1.0))["area"]
            table.setdefault(result["method"], {}).setdefault(setting, []).append(score)
    for name, settings in table.items():
        chosen[name] = dict(max(settings, key=lambda setting: np.mean(settings[setting])))
    return chosen


def iqm(samples: list[np.ndarray]) -> float:
    """Interquartile mean over all scores."""
    values = np.sort(np.concatenate(samples))
    cut = len(values) // 4
    return float(np.mean(values[cut : len(values) - cut]))


def summarise(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each method: scores by task, interquartile means with 95 % intervals, and diagnostics of the KL."""
    kind = content.get("score", "success")
    scales = content.get("scales", {})
    rows = []
    for name in content["sizes"]["methods"]:
        results = [result for result in content["final"] if result["method"] == name]
        scores = [
            [scores_of(run, kind, scales.get(result["task"], 1.0)) for run in result["runs"]] for result in results
        ]
        row: dict[str, Any] = {"method": name, "chosen": content["chosen"][name]}
        for what in ("start", "area", "final"):
            samples = [np.array([score[what] for score in task]) for task in scores]
            row[what] = bootstrap_interval(iqm, samples)
            row[f"{what}_by_task"] = {
                result["task"]: (float(s.mean()), float(s.std(ddof=1) / np.sqrt(len(s))) if len(s) > 1 else 0.0)
                for result, s in zip(results, samples, strict=True)
            }
        runs = [run for result in results for run in result["runs"]]
        for column, pick in (("kl_gradient_p99", np.max), ("reference_std_p01", np.min)):
            values = [[v for v in run["curves"][column] if v is not None] for run in runs]
            row[column] = float(np.median([pick(v) for v in values])) if all(values) else None
        row["seeds"] = len(results[0]["runs"])
        row["nonfinite"] = sum(run["nonfinite"] > 0 for run in runs)
        rows.append(row)
    return rows


def claims(content: dict[str, Any]) -> list[dict[str, Any]]:
    """GP minus every other method, in area and final score: mean difference with its 95 % interval (bootstrap over seeds)."""
    kind, scales = content.get("score", "success"), content.get("scales", {})

    def samples(name: str, what: str) -> list[np.ndarray]:
        return [
            np.array([scores_of(run, kind, scales.get(result["task"], 1.0))[what] for run in result["runs"]])
            for result in content["final"]
            if result["method"] == name
        ]

    def difference(pairs: list[np.ndarray]) -> float:
        return float(np.mean([a.mean() - b.mean() for a, b in zip(pairs[0::2], pairs[1::2], strict=True)]))

    rows = []
    for name in content["sizes"]["methods"]:
        if name == OURS:
            continue
        row: dict[str, Any] = {"other": name}
        for what in ("area", "final"):
            alternating = [x for pair in zip(samples(OURS, what), samples(name, what), strict=True) for x in pair]
            row[what] = bootstrap_interval(difference, alternating)
        rows.append(row)
    return rows


def table_of(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table, as text."""
    rows = summarise(content)
    tasks = list(rows[0]["final_by_task"])
    header = ["method", *(f"{task}, final" for task in tasks), "final, IQM [95 %]", "area, IQM [95 %]", "start"]
    header += ["p99 of the KL's gradient", "smallest sigma_0 (p1)", "setting"]
    lines = []
    for row in rows:
        by_task = [f"{mean:.2f} ± {error:.2f}" for mean, error in row["final_by_task"].values()]
        intervals = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[what]) for what in ("final", "area")]
        gradient, std = row["kl_gradient_p99"], row["reference_std_p01"]
        lines.append(
            [
                row["method"],
                *by_task,
                *intervals,
                f"{row['start'][0]:.2f}",
                "-" if gradient is None else f"{gradient:.3g}",
                "-" if std is None else f"{std:.3g}",
                ", ".join(f"{k}={v:g}" for k, v in row["chosen"].items()) or "defaults",
            ]
        )
    return header, lines


def print_table(content: dict[str, Any]) -> None:
    """The main table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    header, lines = table_of(content)
    table = Table(title=f"{content['benchmark']}, preset {content['preset']}")
    for column in header:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(width=200).print(table)
