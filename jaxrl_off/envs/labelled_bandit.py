"""Labelled examples as a contextual bandit: a policy guesses labels, is told if it was right, learns and leaves a log.

Actions are the K labels, the reward is 1 for the right one and else 0. What the truth is remains known, so that
estimates from such a log can be judged. All is pure functions of arrays and keys; `jax.jit` and `jax.vmap` over keys
work.

A logging policy is made of m linear regressions of the cost 1 - r on (x, 1), one for each action ("one against all"),
which begin at cost 0: what has not been tried is thought to be good. One observation with target y and importance h
changes a regression with weights w, x including the constant, by

    G_j += h ((y - w.x) x_j)^2,    rate_j = learning_rate / sqrt(G_j),    s = sum_j rate_j x_j^2,
    w_j += rate_j x_j (y - w.x) (1 - exp(-h s)) / s,

which are AdaGrad's rates in the importance invariant update of the squared loss: that of importance h is as good as h
small ones, and never overshoots y. What is learned from is always the logged decision alone, weighted by 1 / h(a|x):

* `epsilon_greedy`: h(a|x) = epsilon / K + (1 - epsilon) 1[a = argmin cost]; the regression of the chosen action learns
  its cost with importance 1 / h(a|x);
* `softmax`: h(a|x) proportional to exp(-temperature cost), costs clipped to [0, 1]; the same update;
* `bag`: m such policies without exploration, of which each takes an observation Poisson(1) times; h(a|x) is the share
  of members whose best action is a;
* `cover`: m policies, h(a|x) again the share. The first learns as above. The others regress, for all actions, the
  doubly robust cost c(b) = q_1(x, b) + 1[b = a] (1 - r - q_1(x, a)) / h(a|x), where q_1 is what the first predicts,
  clipped to [0, 1], less a bonus psi e_t / p_i(b), where p_i(b) = e_t + (1 - K e_t) (share of policies 1 .. i - 1 which
  choose b) and e_t = min(1 / K, 1 / sqrt(K t)): later ones do what earlier ones leave.

Deviations. This is Vowpal Wabbit's `--cb_explore` in kind, not in its digits: its regressions have normalised updates
as well (standardise features here), and by default the chosen action's regression is weighted (importance weighted
regression of Bietti et al.), where its `--cb_type ips` is `costs="ips"` here. `cover` is the
online form which Bietti et al. give, without uniform exploration ("Cover-NU"), so that no propensity is below
1 / m, where Vowpal Wabbit's own default mixes in e_t for every action (checked with version 9.11.9: after t
observations none has less than min(1 / K, 1 / sqrt(K t))) unless `--nounif` leaves it out, which we follow; it is not
the optimisation problem of Agarwal et al. An action that no member of `bag` or `cover` chooses has
propensity 0, so that a log does not cover policies which take it.

References: Agarwal, Hsu, Kale, Langford, Li and Schapire, "Taming the Monster", ICML 2014; Bietti, Agarwal and
Langford, "A Contextual Bandit Bake-off", JMLR 2021; Karampatziakis and Langford, "Online Importance Weight Aware
Updates", UAI 2011; Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011; Karampatziakis, Langford and
Mineiro, "Empirical Likelihood for Contextual Bandits", NeurIPS 2020, whose experiments take such logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.types import Array

KINDS = ("epsilon_greedy", "softmax", "bag", "cover")
COSTS = ("importance", "ips")


class LoggerState(NamedTuple):
    """What a logging policy has learned; a pytree.

    Attributes:
        weights: `float32[m, K, d + 1]`, of the costs; the constant's is last.
        squares: `float32[m, K, d + 1]`, G.
        rows: `int32[]`, how many observations were learned from.
    """

    weights: Array
    squares: Array
    rows: Array


class Logger(NamedTuple):
    """A logging policy: pure functions, made by `make_logger`.

    Attributes:
        init: `(num_features) -> LoggerState`.
        probabilities: `(state, x [d]) -> float32[K]`, h(.|x).
        greedy: `(state, x [d]) -> int32[]`, the best action without exploration: of a bag, that of most members; of a
            cover, that of the first policy. The lowest of equals.
        update: `(key, state, x [d], action, reward, propensity) -> LoggerState`; rewards in [0, 1]. The importance is
            1 / propensity; nothing is learned where the propensity is infinite.
        num_actions: K.
        weight_max: the largest 1 / h(a|x) of any logged action, in float64 of float32 propensities: K / epsilon; m of
            `bag` and `cover`; 1 + (K - 1) exp(temperature) of `softmax`.
    """

    init: Callable[[int], LoggerState]
    probabilities: Callable[[LoggerState, Array], Array]
    greedy: Callable[[LoggerState, Array], Array]
    update: Callable[[Array, LoggerState, Array, Array, Array, Array], LoggerState]
    num_actions: int
    weight_max: float


class Decisions(NamedTuple):
    """Logged guesses of n labels.

    Attributes:
        action: `int32[n]`.
        reward: `float32[n]`, 1 where it is the label, else 0.
        propensity: `float32[n]`, h(a|x).
        probabilities: `float32[n, K]`, h(.|x), of which `propensity` is one.
    """

    action: Array
    reward: Array
    propensity: Array
    probabilities: Array


def make_logger(
    kind: str,
    num_actions: int,
    *,
    epsilon: float = 0.1,
    temperature: float = 5.0,
    members: int = 10,
    psi: float = 1.0,
    learning_rate: float = 0.1,
    costs: str = "importance",
) -> Logger:
    """A logging policy; see the module for what each kind does.

    Args:
        kind: one of `KINDS`.
        num_actions: K.
        epsilon: of `epsilon_greedy`, in (0, 1].
        temperature: of `softmax`, the inverse one that multiplies costs; at most some 87 - log(K - 1), beyond which
            float32 does not hold the smallest propensity.
        members: m of `bag` and `cover`, 2 or more.
        psi: of `cover`, how much is made of actions which other policies leave; with 0.1 policies mostly agree. 1 is
            Vowpal Wabbit's.
        learning_rate: of all; 0.1 is that of the experiments on empirical likelihood.
        costs: "importance": what the module says. "ips": every regression of all actions learns the costs
            `c(b) = 1[b = a] (1 - r) / h(a|x)` with importance 1 (less the bonus, in `cover`), as Vowpal Wabbit's
            `--cb_type ips`.

    Returns:
        A `Logger`.

    Raises:
        ValueError: for values that are not allowed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if costs not in COSTS:
        raise ValueError(f"costs must be one of {', '.join(COSTS)}, got {costs!r}.")
    if num_actions < 2:
        raise ValueError(f"num_actions must be at least 2, got {num_actions}; there is nothing to choose.")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1], got {epsilon}; without exploration nothing can be estimated.")
    if members < 2:
        raise ValueError(f"members must be at least 2, got {members}; a single one does not explore.")
    positive = {"temperature": temperature, "psi": psi, "learning_rate": learning_rate}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    count = members if kind in ("bag", "cover") else 1
    lowest = (
        np.float32(epsilon) / np.float32(num_actions) if kind == "epsilon_greedy" else np.float32(1) / np.float32(count)
    )
    weight_max = 1.0 / float(lowest)
    if kind == "softmax":
        most = -math.log(np.finfo(np.float32).tiny) - math.log(num_actions - 1)
        if temperature > most:
            raise ValueError(
                f"temperature must be at most {most:.4g} with {num_actions} actions, got {temperature}; propensities "
                "would be 0 in float32."
            )
        weight_max = (1.0 + (num_actions - 1) * math.exp(temperature)) * (1.0 + 1e-5)

    def init(num_features: int) -> LoggerState:
        shape = (count, num_actions, num_features + 1)
        return LoggerState(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((), jnp.int32))

    def votes(state: LoggerState, x: Array) -> Array:
        """The best action of each member, one-hot: `float32[m, K]`."""
        return jax.nn.one_hot(jnp.argmin(_costs(state, x), axis=-1), num_actions)

    def probabilities(state: LoggerState, x: Array) -> Array:
        if kind == "softmax":
            return jax.nn.softmax(-temperature * jnp.clip(_costs(state, x)[0], 0.0, 1.0))
        if kind == "epsilon_greedy":
            # rounding may take what is left below the lowest where epsilon is 1
            return jnp.where(votes(state, x)[0] > 0, jnp.maximum(1.0 - (num_actions - 1) * lowest, lowest), lowest)
        return jnp.sum(votes(state, x), axis=0) / count

    def greedy(state: LoggerState, x: Array) -> Array:
        chosen = votes(state, x)
        return jnp.argmax(chosen[0] if kind == "cover" else jnp.sum(chosen, axis=0))

    def learn_chosen(state: LoggerState, x: Array, action: Array, cost: Array, importances: Array) -> LoggerState:
        """Regressions of one action, of members with importances `[m]`."""
        regress = jax.vmap(_regress, in_axes=(0, 0, None, None, 0, None))
        old = state.weights[:, action], state.squares[:, action]
        weights, squares = regress(*old, _with_constant(x), cost, importances, learning_rate)
        made = state.weights.at[:, action].set(weights), state.squares.at[:, action].set(squares)
        return LoggerState(*made, state.rows)

    def learn_all(state: LoggerState, x: Array, targets: Array, importances: Array) -> LoggerState:
        """Regressions of all actions on `[m, K]` targets, of members with importances `[m]`."""
        regress = jax.vmap(_regress, in_axes=(0, 0, None, 0, None, None))
        regress = jax.vmap(regress, in_axes=(0, 0, None, 0, 0, None))
        made = regress(state.weights, state.squares, _with_constant(x), targets, importances, learning_rate)
        return LoggerState(*made, state.rows)

    def update(
        key: Array, state: LoggerState, x: Array, action: Array, reward: Array, propensity: Array
    ) -> LoggerState:
        chex.assert_rank([x, action, reward, propensity], [1, 0, 0, 0])
        seen = jnp.isfinite(propensity)
        state, cost = state._replace(rows=state.rows + seen), 1.0 - reward
        weighted = jnp.zeros(num_actions).at[action].set(cost / propensity)
        if kind != "cover":
            times = jax.random.poisson(key, 1.0, (count,)) if kind == "bag" else jnp.ones(count)
            if costs == "ips":
                return learn_all(state, x, jnp.tile(weighted, (count, 1)), times * seen)
            return learn_chosen(state, x, action, cost, times / propensity)
        if costs == "ips":
            targets = jnp.concatenate([weighted[None], weighted - bonus(state, x)])
            return learn_all(state, x, targets, jnp.tile(seen.astype(jnp.float32), count))
        predicted = jnp.clip(_costs(state, x)[0], 0.0, 1.0)
        robust = predicted.at[action].add((cost - predicted[action]) / propensity)
        parts = (
            LoggerState(state.weights[part], state.squares[part], state.rows) for part in (slice(1), slice(1, None))
        )
        first = learn_chosen(next(parts), x, action, cost, 1.0 / propensity[None])
        rest = learn_all(next(parts), x, robust - bonus(state, x), jnp.tile(seen.astype(jnp.float32), count - 1))
        weights = jnp.concatenate([first.weights, rest.weights])
        return LoggerState(weights, jnp.concatenate([first.squares, rest.squares]), state.rows)

    def bonus(state: LoggerState, x: Array) -> Array:
        """What later policies of a cover are given for actions that earlier ones leave, `float32[m - 1, K]`."""
        explore = jnp.minimum(1.0 / num_actions, 1.0 / jnp.sqrt(num_actions * state.rows.astype(jnp.float32)))
        earlier = jnp.cumsum(votes(state, x), axis=0)[:-1] / jnp.arange(1, count)[:, None]
        return psi * explore / (explore + (1.0 - num_actions * explore) * earlier)

    return Logger(init, probabilities, greedy, update, num_actions, weight_max)


def log_decisions(
    logger: Logger, key: Array, state: LoggerState, features: Array, labels: Array, *, learning: bool
) -> tuple[LoggerState, Decisions]:
    """Guess the labels of one row after the other.

    Args:
        logger: of `make_logger`.
        key: consumed.
        state: of `logger.init(d)`, or of an earlier call.
        features: `float[n, d]`, of order 1: see `standardise`.
        labels: `int[n]`, in [0, K).
        learning: whether the policy learns from each row before the next. Otherwise it stays as it is.

    Returns:
        The state after the last row, and the decisions.
    """
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    features, labels = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    if not learning:
        return state, sample_decisions(key, jax.vmap(logger.probabilities, (None, 0))(state, features), labels)

    def step(state: LoggerState, row: tuple[Array, Array, Array]) -> tuple[LoggerState, Decisions]:
        key, x, label = row
        act_key, learn_key = jax.random.split(key)
        made = _decide(act_key, logger.probabilities(state, x), label)
        return logger.update(learn_key, state, x, made.action, made.reward, made.propensity), made

    return jax.lax.scan(step, state, (jax.random.split(key, len(labels)), features, labels))


def train_logger(logger: Logger, key: Array, features: Array, labels: Array, *, passes: int = 1) -> LoggerState:
    """The state of a logging policy that has learned from its own guesses in some passes over the rows, in their order.

    Args:
        logger: of `make_logger`.
        key: consumed.
        features: `float[n, d]`, of order 1.
        labels: `int[n]`, in [0, K).
        passes: 1 or more; guesses are made anew in each.

    Raises:
        AssertionError: for features that are no matrix, or not as many labels.
        ValueError: if `passes` is below 1.
    """
    chex.assert_rank([features, labels], [2, 1])
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}.")

    def one_pass(state: LoggerState, key: Array) -> tuple[LoggerState, None]:
        return log_decisions(logger, key, state, features, labels, learning=True)[0], None

    return jax.lax.scan(one_pass, logger.init(jnp.shape(features)[1]), jax.random.split(key, passes))[0]


def sample_decisions(key: Array, probabilities: Array, labels: Array) -> Decisions:
    """Guesses of a policy that does not learn.

    Args:
        key: consumed.
        probabilities: `float[n, K]`, rows sum to 1.
        labels: `int[n]`.
    """
    chex.assert_rank([probabilities, labels], [2, 1])
    chex.assert_equal_shape_prefix([probabilities, labels], 1)
    keys = jax.random.split(key, len(labels))
    return jax.vmap(_decide)(keys, jnp.asarray(probabilities, jnp.float32), jnp.asarray(labels, jnp.int32))


def greedy_policy(logger: Logger, state: LoggerState, features: Array) -> Array:
    """`float32[n, K]`: 1 for the best action of each row, a target for logs of other policies."""
    best = jax.vmap(logger.greedy, (None, 0))(state, jnp.asarray(features, jnp.float32))
    return jax.nn.one_hot(best, logger.num_actions)


def target_propensities(decisions: Decisions, target: Array) -> Array:
    """pi(a|x) of the logged actions, `float[n]`, of a target policy `float[n, K]`."""
    chex.assert_equal_shape([decisions.probabilities, target])
    return jnp.take_along_axis(target, decisions.action[:, None], axis=1)[:, 0]


def true_value(target: Array, labels: Array) -> Array:
    """`mean pi(label|x)`: the value, on these rows, that estimates for a target policy `float[n, K]` should have."""
    chex.assert_rank([target, labels], [2, 1])
    return jnp.mean(jnp.take_along_axis(target, jnp.asarray(labels, jnp.int32)[:, None], axis=1))


def standardise(features: Any) -> np.ndarray:
    """Columns less their mean, over their standard deviation, `float32[n, d]`; constant ones become 0.

    Raises:
        ValueError: if features are not a matrix of finite numbers.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
        raise ValueError(
            f"features must be a matrix of finite numbers with rows, got shape {features.shape}; drop bad rows."
        )
    largest = np.abs(features).max(axis=0)
    scaled = features / np.where(largest > 0, largest, 1.0)
    spread = scaled.std(axis=0)
    return ((scaled - scaled.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)).astype(np.float32)


def _decide(key: Array, probabilities: Array, label: Array) -> Decisions:
    action = jax.random.categorical(key, jnp.log(probabilities))
    return Decisions(action, (action == label).astype(jnp.float32), probabilities[action], probabilities)


def _with_constant(x: Array) -> Array:
    return jnp.append(x, 1.0)


def _costs(state: LoggerState, x: Array) -> Array:
    return state.weights @ _with_constant(x)


def _regress(
    weights: Array, squares: Array, x: Array, target: Array, importance: Array, learning_rate: float
) -> tuple[Array, Array]:
    """One importance invariant step of AdaGrad on the squared loss; see the module."""
    error = target - weights @ x
    squares = squares + importance * jnp.square(error * x)
    rates = jnp.where(squares > 0, learning_rate / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    length = rates @ jnp.square(x)
    share = jnp.where(length > 0, -jnp.expm1(-importance * length) / jnp.where(length > 0, length, 1.0), 0.0)
    return weights + rates * x * error * share, squares
