"""How `values.network` fits networks by minimax Q learning: functions of float32 that know nothing of trajectories."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.estimators.trajectory.columns.action_networks import (
    expected_value,
    input_size,
    network_for,
    recent_mean,
    value_at,
)
from jaxrl_off.estimators.trajectory.columns.kernel_features import PAIRS, Kernel, joined, kernel_of, phi
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import FlatTransitions
from jaxrl_off.estimators.trajectory.values.fitting_q import curve_of
from jaxrl_off.networks import ACTIVATIONS
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, PyTree

_FLOOR = 1e-2  # e, of the largest eigenvalue
_PIECE = 4096  # steps whose features are in memory at once


@flax.struct.dataclass
class MinimaxQConfig:
    """Settings of minimax Q learning. Sizes are static, the learning rate is a pytree leaf.

    Attributes:
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        updates: gradient steps.
        batch_size: transitions in each, drawn with replacement; one half for each factor of `g . g`.
        features: random ones of the kernel.
        members: K, as in `FittedQConfig`.
        bootstrap: as there.
        learning_rate: of Adam, at first; it falls to 0 as a cosine does.
    """

    sizes: tuple[int, ...] = static((64, 64))
    activation: str = static("relu")
    updates: int = static(20_000)
    batch_size: int = static(512)
    features: int = static(256)
    members: int = static(1)
    bootstrap: bool = static(False)
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if not self.sizes or min(self.updates, self.features, self.members, *self.sizes) < 1 or self.batch_size < 2:
            raise ValueError("sizes, updates, features and members must be at least 1, batch_size at least 2.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")
        if self.bootstrap and self.members < 2:
            raise ValueError(f"bootstrap needs members of at least 2, got {self.members}; 10 or more tell a deviation.")


@functools.partial(jax.jit, static_argnums=3)
def learn_minimax(flat: FlatTransitions, config: MinimaxQConfig, key: Array, policies: bool) -> tuple[PyTree, Array]:
    """Parameters `[P, K, ...]` and losses `[P, K, L]`, `g . g / 2`, without the first axis for one policy."""
    network = network_for(config.sizes, config.activation, flat.next_target)
    kernel_key, key = jax.random.split(key)
    kernel = _kernel(kernel_key, flat, config.features)
    optimiser = optax.chain(
        optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))
    )
    points = joined(flat.observation, flat.action, flat.next_target.weights.shape[-1])
    whitening = _whitening(kernel, points, jnp.mean(flat.weight, axis=0))
    columns = (flat.observation, flat.action, points, flat.reward, flat.next_observation, flat.continues)

    def member(key: Array, weight: Array, next_target: TargetActions) -> tuple[PyTree, Array]:
        usable = jnp.sum(weight > 0)
        pool = jnp.argsort(weight <= 0, stable=True)
        weight = weight * usable / jnp.sum(weight)
        init_key, key = jax.random.split(key)
        parameters = network.init(init_key, jnp.zeros((1, input_size(flat.observation, flat.action))))

        def equations(parameters: PyTree, index: Array) -> Array:
            """`g` of `values.network`, of some steps."""
            state, action, point, reward, following, continues = (x[index] for x in columns)
            candidates = jax.tree.map(lambda x: x[index], next_target)
            goal = reward + continues * expected_value(network, parameters, following, candidates)
            error = goal - value_at(network, parameters, state, action)
            return (weight[index] * error) @ phi(kernel, point) @ whitening / len(index)

        def loss(parameters: PyTree, index: Array) -> Array:
            # of two halves, so that the mean is that of the whole
            return 0.5 * equations(parameters, index[::2]) @ equations(parameters, index[1::2])

        def update(carry: tuple[PyTree, PyTree, PyTree], inputs: tuple[Array, Array]) -> tuple[Any, Array]:
            parameters, moments, mean = carry
            key, number = inputs
            index = pool[jax.random.randint(key, (config.batch_size,), 0, usable)]
            value, gradient = jax.value_and_grad(loss)(parameters, index)
            changes, moments = optimiser.update(gradient, moments)
            parameters = optax.apply_updates(parameters, changes)
            return (parameters, moments, recent_mean(mean, parameters, number)), value

        start = (parameters, optimiser.init(parameters), parameters)
        numbers = jnp.arange(config.updates, dtype=jnp.float32)
        (_, _, mean), losses = jax.lax.scan(update, start, (jax.random.split(key, config.updates), numbers))
        return mean, curve_of(losses)

    members = jax.vmap(member, in_axes=(0, 0, None))
    if policies:
        members = jax.vmap(members, in_axes=(None, None, 0))
    return members(jax.random.split(key, config.members), flat.weight, flat.next_target)


def _kernel(key: Array, flat: FlatTransitions, features: int) -> Kernel:
    """Of the steps that count to anyone."""
    counts = jnp.any(flat.weight > 0, axis=0)
    pair_key, key = jax.random.split(key)
    pool = jnp.argsort(~counts, stable=True)
    pairs = pool[jax.random.randint(pair_key, (2, PAIRS), 0, jnp.sum(counts))]
    one, other = (joined(flat.observation[i], flat.action[i], flat.next_target.weights.shape[-1]) for i in pairs)
    return kernel_of(key, one, other, features)


def _whitening(kernel: Kernel, points: Array, weight: Array) -> Array:
    """`(E_D[phi phi^T] + e I)^-1/2`, `[d + 1, d + 1]`."""
    share = weight / jnp.sum(weight)
    size, pieces = len(share), -(-len(share) // _PIECE)
    place = jnp.minimum(jnp.arange(pieces * min(_PIECE, size)), size - 1).reshape(pieces, -1)
    share = jnp.where(jnp.arange(place.size) < size, share[place.reshape(-1)], 0.0).reshape(pieces, -1)

    def add(total: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
        index, share = piece
        features = phi(kernel, points[index])
        return total + (share[:, None] * features).T @ features, None

    width = len(kernel.phase) + 1
    gram, _ = jax.lax.scan(add, jnp.zeros((width, width)), (place, share))
    eigenvalues, basis = jnp.linalg.eigh(gram)
    return basis / jnp.sqrt(jnp.maximum(eigenvalues, 0.0) + _FLOOR * eigenvalues[-1])
