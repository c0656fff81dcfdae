"""KL-regularised actor-critic: SAC, BRAC-v, BRAC-p, N-PPAC and RLPD differ in the reference policy and where its KL enters.

    J(pi) = E sum_t gamma^t ( r_t - alpha KL( pi(.|s_t) || pi_0(.|s_t) ) )

pi_0 is frozen. Without one the KL is `log pi(a|s)`, against the base measure, which is SAC. Rudner, Lu, Osborne, Gal and Teh
("On Pathologies in KL-Regularized Reinforcement Learning from Expert Demonstrations", NeurIPS 2021) show that the gradient of
the KL, and the critic's target through it, grow as `1 / sigma_0(s)^2` where the reference's standard deviation collapses.

Since pi_0 depends on the observation only and never changes, its moments are computed once, when a transition is collected,
and stored beside it in the replay; an update costs no query of pi_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.kl_regularised_config import KLRegularisedConfig, check
from jaxrl_off.distributions import DiagonalNormal, TanhNormal
from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.networks import CriticEnsemble, GaussianPolicy
from jaxrl_off.types import Array, PyTree, Transition


class ActorCriticState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        policy, critic: network parameters.
        target_critic: their slow copy.
        log_alpha: `float32[]`; learned where `temperature` is a dual, else unused.
        policy_optimiser, critic_optimiser, alpha_optimiser: optax states.
        updates: `int32[]`, critic updates so far.
        reference: parameters of pi_0, frozen; `()` without one.
        demonstrations: `Transition[M]` that batches are mixed with, or `()`.
    """

    policy: PyTree
    critic: PyTree
    target_critic: PyTree
    log_alpha: Array
    policy_optimiser: PyTree
    critic_optimiser: PyTree
    alpha_optimiser: PyTree
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
        demonstrations: with `demonstration_fraction > 0`: transitions in the environment's own units, arrays
            `observation[M, O]`, `action[M, D]`, `reward[M]`, `terminated[M]` and `next_observation[M, O]`
            (`jaxrl_off.data.demonstrations.Demonstrations`).

    Returns:
        An `Agent` whose roll-outs are single `Transition`s: use `rollout_length=1` and a replay.

    Raises:
        ValueError: for a config, environment, reference or demonstrations that cannot be meant.

    Example:
        >>> from jaxrl_off import envs
        >>> from jaxrl_off.agents.kl_regularised_config import preset
        >>> agent = make(preset("sac", policy_sizes=(8,)), envs.make("Pendulum-v1", 2).spec, total_updates=10)
        >>> float(agent.init(jax.random.key(0)).log_alpha)
        0.0
    """
    check(config)
    space = spec.action_space
    if not isinstance(space, ContinuousSpace) or len(spec.observation_shape) != 1:
        raise ValueError(
            f"{spec.name} has observations {spec.observation_shape} and actions {space}; this family needs one vector of "
            "observations and continuous actions."
        )
    if total_updates < 1:
        raise ValueError(f"total_updates must be at least 1, got {total_updates}.")
    if (reference is not None) != config.with_reference:
        raise ValueError(
            f"with_reference={config.with_reference} and a reference {'given' if reference is not None else 'missing'} do not "
            "fit together. Fit a `jaxrl_off.references.Reference` to demonstrations and pass its `apply` as `reference` and "
            "what `fit` returned as `reference_params`, or set with_reference=False (SAC)."
        )
    if (demonstrations is not None) != (config.demonstration_fraction > 0):
        raise ValueError(
            f"demonstration_fraction={config.demonstration_fraction} and demonstrations "
            f"{'given' if demonstrations is not None else 'missing'} do not fit together; give both or neither."
        )
    action_size = math.prod(space.shape)
    policy = GaussianPolicy(action_size, config.policy_sizes, config.policy == "tanh_normal")
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
        stored: PyTree = ()
        if demonstrations is not None:
            stored = _stored_demonstrations(demonstrations, space, lambda x: reference_of(reference_params, x))
        return ActorCriticState(
            policy=policy_params,
            critic=critic_params,
            target_critic=critic_params,
            log_alpha=log_alpha,
            policy_optimiser=clipped_adam.init(policy_params),
            critic_optimiser=clipped_adam.init(critic_params),
            alpha_optimiser=adam.init(log_alpha),
            updates=jnp.zeros((), jnp.int32),
            reference=jax.tree.map(jnp.asarray, reference_params),
            demonstrations=stored,
        )

    def act(
        state: ActorCriticState, key: Array, observation: Array, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        del first
        distribution = policy.apply({"params": state.policy}, observation)
        action = distribution.mode() if greedy else distribution.sample(key)
        if config.initial_actions == "uniform" and not greedy:
            random = jax.random.uniform(key, action.shape, minval=-1.0, maxval=1.0)
            action = jnp.where(state.updates == 0, random, action)
        zeros = jnp.zeros(action.shape[:1])
        return ActOutput(from_canonical(space, action), zeros, zeros, parameters=(), core=core)

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

    def policy_loss(params: PyTree, state: ActorCriticState, key: Array, alpha: Array, batch: Transition) -> Any:
        distribution = policy.apply({"params": params}, batch.observation)
        kl, action, raw, log_prob = kl_to_reference(config, key, distribution, batch.reference)
        values = critic.apply({"params": state.critic}, batch.observation, action)
        value = jnp.min(values, axis=0) if config.actor_value == "min" else jnp.mean(values, axis=0)
        return jnp.mean(alpha * kl - value), (jnp.mean(raw), jnp.mean(log_prob), action, jnp.mean(kl != raw))

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
        (loss, (kl, log_prob, action, clipped)), gradients = jax.value_and_grad(policy_loss, has_aux=True)(
            state.policy, state, key, alpha, batch
        )
        params, optimiser = step_of(gradients, state.policy_optimiser, state.policy, config.learning_rate)
        log_alpha, alpha_optimiser = state.log_alpha, state.alpha_optimiser
        if config.temperature in ("entropy", "kl"):
            surplus = (
                kl - config.kl_budget if config.temperature == "kl" else log_prob + config.target_entropy * action_size
            )
            step, alpha_optimiser = adam.update(-surplus, alpha_optimiser)
            log_alpha = log_alpha - config.alpha_learning_rate * step
        changed = (params, optimiser, log_alpha, alpha_optimiser)
        metrics = {"policy_loss": loss, "kl": kl, "entropy": -log_prob, "kl_clipped": clipped}
        metrics |= {"policy_gradient_norm": optax.global_norm(gradients)}
        return changed, metrics | _reference_metrics(config, alpha, action, batch.reference)

    def update(state: ActorCriticState, key: Array, batch: Transition) -> tuple[ActorCriticState, dict[str, Array]]:
        mix_key, target_key, policy_key = jax.random.split(key, 3)
        if config.demonstration_fraction > 0:
            batch = _mixed(mix_key, batch, state.demonstrations, config.demonstration_fraction)
        alpha = _alpha(config, state, total_updates)
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

    return Agent(init, lambda lanes: (), act, process, update, lambda state: state)


def kl_to_reference(
    config: KLRegularisedConfig, key: Array, distribution: Any, reference: Any
) -> tuple[Array, Array, Array, Array]:
    """KL(pi || pi_0) of a batch, sampled or analytic, guard rails applied.

    Sampled: `mean_k log pi(a_k|s) - log pi_0(a_k|s)`, `a_k ~ pi`, with the gradient through `a_k`. Of a `TanhNormal`
    against a `DiagonalNormal` the reference is not truncated to the box (as in the released code): pi_0 has mass at most 1
    there, so the expected value stays non-negative.

    Args:
        config: which, and how many samples.
        key: consumed.
        distribution: pi(.|s), batch shape `[B]`.
        reference: pi_0(.|s), batch shape `[B]`, or `()` for the base measure.

    Returns:
        The KL `[B]`; one action `[B, D]` of pi; the KL before `kl_clip`; and `log pi` of the actions, `[B]`.

    Raises:
        ValueError: if `kl="analytic"` and the two are of different kinds.
    """
    reference = _floored(config, reference)
    actions, log_probs = jax.vmap(distribution.sample_and_log_prob)(jax.random.split(key, config.kl_samples))
    log_prob = jnp.mean(log_probs, axis=0)
    if config.kl == "analytic":
        if type(distribution) is not type(reference):
            raise ValueError(
                f"kl='analytic' needs policy and reference of one kind, got {type(distribution).__name__} and "
                f"{type(reference).__name__}; set kl='sampled' or policy='normal'."
            )
        raw = distribution.kl(reference)
    else:
        raw = log_prob
        if len(reference):
            raw = raw - jnp.mean(jax.vmap(reference.log_prob)(actions), axis=0)
    return jnp.minimum(raw, config.kl_clip), actions[0], raw, log_prob


def _floored(config: KLRegularisedConfig, reference: Any) -> Any:
    """The reference with the guard rail `reference_std_floor`; one without standard deviations comes back as it is."""
    if not isinstance(reference, (DiagonalNormal, TanhNormal)):
        return reference
    floor = jnp.log(jnp.asarray(config.reference_std_floor, jnp.float32))
    return reference._replace(log_std=jnp.maximum(reference.log_std, floor))


def _reference_metrics(config: KLRegularisedConfig, alpha: Array, action: Array, reference: Any) -> dict[str, Array]:
    """Percentiles of sigma_0, and of `alpha |d log pi_0(a|s) / d a|`, the part of the gradient that explodes."""
    if not isinstance(reference, (DiagonalNormal, TanhNormal)):
        return {}
    std = jnp.exp(reference.log_std)
    slope = jax.grad(lambda a: jnp.sum(_floored(config, reference).log_prob(a)))(action)
    norms = alpha * jnp.sqrt(jnp.sum(jnp.square(slope), axis=-1))
    low, middle, high = jnp.quantile(std, jnp.array([0.01, 0.5, 0.99]))
    return {
        "reference_std_p01": low,
        "reference_std_p50": middle,
        "reference_std_p99": high,
        "reference_std_floored": jnp.mean(std < config.reference_std_floor),
        "kl_gradient_p50": jnp.quantile(norms, 0.5),
        "kl_gradient_p99": jnp.quantile(norms, 0.99),
    }


def _alpha(config: KLRegularisedConfig, state: ActorCriticState, total_updates: int) -> Array:
    """Coefficient of the KL at this update."""
    if config.temperature in ("entropy", "kl"):
        return jnp.exp(state.log_alpha)
    alpha = jnp.asarray(config.alpha, jnp.float32)
    progress = jnp.minimum(state.updates / total_updates, 1.0)
    if config.temperature == "linear":
        return jnp.maximum(config.alpha_final, alpha * (1.0 - progress))
    if config.temperature == "exponential":
        return alpha * (jnp.maximum(config.alpha_final, 1e-30) / alpha) ** progress
    return alpha


def _stored_demonstrations(
    demonstrations: Any, space: ContinuousSpace, reference_of: Callable[[Array], Any]
) -> Transition:
    """Demonstrations as the replay holds transitions: canonical actions, moments of the reference beside them."""
    observation, next_observation = (
        jnp.asarray(x, jnp.float32) for x in (demonstrations.observation, demonstrations.next_observation)
    )
    return Transition(
        observation=observation,
        action=to_canonical(space, jnp.asarray(demonstrations.action, jnp.float32)),
        reward=jnp.asarray(demonstrations.reward, jnp.float32),
        terminated=jnp.asarray(demonstrations.terminated, bool),
        next_observation=next_observation,
        reference=reference_of(observation),
        next_reference=reference_of(next_observation),
    )


def _mixed(key: Array, batch: Transition, demonstrations: Transition, fraction: float) -> Transition:
    """The batch with its first rows replaced by uniformly drawn demonstrations."""
    size = batch.reward.shape[0]
    count = round(fraction * size)
    index = jax.random.randint(key, (count,), 0, demonstrations.reward.shape[0])
    return jax.tree.map(lambda rows, demos: jnp.concatenate([demos[index], rows[count:]]), batch, demonstrations)


def _expand(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
