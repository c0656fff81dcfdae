"""How `occupancy.network` fits its networks: functions of float32 that know nothing of trajectories."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_off.estimators.trajectory.columns.action_networks import (
    ActionNetwork,
    expected_value,
    input_size,
    network_for,
    recent_mean,
    value_at,
)
from jaxrl_off.estimators.trajectory.columns.kernel_features import PAIRS, Kernel, joined, kernel_of, phi, phi_mean
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import FlatTransitions
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, PyTree

_PIECE = 4096  # rows whose features are in memory at once
_GAIN = 0.1  # of the initial weights of the last layer
_LAST = 0.1  # share of the updates whose mean loss is reported


@flax.struct.dataclass
class OccupancyConfig:
    """Settings of the networks. Sizes are static, the learning rate is a pytree leaf.

    Attributes:
        sizes: widths of the hidden layers (ReLU).
        members: networks of the ensemble, which differ in initial weights and minibatches.
        updates: gradient steps.
        batch_size: transitions, and first states, of each, drawn with replacement.
        features: random ones of the kernel, for `minimax_weight` and for `flow_residual`.
        learning_rate: of Adam, at first; it falls to 0 as a cosine does.
    """

    sizes: tuple[int, ...] = static((64, 64))
    members: int = static(3)
    updates: int = static(20_000)
    batch_size: int = static(512)
    features: int = static(256)
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if not self.sizes or min(self.members, self.updates, self.features, *self.sizes) < 1 or self.batch_size < 2:
            raise ValueError("sizes, members, updates and features must be at least 1, batch_size at least 2.")


class Lagrangian(NamedTuple):
    """A method's terms; see `occupancy.tabular`."""

    alpha_nu: float
    alpha_zeta: float
    alpha_reward: float
    normed: bool
    positive: bool


_LAGRANGIANS = {
    "dual_dice": Lagrangian(0.0, 1.0, 0.0, False, False),
    "gen_dice": Lagrangian(1.0, 0.0, 0.0, True, True),
    "best_dice": Lagrangian(0.0, 1.0, 1.0, True, True),
}
METHODS = ("minimax_weight", *_LAGRANGIANS)


class Pool(NamedTuple):
    """Rows to draw minibatches from: `order` begins with the `size` rows that count, `weight` has mean 1 over them."""

    rows: PyTree
    weight: Array
    order: Array
    size: Array


class Rows(NamedTuple):
    """Steps, standardised, and m of each, `[N]`."""

    flat: FlatTransitions
    multiplicity: Array


def pool_of(rows: PyTree, weight: Array) -> Pool:
    """Rows `[N, ...]` that count `weight [N]` times."""
    counts = weight > 0
    size = jnp.sum(counts)
    order = jnp.argsort(~counts, stable=True).astype(jnp.int32)
    return Pool(rows, (weight * (size / jnp.sum(weight))).astype(jnp.float32), order, size.astype(jnp.int32))


def _drawn(key: Array, pool: Pool, batch: int) -> tuple[PyTree, Array]:
    index = pool.order[jax.random.randint(key, (batch,), 0, pool.size, jnp.int32)]
    return jax.tree.map(lambda x: x[index], (pool.rows, pool.weight))


def _kernel(key: Array, pool: Pool, num_actions: int, features: int) -> Kernel:
    pair_key, key = jax.random.split(key)
    (rows, _), (others, _) = (_drawn(k, pool, PAIRS) for k in jax.random.split(pair_key))
    one, other = (joined(x.flat.observation, x.flat.action, num_actions) for x in (rows, others))
    return kernel_of(key, one, other, features)


def _change(kernel: Kernel, rows: Rows, num_actions: int, discount: Array) -> Array:
    """`gamma c phi(s', pi) - phi(s, a)`, `[B, d + 1]`."""
    flat = rows.flat
    following = phi_mean(kernel, flat.next_observation, flat.next_target)
    now = phi(kernel, joined(flat.observation, flat.action, num_actions))
    return discount * flat.continues[:, None] * following - now


_Loss = Callable[[PyTree, tuple[Rows, Array], tuple[PyTree, Array]], Array]


def _saddle(terms: Lagrangian, network: ActionNetwork, discount: Array) -> _Loss:
    """`(params, steps, firsts) -> Lagrangian`; of minibatches and their weights."""

    def loss(params: PyTree, steps: tuple[Rows, Array], firsts: tuple[PyTree, Array]) -> Array:
        (rows, weight), ((observation, target), first_weight) = steps, firsts
        flat = rows.flat
        zeta = _zeta(network, params["zeta"], flat.observation, flat.action, terms.positive)
        now = value_at(network, params["nu"], flat.observation, flat.action)
        following = expected_value(network, params["nu"], flat.next_observation, flat.next_target)
        error = terms.alpha_reward * flat.reward + discount * flat.continues * following - now
        first = expected_value(network, params["nu"], observation, target)
        squares = terms.alpha_nu * jnp.square(now) - terms.alpha_zeta * jnp.square(zeta)
        value = (1.0 - discount) * jnp.mean(first_weight * first) + jnp.mean(weight * (zeta * error + 0.5 * squares))
        if terms.normed:
            value += params["lambda"] * (1.0 - jnp.mean(weight * rows.multiplicity * zeta))
        return value

    return loss


def _distance(kernel: Kernel, network: ActionNetwork, num_actions: int, discount: Array) -> _Loss:
    """`(params, steps, firsts) -> g . g / 2` of the two halves of minibatches."""

    def loss(params: PyTree, steps: tuple[Rows, Array], firsts: tuple[PyTree, Array]) -> Array:
        def equations(steps: tuple[Rows, Array], firsts: tuple[PyTree, Array]) -> Array:
            (rows, weight), ((observation, target), first_weight) = steps, firsts
            zeta = _zeta(network, params["zeta"], rows.flat.observation, rows.flat.action, True)
            start = (1.0 - discount) * first_weight @ phi_mean(kernel, observation, target) / len(first_weight)
            return start + (weight * zeta) @ _change(kernel, rows, num_actions, discount) / len(weight)

        def half(x: PyTree, number: int) -> PyTree:
            return jax.tree.map(lambda leaf: leaf[number::2], x)

        return 0.5 * equations(half(steps, 0), half(firsts, 0)) @ equations(half(steps, 1), half(firsts, 1))

    return loss


def _zeta(network: ActionNetwork, params: PyTree, observation: Array, action: Array, positive: bool) -> Array:
    value = 1.0 + value_at(network, params, observation, action)
    return jnp.square(value) if positive else value


@functools.partial(jax.jit, static_argnames="method")
def train(
    steps: Pool, firsts: Pool, discount: Array, key: Array, config: OccupancyConfig, *, method: str
) -> tuple[Array, Array, Array, Array]:
    """zeta `[members, N]`, divided, what by `[members]`, losses `[members]` and `|g| / |b|` of the mean."""
    discrete = steps.rows.flat.target.actions is None
    num_actions = steps.rows.flat.target.weights.shape[-1] if discrete else 1
    network = network_for(config.sizes, "relu", steps.rows.flat.target, gain=_GAIN)
    kernel_key, key = jax.random.split(key)
    kernel = _kernel(kernel_key, steps, num_actions, config.features)
    flat = steps.rows.flat
    if method == "minimax_weight":
        names, loss = ("zeta",), _distance(kernel, network, num_actions, discount)
        positive = True
    else:
        terms = _LAGRANGIANS[method]
        names, loss, positive = ("nu", "zeta"), _saddle(terms, network, discount), terms.positive
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.updates)
    # with momentum players of a saddle point circle around it
    momentum = 0.9 if method == "minimax_weight" else 0.0
    optimiser = optax.chain(optax.clip(1.0), optax.adam(schedule, b1=momentum))
    upwards = ("zeta",) if method != "minimax_weight" else ()
    example = jnp.zeros((1, input_size(flat.observation, flat.action)), jnp.float32)

    def one(key: Array) -> tuple[Array, Array]:
        key, *init_keys = jax.random.split(key, 1 + len(names))
        params = {name: network.init(k, example) for name, k in zip(names, init_keys, strict=True)}
        params["lambda"] = jnp.zeros((), jnp.float32)

        def update(carry: PyTree, inputs: tuple[Array, Array]) -> tuple[PyTree, Array]:
            params, state, mean = carry
            key, number = inputs
            step_key, first_key = jax.random.split(key)
            batches = _drawn(step_key, steps, config.batch_size), _drawn(first_key, firsts, config.batch_size)
            value, gradient = jax.value_and_grad(loss)(params, *batches)
            gradient |= {name: jax.tree.map(jnp.negative, gradient[name]) for name in upwards}
            changes, state = optimiser.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
            return (params, state, recent_mean(mean, params["zeta"], number)), value

        numbers = jnp.arange(config.updates, dtype=jnp.float32)
        start = (params, optimiser.init(params), params["zeta"])
        (_, _, mean), values = jax.lax.scan(update, start, (jax.random.split(key, config.updates), numbers))
        told = values[-max(1, int(_LAST * config.updates)) :]
        return _zeta(network, mean, flat.observation, flat.action, positive), jnp.mean(told)

    zeta, losses = jax.vmap(one)(jax.random.split(key, config.members))
    share = steps.weight / jnp.sum(steps.weight)
    divisor = zeta @ (share * steps.rows.multiplicity)
    zeta = zeta / divisor[:, None]
    residual = _residual(kernel, steps, firsts, jnp.mean(zeta, axis=0), num_actions, discount)
    return zeta, divisor, losses, residual


def _residual(kernel: Kernel, steps: Pool, firsts: Pool, zeta: Array, num_actions: int, discount: Array) -> Array:
    def flows(rows: Rows, weight: Array) -> Array:
        return weight @ _change(kernel, rows, num_actions, discount)

    def starts(rows: tuple[Array, TargetActions], weight: Array) -> Array:
        return weight @ phi_mean(kernel, *rows)

    start = (1.0 - discount) * _summed(starts, firsts.rows, firsts.weight / jnp.sum(firsts.weight))
    flow = _summed(flows, steps.rows, zeta * steps.weight / jnp.sum(steps.weight))
    return jnp.linalg.norm(start + flow) / jnp.linalg.norm(start)


def _summed(f: Callable[[PyTree, Array], Array], rows: PyTree, weight: Array) -> Array:
    """Sum of `f(rows, weight)` over pieces of them; what fills the last one up has weight 0."""
    size = len(weight)
    pieces = -(-size // _PIECE)
    place = jnp.minimum(jnp.arange(pieces * min(_PIECE, size)), size - 1)
    weight = jnp.where(jnp.arange(len(place)) < size, weight[place], 0.0)

    def add(total: Array, index: tuple[Array, Array]) -> tuple[Array, None]:
        return total + f(jax.tree.map(lambda x: x[index[0]], rows), index[1]), None

    shape = jax.eval_shape(f, jax.tree.map(lambda x: x[:1], rows), weight[:1])
    parts = place.reshape(pieces, -1), weight.reshape(pieces, -1)
    return jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), parts)[0]
