"""The histogram form: exact moments, constant memory, the likelihood's answers."""

import jax
import numpy as np
import pytest

from jaxrl_off.estimators import bandit


def test_moments_are_kept_and_memory_does_not_grow():
    random = np.random.default_rng(0)
    weights, rewards = 40.0 * random.uniform(size=1000) ** 6, random.uniform(-1, 2, size=1000)
    state = bandit.make_histogram((0.0, 40.0), (-1.0, 2.0), weight_buckets=7, reward_buckets=5)
    shape = state.counts.shape
    for start in range(0, 1000, 250):
        state = bandit.update_histogram(state, weights[start : start + 250], rewards[start : start + 250])
    assert state.counts.shape == shape == (8, 6)
    grid = bandit.Grid(*map(np.asarray, bandit.grid_of(state)))
    moments = {
        "1": (np.ones(1000), 1.0),
        "w": (weights, grid.weights),
        "r": (rewards, grid.rewards),
        "w r": (weights * rewards, grid.weights * grid.rewards),
    }
    for name, (column, kept) in moments.items():
        assert float(np.sum(grid.counts * kept)) == pytest.approx(column.sum(), rel=1e-12), name
    assert grid.counts.min() >= 0.0


def test_one_at_a_time_is_the_chunk():
    weights, rewards = np.array([0.0, 0.3, 1.0, 5.0]), np.array([1.0, 0.5, 0.0, 0.25])
    empty = bandit.make_histogram((0.0, 5.0))
    together, alone = bandit.update_histogram(empty, weights, rewards, counts=[1, 2, 3, 4]), empty
    for w, r, c in zip(weights, rewards, (1, 2, 3, 4), strict=True):
        alone = bandit.update_histogram(alone, w, r, counts=[c])
    np.testing.assert_allclose(alone.counts, together.counts, rtol=1e-12)


def test_under_jit_with_the_histogram_given_or_closed_over():
    weights, rewards = np.array([0.3, 5.0]), np.array([0.5, 0.25])
    empty = bandit.make_histogram((0.0, 5.0))
    plain = bandit.update_histogram(empty, weights, rewards)
    with jax.enable_x64(True):
        given = jax.jit(bandit.update_histogram)(empty, weights, rewards)
        closed = jax.jit(lambda w, r: bandit.update_histogram(empty, w, r))(weights, rewards)
    for state in (given, closed):
        np.testing.assert_allclose(state.counts, plain.counts, rtol=1e-12)


def test_the_interval_is_close_to_that_of_the_whole_log():
    random = np.random.default_rng(1)
    weights = random.choice([0.0, 0.5, 2.0, 10.0], p=[0.3, 0.45, 0.2375, 0.0125], size=5000)
    rewards = (random.uniform(size=5000) < 0.3).astype(float)
    options = dict(weight_range=(0.0, 20.0), level=0.95)
    whole = bandit.empirical_likelihood(weights, rewards, **options)
    state = bandit.update_histogram(
        bandit.make_histogram((0.0, 20.0), weight_buckets=30, reward_buckets=1), weights, rewards
    )
    grid = bandit.grid_of(state)
    approximate = bandit.empirical_likelihood(grid.weights, grid.rewards, counts=grid.counts, **options)
    for found, wanted in zip(approximate[:4], whole[:4], strict=True):
        assert float(found) == pytest.approx(float(wanted), abs=0.003)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandit.make_histogram((0.0, np.inf)), "finite weight range"),
        (lambda: bandit.make_histogram((0.0, 2.0), weight_buckets=1), "weight_buckets must be at least 2"),
        (lambda: bandit.update_histogram(bandit.make_histogram((0.0, 2.0)), 3.0, 0.5), "weights must be finite and in"),
        (lambda: bandit.update_histogram(bandit.make_histogram((0.0, 2.0)), 1.0, 1.5), "rewards must be finite and in"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
