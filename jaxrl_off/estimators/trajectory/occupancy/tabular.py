"""Estimators that weight rewards by where the target policy would be: marginalised importance sampling, DICE in tables.

`columns.tables` says what trajectories and policies look like, and what the end of a row means.

`marginalised_is` weights by the target's state marginals of every step. The others look for the ratio
`zeta(s, a) = d(s, a) / D(s, a)` of the target's discounted occupancy, `(1 - gamma) sum_t gamma^t Pr(s_t = s, a_t = a)`,
to the share D of the pair in the data, and estimate `E_D[zeta r] / (1 - gamma)`. With `x = D zeta`, P the counted model
and eta the first states, x has to satisfy the flow equations, whose residual in (s', a') is

    g(s', a') = pi_e(a'|s') [(1 - gamma) eta(s') + gamma sum_{s, a} x(s, a) P(s'|s, a)] - x(s', a').

They are what a table makes of dice_rl's regularised Lagrangian,

    (1 - gamma) E[nu(s_0, pi)] + lambda + E_D[zeta (a_R r + gamma nu(s', pi) - nu - lambda)]
        + a_nu E_D f(nu) - a_zeta E_D f(zeta),   minimised by nu and lambda, maximised by zeta.

Where the data have every pair that the target gets to, g = 0 has one solution, the saddle point has it if a_nu or
a_zeta is 0, and all methods have the value of `tabular.model_based`. Where pairs are missing g = 0 has none, and the
methods differ in what they give up. f is `x^2 / 2`; in dice_rl it is `|x|^1.5 / 1.5`:

| function | dice_rl's a_nu, a_zeta, a_R, lambda, zeta >= 0 | what zeta is |
|---|---|---|
| `minimax_weight` | 0, 0, 0, no, no | g = 0 on the seen pairs; what leaves them is lost |
| `dual_dice` | 0, 1, 0, no, no | `argmin sum g^2` over all pairs |
| `gen_dice` | 1, 0, 0, yes, yes | `argmin sum g^2 / D` over seen pairs, zeta >= 0, E_D[m zeta] = 1 |
| `best_dice` | 0, 1, 1, yes, yes | `argmin sum g^2` over all pairs, zeta >= 0, E_D[m zeta] = 1 |

With a_nu = 0, nu has no bound where g = 0 cannot be had. dice_rl's tabular solver adds a ridge of 1e-8 to its equations
for nu; here is the limit of no ridge, in which a_zeta and the reward do not matter. With a_nu = 1, nu of unseen pairs
is in no expectation over the data; these pairs are left out.

`E_D[zeta] = 1` holds only where nothing ends. An exit stands for an absorbing state without reward, of whose mass the
flow equations say that `E_D[m zeta] = 1` with `m(s, a) = 1 + gamma / (1 - gamma) * (share of exits after the pair)`.
dice_rl has m = 1.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.columns import tables
from jaxrl_off.estimators.trajectory.columns.tables import TabularSteps
from jaxrl_off.estimators.trajectory.occupancy.ratios import check_discount
from jaxrl_off.estimators.trajectory.statistics import Settings, resample_size, run, settings_of
from jaxrl_off.estimators.trajectory.steps import quotient, weights_of
from jaxrl_off.types import Array, Estimate, Trajectories

_CHANGES = 100  # of the set of positive ratios; a handful are needed
_ROUNDING = 1e-10  # of the largest gradient, below which it is taken for 0

Found = tuple[Array, Array, dict[str, Array]]


@named_options
def marginalised_is(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    target_log_prob: Any = None,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """Marginalised importance sampling, `sum_t gamma^t sum_s d_t(s) r_t(s)` with the target's state marginals d_t.

    `d_0 = eta`, `d_{t+1}(s') = sum_s d_t(s) P_t(s'|s)`, `P_t(s'|s) = sum rho_t 1[s_t = s, s_{t+1} = s'] / N_t(s)` and
    `r_t(s) = sum rho_t r_t 1[s_t = s] / N_t(s)`, where N_t(s) counts the trajectories that are in s at step t, and sums
    are over these. Its variance grows polynomially with the horizon. STAR with pairs (s, t) for abstract states and the
    last ratio alone has `sum rho_t` in the place of N_t.

    The value is that of returns within the horizon: the end of a row is an exit, whatever it was.

    Args:
        trajectories: as in `columns.tables`, with behaviour log-probabilities.
        target_policy: `float[S, A]`, pi_e(a|s).
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t), or None for that of the table. Give it where states are cells of
            an abstraction, within which pi_e varies; of the table nothing but S is looked at then, and actions are not.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Its effective sample size is that of `sum_t d_t(s_t) rho_t / N_t(s_t)`. Diagnostics also
        `largest_mass`, the largest `sum_s d_t(s)`, which in expectation is 1 or less.

    Raises:
        ValueError: for invalid data, a policy or settings.

    Reference: Xie, Ma and Wang, "Towards Optimal Off-Policy Evaluation for Reinforcement Learning with Marginalized
    Importance Sampling", NeurIPS 2019. Written from the project's notes on it; nothing is clipped or projected.
    """
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    with float64(trajectories, target_policy, target_log_prob, discount, counts):
        if target_log_prob is not None:
            target_policy = jnp.ones((len(tables.policy_of("target_policy", target_policy)), 1))
            trajectories = trajectories._replace(actions=np.zeros(jnp.shape(trajectories.rewards), np.int32))
        columns = tables.tabular_steps_of(trajectories, target_policy, discount=discount, counts=counts)
        columns = tables.with_ratios(columns, trajectories, target_log_prob=target_log_prob)
        return run(columns, method=_marginalised, settings=checked, size=resample_size(counts, drawn=checked.drawn))


@named_options
def minimax_weight(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float,
    counts: Any = None,
    horizon_exit: bool = True,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """Minimax weight learning (Uehara, Huang and Jiang, ICML 2020) with tables: g = 0 on all seen pairs.

    The maximum over functions f on seen pairs of `|(1 - gamma) E f(s_0, pi) - E_D[zeta (f - gamma f(s', pi))]|` is 0.
    Takes a solve of size S, and has the value of `tabular.model_based` with `unseen="zero"`.

    Args:
        trajectories: as in `columns.tables`; behaviour probabilities are not needed.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `tables`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`. Its effective sample size is that of trajectories' sums of zeta. Diagnostics also `mean_ratio`,
        E_D[zeta]; `normalisation`, E_D[m zeta], 1 where g = 0; `negative_ratio`, E_D[max(-zeta, 0)]; `flow_residual`,
        the sum of |g| over all pairs, in shares of the occupancy; and `unsupported_mass`, as in `tabular.model_based`.

    Raises:
        ValueError: for invalid data, a policy or settings, or a discount of 1.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(_minimax, trajectories, target_policy, discount, counts, horizon_exit, settings)


@named_options
def dual_dice(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float,
    counts: Any = None,
    horizon_exit: bool = True,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """DualDICE (Nachum, Chow, Dai and Li, NeurIPS 2019) with tables: `argmin sum g^2` over all pairs, a linear solve.

    The closed form of dice_rl's `tabular_dual_dice.py` without its ridge, divided by E_D[m zeta] where that divides by
    E_D[zeta]. zeta may be negative. Takes memory and a solve of the size of pairs by pairs.

    Args:
        trajectories: as in `minimax_weight`.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `tables`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns and Raises: as `minimax_weight`.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(_dual, trajectories, target_policy, discount, counts, horizon_exit, settings)


@named_options
def gen_dice(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float,
    counts: Any = None,
    horizon_exit: bool = True,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """GenDICE (Zhang, Dai, Li and Schuurmans, ICLR 2020), as dice_rl has it, with tables: the norm is kept.

    With A the matrix of the flow equations of seen pairs and `x_0 = (1 - gamma) A^-1 (eta pi_e)`, the solution of
    `minimax_weight`, it is `x = x_0 + c A^-1 diag(D) A^-T m` with c such that `m . x = 1`. Neither c nor an entry of
    A^-1 is negative, so that zeta >= 0 by itself. Takes solves of size S.

    Args:
        trajectories: as in `minimax_weight`.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `tables`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns and Raises: as `minimax_weight`.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(_gen, trajectories, target_policy, discount, counts, horizon_exit, settings)


@named_options
def best_dice(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float,
    counts: Any = None,
    horizon_exit: bool = True,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """What Yang et al. (NeurIPS 2020) and dice_rl advise, with tables: `argmin sum g^2` with signs and the norm kept.

    A quadratic programme, solved by a primal-dual active set (Hintermueller, Ito and Kunisch 2002): zeta is 0 on a set
    of pairs, the rest a linear solve, and the set is changed until signs are right. Takes memory and solves of the size
    of pairs by pairs.

    Args:
        trajectories: as in `minimax_weight`.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `tables`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Raises: as `minimax_weight`.

    Returns:
        As there. Diagnostics also `unsettled`, on how many pairs signs are wrong: 0, unless the active set cycled.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate(_best, trajectories, target_policy, discount, counts, horizon_exit, settings)


def density_ratio(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float,
    method: str = "minimax_weight",
    counts: Any = None,
    horizon_exit: bool = True,
) -> Array:
    """The ratio zeta(s, a) that a method finds.

    Args:
        trajectories: as in `minimax_weight`.
        target_policy: as there.
        discount: gamma in [0, 1).
        method: "minimax_weight", "dual_dice", "gen_dice" or "best_dice".
        counts: as there.
        horizon_exit: as there.

    Returns:
        `float64[S, A]`; 0 for unseen pairs. `E_D[zeta r] / (1 - gamma)` is the method's value; for "dual_dice" it is so
        after division by E_D[m zeta].

    Raises:
        ValueError: for invalid data or a policy, a discount of 1, or an unknown method.
    """
    if method not in _SOLVERS:
        raise ValueError(f"method must be one of {', '.join(_SOLVERS)}, got {method!r}.")
    check_discount(discount)
    with float64(trajectories, target_policy, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        return _ratio(tables.tabular_steps_of(trajectories, target_policy, **options), method=method)


def _marginalised(columns: TabularSteps, counts: Array) -> Found:
    size, steps = len(columns.policy), columns.steps

    def step(marginal: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        states, successors, used, continues, ratios = now
        weights = quotient(marginal, tables.summed(counts * used, states, size))[states] * ratios
        return tables.summed(counts * weights * continues, successors, size), (weights, jnp.sum(marginal))

    ratios = weights_of(steps.log_ratio) * columns.used
    by_time = (columns.states, columns.successors, columns.used, columns.continues, ratios)
    by_time = jax.tree.map(jnp.transpose, by_time)
    _, (weights, mass) = jax.lax.scan(step, tables.initial(columns, counts), by_time)
    value = jnp.sum(counts[:, None] * steps.discounts * weights.T * steps.rewards)
    return value, weights.T, {"largest_mass": jnp.max(mass)}


def _transition(columns: TabularSteps, counts: Array, visits: Array) -> Array:
    """P(s'|s, a), `float64[S A, S]`; exits are missing mass, and unseen pairs have none."""
    size = len(columns.policy)
    place = columns.pairs.astype(jnp.int64) * size + columns.successors
    flow = tables.summed(counts[:, None] * columns.continues, place, visits.size * size)
    return quotient(flow.reshape(-1, size), visits.reshape(-1, 1))


def _equations(columns: TabularSteps, counts: Array, visits: Array) -> tuple[Array, Array]:
    """A `[S A, S A]` and b with `g = b - A x`; columns of unseen pairs are 0."""
    policy, size = columns.policy.reshape(-1), visits.size
    inflow = jnp.repeat(_transition(columns, counts, visits).T, visits.shape[1], axis=0) * policy[:, None]
    matrix = jnp.where(visits.reshape(-1) > 0, jnp.eye(size) - columns.discount * inflow, 0.0)
    start = jnp.repeat(tables.initial(columns, counts), visits.shape[1])
    return matrix, (1.0 - columns.discount) * start * policy


def _multiplicity(columns: TabularSteps, counts: Array, visits: Array) -> Array:
    """m, `float64[S A]`; 1 for unseen pairs."""
    exits = tables.summed(counts[:, None] * (columns.used - columns.continues), columns.pairs, visits.size)
    share = quotient(exits, visits.reshape(-1))
    return 1.0 + columns.discount / (1.0 - columns.discount) * share


def _exact(columns: TabularSteps, counts: Array, visits: Array) -> tuple[Array, Array]:
    """x with g = 0 on seen pairs, which is the occupancy of the model; and 0, as no sign is looked for."""
    states, _ = tables.occupancy(columns, counts)
    occupied = (1.0 - columns.discount) * states[:, None] * columns.policy
    return jnp.where(visits > 0, occupied, 0.0).reshape(-1), jnp.zeros(())


def _least_squares(columns: TabularSteps, counts: Array, visits: Array) -> tuple[Array, Array]:
    matrix, target = _equations(columns, counts, visits)
    unseen = jnp.where(visits.reshape(-1) > 0, 0.0, 1.0)
    return jnp.linalg.solve(matrix.T @ matrix + jnp.diag(unseen), matrix.T @ target), jnp.zeros(())


def _normed(columns: TabularSteps, counts: Array, visits: Array) -> tuple[Array, Array]:
    """`x_0 + c A^-1 diag(D) A^-T m`; the inverses by way of states, which is where flows meet."""
    exact, none = _exact(columns, counts, visits)
    normal, model = _multiplicity(columns, counts, visits), _transition(columns, counts, visits)
    system, _ = tables.system_of(columns, counts, columns.policy)
    kept = jnp.where(visits > 0, columns.policy, 0.0)
    following = jnp.linalg.solve(system, jnp.sum(kept * normal.reshape(kept.shape), axis=1))
    source = visits.reshape(-1) / jnp.sum(visits) * (normal + columns.discount * model @ following)
    inflow = jnp.linalg.solve(system.T, source @ model)
    added = source + columns.discount * (inflow[:, None] * kept).reshape(-1)
    return exact + (1.0 - normal @ exact) / (normal @ added) * added, none


def _programme(columns: TabularSteps, counts: Array, visits: Array) -> tuple[Array, Array]:
    """`argmin sum g^2` with `x >= 0` and `m . x = 1`, and how many signs are wrong at the end."""
    matrix, target = _equations(columns, counts, visits)
    quadratic, linear, normal = matrix.T @ matrix, matrix.T @ target, _multiplicity(columns, counts, visits)
    seen = visits.reshape(-1) > 0

    def solution(free: Array, programme: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        quadratic, linear, normal = programme
        inner = jnp.where(free[:, None] & free, quadratic, 0.0) + jnp.diag(jnp.where(free, 0.0, 1.0))
        border = jnp.where(free, normal, 0.0)
        whole = jnp.block([[inner, border[:, None]], [border[None], jnp.zeros((1, 1))]])
        found = jnp.linalg.solve(whole, jnp.concatenate([jnp.where(free, linear, 0.0), jnp.ones(1)]))
        return found[:-1], found[-1]

    fixed = jax.lax.stop_gradient((quadratic, linear, normal))

    def better(free: Array) -> Array:
        x, multiplier = solution(free, fixed)
        gradient = fixed[0] @ x - fixed[1] + multiplier * fixed[2]
        return seen & jnp.where(free, x >= 0, gradient < -_ROUNDING * jnp.max(jnp.abs(fixed[1])))

    def change(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, free, count = state
        return free, better(free), count + 1

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        return jnp.any(state[0] != state[1]) & (state[2] < _CHANGES)

    before, free, _ = jax.lax.while_loop(unsettled, change, (seen, better(seen), jnp.zeros((), jnp.int32)))
    x, _ = solution(free, (quadratic, linear, normal))
    return x, jnp.sum(before != free).astype(x.dtype)


def _dice(columns: TabularSteps, counts: Array, method: str) -> Found:
    visits = tables.visits_of(columns, counts)
    x, wrong = _SOLVERS[method](columns, counts, visits)
    seen, gamma = visits.reshape(-1), columns.discount
    total = jnp.sum(_multiplicity(columns, counts, visits) * x)
    normaliser = (1.0 - gamma) * (total if method == "dual_dice" else 1.0)
    weights = columns.used * (quotient(x, seen) / normaliser)[columns.pairs]
    inflow = (1.0 - gamma) * tables.initial(columns, counts) + gamma * x @ _transition(columns, counts, visits)
    residual = inflow[:, None] * columns.policy - x.reshape(visits.shape)
    diagnostics = {
        "mean_ratio": jnp.sum(x),
        "normalisation": total,
        "negative_ratio": jnp.sum(jnp.maximum(-x, 0.0)),
        "flow_residual": jnp.sum(jnp.abs(residual)),
        "unsupported_mass": tables.occupancy(columns, counts)[1],
    }
    if method == "best_dice":
        diagnostics["unsettled"] = wrong
    return jnp.sum(counts[:, None] * weights * columns.steps.rewards), weights, diagnostics


_SOLVERS = {
    "minimax_weight": _exact,
    "dual_dice": _least_squares,
    "gen_dice": _normed,
    "best_dice": _programme,
}


def _minimax(columns: TabularSteps, counts: Array) -> Found:
    return _dice(columns, counts, "minimax_weight")


def _dual(columns: TabularSteps, counts: Array) -> Found:
    return _dice(columns, counts, "dual_dice")


def _gen(columns: TabularSteps, counts: Array) -> Found:
    return _dice(columns, counts, "gen_dice")


def _best(columns: TabularSteps, counts: Array) -> Found:
    return _dice(columns, counts, "best_dice")


@functools.partial(jax.jit, static_argnames="method")
def _ratio(columns: TabularSteps, *, method: str) -> Array:
    counts = columns.steps.counts
    visits = tables.visits_of(columns, counts)
    x, _ = _SOLVERS[method](columns, counts, visits)
    return jnp.sum(visits) * quotient(x.reshape(visits.shape), visits)


def _estimate(
    method: tables.Method,
    trajectories: Trajectories,
    target_policy: Any,
    discount: float,
    counts: Any,
    horizon_exit: bool,
    settings: Settings,
) -> Estimate:
    check_discount(discount)
    with float64(trajectories, target_policy, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        columns = tables.tabular_steps_of(trajectories, target_policy, **options)
        return run(columns, method=method, settings=settings, size=resample_size(counts, drawn=settings.drawn))
