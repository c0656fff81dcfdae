"""Importance sampling on trajectories: the value of a policy from what another one did.

Symbols: `rho_t = pi_e(a_t|s_t) / pi_b(a_t|s_t)`; `w_t` the product of the ratios up to step t, which after a trajectory's end
stays what it was; `G = sum_t gamma^t r_t`; sums over i are over trajectories.

| function | estimate |
|---|---|
| `naive` | `mean_i G`: the value of the policy that acted |
| `trajectory_is` | `mean_i w_T G` |
| `pdis` | `mean_i sum_t gamma^t w_t r_t` (Precup, Sutton and Singh, ICML 2000) |
| `wis` | `sum_i w_T G / sum_i w_T` |
| `cwpdis` | `sum_t gamma^t sum_i w_t r_t / sum_i w_t` (Thomas 2015; also called WPDIS) |
| `empirical_likelihood` | `E_Q[w_T G]` under the likeliest law with `E_Q[w_T] = 1`, `estimators.bandit` |

All estimate returns within the horizon: what would follow where a trajectory was cut is not counted (the diagnostic
`cut_share` says how many were). For a process that goes on, see `doubly_robust` with `horizon_exit=False`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.bandit import empirical_likelihood as bandit_empirical_likelihood
from jaxrl_off.estimators.common import float64, named_options, weighted_mean
from jaxrl_off.estimators.trajectory import bounds
from jaxrl_off.estimators.trajectory.bounds import Known, Limits
from jaxrl_off.estimators.trajectory.statistics import (
    Settings,
    estimate_statistic,
    resample_size,
    settings_of,
)
from jaxrl_off.estimators.trajectory.steps import Steps, check_weights, log_weights, steps_of, weights_of
from jaxrl_off.estimators.trajectory.weights import forms
from jaxrl_off.types import Estimate, Trajectories


@named_options
def naive(
    trajectories: Trajectories,
    target_log_prob: Any = None,
    *,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The behaviour policy's own value, `mean_i G`: what every estimate should be held against.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        target_log_prob: ignored, so that all estimators of this module can be called alike.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` in float64; diagnostics as in `statistics.estimate_statistic`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    del target_log_prob
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(forms.MEAN_RETURN, trajectories, None, discount, counts, settings)


@named_options
def trajectory_is(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    return_range: Sequence[float] | None = None,
    weight_max: Any = None,
    truncation: float | None = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    ordered: bool = False,
    floor: float = 10.0,
) -> Estimate:
    """Ordinary importance sampling of whole returns, `mean_i w_T G`; unbiased, of a variance that grows fast with the horizon.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound. With window or clip the value and its interval are those of the mean
            that they leave, which is no longer the target's value but has less variance.
        return_range: (low, high) that discounted returns can have; high may be infinite. For intervals of `bounds`.
        weight_max: the largest w_T that is possible, or those of all w_t, `[T]`; for the same.
        truncation: c, for the mean of `min(w_T G, c)`, which is below the value; see `bounds`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap", "bca", or with a known range one of `bounds`.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap, and of the order in which "betting" reads trajectories.
        ordered: whether the order of trajectories is time, and "betting" shall read them so.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` in float64; diagnostics as in `statistics.estimate_statistic`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor, bounded=True)
    known = Known("return_range", return_range, weight_max, truncation)
    return _estimate(
        forms.MEAN_RETURN,
        trajectories,
        target_log_prob,
        discount,
        counts,
        settings,
        window,
        clip,
        known,
        ordered,
    )


@named_options
def pdis(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    reward_range: Sequence[float] | None = None,
    weight_max: Any = None,
    truncation: float | None = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    ordered: bool = False,
    floor: float = 10.0,
) -> Estimate:
    """Per-decision importance sampling, `mean_i sum_t gamma^t w_t r_t`; unbiased.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound. With window or clip the value and its interval are those of the mean
            that they leave, which is no longer the target's value but has less variance.
        reward_range: (low, high) that a reward can have; high may be infinite. For intervals of `bounds`, which also take T for
            the longest that a trajectory can get: pad to it.
        weight_max: the largest that a w_t can be, `[]` or `[T]`; for the same.
        truncation: c, for the mean of `min(sum_t gamma^t w_t r_t, c)`, which is below the value; see `bounds`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap", "bca", or with a known range one of `bounds`.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap, and of the order in which "betting" reads trajectories.
        ordered: whether the order of trajectories is time, and "betting" shall read them so.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` in float64; diagnostics as in `statistics.estimate_statistic`.

    Raises:
        ValueError: if the data or settings are invalid.

    Example:
        >>> import numpy as np
        >>> from jaxrl_off.types import Trajectories
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> float(pdis(data, np.log([[0.8, 0.25]]), discount=0.5).value)
        2.0
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor, bounded=True)
    known = Known("reward_range", reward_range, weight_max, truncation)
    return _estimate(
        forms.MEAN_WEIGHTED_REWARD,
        trajectories,
        target_log_prob,
        discount,
        counts,
        settings,
        window,
        clip,
        known,
        ordered,
    )


@named_options
def wis(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """Weighted importance sampling, `sum_i w_T G / sum_i w_T`; consistent, within the range of the returns.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound. With window or clip the value and its interval are those of the mean
            that they leave, which is no longer the target's value but has less variance.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` in float64; diagnostics as in `statistics.estimate_statistic`. NaN if all weights are 0.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(
        forms.WEIGHTED_MEAN_RETURN, trajectories, target_log_prob, discount, counts, settings, window=window, clip=clip
    )


@named_options
def cwpdis(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """Consistent weighted per-decision importance sampling, `sum_t gamma^t sum_i w_t r_t / sum_i w_t`.

    Ended trajectories stay in the denominators with the weight that they had, as after an absorbing step without reward. A
    step at which all weights are 0 adds nothing.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound. With window or clip the value and its interval are those of the mean
            that they leave, which is no longer the target's value but has less variance.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` in float64; diagnostics as in `statistics.estimate_statistic`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(
        forms.WEIGHTED_MEAN_REWARDS, trajectories, target_log_prob, discount, counts, settings, window=window, clip=clip
    )


@named_options
def empirical_likelihood(
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    return_range: Sequence[float],
    weight_max: float,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    calibration: str = "f",
    floor: float = 10.0,
) -> Estimate:
    """Empirical likelihood over trajectories: `E_Q[w_T G]` where Q is the likeliest law with `E_Q[w_T] = 1`.

    `estimators.bandit.empirical_likelihood` with a trajectory for a decision, its weight w_T and its return G. It gains from
    the known mean of the weights, and its interval is asymptotic: where few trajectories carry the weight, see `calibration`.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        return_range: (low, high) that discounted returns can have.
        weight_max: the largest w_T that is possible; may be infinite.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        calibration: "f", "chi2" or "finite_sample".
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`; diagnostics as in `estimators.bandit`, and `behaviour_estimated` and `below_floor`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    checked = settings_of(level=level, sides=sides, floor=floor)
    with float64(trajectories, target_log_prob, counts):
        steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
        weights = weights_of(log_weights(steps)[:, -1])
        returns = jnp.sum(steps.discounts * steps.rewards, axis=1)
        settings = dict(weight_range=(0.0, weight_max), reward_range=return_range, level=level, sides=sides)
        found = bandit_empirical_likelihood(weights, returns, counts=steps.counts, calibration=calibration, **settings)
        told = {
            "behaviour_estimated": weighted_mean(steps.counts, steps.estimated),
            "below_floor": (found.effective_sample_size < checked.floor).astype(weights.dtype),
        }
        return found._replace(diagnostics=found.diagnostics | told)


def _estimate(
    form: forms.Form,
    trajectories: Trajectories,
    target_log_prob: Any,
    discount: float,
    counts: Any,
    settings: Settings,
    window: int | None = None,
    clip: float | None = None,
    known: Known | None = None,
    ordered: bool = False,
) -> Estimate:
    check_weights(window, clip)
    limits, truncation = None, None if known is None else known.truncation
    with float64(trajectories, target_log_prob, counts):
        steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
        if known is not None:
            bounds.check_known(known, clip, settings, counts)
            limits = None if known.range is None else _limits(form, steps, known, window, clip)
        if limits is not None:
            limits = limits._replace(
                order=bounds.reading_order(settings.interval, steps.counts, settings.seed, ordered)
            )
        size = resample_size(counts, drawn=settings.drawn)
        return _run(steps, clip, truncation, limits, form=form, window=window, settings=settings, size=size)


def _limits(form: forms.Form, steps: Steps, known: Known, window: int | None, clip: Any) -> Limits:
    """Ranges of the terms and of the value; what a window or a clip leaves may be as the terms are."""
    log_weight, counted = log_weights(steps, window=window), (steps.counts > 0)[:, None]
    if form is forms.MEAN_RETURN:
        bounds.check_within(known, jnp.sum(steps.discounts * steps.rewards, axis=1, keepdims=True), counted)
        last = jnp.arange(len(steps.discounts)) == len(steps.discounts) - 1
        largest = bounds.largest_weights(log_weight, counted & last, known.weight_max, window, clip)
        terms, value = bounds.product(known.range, largest[-1]), known.range
    else:
        bounds.check_within(known, steps.rewards, steps.mask)
        largest = bounds.largest_weights(log_weight, steps.mask, known.weight_max, window, clip)
        # a trajectory may end at any step, after which there is no reward
        terms = bounds.discounted(steps.discounts, bounds.product(known.range, largest))
        value = bounds.discounted(steps.discounts, bounds.product(known.range, jnp.ones_like(largest)))
    if window is not None or clip is not None:
        value = terms
    if known.truncation is not None:
        terms = (terms[0], jnp.minimum(terms[1], known.truncation))
    return Limits(terms, value)


@functools.partial(jax.jit, static_argnames=("form", "window", "settings", "size"))
def _run(
    steps: Steps,
    clip: Any,
    truncation: Any,
    limits: Limits | None,
    *,
    form: forms.Form,
    window: int | None,
    settings: Settings,
    size: int | None,
) -> Estimate:
    log_weight = log_weights(steps, window=window, clip=clip)
    statistic = forms.statistic_of(form, steps, log_weight, largest=truncation)
    return estimate_statistic(statistic, steps, log_weight[:, -1], settings, size=size, limits=limits)
