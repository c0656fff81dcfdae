"""Learning a deterministic policy from trajectories: gradient ascent on estimates of its value.

Objectives are the methods of `estimates.METHODS` that have a value, whose gradients are differentiated through the fit of the
nuisances, and `deterministic_policy_gradient`: `sum_t gamma^t w_t(s_t) tau'(s_t) d_a q_t(s_t, tau(s_t))`, with q and w fitted
(Silver et al. 2014, but for the weights w, which put right that states are those of the behaviour policy). It has no kernel but
in w, needs the slope of q to be right, and is not doubly robust.

Deviation from the authors' code: they take 70 steps of 0.008 along a gradient that they do not divide by h^2; here Adam, with a
rate that falls to 0, takes out the scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxrl_off.estimators.common import did_you_mean, float64, is_concrete, named_options
from jaxrl_off.estimators.deterministic.estimates import METHODS, evaluate
from jaxrl_off.estimators.deterministic.gradients import GradientEstimate, estimate_gradient, restored
from jaxrl_off.estimators.deterministic.nuisances import Nuisances, fit_action_gradient, fit_nuisances
from jaxrl_off.estimators.deterministic.ratios import FIXED_DENSITY, LogDensity, Policy, ratios_of
from jaxrl_off.estimators.deterministic.regressions import LinearSieve, NetworkRegression
from jaxrl_off.estimators.deterministic.smoothing import Smoothing
from jaxrl_off.estimators.trajectory.statistics import Settings, resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, held
from jaxrl_off.types import Array, PyTree, Trajectories

PLUG_IN = "deterministic_policy_gradient"
OBJECTIVES = (*(name for name, method in METHODS.items() if method.valued), PLUG_IN)


class Learning(NamedTuple):
    """What `learn` returns; float64.

    Attributes:
        parameters: after the last step.
        path: parameters before each step, `[steps, ...]`.
        objective: `[steps]`, the estimate before each step; for `deterministic_policy_gradient` that of the direct method when
            nuisances were last fitted.
        gradient_norm: `[steps]`; a step whose gradient is not finite is not taken.
    """

    parameters: PyTree
    path: PyTree
    objective: Array
    gradient_norm: Array


class _Task(NamedTuple):
    objective: str
    steps: int
    refit: int
    folds: int
    seed: int
    self_normalised: bool


def split(trajectories: Trajectories, share: float = 0.5, *, seed: int = 0) -> tuple[Trajectories, Trajectories]:
    """Trajectories to learn from, and others to judge by what was learned.

    Args:
        trajectories: n of them.
        share: of the first part.
        seed: of the order.

    Raises:
        ValueError: if a part would be empty.
    """
    count = len(trajectories.rewards)
    first = round(share * count)
    if not 0 < first < count:
        raise ValueError(f"share = {share} of {count} trajectories leaves a part empty; both need at least one.")
    order = np.random.default_rng(seed).permutation(count)

    def rows_of(rows: np.ndarray) -> Trajectories:
        return jax.tree.map(lambda column: column[rows], trajectories)

    return rows_of(order[:first]), rows_of(order[first:])


@named_options
def deterministic_policy_gradient(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    action_gradient: Any,
    nuisances: Nuisances,
    *,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> GradientEstimate:
    """`sum_t gamma^t w_t(s_t) tau'(s_t) d_a q_t(s_t, tau(s_t))`, a mean over trajectories; not doubly robust.

    Args:
        trajectories: n of them, with actions `float[n, T, A]`; no behaviour density is needed.
        policy: tau.
        parameters: theta.
        action_gradient: `float[n, T, A]`, `d_a q_t`, of `fit_action_gradient` or known.
        nuisances: with the marginal ratio w of the states; without, w = 1, at a horizon of 1 alone.
        discount: gamma.
        counts: `float[n]`, or None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        `GradientEstimate`, of whose diagnostics weights are w of the last step. Intervals are about the estimator's mean, and
        know nothing of a slope or ratio that is wrong.

    Raises:
        ValueError: for shapes that do not fit, nuisances without ratio, ratios that are negative, and what is not finite.
    """
    if nuisances.ratio is None and jnp.shape(trajectories.rewards)[1:] != (1,):
        raise ValueError("deterministic_policy_gradient needs nuisances with the marginal ratio; see `fit_nuisances`.")
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    with float64(trajectories, parameters, action_gradient, nuisances, counts):
        neutral = trajectories._replace(behaviour_log_prob=np.zeros(jnp.shape(trajectories.rewards)))
        ratios = ratios_of(neutral, policy, parameters, Smoothing(1.0, scale=1.0), discount=discount, counts=counts)
        mask, slopes = ratios.steps.mask, jnp.asarray(action_gradient, jnp.float64)
        ratio = jnp.ones(mask.shape) if nuisances.ratio is None else jnp.asarray(nuisances.ratio, jnp.float64)
        if slopes.shape != ratios.actions.shape or ratio.shape != mask.shape:
            raise ValueError(
                f"action_gradient has shape {slopes.shape} and the ratio {ratio.shape}; with these trajectories they must be "
                f"{ratios.actions.shape} and {mask.shape}."
            )
        slopes, ratio = jnp.where(mask[..., None], slopes, 0.0), jnp.where(mask, ratio, 0.0)
        if is_concrete(slopes, ratio) and not bool(jnp.all(jnp.isfinite(slopes)) & jnp.all(ratio >= 0)):
            raise ValueError("action_gradient must be finite, and the ratio not negative, at all steps that were made.")
        options = dict(policy=policy, settings=checked, size=resample_size(counts, drawn=checked.drawn))
        found = _plugged_in(ratios.steps, ratios.observations, ratios.parameters, slopes, ratio, **options)
        return restored(found, ravel_pytree(ratios.parameters)[1])


@functools.partial(jax.jit, static_argnames=("policy", "settings", "size"))
def _plugged_in(
    steps: Steps,
    observations: Array,
    parameters: PyTree,
    slopes: Array,
    ratio: Array,
    *,
    policy: Policy,
    settings: Settings,
    size: int | None,
) -> GradientEstimate:
    flat, restore = ravel_pytree(parameters)

    def along(theta: Array, observations: Array, pull: Array) -> Array:
        return jnp.sum(pull * policy(restore(theta), observations))

    pulls = (steps.discounts * ratio)[..., None] * slopes
    terms = jax.vmap(jax.grad(along), (None, 0, 0))(flat, observations, pulls)  # [n, P]
    log_weight = jnp.log(held(ratio, steps.mask)[:, -1])
    return estimate_gradient(lambda counts: counts @ terms / jnp.sum(counts), steps, log_weight, settings, size=size)


@named_options
def learn(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    *,
    objective: str = "marginal_doubly_robust",
    steps: int = 100,
    learning_rate: float = 0.01,
    refit: int = 1,
    model: LinearSieve | NetworkRegression | None = None,
    folds: int = 2,
    seed: int = 0,
    self_normalised: bool = False,
    largest_ratio: float | None = None,
    behaviour_at_target: LogDensity | None = None,
    discount: float = 1.0,
    counts: Any = None,
) -> Learning:
    """Learn a deterministic policy by Adam, all trajectories at every step, at a rate that falls to 0 linearly.

    A pure function: `jax.vmap` over data sets of one size works, within `with jax.enable_x64(True)`. The objective after
    learning is too high for what was learned, which was chosen for it: judge by `evaluate` on other trajectories, see `split`.

    Args:
        trajectories: n of them, as of `evaluate`.
        policy: tau, `(parameters, observations [..., *O]) -> actions [..., A]`, differentiable: linear, a flax module's
            `apply`, ...
        parameters: theta to begin with, a pytree.
        smoothing: kernel, bandwidth and form; h stays as it is.
        objective: one of `OBJECTIVES`.
        steps: of Adam.
        learning_rate: of Adam, at first.
        refit: every how many steps nuisances are fitted anew; between, they are expanded to first order in theta about the
            parameters that they were fitted for, and of `deterministic_policy_gradient` kept as they are.
        model: `LinearSieve()` if None. Networks keep P numbers for every step, but for `deterministic_policy_gradient`.
        folds: of cross-fitting; the same at every fit.
        seed: of that, and of networks.
        self_normalised: as of `evaluate`.
        largest_ratio: as of `fit_nuisances`.
        behaviour_at_target: of form "point", a function, as of `ratios.ratios_of`.
        discount: gamma.
        counts: `float[n]`, or None for once each.

    Returns:
        A `Learning`.

    Raises:
        ValueError: for invalid arguments.
    """
    if objective not in OBJECTIVES:
        hint = did_you_mean(str(objective), OBJECTIVES)
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.{hint}")
    if steps < 1 or refit < 1 or steps % refit:
        raise ValueError(
            f"steps must be a multiple of refit, both at least 1, got {steps} and {refit}: nuisances are fitted every {refit} "
            "steps."
        )
    if self_normalised and objective == PLUG_IN:
        raise ValueError(
            "self_normalised divides kernelised weights, and deterministic_policy_gradient has none; leave it out."
        )
    if not (behaviour_at_target is None or callable(behaviour_at_target)):
        raise ValueError(FIXED_DENSITY)
    if is_concrete(learning_rate) and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    model = LinearSieve() if model is None else model
    with float64(trajectories, parameters, smoothing, counts, learning_rate, model):
        given = dict(behaviour_at_target=behaviour_at_target, discount=discount, counts=counts)
        ratios = ratios_of(trajectories, policy, parameters, smoothing, **given)  # refuses invalid data
        return _learn(
            jax.tree.map(jnp.asarray, trajectories),
            ratios.parameters,
            ratios.smoothing,
            model,
            jnp.asarray(learning_rate, jnp.float64),
            jnp.asarray(discount, jnp.float64),
            ratios.steps.counts,
            policy=policy,
            density=behaviour_at_target,
            task=_Task(objective, steps, refit, folds, seed, self_normalised),
            largest_ratio=largest_ratio,
        )


class _Problem(NamedTuple):
    """What stays as it is while a policy is learned."""

    trajectories: Trajectories
    smoothing: Smoothing
    model: LinearSieve | NetworkRegression
    discount: Array
    counts: Array
    policy: Policy
    density: LogDensity | None
    largest_ratio: float | None
    task: _Task

    def fit(self, theta: PyTree) -> Nuisances:
        """Nuisances of a policy; networks with derivatives, which do not pass through their fit."""
        return fit_nuisances(
            self.trajectories,
            self.policy,
            theta,
            self.smoothing,
            self.model,
            behaviour_at_target=self.density,
            folds=self.task.folds,
            seed=self.task.seed,
            gradient=isinstance(self.model, NetworkRegression) and self.task.objective != PLUG_IN,
            largest_ratio=self.largest_ratio,
            discount=self.discount,
            counts=self.counts,
        )

    def slopes(self, theta: PyTree) -> Array:
        """Slopes of the fitted q in the action."""
        return fit_action_gradient(
            self.trajectories,
            self.policy,
            theta,
            self.smoothing,
            self.model,
            folds=self.task.folds,
            seed=self.task.seed,
            discount=self.discount,
            counts=self.counts,
        )

    def value(self, theta: PyTree, nuisances: Nuisances) -> Array:
        """The estimate that is reported: the objective, or of the plug-in gradient the direct method."""
        return evaluate(
            "direct_method" if self.task.objective == PLUG_IN else self.task.objective,
            self.trajectories,
            self.policy,
            theta,
            self.smoothing,
            nuisances,
            self_normalised=self.task.self_normalised,
            behaviour_at_target=self.density,
            discount=self.discount,
            counts=self.counts,
        ).value

    def plug_in_gradient(self, theta: PyTree, slopes: Array, nuisances: Nuisances) -> PyTree:
        """`deterministic_policy_gradient` of a policy by slopes and nuisances that were fitted for one near it."""
        data = dict(discount=self.discount, counts=self.counts)
        return deterministic_policy_gradient(self.trajectories, self.policy, theta, slopes, nuisances, **data).value


_Gradient = Callable[[PyTree], tuple[Array, PyTree]]


def _plug_in(problem: _Problem, start: PyTree) -> _Gradient:
    """`theta -> (value, gradient)` near the parameters that nuisances are fitted for."""
    found, slopes = problem.fit(start), problem.slopes(start)
    value = problem.value(start, found)
    return lambda theta: (value, problem.plug_in_gradient(theta, slopes, found))


def _through_the_fit(problem: _Problem, start: PyTree) -> _Gradient:
    """The same for an objective with a value: nuisances are expanded to first order about where they are fitted."""
    if problem.task.objective == "cumulative_importance_sampling":  # it has none
        return jax.value_and_grad(lambda theta: problem.value(theta, Nuisances()))
    found, change = jax.linearize(problem.fit, start)

    def objective(theta: PyTree) -> Array:
        moved = jax.tree.map(jnp.subtract, theta, start)
        return problem.value(theta, jax.tree.map(jnp.add, found, change(moved)))

    return jax.value_and_grad(objective)


@functools.partial(jax.jit, static_argnames=("policy", "density", "task", "largest_ratio"))
def _learn(
    trajectories: Trajectories,
    parameters: PyTree,
    smoothing: Smoothing,
    model: LinearSieve | NetworkRegression,
    rate: Array,
    discount: Array,
    counts: Array,
    *,
    policy: Policy,
    density: LogDensity | None,
    task: _Task,
    largest_ratio: float | None,
) -> Learning:
    problem = _Problem(trajectories, smoothing, model, discount, counts, policy, density, largest_ratio, task)
    gradient_near = _plug_in if task.objective == PLUG_IN else _through_the_fit
    optimiser = optax.adam(lambda count: rate * (1.0 - count / task.steps))

    def block(carry: tuple[PyTree, PyTree], _: None) -> tuple[Any, Any]:
        """Steps between two fits of the nuisances."""
        value_and_gradient = gradient_near(problem, carry[0])

        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[Any, tuple[PyTree, Array, Array]]:
            theta, state = carry
            value, gradient = value_and_gradient(theta)
            norm = optax.global_norm(gradient)
            updates, moved = optimiser.update(jax.tree.map(jnp.negative, gradient), state, theta)
            after = optax.apply_updates(theta, updates), moved
            after = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), after, carry)
            return after, (theta, value, norm)

        return jax.lax.scan(step, carry, None, length=task.refit)

    first = parameters, optimiser.init(parameters)
    (theta, _), history = jax.lax.scan(block, first, None, length=task.steps // task.refit)
    path, values, norms = jax.tree.map(lambda x: x.reshape(task.steps, *x.shape[2:]), history)
    return Learning(theta, path, values, norms)
