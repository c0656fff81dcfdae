"""Scores, intervals and verdicts: interquartile means and probability of improvement with stratified bootstrap (rliable)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000


def last_fifth(curve: list[float | None]) -> float:
    """Mean of the last fifth of a curve, gaps left out; 0 if there is nothing."""
    values = [value for value in curve[-max(1, len(curve) // 5) :] if value is not None]
    return float(np.mean(values)) if values else 0.0


def run_score(run: dict[str, Any]) -> float:
    """Score of a run: mean training return over its last fifth. Works on full runs and on stored scores."""
    return run["score"] if "score" in run else last_fifth(run["curves"]["episode_return"])


def bootstrap_interval(
    statistic: Callable[[list[np.ndarray]], float], samples: list[np.ndarray], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Estimate and percentile interval, resampling within each stratum (game and method) of `samples`."""
    generator = np.random.default_rng(seed)
    estimates = []
    for _ in range(RESAMPLES):
        estimates.append(statistic([x[generator.integers(0, len(x), len(x))] for x in samples]))
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(samples)), float(low), float(high)


def relative_difference(samples: list[np.ndarray]) -> float:
    """Mean over games of (mean of the first - mean of the second) / |mean of the second|; samples alternate."""
    first, second = samples[0::2], samples[1::2]
    return float(
        np.mean([(a.mean() - b.mean()) / max(abs(b.mean()), 1e-9) for a, b in zip(first, second, strict=True)])
    )


def verdict(low: float, high: float, claim: str, tolerance: float = 0.1) -> str:
    """`reproduced`, `not reproduced` or `undecided` for a claim `greater`, `less` or `equal` about an interval around 0.

    `equal` counts as reproduced only where the whole interval lies within `tolerance`.
    """
    if claim == "less":
        return verdict(-high, -low, "greater")
    if claim == "greater":
        return "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
    if low > 0 or high < 0:
        return "not reproduced"
    return "reproduced" if low > -tolerance and high < tolerance else "undecided"


def score_table(results: list[dict[str, Any]], regime: str) -> dict[str, dict[str, np.ndarray]]:
    """`{method: {game: scores[seeds]}}` of a regime."""
    table: dict[str, dict[str, np.ndarray]] = {}
    for result in results:
        if result["regime"] == regime:
            table.setdefault(result["method"], {})[result["game"]] = np.array([run_score(r) for r in result["runs"]])
    return table


def diagnostic(results: list[dict[str, Any]], regime: str, method: str, game: str, curve: str) -> np.ndarray:
    """Mean over training of a diagnostic, per seed."""
    for result in results:
        if (result["regime"], result["method"], result["game"]) == (regime, method, game):
            return np.array([np.mean([v for v in r["curves"][curve] if v is not None]) for r in result["runs"]])
    raise KeyError((regime, method, game))


def summarise_minatar(content: dict[str, Any]) -> dict[str, Any]:
    """Tables of a MinAtar result file: scores, interquartile means, comparisons, claims and the map."""
    final, games = content["final"], content["sizes"]["games"]
    regimes = list(dict.fromkeys(result["regime"] for result in final))
    tables = {regime: score_table(final, regime) for regime in regimes}
    return {
        "scores": {regime: _scores(final, regime, tables[regime], games) for regime in regimes},
        "aggregate": {regime: _aggregate(tables[regime], games) for regime in regimes},
        "claims": _claims(final, tables, games),
        "map": _map(content["map"]),
    }


def _scores(
    final: list[dict[str, Any]], regime: str, table: dict[str, dict[str, np.ndarray]], games: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        method: {
            game: {
                "mean": round(float(by_game[game].mean()), 3),
                "standard_error": round(float(by_game[game].std(ddof=1) / np.sqrt(len(by_game[game]))), 3),
                "seeds": len(by_game[game]),
                "kl": float(f"{diagnostic(final, regime, method, game, 'half_squared_log_ratio').mean():.3g}"),
            }
            for game in games
        }
        for method, by_game in table.items()
    }


def _aggregate(table: dict[str, dict[str, np.ndarray]], games: list[str]) -> dict[str, Any]:
    """Interquartile mean of scores, each game scaled by its best method's mean, and probability of improvement on PPO."""
    warnings.filterwarnings("ignore", message="random_state is deprecated")  # rliable's own call of arch
    from rliable import library, metrics

    top = {game: max(by_game[game].mean() for by_game in table.values()) for game in games}
    normalised = {m: np.stack([by_game[g] / max(top[g], 1e-9) for g in games], axis=1) for m, by_game in table.items()}
    state = np.random.RandomState(0)
    points, intervals = library.get_interval_estimates(
        normalised, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=RESAMPLES, random_state=state
    )
    against = {method: (scores, normalised["PPO"]) for method, scores in normalised.items() if method != "PPO"}
    better, better_intervals = library.get_interval_estimates(
        against, metrics.probability_of_improvement, reps=RESAMPLES, random_state=state
    )
    rows = {}
    for method in table:
        row = {"iqm": float(points[method][0]), "iqm_interval": [float(x) for x in intervals[method][:, 0]]}
        if method in better:
            row["improvement_on_ppo"] = float(np.ravel(better[method])[0])
            row["improvement_interval"] = [float(x) for x in np.ravel(better_intervals[method])]
        rows[method] = row
    return rows


def _claims(
    final: list[dict[str, Any]], tables: dict[str, dict[str, dict[str, np.ndarray]]], games: list[str]
) -> list[dict[str, Any]]:
    """The paper's statements beside ours, each with an interval and a verdict."""
    rows: list[dict[str, Any]] = []

    def difference(regime: str, first: str, second: str) -> tuple[float, float, float] | None:
        table = tables.get(regime, {})
        if first not in table or second not in table:
            return None
        samples = [scores for game in games for scores in (table[first][game], table[second][game])]
        return bootstrap_interval(relative_difference, samples)

    def add(statement: str, paper: str, interval: tuple[float, float, float] | None, claim: str, unit: str) -> None:
        if interval is not None:
            value, low, high = interval
            outcome = verdict(low, high, claim)
            rows.append(
                {
                    "claim": statement,
                    "paper": paper,
                    "ours": value,
                    "low": low,
                    "high": high,
                    "unit": unit,
                    "verdict": outcome,
                }
            )

    relative = "relative difference in return"
    add(
        "data-scarce: PPO+DA beats PPO",
        "58 games, 16 actors: ahead in 40, median +3 % (Fig. 1, 3)",
        difference("data-scarce", "PPO+DA", "PPO"),
        "greater",
        relative,
    )
    add(
        "data-scarce: PPO+DA beats PPO, both with a clip of 0.3",
        "not in the paper (one clip of 0.2)",
        difference("data-scarce", "PPO+DA (clip 0.3)", "PPO"),
        "greater",
        relative,
    )
    add(
        "data-rich: no difference",
        "58 games, 64 actors: ahead in 27, median -0.0 % (Fig. 4)",
        difference("data-rich", "PPO+DA", "PPO"),
        "equal",
        relative,
    )
    if {"data-scarce", "data-rich"} <= set(tables) and all("PPO+DA" in t and "PPO" in t for t in tables.values()):
        samples = [
            tables[regime][method][game]
            for regime in ("data-scarce", "data-rich")
            for game in games
            for method in ("PPO+DA", "PPO")
        ]
        half = len(samples) // 2
        interaction = bootstrap_interval(
            lambda x: relative_difference(x[:half]) - relative_difference(x[half:]), samples
        )
        add(
            "the gain is larger when data are scarce",
            "+3 % against -0.0 % (Fig. 1, 3, 4)",
            interaction,
            "greater",
            relative,
        )
    add(
        "multi-step beats 1-step divergence",
        "6 of 6 games (Fig. 2)",
        difference("data-scarce", "PPO+DA", "PPO+DA (1-step)"),
        "greater",
        relative,
    )
    add(
        "1-step divergence beats entropy",
        "6 of 6 games, Montezuma noisy (Fig. 2)",
        difference("data-scarce", "PPO+DA (1-step)", "PPO+Entropy"),
        "greater",
        relative,
    )
    add(
        "without a clip, the divergence helps (eq. 13)",
        "no curve in the paper",
        difference("data-scarce", "DAPO (eq. 13)", "IS (no clip, no divergence)"),
        "greater",
        relative,
    )
    for first, second in (("PPO+DA", "PPO"), ("DAPO (eq. 13)", "IS (no clip, no divergence)")):
        if first in tables.get("data-scarce", {}) and second in tables["data-scarce"]:
            samples = [
                np.log(diagnostic(final, "data-scarce", method, game, "half_squared_log_ratio"))
                for game in games
                for method in (first, second)
            ]
            interval = bootstrap_interval(
                lambda x: float(np.mean([a.mean() - b.mean() for a, b in zip(x[0::2], x[1::2], strict=True)])), samples
            )
            statement = f"data-scarce: {first} stays nearer to the behaviour policy than {second}"
            add(statement, "the method's purpose; no figure", interval, "less", "log ratio of 0.5 E(log ratio)^2")
    return rows


WITHOUT_DIVERGENCE = {"PPO+DA": "PPO", "DAPO (eq. 13)": "IS (no clip, no divergence)"}


def _map(mapped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per game, reuse, replay size, learning rate and method: mean score, its standard error, KL, staleness."""
    rows = []
    for result in mapped:
        cells: dict[tuple[float, float], list[dict[str, Any]]] = {}
        for run in result["runs"]:
            cells.setdefault((run["reals"]["learning_rate"], run["reals"]["divergence_coefficient"]), []).append(run)
        for (rate, coefficient), runs in cells.items():
            scores = np.array([run_score(run) for run in runs])
            kl, staleness = (
                float(np.mean([run[name] for run in runs])) for name in ("half_squared_log_ratio", "staleness_mean")
            )
            rows.append(
                {
                    "game": result["game"],
                    "method": result["method"] if coefficient else WITHOUT_DIVERGENCE[result["method"]],
                    "reuse": result["reuse"],
                    "capacity": result["capacity"],
                    "learning_rate": rate,
                    "score": round(float(scores.mean()), 3),
                    "standard_error": round(float(scores.std(ddof=1) / np.sqrt(len(scores))), 3),
                    "seeds": len(scores),
                    "kl": float(f"{kl:.3g}"),
                    "staleness": round(staleness, 1),
                }
            )
    return rows


def print_rows(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # as text, or what stands in square brackets is taken for a style
    table = Table(title=Text(title))
    for column in header:
        table.add_column(Text(column), overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    Console(width=200).print(table)


def print_minatar(content: dict[str, Any]) -> None:
    """Print the tables of the MinAtar benchmark."""
    summary = summarise_minatar(content)
    for regime, scores in summary["scores"].items():
        games = list(next(iter(scores.values())))
        header = ("method", *games, "IQM [95 %]", "P(better than PPO)", "KL to behaviour")
        lines = []
        for method, by_game in scores.items():
            row = summary["aggregate"][regime][method]
            low, high = row["iqm_interval"]
            improvement = "-"
            if "improvement_on_ppo" in row:
                worst, best = row["improvement_interval"]
                improvement = f"{row['improvement_on_ppo']:.2f} [{worst:.2f}, {best:.2f}]"
            line = [
                method,
                *(f"{cell['mean']:.2f} ± {cell['standard_error']:.2f}" for cell in by_game.values()),
                f"{row['iqm']:.2f} [{low:.2f}, {high:.2f}]",
                improvement,
                f"{np.mean([cell['kl'] for cell in by_game.values()]):.4f}",
            ]
            lines.append(line)
        print_rows(f"{regime}: mean return over the last fifth of training, with its standard error", header, lines)
    claims = [
        (row["claim"], row["paper"], f"{row['ours']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]", row["verdict"])
        for row in summary["claims"]
    ]
    print_rows("The paper's statements beside ours", ("statement", "paper", "ours [95 %]", "verdict"), claims)
