"""Checked columns of trajectories in float64, and their importance weights in log space.

Weights are sums of log ratios until the last moment, so that products of many ratios neither overflow nor vanish.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete, standard_error, weighted_mean, z_score
from jaxrl_off.types import Array, Trajectories

LARGEST_LOG_WEIGHT = 300.0  # leaves room for squares in float64
SURPRISING_Z = 4.0  # standard errors beyond which chance is no explanation


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
        cut: `float64[n]`, 1 where the last step of the row did not terminate: truncated, or ended by the horizon.
        horizon_exit: `float64[]`, the estimand: 1 for returns within the horizon, 0 if the process goes on where rows were cut.
    """

    counts: Array
    rewards: Array
    log_ratio: Array
    mask: Array
    discounts: Array
    estimated: Array
    cut: Array
    horizon_exit: Array


def steps_of(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> Steps:
    """Check trajectories and ratios. To be called within `float64`.

    Args:
        trajectories: n of them; behaviour log-probabilities are needed where `target_log_prob` is given.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t) of the policy to be judged, or None for ratios of 1.
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.
        horizon_exit: the estimand: True for returns within the horizon; False if the process goes on where rows were cut.

    Raises:
        ValueError: for shapes that do not fit, masks with gaps, NaN, no trajectories, a discount outside [0, 1], missing
            behaviour probabilities, or a logged action that the behaviour policy is said never to take.
    """
    values = (trajectories, target_log_prob, discount, counts)
    if jnp.ndim(discount) or (is_concrete(discount) and not 0.0 <= discount <= 1.0):
        raise ValueError(f"discount must be in [0, 1], one number for all, got {discount}.")
    if target_log_prob is not None and trajectories.behaviour_log_prob is None:
        raise ValueError(
            "the trajectories have no behaviour_log_prob, which importance ratios need. Log it, or estimate it from the data "
            "with `estimators.trajectory.clone_behaviour`; the diagnostics then say that it was estimated."
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
    given = dict(rewards=trajectories.rewards, target_log_prob=target_log_prob)
    given["behaviour_log_prob"] = trajectories.behaviour_log_prob
    for name, column in columns.items():
        if column.shape != rewards.shape:
            raise ValueError(f"{name} has shape {column.shape}, rewards {rewards.shape}; every step needs one of each.")
        if np.ma.is_masked(given[name]):
            raise ValueError(
                f"{name} is a NumPy masked array, whose masked entries would be taken for numbers. Fill them, and say which "
                "steps were made by `mask`."
            )
    if library is np:
        _check_values(columns, mask, counts)
        _check_logarithms(columns, trajectories.actions, mask & (counts > 0)[:, None])
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
    terminated = library.asarray(trajectories.terminated, bool)
    if terminated.shape != rewards.shape:
        raise ValueError(
            f"terminated has shape {terminated.shape}, rewards {rewards.shape}; every step needs one of each."
        )
    last = mask & ~library.concatenate([mask[:, 1:], library.zeros_like(mask[:, :1])], axis=1)
    cut = 1.0 - (last & terminated).any(axis=1)
    discounts = jnp.asarray(discount, jnp.float64) ** jnp.arange(rewards.shape[1])
    checked = (jnp.asarray(x) for x in (counts, columns["rewards"], log_ratio, shown))
    rest = (jnp.asarray(x, jnp.float64) for x in (estimated, cut, horizon_exit))
    return Steps(*checked, discounts, *rest)


def _check_values(columns: dict[str, np.ndarray], mask: np.ndarray, counts: np.ndarray) -> None:
    if not np.isfinite(counts).all() or (counts < 0).any() or not (counts > 0).any():
        raise ValueError(
            "counts must be finite and not negative, and at least one must be above 0: there is nothing to estimate from "
            "otherwise."
        )
    shown = mask & (counts > 0)[:, None]
    gaps = (mask[:, 1:] & ~mask[:, :-1]).any(axis=1) | ~mask[:, 0]
    if (gaps & (counts > 0)).any():
        raise ValueError(
            f"the mask of trajectory {int(np.argmax(gaps & (counts > 0)))} has a gap or misses step 0. Put the steps of each "
            "trajectory, at least one, at the beginning of its row, without a gap."
        )
    for name, column in columns.items():
        # -inf is a target policy that never acts so
        fine = np.isfinite(column) | ((column == -np.inf) & (name == "target_log_prob"))
        if (shown & ~fine).any():
            row, step = np.argwhere(shown & ~fine)[0]
            hint = ""
            if name == "behaviour_log_prob" and column[row, step] == -np.inf:
                hint = " A logged action cannot have probability 0 (log-probability -inf) under the behaviour policy."
            raise ValueError(
                f"{name} must be finite. Step {step} of trajectory {row} has {column[row, step]}; so do "
                f"{int((shown & ~fine).sum())} steps in all.{hint} Fix or remove these trajectories."
            )


def _check_logarithms(columns: dict[str, np.ndarray], actions: Any, shown: np.ndarray) -> None:
    """Refuse probabilities in the place of log-probabilities of discrete actions, which are never above 0."""
    if actions is None or np.ndim(actions) != 2 or np.asarray(actions).dtype.kind not in "iu":
        return
    for name in ("target_log_prob", "behaviour_log_prob"):
        if name in columns and (columns[name][shown] >= 0).all() and (columns[name][shown] > 1e-5).any():
            raise ValueError(
                f"{name} is at least 0 at every step, up to {columns[name][shown].max():g}, but log-probabilities of discrete "
                "actions are at most 0. These look like probabilities: pass their logarithms."
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
        raise ValueError(f"{name} must be finite at every step inside the mask; padding may hold anything.")
    return jnp.where(steps.mask, column, 0.0)


def check_weights(window: int | None, clip: float | None) -> None:
    """Refuse invalid settings of `log_weights`.

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


def ratio_excess(steps: Steps) -> Array:
    """`sum_t (rho_t - 1)` of each trajectory, `float64[n]`; 0 in expectation if all that the target does is logged."""
    return jnp.sum(jnp.where(steps.mask, weights_of(steps.log_ratio) - 1.0, 0.0), axis=1)


def lacks_overlap(mean_weight: Array, mean_ratio: Array, mean_ratio_z: Array) -> Array:
    """Whether most of what the target does is missing from the log, so that no interval can come from the log alone.

    Ratios of single steps have mean 1 whatever the horizon. Where their mean is significantly below 1 *and* it, or the mean
    weight of trajectories, is below one half, most of what the target does has no counterpart in the log: the spread of the
    weights that are there, small as it may be, says nothing of those that are not.
    """
    return (mean_weight == 0.0) | ((mean_ratio_z < -SURPRISING_Z) & (jnp.minimum(mean_weight, mean_ratio) < 0.5))


def weight_diagnostics(steps: Steps, log_weight: Array) -> dict[str, Array]:
    """What the final weights `log_weight [n]` and the rows tell.

    * `rows`: N.
    * `mean_weight`, 1 in expectation where nothing was clipped, and `mean_weight_z`, standard errors from 1 (see `z_score`).
    * `mean_ratio`, the mean of `pi_e / pi_b` over steps, 1 in expectation at every horizon, and `mean_ratio_z`.
    * `no_overlap`: 1 where most of what the target does is missing from the log; see `lacks_overlap`.
    * `largest_share` of all weight that one trajectory has; `largest_log_weight`.
    * `mean_length` in steps; `cut_share`, share of trajectories whose last step did not terminate; `horizon_exit`, 1 if the
      value is that of returns within the horizon, 0 if the process goes on where trajectories were cut.
    * `behaviour_estimated`, share of trajectories whose behaviour probabilities were not logged but estimated.
    """
    counts = steps.counts
    weights, excess = weights_of(log_weight), ratio_excess(steps)
    scaled = scaled_weights(log_weight, counts)
    lengths = jnp.sum(steps.mask, axis=1).astype(counts.dtype)
    means = [weighted_mean(counts, x) for x in (weights, excess, lengths, steps.estimated, steps.cut)]
    errors = [standard_error(counts, x) for x in (weights, excess)]
    share = quotient(jnp.max(jnp.where(counts > 0, scaled, 0.0)), jnp.sum(counts * scaled))
    largest = jnp.max(jnp.where(counts > 0, log_weight, -jnp.inf))
    return described_weights(jnp.sum(counts), *means, *errors, share, largest, steps.horizon_exit)


def described_weights(
    total: Array,
    mean_weight: Array,
    mean_excess: Array,
    mean_length: Array,
    estimated: Array,
    cut: Array,
    weight_error: Array,
    excess_error: Array,
    share: Array,
    largest: Array,
    horizon_exit: Array,
) -> dict[str, Array]:
    """The diagnostics of `weight_diagnostics` from means over trajectories and their standard errors."""
    mean_ratio, mean_ratio_z = 1.0 + quotient(mean_excess, mean_length), z_score(mean_excess, 0.0, excess_error, total)
    return {
        "rows": total,
        "mean_weight": mean_weight,
        "mean_weight_z": z_score(mean_weight, 1.0, weight_error, total),
        "mean_ratio": mean_ratio,
        "mean_ratio_z": mean_ratio_z,
        "no_overlap": lacks_overlap(mean_weight, mean_ratio, mean_ratio_z).astype(total.dtype),
        "largest_share": share,
        "largest_log_weight": largest,
        "mean_length": mean_length,
        "cut_share": cut,
        "horizon_exit": horizon_exit,
        "behaviour_estimated": estimated,
    }
