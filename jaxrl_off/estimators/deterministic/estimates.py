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
depend on the horizon. Cumulative ones have t + 1. A bandit is a horizon of 1, where both are the same and w = 1.

Importance sampling estimates the value of the smoothed policy, whatever the form: a bias of order h^2. Marginal importance
sampling with a fitted w keeps that bias, as `fit_nuisances` makes w of kernelised ratios; with the exact w of the deterministic
policy smoothing of one action a term is left, and no bias where rewards depend on the state alone. What takes the bias out of
doubly robust estimates is q, as far as it is right.

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

from jaxrl_off.estimators.common import effective_size, float64, is_concrete, named_options
from jaxrl_off.estimators.deterministic.gradients import (
    GradientEstimate,
    estimate_gradient,
    gradient_statistic,
    restored,
)
from jaxrl_off.estimators.deterministic.nuisances import Nuisances
from jaxrl_off.estimators.deterministic.ratios import Policy, Ratios, ratios_of
from jaxrl_off.estimators.deterministic.smoothing import Smoothing
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic, resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, held, quotient, scaled_weights
from jaxrl_off.estimators.trajectory.weights import forms as means
from jaxrl_off.types import Array, Estimate, PyTree, Trajectories


class Method(NamedTuple):
    """What a method needs; hashable.

    Attributes:
        weights: "cumulative", "marginal" or "none".
        columns: of `Nuisances`, that enter; of gradients their derivatives, too, if `valued`.
        valued: whether there is a value, not a gradient alone.
    """

    weights: str
    columns: tuple[str, ...]
    valued: bool = True


METHODS: dict[str, Method] = {
    "cumulative_importance_sampling": Method("cumulative", ()),
    "marginal_importance_sampling": Method("marginal", ("ratio",)),
    "direct_method": Method("none", ("v",)),
    "cumulative_doubly_robust": Method("cumulative", ("q", "v")),
    "marginal_doubly_robust": Method("marginal", ("q", "v", "ratio")),
    "cumulative_policy_gradient": Method("cumulative", ("q",), False),
    "marginal_policy_gradient": Method("marginal", ("q", "ratio"), False),
}
_TOLERATED = 0.05  # fall of a network's loss in the last quarter of its updates beyond which it counts as unconverged
_SPOKEN = {"q": "q", "v": "v", "ratio": "the marginal ratio"}


@named_options
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
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The value of a deterministic policy; see the module for methods.

    `jax.grad(lambda theta: evaluate(..., theta, ...).value)`, within `with jax.enable_x64(True)`, is the gradient, if the
    nuisances are made of theta in the same function. It raises for the uniform kernel.

    Args:
        method: key of `METHODS`.
        trajectories: n of them, with actions `float[n, T, A]` and `behaviour_log_prob`, the log-density of these.
        policy: tau, `(parameters, observations [..., *O]) -> actions [..., A]`; the same object in all calls, as each is
            compiled for itself.
        parameters: theta.
        smoothing: kernel, bandwidth and form; h and form must be those that the nuisances were made with.
        nuisances: of `given_nuisances` or `fit_nuisances`; None for `cumulative_importance_sampling`, which needs none. At a
            horizon of 1 no ratio is needed: it is 1 where there is none.
        self_normalised: whether weights of each step are divided by their mean over trajectories, which leaves a bias of
            order 1 / n and no dependence on the scale of the behaviour density.
        behaviour_at_target: as of `ratios.ratios_of`.
        discount: gamma.
        counts: `float[n]`, how often each trajectory counts, or None for once.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Nuisances are taken as given: cross-fit them. Intervals are about the estimator's mean. They cover the
        value where bias is small next to the error: choose h smaller than is best for the error,
        `bandwidth.rate_bandwidth(undersmooth=True)`. Diagnostics: those of
        `trajectory.statistics.estimate_statistic`, `effective_sample_sizes` `[T]` of the weights of each step, their minimum
        `smallest_effective_sample_size`; `clipped_share` of the ratios w that were clipped; and of networks `still_falling`,
        the most that the loss of any step's q fell in the last quarter of its updates, and `unconverged`, 1 if that is above
        0.05.

    Raises:
        ValueError: for invalid data, settings or policies.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1.0, 1.0, 8).reshape(8, 1, 1)
        >>> ends = np.ones((8, 1), bool)
        >>> density = np.full((8, 1), np.log(0.5))
        >>> data = Trajectories(x, 0.5 * x, -np.square(x[..., 0]), density, ends, ends, ~ends, None)
        >>> def policy(gain, observations):
        ...     return gain * observations
        >>> found = evaluate("cumulative_importance_sampling", data, policy, 0.5, Smoothing(0.5, kernel="uniform", scale=1.0))
        >>> print(f"{found.value:.4f}")
        -0.8571
    """
    chosen = _method(method)
    if not chosen.valued:
        raise ValueError(f"{method} is a gradient and has no value; use `gradient`, or marginal_doubly_robust.")
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    shared = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
    with float64(trajectories, parameters, smoothing, nuisances, counts):
        ratios = ratios_of(trajectories, policy, parameters, smoothing, **shared)
        nuisances = _checked(method, nuisances, ratios, derivatives=False)
        size = resample_size(counts, drawn=checked.drawn)
        return _evaluated(
            ratios.steps, nuisances, method=chosen, normalised=self_normalised, settings=checked, size=size
        )


@named_options
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
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> GradientEstimate:
    """The gradient of a deterministic policy's value with respect to its parameters, by the sums of the module.

    It keeps P numbers for every step, and P^2: for policies of many parameters take `jax.grad` of `evaluate`, which keeps none,
    and has no errors.

    Args:
        method: key of `METHODS`.
        trajectories: as of `evaluate`.
        policy: as there.
        parameters: theta.
        smoothing: as there; not the uniform kernel.
        nuisances: with derivatives, which policy gradients do not need.
        self_normalised: as there; the gradient is then that of the self-normalised value, and policy gradients are divided.
        behaviour_at_target: as there, a function.
        discount: gamma.
        counts: as there.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        `GradientEstimate`, whose covariance is that of the mean over trajectories, linearised. Intervals are of each parameter
        by itself: all of P together cover with `level` if each is asked for at `1 - (1 - level) / P`. The bandwidth is too wide
        for them unless chosen by `bandwidth.rate_bandwidth(gradient=True, undersmooth=True)`.

    Raises:
        ValueError: as `evaluate`, and for nuisances without derivatives.
    """
    chosen, checked = _method(method), settings_of(level, sides, interval, resamples, seed, floor)
    shared = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
    with float64(trajectories, parameters, smoothing, nuisances, counts):
        ratios = ratios_of(trajectories, policy, parameters, smoothing, scores=True, **shared)
        nuisances = _checked(method, nuisances, ratios, derivatives=True)
        options = dict(normalised=self_normalised, settings=checked, size=resample_size(counts, drawn=checked.drawn))
        found = _gradient(ratios.steps, ratios.scores, nuisances, method=chosen, **options)
        return restored(found, ravel_pytree(ratios.parameters)[1])


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def _checked(name: str, nuisances: Nuisances | None, ratios: Ratios, *, derivatives: bool) -> Nuisances:
    """Nuisances with 0 in the padding, and neutral ones where they do not enter."""
    method, steps, given = METHODS[name], ratios.steps, nuisances or Nuisances()
    zeros = jnp.zeros_like(steps.rewards)
    entering = [name for name in method.columns if name != "ratio" or zeros.shape[1] > 1 or given.ratio is not None]
    missing = [_SPOKEN[name] for name in entering if getattr(given, name) is None]
    if missing:
        raise ValueError(
            f"{name} needs nuisances with {' and '.join(missing)}; have them from `given_nuisances` or `fit_nuisances`."
        )

    def column(name: str) -> Array:
        values = jnp.asarray(getattr(given, name), jnp.float64)
        slope = name.endswith("gradient")
        shape = (*zeros.shape, ratios.scores.shape[-1]) if slope else zeros.shape
        if values.shape != shape:
            raise ValueError(f"{name} has shape {values.shape}; {shape} is needed: were nuisances made of other data?")
        mask = steps.mask[..., None] if slope else steps.mask
        if is_concrete(values, mask):
            if not bool(jnp.all(jnp.isfinite(values) | ~mask)):
                raise ValueError(f"{name} must be finite at all steps that were made.")
            if name == "ratio" and bool(jnp.any((values < 0) & mask)):
                raise ValueError("the marginal ratio must not be negative: it is a ratio of densities. Clip it at 0.")
        return jnp.where(mask, values, 0.0)

    found = Nuisances(zeros, zeros, zeros + 1.0, *[jnp.zeros((1, 1, 1))] * 3, zeros, zeros)
    found = found._replace(
        **{name: column(name) for name in ("clipped", "still_falling") if getattr(given, name) is not None}
    )
    found = found._replace(**{name: column(name) for name in entering})
    if not (derivatives and method.valued):
        return found
    slopes = [f"{name}_gradient" for name in entering]
    for name in slopes:
        if getattr(given, name) is None:
            raise ValueError(
                f"gradients need nuisances with {name}; ask for gradient=True where they are made, or use jax.grad."
            )
    return found._replace(**{name: column(name) for name in slopes})


def _log_weight(method: Method, steps: Steps, ratio: Array) -> Array:
    """log lambda_t or log mu_t, kept in the padding."""
    if method.weights == "none":
        return jnp.zeros_like(ratio)
    if method.weights == "cumulative":
        return jnp.cumsum(steps.log_ratio, axis=1)
    positive = ratio > 0
    log_ratio = jnp.where(positive, jnp.log(jnp.where(positive, ratio, 1.0)), -jnp.inf)
    return held(log_ratio + steps.log_ratio, steps.mask)


def _diagnostics(steps: Steps, log_weight: Array, nuisances: Nuisances) -> dict[str, Array]:
    scaled = scaled_weights(log_weight, steps.counts)
    sizes = jax.vmap(effective_size, (None, 1))(steps.counts, scaled)
    shown = steps.counts[:, None] * steps.mask
    falling = jnp.max(quotient(jnp.sum(shown * nuisances.still_falling, axis=0), jnp.sum(shown, axis=0)))
    return {
        "effective_sample_sizes": sizes,
        "smallest_effective_sample_size": jnp.min(sizes),
        "clipped_share": jnp.sum(shown * nuisances.clipped) / jnp.sum(shown),
        "still_falling": falling,
        "unconverged": (falling > _TOLERATED).astype(jnp.float64),
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
    found = _diagnostics(steps, log_weight, nuisances)
    return estimate_statistic(statistic, steps, log_weight[:, -1], settings, diagnostics=found, size=size)


@functools.partial(jax.jit, static_argnames=("method", "normalised", "settings", "size"))
def _gradient(
    steps: Steps,
    scores: Array,
    nuisances: Nuisances,
    *,
    method: Method,
    normalised: bool,
    settings: Settings,
    size: int | None,
) -> GradientEstimate:
    log_weight = _log_weight(method, steps, nuisances.ratio)
    kind = dict(weights=method.weights, valued=method.valued, normalised=normalised)
    statistic = gradient_statistic(steps, scores, log_weight, nuisances, **kind)
    found = _diagnostics(steps, log_weight, nuisances)
    return estimate_gradient(statistic, steps, log_weight[:, -1], settings, diagnostics=found, size=size)
