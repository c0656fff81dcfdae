"""The networks of `values.model`, how they learn, and roll-outs in them: functions of float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.estimators.trajectory.columns.transitions import Standardisation
from jaxrl_off.networks import ACTIVATIONS, MLP
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, PyTree

_LOG_DEVIATION = (-6.0, 2.0)  # of changes in units of their standard deviation
_LAST = 0.1  # share of the updates whose mean loss is reported

Policy = Callable[[Array, Array], Any]


@flax.struct.dataclass
class FittedModelConfig:
    """Settings of the model. Sizes are static, the learning rate is a pytree leaf.

    Attributes:
        sizes: widths of the hidden layers; `()` for means that are linear in standardised observations and actions.
        activation: key of `networks.ACTIVATIONS`.
        members: K, size of the ensemble.
        updates: gradient steps.
        batch_size: transitions in each, drawn with replacement.
        learning_rate: of Adam, at first; it falls to 0 as a cosine does.
    """

    sizes: tuple[int, ...] = static((128, 128))
    activation: str = static("swish")
    members: int = static(5)
    updates: int = static(10_000)
    batch_size: int = static(256)
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if min(self.updates, self.batch_size, *self.sizes, 1) < 1 or self.members < 2:
            raise ValueError("sizes, updates and batch_size must be at least 1, and members 2, to differ.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")


class Units(NamedTuple):
    """Between what networks see and give, and the units of the data.

    Attributes:
        inputs: of observations and continuous actions.
        codes: `[A, A]`, what networks see of discrete actions; None for continuous ones.
        change: `(mean, deviation)` of changes of standardised observations, `[O]` each.
        reward: `(mean, deviation)`.
        low: `[O]`, of standardised observations in roll-outs.
        high: `[O]`.
        reward_range: `(lowest, highest)` logged reward.
        ends: `[]`, 1 if any step terminated, else 0.
    """

    inputs: Standardisation
    codes: Array | None
    change: tuple[Array, Array]
    reward: tuple[Array, Array]
    low: Array
    high: Array
    reward_range: tuple[Array, Array]
    ends: Array


def joined(state: Array, action: Array, codes: Array | None) -> Array:
    """What a network sees, `[B, O + A]` or `[B, O + D]`, of flat states and of actions."""
    return jnp.concatenate([state, action if codes is None else codes[action].astype(state.dtype)], axis=-1)


class _Prediction(NamedTuple):
    """In units of the networks: the change's mean and log deviation `[B, O]`, mean reward `[B]`, log odds of an end."""

    mean: Array
    log_deviation: Array
    reward: Array
    end: Array


class _Network(nn.Module):
    """`[B, D]` to a `_Prediction`; all 0 at first."""

    sizes: tuple[int, ...]
    activation: str
    size: int

    @nn.compact
    def __call__(self, x: Array) -> _Prediction:
        x = MLP(self.sizes, self.activation)(x)
        found = nn.Dense(2 * self.size + 2, kernel_init=nn.initializers.orthogonal(0.01))(x)
        mean, log_deviation, rest = jnp.split(found, [self.size, 2 * self.size], axis=-1)
        return _Prediction(mean, jnp.clip(log_deviation, *_LOG_DEVIATION), rest[..., 0], rest[..., 1])


def still_falling(losses: Array) -> Array:
    """By how much a loss fell from the third quarter of the updates to the last, next to 1 and to how much it fell in all.

    Near 0 at the end of a fit that has converged; of no use in the first few updates.

    Args:
        losses: `[U]`, one an update.
    """
    quarter = max(1, len(losses) // 4)
    last = jnp.mean(losses[-quarter:])
    before = jnp.mean(losses[-2 * quarter : -quarter]) if len(losses) > 1 else losses[0]
    first = jnp.mean(losses[: max(1, len(losses) // 100)])
    return jnp.maximum(before - last, 0.0) / (1.0 + jnp.abs(first - last))


@jax.jit
def learn(
    columns: dict[str, Array], weights: Array, config: FittedModelConfig, key: Array
) -> tuple[PyTree, Array, Array]:
    """Parameters `[K, ...]`, losses `[K]`, and how much these still fell, `[K]`; see `still_falling`."""
    network = _Network(config.sizes, config.activation, columns["change"].shape[1])
    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))

    def loss(parameters: PyTree, batch: dict[str, Array], weight: Array) -> Array:
        found = network.apply(parameters, batch["inputs"])
        error = (batch["change"] - found.mean) * jnp.exp(-found.log_deviation)
        change = batch["moves"] * jnp.sum(0.5 * jnp.square(error) + found.log_deviation, axis=1)
        reward = 0.5 * jnp.square(batch["reward"] - found.reward)
        return jnp.mean(weight * (change + reward + optax.sigmoid_binary_cross_entropy(found.end, batch["terminated"])))

    def member(key: Array, weight: Array) -> tuple[PyTree, Array, Array]:
        usable = jnp.sum(weight > 0)
        pool = jnp.argsort(weight <= 0, stable=True)
        weight = weight * usable / jnp.sum(weight)
        init_key, key = jax.random.split(key)
        parameters = network.init(init_key, columns["inputs"][:1])

        def update(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], Array]:
            parameters, state = carry
            index = pool[jax.random.randint(key, (config.batch_size,), 0, usable)]
            batch = jax.tree.map(lambda x: x[index], columns)
            value, gradient = jax.value_and_grad(loss)(parameters, batch, weight[index])
            changes, state = optimiser.update(gradient, state)
            return (optax.apply_updates(parameters, changes), state), value

        carry = parameters, optimiser.init(parameters)
        (parameters, _), values = jax.lax.scan(update, carry, jax.random.split(key, config.updates))
        return parameters, jnp.mean(values[-max(1, int(_LAST * config.updates)) :]), still_falling(values)

    return jax.vmap(member)(jax.random.split(key, config.members), weights)


@functools.partial(jax.jit, static_argnames=("policy", "rollouts", "horizon"))
def roll_out(
    parameters: PyTree,
    units: Units,
    config: FittedModelConfig,
    key: Array,
    starts: tuple[Array, Array, Array | None],
    discount: Array,
    *,
    policy: Policy,
    rollouts: int,
    horizon: int,
) -> tuple[Array, Array]:
    """Mean returns of roll-outs, and the share of steps that left the box.

    Args:
        parameters: `[K, ...]`.
        units: of the model.
        config: what was fitted with.
        key: consumed.
        starts: states `[B, *O]` in the data's units, steps that are left `int32[B]`, and first actions or None.
        discount: gamma.
        policy: `(key, observation [N, *O]) -> action`.
        rollouts: from each state.
        horizon: most steps.

    Returns:
        `float32[K, B]` and `float32[]`.
    """
    repeated = jax.tree.map(lambda x: jnp.repeat(x, rollouts, axis=0), starts)
    states, remaining, first = repeated
    shape, inputs = states.shape, units.inputs
    size = math.prod(shape[1:])
    network = _Network(config.sizes, config.activation, size)
    mean, deviation = inputs.observation_mean.reshape(-1), inputs.observation_deviation.reshape(-1)

    def act(key: Array, state: Array, step: Array) -> Array:
        found = policy(key, (mean + deviation * state).reshape(shape))
        action = jnp.asarray(found[0] if isinstance(found, tuple) else found)
        if units.codes is None:
            action = action.reshape(shape[0], -1).astype(jnp.float32)
        if first is not None:
            action = jnp.where(step == 0, first, action)
        if units.codes is not None:
            return action
        return (action - inputs.action_mean) / inputs.action_deviation

    def member(parameters: PyTree, key: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
            state, alive, total = carry
            key, number = inputs
            act_key, noise_key = jax.random.split(key)
            found = network.apply(parameters, joined(state, act(act_key, state, number), units.codes))
            counts = alive * (number < remaining)
            reward = jnp.clip(units.reward[0] + units.reward[1] * found.reward, *units.reward_range)
            total += counts * discount**number * reward
            noise = jax.random.normal(noise_key, state.shape, jnp.float32) * jnp.exp(found.log_deviation)
            following = state + units.change[0] + units.change[1] * (found.mean + noise)
            outside = jnp.any((following < units.low) | (following > units.high), axis=1)
            alive *= 1.0 - units.ends * jax.nn.sigmoid(found.end)
            told = jnp.sum(counts * outside), jnp.sum(counts)
            return (jnp.clip(following, units.low, units.high), alive, total), told

        state = (states.reshape(shape[0], size) - mean) / deviation
        carry = state, jnp.ones(shape[0], jnp.float32), jnp.zeros(shape[0], jnp.float32)
        numbers = jnp.arange(horizon, dtype=jnp.int32)
        (_, _, total), told = jax.lax.scan(step, carry, (jax.random.split(key, horizon), numbers))
        return jnp.mean(total.reshape(-1, rollouts), axis=1), jnp.stack([jnp.sum(x) for x in told])

    keys = jax.random.split(key, config.members)
    totals, told = jax.vmap(member)(parameters, keys)
    outside, steps = jnp.sum(told, axis=0)
    return totals, outside / steps
