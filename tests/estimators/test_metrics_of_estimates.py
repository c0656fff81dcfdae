"""Metrics of estimates, against scipy and by hand."""

import doctest

import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxrl_off.estimators import metrics

ESTIMATES = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 2.0]])
TRUTH = np.array([1.0, 2.0, 4.0, 0.0])


def test_doctest():
    assert doctest.testmod(metrics).failed == 0


def test_mean_squared_error_and_its_parts():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]])
    found = metrics.mean_squared_error(values, np.array([2.0, 5.0]))
    np.testing.assert_allclose(found.mean, [(1 + 1 + 9) / 3, 3.0])
    np.testing.assert_allclose(found.bias, [1.0, 1.0])
    np.testing.assert_allclose(found.bias**2 + found.variance, found.mean)
    np.testing.assert_allclose(
        found.standard_error, [np.std([1, 1, 9], ddof=1) / np.sqrt(3), np.sqrt(3) * 9 / 3 / np.sqrt(3)]
    )
    relative = metrics.mean_squared_error(values, np.array([-2.0, 5.0]), relative=True)
    np.testing.assert_allclose(relative.mean, [(9 + 25 + 49) / 12, 3.0 / 25])
    assert np.isnan(metrics.mean_squared_error(values[:1], 2.0).standard_error).all()
    with pytest.raises(ValueError, match="relative=False"):
        metrics.mean_squared_error(values, 0.0, relative=True)


def test_rank_correlation_is_that_of_scipy():
    random = np.random.default_rng(0)
    estimates, truth = random.integers(0, 5, (3, 9)), random.normal(size=9)
    expected = [spearmanr(row, truth).statistic for row in estimates]
    np.testing.assert_allclose(metrics.rank_correlation(estimates, truth), expected)
    assert np.isnan(metrics.rank_correlation(np.ones(3), np.arange(3)))


def test_choices():
    np.testing.assert_allclose(metrics.regret(ESTIMATES, TRUTH), [3 / 4, 0.0])
    np.testing.assert_allclose(metrics.regret(ESTIMATES, TRUTH, k=2, normalised=False), [0.0, 0.0])
    assert metrics.regret(ESTIMATES[0], np.ones(4)) == 0.0
    # chosen are 0 and 2, then 2 and 3
    np.testing.assert_allclose(metrics.sharpe_ratio(ESTIMATES, TRUTH, 1.0, k=2), [3.0 / 1.5, 3.0 / 2.0])
    assert metrics.sharpe_ratio(ESTIMATES[0], np.ones(4), 0.5, k=2) == np.inf
    for k, message in ((1, "at least 2"), (5, "between 1 and")):
        with pytest.raises(ValueError, match=message):
            metrics.sharpe_ratio(ESTIMATES, TRUTH, 1.0, k=k)


def test_decisions():
    false_positive, false_negative = metrics.decision_errors(ESTIMATES, TRUTH, 2.0)
    np.testing.assert_allclose(false_positive, [0.5, 0.5])  # of policies 0 and 3: 0 is taken, then 3
    np.testing.assert_allclose(false_negative, [0.5, 0.5])  # of 1 and 2: 1 is left, both times
    assert np.isnan(metrics.decision_errors(ESTIMATES[0], TRUTH, -1.0)[0])
    with pytest.raises(ValueError, match="one entry for each policy"):
        metrics.decision_errors(ESTIMATES, TRUTH[:3], 2.0)


def test_coverage():
    lower, upper = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.5, 0.0]]), np.full((4, 2), 3.0)
    share, error, width = metrics.coverage(lower, upper, np.array([0.7, 3.0]))
    np.testing.assert_allclose(share, [0.75, 1.0])
    np.testing.assert_allclose(error, [np.sqrt(0.75 * 0.25 / 4), 0.0])
    np.testing.assert_allclose(width, [2.625, 2.5])
