"""Learning a policy from logged decisions: estimates of its value, and lower bounds of it, as objectives.

A softmax policy, linear or with hidden layers, moves along the gradient of an estimate of its value. With
`w_i = pi(a_i|x_i) / h(a_i|x_i)`:

* `ips`: `mean(w r)`; `snips`: `sum(w r) / sum(w)`; `doubly_robust`: `mean(w (r - q) + sum_b pi(b|x) q(x, b))`;
* `variance_penalty`: `mean(min(w, M) r) - penalty sqrt(var / n)` (POEM, Swaminathan and Joachims, JMLR 2015, who have an upper
  bound in the place of the root, to take one row at a time);
* `likelihood`: `mean(omega w r)` with `omega_i = N Q_i` of the empirical-likelihood law, solved anew before every pass;
* `lower_bound_reweighted`: the same with the law that attains the lower end of the interval: pessimistic, as its omega is the
  smaller the larger the reward. This alternation is the paper's;
* `lower_bound`: the lower end itself, differentiated, with all data at every step. Beside the reweighted rewards its
  gradient has what the policy does to the mean of the weights, which is known to be 1.

Reference: Karampatziakis, Langford and Mineiro, "Empirical Likelihood for Contextual Bandits", NeurIPS 2020. Their policies are
Vowpal Wabbit's one-against-all regressors, updated where the greedy policy agrees with the log.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.estimators.bandit import common
from jaxrl_off.estimators.bandit.empirical import empirical_likelihood
from jaxrl_off.estimators.bandit.empirical_core import likelihood_weights
from jaxrl_off.estimators.common import check_level, check_range, is_concrete
from jaxrl_off.types import Array

OBJECTIVES = (
    "ips",
    "snips",
    "doubly_robust",
    "variance_penalty",
    "likelihood",
    "lower_bound_reweighted",
    "lower_bound",
)
_REWEIGHTED = {"likelihood": False, "lower_bound_reweighted": True}


class LearnedPolicy(NamedTuple):
    """A softmax policy; a pytree.

    Attributes:
        layers: `((W [d, H], b [H]), ..., (W [H, K], b [K]))`, ReLU between them.
    """

    layers: tuple[tuple[Array, Array], ...]

    def logits(self, features: Any) -> Array:
        """`float32[..., K]` of `float[..., d]`."""
        hidden = jnp.asarray(features, jnp.float32)
        for depth, (weight, bias) in enumerate(self.layers):
            hidden = (jax.nn.relu(hidden) if depth else hidden) @ weight + bias
        return hidden

    def probabilities(self, features: Any) -> Array:
        """pi(.|x), `float32[..., K]`."""
        return jax.nn.softmax(self.logits(features))

    def greedy(self, features: Any) -> Array:
        """The most probable action, `int32[...]`."""
        return jnp.argmax(self.logits(features), axis=-1)


class Learning(NamedTuple):
    """What `learn` returns.

    Attributes:
        policy: after the last pass.
        objective: `float32[passes]`, mean of the objective over the steps of each pass, before each step.
    """

    policy: LearnedPolicy
    objective: Array


class _Task(NamedTuple):
    objective: str
    num_actions: int
    hidden: tuple[int, ...]
    passes: int
    batch_size: int
    weight_range: tuple[float, float]
    reward_range: tuple[float, float]
    level: float


class _Rates(NamedTuple):
    learning: Array
    decay: Array
    penalty: Array
    clip: Array


class _Data(NamedTuple):
    features: Array
    actions: Array
    rewards: Array
    propensities: Array
    predictions: Array


def learn(
    key: Array,
    features: Any,
    actions: Any,
    rewards: Any,
    propensities: Any,
    num_actions: int,
    *,
    objective: str = "lower_bound_reweighted",
    hidden: Sequence[int] = (),
    passes: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    weight_decay: float = 1e-4,
    weight_range: Sequence[float] | None = None,
    reward_range: Sequence[float] = (0.0, 1.0),
    level: float = 0.95,
    penalty: float = 1.0,
    clip: float = math.inf,
    predictions: Any = None,
) -> Learning:
    """Learn a softmax policy, beginning with the uniform one, by Adam.

    A function of arrays and a key: `jax.jit` and `jax.vmap` over keys and logs of one size work.

    Args:
        key: random key, for initial weights and the order of rows.
        features: `float[n, d]`, x; best of order 1.
        actions: `int[n]`, logged.
        rewards: `float[n]`, r.
        propensities: `float[n]`, h(a|x).
        num_actions: K.
        objective: one of `OBJECTIVES`; see the module.
        hidden: widths of hidden layers; none for a linear policy.
        passes: over the data, each in a new order; None for 20, or for 500 with `lower_bound`, of which a pass is one step.
        batch_size: rows of a step; `lower_bound` takes all rows at once.
        learning_rate: of Adam.
        weight_decay: decoupled, of the weights.
        weight_range: (low, high) that weights can have; `likelihood` and lower bounds need it. `(0, 1 / p)` for propensities
            of at least p.
        reward_range: (low, high) that rewards can have.
        level: of the two-sided interval whose lower end is learned on.
        penalty: of `variance_penalty`.
        clip: M of `variance_penalty`.
        predictions: `float[n, K]`, q(x, .), for `doubly_robust`.

    Returns:
        A `Learning`.

    Raises:
        ValueError: if arguments are invalid.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    if (predictions is not None) != (objective == "doubly_robust"):
        raise ValueError("predictions belong to objective='doubly_robust', and to no other.")
    needs_range = objective in ("likelihood", "lower_bound_reweighted", "lower_bound")
    if needs_range and weight_range is None:
        raise ValueError(
            f"objective={objective!r} needs weight_range, what weights can be: (0, 1 / smallest propensity)."
        )
    if level is None:
        raise ValueError(
            "level must be between 0 and 1, such as 0.95, got None; it is that of the bound that is learned on."
        )
    check_level(level, "two")
    if passes is None:
        passes = 500 if objective == "lower_bound" else 20
    limits = common.check_weight_range(weight_range) if weight_range is not None else (0.0, math.inf)
    span = check_range("reward_range", reward_range)
    for name, value in (("passes", passes), ("batch_size", batch_size), ("num_actions", num_actions)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if objective == "variance_penalty" and batch_size < 2:
        raise ValueError(f"objective='variance_penalty' needs batches of 2 rows or more, got batch_size={batch_size}.")
    if is_concrete(penalty, clip) and not (penalty >= 0 and clip > 0):
        raise ValueError(f"penalty must not be negative and clip positive, got {penalty} and {clip}.")
    given = {"features": features, "actions": actions, "rewards": rewards, "propensities": propensities}
    if is_concrete(given, predictions):
        columns = {name: common.numbers_of(name, column) for name, column in given.items()}
        if columns["features"].ndim == 1:
            columns["features"] = features = columns["features"][:, None]
        _check_columns(**columns, num_actions=num_actions, span=span)
        _check_predictions(predictions, len(np.asarray(rewards)), num_actions)
        _check_largest(weight_range, np.asarray(propensities))
    count = jnp.shape(rewards)[0]
    task = _Task(objective, num_actions, tuple(hidden), passes, min(batch_size, count), limits, span, level)
    data = _Data(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(actions, jnp.int32),
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(propensities, jnp.float32),
        jnp.zeros((count, 0)) if predictions is None else jnp.asarray(predictions, jnp.float32),
    )
    rates = _Rates(*(jnp.asarray(x, jnp.float32) for x in (learning_rate, weight_decay, penalty, clip)))
    return _learn(key, data, rates, task=task)


def _check_columns(
    features: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    propensities: np.ndarray,
    num_actions: int,
    span: tuple[float, float],
) -> None:
    count = len(rewards)
    columns = actions, rewards, propensities
    if features.ndim != 2 or len(features) != count or any(x.shape != (count,) for x in columns) or not count:
        raise ValueError(
            f"features {features.shape}, actions {actions.shape}, rewards {rewards.shape} and propensities "
            f"{propensities.shape} do not fit together; features [n, d] and one of the others for each row are allowed."
        )
    checks = {
        "features must be finite": ~np.isfinite(features).all(axis=1),
        f"actions must be in [0, {num_actions}), and whole numbers": ~(
            (actions >= 0) & (actions < num_actions) & (actions == np.floor(actions))
        ),
        f"rewards must be in [{span[0]:g}, {span[1]:g}]": ~((rewards >= span[0]) & (rewards <= span[1])),
        "propensities must be in (0, 1]": ~((propensities > 0) & (propensities <= common.MOST_PROBABLE)),
    }
    for message, bad in checks.items():
        if bad.any():
            raise ValueError(
                f"{message}; row {int(np.argmax(bad))} is not, as are {int(bad.sum())} rows in all. Correct the log."
            )


def _check_predictions(predictions: Any, count: int, num_actions: int) -> None:
    if predictions is None:
        return
    given = np.asarray(predictions)
    if given.shape != (count, num_actions) or not np.isfinite(given).all():
        raise ValueError(
            f"predictions must be finite numbers of shape ({count}, {num_actions}), got shape {given.shape}."
        )


def _check_largest(weight_range: Sequence[float] | None, propensities: np.ndarray) -> None:
    """Weights of the policies to come may be as large as 1 / propensity."""
    if weight_range is None or not is_concrete(weight_range):
        return
    largest = 1.0 / float(propensities.min())
    if weight_range[1] < largest * (1.0 - 1e-6):
        raise ValueError(
            f"weight_range ends at {weight_range[1]:g}, but a propensity of the log allows a weight of {largest:g}; give "
            "(0, 1 / smallest propensity)."
        )


def _initial(key: Array, sizes: Sequence[int]) -> LearnedPolicy:
    """Hidden layers as LeCun, the last of zeros: the uniform policy."""
    layers = []
    for depth, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        scale = 0.0 if depth == len(sizes) - 2 else inputs**-0.5
        weight = scale * jax.random.normal(jax.random.fold_in(key, depth), (inputs, outputs))
        layers.append((weight, jnp.zeros(outputs)))
    return LearnedPolicy(tuple(layers))


@functools.partial(jax.jit, static_argnames="task")
def _learn(key: Array, data: _Data, rates: _Rates, *, task: _Task) -> Learning:
    count = data.rewards.shape[0]
    initial_key, order_key = jax.random.split(key)
    policy = _initial(initial_key, (data.features.shape[1], *task.hidden, task.num_actions))
    optimiser = optax.adamw(rates.learning, weight_decay=rates.decay)

    def weights_of(policy: LearnedPolicy, rows: _Data) -> tuple[Array, Array]:
        probabilities = policy.probabilities(rows.features)
        chosen = jnp.take_along_axis(probabilities, rows.actions[:, None], axis=1)[:, 0]
        return chosen / rows.propensities, probabilities

    def value_of(policy: LearnedPolicy, rows: _Data, omega: Array) -> Array:
        weights, probabilities = weights_of(policy, rows)
        if task.objective == "doubly_robust":
            predicted = jnp.take_along_axis(rows.predictions, rows.actions[:, None], axis=1)[:, 0]
            corrections = weights * (rows.rewards - predicted)
            return jnp.mean(corrections + jnp.sum(probabilities * rows.predictions, axis=1))
        if task.objective == "snips":
            return jnp.sum(weights * rows.rewards) / jnp.sum(weights)
        if task.objective == "variance_penalty":
            terms = jnp.minimum(weights, rates.clip) * rows.rewards
            # the error is that of all data, whatever the rows of this step
            return jnp.mean(terms) - rates.penalty * jnp.sqrt(jnp.var(terms, ddof=1) / count + 1e-12)
        if task.objective == "lower_bound":
            options = dict(weight_range=task.weight_range, reward_range=task.reward_range, level=task.level)
            # float32 ratios may leave the range by their last digit
            inside = jnp.clip(weights, *task.weight_range)
            return empirical_likelihood(inside, rows.rewards, **options).lower.astype(jnp.float32)
        return jnp.mean(omega * weights * rows.rewards)

    def omega_of(policy: LearnedPolicy) -> Array:
        """Per-row factors, of all data under the policy as it is."""
        if task.objective not in _REWEIGHTED:
            return jnp.ones(count)
        with jax.enable_x64(True):
            limits, span = (
                tuple(jnp.asarray(x, jnp.float64) for x in pair) for pair in (task.weight_range, task.reward_range)
            )
            inside = jnp.clip(weights_of(policy, data)[0].astype(jnp.float64), *limits)
            rows = common.Rows(jnp.ones(count, jnp.float64), inside, data.rewards.astype(jnp.float64), ())
            infinite = math.isinf(task.weight_range[1])
            pessimistic = _REWEIGHTED[task.objective]
            at = rows.weights, rows.rewards
            found = likelihood_weights(
                rows, at, (limits, span), infinite=infinite, pessimistic=pessimistic, level=task.level
            )
            return found.astype(jnp.float32)

    size = count if task.objective == "lower_bound" else task.batch_size

    def one_pass(carry: Any, key: Array) -> tuple[Any, Array]:
        omega = omega_of(carry[0])
        order = jax.random.permutation(key, count)[: count // size * size].reshape(-1, size)

        def step(carry: Any, index: Array) -> tuple[Any, Array]:
            policy, state = carry
            rows = jax.tree.map(lambda leaf: leaf[index], data)
            value, gradient = jax.value_and_grad(value_of)(policy, rows, omega[index])
            updates, state = optimiser.update(jax.tree.map(jnp.negative, gradient), state, policy)
            return (optax.apply_updates(policy, updates), state), value

        carry, values = jax.lax.scan(step, carry, order)
        return carry, jnp.mean(values)

    keys = jax.random.split(order_key, task.passes)
    (policy, _), objective = jax.lax.scan(one_pass, (policy, optimiser.init(policy)), keys)
    return Learning(policy, objective)
