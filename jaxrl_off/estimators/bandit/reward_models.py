"""Linear predictions of rewards for the direct method and doubly robust estimators, fitted out of fold."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.common import check_range
from jaxrl_off.types import Array

OBJECTIVES = ("squares", "importance", "variance")


def cross_fitted(
    features: Any,
    actions: Any,
    rewards: Any,
    num_actions: int,
    *,
    objective: str = "squares",
    target_probabilities: Any = None,
    propensities: Any = None,
    folds: int = 2,
    ridge: float = 1.0,
    reward_range: Sequence[float] | None = None,
    seed: int = 0,
) -> Array:
    """Predicted rewards `q(x, a)` of all actions, each row's by a model of the other folds.

    Ridge regression on `(1, x)`, a vector of coefficients an action; the closed form, one fold at a time. To be called with
    data, not under `jax.jit` or `jax.vmap`. An action that the other folds lack is predicted 0, or the nearest end of the
    reward range.

    Args:
        features: `float[n, d]`, x, or `float[n]` for one feature.
        actions: `int[n]`, logged.
        rewards: `float[n]`.
        num_actions: K.
        objective: what is minimised. `squares`: `sum (r - q(x, a))^2`; `importance`: `sum w (r - q(x, a))^2`; `variance`: the
            variance of the doubly robust terms `w (r - q(x, a)) + sum_b pi(b|x) q(x, b)`, which is quadratic in the
            coefficients (the "more robust" estimator of Farajtabar, Chow and Ghavamzadeh, ICML 2018; with those of all
            actions at once, hence of cost `(K d)^3`).
        target_probabilities: `float[n, K]`, pi(.|x); for `importance` and `variance`.
        propensities: `float[n]`, h(a|x); for `importance` and `variance`.
        folds: at least 2.
        ridge: penalty of the squared coefficients but for the intercepts.
        reward_range: (low, high) that predictions are cut to, which bounded intervals of what corrects them need; None to
            leave them as they are.
        seed: of the folds.

    Returns:
        `float64[n, K]`.

    Raises:
        ValueError: if arguments are invalid.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    if objective != "squares" and (target_probabilities is None or propensities is None):
        raise ValueError(f"objective={objective!r} needs target_probabilities and propensities.")
    optional = {"target_probabilities": target_probabilities, "propensities": propensities}
    given = {"features": features, "actions": actions, "rewards": rewards}
    given |= {name: column for name, column in optional.items() if column is not None}
    columns = {name: common.numbers_of(name, column) for name, column in given.items()}
    if columns["features"].ndim == 1:
        columns["features"] = columns["features"][:, None]
    count = columns["rewards"].size
    if not 2 <= folds <= count:
        raise ValueError(f"folds must be between 2 and the {count} rows, got {folds}.")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}.")
    for name, column in columns.items():
        width = num_actions if name == "target_probabilities" else column.shape[-1] if name == "features" else None
        wanted = (count,) if width is None else (count, width)
        if column.shape != wanted or not np.isfinite(column).all():
            raise ValueError(
                f"{name} must be finite numbers of shape {wanted}, got shape {column.shape}"
                f"{'' if np.isfinite(column).all() else ' with some that are not finite'}; mend the log."
            )
    actions = columns["actions"]
    if (actions < 0).any() or (actions >= num_actions).any() or (actions != np.floor(actions)).any():
        raise ValueError(
            f"actions must be whole numbers in [0, {num_actions}), got {actions.min()} to {actions.max()}."
        )
    if (
        propensities is not None
        and not ((columns["propensities"] > 0) & (columns["propensities"] <= common.MOST_PROBABLE)).all()
    ):
        raise ValueError("propensities must be in (0, 1]; mend the log.")
    span = None if reward_range is None else check_range("reward_range", reward_range)
    fold = np.random.default_rng(seed).permutation(count) % folds
    with jax.enable_x64(True):
        inputs = jnp.concatenate([jnp.ones((count, 1)), columns["features"]], axis=1)
        targets = jnp.asarray(rewards, jnp.float64)
        probabilities = jnp.ones((count, num_actions)) if target_probabilities is None else target_probabilities
        behaviour = jnp.ones(count) if propensities is None else jnp.asarray(propensities, jnp.float64)
        data = (inputs, jnp.asarray(actions, jnp.int32), targets, jnp.asarray(probabilities, jnp.float64), behaviour)
        predicted = _predicted(
            data, jnp.asarray(fold), jnp.asarray(ridge, jnp.float64), objective=objective, folds=folds
        )
        return predicted if span is None else jnp.clip(predicted, *span)


@functools.partial(jax.jit, static_argnames=("objective", "folds"))
def _predicted(data: tuple[Array, ...], fold: Array, ridge: Array, *, objective: str, folds: int) -> Array:
    inputs, actions, rewards, probabilities, behaviour = data
    num_actions = probabilities.shape[1]
    chosen = jax.nn.one_hot(actions, num_actions, dtype=inputs.dtype)
    weights = jnp.sum(chosen * probabilities, axis=1) / behaviour
    penalty = ridge * jnp.ones(inputs.shape[1]).at[0].set(1e-6)

    def separate(used: Array) -> Array:
        """Coefficients `[K, d + 1]` of one regression an action."""
        sample = used * (weights if objective == "importance" else 1.0)

        def one(selected: Array) -> Array:
            gram = (inputs * (sample * selected)[:, None]).T @ inputs
            return jnp.linalg.solve(gram + jnp.diag(penalty), inputs.T @ (sample * selected * rewards))

        return jax.lax.map(one, chosen.T)

    def joint(used: Array) -> Array:
        """Coefficients `[K, d + 1]` of least variance: a regression of w r on how the terms change with the coefficients."""
        change = ((weights[:, None] * chosen - probabilities)[:, :, None] * inputs[:, None, :]).reshape(
            len(rewards), -1
        )
        target = weights * rewards
        total = jnp.sum(used)
        change, target = (x - jnp.sum(x.T * used, axis=-1) / total for x in (change, target))
        gram = (change * used[:, None]).T @ change + jnp.diag(jnp.tile(penalty, num_actions))
        return jnp.linalg.solve(gram, change.T @ (used * target)).reshape(num_actions, -1)

    fit = joint if objective == "variance" else separate
    predictions = jnp.zeros((len(rewards), num_actions))
    for index in range(folds):
        here = fold == index
        predictions = jnp.where(here[:, None], inputs @ fit((~here).astype(inputs.dtype)).T, predictions)
    return predictions
