"""Bootstrap intervals, and the rules by which a claim counts as reproduced."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

RESAMPLES = 2000
ENOUGH = 5  # seeds, or repetitions; an interval from fewer decides nothing


def bootstrap_interval(
    statistic: Callable[[list[np.ndarray]], float], samples: list[np.ndarray], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Estimate, and the lower and upper end of its percentile interval; each of `samples` is resampled by itself."""
    generator = np.random.default_rng(seed)
    estimates = []
    for _ in range(RESAMPLES):
        estimates.append(statistic([x[generator.integers(0, len(x), len(x))] for x in samples]))
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(samples)), float(low), float(high)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of all values but the lowest and the highest fourth."""
    ordered = np.sort(values, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def verdict(low: float, high: float, claim: str, tolerance: float = 0.1) -> str:
    """`reproduced`, `not reproduced` or `undecided`: what an interval says of a claim about a difference.

    Args:
        low: lower end of the interval.
        high: upper end.
        claim: that the difference is `greater` than 0, `less`, or `equal` to it.
        tolerance: `equal` is reproduced only if the whole interval lies within this distance of 0.
    """
    if claim == "less":
        return verdict(-high, -low, "greater")
    if claim == "greater":
        return "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
    if low > 0 or high < 0:
        return "not reproduced"
    return "reproduced" if low > -tolerance and high < tolerance else "undecided"


def all_of(verdicts: Iterable[str]) -> str:
    """A claim of several parts: reproduced if all parts are, not reproduced if any part is not, else undecided."""
    verdicts = list(verdicts)
    if "not reproduced" in verdicts:
        return "not reproduced"
    return "reproduced" if verdicts and set(verdicts) == {"reproduced"} else "undecided"
