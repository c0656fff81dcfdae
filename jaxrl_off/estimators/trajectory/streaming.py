"""Estimates from more trajectories than memory holds: chunks go in, moments stay, and an `Estimate` comes out.

    stream = streaming("wis", horizon=1000, size=512, discount=0.99)
    state = stream.init()
    for chunk in iterate_hdf5(path, 512):
        state = stream.update(state, chunk, target_log_prob=log_prob_of(chunk))
    estimate = stream.finish(state, level=0.95)

Estimators that are `V = f(E[x])` (those of `means`; and STAR, whose counts are sums over trajectories) need nothing of the data
but N, the mean of x and its co-moments, from which the delta method has `N Var V = f'^T Cov(x) f'`. They give what `weighted`,
`corrected` and `star` give of all trajectories at once, standard errors and Student t intervals too, up to rounding: 1e-12,
unless returns spread by a small part of what they are. Co-moments are merged as by Chan, Golub and LeVeque (1979), and each
column has its running largest weight for a scale, so that neither the number of trajectories nor the horizon matters. The
bootstrap, and what needs all data at once (MAGIC, fits of Q), are not here.

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

from jaxrl_off.estimators.common import float64, is_concrete
from jaxrl_off.estimators.trajectory.reward_processes import process as reward_process
from jaxrl_off.estimators.trajectory.reward_processes.process import Form, Inputs, Sums, Weights
from jaxrl_off.estimators.trajectory.statistics import Settings, settings_of
from jaxrl_off.estimators.trajectory.steps import (
    Steps,
    check_weights,
    column_of,
    log_weights,
    quotient,
    steps_of,
    weights_of,
)
from jaxrl_off.estimators.trajectory.weights import forms as means
from jaxrl_off.ops import intervals
from jaxrl_off.types import Array, Estimate, Trajectories

INTERVALS = ("student_t", "normal")
_RATIOS, _CORRECTIONS = ("target_log_prob",), ("target_log_prob", "q", "v")
# form, what it takes, and its columns: how many, and how many more a step
_FORMS = {
    "naive": (means.MEAN_RETURN, (), (1, 0)),
    "trajectory_is": (means.MEAN_RETURN, _RATIOS, (1, 0)),
    "pdis": (means.MEAN_WEIGHTED_REWARD, _RATIOS, (1, 0)),
    "wis": (means.WEIGHTED_MEAN_RETURN, _RATIOS, (2, 0)),
    "cwpdis": (means.WEIGHTED_MEAN_REWARDS, _RATIOS, (0, 2)),
    "doubly_robust": (means.CORRECTED, _CORRECTIONS, (1, 0)),
    "weighted_doubly_robust": (means.WEIGHTED_CORRECTED, _CORRECTIONS, (0, 3)),
}
_COMMON = 5  # columns that diagnostics need of all
_OF_ROWS = ("counts", "final_states", "behaviour_estimated")  # without an axis of T


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
        update: `(Moments, Trajectories, **columns) -> Moments`; columns are what the estimator takes, of `target_log_prob`,
            `q`, `v`, `states` and `final_states`, and `counts`.
        finish: `(Moments, level=None, sides="two", interval="student_t" or "normal", floor=10.0) -> Estimate`.
    """

    init: Callable[[], Moments]
    update: Callable[..., Moments]
    finish: Callable[..., Estimate]


class _Source(NamedTuple):
    """Where columns come from, and what is made of their means.

    Attributes:
        width: d.
        prepare: `(trajectories, counts, given) -> prepared`, checked on the host.
        measure: `prepared -> (scale [d], x [n, d], logarithm of the final weights [n], steps)`.
        value: `(mean [d], scale [d], N) -> V`.
        diagnostics: `(mean [d], scale [d], N) -> further ones`.
    """

    width: int
    prepare: Callable[[Trajectories, Any, dict[str, Any]], Any]
    measure: Callable[[Any], tuple[Array, Array, Array, Steps]]
    value: Callable[[Array, Array, Array], Array]
    diagnostics: Callable[[Array, Array, Array], dict[str, Array]]


def streaming(
    estimator: str,
    *,
    horizon: int,
    size: int,
    discount: float = 1.0,
    window: int | None = None,
    clip: float | None = None,
) -> Stream:
    """A stream of one of the estimators that are smooth functions of means.

    Args:
        estimator: "naive", "trajectory_is", "pdis", "wis", "cwpdis" (functions of `weighted`, which say what they are),
            "doubly_robust" or "weighted_doubly_robust" (of `corrected`; Q has to be fitted to other trajectories).
        horizon: T, the most steps that a trajectory of a chunk may have; shorter chunks are padded.
        size: the most trajectories of a chunk.
        discount: as in `weighted.pdis`.
        window: as there.
        clip: as there.

    Returns:
        A `Stream`.

    Raises:
        ValueError: for settings that cannot be meant; its functions, for data that cannot be, or chunks that are too large.

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
            f"estimator must be one of {', '.join(_FORMS)}, got {estimator!r}; for STAR see `star_streaming`."
        )
    form, needs, (fixed, each) = _FORMS[estimator]
    check_weights(window, clip)

    def prepare(trajectories: Trajectories, counts: Any, given: dict[str, Any]) -> Any:
        steps = steps_of(trajectories, given.get("target_log_prob"), discount=discount, counts=counts)
        return steps, *(column_of(name, given[name], steps) for name in ("q", "v") if name in given)

    def measure(prepared: Any) -> Any:
        steps, *predictions = prepared
        log_weight = log_weights(steps, window=window, clip=clip)
        scale = form.scale(steps, log_weight)
        return scale, form.columns(steps, log_weight, means.finite(scale), *predictions), log_weight[:, -1], steps

    def value(mean: Array, scale: Array, total: Array) -> Array:
        del scale, total
        return form.value(mean, jnp.asarray(discount, jnp.float64) ** jnp.arange(horizon))

    source = _Source(fixed + each * horizon, prepare, measure, value, lambda mean, scale, total: {})
    return _stream(source, needs, (), horizon, size)


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
        discount: as in `star.star`, as are all others.
        window: c.
        clip: largest ratio.
        discounted_counts: whether gamma^t is in the counts.
        normalisation: "self" or "horvitz_thompson".
        termination: "joint" or "factored".
        horizon_exit: whether the process is left where trajectories were cut.
        smoothing: alpha.

    Returns:
        A `Stream`.

    Raises:
        ValueError: as `streaming`.
    """
    check_weights(window, clip)
    form = Form(num_states, discounted_counts, normalisation, termination, horizon_exit)
    reward_process.check_form(form)
    if not 0.0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be a finite number of at least 0, got {smoothing}.")

    def pieces(table: Any, scaled: Any, plain: Any, squares: Any) -> tuple[Sums, Any]:
        before = scaled if normalisation == "horvitz_thompson" else None
        leaving = scaled if termination == "factored" else None
        return Sums(table, scaled, before, leaving, plain, plain, plain[0]), squares

    with jax.enable_x64(True):
        cells = jnp.zeros(num_states)
        flat, unravel = ravel_pytree(pieces(jnp.zeros((num_states, num_states + 1)), cells, cells, cells))

    def prepare(trajectories: Trajectories, counts: Any, given: dict[str, Any]) -> Any:
        options = form._asdict() | given | dict(discount=discount, clip=clip, counts=counts)
        return reward_process.inputs_of(trajectories, **options)[0]

    def measure(inputs: Inputs) -> Any:
        logs = reward_process.log_weights_of(inputs, window, form)
        factor = reward_process.factor_of(inputs, *logs, form)
        weights = reward_process.weights_of(inputs, *logs, form, factor)

        def columns(steps: Steps, cells: tuple[Array, ...], weights: tuple[Array, ...]) -> Array:
            alone, cells, weights = jax.tree.map(lambda x: x[None], (steps, cells, weights))
            one = Inputs(alone._replace(discounts=None), *cells, inputs.discount, inputs.clip, None)
            arguments = (jnp.ones(1), one, Weights(*weights, factor), form)
            return ravel_pytree((reward_process.sums_of(*arguments), reward_process.squares_of(*arguments)))[0]

        cells = (inputs.states, inputs.successors, inputs.leaves)
        rows = jax.vmap(columns)(inputs.steps._replace(discounts=None), cells, (weights.now, weights.before))
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

    source = _Source(len(flat), prepare, measure, value, diagnostics)
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
    factor = jnp.exp(jnp.where(jnp.isfinite(scale), moments.scale - means.finite(scale), 0.0))
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
        share = jnp.exp(jnp.where(steps.counts > 0, final - means.finite(largest), -jnp.inf))
        lengths = jnp.sum(steps.mask, axis=1).astype(columns.dtype)
        rest = (weights_of(final), lengths, steps.estimated, share, jnp.square(share))
        scale = jnp.concatenate([scale, jnp.zeros(3), largest * jnp.array([1.0, 2.0])])
        return _merged(
            state, _measured(scale, jnp.concatenate([columns, jnp.stack(rest, axis=1)], axis=1), steps.counts)
        )

    def init() -> Moments:
        with jax.enable_x64(True):
            zero = jnp.zeros(width)
            return Moments(jnp.zeros(()), jnp.full(width, -jnp.inf), zero, jnp.zeros((width, width)))

    def update(state: Moments, trajectories: Trajectories, *, counts: Any = None, **given: Any) -> Moments:
        given = {name: value for name, value in given.items() if value is not None}
        missing, unknown = set(needs) - set(given), set(given) - {*needs, *may}
        if missing or unknown:
            raise ValueError(
                f"update takes {', '.join(needs) or 'no columns'}, got {', '.join(sorted(given)) or 'none'}."
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
                f"interval must be one of {', '.join(INTERVALS)}, got {interval!r}: others need all data at once."
            )
        with float64(state):
            if is_concrete(state) and not state.total > 0:
                raise ValueError("no trajectories have gone in; there is nothing to estimate from.")
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
    weight, length, estimated, scaled, square = share
    weight_error = jnp.sqrt(_variance(state, jnp.zeros(width + _COMMON).at[width].set(1.0)) / total)
    effective = total * quotient(jnp.square(scaled), square)
    diagnostics = {
        "rows": total,
        "mean_weight": weight,
        "mean_weight_z": (weight - 1.0) / jnp.where(weight_error > 0, weight_error, 1.0),
        "largest_share": quotient(1.0, total * scaled),
        "largest_log_weight": scale[width + 3],
        "mean_length": length,
        "behaviour_estimated": estimated,
        "below_floor": (effective < settings.floor).astype(weight.dtype),
        "finite": finite.astype(weight.dtype),
    }
    diagnostics |= source.diagnostics(mean, scale[:width], total)
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
