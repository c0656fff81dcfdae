"""The Gaussian network reference: mean and standard deviation of the action by a multilayer perceptron.

Fitted by maximum likelihood its standard deviation collapses towards 0 away from the demonstrations, and the gradient of a
KL penalty towards it grows as `sigma_0^-2` (Rudner, Lu, Osborne, Gal and Teh, "On Pathologies in KL-Regularized
Reinforcement Learning from Expert Demonstrations", NeurIPS 2021). The remedies that stay within the class are options here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.networks import ACTIVATIONS
from jaxrl_off.references.base import Progress, Reference, check_demonstrations, check_positive, minimise
from jaxrl_off.types import Array, PyTree

LOG_STD_BOUNDS = (-20.0, 2.0)


class GaussianMLP(nn.Module):
    """Mean and logarithm of the standard deviation of a diagonal Gaussian.

    Attributes:
        action_size: number of action dimensions.
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        dropout: probability with which a hidden unit is left out; needs the random stream `dropout`.
    """

    action_size: int
    sizes: Sequence[int] = (256, 256)
    activation: str = "relu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> DiagonalNormal:
        """Map `float[..., O]` to a distribution over `float[..., action_size]`; log_std is clipped to [-20, 2]."""
        for size in self.sizes:
            x = ACTIVATIONS[self.activation](nn.Dense(size)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=False)(x)
        # Heads that start near 0 give the standard deviation 1, whatever the size of the observations.
        small = nn.initializers.normal(1e-3)
        mean = nn.Dense(self.action_size, kernel_init=small, name="mean")(x)
        log_std = nn.Dense(self.action_size, kernel_init=small, name="log_std")(x)
        return DiagonalNormal(mean, jnp.clip(log_std, *LOG_STD_BOUNDS))


def action_size(variables: PyTree) -> int:
    """Number of action dimensions of the (unstacked) variables of a `GaussianMLP`."""
    return variables["params"]["mean"]["bias"].shape[-1]


def network_loss(
    make_module: Callable[[int], GaussianMLP], batch_size: int, entropy_bonus: float, fixed_std: float | None
) -> Callable[[PyTree, PyTree, Array], Array]:
    """Minibatch loss `(variables, (observations, actions), key) -> float[]`; see `gaussian_network`."""

    def loss(variables: PyTree, data: tuple[Array, Array], key: Array) -> Array:
        batch_key, dropout_key = jax.random.split(key)
        rows = jax.random.randint(batch_key, (batch_size,), 0, data[0].shape[0])
        observations, actions = data[0][rows], data[1][rows]
        module = make_module(actions.shape[-1])
        policy = module.apply(variables, observations, rngs={"dropout": dropout_key})
        if fixed_std is not None:
            return jnp.mean(jnp.sum(jnp.square(actions - policy.mean), axis=-1))
        return -jnp.mean(policy.log_prob(actions) + entropy_bonus * policy.entropy())

    return loss


def check_network_options(
    sizes: Sequence[int], activation: str, learning_rate: float, steps: int, batch_size: int
) -> None:
    """Raise a `ValueError` for options of a network that cannot be used."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
    check_positive(learning_rate=learning_rate, steps=steps, batch_size=batch_size)
    if any(size < 1 for size in sizes):
        raise ValueError(f"sizes must be widths of at least 1, got {tuple(sizes)}.")


def gaussian_network(
    *,
    sizes: Sequence[int] = (256, 256),
    activation: str = "relu",
    learning_rate: float = 1e-3,
    steps: int = 3000,
    batch_size: int = 256,
    entropy_bonus: float = 0.0,
    fixed_std: float | None = None,
    std_floor: float = 0.0,
    std_ceiling: float = math.inf,
    weight_decay: float = 0.0,
) -> Reference:
    """Heteroscedastic Gaussian network by maximum likelihood, `min E[-log N(a; mu(s), sigma(s)^2) - c H(s)]`, with Adam.

    Args:
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        learning_rate: of Adam.
        steps: number of updates.
        batch_size: of the minibatches, drawn with replacement.
        entropy_bonus: c, less than 1: the best constant variance is `E[(a - mu)^2] / (1 - c)`, and none exists from 1 on.
        fixed_std: standard deviation to hand out; the mean is then fitted by least squares. None to learn it.
        std_floor: the standard deviation handed out is at least this. Acts after the fit, where a clipped output would
            get no gradient.
        std_ceiling: the standard deviation handed out is at most this.
        weight_decay: coefficient of `1/2 |weights|^2` in the loss (Tikhonov regularisation: its gradient goes through Adam).

    Raises:
        ValueError: for options out of range.
    """
    check_network_options(sizes, activation, learning_rate, steps, batch_size)
    if entropy_bonus >= 1:
        raise ValueError(
            f"entropy_bonus must be less than 1, where the loss has no minimum any more; got {entropy_bonus}."
        )
    if fixed_std is not None:
        check_positive(fixed_std=fixed_std)
    if not 0 <= std_floor < std_ceiling:
        raise ValueError(f"0 <= std_floor < std_ceiling is needed, got {std_floor} and {std_ceiling}.")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}.")
    make_module = functools.partial(GaussianMLP, sizes=tuple(sizes), activation=activation)
    loss = network_loss(make_module, batch_size, entropy_bonus, fixed_std)
    optimiser = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))
    log_floor = math.log(std_floor) if std_floor > 0 else -math.inf
    log_ceiling = math.log(std_ceiling)

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> PyTree:
        data = tuple(x.astype(np.float32) for x in check_demonstrations(observations, actions))
        init_key, fit_key = jax.random.split(key)
        variables = make_module(data[1].shape[1]).init(init_key, data[0][:1])
        name = "squared_error" if fixed_std is not None else "negative_log_likelihood"
        return minimise(loss, variables, data, fit_key, optimiser, steps, name=name, progress=progress)

    def apply(params: PyTree, observation: Array) -> DiagonalNormal:
        policy = make_module(action_size(params)).apply(params, observation)
        log_std = policy.log_std if fixed_std is None else jnp.full_like(policy.mean, math.log(fixed_std))
        return DiagonalNormal(policy.mean, jnp.clip(log_std, log_floor, log_ceiling))

    return Reference(fit, apply)
