"""Finite processes that end: simple policies, exact values without discount, and trajectories in bulk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.envs.tabular import TabularMDP
from jaxrl_off.types import Array, Trajectories

Sample = Callable[[Array, int, Any], Trajectories]


def uniform_policy(num_states: int, num_actions: int) -> np.ndarray:
    """`float64[S, A]`, all actions alike."""
    return np.full((num_states, num_actions), 1.0 / num_actions)


def softened(policy: Any, temperature: float) -> np.ndarray:
    """`softmax(log pi / tau)`, which leaves out what pi leaves out.

    Args:
        policy: `float[S, A]`, pi(a|s).
        temperature: tau; above 1 for more of the less probable actions.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    policy = np.asarray(policy, np.float64)
    powers = (policy / policy.max(axis=1, keepdims=True)) ** (1.0 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def finite_horizon_value(mdp: TabularMDP, policy: Any, horizon: int) -> Array:
    """Expected return of the first `horizon` steps, exactly, by `V_k = r_pi + gamma P_pi V_{k-1}`.

    Args:
        mdp: the process; its discount may be 1. Its float64 is kept (and the default precision not looked at).
        policy: `float[S, A]`, pi(a|s).
        horizon: number of steps, 0 or more.

    Returns:
        `float64[]`, of a first state drawn from `mdp.initial`.

    Raises:
        ValueError: for a negative horizon, or shapes that do not fit.
    """
    if horizon < 0:
        raise ValueError(f"horizon must not be negative, got {horizon}.")
    with jax.enable_x64(True):
        transition, reward = _under(mdp, policy)

        def step(value: Array, _: None) -> tuple[Array, None]:
            return reward + mdp.discount * transition @ value, None

        value, _ = jax.lax.scan(step, jnp.zeros_like(reward), None, length=horizon)
        return jnp.asarray(mdp.initial, jnp.float64) @ value


def absorbing_value(mdp: TabularMDP, policy: Any, terminal: Any) -> Array:
    """Expected return until a terminal state is entered, exactly: `V = (I - gamma P_pi)^-1 r_pi` over the other states.

    `tabular.state_values` for processes that end, so that the discount may be 1. With rewards of 1 it is the mean
    length.

    Args:
        mdp: the process. What its terminal states yield and lead to is not looked at.
        policy: `float[S, A]`, pi(a|s), under which a terminal state is reached from every state.
        terminal: `bool[S]`.

    Returns:
        `float64[]`, of a first state drawn from `mdp.initial`; infinite or NaN where no end is reached and the discount
        is 1.

    Raises:
        ValueError: for shapes that do not fit.
    """
    with jax.enable_x64(True):
        transition, reward = _under(mdp, policy)
        alive = ~jnp.asarray(terminal, bool)
        if alive.shape != reward.shape:
            raise ValueError(f"terminal has shape {alive.shape}; bool{list(reward.shape)} is allowed.")
        transition = jnp.where(alive[:, None] & alive, transition, 0.0)
        value = jnp.linalg.solve(jnp.eye(len(reward)) - mdp.discount * transition, jnp.where(alive, reward, 0.0))
        return jnp.asarray(mdp.initial, jnp.float64) @ value


def sampler(mdp: TabularMDP, horizon: int, *, terminal: Any, arrival_reward: Any = None) -> Sample:
    """A function that draws trajectories, all at once, by binary search in cumulative probabilities.

    Args:
        mdp: the process; ICU-Sepsis takes 51 MB.
        horizon: steps after which trajectories stop, neither terminated nor truncated.
        terminal: `bool[S]`, states that a trajectory terminates on entering.
        arrival_reward: `float[S]`, reward of entering each state; None for `mdp.reward`, as expected, of state and
            action.

    Returns:
        `(key, n, policy[S, A]) -> Trajectories`, pure and jitted, to be vmapped at will: `observations` and
        `final_observation` are numbers of states, rewards and log-probabilities float32. Probabilities are float32 too,
        so that those below 1e-7 are not met in the right share.

    Raises:
        ValueError: for a horizon below 1, shapes that do not fit, or an initial state that is terminal.
    """
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)
    initial, ends = np.asarray(mdp.initial), np.asarray(terminal, bool)
    num_states, num_actions = reward.shape
    if horizon < 1 or ends.shape != (num_states,):
        raise ValueError(
            f"horizon must be at least 1 and terminal bool[{num_states}], got {horizon} and shape {ends.shape}."
        )
    if initial[ends].any():
        raise ValueError(f"the process may begin in terminal states {np.flatnonzero(ends & (initial > 0)).tolist()}.")
    first = jnp.asarray(_cumulative(initial[None]), jnp.float32)
    following = jnp.asarray(_cumulative(transition.reshape(-1, num_states)), jnp.float32)
    rewards = jnp.asarray(reward if arrival_reward is None else arrival_reward, jnp.float32)
    stops = jnp.asarray(ends)

    def sample(key: Array, n: int, policy: Any) -> Trajectories:
        if jnp.shape(policy) != (num_states, num_actions):
            raise ValueError(f"policy has shape {jnp.shape(policy)}; ({num_states}, {num_actions}) is allowed.")
        return draw(key, n, jnp.asarray(policy, jnp.float32), first, following, rewards)

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key: Array, n: int, policy: Array, first: Array, following: Array, rewards: Array) -> Trajectories:
        choices, log_policy = _cumulative(policy), jnp.log(policy)
        first_key, loop_key = jax.random.split(key)

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Any]:
            state, alive = carry
            uniform = jax.random.uniform(key, (2, n), jnp.float32)
            action = _search(choices, state, uniform[0])
            successor = _search(following, state * num_actions + action, uniform[1])
            earned = rewards[state, action] if arrival_reward is None else rewards[successor]
            ended = alive & stops[successor]
            record = (state, action, jnp.where(alive, earned, 0.0), log_policy[state, action], alive, ended)
            return (jnp.where(alive, successor, state), alive & ~ended), record

        state = _search(first, jnp.zeros(n, jnp.int32), jax.random.uniform(first_key, (n,), jnp.float32))
        start = (state, jnp.ones(n, bool))
        (final, _), records = jax.lax.scan(step, start, jax.random.split(loop_key, horizon))
        states, actions, earned, log_prob, mask, ended = (jnp.swapaxes(record, 0, 1) for record in records)
        return Trajectories(states, actions, earned, log_prob, mask, ended, jnp.zeros_like(ended), final)

    return sample


def _under(mdp: TabularMDP, policy: Any) -> tuple[Array, Array]:
    """P_pi `[S, S]` and r_pi `[S]` in float64."""
    transition, reward, policy = (jnp.asarray(x, jnp.float64) for x in (mdp.transition, mdp.reward, policy))
    if policy.shape != reward.shape or transition.shape != (*reward.shape, reward.shape[0]):
        raise ValueError(
            f"policy {policy.shape}, reward {reward.shape} and transition {transition.shape} do not fit together; "
            "[S, A], [S, A] and [S, A, S] are allowed."
        )
    return jnp.einsum("sa,sat->st", policy, transition), jnp.sum(policy * reward, axis=1)


def _cumulative(probabilities: Any) -> Any:
    """Cumulative probabilities of each row, exactly 1 from the last possible entry on."""
    total = probabilities.cumsum(axis=1)
    return total / total[:, -1:]


def _search(cumulative: Array, rows: Array, uniform: Array) -> Array:
    """First entry of `cumulative[rows]` that is above `uniform`, `int32[n]`; never one of probability 0."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = cumulative[rows, middle] <= uniform
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    # a loop, as XLA takes seconds to compile it unrolled
    bounds = (jnp.zeros_like(rows), jnp.full_like(rows, cumulative.shape[1] - 1))
    return jax.lax.fori_loop(0, (cumulative.shape[1] - 1).bit_length(), halve, bounds)[0]
