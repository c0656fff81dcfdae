"""The estimators of `ope_suite`, all of one form: from `Inputs` to an `Estimate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from benchmarks.star.suite_domains import Domain
    from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
    from jaxrl_off.types import Array, Estimate, Trajectories

LEVEL, MOST_PAIRS, FEW_PAIRS = 0.95, 2000, 100


class Inputs(NamedTuple):
    """What estimators of one policy see of one data set.

    Attributes:
        data: with numbered states for observations, where there are such.
        target_log_prob: `[n, T]`.
        policy: `[S, A]`, or None.
        target: what the policy may do in states as they are observed, or None.
        observed: trajectories with these states, or None.
        behaviour: `[S, A]`, or None.
        cells: `[k, n, T]`, of STAR's abstractions.
        final_cells: `[k, n]`, of what followed the last steps, or None where the horizon is an exit.
    """

    data: Trajectories
    target_log_prob: Array
    policy: Array | None
    target: TargetActions | None
    observed: Trajectories | None
    behaviour: Array | None
    cells: Array
    final_cells: Array | None


Function = Callable[[Inputs], "Estimate"]


def methods_of(domain: Domain) -> dict[str, Function]:
    """All estimators but STAR that work on a domain, by name."""
    from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
    from jaxrl_off.estimators.trajectory.occupancy import linear as linear_occupancy
    from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
    from jaxrl_off.estimators.trajectory.values import linear as linear_q
    from jaxrl_off.estimators.trajectory.values import tabular, traces
    from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
    from jaxrl_off.estimators.trajectory.weights import importance as weighted
    from jaxrl_off.estimators.trajectory.weights.magic import magic

    options: dict[str, Any] = dict(discount=domain.discount, level=LEVEL)
    exits = dict(horizon_exit=domain.horizon_exit)

    def ratios(method: Callable[..., Estimate], **more: Any) -> Function:
        return lambda x: method(x.data, x.target_log_prob, **more, **options)

    def table(method: Callable[..., Estimate], **more: Any) -> Function:
        return lambda x: method(x.data, x.policy, **more, **options)

    def linear(estimator: Callable[..., Estimate], **more: Any) -> Function:
        return lambda x: estimator(x.observed, x.target, features="quadratic", **more, **exits, **options)

    def retrace(x: Inputs) -> Estimate:
        given = dict(features="quadratic", target_log_prob=x.target_log_prob)
        return traces.trace_evaluation(x.observed, x.target, **given, **exits, **options)

    def tabular_retrace(x: Inputs) -> Estimate:
        import jax

        target, features = (
            target_actions(x.data, x.policy),
            functools.partial(jax.nn.one_hot, num_classes=len(x.policy)),
        )
        return traces.trace_evaluation(x.data, target, features=features, **exits, **options)

    def fitted(method: Callable[..., Estimate], fit: Callable[[Inputs, Any], Any], **more: Any) -> Function:
        def estimate(x: Inputs) -> Estimate:
            values = corrected.cross_fitted(lambda counts: fit(x, counts), np.ones(len(x.data.rewards)))
            return method(x.data, x.target_log_prob, values.q, values.v, **more, **options)

        return estimate

    def model(x: Inputs, counts: Any) -> Any:
        found = tabular.tabular_q(x.data, x.policy, discount=domain.discount, counts=counts, **exits)
        return tabular.values_on(x.data, found, x.policy)

    def regression(x: Inputs, counts: Any) -> Any:
        found = tabular.q_regression(x.data, x.policy, discount=domain.discount, counts=counts)
        return tabular.values_on(x.data, found, x.policy)

    def least_variance(x: Inputs, counts: Any) -> Any:
        found = tabular.mrdr(x.data, x.policy, x.behaviour, discount=domain.discount, counts=counts)
        return tabular.values_on(x.data, found, x.policy)

    def quadratic(x: Inputs, counts: Any) -> Any:
        settings = dict(features="quadratic", method="backward", discount=domain.discount, counts=counts, **exits)
        return linear_q.fit_linear_q(x.observed, x.target, **settings).values

    def marginal(x: Inputs) -> Estimate:
        ones = np.ones(len(x.data.rewards))
        values = corrected.cross_fitted(lambda counts: model(x, counts), ones)
        ratio = corrected.cross_fitted(functools.partial(marginal_ratio, x), ones)
        return corrected.double_reinforcement_learning(x.data, ratio, values.q, values.v, **options)

    def direct(data: Any, target_log_prob: Any, q: Any, v: Any, *, discount: float, level: float) -> Estimate:
        return corrected.direct_method(data, v, level=level)

    found = {
        "NAIVE": ratios(weighted.naive),
        "IS": ratios(weighted.trajectory_is),
        "PDIS": ratios(weighted.pdis),
        "PDIS, clip 2": ratios(weighted.pdis, clip=2.0),
        "WIS": ratios(weighted.wis),
        "CWPDIS": ratios(weighted.cwpdis),
        "CWPDIS, window 2": ratios(weighted.cwpdis, window=2),
    }
    if domain.tables is not None:
        found |= {
            "FQE": table(tabular.model_based, **exits),
            "QReg": fitted(direct, regression),
            "DR": fitted(corrected.doubly_robust, model),
            "WDR": fitted(corrected.weighted_doubly_robust, model),
            "MAGIC": fitted(magic, model, resamples=50),
            "MRDR": fitted(corrected.doubly_robust, least_variance),
            "DRL": marginal,
            "MIS": table(tabular_occupancy.marginalised_is),
            "MWL": table(tabular_occupancy.minimax_weight, **exits),
            "GenDICE": table(tabular_occupancy.gen_dice, **exits),
        }
        if domain.tables[0].size <= MOST_PAIRS:
            found["DualDICE"] = table(tabular_occupancy.dual_dice, **exits)
            found["BestDICE"] = table(tabular_occupancy.best_dice, **exits)
        if domain.tables[0].size <= FEW_PAIRS:
            found["Retrace"] = tabular_retrace
    if domain.targets is not None:
        found |= {
            "FQE, quadratic": linear(linear_q.linear_q_evaluation),
            "FQE, quadratic by steps": linear(linear_q.linear_q_evaluation, method="backward"),
            "DR, quadratic": fitted(corrected.doubly_robust, quadratic),
            "WDR, quadratic": fitted(corrected.weighted_doubly_robust, quadratic),
            "MAGIC, quadratic": fitted(magic, quadratic, resamples=50),
            "MWL, quadratic": linear(linear_occupancy.minimax_weight),
            "DualDICE, quadratic": linear(linear_occupancy.dual_dice),
            "GenDICE, quadratic": linear(linear_occupancy.gen_dice),
            "Retrace, quadratic": retrace,
        }
    return found


def marginal_ratio(x: Inputs, counts: Any) -> Array:
    """`mu_t = rho_t mean of w_{t-1} over those who are in s_t at step t`, `[n, T]`."""
    import jax
    import jax.numpy as jnp

    ratio = jnp.where(x.data.mask, x.target_log_prob - x.data.behaviour_log_prob, 0.0)
    # no difference of sums, which may be -inf
    before = jnp.exp(jnp.pad(jnp.cumsum(ratio, axis=1), [(0, 0), (1, 0)])[:, :-1])
    counted = jnp.where(x.data.mask, counts[:, None], 0.0)

    def mean(state: Array, weight: Array, count: Array) -> Array:
        sums = [jax.ops.segment_sum(y, state, num_segments=len(x.policy)) for y in (count * weight, count)]
        return jnp.where(sums[1] > 0, sums[0] / jnp.maximum(sums[1], 1.0), 0.0)[state]

    states = jnp.where(x.data.mask, x.data.observations, 0)
    return jnp.exp(ratio) * jax.vmap(mean, in_axes=1, out_axes=1)(states, before, counted)
