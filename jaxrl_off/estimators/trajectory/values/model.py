"""Model-based evaluation with networks: dynamics, rewards and ends are learned, and the target acts in the model.

A network of (s, a) gives mean and standard deviation of the change s' - s, which is taken for Gaussian with independent
entries, the mean reward, and the probability that the step terminates. It learns all of them at once, the change from
steps whose successor is known and that did not terminate, on standardised observations, actions, changes and rewards.
Members of an ensemble differ in initial weights, minibatches and the weights of trajectories. Each draws its own exponential
trajectory weights (Bayesian bootstrap; Rubin 1981), so that members differ as fits to other data do.

The target is played from the first states of the trajectories, in each member, for the horizon, which is that of the data
unless another is given (COBS stops after 25 steps, whatever the data's horizon). Successors are drawn, and a state
that is farther from the box of the data than half of its width is put back there; the mean reward is kept within the range
of logged rewards. Ends are not drawn: rewards count with the probability that the roll-out has come to them. So values
are returns within the horizon, those that the estimators in `weights.importance` judge.

Reference: Chua, Calandra, McAllister and Levine, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic
Dynamics Models", NeurIPS 2018, for the ensemble of Gaussian networks; heads for rewards and ends are as usual since.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.columns.transitions import (
    ActionValues,
    TargetActions,
    Transitions,
    action_values,
    flattened,
    standardisation_of,
    standardised,
    transitions_of,
)
from jaxrl_off.estimators.trajectory.statistics import settings_of
from jaxrl_off.estimators.trajectory.values.fitting_model import (
    FittedModelConfig,
    Policy,
    Units,
    joined,
    learn,
    roll_out,
)
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Array, Estimate, PyTree, Trajectories

_TOLERATED = 0.05  # fall of the loss in the last quarter of the updates beyond which a fit counts as unconverged


class FittedModel(NamedTuple):
    """A model that was fitted; float32, but for `weights`.

    Attributes:
        parameters: of the networks, `[K, ...]`.
        units: what they see and give.
        losses: `[K]`, mean over the last tenth of the updates.
        still_falling: `[K]`, how much the loss fell in the last quarter of the updates; see `fitting_model.still_falling`.
        weights: `float64[K, n]`, what trajectories count for in each member.
    """

    parameters: PyTree
    units: Units
    losses: Array
    still_falling: Array
    weights: Array


def fit_model(
    trajectories: Trajectories,
    key: Array,
    config: FittedModelConfig | None = None,
    *,
    num_actions: int | None = None,
    counts: Any = None,
) -> FittedModel:
    """Fit an ensemble to what trajectories show of dynamics, rewards and ends.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed. Observations are numbers, of any shape; give
            states that are counted as one-hot, or use `tabular.model_based`.
        key: consumed.
        config: None for the defaults.
        num_actions: A of discrete actions; None for continuous ones.
        counts: `float[n]`, how often each trajectory counts, or None for once. Those that count 0 are not learned from.

    Returns:
        `FittedModel`.

    Raises:
        ValueError: for invalid data, or in which no step has a successor.
    """
    config = config or FittedModelConfig()
    with float64(trajectories, counts):
        given = transitions_of(trajectories, _nothing(trajectories, num_actions), counts=counts, horizon_exit=False)
        if is_concrete(given.continues) and not bool(jnp.any(given.continues > 0)):
            raise ValueError("no step has a successor to learn dynamics from; give longer rows, or final_observation.")
        fit_key, weight_key = jax.random.split(key)
        units, columns = _prepared(given, trajectories, num_actions)
        shape = (config.members, len(given.mask))
        weights = given.steps.counts * jax.random.exponential(weight_key, shape, jnp.float64)
        row, counted = columns.pop("row"), columns.pop("counted")
        weight = (weights[:, row] * counted).astype(jnp.float32)
    with jax.enable_x64(False):
        parameters, losses, falling = learn(columns, weight, config, fit_key)
    return FittedModel(parameters, units, losses, falling, weights)


@named_options
def model_based(
    trajectories: Trajectories,
    policy: Policy,
    key: Array,
    config: FittedModelConfig | None = None,
    *,
    num_actions: int | None = None,
    rollouts: int = 10,
    horizon: int | None = None,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The target's value in a fitted model, from the first states of the trajectories.

    Args:
        trajectories: as in `fit_model`.
        policy: `(key, observation [N, *O]) -> action [N]` or `[N, D]`, or a tuple that begins with that, in the units of
            the data and as a JAX function: the target.
        key: consumed.
        config: None for the defaults.
        num_actions: as in `fit_model`.
        rollouts: from every first state, in every member.
        horizon: steps of each; None for T of the data.
        discount: gamma in [0, 1].
        counts: as in `fit_model`.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`: `trajectory.direct_method` on the model's values, whose standard error is that of first states and
        roll-outs alone, and too small, as the fit's is not in it. Diagnostics also `member_deviation`, the standard
        deviation of members' values, each with its own weights of trajectories, first states included, which is an
        estimate of the whole standard error where members are many (10 or more) and networks fit well; `outside`, the
        share of roll-outs' steps after which the state was put back; `loss`; `still_falling`, how much it fell in the last
        quarter of the updates; `unconverged`, 1 if that is more than 0.05; and `fit_in_error`, 0.

    Raises:
        ValueError: for invalid data or settings.
    """
    config = config or FittedModelConfig()
    settings_of(level, sides, interval, resamples, seed, floor)
    _check(rollouts, horizon, discount)
    fit_key, play_key = jax.random.split(key)
    model = fit_model(trajectories, fit_key, config, num_actions=num_actions, counts=counts)
    with float64(trajectories, counts):
        given = transitions_of(trajectories, _nothing(trajectories, num_actions), counts=counts)
        first = given.observations[:, 0]
        length = given.mask.shape[1] if horizon is None else horizon
        remaining = jnp.full(len(first), length, jnp.int32)
        values, outside = _played(model, config, policy, play_key, (first, remaining, None), discount, rollouts, length)
        members = jnp.sum(model.weights * values, axis=1) / jnp.sum(model.weights, axis=1)
        v = jnp.broadcast_to(jnp.mean(values, axis=0)[:, None], given.mask.shape)
    found = corrected.direct_method(
        trajectories,
        v,
        counts=counts,
        level=level,
        sides=sides,
        interval=interval,
        resamples=resamples,
        seed=seed,
        floor=floor,
    )
    with float64(trajectories, counts):
        falling = jnp.mean(model.still_falling)
        told = {
            "member_deviation": jnp.std(members, ddof=1),
            "outside": outside,
            "loss": jnp.mean(model.losses),
            "still_falling": falling,
            "unconverged": falling > _TOLERATED,
            "fit_in_error": jnp.zeros(()),
        }
        told = {name: x.astype(jnp.float64) for name, x in told.items()}
        return found._replace(diagnostics=found.diagnostics | told)


def model_values(
    model: FittedModel,
    trajectories: Trajectories,
    policy: Policy,
    key: Array,
    config: FittedModelConfig | None = None,
    *,
    rollouts: int = 1,
    discount: float = 1.0,
) -> ActionValues:
    """Action values of the target along trajectories, by roll-outs from every state: cost `n T^2 rollouts` steps, twice.

    q and v at step t are returns within the horizon, of the T - t steps that are left, and noisy; noise of mean 0 leaves
    `doubly_robust` unbiased.

    Args:
        model: of `fit_model`.
        trajectories: n of them; rewards are not looked at.
        policy: as in `model_based`.
        key: consumed.
        config: what was fitted with.
        rollouts: from every state and, for q, from every action that was done, in every member.
        discount: gamma in [0, 1].

    Returns:
        `ActionValues`, the mean over members.

    Raises:
        ValueError: for invalid data or settings.
    """
    config = config or FittedModelConfig()
    _check(rollouts, None, discount)
    num_actions = None if model.units.codes is None else len(model.units.codes)
    with float64(trajectories):
        without = trajectories._replace(rewards=jnp.zeros(jnp.shape(trajectories.rewards)))
        given = transitions_of(without, _nothing(trajectories, num_actions))
        n, after = given.observations.shape[:2]
        actions = jnp.concatenate([given.actions, jnp.zeros_like(given.actions[:, :1])], axis=1)
        state, action = (x.reshape(n * after, *x.shape[2:]) for x in (given.observations, actions))
        remaining = jnp.tile(after - 1 - jnp.arange(after, dtype=jnp.int32), n)
        known = jnp.any(given.target.weights > 0, axis=-1)
        found = []
        for first, play_key in zip((action, None), jax.random.split(key), strict=True):
            starts = state, remaining, first
            values, _ = _played(model, config, policy, play_key, starts, discount, rollouts, after - 1)
            found.append(jnp.where(known, jnp.mean(values, axis=0).reshape(n, after), 0.0))
        return action_values(found[0][:, :-1], found[1], trajectories)


def _check(rollouts: int, horizon: int | None, discount: Any) -> None:
    if rollouts < 1 or (horizon is not None and horizon < 1):
        raise ValueError(f"rollouts and horizon must be at least 1, got {rollouts} and {horizon}.")
    if is_concrete(discount) and not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}.")


def _nothing(trajectories: Trajectories, num_actions: int | None) -> TargetActions:
    """Candidates that are not looked at: the target acts in the model alone."""
    n, horizon = jnp.shape(trajectories.rewards)
    if num_actions is not None:
        return TargetActions(None, np.full((n, horizon + 1, num_actions), 1.0 / num_actions))
    size = 1 if trajectories.actions is None else math.prod(jnp.shape(trajectories.actions)[2:])
    return TargetActions(np.zeros((n, horizon + 1, 1, size)), np.ones((n, horizon + 1, 1)))


def _prepared(
    given: Transitions, trajectories: Trajectories, num_actions: int | None
) -> tuple[Units, dict[str, Array]]:
    """Units, and columns `[N, ...]` in them: what goes in, changes, rewards, ends, and which of them count."""
    inputs = standardisation_of(given)
    flat = flattened(standardised(given, inputs), jnp.float64)
    state, following = (x.reshape(len(x), -1) for x in (flat.observation, flat.next_observation))
    # the last step of a row counts also where nobody knows what it led to
    counted = given.steps.mask[flat.row, flat.step].astype(jnp.float64)
    weight = given.steps.counts[flat.row] * counted
    change, reward = following - state, flat.reward
    moved = weight * flat.continues
    units = Units(
        inputs,
        None if num_actions is None else jnp.eye(num_actions),
        _moments(change, moved),
        _moments(reward, weight),
        *_box(jnp.concatenate([state, following]), jnp.concatenate([weight, moved])),
        tuple(end(jnp.where(weight > 0, reward, other)) for end, other in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))),
        jnp.any(jnp.asarray(trajectories.terminated, bool) & given.steps.mask).astype(jnp.float64),
    )
    terminated = jnp.asarray(trajectories.terminated, bool)[flat.row, flat.step]
    columns = {
        "inputs": joined(state, flat.action, units.codes),
        "change": (change - units.change[0]) / units.change[1],
        "reward": (reward - units.reward[0]) / units.reward[1],
        "moves": flat.continues,
        "terminated": terminated.astype(jnp.float64),
        "counted": counted,
    }
    return _float32(units), {"row": flat.row} | _float32(columns)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _moments(column: Array, weight: Array) -> tuple[Array, Array]:
    """Mean and deviation; constants have deviation 1."""
    share = weight / jnp.sum(weight)
    mean = jnp.tensordot(share, column, axes=1)
    variance = jnp.tensordot(share, (column - mean) ** 2, axes=1)
    varies = variance > 1e-20 * (1.0 + mean**2)
    return mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 1.0)


def _box(states: Array, weight: Array) -> tuple[Array, Array]:
    """That of the states that count, and half of its width on each side."""
    shown = (weight > 0)[:, None]
    low = jnp.min(jnp.where(shown, states, jnp.inf), axis=0)
    high = jnp.max(jnp.where(shown, states, -jnp.inf), axis=0)
    return 1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low


def _played(
    model: FittedModel,
    config: FittedModelConfig,
    policy: Policy,
    key: Array,
    starts: tuple[Array, Array, Array | None],
    discount: Any,
    rollouts: int,
    horizon: int,
) -> tuple[Array, Array]:
    """Mean returns `float64[K, B]` of roll-outs, and the share of steps that left the box."""
    states, remaining, action = starts
    if action is not None and not jnp.issubdtype(action.dtype, jnp.integer):
        action = action.astype(jnp.float32)
    starts = states.astype(jnp.float32), remaining, action
    discount = jnp.asarray(discount, jnp.float32)
    network = model.parameters, model.units
    with jax.enable_x64(False):
        found, outside = roll_out(
            *network, config, key, starts, discount, policy=policy, rollouts=rollouts, horizon=horizon
        )
    return found.astype(jnp.float64), outside
