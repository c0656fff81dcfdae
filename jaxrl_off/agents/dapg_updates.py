"""Updates of the natural policy gradient: cloning, one natural gradient step of the policy, and the value function's fit.

Every function takes what it needs as arguments, so that each can be called, tested and replaced alone; `learn` is their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.initializers import orthogonal

from jaxrl_off.agents.base import stepped
from jaxrl_off.agents.dapg_config import DapgConfig
from jaxrl_off.data.replay import minibatch_indices
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.networks import MLP, as_float
from jaxrl_off.ops.natural_gradient import natural_direction
from jaxrl_off.types import Array, PyTree


class Scaling(NamedTuple):
    """Units in which the networks see the world; 0 and 1 without demonstrations.

    Attributes:
        observation_mean, observation_std: `float32[O]`.
        action_mean, action_std: `float32[D]`, of canonical actions.
    """

    observation_mean: Array
    observation_std: Array
    action_mean: Array
    action_std: Array


class NaturalGradientState(NamedTuple):
    """Everything the learner owns.

    Attributes:
        policy, value: network parameters; the policy's have the log standard deviation `float32[D]` among them.
        value_optimiser: optax state.
        scaling: frozen.
        demonstrations: `(observation[M, O], action[M, D])` with canonical actions, or `()`.
        updates: `int32[]`, k.
    """

    policy: PyTree
    value: PyTree
    value_optimiser: PyTree
    scaling: Scaling
    demonstrations: PyTree
    updates: Array


class Samples(NamedTuple):
    """Decisions and what is known of them at behaviour time; `[R, T, ...]` roll-outs in which order plays no part.

    Attributes:
        observation: `[O]`.
        action: `float32[D]`, in the canonical box [-1, 1]^D or, as it was sampled, outside.
        behaviour_log_prob: `float32[]`.
        advantage: `float32[]`, generalised advantage estimate.
        value_target: `float32[]`, Monte Carlo return with bootstrap where the trace is cut.
    """

    observation: Array
    action: Array
    behaviour_log_prob: Array
    advantage: Array
    value_target: Array


class PolicyNetwork(nn.Module):
    """Mean by tanh layers, and a log standard deviation that does not depend on the observation; begins near N(0, 1)."""

    action_size: int
    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> DiagonalNormal:
        """Map `[..., O]` to the distribution of actions, batch shape `[...]`."""
        mean = nn.Dense(self.action_size, kernel_init=orthogonal(0.01))(MLP(self.sizes)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_size,), jnp.float32)
        return DiagonalNormal(mean, jnp.broadcast_to(log_std, mean.shape))


class Networks(NamedTuple):
    """Networks and the rule of descent that a config asks for; no parameters.

    Attributes:
        policy: see `PolicyNetwork`.
        value: `[..., O] -> [..., 1]`.
        optimiser: of the value function and of cloning: Adam of a clipped gradient, without the learning rate.
    """

    policy: PolicyNetwork
    value: nn.Module
    optimiser: optax.GradientTransformation


def networks_of(config: DapgConfig, action_size: int) -> Networks:
    """The networks of a config, for actions of `action_size` numbers."""
    return Networks(
        policy=PolicyNetwork(action_size, config.policy_sizes),
        value=nn.Sequential([MLP(config.value_sizes, "relu"), nn.Dense(1, kernel_init=orthogonal(1.0))]),
        optimiser=optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam()),
    )


def policy_of(networks: Networks, params: PyTree, scaling: Scaling, observation: Array) -> DiagonalNormal:
    """The distribution of canonical actions at observations `[..., O]`."""
    distribution = cast(DiagonalNormal, networks.policy.apply({"params": params}, _standardised(scaling, observation)))
    return distribution._replace(mean=scaling.action_mean + scaling.action_std * distribution.mean)


def value_of(networks: Networks, params: PyTree, scaling: Scaling, observation: Array) -> Array:
    """V of observations `[..., O]`, `float32[...]`."""
    return cast(Array, networks.value.apply({"params": params}, _standardised(scaling, observation)))[..., 0]


def initial_state(
    config: DapgConfig, networks: Networks, key: Array, observation: Array, demonstrations: PyTree
) -> NaturalGradientState:
    """Fresh parameters, the policy's cloned where there are demonstrations.

    Args:
        config: of the agent.
        networks: of the config.
        key: consumed.
        observation: `[1, O]`, for its shape.
        demonstrations: `(observation[M, O], action[M, D])` with canonical actions, or `()`.
    """
    policy_key, value_key, cloning_key = jax.random.split(key, 3)
    policy = networks.policy.init(policy_key, observation)["params"]
    value = networks.value.init(value_key, observation)["params"]
    if demonstrations == ():
        size, action_size = observation.shape[-1], networks.policy.action_size
        scaling = Scaling(*(f(n, jnp.float32) for n in (size, action_size) for f in (jnp.zeros, jnp.ones)))
    else:
        scaling = Scaling(*_moments(demonstrations[0]), *_moments(demonstrations[1]))
        policy = cloned(config, networks, cloning_key, policy, scaling, demonstrations)
    optimiser = networks.optimiser.init(value)
    return NaturalGradientState(policy, value, optimiser, scaling, demonstrations, jnp.zeros((), jnp.int32))


def cloned(
    config: DapgConfig,
    networks: Networks,
    key: Array,
    policy: PyTree,
    scaling: Scaling,
    demonstrations: tuple[Array, Array],
) -> PyTree:
    """Parameters of the policy after its mean was fitted to demonstrations; its deviations are those of their actions."""

    def squared_error(params: PyTree, rows: tuple[Array, Array]) -> Array:
        observation, action = rows
        return jnp.mean(jnp.square(policy_of(networks, params, scaling, observation).mean - action))

    policy = _floored(policy | {"log_std": jnp.log(scaling.action_std)}, config.min_log_std)
    indices = _epochs_of_minibatches(key, demonstrations[0].shape[0], config.cloning_batch, config.cloning_epochs)
    start, rate = networks.optimiser.init(policy), config.cloning_learning_rate
    return descend(networks.optimiser, squared_error, policy, start, demonstrations, indices, rate)[0]


def learn(
    config: DapgConfig, networks: Networks, state: NaturalGradientState, key: Array, batch: Samples
) -> tuple[NaturalGradientState, dict[str, Array]]:
    """One natural gradient step of the policy, then the value function's passes over the batch `[R, T]`; and metrics."""
    chex.assert_rank([batch.advantage, batch.value_target, batch.behaviour_log_prob], 2)
    samples: Samples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    policy, metrics = policy_step(config, networks, state, samples)
    value, optimiser, value_loss = value_step(config, networks, state, key, samples)
    finite = jnp.isfinite(-metrics["policy_loss"] + optax.global_norm(policy) + optax.global_norm(value))
    metrics |= {"value_loss": value_loss, "nonfinite": 1.0 - finite.astype(jnp.float32)}
    state = state._replace(policy=policy, value=value, value_optimiser=optimiser, updates=state.updates + 1)
    return state, metrics


def surrogate(networks: Networks, params: PyTree, scaling: Scaling, samples: Samples, advantage: Array) -> Array:
    """`mean pi(a|s) / mu(a|s) A`, whose gradient at pi = mu is the policy gradient; `advantage` is standardised."""
    log_prob = policy_of(networks, params, scaling, samples.observation).log_prob(samples.action)
    return jnp.mean(jnp.exp(log_prob - samples.behaviour_log_prob) * advantage)


def policy_step(
    config: DapgConfig, networks: Networks, state: NaturalGradientState, samples: Samples
) -> tuple[PyTree, dict[str, Array]]:
    """One natural gradient step of length `sqrt(delta / g' F^-1 g)` on samples `[B]`: the new parameters, and metrics."""
    scaling = state.scaling
    advantage = (samples.advantage - jnp.mean(samples.advantage)) / (jnp.std(samples.advantage) + 1e-6)
    weight = jnp.zeros(())
    if config.with_demonstrations:
        weight = config.demonstration_weight * config.demonstration_decay**state.updates
    before = policy_of(networks, state.policy, scaling, samples.observation)

    def objective(params: PyTree) -> Array:
        gain = surrogate(networks, params, scaling, samples, advantage)
        if not config.with_demonstrations:
            return gain
        observation, action = state.demonstrations
        log_prob = policy_of(networks, params, scaling, observation).log_prob(action)
        return gain + weight * jnp.sum(log_prob) / samples.advantage.shape[0]

    def divergence(params: PyTree) -> Array:
        return jnp.mean(before.kl(policy_of(networks, params, scaling, samples.observation)))

    reached, gradient = jax.value_and_grad(objective)(state.policy)
    direction = natural_direction(divergence, state.policy, gradient, config.damping, config.cg_iterations)
    length = jnp.sqrt(config.step_size / jnp.maximum(optax.tree.vdot(gradient, direction), 1e-20))
    policy = _floored(stepped(state.policy, direction, -length), config.min_log_std)
    gains = [surrogate(networks, params, scaling, samples, advantage) for params in (policy, state.policy)]
    return policy, {
        "policy_loss": -reached,
        "surrogate_improvement": gains[0] - gains[1],
        "kl": divergence(policy),
        "entropy": jnp.mean(policy_of(networks, policy, scaling, samples.observation).entropy()),
        "step_length": length,
        "policy_gradient_norm": optax.global_norm(gradient),
        "demonstration_weight": weight,
    }


def value_step(
    config: DapgConfig, networks: Networks, state: NaturalGradientState, key: Array, samples: Samples
) -> tuple[PyTree, PyTree, Array]:
    """The value function after its passes over samples `[B]`: parameters, optimiser state and the mean loss."""

    def loss(params: PyTree, rows: Samples) -> Array:
        return jnp.mean(jnp.square(value_of(networks, params, state.scaling, rows.observation) - rows.value_target))

    indices = _epochs_of_minibatches(key, samples.advantage.shape[0], config.value_batch, config.value_epochs)
    value, optimiser, errors = descend(
        networks.optimiser, loss, state.value, state.value_optimiser, samples, indices, config.learning_rate
    )
    return value, optimiser, jnp.mean(errors)


def descend(
    optimiser: optax.GradientTransformation,
    loss: Callable[[PyTree, Any], Array],
    params: PyTree,
    optimiser_state: PyTree,
    data: Any,
    indices: Array,
    learning_rate: Array | float,
) -> tuple[PyTree, PyTree, Array]:
    """Steps against `loss(params, rows)` over minibatches: parameters, optimiser state and the losses before each step.

    Args:
        optimiser: without the learning rate.
        loss: of the parameters on rows of `data`.
        params, optimiser_state: where to start.
        data: arrays `[M, ...]`.
        indices: `int32[steps, minibatch]`, rows of each step.
        learning_rate: factor of the steps.
    """

    def step(carry: tuple[PyTree, PyTree], index: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        params, optimiser_state = carry
        error, gradients = jax.value_and_grad(loss)(params, jax.tree.map(lambda leaf: leaf[index], data))
        steps, optimiser_state = optimiser.update(gradients, optimiser_state)
        return (stepped(params, steps, learning_rate), optimiser_state), error

    (params, optimiser_state), errors = jax.lax.scan(step, (params, optimiser_state), indices)
    return params, optimiser_state, errors


def _standardised(scaling: Scaling, observation: Array) -> Array:
    return (as_float(observation) - scaling.observation_mean) / scaling.observation_std


def _floored(policy: PyTree, min_log_std: Array | float) -> PyTree:
    return policy | {"log_std": jnp.maximum(policy["log_std"], min_log_std)}


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of columns; a column that does not vary keeps its unit."""
    return jnp.mean(x, axis=0), jnp.where(jnp.ptp(x, axis=0) > 0, jnp.std(x, axis=0), 1.0)


def _epochs_of_minibatches(key: Array, count: int, size: int, epochs: int) -> Array:
    """Indices `int32[minibatches, size]`, each epoch in a new order and without what does not fill a minibatch."""
    size = min(size, count)
    order = minibatch_indices(key, count, 1, epochs)
    return order[:, : count // size * size].reshape(-1, size)
