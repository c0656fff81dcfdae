"""Estimators on trajectories that are smooth functions of means over trajectories: `V = f(E[x])`, x a few columns of each.

Symbols as in `importance` and `doubly_robust`, T the horizon. A column may hold a weight times e^-m, m the largest logarithm of
such weights: long horizons neither overflow nor vanish then, and f is a function of quotients, in which m cancels.

| form | columns x | f |
|---|---|---|
| `MEAN_RETURN` | `w_T G` | the mean itself |
| `MEAN_WEIGHTED_REWARD` | `sum_t gamma^t w_t r_t` | the mean itself |
| `WEIGHTED_MEAN_RETURN` | `w_T G, w_T` | their quotient |
| `WEIGHTED_MEAN_REWARDS` | `w_t r_t, w_t` for each t | `sum_t gamma^t` of their quotients |
| `FIRST_VALUE` | `v_0` | the mean itself |
| `CORRECTED` | `sum_t gamma^t [w_t (r_t - q_t) + w_{t-1} v_t]`, `v_0` | the first mean |
| `WEIGHTED_CORRECTED` | `w_t (r_t - q_t), w_{t-1} v_t, w_t` for each t | `sum_t gamma^t` of quotients |

`importance` and `doubly_robust` compute them from data in memory, `streaming` from one chunk of data after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.trajectory.statistics import Statistic
from jaxrl_off.estimators.trajectory.steps import Steps, quotient, weights_of
from jaxrl_off.types import Array


class Form(NamedTuple):
    """One of the estimators; hashable.

    Attributes:
        scale: `(steps, log_weight [n, T]) -> [d]`, m of each column; 0 where weights stay as they are.
        columns: `(steps, log_weight, scale [d], q [n, T], v [n, T]) -> x [n, d]`; q and v are looked at by what corrects.
        value: `(mean of x [d], discounts [T]) -> []`, f.
        correction: `(mean of x [d], discounts [T]) -> []`, by how much the data change `mean_i v_0`; None for what has no v.
    """

    scale: Callable[[Steps, Array], Array]
    columns: Callable[..., Array]
    value: Callable[[Array, Array], Array]
    correction: Callable[[Array, Array], Array] | None = None


def means_of(
    form: Form,
    steps: Steps,
    log_weight: Array,
    q: Array | None = None,
    v: Array | None = None,
    *,
    largest: Array | None = None,
) -> Callable[[Array], Array]:
    """`counts [n] -> E[x] [d]` of data in memory; columns above `largest` are cut there."""
    scale = jax.lax.stop_gradient(form.scale(steps, log_weight))
    columns = form.columns(steps, log_weight, finite(scale), q, v)
    if largest is not None:
        columns = jnp.minimum(columns, largest)
    return lambda counts: counts @ columns / jnp.sum(counts)


def statistic_of(form: Form, steps: Steps, log_weight: Array, *arguments: Array, **options: Array) -> Statistic:
    """`counts [n] -> V []`, for `statistics.estimate_statistic`; arguments as of `means_of`."""
    means = means_of(form, steps, log_weight, *arguments, **options)
    return lambda counts: form.value(means(counts), steps.discounts)


def correction_of(form: Form, steps: Steps, log_weight: Array, q: Array, v: Array) -> Statistic:
    """`counts [n] -> []`, by how much the data change `mean_i v_0`; of forms that correct."""
    means, correction = means_of(form, steps, log_weight, q, v), form.correction
    assert correction is not None
    return lambda counts: correction(means(counts), steps.discounts)


def finite(scale: Array) -> Array:
    """Scales with 0 in the place of -inf."""
    return jnp.where(jnp.isfinite(scale), scale, 0.0)


def before(values: Array, first: Array | float) -> Array:
    """Values of the step before, `[n, T]`."""
    return jnp.concatenate([jnp.full_like(values[:, :1], first), values[:, :-1]], axis=1)


def corrected_parts(mean: Array, discounts: Array) -> tuple[Array, Array]:
    """`(gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t], gamma^t sum_i u_{t-1} v_t)`, `[T]` each, of `WEIGHTED_CORRECTED`."""
    errors, values, total = jnp.split(mean, 3)
    following = discounts * quotient(values, jnp.concatenate([jnp.ones(1), total[:-1]]))
    return discounts * quotient(errors, total) + following, following


def _largest(steps: Steps, log_weight: Array) -> Array:
    return jnp.max(jnp.where((steps.counts > 0)[:, None], log_weight, -jnp.inf), axis=0)


def _scaled(steps: Steps, log_weight: Array, scale: Array) -> Array:
    # what does not count may be anything next to the scale
    return jnp.exp(jnp.where((steps.counts > 0)[:, None], log_weight - scale, -jnp.inf))


def _no_scale(steps: Steps, log_weight: Array) -> Array:
    return jnp.zeros(1)


def _no_scales(steps: Steps, log_weight: Array) -> Array:
    return jnp.zeros(2)


def _returns(steps: Steps) -> Array:
    return jnp.sum(steps.discounts * steps.rewards, axis=1)


def _mean(mean: Array, discounts: Array) -> Array:
    return mean[0]


def _weighted_return(steps: Steps, log_weight: Array, *others: Array) -> Array:
    return (weights_of(log_weight[:, -1]) * _returns(steps))[:, None]


def _weighted_rewards(steps: Steps, log_weight: Array, *others: Array) -> Array:
    return jnp.sum(steps.discounts * weights_of(log_weight) * steps.rewards, axis=1, keepdims=True)


def _last_twice(steps: Steps, log_weight: Array) -> Array:
    return jnp.tile(_largest(steps, log_weight)[-1:], 2)


def _return_and_weight(steps: Steps, log_weight: Array, scale: Array, *others: Array) -> Array:
    weights = _scaled(steps, log_weight[:, -1:], scale[0])
    return jnp.concatenate([weights * _returns(steps)[:, None], weights], axis=1)


def _quotient(mean: Array, discounts: Array) -> Array:
    return mean[0] / mean[1]


def _each_twice(steps: Steps, log_weight: Array) -> Array:
    return jnp.tile(_largest(steps, log_weight), 2)


def _rewards_and_weights(steps: Steps, log_weight: Array, scale: Array, *others: Array) -> Array:
    weights = _scaled(steps, log_weight, scale[: log_weight.shape[1]])
    return jnp.concatenate([weights * steps.rewards, weights], axis=1)


def _quotients(mean: Array, discounts: Array) -> Array:
    return jnp.sum(discounts * quotient(*jnp.split(mean, 2)))


def _first_value(steps: Steps, log_weight: Array, scale: Array, q: Array, v: Array) -> Array:
    return v[:, :1]


def _corrected(steps: Steps, log_weight: Array, scale: Array, q: Array, v: Array) -> Array:
    weights = weights_of(log_weight)
    terms = weights * (steps.rewards - q) + before(weights, 1.0) * v
    return jnp.stack([jnp.sum(steps.discounts * terms, axis=1), v[:, 0]], axis=1)


def _correction(mean: Array, discounts: Array) -> Array:
    return mean[0] - mean[1]


def _each_and_before(steps: Steps, log_weight: Array) -> Array:
    largest = _largest(steps, log_weight)
    return jnp.concatenate([largest, jnp.zeros(1), largest[:-1], largest])


def _corrected_parts(steps: Steps, log_weight: Array, scale: Array, q: Array, v: Array) -> Array:
    weights = _scaled(steps, log_weight, scale[: log_weight.shape[1]])
    return jnp.concatenate([weights * (steps.rewards - q), before(weights, 1.0) * v, weights], axis=1)


def _corrected_value(mean: Array, discounts: Array) -> Array:
    return jnp.sum(corrected_parts(mean, discounts)[0])


def _weighted_correction(mean: Array, discounts: Array) -> Array:
    corrected, following = corrected_parts(mean, discounts)
    return jnp.sum(corrected) - following[0]


MEAN_RETURN = Form(_no_scale, _weighted_return, _mean)
MEAN_WEIGHTED_REWARD = Form(_no_scale, _weighted_rewards, _mean)
WEIGHTED_MEAN_RETURN = Form(_last_twice, _return_and_weight, _quotient)
WEIGHTED_MEAN_REWARDS = Form(_each_twice, _rewards_and_weights, _quotients)
FIRST_VALUE = Form(_no_scale, _first_value, _mean)
CORRECTED = Form(_no_scales, _corrected, _mean, _correction)
WEIGHTED_CORRECTED = Form(_each_and_before, _corrected_parts, _corrected_value, _weighted_correction)
