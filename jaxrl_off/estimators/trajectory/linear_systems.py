"""Linear systems that are sums over steps, and the `Estimate` of a value that their solution gives. float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.trajectory import common
from jaxrl_off.estimators.trajectory.common import Settings, Steps
from jaxrl_off.types import Array, Estimate

_MOST_MOMENTS = 2**25  # numbers in moments by trajectory, which make resamples cheap; beyond, moments are taken anew


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
