"""Fitted Q-evaluation with networks: regression of `r + gamma V(s')` on (s, a), V by a slowly moving copy of the network.

`min_theta sum (Q_theta(s_t, a_t) - r_t - gamma sum_m weight_m Q_theta'(s_{t+1}, a_m))^2`, with theta' a copy that moves
towards theta at a rate, or is replaced after a number of updates. The target's candidates in s_{t+1} are drawn in s_{t+1}
(see `transitions`), not in s_t. All updates are one compiled program; members of an ensemble and target policies are
batched in it, and policies share minibatches and initial weights, so that their differences are less noisy than they are.

The network works on standardised observations and actions, and on values less their mean and over their deviation, as
those of the returns that were logged. So it begins at the mean of logged returns, and one learning rate serves all scales.
Learning is float32, what is made of it float64.

Reference: Le, Voloshin and Yue, "Batch Policy Learning under Constraints", ICML 2019.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.estimators.trajectory import common, corrected
from jaxrl_off.estimators.trajectory.transitions import (
    ActionValues,
    FlatTransitions,
    Standardisation,
    TargetActions,
    Transitions,
    action_values,
    flattened,
    standardisation_of,
    standardised,
    transitions_of,
)
from jaxrl_off.networks import ACTIVATIONS, MLP
from jaxrl_off.ops.intervals import normal_interval, student_t_interval
from jaxrl_off.types import Array, Estimate, PyTree, Trajectories

_POINTS = 100  # of the loss curve, at most
_CHUNK = 8192  # states that are evaluated at once


def _static(default: Any) -> Any:
    return flax.struct.field(pytree_node=False, default=default)


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
        target_rate: by which the copy moves towards the network; 1 replaces it.
    """

    sizes: tuple[int, ...] = _static((256, 256))
    activation: str = _static("relu")
    updates: int = _static(10_000)
    batch_size: int = _static(256)
    target_period: int = _static(1)
    members: int = _static(1)
    bootstrap: bool = _static(False)
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    target_rate: float = 0.005

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.sizes or min(self.updates, self.batch_size, self.target_period, self.members, *self.sizes) < 1:
            raise ValueError("sizes, updates, batch_size, target_period and members must all be at least 1.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")
        if self.bootstrap and self.members < 2:
            raise ValueError(f"bootstrap needs members of at least 2, got {self.members}; 10 or more tell a deviation.")


class Scale(NamedTuple):
    """Between what networks see and give, and the units of the data; float64.

    Attributes:
        inputs: of observations and continuous actions.
        value_mean: `[]`, mean of the returns to go that were logged.
        value_deviation: `[]`, their deviation.
    """

    inputs: Standardisation
    value_mean: Array
    value_deviation: Array


class FittedQ(NamedTuple):
    """An action-value function that was fitted; of P policies, values and parameters have a leading axis `[P]`.

    Attributes:
        values: along the trajectories, of all of them, also of those that count 0; the mean over members.
        member_values: `float64[K]`, `mean_i V(s_0)` by each member, with the counts that it has learned from.
        losses: `float32[K, L]`, mean of the loss over stretches of the updates, in units of the squared deviation of
            logged returns. The noise of rewards and transitions stays in it.
        parameters: of the networks, `[K, ...]`.
        scale: what they see.
    """

    values: ActionValues
    member_values: Array
    losses: Array
    parameters: PyTree
    scale: Scale


def fit_network_q(
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    config: FittedQConfig | None = None,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> FittedQ:
    """Fit networks to the target's action values.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        target: of `transitions.target_actions`; several policies at once have a leading axis `[P]`.
        key: consumed.
        config: None for the defaults.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once. Those that count 0 are not learned from.
        horizon_exit: what the end of a row means; see `transitions`.

    Returns:
        `FittedQ`, whose values `corrected.doubly_robust` and its kin take; for cross-fitting
        `corrected.cross_fitted(lambda counts: fit_network_q(..., counts=counts).values, np.ones(n))`.

    Raises:
        ValueError: for data that cannot be meant.

    Example:
        >>> from jaxrl_off.estimators.trajectory.transitions import target_actions
        >>> yes, no = np.ones((4, 1), bool), np.zeros((4, 1), bool)
        >>> actions, rewards = np.array([[0], [1], [0], [1]]), np.array([[1.0], [3.0], [1.0], [3.0]])
        >>> data = Trajectories(np.zeros((4, 1, 1)), actions, rewards, None, yes, yes, no, None)
        >>> target = target_actions(data, np.full((4, 1, 2), [0.25, 0.75]))
        >>> config = FittedQConfig(sizes=(8,), updates=500, batch_size=4, learning_rate=0.05)
        >>> fit_network_q(data, target, jax.random.key(0), config).values.v[0, 0].round(2).item()
        2.5
    """
    config = config or FittedQConfig()
    fit_key, resample_key = jax.random.split(key)
    with common.float64(trajectories, target, counts):
        given = transitions_of(trajectories, target, discount=discount, counts=counts, horizon_exit=horizon_exit)
        scale = _scale_of(given)
        flat = flattened(standardised(given, scale.inputs))
        member_counts = _member_counts(resample_key, given, config)
        reward, discount_ = given.steps.rewards, given.discount * given.continues
        reward = (reward + (discount_ - 1.0) * scale.value_mean) / scale.value_deviation
        weights = member_counts[:, flat.row] * given.used[flat.row, flat.step]
        flat = flat._replace(
            reward=reward[flat.row, flat.step].astype(jnp.float32),
            continues=discount_[flat.row, flat.step].astype(jnp.float32),
            weight=weights.astype(jnp.float32),
        )
    # float32 from here on, whatever the caller's default
    with jax.enable_x64(False):
        parameters, losses = _learn(flat, config, fit_key, target.weights.ndim > 3)
    with common.float64(trajectories, target, counts):
        members = _values_along(given, parameters, scale, config)
        starts = members[1][..., 0]
        member_values = jnp.sum(member_counts * starts, axis=-1) / jnp.sum(member_counts, axis=-1)
        q, v = (jnp.mean(x, axis=-3) for x in members)
        return FittedQ(action_values(q, v, trajectories), member_values, losses, parameters, scale)


def network_values(
    fit: FittedQ, trajectories: Trajectories, target: TargetActions, config: FittedQConfig | None = None
) -> ActionValues:
    """Values of a fit along other trajectories than those it was fitted to.

    Args:
        fit: of `fit_network_q`, with the same number of policies.
        trajectories: m of them; rewards are not looked at.
        target: candidates in their states.
        config: what was fitted with.

    Returns:
        `ActionValues`, the mean over members.

    Raises:
        ValueError: for data that cannot be meant.
    """
    with common.float64(trajectories, target):
        without = trajectories._replace(rewards=np.zeros(jnp.shape(trajectories.rewards)))
        given = transitions_of(without, target)
        found = _values_along(given, fit.parameters, fit.scale, config or FittedQConfig())
        return action_values(*(jnp.mean(x, axis=-3) for x in found), trajectories)


def fitted_q_evaluation(
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    config: FittedQConfig | None = None,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
    **settings: Any,
) -> Estimate:
    """The value `mean_i V(s_0)` of the target by fitted Q-evaluation with networks.

    Args: as `fit_network_q`, and
        **settings: `level` and the further ones of `weighted.pdis`.

    Returns:
        An `Estimate`; of P policies with a leading axis. Without `config.bootstrap` it is `corrected.direct_method` on the
        fit: its standard error is that of the initial states alone, and too small, as the fit's is not in it. With
        `bootstrap` the standard error is the deviation of members, each with its own trajectories, and the interval is
        Student's t, or the normal one, with it; ten members or more are needed for that, and `resamples` is not looked at.
        Diagnostics also `member_deviation` and `final_loss`, the last stretch of the curve.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    config = config or FittedQConfig()
    checked = common.settings_of(**settings)
    if config.bootstrap and checked.interval not in ("student_t", "normal"):
        raise ValueError(
            f"interval={checked.interval!r} would resample values of one fit; with members of a bootstrap student_t and "
            "normal are allowed."
        )
    shared = dict(discount=discount, counts=counts)
    fit = fit_network_q(trajectories, target, key, config, horizon_exit=horizon_exit, **shared)
    policies = fit.member_values.ndim > 1
    flat = jax.tree.map(lambda x: x if policies else x[None], (fit.values.v, fit.member_values, fit.losses))
    estimates = []
    for v, members, losses in zip(*flat, strict=True):
        found = corrected.direct_method(trajectories, v, **shared, **settings)
        with common.float64(trajectories, target, counts):
            estimates.append(_with_members(found, members, losses, config, checked))
    if not policies:
        return estimates[0]
    with common.float64(trajectories, target, counts):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *estimates)


def _with_members(
    found: Estimate, members: Array, losses: Array, config: FittedQConfig, settings: common.Settings
) -> Estimate:
    deviation = jnp.std(members, ddof=1) if config.members > 1 else jnp.zeros(())
    final_loss = jnp.mean(losses[:, -1]).astype(jnp.float64)
    found = found._replace(diagnostics=found.diagnostics | {"member_deviation": deviation, "final_loss": final_loss})
    if not config.bootstrap:
        return found
    found = found._replace(standard_error=deviation)
    if settings.level is None:
        return found
    # made so that the error of their mean is the deviation of members
    spread = found.value + jnp.sqrt(float(config.members)) * (members - jnp.mean(members))
    method = normal_interval if settings.interval == "normal" else student_t_interval
    lower, upper = method(spread, level=settings.level, sides=settings.sides)
    return found._replace(lower=lower, upper=upper)


class _QNetwork(nn.Module):
    """`[..., D]` to `[..., outputs]`; near 0 at first."""

    sizes: tuple[int, ...]
    activation: str
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(0.01))(MLP(self.sizes, self.activation)(x))


def _network(config: FittedQConfig, target: TargetActions) -> _QNetwork:
    outputs = target.weights.shape[-1] if target.actions is None else 1
    return _QNetwork(config.sizes, config.activation, outputs)


def _rows(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _q_of(network: _QNetwork, parameters: PyTree, state: Array, action: Array) -> Array:
    """Q(s, a) `[B]`, of actions `int32[B]` or `[B, D]`."""
    if action.ndim == 1:
        return jnp.take_along_axis(network.apply(parameters, state), action[:, None], axis=-1)[:, 0]
    return network.apply(parameters, jnp.concatenate([state, action], axis=-1))[:, 0]


def _v_of(network: _QNetwork, parameters: PyTree, state: Array, target: TargetActions) -> Array:
    """V(s) `[B]`."""
    if target.actions is None:
        return jnp.sum(target.weights * network.apply(parameters, state), axis=-1)
    repeated = jnp.broadcast_to(state[:, None], (*target.weights.shape, state.shape[-1]))
    inputs = jnp.concatenate([repeated, target.actions], axis=-1)
    q = network.apply(parameters, inputs.reshape(-1, inputs.shape[-1])).reshape(target.weights.shape)
    return jnp.sum(target.weights * q, axis=-1)


def _scale_of(given: Transitions) -> Scale:
    steps = given.steps

    def step(ahead: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, mask = now
        ahead = jnp.where(mask, reward + given.discount * ahead, 0.0)
        return ahead, ahead

    columns = (steps.rewards.T, steps.mask.T)
    _, returns = jax.lax.scan(step, jnp.zeros(len(steps.rewards)), columns, reverse=True)
    weights = steps.counts[:, None] * given.used
    weights = weights / jnp.sum(weights)
    mean = jnp.sum(weights * returns.T)
    deviation = jnp.sqrt(jnp.sum(weights * (returns.T - mean) ** 2))
    varies = deviation > 1e-10 * (1.0 + jnp.abs(mean))
    return Scale(standardisation_of(given), mean, jnp.where(varies, deviation, 1.0))


def _member_counts(key: Array, given: Transitions, config: FittedQConfig) -> Array:
    """How often each trajectory counts to each member, `float64[K, n]`."""
    counts = given.steps.counts
    if not config.bootstrap:
        return jnp.broadcast_to(counts, (config.members, len(counts)))
    total = jnp.round(jnp.sum(counts))
    drawn = jax.random.multinomial(key, total, counts / jnp.sum(counts), shape=(config.members, len(counts)))
    return drawn.astype(jnp.float64)


@functools.partial(jax.jit, static_argnums=3)
def _learn(flat: FlatTransitions, config: FittedQConfig, key: Array, policies: bool) -> tuple[PyTree, Array]:
    """Parameters `[P, K, ...]` and losses `[P, K, L]`, without the first axis for one policy."""
    network = _network(config, flat.next_target)
    state, following = _rows(flat.observation), _rows(flat.next_observation)
    periods = -(-config.updates // config.target_period)
    adam = optax.adam(
        optax.linear_schedule(config.learning_rate, config.final_learning_rate, periods * config.target_period)
    )
    shape = (config.target_period, config.batch_size)

    def member(key: Array, weight: Array, next_target: TargetActions) -> tuple[PyTree, Array]:
        usable = jnp.sum(weight > 0)
        pool = jnp.argsort(weight <= 0, stable=True)
        weight = weight * usable / jnp.sum(weight)
        init_key, key = jax.random.split(key)
        size = state.shape[-1] + (0 if flat.action.ndim == 1 else flat.action.shape[-1])
        parameters = network.init(init_key, jnp.zeros((1, size)))

        def loss(parameters: PyTree, batch: tuple[Array, ...]) -> Array:
            state, action, goal, weight = batch
            return jnp.mean(weight * jnp.square(_q_of(network, parameters, state, action) - goal))

        def update(carry: tuple[PyTree, PyTree], batch: tuple[Array, ...]) -> tuple[tuple[PyTree, PyTree], Array]:
            parameters, moments = carry
            value, gradient = jax.value_and_grad(loss)(parameters, batch)
            changes, moments = adam.update(gradient, moments)
            return (optax.apply_updates(parameters, changes), moments), value

        def period(carry: tuple[PyTree, PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree, PyTree], Array]:
            parameters, moments, copy = carry
            index = pool[jax.random.randint(key, (shape[0] * shape[1],), 0, usable)]
            candidates = jax.tree.map(lambda x: x[index], next_target)
            v = _v_of(network, copy, following[index], candidates)
            goal = flat.reward[index] + flat.continues[index] * v
            columns = (state[index], flat.action[index], goal, weight[index])
            batches = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), columns)
            (parameters, moments), values = jax.lax.scan(update, (parameters, moments), batches)
            return (parameters, moments, optax.incremental_update(parameters, copy, config.target_rate)), jnp.mean(
                values
            )

        start = (parameters, adam.init(parameters), parameters)
        (parameters, _, _), losses = jax.lax.scan(period, start, jax.random.split(key, periods))
        stretch = -(-periods // _POINTS)
        losses = jnp.pad(losses, (0, -periods % stretch), constant_values=jnp.nan).reshape(-1, stretch)
        return parameters, jnp.nanmean(losses, axis=1)

    members = jax.vmap(member, in_axes=(0, 0, None))
    if policies:
        members = jax.vmap(members, in_axes=(None, None, 0))
    return members(jax.random.split(key, config.members), flat.weight, flat.next_target)


def _values_along(given: Transitions, parameters: PyTree, scale: Scale, config: FittedQConfig) -> tuple[Array, Array]:
    """Q of what was done `float64[..., K, n, T]`, and V of all states `[..., K, n, T + 1]`, 0 where not known."""
    scaled = standardised(given, scale.inputs)
    cast = jax.tree.map(lambda x: x.astype(jnp.float32), (scaled.observations, scaled.target))
    with jax.enable_x64(False):
        found = _evaluate(*cast, _float32(scaled.actions), parameters, config)
    known = jnp.any(given.target.weights > 0, axis=-1)[..., None, :, :]
    q, v = (scale.value_mean + scale.value_deviation * x.astype(jnp.float64) for x in found)
    return jnp.where(given.mask, q, 0.0), jnp.where(known, v, 0.0)


def _float32(actions: Array) -> Array:
    return actions if jnp.issubdtype(actions.dtype, jnp.integer) else actions.astype(jnp.float32)


@jax.jit
def _evaluate(
    observations: Array, target: TargetActions, actions: Array, parameters: PyTree, config: FittedQConfig
) -> tuple[Array, Array]:
    network = _network(config, target)
    n, after = observations.shape[:2]
    state = observations.reshape(n * after, -1)
    taken = jnp.concatenate([actions, jnp.zeros_like(actions[:, :1])], axis=1).reshape(n * after, *actions.shape[2:])

    def one(parameters: PyTree, target: TargetActions) -> tuple[Array, Array]:
        target = jax.tree.map(lambda x: x.reshape(n * after, *x.shape[2:]), target)

        def row(given: tuple[Array, Array, TargetActions]) -> tuple[Array, Array]:
            state, action, target = jax.tree.map(lambda x: x[None], given)
            return _q_of(network, parameters, state, action)[0], _v_of(network, parameters, state, target)[0]

        q, v = jax.lax.map(row, (state, taken, target), batch_size=min(_CHUNK, n * after))
        return q.reshape(n, after)[:, :-1], v.reshape(n, after)

    members = jax.vmap(one, in_axes=(0, None))
    if target.weights.ndim > 3:
        members = jax.vmap(members)
    return members(parameters, target)
