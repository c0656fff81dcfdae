"""Action distributions: small pytrees with `log_prob`, `sample`, `mode`, `kl` and, where it is known, `entropy`.

All reduce over the last axis of continuous actions; every leading axis is a batch axis. Parameters are the fields, so a
distribution can be stored, stacked and passed through `jax` transformations as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.types import Array

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_LOG_2 = math.log(2.0)


class Categorical(NamedTuple):
    """Categorical over `A` actions.

    Attributes:
        logits: `float[..., A]`, unnormalised log-probabilities.
    """

    logits: Array

    @property
    def log_probabilities(self) -> Array:
        """`float[..., A]`, normalised."""
        return jax.nn.log_softmax(self.logits)

    def log_prob(self, action: Array) -> Array:
        """Log-probability `float[...]` of `action` (`int[...]`)."""
        return jnp.take_along_axis(self.log_probabilities, action[..., None], axis=-1)[..., 0]

    def sample(self, key: Array) -> Array:
        """One action `int32[...]` (Gumbel maximum)."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Array:
        """The most probable action `int32[...]`."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def entropy(self) -> Array:
        """Entropy `float[...]` in nats."""
        log_p = self.log_probabilities
        return -jnp.sum(_product_no_nan(jnp.exp(log_p), log_p), axis=-1)

    def kl(self, other: Categorical) -> Array:
        """KL(self || other), `float[...]` in nats; infinite where `other` has no mass and `self` has."""
        log_p = self.log_probabilities
        return jnp.sum(_product_no_nan(jnp.exp(log_p), log_p - other.log_probabilities), axis=-1)


class DiagonalNormal(NamedTuple):
    """Normal with diagonal covariance over `float[..., D]`.

    Attributes:
        mean: `float[..., D]`.
        log_std: `float[..., D]`.
    """

    mean: Array
    log_std: Array

    def log_prob(self, action: Array) -> Array:
        """Log-density `float[...]` of `action` (`float[..., D]`)."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(z) - self.log_std - _LOG_SQRT_2PI, axis=-1)

    def sample(self, key: Array) -> Array:
        """One action `float[..., D]`, differentiable in the parameters."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """One action and its log-density."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def entropy(self) -> Array:
        """Differential entropy `float[...]` in nats."""
        return jnp.sum(self.log_std + 0.5 + _LOG_SQRT_2PI + jnp.zeros_like(self.mean), axis=-1)

    def kl(self, other: DiagonalNormal) -> Array:
        """KL(self || other), `float[...]` in nats."""
        inverse_variance = jnp.exp(-2.0 * other.log_std)
        squares = jnp.exp(2.0 * self.log_std) + jnp.square(self.mean - other.mean)
        return jnp.sum(other.log_std - self.log_std + 0.5 * squares * inverse_variance - 0.5, axis=-1)


class TanhNormal(NamedTuple):
    """`tanh(x)` with `x` from a `DiagonalNormal`: actions in (-1, 1).

    Attributes:
        mean: `float[..., D]`, of x.
        log_std: `float[..., D]`, of x.
    """

    mean: Array
    log_std: Array

    @property
    def _normal(self) -> DiagonalNormal:
        return DiagonalNormal(self.mean, self.log_std)

    def log_prob(self, action: Array) -> Array:
        """Log-density `float[...]` of `action` in (-1, 1); values at the ends are moved inside by 1e-6."""
        bound = 1.0 - 1e-6
        return self._log_prob_of(jnp.arctanh(jnp.clip(action, -bound, bound)))

    def _log_prob_of(self, x: Array) -> Array:
        # log(1 - tanh(x)^2) in a form that does not lose digits for large |x|.
        log_slope = 2.0 * (_LOG_2 - x - jax.nn.softplus(-2.0 * x))
        return self._normal.log_prob(x) - jnp.sum(log_slope, axis=-1)

    def sample(self, key: Array) -> Array:
        """One action `float[..., D]`, differentiable in the parameters."""
        return jnp.tanh(self._normal.sample(key))

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """One action and its log-density, without inverting tanh."""
        x = self._normal.sample(key)
        return jnp.tanh(x), self._log_prob_of(x)

    def mode(self) -> Array:
        """`tanh(mean)`, the median of each component (the density of a wide TanhNormal has its modes at the ends)."""
        return jnp.tanh(self.mean)

    def kl(self, other: TanhNormal) -> Array:
        """KL(self || other), `float[...]`: that of the underlying normals, since tanh is a bijection."""
        return self._normal.kl(other._normal)


Distribution = Categorical | DiagonalNormal | TanhNormal


def _product_no_nan(x: Array, y: Array) -> Array:
    """`x * y` with 0 where `x` is 0, whatever `y` is, also in the gradient."""
    zero = x == 0
    return jnp.where(zero, 0.0, x * jnp.where(zero, 1.0, y))
