"""What a target policy would do in every state of trajectories: weighted candidates, `V(s) = sum_m weight_m Q(s, a_m)`.

Candidates are all actions with their probabilities where there are finitely many, and actions drawn from the policy
otherwise. They are those of the columns of states that `transitions` speaks of, `[n, T + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete
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
    with float64(trajectories, policy):
        states, known = states_of(trajectories, jnp.asarray(trajectories.mask, bool))
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


def one_policy(target: TargetActions) -> TargetActions:
    """The candidates, if they are those of one policy.

    Raises:
        ValueError: for several, of which every one would need an answer of its own.
    """
    if jnp.ndim(target.weights) > 3:
        raise ValueError(
            f"the target's weights have shape {jnp.shape(target.weights)}; here they must be those of one policy, "
            "[n, T + 1, M]. Call this once for each, or under jax.vmap."
        )
    return target


def states_of(trajectories: Trajectories, mask: Any) -> tuple[Array, Array]:
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


def checked_candidates(target: TargetActions, known: Array) -> TargetActions:
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
    if is_concrete(actions, known) and not bool(jnp.all(jnp.isfinite(actions) | ~shown)):
        raise ValueError("the target's actions must be finite in all states; look at the policy.")
    return TargetActions(jnp.where(shown, actions, 0.0), weights)


def _normalised(weights: Array, known: Array) -> Array:
    """Weights `[..., n, T + 1, M]` that sum to 1 where states are known, and are 0 elsewhere."""
    total = jnp.sum(weights, axis=-1)
    if is_concrete(weights, known):
        fine = (jnp.abs(total - 1.0) < _NORMALISED) & jnp.all(weights >= 0, axis=-1)
        wrong = np.asarray(known & ~fine)
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise ValueError(
                f"the target's probabilities must not be negative, and sum to 1; in state {place[-1]} of trajectory "
                f"{place[-2]} they are {weights[tuple(place)]}; {int(wrong.sum())} states in all are wrong. A policy that is a "
                "function gives logarithms, an array gives probabilities."
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
        if is_concrete(index) and bool(jnp.any((index < 0) | (index >= len(given)) | (index != states))):
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
