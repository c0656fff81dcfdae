"""Estimates from more trajectories than memory holds: chunks go in, moments stay, and an `Estimate` comes out.

    stream = streaming("wis", horizon=1000, size=512, discount=0.99)
    state = stream.init()
    for chunk in iterate_hdf5(path, 512):
        state = stream.update(state, chunk, target_log_prob=log_prob_of(chunk))
    estimate = stream.finish(state, level=0.95)

Estimators that are `V = f(E[x])` (those of `weights.forms`; and STAR, whose counts are sums over trajectories) need nothing of
the data but N, the mean of x and its co-moments, from which the delta method has `N Var V = f'^T Cov(x) f'`. They give what
`importance`, `doubly_robust` and `star` give of all trajectories at once, standard errors and Student t intervals too, up to
rounding: 1e-12, unless the returns vary by much less than their mean. Co-moments are merged as by Chan, Golub and LeVeque
(1979), and each column has its running largest weight for a scale, so that neither the number of trajectories nor the horizon
matters. The bootstrap, and what needs all data at once (MAGIC, fits of Q), are not here.

Memory is that of a chunk and of d^2 numbers, d the columns: 1 for means, 2 T for `cwpdis`, 3 T for `weighted_doubly_robust`,
and |Z| (|Z| + 5) for STAR, which limits it to some 50 cells. What several machines have seen is joined by `merge`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl_off.estimators.common import did_you_mean, float64, is_concrete, named_options
from jaxrl_off.estimators.trajectory.reward_processes import process as reward_process
from jaxrl_off.estimators.trajectory.reward_processes.process import Form, Given, Inputs, Sums, Weights
from jaxrl_off.estimators.trajectory.statistics import Settings, settings_of, without_overlap
from jaxrl_off.estimators.trajectory.steps import (
    Steps,
    check_weights,
    column_of,
    described_weights,
    log_weights,
    quotient,
    ratio_excess,
    steps_of,
    weights_of,
    z_score,
)
from jaxrl_off.estimators.trajectory.weights import forms
from jaxrl_off.estimators.trajectory.weights.corrections import corrected_columns
from jaxrl_off.ops import intervals
from jaxrl_off.types import Array, Estimate, Trajectories

INTERVALS = ("student_t", "normal")
_RATIOS, _CORRECTIONS = ("target_log_prob",), ("target_log_prob", "q", "v")
# form, what it takes, and its columns: how many, and how many more a step
_FORMS = {
    "naive": (forms.MEAN_RETURN, (), (1, 0)),
    "trajectory_is": (forms.MEAN_RETURN, _RATIOS, (1, 0)),
    "pdis": (forms.MEAN_WEIGHTED_REWARD, _RATIOS, (1, 0)),
    "wis": (forms.WEIGHTED_MEAN_RETURN, _RATIOS, (2, 0)),
    "cwpdis": (forms.WEIGHTED_MEAN_REWARDS, _RATIOS, (0, 2)),
    "doubly_robust": (forms.CORRECTED, _CORRECTIONS, (2, 0)),
    "weighted_doubly_robust": (forms.WEIGHTED_CORRECTED, _CORRECTIONS, (0, 3)),
}
_COMMON = 7  # columns that diagnostics need of all
_OF_ROWS = ("counts", "final", "final_states", "behaviour_estimated")  # without an axis of T


class Moments(NamedTuple):
    """What is kept of the trajectories so far; float64.

    Attributes:
        total: `[]`, N, their number.
        scale: `[d]`, logarithm of the factor that columns are divided by; -inf where nothing was seen.
        mean: `[d]`, of the columns x.
        comoment: `[d, d]`, `sum (x - mean)(x - mean)^T`.
    """

    total: Array
    scale: Array
    mean: Array
    comoment: Array


class Stream(NamedTuple):
    """Pure functions; `update` is one compiled program for chunks of every size up to the largest.

    Attributes:
        init: `() -> Moments` of nothing.
        update: `(Moments, Trajectories, counts=None, target_log_prob=None, q=None, v=None, final=None, states=None,
            final_states=None) -> Moments`, with the columns that the estimator needs, and no others.
        finish: `(Moments, level=None, sides="two", interval="student_t" or "normal", floor=10.0) -> Estimate`.
    """

    init: Callable[[], Moments]
    update: Callable[..., Moments]
    finish: Callable[..., Estimate]


class _Source(NamedTuple):
    """Where columns come from, and what is made of their means.

    Attributes:
        width: d.
        horizon_exit: the quantity that is estimated; see `doubly_robust`.
        prepare: `(trajectories, counts, given) -> prepared`, checked on the host.
        measure: `prepared -> (scale [d], x [n, d], logarithm of the final weights [n], steps)`.
        value: `(mean [d], scale [d], N) -> V`.
        diagnostics: `(mean [d], scale [d], N) -> further ones`.
        correction: `(mean [d], scale [d], N) -> []`, by how much the data change `mean_i v_0`, or None.
    """

    width: int
    horizon_exit: bool
    prepare: Callable[[Trajectories, Any, dict[str, Any]], Any]
    measure: Callable[[Any], tuple[Array, Array, Array, Steps]]
    value: Callable[[Array, Array, Array], Array]
    diagnostics: Callable[[Array, Array, Array], dict[str, Array]]
    correction: Callable[[Array, Array, Array], Array] | None = None


@named_options
def streaming(
    estimator: str,
    *,
    horizon: int,
    size: int,
    discount: float = 1.0,
    window: int | None = None,
    clip: float | None = None,
    horizon_exit: bool = True,
) -> Stream:
    """A stream of one of the estimators that are smooth functions of means.

    Args:
        estimator: "naive", "trajectory_is", "pdis", "wis", "cwpdis" (functions of `importance`), "doubly_robust" or
            "weighted_doubly_robust" (Q has to be fitted to other trajectories).
        horizon: T, the most steps that a trajectory of a chunk may have; shorter chunks are padded.
        size: the most trajectories of a chunk.
        discount: gamma in [0, 1].
        window: weights are products of that many most recent ratios: 0 for weights of 1, None for all ratios.
        clip: largest ratio of a step; None for no bound.
        horizon_exit: for the doubly robust estimators; with False chunks come with `final`, the value of what followed the last
            steps. See `doubly_robust`.

    Returns:
        A `Stream`.

    Raises:
        ValueError: if the settings are invalid; its functions, if the data are, or chunks are too large.

    Example:
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> chunk = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> stream = streaming("pdis", horizon=2, size=4, discount=0.5)
        >>> state = stream.update(stream.init(), chunk, target_log_prob=np.log([[0.8, 0.25]]))
        >>> float(stream.finish(stream.update(state, chunk, target_log_prob=half)).value)
        1.75
    """
    if estimator not in _FORMS:
        raise ValueError(
            f"estimator must be one of {', '.join(_FORMS)}, got {estimator!r}.{did_you_mean(estimator, _FORMS)} For STAR see "
            "`star_streaming`."
        )
    form, needs, (fixed, each) = _FORMS[estimator]
    check_weights(window, clip)
    if not horizon_exit and form.correction is None:
        raise ValueError(
            f"{estimator} can judge only returns within the horizon; horizon_exit=False is for doubly_robust and "
            "weighted_doubly_robust."
        )
    if not horizon_exit:
        needs = (*needs, "final")
    longest = horizon + (not horizon_exit)

    def prepare(trajectories: Trajectories, counts: Any, given: dict[str, Any]) -> Any:
        log_prob = given.get("target_log_prob")
        steps = steps_of(trajectories, log_prob, discount=discount, counts=counts, horizon_exit=horizon_exit)
        q, v = (column_of(name, given[name], steps) if name in given else None for name in ("q", "v"))
        return steps, q, v, given.get("final")

    def measure(prepared: Any) -> Any:
        steps, q, v, final = prepared
        log_weight = log_weights(steps, window=window, clip=clip)
        columns, last = (steps, log_weight, q, v), log_weight[:, -1]
        if q is not None:
            columns = corrected_columns(steps, log_weight, q, v, final, horizon_exit=horizon_exit, discount=discount)
        scale = form.scale(*columns[:2])
        return scale, form.columns(*columns[:2], forms.finite(scale), *columns[2:]), last, steps

    def of_means(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
        return lambda mean, scale, total: function(mean, jnp.asarray(discount, jnp.float64) ** jnp.arange(longest))

    correction = None if form.correction is None else of_means(form.correction)
    width = fixed + each * longest
    source = _Source(width, horizon_exit, prepare, measure, of_means(form.value), lambda *means: {}, correction)
    return _stream(source, needs, (), horizon, size)


@named_options
def star_streaming(
    num_states: int,
    *,
    horizon: int,
    size: int,
    discount: float = 1.0,
    window: int | None = None,
    clip: float | None = None,
    discounted_counts: bool = True,
    normalisation: str = "self",
    termination: str = "joint",
    horizon_exit: bool = True,
    smoothing: float = 0.0,
) -> Stream:
    """A stream of `star.star`, whose chunks come with `states` and, where `star` needs them, `final_states`.

    Args:
        num_states: |Z|.
        horizon: as in `streaming`.
        size: as there.
        discount: gamma in [0, 1].
        window: c, product of that many most recent ratios; 0 for none, None for all.
        clip: largest ratio of a step; None for no bound.
        discounted_counts: whether gamma^t is in the counts.
        normalisation: "self" or "horvitz_thompson"; see `star`.
        termination: "joint" or "factored"; see `star`.
        horizon_exit: whether the process is left where trajectories were cut.
        smoothing: alpha; see `star`.

    Returns:
        A `Stream`.

    Raises:
        ValueError: as `streaming`.
    """
    check_weights(window, clip)
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    reward_process.check_form(form)
    reward_process.check_smoothing(smoothing)

    def pieces(table: Any, scaled: Any, plain: Any, squares: Any) -> tuple[Sums, Any]:
        before = scaled if normalisation == "horvitz_thompson" else None
        leaving = scaled if termination == "factored" else None
        return Sums(table, scaled, before, leaving, plain, plain, plain[0]), squares

    with jax.enable_x64(True):
        cells = jnp.zeros(num_states)
        flat, unravel = ravel_pytree(pieces(jnp.zeros((num_states, num_states + 1)), cells, cells, cells))

    def prepare(trajectories: Trajectories, counts: Any, given: dict[str, Any]) -> Any:
        columns = Given(given["states"], given.get("final_states"), discount, counts, clip, 0.0)
        return reward_process.inputs_of(trajectories, given["target_log_prob"], columns, form)

    def measure(inputs: Inputs) -> Any:
        logs = reward_process.log_weights_of(inputs, window, form)
        factor = reward_process.factor_of(inputs, *logs, form)
        weights = reward_process.weights_of(inputs, *logs, form, factor)

        def columns(steps: Steps, cells: tuple[Array, ...], weights: tuple[Array, ...]) -> Array:
            alone, cells, weights = jax.tree.map(lambda x: x[None], (steps, cells, weights))
            one = Inputs(alone, *cells, inputs.discount, inputs.clip, None)
            arguments = (jnp.ones(1), one, Weights(*weights, factor), form)
            return ravel_pytree((reward_process.sums_of(*arguments), reward_process.squares_of(*arguments)))[0]

        cells = (inputs.states, inputs.successors, inputs.leaves)
        rows = jax.vmap(columns)(
            inputs.steps._replace(discounts=None, horizon_exit=None), cells, (weights.now, weights.before)
        )
        table = jnp.tile(factor[:, None], num_states + 1)
        scale = ravel_pytree(pieces(table, factor, jnp.zeros(num_states), 2.0 * factor))[0]
        return scale, rows, log_weights(inputs.steps, window=window, clip=inputs.clip)[:, -1], inputs.steps

    def parts(mean: Array, scale: Array, total: Array) -> tuple[Sums, Array, Array, Array | None]:
        sums, squares = unravel(mean)
        return sums, squares / total, unravel(scale)[0].reward, smoothing / total if smoothing else None

    def value(mean: Array, scale: Array, total: Array) -> Array:
        sums, _, factor, alpha = parts(mean, scale, total)
        process = reward_process.process_from(sums, factor, alpha)
        return reward_process.value_from(process, jnp.asarray(discount, jnp.float64))

    def diagnostics(mean: Array, scale: Array, total: Array) -> dict[str, Array]:
        return reward_process.diagnostics_from(*parts(mean, scale, total), jnp.asarray(discount, jnp.float64))

    source = _Source(len(flat), horizon_exit, prepare, measure, value, diagnostics)
    return _stream(source, ("target_log_prob", "states"), ("final_states",), horizon, size)


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of the trajectories of both, of one stream."""
    with float64(one, other):
        return _merged(one, other)


@jax.jit
def _merged(one: Moments, other: Moments) -> Moments:
    scale, total = jnp.maximum(one.scale, other.scale), one.total + other.total
    (mean, comoment), (mean_2, comoment_2) = (_rescaled(x, scale) for x in (one, other))
    share, apart = quotient(other.total, total), mean_2 - mean
    added = jnp.outer(apart, apart) * (one.total * share)
    return Moments(total, scale, mean + apart * share, comoment + comoment_2 + added)


def _rescaled(moments: Moments, scale: Array) -> tuple[Array, Array]:
    factor = jnp.exp(jnp.where(jnp.isfinite(scale), moments.scale - forms.finite(scale), 0.0))
    return factor * moments.mean, factor[:, None] * moments.comoment * factor


def _measured(scale: Array, columns: Array, counts: Array) -> Moments:
    total = jnp.sum(counts)
    mean = counts @ columns / total
    centred = (columns - mean) * jnp.sqrt(counts)[:, None]
    return Moments(total, scale, mean, centred.T @ centred)


def _stream(source: _Source, needs: tuple[str, ...], may: tuple[str, ...], horizon: int, size: int) -> Stream:
    if horizon < 1 or size < 1:
        raise ValueError(f"horizon and size must be at least 1, got {horizon} and {size}.")
    width = source.width + _COMMON

    @jax.jit
    def add(state: Moments, prepared: Any) -> Moments:
        scale, columns, final, steps = source.measure(prepared)
        largest = jnp.max(jnp.where(steps.counts > 0, final, -jnp.inf))
        share = jnp.exp(jnp.where(steps.counts > 0, final - forms.finite(largest), -jnp.inf))
        lengths = jnp.sum(steps.mask, axis=1).astype(columns.dtype)
        rest = (weights_of(final), ratio_excess(steps), lengths, steps.estimated, steps.cut, share, jnp.square(share))
        scale = jnp.concatenate([scale, jnp.zeros(5), largest * jnp.array([1.0, 2.0])])
        return _merged(
            state, _measured(scale, jnp.concatenate([columns, jnp.stack(rest, axis=1)], axis=1), steps.counts)
        )

    def init() -> Moments:
        with jax.enable_x64(True):
            zero = jnp.zeros(width)
            return Moments(jnp.zeros(()), jnp.full(width, -jnp.inf), zero, jnp.zeros((width, width)))

    @named_options
    def update(
        state: Moments,
        trajectories: Trajectories,
        *,
        counts: Any = None,
        target_log_prob: Any = None,
        q: Any = None,
        v: Any = None,
        final: Any = None,
        states: Any = None,
        final_states: Any = None,
    ) -> Moments:
        given = dict(target_log_prob=target_log_prob, q=q, v=v, final=final, states=states, final_states=final_states)
        given = {name: value for name, value in given.items() if value is not None}
        if set(needs) - set(given) or set(given) - {*needs, *may}:
            raise ValueError(
                f"update of this stream takes {', '.join((*needs, *may)) or 'no columns'}, got "
                f"{', '.join(sorted(given)) or 'none'}."
            )
        with float64(state, trajectories, counts, given):
            if np.ndim(trajectories.rewards) != 2:
                raise ValueError(f"rewards must be [n, T], got shape {np.shape(trajectories.rewards)}.")
            rows, steps = np.shape(trajectories.rewards)
            if rows > size or steps > horizon:
                raise ValueError(
                    f"the chunk has {rows} trajectories of {steps} steps; up to {size} of {horizon} are allowed. Make chunks "
                    "smaller, or the stream larger."
                )
            counts = np.ones(rows) if counts is None else counts
            bare = trajectories._replace(observations=None, actions=None, final_observation=None)._asdict()
            columns = {name: x for name, x in (bare | given | {"counts": counts}).items() if x is not None}
            padded = {name: _padded(name, x, (rows, steps), (size, horizon)) for name, x in columns.items()}
            bare = {name: padded.get(name) for name in bare}
            given = {name: padded[name] for name in given}
            return add(state, source.prepare(Trajectories(**bare), padded["counts"], given))

    def finish(
        state: Moments,
        *,
        level: float | None = None,
        sides: str = "two",
        interval: str = "student_t",
        floor: float = 10.0,
    ) -> Estimate:
        settings = settings_of(level=level, sides=sides, interval=interval, floor=floor)
        if interval not in INTERVALS:
            raise ValueError(
                f"interval of a stream must be one of {', '.join(INTERVALS)}, got {interval!r}: others need all data at once."
            )
        with float64(state):
            if is_concrete(state) and not state.total > 0:
                raise ValueError("no trajectories have been added; call update before finish.")
            return _finished(state, source=source, settings=settings)

    return Stream(init, update, finish)


@functools.partial(jax.jit, static_argnames=("source", "settings"))
def _finished(state: Moments, *, source: _Source, settings: Settings) -> Estimate:
    total, scale, width = state.total, state.scale, source.width
    mean, share = state.mean[:width], state.mean[width:]
    value, slope = jax.value_and_grad(source.value)(mean, scale[:width], total)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    variance = _variance(state, jnp.where(finite, jnp.pad(slope, (0, _COMMON)), 0.0))
    lower = upper = None
    if settings.level is not None:
        # two values, N / 2 times each, that have this mean and variance
        apart = jnp.sqrt(variance * (total - 1.0) / total) * jnp.array([-1.0, 1.0])
        method = intervals.normal_interval if settings.interval == "normal" else intervals.student_t_interval
        lower, upper = method(value + apart, jnp.full(2, 0.5 * total), level=settings.level, sides=settings.sides)
        lower, upper = jnp.where(finite, lower, -jnp.inf), jnp.where(finite, upper, jnp.inf)
    *means, scaled, square = share
    effective = total * quotient(jnp.square(scaled), square)

    def error_of(slope: Array) -> Array:
        return jnp.where(total > 1, jnp.sqrt(_variance(state, slope) / total), jnp.inf)

    errors = [error_of(jnp.zeros(width + _COMMON).at[width + place].set(1.0)) for place in (0, 1)]
    largest, horizon_exit = scale[width + 5], jnp.asarray(source.horizon_exit, jnp.float64)
    diagnostics = described_weights(total, *means, *errors, quotient(1.0, total * scaled), largest, horizon_exit)
    if lower is not None and upper is not None:
        lower, upper = without_overlap(lower, upper, diagnostics["no_overlap"], settings.sides)
    diagnostics |= {
        "below_floor": (effective < settings.floor).astype(total.dtype),
        "finite": finite.astype(total.dtype),
    }
    diagnostics |= source.diagnostics(mean, scale[:width], total)
    if source.correction is not None:
        correction, change = jax.value_and_grad(source.correction)(mean, scale[:width], total)
        diagnostics["correction"] = correction
        diagnostics["correction_z"] = z_score(correction, 0.0, error_of(jnp.pad(change, (0, _COMMON))), total)
    error = jnp.where(finite & (total > 1), jnp.sqrt(variance / total), jnp.inf)
    return Estimate(jnp.where(finite, value, jnp.nan), error, lower, upper, effective, diagnostics)


def _variance(state: Moments, slope: Array) -> Array:
    """Unbiased, of a function of one trajectory whose slope in the columns is given."""
    spread = jnp.maximum(slope @ state.comoment @ slope, 0.0)
    return spread / jnp.maximum(state.total - 1.0, 1.0)


def _padded(name: str, values: Any, shape: tuple[int, int], wanted: tuple[int, int]) -> Any:
    """A column of the shape of the chunk with rows, and steps where it has them, up to those of the stream."""
    values = (np if is_concrete(values) else jnp).asarray(values)
    axes = 1 if name in _OF_ROWS else 2
    if values.shape != shape[:axes]:
        raise ValueError(f"{name} has shape {values.shape}; the chunk has {shape[0]} trajectories of {shape[1]} steps.")
    library = np if isinstance(values, np.ndarray) else jnp
    return library.pad(values, [(0, most - have) for most, have in zip(wanted, shape, strict=False)][:axes])
