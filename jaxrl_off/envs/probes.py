"""Probe environments: tiny problems whose answer is known exactly, one for each thing an agent must get right.

An agent that fails a probe has a bug that the probe's name points at. Every probe is a pure `LaneEnvironment` with
observation `float32[1]` (`memory`: `float32[2]`), and discrete actions {0, 1} unless said otherwise. The `continuous`
variants take `float32[1]` in [-1, 1]. Write V for the value of a state, gamma for the discount.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from jaxrl_off.types import Array


class ProbeState(NamedTuple):
    """One lane of a probe.

    Attributes:
        time: `int32[]`, decisions made in this episode.
        cue: `float32[]`, what the reward may depend on: -1 or 1, or 0 where it does not.
    """

    time: Array
    cue: Array


def _probe(
    name: str,
    observe: Callable[[ProbeState], Array],
    reward: Callable[[ProbeState, Array], Array],
    *,
    steps: int = 1,
    random_cue: bool = False,
    continuous: bool = False,
    truncates: bool = False,
) -> LaneEnvironment:
    space: DiscreteSpace | ContinuousSpace = continuous_space([-1.0], [1.0]) if continuous else DiscreteSpace(2)
    shape = jax.eval_shape(observe, ProbeState(jnp.zeros((), jnp.int32), jnp.zeros(()))).shape
    spec = EnvironmentSpec(f"probe/{name}", shape, "float32", space)

    def reset(key: Array) -> tuple[Array, ProbeState]:
        cue = jax.random.rademacher(key, (), jnp.float32) if random_cue else jnp.zeros(())
        state = ProbeState(jnp.zeros((), jnp.int32), cue)
        return observe(state), state

    def step(key: Array, state: ProbeState, action: Array) -> Transitioned:
        del key
        if isinstance(space, ContinuousSpace):
            action = clip_action(space, action)[0]
        after = ProbeState(state.time + 1, state.cue)
        ended = after.time >= steps
        return Transitioned(
            observation=observe(after),
            state=after,
            reward=jnp.asarray(reward(state, action), jnp.float32),
            terminated=ended & (not truncates),
            truncated=ended & truncates,
        )

    return LaneEnvironment(spec, reset, step)


def constant_value() -> LaneEnvironment:
    """One step, observation 0, reward 1. Answer: V = 1. Fails if: the value loss does not learn at all."""
    return _probe("constant_value", lambda state: jnp.zeros(1), lambda state, action: jnp.ones(()))


def observation_value() -> LaneEnvironment:
    """One step, observation -1 or 1 at even odds, reward = observation. Answer: V(s) = s.

    Fails if: observations do not reach the value function.
    """
    return _probe("observation_value", lambda state: state.cue[None], lambda state, action: state.cue, random_cue=True)


def discount() -> LaneEnvironment:
    """Two steps with observations 0, then 1, and rewards 0, then 1. Answer: V(0) = gamma, V(1) = 1.

    Fails if: bootstrapping or discounting is wrong.
    """
    return _probe(
        "discount",
        lambda state: state.time.astype(jnp.float32)[None],
        lambda state, action: state.time,
        steps=2,
    )


def action(continuous: bool = False) -> LaneEnvironment:
    """One step, observation 0; the reward tells which action is the best.

    Args:
        continuous: False: reward 1 for action 1 and -1 for action 0. Answer: always action 1, V = 1; the uniform policy
            is worth 0. True: reward -(a - 0.5)^2. Answer: a = 0.5, V = 0; the uniform policy is worth -7/12.

    Returns:
        The lane. Fails if: the policy loss has the wrong sign or does not learn.
    """

    def reward(state: ProbeState, action: Array) -> Array:
        return -((action - 0.5) ** 2) if continuous else 2.0 * action - 1.0

    return _probe("action", lambda state: jnp.zeros(1), reward, continuous=continuous)


def observation_action(continuous: bool = False) -> LaneEnvironment:
    """One step, observation s = -1 or 1 at even odds; the best action depends on it.

    Args:
        continuous: False: reward 1 for action 1 where s = 1 and action 0 where s = -1, otherwise -1. Answer: match the
            sign, V = 1; a policy blind to s is worth 0. True: reward -(a - s / 2)^2. Answer: a = s / 2, V = 0; the best
            blind policy is worth -1/4.

    Returns:
        The lane. Fails if: observations and actions of different steps or lanes get mixed up.
    """

    def reward(state: ProbeState, action: Array) -> Array:
        return -((action - state.cue / 2) ** 2) if continuous else (2.0 * action - 1.0) * state.cue

    return _probe("observation_action", lambda state: state.cue[None], reward, random_cue=True, continuous=continuous)


def memory(steps: int = 4) -> LaneEnvironment:
    """The cue is shown at the first step only and must be answered at the last.

    Observation: (cue at the first step, else 0; 1 where the answer is asked, else 0) with a cue of -1 or 1 at even
        odds.
    Reward: at the last step 1 for action 1 with cue 1 and action 0 with cue -1, otherwise -1; 0 before. Answer: match
    the cue, V = gamma^(steps - 1) at the first step; no policy without memory is worth more than 0.

    Args:
        steps: length of the episode, at least 2.

    Returns:
        The lane. Fails if: recurrent state is lost, reset at the wrong time or not differentiated through.

    Raises:
        ValueError: if `steps` is less than 2.
    """
    if steps < 2:
        raise ValueError(f"the memory probe needs at least 2 steps, got {steps}.")

    def observe(state: ProbeState) -> Array:
        shown = jnp.where(state.time == 0, state.cue, 0.0)
        return jnp.stack([shown, (state.time == steps - 1).astype(jnp.float32)])

    def reward(state: ProbeState, action: Array) -> Array:
        return jnp.where(state.time == steps - 1, (2.0 * action - 1.0) * state.cue, 0.0)

    return _probe("memory", observe, reward, steps=steps, random_cue=True)


def truncation(steps: int = 5) -> LaneEnvironment:
    """Observation 0 and reward 1 for ever, cut after `steps` decisions. Answer: V = 1 / (1 - gamma).

    Args:
        steps: decisions after which the episode is truncated, at least 1.

    Returns:
        The lane. Fails if: truncation is taken for termination (the value found is then smaller).

    Raises:
        ValueError: if `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"the truncation probe needs at least 1 step, got {steps}.")
    return _probe(
        "truncation", lambda state: jnp.zeros(1), lambda state, action: jnp.ones(()), steps=steps, truncates=True
    )


_PROBES: dict[str, Callable[..., LaneEnvironment]] = {
    probe.__name__: probe
    for probe in (constant_value, observation_value, discount, action, observation_action, memory, truncation)
}


def registered() -> list[str]:
    """Names that `make` accepts."""
    return sorted(_PROBES)


def make(identifier: str, num_envs: int, **parameters: Any) -> Environment:
    """Build a probe environment.

    Args:
        identifier: the name of a function of this module, for example `"discount"`.
        num_envs: number of lanes.
        **parameters: passed to that function, for example `continuous=True` or `steps=3`.

    Returns:
        A pure `Environment`.

    Raises:
        ValueError: for an unknown name or parameter.
    """
    if identifier not in _PROBES:
        raise ValueError(
            f"unknown probe {identifier!r}.{nearest(identifier, registered())} Known are: {', '.join(registered())}."
        )
    known = inspect.signature(_PROBES[identifier]).parameters
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ValueError(
            f"probe {identifier!r} has no parameter {', '.join(unknown)}; "
            f"its parameters are: {', '.join(known) or 'none'}."
        )
    return vectorise(_PROBES[identifier](**parameters), num_envs)
