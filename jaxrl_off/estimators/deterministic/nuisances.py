"""What kernelised estimators need beside ratios of single steps: q, v, the marginal ratio w, and their derivatives.

Known functions become columns by `given_nuisances`, fitted ones by `fit_nuisances`:

* backwards, `q_t(s, a) = E[r_t + gamma v_{t+1}(s_{t+1}) | s, a]`, `v_t` of q_t by the form of the smoothing, and
  `q'_t = E[gamma v'_{t+1} | s, a]`, `v'_t(s) = E_K[q'_t] + d/dtau E_K[q_t] tau'`, a dash the derivative with respect to theta;
* forwards, `w_t(s) = E[mu_{t-1} | s_t = s]`, `mu_t = w_t eta_t`, `w_0 = 1`, and `w'_t = E[d_{t-1} | s_t = s]`,
  `d_t = eta_t (w'_t + w_t g_t)`. w is clipped at 0, and made to have the mean it must have: 1 where all trajectories go on.
  As eta is kernelised, w is the ratio of the smoothed policy's states in every form, at a distance of order h^2 from the other.

Linear sieves give derivatives that are those of the fit itself, as the features do not depend on theta: `jax.grad` through
`fit_nuisances` is the explicit recursion. What ends a row is the end of all value.

The authors' code regresses importance-weighted returns for q, products of ratios for w (whose variance grows with the
horizon as that of the cumulative estimator), and does not cross-fit; here each regression leans on the step next to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl_off.estimators.common import float64, is_concrete, named_options
from jaxrl_off.estimators.deterministic.ratios import Policy, Ratios, behaves, ratios_of
from jaxrl_off.estimators.deterministic.recursions import (
    Step,
    backwards,
    flattened,
    forwards,
    of_other_folds,
    stacked,
)
from jaxrl_off.estimators.deterministic.regressions import Fitted, LinearSieve, NetworkRegression, regression_of
from jaxrl_off.estimators.deterministic.smoothing import Smoothing, action_nodes, required
from jaxrl_off.types import Array, PyTree, Trajectories


class Nuisances(NamedTuple):
    """Columns along trajectories, float64; None where they were not asked for.

    Attributes:
        q: `[n, T]`, q_t(s_t, a_t).
        v: `[n, T]`, v_t(s_t).
        ratio: `[n, T]`, w_t(s_t), not negative.
        q_gradient: `[n, T, P]`, with respect to the policy's parameters, in the order of `jax.flatten_util.ravel_pytree`.
        v_gradient: `[n, T, P]`, the whole derivative, also through tau.
        ratio_gradient: `[n, T, P]`.
        clipped: `[n, T]`, 1 where w was clipped, or None.
        still_falling: `[n, T]`, how much the loss of the network for q_t of the row's fold still fell at the end, or None; see
            `fitting_model.still_falling`.
    """

    q: Array | None = None
    v: Array | None = None
    ratio: Array | None = None
    q_gradient: Array | None = None
    v_gradient: Array | None = None
    ratio_gradient: Array | None = None
    clipped: Array | None = None
    still_falling: Array | None = None


def given_nuisances(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    *,
    q: Callable[[PyTree, Array, Array], Array] | None = None,
    ratio: Callable[[PyTree, Array], Array] | None = None,
    gradient: bool = False,
) -> Nuisances:
    """Columns of functions that are known.

    Args:
        trajectories: n of them.
        policy: tau.
        parameters: theta.
        smoothing: whose form says what v is.
        q: `(theta, observations [n, T, *O], actions [n, T, A]) -> [n, T]`, q_t; column t is for step t. None for none.
        ratio: `(theta, observations [n, T, *O]) -> [n, T]`, w_t. None for none.
        gradient: whether to have derivatives, by forward differentiation of these functions.

    Returns:
        `Nuisances`.

    Raises:
        ValueError: for data, policies or functions of other shapes.
    """
    with float64(trajectories, parameters, smoothing):
        # the ratios are not looked at: known functions need no behaviour density
        neutral = trajectories._replace(behaviour_log_prob=np.zeros(jnp.shape(trajectories.rewards)))
        ratios = ratios_of(neutral, policy, parameters, required(smoothing).replace(form="mixed"))
        smoothing = ratios.smoothing.replace(form=smoothing.form)
        shape, size = ratios.steps.mask.shape, ratios.actions.shape[-1]
        flat, restore = ravel_pytree(ratios.parameters)

        def columns(theta: Array) -> dict[str, Array]:
            theta = restore(theta)
            found = {}
            if q is not None:
                nodes, weights = action_nodes(smoothing, behaves(policy, theta, ratios.observations, size))
                found["q"] = q(theta, ratios.observations, ratios.actions)
                found["v"] = sum(
                    weights[..., m] * q(theta, ratios.observations, nodes[..., m, :]) for m in range(nodes.shape[-2])
                )
            if ratio is not None:
                found["ratio"] = ratio(theta, ratios.observations)
            for name, column in found.items():
                if jnp.shape(column) != shape:
                    raise ValueError(f"{name} has shape {jnp.shape(column)}; {shape} is needed, one for every step.")
            return {name: jnp.where(ratios.steps.mask, column, 0.0) for name, column in found.items()}

        found = columns(flat)
        slopes = jax.jacfwd(columns)(flat) if gradient else {}
        return Nuisances(**found, **{f"{name}_gradient": slope for name, slope in slopes.items()})


@named_options
def fit_nuisances(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    model: LinearSieve | NetworkRegression | None = None,
    *,
    behaviour_at_target: Any = None,
    folds: int = 2,
    seed: int = 0,
    gradient: bool = False,
    largest_ratio: float | None = None,
    discount: float = 1.0,
    counts: Any = None,
) -> Nuisances:
    """Columns of fitted functions, each row from a fit to the other folds.

    Under `jax.grad` with a `LinearSieve` derivatives pass through the fit, whatever `gradient` is. With a network they are
    those that `gradient=True` has fitted, and must be asked for.

    Args:
        trajectories: n of them, as of `evaluate`.
        policy: tau.
        parameters: theta.
        smoothing: kernel, bandwidth and form, as `evaluate` will have it.
        model: `LinearSieve()` if None.
        behaviour_at_target: as of `ratios.ratios_of`.
        folds: into how many parts trajectories are put at random, 2 or more.
        seed: of that, and of networks.
        gradient: whether to fit derivatives, P numbers for every step.
        largest_ratio: w is clipped there, or None.
        discount: gamma.
        counts: `float[n]`, or None for once each. Those that count 0 are not learned from.

    Returns:
        `Nuisances`.

    Raises:
        ValueError: for invalid data, settings or policies, folds fewer than 2 or more than trajectories, and
            steps in which neither observations nor actions vary.
    """
    model = LinearSieve() if model is None else model
    if largest_ratio is not None and not largest_ratio > 1.0:
        raise ValueError(f"largest_ratio must be above 1, the mean of ratios, got {largest_ratio}.")
    with float64(trajectories, parameters, smoothing, counts, model):
        network = isinstance(model, NetworkRegression)
        theta = jax.lax.stop_gradient(parameters) if network else parameters
        shared = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
        ratios = ratios_of(trajectories, policy, theta, smoothing, scores=gradient, **shared)
        found = _fitted(
            ratios,
            model,
            _members(ratios, folds, seed),
            jax.random.key(seed),
            jnp.asarray(jnp.inf if largest_ratio is None else largest_ratio, jnp.float64),
            jnp.asarray(discount, jnp.float64),
            policy=policy,
            folds=folds,
        )
        if not network or not gradient:
            return found
        flat = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), parameters))[0]
        change = flat - jax.lax.stop_gradient(flat)
        return found._replace(
            q=found.q + found.q_gradient @ change,
            v=found.v + found.v_gradient @ change,
            ratio=found.ratio + found.ratio_gradient @ change,
        )


@named_options
def fit_action_gradient(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    model: LinearSieve | NetworkRegression | None = None,
    *,
    folds: int = 2,
    seed: int = 0,
    discount: float = 1.0,
    counts: Any = None,
) -> Array:
    """`d q_t(s_t, a) / da` of the fitted q at the target, for `deterministic_policy_gradient`: cross-fitted.

    Args:
        trajectories: as of `fit_nuisances`; no behaviour density is needed.
        policy: tau.
        parameters: theta.
        smoothing: of which the scale is used, to standardise actions.
        model: as there.
        folds: as there.
        seed: as there.
        discount: gamma.
        counts: as there.

    Returns:
        `float64[n, T, A]`.

    Raises:
        ValueError: as `fit_nuisances`.
    """
    data = dict(discount=discount, counts=counts)
    found, scale = _fit_derivatives(trajectories, policy, parameters, smoothing, model, folds, seed, order=1, **data)
    with float64(found):
        return found / scale


@named_options
def fit_curvature(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    model: LinearSieve | NetworkRegression | None = None,
    *,
    folds: int = 2,
    seed: int = 0,
    discount: float = 1.0,
    counts: Any = None,
) -> Array:
    """Hessians of the fitted q in the action at the target, for `metric.kernel_metric`: cross-fitted, in units of the scale.

    Args:
        trajectories: as of `fit_nuisances`; no behaviour density is needed.
        policy: tau.
        parameters: theta.
        smoothing: whose scale is the unit of actions.
        model: as there; a polynomial of degree 2 has one Hessian for all states of a step.
        folds: as there.
        seed: as there.
        discount: gamma.
        counts: as there.

    Returns:
        `float64[n, T, A, A]`.

    Raises:
        ValueError: as `fit_nuisances`.
    """
    data = dict(discount=discount, counts=counts)
    return _fit_derivatives(trajectories, policy, parameters, smoothing, model, folds, seed, order=2, **data)[0]


def _fit_derivatives(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    model: LinearSieve | NetworkRegression | None,
    folds: int,
    seed: int,
    *,
    discount: float,
    counts: Any,
    order: int,
) -> tuple[Array, Array]:
    """Derivatives of q in the action at the target, in units of the scale, and that scale."""
    model = LinearSieve() if model is None else model
    with float64(trajectories, parameters, smoothing, counts, model):
        # q needs no ratios
        neutral = trajectories._replace(behaviour_log_prob=np.zeros(jnp.shape(trajectories.rewards)))
        smoothing = required(smoothing).replace(form="mixed")
        ratios = ratios_of(neutral, policy, parameters, smoothing, discount=discount, counts=counts)
        settings = dict(policy=policy, folds=folds, order=order)
        found = _derivatives(
            ratios,
            model,
            _members(ratios, folds, seed),
            jax.random.key(seed),
            jnp.asarray(discount, jnp.float64),
            **settings,
        )
        return found, ratios.smoothing.scale


def _members(ratios: Ratios, folds: int, seed: int) -> Array:
    """Which fold each trajectory is in."""
    n = len(ratios.steps.counts)
    if not 2 <= folds <= n:
        raise ValueError(
            f"folds must be between 2 and the number of trajectories, {n}, got {folds}: nuisances fitted to the rows that they "
            "correct make estimates biased."
        )
    _check_variation(ratios)
    return jnp.asarray(np.random.default_rng(seed).permutation(np.arange(n) % folds))


def _check_variation(ratios: Ratios) -> None:
    if not is_concrete(ratios.steps, ratios.actions, ratios.observations):
        return
    inputs = np.concatenate([flattened(ratios.observations), ratios.actions], axis=-1)
    shown = np.asarray(ratios.steps.mask)[..., None]
    low = np.where(shown, inputs, np.inf).min(axis=0)
    high = np.where(shown, inputs, -np.inf).max(axis=0)
    several = shown[..., 0].sum(axis=0) > 1
    constant = several & ~(high > low).any(axis=-1)
    if constant.any():
        raise ValueError(
            f"in step {int(np.argmax(constant))} neither observations nor actions vary over trajectories: features are "
            "constant, and action values cannot be told from them. Is the behaviour deterministic?"
        )


@functools.partial(jax.jit, static_argnames=("policy", "folds"))
def _fitted(
    ratios: Ratios,
    model: LinearSieve | NetworkRegression,
    member: Array,
    key: Array,
    largest: Array,
    discount: Array,
    *,
    policy: Policy,
    folds: int,
) -> Nuisances:
    data = stacked(ratios)

    def one(weights: Array) -> Nuisances:
        values, fitted = backwards(data, ratios, regression_of(model, ratio=False), weights, key, discount, policy)
        marginal = forwards(data, regression_of(model, ratio=True), weights, jax.random.fold_in(key, 1), largest)
        falling = jnp.broadcast_to(fitted.still_falling[:, None], values[0].shape)
        return Nuisances(*values[:2], marginal[0], *values[2:], *marginal[1:], falling)

    return of_other_folds(one, ratios.steps.counts, member, folds)


@functools.partial(jax.jit, static_argnames=("policy", "folds", "order"))
def _derivatives(
    ratios: Ratios,
    model: LinearSieve | NetworkRegression,
    member: Array,
    key: Array,
    discount: Array,
    *,
    policy: Policy,
    folds: int,
    order: int,
) -> Array:
    derivative = {1: jax.grad, 2: jax.hessian}[order]
    data, regression = stacked(ratios), regression_of(model, ratio=False)
    scale = ratios.smoothing.scale

    def one(weights: Array) -> Array:
        _, fitted = backwards(data, ratios, regression, weights, key, discount, policy)

        def at(fitted: Fitted, now: Step) -> Array:
            def q(change: Array, state: Array, action: Array) -> Array:
                return regression.predict(fitted, jnp.concatenate([state, action + scale * change]))[0]

            target = behaves(policy, ratios.parameters, now.observations, len(scale))
            return jax.vmap(lambda state, action: derivative(q)(jnp.zeros_like(scale), state, action))(now.flat, target)

        return jax.lax.map(lambda pair: at(*pair), (fitted, data))

    return of_other_folds(one, ratios.steps.counts, member, folds)
