"""Observation and reward normalisation as a transformation of an agent, with its statistics in the learner's state.

`normalise` wraps any `Agent`. Observations are standardised by the running mean and standard deviation of all that were acted
on, and clipped to +-10; rewards are divided by the running standard deviation of their discounted sum
`G_t = r_t + gamma G_{t-1}`, which starts again with every trace (the rule of OpenAI's baselines, kept by Stable-Baselines3,
CleanRL and rejax). Rewards are not centred, which would change what is optimal. Reported episode returns are those of the
environment.

Statistics belong to the state of the learner, so that checkpoints, exact resume and saved policies have them, and they change
only with collected data: acting, hence evaluation, leaves them alone. They are means of many samples: count, mean and sum of
squared deviations, joined by the rule of Chan, Golub and LeVeque (1979), which does not cancel in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.layers import PolicyLayers
from jaxrl_off.envs.base import EnvironmentSpec
from jaxrl_off.types import Array, PyTree, Rollout

_LARGEST = 10.0  # standard deviations that an observation keeps
_ROUNDING = 1e-5  # of the mean; what float32 resolves


class RunningMoments(NamedTuple):
    """Moments of everything seen so far; float32.

    Attributes:
        count: `float[]`, number of samples.
        mean: `float[...]`.
        squares: `float[...]`, sum of squared deviations from the mean.
    """

    count: Array
    mean: Array
    squares: Array


class NormalisedState(NamedTuple):
    """The state of a normalised agent.

    Attributes:
        agent: of the agent inside.
        observation: `RunningMoments` of observations, or `()`.
        discounted_return: `RunningMoments` of discounted sums of rewards, or `()`.
    """

    agent: Any
    observation: Any
    discounted_return: Any


class NormalisedCore(NamedTuple):
    """What actors carry from step to step.

    Attributes:
        agent: recurrent state of the agent inside.
        discounted_return: `float[N]`, G before the chunk.
    """

    agent: PyTree
    discounted_return: Array


def empty_moments(shape: tuple[int, ...]) -> RunningMoments:
    """Moments of nothing."""
    return RunningMoments(jnp.zeros((), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def add_samples(moments: RunningMoments, samples: Array, mask: Array) -> RunningMoments:
    """Moments that include further samples.

    Args:
        moments: so far, of shape `[...]`.
        samples: `[*B, ...]`.
        mask: `bool[*B]`, which of them count.

    Returns:
        Moments of all.
    """
    axes = tuple(range(mask.ndim))
    weight = mask.astype(jnp.float32).reshape(*mask.shape, *[1] * (samples.ndim - mask.ndim))
    samples = jnp.where(weight > 0, samples.astype(jnp.float32), 0.0)
    count = jnp.sum(mask, dtype=jnp.float32)
    mean = jnp.sum(samples, axes) / jnp.maximum(count, 1.0)
    squares = jnp.sum(weight * jnp.square(samples - mean), axes)
    total = moments.count + count
    share = count / jnp.maximum(total, 1.0)
    apart = mean - moments.mean
    return RunningMoments(
        total, moments.mean + share * apart, moments.squares + squares + moments.count * share * jnp.square(apart)
    )


def standard_deviation(moments: RunningMoments) -> Array:
    """Standard deviation `float[...]`; 1 where nothing has been seen, or nothing has varied.

    What varies by less than 1e-5 of its mean cannot be told from rounding in float32, and counts as not varied. There is no
    other smallest size: observations in small units are standardised, too.
    """
    deviation = jnp.sqrt(moments.squares / jnp.maximum(moments.count, 1.0))
    return jnp.where(deviation > _ROUNDING * jnp.abs(moments.mean), deviation, 1.0)


def standardised(moments: RunningMoments, observation: Array) -> Array:
    """Observations in standard deviations from the mean, `float32[*B, ...]`, clipped to +-10."""
    deviations = (observation.astype(jnp.float32) - moments.mean) / standard_deviation(moments)
    return jnp.clip(deviations, -_LARGEST, _LARGEST)


def normalise(
    agent: Agent, spec: EnvironmentSpec, *, gamma: Array | float, observations: bool, rewards: bool, at: str
) -> Agent:
    """An agent that sees standardised observations and scaled rewards; the agent itself where neither is asked for.

    Args:
        agent: to wrap.
        spec: of its environment.
        gamma: discount of the sums that rewards are scaled by.
        observations: whether observations are standardised.
        rewards: whether rewards are scaled.
        at: `"collection"` for learners that use what was computed when acting (values, log-probabilities): roll-outs hold
            normalised data. `"update"` for learners that store transitions and use them for long: the replay holds raw data,
            and every batch is normalised by the moments of the day.

    Returns:
        An `Agent` whose state is a `NormalisedState`.

    Raises:
        ValueError: for another `at`.
    """
    if at not in ("collection", "update"):
        raise ValueError(f"at must be 'collection' or 'update', got {at!r}.")
    if not (observations or rewards):
        return agent

    def seen(state: NormalisedState, observation: PyTree) -> PyTree:
        return standardised(state.observation, observation) if observations else observation

    def init(key: Array) -> NormalisedState:
        moments = empty_moments(spec.observation_shape) if observations else ()
        return NormalisedState(agent.init(key), moments, empty_moments(()) if rewards else ())

    def initial_core(num_envs: int) -> NormalisedCore:
        return NormalisedCore(agent.initial_core(num_envs), jnp.zeros(num_envs, jnp.float32))

    def act(
        state: NormalisedState,
        key: Array,
        observation: PyTree,
        core: NormalisedCore,
        first: Array,
        greedy: bool = False,
    ) -> ActOutput:
        acted = agent.act(state.agent, key, seen(state, observation), core.agent, first, greedy)
        return acted._replace(core=NormalisedCore(acted.core, core.discounted_return))

    def returns_of(chunk: Chunk) -> Array:
        """Discounted sums up to every step, `float[L, N]`."""

        def step(total: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, ended = inputs
            total = reward + gamma * total
            return jnp.where(ended, 0.0, total), total

        carry = chunk.initial_core.discounted_return
        reward = jnp.where(chunk.valid, chunk.reward, 0.0)
        return jax.lax.scan(step, carry, (reward, chunk.terminated | chunk.truncated))[1]

    def scaled(state: NormalisedState, reward: Array) -> Array:
        return reward / standard_deviation(state.discounted_return) if rewards else reward

    def with_returns(state: NormalisedState, chunk: Chunk) -> NormalisedState:
        if not rewards:
            return state
        return state._replace(discounted_return=add_samples(state.discounted_return, returns_of(chunk), chunk.valid))

    def unwrapped(chunk: Chunk) -> Chunk:
        acted = chunk.acted._replace(core=chunk.acted.core.agent)
        return chunk._replace(acted=acted, initial_core=chunk.initial_core.agent)

    def process(state: NormalisedState, chunk: Chunk, rollout_length: int) -> Rollout:
        inner = unwrapped(chunk)
        if at == "collection":
            # Observations as they were acted on; rewards by moments that include them, since nothing depends on the old ones.
            inner = inner._replace(
                observation=seen(state, chunk.observation),
                last_observation=seen(state, chunk.last_observation),
                final_observation=seen(state, chunk.final_observation),
                reward=scaled(with_returns(state, chunk), chunk.reward),
            )
        return agent.process(state.agent, inner, rollout_length)

    def update(state: NormalisedState, key: Array, batch: Any) -> tuple[NormalisedState, dict[str, Array]]:
        if at == "update":
            batch = batch._replace(
                observation=seen(state, batch.observation),
                next_observation=seen(state, batch.next_observation),
                reward=scaled(state, batch.reward),
            )
        inner, metrics = agent.update(state.agent, key, batch)
        return state._replace(agent=inner), metrics

    def publish(state: NormalisedState) -> NormalisedState:
        return state._replace(agent=agent.publish(state.agent))

    def observe(state: NormalisedState, chunk: Chunk) -> tuple[NormalisedState, NormalisedCore]:
        core = jax.tree.map(lambda leaf: leaf[-1], chunk.acted.core.agent)
        if agent.observe is not None:
            inner, core = agent.observe(state.agent, unwrapped(chunk))
            state = state._replace(agent=inner)
        if observations:
            moments = add_samples(state.observation, chunk.observation, chunk.valid)
            state = state._replace(observation=moments)
        total = chunk.initial_core.discounted_return
        if rewards:
            ended = chunk.terminated[-1] | chunk.truncated[-1]
            total = jnp.where(ended, 0.0, returns_of(chunk)[-1])
        return with_returns(state, chunk), NormalisedCore(core, total)

    policy = None if agent.policy is None else normalised_policy(agent.policy)
    return Agent(init, initial_core, act, process, update, publish, policy, observe)


def normalised_policy(policy: Callable[[Any, PyTree], Any]) -> Callable[[Any, PyTree], Any]:
    """A policy `(state, observation) -> distribution` that takes states of the agent itself, and of the normalised one."""

    def apply(state: Any, observation: PyTree) -> Any:
        if not isinstance(state, NormalisedState):
            return policy(state, observation)
        if state.observation != ():
            observation = standardised(state.observation, observation)
        return policy(state.agent, observation)

    return apply


def layers_with_moments(layers: PolicyLayers, moments: RunningMoments | tuple[()]) -> PolicyLayers:
    """A policy's layers that standardise observations as `standardised` does; the layers themselves for `()`."""
    if not isinstance(moments, RunningMoments):
        return layers
    shift, scale = (np.asarray(x).reshape(-1) for x in (moments.mean, standard_deviation(moments)))
    return layers._replace(shift=shift, scale=scale, limit=_LARGEST)


def refuse_normalised_demonstrations(config: Any) -> None:
    """Raise a ValueError if a config asks for normalisation and for demonstrations, which are kept as they were recorded."""
    asked = [name for name in ("normalise_observations", "normalise_rewards") if getattr(config, name)]
    if asked and config.with_demonstrations:
        raise ValueError(
            f"{asked[0]}=True does not go with demonstrations, which are learned from in their own units; set it to False, or "
            "use a preset without demonstrations."
        )
