"""Checked columns of trajectories in float64, and their importance weights in log space.

Weights are sums of log ratios until the last moment, so that products of many ratios neither overflow nor vanish.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete, standard_error, weighted_mean
from jaxrl_off.types import Array, Trajectories

LARGEST_LOG_WEIGHT = 300.0  # leaves room for squares in float64


class Steps(NamedTuple):
    """Checked columns in float64, neutral where there is padding.

    Attributes:
        counts: `float64[n]`, how often each trajectory counts.
        rewards: `float64[n, T]`; 0 in the padding.
        log_ratio: `float64[n, T]`, log pi_e(a_t|s_t) - log pi_b(a_t|s_t), -inf where the target never acts so; 0 in the
            padding.
        mask: `bool[n, T]`.
        discounts: `float64[T]`, gamma^t.
        estimated: `float64[n]`, 1 where behaviour probabilities are used that were estimated.
    """

    counts: Array
    rewards: Array
    log_ratio: Array
    mask: Array
    discounts: Array
    estimated: Array


def steps_of(trajectories: Trajectories, target_log_prob: Any, *, discount: float = 1.0, counts: Any = None) -> Steps:
    """Check trajectories and ratios. To be called within `float64`.

    Args:
        trajectories: n of them; behaviour log-probabilities are needed where `target_log_prob` is given.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t) of the policy to be judged, or None for ratios of 1.
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.

    Raises:
        ValueError: for shapes that do not fit, masks with gaps, NaN, no trajectories, a discount outside [0, 1], missing
            behaviour probabilities, or a logged action that the behaviour policy is said never to take.
    """
    values = (trajectories, target_log_prob, discount, counts)
    if jnp.ndim(discount) or (is_concrete(discount) and not 0.0 <= discount <= 1.0):
        raise ValueError(f"discount must be in [0, 1], one number for all, got {discount}.")
    if target_log_prob is not None and trajectories.behaviour_log_prob is None:
        raise ValueError(
            "the trajectories have no behaviour_log_prob, so that there are no importance ratios; log them, or estimate them "
            "from the data with `estimators.trajectory.behaviour.clone_behaviour`, which says so in its result."
        )
    library = np if is_concrete(values) else jnp
    rewards = library.asarray(trajectories.rewards, library.float64)
    mask = library.asarray(trajectories.mask, bool)
    if rewards.ndim != 2 or mask.shape != rewards.shape or 0 in rewards.shape:
        raise ValueError(f"rewards {rewards.shape} and mask {mask.shape} must both be [n, T], with n and T at least 1.")
    counts = library.ones(len(rewards)) if counts is None else library.asarray(counts, library.float64)
    if counts.shape != rewards.shape[:1]:
        raise ValueError(f"counts have shape {counts.shape}; there are {len(rewards)} trajectories.")
    columns = {"rewards": rewards}
    if target_log_prob is not None:
        columns["target_log_prob"] = library.asarray(target_log_prob, library.float64)
        columns["behaviour_log_prob"] = library.asarray(trajectories.behaviour_log_prob, library.float64)
    for name, column in columns.items():
        if column.shape != rewards.shape:
            raise ValueError(f"{name} has shape {column.shape}, rewards {rewards.shape}; every step needs one of each.")
    if library is np:
        _check_values(columns, mask, counts)
    shown = mask & (counts > 0)[:, None]
    columns = {name: library.where(shown, column, 0.0) for name, column in columns.items()}
    log_ratio, estimated = library.zeros_like(rewards), library.zeros_like(counts)
    if target_log_prob is not None:
        log_ratio = columns["target_log_prob"] - columns["behaviour_log_prob"]
        if trajectories.behaviour_estimated is not None:
            estimated = library.asarray(trajectories.behaviour_estimated, library.float64)
            if estimated.shape != counts.shape:
                raise ValueError(
                    f"behaviour_estimated has shape {estimated.shape}; there are {len(rewards)} trajectories."
                )
    discounts = jnp.asarray(discount, jnp.float64) ** jnp.arange(rewards.shape[1])
    checked = (jnp.asarray(x) for x in (counts, columns["rewards"], log_ratio, shown))
    return Steps(*checked, discounts, jnp.asarray(estimated))


def _check_values(columns: dict[str, np.ndarray], mask: np.ndarray, counts: np.ndarray) -> None:
    if not np.isfinite(counts).all() or (counts < 0).any() or not (counts > 0).any():
        raise ValueError(
            "counts must be finite, not negative and not all 0; there is nothing to estimate from otherwise."
        )
    shown = mask & (counts > 0)[:, None]
    gaps = (mask[:, 1:] & ~mask[:, :-1]).any(axis=1) | ~mask[:, 0]
    if (gaps & (counts > 0)).any():
        raise ValueError(
            f"the mask of trajectory {int(np.argmax(gaps & (counts > 0)))} does not cover its first steps without a gap; the "
            "steps of a trajectory stand at the beginning of its row, and there is at least one."
        )
    for name, column in columns.items():
        # -inf is a target policy that never acts so
        fine = np.isfinite(column) | ((column == -np.inf) & (name == "target_log_prob"))
        if (shown & ~fine).any():
            row, step = np.argwhere(shown & ~fine)[0]
            hint = ""
            if name == "behaviour_log_prob" and column[row, step] == -np.inf:
                hint = (
                    " The behaviour policy took an action that it is said never to take: its probabilities are wrong."
                )
            raise ValueError(
                f"{name} must be finite; step {step} of trajectory {row} has {column[row, step]}, and "
                f"{int((shown & ~fine).sum())} steps are so.{hint} Mend the data."
            )


def column_of(name: str, given: Any, steps: Steps) -> Array:
    """A further column `[n, T]` in float64, 0 in the padding.

    Raises:
        ValueError: for another shape, or numbers that are not finite.
    """
    library = np if is_concrete(given, steps) else jnp
    column = library.asarray(given, library.float64)
    if column.shape != steps.rewards.shape:
        raise ValueError(
            f"{name} has shape {column.shape}, rewards {steps.rewards.shape}; every step needs one of each."
        )
    if library is np and not np.isfinite(column[np.asarray(steps.mask)]).all():
        raise ValueError(f"{name} must be finite at all steps that were made.")
    return jnp.where(steps.mask, column, 0.0)


def check_weights(window: int | None, clip: float | None) -> None:
    """Refuse settings of `log_weights` that cannot be meant.

    Raises:
        ValueError: for a negative window or a clip that is not positive.
    """
    if window is not None and window < 0:
        raise ValueError(f"window must be 0, positive or None, got {window}.")
    if clip is not None and is_concrete(clip) and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}.")


def log_weights(steps: Steps, *, window: int | None = None, clip: float | None = None) -> Array:
    """`log w_t`, the logarithm of the product of the ratios up to and including step t, `float64[n, T]`; kept in the padding.

    Args:
        steps: columns.
        window: product of that many most recent ratios alone; 0 for weights of 1, None for all.
        clip: largest ratio, of each step; None for no bound.
    """
    # those of the padding stay 1, also where the largest is below
    ratio = steps.log_ratio if clip is None else jnp.where(steps.mask, jnp.minimum(steps.log_ratio, jnp.log(clip)), 0.0)
    horizon = ratio.shape[1]
    if window is None or window >= horizon:
        return jnp.cumsum(ratio, axis=1)
    # no differences of cumulative sums: these may be -inf
    total = jnp.zeros_like(ratio)
    for lag in range(window):
        total += jnp.pad(ratio, [(0, 0), (lag, 0)])[:, :horizon]
    return held(total, steps.mask)


def held(values: Array, mask: Array) -> Array:
    """Values `[n, T]` with that of the last step in the padding."""
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    return jnp.take_along_axis(values, jnp.minimum(jnp.arange(values.shape[1]), last[:, None]), axis=1)


def weights_of(log_weight: Array) -> Array:
    """Weights themselves; those above e^300 are cut there, which `largest_log_weight` of the diagnostics shows."""
    return jnp.exp(jnp.minimum(log_weight, LARGEST_LOG_WEIGHT))


def scaled_weights(log_weight: Array, counts: Array, axis: int | None = 0) -> Array:
    """Weights up to a factor, of each step (`axis=0`) or of all (None), that makes the largest 1: for ratios of sums."""
    counted = jnp.where((counts > 0).reshape(-1, *[1] * (log_weight.ndim - 1)), log_weight, -jnp.inf)
    largest = jnp.max(counted, axis=axis, keepdims=True)
    return jnp.exp(log_weight - jnp.where(jnp.isfinite(largest), largest, 0.0))


def quotient(numerator: Array, denominator: Array) -> Array:
    """Quotient that is 0 where the denominator is 0, with a finite derivative there."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)


def weight_diagnostics(steps: Steps, log_weight: Array) -> dict[str, Array]:
    """What the final weights `log_weight [n]` tell.

    `rows` N; `mean_weight` (1 in expectation where nothing was cut) and `mean_weight_z` (standard errors from it);
    `largest_share` of all weight that one trajectory has; `largest_log_weight`; `mean_length` in steps;
    `behaviour_estimated`, share of trajectories whose behaviour probabilities were not logged but estimated.
    """
    counts = steps.counts
    weights = weights_of(log_weight)
    mean, error = weighted_mean(counts, weights), standard_error(counts, weights)
    scaled = scaled_weights(log_weight, counts)
    return {
        "rows": jnp.sum(counts),
        "mean_weight": mean,
        "mean_weight_z": (mean - 1.0) / jnp.where(error > 0, error, 1.0),
        "largest_share": quotient(jnp.max(jnp.where(counts > 0, scaled, 0.0)), jnp.sum(counts * scaled)),
        "largest_log_weight": jnp.max(jnp.where(counts > 0, log_weight, -jnp.inf)),
        "mean_length": weighted_mean(counts, jnp.sum(steps.mask, axis=1).astype(counts.dtype)),
        "behaviour_estimated": weighted_mean(counts, steps.estimated),
    }
