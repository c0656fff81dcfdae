"""Occupancy ratios that are linear in given features: what `occupancy.tabular` does with tables, in closed form.

With `nu(s, a) = u . phi(s, a)` and `zeta(s, a) = w . phi(s, a)` the Lagrangian of `occupancy.tabular` is quadratic in u
and w. E_D is the mean over steps, c is 0 before an exit and else 1, `phi(s, pi) = sum_a pi_e(a|s) phi(s, a)`, and

    M = E_D[phi (phi - gamma c phi(s', pi))^T],    b = (1 - gamma) E phi(s_0, pi),    G = E_D[phi phi^T],
    n = E_D[m phi],    m = 1 + gamma / (1 - gamma) (1 - c),    g = b - M^T w,

where g are the flow equations, one a feature. The estimate is `E_D[zeta r] / (1 - gamma)`.

| function | w |
|---|---|
| `minimax_weight` | g = 0 |
| `dual_dice` | `argmin |g|^2`; the estimate is divided by E_D[m zeta] |
| `gen_dice` | `argmin g^T G^-1 g`, E_D[m zeta] = 1 |

Features that the data do not tell apart are joined: w is in the range of G, and so is, but for `dual_dice`, u. With
one-hot features of states the values are those of `occupancy.tabular`, also where pairs are unseen. As long as no
function of the features is 0 on all data, M is regular, `minimax_weight` and `dual_dice` have one w, and
`minimax_weight` has the value of LSTD-Q (`values.linear`, without a ridge) and of minimax Q learning with the same features,
`b . M^-1 E_D[phi r] / (1 - gamma)`: either's solution is the other's test function.

zeta >= 0 is a constraint for every step that was made, and has no closed form. `gen_dice` does without it, and
`diagnostics["negative_ratio"]` says what that made; `best_dice`, which is `dual_dice` with the constraint and the norm,
is to be had with tables and networks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.columns.features import linear_columns
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import Transitions, transitions_of
from jaxrl_off.estimators.trajectory.occupancy.ratios import OccupancyRatio, check_discount, ratio_at
from jaxrl_off.estimators.trajectory.statistics import Settings, resample_size, run, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps
from jaxrl_off.types import Array, Estimate, Trajectories

_DISTINCT = 1e-10  # of the largest eigenvalue of G in units of its diagonal; smaller ones are taken for 0

Found = tuple[Array, Array, dict[str, Array]]


class LinearSteps(NamedTuple):
    """Checked columns, neutral where there is padding.

    Attributes:
        steps: counts, rewards, mask, discounts.
        features: `float64[n, T, d]`, phi(s_t, a_t).
        target_features: `float64[n, T + 1, d]`, phi(s_t, pi).
        used: `float64[n, T]`, 1 where the step is one to learn from.
        continues: `float64[n, T]`, 1 where it is used and not followed by an exit.
        discount: `float64[]`.
    """

    steps: Steps
    features: Array
    target_features: Array
    used: Array
    continues: Array
    discount: Array


@named_options
def minimax_weight(
    trajectories: Trajectories,
    target: TargetActions,
    features: str | Callable[..., Array],
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
    """Minimax weight learning (Uehara, Huang and Jiang, ICML 2020) with linear functions: `w = M^-T b`.

    Args:
        trajectories: as in `transitions`; behaviour probabilities are not needed.
        target: of `target_policy.target_actions`.
        features: as in `values.linear.fit_linear_q`: "linear", "quadratic" or a function. Let a constant be in their span, as
            it is in that of the named ones: then E_D[m zeta] = 1.
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`, whose standard error and intervals include that of w. Its effective sample size is that of
        trajectories' sums of zeta. Diagnostics also `mean_ratio`, E_D[zeta]; `normalisation`, E_D[m zeta];
        `negative_ratio`, E_D[max(-zeta, 0)]; `flow_residual`, the sum of |g| over features; and `rank`, how many
        features the data tell apart.

    Raises:
        ValueError: for invalid data, candidates, features or settings, or a discount of 1.

    Example:
        >>> import numpy as np
        >>> from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
        >>> states, end = np.array([[0, 1], [0, 1]]), np.array([[False, True], [False, True]])
        >>> data = Trajectories(states, states * [[0], [1]], states + 1.0, None, end | True, end, end & False, None)
        >>> one_hot = lambda state: jax.nn.one_hot(state, 2)
        >>> target = target_actions(data, [[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(minimax_weight(data, target, one_hot, discount=0.5).value), 6)  # 1 + 0.5 * 2
        2.0
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate("minimax_weight", trajectories, target, features, discount, counts, horizon_exit, settings)


@named_options
def dual_dice(
    trajectories: Trajectories,
    target: TargetActions,
    features: str | Callable[..., Array],
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
    """DualDICE (Nachum, Chow, Dai and Li, NeurIPS 2019) with linear functions: `argmin |g|^2`.

    As nu is not penalised, the norm of g is that of the coefficients u: where g = 0 cannot be had, w depends on how
    features are scaled.

    Args:
        trajectories: as in `minimax_weight`.
        target: as there.
        features: as there.
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns and Raises: as `minimax_weight`.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate("dual_dice", trajectories, target, features, discount, counts, horizon_exit, settings)


@named_options
def gen_dice(
    trajectories: Trajectories,
    target: TargetActions,
    features: str | Callable[..., Array],
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
    """GenDICE (Zhang, Dai, Li and Schuurmans, ICLR 2020), as dice_rl has it, with linear functions: the norm is kept.

    `w = w_0 + c M^-T G M^-1 n` with `w_0 = M^-T b` and c such that `n . w = 1`, without zeta >= 0.

    Args:
        trajectories: as in `minimax_weight`.
        target: as there.
        features: as there.
        discount: gamma in [0, 1).
        counts: `float[n]`, how often each trajectory counts, or None for once.
        horizon_exit: what the end of a row means; see `transitions`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns and Raises: as `minimax_weight`.
    """
    settings = settings_of(level, sides, interval, resamples, seed, floor)
    return _estimate("gen_dice", trajectories, target, features, discount, counts, horizon_exit, settings)


def density_ratio(
    trajectories: Trajectories,
    target: TargetActions,
    features: str | Callable[..., Array],
    *,
    discount: float,
    method: str = "minimax_weight",
    counts: Any = None,
    horizon_exit: bool = True,
) -> OccupancyRatio:
    """The ratio that a method finds, at all steps.

    Args:
        trajectories: as in `minimax_weight`. Those that count 0 get ratios, too, so that `trajectory.cross_fitted` may
            fit to some and predict for others.
        target: as there.
        features: as there.
        discount: gamma in (0, 1).
        method: "minimax_weight", "dual_dice" or "gen_dice".
        counts: as there.
        horizon_exit: as there.

    Returns:
        An `OccupancyRatio`.

    Raises:
        ValueError: for what `minimax_weight` refuses, an unknown method, and a discount of 0 (see `ratio_at`).
    """
    if method not in _SOLVERS:
        raise ValueError(f"method must be one of {', '.join(_SOLVERS)}, got {method!r}.")
    check_discount(discount)
    with float64(trajectories, target, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        transitions = transitions_of(trajectories, target, **options)
        zeta, divisor = _ratio(_columns(transitions, features), method=method)
        return ratio_at(zeta / divisor, transitions)


def _columns(transitions: Transitions, features: str | Callable[..., Array]) -> LinearSteps:
    columns = linear_columns(transitions, features)
    rest = transitions.used, transitions.continues, transitions.discount
    return LinearSteps(transitions.steps, columns.taken, columns.expected, *rest)


class _Moments(NamedTuple):
    """M `[k, d]`, b `[d]`, n `[k]` and G `[d, d]`, with k = d coordinates `basis^T phi` in which G is the identity or 0."""

    flow: Array
    start: Array
    norm: Array
    gram: Array
    basis: Array
    distinct: Array


def _moments(columns: LinearSteps, counts: Array) -> _Moments:
    gamma, phi = columns.discount, columns.features
    share = counts[:, None] * columns.used
    share = share / jnp.sum(share)
    weighted = share[..., None] * phi
    following = gamma * columns.continues[..., None] * columns.target_features[:, 1:]
    gram = jnp.tensordot(weighted, phi, axes=[(0, 1), (0, 1)])
    # the range does not depend on positive counts, and what is solved not on the basis; units of features do not matter
    fixed = jax.lax.stop_gradient(gram)
    units = jnp.sqrt(jnp.where(jnp.diag(fixed) > 0, jnp.diag(fixed), 1.0))
    eigenvalues, basis = jnp.linalg.eigh(fixed / jnp.outer(units, units))
    distinct = eigenvalues > _DISTINCT * jnp.max(eigenvalues)
    basis = jnp.where(distinct, basis / jnp.sqrt(jnp.where(distinct, eigenvalues, 1.0)), 0.0) / units[:, None]
    start = (1.0 - gamma) * counts @ columns.target_features[:, 0] / jnp.sum(counts)
    exits = 1.0 + gamma / (1.0 - gamma) * (columns.used - columns.continues)
    norm = basis.T @ jnp.tensordot(exits, weighted, axes=2)
    flow = basis.T @ jnp.tensordot(weighted, phi - following, axes=[(0, 1), (0, 1)])
    return _Moments(flow, start, norm, gram, basis, distinct)


def _square(moments: _Moments) -> tuple[Array, Array]:
    """M between distinct features, with ones where there are none, and b."""
    rest = jnp.diag(jnp.where(moments.distinct, 0.0, 1.0))
    return moments.flow @ moments.basis + rest, moments.basis.T @ moments.start


def _exact(moments: _Moments) -> Array:
    flow, start = _square(moments)
    return jnp.linalg.solve(flow.T, start)


def _least_squares(moments: _Moments) -> Array:
    rest = jnp.diag(jnp.where(moments.distinct, 0.0, 1.0))
    return jnp.linalg.solve(moments.flow @ moments.flow.T + rest, moments.flow @ moments.start)


def _normed(moments: _Moments) -> Array:
    flow, start = _square(moments)
    exact = jnp.linalg.solve(flow.T, start)
    gram = moments.basis.T @ moments.gram @ moments.basis
    added = jnp.linalg.solve(flow.T, gram @ jnp.linalg.solve(flow, moments.norm))
    return exact + (1.0 - moments.norm @ exact) / (moments.norm @ added) * added


_SOLVERS = {"minimax_weight": _exact, "dual_dice": _least_squares, "gen_dice": _normed}


def _dice(columns: LinearSteps, counts: Array, method: str) -> Found:
    moments = _moments(columns, counts)
    found = _SOLVERS[method](moments)
    zeta = columns.features @ (moments.basis @ found)
    total = moments.norm @ found
    share = columns.used / jnp.sum(counts[:, None] * columns.used)
    weights = share * zeta / ((1.0 - columns.discount) * (total if method == "dual_dice" else 1.0))
    share = counts[:, None] * share
    diagnostics = {
        "mean_ratio": jnp.sum(share * zeta),
        "normalisation": total,
        "negative_ratio": jnp.sum(share * jnp.maximum(-zeta, 0.0)),
        "flow_residual": jnp.sum(jnp.abs(moments.start - found @ moments.flow)),
        "rank": jnp.sum(moments.distinct).astype(total.dtype),
    }
    return jnp.sum(counts[:, None] * weights * columns.steps.rewards), weights, diagnostics


# made once, so that programs are compiled once
_METHODS: dict[str, Callable[[LinearSteps, Array], Found]] = {
    name: functools.partial(_dice, method=name) for name in _SOLVERS
}


@functools.partial(jax.jit, static_argnames="method")
def _ratio(columns: LinearSteps, *, method: str) -> tuple[Array, Array]:
    moments = _moments(columns, columns.steps.counts)
    found = _SOLVERS[method](moments)
    divisor = moments.norm @ found if method == "dual_dice" else jnp.ones(())
    return columns.features @ (moments.basis @ found), divisor


def _estimate(
    method: str,
    trajectories: Trajectories,
    target: TargetActions,
    features: str | Callable[..., Array],
    discount: float,
    counts: Any,
    horizon_exit: bool,
    settings: Settings,
) -> Estimate:
    check_discount(discount)
    with float64(trajectories, target, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        columns = _columns(transitions_of(trajectories, target, **options), features)
        size = resample_size(counts, drawn=settings.drawn)
        return run(columns, method=_METHODS[method], settings=settings, size=size)
