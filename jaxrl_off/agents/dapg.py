"""DAPG: natural policy gradient on fresh data, augmented by demonstrations.

    g_k = sum_{(s,a) ~ pi_k} grad log pi(a|s) A(s,a) + w_k sum_{(s,a) in demonstrations} grad log pi(a|s)
    theta_{k+1} = theta_k + sqrt(delta / (g_k' F^-1 g_k)) F^-1 g_k,    w_k = lambda_0 lambda_1^k

F is the Fisher information of the policy, so that every step goes about as far in KL. The first policy is cloned from the
demonstrations. Rajeswaran, Kumar, Gupta, Vezzani, Schulman, Todorov and Levine, "Learning Complex Dexterous Manipulation with
Deep Reinforcement Learning and Demonstrations", RSS 2018; the authors' code is `aravindr93/mjrl` and `aravindr93/hand_dapg`.

As in the code: advantages are standardised over the batch, and w_k lacks the paper's factor `max A`; both sums are divided by
the number of on-policy samples; delta is twice the KL that a step is to go; cloning is by squared error, in units of the
demonstrations' observations and actions, whose standard deviation is also the first policy's; the value function is fitted
to Monte Carlo returns, after the policy's step. Different from the code: returns bootstrap where an episode was cut, and
advantages from the very observation it was cut at; the value function sees neither powers of time nor clipped observations
and has no weight decay; weights begin orthogonal (the policy's head near 0, as there); cloning goes through shuffled epochs
instead of rows drawn with replacement; g lacks the factor 1e-2, which cancels.

What an update does is in `dapg_updates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.agents.base import ActOutput, Agent, Chunk, check_total_updates, continuous_space
from jaxrl_off.agents.dapg_config import DapgConfig, check
from jaxrl_off.agents.dapg_updates import (
    NaturalGradientState,
    Networks,
    Samples,
    initial_state,
    learn,
    networks_of,
    policy_of,
    value_of,
)
from jaxrl_off.agents.layers import PolicyLayers, dense, dense_stack
from jaxrl_off.agents.normalisation import normalise, normalised_policy
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.ops.returns import lambda_returns
from jaxrl_off.types import Array, PyTree


def make(config: DapgConfig, spec: EnvironmentSpec, *, total_updates: int, demonstrations: Any = None) -> Agent:
    """Build a member of the family.

    Args:
        config: from `preset`; its reals may be tracers.
        spec: of the environment; continuous actions, observations one vector.
        total_updates: at least 1; nothing here depends on it.
        demonstrations: given if and only if `with_demonstrations`: arrays `observation[M, O]` and `action[M, D]` in the
            environment's own units (`jaxrl_off.data.demonstrations.Demonstrations`).

    Returns:
        An `Agent` for fresh data: one update an iteration, of all its samples (regime `npg`). Several updates an iteration
        are corrected by importance ratios.

    Raises:
        ValueError: if the config, the environment or the demonstrations are invalid or do not fit together.

    Example:
        >>> from jaxrl_off import envs
        >>> from jaxrl_off.agents.dapg_config import preset
        >>> agent = make(preset("npg"), envs.make("Pendulum-v1", 2).spec, total_updates=10)
        >>> int(agent.init(jax.random.key(0)).updates)
        0
    """
    check(config)
    space = continuous_space(spec)
    check_total_updates(total_updates)
    if (demonstrations is not None) != config.with_demonstrations:
        raise ValueError(
            f"with_demonstrations={config.with_demonstrations} and demonstrations "
            f"{'given' if demonstrations is not None else 'missing'} do not fit together; pass `demonstrations`, or set "
            "with_demonstrations=False (preset npg)."
        )
    action_size = math.prod(space.shape)
    if demonstrations is not None:
        _check_shapes(demonstrations, spec, action_size)
    networks = networks_of(config, action_size)

    def init(key: Array) -> NaturalGradientState:
        stored: PyTree = ()
        if demonstrations is not None:
            action = to_canonical(space, jnp.asarray(demonstrations.action, jnp.float32).reshape(-1, *space.shape))
            stored = (jnp.asarray(demonstrations.observation, jnp.float32), action)
        return initial_state(config, networks, key, spec.zero_observation(1), stored)

    def act(
        state: NaturalGradientState, key: Array, observation: Array, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        del first
        distribution = published(state, observation)
        action = distribution.mode() if greedy else distribution.sample(key)
        return ActOutput(from_canonical(space, action), distribution.log_prob(action), None, parameters=(), core=core)

    def process(state: NaturalGradientState, chunk: Chunk, rollout_length: int) -> Samples:
        return samples_of(config, networks, space, state, chunk, rollout_length)

    def update(
        state: NaturalGradientState, key: Array, batch: Samples
    ) -> tuple[NaturalGradientState, dict[str, Array]]:
        return learn(config, networks, state, key, batch)

    def published(state: NaturalGradientState, observation: Array) -> DiagonalNormal:
        return policy_of(networks, state.policy, state.scaling, observation)

    agent = Agent(init, lambda lanes: (), act, process, update, lambda state: state, published)
    return normalise(
        agent,
        spec,
        gamma=config.gamma,
        observations=config.normalise_observations,
        rewards=config.normalise_rewards,
        at="collection",
    )


def make_policy(config: DapgConfig, spec: EnvironmentSpec) -> Callable[[Any, Array], DiagonalNormal]:
    """The policy of the agent that `make` gives, `(state, observation[N, O]) -> distribution [N]` over canonical actions."""
    networks = networks_of(config, math.prod(continuous_space(spec).shape))
    return normalised_policy(lambda state, x: policy_of(networks, state.policy, state.scaling, x))


def samples_of(
    config: DapgConfig,
    networks: Networks,
    space: ContinuousSpace,
    state: NaturalGradientState,
    chunk: Chunk,
    rollout_length: int,
) -> Samples:
    """The steps of a chunk with their advantages and returns, cut into roll-outs `[R, rollout_length, ...]`."""
    # the successor of every step is its final observation, whether the trace went on or was cut
    value, next_value = (
        value_of(networks, state.value, state.scaling, x) for x in (chunk.observation, chunk.final_observation)
    )

    def returns(lambda_: Array | float) -> Array:
        lane_wise = jax.vmap(lambda_returns, in_axes=(1, 1, 1, 1, None, None), out_axes=1)
        return lane_wise(chunk.reward, next_value, chunk.terminated, chunk.truncated, config.gamma, lambda_)

    samples = Samples(
        observation=chunk.observation,
        action=to_canonical(space, chunk.acted.action),
        behaviour_log_prob=chunk.acted.log_prob,
        advantage=returns(config.lambda_) - value,
        value_target=returns(1.0),
    )
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, rollout_length, *leaf.shape[2:]), samples)


def _check_shapes(demonstrations: Any, spec: EnvironmentSpec, action_size: int) -> None:
    given = (jnp.shape(demonstrations.observation), jnp.shape(demonstrations.action))
    count = given[0][:1]
    expected = ((*count, *spec.observation_shape), (*count, action_size))
    if given != expected or not math.prod(count):
        raise ValueError(
            f"observations and actions of the demonstrations have shapes {given}; {spec.name} needs M >= 1 rows each, of "
            f"{spec.observation_shape[0]} and {action_size} numbers. `jaxrl_off.data.demonstrations.check` says more."
        )


def policy_layers(config: DapgConfig, spec: EnvironmentSpec, state: Any) -> PolicyLayers:
    """The policy of the agent that `make` gives, as dense layers; its scaling goes into the first and the last."""
    scaling = jax.tree.map(np.asarray, state.scaling)
    (first, bias), *others = *dense_stack(state.policy["MLP_0"]), dense(state.policy["Dense_0"])
    first = first / scaling.observation_std[:, None]
    layers = [(first, bias - scaling.observation_mean @ first), *others]
    weights, bias = layers.pop()
    return PolicyLayers(
        hidden=tuple(layers),
        activation="tanh",
        head=(weights * scaling.action_std, bias * scaling.action_std + scaling.action_mean),
        distribution="normal",
        log_std=state.policy["log_std"],
    )
