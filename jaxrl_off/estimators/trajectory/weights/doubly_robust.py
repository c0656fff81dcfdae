"""Estimators on trajectories that correct a fitted action-value function: direct, doubly robust, and their mixtures.

Symbols as in `importance`; `q_t = Q(s_t, a_t)` and `v_t = sum_a pi_e(a|s_t) Q(s_t, a)` of an action-value function of the
target policy; `u_{i,t} = c_i w_t / sum_j c_j w_t` the weights made to sum to 1, `w_{-1} = 1`; a trajectory has L steps.

| function | estimate |
|---|---|
| `direct_method` | `mean_i v_0` |
| `doubly_robust` | `mean_i sum_t gamma^t [w_t (r_t - q_t) + w_{t-1} v_t]` (Jiang and Li, ICML 2016) |
| `weighted_doubly_robust` | `sum_t gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t]` (Thomas and Brunskill, ICML 2016) |
| `magic.magic` | a mixture of partial importance sampling returns, from the direct method to the weighted doubly robust one |
| `double_reinforcement_learning` | the doubly robust form with marginal ratios in place of w (Kallus and Uehara, JMLR 2020) |

Q = 0 makes them per-decision importance sampling and its weighted kin. If Q was fitted to the same trajectories, the error of
that fit is not in the standard errors: use `cross_fitted` to fit it to the others.

**What is estimated where a trajectory was cut.** After a step that terminated, v and q are 0. After any other last step, a
truncation or the end of the horizon, there are two quantities to estimate, chosen by `horizon_exit`, which has the same meaning
in every estimator and fit:

* `horizon_exit=True` (default): returns within the horizon. Nothing follows a cut, v_L = 0.
* `horizon_exit=False`: the process goes on. The return is bootstrapped through the cut, v_L = `final`, the value of what
  followed the last step (`ActionValues.final` of a fit), so that the sums have one more term, `gamma^L w_{L-1} v_L`. Where
  `final` is not known, the last step is left out, reward and all, as the fits leave it out, and the return is bootstrapped
  from v_{L-1}.

Fit Q with the same `horizon_exit`. Otherwise Q and the correction estimate different quantities; the diagnostics
`correction` and `correction_z` show that, as they show any other error of Q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import check_range, float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory import bounds
from jaxrl_off.estimators.trajectory.bounds import Known, Limits
from jaxrl_off.estimators.trajectory.statistics import resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, check_weights, column_of, held, log_weights, steps_of
from jaxrl_off.estimators.trajectory.weights import forms
from jaxrl_off.estimators.trajectory.weights.corrections import Corrected, corrected_columns, estimate_corrected
from jaxrl_off.types import Estimate, Trajectories


@named_options
def direct_method(
    trajectories: Trajectories,
    v: Any,
    *,
    horizon_exit: bool = True,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The mean value of the first states, `mean_i v_0`; as biased as Q.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        v: `float[n, T]`, v_t; padding is ignored.
        horizon_exit: what v was fitted with; the diagnostics report it as the quantity that is estimated. See the module.
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` whose standard error is that of the initial states alone.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    with float64(trajectories, v, counts):
        steps = steps_of(trajectories, None, counts=counts, horizon_exit=horizon_exit)
        v = column_of("v", v, steps)
        columns = Corrected(steps, log_weights(steps), jnp.zeros_like(v), v)
        return estimate_corrected(
            columns, form=forms.FIRST_VALUE, settings=settings, size=resample_size(counts, drawn=settings.drawn)
        )


@named_options
def doubly_robust(
    trajectories: Trajectories,
    target_log_prob: Any,
    q: Any,
    v: Any,
    *,
    final: Any = None,
    horizon_exit: bool = True,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    value_range: Sequence[float] | None = None,
    weight_max: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    ordered: bool = False,
    floor: float = 10.0,
) -> Estimate:
    """The doubly robust estimate, unbiased for every Q that was not fitted to the same data.

    `mean_i sum_t gamma^t [w_t (r_t - q_t) + w_{t-1} v_t]`, and with `horizon_exit=False` the term `gamma^L w_{L-1} v_L` of
    trajectories that were cut; see the module.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so. Padding is ignored.
        q: `float[n, T]`, q_t; padding is ignored.
        v: `float[n, T]`, v_t; likewise.
        final: `float[n]`, v_L, the value of what followed the last step; looked at where that step did not terminate. Only with
            `horizon_exit=False`; None where it is not known, so that the last step is left out.
        horizon_exit: True for returns within the horizon; False if the process goes on where trajectories were cut.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound. With window or clip the correction is biased, but varies less.
        value_range: (low, high) of what can still come from any step on, in which also q_t, v_t and `r_t + gamma v_{t+1}` lie;
            for intervals of `bounds`. Terms are then within (high - low) `sum_t gamma^t W_t` of it, W_t the largest w_t.
        weight_max: the largest that a w_t can be, `[]` or `[T]`; for the same.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap", "bca", or with `value_range` one of `bounds`.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap, and of the order in which "betting" reads trajectories.
        ordered: whether the order of trajectories is time, and "betting" shall read them so.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Diagnostics also `correction`, by how much the data change `mean_i v_0`, and `correction_z`, in standard
        errors: far from 0 if Q is wrong, or is that of another `horizon_exit`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor, bounded=True)
    check_weights(window, clip)
    known = Known("value_range", value_range, weight_max, None)
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
        errors = None
        if value_range is not None:
            # errors of Q, which weights multiply, may have either sign
            low, high = check_range("value_range", value_range)
            errors = (low - high, high - low)
        bounds.check_known(known._replace(range=errors), clip, settings, counts)
        limits = None if value_range is None else _limits(steps, columns, known, discount, window, clip)
        if limits is not None:
            limits = limits._replace(order=bounds.reading_order(interval, steps.counts, seed, ordered))
        size = resample_size(counts, drawn=settings.drawn)
        return estimate_corrected(columns, limits, form=forms.CORRECTED, settings=settings, size=size)


@named_options
def weighted_doubly_robust(
    trajectories: Trajectories,
    target_log_prob: Any,
    q: Any,
    v: Any,
    *,
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
    """The doubly robust estimate with weights that sum to 1: consistent, of less variance than `doubly_robust`.

    `sum_t gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t]`, and with `horizon_exit=False` the terms `gamma^L u_{L-1} v_L`.

    Args:
        trajectories: as in `doubly_robust`.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t).
        q: `float[n, T]`, q_t.
        v: `float[n, T]`, v_t.
        final: `float[n]`, v_L; as in `doubly_robust`.
        horizon_exit: True for returns within the horizon; False if the process goes on where trajectories were cut.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`; diagnostics as in `doubly_robust`.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    check_weights(window, clip)
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
        size = resample_size(counts, drawn=settings.drawn)
        return estimate_corrected(columns, form=forms.WEIGHTED_CORRECTED, settings=settings, size=size)


@named_options
def double_reinforcement_learning(
    trajectories: Trajectories,
    marginal_ratio: Any,
    q: Any,
    v: Any,
    *,
    final: Any = None,
    horizon_exit: bool = True,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The doubly robust form with marginal ratios, `mean_i sum_t gamma^t [mu_t (r_t - q_t) + mu_{t-1} v_t]`.

    `mu_t = d_t^e(s_t, a_t) / d_t^b(s_t, a_t)`, `mu_{-1} = 1`; with `horizon_exit=False` also `gamma^L mu_{L-1} v_L`. Efficient
    in Markov decision processes; right if either mu or Q is. Fit both with `cross_fitted`.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        marginal_ratio: `float[n, T]`, mu_t, not negative.
        q: `float[n, T]`, q_t.
        v: `float[n, T]`, v_t.
        final: `float[n]`, v_L; as in `doubly_robust`.
        horizon_exit: True for returns within the horizon; False if the process goes on where trajectories were cut.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`; diagnostics as in `doubly_robust`.

    Raises:
        ValueError: if the data or settings are invalid.

    Reference: Kallus and Uehara, "Double Reinforcement Learning for Efficient Off-Policy Evaluation in Markov Decision
    Processes", JMLR 2020, equation 9.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    with float64(trajectories, marginal_ratio, q, v, final, counts):
        steps = steps_of(trajectories, None, discount=discount, counts=counts, horizon_exit=horizon_exit)
        ratios = column_of("marginal_ratio", marginal_ratio, steps)
        if is_concrete(ratios) and bool(jnp.any(ratios < 0)):
            raise ValueError("marginal_ratio must not be negative: it is a ratio of probabilities.")
        columns = corrected_columns(
            steps, held(jnp.log(ratios), steps.mask), q, v, final, horizon_exit=horizon_exit, discount=discount
        )
        size = resample_size(counts, drawn=settings.drawn)
        return estimate_corrected(columns, form=forms.CORRECTED, settings=settings, size=size)


def cross_fitted(fit: Callable[[Any], Any], counts: Any, *, folds: int = 2, seed: int = 0) -> Any:
    """Predictions for every trajectory from a fit to the others.

    Args:
        fit: `counts [n] -> pytree of [n, ...]`: fits to trajectories with these multiplicities, predicts for all. Called once a
            fold with the counts of that fold's trajectories set to 0.
        counts: `float[n]`; ones where there is no padding.
        folds: into how many parts trajectories are put at random, 2 or more.
        seed: of that.

    Returns:
        The pytree, each row from the fit that did not see it.

    Raises:
        ValueError: if folds are fewer than 2 or more than trajectories.
    """
    counts = np.asarray(counts, np.float64)
    if not 2 <= folds <= len(counts):
        raise ValueError(f"folds must be between 2 and the number of trajectories, {len(counts)}, got {folds}.")
    member = np.random.default_rng(seed).permutation(np.arange(len(counts)) % folds)
    made = [fit(np.where(member == fold, 0.0, counts)) for fold in range(folds)]
    with jax.enable_x64(True):  # leaves are of either precision, and stay so
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[member, np.arange(len(counts))], *made)


def _limits(steps: Steps, columns: Corrected, known: Known, discount: Any, window: int | None, clip: Any) -> Limits:
    """Ranges of doubly robust terms, `v_0 + sum_t gamma^t w_t (r_t + gamma v_{t+1} - q_t)`, and of the value."""
    assert known.range is not None
    low, high = known.range
    horizon = steps.mask.shape[1]
    following = jnp.pad(columns.v[:, 1:], [(0, 0), (0, 1)])[:, :horizon]
    q, v = columns.q[:, :horizon], columns.v[:, :horizon]
    for column in (q, v, steps.rewards + discount * following):
        bounds.check_within(known, column, steps.mask)
    largest = bounds.largest_weights(log_weights(steps, window=window), steps.mask, known.weight_max, window, clip)
    errors = bounds.discounted(steps.discounts, bounds.product((low - high, high - low), largest))
    terms = (low + errors[0], high + errors[1])
    return Limits(terms, (low, high) if window is None and clip is None else terms)
