from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory import corrected, linear_q, tabular
from jaxrl_off.estimators.trajectory import transitions as tr
from jaxrl_off.types import Trajectories

STATES, ACTIONS, N, HORIZON, DISCOUNT = 3, 2, 40, 5, 0.9
TARGET = np.array([[0.3, 0.7], [0.8, 0.2], [0.5, 0.5]])
BEHAVIOUR = np.array([[0.6, 0.4], [0.5, 0.5], [0.25, 0.75]])


def one_hot(state):
    return jax.nn.one_hot(state, STATES)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, HORIZON + 1, size=N)
    mask = np.arange(HORIZON) < lengths[:, None]
    last = np.arange(HORIZON) == lengths[:, None] - 1
    states = rng.integers(STATES, size=mask.shape)
    actions = (rng.uniform(size=mask.shape) < BEHAVIOUR[states, 1]).astype(int)
    kind = rng.integers(3, size=(N, 1))
    log_prob = np.log(BEHAVIOUR[states, actions])
    rewards = rng.normal(states + actions, 1.0)
    return Trajectories(
        states, actions, rewards, log_prob, mask, last & (kind == 0), last & (kind == 1), rng.integers(STATES, size=N)
    )


@pytest.fixture(scope="module")
def target(data):
    return tr.target_actions(data, TARGET)


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(1).integers(0, 3, size=N).astype(float)


@pytest.fixture(scope="module")
def continuous(data):
    """Observations of two numbers, actions of one, and three candidates that are drawn."""
    rng = np.random.default_rng(2)
    table = rng.normal(5.0, 3.0, size=(STATES, 2))
    changed = data._replace(
        observations=table[data.observations] + rng.normal(size=(N, HORIZON, 2)),
        actions=rng.normal(2.0, 3.0, size=(N, HORIZON)),
        final_observation=table[data.final_observation],
    )

    def act(key, observation):
        return observation.sum(-1, keepdims=True) + jax.random.normal(key, (len(observation), 1))

    return changed, tr.target_actions(changed, act, samples=3, key=jax.random.key(0))


@pytest.mark.parametrize("horizon_exit", [True, False])
def test_with_one_hot_features_it_is_the_table(data, target, counts, horizon_exit):
    options = dict(discount=DISCOUNT, counts=counts, horizon_exit=horizon_exit)
    found = linear_q.fit_linear_q(data, target, features=one_hot, ridge=0.0, **options)
    wanted = tabular.tabular_q(data, TARGET, **options)
    np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, STATES).T, wanted, atol=1e-10)
    values = tabular.values_on(data, wanted, TARGET)
    for one, other in zip(found.values, values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    settings = dict(level=0.95, interval="bootstrap", resamples=50)
    one = linear_q.linear_q_evaluation(data, target, features=one_hot, ridge=0.0, **options, **settings)
    other = tabular.model_based(data, TARGET, **options, **settings)
    for name in ("value", "standard_error", "lower", "upper", "effective_sample_size"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)


def test_pairs_that_are_not_seen_are_worth_nothing(data, target):
    data = data._replace(actions=np.where(data.observations == 1, 0, data.actions))
    found = linear_q.fit_linear_q(data, target, features=one_hot, ridge=0.0, discount=DISCOUNT)
    wanted = tabular.tabular_q(data, TARGET, discount=DISCOUNT, unseen="zero")
    np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, STATES).T, wanted, atol=1e-10)


def test_regression_of_returns_is_that_of_the_table(data, target, counts):
    found = linear_q.fit_linear_q(
        data, target, method="q_regression", features=one_hot, ridge=0.0, discount=DISCOUNT, counts=counts
    )
    wanted = tabular.q_regression(data, TARGET, discount=DISCOUNT, counts=counts)
    np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, STATES).T, wanted, atol=1e-10)
    log_prob = np.log(TARGET)[data.observations, data.actions]
    given = linear_q.fit_linear_q(
        data, target, method="q_regression", target_log_prob=log_prob, discount=DISCOUNT, counts=counts
    )
    without = linear_q.fit_linear_q(data, target, method="q_regression", discount=DISCOUNT, counts=counts)
    np.testing.assert_allclose(given.parameters, without.parameters, rtol=1e-9)


def test_least_variance_is_that_of_the_table(data, target, counts):
    """Functions of the null space of Omega apart, which the doubly robust estimate does not see."""
    probability = BEHAVIOUR[data.observations]
    options = dict(discount=DISCOUNT, counts=counts)
    found = linear_q.fit_linear_q(
        data, target, method="mrdr", features=one_hot, ridge=1e-9, behaviour_probability=probability, **options
    ).values
    wanted = tabular.values_on(data, tabular.mrdr(data, TARGET, BEHAVIOUR, **options), TARGET)
    log_prob = np.log(TARGET)[data.observations, data.actions]
    one, other = (corrected.doubly_robust(data, log_prob, v.q, v.v, **options) for v in (found, wanted))
    np.testing.assert_allclose(one.value, other.value, rtol=1e-6)
    np.testing.assert_allclose(one.standard_error, other.standard_error, rtol=1e-6)
    assert not np.allclose(found.q, 0.0)


def test_least_variance_minimises_its_own_objective(data, target):
    """With features that are no table, against the objective written out and minimised by NumPy."""
    states = np.array([[1.0, 0.2], [1.0, -1.0], [1.0, 0.5]])
    found = linear_q.fit_linear_q(
        data,
        target,
        method="mrdr",
        features=lambda s: jnp.asarray(states)[s],
        ridge=0.0,
        behaviour_probability=BEHAVIOUR[data.observations],
        discount=DISCOUNT,
    ).parameters
    system, response = np.zeros((4, 4)), np.zeros(4)
    for i in range(N):
        length = int(data.mask[i].sum())
        s, a, r = (np.asarray(x[i, :length]) for x in (data.observations, data.actions, data.rewards))
        ratio = TARGET[s, a] / BEHAVIOUR[s, a]
        w = np.cumprod(np.concatenate([[1.0], ratio]))
        for t in range(length):
            ahead = sum(DISCOUNT ** (k - t) * w[k + 1] / w[t + 1] * r[k] for k in range(t, length))
            factor = DISCOUNT ** (2 * t) * w[t] ** 2 * ratio[t]
            omega = np.diag(1 / BEHAVIOUR[s[t]]) - 1.0
            design = np.diag(TARGET[s[t]]) @ np.kron(np.eye(2), states[s[t]])
            system += factor * design.T @ omega @ design
            response += factor * design.T @ omega @ (ahead * np.eye(2)[a[t]])
    np.testing.assert_allclose(system @ np.asarray(found), response, rtol=1e-8, atol=1e-8 * np.abs(response).max())


@pytest.mark.parametrize("features", ["linear", "quadratic"])
def test_continuous_actions_against_a_loop(continuous, counts, features):
    data, target = continuous
    ridge = 0.01
    found = linear_q.fit_linear_q(data, target, features=features, ridge=ridge, discount=DISCOUNT, counts=counts)
    shown = (data.mask * counts[:, None]).astype(int)
    rows = np.repeat(
        np.concatenate([data.observations, data.actions[..., None]], -1)[data.mask], shown[data.mask], axis=0
    )
    mean, deviation = rows.mean(0), rows.std(0)

    def x(s, a):
        z = np.concatenate([[1.0], (np.concatenate([s, a]) - mean) / deviation])
        return z if features == "linear" else np.array([z[i] * z[j] for i in range(4) for j in range(i, 4)])

    actions, weights = np.asarray(target.actions), np.asarray(target.weights)

    def y(i, t, state):
        return sum(weights[i, t, m] * x(state, actions[i, t, m]) for m in range(3))

    size = 4 if features == "linear" else 10
    system, response, steps = np.zeros((size, size)), np.zeros(size), 0.0
    for i in range(N):
        length = int(data.mask[i].sum())
        for t in range(length):
            now = x(data.observations[i, t], data.actions[i, t, None])
            after = y(i, t + 1, data.observations[i, t + 1]) if t + 1 < length else 0.0
            system += counts[i] * np.outer(now, now - DISCOUNT * after)
            response += counts[i] * now * data.rewards[i, t]
            steps += counts[i]
    theta = np.linalg.solve(system / steps + ridge * np.eye(size), response / steps)
    np.testing.assert_allclose(found.parameters, theta, rtol=1e-8)
    np.testing.assert_allclose(found.values.q[3, 0], x(data.observations[3, 0], data.actions[3, 0, None]) @ theta)
    length = int(data.mask[3].sum())
    if not data.terminated[3].any():
        np.testing.assert_allclose(found.values.final[3], y(3, length, data.final_observation[3]) @ theta)
    value = linear_q.linear_q_evaluation(
        data, target, features=features, ridge=ridge, discount=DISCOUNT, counts=counts
    ).value
    wanted = sum(counts[i] * y(i, 0, data.observations[i, 0]) @ theta for i in range(N)) / counts.sum()
    np.testing.assert_allclose(value, wanted, rtol=1e-8)


@pytest.mark.parametrize("method", ["fitted", "q_regression", "mrdr"])
def test_moments_by_trajectory_are_those_of_all(data, target, counts, method, monkeypatch):
    settings = dict(
        method=method,
        features=one_hot,
        discount=DISCOUNT,
        counts=counts,
        behaviour_probability=BEHAVIOUR[data.observations],
    )
    one = linear_q.linear_q_evaluation(data, target, **settings)
    monkeypatch.setattr(linear_q, "_MOST_MOMENTS", 0)
    linear_q.evaluated.clear_cache()
    other = linear_q.linear_q_evaluation(data, target, **settings)
    np.testing.assert_allclose(one.value, other.value, rtol=1e-9)
    np.testing.assert_allclose(one.standard_error, other.standard_error, rtol=1e-8)


def test_standard_error_is_that_of_resamples(data, target):
    table = jnp.asarray([[1.0, 0.2], [1.0, -1.0], [1.0, 0.5]])
    settings = dict(features=lambda s: table[s], discount=DISCOUNT, level=0.95)
    found = linear_q.linear_q_evaluation(data, target, interval="normal", **settings)
    resampled = linear_q.linear_q_evaluation(data, target, interval="bootstrap", resamples=500, **settings)
    np.testing.assert_allclose(found.upper - found.lower, resampled.upper - resampled.lower, rtol=0.15)


def test_cross_fitting_predicts_from_the_others(data, target):
    def fit(counts):
        return linear_q.fit_linear_q(data, target, features=one_hot, discount=DISCOUNT, counts=counts).values

    found = corrected.cross_fitted(fit, np.ones(N), folds=2, seed=0)
    member = np.random.default_rng(0).permutation(np.arange(N) % 2)
    alone = fit(np.where(member == 1, 0.0, 1.0))
    np.testing.assert_allclose(found.q[member == 1], np.asarray(alone.q)[member == 1])
    log_prob = np.log(TARGET)[data.observations, data.actions]
    for estimator in (corrected.doubly_robust, corrected.weighted_doubly_robust, corrected.magic):
        assert np.isfinite(estimator(data, log_prob, found.q, found.v, discount=DISCOUNT).value)


def test_value_has_a_gradient_in_rewards(data, target):
    def value(rewards):
        return linear_q.linear_q_evaluation(data._replace(rewards=rewards), target, features=one_hot).value

    with jax.enable_x64(True):
        gradient = jax.grad(value)(jnp.asarray(data.rewards))
        moved = value(jnp.asarray(data.rewards).at[0, 0].add(0.5)) - value(jnp.asarray(data.rewards))
    np.testing.assert_allclose(gradient[0, 0] * 0.5, moved, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="lstd"), "method must be one of"),
        (dict(features="cubic"), "features must be"),
        (dict(features=lambda s: 1.0 * s), "a vector"),
        (dict(method="mrdr"), "behaviour_probability"),
        (dict(method="mrdr", behaviour_probability=np.zeros((N, HORIZON, ACTIONS))), "above 0"),
        (dict(method="mrdr", horizon_exit=False), "horizon_exit=False"),
    ],
)
def test_what_is_refused(data, target, options, message):
    with pytest.raises(ValueError, match=message):
        linear_q.fit_linear_q(data, target, **options)


def test_continuous_actions_are_refused_where_they_cannot_be(continuous):
    with pytest.raises(ValueError, match="discrete actions"):
        linear_q.fit_linear_q(*continuous, method="mrdr")
    with pytest.raises(ValueError, match="target_log_prob"):
        linear_q.fit_linear_q(*continuous, method="q_regression")
