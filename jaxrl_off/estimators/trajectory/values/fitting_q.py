"""How `values.network` fits its networks and asks them for values: functions of float32 that know nothing of trajectories."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.columns.action_networks import (
    expected_value,
    flat_rows,
    input_size,
    network_for,
    value_at,
)
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import FlatTransitions
from jaxrl_off.networks import ACTIVATIONS
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, PyTree

_POINTS = 100  # of the loss curve, at most
_PIECE = 2048  # states that are evaluated at once
_LEFT = 0.01  # share of the initial error that the target rate is chosen to leave
_SLOWEST = 0.005  # target rate, unless another is given


@flax.struct.dataclass
class FittedQConfig:
    """Settings of fitted Q-evaluation. Sizes are static, the reals are pytree leaves.

    Attributes:
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`.
        updates: gradient steps; rounded up to a multiple of `target_period`.
        batch_size: transitions in each, drawn with replacement.
        target_period: updates between two moves of the copy.
        members: K, size of the ensemble; members differ in initial weights and minibatches.
        bootstrap: whether each member learns from trajectories that are drawn with replacement, so that members differ as
            much as fits to different data would.
        learning_rate: of Adam, at first.
        final_learning_rate: at last; linear in between. 0 lets the noise of minibatches die out.
        target_rate: by which the copy moves towards the network; 1 replaces it. After U moves at rate r about
            `exp(-(1 - gamma) r U)` of the initial error is left. None (the default) takes the rate that leaves 1 %, between
            0.005 and 1; more `updates` make it slower and the fit more stable.
    """

    sizes: tuple[int, ...] = static((256, 256))
    activation: str = static("relu")
    updates: int = static(10_000)
    batch_size: int = static(256)
    target_period: int = static(1)
    members: int = static(1)
    bootstrap: bool = static(False)
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    target_rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if not self.sizes or min(self.updates, self.batch_size, self.target_period, self.members, *self.sizes) < 1:
            raise ValueError("sizes, updates, batch_size, target_period and members must all be at least 1.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")
        if self.bootstrap and self.members < 2:
            raise ValueError(
                f"bootstrap needs at least 2 members, got {self.members}; use 10 or more for a useful standard error."
            )
        if self.target_rate is not None and is_concrete(self.target_rate) and not 0.0 < self.target_rate <= 1.0:
            raise ValueError(f"target_rate must be in (0, 1] or None, got {self.target_rate}.")

    @property
    def moves(self) -> int:
        """How often the copy moves towards the network."""
        return -(-self.updates // self.target_period)


def rate_for(gap: Array, moves: int) -> Array:
    """The target rate that leaves 1 % of the initial error after so many moves, between 0.005 and 1.

    Args:
        gap: `[]`, 1 - gamma, or with exits 1 less the mean of gamma c; see `network.gap_of`.
        moves: of the copy.
    """
    return jnp.clip(-math.log(_LEFT) / (jnp.maximum(gap, 1e-12) * moves), _SLOWEST, 1.0)


def curve_of(losses: Array) -> Array:
    """Means over stretches of the updates, `[L]`."""
    stretch = -(-len(losses) // _POINTS)
    losses = jnp.pad(losses, (0, -len(losses) % stretch), constant_values=jnp.nan).reshape(-1, stretch)
    return jnp.nanmean(losses, axis=1)


def _in_pieces(function: Callable[..., PyTree], *columns: PyTree) -> PyTree:
    """A function of columns `[B, ...]` for so many rows at once that a core's cache holds the layers of a network."""
    rows = len(jax.tree.leaves(columns)[0])
    return jax.lax.map(
        lambda row: jax.tree.map(lambda x: x[0], function(*jax.tree.map(lambda x: x[None], row))),
        columns,
        batch_size=min(_PIECE, rows),
    )


@functools.partial(jax.jit, static_argnums=3)
def learn(flat: FlatTransitions, config: FittedQConfig, key: Array, policies: bool) -> tuple[PyTree, Array]:
    """Parameters `[P, K, ...]` and losses `[P, K, L]`, without the first axis for one policy; the target rate is a number."""
    network = network_for(config.sizes, config.activation, flat.next_target)
    state, following = flat_rows(flat.observation), flat_rows(flat.next_observation)
    periods = config.moves
    adam = optax.adam(
        optax.linear_schedule(config.learning_rate, config.final_learning_rate, periods * config.target_period)
    )
    shape = (config.target_period, config.batch_size)

    def member(key: Array, weight: Array, next_target: TargetActions) -> tuple[PyTree, Array]:
        usable = jnp.sum(weight > 0)
        pool = jnp.argsort(weight <= 0, stable=True)
        weight = weight * usable / jnp.sum(weight)
        init_key, key = jax.random.split(key)
        size = input_size(state, flat.action)
        parameters = network.init(init_key, jnp.zeros((1, size)))

        def loss(parameters: PyTree, batch: tuple[Array, ...]) -> Array:
            state, action, goal, weight = batch
            return jnp.mean(weight * jnp.square(value_at(network, parameters, state, action) - goal))

        def update(carry: tuple[PyTree, PyTree], batch: tuple[Array, ...]) -> tuple[tuple[PyTree, PyTree], Array]:
            parameters, moments = carry
            value, gradient = jax.value_and_grad(loss)(parameters, batch)
            changes, moments = adam.update(gradient, moments)
            return (optax.apply_updates(parameters, changes), moments), value

        def period(carry: tuple[PyTree, PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree, PyTree], Array]:
            parameters, moments, copy = carry
            index = pool[jax.random.randint(key, (shape[0] * shape[1],), 0, usable)]
            candidates = jax.tree.map(lambda x: x[index], next_target)
            v = _in_pieces(functools.partial(expected_value, network, copy), following[index], candidates)
            goal = flat.reward[index] + flat.continues[index] * v
            columns = (state[index], flat.action[index], goal, weight[index])
            batches = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), columns)
            (parameters, moments), values = jax.lax.scan(update, (parameters, moments), batches)
            return (parameters, moments, optax.incremental_update(parameters, copy, config.target_rate)), jnp.mean(
                values
            )

        start = (parameters, adam.init(parameters), parameters)
        (parameters, _, _), losses = jax.lax.scan(period, start, jax.random.split(key, periods))
        return parameters, curve_of(losses)

    members = jax.vmap(member, in_axes=(0, 0, None))
    if policies:
        members = jax.vmap(members, in_axes=(None, None, 0))
    return members(jax.random.split(key, config.members), flat.weight, flat.next_target)


@jax.jit
def evaluate(
    observations: Array, target: TargetActions, actions: Array, parameters: PyTree, config: Any
) -> tuple[Array, Array]:
    """Q of what was done `[..., n, T]` and V `[..., n, T + 1]`, with axes for policies and members in front."""
    network = network_for(config.sizes, config.activation, target)
    n, after = observations.shape[:2]
    state = observations.reshape(n * after, -1)
    taken = jnp.concatenate([actions, jnp.zeros_like(actions[:, :1])], axis=1).reshape(n * after, *actions.shape[2:])

    def one(parameters: PyTree, target: TargetActions) -> tuple[Array, Array]:
        target = jax.tree.map(lambda x: x.reshape(n * after, *x.shape[2:]), target)

        def both(state: Array, taken: Array, target: TargetActions) -> tuple[Array, Array]:
            return value_at(network, parameters, state, taken), expected_value(network, parameters, state, target)

        q, v = _in_pieces(both, state, taken, target)
        return q.reshape(n, after)[:, :-1], v.reshape(n, after)

    members = jax.vmap(one, in_axes=(0, None))
    if target.weights.ndim > 3:
        members = jax.vmap(members)
    return members(parameters, target)
