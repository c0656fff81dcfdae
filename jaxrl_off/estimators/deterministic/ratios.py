"""From trajectories and a deterministic policy to kernelised ratios, and to how these change with the policy's parameters.

`eta_t = K_h(a_t - tau(s_t)) / b`, see `smoothing`; and the scores `g_t = d log eta_t / d theta`, theta the parameters as one
vector, in the order of `jax.flatten_util.ravel_pytree`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.deterministic.smoothing import (
    NO_SLOPE,
    Smoothing,
    checked,
    deviations,
    log_kernel,
    refusing_gradients,
    required,
)
from jaxrl_off.estimators.trajectory.steps import Steps, steps_of
from jaxrl_off.types import Array, PyTree, Trajectories

Policy = Callable[[PyTree, Array], Array]
LogDensity = Callable[[Array, Array], Array]

FIXED_DENSITY = "gradients with form 'point' need behaviour_at_target as a function of observations and actions."
_with_fixed_density = refusing_gradients(FIXED_DENSITY)


class Ratios(NamedTuple):
    """Checked columns in float64, neutral where there is padding.

    Attributes:
        steps: counts, rewards, mask, discounts; `log_ratio` is log eta_t.
        observations: `[n, T, *O]`, s_t; integers stay integers. The padding has those of some step that was made, so that a
            policy and its derivatives are asked about nothing else.
        actions: `float64[n, T, A]`, a_t.
        parameters: theta, float64.
        smoothing: checked.
        scores: `float64[n, T, P]`, g_t, 0 in the padding; None where they were not asked for.
    """

    steps: Steps
    observations: Array
    actions: Array
    parameters: PyTree
    smoothing: Smoothing
    scores: Array | None


def ratios_of(
    trajectories: Trajectories,
    policy: Policy,
    parameters: PyTree,
    smoothing: Smoothing,
    *,
    behaviour_at_target: LogDensity | Any = None,
    discount: float = 1.0,
    counts: Any = None,
    scores: bool = False,
) -> Ratios:
    """Check trajectories and policy, and make ratios. To be called within `float64`.

    Args:
        trajectories: n of them, with one array of observations, actions `float[n, T, A]`, and `behaviour_log_prob`, the
            logarithm of the behaviour density of the actions; of form "point" `behaviour_at_target` takes its place.
        policy: tau, `(parameters, observations [..., *O]) -> actions [..., A]`, row by row. Give the same object in all calls:
            each is compiled for itself.
        parameters: theta, a pytree of reals.
        smoothing: kernel, bandwidth and form.
        behaviour_at_target: of form "point", log b(tau(s_t)|s_t): `float[n, T]`, or a function `(observations [n, T, *O],
            actions [n, T, A]) -> float[n, T]`, which gradients need.
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.
        scores: whether to have g_t.

    Raises:
        ValueError: for what `trajectory.steps.steps_of` and `smoothing.checked` refuse; missing or infinite observations and
            actions; policies of other shapes, or out of the bounds; metrics of other shapes or determinants; a behaviour
            density that is 0 at the target action; and when differentiated, for the uniform kernel and for a density at the
            target that is no function.
    """
    point = required(smoothing).form == "point"
    if scores and smoothing.kernel == "uniform":
        raise ValueError(NO_SLOPE)
    if point and behaviour_at_target is None:
        raise ValueError(
            "form 'point' needs behaviour_at_target, log b(tau(s)|s); where it is not known use form 'mixed', or "
            "behaviour.estimate_behaviour_density."
        )
    if point and scores and not callable(behaviour_at_target):
        raise ValueError(FIXED_DENSITY)
    # a first pass for shapes and masks, before the policy is asked
    steps = steps_of(trajectories._replace(behaviour_log_prob=None), None, discount=discount, counts=counts)
    observations = data_column("observations", trajectories.observations, steps, 0)
    actions = data_column("actions", trajectories.actions, steps, 1)
    if actions.ndim != 3:
        raise ValueError(
            f"actions have shape {actions.shape}; float[n, T, A] is needed, with A = 1 for single numbers."
        )
    parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), parameters)
    if smoothing.scale is None:
        smoothing = smoothing.replace(scale=deviations(actions, steps.mask))
    smoothing = checked(smoothing, actions.shape[-1])
    smoothing = smoothing.replace(metric=_metric(smoothing.metric, steps))
    numerator, target, at_target, slopes = _kernels(
        parameters,
        observations,
        actions,
        smoothing,
        policy=policy,
        density=behaviour_at_target if point and callable(behaviour_at_target) else None,
        scores=scores,
    )
    _check_target(target, smoothing, steps)
    if point:
        given = at_target
        if not callable(behaviour_at_target):
            given, numerator = behaviour_at_target, _with_fixed_density(numerator)
        trajectories = trajectories._replace(behaviour_log_prob=_density(given, steps))
    numerator = jnp.where(steps.mask, numerator, 0.0)
    steps = steps_of(trajectories, numerator, discount=discount, counts=counts)
    if scores:
        slopes = jnp.where(steps.mask[..., None], slopes, 0.0)
    return Ratios(steps, observations, actions, parameters, smoothing, slopes)


def behaves(policy: Policy, parameters: PyTree, observations: Array, size: int) -> Array:
    """Actions of a policy, `float64[..., A]`, of the right shape.

    Raises:
        ValueError: if they are not.
    """
    found = jnp.asarray(policy(parameters, observations), jnp.float64)
    if found.ndim < 2 or found.shape != (*observations.shape[: found.ndim - 1], size):
        raise ValueError(
            f"the policy gives shape {found.shape} for observations {observations.shape}; [..., {size}] is needed, as logged "
            "actions have that many numbers."
        )
    return found


def pulled_back(policy: Policy, parameters: PyTree, observations: Array, pull: Array) -> Array:
    """`sum_a pull_a d tau_a / d theta` of each row, `float64[..., P]`.

    Args:
        policy: tau, row by row.
        parameters: theta.
        observations: `[..., *O]`.
        pull: `float64[..., A]`.
    """
    flat, restore = ravel_pytree(parameters)
    size = pull.shape[-1]
    if len(flat) <= size:
        slopes = jax.jacfwd(lambda theta: behaves(policy, restore(theta), observations, size))(flat)
        return jnp.einsum("...a,...ap->...p", pull, slopes)

    def along(theta: Array, row: Array, pull: Array) -> Array:
        return jnp.sum(pull * behaves(policy, restore(theta), row[None], size)[0])

    rows = observations.reshape(-1, *observations.shape[pull.ndim - 1 :])
    found = jax.vmap(jax.grad(along), (None, 0, 0))(flat, rows, pull.reshape(-1, size))
    return found.reshape(*pull.shape[:-1], -1)


@functools.partial(jax.jit, static_argnames=("policy", "density", "scores"))
def _kernels(
    parameters: PyTree,
    observations: Array,
    actions: Array,
    smoothing: Smoothing,
    *,
    policy: Policy,
    density: LogDensity | None,
    scores: bool,
) -> tuple[Array, Array, Array | None, Array | None]:
    """log K_h, tau, log b(tau|s) and the scores."""
    target = behaves(policy, parameters, observations, actions.shape[-1])
    if target.shape != actions.shape:
        raise ValueError(f"the policy gives shape {target.shape}; logged actions have {actions.shape}.")

    def of(target: Array) -> tuple[Array, tuple[Array, Array | None]]:
        numerator = log_kernel(smoothing, actions, target)
        at_target = None
        if density is not None:
            at_target = jnp.asarray(density(observations, target), jnp.float64)
        log_ratio = numerator if at_target is None else numerator - jnp.where(jnp.isfinite(at_target), at_target, 0.0)
        return jnp.sum(log_ratio), (numerator, at_target)

    if not scores:
        numerator, at_target = of(target)[1]
        return numerator, target, at_target, None
    pull, (numerator, at_target) = jax.grad(of, has_aux=True)(target)
    return numerator, target, at_target, pulled_back(policy, parameters, observations, pull)


def data_column(name: str, given: Any, steps: Steps, trailing: int) -> Array:
    """Observations or actions, checked where they are shown; elsewhere those of the first step of a row that counts.

    Args:
        name: for errors.
        given: `[n, T, ...]`.
        steps: columns.
        trailing: axes that there must be after these; 1 for actions, which become `float64`.

    Raises:
        ValueError: for other shapes, several arrays, none, or numbers that are not finite.
    """
    if given is None:
        raise ValueError(f"the trajectories have no {name}, from which the target policy's ratios are made.")
    leaves = jax.tree.leaves(given)
    if len(leaves) != 1 or leaves[0] is not given:
        raise ValueError(f"{name} are a {type(given).__name__}; a single array is allowed. Flatten them.")
    column, mask = jnp.asarray(given), steps.mask
    if column.shape[:2] != mask.shape or column.ndim < 2 + trailing:
        raise ValueError(
            f"{name} have shape {column.shape}; with rewards {mask.shape} it must be [n, T{', A' * trailing}]."
        )
    if jnp.issubdtype(column.dtype, jnp.floating) or trailing:
        column = column.astype(jnp.float64)
        wrong = mask & ~jnp.isfinite(column).reshape(*mask.shape, -1).all(axis=-1)
        if is_concrete(wrong) and bool(jnp.any(wrong)):
            row, step = np.argwhere(np.asarray(wrong))[0]
            raise ValueError(
                f"{name} must be finite; step {step} of trajectory {row} is not. Fix or remove these trajectories."
            )
    known = column[jnp.argmax(mask[:, 0]), 0]
    return jnp.where(mask.reshape(*mask.shape, *[1] * (column.ndim - 2)), column, known)


def _metric(metric: Array | None, steps: Steps) -> Array | None:
    """A metric that was checked, the identity in the padding."""
    if metric is None:
        return None
    if metric.shape[:2] != steps.mask.shape:
        raise ValueError(f"metric has shape {metric.shape}, rewards {steps.mask.shape}; n and T must agree.")
    metric = jnp.where(steps.mask[..., None, None], metric, jnp.eye(metric.shape[-1]))
    if is_concrete(metric):
        volume = np.abs(np.linalg.det(np.asarray(metric)))
        wrong = ~(np.abs(volume - 1.0) < 1e-3)
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"metric must have determinants of 1 or -1; that of step {step} of trajectory {row} is {volume[row, step]:.3g} "
                "in size, and kernels would not be densities. See metric.kernel_metric."
            )
    return metric


def _check_target(target: Array, smoothing: Smoothing, steps: Steps) -> None:
    if not is_concrete(target, smoothing, steps):
        return
    shown = steps.mask[..., None]
    if not bool(jnp.all(jnp.isfinite(target) | ~shown)):
        raise ValueError("the policy's actions must be finite in all states; look at its parameters.")
    if smoothing.lower is not None:
        inside = (target >= smoothing.lower) & (target <= smoothing.upper)
        if not bool(jnp.all(inside | ~shown)):
            raise ValueError(
                "the policy's actions must lie within the bounds lower and upper; clip them in the policy."
            )


def _density(given: Any, steps: Steps) -> Any:
    density = jnp.asarray(given, jnp.float64)
    if density.shape != steps.mask.shape:
        raise ValueError(
            f"behaviour_at_target has shape {density.shape}; {steps.mask.shape} is needed, one for every step."
        )
    if is_concrete(density, steps):
        wrong = np.asarray(steps.mask & ~jnp.isfinite(density))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"behaviour_at_target is {density[row, step]} in step {step} of trajectory {row}: the behaviour density must "
                "be positive at the target action. Use form 'mixed', which needs it at logged actions alone, or a "
                "policy nearer to the data."
            )
    return density
