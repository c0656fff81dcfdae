"""Estimators on trajectories that correct a fitted action-value function: direct, doubly robust, and their mixtures.

Symbols as in `weighted`; `q_t = Q(s_t, a_t)` and `v_t = sum_a pi_e(a|s_t) Q(s_t, a)` of an action-value function of the target
policy, 0 after a trajectory's end; `u_{i,t} = c_i w_t / sum_j c_j w_t` the weights made to sum to 1, `w_{-1} = 1`.

| function | estimate |
|---|---|
| `direct_method` | `mean_i v_0` |
| `doubly_robust` | `mean_i sum_t gamma^t [w_t (r_t - q_t) + w_{t-1} v_t]` (Jiang and Li, ICML 2016) |
| `weighted_doubly_robust` | `sum_t gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t]` (Thomas and Brunskill, ICML 2016) |
| `magic` | a mixture of partial importance sampling returns, from the direct method to the weighted doubly robust one |
| `double_reinforcement_learning` | the doubly robust form with marginal ratios in place of w (Kallus and Uehara, JMLR 2020) |

Q = 0 makes them per-decision importance sampling and its weighted kin. If Q was fitted to the same trajectories, what is fitted
is not in the standard errors: use `cross_fitted` to fit it to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import check_range, float64, is_concrete
from jaxrl_off.estimators.trajectory import bounds
from jaxrl_off.estimators.trajectory.bounds import Known, Limits
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic, resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, check_weights, column_of, held, log_weights, steps_of
from jaxrl_off.estimators.trajectory.weights import forms as means
from jaxrl_off.ops.intervals import percentile_interval
from jaxrl_off.ops.simplex import minimise_quadratic
from jaxrl_off.types import Array, Estimate, Trajectories

_COVERAGE = 0.9  # of the bootstrap interval that MAGIC takes for the truth; COBS has the same


def direct_method(trajectories: Trajectories, v: Any, **keywords: Any) -> Estimate:
    """`mean_i v_0`; as biased as Q.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        v: `float[n, T]`, v_t; what stands in the padding is ignored.
        **keywords: as in `weighted.pdis`, but for `window` and `clip`.

    Returns:
        An `Estimate` whose standard error is that of the initial states alone.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    return _estimate(means.FIRST_VALUE, trajectories, None, np.zeros(jnp.shape(v)), v, **keywords)


def doubly_robust(
    trajectories: Trajectories,
    target_log_prob: Any,
    q: Any,
    v: Any,
    *,
    value_range: Sequence[float] | None = None,
    weight_max: Any = None,
    **keywords: Any,
) -> Estimate:
    """`mean_i sum_t gamma^t [w_t (r_t - q_t) + w_{t-1} v_t]`: unbiased for every Q that was not fitted to the same data.

    Args:
        trajectories: as in `weighted.pdis`.
        target_log_prob: as there.
        q: `float[n, T]`, q_t; what stands in the padding is ignored.
        v: `float[n, T]`, v_t.
        value_range: (low, high) of what can still come from any step on, in which also q_t, v_t and `r_t + gamma v_{t+1}` lie;
            for intervals of `bounds`. Terms are then within (high - low) `sum_t gamma^t W_t` of it, W_t the largest w_t.
        weight_max: the largest that a w_t can be, `[]` or `[T]`; for the same.
        **keywords: as there.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    known = Known("value_range", value_range, weight_max, None)
    return _estimate(means.CORRECTED, trajectories, target_log_prob, q, v, known=known, **keywords)


def weighted_doubly_robust(
    trajectories: Trajectories, target_log_prob: Any, q: Any, v: Any, **keywords: Any
) -> Estimate:
    """`sum_t gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t]`: consistent, of less variance than `doubly_robust`.

    Args, Returns and Raises: as `doubly_robust`.
    """
    return _estimate(means.WEIGHTED_CORRECTED, trajectories, target_log_prob, q, v, **keywords)


def magic(
    trajectories: Trajectories, target_log_prob: Any, q: Any, v: Any, *, lengths: int = 25, **keywords: Any
) -> Estimate:
    """MAGIC: `x . g`, with the x on the simplex that minimises an estimate of the mean squared error, `x^T (Omega + b b^T) x`.

    `g_j = sum_{t <= j} gamma^t sum_i [u_t (r_t - q_t) + u_{t-1} v_t] + gamma^(j+1) sum_i u_j v_{j+1}` corrects the first j + 1
    steps, from `g_{-1}`, the direct method, to `g_{T-1}`, the weighted doubly robust one. Omega is the covariance of the g_j,
    from trajectories' contributions; b_j the distance of g_j from the 90 % percentile interval of `g_{T-1}`.

    x is found from the data once, and the standard error is that of the mixture as it is: next to nothing where x trusts
    the direct method, however wrong Q may be. What the data say against Q they say by `g_{T-1}` alone. So the interval is
    that of `weighted_doubly_robust`, stretched to the value where this is outside: it covers no less often. The paper has
    none. COBS, which the STAR paper's baselines come from, has the elementwise square of b in the place of the outer
    product, and a covariance that lacks a factor of n; neither is followed.

    Args:
        trajectories: as in `doubly_robust`.
        target_log_prob: as there.
        q: as there.
        v: as there.
        lengths: how many of the g_j are mixed, the first and the last among them, at even distances; COBS has 25.
        **keywords: as there; `resamples` and `seed` are used for b, too.

    Returns:
        An `Estimate`; diagnostics also `direct_share` and `corrected_share`, x of the first and the last.

    Raises:
        ValueError: for data or settings that cannot be meant.

    Reference: Thomas and Brunskill, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning", ICML 2016.
    """
    if lengths < 2:
        raise ValueError(f"lengths must be at least 2, the direct method and the corrected one, got {lengths}.")
    horizon = jnp.shape(trajectories.rewards)[-1]
    mixed = np.unique(np.round(np.linspace(0, horizon, min(lengths, horizon + 1))).astype(int))
    return _estimate(
        means.WEIGHTED_CORRECTED, trajectories, target_log_prob, q, v, mixed=tuple(map(int, mixed)), **keywords
    )


def double_reinforcement_learning(
    trajectories: Trajectories,
    marginal_ratio: Any,
    q: Any,
    v: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    **settings: Any,
) -> Estimate:
    """`mean_i sum_t gamma^t [mu_t (r_t - q_t) + mu_{t-1} v_t]`, `mu_t = d_t^e(s_t, a_t) / d_t^b(s_t, a_t)`, `mu_{-1} = 1`.

    Efficient in Markov decision processes; right if either mu or Q is. Fit both with `cross_fitted`.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        marginal_ratio: `float[n, T]`, mu_t, not negative.
        q: `float[n, T]`.
        v: `float[n, T]`.
        discount: gamma.
        counts: `float[n]` or None.
        **settings: `level` and the further ones of `weighted.pdis`.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: for data or settings that cannot be meant.

    Reference: Kallus and Uehara, "Double Reinforcement Learning for Efficient Off-Policy Evaluation in Markov Decision
    Processes", JMLR 2020, equation 9.
    """
    checked = settings_of(**settings)
    with float64(trajectories, marginal_ratio, counts):
        steps = steps_of(trajectories, None, discount=discount, counts=counts)
        ratios, q, v = (
            column_of(name, x, steps) for name, x in (("marginal_ratio", marginal_ratio), ("q", q), ("v", v))
        )
        if is_concrete(ratios) and bool(jnp.any(ratios < 0)):
            raise ValueError("marginal_ratio must not be negative: it is a ratio of probabilities.")
        log_weight = held(jnp.log(ratios), steps.mask)
        size = resample_size(counts, drawn=checked.drawn)
        return _run(steps, log_weight, q, v, form=means.CORRECTED, mixed=(), settings=checked, size=size)


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


def _partial_returns(steps: Steps, log_weight: Array, q: Array, v: Array) -> Callable[[Array], Array]:
    """`counts -> g [T + 1]`, of which entry j + 1 is g_j."""
    mean = means.means_of(means.WEIGHTED_CORRECTED, steps, log_weight, q, v)

    def returns(counts: Array) -> Array:
        corrected, following = means.corrected_parts(mean(counts), steps.discounts)
        zero = jnp.zeros(1)
        return jnp.concatenate([zero, jnp.cumsum(corrected)]) + jnp.concatenate([following, zero])

    return returns


def _mixture(
    steps: Steps, log_weight: Array, q: Array, v: Array, mixed: tuple[int, ...], settings: Settings, size: int | None
) -> Array:
    """x of MAGIC."""
    returns = _partial_returns(steps, log_weight, q, v)
    counts, places = steps.counts, jnp.asarray(mixed)
    total = jnp.sum(counts)
    found = returns(counts)[places]
    influence = total * jax.jacrev(lambda c: returns(c)[places])(counts)
    centred = (influence - (influence @ counts / total)[:, None]) * jnp.sqrt(counts)
    covariance = centred @ centred.T / (total * jnp.maximum(total - 1.0, 1.0))
    last = means.statistic_of(means.WEIGHTED_CORRECTED, steps, log_weight, q, v)
    interval = percentile_interval(
        jax.random.key(settings.seed), last, counts, resamples=settings.resamples, size=size, level=_COVERAGE
    )
    bias = found - jnp.clip(found, interval.lower, interval.upper)
    return jax.lax.stop_gradient(minimise_quadratic(covariance + jnp.outer(bias, bias)))


def _magic(
    steps: Steps, log_weight: Array, q: Array, v: Array, mixed: tuple[int, ...], x: Array
) -> Callable[[Array], Array]:
    returns = _partial_returns(steps, log_weight, q, v)
    return lambda counts: jnp.sum(x * returns(counts)[jnp.asarray(mixed)])


def _limits(steps: Steps, q: Array, v: Array, known: Known, window: int | None, clip: Any) -> Limits:
    """Ranges of doubly robust terms, `v_0 + sum_t gamma^t w_t (r_t + gamma v_{t+1} - q_t)`, and of the value."""
    low, high = known.range
    gamma = steps.discounts[1] / steps.discounts[0] if len(steps.discounts) > 1 else 1.0
    for column in (q, v, steps.rewards + gamma * jnp.pad(v[:, 1:], [(0, 0), (0, 1)])):
        bounds.check_within(known, column, steps.mask)
    largest = bounds.largest_weights(log_weights(steps, window=window), steps.mask, known.weight_max, window, clip)
    errors = bounds.discounted(steps.discounts, bounds.product((low - high, high - low), largest))
    terms = (low + errors[0], high + errors[1])
    return Limits(terms, (low, high) if window is None and clip is None else terms)


def _estimate(
    form: means.Form,
    trajectories: Trajectories,
    target_log_prob: Any,
    q: Any,
    v: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    window: int | None = None,
    clip: float | None = None,
    mixed: tuple[int, ...] = (),
    known: Known | None = None,
    **settings: Any,
) -> Estimate:
    checked = settings_of(bounded=known is not None, **settings)
    check_weights(window, clip)
    limits = None
    with float64(trajectories, target_log_prob, counts):
        steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
        q, v = column_of("q", q, steps), column_of("v", v, steps)
        if known is not None:
            errors = None
            if known.range is not None:
                # errors of Q, which weights multiply, may have either sign
                low, high = check_range(known.name, known.range)
                errors = (low - high, high - low)
            bounds.check_known(known._replace(range=errors), clip, checked, counts)
            limits = None if known.range is None else _limits(steps, q, v, known, window, clip)
        log_weight = log_weights(steps, window=window, clip=clip)
        size = resample_size(counts, drawn=checked.drawn or bool(mixed))
        return _run(steps, log_weight, q, v, limits, form=form, mixed=mixed, settings=checked, size=size)


@functools.partial(jax.jit, static_argnames=("form", "mixed", "settings", "size"))
def _run(
    steps: Steps,
    log_weight: Array,
    q: Array,
    v: Array,
    limits: Limits | None = None,
    *,
    form: means.Form,
    mixed: tuple[int, ...],
    settings: Settings,
    size: int | None,
) -> Estimate:
    statistic = means.statistic_of(form, steps, log_weight, q, v)
    estimate = estimate_statistic(statistic, steps, log_weight[:, -1], settings, size=size, limits=limits)
    if not mixed:
        return estimate
    x = _mixture(steps, log_weight, q, v, mixed, settings, size)
    found = {"direct_share": x[0], "corrected_share": x[-1]}
    statistic, alone = _magic(steps, log_weight, q, v, mixed, x), settings._replace(level=None)
    mixture = estimate_statistic(statistic, steps, log_weight[:, -1], alone, diagnostics=found)
    if settings.level is None:
        return mixture
    known = jnp.isfinite(mixture.value)
    lower = jnp.where(known, jnp.minimum(estimate.lower, mixture.value), -jnp.inf)
    upper = jnp.where(known, jnp.maximum(estimate.upper, mixture.value), jnp.inf)
    return mixture._replace(lower=lower, upper=upper)
