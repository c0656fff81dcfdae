"""brax 0.14 environments: rigid-body control (ant, halfcheetah, hopper, ...) simulated in JAX.

The `spring` backend is the fast one on a CPU; its physics is not MuJoCo's, so returns do not compare with Gymnasium's
environments of the same name. brax's own automatic reset puts every lane back to the state it first started from and
loses the final observation; it is not used here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.envs.base import (
    Environment,
    EnvironmentSpec,
    LaneEnvironment,
    Transitioned,
    clip_action,
    continuous_space,
    vectorise,
)
from jaxrl_off.pytrees import nearest
from jaxrl_off.types import Array, PyTree

_BACKENDS = ("generalized", "mjx", "positional", "spring")
_NOT_PHYSICS = ("fast",)  # brax's own test double, whose observations are not a plain vector of a simulation


class BraxState(NamedTuple):
    """One lane of a brax environment.

    Attributes:
        simulation: `brax.envs.State`.
        time: `int32[]`, decisions made in this episode.
    """

    simulation: PyTree
    time: Array


def _brax() -> ModuleType:
    try:
        from brax import envs
    except ImportError as error:
        raise ImportError(
            'brax environments need brax, which is not installed: pip install "jaxrl_off[brax]".'
        ) from error
    return envs


def registered() -> list[str]:
    """Names that `make` accepts.

    Raises:
        ImportError: if brax is not installed.
    """
    return sorted(name for name in _brax()._envs if name not in _NOT_PHYSICS)


def make(
    identifier: str, num_envs: int, *, backend: str = "spring", episode_length: int = 1000, **parameters: Any
) -> Environment:
    """Build a brax environment.

    Args:
        identifier: a name of `registered()`, for example `"hopper"`.
        num_envs: number of lanes.
        backend: physics pipeline: `"spring"`, `"positional"`, `"generalized"` or `"mjx"`.
        episode_length: decisions after which an episode is truncated (never where it terminated by itself).
        **parameters: passed to the environment's constructor, for example `forward_reward_weight=2.0`.

    Returns:
        A pure `Environment`: observations `float32[N, D]`, actions `float32[N, A]` clipped to [-1, 1]. The reset, which
        runs the physics pipeline's initialisation, is computed only on steps on which some lane ended.

    Raises:
        ImportError: if brax is not installed.
        ValueError: for an unknown name, backend or parameter, or an `episode_length` below 1.
    """
    envs = _brax()
    if identifier not in registered():
        raise ValueError(
            f"unknown brax environment {identifier!r}.{nearest(identifier, registered())} Known are: "
            f"{', '.join(registered())}."
        )
    if backend not in _BACKENDS:
        raise ValueError(f"unknown brax backend {backend!r}; known are: {', '.join(_BACKENDS)}.")
    if episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, got {episode_length}.")
    try:
        env = envs.get_environment(identifier, backend=backend, **parameters)
    except TypeError as error:
        raise ValueError(f"brax environment {identifier!r} does not take {parameters}: {error}.") from error
    return vectorise(lane_environment(env, f"brax/{identifier}", episode_length), num_envs, cheap_reset=False)


def lane_environment(env: Any, name: str, episode_length: int) -> LaneEnvironment:
    """One lane of any `brax.envs.Env` without wrappers, such as one of your own.

    Args:
        env: the environment; its observation must be a vector.
        name: how it is called in its `EnvironmentSpec`.
        episode_length: decisions after which an episode is truncated.

    Returns:
        A `LaneEnvironment` to be given to `vectorise(..., cheap_reset=False)`.
    """
    space = continuous_space([-1.0] * env.action_size, [1.0] * env.action_size)
    spec = EnvironmentSpec(name, (int(env.observation_size),), "float32", space)

    def reset(key: Array) -> tuple[Array, BraxState]:
        simulation = env.reset(key)
        return jnp.asarray(simulation.obs, jnp.float32), BraxState(simulation, jnp.zeros((), jnp.int32))

    def step(key: Array, state: BraxState, action: Array) -> Transitioned:
        del key  # the physics is deterministic
        # brax writes into the dictionaries of the state it is given, hence the copy; and some of its environments
        # return metrics in another type than their reset does, where a scan needs one.
        after = env.step(jax.tree.map(lambda leaf: leaf, state.simulation), clip_action(space, action))
        time = state.time + 1
        simulation = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state.simulation)
        terminated = after.done > 0.5
        return Transitioned(
            observation=jnp.asarray(after.obs, jnp.float32),
            state=BraxState(simulation, time),
            reward=jnp.asarray(after.reward, jnp.float32),
            terminated=terminated,
            truncated=(time >= episode_length) & ~terminated,
        )

    return LaneEnvironment(spec, reset, step)
