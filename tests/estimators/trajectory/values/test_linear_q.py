from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import linear_systems, tabular
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights.magic import magic
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
    return target_actions(data, TARGET)


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

    return changed, target_actions(changed, act, samples=3, key=jax.random.key(0))


@pytest.mark.parametrize("horizon_exit", [True, False])
def test_with_one_hot_features_it_is_the_table(data, target, counts, horizon_exit):
    options = dict(discount=DISCOUNT, counts=counts, horizon_exit=horizon_exit)
    found = linear_q.fit_linear_q(data, target, features=one_hot, ridge=0.0, **options)
    wanted = tabular.tabular_q(data, TARGET, **options)
    np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, STATES).T, wanted, atol=1e-10)
    values = tabular.values_on(data, wanted, TARGET)
    for one, other in zip(found.values, values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    settings = dict(level=0.95, interval="bootstrap" if horizon_exit else "normal", resamples=50)
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
    # of far candidates, of whose squares few data tell: with more of a discount there is no fixed point
    ridge, discount = 0.01, 0.9 if features == "linear" else 0.2
    found = linear_q.fit_linear_q(data, target, features=features, ridge=ridge, discount=discount, counts=counts)
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
            system += counts[i] * np.outer(now, now - discount * after)
            response += counts[i] * now * data.rewards[i, t]
            steps += counts[i]
    theta = np.linalg.solve(system / steps + ridge * np.eye(size), response / steps)
    np.testing.assert_allclose(found.parameters, theta, rtol=1e-8)
    np.testing.assert_allclose(found.values.q[3, 0], x(data.observations[3, 0], data.actions[3, 0, None]) @ theta)
    length = int(data.mask[3].sum())
    if not data.terminated[3].any():
        np.testing.assert_allclose(found.values.final[3], y(3, length, data.final_observation[3]) @ theta)
    value = linear_q.linear_q_evaluation(
        data, target, features=features, ridge=ridge, discount=discount, counts=counts
    ).value
    wanted = sum(counts[i] * y(i, 0, data.observations[i, 0]) @ theta for i in range(N)) / counts.sum()
    np.testing.assert_allclose(value, wanted, rtol=1e-8)


@pytest.mark.parametrize("method", ["fitted", "mrdr"])
def test_moments_by_trajectory_are_those_of_all(data, target, counts, method, monkeypatch):
    settings = dict(
        method=method,
        features=one_hot,
        discount=DISCOUNT,
        counts=counts,
        behaviour_probability=BEHAVIOUR[data.observations],
    )
    one = linear_q.linear_q_evaluation(data, target, **settings)
    monkeypatch.setattr(linear_systems, "_MOST_MOMENTS", 0)
    linear_systems.evaluated.clear_cache()
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
    # DR is the direct method and what the data say against it
    first = np.asarray(found.v)[:, 0]
    one = corrected.doubly_robust(data, log_prob, found.q, found.v, discount=DISCOUNT)
    np.testing.assert_allclose(one.value, first.mean() + float(one.diagnostics["correction"]), rtol=1e-9)
    mixture = magic(data, log_prob, found.q, found.v, discount=DISCOUNT, resamples=20)
    assert 0.0 <= mixture.diagnostics["direct_share"] + mixture.diagnostics["corrected_share"] <= 1.0 + 1e-9


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
        (dict(method="mrdr", behaviour_probability=np.full((N, HORIZON, ACTIONS), 0.4)), "sums to 1"),
        (dict(method="mrdr", horizon_exit=False), "horizon_exit=False"),
    ],
)
def test_what_is_refused(data, target, options, message):
    with pytest.raises(ValueError, match=message):
        linear_q.fit_linear_q(data, target, **options)


def test_continuous_actions_are_refused_where_they_cannot_be(continuous):
    for method in ("q_regression", "mrdr"):
        with pytest.raises(ValueError, match="target_log_prob"):
            linear_q.fit_linear_q(*continuous, method=method)


def as_numbers(data, target):
    """Actions 0 and 1 as numbers, and their probabilities as weights of candidates."""
    weights = target.weights
    candidates = np.broadcast_to(np.arange(ACTIONS)[:, None] + 0.0, (*weights.shape, 1))
    return data._replace(actions=data.actions[..., None] + 0.0), TargetActions(candidates, weights)


def joint(state, action):
    """Features of pairs that are no table."""
    s, a = state.astype(jnp.float64), action[0].astype(jnp.float64)
    return jnp.stack([jnp.ones_like(s), s, a, s * a])


def test_least_variance_of_continuous_actions_is_the_least_mean_square(data, target, counts):
    """`rho_t R_t = (rho_t x_t - y_t) . theta` by NumPy's least squares, with weights `gamma^2t w_{t-1}^2`."""
    numbers, candidates = as_numbers(data, target)
    log_prob = np.log(TARGET)[data.observations, data.actions]
    options = dict(target_log_prob=log_prob, features=joint, ridge=1e-9, discount=DISCOUNT, counts=counts)
    found = linear_q.fit_linear_q(numbers, candidates, method="mrdr", **options)

    def x(s, a):
        return np.array([1.0, s, a, s * a])

    design, response = [], []
    for i in range(N):
        length = int(data.mask[i].sum())
        s, a, r = (np.asarray(column[i, :length]) for column in (data.observations, data.actions, data.rewards))
        ratio = TARGET[s, a] / BEHAVIOUR[s, a]
        w = np.cumprod(np.concatenate([[1.0], ratio]))
        for t in range(length):
            ahead = sum(DISCOUNT ** (k - t) * w[k + 1] / w[t + 1] * r[k] for k in range(t, length))
            y = sum(TARGET[s[t], b] * x(s[t], b) for b in range(ACTIONS))
            scale = np.sqrt(counts[i]) * DISCOUNT**t * w[t]
            design.append(scale * (ratio[t] * x(s[t], a[t]) - y))
            response.append(scale * ratio[t] * ahead)
    # of two actions `rho x - y` are collinear in each of three states: four parameters are not told apart
    design = np.array(design)
    wanted = design @ np.linalg.lstsq(design, np.array(response), rcond=None)[0]
    np.testing.assert_allclose(design @ np.asarray(found.parameters), wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 0.1


def test_least_variance_of_continuous_actions_has_less_than_none_and_than_fitting_returns():
    """One step, rewards that are a parabola of the action and much noise of the ratio."""
    rng = np.random.default_rng(3)
    n, gap = 4000, 0.7
    actions = rng.normal(size=(n, 1, 1))
    rewards = 3.0 + actions[..., 0] + 0.3 * rng.normal(size=(n, 1))
    yes = np.ones((n, 1), bool)
    log_behaviour, log_target = (-0.5 * (actions[..., 0] - m) ** 2 for m in (0.0, gap))
    data = Trajectories(np.zeros((n, 1, 1)), actions, rewards, log_behaviour, yes, yes, ~yes, None)
    target = target_actions(
        data, lambda key, s: gap + jax.random.normal(key, s.shape), samples=200, key=jax.random.key(0)
    )
    # a constant, so that the action's effect cannot be had
    options = dict(features=lambda s, a: jnp.ones(1), target_log_prob=log_target, ridge=0.0)
    constant = {
        method: linear_q.fit_linear_q(data, target, method=method, **options) for method in ("mrdr", "q_regression")
    }
    errors = {
        method: float(corrected.doubly_robust(data, log_target, fit.values.q, fit.values.v).standard_error)
        for method, fit in constant.items()
    }
    errors["none"] = float(corrected.doubly_robust(data, log_target, np.zeros((n, 1)), np.zeros((n, 1))).standard_error)
    # rho R = (rho - 1) theta has its own slope, E[(rho - 1) rho R] / E[(rho - 1)^2], which is not E[rho R]
    assert errors["mrdr"] < 0.98 * errors["q_regression"] < errors["none"]


def test_features_that_are_not_finite_and_several_policies_are_refused(data, target):
    with pytest.raises(ValueError, match="features must be finite"):
        linear_q.fit_linear_q(data, target, features=lambda s: one_hot(s) / (0.0 * s))
    several = target._replace(weights=jnp.stack([target.weights, target.weights]))
    with pytest.raises(ValueError, match="one policy"):
        linear_q.fit_linear_q(data, several, features=one_hot)


def test_a_discount_of_0_and_a_single_trajectory(data, target):
    """Q is the mean reward of a pair; the standard error of one row is not known, and no number is lost."""
    found = linear_q.fit_linear_q(data, target, features=one_hot, ridge=0.0, discount=0.0)
    shown = data.mask & (data.observations == 1) & (data.actions == 0)
    np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, STATES)[0, 1], data.rewards[shown].mean())
    one = jax.tree.map(lambda x: x[:1], (data, target))
    assert np.isfinite(linear_q.linear_q_evaluation(*one, features=one_hot, discount=DISCOUNT).value)
