"""What estimators from logged decisions say of arguments that cannot be right, and rounding that they forgive."""

import jax
import numpy as np
import pytest

from jaxrl_off.estimators import bandit

WEIGHTS, REWARDS = np.array([0.5, 1.0, 1.5]), np.array([0.0, 1.0, 1.0])
WITHOUT_RANGE = "weight_range is needed here: a pair .low, high. of what weights can be"
FEATURES, ACTIONS, CLICKS = np.arange(10.0) / 10, np.arange(10) % 2, (np.arange(10) > 4).astype(float)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandit.empirical_likelihood(WEIGHTS, REWARDS, weight_range=None), WITHOUT_RANGE),
        (lambda: bandit.emp(WEIGHTS, REWARDS, weight_range=None), WITHOUT_RANGE),
        (lambda: bandit.cressie_read(WEIGHTS, REWARDS, weight_range=None), WITHOUT_RANGE),
        (lambda: bandit.censored_empirical_likelihood(WEIGHTS, REWARDS, REWARDS > 0, weight_range=None), WITHOUT_RANGE),
        (lambda: bandit.likelihood_weights(WEIGHTS, REWARDS, weight_range=None), WITHOUT_RANGE),
        (
            lambda: bandit.ips(WEIGHTS, REWARDS, weight_range=3.0),
            r"weight_range must be a pair \(low, high\) of numbers, got 3.0",
        ),
        (lambda: bandit.ips(WEIGHTS, REWARDS, reward_range=None), r"reward_range must be a pair .*, got None"),
        (lambda: bandit.ips(None, REWARDS), r"weights are None, and are needed: pi\(a\|x\) / h\(a\|x\)"),
        (lambda: bandit.ips(WEIGHTS, None), "rewards are None, and are needed: what came of every logged action"),
        (
            lambda: bandit.ips(["a", "b", "c"], REWARDS),
            "weights must be an array of numbers, .*'a'; convert them first",
        ),
        (
            lambda: bandit.ips(WEIGHTS[:, None], REWARDS[:, None]),
            r"one column, got shape \(3, 1\)\. Of a data frame pass a",
        ),
        (lambda: bandit.ips(np.log(WEIGHTS[:1]), REWARDS[:1]), "never negative; if these are logarithms, pass np.exp"),
        (
            lambda: bandit.ips(WEIGHTS, [0, np.nan, 1]),
            "row 1 has nan, .* Leave rows out .*censored_empirical_likelihood",
        ),
        (
            lambda: bandit.direct_method(WEIGHTS, REWARDS, predicted_target=None),
            "predicted_target are None, and are needed",
        ),
        (
            lambda: bandit.pseudo_inverse([[1, 1], [1], [1, 2]], REWARDS),
            "different lengths; fill slates .* weights of 1",
        ),
        (
            lambda: bandit.learn(jax.random.key(0), FEATURES, ACTIONS, CLICKS, None, 2, weight_range=(0, 2)),
            r"propensities are None, and are needed: h\(a\|x\), .* estimate them first",
        ),
        (lambda: bandit.cross_fitted(FEATURES, None, CLICKS, 2), "actions are None, and are needed"),
    ],
)
def test_arguments_that_cannot_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_slot_of_weight_1_changes_nothing():
    filled = bandit.pseudo_inverse([[0.5, 1.0], [2.0, 1.0]], [0.5, 1.0])
    assert float(filled.value) == float(bandit.pseudo_inverse([[0.5], [2.0]], [0.5, 1.0]).value) == 1.125


def test_one_feature_may_be_a_vector():
    one = bandit.cross_fitted(FEATURES, ACTIONS, CLICKS, 2)
    np.testing.assert_array_equal(one, bandit.cross_fitted(FEATURES[:, None], ACTIONS, CLICKS, 2))
    for features, message in (
        (FEATURES[:5], r"finite numbers of shape \(10, 1\), got shape \(5, 1\)"),
        (FEATURES + np.inf, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bandit.cross_fitted(features, ACTIONS, CLICKS, 2)


def test_probabilities_may_be_rounded_above_1():
    propensities = np.where(ACTIONS == 0, np.float32(1.0000001), 0.5)
    settings = dict(objective="importance", target_probabilities=np.full((10, 2), 0.5))
    found = bandit.cross_fitted(FEATURES, ACTIONS, CLICKS, 2, propensities=propensities, **settings)
    exact = bandit.cross_fitted(FEATURES, ACTIONS, CLICKS, 2, propensities=np.minimum(propensities, 1.0), **settings)
    np.testing.assert_allclose(found, exact, atol=1e-6)
