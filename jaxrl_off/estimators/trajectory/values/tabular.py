"""Models by counting, and tables of action values, from trajectories with finitely many states and actions.

`columns.tables` says what trajectories and policies look like, and what the end of a row means. Sums run over steps;
`N(s, a)` is how often a pair was seen, `eta(s)` the share of trajectories that begin in s, and `w_t` is the product of
the ratios up to step t.

| function | what it makes |
|---|---|
| `model_based` | the value `eta . V`, `V = (I - gamma P_pi)^-1 r_pi`, of the maximum likelihood model |
| `tabular_q` | Q of that model, the fixed point of fitted Q-evaluation |
| `q_regression` | Q from importance-weighted returns, as in COBS |
| `mrdr` | the Q that makes the variance of the doubly robust estimator least (Farajtabar et al., ICML 2018) |
| `values_on` | Q and V along trajectories, for the estimators in `weights.doubly_robust` |
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.columns import tables
from jaxrl_off.estimators.trajectory.columns.tables import TabularSteps
from jaxrl_off.estimators.trajectory.columns.transitions import ActionValues, returns_ahead
from jaxrl_off.estimators.trajectory.statistics import resample_size, run, settings_of
from jaxrl_off.estimators.trajectory.steps import held, quotient
from jaxrl_off.types import Array, Estimate, Trajectories

UNSEEN = ("average", "zero")
_LONGEST = 1e12  # discounted steps beyond which I - gamma P is singular


@named_options
def model_based(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
    unseen: str = "average",
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The target's value in the maximum likelihood model, `eta . (I - gamma P_pi)^-1 r_pi`.

    `P_pi(s, s') = sum_a pi_e(a|s) N(s, a, s') / N(s, a)`, with exits as missing mass, and
    `r_pi(s) = sum_a pi_e(a|s) r(s, a)`, r(s, a) the mean reward of a pair. Consistent where states are Markov, whoever
    acted: behaviour probabilities are not needed. Tabular fitted Q-evaluation and LSTD-Q have the same value, and, if
    nothing is unseen, so have `occupancy.tabular.minimax_weight` and, with the empirical behaviour policy and counts
    that are not discounted, STAR with every state its own abstract one and the last ratio alone.

    Args:
        trajectories: n of them, as in `columns.tables`.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma in [0, 1]. 1 needs that the target gets to an exit from wherever it gets.
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `columns.tables`.
        unseen: what a pair is worth that the target may take and the data lack. "average": what the seen actions of its
            state are on average under the target, which renormalises the target on these; "zero": nothing, and nothing
            follows, as in COBS and DICE. A state without any seen action is worth 0 either way.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Its effective sample size is that of `sum_t d(s_t) pi_e(a_t|s_t) / N(s_t, a_t)`, the weights that
        trajectories' rewards have in the value; d are discounted visits in the model. Diagnostics also `model_length`,
        the sum of d; and `unsupported_mass`, the share of visits that are on unseen pairs, if these were exits: with
        "zero" what is lost. NaN where I - gamma P_pi is singular, which takes a discount of 1.

    Raises:
        ValueError: for invalid data, a policy or settings.

    Example:
        >>> states, mask = np.array([[0, 1], [0, 0]]), np.array([[True, True], [True, False]])
        >>> actions, end = np.array([[0, 0], [1, 0]]), np.array([[False, True], [True, False]])
        >>> data = Trajectories(states, actions, np.ones((2, 2)), None, mask, end, end & False, None)
        >>> float(model_based(data, [[0.25, 0.75], [1.0, 0.0]]).value)
        1.25
    """
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    method = _model_method(unseen)
    with float64(trajectories, target_policy, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        columns = tables.tabular_steps_of(trajectories, target_policy, **options)
        return run(columns, method=method, settings=checked, size=resample_size(counts, drawn=checked.drawn))


def tabular_q(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
    unseen: str = "average",
) -> Array:
    """Q of the model of `model_based`, the fixed point of tabular fitted Q-evaluation, by one solve.

    `Q(s, a)` is the mean over the steps with that pair of `r + gamma sum_a' pi_e(a'|s') Q(s', a')`, without the second
    term where an exit follows.

    Args: as `model_based`.

    Returns:
        `float64[S, A]`, of which `sum_s,a eta(s) pi_e(a|s) Q(s, a)` is the value of `model_based`. Unseen pairs have
        V(s), or with "zero" 0. Under `jax.jit` NaN in the place of the last error.

    Raises:
        ValueError: for invalid data or a policy, or a state without a value (see `model_based`).
    """
    average = _model_method(unseen) is _average_model
    with float64(trajectories, target_policy, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        table = _q_table(tables.tabular_steps_of(trajectories, target_policy, **options), average)
        if is_concrete(table) and bool(jnp.any(jnp.isnan(table))):
            state = int(np.argwhere(np.isnan(np.asarray(table)))[0, 0])
            raise ValueError(
                f"from state {state} the target never gets to an exit, so that at a discount of 1 there is no Q; give a "
                "discount below 1, or horizon_exit=True."
            )
        return table


def q_regression(trajectories: Trajectories, target_policy: Any, *, discount: float = 1.0, counts: Any = None) -> Array:
    """Q-Reg, weighted least squares of returns to go: `min_Q sum_i sum_t gamma^t w_t (R_t - Q(s_t, a_t))^2`.

    `R_t = sum_{k >= t} gamma^(k - t) rho_{t+1} ... rho_k r_k`; in a table, Q(s, a) is the mean of R_t with weights
    gamma^t w_t. Returns end where rows end.

    Args:
        trajectories: as in `model_based`, with behaviour log-probabilities.
        target_policy: as there.
        discount: gamma in [0, 1].
        counts: as there.

    Returns:
        `float64[S, A]`; 0 where there is no weight.

    Raises:
        ValueError: for invalid data or a policy.

    Reference: Voloshin et al., COBS, `dm_regression.py`, which adds 1 to every weight and a ridge of 1. These are left
    out, as they pull Q to 0. The project's notes have the weight w_t; the code has gamma^t w_t, and is followed.
    """
    with float64(trajectories, target_policy, discount, counts):
        columns = tables.tabular_steps_of(trajectories, target_policy, discount=discount, counts=counts)
        return _regressed(tables.with_ratios(columns, trajectories))


def mrdr(
    trajectories: Trajectories,
    target_policy: Any,
    behaviour_policy: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
) -> Array:
    """The Q of the more robust doubly robust estimator: it makes the variance of `doubly_robust` least.

    It minimises `sum_i sum_t k_t y_t^T Omega y_t` with `k_t = gamma^2t w_{t-1}^2 rho_t`,
    `y_t = D Q(s_t, .) - R_t e_{a_t}`, `D = diag(pi_e(.|s_t))`, `Omega = diag(1 / pi_b(.|s_t)) - 1 1^T`, and R_t as in
    `q_regression`. In a table Omega is one matrix for all steps in a state, and its null space is pi_b. The minimisers
    are in closed form `pi_e(a|s) Q(s, a) = sum k_t R_t 1[s, a] / sum k_t 1[s] + c(s) pi_b(a|s)`. Taken is c = 0, which
    exists also where the target never does what the behaviour policy may do; c does not change the doubly robust value.

    Args:
        trajectories: as in `model_based`. Ratios are those of the two tables; `behaviour_log_prob` is not looked at.
        target_policy: as there.
        behaviour_policy: `float[S, A]`, pi_b(a|s).
        discount: gamma in [0, 1].
        counts: as there.

    Returns:
        `float64[S, A]`; 0 where there is no weight, and where the target never acts so.

    Raises:
        ValueError: for invalid data or policies.

    Reference: Farajtabar, Chow and Ghavamzadeh, "More Robust Doubly Robust Off-policy Evaluation", ICML 2018, by way of
    COBS's `more_robust_doubly_robust.py`, whose additions of 1 to Omega and to the diagonal are left out.
    """
    with float64(trajectories, target_policy, behaviour_policy, discount, counts):
        behaviour = tables.policy_of("behaviour_policy", behaviour_policy)
        columns = tables.tabular_steps_of(trajectories, target_policy, discount=discount, counts=counts)
        if behaviour.shape != columns.policy.shape:
            raise ValueError(
                f"behaviour_policy has shape {behaviour.shape}, target_policy {columns.policy.shape}; both are [S, A]."
            )
        return _least_variance(tables.with_ratios(columns, trajectories, behaviour_policy=behaviour))


def values_on(trajectories: Trajectories, q_table: Any, target_policy: Any) -> ActionValues:
    """A table of action values along trajectories, as `doubly_robust` and its kin take it.

    Args:
        trajectories: as in `model_based`; rewards are not looked at.
        q_table: `float[S, A]`, Q(s, a).
        target_policy: `float[S, A]`, pi_e(a|s).

    Returns:
        `ActionValues`.

    Raises:
        ValueError: for invalid data, a policy or a table.
    """
    with float64(trajectories, q_table, target_policy):
        without = trajectories._replace(rewards=np.zeros(jnp.shape(trajectories.rewards)))
        unknown = trajectories.final_observation is None
        columns = tables.tabular_steps_of(without, target_policy, horizon_exit=unknown)
        table = jnp.asarray(q_table, jnp.float64)
        if table.shape != columns.policy.shape:
            raise ValueError(f"q_table has shape {table.shape}, target_policy {columns.policy.shape}; both are [S, A].")
        mask, values = columns.steps.mask, jnp.sum(columns.policy * table, axis=1)
        q, v = table.reshape(-1)[columns.pairs], values[columns.states]
        following = jnp.where(columns.continues > 0, values[columns.successors], 0.0)
        final = None if unknown else held(following, mask)[:, -1]
        return ActionValues(jnp.where(mask, q, 0.0), jnp.where(mask, v, 0.0), final)


def _used_policy(columns: TabularSteps, counts: Array, average: bool) -> Array:
    if not average:
        return columns.policy
    seen = jnp.where(tables.visits_of(columns, counts) > 0, columns.policy, 0.0)
    return quotient(seen, jnp.sum(seen, axis=1, keepdims=True))


def _solved(columns: TabularSteps, counts: Array, average: bool) -> tuple[Array, Array]:
    """V and the discounted lengths from each state, `float64[S]`."""
    system, weights = tables.system_of(columns, counts, _used_policy(columns, counts, average))
    reward = tables.summed(counts[:, None] * weights * columns.steps.rewards, columns.states, len(system))
    solution = jnp.linalg.solve(system, jnp.stack([reward, jnp.ones_like(reward)], axis=1))
    return solution[:, 0], solution[:, 1]


def _model(columns: TabularSteps, counts: Array, average: bool) -> tuple[Array, Array, dict[str, Array]]:
    values, lengths = _solved(columns, counts, average)
    start = tables.initial(columns, counts)
    length = start @ lengths
    regular = (length > 0) & (length < _LONGEST)
    system, weights = tables.system_of(columns, counts, _used_policy(columns, counts, average))
    visits = jnp.linalg.solve(system.T, start)
    diagnostics = {"unsupported_mass": tables.occupancy(columns, counts)[1], "model_length": length}
    return jnp.where(regular, start @ values, jnp.nan), visits[columns.states] * weights, diagnostics


def _zero_model(columns: TabularSteps, counts: Array) -> tuple[Array, Array, dict[str, Array]]:
    return _model(columns, counts, False)


def _average_model(columns: TabularSteps, counts: Array) -> tuple[Array, Array, dict[str, Array]]:
    return _model(columns, counts, True)


def _model_method(unseen: str) -> tables.Method:
    if unseen not in UNSEEN:
        raise ValueError(f"unseen must be one of {', '.join(UNSEEN)}, got {unseen!r}.")
    return _zero_model if unseen == "zero" else _average_model


def _table(columns: TabularSteps, values: Array) -> Array:
    """Sums by pair, `float64[S, A]`, with counts."""
    values = columns.steps.counts[:, None] * values
    return tables.summed(values, columns.pairs, columns.policy.size).reshape(columns.policy.shape)


@functools.partial(jax.jit, static_argnums=1)
def _q_table(columns: TabularSteps, average: bool) -> Array:
    values, lengths = _solved(columns, columns.steps.counts, average)
    values = jnp.where((lengths > 0) & (lengths < _LONGEST), values, jnp.nan)
    following = jnp.where(columns.continues > 0, columns.discount * values[columns.successors], 0.0)
    total, visits = _table(columns, columns.used * (columns.steps.rewards + following)), _table(columns, columns.used)
    return jnp.where(visits > 0, quotient(total, visits), values[:, None] if average else 0.0)


@jax.jit
def _regressed(columns: TabularSteps) -> Array:
    _, now, ahead = returns_ahead(columns.steps, columns.used)
    return quotient(_table(columns, ahead), _table(columns, now))


@jax.jit
def _least_variance(columns: TabularSteps) -> Array:
    before, now, ahead = returns_ahead(columns.steps, columns.used)
    weight = jnp.sum(_table(columns, before * now), axis=1, keepdims=True)
    return quotient(_table(columns, before * ahead), weight * columns.policy)
