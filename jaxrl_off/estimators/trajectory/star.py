"""STAR: the value of a policy from an abstract reward process, a small Markov reward process fitted to weighted data.

An abstraction phi puts every state into one of |Z| cells, `z_t = phi(s_t)` (see `abstractions`). With `g_t = gamma^t`,
w_t the product of the c most recent ratios `pi_e(a|s) / pi_b(a|s)` up to step t (c = 0: none, so 1; None: all), and
sums over all steps that were made, of trajectories that count c_i times, the process is

    N(z)     = sum c_i g_t w_t 1[z_t = z]
    P(z, z') = sum c_i g_t w_t 1[z_t = z, z_{t+1} = z'] / N(z)      R(z) = sum c_i g_t w_t r_t 1[z_t = z] / N(z)
    eta(z)   = sum c_i 1[z_0 = z] / sum c_i                          exit(z) = 1 - sum_{z'} P(z, z')

and the value `eta^T (I - gamma P)^{-1} R`. A cell without weight has rows of 0. With c = None it is consistent for
*every* phi: the discounted visits d of the target policy obey `d = eta + gamma P^T d`, whether or not cells are Markov.
With a finite c it is where phi keeps what the future depends on; c and phi trade bias for variance. Known estimators
are settings of `star`:

| setting | what comes out |
|---|---|
| ratios of 1, or window=0 | the mean return, for every phi |
| window of the horizon or more | window=None |
| normalisation="horizvitz_thompson", window=None | per-decision importance sampling, for every phi |
| phi = t, trajectories padded to the horizon by steps without reward, window=None | `cwpdis` |
| the same, discount=1, all reward on the last step | `wis`; with "horvitz_thompson" `trajectory_is` |
| one cell, window=None, discount=1 | `pdis` divided by the mean of the final weights |
| phi = s, window=1, discounted_counts=False, estimated behaviour policy | tabular model, fitted Q evaluation, DICE |
| phi = (s, t), window=1, "horvitz_thompson" | marginalised importance sampling (Xie, Ma and Wang 2019) |

Reference: Chaudhari, Deshpande, da Silva and Thomas, "Abstract Reward Processes: Leveraging State Abstraction for
Consistent Off-Policy Evaluation", NeurIPS 2024, arXiv 2410.02172. Its body was not at hand: the formulas were derived
anew from the authors' code and are tested against an independent implementation. Where this departs from the code:

* A step that ends a trajectory leaves the process (`termination="joint"`). The code clusters the absorbing state, too,
  and has `P (1 - exit)` in the place of P ("factored"), not consistent unless leaving and z' are independent.
* A step at which a trajectory was cut leaves the process, too, unless `horizon_exit=False`, which the code has.
* Counts are discounted, without which consistency for every phi is lost; the code has plain ones, for discounts of 1.
* window=0 is no correction; the code takes it for the full product.
* Weights are compared within a cell alone, so that each cell has its own factor, which makes its largest weight 1: long
  horizons neither overflow nor empty the cells of small weights. The code's quotients of cumulative products are 0 / 0
  after a ratio of 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from jaxrl_off.estimators.trajectory import common
from jaxrl_off.estimators.trajectory.common import Settings, Steps
from jaxrl_off.types import Array, Estimate, Trajectories

NORMALISATIONS = ("self", "horvitz_thompson")
TERMINATIONS = ("joint", "factored")
_TINY = float(np.finfo(np.float64).tiny)
_LARGEST = float(np.finfo(np.float64).max)


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


def star(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    *,
    window: int | None = None,
    **keywords: Any,
) -> Estimate:
    """`eta^T (I - gamma P)^{-1} R` of an abstract reward process; see the module.

    Args:
        trajectories: n of them, with behaviour log-probabilities.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t); -inf where the target never acts so.
        states: `int32[n, T]`, z_t in [0, num_states); padding is not looked at. phi must not have been chosen by the
            rewards of the same trajectories, or errors and intervals are too small.
        num_states: |Z|.
        window: c, product of that many most recent ratios; 0 for none, None for all.
        **keywords: `discounted_counts` (True), whether gamma^t is in the counts; `normalisation` ("self"), or
            "horvitz_thompson", where N has the weights without the ratio of step t and rows of P may sum to more than
            1; `termination` ("joint"), or "factored"; `horizon_exit` (True), whether the process is left where
            trajectories were cut; `final_states`, `int32[n]`, the cells of what followed the last steps, where
            trajectories that were cut go on if `horizon_exit` is False, needed for that and for "factored"; `smoothing`
            (0.0), alpha: a cell of m steps is given alpha more that leave, so that P is multiplied by `m / (m +
            alpha)`, of use where no step that was seen leaves; and `discount`, `clip`, `counts`, `level` and the
            further ones of `weighted.pdis`.

    Returns:
        An `Estimate`, NaN (and `finite` 0) where discount is 1 and the process gains reward forever. Further
        diagnostics: `condition`, the reciprocal condition number of I - gamma P in the 1-norm (0: singular);
        `visited_states`, cells with weight; `smallest_visit`, effective steps (Kish) of the one that has the fewest;
        `exit_zero`, how many cells the process gets into and never leaves; `unsupported_mass`, the discounted chance of
        getting into a cell without weight.

    Raises:
        ValueError: for data or settings that cannot be meant.

    Example:
        >>> from jaxrl_off.types import Trajectories
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> round(float(star(data, np.log([[0.8, 0.25]]), np.array([[0, 1]]), 2, discount=0.5).value), 12)
        1.5
    """
    checked = common.settings_of(**{name: keywords.pop(name) for name in Settings._fields if name in keywords})
    with common.float64(trajectories, target_log_prob, states, keywords):
        inputs, form = inputs_of(trajectories, target_log_prob, states, num_states, **keywords)
        size = common.resample_size(keywords.get("counts"))
        return _run(inputs, window=checked_windows([window])[0], form=form, settings=checked, size=size)


def abstract_reward_process(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    *,
    window: int | None = None,
    **keywords: Any,
) -> AbstractRewardProcess:
    """The process whose value `star` gives, to be looked at.

    Args and Raises: as `star`, but for `level` and what comes with it.

    Returns:
        An `AbstractRewardProcess`. With "factored", `transition` is `(1 - exit) P`.
    """
    with common.float64(trajectories, target_log_prob, states, keywords):
        inputs, form = inputs_of(trajectories, target_log_prob, states, num_states, **keywords)
        return _run_process(inputs, window=checked_windows([window])[0], form=form)


def star_values(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    windows: Sequence[int | None],
    **keywords: Any,
) -> Array:
    """Values alone, of a grid of abstractions and windows in one compiled program; `jax.vmap` it over data sets.

    Args:
        trajectories: as in `star`.
        target_log_prob: as there.
        states: `int32[k, n, T]`, of k abstractions.
        num_states: the largest |Z| of them; cells beyond an abstraction's own are empty.
        windows: c of each, or None.
        **keywords: as there, but for `level` and what comes with it; `final_states` are `int32[k, n]`.

    Returns:
        `float64[k, len(windows)]`; infinite where discount is 1 and the process gains reward forever.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    with common.float64(trajectories, target_log_prob, states, keywords):
        inputs, form = inputs_of(trajectories, target_log_prob, states, num_states, grid=True, **keywords)
        return _run_grid(inputs, windows=checked_windows(windows), form=form)


def checked_windows(windows: Sequence[int | None]) -> tuple[int | None, ...]:
    """Windows as a tuple.

    Raises:
        ValueError: for none, or negative ones.
    """
    if not windows:
        raise ValueError("windows must hold at least one window, such as (1, 2, None).")
    for window in windows:
        common.check_weights(window, None)
    return tuple(windows)


def inputs_of(
    trajectories: Trajectories,
    target_log_prob: Any,
    states: Any,
    num_states: int,
    *,
    discount: Any = 1.0,
    clip: Any = None,
    discounted_counts: bool = True,
    normalisation: str = "self",
    termination: str = "joint",
    horizon_exit: bool = True,
    final_states: Any = None,
    smoothing: Any = 0.0,
    counts: Any = None,
    grid: bool = False,
) -> tuple[Inputs, Form]:
    """What `star` takes, checked; to be called within `common.float64`.

    Args:
        grid: whether states are those of several abstractions, `int32[k, n, T]`, and final states `int32[k, n]`; all
            else as in `star`.

    Raises:
        ValueError: for data or settings that cannot be meant.
    """
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    _check_form(form)
    common.check_weights(None, clip)
    steady = common.is_concrete(smoothing)
    if steady and not 0.0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be a finite number of at least 0, got {smoothing}.")
    steps = common.steps_of(trajectories, target_log_prob, discount=discount, counts=counts)
    if steady and smoothing == 0:
        smoothing = None
    else:
        smoothing = smoothing / jnp.sum(steps.counts)
    mask, shape = steps.mask, steps.mask.shape
    leading = np.shape(states)[:1] if grid else ()
    states = _checked_states("states", states, (*leading, *shape), mask, num_states)
    following = jnp.pad(mask[:, 1:], [(0, 0), (0, 1)])
    leaves = mask & ~following
    if not horizon_exit:
        terminated = jnp.asarray(trajectories.terminated, bool)
        if terminated.shape != shape:
            raise ValueError(f"terminated has shape {terminated.shape}, rewards {shape}; every step needs one of each.")
        leaves = leaves & terminated
    final = jnp.zeros((*leading, shape[0]), jnp.int32)
    if termination == "factored" or not horizon_exit:
        if final_states is None:
            raise ValueError(
                "termination='factored' and horizon_exit=False need final_states, the cells of what followed the "
                "last steps: abstraction(final_observation[:, None])[:, 0]."
            )
        final = _checked_states("final_states", final_states, final.shape, mask[:, 0], num_states)
    successors = jnp.where(following, jnp.roll(states, -1, axis=-1), final[..., None])
    if termination == "joint":
        successors = jnp.where(leaves, num_states, successors)
    discount, clip = (None if x is None else jnp.asarray(x, jnp.float64) for x in (discount, clip))
    return Inputs(steps, states, successors, leaves, discount, clip, smoothing), form


def _check_form(form: Form) -> None:
    if form.num_states < 1:
        raise ValueError(f"num_states must be at least 1, got {form.num_states}.")
    for name, allowed in (("normalisation", NORMALISATIONS), ("termination", TERMINATIONS)):
        if getattr(form, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(form, name)!r}.")
    if form.termination == "factored" and form.normalisation != "self":
        raise ValueError(
            "termination='factored' needs normalisation='self', as 1 - exit is no probability otherwise; use 'joint'."
        )


def _checked_states(name: str, given: Any, shape: tuple[int, ...], mask: Array, num_states: int) -> Array:
    library = np if common.is_concrete(given, mask) else jnp
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


def _log_weights(inputs: Inputs, window: int | None, form: Form) -> tuple[Array, Array | None]:
    """Logarithms of `g_t w_t` and, for "horvitz_thompson", of that without the ratio of step t; `float64[n, T]`."""
    steps, clip = inputs.steps, inputs.clip
    horizon = steps.mask.shape[1]
    decay = jnp.zeros(horizon)
    if form.discounted_counts:
        decay = jnp.arange(horizon) * jnp.log(jnp.maximum(inputs.discount, _TINY))
    now = common.log_weights(steps, window=window, clip=clip)
    if form.normalisation == "self":
        return now + decay, None
    shorter = common.log_weights(steps, window=window and window - 1, clip=clip)
    return now + decay, jnp.pad(shorter, [(0, 0), (1, 0)])[:, :horizon] + decay


def _weights(inputs: Inputs, now: Array, before: Array | None, form: Form) -> Weights:
    """Weights of steps, the largest of every cell being 1."""
    mask, states = inputs.steps.mask, inputs.states
    both = now if before is None else jnp.maximum(now, before)
    shown = jnp.where(mask, jax.lax.stop_gradient(both), -jnp.inf)
    factor = jax.ops.segment_max(shown.ravel(), states.ravel(), form.num_states)
    least = jnp.where(jnp.isfinite(factor), factor, 0.0)[states]

    def scaled(log_weight: Array) -> Array:
        return jnp.where(mask, jnp.exp(jnp.where(mask, log_weight - least, 0.0)), 0.0)

    return Weights(scaled(now), None if before is None else scaled(before), factor)


def _process(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> AbstractRewardProcess:
    """The process where trajectories count `counts [n]`; takes memory for the data once, and for |Z|^2 numbers."""
    size, often = form.num_states, counts[:, None]

    def sums(values: Array, cells: Array, number: int = size) -> Array:
        return jax.ops.segment_sum(values.ravel(), cells.ravel(), number)

    now = often * weights.now
    table = sums(now, inputs.states * (size + 1) + inputs.successors, size * (size + 1)).reshape(size, size + 1)
    total = jnp.sum(table, axis=1) if weights.before is None else sums(often * weights.before, inputs.states)
    transition = common.ratio(table[:, :size], total[:, None])
    if form.termination == "joint":
        leaving = common.ratio(table[:, size], total)
    else:
        leaving = common.ratio(sums(now * inputs.leaves, inputs.states), total)
        transition *= (1.0 - leaving)[:, None]
    leaving = jnp.where(total > 0, leaving, 1.0)
    if inputs.smoothing is not None:
        steps = sums(often * inputs.steps.mask, inputs.states)
        going_on = common.ratio(steps, steps + inputs.smoothing * jnp.sum(counts))
        transition, leaving = transition * going_on[:, None], 1.0 - going_on * (1.0 - leaving)
    visits = total * jnp.exp(weights.factor - jnp.maximum(jnp.max(weights.factor), -_LARGEST))
    return AbstractRewardProcess(
        initial=sums(counts, inputs.states[:, 0]) / jnp.sum(counts),
        transition=transition,
        reward=common.ratio(sums(now * inputs.steps.rewards, inputs.states), total),
        exit=leaving,
        visits=common.ratio(visits, jnp.sum(visits)),
    )


def _reached_and_trapped(process: AbstractRewardProcess) -> tuple[Array, Array]:
    """Which cells the process gets into, and from which of these it never leaves; `bool[|Z|]`."""
    links = process.transition > 0

    def widen(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        reached, leaving, _ = carry
        further = reached | jnp.any(links & reached[:, None], axis=0)
        more = leaving | jnp.any(links & leaving, axis=1)
        return further, more, jnp.any(further != reached) | jnp.any(more != leaving)

    start = (process.initial > 0, process.exit > 0, jnp.array(True))
    reached, leaving, _ = jax.lax.while_loop(lambda carry: carry[2], widen, start)
    return reached, reached & ~leaving


def _system(process: AbstractRewardProcess, discount: Array) -> tuple[Array, Array, Array]:
    """`I - gamma P` without what makes it singular needlessly, R likewise, and which cells gain reward forever.

    Cells that are not reached do not matter. Those that are never left are worth 0 if there is no reward in them.
    """
    reached, trapped = _reached_and_trapped(process)
    trapped = trapped & (discount >= 1.0)
    kept = reached & ~trapped
    matrix = jnp.eye(len(kept)) - discount * jnp.where(kept[:, None], process.transition, 0.0)
    return matrix, jnp.where(kept, process.reward, 0.0), trapped & (process.reward != 0)


def _value_of(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """`eta^T (I - gamma P)^{-1} R`; infinite with the sign of what is gained forever."""
    process = _process(counts, inputs, weights, form)
    matrix, reward, endless = _system(process, inputs.discount)
    value = jnp.sum(process.initial * jnp.linalg.solve(matrix, reward))
    gain = jnp.sum(jnp.where(endless, process.visits * process.reward, 0.0))
    return jnp.where(jnp.any(endless), jnp.inf * jax.lax.stop_gradient(gain), value)


def _diagnostics(inputs: Inputs, weights: Weights, form: Form) -> dict[str, Array]:
    counts = inputs.steps.counts
    process = _process(counts, inputs, weights, form)
    matrix, _, endless = _system(process, inputs.discount)
    inverse = jnp.linalg.inv(matrix)
    norms = [jnp.max(jnp.sum(jnp.abs(x), axis=0)) for x in (matrix, inverse)]
    condition = jnp.where(jnp.any(endless) | ~jnp.isfinite(norms[1]), 0.0, 1.0 / (norms[0] * norms[1]))
    now = jnp.where(counts[:, None] > 0, weights.now, 0.0)
    moments = [
        jax.ops.segment_sum((counts[:, None] * x).ravel(), inputs.states.ravel(), form.num_states)
        for x in (now, jnp.square(now))
    ]
    effective = common.ratio(jnp.square(moments[0]), moments[1])
    visited = jnp.isfinite(weights.factor)
    smallest = jnp.min(jnp.where(visited, effective, jnp.inf))
    return {
        "condition": condition,
        "visited_states": jnp.sum(visited).astype(counts.dtype),
        "smallest_visit": jnp.where(jnp.isfinite(smallest), smallest, 0.0),
        "exit_zero": jnp.sum(_reached_and_trapped(process)[1]).astype(counts.dtype),
        "unsupported_mass": jnp.sum(process.initial * (inverse @ ~visited)),
    }


def grid_weights(inputs: Inputs, windows: tuple[int | None, ...], form: Form) -> Weights:
    """Weights `[k, len(windows), ...]` of the grid of `star_values`."""
    logs = [_log_weights(inputs, window, form) for window in windows]
    now, before = (None if x[0] is None else jnp.stack(x) for x in zip(*logs, strict=True))

    def of_abstraction(inputs: Inputs) -> Weights:
        return jax.vmap(lambda now, before: _weights(inputs, now, before, form))(now, before)

    return jax.vmap(of_abstraction, in_axes=(_EACH_ABSTRACTION,))(inputs)


def grid_values(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """Values `[k, len(windows)]` of the grid of `star_values` where trajectories count `counts [n]`."""

    def of_abstraction(inputs: Inputs, weights: Weights) -> Array:
        return jax.vmap(lambda weights: _value_of(counts, inputs, weights, form))(weights)

    return jax.vmap(of_abstraction, in_axes=(_EACH_ABSTRACTION, 0))(inputs, weights)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _one_at_a_time(counts: Array, inputs: Inputs, weights: Weights, form: Form) -> Array:
    """`_value_of`; under `jax.vmap` over resamples it takes memory for one, and on a CPU a third of the time."""
    return sequential_vmap(lambda *arguments: _value_of(*arguments, form))(counts, inputs, weights)


@_one_at_a_time.defjvp
def _derivative(form: Form, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    return jax.jvp(lambda *arguments: _value_of(*arguments, form), primals, tangents)


@functools.partial(jax.jit, static_argnames=("window", "form", "settings", "size"))
def _run(inputs: Inputs, *, window: int | None, form: Form, settings: Settings, size: int | None) -> Estimate:
    weights = _weights(inputs, *_log_weights(inputs, window, form), form)
    final = common.log_weights(inputs.steps, window=window, clip=inputs.clip)[:, -1]

    def statistic(counts: Array) -> Array:
        return _one_at_a_time(counts, inputs, weights, form)

    found = _diagnostics(inputs, weights, form)
    return common.estimate_statistic(statistic, inputs.steps, final, settings, diagnostics=found, size=size)


@functools.partial(jax.jit, static_argnames=("window", "form"))
def _run_process(inputs: Inputs, *, window: int | None, form: Form) -> AbstractRewardProcess:
    weights = _weights(inputs, *_log_weights(inputs, window, form), form)
    return _process(inputs.steps.counts, inputs, weights, form)


@functools.partial(jax.jit, static_argnames=("windows", "form"))
def _run_grid(inputs: Inputs, *, windows: tuple[int | None, ...], form: Form) -> Array:
    return grid_values(inputs.steps.counts, inputs, grid_weights(inputs, windows, form), form)
