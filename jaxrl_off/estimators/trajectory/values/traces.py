"""Off-policy evaluation by eligibility traces: where Retrace and its kin come to rest on the data, linear or tabular.

All are one operator (Munos et al. 2016, equation 3) with a trace coefficient c_t,

    (R Q)(s_t, a_t) = Q(s_t, a_t) + sum_{k >= t} gamma^(k - t) c_{t+1} .. c_k delta_k,
    delta_k = r_k + gamma sum_a pi_e(a|s_{k+1}) Q(s_{k+1}, a) - Q(s_k, a_k),

and its fixed point among functions `Q = x . theta` is one linear system, with `e_t = x_t + gamma c_t e_{t-1}` in the place
of x_t on the left of LSTD-Q (`values.linear`). Of state values, `V = x . theta` with `e_t = x_t + gamma c_{t-1} e_{t-1}` and
`delta_k = rho'_k (r_k + gamma V(s_{k+1}) - V(s_k))`.

| trace | c_t | rho'_t | of |
|---|---|---|---|
| `retrace` | `lambda min(1, rho_t)` | | Q |
| `tree_backup` | `lambda pi_e(a_t|s_t)` | | Q, discrete actions |
| `q_lambda` | `lambda` | | Q (Harutyunyan et al. 2016) |
| `importance_sampling` | `lambda rho_t` | | Q |
| `vtrace` | `lambda min(1, rho_t)` | `min(1, rho_t)` | V (Espeholt et al. 2018) |
| `td` | `lambda rho_t` | `rho_t` | V |

Fixed points of all traces of Q are Q of the target where features can have it and data are plenty; traces decide what is
lost where they cannot or are not, from the error of LSTD-Q (lambda 0) to the variance of long products. That of `vtrace` is V
of a policy between the two, with probabilities `min(pi_b, pi_e)` up to a factor, and so biased; that of `td` is not.
One-hot features of states give tables. If the operator is expansive on the data, the safeguard described in
`linear_systems` applies (to bounded traces only, not to `importance_sampling` and `td`).

Reference: Munos, Stepleton, Harutyunyan and Bellemare, "Safe and Efficient Off-Policy Reinforcement Learning", NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.columns.features import linear_columns, state_columns
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import (
    Transitions,
    action_values,
    taken_probability,
    transitions_of,
    with_ratios,
)
from jaxrl_off.estimators.trajectory.statistics import resample_size, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps, weights_of
from jaxrl_off.estimators.trajectory.values import linear_systems
from jaxrl_off.estimators.trajectory.values.linear import LinearQ
from jaxrl_off.estimators.trajectory.values.linear_systems import Rows
from jaxrl_off.types import Array, Estimate, Trajectories

ACTION_TRACES = ("retrace", "tree_backup", "q_lambda", "importance_sampling")
STATE_TRACES = ("vtrace", "td")
UNBOUNDED = ("importance_sampling", "td")  # whose products of ratios are as large as may be: no round of them contracts
_LARGEST = 200.0  # logarithm of entries of e_t beyond which it is scaled down


def fit_traces(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    trace: str = "retrace",
    lambda_: float = 0.9,
    features: str | Callable[..., Array] = "linear",
    ridge: float = 1e-6,
    target_log_prob: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> LinearQ:
    """Values of the target policy where an operator with traces comes to rest.

    Args:
        trajectories: n of them, with behaviour log-probabilities unless the trace is `tree_backup` or `q_lambda`.
        target: of `target_policy.target_actions`.
        trace: a row of the module's table.
        lambda_: in [0, 1]; 0 is LSTD-Q for all traces of Q.
        features: as in `values.linear.fit_linear_q`; for traces of V of states alone, `observation [*O] -> [F]`.
        ridge: as there.
        target_log_prob: `float[n, T]`, for ratios of continuous actions; those of discrete ones are in `target`.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`.

    Returns:
        `LinearQ`, whose values `doubly_robust` and its kin take. A trace of V gives V(s_t) for q_t, too: an action
        value that does not look at the action, with which these are as unbiased as with any other.

    Raises:
        ValueError: for invalid data or settings.

    Example:
        >>> import numpy as np
        >>> from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
        >>> yes, end = np.ones((2, 2), bool), np.array([[False, True]] * 2)
        >>> actions, rewards = np.array([[0, 0], [1, 1]]), np.array([[1.0, 0.0], [3.0, 2.0]])
        >>> data = Trajectories(np.zeros((2, 2, 1)), actions, rewards, None, yes, end, end & False, None)
        >>> target = target_actions(data, np.full((2, 2, 2), [0.0, 1.0]))
        >>> fit_traces(data, target, trace="q_lambda", lambda_=1.0, ridge=0.0).values.v[0].round(6).tolist()
        [3.5, 3.5]
    """
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
    with float64(trajectories, target, counts, target_log_prob):
        rows, steps, columns = _prepared(trajectories, target, trace, lambda_, features, target_log_prob, options)
        rounds = jnp.shape(trajectories.rewards)[1] if horizon_exit else None
        parameters = linear_systems.solved(rows, steps.counts, jnp.asarray(ridge, jnp.float64), rounds=rounds)
        q, v = (x @ parameters for x in columns)
        return LinearQ(action_values(q, v, trajectories), parameters)


@named_options
def trace_evaluation(
    trajectories: Trajectories,
    target: TargetActions,
    *,
    trace: str = "retrace",
    lambda_: float = 0.9,
    features: str | Callable[..., Array] = "linear",
    ridge: float = 1e-6,
    target_log_prob: Any = None,
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
    """The value `mean_i V(s_0)` by traces, with the error that the fit has.

    Args: as `fit_traces`, and
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns and Raises: as `values.linear.linear_q_evaluation`.
    """
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
    with float64(trajectories, target, counts, target_log_prob):
        rows, steps, _ = _prepared(trajectories, target, trace, lambda_, features, target_log_prob, options)
        size = resample_size(counts, drawn=checked.drawn)
        rounds = jnp.shape(trajectories.rewards)[1] if horizon_exit else None
        shared = dict(settings=checked, size=size, rounds=rounds)
        return linear_systems.evaluated(rows, steps, jnp.asarray(ridge, jnp.float64), **shared)


def _prepared(
    trajectories: Trajectories,
    target: TargetActions,
    trace: str,
    lambda_: float,
    features: str | Callable[..., Array],
    target_log_prob: Any,
    options: dict[str, Any],
) -> tuple[Rows, Steps, tuple[Array, Array]]:
    """The system, steps, and features of `(q [n, T], v [n, T + 1])`."""
    if trace not in (*ACTION_TRACES, *STATE_TRACES):
        raise ValueError(f"trace must be one of {', '.join((*ACTION_TRACES, *STATE_TRACES))}, got {trace!r}.")
    if is_concrete(lambda_) and not 0.0 <= lambda_ <= 1.0:
        raise ValueError(f"lambda_ must be in [0, 1], got {lambda_}.")
    transitions = transitions_of(trajectories, target, **options)
    steps = transitions.steps
    if trace not in ("tree_backup", "q_lambda"):
        shared = (options["discount"], options["counts"])
        steps = with_ratios(trajectories, transitions, target_log_prob, *shared)
    ratio = weights_of(steps.log_ratio)
    coefficient = transitions.discount * lambda_ * _coefficient(transitions, trace, ratio)
    correction = jnp.ones_like(ratio)
    if trace in STATE_TRACES:
        v = state_columns(transitions, features)
        q = jnp.where(transitions.mask[..., None], v[:, :-1], 0.0)
        correction = jnp.minimum(ratio, 1.0) if trace == "vtrace" else ratio
        coefficient = jnp.pad(coefficient, [(0, 0), (1, 0)])[:, :-1]
    else:
        q, v = linear_columns(transitions, features)
    following = (transitions.discount * transitions.continues)[..., None] * v[:, 1:]
    weight = transitions.used * correction
    bound = linear_systems.bound_of(transitions.discount, transitions.mask.shape, options["horizon_exit"])
    rows = (weight, _eligibility(q, coefficient), q - following, steps.rewards, v[:, 0])
    if trace in UNBOUNDED:
        return Rows(*rows), steps, (q, v)
    return Rows(*rows, plain=q, bound=bound), steps, (q, v)


def _coefficient(transitions: Transitions, trace: str, ratio: Array) -> Array:
    """c_t but for lambda, `float64[n, T]`."""
    if trace == "q_lambda":
        return jnp.ones_like(ratio)
    if trace == "tree_backup":
        if transitions.target.actions is not None:
            raise ValueError("tree_backup is for discrete actions: it needs their probabilities. Use 'retrace'.")
        return taken_probability(transitions)
    return jnp.minimum(ratio, 1.0) if trace in ("retrace", "vtrace") else ratio


def _eligibility(features: Array, coefficient: Array) -> Array:
    """`e_t = x_t + coefficient_t e_{t-1}`, `float64[n, T, K]`; times one number where products of coefficients overflow."""

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        before, scale = carry
        x, factor = now
        current = jnp.exp(-scale)[:, None] * x + factor[:, None] * before
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(current), axis=1))
        grown = jnp.maximum(jnp.log(jnp.maximum(largest, 1.0)) - _LARGEST, 0.0)
        carry = jnp.exp(-grown)[:, None] * current, scale + grown
        return carry, carry

    columns = (jnp.swapaxes(features, 0, 1), coefficient.T)
    start = jnp.zeros_like(features[:, 0]), jnp.zeros(len(features))
    found, scale = (jnp.swapaxes(x, 0, 1) for x in jax.lax.scan(step, start, columns)[1])
    return found * jnp.exp(scale - jnp.max(scale))[..., None]
