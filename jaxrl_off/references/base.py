"""What a reference policy is, and what all of them share: checked demonstrations and a loop that minimises a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.types import Array, PyTree

Progress = Callable[[int, int, dict[str, float]], None]


class Reference(NamedTuple):
    """A reference (behaviour) policy pi_0 that is learned from demonstrations once and then frozen.

    Attributes:
        fit: `(key, observations[N, O], actions[N, A], *, progress=None) -> params`, ordinary Python with compiled steps
            inside. The same key and data give the same parameters. `progress(step, total, metrics)` is called now and then.
            Raises `ValueError` for demonstrations that cannot be used; actions outside the environment's bounds are taken
            as they are.
        apply: `(params, observation[..., O]) -> distribution` over `[..., A]`, pure; `jit`, `vmap` and differentiate it.
    """

    fit: Callable[..., PyTree]
    apply: Callable[[PyTree, Array], Any]


def check_demonstrations(observations: Any, actions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Demonstrations as `float64[N, O]` and `float64[N, A]` NumPy arrays.

    Raises:
        ValueError: if an array is not two-dimensional, the lengths differ, there are fewer than two points, a width is 0, or
            a value is not finite.
    """
    arrays = {"observations": np.asarray(observations), "actions": np.asarray(actions)}
    for name, array in arrays.items():
        if array.ndim != 2 or 0 in array.shape[1:]:
            raise ValueError(
                f"{name} must have the shape [N, {name[0].upper()}], one row a step; got {list(array.shape)}. "
                "Flatten each row, and put trajectories end to end."
            )
        if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array)) and array.dtype != bool:
            raise ValueError(f"{name} must be real numbers, got the type {array.dtype}; convert them first.")
    counts = [len(array) for array in arrays.values()]
    if counts[0] != counts[1]:
        raise ValueError(
            f"observations and actions must have the same length, got {counts[0]} and {counts[1]}; a trajectory's last "
            "observation has no action and must be left out."
        )
    if counts[0] < 2:
        raise ValueError(f"at least 2 demonstration steps are needed to fit a reference policy, got {counts[0]}.")
    for name, array in arrays.items():
        bad = ~np.isfinite(array.astype(np.float64))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{name} must be finite, got {array[row, column]} in row {row}, column {column} ({int(bad.any(1).sum())} rows "
                "are affected); drop these rows."
            )
    return arrays["observations"].astype(np.float64), arrays["actions"].astype(np.float64)


def check_positive(**values: float) -> None:
    """Raise a `ValueError` that names the first option which is not greater than 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}.")


class _Descent(NamedTuple):
    params: PyTree
    optimiser_state: PyTree
    key: Array
    total_loss: Array
    skipped: Array


@functools.partial(jax.jit, static_argnames=("loss", "optimiser"))
def _descend(descent: _Descent, data: PyTree, steps: Array, loss: Callable, optimiser: Any) -> _Descent:
    def step(_: Array, descent: _Descent) -> _Descent:
        key, step_key = jax.random.split(descent.key)
        value, gradient = jax.value_and_grad(loss)(descent.params, data, step_key)
        updates, optimiser_state = optimiser.update(gradient, descent.optimiser_state, descent.params)
        new = (optax.apply_updates(descent.params, updates), optimiser_state)
        # One overflow must not lose what has been learned: such a step is left out and counted.
        finite = jnp.isfinite(value) & jnp.isfinite(optax.global_norm(gradient))
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (descent.params, descent.optimiser_state))
        total_loss = descent.total_loss + jnp.where(finite, value, 0.0)
        return _Descent(*new, key, total_loss, descent.skipped + ~finite)

    start = descent._replace(total_loss=jnp.zeros_like(descent.total_loss), skipped=jnp.zeros_like(descent.skipped))
    # The number of steps is an argument, so that the last, shorter piece needs no program of its own.
    return jax.lax.fori_loop(0, steps, step, start)


def minimise(
    loss: Callable[[PyTree, PyTree, Array], Array],
    params: PyTree,
    data: PyTree,
    key: Array,
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    name: str = "loss",
    reports: int = 50,
    double: bool = False,
    progress: Progress | None = None,
) -> PyTree:
    """Minimise `loss(params, data, key)` by `steps` updates.

    Pass the same `loss` and `optimiser` objects again, and data of the same shapes, and nothing is compiled anew.

    Args:
        loss: scalar function.
        params: where to start.
        data: arrays handed to `loss`.
        key: consumed; a fresh one goes to `loss` at every step.
        optimiser: the update rule.
        steps: number of updates.
        name: what the loss is called in the metrics.
        reports: about how many times `progress` is called.
        double: whether `loss` computes in float64; `params` and `data` then are float64.
        progress: called with the steps done, their total, and the mean loss since the last call (`name`) and the number of
            updates left out because they were not finite (`skipped`).

    Returns:
        Parameters after the last update.

    Raises:
        FloatingPointError: if all updates since the last report were left out.
    """
    with jax.enable_x64(double):
        zero = jnp.zeros((), jnp.float64 if double else jnp.float32)
        descent = _Descent(params, optimiser.init(params), key, zero, jnp.zeros((), jnp.int32))
    done, piece = 0, -(-steps // reports)
    while done < steps:
        count = min(piece, steps - done)
        with jax.enable_x64(double):
            descent = _descend(descent, data, jnp.asarray(count, jnp.int32), loss=loss, optimiser=optimiser)
            total, skipped = float(descent.total_loss), int(descent.skipped)
        done += count
        if skipped == count:
            raise FloatingPointError(
                f"the {name} was not finite in {count} updates up to number {done}; scale the demonstrations to about "
                "unit size, or lower the learning rate."
            )
        if progress is not None:
            progress(done, steps, {name: total / (count - skipped), "skipped": float(skipped)})
    return descent.params
