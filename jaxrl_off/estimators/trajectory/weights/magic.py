"""MAGIC: a mixture of estimates that correct a fitted action-value function for more and more steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic, resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import check_weights, log_weights, steps_of
from jaxrl_off.estimators.trajectory.weights import forms
from jaxrl_off.estimators.trajectory.weights.corrections import (
    Corrected,
    corrected_columns,
    correction_diagnostics,
    estimate_corrected,
)
from jaxrl_off.ops.intervals import percentile_interval
from jaxrl_off.ops.simplex import minimise_quadratic
from jaxrl_off.types import Array, Estimate, Trajectories

_COVERAGE = 0.9  # of the bootstrap interval that MAGIC takes for the truth; COBS has the same


@named_options
def magic(
    trajectories: Trajectories,
    target_log_prob: Any,
    q: Any,
    v: Any,
    *,
    lengths: int = 25,
    final: Any = None,
    horizon_exit: bool = True,
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
    """MAGIC: `x . g`, with the x on the simplex that minimises an estimate of the mean squared error, `x^T (Omega + b b^T) x`.

    `g_j = sum_{t <= j} gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t] + gamma^(j+1) sum_i u_j v_{j+1}` corrects the first j + 1
    steps, from `g_{-1}`, the direct method, to `g_{T-1}`, the weighted doubly robust one. All g_j estimate one quantity, that
    of `horizon_exit`, if Q does. Omega is the covariance of the g_j, from trajectories' contributions; b_j the distance of g_j
    from the 90 % percentile interval of `g_{T-1}`.

    x is found from the data once, and the standard error is that of the mixture as it is: next to nothing where x trusts
    the direct method, however wrong Q may be. What the data say against Q they say by `g_{T-1}` alone. So the interval is
    that of `weighted_doubly_robust`, stretched to the value where this is outside: it covers no less often. The paper has
    none. COBS, which the STAR paper's baselines come from, has the elementwise square of b in the place of the outer
    product, and a covariance that lacks a factor of n; neither is followed.

    Args:
        trajectories: as in `doubly_robust`.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t).
        q: `float[n, T]`, q_t.
        v: `float[n, T]`, v_t.
        lengths: how many of the g_j are mixed, the first and the last among them, at even distances; COBS has 25.
        final: `float[n]`, v_L; as in `doubly_robust`.
        horizon_exit: True for returns within the horizon; False if the process goes on where trajectories were cut.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; whole numbers, as b takes resamples.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples, of b too.
        seed: of the bootstrap, of b too.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`; diagnostics as in `doubly_robust`, and `direct_share` and `corrected_share`, x of the first and the last.

    Raises:
        ValueError: if the data or settings are invalid.

    Reference: Thomas and Brunskill, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning", ICML 2016.
    """
    if lengths < 2:
        raise ValueError(f"lengths must be at least 2, the direct method and the corrected one, got {lengths}.")
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    check_weights(window, clip)
    horizon = jnp.shape(trajectories.rewards)[-1]
    mixed = np.unique(np.round(np.linspace(0, horizon, min(lengths, horizon + 1))).astype(int))
    with float64(trajectories, target_log_prob, q, v, final, counts):
        steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts, horizon_exit=horizon_exit)
        columns = corrected_columns(
            steps,
            log_weights(steps, window=window, clip=clip),
            q,
            v,
            final,
            horizon_exit=horizon_exit,
            discount=discount,
        )
        size = resample_size(counts, drawn=True)
        return _mixed(columns, mixed=tuple(map(int, mixed)), settings=settings, size=size)


def _partial_returns(columns: Corrected) -> Callable[[Array], Array]:
    """`counts -> g [T + 1]`, of which entry j + 1 is g_j."""
    mean = forms.means_of(forms.WEIGHTED_CORRECTED, *columns)

    def returns(counts: Array) -> Array:
        corrected, following = forms.corrected_parts(mean(counts), columns.steps.discounts)
        zero = jnp.zeros(1)
        return jnp.concatenate([zero, jnp.cumsum(corrected)]) + jnp.concatenate([following, zero])

    return returns


def _mixture(columns: Corrected, mixed: tuple[int, ...], settings: Settings, size: int | None) -> Array:
    """x of MAGIC."""
    returns = _partial_returns(columns)
    counts, places = columns.steps.counts, jnp.asarray(mixed)
    total = jnp.sum(counts)
    found = returns(counts)[places]
    influence = total * jax.jacrev(lambda c: returns(c)[places])(counts)
    centred = (influence - (influence @ counts / total)[:, None]) * jnp.sqrt(counts)
    covariance = centred @ centred.T / (total * jnp.maximum(total - 1.0, 1.0))
    last = forms.statistic_of(forms.WEIGHTED_CORRECTED, *columns)
    interval = percentile_interval(
        jax.random.key(settings.seed), last, counts, resamples=settings.resamples, size=size, level=_COVERAGE
    )
    bias = found - jnp.clip(found, interval.lower, interval.upper)
    return jax.lax.stop_gradient(minimise_quadratic(covariance + jnp.outer(bias, bias)))


@functools.partial(jax.jit, static_argnames=("mixed", "settings", "size"))
def _mixed(columns: Corrected, *, mixed: tuple[int, ...], settings: Settings, size: int | None) -> Estimate:
    corrected = estimate_corrected(columns, form=forms.WEIGHTED_CORRECTED, settings=settings, size=size)
    x = _mixture(columns, mixed, settings, size)
    returns, places = _partial_returns(columns), jnp.asarray(mixed)
    found = correction_diagnostics(columns, forms.WEIGHTED_CORRECTED) | {"direct_share": x[0], "corrected_share": x[-1]}
    mixture = estimate_statistic(
        lambda counts: jnp.sum(x * returns(counts)[places]),
        columns.steps,
        columns.log_weight[:, -1],
        settings._replace(level=None),
        diagnostics=found,
    )
    if corrected.lower is None or corrected.upper is None:
        return mixture
    known = jnp.isfinite(mixture.value)
    lower = jnp.where(known, jnp.minimum(corrected.lower, mixture.value), -jnp.inf)
    upper = jnp.where(known, jnp.maximum(corrected.upper, mixture.value), jnp.inf)
    return mixture._replace(lower=lower, upper=upper)
