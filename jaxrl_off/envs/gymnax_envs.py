"""gymnax 1.0 environments: classic control, MinAtar, bsuite and the rest of its registry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.envs.base import (
    ContinuousSpace,
    DiscreteSpace,
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


def registered() -> list[str]:
    """Names that `make` accepts."""
    import gymnax

    return sorted(gymnax.registered_envs)


def make(name: str, num_envs: int, **parameters: Any) -> Environment:
    """Build a gymnax environment.

    Args:
        name: an id of `gymnax.registered_envs`, for example `"Breakout-MinAtar"`.
        num_envs: number of lanes.
        **parameters: fields of the environment's gymnax parameters to replace, for example
            `max_steps_in_episode=200`.

    Returns:
        A pure `Environment`. MinAtar's 0/1 grids are observed as `bool`, which a replay stores in a quarter of the
        memory; networks convert them to float.

    Raises:
        ValueError: for an unknown name or parameter.
    """
    import gymnax

    if name not in gymnax.registered_envs:
        raise ValueError(
            f"unknown gymnax environment {name!r}.{nearest(name, registered())} All {len(registered())} names: "
            "jaxrl_off.envs.gymnax_envs.registered(). Environments of other families have a prefix, such as "
            "gymnasium/ or brax/."
        )
    env, params = gymnax.make(name)
    unknown = [p for p in parameters if not hasattr(params, p)]
    if unknown:
        raise ValueError(
            f"{name} has no parameter {', '.join(unknown)}.{nearest(unknown[0], vars(params))} "
            f"Its parameters are: {', '.join(vars(params))}."
        )
    params = params.replace(**parameters)

    observation_space, gymnax_action_space = env.observation_space(params), env.action_space(params)
    boolean = name.endswith("-MinAtar")
    if hasattr(gymnax_action_space, "n"):
        action_space: DiscreteSpace | ContinuousSpace = DiscreteSpace(int(gymnax_action_space.n))
    else:
        with jax.ensure_compile_time_eval():  # bounds are constants, also where `make` is called inside `jit`
            low, high = (
                np.broadcast_to(np.asarray(bound), gymnax_action_space.shape)
                for bound in (gymnax_action_space.low, gymnax_action_space.high)
            )
        action_space = continuous_space(low, high)
    spec = EnvironmentSpec(
        name=name,
        observation_shape=tuple(observation_space.shape),
        observation_dtype="bool" if boolean else str(jnp.dtype(observation_space.dtype)),
        action_space=action_space,
    )

    def observe(raw: Array) -> Array:
        return jnp.asarray(raw).reshape(spec.observation_shape).astype(spec.observation_dtype)

    def reset(key: Array) -> tuple[Array, PyTree]:
        observation, state = env.reset_env(key, params)
        return observe(observation), jax.tree.map(jnp.asarray, state)

    def step(key: Array, state: PyTree, action: Array) -> Transitioned:
        if isinstance(action_space, ContinuousSpace):
            action = clip_action(action_space, action)
        observation, next_state, reward, terminated, _ = env.step_env(key, state, action, params)
        return Transitioned(
            observation=observe(observation),
            state=jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), next_state, state),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool).reshape(()),
            truncated=jnp.asarray(env.is_truncated(next_state, params), bool),
        )

    return vectorise(LaneEnvironment(spec, reset, step), num_envs)
