"""The two recursions of `nuisances`, for one fold: values backwards in time, marginal ratios forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.deterministic.ratios import Policy, Ratios, behaves, pulled_back
from jaxrl_off.estimators.deterministic.regressions import Fitted, Regression
from jaxrl_off.estimators.deterministic.smoothing import action_nodes
from jaxrl_off.estimators.trajectory.steps import quotient, weights_of
from jaxrl_off.types import Array


class Step(NamedTuple):
    """Columns of one step, `[n, ...]`; time comes first where all are stacked."""

    observations: Array
    flat: Array
    actions: Array
    rewards: Array
    log_ratio: Array
    mask: Array
    scores: Array | None
    metric: Array | None
    time: Array


def flattened(observations: Array) -> Array:
    """Observations `float64[n, T, O]`, one row of numbers each."""
    return observations.reshape(*observations.shape[:2], -1).astype(jnp.float64)


def stacked(ratios: Ratios) -> Step:
    """Columns with time first."""
    steps = ratios.steps
    columns = (
        ratios.observations,
        flattened(ratios.observations),
        ratios.actions,
        steps.rewards,
        steps.log_ratio,
        steps.mask,
        ratios.scores,
        ratios.smoothing.metric,
    )
    horizon = steps.mask.shape[1]
    return Step(*(None if x is None else jnp.moveaxis(x, 1, 0) for x in columns), jnp.arange(horizon))


def of_other_folds(fit: Callable[[Array], Any], counts: Array, member: Array, folds: int) -> Any:
    """Columns `[n, T, ...]`, each row from the fit, `weights -> [T, n, ...]`, to the folds that it is not in."""
    found = jax.vmap(fit)(counts * (member != jnp.arange(folds)[:, None]))
    return jax.tree.map(lambda column: jnp.moveaxis(column, 1, 2)[member, jnp.arange(len(member))], found)


def backwards(
    data: Step, ratios: Ratios, regression: Regression, weights: Array, key: Array, discount: Array, policy: Policy
) -> tuple[tuple[Array, Array, Array | None, Array | None], Fitted]:
    """q, v and their derivatives, `[T, n, ...]`, of a fit with these weights, and the fit `[T, ...]`."""
    derivatives = data.scores is not None
    outputs = 1 + (data.scores.shape[-1] if derivatives else 0)
    size = data.actions.shape[-1]

    def step(carry: tuple[Fitted, Array], now: Step) -> tuple[tuple[Fitted, Array], Any]:
        fitted, following = carry  # v and v' of the step after, 0 where the row has ended
        targets = discount * following
        targets = targets.at[:, 0].add(now.rewards)
        taken = jnp.concatenate([now.flat, now.actions], axis=-1)
        step_key = jax.random.fold_in(key, now.time + 2)
        fitted = regression.fit(fitted, taken, targets, weights * now.mask, step_key)

        def expected(target: Array) -> tuple[Array, Array]:
            nodes, shares = action_nodes(ratios.smoothing.replace(metric=now.metric), target)
            states = jnp.broadcast_to(now.flat[:, None], (*nodes.shape[:-1], now.flat.shape[-1]))
            found = regression.predict(fitted, jnp.concatenate([states, nodes], axis=-1))
            mean = jnp.sum(shares[..., None] * found, axis=1)
            return jnp.sum(mean[:, 0]), mean

        target = behaves(policy, ratios.parameters, now.observations, size)
        if derivatives:  # by A slopes, not by P
            pull, mean = jax.grad(expected, has_aux=True)(target)
            mean = mean.at[:, 1:].add(pulled_back(policy, ratios.parameters, now.observations, pull))
        else:
            mean = expected(target)[1]
        mean = jnp.where(now.mask[:, None], mean, 0.0)
        q = jnp.where(now.mask[:, None], regression.predict(fitted, taken), 0.0)
        return (fitted, mean), (q, mean, fitted)

    width = data.flat.shape[-1] + size
    first = regression.start(width, outputs, key), jnp.zeros((len(weights), outputs))
    _, (q, v, fitted) = jax.lax.scan(step, first, data, reverse=True)
    if not derivatives:
        return (q[..., 0], v[..., 0], None, None), fitted
    return (q[..., 0], v[..., 0], q[..., 1:], v[..., 1:]), fitted


def forwards(
    data: Step, regression: Regression, weights: Array, key: Array, largest: Array
) -> tuple[Array, Array | None, Array]:
    """w, its derivative, and where it was clipped, `[T, n, ...]`."""
    derivatives = data.scores is not None
    outputs = 1 + (data.scores.shape[-1] if derivatives else 0)

    def step(carry: tuple[Fitted, Array], now: Step) -> tuple[tuple[Fitted, Array], Any]:
        fitted, before = carry  # mu and d of the step before, kept where the row has ended
        trained = weights * now.mask
        fitted = regression.fit(fitted, now.flat, before, trained, jax.random.fold_in(key, now.time))
        raw = regression.predict(fitted, now.flat)

        def normalised(found: Array, previous: Array) -> Array:
            kept = jnp.where(found > largest, largest, jnp.where(found > 0, found, 0.0))
            mass = quotient(trained @ previous, weights @ previous)
            mean = quotient(trained @ kept, jnp.sum(weights))
            return kept * quotient(mass, mean)

        start = now.time == 0
        ratio = jnp.where(start, 1.0, normalised(raw[:, 0], before[:, 0]))
        columns = [ratio[:, None]]
        if derivatives:
            turned = jax.vmap(lambda *slopes: jax.jvp(normalised, (raw[:, 0], before[:, 0]), slopes)[1], 1, 1)
            columns.append(jnp.where(start, 0.0, turned(raw[:, 1:], before[:, 1:])))
        found = jnp.concatenate(columns, axis=1)
        eta = weights_of(now.log_ratio)[:, None]
        after = [eta * found[:, :1]]
        if derivatives:
            after.append(eta * (found[:, 1:] + found[:, :1] * now.scores))
        held = jnp.where(now.mask[:, None], jnp.concatenate(after, axis=1), before)
        clipped = ~start & ((raw[:, 0] < 0) | (raw[:, 0] > largest)) & now.mask
        return (fitted, held), (found, clipped.astype(jnp.float64))

    unit = jnp.zeros((len(weights), outputs)).at[:, 0].set(1.0)
    first = regression.start(data.flat.shape[-1], outputs, key), unit
    _, (found, clipped) = jax.lax.scan(step, first, data)
    return found[..., 0], found[..., 1:] if derivatives else None, clipped
