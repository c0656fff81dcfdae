"""How good estimates were, once the truth is known: errors of values, of rankings, of decisions, and of intervals.

All take arrays on the host and return float64. `estimates` and `truth` are `[..., m]`, of m policies; leading axes are
repetitions over which nothing is averaged unless it is said. "Chosen" are the k policies of the largest estimates, ties to
the first.

Reference: Fu et al., "Benchmarks for Deep Off-Policy Evaluation", ICLR 2021 (regret, rank correlation); Kiyohara et al.,
"Towards Assessing and Benchmarking Risk-Return Tradeoff of Off-Policy Evaluation", ICLR 2024 (Sharpe ratio; type I and II
errors as in their SCOPE-RL).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class MeanSquaredError(NamedTuple):
    """A mean over repetitions and its parts, `mean = bias^2 + variance`; `[...]` without the axis of repetitions.

    Attributes:
        mean: `E (V^ - V)^2`.
        bias: `E V^ - V`.
        variance: `E (V^ - E V^)^2`.
        standard_error: of the mean, over repetitions; NaN for one.
    """

    mean: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    standard_error: np.ndarray


def mean_squared_error(estimates: Any, truth: Any, *, axis: int = 0, relative: bool = False) -> MeanSquaredError:
    """Mean squared error over repetitions, split in bias and variance.

    Args:
        estimates: `[R, ...]`, repetitions along `axis`.
        truth: what broadcasts against them.
        axis: of the repetitions.
        relative: divide errors by the truth: the relative mean squared error.

    Raises:
        ValueError: for a truth of 0 where errors are to be relative.
    """
    estimates, truth = np.asarray(estimates, np.float64), np.asarray(truth, np.float64)
    if relative and (truth == 0).any():
        raise ValueError("the truth is 0 somewhere, so that errors relative to it are not defined; use relative=False.")
    errors = (estimates - truth) / (np.abs(truth) if relative else 1.0)
    squares = np.square(errors)
    count = errors.shape[axis]
    spread = (
        squares.std(axis=axis, ddof=1) / np.sqrt(count) if count > 1 else np.full(squares.mean(axis=axis).shape, np.nan)
    )
    return MeanSquaredError(squares.mean(axis=axis), errors.mean(axis=axis), errors.var(axis=axis), spread)


def rank_correlation(estimates: Any, truth: Any) -> np.ndarray:
    """Spearman's correlation of ranks, `[...]`, equal values having their mean rank; NaN where all are equal.

    Example:
        >>> float(rank_correlation([1.0, 2.0, 4.0], [0.1, 0.3, 0.2]))
        0.5
    """
    from scipy.stats import rankdata

    estimates, truth = _pair(estimates, truth)
    ranks = [rankdata(x, axis=-1) for x in (estimates, truth)]
    centred = [x - x.mean(axis=-1, keepdims=True) for x in ranks]
    scale = np.sqrt(np.sum(centred[0] ** 2, axis=-1) * np.sum(centred[1] ** 2, axis=-1))
    return np.where(scale > 0, np.sum(centred[0] * centred[1], axis=-1) / np.where(scale > 0, scale, 1.0), np.nan)


def regret(estimates: Any, truth: Any, *, k: int = 1, normalised: bool = True) -> np.ndarray:
    """`max V - max of V over the k chosen`, `[...]`; normalised, divided by `max V - min V`.

    Args:
        estimates: `[..., m]`.
        truth: `[..., m]`.
        k: how many are chosen.
        normalised: whether to divide; where all policies are equally good, the regret is 0.
    """
    _, truth, chosen = _chosen(estimates, truth, k)
    lost = truth.max(axis=-1) - chosen.max(axis=-1)
    span = np.ptp(truth, axis=-1)
    return lost / np.where(span > 0, span, 1.0) if normalised else lost


def sharpe_ratio(estimates: Any, truth: Any, baseline: float, *, k: int) -> np.ndarray:
    """`(max of V over the k chosen - baseline) / standard deviation of V over them`, `[...]`: gain of a trial over its risk.

    Args:
        estimates: `[..., m]`.
        truth: `[..., m]`.
        baseline: value of the behaviour policy, what one has without a trial.
        k: how many are tried, at least 2.

    Returns:
        SharpeRatio@k; infinite, or NaN without gain, where the chosen are equally good.

    Raises:
        ValueError: for a k that cannot be meant.
    """
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}: the standard deviation of one policy is 0.")
    _, _, chosen = _chosen(estimates, truth, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (chosen.max(axis=-1) - baseline) / chosen.std(axis=-1)


def decision_errors(estimates: Any, truth: Any, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates of type I and type II errors, `[...]` each, of taking policies whose estimate is at least the threshold.

    Type I: taken among those that are worse than the threshold. Type II: left among those that are not. Give lower bounds as
    estimates to see what a cautious rule does. NaN where there is none of the kind.
    """
    estimates, truth = _pair(estimates, truth)
    taken, good = estimates >= threshold, truth >= threshold

    def share(wrong: np.ndarray, among: np.ndarray) -> np.ndarray:
        total = among.sum(axis=-1)
        return np.where(total > 0, (wrong & among).sum(axis=-1) / np.maximum(total, 1), np.nan)

    return share(taken, ~good), share(~taken, good)


def coverage(lower: Any, upper: Any, truth: Any, *, axis: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of repetitions whose interval holds the truth, the standard error of that share, and the mean width, `[...]`."""
    lower, upper, truth = (np.asarray(x, np.float64) for x in (lower, upper, truth))
    share = ((lower <= truth) & (truth <= upper)).mean(axis=axis)
    return share, np.sqrt(share * (1.0 - share) / lower.shape[axis]), (upper - lower).mean(axis=axis)


def _pair(estimates: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    estimates, truth = np.asarray(estimates, np.float64), np.asarray(truth, np.float64)
    if not estimates.ndim or estimates.shape[-1:] != truth.shape[-1:]:
        raise ValueError(f"estimates {estimates.shape} and truth {truth.shape} must have one entry for each policy.")
    return np.broadcast_arrays(estimates, truth)


def _chosen(estimates: Any, truth: Any, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both, and the true values of the k policies of the largest estimates."""
    estimates, truth = _pair(estimates, truth)
    if not 1 <= k <= estimates.shape[-1]:
        raise ValueError(f"k must be between 1 and the number of policies, {estimates.shape[-1]}, got {k}.")
    order = np.argsort(-estimates, axis=-1, kind="stable")[..., :k]
    return estimates, truth, np.take_along_axis(truth, order, axis=-1)
