"""Action-value functions that are linear in features, in closed form.

`Q(s, a) = x(s, a) . theta`, `x_t = x(s_t, a_t)`, and `y_t = sum_m weight_m x(s_t, a_m)` over the target's candidates (see
`target_policy`), so that `V(s_t) = y_t . theta`. Four ways to theta, all with a ridge:

| method | theta solves |
|---|---|
| `fitted` | `sum x_t (x_t - gamma y_{t+1})^T theta = sum x_t r_t`: LSTD-Q, where linear fitted Q-evaluation comes to rest |
| `backward` | `sum x_t x_t^T theta_k = sum x_t (r_t + gamma y_{t+1} . theta_{k-1})`, `theta_0 = 0`: with k steps to go |
| `q_regression` | `sum gamma^t w_t x_t x_t^T theta = sum gamma^t w_t x_t R_t`: Q-Reg, as `tabular.q_regression` |
| `mrdr` | the least variance of the doubly robust estimator, as `tabular.mrdr` |

With one-hot features of states these are what `tabular` has, but for `backward`.

`fitted` is for processes without a clock. From few data it may have no fixed point that rounds of fitted Q-evaluation come to;
`linear_systems` says what is done then, and `diagnostics["spectral_radius"]` that it was. `backward` is for returns within
a horizon: T rounds of fitted Q-evaluation from 0 by all steps at once, of which step t has the one with T - t steps to go,
`Q_t = x_t . theta_{T-t}`. It needs no fixed point, and corrected estimators with it have less variance where the horizon
matters (CartPole of 50 steps: half the squared error). Ends of rows need not be exits for it, as it counts steps itself: with
`final_observation` give `horizon_exit=False`.

`mrdr` of discrete actions has the sums over actions of Farajtabar, Chow and Ghavamzadeh (ICML 2018), for which it needs
pi_b of all of them. Of continuous actions nobody can sum, and it is the same objective by what was done alone: given
s_t the mean of `rho_t (R_t - Q(s_t, a_t)) + V(s_t)` is that of `rho_t R_t`, whatever Q is, so that its variance is least
where its mean square is. So theta is the least squares solution of `(rho_t x_t - y_t) . theta = rho_t R_t` with weights
`gamma^2t w_{t-1}^2`. (Ours; the paper has finitely many actions.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.columns.features import LinearColumns, linear_columns
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import (
    ActionValues,
    Transitions,
    action_values,
    returns_ahead,
    transitions_of,
    with_ratios,
)
from jaxrl_off.estimators.trajectory.statistics import resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, quotient, weights_of
from jaxrl_off.estimators.trajectory.values.linear_systems import Rows, bound_of, evaluated, recursed, solved
from jaxrl_off.types import Array, Estimate, Trajectories

METHODS = ("fitted", "backward", "q_regression", "mrdr")


class LinearQ(NamedTuple):
    """A linear action-value function.

    Attributes:
        values: along the trajectories, of all of them, also of those that count 0.
        parameters: `float64[K]`, theta; of discrete actions, A blocks of F, one an action. Of `backward` `[T + 1, K]`, theta_k.
    """

    values: ActionValues
    parameters: Array


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
        trajectories: n of them; with behaviour log-probabilities for `q_regression`, and `mrdr` of continuous actions.
        target: of `target_policy.target_actions`.
        method: one of `METHODS`.
        features: as in `columns.features.linear_columns`: "linear", "quadratic" or a function.
        ridge: factor of the squares of parameters beside the mean over steps of the squared errors. Features that never
            occur have a parameter of 0 also without it.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t), for `q_regression` and `mrdr` with continuous actions; that of
            discrete ones is in `target`.
        behaviour_probability: `float[n, T, A]`, pi_b(.|s_t), for `mrdr` with discrete actions.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`. Returns of the other methods end where rows end.

    Returns:
        `LinearQ`, whose values `doubly_robust` and its kin take; for cross-fitting
        `trajectory.cross_fitted(lambda counts: fit_linear_q(..., counts=counts).values, np.ones(n))`.

    Raises:
        ValueError: for invalid data or settings.

    Example:
        >>> import numpy as np
        >>> data = Trajectories(np.zeros((2, 1, 1)), np.array([[0], [1]]), np.array([[1.0], [3.0]]), None,
        ...     np.ones((2, 1), bool), np.ones((2, 1), bool), np.zeros((2, 1), bool), None)
        >>> from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
        >>> target = target_actions(data, np.full((2, 1, 2), 0.5))
        >>> fit_linear_q(data, target, ridge=0.0).values.v.tolist()
        [[2.0], [2.0]]
    """
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
    policies = target_log_prob, behaviour_probability
    with float64(trajectories, target, counts, target_log_prob, behaviour_probability):
        columns, steps, rows = _prepared(trajectories, target, method, features, policies, options)
        backward, rounds = method == "backward", _rounds(method, trajectories, horizon_exit)
        parameters = (recursed if backward else solved)(
            rows, steps.counts, jnp.asarray(ridge, jnp.float64), rounds=rounds
        )
        # with T - t steps to go in s_t, and none in s_T
        clock = jnp.broadcast_to(parameters[::-1] if backward else parameters, columns.expected.shape[1:])
        q, v = (jnp.einsum("ntk,tk->nt", x, clock[: x.shape[1]]) for x in columns)
        values = action_values(q, v, trajectories)
        return LinearQ(values, parameters)


@named_options
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
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The value `mean_i V(s_0)` of a linear action-value function, with the error that its fit has.

    Args: as `fit_linear_q`, and
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Its effective sample size is that of the weights that trajectories' rewards (or, of the others,
        returns) have in the value. Diagnostics also `condition`, the condition number of the system that is solved;
        `spectral_radius`, of what a round of fitted Q-evaluation does (0 of least squares); and `settled`, 1 unless
        that is too large for a fixed point to be taken (see `linear_systems`).

    Raises:
        ValueError: for invalid data or settings.
    """
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
    policies = target_log_prob, behaviour_probability
    with float64(trajectories, target, counts, target_log_prob, behaviour_probability):
        _, steps, rows = _prepared(trajectories, target, method, features, policies, options)
        size = resample_size(counts, drawn=checked.drawn)
        shared = dict(rounds=_rounds(method, trajectories, horizon_exit), backward=method == "backward")
        return evaluated(rows, steps, jnp.asarray(ridge, jnp.float64), settings=checked, size=size, **shared)


def _rounds(method: str, trajectories: Trajectories, horizon_exit: bool) -> int | None:
    return jnp.shape(trajectories.rewards)[1] if method == "backward" or horizon_exit else None


def _prepared(
    trajectories: Trajectories,
    target: TargetActions,
    method: str,
    features: str | Callable[..., Array],
    policies: tuple[Any, Any],
    options: dict[str, Any],
) -> tuple[LinearColumns, Steps, Rows]:
    """Features, steps, and what is solved; policies are what there is of `(log pi_e(a_t|s_t), pi_b)`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if method not in ("fitted", "backward") and not options["horizon_exit"]:
        raise ValueError(
            f"horizon_exit=False is for methods 'fitted' and 'backward'; the returns of {method!r} end where rows end."
        )
    given, behaviour_probability = policies
    transitions = transitions_of(trajectories, target, **options)
    columns = linear_columns(transitions, features)
    if method in ("fitted", "backward"):
        following = (transitions.discount * transitions.continues)[..., None] * columns.expected[:, 1:]
        rows = (transitions.used, columns.taken, columns.taken - following, transitions.steps.rewards)
        bound = bound_of(transitions.discount, transitions.mask.shape, options["horizon_exit"])
        made = Rows(*rows, columns.expected[:, 0], plain=columns.taken, bound=bound)
        return columns, transitions.steps, made
    discrete = transitions.target.actions is None
    behaviour = _behaviour(transitions, behaviour_probability) if method == "mrdr" and discrete else None
    if behaviour is not None:
        chosen = jnp.take_along_axis(behaviour, transitions.actions[..., None], axis=-1)[..., 0]
        trajectories, given = trajectories._replace(behaviour_log_prob=jnp.log(chosen)), None
    steps = with_ratios(trajectories, transitions, given, options["discount"], options["counts"])
    before, now, ahead = returns_ahead(steps, transitions.used)
    start, y = columns.expected[:, 0], columns.expected[:, :-1]
    if method == "q_regression":
        rows = (now, columns.taken, columns.taken, quotient(ahead, now))
        return columns, steps, Rows(*rows, start)
    error = weights_of(steps.log_ratio)[..., None] * columns.taken - y
    if behaviour is None:
        return columns, steps, Rows(before**2, error, error, quotient(ahead, before), start)
    policy = transitions.target.weights[:, :-1]
    state = jnp.sum(columns.taken.reshape(*policy.shape, -1), axis=-2)
    rows = (before * now, error, y, quotient(ahead, now), start)
    return columns, steps, Rows(*rows, policy**2 / behaviour, state)


def _behaviour(transitions: Transitions, given: Any) -> Array:
    """Checked pi_b(.|s_t) of discrete actions, 1 in the padding."""
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
    if is_concrete(behaviour, needed):
        if not bool(jnp.all((behaviour > 0) | ~needed)):
            raise ValueError("mrdr needs behaviour_probability above 0 wherever the target acts, or somebody did.")
        total = jnp.where(shown[..., 0], jnp.sum(behaviour, axis=-1), 1.0)
        if not bool(jnp.all((behaviour >= 0) & (jnp.abs(total - 1.0) < 1e-3)[..., None])):
            raise ValueError(
                "mrdr needs behaviour_probability that sums to 1 in every state; give probabilities of all."
            )
    return jnp.where(behaviour > 0, behaviour, 1.0)
