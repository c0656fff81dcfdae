"""Checked transitions, for all estimators that fit functions; what the target would do in their states: `target_policy`.

A trajectory of L steps has L + 1 states, `s_0 .. s_{L-1}` of `observations` and `s_L` of `final_observation`. Columns of
states are `[n, T + 1, ...]`: entry t is s_t, entry L what followed the last step, and later ones are 0.

`ends` says what the end of a row means.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.columns.ends import ends_of
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, checked_candidates, states_of
from jaxrl_off.estimators.trajectory.steps import Steps, log_weights, scaled_weights, steps_of
from jaxrl_off.types import Array, Trajectories


class ActionValues(NamedTuple):
    """Action values of a policy along trajectories, as `weights.doubly_robust` and its kin take them.

    Attributes:
        q: `float64[n, T]`, Q(s_t, a_t); 0 in the padding.
        v: `float64[n, T]`, V(s_t) of the target; 0 in the padding.
        final: `float64[n]`, the value of what followed the last step, V of `final_observation`; 0 where that step terminated.
            None where it is not known. Estimators with `horizon_exit=False` bootstrap from it; those with True take nothing to
            follow a cut, and do not look at it.
    """

    q: Array
    v: Array
    final: Array | None


class Transitions(NamedTuple):
    """Checked columns, neutral where there is padding.

    Attributes:
        steps: counts, rewards, ratios (1 where they were not asked for), mask, discounts. Its mask leaves out trajectories
            that count 0.
        mask: `bool[n, T]`, all steps that were made.
        observations: `[n, T + 1, *O]`, in the type that was given.
        actions: `int32[n, T]`, or `float64[n, T, D]` where the target's candidates are sampled.
        target: candidates, float64.
        usable: `bool[n, T]`, steps that one could learn from, also of trajectories that count 0.
        used: `float64[n, T]`, 1 where the step is one to learn from.
        continues: `float64[n, T]`, 1 where it is used and not followed by an exit.
        discount: `float64[]`.
    """

    steps: Steps
    mask: Array
    observations: Array
    actions: Array
    target: TargetActions
    usable: Array
    used: Array
    continues: Array
    discount: Array


class Standardisation(NamedTuple):
    """Means and standard deviations over steps; `(x - mean) / deviation` has unit scale. Constants have deviation 1.

    Attributes:
        observation_mean: `float64[*O]`.
        observation_deviation: `float64[*O]`.
        action_mean: `float64[D]`, or None for discrete actions.
        action_deviation: `float64[D]`, or None.
    """

    observation_mean: Array
    observation_deviation: Array
    action_mean: Array | None
    action_deviation: Array | None


class FlatTransitions(NamedTuple):
    """Steps of all trajectories one after the other, for minibatches.

    Attributes:
        row: `int32[N]`, which trajectory.
        step: `int32[N]`, t.
        observation: `[N, *O]`, s_t.
        action: `int32[N]` or `[N, D]`.
        reward: `[N]`.
        next_observation: `[N, *O]`, s_{t+1}; 0 where nothing follows.
        continues: `[N]`, 1 where something does.
        weight: `[N]`, how often the step counts; 0 where it is not to be learned from.
        target: candidates in s_t, `[N, M, D]` or None, and `[N, M]`; `[P, N, ...]` for several policies.
        next_target: in s_{t+1}.
    """

    row: Array
    step: Array
    observation: Array
    action: Array
    reward: Array
    next_observation: Array
    continues: Array
    weight: Array
    target: TargetActions
    next_target: TargetActions


def transitions_of(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    target_log_prob: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> Transitions:
    """Check trajectories and candidates. To be called within `float64`.

    Args:
        trajectories: n of them, with one array of observations.
        target: of `target_policy.target_actions`, or made by hand.
        target_log_prob: `float[n, T]`, for ratios, or None.
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.
        horizon_exit: what the end of a row means; see `ends`.

    Raises:
        ValueError: for what `steps.steps_of` refuses; observations and actions that are missing, not finite or do not fit
            the candidates; rows that go on after a step that ended them; and data that leave no step to learn from.
    """
    steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts, horizon_exit=horizon_exit)
    concrete = is_concrete(trajectories, counts, steps)
    library = np if concrete else jnp
    mask, counted = library.asarray(trajectories.mask, bool), library.asarray(steps.mask)
    ends = ends_of(trajectories, mask, counted, horizon_exit=horizon_exit)
    used = ends.usable & counted
    if concrete and not used.any():
        raise ValueError(
            "there is no step to learn from: with horizon_exit=False a row that does not terminate loses its last step, as "
            "nobody knows what it led to. Give final_observation, longer rows, or horizon_exit=True."
        )
    states, known = states_of(trajectories, mask)
    return Transitions(
        steps,
        jnp.asarray(mask),
        _finite("observations", states, known & jnp.any(jnp.asarray(counted), axis=1)[:, None]),
        _actions(trajectories, target, mask, counted),
        checked_candidates(target, known),
        jnp.asarray(ends.usable),
        jnp.asarray(used, jnp.float64),
        jnp.asarray(ends.continues & counted, jnp.float64),
        jnp.asarray(discount, jnp.float64),
    )


def action_values(q: Array, v: Array, trajectories: Trajectories) -> ActionValues:
    """Values in the form that estimators take.

    Args:
        q: `float[..., n, T]`; what stands in the padding is ignored.
        v: `float[..., n, T + 1]`, V of all states; 0 where nothing of value follows.
        trajectories: that they belong to.
    """
    mask = jnp.asarray(trajectories.mask, bool)
    final = None
    if trajectories.final_observation is not None:
        final = jnp.sum(jnp.where(jnp.arange(v.shape[-1]) == jnp.sum(mask, axis=1)[:, None], v, 0.0), axis=-1)
    return ActionValues(jnp.where(mask, q, 0.0), jnp.where(mask, v[..., :-1], 0.0), final)


def returns_ahead(steps: Steps, used: Array) -> tuple[Array, Array, Array]:
    """`gamma^t w_{t-1}`, `gamma^t w_t` and `sum_{k >= t} gamma^k w_k r_k`, times one number; 0 where steps are not used."""
    log_weight = jnp.pad(log_weights(steps), [(0, 0), (1, 0)])
    weights = scaled_weights(log_weight, steps.counts, axis=None)
    before, now = (steps.discounts * used * x for x in (weights[:, :-1], weights[:, 1:]))
    return before, now, jnp.cumsum((now * steps.rewards)[:, ::-1], axis=1)[:, ::-1]


def with_ratios(
    trajectories: Trajectories, transitions: Transitions, target_log_prob: Any, discount: float, counts: Any
) -> Steps:
    """Steps with importance ratios, from `target_log_prob` or, where that is None, from probabilities of discrete actions.

    Raises:
        ValueError: if neither is there, or behaviour probabilities are missing.
    """
    if target_log_prob is None:
        if transitions.target.actions is not None:
            raise ValueError("ratios of continuous actions need target_log_prob, log pi_e(a_t|s_t) [n, T].")
        chosen = taken_probability(transitions)
        target_log_prob = jnp.where(chosen > 0, jnp.log(jnp.where(chosen > 0, chosen, 1.0)), -jnp.inf)
    steps = steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
    return steps._replace(horizon_exit=transitions.steps.horizon_exit)


def taken_probability(transitions: Transitions) -> Array:
    """pi_e(a_t|s_t) of discrete actions, `float64[n, T]`."""
    return jnp.take_along_axis(transitions.target.weights[:, :-1], transitions.actions[..., None], axis=-1)[..., 0]


def standardisation_of(transitions: Transitions) -> Standardisation:
    """Means and deviations of observations and continuous actions over the steps that count."""
    weights = transitions.steps.counts[:, None] * transitions.steps.mask
    weights = weights / jnp.sum(weights)

    def moments(column: Array) -> tuple[Array, Array]:
        column = column.astype(jnp.float64)
        mean = jnp.tensordot(weights, column, axes=2)
        variance = jnp.tensordot(weights, (column - mean) ** 2, axes=2)
        # the bound is what rounding of a constant leaves
        varies = variance > 1e-20 * (1.0 + mean**2)
        return mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 1.0)

    observed = moments(transitions.observations[:, :-1])
    acted = (None, None) if transitions.target.actions is None else moments(transitions.actions)
    return Standardisation(*observed, *acted)


def standardised(transitions: Transitions, scale: Standardisation) -> Transitions:
    """The same with observations, continuous actions and candidates on the scale, in float64."""
    observations = (transitions.observations.astype(jnp.float64) - scale.observation_mean) / scale.observation_deviation
    if transitions.target.actions is None:
        return transitions._replace(observations=observations)
    actions, candidates = (
        (x - scale.action_mean) / scale.action_deviation for x in (transitions.actions, transitions.target.actions)
    )
    target = transitions.target._replace(actions=candidates)
    return transitions._replace(observations=observations, actions=actions, target=target)


def flattened(transitions: Transitions, dtype: Any = jnp.float32) -> FlatTransitions:
    """Steps one after the other, without padding unless under a transformation, where it stays with a weight of 0.

    Args:
        transitions: checked.
        dtype: of what is not an index.
    """
    mask = transitions.mask
    n, horizon = mask.shape
    place = np.flatnonzero(np.asarray(mask)) if is_concrete(mask) else np.arange(n * horizon)
    row, step = place // horizon, place % horizon

    def cast(x: Array) -> Array:
        return x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(dtype)

    def target(after: int) -> TargetActions:
        axis = transitions.target.weights.ndim - 3
        return jax.tree.map(lambda x: x[(slice(None),) * axis + (row, step + after)].astype(dtype), transitions.target)

    weight = (transitions.steps.counts[:, None] * transitions.used)[row, step]
    return FlatTransitions(
        jnp.asarray(row, jnp.int32),
        jnp.asarray(step, jnp.int32),
        transitions.observations[row, step].astype(dtype),
        cast(transitions.actions[row, step]),
        transitions.steps.rewards[row, step].astype(dtype),
        transitions.observations[row, step + 1].astype(dtype),
        transitions.continues[row, step].astype(dtype),
        weight.astype(dtype),
        target(0),
        target(1),
    )


def _finite(name: str, column: Array, shown: Array) -> Array:
    """The column, checked where it is shown, and 0 where it is not a number elsewhere, so that no sum meets it."""
    fine = jnp.isfinite(column)
    if is_concrete(column, shown):
        wrong = np.asarray(shown & ~fine.reshape(*shown.shape, -1).all(axis=-1))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"{name} must be finite; step {step} of trajectory {row} is not, nor are {int(wrong.sum()) - 1} other steps. "
                "Fix or remove these trajectories."
            )
    return jnp.where(fine, column, jnp.zeros((), column.dtype))


def _actions(trajectories: Trajectories, target: TargetActions, mask: Any, counted: Any) -> Array:
    if trajectories.actions is None:
        raise ValueError("the trajectories have no actions, and action values are fitted to what was done.")
    given, shown = jnp.asarray(trajectories.actions), jnp.asarray(mask)
    if given.shape[:2] != shown.shape:
        raise ValueError(f"actions have shape {given.shape}; with this mask [n, T] = {shown.shape} must come first.")
    if target.actions is not None:
        size = jnp.shape(target.actions)[-1]
        if math.prod(given.shape[2:]) != size:
            raise ValueError(f"actions have shape {given.shape}, and the target's candidates {size} numbers each.")
        column = given.reshape(*given.shape[:2], size).astype(jnp.float64)
        column = _finite("actions", column, jnp.asarray(counted))
        return jnp.where(shown[..., None], column, 0.0)
    bound = jnp.shape(target.weights)[-1]
    if given.shape != shown.shape:
        raise ValueError(
            f"actions have shape {given.shape}, and must be integers {shown.shape}, as the target has probabilities of "
            f"{bound} actions. For continuous actions give candidates: target_actions(..., samples=M, key=key)."
        )
    if is_concrete(given, counted):
        wrong = np.asarray(counted) & ~np.asarray((given >= 0) & (given < bound) & (given == jnp.floor(given)))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"actions must be integers from 0 to {bound - 1}, as the target has probabilities of {bound}; step {step} "
                f"of trajectory {row} has {given[row, step]}. Renumber them from 0, or give probabilities of all actions."
            )
    return jnp.where(shown, jnp.clip(given, 0, bound - 1), 0).astype(jnp.int32)
