"""Choosing an abstraction and a window for `star`, or weighting several, without the truth.

The paper reports the best and the median of a grid, which cannot be picked without the truth. How it chooses is not in
the parts of it that were available. **The rules here are ours**, put together from the literature. All look at m
candidates V_i and at their replicates V_i^b on B *common* resamples of trajectories, so that differences are known better
than values:

| function | rule |
|---|---|
| `select_by_slope` | of candidates in order of falling deviations, the last one that agrees with all before it |
| `select_by_error` | the least variance plus squared bias, which a candidate without bias tells |
| `opera` | the convex mixture of least error, by the matrix of the candidates' errors |

Standard errors and intervals are those of a candidate or mixture that was not chosen by the same data: too small.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from jaxrl_off.estimators.bandit import slope
from jaxrl_off.estimators.common import check_level, float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.reward_processes.process import (
    Form,
    Given,
    Inputs,
    grid_values,
    grid_weights,
    inputs_of,
)
from jaxrl_off.estimators.trajectory.reward_processes.star import checked_windows
from jaxrl_off.estimators.trajectory.statistics import resample_size
from jaxrl_off.ops.intervals import bootstrap_replicates
from jaxrl_off.ops.simplex import minimise_quadratic
from jaxrl_off.types import Array, Estimate, Trajectories

_minimise = jax.jit(minimise_quadratic)


class Candidates(NamedTuple):
    """Estimates of one value, any estimators' ones.

    Attributes:
        values: `float64[m]`, V.
        replicates: `float64[B, m]`, V^b; row b from one resample for all. A candidate that has one that is not finite
            is out.
    """

    values: Array
    replicates: Array


class Selection(NamedTuple):
    """What was chosen; float64.

    Attributes:
        index: `int32[]`, of the chosen candidate; of a mixture, that of the largest weight.
        weights: `[m]`, in the mixture; those of a choice are 0 and 1.
        errors: `[m]`, the mean squared error that the rule ascribes to each candidate; infinite for those that are out.
        value: `[]`, of the choice or mixture.
        standard_error: `[]`, the standard deviation of its replicates.
        lower: `[]`, the quantile of its replicates, or None where no level was asked.
        upper: `[]`, or None.
    """

    index: Array
    weights: Array
    errors: Array
    value: Array
    standard_error: Array
    lower: Array | None
    upper: Array | None


@named_options
def star_candidates(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    windows: Sequence[int | None],
    *,
    clip: float | None = None,
    horizon_exit: bool = True,
    final_states: Any = None,
    discounted_counts: bool = True,
    normalisation: str = "self",
    termination: str = "joint",
    smoothing: float = 0.0,
    discount: float = 1.0,
    counts: Any = None,
    resamples: int = 200,
    seed: int = 0,
) -> Candidates:
    """The grid of `star_values` as candidates, with replicates on common resamples.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t).
        states: `int32[k, n, T]`, of k abstractions.
        num_states: the largest |Z| of them.
        windows: c of each, or None.
        clip: largest ratio of a step; None for no bound.
        horizon_exit: whether the process is left where trajectories were cut: returns within the horizon. With False it goes on
            there, in `final_states`.
        final_states: `int32[k, n]`, the cells of what followed the last steps; needed with `horizon_exit=False` and with
            "factored", and refused otherwise.
        discounted_counts: whether gamma^t is in the counts.
        normalisation: "self", or "horvitz_thompson", where N has the weights without the ratio of step t and rows of P may sum
            to more than 1.
        termination: "joint" or "factored"; see the module.
        smoothing: alpha: a cell of m steps is given alpha more that leave, so that P is multiplied by `m / (m + alpha)`, of use
            where no step that was seen leaves.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, whole numbers; None for once each.
        resamples: B.
        seed: of the resamples.

    Returns:
        `Candidates` of m = k len(windows), the windows of the first abstraction first.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}.")
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    given = Given(states, final_states, discount, counts, clip, smoothing)
    with float64(trajectories, target_log_prob, given):
        inputs = inputs_of(trajectories, target_log_prob, given, form, grid=True)
        options = dict(windows=checked_windows(windows), form=form, resamples=resamples)
        size = resample_size(counts, drawn=True)
        return _candidates(inputs, jax.random.key(seed), size=size, **options)


def select_by_slope(candidates: Candidates, *, quantile: float = 2.0, level: float | None = None) -> Selection:
    """`estimators.bandit.slope`: the last candidate, in order of falling deviations, that agrees with all before it.

    The deviation of a candidate is `quantile` standard deviations of its replicates. Made for candidates whose bias
    grows as their deviation falls, such as the windows None, 5, 4, ..., 1 of one abstraction. Looks at numbers: not for
    `jax.jit`.

    Args:
        candidates: with at least one that is finite.
        quantile: how many standard deviations.
        level: of confidence, or None.

    Returns:
        A `Selection`; its `errors` are the squared deviations.

    Raises:
        ValueError: if the candidates do not fit together, or none is finite.
    """
    if not quantile > 0:
        raise ValueError(f"quantile must be positive, got {quantile}.")
    with float64(candidates):
        candidates, usable = _checked(candidates, level)
        variances = jnp.where(usable, jnp.var(candidates.replicates, axis=0, ddof=1), jnp.inf)
        places = np.flatnonzero(usable)
        estimates = [Estimate(float(candidates.values[i]), None, None, None, None, {}) for i in places]
        chosen = places[slope(estimates, deviations=quantile * np.sqrt(np.asarray(variances)[places]))]
        weights = jax.nn.one_hot(chosen, len(usable), dtype=jnp.float64)
        return _selection(candidates, weights, quantile**2 * variances, level)


def select_by_error(candidates: Candidates, reference: int, *, level: float | None = None) -> Selection:
    """The candidate of the least `Var(V_i^b) + max(0, (V_i - V_ref)^2 - Var(V_i^b - V_ref^b))`.

    The squared distance from a candidate that has little bias, such as that of window None, is on average the squared
    bias plus the variance of the difference, which common resamples tell and which is taken off. Resamples alone know
    nothing of the bias that stays as data grow. If all else is far from it, the reference itself is chosen.

    Args:
        candidates: see there.
        reference: index of the candidate that has little bias.
        level: of confidence, or None.

    Returns:
        A `Selection`.

    Raises:
        ValueError: for candidates that do not fit, none that is finite, or a reference that is none of them or not
            finite.
    """
    with float64(candidates):
        candidates, usable = _checked(candidates, level, reference)
        errors = jnp.var(candidates.replicates, axis=0, ddof=1) + jnp.square(_bias(candidates, reference))
        errors = jnp.where(usable, errors, jnp.inf)
        weights = jax.nn.one_hot(jnp.argmin(errors), len(errors), dtype=jnp.float64)
        return _selection(candidates, weights, errors, level)


def opera(candidates: Candidates, *, reference: int | None = None, level: float | None = None) -> Selection:
    """The mixture `x . V` with the x on the simplex that minimises `x^T A x`.

    `A_ij = mean_b (V_i^b - V_i) (V_j^b - V_j)` is the bootstrap's estimate of the matrix of errors. It has no bias that
    stays as data grow, and so favours candidates of small windows; with a reference, `b b^T` is added to it, b being
    the distances from the reference less what chance explains (`select_by_error`). That is ours; so may be the simplex,
    as the paper's abstract alone was at hand.

    Args:
        candidates: see there.
        reference: index of a candidate that has little bias, or None for no bias.
        level: of confidence, or None.

    Returns:
        A `Selection`; `errors` are the diagonal of A.

    Raises:
        ValueError: as in `select_by_error`.

    Reference: Nie, Chandak, Yuan, Badrinath, Flet-Berliac and Brunskill, "OPERA: Automatic Offline Policy Evaluation
    with Re-weighted Aggregates of Multiple Estimators", arXiv 2405.17708.
    """
    with float64(candidates):
        candidates, usable = _checked(candidates, level, reference)
        centred = candidates.replicates - candidates.values
        matrix = jnp.sum(centred[:, :, None] * centred[:, None, :], axis=0) / len(centred)
        if reference is not None:
            bias = _bias(candidates, reference)
            matrix += bias[:, None] * bias
        errors = jnp.where(usable, jnp.diagonal(matrix), jnp.inf)
        # those that are out are as bad as can be, and their weights, next to nothing, are taken away
        worst = 1e6 * jnp.max(jnp.where(usable, errors, 0.0))
        both = usable[:, None] & usable
        matrix = jnp.where(both, matrix, jnp.where(jnp.eye(len(usable), dtype=bool), worst, 0.0))
        weights = jnp.where(usable, _minimise(matrix), 0.0)
        return _selection(candidates, weights / jnp.sum(weights), errors, level)


def _checked(candidates: Candidates, level: float | None, reference: int | None = None) -> tuple[Candidates, Array]:
    """Candidates in float64, with zeros for those that are out, and which ones are in."""
    check_level(level, "two")
    values, replicates = (jnp.asarray(x, jnp.float64) for x in candidates)
    if values.ndim != 1 or replicates.ndim != 2 or replicates.shape[1:] != values.shape or len(replicates) < 2:
        raise ValueError(
            f"values {values.shape} and replicates {replicates.shape} must be [m] and [B, m], with B at least 2."
        )
    if reference is not None and not 0 <= reference < len(values):
        raise ValueError(f"reference must be in [0, {len(values)}), got {reference}.")
    usable = jnp.isfinite(values) & jnp.all(jnp.isfinite(replicates), axis=0)
    if is_concrete(usable):
        if not bool(jnp.any(usable)):
            raise ValueError(
                "no candidate is finite on all resamples; give `star` a smoothing, or coarser abstractions."
            )
        if reference is not None and not bool(usable[reference]):
            raise ValueError(
                f"the reference, candidate {reference}, is not finite on all resamples; choose another one."
            )
    return Candidates(jnp.where(usable, values, 0.0), jnp.where(usable, replicates, 0.0)), usable


def _bias(candidates: Candidates, reference: int) -> Array:
    """Distances from the reference, with what chance explains of their squares taken off; `float64[m]`."""
    distance = candidates.values - candidates.values[reference]
    chance = jnp.var(candidates.replicates - candidates.replicates[:, [reference]], axis=0, ddof=1)
    excess = jnp.square(distance) - chance
    return jnp.sign(distance) * jnp.sqrt(jnp.maximum(excess, 0.0))


def _selection(candidates: Candidates, weights: Array, errors: Array, level: float | None) -> Selection:
    replicates = jnp.sum(weights * candidates.replicates, axis=1)
    lower = upper = None
    if level is not None:
        lower, upper = jnp.quantile(replicates, jnp.array([0.5 * (1.0 - level), 0.5 * (1.0 + level)]))
    value = jnp.sum(weights * candidates.values)
    index = jnp.argmax(weights).astype(jnp.int32)
    return Selection(index, weights, errors, value, jnp.std(replicates, ddof=1), lower, upper)


@functools.partial(jax.jit, static_argnames=("windows", "form", "resamples", "size"))
def _candidates(
    inputs: Inputs, key: Array, *, windows: tuple[int | None, ...], form: Form, resamples: int, size: int | None
) -> Candidates:
    counts, weights = inputs.steps.counts, grid_weights(inputs, windows, form)
    # one resample at a time: the grid is work enough for one batch
    values = sequential_vmap(lambda counts, inputs, weights: grid_values(counts, inputs, weights, form).ravel())
    replicates = bootstrap_replicates(
        key, lambda resampled: values(resampled, inputs, weights), counts, resamples=resamples, size=size
    )
    return Candidates(grid_values(counts, inputs, weights, form).ravel(), replicates)
