"""KL-regularised actor-critic: SAC, BRAC, N-PPAC, RLPD, AWAC and ABM differ in the reference policy and where its KL enters.

    J(pi) = E sum_t gamma^t ( r_t - alpha KL( pi(.|s_t) || pi_0(.|s_t) ) )

pi_0 is frozen. Without one the KL is `log pi(a|s)`, against the base measure, which is SAC. Rudner, Lu, Osborne, Gal and Teh
("On Pathologies in KL-Regularized Reinforcement Learning from Expert Demonstrations", NeurIPS 2021) show that the gradient of
the KL, and the critic's target through it, grow as `1 / sigma_0(s)^2` where the reference's standard deviation collapses.

Since pi_0 depends on the observation only and never changes, its moments are computed once, when a transition is collected,
and stored beside it in the replay; an update costs no query of pi_0. What an update does is in `kl_regularised_updates`, the
policy's losses are in `kl_regularised_losses`; here are acting, what is stored, and the start from demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_off.agents.base import ActOutput, Agent, Chunk, check_total_updates, continuous_space
from jaxrl_off.agents.kl_regularised_config import DEMONSTRATION_FIELDS, KLRegularisedConfig, check
from jaxrl_off.agents.kl_regularised_updates import (
    ActorCriticState,
    Networks,
    imitate,
    initial_state,
    learn,
    networks_of,
    policy_of,
)
from jaxrl_off.agents.layers import PolicyLayers, dense, dense_stack
from jaxrl_off.agents.normalisation import normalise, normalised_policy
from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.types import Array, PyTree, Transition

Reference = Callable[[PyTree, Array], Any]


def make(
    config: KLRegularisedConfig,
    spec: EnvironmentSpec,
    *,
    total_updates: int,
    reference: Reference | None = None,
    reference_params: PyTree = (),
    demonstrations: Any = None,
) -> Agent:
    """Build a member of the family.

    Args:
        config: from `preset`; its reals may be tracers.
        spec: of the environment; continuous actions, observations one vector.
        total_updates: at least 1; nothing here depends on it.
        reference: `(reference_params, observation[..., O]) -> distribution` over canonical actions ([-1, 1]^D), for example
            the `apply` of a `jaxrl_off.references.Reference`. Given if and only if `with_reference`.
        reference_params: of `reference`.
        demonstrations: given if and only if `config.with_demonstrations`: transitions in the environment's own units,
            arrays `observation[M, O]`, `action[M, D]`, `reward[M]`, `terminated[M]` and `next_observation[M, O]`
            (`jaxrl_off.data.demonstrations.Demonstrations`).

    Returns:
        An `Agent` whose roll-outs are single `Transition`s: use `rollout_length=1` and a replay.

    Raises:
        ValueError: if the config, the environment, the reference or the demonstrations are invalid or do not fit together.

    Example:
        >>> from jaxrl_off import envs
        >>> from jaxrl_off.agents.kl_regularised_config import preset
        >>> agent = make(preset("sac", policy_sizes=(8,)), envs.make("Pendulum-v1", 2).spec, total_updates=10)
        >>> float(agent.init(jax.random.key(0)).log_alpha)
        0.0
    """
    check(config)
    check_total_updates(total_updates)
    _check_parts(config, reference, demonstrations)
    space = continuous_space(spec)
    networks = networks_of(config, math.prod(space.shape))

    def init(key: Array) -> ActorCriticState:
        state = initial_state(config, networks, key, spec.zero_observation(1), reference_params)
        if demonstrations is None:
            return state
        stored = stored_demonstrations(demonstrations, space, reference, state.reference)
        state = prepared(config, networks, state, jax.random.fold_in(key, 3), stored)
        return state._replace(demonstrations=stored) if config.demonstration_fraction > 0 else state

    def acting(
        state: ActorCriticState, key: Array, observation: Array, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        del first
        action, log_prob = act(config, networks, state, key, observation, greedy)
        return ActOutput(from_canonical(space, action), log_prob, None, parameters=(), core=core)

    def process(state: ActorCriticState, chunk: Chunk, rollout_length: int) -> Transition:
        if rollout_length != 1:
            raise ValueError(f"this family stores single transitions; set rollout_length=1, not {rollout_length}.")
        return transitions_of(chunk, space, reference, state.reference)

    def update(state: ActorCriticState, key: Array, batch: Transition) -> tuple[ActorCriticState, dict[str, Array]]:
        mix_key, learn_key = jax.random.split(key)
        if config.demonstration_fraction > 0:
            batch = mixed(mix_key, batch, state.demonstrations, config.demonstration_fraction)
        return learn(config, networks, state, learn_key, batch)

    def published(state: ActorCriticState, observation: Array) -> Any:
        return policy_of(networks, state.policy, observation)

    agent = Agent(init, lambda lanes: (), acting, process, update, lambda state: state, published)
    return normalise(
        agent,
        spec,
        gamma=config.gamma,
        observations=config.normalise_observations,
        rewards=config.normalise_rewards,
        at="update",
    )


def make_policy(config: KLRegularisedConfig, spec: EnvironmentSpec) -> Callable[[Any, Array], Any]:
    """The policy of the agent that `make` gives, `(state, observation[N, O]) -> distribution [N]` over canonical actions.

    It is the network's from the first, also where the agent would still act uniformly at random.
    """
    networks = networks_of(config, math.prod(continuous_space(spec).shape))
    return normalised_policy(lambda state, observation: policy_of(networks, state.policy, observation))


def act(
    config: KLRegularisedConfig,
    networks: Networks,
    state: ActorCriticState,
    key: Array,
    observation: Array,
    greedy: bool,
) -> tuple[Array, Array]:
    """Canonical actions `float32[N, D]` and their log-probabilities `float32[N]`.

    Before the first update actions are uniform where `initial_actions` says so, with the density `2^-D`.
    """
    policy_key, uniform_key = jax.random.split(key)
    distribution = policy_of(networks, state.policy, observation)
    if greedy:
        action = distribution.mode()
        return action, distribution.log_prob(action)
    action, log_prob = distribution.sample_and_log_prob(policy_key)
    if config.initial_actions == "uniform":
        random = jax.random.uniform(uniform_key, action.shape, minval=-1.0, maxval=1.0)
        starting = state.updates == 0
        action = jnp.where(starting, random, action)
        log_prob = jnp.where(starting, -action.shape[-1] * math.log(2.0), log_prob)
    return action, log_prob


def transitions_of(
    chunk: Chunk, space: ContinuousSpace, reference: Reference | None, reference_params: PyTree
) -> Transition:
    """The steps of a chunk as the replay holds them, `Transition[L N]`: canonical actions, moments of pi_0 beside them."""
    length, lanes = chunk.reward.shape

    def flat(leaf: Array) -> Array:
        return leaf.reshape(length * lanes, *leaf.shape[2:])

    # One batched query for the whole chunk. The successor of a step is the observation of the next one, but for the
    # ends of episodes, whose final observations are asked for only where there are any.
    seen = jnp.concatenate([flat(chunk.observation), chunk.last_observation])
    moments = _moments(reference, reference_params, seen)
    now, after = jax.tree.map(lambda x: x[:-lanes], moments), jax.tree.map(lambda x: x[lanes:], moments)
    ended = flat(chunk.terminated | chunk.truncated)

    def with_ends() -> PyTree:
        final = _moments(reference, reference_params, flat(chunk.final_observation))
        return jax.tree.map(lambda x, y: jnp.where(_expand(ended, x), x, y), final, after)

    return Transition(
        observation=flat(chunk.observation),
        action=to_canonical(space, flat(chunk.acted.action)),
        reward=flat(chunk.reward),
        terminated=flat(chunk.terminated),
        next_observation=flat(chunk.final_observation),
        reference=now,
        next_reference=jax.lax.cond(jnp.any(ended), with_ends, lambda: after),
    )


def stored_demonstrations(
    demonstrations: Any, space: ContinuousSpace, reference: Reference | None, reference_params: PyTree
) -> Transition:
    """Demonstrations as the replay holds transitions: canonical actions, moments of pi_0 beside them."""
    observation, next_observation = (
        jnp.asarray(x, jnp.float32) for x in (demonstrations.observation, demonstrations.next_observation)
    )
    return Transition(
        observation=observation,
        action=to_canonical(space, jnp.asarray(demonstrations.action, jnp.float32).reshape(-1, *space.shape)),
        reward=jnp.asarray(demonstrations.reward, jnp.float32),
        terminated=jnp.asarray(demonstrations.terminated, bool),
        next_observation=next_observation,
        reference=_moments(reference, reference_params, observation),
        next_reference=_moments(reference, reference_params, next_observation),
    )


def prepared(
    config: KLRegularisedConfig, networks: Networks, state: ActorCriticState, key: Array, stored: Transition
) -> ActorCriticState:
    """The state after `pretrain_updates` of the policy and `offline_updates` of everything, on demonstrations alone."""

    def pretrain(state: ActorCriticState, key: Array) -> tuple[ActorCriticState, None]:
        row_key, sample_key = jax.random.split(key)
        batch = _rows(row_key, stored, config.pretrain_batch)
        return imitate(config, networks, state, sample_key, batch), None

    def learn_offline(state: ActorCriticState, key: Array) -> tuple[ActorCriticState, None]:
        row_key, update_key = jax.random.split(key)
        return learn(config, networks, state, update_key, _rows(row_key, stored, config.offline_batch))[0], None

    pretrain_key, offline_key = jax.random.split(key)
    if config.pretrain_updates > 0:
        state, _ = jax.lax.scan(pretrain, state, jax.random.split(pretrain_key, config.pretrain_updates))
    if config.offline_updates > 0:
        state, _ = jax.lax.scan(learn_offline, state, jax.random.split(offline_key, config.offline_updates))
    return state._replace(updates=jnp.zeros((), jnp.int32))


def mixed(key: Array, batch: Transition, demonstrations: Transition, fraction: float) -> Transition:
    """The batch with its first rows replaced by uniformly drawn demonstrations.

    Raises:
        ValueError: if the fraction of the batch is less than half a row.
    """
    size = batch.reward.shape[0]
    count = round(fraction * size)
    if count == 0:
        raise ValueError(f"demonstration_fraction={fraction} of a batch of {size} is no row at all; raise one of them.")
    drawn = _rows(key, demonstrations, count)
    return jax.tree.map(lambda rows, demos: jnp.concatenate([demos, rows[count:]]), batch, drawn)


def _check_parts(config: KLRegularisedConfig, reference: Reference | None, demonstrations: Any) -> None:
    """Raise a ValueError if a reference or demonstrations are given without being asked for, or the reverse."""
    if (reference is not None) != config.with_reference:
        raise ValueError(
            f"with_reference={config.with_reference} and a reference {'given' if reference is not None else 'missing'} do not "
            "fit together. Fit a `jaxrl_off.references.Reference` to demonstrations and pass its `apply` as `reference` and "
            "what `fit` returned as `reference_params`, or set with_reference=False (SAC)."
        )
    if (demonstrations is not None) != config.with_demonstrations:
        uses = ", ".join(f"{name}={getattr(config, name)}" for name in DEMONSTRATION_FIELDS)
        raise ValueError(
            f"{uses} and demonstrations {'given' if demonstrations is not None else 'missing'} do not fit together; give "
            "demonstrations where one of these is above 0, and only there."
        )


def _moments(reference: Reference | None, params: PyTree, observation: Array) -> PyTree:
    """pi_0 at observations, as it is stored; `()` without one."""
    return () if reference is None else reference(params, observation)


def _rows(key: Array, transitions: Transition, count: int) -> Transition:
    """`count` uniformly drawn rows, with replacement."""
    index = jax.random.randint(key, (count,), 0, transitions.reward.shape[0])
    return jax.tree.map(lambda leaf: leaf[index], transitions)


def _expand(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def policy_layers(config: KLRegularisedConfig, spec: EnvironmentSpec, state: Any) -> PolicyLayers:
    """The policy of the agent that `make` gives, as dense layers."""
    network = networks_of(config, math.prod(continuous_space(spec).shape)).policy
    return PolicyLayers(
        hidden=dense_stack(state.policy["_HiddenLayers_0"]),
        activation="relu",
        head=dense(state.policy["mean"]),
        distribution="tanh_normal" if network.squash else "tanh_mean_normal",
        log_std=dense(state.policy["log_std"]),
        log_std_range=network.log_std_range,
    )
