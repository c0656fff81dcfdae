"""Occupancy ratios that are neural networks: what `occupancy.tabular` does with tables, by stochastic gradients.

zeta is a network with values of 0 or more (`(1 + x)^2`), but for `dual_dice`, where it is `1 + x`. The saddle point

    (1 - gamma) E[nu(s_0, pi)] + lambda (1 - E_D[m zeta]) + E_D[zeta (a_R r + gamma c nu(s', pi) - nu)]
        + a_nu E_D nu^2 / 2 - a_zeta E_D zeta^2 / 2

of `occupancy.tabular`, whose table of methods holds here as well, is looked for with two networks and by simultaneous
steps of Adam, nu and lambda downwards, zeta upwards; c is 0 before an exit, m as there. Rewards are divided by their
root mean square, which changes nu, but not the zeta of the saddle point. f is `x^2 / 2`, the default of dice_rl's
`run_neural_dice.py`, from which are also the square in zeta, gradients cut at 1 in every entry, and the two layers of 64
units; it takes 100,000 steps of rate 1e-4 with 2,048 transitions.

`minimax_weight` has no a_nu and no a_zeta to hold two networks together, and its other player in closed form instead:
nu is in the unit ball of a reproducing kernel Hilbert space, in which the maximum of
`(1 - gamma) E[nu(s_0, pi)] + E_D[zeta (gamma c nu(s', pi) - nu)]` is a norm, `|g|`, and zeta minimises its square
(Uehara, Huang and Jiang, ICML 2020). The kernel is Gaussian, its lengthscale half of the median distance, and
approximated by random Fourier features (Rahimi and Recht, NeurIPS 2007) and a constant, so that the norm is that of as
many flow equations: `g = b + E_D[zeta (gamma c phi(s', pi) - phi)]`. Gradients are unbiased, as the two factors of
`g . g` come from minibatches of their own. It is the stable one; its zeta is as smooth as the kernel.

A network satisfies the flow equations only approximately. The normalisation `E_D[m zeta] = 1`, which holds in every
process, is therefore enforced exactly by dividing. `diagnostics["flow_residual"]` says how far the equations are from
holding, and `unconverged` is 1 if it is above 0.1: members of an ensemble that agree say nothing of this. The ratio is the
mean of those of an ensemble. Estimates from it have the standard error of the trajectories given zeta;
`diagnostics["member_spread"]` says how far networks agree, and `trajectory.cross_fitted` with
`trajectory.double_reinforcement_learning` gives an estimate that allows for the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, one_policy
from jaxrl_off.estimators.trajectory.columns.transitions import (
    Transitions,
    flattened,
    standardisation_of,
    standardised,
    transitions_of,
)
from jaxrl_off.estimators.trajectory.occupancy.fitting import METHODS, OccupancyConfig, Rows, pool_of, train
from jaxrl_off.estimators.trajectory.occupancy.ratios import OccupancyRatio, check_discount, ratio_at
from jaxrl_off.estimators.trajectory.statistics import resample_size, run, settings_of
from jaxrl_off.estimators.trajectory.steps import Steps
from jaxrl_off.types import Array, Estimate, Trajectories

_TOLERATED = 0.1  # flow residual beyond which a fit counts as unconverged


def density_ratio(
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    config: OccupancyConfig | None = None,
    *,
    discount: float,
    method: str = "minimax_weight",
    counts: Any = None,
    horizon_exit: bool = True,
) -> OccupancyRatio:
    """The ratio that a method finds, at all steps, also of trajectories that count 0, as `trajectory.cross_fitted` needs.

    Args:
        trajectories: as in `minimax_weight`.
        target: as there.
        key: consumed.
        config: as there.
        discount: gamma in (0, 1).
        method: "minimax_weight", "dual_dice", "gen_dice" or "best_dice".
        counts: as there.
        horizon_exit: as there.

    Returns:
        An `OccupancyRatio`.

    Raises:
        ValueError: for what `minimax_weight` refuses, an unknown method, and a discount of 0.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    check_discount(discount)
    with float64(trajectories, target, discount, counts):
        options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
        transitions = transitions_of(trajectories, target, **options)
        return ratio_at(_fitted(transitions, key, config or OccupancyConfig(), method).zeta, transitions)


class _Fitted(NamedTuple):
    """What `statistics.run` is given: zeta `[n, T]`, divided, m, and what to tell."""

    steps: Steps
    zeta: Array
    multiplicity: Array
    used: Array
    discount: Array
    told: dict[str, Array]


def _fitted(transitions: Transitions, key: Array, config: OccupancyConfig, method: str) -> _Fitted:
    """The networks' mean; to be called within `float64`."""
    one_policy(transitions.target)
    counts, used, gamma = transitions.steps.counts, transitions.used, transitions.discount
    multiplicity = used + gamma / (1.0 - gamma) * (used - transitions.continues)
    scaled = standardised(transitions, standardisation_of(transitions))
    flat = flattened(scaled)
    size = jnp.sqrt(jnp.sum(counts[:, None] * used * transitions.steps.rewards**2) / jnp.sum(counts[:, None] * used))
    flat = flat._replace(reward=(flat.reward / jnp.where(size > 0, size, 1.0)).astype(jnp.float32))
    first = jax.tree.map(lambda x: x[:, 0].astype(jnp.float32), (scaled.observations, scaled.target))
    steps = pool_of(Rows(flat, multiplicity[flat.row, flat.step].astype(jnp.float32)), flat.weight)
    firsts = pool_of(first, counts)
    # what is float32 is to be computed so
    with jax.enable_x64(False):
        zeta, divisor, loss, residual = train(steps, firsts, gamma.astype(jnp.float32), key, config, method=method)
    members = jnp.zeros((config.members, *used.shape)).at[:, flat.row, flat.step].set(zeta.astype(jnp.float64))
    values = jnp.sum(counts[:, None] * used * members * transitions.steps.rewards, axis=(1, 2))
    values /= jnp.sum(counts[:, None] * used) * (1.0 - gamma)
    told = {"normalisation": jnp.mean(divisor), "loss": jnp.mean(loss), "flow_residual": residual}
    told = {name: x.astype(jnp.float64) for name, x in told.items()} | {"member_spread": jnp.std(values)}
    return _Fitted(transitions.steps, jnp.mean(members, axis=0), multiplicity, used, gamma, told)


def _weighted(fitted: _Fitted, counts: Array) -> tuple[Array, Array, dict[str, Array]]:
    share = fitted.used / jnp.sum(counts[:, None] * fitted.used)
    counted = counts[:, None] * share * fitted.zeta
    weights = share * fitted.zeta / ((1.0 - fitted.discount) * jnp.sum(counted * fitted.multiplicity))
    diagnostics = fitted.told | {
        "mean_ratio": jnp.sum(counted),
        "negative_ratio": jnp.sum(jnp.maximum(-counted, 0.0)),
        "unconverged": (fitted.told["flow_residual"] > _TOLERATED).astype(jnp.float64),
    }
    return jnp.sum(counts[:, None] * weights * fitted.steps.rewards), weights, diagnostics


_ARGUMENTS = """

Args:
    trajectories: as in `transitions`; behaviour probabilities are not needed. Observations are flattened and
        standardised: give states that are numbers as one-hot.
    target: of `target_policy.target_actions`.
    key: consumed.
    config: None for the defaults.
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
    An `Estimate`, for zeta as it is. Its effective sample size is that of trajectories' sums of zeta. Diagnostics also
    `mean_ratio`, E_D[zeta], and `negative_ratio`, E_D[max(-zeta, 0)]; `normalisation`, E_D[m zeta] before the division,
    the mean of the members'; `member_spread`, the standard deviation of members' values; `flow_residual`, `|g| / |b|`
    in the random features, 0 where the flow equations hold; `unconverged`, 1 if it is above 0.1; and `loss`, the mean
    of the last tenth of the updates: of the Lagrangian or, of `minimax_weight`, of `g . g / 2`.

Raises:
    ValueError: for invalid data, candidates or settings, or a discount of 1.
"""


def _estimator(method: str, summary: str) -> Callable[..., Estimate]:
    """The public function of a method; methods differ in how `train` finds zeta alone."""

    def estimator(
        trajectories: Trajectories,
        target: TargetActions,
        key: Array,
        config: OccupancyConfig | None = None,
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
        checked = settings_of(level, sides, interval, resamples, seed, floor)
        check_discount(discount)
        with float64(trajectories, target, discount, counts):
            options = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
            fitted = _fitted(transitions_of(trajectories, target, **options), key, config or OccupancyConfig(), method)
            return run(fitted, method=_weighted, settings=checked, size=resample_size(counts, drawn=checked.drawn))

    estimator.__name__ = estimator.__qualname__ = method
    estimator.__doc__ = summary + _ARGUMENTS
    return named_options(estimator)


minimax_weight = _estimator(
    "minimax_weight", "Minimax weight learning with a network for zeta and a kernel for nu; see the module."
)
dual_dice = _estimator(
    "dual_dice", "DualDICE (Nachum, Chow, Dai and Li, NeurIPS 2019) with two networks; zeta may be negative."
)
gen_dice = _estimator(
    "gen_dice", "GenDICE (Zhang, Dai, Li and Schuurmans, ICLR 2020), as dice_rl has it, with two networks."
)
best_dice = _estimator("best_dice", "What Yang et al. (NeurIPS 2020) and dice_rl advise, with two networks.")
