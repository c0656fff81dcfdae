"""The uniform reference policy: a KL penalty towards it is an entropy bonus, which makes the regularised critic SAC's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl_off.references.base import Progress, Reference, check_demonstrations
from jaxrl_off.types import Array, PyTree


class Uniform(NamedTuple):
    """A constant density over actions, of which only the logarithm matters.

    Attributes:
        log_density: `float[...]`, one number for each state.
    """

    log_density: Array

    def log_prob(self, action: Array) -> Array:
        """Log-density `float[...]` of `action` (`float[..., D]`), the same for every action, also outside the bounds."""
        return jnp.broadcast_to(self.log_density, jnp.shape(action)[:-1])


def uniform(*, normalised: bool = False) -> Reference:
    """The policy that knows nothing; `fit` reads no more than the number of action dimensions.

    Args:
        normalised: whether the density is that of the cube [-1, 1]^A, `-A log 2`. By default it is 1 (log 0): the density with
            respect to a base measure. The two differ by a constant in the KL divergence, `log pi - log pi_0`; with 0 it
            is `log pi` and the KL-regularised targets are exactly those of SAC.
    """

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> PyTree:
        del key
        _, actions = check_demonstrations(observations, actions)
        if progress is not None:
            progress(1, 1, {})
        return jnp.asarray(-actions.shape[1] * math.log(2.0) if normalised else 0.0, jnp.float32)

    def apply(params: PyTree, observation: Array) -> Uniform:
        return Uniform(jnp.broadcast_to(params, observation.shape[:-1]))

    return Reference(fit, apply)
