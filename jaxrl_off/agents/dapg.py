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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen.initializers import orthogonal

from jaxrl_off.agents.base import ActOutput, Agent, Chunk, check_total_updates, continuous_space
from jaxrl_off.agents.layers import PolicyLayers, dense, dense_stack
from jaxrl_off.agents.normalisation import normalise, normalised_policy, refuse_normalised_demonstrations
from jaxrl_off.data.replay import minibatch_indices
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.envs.base import EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.networks import MLP, as_float
from jaxrl_off.ops.natural_gradient import natural_direction
from jaxrl_off.ops.returns import lambda_returns
from jaxrl_off.pytrees import POSITIVE, build, check_ranges, static
from jaxrl_off.types import Array, PyTree


@flax.struct.dataclass
class DapgConfig:
    """Natural policy gradient with or without demonstrations.

    Defaults are those of the authors' configuration file for the hand tasks. Switches and sizes are static; the reals are
    pytree leaves and may be swept.

    Attributes:
        with_demonstrations: whether the policy is cloned from demonstrations and its gradient augmented by them. With
            `demonstration_weight=0` it is cloned only.
        policy_sizes: widths of the policy's hidden layers, tanh.
        value_sizes: of the value function's, ReLU.
        cg_iterations: of the conjugate gradients that stand for F^-1.
        value_epochs: passes over the batch in which the value function is fitted.
        value_batch: samples in each of their minibatches.
        cloning_epochs: passes over the demonstrations in which the first policy is cloned; 0 only takes over their scale.
        cloning_batch: demonstrated actions in each of their minibatches.
        normalise_observations: whether observations are standardised by running moments, which are part of the learner's
            state. Not with demonstrations, which standardise them by their own.
        normalise_rewards: whether rewards are divided by the running standard deviation of their discounted sum. Not with
            demonstrations.
        step_size: delta, twice the KL that a step is to go.
        damping: multiple of the identity that is added to F.
        demonstration_weight: lambda_0.
        demonstration_decay: lambda_1; k counts updates.
        gamma: discount.
        lambda_: of the advantages (GAE).
        min_log_std: floor of the policy's log standard deviation, in actions of [-1, 1].
        learning_rate: of the value function (Adam).
        cloning_learning_rate: of cloning (Adam).
        max_grad_norm: guard rail, off at infinity: global-norm clip of the gradients that Adam gets.
    """

    with_demonstrations: bool = static(True)
    policy_sizes: tuple[int, ...] = static((32, 32))
    value_sizes: tuple[int, ...] = static((128, 128))
    cg_iterations: int = static(10)
    value_epochs: int = static(2)
    value_batch: int = static(64)
    cloning_epochs: int = static(5)
    cloning_batch: int = static(32)
    normalise_observations: bool = static(False)
    normalise_rewards: bool = static(False)
    step_size: float = 0.05
    damping: float = 1e-4
    demonstration_weight: float = 1e-2
    demonstration_decay: float = 0.95
    gamma: float = 0.995
    lambda_: float = 0.97
    min_log_std: float = -3.0
    learning_rate: float = 1e-3
    cloning_learning_rate: float = 1e-3
    max_grad_norm: float = math.inf


PRESETS: dict[str, dict[str, Any]] = {"npg": dict(with_demonstrations=False), "dapg": dict()}


def preset(name: str, **overrides: Any) -> DapgConfig:
    """A named member of the family.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `DapgConfig` that differ from the preset.

    Returns:
        A checked config.

    Raises:
        ValueError: for an unknown preset or field, or a number outside its range.

    Example:
        >>> preset("npg", step_size=0.1).with_demonstrations
        False
    """
    config = build(DapgConfig, PRESETS, name, overrides)
    check(config)
    return config


def check(config: DapgConfig) -> None:
    """Raise an error if a number of the config is invalid. Numbers that are arrays or tracers are not checked.

    Raises:
        ValueError: naming the field, what was given and what is allowed.
    """
    infinity = math.inf
    ranges = {
        "cg_iterations": (1, infinity),
        "value_epochs": (1, infinity),
        "value_batch": (1, infinity),
        "cloning_epochs": (0, infinity),
        "cloning_batch": (1, infinity),
        "step_size": POSITIVE,
        "damping": (0.0, infinity),
        "demonstration_weight": (0.0, infinity),
        "demonstration_decay": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "lambda_": (0.0, 1.0),
        "min_log_std": (-infinity, infinity),
        "learning_rate": (0.0, infinity),
        "cloning_learning_rate": (0.0, infinity),
        "max_grad_norm": POSITIVE,
    }
    check_ranges(config, ranges)
    refuse_normalised_demonstrations(config)


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
    policy_network = _PolicyNetwork(action_size, config.policy_sizes)
    value_network = nn.Sequential([MLP(config.value_sizes, "relu"), nn.Dense(1, kernel_init=orthogonal(1.0))])
    adam = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())

    def policy_of(params: PyTree, scaling: Scaling, observation: Array) -> DiagonalNormal:
        return _policy(policy_network, params, scaling, observation)

    def value_of(params: PyTree, scaling: Scaling, observation: Array) -> Array:
        return value_network.apply({"params": params}, _standardised(scaling, observation))[..., 0]

    def floored(policy: PyTree) -> PyTree:
        return policy | {"log_std": jnp.maximum(policy["log_std"], config.min_log_std)}

    def descend(
        loss: Callable[[PyTree, Any], Array], params: PyTree, optimiser: PyTree, data: Any, indices: Array, rate: Array
    ) -> tuple[PyTree, PyTree, Array]:
        """Adam over minibatches of the rows of `data`; parameters, optimiser and the losses before each step."""

        def step(carry: tuple[PyTree, PyTree], index: Array) -> tuple[tuple[PyTree, PyTree], Array]:
            params, optimiser = carry
            error, gradients = jax.value_and_grad(loss)(params, jax.tree.map(lambda leaf: leaf[index], data))
            steps, optimiser = adam.update(gradients, optimiser)
            return (optax.tree.add_scale(params, -rate, steps), optimiser), error

        (params, optimiser), errors = jax.lax.scan(step, (params, optimiser), indices)
        return params, optimiser, errors

    def init(key: Array) -> NaturalGradientState:
        policy_key, value_key, cloning_key = jax.random.split(key, 3)
        observation = spec.zero_observation(1)
        policy = policy_network.init(policy_key, observation)["params"]
        value = value_network.init(value_key, observation)["params"]
        size = spec.observation_shape[0]
        scaling = Scaling(jnp.zeros(size), jnp.ones(size), jnp.zeros(action_size), jnp.ones(action_size))
        stored: PyTree = ()
        if demonstrations is not None:
            action = to_canonical(space, jnp.asarray(demonstrations.action, jnp.float32).reshape(-1, *space.shape))
            stored = (jnp.asarray(demonstrations.observation, jnp.float32), action)
            scaling = Scaling(*_moments(stored[0]), *_moments(action))
            policy = cloned(cloning_key, policy, scaling, stored)
        return NaturalGradientState(policy, value, adam.init(value), scaling, stored, jnp.zeros((), jnp.int32))

    def cloned(key: Array, policy: PyTree, scaling: Scaling, stored: tuple[Array, Array]) -> PyTree:
        def squared_error(params: PyTree, rows: tuple[Array, Array]) -> Array:
            observation, action = rows
            return jnp.mean(jnp.square(policy_of(params, scaling, observation).mean - action))

        policy = floored(policy | {"log_std": jnp.log(scaling.action_std)})
        indices = _epochs_of_minibatches(key, stored[0].shape[0], config.cloning_batch, config.cloning_epochs)
        rate = config.cloning_learning_rate
        return descend(squared_error, policy, adam.init(policy), stored, indices, rate)[0]

    def act(
        state: NaturalGradientState, key: Array, observation: Array, core: PyTree, first: Array, greedy: bool = False
    ) -> ActOutput:
        del first
        distribution = policy_of(state.policy, state.scaling, observation)
        action = distribution.mode() if greedy else distribution.sample(key)
        return ActOutput(from_canonical(space, action), distribution.log_prob(action), None, parameters=(), core=core)

    def process(state: NaturalGradientState, chunk: Chunk, rollout_length: int) -> Samples:
        # the successor of every step is its final observation, whether the trace went on or was cut
        value, next_value = (
            value_of(state.value, state.scaling, x) for x in (chunk.observation, chunk.final_observation)
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

    def update(
        state: NaturalGradientState, key: Array, batch: Samples
    ) -> tuple[NaturalGradientState, dict[str, Array]]:
        chex.assert_rank([batch.advantage, batch.value_target, batch.behaviour_log_prob], 2)
        samples: Samples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
        count = samples.advantage.shape[0]
        advantage = (samples.advantage - jnp.mean(samples.advantage)) / (jnp.std(samples.advantage) + 1e-6)
        weight = jnp.zeros(())
        if config.with_demonstrations:
            weight = config.demonstration_weight * config.demonstration_decay**state.updates

        def surrogate(params: PyTree) -> Array:
            log_prob = policy_of(params, state.scaling, samples.observation).log_prob(samples.action)
            return jnp.mean(jnp.exp(log_prob - samples.behaviour_log_prob) * advantage)

        def objective(params: PyTree) -> Array:
            if not config.with_demonstrations:
                return surrogate(params)
            observation, action = state.demonstrations
            log_prob = policy_of(params, state.scaling, observation).log_prob(action)
            return surrogate(params) + weight * jnp.sum(log_prob) / count

        before = policy_of(state.policy, state.scaling, samples.observation)

        def divergence(params: PyTree) -> Array:
            return jnp.mean(before.kl(policy_of(params, state.scaling, samples.observation)))

        reached, gradient = jax.value_and_grad(objective)(state.policy)
        direction = natural_direction(divergence, state.policy, gradient, config.damping, config.cg_iterations)
        length = jnp.sqrt(config.step_size / jnp.maximum(optax.tree.vdot(gradient, direction), 1e-20))
        policy = floored(optax.tree.add_scale(state.policy, length, direction))

        def value_loss(params: PyTree, rows: Samples) -> Array:
            return jnp.mean(jnp.square(value_of(params, state.scaling, rows.observation) - rows.value_target))

        indices = _epochs_of_minibatches(key, count, config.value_batch, config.value_epochs)
        value, value_optimiser, errors = descend(
            value_loss, state.value, state.value_optimiser, samples, indices, config.learning_rate
        )
        metrics = {
            "policy_loss": -reached,
            "surrogate_improvement": surrogate(policy) - surrogate(state.policy),
            "kl": divergence(policy),
            "entropy": jnp.mean(policy_of(policy, state.scaling, samples.observation).entropy()),
            "step_length": length,
            "policy_gradient_norm": optax.global_norm(gradient),
            "demonstration_weight": weight,
            "value_loss": jnp.mean(errors),
        }
        finite = jnp.isfinite(reached + optax.global_norm(policy) + optax.global_norm(value))
        metrics["nonfinite"] = 1.0 - finite.astype(jnp.float32)
        state = state._replace(policy=policy, value=value, value_optimiser=value_optimiser, updates=state.updates + 1)
        return state, metrics

    def published(state: NaturalGradientState, observation: Array) -> DiagonalNormal:
        return policy_of(state.policy, state.scaling, observation)

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
    network = _PolicyNetwork(math.prod(continuous_space(spec).shape), config.policy_sizes)
    return normalised_policy(lambda state, x: _policy(network, state.policy, state.scaling, x))


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


def _standardised(scaling: Scaling, observation: Array) -> Array:
    return (as_float(observation) - scaling.observation_mean) / scaling.observation_std


def _policy(network: nn.Module, params: PyTree, scaling: Scaling, observation: Array) -> DiagonalNormal:
    distribution = network.apply({"params": params}, _standardised(scaling, observation))
    return distribution._replace(mean=scaling.action_mean + scaling.action_std * distribution.mean)


class _PolicyNetwork(nn.Module):
    """Mean by tanh layers, and a log standard deviation that does not depend on the observation; begins near N(0, 1)."""

    action_size: int
    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> DiagonalNormal:
        mean = nn.Dense(self.action_size, kernel_init=orthogonal(0.01))(MLP(self.sizes)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_size,))
        return DiagonalNormal(mean, jnp.broadcast_to(log_std, mean.shape))


def _check_shapes(demonstrations: Any, spec: EnvironmentSpec, action_size: int) -> None:
    given = (jnp.shape(demonstrations.observation), jnp.shape(demonstrations.action))
    count = given[0][:1]
    expected = ((*count, *spec.observation_shape), (*count, action_size))
    if given != expected or not math.prod(count):
        raise ValueError(
            f"observations and actions of the demonstrations have shapes {given}; {spec.name} needs M >= 1 rows each, of "
            f"{spec.observation_shape[0]} and {action_size} numbers. `jaxrl_off.data.demonstrations.check` says more."
        )


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of columns; a column that does not vary keeps its unit."""
    return jnp.mean(x, axis=0), jnp.where(jnp.ptp(x, axis=0) > 0, jnp.std(x, axis=0), 1.0)


def _epochs_of_minibatches(key: Array, count: int, size: int, epochs: int) -> Array:
    """Indices `int32[minibatches, size]`, each epoch in a new order and without what does not fill a minibatch."""
    size = min(size, count)
    order = minibatch_indices(key, count, 1, epochs)
    return order[:, : count // size * size].reshape(-1, size)
