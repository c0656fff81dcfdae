"""Demonstrations recorded from a policy that acts in an environment."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.agents.base import Agent
from jaxrl_off.data.demonstrations import Demonstrations, from_episodes
from jaxrl_off.data.policy_files import FilePolicy
from jaxrl_off.envs.base import ContinuousSpace, Environment, clip_action
from jaxrl_off.training.progress import say
from jaxrl_off.types import Array

Policy = Callable[[Array, Array], Array]
Steps = dict[str, Any]

CHUNK = 100


def collect(
    act: Policy,
    environment: Environment,
    key: Array,
    *,
    episodes: int,
    max_steps: int = 27_000,
    keep: Callable[[float, int], bool] | None = None,
) -> Demonstrations:
    """Record whole episodes.

    Every lane records its own episodes one after another, and all lanes record the same number (but for a remainder, which
    the first lanes take): the episodes that end first over all lanes would favour short ones.

    Args:
        act: `(key, observation[N, ...]) -> action[N, A]`, pure, in the environment's units; see `policy_of` and
            `policy_of_file`.
        environment: `N` lanes with continuous actions, pure or not. It is reset here, and not closed.
        key: consumed.
        episodes: how many to record; the i-th comes from lane i mod N.
        max_steps: environment steps of each lane after which recording is given up.
        keep: `(episode_return, length) -> bool`, for example to keep successful episodes only; the others are dropped, and
            recording goes on. How many were is said on standard error. None keeps all.

    Returns:
        Demonstrations. Observations and actions are flattened, and actions clipped to the environment's box, as it executes
        them.

    Raises:
        ValueError: if actions are discrete, `act` does not give one action per lane, a number is below 1, or fewer episodes
            than asked for ended, and were kept, within `max_steps`.

    Example:
        >>> from jaxrl_off import envs
        >>> lanes = envs.make("Pendulum-v1", num_envs=2)
        >>> still = lambda key, observation: jnp.zeros((observation.shape[0], 1))
        >>> collect(still, lanes, jax.random.key(0), episodes=3).observation.shape
        (600, 3)
    """
    lanes = environment.num_envs
    _check(act, environment, key, episodes, max_steps)
    reset_key, loop_key = jax.random.split(key)
    env_state, timestep = jax.jit(environment.reset)(reset_key)

    quotas = [len(range(lane, episodes, lanes)) for lane in range(lanes)]
    recorded: list[list[Steps]] = [[] for _ in range(lanes)]
    unfinished: list[list[Steps]] = [[] for _ in range(lanes)]
    carry, start, dropped = (env_state, timestep.observation), 0, 0
    while sum(map(len, recorded)) < episodes:
        if start >= max_steps:
            raise ValueError(
                f"only {sum(map(len, recorded))} of {episodes} episodes were recorded within max_steps={max_steps} (up to "
                f"{quotas[0]} in each of {lanes} lanes); {dropped} others were not to be kept. Raise max_steps, or ask for "
                "fewer episodes."
            )
        carry, steps = _steps(act, environment, loop_key, carry, jnp.arange(start, min(start + CHUNK, max_steps)))
        steps, start = jax.tree.map(np.asarray, steps), start + CHUNK
        for lane, quota in enumerate(quotas):
            unfinished[lane].append({name: field[:, lane] for name, field in steps.items()})
            *ended, rest = _split(unfinished[lane])
            unfinished[lane] = [rest]
            for episode in ended:
                if len(recorded[lane]) == quota:
                    break
                rewards = episode["rewards"]
                if keep is None or keep(float(rewards.sum(dtype=np.float64)), len(rewards)):
                    recorded[lane].append(episode)
                else:
                    dropped += 1
    if keep is not None:
        say(f"recorded {episodes} episodes of {environment.spec.name}; {dropped} others were not to be kept.")
    chosen = [recorded[i % lanes][i // lanes] for i in range(episodes)]
    # Only the last successor: the others may differ in the last bit from the next observation, where XLA computes the two
    # in different ways, and an episode is one chain.
    return from_episodes(
        [e | {"observations": np.append(e["observations"], e["successors"][-1:], axis=0)} for e in chosen]
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _steps(act: Policy, environment: Environment, key: Array, carry: Any, numbers: Array) -> tuple[Any, Steps]:
    """The steps of these numbers, `[L, N, ...]`; compiled once for a policy and an environment."""
    lanes, space = environment.num_envs, environment.spec.action_space

    def step(carry: Any, number: Array) -> tuple[Any, Steps]:
        env_state, observation = carry
        act_key, step_key = jax.random.split(jax.random.fold_in(key, number))
        action = clip_action(space, act(act_key, observation).reshape(lanes, *space.shape))
        env_state, timestep = environment.step(step_key, env_state, action)
        transition = {
            "observations": observation.reshape(lanes, -1),
            "actions": action.reshape(lanes, -1),
            "rewards": timestep.reward,
            "terminations": timestep.terminated,
            "truncations": timestep.truncated,
            "successors": timestep.final_observation.reshape(lanes, -1),
        }
        return (env_state, timestep.observation), transition

    return jax.lax.scan(step, carry, numbers)


def policy_of(agent: Agent, state: Any, *, greedy: bool = True) -> Policy:
    """A feed-forward agent's published policy, for `collect`.

    Args:
        agent: who acts.
        state: of that agent.
        greedy: the most probable action instead of a sampled one.

    Raises:
        ValueError: if the agent is recurrent.
    """
    if jax.tree.leaves(agent.initial_core(1)):
        raise ValueError(
            "this agent carries recurrent state from step to step, which act(key, observation) has no place for; only "
            "feed-forward agents are allowed. Train one with core_size=0."
        )

    def act(key: Array, observation: Array) -> Array:
        first = jnp.zeros(observation.shape[0], bool)
        return agent.act(state, key, observation, (), first, greedy=greedy).action

    return act


def policy_of_file(policy: FilePolicy, *, noise: float = 1.0) -> Policy:
    """A policy file's mean plus Gaussian noise of `noise` times its own standard deviation, for `collect`."""

    def act(key: Array, observation: Array) -> Array:
        mean = policy(observation)
        return mean + noise * policy.noise_std * jax.random.normal(key, mean.shape)

    return act


def _check(act: Policy, environment: Environment, key: Array, episodes: int, max_steps: int) -> None:
    space, lanes = environment.spec.action_space, environment.num_envs
    if not isinstance(space, ContinuousSpace):
        raise ValueError(f"demonstrations have continuous actions; {environment.spec.name} has {space}.")
    for name, value in (("episodes", episodes), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    action = jax.eval_shape(act, key, environment.spec.zero_observation(lanes))
    size = math.prod(space.shape)
    if action.shape[:1] != (lanes,) or action.size != lanes * size or not jnp.issubdtype(action.dtype, jnp.floating):
        raise ValueError(
            f"act gives {action.dtype}{list(action.shape)}; one action a lane, float32{[lanes, size]}, is allowed."
        )


def _split(parts: list[Steps]) -> list[Steps]:
    """Join consecutive steps of one lane, and cut them into episodes; last comes the one under way (perhaps of no steps)."""
    steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.flatnonzero(steps["terminations"] | steps["truncations"]) + 1
    pieces = zip(*(np.split(field, ends) for field in steps.values()), strict=True)
    return [dict(zip(steps, piece, strict=True)) for piece in pieces]
