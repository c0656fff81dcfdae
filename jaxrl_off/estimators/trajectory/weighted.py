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

All take trajectories and log-probabilities of the target policy, and the same keywords; see `pdis`. With `window` or `clip`
what is estimated is no longer the target's value, but has less variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.bandit import empirical_likelihood as bandit_empirical_likelihood
from jaxrl_off.estimators.trajectory import common
from jaxrl_off.estimators.trajectory.common import Steps
from jaxrl_off.types import Array, Estimate, Trajectories

Maker = Callable[[Steps, Array], Callable[[Array], Array]]


def naive(trajectories: Trajectories, target_log_prob: Any = None, **keywords: Any) -> Estimate:
    """The behaviour policy's own value, `mean_i G`: what every estimate should be held against.

    Args:
        trajectories: n of them.
        target_log_prob: ignored, so that all estimators can be called alike.
        **keywords: as in `pdis`, but for `window` and `clip`.
    """
    del target_log_prob
    return _estimate(_mean_return, trajectories, None, **keywords)


def trajectory_is(trajectories: Trajectories, target_log_prob: Any, **keywords: Any) -> Estimate:
    """Ordinary importance sampling of whole returns, `mean_i w_T G`; unbiased, of a variance that grows fast with the horizon.

    Args, Returns and Raises: as `pdis`.
    """
    return _estimate(_mean_return, trajectories, target_log_prob, **keywords)


def pdis(trajectories: Trajectories, target_log_prob: Any, **keywords: Any) -> Estimate:
    """Per-decision importance sampling, `mean_i sum_t gamma^t w_t r_t`; unbiased.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is not looked at.
        **keywords: `discount` (1.0), gamma in [0, 1]; `counts`, `float[n]`, how often each trajectory counts, 0 for padding;
            `window`, product of that many most recent ratios alone, 0 for none, None for all; `clip`, largest ratio of a step;
            `level` (None), `sides` ("two", "lower", "upper"), `interval` ("student_t", "normal", "bootstrap", "bca"),
            `resamples` (1000), `seed` (0); `floor` (10), effective trajectories below which `below_floor` is set.

    Returns:
        An `Estimate` in float64; diagnostics as in `common.estimate_statistic`.

    Raises:
        ValueError: for data or settings that cannot be meant.

    Example:
        >>> import numpy as np
        >>> from jaxrl_off.types import Trajectories
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> float(pdis(data, np.log([[0.8, 0.25]]), discount=0.5).value)
        2.0
    """
    return _estimate(_mean_weighted_reward, trajectories, target_log_prob, **keywords)


def wis(trajectories: Trajectories, target_log_prob: Any, **keywords: Any) -> Estimate:
    """Weighted importance sampling, `sum_i w_T G / sum_i w_T`; consistent, within the range of the returns.

    Args, Returns and Raises: as `pdis`. NaN if all weights are 0.
    """
    return _estimate(_weighted_mean_return, trajectories, target_log_prob, **keywords)


def cwpdis(trajectories: Trajectories, target_log_prob: Any, **keywords: Any) -> Estimate:
    """Consistent weighted per-decision importance sampling, `sum_t gamma^t sum_i w_t r_t / sum_i w_t`.

    Ended trajectories stay in the denominators with the weight that they had, as after an absorbing step without reward. A
    step at which all weights are 0 adds nothing.

    Args, Returns and Raises: as `pdis`.
    """
    return _estimate(_weighted_mean_rewards, trajectories, target_log_prob, **keywords)


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
) -> Estimate:
    """Empirical likelihood over trajectories: `E_Q[w_T G]` where Q is the likeliest law with `E_Q[w_T] = 1`.

    `estimators.bandit.empirical_likelihood` with a trajectory for a decision, its weight w_T and its return G. It gains from
    the known mean of the weights, and its interval is asymptotic: where few trajectories carry the weight, see `calibration`.

    Args:
        trajectories: as in `pdis`.
        target_log_prob: as there.
        return_range: (low, high) that discounted returns can have.
        weight_max: the largest w_T that is possible; may be infinite.
        discount: gamma.
        counts: `float[n]` or None.
        level: of confidence, or None.
        sides: "two", "lower" or "upper".
        calibration: "f", "chi2" or "finite_sample".

    Returns:
        An `Estimate`; diagnostics as in `estimators.bandit`.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    with common.float64(trajectories, target_log_prob, counts):
        steps = common.steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
        weights = common.weights_of(common.log_weights(steps)[:, -1])
        returns = jnp.sum(steps.discounts * steps.rewards, axis=1)
        settings = dict(weight_range=(0.0, weight_max), reward_range=return_range, level=level, sides=sides)
        return bandit_empirical_likelihood(weights, returns, counts=steps.counts, calibration=calibration, **settings)


def _mean_return(steps: Steps, log_weight: Array) -> Callable[[Array], Array]:
    terms = common.weights_of(log_weight[:, -1]) * jnp.sum(steps.discounts * steps.rewards, axis=1)
    return lambda counts: common.weighted_mean(counts, terms)


def _mean_weighted_reward(steps: Steps, log_weight: Array) -> Callable[[Array], Array]:
    terms = jnp.sum(steps.discounts * common.weights_of(log_weight) * steps.rewards, axis=1)
    return lambda counts: common.weighted_mean(counts, terms)


def _weighted_mean_return(steps: Steps, log_weight: Array) -> Callable[[Array], Array]:
    weights = common.scaled_weights(log_weight[:, -1], steps.counts)
    returns = jnp.sum(steps.discounts * steps.rewards, axis=1)
    return lambda counts: jnp.sum(counts * weights * returns) / jnp.sum(counts * weights)


def _weighted_mean_rewards(steps: Steps, log_weight: Array) -> Callable[[Array], Array]:
    weights = common.scaled_weights(log_weight, steps.counts)
    weighted = weights * steps.rewards
    return lambda counts: jnp.sum(steps.discounts * common.ratio(counts @ weighted, counts @ weights))


def _estimate(
    statistic_of: Maker,
    trajectories: Trajectories,
    target_log_prob: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    **settings: Any,
) -> Estimate:
    checked = common.settings_of(**settings)
    common.check_weights(window, clip)
    with common.float64(trajectories, target_log_prob, counts):
        steps = common.steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
        return _run(
            steps, clip, statistic_of=statistic_of, window=window, settings=checked, size=common.resample_size(counts)
        )


@functools.partial(jax.jit, static_argnames=("statistic_of", "window", "settings", "size"))
def _run(
    steps: Steps, clip: Any, *, statistic_of: Maker, window: int | None, settings: common.Settings, size: int | None
) -> Estimate:
    log_weight = common.log_weights(steps, window=window, clip=clip)
    return common.estimate_statistic(statistic_of(steps, log_weight), steps, log_weight[:, -1], settings, size=size)
