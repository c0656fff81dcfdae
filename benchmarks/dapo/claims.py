"""Scores, intervals and claims of the MinAtar benchmark.

Interquartile means and probabilities of improvement are those of R. Agarwal et al., "Deep Reinforcement Learning at the Edge of
the Statistical Precipice", NeurIPS 2021 (rliable).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.machinery.command import Table
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.verdicts import ENOUGH, bootstrap_interval, interquartile_mean, verdict


def last_fifth(curve: list[float | None]) -> float:
    """Mean of the last fifth of a curve, gaps left out; 0 if there is nothing."""
    values = [value for value in curve[-max(1, len(curve) // 5) :] if value is not None]
    return float(np.mean(values)) if values else 0.0


def run_score(run: dict[str, Any]) -> float:
    """Score of a run: mean training return over its last fifth. Works on full runs and on stored scores."""
    return run["score"] if "score" in run else last_fifth(run["curves"]["episode_return"])


def relative_difference(samples: list[np.ndarray]) -> float:
    """Mean over games of (mean of the first - mean of the second) / |mean of the second|; samples alternate."""
    first, second = samples[0::2], samples[1::2]
    return float(
        np.mean([(a.mean() - b.mean()) / max(abs(b.mean()), 1e-9) for a, b in zip(first, second, strict=True)])
    )


def _mean_difference(samples: list[np.ndarray]) -> float:
    """Mean over games of the first's mean minus the second's; samples alternate."""
    return float(np.mean([a.mean() - b.mean() for a, b in zip(samples[0::2], samples[1::2], strict=True)]))


def score_table(results: list[dict[str, Any]], regime: str) -> dict[str, dict[str, np.ndarray]]:
    """`{method: {game: scores[seeds]}}` of a regime, as far as it has been run."""
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


def shared_games(table: dict[str, dict[str, np.ndarray]], methods: Iterable[str]) -> list[str]:
    """Games that all of these methods have been run on, with equally many seeds."""
    rows = [table.get(method, {}) for method in methods]
    games = [game for game in rows[0] if all(game in row for row in rows)]
    most = max((len(row[game]) for row in rows for game in games), default=0)
    return [game for game in games if all(len(row[game]) == most for row in rows)]


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


def probability_of_improvement(samples: list[np.ndarray]) -> float:
    """Chance that a run of one method scores above a run of another on a game, ties half, mean over games.

    `samples` are scores of the first method by game, then of the second.
    """
    half = len(samples) // 2
    gains = [first[:, None] - second[None] for first, second in zip(samples[:half], samples[half:], strict=True)]
    return float(np.mean([np.mean((gain > 0) + 0.5 * (gain == 0)) for gain in gains]))


def _aggregate(table: dict[str, dict[str, np.ndarray]], games: list[str]) -> dict[str, Any]:
    """Interquartile mean of scores, each game scaled by its best method's mean, and probability of improvement on PPO."""
    top = {game: max(by_game[game].mean() for by_game in table.values()) for game in games}
    scaled = {method: [by_game[game] / max(top[game], 1e-9) for game in games] for method, by_game in table.items()}
    rows = {}
    for method, samples in scaled.items():
        rows[method] = {"iqm": bootstrap_interval(lambda x: interquartile_mean(np.concatenate(x)), samples)}
        if method != "PPO":
            rows[method]["better"] = bootstrap_interval(probability_of_improvement, samples + scaled["PPO"])
    return rows


def claims(content: dict[str, Any]) -> list[Claim]:
    """The paper's claims beside ours, each with an interval (bootstrap over seeds) and a verdict.

    Below `ENOUGH` seeds all are undecided.
    """
    final = content["final"]
    regimes = dict.fromkeys(result["regime"] for result in final)
    scores = {regime: score_table(final, regime) for regime in regimes}
    rows: list[Claim] = []

    def games_of(regime: str, *methods: str) -> list[str]:
        return shared_games(scores.get(regime, {}), methods)

    def add(statement: str, paper: str, statistic: Any, samples: list[np.ndarray], claim: str) -> None:
        value, low, high = bootstrap_interval(statistic, samples)
        told = verdict(low, high, claim) if min(map(len, samples)) >= ENOUGH else "undecided"
        rows.append(Claim(statement, paper, f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", told))

    def compare(statement: str, paper: str, regime: str, methods: tuple[str, str], claim: str = "greater") -> None:
        games = games_of(regime, *methods)
        if games:
            samples = [scores[regime][method][game] for game in games for method in methods]
            add(f"{statement} (relative return)", paper, relative_difference, samples, claim)

    scarce, rich, pair = "data-scarce", "data-rich", ("PPO+DA", "PPO")
    compare("data-scarce: PPO+DA beats PPO", "58 Atari games: ahead in 40, median +3 % (Fig. 1, 3)", scarce, pair)
    compare(
        "data-scarce: PPO+DA beats PPO, both with a clip of 0.3",
        "not in the paper (its clip is 0.2)",
        scarce,
        ("PPO+DA (clip 0.3)", "PPO"),
    )
    compare("data-rich: no difference", "58 Atari games: ahead in 27, median -0.0 % (Fig. 4)", rich, pair, "equal")
    games = [game for game in games_of(scarce, *pair) if game in games_of(rich, *pair)]
    if games:
        samples = [scores[regime][method][game] for regime in (scarce, rich) for game in games for method in pair]
        half = len(samples) // 2
        add(
            "the gain is larger when data are scarce (relative return)",
            "+3 % against -0.0 % (Fig. 1, 3, 4)",
            lambda x: relative_difference(x[:half]) - relative_difference(x[half:]),
            samples,
            "greater",
        )
    compare("multi-step beats 1-step divergence", "6 of 6 games (Fig. 2)", scarce, ("PPO+DA", "PPO+DA (1-step)"))
    compare(
        "1-step divergence beats entropy",
        "6 of 6 games, Montezuma noisy (Fig. 2)",
        scarce,
        ("PPO+DA (1-step)", "PPO+Entropy"),
    )
    without_clip = ("DAPO (eq. 13)", "IS (no clip, no divergence)")
    compare("without a clip, the divergence helps", "eq. 13; no curve in the paper", scarce, without_clip)
    for first, second in (pair, without_clip):
        games = games_of(scarce, first, second)
        if games:
            samples = [
                np.log(diagnostic(final, scarce, method, game, "half_squared_log_ratio"))
                for game in games
                for method in (first, second)
            ]
            statement = f"{first} stays nearer to the behaviour policy than {second} (log of the ratio of KLs)"
            add(statement, "the purpose of the method; no figure", _mean_difference, samples, "less")
    return rows


WITHOUT_DIVERGENCE = {"PPO+DA": "PPO", "DAPO (eq. 13)": "IS (no clip, no divergence)"}


def map_rows(mapped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per cell of the map and method: mean score, its standard error, KL, staleness."""
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
                    "publish": result.get("publish_interval", 1),
                    "learning_rate": rate,
                    "score": round(float(scores.mean()), 3),
                    "standard_error": round(float(scores.std(ddof=1) / np.sqrt(len(scores))), 3),
                    "seeds": len(scores),
                    "kl": float(f"{kl:.3g}"),
                    "staleness": round(staleness, 1),
                }
            )
    return rows


def _tuned(content: dict[str, Any], regime: str, method: str) -> str:
    """The setting of a method in words, with a warning where the grid was too small for it."""
    setting = content["chosen"][regime][method]
    text = ", ".join(f"{name}={value:g}" for name, value in setting.items()) or "defaults"
    edge = content.get("on_edge", {}).get(regime, {}).get(method)
    return f"{text} (largest or smallest value tried: {', '.join(edge)})" if edge else text


def _regime_table(content: dict[str, Any], results: list[dict[str, Any]], regime: str, tuned_in: str) -> Table:
    """Scores on the games that all methods have been run on."""
    table = score_table(results, regime)
    games = shared_games(table, table)
    scores = _scores(results, regime, table, games)
    aggregate = _aggregate(table, games) if games else {}
    lines = []
    for method, by_game in scores.items() if games else ():
        row = aggregate[method]
        lines.append(
            [
                method,
                *(f"{cell['mean']:.2f} ± {cell['standard_error']:.2f}" for cell in by_game.values()),
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["iqm"]),
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["better"]) if "better" in row else "-",
                f"{np.mean([cell['kl'] for cell in by_game.values()]):.4f}",
                _tuned(content, tuned_in, method),
            ]
        )
    header = ["method", *games, "IQM [95 %]", "P(better than PPO) [95 %]", "KL to behaviour", "tuned setting"]
    return f"{regime}: mean return over the last fifth of training ± standard error", header, lines


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: scores by regime, and the paper's claims beside ours."""
    final, longer = content["final"], content.get("longer", [])
    made = [
        _regime_table(content, results, regime, "data-scarce" if results is longer else regime)
        for results in (final, longer)
        for regime in dict.fromkeys(result["regime"] for result in results)
    ]
    rows = [list(claim) for claim in claims(content)]
    if rows:
        made.append(("the paper's claims beside ours", ["claim", "paper", "ours [95 %]", "verdict"], rows))
    return made
