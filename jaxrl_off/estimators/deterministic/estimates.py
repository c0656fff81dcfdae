"""Kernelised estimators of the value of a deterministic policy and of its gradient.

Symbols: `eta_t` the kernelised ratio of a step (`smoothing`), `lambda_t = prod_{k <= t} eta_k`, `w_t` the marginal ratio of
states, `mu_t = w_t eta_t`, `lambda_{-1} = mu_{-1} = 1`; `q_t`, `v_t` values at the logged action and of the policy
(`nuisances`). A dash is a derivative with respect to theta, `g_t = (log eta_t)'`, `G_t = sum_{k <= t} g_k`, and
`d_t = mu_t' = eta_t (w'_t + w_t g_t)`.

| method | value | gradient |
|---|---|---|
| `cumulative_importance_sampling` | `sum_t gamma^t lambda_t r_t` | `sum_t gamma^t lambda_t G_t r_t` |
| `marginal_importance_sampling` | `sum_t gamma^t mu_t r_t` | `sum_t gamma^t d_t r_t` |
| `direct_method` | `v_0` | `v'_0` |
| `cumulative_doubly_robust` | `sum_t gamma^t [lambda_t (r_t - q_t) + lambda_{t-1} v_t]` | below, with `lambda`, `lambda G` |
| `marginal_doubly_robust` | `sum_t gamma^t [mu_t (r_t - q_t) + mu_{t-1} v_t]` | below, with `mu`, `d` |
| `cumulative_policy_gradient` | | `sum_t gamma^t lambda_t g_t q_t` |
| `marginal_policy_gradient` | | `sum_t gamma^t mu_t g_t q_t` |

each a mean over trajectories, and doubly robust gradients are `sum_t gamma^t [d_t (r_t - q_t) - mu_t q'_t + mu_{t-1} v'_t +
d_{t-1} v_t]`, which is what `jax.grad` of the value gives. Marginal estimators have one kernel a term: their rates in n do not
depend on the horizon. Cumulative ones have t + 1. A bandit is a horizon of 1, where both are the same.

Names are the field's, not the paper's. The paper's text was not at hand: formulas are those of the authors' code, with its
mistakes left out, and of derivation.

Reference: Kallus and Uehara, "Doubly Robust Off-Policy Value and Gradient Estimation for Deterministic Policies", NeurIPS 2020.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrl_off.estimators.deterministic.nuisances import Nuisances
from jaxrl_off.estimators.deterministic.ratios import Policy, Ratios, ratios_of
from jaxrl_off.estimators.deterministic.smoothing import Smoothing
from jaxrl_off.estimators.trajectory import common, means
from jaxrl_off.estimators.trajectory.common import Settings, Steps
from jaxrl_off.types import Array, Estimate, PyTree, Trajectories


class Method(NamedTuple):
    """What a method needs; hashable.

    Attributes:
        weights: "cumulative", "marginal" or "none".
        corrected: whether q and v enter.
        valued: whether there is a value, not a gradient alone.
    """

    weights: str
    corrected: bool
    valued: bool = True


METHODS: dict[str, Method] = {
    "cumulative_importance_sampling": Method("cumulative", False),
    "marginal_importance_sampling": Method("marginal", False),
    "direct_method": Method("none", True),
    "cumulative_doubly_robust": Method("cumulative", True),
    "marginal_doubly_robust": Method("marginal", True),
    "cumulative_policy_gradient": Method("cumulative", True, False),
    "marginal_policy_gradient": Method("marginal", True, False),
}


class GradientEstimate(NamedTuple):
    """A gradient of a policy's value; float64.

    Attributes:
        value: as the parameters.
        standard_error: as the parameters, of each one.
        covariance: `[P, P]` of the estimate, parameters in the order of `jax.flatten_util.ravel_pytree`.
        effective_sample_size: as of `Estimate`, of the last weights.
        diagnostics: as of `evaluate`.
    """

    value: PyTree
    standard_error: PyTree
    covariance: Array
    effective_sample_size: Array
    diagnostics: dict[str, Array]


def evaluate(
    method: str,
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    nuisances: Nuisances | None = None,
    *,
    self_normalised: bool = False,
    behaviour_at_target: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    **settings: Any,
) -> Estimate:
    """The value of a deterministic policy; see the module for methods.

    `jax.grad(lambda theta: evaluate(..., theta, ...).value)`, within `with jax.enable_x64(True)`, is the gradient, if the
    nuisances are made of theta in the same function.

    Args:
        method: key of `METHODS`.
        trajectories: n of them, with actions `float[n, T, A]` and `behaviour_log_prob`, the log-density of these.
        policy: tau, `(parameters, observations [..., *O]) -> actions [..., A]`.
        parameters: theta.
        smoothing: kernel, bandwidth and form; h and form must be those that the nuisances were made with.
        nuisances: of `given_nuisances` or `fit_nuisances`; None for `cumulative_importance_sampling`, which needs none.
        self_normalised: whether weights of each step are divided by their mean over trajectories, which leaves a bias of
            order 1 / n and no dependence on the scale of the behaviour density.
        behaviour_at_target: as of `ratios.ratios_of`.
        discount: gamma.
        counts: `float[n]`, how often each trajectory counts, or None for once.
        **settings: `level`, `sides`, `interval` ("student_t", "normal", or over resamples of trajectories "bootstrap", "bca"),
            `resamples`, `seed`, `floor`. Intervals are about the estimator's mean. They cover the value where bias is small
            next to the error: choose h smaller than is best for the error, `bandwidth.rate_bandwidth(undersmooth=True)`.

    Returns:
        An `Estimate`. Nuisances are taken as given: cross-fit them. Diagnostics: those of
        `trajectory.common.estimate_statistic`, `effective_sample_sizes` `[T]` of the weights of each step, their minimum
        `smallest_effective_sample_size`, and `clipped_share` of the ratios w that were clipped.

    Raises:
        ValueError: for data, settings or policies that cannot be meant.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1.0, 1.0, 8).reshape(8, 1, 1)
        >>> ends = np.ones((8, 1), bool)
        >>> density = np.full((8, 1), np.log(0.5))
        >>> data = Trajectories(x, 0.5 * x, -np.square(x[..., 0]), density, ends, ends, ~ends, None)
        >>> def policy(gain, observations):
        ...     return gain * observations
        >>> found = evaluate("cumulative_importance_sampling", data, policy, 0.5, Smoothing(0.5, kernel="uniform"))
        >>> print(f"{found.value:.4f}")
        -0.8571
    """
    chosen = _method(method, nuisances)
    if not chosen.valued:
        raise ValueError(f"{method} is a gradient and has no value; use `gradient`, or marginal_doubly_robust.")
    checked = common.settings_of(**settings)
    shared = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
    with common.float64(trajectories, parameters, smoothing, nuisances, counts):
        ratios = ratios_of(trajectories, policy, parameters, smoothing, **shared)
        nuisances = _checked(chosen, nuisances, ratios, derivatives=False)
        size = common.resample_size(counts)
        return _evaluated(
            ratios.steps, nuisances, method=chosen, normalised=self_normalised, settings=checked, size=size
        )


def gradient(
    method: str,
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    nuisances: Nuisances | None = None,
    *,
    self_normalised: bool = False,
    behaviour_at_target: Any = None,
    discount: float = 1.0,
    counts: Any = None,
) -> GradientEstimate:
    """The gradient of a deterministic policy's value with respect to its parameters, by the sums of the module.

    It keeps P numbers for every step: for policies of many parameters take `jax.grad` of `evaluate`.

    Args:
        method: key of `METHODS`.
        trajectories: as of `evaluate`.
        policy: as there.
        parameters: theta.
        smoothing: as there; not the uniform kernel.
        nuisances: with derivatives.
        self_normalised: as there; the gradient is then that of the self-normalised value, and policy gradients are divided.
        behaviour_at_target: as there, a function.
        discount: gamma.
        counts: as there.

    Returns:
        `GradientEstimate`, whose covariance is that of the mean over trajectories, linearised.

    Raises:
        ValueError: as `evaluate`, and for nuisances without derivatives.
    """
    chosen = _method(method, nuisances)
    shared = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
    with common.float64(trajectories, parameters, smoothing, nuisances, counts):
        ratios = ratios_of(trajectories, policy, parameters, smoothing, scores=True, **shared)
        nuisances = _checked(chosen, nuisances, ratios, derivatives=True)
        value, covariance, effective, found = _gradient(
            ratios.steps, ratios.scores, nuisances, method=chosen, normalised=self_normalised
        )
        restore = ravel_pytree(ratios.parameters)[1]
        deviation = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0.0))
        return GradientEstimate(restore(value), restore(deviation), covariance, effective, found)


def _method(name: str, nuisances: Nuisances | None) -> Method:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}.")
    chosen = METHODS[name]
    missing = []
    if chosen.corrected and (nuisances is None or nuisances.q is None):
        missing.append("q and v")
    if chosen.weights == "marginal" and (nuisances is None or nuisances.ratio is None):
        missing.append("the marginal ratio")
    if missing:
        raise ValueError(
            f"{name} needs nuisances with {' and '.join(missing)}; have them from `given_nuisances` or `fit_nuisances`."
        )
    return chosen


def _checked(method: Method, nuisances: Nuisances | None, ratios: Ratios, *, derivatives: bool) -> Nuisances:
    """Nuisances with 0 in the padding, and neutral ones where there are none."""
    steps = ratios.steps
    zeros, count = jnp.zeros_like(steps.rewards), 0
    if derivatives:
        count = ratios.scores.shape[-1]
    given = nuisances or Nuisances()

    def column(name: str, needed: bool, default: Array) -> Array:
        values = getattr(given, name)
        slope = name.endswith("gradient")
        shape = (*zeros.shape, count) if slope else zeros.shape
        if not needed:
            return jnp.broadcast_to(default[..., None] if slope else default, shape)
        if values is None:
            raise ValueError(
                f"gradients need nuisances with {name}; ask for gradient=True where they are made, or use jax.grad."
            )
        values = jnp.asarray(values, jnp.float64)
        if values.shape != shape:
            raise ValueError(f"{name} has shape {values.shape}; {shape} is needed: were nuisances made of other data?")
        mask = steps.mask[..., None] if slope else steps.mask
        if common.is_concrete(values, mask):
            if not bool(jnp.all(jnp.isfinite(values) | ~mask)):
                raise ValueError(f"{name} must be finite at all steps that were made.")
            if name == "ratio" and bool(jnp.any((values < 0) & mask)):
                raise ValueError("the marginal ratio must not be negative: it is a ratio of densities. Clip it at 0.")
        return jnp.where(mask, values, 0.0)

    marginal = method.weights == "marginal"
    columns = [column(name, method.corrected, zeros) for name in ("q", "v")] + [column("ratio", marginal, zeros + 1.0)]
    slopes = [None] * 3
    if derivatives:
        slopes = [column(f"{name}_gradient", method.corrected, zeros) for name in ("q", "v")]
        slopes.append(column("ratio_gradient", marginal, zeros))
    clipped = zeros if given.clipped is None else jnp.asarray(given.clipped, jnp.float64)
    return Nuisances(*columns, *slopes, clipped)


def _log_weight(method: Method, steps: Steps, ratio: Array) -> Array:
    """log lambda_t or log mu_t, kept in the padding."""
    if method.weights == "none":
        return jnp.zeros_like(ratio)
    if method.weights == "cumulative":
        return jnp.cumsum(steps.log_ratio, axis=1)
    positive = ratio > 0
    log_ratio = jnp.where(positive, jnp.log(jnp.where(positive, ratio, 1.0)), -jnp.inf)
    return common.held(log_ratio + steps.log_ratio, steps.mask)


def _diagnostics(steps: Steps, log_weight: Array, clipped: Array) -> dict[str, Array]:
    scaled = common.scaled_weights(log_weight, steps.counts)
    sizes = jax.vmap(common.effective_size, (None, 1))(steps.counts, scaled)
    shown = steps.counts[:, None] * steps.mask
    return {
        "effective_sample_sizes": sizes,
        "smallest_effective_sample_size": jnp.min(sizes),
        "clipped_share": jnp.sum(shown * clipped) / jnp.sum(shown),
    }


@functools.partial(jax.jit, static_argnames=("method", "normalised", "settings", "size"))
def _evaluated(
    steps: Steps, nuisances: Nuisances, *, method: Method, normalised: bool, settings: Settings, size: int | None
) -> Estimate:
    log_weight = _log_weight(method, steps, nuisances.ratio)
    form = means.WEIGHTED_CORRECTED if normalised else means.CORRECTED
    if method.weights == "none":
        form = means.FIRST_VALUE
    statistic = means.statistic_of(form, steps, log_weight, nuisances.q, nuisances.v)
    found = _diagnostics(steps, log_weight, nuisances.clipped)
    return common.estimate_statistic(statistic, steps, log_weight[:, -1], settings, diagnostics=found, size=size)


@functools.partial(jax.jit, static_argnames=("method", "normalised"))
def _gradient(
    steps: Steps, scores: Array, nuisances: Nuisances, *, method: Method, normalised: bool
) -> tuple[Array, Array, Array, dict[str, Array]]:
    counts, total = steps.counts, jnp.sum(steps.counts)
    log_weight = _log_weight(method, steps, nuisances.ratio)
    statistic = _gradient_statistic(steps, scores, nuisances, method, normalised)
    value = statistic(counts)
    influence = jnp.where(counts > 0, total * jax.jacrev(statistic)(counts), 0.0)
    centred = influence - (influence @ counts / total)[:, None]
    covariance = (centred * counts) @ centred.T / (total * jnp.maximum(total - 1.0, 1.0))
    effective = common.effective_size(counts, common.scaled_weights(log_weight[:, -1], counts))
    return value, covariance, effective, _diagnostics(steps, log_weight, nuisances.clipped)


def _weights_and_derivatives(
    steps: Steps, scores: Array, nuisances: Nuisances, method: Method, normalised: bool
) -> tuple[Array, Array]:
    """mu_t and d_t, or lambda_t and lambda_t G_t; up to a factor in each step where they are to be normalised."""
    if method.weights == "cumulative":
        base, factor, slope = jnp.cumsum(steps.log_ratio, axis=1), 1.0, jnp.cumsum(scores, axis=1)
    else:
        ratio = nuisances.ratio
        slope = nuisances.ratio_gradient + ratio[..., None] * scores
        base, factor = (common.held(column, steps.mask) for column in (steps.log_ratio, ratio))
        slope = jax.vmap(common.held, (-1, None), -1)(slope, steps.mask)
    weight = common.scaled_weights(base, steps.counts) if normalised else common.weights_of(base)
    return weight * factor, weight[..., None] * slope


def _gradient_statistic(
    steps: Steps, scores: Array, nuisances: Nuisances, method: Method, normalised: bool
) -> common.Statistic:
    """`counts [n] -> gradient [P]`."""
    q, v, _, q_slope, v_slope, _, _ = nuisances
    if method.weights == "none":
        return lambda counts: counts @ v_slope[:, 0] / jnp.sum(counts)
    weight, derivative = _weights_and_derivatives(steps, scores, nuisances, method, normalised)
    if not method.valued:
        # with weights that are only divided, not derived
        errors, derived = jnp.zeros_like(q), (weight * q)[..., None] * scores
        values, values_derived, derivative = jnp.zeros_like(v), jnp.zeros_like(scores), jnp.zeros_like(scores)
    else:
        errors = weight * (steps.rewards - q)
        derived = derivative * (steps.rewards - q)[..., None] - weight[..., None] * q_slope
        before, derivative_before = means.before(weight, 1.0), means.before(derivative, 0.0)
        values = before * v
        values_derived = before[..., None] * v_slope + derivative_before * v[..., None]
    if not normalised:
        terms = jnp.einsum("t,ntp->np", steps.discounts, derived + values_derived)
        return lambda counts: counts @ terms / jnp.sum(counts)

    def statistic(counts: Array) -> Array:
        shares = counts / jnp.sum(counts)
        total, total_slope = shares @ weight, jnp.tensordot(shares, derivative, axes=1)
        total_before = jnp.concatenate([jnp.ones(1), total[:-1]])
        slope_before = jnp.concatenate([jnp.zeros_like(total_slope[:1]), total_slope[:-1]])
        parts = _quotient_rule(shares @ errors, jnp.tensordot(shares, derived, axes=1), total, total_slope)
        parts += _quotient_rule(
            shares @ values, jnp.tensordot(shares, values_derived, axes=1), total_before, slope_before
        )
        return steps.discounts @ parts

    return statistic


def _quotient_rule(numerator: Array, slope: Array, denominator: Array, denominator_slope: Array) -> Array:
    """The derivative `[T, P]` of `numerator / denominator [T]`."""
    inverse = common.ratio(jnp.ones_like(denominator), denominator)[:, None]
    return inverse * (slope - numerator[:, None] * inverse * denominator_slope)
