"""The behaviour density of continuous actions, estimated where it was not logged."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete
from jaxrl_off.estimators.deterministic.ratios import LogDensity, data_column
from jaxrl_off.estimators.deterministic.recursions import flattened
from jaxrl_off.estimators.deterministic.regressions import Fitted, LinearSieve, regression_of
from jaxrl_off.estimators.trajectory.steps import quotient, steps_of
from jaxrl_off.types import Array, Trajectories


class BehaviourDensity(NamedTuple):
    """A density that was estimated.

    Attributes:
        trajectories: with its logarithm in `behaviour_log_prob`, and `behaviour_estimated` set.
        log_density: `(observations [n, T, *O], actions [n, T, A]) -> float64[n, T]`, of the fold that did not see the row; for
            `behaviour_at_target`.
    """

    trajectories: Trajectories
    log_density: LogDensity


def estimate_behaviour_density(
    trajectories: Trajectories, *, degree: int = 1, folds: int = 2, seed: int = 0, counts: Any = None
) -> BehaviourDensity:
    """Normal densities, `b(a|s) = N(a; m(s), C)`: m a polynomial, C one covariance, the same at all steps; cross-fitted.

    Where actions are not so distributed, estimates that use it are as wrong as it is; doubly robust ones less.

    Args:
        trajectories: n of them, with observations and actions `float[n, T, A]`.
        degree: of m.
        folds: into how many parts trajectories are put at random, 2 or more.
        seed: of that.
        counts: `float[n]`, or None for once each.

    Returns:
        `BehaviourDensity`.

    Raises:
        ValueError: for invalid data or settings, and actions that do not vary given observations.
    """
    with float64(trajectories, counts):
        steps = steps_of(trajectories._replace(behaviour_log_prob=None), None, counts=counts)
        observations = data_column("observations", trajectories.observations, steps, 0)
        actions = data_column("actions", trajectories.actions, steps, 1)
        if actions.ndim != 3:
            raise ValueError(f"actions have shape {actions.shape}; float[n, T, A] is needed to estimate their density.")
        n = len(steps.counts)
        if not 2 <= folds <= n:
            raise ValueError(f"folds must be between 2 and the number of trajectories, {n}, got {folds}.")
        member = np.random.default_rng(seed).permutation(np.arange(n) % folds)
        train = steps.counts * (member != np.arange(folds)[:, None])
        model = LinearSieve(degree=degree)
        fitted, roots = _fitted(model, flattened(observations), actions, steps.mask, train)
        narrow = jnp.diagonal(roots, axis1=-2, axis2=-1) <= 1e-9 * (1.0 + jnp.abs(fitted.intercept))
        if is_concrete(roots) and not bool(jnp.all(jnp.isfinite(roots) & ~narrow[..., None])):
            raise ValueError(
                "actions do not vary given observations: a deterministic behaviour has no density, and says nothing of "
                "other policies."
            )

        def log_density(observations: Array, actions: Array) -> Array:
            with float64(observations, actions):
                rows = flattened(jnp.asarray(observations)), jnp.asarray(actions, jnp.float64)
                return _log_density(model, fitted, roots, jnp.asarray(member), *rows)

        found = jnp.where(steps.mask, log_density(observations, actions), 0.0)
        changed = trajectories._replace(behaviour_log_prob=found, behaviour_estimated=np.ones(n, bool))
        return BehaviourDensity(changed, log_density)


@jax.jit
def _fitted(model: LinearSieve, inputs: Array, actions: Array, mask: Array, train: Array) -> tuple[Fitted, Array]:
    """Means and Cholesky factors of covariances, of each fold."""
    regression = regression_of(model, ratio=False)
    x, a = (column.reshape(-1, column.shape[-1]) for column in (inputs, actions))
    key = jax.random.key(0)  # no use is made of it

    def one(counts: Array) -> tuple[Fitted, Array]:
        weights = (counts[:, None] * mask).reshape(-1)
        fitted = regression.fit(regression.start(x.shape[-1], a.shape[-1], key), x, a, weights, key)
        errors = a - regression.predict(fitted, x)
        covariance = (errors * quotient(weights, jnp.sum(weights))[:, None]).T @ errors
        return fitted, jnp.linalg.cholesky(covariance)

    return jax.vmap(one)(train)


@jax.jit
def _log_density(model: LinearSieve, fitted: Fitted, roots: Array, member: Array, x: Array, a: Array) -> Array:
    regression = regression_of(model, ratio=False)

    def one(fitted: Fitted, root: Array) -> Array:
        errors = a - regression.predict(fitted, x)
        scaled = jnp.einsum("ij,...j->...i", jnp.linalg.inv(root), errors)
        size = a.shape[-1]
        return (
            -0.5 * jnp.sum(jnp.square(scaled), axis=-1)
            - jnp.sum(jnp.log(jnp.diagonal(root)))
            - 0.5 * size * jnp.log(2.0 * jnp.pi)
        )

    return jax.vmap(one)(fitted, roots)[member, jnp.arange(len(member))]
