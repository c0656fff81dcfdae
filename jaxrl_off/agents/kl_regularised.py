"""KL-regularised actor-critic: SAC, BRAC, N-PPAC, RLPD, AWAC and ABM differ in the reference policy and where its KL enters.

    J(pi) = E sum_t gamma^t ( r_t - alpha KL( pi(.|s_t) || pi_0(.|s_t) ) )

pi_0 is frozen. Without one the KL is `log pi(a|s)`, against the base measure, which is SAC. Rudner, Lu, Osborne, Gal and Teh
("On Pathologies in KL-Regularized Reinforcement Learning from Expert Demonstrations", NeurIPS 2021) show that the gradient of
the KL, and the critic's target through it, grow as `1 / sigma_0(s)^2` where the reference's standard deviation collapses.

Since pi_0 depends on the observation only and never changes, its moments are computed once, when a transition is collected,
and stored beside it in the replay; an update costs no query of pi_0. Losses are in `kl_regularised_losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_off.agents.base import ActOutput, Agent, Chunk, check_total_updates, continuous_space
from jaxrl_off.agents.kl_regularised_config import (
    DEMONSTRATION_FIELDS,
    KLRegularisedConfig,
    check,
)
from jaxrl_off.agents.kl_regularised_losses import (
    ActorOutput,
    actor_loss,
    kl_to_reference,
    prior_loss,
    reference_metrics,
    temperature,
)
from jaxrl_off.agents.layers import PolicyLayers, dense, dense_stack
from jaxrl_off.agents.normalisation import normalise, normalised_policy
from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.networks import CriticEnsemble, GaussianPolicy
from jaxrl_off.types import Array, PyTree, Transition


class ActorCriticState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        policy, critic, prior: network parameters; `prior` is `()` unless it is learned.
        target_critic: their slow copy.
        log_alpha: `float32[]`; learned where `temperature` is a dual, else unused.
        policy_optimiser, critic_optimiser, alpha_optimiser, prior_optimiser: optax states.
        updates: `int32[]`, critic updates so far, those of `offline_updates` apart.
        reference: parameters of pi_0, frozen; `()` without one.
        demonstrations: `Transition[M]` that batches are mixed with, or `()`.
    """

    policy: PyTree
    critic: PyTree
    prior: PyTree
    target_critic: PyTree
    log_alpha: Array
    policy_optimiser: PyTree
    critic_optimiser: PyTree
    alpha_optimiser: PyTree
    prior_optimiser: PyTree
    updates: Array
    reference: PyTree
    demonstrations: PyTree


def make(
    config: KLRegularisedConfig,
    spec: EnvironmentSpec,
    *,
    total_updates: int,
    reference: Callable[[PyTree, Array], Any] | None = None,
    reference_params: PyTree = (),
    demonstrations: Any = None,
) -> Agent:
    """Build a member of the family.

    Args:
        config: from `preset`; its reals may be tracers.
        spec: of the environment; continuous actions, observations one vector.
        total_updates: updates over which the `linear` and `exponential` temperatures fall.
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
    space = continuous_space(spec)
    check_total_updates(total_updates)
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
    action_size = math.prod(space.shape)
    policy = prior = _policy_network(config, spec)
    critic = CriticEnsemble(config.critics, config.critic_sizes, config.critic_layer_norm)
    adam = optax.scale_by_adam()
    clipped_adam = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)

    def reference_of(params: PyTree, observation: Array) -> PyTree:
        return () if reference is None else reference(params, observation)

    def init(key: Array) -> ActorCriticState:
        policy_key, critic_key = jax.random.split(key)
        observation = spec.zero_observation(1)
        policy_params = policy.init(policy_key, observation)["params"]
        critic_params = critic.init(critic_key, observation, jnp.zeros((1, action_size)))["params"]
        log_alpha = jnp.log(jnp.maximum(jnp.asarray(config.alpha, jnp.float32), 1e-30))
        prior_params: PyTree = ()
        if config.prior == "advantage_filtered":
            prior_params = prior.init(jax.random.fold_in(key, 2), observation)["params"]
        state = ActorCriticState(
            policy=policy_params,
            critic=critic_params,
            prior=prior_params,
            target_critic=critic_params,
            log_alpha=log_alpha,
            policy_optimiser=clipped_adam.init(policy_params),
            critic_optimiser=clipped_adam.init(critic_params),
            alpha_optimiser=adam.init(log_alpha),
            prior_optimiser=clipped_adam.init(prior_params),
            updates=jnp.zeros((), jnp.int32),
            # behind a barrier, or XLA spends its compile time on folding what is computed from constants
            reference=jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, reference_params)),
            demonstrations=(),
        )
        if demonstrations is None:
            return state
        stored = _stored_demonstrations(demonstrations, space, lambda x: reference_of(state.reference, x))
        state = prepared(state, jax.random.fold_in(key, 3), stored)
        return state._replace(demonstrations=stored) if config.demonstration_fraction > 0 else state

    def prepared(state: ActorCriticState, key: Array, stored: Transition) -> ActorCriticState:
        """After pre-training of the policy and updates on demonstrations alone."""

        def imitate(state: ActorCriticState, key: Array) -> tuple[ActorCriticState, None]:
            row_key, sample_key = jax.random.split(key)
            batch = _rows(row_key, stored, config.pretrain_batch)

            def loss(params: PyTree) -> Array:
                distribution = policy.apply({"params": params}, batch.observation)
                if config.with_reference:
                    return jnp.mean(kl_to_reference(config, sample_key, distribution, batch.reference)[2])
                return -jnp.mean(distribution.log_prob(batch.action))

            gradients = jax.grad(loss)(state.policy)
            params, optimiser = step_of(gradients, state.policy_optimiser, state.policy, config.learning_rate)
            return state._replace(policy=params, policy_optimiser=optimiser), None

        def learn_offline(state: ActorCriticState, key: Array) -> tuple[ActorCriticState, None]:
            row_key, update_key = jax.random.split(key)
            return learn(state, update_key, _rows(row_key, stored, config.offline_batch), offline=True)[0], None

        imitate_key, offline_key = jax.random.split(key)
        if config.pretrain_updates > 0:
            state, _ = jax.lax.scan(imitate, state, jax.random.split(imitate_key, config.pretrain_updates))
        if config.offline_updates > 0:
            state, _ = jax.lax.scan(learn_offline, state, jax.random.split(offline_key, config.offline_updates))
        return state._replace(updates=jnp.zeros((), jnp.int32))

    def act(
        state: ActorCriticState, key: Array, observation: Array, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        del first
        policy_key, uniform_key = jax.random.split(key)
        distribution = policy.apply({"params": state.policy}, observation)
        if greedy:
            action = distribution.mode()
            log_prob = distribution.log_prob(action)
        else:
            action, log_prob = distribution.sample_and_log_prob(policy_key)
        if config.initial_actions == "uniform" and not greedy:
            random = jax.random.uniform(uniform_key, action.shape, minval=-1.0, maxval=1.0)
            starting = state.updates == 0
            action = jnp.where(starting, random, action)
            log_prob = jnp.where(starting, -action_size * math.log(2.0), log_prob)
        return ActOutput(from_canonical(space, action), log_prob, None, parameters=(), core=core)

    def process(state: ActorCriticState, chunk: Chunk, rollout_length: int) -> Transition:
        if rollout_length != 1:
            raise ValueError(f"this family stores single transitions; set rollout_length=1, not {rollout_length}.")
        length, lanes = chunk.reward.shape

        def flat(leaf: Array) -> Array:
            return leaf.reshape(length * lanes, *leaf.shape[2:])

        # One batched query for the whole chunk. The successor of a step is the observation of the next one, but for the
        # ends of episodes, whose final observations are asked for only where there are any.
        seen = jnp.concatenate([flat(chunk.observation), chunk.last_observation])
        moments = reference_of(state.reference, seen)
        now, after = jax.tree.map(lambda x: x[:-lanes], moments), jax.tree.map(lambda x: x[lanes:], moments)
        ended = flat(chunk.terminated | chunk.truncated)

        def with_ends() -> PyTree:
            final = reference_of(state.reference, flat(chunk.final_observation))
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

    def value_of(state: ActorCriticState, batch: Transition) -> Callable[[Array], Array]:
        """Value of actions at the observations of a batch, as the actor sees it."""

        def value(action: Array) -> Array:
            values = critic.apply({"params": state.critic}, batch.observation, action)
            return jnp.min(values, axis=0) if config.actor_value == "min" else jnp.mean(values, axis=0)

        return value

    def policy_loss(
        params: PyTree, state: ActorCriticState, key: Array, alpha: Array, batch: Transition
    ) -> tuple[Array, ActorOutput]:
        distribution = policy.apply({"params": params}, batch.observation)
        output = actor_loss(config, key, alpha, distribution, value_of(state, batch), batch)
        return output.loss, output

    def target_of(state: ActorCriticState, key: Array, alpha: Array, batch: Transition) -> tuple[Array, Array]:
        sample_key, subset_key = jax.random.split(key)
        distribution = policy.apply({"params": state.policy}, batch.next_observation)
        kl, action, _, _ = kl_to_reference(config, sample_key, distribution, batch.next_reference)
        values = critic.apply({"params": state.target_critic}, batch.next_observation, action)
        if 0 < config.target_critics < config.critics:
            values = values[jax.random.permutation(subset_key, config.critics)[: config.target_critics]]
        value, penalty = jnp.min(values, axis=0), alpha * kl if config.value_penalty else jnp.zeros_like(kl)
        discount = config.gamma * (1.0 - batch.terminated.astype(jnp.float32))
        reward = config.reward_scale * batch.reward
        size = jnp.abs(reward) + discount * (jnp.abs(value) + jnp.abs(penalty))
        share = jnp.sum(discount * jnp.abs(penalty)) / jnp.maximum(jnp.sum(size), 1e-12)
        return jax.lax.stop_gradient(reward + discount * (value - penalty)), share

    def critic_loss(params: PyTree, batch: Transition, target: Array) -> tuple[Array, Array]:
        values = critic.apply({"params": params}, batch.observation, batch.action)
        return jnp.sum(jnp.mean(jnp.square(values - target), axis=1)), jnp.mean(values)

    def step_of(gradients: PyTree, optimiser: PyTree, params: PyTree, learning_rate: Array) -> tuple[PyTree, PyTree]:
        steps, optimiser = clipped_adam.update(gradients, optimiser)
        return jax.tree.map(lambda p, step: p - learning_rate * step, params, steps), optimiser

    def improve(state: ActorCriticState, key: Array, alpha: Array, batch: Transition) -> tuple[Any, dict[str, Array]]:
        """Policy and temperature, by the critics as they were before this update."""
        (_, output), gradients = jax.value_and_grad(policy_loss, has_aux=True)(state.policy, state, key, alpha, batch)
        params, optimiser = step_of(gradients, state.policy_optimiser, state.policy, config.learning_rate)
        log_alpha, alpha_optimiser = state.log_alpha, state.alpha_optimiser
        if config.temperature in ("entropy", "kl"):
            surplus = (
                output.kl - config.kl_budget
                if config.temperature == "kl"
                else output.log_prob + config.target_entropy * action_size
            )
            step, alpha_optimiser = adam.update(-surplus, alpha_optimiser)
            log_alpha = log_alpha - config.alpha_learning_rate * step
        changed = (params, optimiser, log_alpha, alpha_optimiser)
        metrics = {
            "policy_loss": output.loss,
            "kl": output.kl,
            "entropy": -output.log_prob,
            "kl_clipped": output.clipped,
            "policy_gradient_norm": optax.global_norm(gradients),
        }
        return changed, metrics | reference_metrics(config, alpha, output.action, batch.reference)

    def update(state: ActorCriticState, key: Array, batch: Transition) -> tuple[ActorCriticState, dict[str, Array]]:
        mix_key, learn_key = jax.random.split(key)
        if config.demonstration_fraction > 0:
            batch = _mixed(mix_key, batch, state.demonstrations, config.demonstration_fraction)
        return learn(state, learn_key, batch)

    def with_prior(state: ActorCriticState, key: Array, batch: Transition) -> tuple[ActorCriticState, Transition]:
        """One step of the learned prior, and the batch with it as its reference."""
        if config.prior == "frozen":
            return state, batch
        acting = policy.apply({"params": state.policy}, batch.observation)
        gradients = jax.grad(
            lambda params: prior_loss(
                key, prior.apply({"params": params}, batch.observation), acting, value_of(state, batch), batch
            )
        )(state.prior)
        params, optimiser = step_of(gradients, state.prior_optimiser, state.prior, config.learning_rate)
        moments = [prior.apply({"params": params}, x) for x in (batch.observation, batch.next_observation)]
        batch = batch._replace(reference=moments[0], next_reference=moments[1])
        return state._replace(prior=params, prior_optimiser=optimiser), batch

    def learn(
        state: ActorCriticState, key: Array, batch: Transition, offline: bool = False
    ) -> tuple[ActorCriticState, dict[str, Array]]:
        prior_key, target_key, policy_key = jax.random.split(key, 3)
        state, batch = with_prior(state, prior_key, batch)
        alpha = temperature(config, state.log_alpha, 0 if offline else state.updates, total_updates)
        target, share = target_of(state, target_key, alpha, batch)
        (loss, value), gradients = jax.value_and_grad(critic_loss, has_aux=True)(state.critic, batch, target)
        critic_params, critic_optimiser = step_of(
            gradients, state.critic_optimiser, state.critic, config.critic_learning_rate
        )
        target_params = optax.incremental_update(critic_params, state.target_critic, config.tau)

        def wait() -> tuple[Any, dict[str, Array]]:
            kept = (state.policy, state.policy_optimiser, state.log_alpha, state.alpha_optimiser)
            shapes = jax.eval_shape(lambda: improve(state, policy_key, alpha, batch)[1])
            return kept, jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)

        if config.policy_period == 1:
            changed, metrics = improve(state, policy_key, alpha, batch)
        else:
            due = (state.updates + 1) % config.policy_period == 0
            changed, metrics = jax.lax.cond(due, lambda: improve(state, policy_key, alpha, batch), wait)
        policy_params, policy_optimiser, log_alpha, alpha_optimiser = changed
        metrics |= {
            "critic_loss": loss,
            "value": value,
            "target": jnp.mean(target),
            "kl_share_of_target": share,
            "alpha": alpha,
            "critic_gradient_norm": optax.global_norm(gradients),
            "nonfinite": 1.0 - jnp.isfinite(loss + optax.global_norm(policy_params)).astype(jnp.float32),
        }
        state = state._replace(
            policy=policy_params,
            critic=critic_params,
            target_critic=target_params,
            log_alpha=log_alpha,
            policy_optimiser=policy_optimiser,
            critic_optimiser=critic_optimiser,
            alpha_optimiser=alpha_optimiser,
            updates=state.updates + 1,
        )
        return state, metrics

    def published(state: ActorCriticState, observation: Array) -> Any:
        return policy.apply({"params": state.policy}, observation)

    agent = Agent(init, lambda lanes: (), act, process, update, lambda state: state, published)
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
    network = _policy_network(config, spec)
    return normalised_policy(lambda state, observation: network.apply({"params": state.policy}, observation))


def policy_layers(config: KLRegularisedConfig, spec: EnvironmentSpec, state: Any) -> PolicyLayers:
    """The policy of the agent that `make` gives, as dense layers."""
    network = _policy_network(config, spec)
    return PolicyLayers(
        hidden=dense_stack(state.policy["_HiddenLayers_0"]),
        activation="relu",
        head=dense(state.policy["mean"]),
        distribution="tanh_normal" if network.squash else "tanh_mean_normal",
        log_std=dense(state.policy["log_std"]),
        log_std_range=network.log_std_range,
    )


def _policy_network(config: KLRegularisedConfig, spec: EnvironmentSpec) -> GaussianPolicy:
    size = math.prod(continuous_space(spec).shape)
    return GaussianPolicy(size, config.policy_sizes, config.policy == "tanh_normal")


def _stored_demonstrations(
    demonstrations: Any, space: ContinuousSpace, reference_of: Callable[[Array], Any]
) -> Transition:
    """Demonstrations as the replay holds transitions: canonical actions, moments of the reference beside them."""
    observation, next_observation = (
        jnp.asarray(x, jnp.float32) for x in (demonstrations.observation, demonstrations.next_observation)
    )
    return Transition(
        observation=observation,
        action=to_canonical(space, jnp.asarray(demonstrations.action, jnp.float32).reshape(-1, *space.shape)),
        reward=jnp.asarray(demonstrations.reward, jnp.float32),
        terminated=jnp.asarray(demonstrations.terminated, bool),
        next_observation=next_observation,
        reference=reference_of(observation),
        next_reference=reference_of(next_observation),
    )


def _rows(key: Array, transitions: Transition, count: int) -> Transition:
    """`count` uniformly drawn rows, with replacement."""
    index = jax.random.randint(key, (count,), 0, transitions.reward.shape[0])
    return jax.tree.map(lambda leaf: leaf[index], transitions)


def _mixed(key: Array, batch: Transition, demonstrations: Transition, fraction: float) -> Transition:
    """The batch with its first rows replaced by uniformly drawn demonstrations."""
    size = batch.reward.shape[0]
    count = round(fraction * size)
    if count == 0:
        raise ValueError(f"demonstration_fraction={fraction} of a batch of {size} is no row at all; raise one of them.")
    drawn = _rows(key, demonstrations, count)
    return jax.tree.map(lambda rows, demos: jnp.concatenate([demos, rows[count:]]), batch, drawn)


def _expand(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
