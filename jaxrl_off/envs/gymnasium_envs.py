"""Gymnasium environments (MuJoCo v5, classic control, your own) through one ordered host callback per step.

The simulators live in Python. `reset` and `step` may be jitted and scanned, not vmapped, and an episode cannot be
checkpointed. All lanes together make one callback, which keeps its cost small next to a physics step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxrl_off.envs.base import (
    ContinuousSpace,
    DiscreteSpace,
    Environment,
    EnvironmentSpec,
    clip_action,
    continuous_space,
    fresh_timestep,
)
from jaxrl_off.types import Array, EpisodeStatistics, Timestep


class GymnasiumState(NamedTuple):
    """What JAX keeps of `N` running episodes; the simulators themselves live outside.

    Attributes:
        episode_return: `float32[N]`, return of the episode so far.
        length: `int32[N]`, decisions of the episode so far.
    """

    episode_return: Array
    length: Array


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            'Gymnasium environments need gymnasium, which is not installed: pip install "jaxrl_off[mujoco]".'
        ) from error
    return gymnasium


def registered() -> list[str]:
    """Ids in Gymnasium's registry; some of them need packages that may be missing.

    Raises:
        ImportError: if gymnasium is not installed.
    """
    return sorted(_gymnasium().registry)


def make(identifier: str, num_envs: int, *, asynchronous: bool = False, **parameters: Any) -> Environment:
    """Build lanes of a registered Gymnasium environment.

    Args:
        identifier: an id such as `"HalfCheetah-v5"` or `"CartPole-v1"`; `"module:id"` imports the module first.
        num_envs: number of lanes.
        asynchronous: one process a lane instead of a loop over lanes; pays off where one step takes milliseconds.
            Processes are spawned, so a script that uses it needs the usual `if __name__ == "__main__":`.
        **parameters: passed to `gymnasium.make`, for example `max_episode_steps=200`.

    Returns:
        An `Environment` that is not pure: see `from_function`.

    Raises:
        ImportError: if gymnasium, or a package that this environment needs, is not installed.
        ValueError: for an unknown id or parameter, `num_envs` below 1, or spaces that `from_function` does not take.
    """
    gymnasium = _gymnasium()
    try:
        gymnasium.make(identifier, **parameters).close()
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ImportError(
            f"{identifier} needs a package that is not installed ({error}). MuJoCo environments: "
            'pip install "jaxrl_off[mujoco]".'
        ) from error
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"cannot build the Gymnasium environment {identifier!r} with {parameters}: {error}") from error
    name = f"gymnasium/{identifier}"
    return from_function(lambda: gymnasium.make(identifier, **parameters), num_envs, name, asynchronous=asynchronous)


def from_function(build: Callable[[], Any], num_envs: int, name: str, *, asynchronous: bool = False) -> Environment:
    """Build lanes of any Gymnasium environment, wrapped as you like.

    Args:
        build: returns a new `gymnasium.Env` at each call.
        num_envs: number of lanes.
        name: how it is called in its `EnvironmentSpec`.
        asynchronous: one process a lane instead of a loop over lanes.

    Returns:
        An `Environment` that is not pure: observations `float32[N, ...]` (`uint8` if the space is), actions `int32[N]`
        or `float32[N, ...]`, clipped to their box. `reset(key)` seeds every lane from `key`, which determines all that
        follows; `step` ignores its key. Only the newest state may be stepped.

    Raises:
        ImportError: if gymnasium is not installed.
        ValueError: if `num_envs` is below 1, observations are not a box, or actions are neither discrete nor a finite
            box.
    """
    gymnasium = _gymnasium()
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    probe = build()
    spec, first_action = _describe(gymnasium, probe, name)
    probe.close()
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    if asynchronous:
        vector = gymnasium.vector.AsyncVectorEnv([build] * num_envs, context="spawn", autoreset_mode=mode)
    else:
        vector = gymnasium.vector.SyncVectorEnv([build] * num_envs, autoreset_mode=mode)

    shape, dtype = (num_envs, *spec.observation_shape), np.dtype(spec.observation_dtype)
    observations = jax.ShapeDtypeStruct(shape, dtype)
    rewards = jax.ShapeDtypeStruct((num_envs,), np.float32)
    flags = jax.ShapeDtypeStruct((num_envs,), np.bool_)

    def host_reset(seeds: Any) -> np.ndarray:
        observation, _ = vector.reset(seed=np.asarray(seeds).tolist())
        return np.asarray(observation, dtype)

    def host_step(action: Any) -> tuple[np.ndarray, ...]:
        observation, reward, terminated, truncated, info = vector.step(np.asarray(action))
        observation = np.asarray(observation, dtype)
        final_observation = observation
        if "final_obs" in info:
            final_observation = observation.copy()
            for i in np.flatnonzero(info["_final_obs"]):
                final_observation[i] = info["final_obs"][i]
        return observation, np.asarray(reward, np.float32), terminated, truncated & ~terminated, final_observation

    def reset(key: Array) -> tuple[GymnasiumState, Timestep]:
        seeds = jax.random.randint(key, (num_envs,), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        observation = io_callback(host_reset, observations, seeds, ordered=True)
        state = GymnasiumState(jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32))
        return state, fresh_timestep(observation, num_envs)

    def step(key: Array, state: GymnasiumState, action: Array) -> tuple[GymnasiumState, Timestep]:
        del key  # the simulators have random numbers of their own, seeded by `reset`
        if isinstance(spec.action_space, ContinuousSpace):
            action = clip_action(spec.action_space, action)
        else:
            action = jnp.asarray(action, jnp.int32) + first_action
        observation, reward, terminated, truncated, final_observation = io_callback(
            host_step, (observations, rewards, flags, flags, observations), action, ordered=True
        )
        done = terminated | truncated
        episode_return, length = state.episode_return + reward, state.length + 1
        timestep = Timestep(
            observation=observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            first=done,
            valid=jnp.ones(num_envs, bool),
            episode=EpisodeStatistics(done, episode_return, length),
        )
        return GymnasiumState(jnp.where(done, 0.0, episode_return), jnp.where(done, 0, length)), timestep

    return Environment(spec, num_envs, reset, step, pure=False, close=vector.close)


def _describe(gymnasium: Any, env: Any, name: str) -> tuple[EnvironmentSpec, int]:
    """The spec of `env`, and the number that its first discrete action has."""
    seen, acted = env.observation_space, env.action_space
    if not isinstance(seen, gymnasium.spaces.Box):
        raise ValueError(
            f"{name} has observations in {seen}; only boxes are taken. Wrap the environment in "
            "gymnasium.wrappers.FlattenObservation (one-hot for Discrete) and pass it to from_function."
        )
    dtype = "uint8" if seen.dtype == np.uint8 else "float32"
    if isinstance(acted, gymnasium.spaces.Discrete):
        return EnvironmentSpec(name, seen.shape, dtype, DiscreteSpace(int(acted.n))), int(acted.start)
    if isinstance(acted, gymnasium.spaces.Box):
        return EnvironmentSpec(name, seen.shape, dtype, continuous_space(acted.low, acted.high)), 0
    raise ValueError(f"{name} has actions in {acted}; only Discrete and Box are taken.")
