"""The behaviour policy estimated from its own trajectories, where its probabilities were not logged."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.data.trajectories import check
from jaxrl_off.types import Array, Trajectories

CLONES = ("tabular", "logistic")


class BehaviourReport(NamedTuple):
    """What `clone_behaviour` did.

    Attributes:
        note: how the probabilities were estimated, in words.
        steps: number of decisions that they were estimated from.
        parameters: number of free parameters.
        mean_log_prob: mean of log pi_b(a|s) over those decisions, in nats.
        smallest_probability: least probability of a logged action.
        gradient_norm: of the penalised mean log-likelihood where the fit stopped; 0 for counts.
    """

    note: str
    steps: int
    parameters: int
    mean_log_prob: float
    smallest_probability: float
    gradient_norm: float


def clone_behaviour(
    trajectories: Trajectories,
    *,
    num_actions: int,
    kind: str = "tabular",
    smoothing: float = 0.0,
    penalty: float = 1e-6,
) -> tuple[Trajectories, BehaviourReport]:
    """Estimate the probabilities of logged discrete actions from the log itself.

    "tabular" counts: `pi_b(a|s) = (N(s, a) + k) / (N(s) + k A)`, for observations that are states. "logistic" is
    multinomial logistic regression: `pi_b(.|s) = softmax(W x + b)` with `x` the flattened observation, standardised, at
    the maximum of `mean log pi_b(a|s) - penalty |W|^2 / 2` by L-BFGS in float64.

    Estimates of off-policy values with these are consistent if the model is right, and often have less variance than
    with the true ones; their standard errors then take no notice of this estimate.

    Args:
        trajectories: with observations, `int[n, T]` or `int[n, T, 1]` where tabular, and discrete actions.
        num_actions: A.
        kind: "tabular" or "logistic".
        smoothing: k of the counts.
        penalty: of the regression; positive, or W may grow without end where actions can be told apart without error.

    Returns:
        The trajectories with `behaviour_log_prob` replaced and `behaviour_estimated` set, which estimators then have in their
        diagnostics; and a report on how they were estimated.

    Raises:
        ValueError: if settings, observations or actions are invalid, or an action is outside [0, A).
    """
    if kind not in CLONES:
        raise ValueError(f"kind must be one of {', '.join(CLONES)}, got {kind!r}.")
    if num_actions < 1 or smoothing < 0 or not penalty > 0:
        raise ValueError(
            "num_actions must be at least 1, smoothing not negative and penalty positive, got "
            f"{num_actions}, {smoothing} and {penalty}."
        )
    data, _ = check(trajectories._replace(behaviour_log_prob=None), require=["observations", "actions"])
    mask = data.mask
    if not isinstance(data.observations, np.ndarray):
        raise ValueError(
            f"observations are a {type(data.observations).__name__}; a single array is needed. Join them into one."
        )
    if data.actions.ndim != 2 or data.actions[mask].max() >= num_actions:
        raise ValueError(
            f"actions have shape {data.actions.shape}, up to {data.actions[mask].max()}; int[n, T] in "
            f"[0, {num_actions}) is needed. Probabilities of continuous actions cannot be estimated here; log them."
        )
    actions, observations = data.actions[mask], np.asarray(data.observations)[mask]
    if kind == "tabular":
        log_prob, parameters = _count(observations, actions, num_actions, smoothing)
        norm, how = 0.0, f"counts of {parameters // max(num_actions - 1, 1)} states with {smoothing:g} added"
    else:
        log_prob, parameters, norm = _regress(observations, actions, num_actions, penalty)
        how = f"multinomial logistic regression with penalty {penalty:g}"
    filled = np.zeros(mask.shape)
    filled[mask] = log_prob
    note = f"behaviour_log_prob was not logged but estimated from these {len(actions)} decisions by {how}."
    found = float(np.mean(log_prob)), float(np.exp(np.min(log_prob)))
    cloned = trajectories._replace(behaviour_log_prob=filled, behaviour_estimated=np.ones(len(mask), bool))
    return cloned, BehaviourReport(note, len(actions), parameters, *found, norm)


def _count(observations: np.ndarray, actions: np.ndarray, num_actions: int, smoothing: float) -> tuple[np.ndarray, int]:
    if observations.dtype.kind not in "iu" or observations.size != len(actions):
        raise ValueError(
            f"observations are {observations.dtype} of shape {list(observations.shape[1:])} a step; counts need "
            "states, one integer. Use kind='logistic', or number the states."
        )
    states, index = np.unique(observations.ravel(), return_inverse=True)
    counts = np.full((len(states), num_actions), float(smoothing))
    np.add.at(counts, (index, actions), 1.0)
    taken = counts[index, actions] / counts.sum(axis=1)[index]
    return np.log(taken), len(states) * (num_actions - 1)


def _regress(
    observations: np.ndarray, actions: np.ndarray, num_actions: int, penalty: float
) -> tuple[np.ndarray, int, float]:
    features = observations.reshape(len(actions), -1).astype(np.float64)
    deviation = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    with jax.enable_x64(True):
        weights, norm = _fit(jnp.asarray(features), jnp.asarray(actions), jnp.asarray(penalty), num_actions=num_actions)
        log_prob = np.asarray(_log_likelihood(weights, features, actions))
    return log_prob, (num_actions - 1) * (features.shape[1] + 1), float(norm)


def _log_likelihood(weights: tuple[Array, Array], features: Array, actions: Array) -> Array:
    logits = features @ weights[0] + weights[1]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], axis=1)[:, 0]


def _fit(features: Array, actions: Array, penalty: Array, *, num_actions: int) -> tuple[tuple[Array, Array], Array]:
    """Weights `[d, A]` and `[A]`, and the norm of the gradient there."""

    def loss(weights: tuple[Array, Array]) -> Array:
        likelihood = jnp.mean(_log_likelihood(weights, features, actions))
        return 0.5 * penalty * jnp.sum(jnp.square(weights[0])) - likelihood

    optimiser = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def going(carry: Any) -> Array:
        return (carry[2] < 1000) & (carry[3] > 1e-8)

    def step(carry: Any) -> Any:
        weights, state, number, _ = carry
        value, gradient = value_and_gradient(weights, state=state)
        change, state = optimiser.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(weights, change), state, number + 1, optax.global_norm(gradient)

    @jax.jit
    def run(weights: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        weights, _, _, norm = jax.lax.while_loop(going, step, (weights, optimiser.init(weights), 0, jnp.inf))
        return weights, norm

    return run((jnp.zeros((features.shape[1], num_actions)), jnp.zeros(num_actions)))
