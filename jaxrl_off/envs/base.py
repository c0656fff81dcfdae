"""The environment interface: two functions and a description.

An `Environment` is batched over `num_envs` lanes. `reset(key) -> (state, Timestep)` starts every lane;
`step(key, state, action) -> (state, Timestep)` advances every lane and resets the lanes whose episode ended, keeping
the final observation. Environments written in JAX describe one lane (`LaneEnvironment`) and are vectorised here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.types import Array, EpisodeStatistics, PyTree, Timestep


class DiscreteSpace(NamedTuple):
    """Actions `0 .. num_actions - 1`, `int32[]`."""

    num_actions: int


class ContinuousSpace(NamedTuple):
    """Actions in a box, `float32[shape]`; `low` and `high` are tuples of finite floats, one per component.

    Agents may emit any real vector: environments clip it to the box before it acts.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class EnvironmentSpec(NamedTuple):
    """What an agent must know of an environment; hashable, hence static under `jit`."""

    name: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_space: DiscreteSpace | ContinuousSpace

    def zero_observation(self, *leading: int) -> Array:
        """Zeros of the observation's shape and dtype with `leading` axes in front."""
        return jnp.zeros((*leading, *self.observation_shape), self.observation_dtype)


class Environment(NamedTuple):
    """A batch of `num_envs` lanes.

    Attributes:
        spec: shapes and spaces of one lane.
        num_envs: number of lanes `N`.
        reset: `key -> (state, Timestep[N])`.
        step: `(key, state, action[N]) -> (state, Timestep[N])`.
        pure: True if `state` holds everything, so that it can be vmapped, replayed and checkpointed. False for
            emulators that live outside JAX (ALE, MuJoCo): those run inside `jit` and `scan`, but not under `vmap`, and
            a resumed run starts new episodes.
        close: releases outside resources; a no-op for pure environments.
    """

    spec: EnvironmentSpec
    num_envs: int
    reset: Callable[[Array], tuple[PyTree, Timestep]]
    step: Callable[[Array, PyTree, Array], tuple[PyTree, Timestep]]
    pure: bool = True
    close: Callable[[], None] = lambda: None


class Transitioned(NamedTuple):
    """One lane's answer to a raw step, before any reset: successor observation and state, reward, ends."""

    observation: PyTree
    state: PyTree
    reward: Array
    terminated: Array
    truncated: Array


class LaneEnvironment(NamedTuple):
    """One lane, without automatic reset.

    Attributes:
        spec: shapes and spaces.
        reset: `key -> (observation, state)`.
        step: `(key, state, action) -> Transitioned`.
    """

    spec: EnvironmentSpec
    reset: Callable[[Array], tuple[PyTree, PyTree]]
    step: Callable[[Array, PyTree, Array], Transitioned]


class _LaneState(NamedTuple):
    inner: PyTree
    episode_return: Array
    length: Array


def fresh_timestep(observation: PyTree, num_envs: int) -> Timestep:
    """The timestep after a `reset` of all lanes: no transition has been made, every lane starts a trace."""
    zeros = jnp.zeros(num_envs, jnp.float32)
    false = jnp.zeros(num_envs, bool)
    return Timestep(
        observation=observation,
        reward=zeros,
        terminated=false,
        truncated=false,
        final_observation=observation,
        first=jnp.ones(num_envs, bool),
        valid=jnp.ones(num_envs, bool),
        episode=EpisodeStatistics(false, zeros, jnp.zeros(num_envs, jnp.int32)),
    )


def vectorise(lane: LaneEnvironment, num_envs: int, *, cheap_reset: bool = True) -> Environment:
    """Run `num_envs` lanes of a JAX environment with automatic, re-randomised reset and kept final observation.

    Args:
        lane: one lane without automatic reset.
        num_envs: number of lanes, at least 1.
        cheap_reset: True computes the reset of every lane at every step and keeps what is needed, which compiles to the
            faster program where a reset costs little. False computes it only on steps on which some lane ended (physics
            engines). Results are the same, random numbers included.

    Returns:
        An `Environment` whose `truncated` is False wherever `terminated` is True.

    Raises:
        ValueError: if `num_envs` is less than 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")

    def reset(key: Array) -> tuple[_LaneState, Timestep]:
        observation, inner = jax.vmap(lane.reset)(jax.random.split(key, num_envs))
        zeros = jnp.zeros(num_envs, jnp.float32)
        return _LaneState(inner, zeros, jnp.zeros(num_envs, jnp.int32)), fresh_timestep(observation, num_envs)

    def step(key: Array, state: _LaneState, action: Array) -> tuple[_LaneState, Timestep]:
        keys = jax.random.split(key, (num_envs, 2))
        after = jax.vmap(lane.step)(keys[:, 0], state.inner, action)
        truncated = after.truncated & ~after.terminated
        done = after.terminated | truncated

        def restart(reset_keys: Array) -> tuple[PyTree, PyTree]:
            fresh = jax.vmap(lane.reset)(reset_keys)
            pick = jax.vmap(lambda ended, new, old: jnp.where(ended, new, old))
            return jax.tree.map(lambda new, old: pick(done, new, old), fresh, (after.observation, after.state))

        def carry_on(_: Array) -> tuple[PyTree, PyTree]:
            return after.observation, after.state

        if cheap_reset:
            observation, inner = restart(keys[:, 1])
        else:
            observation, inner = jax.lax.cond(jnp.any(done), restart, carry_on, keys[:, 1])

        episode_return = state.episode_return + after.reward
        length = state.length + 1
        timestep = Timestep(
            observation=observation,
            reward=after.reward,
            terminated=after.terminated,
            truncated=truncated,
            final_observation=after.observation,
            first=done,
            valid=jnp.ones(num_envs, bool),
            episode=EpisodeStatistics(done, episode_return, length),
        )
        next_state = _LaneState(inner, jnp.where(done, 0.0, episode_return), jnp.where(done, 0, length))
        return next_state, timestep

    return Environment(spec=lane.spec, num_envs=num_envs, reset=reset, step=step)


def continuous_space(low: Any, high: Any) -> ContinuousSpace:
    """Build a `ContinuousSpace` from array-like bounds.

    Raises:
        ValueError: if a bound is not finite (agents here need a box to clip to).
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise ValueError(
            f"continuous actions need finite bounds, got low={low.tolist()}, high={high.tolist()}; "
            "wrap the environment so that its action space is a finite box."
        )
    return ContinuousSpace(low.shape, tuple(low.ravel().tolist()), tuple(high.ravel().tolist()))


def clip_action(space: ContinuousSpace, action: Array) -> Array:
    """Clip `float32[..., *shape]` to the box of `space`."""
    low = jnp.asarray(space.low, jnp.float32).reshape(space.shape)
    high = jnp.asarray(space.high, jnp.float32).reshape(space.shape)
    return jnp.clip(action, low, high)


def from_canonical(space: ContinuousSpace, action: Array) -> Array:
    """Map [-1, 1]^D onto the box of `space`, and what lies outside along with it; `float32[..., D] -> [..., *shape]`."""
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (space.low, space.high))
    return (low + 0.5 * (action + 1.0) * (high - low)).reshape(*action.shape[:-1], *space.shape)


def to_canonical(space: ContinuousSpace, action: Array) -> Array:
    """Inverse of `from_canonical`."""
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (space.low, space.high))
    flat = action.reshape(*action.shape[: action.ndim - len(space.shape)], -1)
    return 2.0 * (flat - low) / (high - low) - 1.0


def observation_size(spec: EnvironmentSpec) -> int:
    """Number of scalars in one observation."""
    return math.prod(spec.observation_shape)
