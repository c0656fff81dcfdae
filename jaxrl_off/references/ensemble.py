"""References that average several Gaussian networks: the deep ensemble and Monte-Carlo dropout.

References: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
NeurIPS 2017; Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.references.base import Progress, Reference, check_demonstrations, minimise
from jaxrl_off.references.network import GaussianMLP, action_size, check_network_options, network_loss
from jaxrl_off.types import Array, PyTree


class DropoutParams(NamedTuple):
    """What the dropout reference learns, and the masks it is evaluated with.

    Attributes:
        variables: of the network.
        mask_seeds: `uint32[T]`.
    """

    variables: PyTree
    mask_seeds: Array


def match_moments(members: DiagonalNormal) -> DiagonalNormal:
    """The normal with mean and variance of an equal mixture: `mu = mean mu_k`, `sigma^2 = mean sigma_k^2 + var mu_k`.

    Args:
        members: `float[K, ..., D]`.

    Returns:
        `float[..., D]`.
    """
    variance = jnp.mean(jnp.exp(2.0 * members.log_std), axis=0) + jnp.var(members.mean, axis=0)
    return DiagonalNormal(jnp.mean(members.mean, axis=0), 0.5 * jnp.log(variance))


def ensemble(
    *,
    members: int = 5,
    sizes: Sequence[int] = (256, 256),
    activation: str = "relu",
    learning_rate: float = 1e-3,
    steps: int = 3000,
    batch_size: int = 256,
) -> Reference:
    """Deep ensemble: networks by maximum likelihood, each from its own start and minibatches, trained side by side.

    Args:
        members: number of networks.
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        learning_rate: of Adam.
        steps: number of updates.
        batch_size: of each member's minibatches.

    Raises:
        ValueError: for options out of range.
    """
    check_network_options(sizes, activation, learning_rate, steps, batch_size)
    if members < 2:
        raise ValueError(f"members must be at least 2, got {members}; use gaussian_network for a single one.")
    make_module = functools.partial(GaussianMLP, sizes=tuple(sizes), activation=activation)
    member_loss = network_loss(make_module, batch_size, entropy_bonus=0.0, fixed_std=None)
    optimiser = optax.adam(learning_rate)

    def loss(variables: PyTree, data: PyTree, key: Array) -> Array:
        # The gradient of the sum is each member's own; Adam works element by element.
        keys = jax.random.split(key, members)
        return jnp.sum(jax.vmap(member_loss, in_axes=(0, None, 0))(variables, data, keys))

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> PyTree:
        data = tuple(x.astype(np.float32) for x in check_demonstrations(observations, actions))
        init_key, fit_key = jax.random.split(key)
        module = make_module(data[1].shape[1])
        variables = jax.vmap(module.init, in_axes=(0, None))(jax.random.split(init_key, members), data[0][:1])
        name = "summed_negative_log_likelihood"
        return minimise(loss, variables, data, fit_key, optimiser, steps, name=name, progress=progress)

    def apply(params: PyTree, observation: Array) -> DiagonalNormal:
        module = make_module(action_size(params))
        return match_moments(jax.vmap(module.apply, in_axes=(0, None))(params, observation))

    return Reference(fit, apply)


def dropout(
    *,
    rate: float = 0.1,
    masks: int = 30,
    sizes: Sequence[int] = (256, 256),
    activation: str = "relu",
    learning_rate: float = 1e-3,
    steps: int = 3000,
    batch_size: int = 256,
) -> Reference:
    """Monte-Carlo dropout: one network, evaluated with a fixed set of masks that are the same for every observation.

    Args:
        rate: probability with which a hidden unit is left out.
        masks: T, number of masks; drawn once in `fit`, so that `apply` is deterministic.
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        learning_rate: of Adam.
        steps: number of updates.
        batch_size: of the minibatches.

    Raises:
        ValueError: for options out of range.
    """
    check_network_options(sizes, activation, learning_rate, steps, batch_size)
    if not 0 < rate < 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}; use gaussian_network to go without dropout.")
    if masks < 2:
        raise ValueError(f"masks must be at least 2, got {masks}.")
    make_module = functools.partial(GaussianMLP, sizes=tuple(sizes), activation=activation, dropout=rate)
    loss = network_loss(make_module, batch_size, entropy_bonus=0.0, fixed_std=None)
    optimiser = optax.adam(learning_rate)

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> DropoutParams:
        data = tuple(x.astype(np.float32) for x in check_demonstrations(observations, actions))
        init_key, fit_key, mask_key = jax.random.split(key, 3)
        streams = dict(zip(("params", "dropout"), jax.random.split(init_key), strict=True))
        variables = make_module(data[1].shape[1]).init(streams, data[0][:1])
        name = "negative_log_likelihood"
        variables = minimise(loss, variables, data, fit_key, optimiser, steps, name=name, progress=progress)
        return DropoutParams(variables, jax.random.bits(mask_key, (masks,), jnp.uint32))

    def apply(params: DropoutParams, observation: Array) -> DiagonalNormal:
        module = make_module(action_size(params.variables))

        def one(seed: Array, row: Array) -> DiagonalNormal:
            return module.apply(params.variables, row, rngs={"dropout": jax.random.key(seed)})

        rows = observation.reshape(-1, observation.shape[-1])
        # Row by row inside one mask: drawn for a whole batch, the masks would differ between its rows.
        members = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(params.mask_seeds, rows)
        return jax.tree.map(lambda x: x.reshape(*observation.shape[:-1], -1), match_moments(members))

    return Reference(fit, apply)
