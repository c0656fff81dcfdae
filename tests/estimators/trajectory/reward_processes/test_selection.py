"""Choosing among candidates without the truth: rules by hand, and on data of which the truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrl_off.estimators.trajectory.reward_processes import selection
from jaxrl_off.estimators.trajectory.reward_processes.selection import (
    Candidates,
    opera,
    select_by_error,
    select_by_slope,
)
from jaxrl_off.estimators.trajectory.reward_processes.star import star, star_values
from jaxrl_off.types import Trajectories


def made_up(bias, deviation, *, correlation=0.5, truth=3.0, seed=0, resamples=400):
    """Candidates whose values and replicates are normal, with one correlation between any two."""
    random = np.random.default_rng(seed)
    bias, deviation = np.asarray(bias), np.asarray(deviation)
    size = len(bias)

    def errors(number):
        common, own = random.normal(size=(number, 1)), random.normal(size=(number, size))
        return deviation * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)

    values = truth + bias + errors(1)[0]
    return Candidates(values, values + errors(resamples))


def simulated(n=30, horizon=6, seed=0):
    random = np.random.default_rng(seed)
    mask = np.arange(horizon) < random.integers(2, horizon + 1, size=n)[:, None]
    log_ratio = random.normal(0, 0.5, mask.shape)
    rewards = random.normal(1, 1, mask.shape)
    data = Trajectories(None, None, rewards, np.zeros(mask.shape), mask, mask & False, mask & False, None)
    return data, log_ratio, np.stack([random.integers(0, k, mask.shape) for k in (2, 4)])


def test_candidates_have_common_resamples():
    data, log_ratio, states = simulated()
    windows = (1, None)
    found = selection.star_candidates(data, log_ratio, states, 4, windows, resamples=300, seed=3, discount=0.9)
    expected = np.ravel(star_values(data, log_ratio, states, 4, windows, discount=0.9))
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert found.replicates.shape == (300, 4)
    replicates = np.asarray(found.replicates)[:, 3]
    # those of one estimate alone, from the same seed, draw the same trajectories
    one = star(data, log_ratio, states[1], 4, discount=0.9, level=0.9, interval="bootstrap", resamples=300, seed=3)
    np.testing.assert_allclose(np.quantile(replicates, [0.05, 0.95]), [one.lower, one.upper], rtol=1e-9)
    assert np.std(replicates, ddof=1) == pytest.approx(float(one.standard_error), rel=0.25)
    again = selection._candidates._cache_size()
    selection.star_candidates(data, 0.5 * log_ratio, states, 4, windows, resamples=300, seed=4, discount=0.8)
    assert selection._candidates._cache_size() == again


def test_candidates_of_many_data_sets():
    sets = [simulated(seed=seed) for seed in range(2)]
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *sets)

        def choose(data, log_ratio, states):
            found = selection.star_candidates(data, log_ratio, states, 4, (1, None), resamples=20)
            return found, select_by_error(found, 3, level=0.9), opera(found, reference=3)

        together = jax.jit(jax.vmap(choose))(*arguments)
    for i, one in enumerate(sets):
        for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(choose(*one)), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-7, atol=1e-9)


def test_slope_takes_the_last_that_agrees():
    """Deviations 2, 1, 0.5 and 0.1, of which the last is far off, wherever it stands."""
    deviation, order = np.array([2.0, 1.0, 0.5, 0.1]), np.array([2, 0, 3, 1])
    signs = np.where(np.arange(400) % 2, 1.0, -1.0)[:, None]
    values = np.array([3.0, 2.5, 3.2, 9.0])
    candidates = Candidates(values[order], values[order] + signs * deviation[order])
    found = select_by_slope(candidates, quantile=1.0, level=0.9)
    assert int(found.index) == 0
    np.testing.assert_array_equal(found.weights, [1.0, 0.0, 0.0, 0.0])
    assert float(found.value) == 3.2
    assert float(found.standard_error) == pytest.approx(0.5, rel=1e-2)
    assert (float(found.lower), float(found.upper)) == pytest.approx((2.7, 3.7))
    # wider deviations hide that it is off
    assert int(select_by_slope(candidates, quantile=8.0).index) == 2
    assert select_by_slope(candidates).lower is None


def test_error_of_a_biased_candidate_is_told_by_the_reference():
    """Over many data sets the estimated errors are near the true ones, and the choice is the best."""
    bias, deviation = np.array([0.0, 0.1, 2.0]), np.array([1.0, 0.3, 0.1])
    errors, chosen = [], []
    for seed in range(100):
        # the more alike two estimates are, the better the bias is known
        found = select_by_error(made_up(bias, deviation, correlation=0.9, seed=seed), 0)
        errors.append(found.errors)
        chosen.append(int(found.index))
        assert float(found.errors[0]) == pytest.approx(1.0, rel=0.35)
    assert np.mean(np.equal(chosen, 1)) > 0.7
    medians = np.median(errors, axis=0)
    assert medians[1] == pytest.approx(0.09, rel=0.5)
    assert medians[2] == pytest.approx(4.0, rel=0.25)


def test_errors_by_hand():
    values = np.array([1.0, 4.0, 1.5])
    replicates = values + np.array([[1.0, 0.0, 0.5], [-1.0, 0.0, -0.5], [1.0, 0.2, 0.5], [-1.0, -0.2, -0.5]])
    found = select_by_error(Candidates(values, replicates), 0, level=0.5)
    variances = replicates.var(axis=0, ddof=1)
    differences = (replicates - replicates[:, [0]]).var(axis=0, ddof=1)
    expected = variances + np.maximum((values - 1.0) ** 2 - differences, 0.0)
    np.testing.assert_allclose(found.errors, expected, rtol=1e-12)
    assert int(found.index) == int(np.argmin(expected)) == 2
    np.testing.assert_allclose(
        [found.value, found.standard_error, found.lower, found.upper],
        [1.5, np.sqrt(variances[2]), *np.quantile(replicates[:, 2], [0.25, 0.75])],
        rtol=1e-12,
    )


@pytest.mark.parametrize("reference", [None, 0])
def test_opera_is_the_quadratic_programme(reference):
    candidates = made_up([0.0, 3.0, -4.0, 0.1], [1.0, 0.6, 0.2, 1.5], correlation=0.3, seed=1)
    found = opera(candidates, reference=reference, level=0.9)
    centred = candidates.replicates - candidates.values
    matrix = centred.T @ centred / len(centred)
    if reference is not None:
        distance = candidates.values - candidates.values[0]
        chance = (candidates.replicates - candidates.replicates[:, [0]]).var(axis=0, ddof=1)
        bias = np.sign(distance) * np.sqrt(np.maximum(distance**2 - chance, 0.0))
        matrix += np.outer(bias, bias)
    best = minimize(
        lambda x: x @ matrix @ x,
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        tol=1e-14,
    )
    np.testing.assert_allclose(found.weights, best.x, atol=1e-4)
    np.testing.assert_allclose(found.errors, np.diagonal(matrix), rtol=1e-12)
    mixture = candidates.replicates @ best.x
    assert float(found.value) == pytest.approx(candidates.values @ best.x, rel=1e-4)
    assert float(found.standard_error) == pytest.approx(mixture.std(ddof=1), rel=1e-3)
    np.testing.assert_allclose([found.lower, found.upper], np.quantile(mixture, [0.05, 0.95]), rtol=1e-3)
    assert int(found.index) == int(np.argmax(best.x))


def test_opera_mixes_better_than_it_chooses():
    """Two independent estimates of one deviation: the mixture has half the variance of each; a copy adds nothing."""
    both = made_up([0.0, 0.0], [1.0, 1.0], correlation=0.0, resamples=3000)
    found = opera(both)
    np.testing.assert_allclose(found.weights, 0.5, atol=0.03)
    assert float(found.standard_error) == pytest.approx(np.sqrt(0.5), rel=0.05)
    thrice = Candidates(*(np.concatenate([x, x[..., :1]], axis=-1) for x in both))
    assert float(opera(thrice).value) == pytest.approx(float(found.value), rel=1e-4)
    # the bias that the bootstrap does not see, and the reference does
    biased = made_up([0.0, 5.0], [1.0, 0.1], correlation=0.0)
    assert float(opera(biased).weights[1]) > 0.9
    assert float(opera(biased, reference=0).weights[1]) < 0.2


def test_candidates_that_are_not_finite_are_out():
    candidates = made_up([0.0, 0.0, 0.0], [1.0, 0.5, 0.1])
    replicates = candidates.replicates.copy()
    replicates[7, 2] = np.inf
    candidates = Candidates(np.append(candidates.values, np.nan), np.column_stack([replicates, replicates[:, 0]]))
    for found in (select_by_slope(candidates), select_by_error(candidates, 0), opera(candidates)):
        assert int(found.index) == 1
        np.testing.assert_array_equal(found.weights[2:], 0.0)
        np.testing.assert_array_equal(found.errors[2:], np.inf)
        assert np.sum(np.asarray(found.weights)) == pytest.approx(1.0)
        assert np.isfinite([float(found.value), float(found.standard_error)]).all()
    with pytest.raises(ValueError, match="the reference, candidate 2"):
        select_by_error(candidates, 2)
    nothing = Candidates(np.full(2, np.nan), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="no candidate is finite"):
        opera(nothing)


def test_what_cannot_be_meant():
    candidates = made_up([0.0, 0.0], [1.0, 0.5])
    with pytest.raises(ValueError, match=r"must be \[m\] and \[B, m\]"):
        opera(Candidates(candidates.values, candidates.replicates[:, :1]))
    with pytest.raises(ValueError, match=r"must be \[m\] and \[B, m\]"):
        select_by_slope(Candidates(candidates.values, candidates.replicates[:1]))
    with pytest.raises(ValueError, match=r"reference must be in \[0, 2\)"):
        select_by_error(candidates, 2)
    with pytest.raises(ValueError, match="quantile must be positive"):
        select_by_slope(candidates, quantile=0.0)
    with pytest.raises(ValueError, match="level must be"):
        opera(candidates, level=90)
    data, log_ratio, states = simulated()
    with pytest.raises(ValueError, match="resamples must be at least 2"):
        selection.star_candidates(data, log_ratio, states, 4, (1,), resamples=1)
    with pytest.raises(ValueError, match="at least one window"):
        selection.star_candidates(data, log_ratio, states, 4, ())
