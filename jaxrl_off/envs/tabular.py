"""Finite Markov decision processes, with exact values, state distributions, and as environments.

The functions compute in the dtype of the arrays they are given: build the process in float64 (`jax.enable_x64`) for
ground truth in off-policy evaluation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.envs.base import DiscreteSpace, Environment, EnvironmentSpec, LaneEnvironment, Transitioned, vectorise
from jaxrl_off.types import Array


class TabularMDP(NamedTuple):
    """A Markov decision process with `S` states and `A` actions.

    Attributes:
        transition: `float[S, A, S]`, P(s' | s, a); the last axis sums to 1. A terminal state is one that leads to
            itself with reward 0.
        reward: `float[S, A]`, expected reward r(s, a).
        initial: `float[S]`, distribution of the first state; sums to 1.
        discount: `float[]`, gamma in [0, 1).
    """

    transition: Array | np.ndarray
    reward: Array | np.ndarray
    initial: Array | np.ndarray
    discount: Array | np.floating


def _under(mdp: TabularMDP, policy: Array) -> tuple[Array, Array]:
    """P_pi `[S, S]` and r_pi `[S]`."""
    num_states, num_actions = mdp.reward.shape
    chex.assert_shape(mdp.transition, (num_states, num_actions, num_states))
    chex.assert_shape(mdp.initial, (num_states,))
    chex.assert_shape(policy, (num_states, num_actions))
    return jnp.einsum("sa,sat->st", policy, mdp.transition), jnp.sum(policy * mdp.reward, axis=1)


def state_values(mdp: TabularMDP, policy: Array) -> Array:
    """Exact values, V = (I - gamma P_pi)^-1 r_pi.

    Args:
        mdp: the process.
        policy: `float[S, A]`, pi(a | s); rows sum to 1.

    Returns:
        `float[S]`, expected discounted return from each state. `mdp.initial @ V` is the value of the policy.
    """
    transition, reward = _under(mdp, policy)
    return jnp.linalg.solve(jnp.eye(reward.shape[0], dtype=reward.dtype) - mdp.discount * transition, reward)


def state_action_values(mdp: TabularMDP, policy: Array) -> Array:
    """Exact action values, Q(s, a) = r(s, a) + gamma sum_s' P(s' | s, a) V(s').

    Args:
        mdp: the process.
        policy: `float[S, A]`, pi(a | s); rows sum to 1.

    Returns:
        `float[S, A]`.
    """
    return jnp.asarray(mdp.reward) + mdp.discount * mdp.transition @ state_values(mdp, policy)


def state_distribution(mdp: TabularMDP, policy: Array) -> Array:
    """Normalised discounted state distribution, d(s) = (1 - gamma) sum_t gamma^t Pr(s_t = s).

    Multiplied by `policy[s, a]` it is the occupancy of state and action, and sum_s,a d(s) pi(a | s) r(s, a) / (1 -
    gamma) is the value of the policy.

    Args:
        mdp: the process.
        policy: `float[S, A]`, pi(a | s); rows sum to 1.

    Returns:
        `float[S]`, non-negative, sums to 1.
    """
    transition, _ = _under(mdp, policy)
    system = jnp.eye(transition.shape[0], dtype=transition.dtype) - mdp.discount * transition.T
    return jnp.linalg.solve(system, (1.0 - mdp.discount) * mdp.initial)


def random_mdp(key: Array, num_states: int, num_actions: int, gamma: float) -> TabularMDP:
    """A process without structure: transitions uniform on the simplex, rewards uniform in [0, 1).

    Args:
        key: random key.
        num_states: number of states `S`.
        num_actions: number of actions `A`.
        gamma: discount in [0, 1).

    Returns:
        A `TabularMDP` in the default float dtype, which starts in a uniformly random state.

    Raises:
        ValueError: if a size is below 1 or gamma is outside [0, 1).
    """
    if num_states < 1 or num_actions < 1:
        raise ValueError(f"num_states and num_actions must be at least 1, got {num_states} and {num_actions}.")
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}.")
    transition_key, reward_key = jax.random.split(key)
    reward = jax.random.uniform(reward_key, (num_states, num_actions))
    weight = jax.random.exponential(transition_key, (num_states, num_actions, num_states))
    return TabularMDP(
        transition=weight / jnp.sum(weight, axis=-1, keepdims=True),
        reward=reward,
        initial=jnp.full(num_states, 1.0 / num_states),
        discount=jnp.asarray(gamma, reward.dtype),
    )


def lane_environment(mdp: TabularMDP, horizon: int, name: str = "tabular") -> LaneEnvironment:
    """The process as one lane: one-hot observation `float32[S]`, reward r(s, a), truncated after `horizon` decisions.

    Args:
        mdp: the process. It is captured as a constant; nothing terminates, also not in an absorbing state.
        horizon: decisions per episode, at least 1.
        name: how it is called in its `EnvironmentSpec`.

    Returns:
        A `LaneEnvironment` to be given to `vectorise`.

    Raises:
        ValueError: if `horizon` is less than 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    num_states, num_actions = mdp.reward.shape
    spec = EnvironmentSpec(name, (num_states,), "float32", DiscreteSpace(num_actions))

    def observe(state: Array) -> Array:
        return jax.nn.one_hot(state, num_states, dtype=jnp.float32)

    def reset(key: Array) -> tuple[Array, tuple[Array, Array]]:
        state = jax.random.categorical(key, jnp.log(mdp.initial)).astype(jnp.int32)
        return observe(state), (state, jnp.zeros((), jnp.int32))

    def step(key: Array, state: tuple[Array, Array], action: Array) -> Transitioned:
        current, time = state
        successor = jax.random.categorical(key, jnp.log(mdp.transition[current, action])).astype(jnp.int32)
        return Transitioned(
            observation=observe(successor),
            state=(successor, time + 1),
            reward=mdp.reward[current, action].astype(jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=time + 1 >= horizon,
        )

    return LaneEnvironment(spec, reset, step)


def registered() -> list[str]:
    """Names that `make` accepts."""
    return ["random"]


def make(identifier: str, num_envs: int, **parameters: Any) -> Environment:
    """Build a tabular environment.

    Args:
        identifier: `"random"`, a `random_mdp`.
        num_envs: number of lanes.
        **parameters: `seed` (0), `num_states` (10), `num_actions` (3), `gamma` (0.9) of `random_mdp`, and `horizon`
            (100).

    Returns:
        A pure `Environment`; `random_mdp(jax.random.key(seed), num_states, num_actions, gamma)` is the same process.

    Raises:
        ValueError: for an unknown name or parameter, or a value out of range.
    """
    if identifier not in registered():
        raise ValueError(f"unknown tabular environment {identifier!r}; known are: {', '.join(registered())}.")
    settings: dict[str, Any] = {"seed": 0, "num_states": 10, "num_actions": 3, "gamma": 0.9, "horizon": 100}
    unknown = [name for name in parameters if name not in settings]
    if unknown:
        raise ValueError(
            f"tabular environment {identifier!r} has no parameter {', '.join(unknown)}; "
            f"its parameters are: {', '.join(settings)}."
        )
    settings |= parameters
    horizon, seed = settings.pop("horizon"), settings.pop("seed")
    mdp = random_mdp(jax.random.key(seed), **settings)
    return vectorise(lane_environment(mdp, horizon, f"tabular/{identifier}"), num_envs)
