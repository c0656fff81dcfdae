"""STAR: the value of a policy from an abstract reward process, a small Markov reward process fitted to weighted data.

An abstraction phi puts every state into one of |Z| cells, `z_t = phi(s_t)` (see `abstractions`). With `g_t = gamma^t`,
w_t the product of the c most recent ratios `pi_e(a|s) / pi_b(a|s)` up to step t (c = 0: none, so 1; None: all), and
sums over all steps that were made, of trajectories that count c_i times, the process is

    N(z)     = sum c_i g_t w_t 1[z_t = z]
    P(z, z') = sum c_i g_t w_t 1[z_t = z, z_{t+1} = z'] / N(z)      R(z) = sum c_i g_t w_t r_t 1[z_t = z] / N(z)
    eta(z)   = sum c_i 1[z_0 = z] / sum c_i                          exit(z) = 1 - sum_{z'} P(z, z')

and the value `eta^T (I - gamma P)^{-1} R`. A cell without weight has rows of 0. With c = None it is consistent for
*every* phi: the discounted visits d of the target policy obey `d = eta + gamma P^T d`, whether or not cells are Markov.
With a finite c it is where phi keeps what the future depends on; c and phi trade bias for variance. Known estimators
are settings of `star`:

| setting | what comes out |
|---|---|
| ratios of 1, or window=0 | the mean return, for every phi |
| window of the horizon or more | window=None |
| normalisation="horizvitz_thompson", window=None | per-decision importance sampling, for every phi |
| phi = t, trajectories padded to the horizon by steps without reward, window=None | `cwpdis` |
| the same, discount=1, all reward on the last step | `wis`; with "horvitz_thompson" `trajectory_is` |
| one cell, window=None, discount=1 | `pdis` divided by the mean of the final weights |
| phi = s, window=1, discounted_counts=False, estimated behaviour policy | tabular model, fitted Q evaluation, DICE |
| phi = (s, t), window=1, "horvitz_thompson" | marginalised importance sampling (Xie, Ma and Wang 2019) |

Reference: Chaudhari, Deshpande, da Silva and Thomas, "Abstract Reward Processes: Leveraging State Abstraction for
Consistent Off-Policy Evaluation", NeurIPS 2024, arXiv 2410.02172. Its body was not at hand: the formulas were derived
anew from the authors' code and are tested against an independent implementation. Where this departs from the code:

* A step that ends a trajectory leaves the process (`termination="joint"`). The code clusters the absorbing state, too,
  and has `P (1 - exit)` in the place of P ("factored"), not consistent unless leaving and z' are independent.
* A step at which a trajectory was cut leaves the process, too, unless `horizon_exit=False`, which the code has.
* Counts are discounted, without which consistency for every phi is lost; the code has plain ones, for discounts of 1.
* window=0 is no correction; the code takes it for the full product.
* Weights are compared within a cell alone, so that each cell has its own factor, which makes its largest weight 1: long
  horizons neither overflow nor empty the cells of small weights. The code's quotients of cumulative products are 0 / 0
  after a ratio of 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.custom_batching import sequential_vmap

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.reward_processes.process import (
    AbstractRewardProcess,
    Form,
    Given,
    Inputs,
    Weights,
    diagnostics_of,
    grid_values,
    grid_weights,
    inputs_of,
    log_weights_of,
    process_of,
    value_of,
    weights_of,
)
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic, resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import check_weights, log_weights
from jaxrl_off.types import Array, Estimate, Trajectories


@named_options
def star(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    *,
    window: int | None = None,
    clip: float | None = None,
    horizon_exit: bool = True,
    final_states: Any = None,
    discounted_counts: bool = True,
    normalisation: str = "self",
    termination: str = "joint",
    smoothing: float = 0.0,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The value `eta^T (I - gamma P)^{-1} R` of an abstract reward process; see the module.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so.
        states: `int32[n, T]`, z_t in [0, num_states); padding is ignored. phi must not have been chosen by the
            rewards of the same trajectories, or errors and intervals are too small.
        num_states: |Z|.
        window: c, product of that many most recent ratios; 0 for none, None for all.
        clip: largest ratio of a step; None for no bound.
        horizon_exit: whether the process is left where trajectories were cut: returns within the horizon. With False it goes on
            there, in `final_states`.
        final_states: `int32[n]`, the cells of what followed the last steps; needed with `horizon_exit=False` and with
            "factored", and refused otherwise.
        discounted_counts: whether gamma^t is in the counts.
        normalisation: "self", or "horvitz_thompson", where N has the weights without the ratio of step t and rows of P may sum
            to more than 1.
        termination: "joint" or "factored"; see the module.
        smoothing: alpha: a cell of m steps is given alpha more that leave, so that P is multiplied by `m / (m + alpha)`, of use
            where no step that was seen leaves.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`, NaN (and `finite` 0) where discount is 1 and the process gains reward forever. Further
        diagnostics: `condition`, the reciprocal condition number of I - gamma P in the 1-norm (0: singular);
        `visited_states`, cells with weight; `smallest_visit`, effective steps (Kish) of the one that has the fewest;
        `exit_zero`, how many cells the process gets into and never leaves; `unsupported_mass`, the discounted chance of
        getting into a cell without weight.

    Raises:
        ValueError: if the data or settings are invalid.

    Example:
        >>> import numpy as np
        >>> from jaxrl_off.types import Trajectories
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> round(float(star(data, np.log([[0.8, 0.25]]), np.array([[0, 1]]), 2, discount=0.5).value), 12)
        1.5
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    given = Given(states, final_states, discount, counts, clip, smoothing)
    with float64(trajectories, target_log_prob, given):
        inputs = inputs_of(trajectories, target_log_prob, given, form)
        size = resample_size(counts, drawn=settings.drawn)
        return _run(inputs, window=checked_windows([window])[0], form=form, settings=settings, size=size)


@named_options
def abstract_reward_process(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    *,
    window: int | None = None,
    clip: float | None = None,
    horizon_exit: bool = True,
    final_states: Any = None,
    discounted_counts: bool = True,
    normalisation: str = "self",
    termination: str = "joint",
    smoothing: float = 0.0,
    discount: float = 1.0,
    counts: Any = None,
) -> AbstractRewardProcess:
    """The process whose value `star` gives, for inspection.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t).
        states: `int32[n, T]`, z_t.
        num_states: |Z|.
        window: c, product of that many most recent ratios; 0 for none, None for all.
        clip: largest ratio of a step; None for no bound.
        horizon_exit: whether the process is left where trajectories were cut: returns within the horizon. With False it goes on
            there, in `final_states`.
        final_states: `int32[n]`, the cells of what followed the last steps; needed with `horizon_exit=False` and with
            "factored", and refused otherwise.
        discounted_counts: whether gamma^t is in the counts.
        normalisation: "self", or "horvitz_thompson", where N has the weights without the ratio of step t and rows of P may sum
            to more than 1.
        termination: "joint" or "factored"; see the module.
        smoothing: alpha: a cell of m steps is given alpha more that leave, so that P is multiplied by `m / (m + alpha)`, of use
            where no step that was seen leaves.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.

    Returns:
        An `AbstractRewardProcess`. With "factored", `transition` is `(1 - exit) P`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    given = Given(states, final_states, discount, counts, clip, smoothing)
    with float64(trajectories, target_log_prob, given):
        inputs = inputs_of(trajectories, target_log_prob, given, form)
        return _run_process(inputs, window=checked_windows([window])[0], form=form)


@named_options
def star_values(
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
) -> Array:
    """Values alone, of a grid of abstractions and windows in one compiled program; `jax.vmap` it over data sets.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t).
        states: `int32[k, n, T]`, of k abstractions.
        num_states: the largest |Z| of them; cells beyond an abstraction's own are empty.
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
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.

    Returns:
        `float64[k, len(windows)]`; infinite where discount is 1 and the process gains reward forever.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    given = Given(states, final_states, discount, counts, clip, smoothing)
    with float64(trajectories, target_log_prob, given):
        inputs = inputs_of(trajectories, target_log_prob, given, form, grid=True)
        return _run_grid(inputs, windows=checked_windows(windows), form=form)


def checked_windows(windows: Sequence[int | None]) -> tuple[int | None, ...]:
    """Windows as a tuple.

    Raises:
        ValueError: for none, or negative ones.
    """
    if not windows:
        raise ValueError("windows must hold at least one window, such as (1, 2, None).")
    for window in windows:
        check_weights(window, None)
    return tuple(windows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _one_at_a_time(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """`value_of`; under `jax.vmap` over resamples it takes memory for one, and on a CPU a third of the time."""
    return sequential_vmap(lambda *arguments: value_of(*arguments, form))(counts, inputs, weights)


@_one_at_a_time.defjvp
def _derivative(form: Form, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    return jax.jvp(lambda *arguments: value_of(*arguments, form), primals, tangents)


@functools.partial(jax.jit, static_argnames=("window", "form", "settings", "size"))
def _run(inputs: Inputs, *, window: int | None, form: Form, settings: Settings, size: int | None) -> Estimate:
    weights = weights_of(inputs, *log_weights_of(inputs, window, form), form)
    final = log_weights(inputs.steps, window=window, clip=inputs.clip)[:, -1]

    def statistic(counts: Array) -> Array:
        return _one_at_a_time(counts, inputs, weights, form)

    found = diagnostics_of(inputs, weights, form)
    return estimate_statistic(statistic, inputs.steps, final, settings, diagnostics=found, size=size)


@functools.partial(jax.jit, static_argnames=("window", "form"))
def _run_process(inputs: Inputs, *, window: int | None, form: Form) -> AbstractRewardProcess:
    weights = weights_of(inputs, *log_weights_of(inputs, window, form), form)
    return process_of(inputs.steps.counts, inputs, weights, form)


@functools.partial(jax.jit, static_argnames=("windows", "form"))
def _run_grid(inputs: Inputs, *, windows: tuple[int | None, ...], form: Form) -> Array:
    return grid_values(inputs.steps.counts, inputs, grid_weights(inputs, windows, form), form)
