"""What all bandit estimators share: checks of the log, float64, padding, and the linearised standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import (
    check_range,
    is_concrete,
    overflow_scale,
    padded_size,
    standard_error,
    weighted_mean,
    z_score,
)
from jaxrl_off.types import Array

MATRICES = ("control_variates", "slot_weights")  # columns that have several numbers a row
MOST_PROBABLE = 1.0 + 1e-6  # a softmax in float32 may round above 1
_MEANING = {
    "weights": "pi(a|x) / h(a|x) of every logged action",
    "rewards": "what came of every logged action",
    "predicted": "a prediction q(x, a) of the reward of every logged action, for example by `cross_fitted`",
    "predicted_target": "the mean of predictions q(x, b) over the actions b of the judged policy, one for each row",
    "slot_weights": "pi_l(a_l|x) / h_l(a_l|x), one row for each slate and one column for each slot",
    "propensities": "h(a|x), the probabilities with which the logged actions were taken. Where these were not logged, estimate "
    "them first, for example with a classifier of actions by contexts",
}
_ROUNDING = 1e-6  # by how much, relatively, a weight may be above the largest one: that is float32's doing


class Rows(NamedTuple):
    """Columns of a log, checked and padded; float64, rows without weight have neutral values.

    Attributes:
        counts: `float[n]`.
        weights: `float[n]`, w; 1 where the count is 0.
        rewards: `float[n]`, r; the lower end of its range where the count is 0.
        others: further columns `float[n, ...]`; 0 where the count is 0.
    """

    counts: Array
    weights: Array
    rewards: Array
    others: tuple[Array, ...]


def numbers_of(name: str, given: Any, *, concrete: bool = True) -> Any:
    """A column in float64, of NumPy where it is concrete and else of JAX.

    Raises:
        ValueError: for None, masked arrays, text, and rows of different lengths; says what the column is.
    """
    if given is None:
        raise ValueError(f"{name} are None, and are needed: {_MEANING.get(name, 'one number for each row')}.")
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(
            f"{name} are a NumPy masked array; masked entries would be taken for numbers. Leave these rows out, or give them "
            "counts of 0, and hand over `array.filled(0)`."
        )
    if not concrete:
        return jnp.asarray(given, jnp.float64)
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        advice = (
            "fill slates that have fewer slots up with weights of 1, which change nothing"
            if name == "slot_weights"
            else "convert them first, and leave rows out in which they are missing"
        )
        why = "its rows have different lengths" if "inhomogeneous" in str(error) else str(error)
        raise ValueError(f"{name} must be an array of numbers, and cannot be made one: {why}; {advice}.") from error


def check_weight_range(given: Sequence[float] | None) -> tuple[float, float]:
    """A range of importance weights, `0 <= low < 1 < high`: their mean is 1.

    Raises:
        ValueError: if it is none.
    """
    if given is None:
        raise ValueError(
            "weight_range is needed here: a pair (low, high) of what weights can be, whatever was seen. With propensities of "
            "at least p it is (0, 1 / p)."
        )
    low, high = check_range("weight_range", given, infinite=True)
    if is_concrete(low, high) and not 0 <= low < 1 < high:
        raise ValueError(
            f"weight_range must hold 0 <= low < 1 < high, got ({low}, {high}): importance weights are 1 on average. It is what "
            "weights can be, not what they were; with propensities of at least p, (0, 1 / p)."
        )
    return low, high


def rows_of(
    weights: Any,
    rewards: Any,
    counts: Any,
    weight_range: tuple[Any, Any] | None,
    reward_range: tuple[Any, Any] | None,
    **others: Any,
) -> Rows:
    """Check columns, make them float64 and pad them. To be called with x64 on.

    Numbers that are tracers are not looked at, and not padded.

    Args:
        weights: `float[n]`, or None where there are `slot_weights`.
        rewards: `float[n]`.
        counts: `float[n]`, multiplicities, or None for 1 each.
        weight_range: what weights may be, or None for anything not negative.
        reward_range: what rewards may be, or None for anything finite.
        **others: further columns by name, `float[n]`, or `float[n, k]` for `MATRICES`; must be finite.

    Raises:
        ValueError: for lengths that differ, no rows, NaN, or values outside their range; names the column and the first row.
            Weights above the largest by a relative 1e-6 are taken for it.
    """
    concrete = is_concrete(weights, rewards, counts, weight_range, reward_range, others)
    library = np if concrete else jnp
    rewards = numbers_of("rewards", rewards, concrete=concrete)
    if rewards.ndim != 1:
        raise ValueError(
            f"rewards must be one column, got shape {rewards.shape}. Of a data frame pass a column; for several logs "
            "use jax.vmap."
        )
    columns = {"weights": weights, "rewards": rewards, "counts": counts} | others
    if counts is None:
        columns["counts"] = library.ones_like(rewards)
    if weights is None and "slot_weights" in others:
        columns["weights"] = library.ones_like(rewards)
    columns = {name: numbers_of(name, value, concrete=concrete) for name, value in columns.items()}
    for name, column in columns.items():
        matrix = name in MATRICES
        if column.shape[:1] != rewards.shape or column.ndim != 1 + matrix:
            wanted = "several numbers a row" if matrix else "one of each"
            raise ValueError(f"{name} have shape {column.shape}, rewards {rewards.shape}; every row needs {wanted}.")
    counts = columns.pop("counts")
    if concrete:
        _check_values(columns, counts, weight_range, reward_range)
        if weight_range is not None:  # the last digits of float32 propensities
            columns["weights"] = np.clip(columns["weights"], *weight_range)
        extra = padded_size(len(rewards)) - len(rewards)
        counts = np.pad(counts, (0, extra))
        columns = {name: np.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) for name, x in columns.items()}
    counted = counts > 0
    neutral = {"weights": 1.0, "rewards": 0.0 if reward_range is None else reward_range[0]}

    def kept(name: str, column: Any) -> Array:
        shown = counted.reshape(-1, *[1] * (column.ndim - 1))
        return jnp.asarray(library.where(shown, column, neutral.get(name, 0.0)))

    columns = {name: kept(name, column) for name, column in columns.items()}
    return Rows(jnp.asarray(counts), columns.pop("weights"), columns.pop("rewards"), tuple(columns.values()))


def _check_values(
    columns: dict[str, np.ndarray],
    counts: np.ndarray,
    weight_range: tuple[float, float] | None,
    reward_range: tuple[float, float] | None,
) -> None:
    bad = ~np.isfinite(counts) | (counts < 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"counts must be finite and not negative; row {row} has {counts[row]}.")
    counted = counts > 0
    if not counted.any():
        raise ValueError("the log is empty: no row has a positive count; nothing can be estimated.")
    ranges = {"weights": weight_range or (0.0, math.inf), "rewards": reward_range or (-math.inf, math.inf)}
    advice = {
        "weights": "weights are pi(a|x) / h(a|x); give the range they can have as weight_range, or correct the propensities",
        "rewards": "give the range that rewards can have as reward_range, or correct the log",
    }
    for name, column in columns.items():
        low, high = ranges.get(name, (-math.inf, math.inf))
        # NaN fails every comparison
        slack = _ROUNDING * high if name == "weights" and high < math.inf else 0.0
        fine = np.isfinite(column) & (column >= low) & (column <= high + slack)
        wrong = counted & ~fine.reshape(len(counts), -1).all(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            said = advice.get(name, "correct the log")
            if np.isnan(column[row]).any():
                said = "leave rows out in which it is missing, or give them counts of 0"
                if name == "rewards":
                    said += "; `censored_empirical_likelihood` is for rewards that were not observed"
            elif name == "weights" and (column[wrong] < 0).all():
                said = "weights are pi(a|x) / h(a|x) and never negative; if these are logarithms, pass np.exp of them"
            raise ValueError(
                f"{name} must be finite and in [{low:g}, {high:g}]; row {row} has {column[row]}, and {int(wrong.sum())} rows "
                f"are outside it. {said[0].upper()}{said[1:]}."
            )


def regression_error(counts: Array, target: Array, centred: Array) -> Array:
    """Standard error of the mean of a target after regression on columns `[n, k]` of known mean 0."""
    columns = [centred[:, k] for k in range(centred.shape[1])]
    gram = jnp.stack([jnp.stack([jnp.sum(counts * x * y) for y in columns]) for x in columns])
    right = jnp.stack([jnp.sum(counts * x * target) for x in columns])
    # columns may depend on one another, or be nothing but 0
    gram += (1e-12 * jnp.trace(gram) + jnp.finfo(gram.dtype).tiny) * jnp.eye(len(columns))
    slopes = right / gram[0] if len(columns) == 1 else jnp.linalg.solve(gram, right)
    return standard_error(counts, target - sum(slope * x for slope, x in zip(slopes, columns, strict=True)))


def weight_diagnostics(counts: Array, weights: Array) -> dict[str, Array]:
    """What weights say about the log.

    * `rows`: N.
    * `mean_weight`, 1 in expectation, and `mean_weight_z`, how many standard errors it is from 1 (see `z_score`).
    * `largest_weight`.
    * `no_overlap`: 1 if no row has any weight, so that the log has nothing of what the target policy does.
    """
    largest = jnp.max(jnp.where(counts > 0, weights, 0.0))
    scale = overflow_scale(counts, weights)
    mean, error = weighted_mean(counts, weights / scale), standard_error(counts, weights / scale)
    total = jnp.sum(counts)
    return {
        "rows": total,
        "mean_weight": scale * mean,
        "mean_weight_z": z_score(mean, 1.0 / scale, error, total),
        "largest_weight": largest,
        "no_overlap": jnp.all((counts == 0) | (weights == 0)).astype(total.dtype),
    }
