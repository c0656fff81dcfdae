"""Divergence-augmented policy optimization and its family: PPO, PPO+DA, DAPO, V-trace, MDPO, P3O, GePPO, ACER, V-MPO.

One loss serves all (`divergence_augmented_losses`; Wang et al., "Divergence-Augmented Policy Optimization", NeurIPS 2019):
`weight(ratio) x (A - D / eta) + penalty`, where A is an advantage, D a (multi-step) divergence to the behaviour policy that
generated the sample, and the penalty an exact state-wise KL. `divergence_augmented_config` says which member sets what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.agents.base import ActOutput, Agent, Chunk, check_total_updates, stepped
from jaxrl_off.agents.divergence_augmented_config import DivergenceAugmentedConfig, check
from jaxrl_off.agents.divergence_augmented_losses import family_loss
from jaxrl_off.agents.layers import PolicyLayers, dense, dense_stack
from jaxrl_off.agents.normalisation import normalise, normalised_policy
from jaxrl_off.envs.base import ContinuousSpace, DiscreteSpace, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.networks import ActorCritic, check_image
from jaxrl_off.ops.returns import lambda_returns, successor_values
from jaxrl_off.types import Array, PyTree, Rollout


class Duals(NamedTuple):
    """Scalars that adapt beside the network.

    Attributes:
        penalty: factor of the penalty under `penalty_schedule="adaptive"`.
        learning_rate_scale: under `adapt_learning_rate`.
    """

    penalty: Array
    learning_rate_scale: Array


class AgentState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        params: network parameters, and V-MPO's duals where used.
        actor_params: the published copy that acts.
        optimiser: optax state.
        duals: see `Duals`.
        updates: `int32[]`, optimiser steps taken.
        published_at: `int32[]`, optimiser steps behind `actor_params`.
    """

    params: PyTree
    actor_params: PyTree
    optimiser: PyTree
    duals: Duals
    updates: Array
    published_at: Array


def make(
    config: DivergenceAugmentedConfig,
    spec: EnvironmentSpec,
    *,
    total_updates: int,
    network: ActorCritic | None = None,
) -> Agent:
    """Build a member of the family.

    Args:
        config: from `preset`; its reals may be tracers.
        spec: of the environment.
        total_updates: optimiser steps after which the learning rate reaches its final value.
        network: a flax module of your own with the contract of `networks.ActorCritic`: `__call__(observation, core, first) ->
            (distribution, value, cores)`, `initial_core(batch)` and the attribute `separate_critic` (whether values may be
            computed a chunk at a time); for `initial_log_std` a parameter `log_std`. None for what the config asks for.

    Returns:
        An `Agent`.

    Raises:
        ValueError: for a config that cannot be meant.

    Example:
        >>> from jaxrl_off import envs
        >>> from jaxrl_off.agents import preset
        >>> agent = make(preset("ppo_da"), envs.make("CartPole-v1", 4).spec, total_updates=100)
        >>> int(agent.init(jax.random.key(0)).updates)
        0
    """
    check(config)
    check_total_updates(total_updates)
    network = build_network(config, spec) if network is None else network
    continuous = isinstance(spec.action_space, ContinuousSpace)
    optimiser = _make_optimiser(config)

    def evaluate(params: PyTree, observation: PyTree, core: PyTree, first: Array) -> tuple[Any, Array, PyTree]:
        return network.apply({"params": params["network"]}, observation, core, first)

    def init(key: Array) -> AgentState:
        first = jnp.ones((1, 1), bool)
        variables = network.init(key, spec.zero_observation(1, 1), network.initial_core(1), first)
        params = {"network": dict(variables["params"])}
        if continuous and "log_std" in params["network"]:
            log_std = params["network"]["log_std"]
            params["network"]["log_std"] = log_std + jnp.asarray(config.initial_log_std, log_std.dtype)
        if config.penalty_schedule == "learned":
            params["log_temperature"] = jnp.zeros((), jnp.float32)
            params["log_penalty"] = jnp.log(jnp.asarray(config.penalty_coefficient, jnp.float32))
        duals = Duals(jnp.asarray(config.penalty_coefficient, jnp.float32), jnp.ones((), jnp.float32))
        zero = jnp.zeros((), jnp.int32)
        return AgentState(params, params, optimiser.init(params), duals, zero, zero)

    def act(
        state: AgentState, key: Array, observation: PyTree, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        distribution, value, cores = evaluate(state.actor_params, observation[None], core, first[None])
        distribution, value, cores = jax.tree.map(lambda leaf: leaf[0], (distribution, value, cores))
        action = distribution.mode() if greedy else distribution.sample(key)
        return ActOutput(
            action=from_canonical(spec.action_space, action) if continuous else action,
            log_prob=distribution.log_prob(action),
            value=None if network.separate_critic else value,
            parameters=distribution if config.needs_behaviour_parameters else (),
            core=cores,
        )

    def values_of(state: AgentState, observation: PyTree, core: PyTree, first: Array) -> Array:
        """Behaviour-time values of unrelated steps `[K, ...]`, each with its own recurrent state."""
        _, value, _ = evaluate(state.actor_params, observation[None], core, first[None])
        return value[0]

    def process(state: AgentState, chunk: Chunk, rollout_length: int) -> Rollout:
        length, lanes = chunk.reward.shape
        last_core = jax.tree.map(lambda leaf: leaf[-1], chunk.acted.core)
        bootstrap = values_of(state, chunk.last_observation, last_core, chunk.last_first)
        value = chunk.acted.value
        if value is None:
            flat = chunk.observation.reshape(length * lanes, *chunk.observation.shape[2:])
            value = values_of(state, flat, (), chunk.first.reshape(-1)).reshape(length, lanes)

        def final_values() -> Array:
            flat, cores = jax.tree.map(
                lambda leaf: leaf.reshape(length * lanes, *leaf.shape[2:]), (chunk.final_observation, chunk.acted.core)
            )
            final = values_of(state, flat, cores, jnp.zeros(length * lanes, bool)).reshape(length, lanes)
            return jnp.where(chunk.truncated, final, 0.0)

        final_value = jax.lax.cond(jnp.any(chunk.truncated), final_values, lambda: jnp.zeros_like(value))
        over_lanes = jax.vmap(successor_values, in_axes=(1, 0, 1, 1), out_axes=1)
        next_value = over_lanes(value, bootstrap, chunk.truncated, final_value)
        lane_wise = {"in_axes": (1, 1, 1, 1, None, None), "out_axes": 1}
        lambda_return = jax.vmap(lambda_returns, **lane_wise)(
            chunk.reward, next_value, chunk.terminated, chunk.truncated, config.gamma, config.lambda_
        )
        tail = config.lambda_ * lambda_return[1:] + (1.0 - config.lambda_) * value[1:]
        tail_value = jnp.concatenate([tail, bootstrap[None]])

        def cut(leaf: Array) -> Array:
            """`[L, N, ...] -> [R, T, ...]`."""
            pieces = leaf.reshape(length // rollout_length, rollout_length, lanes, *leaf.shape[2:])
            pieces = jnp.moveaxis(pieces, 2, 1)
            return pieces.reshape(-1, rollout_length, *leaf.shape[2:])

        def before(initial: Array, after: Array) -> Array:
            """Recurrent state before the first step of every roll-out."""
            starts = jnp.concatenate([initial[None], after[rollout_length - 1 : -1 : rollout_length]])
            return starts.reshape(-1, *after.shape[2:])

        steps = Rollout(
            observation=chunk.observation,
            action=to_canonical(spec.action_space, chunk.acted.action) if continuous else chunk.acted.action,
            reward=chunk.reward,
            terminated=chunk.terminated,
            truncated=chunk.truncated,
            valid=chunk.valid,
            first=chunk.first,
            behaviour_log_prob=chunk.acted.log_prob,
            behaviour_value=value,
            final_value=final_value,
            behaviour_parameters=chunk.acted.parameters,
            advantage=lambda_return - value,
            lambda_return=lambda_return,
            tail_value=tail_value,
            core_state=(),
            policy_version=jnp.zeros((length, lanes), jnp.int32) + state.published_at,
        )
        pieces = jax.tree.map(cut, steps)
        return pieces._replace(
            tail_value=pieces.tail_value[:, -1],
            policy_version=pieces.policy_version[:, 0],
            core_state=jax.tree.map(before, chunk.initial_core, chunk.acted.core),
        )

    def loss(params: PyTree, state: AgentState, batch: Rollout) -> tuple[Array, dict[str, Array]]:
        distribution, value = _over_batch(evaluate, params, batch, bool(config.core_size))
        published = None
        if config.weight == "centred_clip":
            published, _ = _over_batch(evaluate, state.actor_params, batch, bool(config.core_size))
        return family_loss(config, params, state, batch, distribution, value, published, total_updates)

    def update(state: AgentState, key: Array, batch: Rollout) -> tuple[AgentState, dict[str, Array]]:
        del key
        chex.assert_rank([batch.reward, batch.behaviour_log_prob, batch.tail_value], [2, 2, 1])
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, state, batch)
        steps, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        progress = jnp.minimum(state.updates.astype(jnp.float32) / total_updates, 1.0)
        learning_rate = config.learning_rate * (1.0 - progress * (1.0 - config.final_learning_rate_fraction))
        learning_rate = learning_rate * state.duals.learning_rate_scale
        params = stepped(state.params, steps, learning_rate)
        age = (state.updates - batch.policy_version).astype(jnp.float32)
        metrics |= {
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": learning_rate,
            "staleness_mean": jnp.mean(age),
            "staleness_max": jnp.max(age),
            "nonfinite": 1.0 - jnp.isfinite(metrics["loss"]).astype(jnp.float32),
        }
        duals = _adapt(config, state.duals, metrics)
        state = state._replace(params=params, optimiser=optimiser_state, duals=duals, updates=state.updates + 1)
        return state, metrics

    def publish(state: AgentState) -> AgentState:
        return state._replace(actor_params=state.params, published_at=state.updates)

    policy = None if config.core_size else _policy_of(network)
    agent = Agent(init, network.initial_core, act, process, update, publish, policy)
    return normalise(
        agent,
        spec,
        gamma=config.gamma,
        observations=config.normalise_observations,
        rewards=config.normalise_rewards,
        at="collection",
    )


def make_policy(config: DivergenceAugmentedConfig, spec: EnvironmentSpec) -> Callable[[Any, PyTree], Any]:
    """The published policy of the agent that `make` gives, `(state, observation[N, ...]) -> distribution [N]`.

    Raises:
        ValueError: for a recurrent config, whose policy needs more than the observation.
    """
    if config.core_size:
        raise ValueError(
            f"core_size={config.core_size}: this agent carries recurrent state from step to step, which a policy of the "
            "observation alone has no place for. Only feed-forward agents are allowed; train one with core_size=0."
        )
    return normalised_policy(_policy_of(build_network(config, spec)))


def policy_layers(config: DivergenceAugmentedConfig, spec: EnvironmentSpec, state: AgentState) -> PolicyLayers:
    """The published policy of the agent that `make` gives, as dense layers.

    Raises:
        ValueError: for a network of images or with recurrent state.
    """
    network = build_network(config, spec)
    if network.torso != "mlp" or network.core_size:
        raise ValueError(
            f"only policies of dense layers can be written to a file, and this one has torso={network.torso!r} and "
            f"core_size={network.core_size}; keep the directory of its run, which `load_run` reads."
        )
    parameters = state.actor_params["network"]
    return PolicyLayers(
        hidden=dense_stack(parameters["actor_torso"]["MLP_0"]),
        activation=config.activation,
        head=dense(parameters["policy_head"]),
        distribution="normal" if network.action_shape else "categorical",
        log_std=parameters["log_std"] if network.action_shape else None,
    )


def _policy_of(network: ActorCritic) -> Callable[[AgentState, PyTree], Any]:
    def policy(state: AgentState, observation: PyTree) -> Any:
        first = jnp.zeros((1, len(observation)), bool)
        distribution = network.apply({"params": state.actor_params["network"]}, observation[None], (), first)[0]
        return jax.tree.map(lambda leaf: leaf[0], distribution)

    return policy


def build_network(config: DivergenceAugmentedConfig, spec: EnvironmentSpec) -> ActorCritic:
    """The actor-critic a config asks for; `torso="auto"` looks at the observation's shape.

    Images of side 64 or more get the Nature network, smaller ones MinAtar's, anything else an MLP.

    Raises:
        ValueError: for observations that the torso cannot read, such as images with channels in front.
    """
    torso = config.torso
    if torso == "auto":
        image = len(spec.observation_shape) == 3
        torso = "mlp" if not image else ("nature" if min(spec.observation_shape[:2]) >= 64 else "minatar")
    if torso != "mlp":
        check_image(spec.observation_shape, torso)
    separate = config.separate_critic
    if separate is None:
        separate = torso == "mlp" and not config.core_size
    default_sizes = {"mlp": (64, 64), "minatar": (128,), "nature": (512,), "impala": (256,)}
    discrete = isinstance(spec.action_space, DiscreteSpace)
    return ActorCritic(
        action_shape=() if discrete else (math.prod(spec.action_space.shape),),
        num_actions=spec.action_space.num_actions if discrete else 0,
        torso=torso,
        sizes=config.sizes or default_sizes[torso],
        activation=config.activation,
        core_size=config.core_size,
        separate_critic=separate,
    )


def _over_batch(evaluate: Any, params: PyTree, batch: Rollout, recurrent: bool) -> tuple[Any, Array]:
    """Distribution and value `[B, T]`; only a recurrent network needs time in front."""
    if not recurrent:
        distribution, value, _ = evaluate(params, batch.observation, (), batch.first)
        return distribution, value
    observation, first = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (batch.observation, batch.first))
    distribution, value, _ = evaluate(params, observation, batch.core_state, first)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (distribution, value))


def _adapt(config: DivergenceAugmentedConfig, duals: Duals, metrics: dict[str, Array]) -> Duals:
    """PPO's adaptive penalty and GePPO's adaptive step size."""
    if config.penalty_schedule == "adaptive":
        observed = metrics["penalty_kl"]
        grow = jnp.where(observed > 1.5 * config.penalty_target, 2.0, 1.0)
        shrink = jnp.where(observed < config.penalty_target / 1.5, 0.5, 1.0)
        duals = duals._replace(penalty=jnp.clip(duals.penalty * grow * shrink, 1e-4, 1e4))
    if config.adapt_learning_rate:
        too_far = metrics["total_variation"] > 0.5 * config.clip_epsilon
        duals = duals._replace(learning_rate_scale=duals.learning_rate_scale / jnp.where(too_far, 1.03, 1.0))
    return duals


def _make_optimiser(config: DivergenceAugmentedConfig) -> optax.GradientTransformation:
    """Clip by global norm, then precondition; the learning rate is applied by `update`."""
    scale = {
        "adam": lambda: optax.scale_by_adam(eps=config.adam_epsilon),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=config.adam_epsilon),
    }[config.optimiser]()
    return optax.flatten(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), scale))
