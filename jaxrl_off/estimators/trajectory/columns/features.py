"""Features of states and actions along trajectories, for functions that are linear in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.columns.target_policy import one_policy
from jaxrl_off.estimators.trajectory.columns.transitions import Transitions, standardisation_of, standardised
from jaxrl_off.types import Array

FEATURES = ("linear", "quadratic")


class LinearColumns(NamedTuple):
    """Features along trajectories.

    Attributes:
        taken: `float64[n, T, K]`, x_t; 0 in the padding.
        expected: `float64[n, T + 1, K]`, y_t; 0 where a state is not known.
    """

    taken: Array
    expected: Array


def linear_columns(transitions: Transitions, features: str | Callable[..., Array]) -> LinearColumns:
    """Features of what was done, and what they are on average over the target's candidates. Within `float64`.

    Args:
        transitions: checked, with the candidates of one policy.
        features: of discrete actions, `observation [*O] -> [F]`, of which every action has its own parameters, K = A F; of
            continuous ones `(observation [*O], action [D]) -> [K]`. Or a name: "linear", 1 and everything standardised;
            "quadratic", also all products of two of these.

    Raises:
        ValueError: for features that are not known, give other shapes or are not finite; and for several policies.
    """
    one_policy(transitions.target)
    transitions, function = _function_of(transitions, features)
    states, weights = transitions.observations, transitions.target.weights
    known = jnp.any(weights > 0, axis=-1)[..., None]
    candidates = transitions.target.actions
    if candidates is None:
        state = jnp.where(known, _mapped(function, states), 0.0)
        chosen = jax.nn.one_hot(transitions.actions, weights.shape[-1], dtype=jnp.float64)
        taken, expected = (_in_blocks(x, y) for x, y in ((chosen, state[:, :-1]), (weights, state)))
    else:
        taken = _mapped(function, states[:, :-1], transitions.actions)

        def add(total: Array, candidate: tuple[Array, Array]) -> tuple[Array, None]:
            action, weight = candidate
            return total + weight[..., None] * jnp.where(known, _mapped(function, states, action), 0.0), None

        by_candidate = jnp.moveaxis(candidates, 2, 0), jnp.moveaxis(weights, 2, 0)
        expected, _ = jax.lax.scan(add, jnp.zeros((*states.shape[:2], taken.shape[-1])), by_candidate)
    taken = jnp.where(transitions.mask[..., None], taken, 0.0)
    _check_finite(taken, expected)
    return LinearColumns(taken, expected)


def state_columns(transitions: Transitions, features: str | Callable[..., Array]) -> Array:
    """Features of states alone, `float64[n, T + 1, F]`, 0 where they are not known. Within `float64`.

    Args:
        transitions: checked, with the candidates of one policy.
        features: `observation [*O] -> [F]`, or a name as in `linear_columns`.

    Raises:
        ValueError: as `linear_columns`.
    """
    one_policy(transitions.target)
    transitions, function = _function_of(transitions, features)
    known = jnp.any(transitions.target.weights > 0, axis=-1)
    found = jnp.where(known[..., None], _mapped(function, transitions.observations), 0.0)
    _check_finite(found)
    return found


def _check_finite(*columns: Array) -> None:
    if is_concrete(columns) and not all(bool(jnp.all(jnp.isfinite(x))) for x in columns):
        raise ValueError("features must be finite in all steps and for all that the target may do; fix the function.")


def _function_of(
    transitions: Transitions, features: str | Callable[..., Array]
) -> tuple[Transitions, Callable[..., Array]]:
    """The function of features, and transitions on the scale that it wants."""
    if not isinstance(features, str):
        return transitions, features
    if features not in FEATURES:
        raise ValueError(f"features must be a function or one of {', '.join(FEATURES)}, got {features!r}.")
    transitions = standardised(transitions, standardisation_of(transitions))
    return transitions, functools.partial(_polynomial, features == "quadratic")


def _polynomial(quadratic: bool, *given: Array) -> Array:
    x = jnp.concatenate([jnp.ones(1), *(part.reshape(-1) for part in given)])
    if not quadratic:
        return x
    one, other = np.triu_indices(len(x))
    return x[one] * x[other]


def _mapped(function: Callable[..., Array], *given: Array) -> Array:
    """Features `float64[n, T, F]` of arrays `[n, T, ...]`."""
    leading = given[0].shape[:2]
    found = jax.vmap(function)(*(x.reshape(math.prod(leading), *x.shape[2:]) for x in given))
    if found.ndim != 2:
        raise ValueError(f"features have shape {found.shape[1:]}; a vector is needed for every state.")
    return found.reshape(*leading, -1).astype(jnp.float64)


def _in_blocks(shares: Array, state: Array) -> Array:
    """`[..., A]` and `[..., F]` to `[..., A F]`."""
    return (shares[..., :, None] * state[..., None, :]).reshape(*state.shape[:-1], -1)
