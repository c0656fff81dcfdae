"""Linear systems that are sums over steps, and the `Estimate` of a value that their solution gives. float64.

LSTD-Q and its kin with traces solve `A theta = b`, `A = G - C`, where G is the mean of `x x^T` and C what follows a step,
`gamma x y^T` without traces. It is the fixed point of `theta <- G^-1 (b + C theta)`, rounds of fitted Q-evaluation. No
process has an operator `N = G^-1 C` that expands: its spectral radius is gamma or less, and with rows that end after T steps
about `gamma (1 - 1 / T)`. That of an estimate from few data, or of features that cannot follow the target's steps, may be
larger; near 1 A is singular, and values are a hundred times what any return is.

So where values grow more than twice the horizon times, with a radius beyond `1 - (1 - gamma) / 2` or, where the ends of
rows are exits, `1 - 1 / 2T` if that is less, the fixed point is not taken. Rows that end in exits show T steps: what T
rounds from 0 give, the value of T steps, takes its place. Where they are no exits it is the fixed point with C multiplied
by the bound over the radius, a lower discount. Elsewhere nothing is changed. This safeguard is not from a paper. A ridge is
no substitute: A is not symmetric, so adding to its diagonal can make it singular. (In CartPole, features quadratic, 100
trajectories of at most 50 steps, one in fourteen fits has no such fixed point, and the squared error of the doubly robust
estimator falls from 22 to 0.03.)

In rounds the radius may be what makes values grow tenfold on the way, and C is lowered where it is more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import weighted_mean
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic
from jaxrl_off.estimators.trajectory.steps import Steps, quotient
from jaxrl_off.types import Array, Estimate

_MOST_MOMENTS = 2**25  # numbers in moments by trajectory, which make resamples cheap; beyond, moments are taken anew
_SQUARINGS = 14  # of the matrix whose radius is asked for; its norm to the power of 1 / 16,384 is that within 0.1 %
_GROWTH = 10.0  # of values in rounds of the recursion, at most


class Rows(NamedTuple):
    """What moments are sums of; every leaf `[n, ...]`, or None where a method has no use for it.

    `weight_t (x_t, or rho_t x_t - y_t) response_t` make the right-hand side, and `weight_t left_t right_t^T` the left-hand
    one, or for `mrdr` of discrete actions `weight_t (blocks_t - y_t y_t^T)`, with
    `shares_t(a) = pi_e(a|s_t)^2 / pi_b(a|s_t)` in the blocks. `plain` is x_t where the system is a fixed point's, and None
    where it is one of least squares, which nothing makes unstable; `bound` is that of the module, `float64[n]`, n times
    the same.
    """

    weight: Array
    left: Array
    right: Array
    response: Array
    start: Array
    shares: Array | None = None
    state: Array | None = None
    plain: Array | None = None
    bound: Array | None = None


class _Moments(NamedTuple):
    system: Array
    response: Array
    seen: Array
    total: Array
    start: Array
    gram: Array | None


class _System(NamedTuple):
    """A, b and G, means over steps with the ridge, and 1 for features that never occur."""

    matrix: Array
    response: Array
    gram: Array


def bound_of(discount: Array, shape: tuple[int, int], horizon_exit: bool) -> Array:
    """The bound of the module, `float64[n]`."""
    n, horizon = shape
    ends = 1.0 - discount
    bound = 1.0 - 0.5 * (jnp.maximum(ends, 1.0 / horizon) if horizon_exit else ends)
    return jnp.broadcast_to(jnp.asarray(bound, jnp.float64), (n,))


def spectral_radius(matrix: Array) -> Array:
    """Largest modulus of an eigenvalue, from above, by squaring: also where there is no solver for eigenvalues."""

    def square(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        power, logarithm = carry
        power = power @ power
        norm = jnp.linalg.norm(power)
        shown = norm > 0
        return (power / jnp.where(shown, norm, 1.0), 2.0 * logarithm + jnp.where(shown, jnp.log(norm), -jnp.inf)), None

    norm = jnp.linalg.norm(matrix)
    start = matrix / jnp.where(norm > 0, norm, 1.0), jnp.where(norm > 0, jnp.log(norm), -jnp.inf)
    (_, logarithm), _ = jax.lax.scan(square, start, None, length=_SQUARINGS)
    return jnp.exp(logarithm / 2.0**_SQUARINGS)


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
    gram = None if rows.plain is None else jnp.einsum("nt,ntk,ntl->kl", weight, rows.plain, rows.plain)
    return _Moments(system, response, seen, jnp.sum(weight), counts @ rows.start, gram)


def _moment_function(rows: Rows) -> Callable[[Array], _Moments]:
    """`counts -> _Moments`, by way of moments of every trajectory where these are not too many."""
    n, size = rows.start.shape
    if n * size * size > _MOST_MOMENTS:
        return lambda counts: _moments(rows, counts)
    each = jax.vmap(lambda row: _moments(jax.tree.map(lambda x: x[None], row), jnp.ones(1)))(rows)
    return lambda counts: jax.tree.map(lambda x: jnp.tensordot(counts, x, axes=1), each)


def _system(moments: _Moments, ridge: Array) -> _System:
    extra = jnp.diag(ridge + jnp.where(moments.seen > 0, 0.0, 1.0))
    matrix = quotient(moments.system, moments.total) + extra
    gram = matrix if moments.gram is None else quotient(moments.gram, moments.total) + extra
    return _System(matrix, quotient(moments.response, moments.total), gram)


class _Stability(NamedTuple):
    """The radius, whether the fixed point is taken, and what C is multiplied by in the system and in rounds."""

    radius: Array
    settled: Array
    factor: Array
    round_factor: Array


def _stability(system: _System, rows: Rows, rounds: int | None) -> _Stability:
    """No derivative of this is taken."""
    one = jnp.ones(())
    if rows.plain is None:
        return _Stability(jnp.zeros(()), one > 0, one, one)
    radius = spectral_radius(jax.lax.stop_gradient(jnp.linalg.solve(system.gram, system.gram - system.matrix)))

    def factor(bound: Array | float) -> Array:
        # what rounding and finitely many squarings leave is not instability
        return jnp.where(radius > 1.001 * bound, bound / radius, 1.0)

    lowered = factor(rows.bound[0])
    return _Stability(radius, lowered == 1.0, lowered, one if rounds is None else factor(_GROWTH ** (1.0 / rounds)))


def _lowered(system: _System, factor: Array) -> Array:
    """`G - factor C`; A itself where the factor is 1."""
    return system.matrix + (1.0 - factor) * (system.gram - system.matrix)


def _rounds(system: _System, factor: Array, rounds: int) -> Array:
    """theta with 0, 1, .. rounds steps to go, `[rounds + 1, K]`."""
    operator = factor * jnp.linalg.solve(system.gram, system.gram - system.matrix)
    reward = jnp.linalg.solve(system.gram, system.response)

    def step(theta: Array, _: None) -> tuple[Array, Array]:
        following = reward + operator @ theta
        return following, following

    _, found = jax.lax.scan(step, jnp.zeros_like(reward), None, length=rounds)
    return jnp.concatenate([jnp.zeros((1, len(reward))), found])


def _settled(system: _System, stability: _Stability, rounds: int | None) -> Array:
    """theta of the fixed point, or what is taken for it."""
    found = jnp.linalg.solve(_lowered(system, stability.factor), system.response)
    if rounds is None:
        return found
    return jnp.where(stability.settled, found, _rounds(system, stability.round_factor, rounds)[-1])


@functools.partial(jax.jit, static_argnames="rounds")
def solved(rows: Rows, counts: Array, ridge: Array, *, rounds: int | None = None) -> Array:
    """theta of the system that rows make, `[K]`; rounds are T where the ends of rows are exits, else None."""
    system = _system(_moments(rows, counts), ridge)
    return _settled(system, _stability(system, rows, rounds), rounds)


@functools.partial(jax.jit, static_argnames="rounds")
def recursed(rows: Rows, counts: Array, ridge: Array, *, rounds: int) -> Array:
    """theta with 0, 1, .. rounds steps to go, `[rounds + 1, K]`."""
    system = _system(_moments(rows, counts), ridge)
    return _rounds(system, _stability(system, rows, rounds).round_factor, rounds)


@functools.partial(jax.jit, static_argnames=("settings", "size", "rounds", "backward"))
def evaluated(
    rows: Rows,
    steps: Steps,
    ridge: Array,
    *,
    settings: Settings,
    size: int | None,
    rounds: int | None = None,
    backward: bool = False,
) -> Estimate:
    """The `Estimate` of `mean_i start_i . theta`, of `solved` or, backward, `recursed`; see `linear_q_evaluation`."""
    moments_of = _moment_function(rows)
    whole = moments_of(steps.counts)
    system = _system(whole, ridge)
    # of the data as they are: resamples have the same
    stability = _stability(system, rows, rounds)

    def value(system: _System, start: Array) -> Array:
        if backward:
            return start @ _rounds(system, stability.round_factor, rounds)[-1]
        return start @ _settled(system, stability, rounds)

    def statistic(counts: Array) -> Array:
        moments = moments_of(counts)
        return value(_system(moments, ridge), moments.start) / jnp.sum(counts)

    # the value is linear in b, and b in what each step contributes
    slope = jax.grad(lambda response: value(system._replace(response=response), whole.start))(system.response)
    weight = jnp.maximum(jnp.sum(rows.weight * (rows.left @ slope), axis=1), 0.0)
    weight = quotient(weight, weighted_mean(steps.counts, weight))
    log_weight = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), -jnp.inf)
    found = {
        "condition": jnp.linalg.cond(system.gram if backward else system.matrix),
        "spectral_radius": stability.radius,
        "settled": stability.settled.astype(slope.dtype),
    }
    return estimate_statistic(statistic, steps, log_weight, settings, diagnostics=found, size=size)
