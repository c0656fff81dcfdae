"""Networks of states and actions: a value for every discrete action, or for one continuous action joined to the state."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.networks import MLP
from jaxrl_off.types import Array, PyTree


class ActionNetwork(nn.Module):
    """`[B, D]` to `[B, outputs]`; near 0 at first.

    Attributes:
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        outputs: number of discrete actions, or 1.
        gain: of the last layer's orthogonal initial weights.
    """

    sizes: tuple[int, ...]
    activation: str
    outputs: int
    gain: float = 0.01

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Values of all actions, or of the one that is in x."""
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))(
            MLP(self.sizes, self.activation)(x)
        )


def network_for(sizes: tuple[int, ...], activation: str, target: TargetActions, *, gain: float = 0.01) -> ActionNetwork:
    """A network with an output for every discrete action of the target, or one for continuous ones."""
    return ActionNetwork(sizes, activation, target.weights.shape[-1] if target.actions is None else 1, gain)


def input_size(state: Array, action: Array) -> int:
    """Width of a network's input, for states `[B, *O]` and actions `int[B]` or `[B, D]`."""
    return flat_rows(state).shape[-1] + (0 if action.ndim == 1 else action.shape[-1])


def flat_rows(x: Array) -> Array:
    """`[B, *O]` as `[B, D]`."""
    return x.reshape(len(x), -1)


def value_at(network: ActionNetwork, parameters: PyTree, state: Array, action: Array) -> Array:
    """`f(s, a)`, `[B]`, of states `[B, *O]` and actions `int[B]` or `[B, D]`."""
    if action.ndim == 1:
        return jnp.take_along_axis(network.apply(parameters, flat_rows(state)), action[:, None], axis=-1)[:, 0]
    return network.apply(parameters, jnp.concatenate([flat_rows(state), action], axis=-1))[:, 0]


def expected_value(network: ActionNetwork, parameters: PyTree, state: Array, target: TargetActions) -> Array:
    """`sum_m weight_m f(s, a_m)`, `[B]`, of states `[B, *O]` and their candidates."""
    state = flat_rows(state)
    if target.actions is None:
        return jnp.sum(target.weights * network.apply(parameters, state), axis=-1)
    repeated = jnp.broadcast_to(state[:, None], (*target.weights.shape, state.shape[-1]))
    inputs = jnp.concatenate([repeated, target.actions], axis=-1)
    values = network.apply(parameters, inputs.reshape(-1, inputs.shape[-1])).reshape(target.weights.shape)
    return jnp.sum(target.weights * values, axis=-1)


def recent_mean(mean: PyTree, parameters: PyTree, number: Array) -> PyTree:
    """Parameters averaged over about the last tenth of the updates, the number of which is counted from 0."""
    share = jnp.minimum(1.0, 10.0 / (1.0 + number)).astype(jnp.float32)
    return jax.tree.map(lambda old, new: old + share * (new - old), mean, parameters)
