"""Action-value functions that are linear in features, in closed form.

`Q(s, a) = x(s, a) . theta`, `x_t = x(s_t, a_t)`, and `y_t = sum_m weight_m x(s_t, a_m)` over the target's candidates (see
`transitions`), so that `V(s_t) = y_t . theta`. Three ways to theta, all with a ridge:

| method | theta solves |
|---|---|
| `fitted` | `sum x_t (x_t - gamma y_{t+1})^T theta = sum x_t r_t`: LSTD-Q, where linear fitted Q-evaluation comes to rest |
| `q_regression` | `sum gamma^t w_t x_t x_t^T theta = sum gamma^t w_t x_t R_t`: Q-Reg, as `tabular.q_regression` |
| `mrdr` | the least variance of the doubly robust estimator, as `tabular.mrdr`; discrete actions |

With one-hot features of states these are what `tabular` has.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.trajectory import common
from jaxrl_off.estimators.trajectory.common import Settings, Steps
from jaxrl_off.estimators.trajectory.transitions import (
    ActionValues,
    TargetActions,
    Transitions,
    action_values,
    returns_ahead,
    standardisation_of,
    standardised,
    transitions_of,
)
from jaxrl_off.types import Array, Estimate, Trajectories

METHODS = ("fitted", "q_regression", "mrdr")
FEATURES = ("linear", "quadratic")
_MOST_MOMENTS = 2**25  # numbers in moments by trajectory, which make resamples cheap; beyond, moments are taken anew


class LinearColumns(NamedTuple):
    """Features along trajectories.

    Attributes:
        taken: `float64[n, T, K]`, x_t; 0 in the padding.
        expected: `float64[n, T + 1, K]`, y_t; 0 where a state is not known.
    """

    taken: Array
    expected: Array


class LinearQ(NamedTuple):
    """A linear action-value function.

    Attributes:
        values: along the trajectories, of all of them, also of those that count 0.
        parameters: `float64[K]`, theta; of discrete actions, A blocks of F, one an action.
    """

    values: ActionValues
    parameters: Array


class Rows(NamedTuple):
    """What moments are sums of; every leaf `[n, ...]`, or None where a method has no use for it.

    `weight_t (x_t, or rho_t x_t - y_t) response_t` make the right-hand side, and `weight_t x_t right_t^T` the left-hand one,
    or for `mrdr` `weight_t (blocks_t - y_t y_t^T)`, with `shares_t(a) = pi_e(a|s_t)^2 / pi_b(a|s_t)` in the blocks.
    """

    weight: Array
    left: Array
    right: Array
    response: Array
    start: Array
    shares: Array | None = None
    state: Array | None = None


class _Moments(NamedTuple):
    system: Array
    response: Array
    seen: Array
    total: Array
    start: Array


def fit_linear_q(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    method: str = "fitted",
    features: str | Callable[..., Array] = "linear",
    ridge: float = 1e-6,
    target_log_prob: Any = None,
    behaviour_probability: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> LinearQ:
    """A linear action-value function of the target policy.

    Args:
        trajectories: n of them; for `q_regression` with behaviour log-probabilities.
        target: of `transitions.target_actions`.
        method: one of `METHODS`.
        features: of discrete actions, `observation [*O] -> [F]`, of which every action has its own parameters, K = A F; of
            continuous ones `(observation [*O], action [D]) -> [K]`. Or a name: "linear", 1 and everything standardised;
            "quadratic", also all products of two of these.
        ridge: factor of the squares of parameters beside the mean over steps of the squared errors. Features that never
            occur have a parameter of 0 also without it.
        target_log_prob: `float[n, T]`, for `q_regression` with continuous actions; that of discrete ones is in `target`.
        behaviour_probability: `float[n, T, A]`, pi_b(.|s_t), for `mrdr`.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`. Returns of the other methods end where rows end.

    Returns:
        `LinearQ`, whose values `corrected.doubly_robust` and its kin take; for cross-fitting
        `corrected.cross_fitted(lambda counts: fit_linear_q(..., counts=counts).values, np.ones(n))`.

    Raises:
        ValueError: for data or settings that cannot be meant.

    Example:
        >>> data = Trajectories(np.zeros((2, 1, 1)), np.array([[0], [1]]), np.array([[1.0], [3.0]]), None,
        ...     np.ones((2, 1), bool), np.ones((2, 1), bool), np.zeros((2, 1), bool), None)
        >>> from jaxrl_off.estimators.trajectory.transitions import target_actions
        >>> target = target_actions(data, np.full((2, 1, 2), 0.5))
        >>> fit_linear_q(data, target, ridge=0.0).values.v.tolist()
        [[2.0], [2.0]]
    """
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit, target_log_prob=target_log_prob)
    with common.float64(trajectories, target, counts, target_log_prob, behaviour_probability):
        columns, steps, rows = _prepared(trajectories, target, method, features, behaviour_probability, options)
        parameters = solved(rows, steps.counts, jnp.asarray(ridge, jnp.float64))
        values = action_values(columns.taken @ parameters, columns.expected @ parameters, trajectories)
        return LinearQ(values, parameters)


def linear_q_evaluation(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    method: str = "fitted",
    features: str | Callable[..., Array] = "linear",
    ridge: float = 1e-6,
    target_log_prob: Any = None,
    behaviour_probability: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
    **settings: Any,
) -> Estimate:
    """The value `mean_i V(s_0)` of a linear action-value function, with the error that its fit has.

    Args: as `fit_linear_q`, and
        **settings: `level` and the further ones of `weighted.pdis`. Standardisation is of the data as they are, also in
            resamples.

    Returns:
        An `Estimate`. Its effective sample size is that of the weights that trajectories' rewards (or, of the other methods,
        returns) have in the value. Diagnostics also `condition`, the condition number of the system that is solved.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    checked = common.settings_of(**settings)
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit, target_log_prob=target_log_prob)
    with common.float64(trajectories, target, counts, target_log_prob, behaviour_probability):
        _, steps, rows = _prepared(trajectories, target, method, features, behaviour_probability, options)
        size = common.resample_size(counts)
        return evaluated(rows, steps, jnp.asarray(ridge, jnp.float64), settings=checked, size=size)


def linear_columns(transitions: Transitions, features: str | Callable[..., Array]) -> LinearColumns:
    """Features of what was done, and what they are on average over the target's candidates. Within `common.float64`.

    Args:
        transitions: checked.
        features: as in `fit_linear_q`.

    Raises:
        ValueError: for features that are not known, or give other shapes.
    """
    transitions, function = _function_of(transitions, features)
    states, weights = transitions.observations, transitions.target.weights
    known = jnp.any(weights > 0, axis=-1)
    if transitions.target.actions is None:
        state = jnp.where(known[..., None], _mapped(function, states), 0.0)
        chosen = jax.nn.one_hot(transitions.actions, weights.shape[-1], dtype=jnp.float64)
        taken, expected = (_in_blocks(x, y) for x, y in ((chosen, state[:, :-1]), (weights, state)))
    else:
        taken = _mapped(function, states[:, :-1], transitions.actions)
        candidates = transitions.target.actions
        expected = sum(
            weights[..., m, None] * jnp.where(known[..., None], _mapped(function, states, candidates[..., m, :]), 0.0)
            for m in range(weights.shape[-1])
        )
    return LinearColumns(jnp.where(transitions.mask[..., None], taken, 0.0), expected)


def state_columns(transitions: Transitions, features: str | Callable[..., Array]) -> Array:
    """Features of states alone, `float64[n, T + 1, F]`, 0 where they are not known. Within `common.float64`.

    Args:
        transitions: checked.
        features: `observation [*O] -> [F]`, or a name as in `fit_linear_q`.

    Raises:
        ValueError: for features that are not known, or give other shapes.
    """
    transitions, function = _function_of(transitions, features)
    known = jnp.any(transitions.target.weights > 0, axis=-1)
    return jnp.where(known[..., None], _mapped(function, transitions.observations), 0.0)


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
    return common.steps_of(trajectories, target_log_prob, discount=discount, counts=counts)


def taken_probability(transitions: Transitions) -> Array:
    """pi_e(a_t|s_t) of discrete actions, `float64[n, T]`."""
    return jnp.take_along_axis(transitions.target.weights[:, :-1], transitions.actions[..., None], axis=-1)[..., 0]


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


def _prepared(
    trajectories: Trajectories,
    target: TargetActions,
    method: str,
    features: str | Callable[..., Array],
    behaviour_probability: Any,
    options: dict[str, Any],
) -> tuple[LinearColumns, Steps, Rows]:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if method != "fitted" and not options["horizon_exit"]:
        raise ValueError(f"horizon_exit=False is for method 'fitted'; the returns of {method!r} end where rows end.")
    transitions = transitions_of(trajectories, target, **options)
    columns = linear_columns(transitions, features)
    if method == "fitted":
        following = (transitions.discount * transitions.continues)[..., None] * columns.expected[:, 1:]
        rows = (transitions.used, columns.taken, columns.taken - following, transitions.steps.rewards)
        return columns, transitions.steps, Rows(*rows, columns.expected[:, 0])
    behaviour = None
    if method == "mrdr":
        behaviour = _behaviour(transitions, behaviour_probability)
        chosen = jnp.take_along_axis(behaviour, transitions.actions[..., None], axis=-1)[..., 0]
        trajectories = trajectories._replace(behaviour_log_prob=jnp.log(chosen))
    given = options["target_log_prob"] if method == "q_regression" else None
    steps = with_ratios(trajectories, transitions, given, options["discount"], options["counts"])
    before, now, ahead = returns_ahead(steps, transitions.used)
    if method == "q_regression":
        rows = (now, columns.taken, columns.taken, common.ratio(ahead, now), columns.expected[:, 0])
        return columns, steps, Rows(*rows)
    assert behaviour is not None
    policy = transitions.target.weights[:, :-1]
    ratio = jnp.exp(steps.log_ratio)[..., None]
    state = jnp.sum(columns.taken.reshape(*policy.shape, -1), axis=-2)
    y = columns.expected[:, :-1]
    return (
        columns,
        steps,
        Rows(
            before * now,
            ratio * columns.taken - y,
            y,
            common.ratio(ahead, now),
            columns.expected[:, 0],
            policy**2 / behaviour,
            state,
        ),
    )


def _behaviour(transitions: Transitions, given: Any) -> Array:
    """Checked pi_b(.|s_t), 1 in the padding."""
    if transitions.target.actions is not None:
        raise ValueError(
            "mrdr is for discrete actions: it needs sums over all of them. Use 'fitted' or 'q_regression'."
        )
    shape = (*transitions.mask.shape, transitions.target.weights.shape[-1])
    if given is None or jnp.shape(given) != shape:
        raise ValueError(
            f"mrdr needs behaviour_probability {shape}, pi_b(.|s_t) of all actions, got "
            f"{None if given is None else jnp.shape(given)}."
        )
    shown = transitions.steps.mask[..., None]
    behaviour = jnp.where(shown, jnp.asarray(given, jnp.float64), 1.0)
    needed = shown & (
        (transitions.target.weights[:, :-1] > 0) | jax.nn.one_hot(transitions.actions, shape[-1], dtype=bool)
    )
    if common.is_concrete(behaviour, needed) and not bool(jnp.all((behaviour > 0) | ~needed)):
        raise ValueError("mrdr needs behaviour_probability above 0 wherever the target acts, or somebody did.")
    return jnp.where(behaviour > 0, behaviour, 1.0)


def _moments(rows: Rows, counts: Array) -> _Moments:
    """Sums over trajectories, linear in counts."""
    weight = counts[:, None] * rows.weight
    left = weight[..., None] * rows.left
    if rows.shares is None:
        system = jnp.einsum("ntk,ntl->kl", left, rows.right)
        seen = jnp.einsum("ntk,ntk->k", left, rows.left)
    else:
        blocks = jnp.einsum("nt,nta,ntf,ntg->afg", weight, rows.shares, rows.state, rows.state)
        actions, size = blocks.shape[:2]
        diagonal = jnp.zeros((actions, size, actions, size))
        diagonal = diagonal.at[jnp.arange(actions), :, jnp.arange(actions)].set(blocks)
        system = diagonal.reshape(actions * size, actions * size)
        system -= jnp.einsum("nt,ntk,ntl->kl", weight, rows.right, rows.right)
        seen = jnp.einsum("aff->af", blocks).reshape(-1)
    response = jnp.einsum("ntk,nt->k", left, rows.response)
    return _Moments(system, response, seen, jnp.sum(weight), counts @ rows.start)


def _moment_function(rows: Rows) -> Callable[[Array], _Moments]:
    """`counts -> _Moments`, by way of moments of every trajectory where these are not too many."""
    n, size = rows.start.shape
    if n * size * size > _MOST_MOMENTS:
        return lambda counts: _moments(rows, counts)
    each = jax.vmap(lambda row: _moments(jax.tree.map(lambda x: x[None], row), jnp.ones(1)))(rows)
    return lambda counts: jax.tree.map(lambda x: jnp.tensordot(counts, x, axes=1), each)


def _system(moments: _Moments, ridge: Array) -> tuple[Array, Array]:
    """What is solved: a mean over steps, the ridge, and 1 for features that never occur."""
    extra = ridge + jnp.where(moments.seen > 0, 0.0, 1.0)
    return common.ratio(moments.system, moments.total) + jnp.diag(extra), common.ratio(moments.response, moments.total)


@jax.jit
def solved(rows: Rows, counts: Array, ridge: Array) -> Array:
    """theta of the system that rows make."""
    return jnp.linalg.solve(*_system(_moments(rows, counts), ridge))


@functools.partial(jax.jit, static_argnames=("settings", "size"))
def evaluated(rows: Rows, steps: Steps, ridge: Array, *, settings: Settings, size: int | None) -> Estimate:
    """The `Estimate` of `mean_i start_i . theta`; see `linear_q_evaluation`."""
    moments_of = _moment_function(rows)

    def statistic(counts: Array) -> Array:
        moments = moments_of(counts)
        return moments.start @ jnp.linalg.solve(*_system(moments, ridge)) / jnp.sum(counts)

    system, _ = _system(moments_of(steps.counts), ridge)
    start = steps.counts @ rows.start / jnp.sum(steps.counts)
    weights = rows.weight * (rows.left @ jnp.linalg.solve(system.T, start))
    weight = jnp.maximum(jnp.sum(weights, axis=1), 0.0)
    log_weight = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), -jnp.inf)
    log_weight -= jnp.log(common.weighted_mean(steps.counts, weight))
    found = {"condition": jnp.linalg.cond(system)}
    return common.estimate_statistic(statistic, steps, log_weight, settings, diagnostics=found, size=size)
