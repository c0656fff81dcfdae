"""Empirical likelihood for contextual bandits: the value of a policy, and an interval for it, from logged decisions.

Logged are rewards r and importance weights `w = pi(a|x) / h(a|x)`; known are the ranges of both and that `E[w] = 1`. The
estimate is `V = E_Q[w r]` under the law Q that fits best among those; the interval holds the values of all Q that fit
nearly as well.

    Q = argmax sum_i c_i log Q_i   such that   sum Q = 1,  sum Q w = 1
    [lower, upper] = range of E_Q[w r] over the Q whose log-likelihood is within Delta of the best

Reference: Karampatziakis, Langford and Mineiro, "Empirical Likelihood for Contextual Bandits", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.bandit import common, empirical_core
from jaxrl_off.estimators.common import check_level, check_range, is_concrete
from jaxrl_off.types import Array, Estimate

CALIBRATIONS = ("f", "chi2", "finite_sample")


class ControlVariates(NamedTuple):
    """Columns whose mean is known to be 0.

    Attributes:
        values: `float[n, k]`, tau.
        corners: `float[J, 1 + k]`, (w, tau) at the corners of their joint support.
    """

    values: Array
    corners: Array


def action_control_variates(weights: Any, target_actions: Any, num_actions: int, weight_range: Any) -> ControlVariates:
    """`tau_a = (w - 1) 1{pi(x) = a}` for a deterministic target policy, one column an action; their mean is 0.

    Args:
        weights: `float[n]`.
        target_actions: `int[n]`, pi(x).
        num_actions: K.
        weight_range: (low, high) of the weights, finite.
    """
    low, high = common.check_weight_range(weight_range)
    with jax.enable_x64(True):
        weights = jnp.asarray(weights, jnp.float64)
        values = (weights - 1.0)[:, None] * jax.nn.one_hot(target_actions, num_actions, dtype=jnp.float64)
        corners = [
            jnp.concatenate([jnp.full((num_actions, 1), w), (w - 1.0) * jnp.eye(num_actions)], axis=1)
            for w in (low, high)
        ]
        return ControlVariates(values, jnp.concatenate(corners).astype(jnp.float64))


def predictor_control_variates(
    weights: Any, predicted: Any, predicted_target: Any, weight_range: Any, prediction_range: Any = (0.0, 1.0)
) -> ControlVariates:
    """`tau = w q(x, a) - sum_b pi(b|x) q(x, b)` of a reward predictor q; its mean is 0.

    Args:
        weights: `float[n]`.
        predicted: `float[n]`, q(x, a) of the logged action.
        predicted_target: `float[n]`, its mean under the target policy.
        weight_range: (low, high) of the weights, finite.
        prediction_range: (low, high) of q.
    """
    low, high = common.check_weight_range(weight_range)
    least, most = check_range("prediction_range", prediction_range)
    with jax.enable_x64(True):
        values = jnp.asarray(weights, jnp.float64) * jnp.asarray(predicted) - jnp.asarray(predicted_target)
        corners = [(w, tau) for w in (low, high) for tau in (w * least - most, w * most - least)]
        return ControlVariates(values[:, None], jnp.asarray(corners, jnp.float64))


def empirical_likelihood(
    weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
    calibration: str = "f",
    control_variates: ControlVariates | None = None,
    predicted: Any = None,
    predicted_target: Any = None,
) -> Estimate:
    """Value of a policy from importance-weighted rewards, by empirical likelihood.

    Where the log leaves the value open (weights that are 1 on average must exist that were not seen), the estimate is the
    middle of what is possible, which `diagnostics` hold as `value_low` and `value_high`. The interval is exact to about
    1e-11 of the reward range, whatever the data; ends that no data could move are the ends of the reward range.

    With a reward predictor q (`predicted`, `predicted_target`) the objective is that of the doubly robust estimator,
    `w (r - q(x, a)) + sum_b pi(b|x) q(x, b)`. The paper takes the mean of the last term under the empirical law; here it is
    taken under Q, so that the interval holds the variation of the contexts.

    Works under `jit`, `vmap` (pad with counts of 0) and `grad` with respect to weights and rewards; float64 inside.

    Args:
        weights: `float[n]`, w = pi(a|x) / h(a|x).
        rewards: `float[n]`, r.
        counts: `float[n]`, multiplicities; None for 1 each, 0 for padding.
        weight_range: (low, high) that weights can have, whatever was seen; high may be infinite.
        reward_range: (low, high) that rewards can have.
        level: of confidence; None for an estimate alone.
        sides: "two"; "lower" or "upper" for a one-sided bound, whose other end is that of the reward range.
        calibration: Delta. "f": half the quantile of F(1, N - 1), as the authors' code; "chi2": of chi-square with 1
        degree of freedom,
            its limit. Both are asymptotic, and cover too rarely where the largest weight was hardly seen.
            "finite_sample": `log(1 / alpha) + log(N + 1) + log 2` for each end, which covers at every N (and at all N at
            once): the wealth of the best of the portfolios `(1, w, w r)` exceeds that of Cover and Ordentlich's universal
            one (1996) at most by the factor `2 (N + 1)`, and the latter's is a martingale. Two to three times as wide.
        control_variates: columns of known mean 0.
        predicted: `float[n]`, q(x, a) of the logged action, in the reward range.
        predicted_target: `float[n]`, `sum_b pi(b|x) q(x, b)`.

    Returns:
        An `Estimate`. `standard_error` is that of `w r` after regression on `w` (and the control variates), the
        asymptotic one.
        Diagnostics: `rows`, `mean_weight`, `mean_weight_z`, `largest_weight`, `value_low`, `value_high`, `missing_weight`
        (what Q has to add), `observed_mass` (of Q at the data), and with a level `threshold` (Delta).

    Raises:
        ValueError: if columns, ranges or settings are invalid.

    Example:
        >>> log = dict(weights=[0.0, 0.5, 1.0, 2.0, 3.0], rewards=[0.0, 1.0, 0.0, 1.0, 1.0])
        >>> estimate = empirical_likelihood(**log, weight_range=(0.0, 4.0), level=0.95)
        >>> [round(float(x), 6) for x in (estimate.value, estimate.lower, estimate.upper)]
        [0.8, 0.145946, 0.998252]
    """
    _check_settings(level, sides, calibration, control_variates, predicted, predicted_target, weight_range)
    ranges = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    with jax.enable_x64(True):
        others = {}
        if control_variates is not None:
            others["control_variates"] = control_variates.values
        if predicted is not None:
            others |= {"predicted": predicted, "predicted_target": predicted_target}
        rows = common.rows_of(weights, rewards, counts, *ranges, **others)
        corners = None if control_variates is None else jnp.asarray(control_variates.corners, jnp.float64)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), ranges)
        infinite = is_concrete(weight_range[1]) and math.isinf(weight_range[1])
        return empirical_core.estimate_value(
            rows,
            corners,
            ranges,
            infinite=infinite,
            doubly=predicted is not None,
            level=level,
            sides=sides,
            calibration=calibration,
        )


def likelihood_weights(
    weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    at: tuple[Any, Any] | None = None,
) -> Array:
    """How much each row counts: `omega = N Q(w, r)` of one row, 1 if all rows counted alike.

    Without a level Q is the law that fits best, `omega = 1 / (1 + lambda (w - 1))`. With one it is the law that attains the
    lower end of the two-sided interval, `omega = N kappa / (gamma + (beta + r) w)`: adversarial, smaller the larger the
    reward. Times the weights they make of an update of inverse propensity scores one of the estimate, or of its lower bound
    (by the envelope theorem). Where the lower end is trivial, as no row has a reward, or there is one row only, the best law
    stands in, as in the authors' code. Under `jit` and `vmap`; not to be differentiated.

    Args:
        weights: as in `empirical_likelihood`.
        rewards: as there.
        counts: as there.
        weight_range: as there.
        reward_range: as there.
        level: of the interval, or None for the best law.
        at: (weights, rewards), `float[m]` each, to ask for other rows than those of the log. What the log lacks and Q needs
            (the largest weight, where weights are below 1 on average) has an omega without bound.

    Returns:
        omega, `float64[n]`, or `float64[m]`.

    Raises:
        ValueError: if columns, ranges or the level are invalid.
    """
    check_level(level, "two")
    ranges = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    infinite = is_concrete(weight_range[1]) and math.isinf(weight_range[1])
    with jax.enable_x64(True):
        rows = common.rows_of(weights, rewards, counts, *ranges)
        asked = rows if at is None else common.rows_of(*at, None, *ranges)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), ranges)
        settings = dict(infinite=infinite, pessimistic=level is not None, level=0.95 if level is None else level)
        omega = empirical_core.likelihood_weights(rows, (asked.weights, asked.rewards), ranges, **settings)
        return omega[: jnp.shape(rewards if at is None else at[1])[0]]


def empirical_likelihood_difference(
    weights: Any,
    baseline_weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    baseline_weight_range: Sequence[float] | None = None,
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
    calibration: str = "f",
) -> Estimate:
    """Value of one policy minus that of another, `E_Q[(u - w) r]`, from one log; both weights are 1 on average.

    Args:
        weights: `float[n]`, u, of the first policy.
        baseline_weights: `float[n]`, w, of the second.
        rewards: `float[n]`, r.
        counts: as in `empirical_likelihood`.
        weight_range: of u, finite.
        baseline_weight_range: of w; None for the same.
        reward_range: of r.
        level: as in `empirical_likelihood`.
        sides: as there.
        calibration: "f" or "chi2", as there.

    Returns:
        An `Estimate`; diagnostics are those of u, and `value_low`, `value_high`, `threshold`.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    check_level(level, sides)
    if calibration not in ("f", "chi2"):
        raise ValueError(f"calibration of a difference must be 'f' or 'chi2', got {calibration!r}.")
    first = common.check_weight_range(weight_range)
    second = common.check_weight_range(baseline_weight_range or weight_range)
    if is_concrete(first, second) and math.inf in (first[1], second[1]):
        raise ValueError("a difference needs finite weight ranges; give the largest weights that are possible.")
    span = check_range("reward_range", reward_range)
    with jax.enable_x64(True):
        # the range of the second weights is checked as if they were the log's own
        common.rows_of(baseline_weights, rewards, counts, second, span)
        rows = common.rows_of(weights, rewards, counts, first, span, baseline_weights=baseline_weights)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (first, second, span))
        return empirical_core.estimate_difference(rows, ranges, level=level, sides=sides, calibration=calibration)


def censored_empirical_likelihood(
    weights: Any,
    rewards: Any,
    observed: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
    calibration: str = "f",
) -> Estimate:
    """Value where some rewards were not observed: `E_Q[w r 1{observed}] / E_Q[w 1{observed}]`.

    Right if a reward's being observed does not depend on it given the action's weight. The bounds are those v at which
    the least (greatest) `E_Q[w (r - v) 1{observed}]` is 0, found by Dinkelbach's iteration; the authors' code has the
    estimate alone.

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r; ignored where not observed.
        observed: `bool[n]`.
        counts: as in `empirical_likelihood`.
        weight_range: as there, finite.
        reward_range: as there.
        level: as there.
        sides: as there.
        calibration: "f" or "chi2", as there.

    Returns:
        An `Estimate`; the value is NaN where no weight was observed. Diagnostics as there, and `observed_weight`, the
        share of weight that was observed under Q.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    check_level(level, sides)
    if calibration not in ("f", "chi2"):
        raise ValueError(f"calibration with censored rewards must be 'f' or 'chi2', got {calibration!r}.")
    limits, span = common.check_weight_range(weight_range), check_range("reward_range", reward_range)
    if is_concrete(limits) and math.isinf(limits[1]):
        raise ValueError("censored rewards need a finite weight range; give the largest weight that is possible.")
    with jax.enable_x64(True):
        library = np if is_concrete(observed, rewards) else jnp
        observed = library.asarray(observed, bool)
        shown = library.where(observed, library.asarray(rewards, library.float64), span[0])
        rows = common.rows_of(weights, shown, counts, limits, span, observed=observed)
        ranges = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (limits, span))
        return empirical_core.estimate_censored(rows, ranges, level=level, sides=sides, calibration=calibration)


def _check_settings(
    level: float | None,
    sides: str,
    calibration: str,
    control_variates: ControlVariates | None,
    predicted: Any,
    predicted_target: Any,
    weight_range: Sequence[float],
) -> None:
    check_level(level, sides)
    if calibration not in CALIBRATIONS:
        raise ValueError(f"calibration must be one of {', '.join(CALIBRATIONS)}, got {calibration!r}.")
    if (predicted is None) != (predicted_target is None):
        raise ValueError("give predicted and predicted_target both, or neither.")
    extended = control_variates is not None or predicted is not None
    if extended and calibration == "finite_sample":
        raise ValueError("calibration='finite_sample' is for weights and rewards alone; leave out what else was given.")
    if control_variates is None:
        return
    values, corners = jnp.shape(control_variates.values), jnp.shape(control_variates.corners)
    if len(values) != 2 or len(corners) != 2 or corners[1] != values[1] + 1:
        raise ValueError(
            f"control variates have values {values} and corners {corners}; values are [n, k] and corners [J, 1 + k]: the "
            "weight, then the k variates."
        )
    if is_concrete(weight_range[1]) and math.isinf(weight_range[1]):
        raise ValueError("control variates need a finite weight range; give the largest weight that is possible.")
