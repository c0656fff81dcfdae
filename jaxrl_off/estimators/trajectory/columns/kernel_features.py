"""Random features of states and actions, in which a kernel's unit ball is one of vectors; float32.

Functions of the unit ball of a reproducing kernel Hilbert space, which minimax methods maximise over, are then
`f(s, a) = u . phi(s, a)` with `|u| <= 1`, and the maximum over f of an expectation that is linear in f, `u . g`, is `|g|`. The
kernel is Gaussian, its lengthscale half of the median distance; features are random Fourier ones (Rahimi and Recht, "Random
Features for Large-Scale Kernel Machines", NeurIPS 2007) and a constant.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.trajectory.columns.action_networks import flat_rows
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.types import Array

PAIRS = 500  # of points, for the median distance
_LENGTHSCALE = 0.5  # of the median distance; with all of it kernels are so smooth that fits take several times as long


class Kernel(NamedTuple):
    """`sqrt(2 / d) cos(x . frequency + phase)`, and a constant."""

    frequency: Array
    phase: Array


def joined(observation: Array, action: Array, num_actions: int) -> Array:
    """Points `[B, D]`, of observations `[B, *O]` and actions `int[B]`, which become one-hot, or `[B, D]`."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        action = jax.nn.one_hot(action, num_actions, dtype=observation.dtype)
    return jnp.concatenate([flat_rows(observation), action], axis=-1)


def kernel_of(key: Array, one: Array, other: Array, features: int) -> Kernel:
    """A kernel for data of which pairs of points `[B, D]` are given, by so many features."""
    frequency_key, phase_key = jax.random.split(key)
    distance = jnp.linalg.norm(one - other, axis=1)
    # pairs that are the same say nothing of the distance of others
    apart = jnp.nanmedian(jnp.where(distance > 0, distance, jnp.nan))
    lengthscale = _LENGTHSCALE * jnp.where(apart > 0, apart, 1.0)
    frequency = jax.random.normal(frequency_key, (one.shape[1], features), jnp.float32) / lengthscale
    return Kernel(frequency, jax.random.uniform(phase_key, (features,), jnp.float32, 0.0, 2.0 * np.pi))


def phi(kernel: Kernel, x: Array) -> Array:
    """Features `[..., d + 1]` of points `[..., D]`."""
    waves = jnp.cos(x @ kernel.frequency + kernel.phase) * np.sqrt(2.0 / len(kernel.phase))
    return jnp.concatenate([waves, jnp.ones_like(waves[..., :1])], axis=-1)


def phi_mean(kernel: Kernel, observation: Array, target: TargetActions) -> Array:
    """`sum_m weight_m phi(s, a_m)`, `[B, d + 1]`."""
    batch, candidates = target.weights.shape
    repeated = jnp.repeat(observation, candidates, axis=0)
    if target.actions is None:
        action = jnp.tile(jnp.arange(candidates), batch)
    else:
        action = target.actions.reshape(batch * candidates, -1)
    values = phi(kernel, joined(repeated, action, candidates))
    return jnp.einsum("bm,bmd->bd", target.weights, values.reshape(batch, candidates, -1))
