"""What estimators that fit functions share: what the target would do in every state, and checked transitions.

A trajectory of L steps has L + 1 states, `s_0 .. s_{L-1}` of `observations` and `s_L` of `final_observation`. Columns of
states are `[n, T + 1, ...]`: entry t is s_t, entry L what followed the last step, and later ones are 0.

The target policy enters as weighted candidates, `V(s) = sum_m weight_m Q(s, a_m)`: all actions with their probabilities
where there are finitely many, actions drawn from the policy otherwise. Both are `TargetActions`.

The end of a row. A terminated step is an exit: nothing of value follows. What else ends a row, a truncation or the
horizon, is an exit, too, with `horizon_exit=True`: values are then those of returns within the horizon, as far as a
function without a clock can tell, which is what the estimators in `weighted` judge. With False the process goes on: from
`final_observation` where that is given; else the last step is left out, reward and all, as nobody knows what it led to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.trajectory import common
from jaxrl_off.estimators.trajectory.common import Steps
from jaxrl_off.types import Array, Trajectories

_CHUNK = 65536  # states that a policy is asked for at once
_NORMALISED = 1e-3  # how far from 1 weights may sum; float32 log-probabilities of thousands of actions stay below


class TargetActions(NamedTuple):
    """Candidate actions of the target policy in every state; several policies have a leading axis `[P]`.

    Attributes:
        actions: None for discrete actions, where the candidates are 0 .. M - 1; else `float[n, T + 1, M, D]`.
        weights: `float[n, T + 1, M]`, summing to 1: pi_e(a|s) of discrete actions, 1 / M of sampled ones. 0 in the padding.
    """

    actions: Array | None
    weights: Array


class ActionValues(NamedTuple):
    """Action values of a policy along trajectories, as `corrected.doubly_robust` and its kin take them.

    Attributes:
        q: `float64[n, T]`, Q(s_t, a_t); 0 in the padding.
        v: `float64[n, T]`, V(s_t) of the target; 0 in the padding.
        final: `float64[n]`, V of `final_observation`, 0 where the last step terminated; None where it is not known.
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
        used: `float64[n, T]`, 1 where the step is one to learn from.
        continues: `float64[n, T]`, 1 where it is used and not followed by an exit.
        discount: `float64[]`.
    """

    steps: Steps
    mask: Array
    observations: Array
    actions: Array
    target: TargetActions
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


def target_actions(
    trajectories: Trajectories,
    policy: Any,
    *,
    num_actions: int | None = None,
    samples: int | None = None,
    key: Array | None = None,
) -> TargetActions:
    """What a policy would do in all states of trajectories.

    Args:
        trajectories: n of them; observations are asked for, and `final_observation` where it is there.
        policy: one of

            * a function `observation [N, *O] -> log_prob [N, A]` of all actions;
            * with `num_actions`, a function `(observation [N, *O], action int[N]) -> log_prob [N]`, as
              `training.trajectories.PolicyFunctions.log_prob`;
            * with `samples`, a function `(key, observation [N, *O]) -> action [N, *A]`, or a tuple that begins with that, as
              `PolicyFunctions.act`, for continuous actions;
            * probabilities `float[n, T + 1, A]`, or `[n, T, A]` where there is no `final_observation`;
            * a table of probabilities `float[S, A]`, for observations that are states counted from 0.
        num_actions: A, of the second.
        samples: M, of the third; 1 for a deterministic policy.
        key: of the third.

    Returns:
        `TargetActions`. Probabilities are made to sum to 1, as float32 has them only nearly so.

    Raises:
        ValueError: for shapes that do not fit, or what is no distribution.

    Example:
        >>> states, mask = np.array([[0, 1], [1, 0]]), np.array([[True, True], [True, False]])
        >>> none = np.zeros((2, 2), bool)
        >>> data = Trajectories(states, states, np.ones((2, 2)), None, mask, none, none, np.array([0, 0]))
        >>> target_actions(data, [[0.25, 0.75], [1.0, 0.0]]).weights[0].tolist()
        [[0.25, 0.75], [1.0, 0.0], [0.25, 0.75]]
    """
    if num_actions is not None and samples is not None:
        raise ValueError("num_actions is for log-probabilities, samples for a policy that draws actions; give one.")
    with common.float64(trajectories, policy):
        states, known = _states_of(trajectories, jnp.asarray(trajectories.mask, bool))
        if not callable(policy):
            return _given(states, known, policy, trajectories)
        if samples is not None:
            return _sampled(states, known, policy, samples, key)
        flat = states.reshape(-1, *states.shape[2:])
        if num_actions is None:
            log_prob = _in_chunks(lambda observation, _: policy(observation), flat, (None,), "log_prob [N, A]")
        else:
            log_prob = _in_chunks(
                lambda observation, _: jnp.stack(
                    [policy(observation, jnp.full(len(observation), a, jnp.int32)) for a in range(num_actions)], axis=-1
                ),
                flat,
                (num_actions,),
                "log_prob [N]",
            )
        return TargetActions(None, _normalised(jnp.exp(log_prob.reshape(*known.shape, -1)), known))


def transitions_of(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    target_log_prob: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> Transitions:
    """Check trajectories and candidates. To be called within `common.float64`.

    Args:
        trajectories: n of them, with one array of observations.
        target: of `target_actions`, or made by hand.
        target_log_prob: `float[n, T]`, for ratios, or None.
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.
        horizon_exit: what the end of a row means; see the module.

    Raises:
        ValueError: for what `common.steps_of` refuses; observations and actions that are missing, not finite or do not fit
            the candidates; and rows that go on after a step that ended them.
    """
    steps = common.steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
    concrete = common.is_concrete(trajectories, counts, steps)
    library = np if concrete else jnp
    mask, counted = library.asarray(trajectories.mask, bool), library.asarray(steps.mask)
    goes_on = library.concatenate([mask[:, 1:], library.zeros_like(mask[:, :1])], axis=1)
    terminated = library.asarray(trajectories.terminated, bool) & mask
    ended = terminated | (library.asarray(trajectories.truncated, bool) & mask)
    if concrete and (goes_on & ended & counted).any():
        row, step = np.argwhere(goes_on & ended & counted)[0]
        raise ValueError(
            f"trajectory {row} goes on after step {step}, which terminated or truncated it; give every trajectory its "
            "own row."
        )
    used, continues = counted, goes_on & ~terminated & counted
    if not horizon_exit and trajectories.final_observation is None:
        used = counted & (goes_on | terminated)
    elif not horizon_exit:
        continues = counted & ~terminated
    states, known = _states_of(trajectories, mask)
    return Transitions(
        steps,
        jnp.asarray(mask),
        _finite("observations", states, known & jnp.any(jnp.asarray(counted), axis=1)[:, None]),
        _actions(trajectories, target, mask, counted),
        _candidates(target, known),
        jnp.asarray(used, jnp.float64),
        jnp.asarray(continues, jnp.float64),
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
    log_weight = jnp.pad(common.log_weights(steps), [(0, 0), (1, 0)])
    weights = common.scaled_weights(log_weight, steps.counts, axis=None)
    before, now = (steps.discounts * used * x for x in (weights[:, :-1], weights[:, 1:]))
    return before, now, jnp.cumsum((now * steps.rewards)[:, ::-1], axis=1)[:, ::-1]


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
    place = np.flatnonzero(np.asarray(mask)) if common.is_concrete(mask) else np.arange(n * horizon)
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


def _states_of(trajectories: Trajectories, mask: Any) -> tuple[Array, Array]:
    """`(states [n, T + 1, *O], known bool[n, T + 1])`: what is not known is 0."""
    given, final = trajectories.observations, trajectories.final_observation
    if given is None or isinstance(given, dict | tuple | list) and not hasattr(given, "shape"):
        raise ValueError(
            f"observations must be one array [n, T, ...], got {type(given).__name__}; join several into one."
        )
    mask, given = jnp.asarray(mask), jnp.asarray(given)
    if given.shape[:2] != mask.shape:
        raise ValueError(
            f"observations have shape {given.shape}; with this mask [n, T] = {mask.shape} must come first."
        )
    shape = (-1, mask.shape[1] + 1, *[1] * (given.ndim - 2))
    lengths = jnp.sum(mask, axis=1)[:, None]
    place = jnp.arange(mask.shape[1] + 1)
    known, last = place < lengths, place == lengths
    states = jnp.concatenate([given, jnp.zeros_like(given[:, :1])], axis=1)
    if final is not None:
        final = jnp.asarray(final, given.dtype)
        if final.shape != (len(mask), *given.shape[2:]):
            raise ValueError(f"final_observation has shape {final.shape}; observations have {given.shape}.")
        ended = jnp.any(jnp.asarray(trajectories.terminated, bool) & mask, axis=1)[:, None]
        states = jnp.where(last.reshape(shape), final[:, None], states)
        known |= last & ~ended
    return jnp.where(known.reshape(shape), states, jnp.zeros((), given.dtype)), known


def _finite(name: str, column: Array, shown: Array) -> Array:
    """The column, checked where it is shown, and 0 where it is not a number elsewhere, so that no sum meets it."""
    fine = jnp.isfinite(column)
    if common.is_concrete(column, shown):
        wrong = np.asarray(shown & ~fine.reshape(*shown.shape, -1).all(axis=-1))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"{name} must be finite; step {step} of trajectory {row} is not, and {int(wrong.sum())} are so. Mend the "
                "data."
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
    if common.is_concrete(given, counted):
        wrong = np.asarray(counted) & ~np.asarray((given >= 0) & (given < bound) & (given == jnp.floor(given)))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"actions must be integers from 0 to {bound - 1}, as the target has probabilities of {bound}; step {step} "
                f"of trajectory {row} has {given[row, step]}. Number them anew, or give probabilities of all."
            )
    return jnp.where(shown, jnp.clip(given, 0, bound - 1), 0).astype(jnp.int32)


def _candidates(target: TargetActions, known: Array) -> TargetActions:
    """Checked candidates in float64, 0 in the padding."""
    weights = jnp.asarray(target.weights, jnp.float64)
    leading = weights.shape[:-3]
    if weights.ndim < 3 or weights.shape[-3:-1] != known.shape or weights.shape[-1] == 0:
        raise ValueError(
            f"the target's weights have shape {weights.shape}; [n, T + 1, M] with [n, T + 1] = {known.shape} is needed: "
            "every state, and what followed the last step."
        )
    weights = _normalised(weights, known)
    if target.actions is None:
        return TargetActions(None, weights)
    actions = jnp.asarray(target.actions, jnp.float64)
    if actions.shape[:-1] != weights.shape:
        raise ValueError(
            f"the target's actions {actions.shape} must have the shape of its weights {weights.shape} and D."
        )
    shown = jnp.broadcast_to(known, (*leading, *known.shape))[..., None, None]
    if common.is_concrete(actions, known) and not bool(jnp.all(jnp.isfinite(actions) | ~shown)):
        raise ValueError("the target's actions must be finite in all states; look at the policy.")
    return TargetActions(jnp.where(shown, actions, 0.0), weights)


def _normalised(weights: Array, known: Array) -> Array:
    """Weights `[..., n, T + 1, M]` that sum to 1 where states are known, and are 0 elsewhere."""
    total = jnp.sum(weights, axis=-1)
    if common.is_concrete(weights, known):
        fine = (jnp.abs(total - 1.0) < _NORMALISED) & jnp.all(weights >= 0, axis=-1)
        wrong = np.asarray(known & ~fine)
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise ValueError(
                f"the target's probabilities must not be negative, and sum to 1; in state {place[-1]} of trajectory "
                f"{place[-2]} they are {weights[tuple(place)]}, and {int(wrong.sum())} states are so. A policy's function "
                "gives logarithms, an array probabilities."
            )
    shown = known & (total > 0)
    return jnp.where(shown[..., None], weights / jnp.where(shown, total, 1.0)[..., None], 0.0)


def _given(states: Array, known: Array, policy: Any, trajectories: Trajectories) -> TargetActions:
    given = jnp.asarray(policy, jnp.float64)
    n, after = known.shape
    if given.ndim == 2:
        if states.ndim != 2:
            raise ValueError(
                f"a table of probabilities {given.shape} is for states counted from 0, and observations have shape "
                f"{states[:, 1:].shape}; give a function, or probabilities in every state."
            )
        index = states.astype(jnp.int32)
        if common.is_concrete(index) and bool(jnp.any((index < 0) | (index >= len(given)) | (index != states))):
            raise ValueError(f"observations must be integers from 0 to {len(given) - 1}, the rows of the table.")
        return TargetActions(None, _normalised(given[index], known))
    if given.shape[:-1] == (n, after - 1) and trajectories.final_observation is None:
        given = jnp.concatenate([given, jnp.zeros_like(given[:, :1])], axis=1)
    if given.ndim != 3 or given.shape[:-1] != known.shape:
        raise ValueError(
            f"probabilities have shape {given.shape}; [n, T + 1, A] = [{n}, {after}, A] is needed, the last one for what "
            "followed the last step (it may be missing where there is no final_observation)."
        )
    return TargetActions(None, _normalised(given, known))


def _sampled(states: Array, known: Array, policy: Callable[..., Any], samples: int, key: Array | None) -> TargetActions:
    if samples < 1 or key is None:
        raise ValueError(f"a policy that draws actions needs samples of at least 1 and a key, got {samples} and {key}.")

    def draw(observation: Array, chunk: int) -> Array:
        found = policy(jax.random.fold_in(key, chunk), jnp.repeat(observation, samples, axis=0))
        action = jnp.asarray(found[0] if isinstance(found, tuple) else found)
        if len(action) != samples * len(observation):
            raise ValueError(f"the policy gives actions {action.shape} for {samples * len(observation)} observations.")
        return action.reshape(len(observation), -1)

    flat = _in_chunks(draw, states.reshape(-1, *states.shape[2:]), (None,), "action [N, *A]")
    actions = jnp.where(known[..., None, None], flat.reshape(*known.shape, samples, -1), 0.0)
    return TargetActions(actions, jnp.where(known[..., None], jnp.full(samples, 1.0 / samples), 0.0))


def _in_chunks(ask: Callable[[Array, int], Array], states: Array, shape: tuple[int | None, ...], form: str) -> Array:
    """What a policy says of states `[N, *O]`, so many at a time, in float64."""
    parts = []
    for chunk, start in enumerate(range(0, len(states), _CHUNK)):
        rows = states[start : start + _CHUNK]
        part = jnp.asarray(ask(rows, chunk))
        if part.ndim != 1 + len(shape) or len(part) != len(rows):
            raise ValueError(
                f"the policy gives shape {part.shape} for observations {rows.shape}; {form} is needed. See the forms that "
                "target_actions allows."
            )
        parts.append(part.astype(jnp.float64))
    return jnp.concatenate(parts)
