"""The abstract reward process behind `star`: checked inputs, weights, counts, and the value by a linear solve."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.steps import Steps, check_weights, log_weights, quotient, steps_of
from jaxrl_off.types import Array, Trajectories

NORMALISATIONS = ("self", "horvitz_thompson")
TERMINATIONS = ("joint", "factored")
_TINY = float(np.finfo(np.float64).tiny)
_LARGEST = float(np.finfo(np.float64).max)
_MOST_STATES = 40_000  # of whose pairs int32 can tell which is meant; tables of 12.8 GB


class AbstractRewardProcess(NamedTuple):
    """A Markov reward process on cells; float64.

    Attributes:
        initial: `[|Z|]`, eta.
        transition: `[|Z|, |Z|]`, P, of going on in z'; rows sum to at most 1 unless "horvitz_thompson".
        reward: `[|Z|]`, R.
        exit: `[|Z|]`, of leaving the process; 1 in cells without weight.
        visits: `[|Z|]`, N (the denominator, whatever the normalisation) as shares of its sum.
    """

    initial: Array
    transition: Array
    reward: Array
    exit: Array
    visits: Array


class Form(NamedTuple):
    """Which member of the family is meant; hashable. See `star`."""

    num_states: int
    discounted_counts: bool
    normalisation: str
    termination: str
    horizon_exit: bool


class Inputs(NamedTuple):
    """What was given, checked.

    Attributes:
        steps: columns.
        states: `int32[..., n, T]`, z_t; 0 in the padding.
        successors: `int32[..., n, T]`, z_{t+1}; |Z| where the process is left, if that is joint.
        leaves: `bool[n, T]`, after which step the process is left.
        discount: gamma.
        clip: largest ratio, or None.
        smoothing: alpha for each trajectory, or None.
    """

    steps: Steps
    states: Array
    successors: Array
    leaves: Array
    discount: Array
    clip: Array | None
    smoothing: Array | None


_EACH_ABSTRACTION = Inputs(None, 0, 0, None, None, None, None)


class Weights(NamedTuple):
    """Of steps; 0 in the padding.

    Attributes:
        now: `float64[n, T]`, g_t w_t less the factor of the cell.
        before: `float64[n, T]`, the same without the ratio of step t; None where weights normalise themselves.
        factor: `float64[|Z|]`, logarithm of the factor of each cell; -inf in cells without weight.
    """

    now: Array
    before: Array | None
    factor: Array


class Given(NamedTuple):
    """What `star` is given besides trajectories, log-probabilities and the form.

    Attributes:
        states: `int32[n, T]`, z_t; of a grid of k abstractions `[k, n, T]`.
        final_states: `int32[n]`, cells of what followed the last steps, or None; of a grid `[k, n]`.
        discount: gamma.
        counts: `float[n]`, or None for once each.
        clip: largest ratio, or None.
        smoothing: alpha.
    """

    states: Any
    final_states: Any
    discount: Any
    counts: Any
    clip: Any
    smoothing: Any


def inputs_of(
    trajectories: Trajectories, target_log_prob: Any, given: Given, form: Form, *, grid: bool = False
) -> Inputs:
    """What `star` takes, checked; to be called within `float64`.

    Args:
        trajectories: n of them.
        target_log_prob: `float[n, T]`.
        given: further columns and reals.
        form: which member of the family is meant.
        grid: whether states are those of several abstractions.

    Raises:
        ValueError: if the data or settings are invalid.
    """
    check_form(form)
    check_weights(None, given.clip)
    check_smoothing(given.smoothing)
    steps = steps_of(
        trajectories,
        target_log_prob,
        discount=given.discount,
        counts=given.counts,
        horizon_exit=form.horizon_exit,
    )
    states, successors, leaves = _cells(steps, trajectories.terminated, given, form, grid)
    reals = (None if x is None else jnp.asarray(x, jnp.float64) for x in (given.discount, given.clip))
    smoothed = not is_concrete(given.smoothing) or given.smoothing != 0
    smoothing = given.smoothing / jnp.sum(steps.counts) if smoothed else None
    return Inputs(steps, states, successors, leaves, *reals, smoothing)


def _cells(steps: Steps, terminated: Any, given: Given, form: Form, grid: bool) -> tuple[Array, Array, Array]:
    """`(z_t, z_{t+1}, after which step the process is left)`, as `Inputs` has them."""
    mask, shape = steps.mask, steps.mask.shape
    leading = np.shape(given.states)[:1] if grid else ()
    states = _checked_states("states", given.states, (*leading, *shape), mask, form.num_states)
    following = jnp.pad(mask[:, 1:], [(0, 0), (0, 1)])
    leaves = mask & ~following
    if not form.horizon_exit:
        leaves = leaves & jnp.asarray(terminated, bool)
    final = jnp.zeros((*leading, shape[0]), jnp.int32)
    if form.termination == "factored" or not form.horizon_exit:
        if given.final_states is None:
            raise ValueError(
                "termination='factored' and horizon_exit=False need final_states, the cells of what followed the "
                "last steps: abstraction(final_observation[:, None])[:, 0]."
            )
        final = _checked_states("final_states", given.final_states, final.shape, mask[:, 0], form.num_states)
    elif given.final_states is not None:
        raise ValueError(
            "final_states would be ignored: with horizon_exit=True and termination='joint' nothing follows the last step. Pass "
            "horizon_exit=False if the process goes on where trajectories were cut, or leave final_states out."
        )
    successors = jnp.where(following, jnp.roll(states, -1, axis=-1), final[..., None])
    if form.termination == "joint":
        successors = jnp.where(leaves, form.num_states, successors)
    return states, successors, leaves


def check_smoothing(smoothing: Any) -> None:
    """Refuse an alpha that is negative or not finite.

    Raises:
        ValueError: saying what was given.
    """
    if is_concrete(smoothing) and not 0.0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be a finite number of at least 0, got {smoothing}.")


def check_form(form: Form) -> None:
    """Refuse an invalid form.

    Raises:
        ValueError: saying what is allowed.
    """
    if not 1 <= form.num_states <= _MOST_STATES:
        raise ValueError(
            f"num_states must be at least 1 and at most {_MOST_STATES:,}, as a process has their square, got "
            f"{form.num_states:,}; make the abstraction coarser."
        )
    for name, allowed in (("normalisation", NORMALISATIONS), ("termination", TERMINATIONS)):
        if getattr(form, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(form, name)!r}.")
    if form.termination == "factored" and form.normalisation != "self":
        raise ValueError(
            "termination='factored' needs normalisation='self', as 1 - exit is no probability otherwise; use 'joint'."
        )


def _checked_states(name: str, given: Any, shape: tuple[int, ...], mask: Array, num_states: int) -> Array:
    library = np if is_concrete(given, mask) else jnp
    states = library.asarray(given)
    if states.shape != shape or not jnp.issubdtype(states.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers of shape {shape}, got {states.dtype} of shape {states.shape}.")
    if library is np:
        wrong = np.asarray(mask) & ((states < 0) | (states >= num_states))
        if wrong.any():
            place = tuple(map(int, np.argwhere(wrong)[0]))
            raise ValueError(
                f"{name} must be in [0, {num_states}), got {states[place]} at {place}; give that of the abstraction."
            )
    return jnp.where(mask, states, 0).astype(jnp.int32)


def log_weights_of(inputs: Inputs, window: int | None, form: Form) -> tuple[Array, Array | None]:
    """Logarithms of `g_t w_t` and, for "horvitz_thompson", of that without the ratio of step t; `float64[n, T]`."""
    steps, clip = inputs.steps, inputs.clip
    horizon = steps.mask.shape[1]
    decay = jnp.zeros(horizon)
    if form.discounted_counts:
        decay = jnp.arange(horizon) * jnp.log(jnp.maximum(inputs.discount, _TINY))
    now = log_weights(steps, window=window, clip=clip)
    if form.normalisation == "self":
        return now + decay, None
    shorter = log_weights(steps, window=window and window - 1, clip=clip)
    return now + decay, jnp.pad(shorter, [(0, 0), (1, 0)])[:, :horizon] + decay


def factor_of(inputs: Inputs, now: Array, before: Array | None, form: Form) -> Array:
    """Logarithm of the largest weight of every cell, `float64[|Z|]`."""
    both = now if before is None else jnp.maximum(now, before)
    shown = jnp.where(inputs.steps.mask, jax.lax.stop_gradient(both), -jnp.inf)
    return jax.ops.segment_max(shown.ravel(), inputs.states.ravel(), form.num_states)


def weights_of(inputs: Inputs, now: Array, before: Array | None, form: Form, factor: Array | None = None) -> Weights:
    """Weights of steps less the factor of their cell, None for that of `factor_of`."""
    mask = inputs.steps.mask
    factor = factor_of(inputs, now, before, form) if factor is None else factor
    least = jnp.where(jnp.isfinite(factor), factor, 0.0)[inputs.states]

    def scaled(log_weight: Array) -> Array:
        return jnp.where(mask, jnp.exp(jnp.where(mask, log_weight - least, 0.0)), 0.0)

    return Weights(scaled(now), None if before is None else scaled(before), factor)


class Sums(NamedTuple):
    """Sums over trajectories that a process is made from, linear in counts; all but three times e^-factor of the cell.

    Attributes:
        table: `float64[|Z|, |Z| + 1]`, weights by z_t and z_{t+1}; the last column is leaving.
        reward: `float64[|Z|]`, weights times rewards.
        before: `float64[|Z|]`, weights without the ratio of step t, or None where weights normalise themselves.
        leaving: `float64[|Z|]`, weights of steps that leave, or None where that is in the table.
        steps: `float64[|Z|]`, how many there are; without a factor.
        initial: `float64[|Z|]`, trajectories by z_0; without a factor.
        total: `float64[]`, trajectories; without a factor.
    """

    table: Array
    reward: Array
    before: Array | None
    leaving: Array | None
    steps: Array
    initial: Array
    total: Array


def sums_of(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Sums:
    """Sums where trajectories count `counts [n]`; takes memory for the data once, and for |Z|^2 numbers."""
    size, often = form.num_states, counts[:, None]

    def sums(values: Array, cells: Array, number: int = size) -> Array:
        return jax.ops.segment_sum(values.ravel(), cells.ravel(), number)

    now = often * weights.now
    table = sums(now, inputs.states * (size + 1) + inputs.successors, size * (size + 1)).reshape(size, size + 1)
    return Sums(
        table=table,
        reward=sums(now * inputs.steps.rewards, inputs.states),
        before=None if weights.before is None else sums(often * weights.before, inputs.states),
        leaving=None if form.termination == "joint" else sums(now * inputs.leaves, inputs.states),
        steps=sums(often * inputs.steps.mask, inputs.states),
        initial=sums(counts, inputs.states[:, 0]),
        total=jnp.sum(counts),
    )


def process_from(sums: Sums, factor: Array, smoothing: Array | None) -> AbstractRewardProcess:
    """The process of sums with the factors of their cells, and alpha for each trajectory."""
    going_to = sums.table[:, :-1]
    total = jnp.sum(sums.table, axis=1) if sums.before is None else sums.before
    transition = quotient(going_to, total[:, None])
    leaving = quotient(sums.table[:, -1] if sums.leaving is None else sums.leaving, total)
    if sums.leaving is not None:
        transition *= (1.0 - leaving)[:, None]
    leaving = jnp.where(total > 0, leaving, 1.0)
    if smoothing is not None:
        going_on = quotient(sums.steps, sums.steps + smoothing * sums.total)
        transition, leaving = transition * going_on[:, None], 1.0 - going_on * (1.0 - leaving)
    visits = total * jnp.exp(factor - jnp.maximum(jnp.max(factor), -_LARGEST))
    return AbstractRewardProcess(
        initial=sums.initial / sums.total,
        transition=transition,
        reward=quotient(sums.reward, total),
        exit=leaving,
        visits=quotient(visits, jnp.sum(visits)),
    )


def process_of(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> AbstractRewardProcess:
    """The process where trajectories count `counts [n]`."""
    return process_from(sums_of(counts, inputs, weights, form), weights.factor, inputs.smoothing)


def _reached_and_trapped(process: AbstractRewardProcess) -> tuple[Array, Array]:
    """Which cells the process gets into, and from which of these it never leaves; `bool[|Z|]`."""
    # sums of at most |Z| ones are exact in float32, and products with vectors many times as fast as `any` over a table
    links = (process.transition > 0).astype(jnp.float32)

    def widen(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        reached, leaving, _ = carry
        further = jnp.maximum(reached, jnp.minimum(reached @ links, 1.0))
        more = jnp.maximum(leaving, jnp.minimum(links @ leaving, 1.0))
        return further, more, jnp.any(further != reached) | jnp.any(more != leaving)

    start = (*((x > 0).astype(links.dtype) for x in (process.initial, process.exit)), jnp.array(True))
    reached, leaving, _ = jax.lax.while_loop(lambda carry: carry[2], widen, start)
    return reached > 0, (reached > 0) & ~(leaving > 0)


def _system(process: AbstractRewardProcess, discount: Array) -> tuple[Array, Array, Array]:
    """`I - gamma P` without what makes it singular needlessly, R likewise, and which cells gain reward forever.

    Cells that are not reached do not matter. Those that are never left are worth 0 if there is no reward in them.
    """
    reached, trapped = _reached_and_trapped(process)
    trapped = trapped & (discount >= 1.0)
    kept = reached & ~trapped
    matrix = jnp.eye(len(kept)) - discount * jnp.where(kept[:, None], process.transition, 0.0)
    return matrix, jnp.where(kept, process.reward, 0.0), trapped & (process.reward != 0)


def value_of(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """`eta^T (I - gamma P)^{-1} R`; infinite with the sign of what is gained forever."""
    return value_from(process_of(counts, inputs, weights, form), inputs.discount)


def value_from(process: AbstractRewardProcess, discount: Array) -> Array:
    """The value of a process, as `value_of`."""
    matrix, reward, endless = _system(process, discount)
    value = jnp.sum(process.initial * jnp.linalg.solve(matrix, reward))
    gain = jnp.sum(jnp.where(endless, process.visits * process.reward, 0.0))
    return jnp.where(jnp.any(endless), jnp.inf * jax.lax.stop_gradient(gain), value)


def squares_of(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """Sums of squared weights by cell, `float64[|Z|]`, times e^(-2 factor)."""
    now = jnp.where(counts[:, None] > 0, weights.now, 0.0)
    return jax.ops.segment_sum((counts[:, None] * jnp.square(now)).ravel(), inputs.states.ravel(), form.num_states)


def diagnostics_of(inputs: Inputs, weights: Weights, form: Form) -> dict[str, Array]:
    """What `star` says of the process beside its value."""
    counts = inputs.steps.counts
    sums = sums_of(counts, inputs, weights, form)
    squares = squares_of(counts, inputs, weights, form)
    return diagnostics_from(sums, squares, weights.factor, inputs.smoothing, inputs.discount)


def diagnostics_from(
    sums: Sums, squares: Array, factor: Array, smoothing: Array | None, discount: Array
) -> dict[str, Array]:
    """As `diagnostics_of`, from sums."""
    process = process_from(sums, factor, smoothing)
    matrix, _, endless = _system(process, discount)
    inverse = jnp.linalg.inv(matrix)
    norms = [jnp.max(jnp.sum(jnp.abs(x), axis=0)) for x in (matrix, inverse)]
    condition = jnp.where(jnp.any(endless) | ~jnp.isfinite(norms[1]), 0.0, 1.0 / (norms[0] * norms[1]))
    effective = quotient(jnp.square(jnp.sum(sums.table, axis=1)), squares)
    visited = jnp.isfinite(factor)
    smallest = jnp.min(jnp.where(visited, effective, jnp.inf))
    return {
        "condition": condition,
        "visited_states": jnp.sum(visited).astype(effective.dtype),
        "smallest_visit": jnp.where(jnp.isfinite(smallest), smallest, 0.0),
        "exit_zero": jnp.sum(_reached_and_trapped(process)[1]).astype(effective.dtype),
        "unsupported_mass": jnp.sum(process.initial * (inverse @ ~visited)),
    }


def grid_weights(inputs: Inputs, windows: tuple[int | None, ...], form: Form) -> Weights:
    """Weights `[k, len(windows), ...]` of the grid of `star_values`."""
    logs = [log_weights_of(inputs, window, form) for window in windows]
    now, before = (None if x[0] is None else jnp.stack(x) for x in zip(*logs, strict=True))

    def of_abstraction(inputs: Inputs) -> Weights:
        return jax.vmap(lambda now, before: weights_of(inputs, now, before, form))(now, before)

    return jax.vmap(of_abstraction, in_axes=(_EACH_ABSTRACTION,))(inputs)


def grid_values(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """Values `[k, len(windows)]` of the grid of `star_values` where trajectories count `counts [n]`."""

    def of_abstraction(inputs: Inputs, weights: Weights) -> Array:
        return jax.vmap(lambda weights: value_of(counts, inputs, weights, form))(weights)

    return jax.vmap(of_abstraction, in_axes=(_EACH_ABSTRACTION, 0))(inputs, weights)
