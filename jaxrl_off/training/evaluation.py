"""Evaluation: how much a policy earns, from the first whole episode of every lane."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.agents.base import Agent
from jaxrl_off.envs.base import Environment
from jaxrl_off.types import Array

COLUMNS = (
    "evaluation_return",
    "evaluation_standard_error",
    "evaluation_length",
    "evaluation_episodes",
    "evaluation_unfinished",
)


class Evaluation(NamedTuple):
    """The first whole episode of each lane.

    Attributes:
        episode_return: `float32[N]`, undiscounted sum of unclipped rewards; NaN where the episode did not finish, so
            that a careless mean shows it.
        length: `int32[N]`, decisions of that episode; 0 where it did not finish.
        finished: `bool[N]`, whether the episode ended within `max_steps`.
    """

    episode_return: Array
    length: Array
    finished: Array


def evaluate(
    agent: Agent, agent_state: Any, environment: Environment, key: Array, *, greedy: bool = False, max_steps: int
) -> Evaluation:
    """Play one whole episode in every lane.

    Each lane counts its first episode and no other: counting whatever ends first over all lanes would favour short
    episodes. Lanes that are done go on idly until the last one is.

    Args:
        agent: who acts, with its *published* parameters; pass `agent.publish(agent_state)` to judge the learner's
            newest.
        agent_state: of that agent.
        environment: `num_envs` lanes, as many as episodes are wanted; pure or not. It is reset here, so do not give the
            lanes of a run that is under way if they are not pure.
        key: consumed.
        greedy: the most probable action instead of a sampled one.
        max_steps: environment steps after which lanes still playing are given up as unfinished.

    Returns:
        An `Evaluation` with leading axis `[N]`. It is compiled at the first call with an agent and an environment, and later
        calls with the same two objects reuse the program. The function may be jitted, and vmapped over `agent_state` and `key`
        if the environment is pure.

    Raises:
        ValueError: if `max_steps` is less than 1.

    Example:
        >>> from jaxrl_off import agents, envs
        >>> lanes = envs.make("CartPole-v1", num_envs=8)
        >>> agent = agents.make(agents.preset("ppo"), lanes.spec, total_updates=1)
        >>> evaluation = evaluate(agent, agent.init(jax.random.key(0)), lanes, jax.random.key(1), max_steps=501)
        >>> evaluation.finished.all().item()
        True
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
    return _evaluate(agent, agent_state, environment, key, bool(greedy), int(max_steps))


@functools.partial(jax.jit, static_argnums=(0, 2, 4, 5))
def _evaluate(
    agent: Agent, agent_state: Any, environment: Environment, key: Array, greedy: bool, max_steps: int
) -> Evaluation:
    """`evaluate`, compiled once for an agent and an environment however often it is called."""
    lanes = environment.num_envs
    reset_key, loop_key = jax.random.split(key)
    env_state, timestep = environment.reset(reset_key)
    nothing = Evaluation(jnp.full(lanes, jnp.nan, jnp.float32), jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool))

    def playing(carry: Any) -> Array:
        steps, result = carry[0], carry[-1]
        return (steps < max_steps) & ~jnp.all(result.finished)

    def step(carry: Any) -> Any:
        steps, key, env_state, observation, core, first, result = carry
        key, act_key, step_key = jax.random.split(key, 3)
        acted = agent.act(agent_state, act_key, observation, core, first, greedy=greedy)
        env_state, timestep = environment.step(step_key, env_state, acted.action)
        episode = timestep.episode
        new = episode.done & ~result.finished
        result = Evaluation(
            jnp.where(new, episode.episode_return, result.episode_return),
            jnp.where(new, episode.length, result.length),
            result.finished | new,
        )
        return steps + 1, key, env_state, timestep.observation, acted.core, timestep.first, result

    core = agent.initial_core(lanes)
    start = (jnp.zeros((), jnp.int32), loop_key, env_state, timestep.observation, core, timestep.first, nothing)
    return jax.lax.while_loop(playing, step, start)[-1]


def summarise_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Numbers for people and files, in float64.

    Returns:
        `evaluation_return` and `evaluation_length`, means over the *finished* episodes (NaN if there are none);
        `evaluation_standard_error` of the mean return (NaN below two episodes); `evaluation_episodes`, how many
        finished; `evaluation_unfinished`, how many did not. Where that is not 0 the means leave out the longest
        episodes.
    """
    finished = np.asarray(evaluation.finished)
    returns = np.asarray(evaluation.episode_return, np.float64)[finished]
    lengths = np.asarray(evaluation.length, np.float64)[finished]
    count = int(finished.sum())
    mean = float(returns.mean()) if count else math.nan
    error = float(returns.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    length = float(lengths.mean()) if count else math.nan
    return dict(zip(COLUMNS, (mean, error, length, count, int(finished.size) - count), strict=True))
