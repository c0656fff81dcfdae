"""Returns, advantages and off-policy corrected value targets of one trajectory.

Shared convention. A trajectory has `T` transitions `(s_t, a_t, r_t, s_{t+1})`. `values[t]` is V(s_t); `next_values[t]` is
the value of the successor *as reached*, before any reset: see `successor_values`. `terminated[t]` says that nothing of
value follows; `truncated[t]` says that the trace is cut although something does. Several episodes may follow each other in
one trajectory: nothing flows across an end.

All estimators here are one backward linear recursion, `x_t = b_t + a_t x_{t+1}`.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array


def backward_recursion(offsets: Array, factors: Array, last: Array | float = 0.0) -> Array:
    """Solve `x_t = offsets_t + factors_t * x_{t+1}` backwards from `x_T = last`.

    Args:
        offsets: `float[T]`, b.
        factors: `float[T]`, a.
        last: `float[]`, x_T.

    Returns:
        `float[T]`, x_0 .. x_{T-1}.
    """
    chex.assert_equal_shape([offsets, factors])

    def step(following: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        offset, factor = inputs
        current = offset + factor * following
        return current, current

    _, solution = jax.lax.scan(step, jnp.asarray(last, offsets.dtype), (offsets, factors), reverse=True)
    return solution


def successor_values(values: Array, bootstrap_value: Array, truncated: Array, final_values: Array) -> Array:
    """Value of each transition's successor before any reset.

    Args:
        values: `float[T]`, V(s_t).
        bootstrap_value: `float[]`, value of what follows the last step; ignored where that step terminated or truncated.
        truncated: `bool[T]`.
        final_values: `float[T]`, V(final observation) where `truncated`; anything elsewhere.

    Returns:
        `float[T]`, `final_values` where truncated, else the next entry of `values` (at the end `bootstrap_value`).
    """
    chex.assert_equal_shape([values, truncated, final_values])
    shifted = jnp.concatenate([values[1:], jnp.reshape(bootstrap_value, (1,)).astype(values.dtype)])
    return jnp.where(truncated, final_values, shifted)


def discounted_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, gamma: Array | float
) -> Array:
    """Monte Carlo returns with bootstrap at truncation and at the end of the trajectory.

    `G_t = r_t + gamma (1 - terminated_t) (G_{t+1} or, where the trace is cut, next_values_t)`.

    Args and Returns: as `lambda_returns` with `lambda_ = 1`.
    """
    return lambda_returns(rewards, next_values, terminated, truncated, gamma, 1.0)


def lambda_returns(
    rewards: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    lambda_: Array | float,
) -> Array:
    """TD(lambda) returns `q_t = r_t + gamma (lambda q_{t+1} + (1 - lambda) V(s_{t+1}))`.

    Args:
        rewards: `float[T]`.
        next_values: `float[T]`, from `successor_values`.
        terminated: `bool[T]`.
        truncated: `bool[T]`; there and after the last step the return bootstraps fully from `next_values`.
        gamma: discount in [0, 1].
        lambda_: mixing parameter in [0, 1].

    Returns:
        `float[T]`, q.

    Reference: Wang et al., "Divergence-Augmented Policy Optimization", NeurIPS 2019, eq. 20, second case. The authors'
    replay server sets q to V(s) at the last step of an unfinished chunk and drops its reward; here that step is
    `r + gamma V(s')`.

    Example:
        >>> r, v = jnp.array([1.0, 0.0]), jnp.array([0.5, 2.0])
        >>> no = jnp.zeros(2, bool)
        >>> lambda_returns(r, v, no, no, 0.5, 1.0)
        Array([1.5, 1. ], dtype=float32)
    """
    chex.assert_rank(rewards, 1)
    chex.assert_equal_shape([rewards, next_values, terminated, truncated])
    discount, continues = _discount_and_continuation(terminated, truncated, gamma, rewards.dtype)
    # lambda q_{t+1} + (1 - lambda) V_{t+1} only where q_{t+1} belongs to the same trace; V_{t+1} alone elsewhere.
    mixing = lambda_ * continues * jnp.concatenate([jnp.ones(rewards.shape[0] - 1), jnp.zeros(1)]).astype(rewards.dtype)
    return backward_recursion(rewards + discount * (1.0 - mixing) * next_values, discount * mixing)


def generalised_advantages(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    lambda_: Array | float,
) -> Array:
    """Generalised advantage estimation.

    `A_t = delta_t + gamma lambda (1 - end_t) A_{t+1}`, `delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)`.

    Args:
        rewards: `float[T]`.
        values: `float[T]`, V(s_t).
        next_values: `float[T]`, from `successor_values`.
        terminated: `bool[T]`.
        truncated: `bool[T]`.
        gamma: discount in [0, 1].
        lambda_: mixing parameter in [0, 1].

    Returns:
        `float[T]`, A. `A + values` is the TD(lambda) return.

    Reference: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016.
    """
    chex.assert_rank(rewards, 1)
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    discount, continues = _discount_and_continuation(terminated, truncated, gamma, rewards.dtype)
    deltas = rewards + discount * next_values - values
    return backward_recursion(deltas, discount * continues * lambda_)


class VTrace(NamedTuple):
    """Off-policy corrected targets of one trajectory, all `float[T]` and without gradient.

    Attributes:
        value_targets: v_t, the target of V(s_t).
        action_values: `r_t + gamma v_{t+1}`, an estimate of Q(s_t, a_t) under the current policy.
        advantages: `action_values - V(s_t)` (Divergence-Augmented Policy Optimization, eq. 11: not multiplied by rho).
    """

    value_targets: Array
    action_values: Array
    advantages: Array


def vtrace(
    values: Array,
    next_values: Array,
    rewards: Array,
    ratios: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    *,
    rho_bar: Array | float = 1.0,
    c_bar: Array | float = 1.0,
    lambda_: Array | float = 1.0,
) -> VTrace:
    """V-trace.

    `v_t = V_t + rho_t (r_t + gamma V_{t+1} - V_t) + gamma c_t (v_{t+1} - V_{t+1})` with `rho_t = min(rho_bar, ratio_t)` and
    `c_t = lambda min(c_bar, ratio_t)`. Beyond an end, and after the last step, `v_{t+1}` is `next_values`; with the
    behaviour-time TD(lambda) tail as bootstrap value this is eq. 20 of Divergence-Augmented Policy Optimization.

    Args:
        values: `float[T]`, V(s_t) under the current parameters.
        next_values: `float[T]`, from `successor_values`.
        rewards: `float[T]`.
        ratios: `float[T]`, pi(a_t|s_t) / pi_t(a_t|s_t).
        terminated: `bool[T]`.
        truncated: `bool[T]`.
        gamma: discount in [0, 1].
        rho_bar: clip of the ratio in the temporal difference; decides the fixed point.
        c_bar: clip of the ratio in the trace; decides the speed.
        lambda_: extra decay of the trace (rlax's `lambda_`; 1 in both papers).

    Returns:
        `VTrace`, constants.

    Reference: Espeholt et al., "IMPALA", ICML 2018; Wang et al., NeurIPS 2019, eq. 11 and 20.
    """
    chex.assert_rank(rewards, 1)
    chex.assert_equal_shape([values, next_values, rewards, ratios, terminated, truncated])
    values, next_values, rewards, ratios = jax.lax.stop_gradient((values, next_values, rewards, ratios))
    discount, continues = _discount_and_continuation(terminated, truncated, gamma, rewards.dtype)
    deltas = jnp.minimum(rho_bar, ratios) * (rewards + discount * next_values - values)
    corrections = backward_recursion(deltas, discount * continues * lambda_ * jnp.minimum(c_bar, ratios))
    following = continues * jnp.concatenate([corrections[1:], jnp.zeros(1, corrections.dtype)])
    action_values = rewards + discount * (next_values + following)
    return VTrace(values + corrections, action_values, action_values - values)


def _discount_and_continuation(
    terminated: Array, truncated: Array, gamma: Array | float, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """`gamma (1 - terminated)` and `1 - (terminated or truncated)` as floats."""
    discount = gamma * (1.0 - terminated.astype(dtype))
    return discount, 1.0 - (terminated | truncated).astype(dtype)
