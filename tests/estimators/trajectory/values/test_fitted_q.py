from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import chain
from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
from jaxrl_off.estimators.trajectory.values import fitting_q as q_training
from jaxrl_off.estimators.trajectory.values import network as fitted_q
from jaxrl_off.estimators.trajectory.values import tabular
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Trajectories

HORIZON, N, DISCOUNT = 4, 300, 0.98
STATES = len(chain.graph(HORIZON, discount=DISCOUNT).terminal)
CONFIG = fitted_q.FittedQConfig(sizes=(32,), updates=2000, batch_size=64, learning_rate=0.01)
BRIEF = CONFIG.replace(sizes=(8,), updates=20, batch_size=16, target_period=10, members=2)
MINIMAX = fitted_q.MinimaxQConfig(sizes=(16,), updates=2000, batch_size=128, features=64, learning_rate=0.01)


@pytest.fixture(scope="module")
def process():
    return chain.graph(HORIZON, discount=DISCOUNT)


@pytest.fixture(scope="module")
def policy(process):
    states = len(process.terminal)
    return np.tile([0.8, 0.2], (states, 1))


@pytest.fixture(scope="module")
def numbered(process, policy):
    behaviour = np.full_like(policy, 0.5)
    return jax.tree.map(np.asarray, process.sampler()(jax.random.key(0), N, behaviour))


@pytest.fixture(scope="module")
def data(numbered, policy):
    """The same with vectors for states."""
    eye = np.eye(len(policy), dtype=np.float32)
    final = np.zeros(N, int) if numbered.final_observation is None else numbered.final_observation
    return numbered._replace(observations=eye[numbered.observations], final_observation=eye[final])


@pytest.fixture(scope="module")
def target(numbered, policy):
    return target_actions(numbered._replace(final_observation=np.zeros(N, int)), policy)


@pytest.fixture(scope="module")
def fit(data, target):
    return fitted_q.fit_network_q(data, target, jax.random.key(0), CONFIG, discount=DISCOUNT)


def test_it_comes_to_the_value_of_the_counted_model_and_near_the_truth(process, numbered, data, target, policy, fit):
    """What tabular fitted Q-evaluation has in closed form is what networks of one-hot states have to find."""
    model = tabular.model_based(numbered, policy, discount=DISCOUNT)
    value = np.asarray(fit.member_values)[0]
    assert abs(value - float(model.value)) < 0.05
    assert abs(value - float(process.value(policy))) < 4 * float(model.standard_error) + 0.05
    wanted = tabular.values_on(numbered, tabular.tabular_q(numbered, policy, discount=DISCOUNT), policy)
    assert np.sqrt(np.mean((np.asarray(fit.values.q) - np.asarray(wanted.q)) ** 2)) < 0.1
    found = corrected.direct_method(data, fit.values.v)
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    # what is left is the noise of rewards and transitions
    assert float(fit.losses[0, -1]) < float(fit.losses[0, 0])


def test_values_feed_the_corrected_estimators(numbered, data, policy, fit):
    log_prob = np.log(policy)[numbered.observations, numbered.actions]
    table = tabular.values_on(numbered, tabular.tabular_q(numbered, policy, discount=DISCOUNT), policy)
    zero = np.zeros((N, HORIZON))
    none, wanted, found = (
        corrected.doubly_robust(data, log_prob, q, v, discount=DISCOUNT)
        for q, v in ((zero, zero), (table.q, table.v), (fit.values.q, fit.values.v))
    )
    np.testing.assert_allclose(found.value, wanted.value, atol=0.03)
    np.testing.assert_allclose(found.standard_error, wanted.standard_error, rtol=0.05)
    assert found.standard_error < none.standard_error


@pytest.mark.parametrize(
    ("config", "bound"),
    [(CONFIG.replace(sizes=(32, 32), updates=2000), 60.0), (MINIMAX.replace(sizes=(32, 32), updates=3000), 120.0)],
)
def test_continuous_actions_against_the_exact_value(config, bound):
    """`s' = (s + a) / 2`, `r = s - a^2`, the target has `a = s / 2`: V is a parabola. The process does not end."""
    rng = np.random.default_rng(0)
    n, horizon, discount = 400, 4, 0.5
    states, actions = np.zeros((n, horizon + 1)), rng.normal(size=(n, horizon))
    states[:, 0] = rng.normal(size=n)
    for t in range(horizon):
        states[:, t + 1] = 0.5 * (states[:, t] + actions[:, t])
    no = np.zeros((n, horizon), bool)
    # the units of observations must not matter
    data = Trajectories(
        100.0 + 30.0 * states[:, :-1, None],
        actions[..., None],
        1000.0 * (states[:, :-1] - actions**2),
        None,
        ~no,
        no,
        no,
        100.0 + 30.0 * states[:, -1, None],
    )
    target = target_actions(data, lambda key, s: 0.5 * (s - 100.0) / 30.0, samples=1, key=jax.random.key(0))
    fit = fitted_q.fit_network_q(data, target, jax.random.key(0), config, discount=discount, horizon_exit=False)

    def value(s):
        return 1000.0 * (s / (1 - 0.75 * discount) - 0.25 * s**2 / (1 - 0.75**2 * discount))

    error = np.asarray(fit.values.v) - value(states[:, :-1])

    inner = np.abs(states[:, :-1]) < 1.5
    assert np.sqrt(np.mean(error[inner] ** 2)) < bound  # of values with a deviation of 1500
    assert abs(error[:, 0].mean()) < bound / 2
    inner = np.abs(states[:, -1]) < 1.0
    np.testing.assert_allclose(np.asarray(fit.values.final)[inner], value(states[:, -1])[inner], atol=200.0)


@pytest.fixture(scope="module")
def both(numbered, target):
    other = target_actions(numbered._replace(final_observation=np.zeros(N, int)), np.full((STATES, 2), 0.5))
    return jax.tree.map(lambda *x: jnp.stack(x), target, other)


def test_policies_at_once_are_policies_one_by_one(data, both):
    together = fitted_q.fit_network_q(data, both, jax.random.key(0), BRIEF, discount=DISCOUNT)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        alone = fitted_q.fit_network_q(data, one, jax.random.key(0), BRIEF, discount=DISCOUNT)
        np.testing.assert_allclose(together.values.q[i], alone.values.q, atol=1e-5)
        np.testing.assert_allclose(together.member_values[i], alone.member_values, atol=1e-5)
        np.testing.assert_allclose(together.bellman_error[i], alone.bellman_error, atol=1e-4)
    estimates = fitted_q.fitted_q_evaluation(data, both, jax.random.key(0), BRIEF, discount=DISCOUNT, level=0.9)
    assert estimates.value.shape == estimates.lower.shape == (2,)
    np.testing.assert_allclose(estimates.value, together.member_values.mean(axis=1), rtol=1e-6)
    assert estimates.diagnostics["fit_in_error"].tolist() == [0.0, 0.0]


def test_members_differ_and_values_are_their_mean(data, target):
    fit = fitted_q.fit_network_q(data, target, jax.random.key(0), BRIEF, discount=DISCOUNT)
    assert fit.member_values.shape == (2,)
    assert abs(float(fit.member_values[0] - fit.member_values[1])) > 1e-4
    np.testing.assert_allclose(np.mean(fit.values.v[:, 0]), np.mean(fit.member_values), rtol=1e-6)
    again = fitted_q.fit_network_q(data, target, jax.random.key(0), BRIEF, discount=DISCOUNT)
    np.testing.assert_array_equal(fit.values.q, again.values.q)
    along = fitted_q.network_values(fit, data, target, BRIEF)
    for one, other in zip(along, fit.values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_bootstrap_has_the_error_of_the_fit_and_replaced_copies_learn_as_well(numbered, data, target, policy):
    settings = dict(updates=1500, members=12, bootstrap=True, target_period=50, target_rate=1.0)
    found = fitted_q.fitted_q_evaluation(
        data, target, jax.random.key(0), CONFIG.replace(**settings), discount=DISCOUNT, level=0.9
    )
    model = tabular.model_based(numbered, policy, discount=DISCOUNT)
    assert abs(float(found.value) - float(model.value)) < float(model.standard_error)
    assert 0.5 < float(found.standard_error) / float(model.standard_error) < 2.0
    assert found.diagnostics["fit_in_error"] == 1.0
    half = 1.796 * float(found.standard_error)  # t of 11 degrees
    np.testing.assert_allclose([found.lower, found.upper], [found.value - half, found.value + half], rtol=1e-3)


def test_trajectories_that_count_nothing_are_not_learned_from(data, target):
    counts = np.where(np.arange(N) % 2, 0.0, 1.0)
    one = fitted_q.fit_network_q(data, target, jax.random.key(0), BRIEF, discount=DISCOUNT, counts=counts)
    rewards = np.where(counts[:, None] > 0, data.rewards, np.nan)
    other = fitted_q.fit_network_q(
        data._replace(rewards=rewards), target, jax.random.key(0), BRIEF, discount=DISCOUNT, counts=counts
    )
    np.testing.assert_array_equal(one.values.q, other.values.q)
    assert np.asarray(one.values.q)[counts == 0].any()


def test_cross_fitting_compiles_once(data, target):
    q_training.learn.clear_cache()

    def fit(counts):
        return fitted_q.fit_network_q(data, target, jax.random.key(0), BRIEF, discount=DISCOUNT, counts=counts).values

    found = corrected.cross_fitted(fit, np.ones(N), folds=3)
    assert np.isfinite(found.q).all()
    assert q_training.learn._cache_size() == 1


@pytest.mark.parametrize("change", [dict(updates=0), dict(sizes=()), dict(activation="cube"), dict(bootstrap=True)])
def test_settings_that_are_refused(change):
    with pytest.raises(ValueError, match="must|needs"):
        CONFIG.replace(**change)


def test_intervals_that_a_bootstrap_of_fits_has_not(data, target):
    config = BRIEF.replace(bootstrap=True)
    with pytest.raises(ValueError, match="student_t and"):
        fitted_q.fitted_q_evaluation(data, target, jax.random.key(0), config, level=0.9, interval="bca")


@pytest.fixture(scope="module")
def minimax(data, both):
    """Of two policies at once."""
    return fitted_q.fit_network_q(data, both, jax.random.key(0), MINIMAX, discount=DISCOUNT)


def test_minimax_q_comes_to_the_value_of_the_counted_model(numbered, policy, minimax):
    """With one-hot states the Bellman equations of a table, which the kernel's features have all of, hold on average."""
    for i, one in enumerate((policy, np.full_like(policy, 0.5))):
        model = tabular.model_based(numbered, one, discount=DISCOUNT)
        assert abs(float(minimax.member_values[i, 0]) - float(model.value)) < 0.05
        wanted = tabular.values_on(numbered, tabular.tabular_q(numbered, one, discount=DISCOUNT), one)
        assert np.sqrt(np.mean((np.asarray(minimax.values.q[i]) - np.asarray(wanted.q)) ** 2)) < 0.05
        assert abs(float(minimax.bellman_error[i])) < 0.05
    assert abs(float(minimax.losses[0, 0, -1])) < 0.1 * float(minimax.losses[0, 0, 0])


def test_minimax_q_solves_its_equations_and_not_those_of_the_behaviour_policy(numbered, policy, minimax):
    """Temporal differences by state and action have mean 0, those of the residual gradient with r + gamma V' alone do not."""
    q, v = np.asarray(minimax.values.q[0]), np.asarray(minimax.values.v[0])
    goes_on = np.concatenate([numbered.mask[:, 1:], np.zeros((N, 1), bool)], axis=1) & ~numbered.terminated
    following = np.where(goes_on, np.concatenate([v[:, 1:], np.zeros((N, 1))], axis=1), 0.0)
    error = np.where(numbered.mask, numbered.rewards + DISCOUNT * following - q, 0.0)
    pairs = (numbered.observations * 2 + numbered.actions)[numbered.mask]
    means = np.bincount(pairs, error[numbered.mask]) / np.maximum(np.bincount(pairs), 1)
    often = np.bincount(pairs) > 40
    assert np.abs(means[often]).max() < 0.05
    assert np.abs(error[numbered.mask]).mean() > 0.3  # what is left is noise of rewards and transitions


def test_minimax_q_without_a_discount_and_with_a_bootstrap(numbered, data, target, policy):
    config = MINIMAX.replace(updates=1000, members=10, bootstrap=True)
    found = fitted_q.fitted_q_evaluation(data, target, jax.random.key(0), config, level=0.9)
    model = tabular.model_based(numbered, policy)
    assert abs(float(found.value) - float(model.value)) < 0.1
    assert 0.4 < float(found.standard_error) / float(model.standard_error) < 2.5
    assert found.lower < found.value < found.upper


@pytest.mark.parametrize(
    "change", [dict(features=0), dict(batch_size=1), dict(activation="cube"), dict(bootstrap=True)]
)
def test_settings_of_minimax_q_that_are_refused(change):
    with pytest.raises(ValueError, match="must|needs"):
        MINIMAX.replace(**change)
