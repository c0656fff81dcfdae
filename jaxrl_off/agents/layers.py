"""A feed-forward policy as plain arrays: what every family's dense policies have in common, for `training.save_policy`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxrl_off.types import Array, PyTree

Numbers = Array | np.ndarray


class PolicyLayers(NamedTuple):
    """Dense layers from an observation to the parameters of an action distribution.

    `x = clip((o - shift) / scale, -limit, limit)`, `x = activation(x W + b)` for every hidden layer, and then the heads. The
    mean of a normal is that of canonical actions, in which the box is [-1, 1]^D.

    Attributes:
        hidden: `((W [I, H], b [H]), ...)`.
        activation: key of `networks.ACTIVATIONS`.
        head: `(W, b)` of the logits or the mean.
        distribution: `"categorical"`, `"normal"`, `"tanh_mean_normal"` (the mean is squashed) or `"tanh_normal"` (samples are).
        log_std: `float[D]`, `(W, b)` of a head of its own, or None for discrete actions.
        log_std_range: clip of a log standard deviation with a head, or None.
        shift: `float[I]` or None for no standardisation.
        scale: `float[I]` or None.
        limit: largest standardised observation, or None.
    """

    hidden: tuple[tuple[Numbers, Numbers], ...]
    activation: str
    head: tuple[Numbers, Numbers]
    distribution: str
    log_std: Numbers | tuple[Numbers, Numbers] | None = None
    log_std_range: tuple[float, float] | None = None
    shift: Numbers | None = None
    scale: Numbers | None = None
    limit: float | None = None


def dense(parameters: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of a `flax.linen.Dense`."""
    return np.asarray(parameters["kernel"], np.float32), np.asarray(parameters["bias"], np.float32)


def dense_stack(parameters: PyTree) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """All of `Dense_0`, `Dense_1`, ... in their order."""
    names = sorted((name for name in parameters if name.startswith("Dense_")), key=lambda name: int(name[6:]))
    return tuple(dense(parameters[name]) for name in names)
