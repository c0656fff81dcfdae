"""Importance-weighted and doubly robust estimators of a policy's value from logged decisions.

Symbols: `w = pi(a|x) / h(a|x)`; r the reward; `q = q(x, a)` a prediction of it for the logged action and
`v = sum_b pi(b|x) q(x, b)` its mean under the policy that is judged. Predictions should come from other rows than they are
used on (`cross_fitted`).

| function | estimate |
|---|---|
| `ips` | `mean(w r)` |
| `clipped_ips` | `mean(min(w, M) r)` |
| `sub_gaussian_ips` | `mean(w r / (1 - lambda + lambda w))` |
| `snips` | `sum(w r) / sum(w)` |
| `emp` | `sum(Q w r) / sum(Q)`, Q the empirical-likelihood law, what it puts beside the data left out |
| `direct_method` | `mean(v)` |
| `doubly_robust` | `mean(v + w (r - q))` |
| `self_normalised_doubly_robust` | `mean(v) + sum(w (r - q)) / sum(w)` |
| `switch_doubly_robust` | `mean(v + w 1{w <= tau} (r - q))` |
| `shrunk_doubly_robust` | `mean(v + lambda w / (w^2 + lambda) (r - q))` |
| `pseudo_inverse` | `mean((1 - L + sum_l w_l) r)`, slates of L slots |

All take weights and rewards and the same keywords (`Keywords`), and return an `Estimate` whose diagnostics are `rows`,
`mean_weight` (1 in expectation), `mean_weight_z` (standard errors from it), `largest_weight`, `clipped_rows` (share of rows
whose weight was changed) and `clipped_weight` (share of all weight that was taken away). They work under `jit`, `vmap` (pad
with counts of 0) and `grad`; float64 inside. What is shrunk, clipped or switched is biased: intervals are then for the mean of
the terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.bandit.empirical import empirical_likelihood
from jaxrl_off.estimators.bandit.terms import ASYMPTOTIC, BOUNDED, Terms, estimate_terms, settings_of, unbounded
from jaxrl_off.estimators.common import check_range, is_concrete, overflow_scale, padded_size
from jaxrl_off.types import Array, Estimate


class Keywords(TypedDict, total=False):
    """What all estimators here take.

    Attributes:
        counts: `float[n]`, multiplicities; whole numbers for the bootstrap; None for 1 each.
        weight_range: (low, high) of the weights, for checks and bounded intervals; high may be infinite.
        reward_range: (low, high) of the rewards; (0, 1) by default.
        level: of confidence; None, the default, for an estimate alone.
        sides: "two", "lower" or "upper".
        interval: "student_t" (the default), "normal", "bootstrap" (percentile) or "bca", all asymptotic; and, where there is no
            ratio and weights are bounded, by their range or by what the estimator makes of them, "hoeffding",
            "empirical_bernstein", "betting" (cover at every n; the last reads rows in an order
            drawn by `seed` unless `ordered`) or
            "clopper_pearson" (customary; proven for terms at the ends of their range).
        resamples: of the bootstrap; 1000 by default.
        seed: of the bootstrap, and of the order in which "betting" reads rows.
        ordered: True if the order of rows is time, so that "betting" reads them as they are; False by default.
    """

    counts: Any
    weight_range: Sequence[float] | None
    reward_range: Sequence[float]
    level: float | None
    sides: str
    interval: str
    resamples: int
    seed: int
    ordered: bool


def _estimate(
    terms_of: Callable[..., Terms],
    weights: Any,
    rewards: Any,
    others: dict[str, Any],
    *,
    ratio: bool = False,
    largest: Callable[[Any], Any] | None = None,
    counts: Any = None,
    weight_range: Sequence[float] | None = None,
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    ordered: bool = False,
) -> Estimate:
    """Check, prepare and run.

    Args:
        terms_of: `(weights, rewards, *others, limits, span) -> Terms`, with `limits` what weights can be once the estimator has
            changed them.
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        others: further columns by name.
        ratio: whether the estimator has one.
        largest: the largest changed weight by the largest weight, which may be infinite; None where they are the same.
        counts: this and the following as in `Keywords`.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    limits = None if weight_range is None else common.check_weight_range(weight_range)
    low, high = (0.0, math.inf) if limits is None else limits
    span = check_range("reward_range", reward_range)
    with jax.enable_x64(True):
        changed = high if largest is None else largest(jnp.asarray(high, jnp.float64))
        settings = settings_of(
            level, sides, interval, resamples, seed, unbounded(weight_range, changed, ratio), ordered
        )
        if level is not None:
            _check_interval(interval, counts, span, others)
        rows = common.rows_of(weights, rewards, counts, limits, span, **others)
        size = len(rows.counts)
        if counts is not None and is_concrete(rows.counts):
            size = max(size, padded_size(int(jnp.ceil(jnp.sum(rows.counts)))))
        span = tuple(jnp.asarray(x, jnp.float64) for x in span)
        changed = jnp.asarray(changed, jnp.float64)
        terms = terms_of(
            rows.weights, rows.rewards, *rows.others, limits=(jnp.minimum(low, changed), changed), span=span
        )
        # slates come without a weight of their own
        logged = terms.weights if weights is None else rows.weights
        return estimate_terms(rows.counts, logged, terms, span, settings=settings, size=size)


def _product_range(weights: tuple[Any, Any], span: tuple[Array, Array]) -> tuple[Array, Array]:
    """Range of a weight, which may be infinite, times a reward."""
    corners = jnp.stack([jnp.where(r == 0, 0.0, w * r) for w in weights for r in span])
    return jnp.min(corners), jnp.max(corners)


def _corrected_range(largest: Any, span: tuple[Array, Array]) -> tuple[Array, Array]:
    """Range of `v + w (r - q)` with predictions in the reward range."""
    low, high = span
    return low - largest * (high - low), high + largest * (high - low)


def ips(weights: Any, rewards: Any, **keywords: Unpack[Keywords]) -> Estimate:
    """Inverse propensity scores, `mean(w r)`: unbiased, of large variance (Horvitz and Thompson 1952).

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        **keywords: `counts`, `weight_range`, `reward_range`, `level`, `sides`, `interval`, `resamples`, `seed`, `ordered`;
            see `Keywords`.

    Returns:
        An `Estimate`; see the module.

    Raises:
        ValueError: if columns, ranges or settings are invalid.

    Example:
        >>> estimate = ips([0.0, 0.5, 1.0, 2.0], [1.0, 1.0, 0.0, 0.5])
        >>> float(estimate.value)
        0.375
    """

    def terms(w: Array, r: Array, limits: Any, span: Any) -> Terms:
        return Terms(w * r, None, None, w, _product_range(limits, span))

    return _estimate(terms, weights, rewards, {}, **keywords)


def clipped_ips(weights: Any, rewards: Any, *, clip: float, **keywords: Unpack[Keywords]) -> Estimate:
    """`mean(min(w, M) r)`: biased towards 0, of bounded terms (Ionides 2008; Bottou et al. 2013).

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        clip: M, positive.
        **keywords: `Keywords`.

    Returns:
        An `Estimate`; see the module.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    _check_positive("clip", clip)

    def terms(w: Array, r: Array, limits: Any, span: Any) -> Terms:
        clipped = jnp.minimum(w, clip)
        return Terms(clipped * r, None, None, clipped, _product_range(limits, span))

    return _estimate(terms, weights, rewards, {}, largest=lambda high: jnp.minimum(high, clip), **keywords)


def sub_gaussian_ips(weights: Any, rewards: Any, *, shrinkage: float, **keywords: Unpack[Keywords]) -> Estimate:
    """`mean(w r / (1 - lambda + lambda w))`: the harmonic correction, differentiable in w and sub-Gaussian.

    Reference: Metelli, Russo and Restelli, "Subgaussian and Differentiable Importance Sampling for Off-Policy Evaluation and
    Learning", NeurIPS 2021 (s = -1).

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        shrinkage: lambda in [0, 1]; 0 is `ips`.
        **keywords: `Keywords`.

    Returns:
        An `Estimate`; see the module.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    if is_concrete(shrinkage) and not 0.0 <= shrinkage <= 1.0:
        raise ValueError(f"shrinkage must be in [0, 1], got {shrinkage}.")

    def shrunk(w: Any) -> Any:
        # 0 / 0 for a weight of 0 at full shrinkage, which is worth nothing
        divisor = 1.0 - shrinkage + shrinkage * w
        return w / jnp.where(divisor > 0, divisor, 1.0)

    def largest(high: Array) -> Array:
        return jnp.where(jnp.isinf(high), 1.0 / jnp.asarray(shrinkage, jnp.float64), shrunk(high))

    def terms(w: Array, r: Array, limits: Any, span: Any) -> Terms:
        return Terms(shrunk(w) * r, None, None, shrunk(w), _product_range(limits, span))

    return _estimate(terms, weights, rewards, {}, largest=largest, **keywords)


def snips(weights: Any, rewards: Any, **keywords: Unpack[Keywords]) -> Estimate:
    """Self-normalised inverse propensity scores, `sum(w r) / sum(w)` (Swaminathan and Joachims 2015): consistent, less noisy.

    Arguments, result and errors as `ips`; NaN, with the reward range as interval, where no row has any weight.
    """

    def terms(w: Array, r: Array, limits: Any, span: Any) -> Terms:
        scale = overflow_scale(jnp.ones_like(w), w)
        return Terms(jnp.zeros_like(w), w / scale * r, w / scale, w, None)

    return _estimate(terms, weights, rewards, {}, ratio=True, **keywords)


def emp(
    weights: Any,
    rewards: Any,
    *,
    counts: Any = None,
    weight_range: Sequence[float],
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float | None = None,
    sides: str = "two",
) -> Estimate:
    """`sum(Q w r) / sum(Q)` under the empirical-likelihood law Q, without what Q has to put beside the data.

    The paper's "EMP", as the authors' code has it (Kallus and Uehara 2019). The interval is that of `empirical_likelihood`, and
    so are arguments, errors and diagnostics.
    """
    options = dict(counts=counts, weight_range=weight_range, reward_range=reward_range, level=level, sides=sides)
    full = empirical_likelihood(weights, rewards, **options)
    with jax.enable_x64(True):
        low = jnp.asarray(reward_range[0], jnp.float64)
        missing = full.diagnostics["missing_weight"]
        return full._replace(value=(full.diagnostics["value_low"] - missing * low) / full.diagnostics["observed_mass"])


def direct_method(weights: Any, rewards: Any, *, predicted_target: Any, **keywords: Unpack[Keywords]) -> Estimate:
    """`mean(v)`: only as good as the predictions; its standard error knows nothing of their bias.

    Args:
        weights: `float[n]`, w; for diagnostics only.
        rewards: `float[n]`, r; not used but for checks.
        predicted_target: `float[n]`, v.
        **keywords: `Keywords`.

    Returns:
        An `Estimate`; see the module.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """

    def terms(w: Array, r: Array, v: Array, limits: Any, span: Any) -> Terms:
        return Terms(v, None, None, w, span, False)

    others = {"predicted_target": predicted_target}
    return _estimate(terms, weights, rewards, others, largest=jnp.zeros_like, **keywords)


def _corrected(
    weights: Any, rewards: Any, predicted: Any, predicted_target: Any, change: Any, largest: Any, **keywords: Any
) -> Estimate:
    """`mean(v + change(w) (r - q))`, with a change that never enlarges a weight."""

    def terms(w: Array, r: Array, q: Array, v: Array, limits: Any, span: Any) -> Terms:
        changed = change(w)
        return Terms(v + changed * (r - q), None, None, changed, _corrected_range(limits[1], span))

    others = {"predicted": predicted, "predicted_target": predicted_target}
    return _estimate(terms, weights, rewards, others, largest=largest, **keywords)


def doubly_robust(
    weights: Any, rewards: Any, *, predicted: Any, predicted_target: Any, **keywords: Unpack[Keywords]
) -> Estimate:
    """`mean(v + w (r - q))`: unbiased if either propensities or predictions are right (Dudik, Langford and Li 2011).

    Args:
        weights: `float[n]`, w.
        rewards: `float[n]`, r.
        predicted: `float[n]`, q of the logged action; in the reward range, where a bounded interval is asked for.
        predicted_target: `float[n]`, v.
        **keywords: `Keywords`.

    Returns:
        An `Estimate`; see the module.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    return _corrected(weights, rewards, predicted, predicted_target, lambda w: w, None, **keywords)


def self_normalised_doubly_robust(
    weights: Any, rewards: Any, *, predicted: Any, predicted_target: Any, **keywords: Unpack[Keywords]
) -> Estimate:
    """`mean(v) + sum(w (r - q)) / sum(w)`. Arguments, result and errors as `doubly_robust`; NaN without any weight."""

    def terms(w: Array, r: Array, q: Array, v: Array, limits: Any, span: Any) -> Terms:
        scale = overflow_scale(jnp.ones_like(w), w)
        return Terms(v, w / scale * (r - q), w / scale, w, None)

    others = {"predicted": predicted, "predicted_target": predicted_target}
    return _estimate(terms, weights, rewards, others, ratio=True, **keywords)


def switch_doubly_robust(
    weights: Any, rewards: Any, *, predicted: Any, predicted_target: Any, threshold: float, **keywords: Unpack[Keywords]
) -> Estimate:
    """`mean(v + w 1{w <= tau} (r - q))`: the direct method where weights are large (Wang, Agarwal and Dudik, ICML 2017).

    Arguments as `doubly_robust`, and `threshold`, tau, positive.
    """
    _check_positive("threshold", threshold)
    change = lambda w: jnp.where(w <= threshold, w, 0.0)  # noqa: E731
    largest = lambda high: jnp.minimum(high, threshold)  # noqa: E731
    return _corrected(weights, rewards, predicted, predicted_target, change, largest, **keywords)


def shrunk_doubly_robust(
    weights: Any, rewards: Any, *, predicted: Any, predicted_target: Any, shrinkage: float, **keywords: Unpack[Keywords]
) -> Estimate:
    """`mean(v + lambda w / (w^2 + lambda) (r - q))`, optimistic shrinkage (Su et al., ICML 2020).

    Arguments as `doubly_robust`, and `shrinkage`, lambda, positive; infinity is `doubly_robust`, 0 would be the direct method.
    """
    _check_positive("shrinkage", shrinkage)
    change = lambda w: w / (1.0 + jnp.square(w) / shrinkage)  # noqa: E731
    # the peak is at w^2 = lambda
    largest = lambda high: jnp.minimum(high, 0.5 * jnp.sqrt(shrinkage))  # noqa: E731
    return _corrected(weights, rewards, predicted, predicted_target, change, largest, **keywords)


def pseudo_inverse(slot_weights: Any, rewards: Any, **keywords: Unpack[Keywords]) -> Estimate:
    """Slates whose slots are filled independently, with rewards that are sums over slots: `mean((1 - L + sum_l w_l) r)`.

    Reference: Swaminathan et al., "Off-Policy Evaluation for Slate Recommendation", NeurIPS 2017, for product policies.

    Args:
        slot_weights: `float[n, L]`, pi_l(a_l|x) / h_l(a_l|x) of each slot.
        rewards: `float[n]`, of whole slates.
        **keywords: `Keywords`, without `weight_range`: weights of slates may be negative, and bounded intervals are refused.

    Returns:
        An `Estimate`; diagnostics are those of the slates' weights, with an effective sample size by their squares.

    Raises:
        ValueError: if columns, ranges or settings are invalid.
    """
    if "weight_range" in keywords:
        raise ValueError("weights of slates have no range of their own; leave out weight_range.")

    def terms(ones: Array, r: Array, slots: Array, limits: Any, span: Any) -> Terms:
        w = 1.0 - slots.shape[1] + jnp.sum(slots, axis=1)
        return Terms(w * r, None, None, w, None)

    return _estimate(terms, None, rewards, {"slot_weights": slot_weights}, **keywords)


def _check_interval(interval: str, counts: Any, span: tuple[Any, Any], others: dict[str, Any]) -> None:
    """Refuse multiplicities and predictions that an interval would be wrong for."""
    if counts is not None and is_concrete(counts):
        given = np.asarray(counts, np.float64)
        if interval in ("bootstrap", "bca") and (given != np.floor(given)).any():
            raise ValueError(f"interval={interval!r} draws whole rows: counts must be whole numbers; use 'student_t'.")
        if interval == "betting" and (given > 1).any():
            raise ValueError(
                "interval='betting' takes rows one after the other: counts must be 0 or 1; repeat the rows."
            )
    if interval not in BOUNDED:
        return
    for name in ("predicted", "predicted_target"):
        column = others.get(name)
        if column is None or not is_concrete(column, span):
            continue
        outside = ~((np.asarray(column) >= span[0]) & (np.asarray(column) <= span[1]))
        if outside.any():
            raise ValueError(
                f"interval={interval!r} holds for predictions in the reward range [{span[0]:g}, {span[1]:g}]; {name} has "
                f"{int(outside.sum())} outside it. Clip them, or use {', '.join(ASYMPTOTIC)}."
            )


def _check_positive(name: str, value: Any) -> None:
    if is_concrete(value) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
