"""Gymnasium environments (MuJoCo v5, classic control, your own) through one ordered host callback per step.

The simulators live in Python, in this process or in `workers` of their own. `reset` and `step` may be jitted and
scanned, not vmapped, and an episode cannot be checkpointed. All lanes together make one callback, which keeps its cost
small next to a physics step.
"""

from __future__ import annotations

import importlib
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
from jaxrl_off.envs.workers import Lanes, Layout
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


def make(identifier: str, num_envs: int, *, workers: int = 1, **parameters: Any) -> Environment:
    """Build lanes of a registered Gymnasium environment.

    Args:
        identifier: an id such as `"HalfCheetah-v5"` or `"CartPole-v1"`; `"module:id"` imports the module first.
        num_envs: number of lanes.
        workers: processes that step the lanes, this one included; 1 steps all of them here. As many as there are cores
            to spare, at most `num_envs`. Results do not depend on it. Processes are spawned, so a script with more than
            one needs `if __name__ == "__main__":`.
        **parameters: passed to `gymnasium.make`, for example `max_episode_steps=200`.

    Returns:
        An `Environment` that is not pure: see `from_function`.

    Raises:
        ImportError: if gymnasium, or a package that this environment needs, is not installed.
        ValueError: for an unknown id or parameter, `num_envs` or `workers` out of range, or spaces that `from_function`
            does not take.
    """
    gymnasium = _gymnasium()
    module, colon, _ = identifier.partition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{identifier!r} asks for the module {module!r} to be imported first, which failed: {error}. Install the "
                "package that has it, or put its folder on PYTHONPATH."
            ) from error
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
    return from_function(lambda: gymnasium.make(identifier, **parameters), num_envs, name, workers=workers)


def from_function(build: Callable[[], Any], num_envs: int, name: str, *, workers: int = 1) -> Environment:
    """Build lanes of any Gymnasium environment, wrapped as you like.

    Args:
        build: returns a new `gymnasium.Env` at each call.
        num_envs: number of lanes.
        name: how it is called in its `EnvironmentSpec`.
        workers: processes that step the lanes, this one included; `build` is sent to the others by cloudpickle.

    Returns:
        An `Environment` that is not pure: observations `float32[N, ...]` (`uint8` if the space is), actions `int32[N]`
        or `float32[N, ...]`, clipped to their box. `reset(key)` seeds every lane from `key`, which determines all that
        follows; `step` ignores its key. Only the newest state may be stepped. A step in which a worker fails or dies
        raises an error that names it and its lanes, and closes the others.

    Raises:
        ImportError: if gymnasium is not installed.
        ValueError: if `num_envs` is below 1, `workers` is not in `1 .. num_envs`, observations are not a box, or actions
            are neither discrete nor a finite box.
        RuntimeError: if a worker cannot build its lanes.
    """
    gymnasium = _gymnasium()
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    if not 1 <= workers <= num_envs:
        raise ValueError(f"workers must be 1 (this process alone) to num_envs={num_envs}, got {workers}.")
    probe = build()
    spec, first_action = _describe(gymnasium, probe, name)
    probe.close()
    box = spec.action_space if isinstance(spec.action_space, ContinuousSpace) else None
    layout = Layout(
        spec.observation_shape,
        spec.observation_dtype,
        () if box is None else box.shape,
        "int32" if box is None else "float32",
    )
    lanes = Lanes(build, num_envs, layout, workers, name)

    observations = jax.ShapeDtypeStruct((num_envs, *spec.observation_shape), np.dtype(spec.observation_dtype))
    rewards = jax.ShapeDtypeStruct((num_envs,), np.float32)
    flags = jax.ShapeDtypeStruct((num_envs,), np.bool_)

    def host_reset(seeds: Any) -> np.ndarray:
        return lanes.reset(np.asarray(seeds))

    def host_step(action: Any) -> tuple[np.ndarray, ...]:
        return tuple(lanes.step(np.asarray(action)))

    def reset(key: Array) -> tuple[GymnasiumState, Timestep]:
        seeds = jax.random.randint(key, (num_envs,), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        observation = io_callback(host_reset, observations, seeds, ordered=True)
        state = GymnasiumState(jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32))
        return state, fresh_timestep(observation, num_envs)

    def step(key: Array, state: GymnasiumState, action: Array) -> tuple[GymnasiumState, Timestep]:
        del key  # the simulators have random numbers of their own, seeded by `reset`
        if box is not None:
            action = clip_action(box, action)
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

    return Environment(spec, num_envs, reset, step, pure=False, close=lanes.close)


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
