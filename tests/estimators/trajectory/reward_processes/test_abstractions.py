"""Abstractions by hand, against NumPy, and the faults they must not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.reward_processes import abstractions


def test_states_and_times():
    observations = np.array([[3, 1, 4], [1, 5, 900]])
    phi = abstractions.tabular(6)
    assert phi.num_states == 6
    np.testing.assert_array_equal(phi(observations), observations)
    np.testing.assert_array_equal(phi(observations[..., None]), observations)
    times = abstractions.time(2)
    np.testing.assert_array_equal(times(np.zeros((2, 3, 7))), [[0, 1, 1]] * 2)
    both = abstractions.state_and_time(phi, 3)
    assert both.num_states == 18
    np.testing.assert_array_equal(both(observations), observations + 6 * np.arange(3))
    np.testing.assert_array_equal(abstractions.state_and_time(phi, 2)(observations), observations + [0, 6, 6])
    for abstraction in (phi, times, both):
        assert abstraction(observations).dtype == jnp.int32


def test_nearest_centroid_is_the_argmin_of_distances():
    random = np.random.default_rng(0)
    observations, centroids = random.normal(size=(4, 5, 2, 3)), random.normal(size=(7, 6))
    centre, scale = random.normal(size=6), random.uniform(0.5, 2.0, size=6)
    phi = abstractions.nearest_centroid(centroids, centre=centre, scale=scale)
    points = (observations.reshape(4, 5, 6) - centre) / scale
    expected = np.argmin(np.sum((points[:, :, None] - centroids) ** 2, axis=-1), axis=-1)
    found = phi(observations)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32
    # the first of equals, and no cancellation far from the origin
    ties = abstractions.nearest_centroid(1e6 + np.array([[0.0], [1.0], [0.0], [1.5]]))
    np.testing.assert_array_equal(ties(1e6 + np.array([[0.0, 0.5, 0.5001, 1.3]])), [[0, 0, 1, 3]])


@pytest.mark.parametrize("law", abstractions.LAWS)
def test_random_centroids(law):
    key = jax.random.key(0)
    phi = abstractions.random_centroids(key, 8, 3, law=law)
    observations = np.random.default_rng(0).normal(size=(50, 20, 3))
    cells = np.asarray(phi(observations))
    assert phi.num_states == 8
    assert len(np.unique(cells)) >= 4
    assert cells.max() < 8
    np.testing.assert_array_equal(abstractions.random_centroids(key, 8, 3, law=law)(observations), cells)
    with jax.enable_x64(True):
        draw = jax.random.uniform if law == "uniform" else jax.random.normal
        points = np.asarray(draw(key, (8, 3), jnp.float64))
    np.testing.assert_array_equal(cells, np.argmin(np.sum((observations[:, :, None] - points) ** 2, -1), -1))


def test_k_means_finds_clusters_that_are_there():
    random = np.random.default_rng(1)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    labels = random.integers(0, 4, (30, 10))
    observations = middles[labels] + random.normal(size=(30, 10, 2))
    mask = np.arange(10) < random.integers(1, 11, 30)[:, None]
    observations = np.where(mask[..., None], observations, np.nan)
    phi = abstractions.k_means(jax.random.key(0), observations, 4, mask=mask)
    cells = np.asarray(phi(observations))
    for label in range(4):
        assert len(np.unique(cells[mask & (labels == label)])) == 1
    assert len(np.unique(cells[mask])) == 4
    # each mean is in the middle of its cell: nothing moves any more
    points, own = observations[mask], cells[mask]
    means = np.stack([points[own == k].mean(0) for k in range(4)])
    np.testing.assert_array_equal(np.argmin(((points[:, None] - means) ** 2).sum(-1), axis=1), own)


def test_k_means_against_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    points = np.random.default_rng(2).normal(size=(20, 15, 3))
    best = cluster.KMeans(6, n_init=5, random_state=0).fit(points.reshape(-1, 3)).inertia_
    spreads = []
    for seed in range(5):
        cells = np.asarray(abstractions.k_means(jax.random.key(seed), points, 6, iterations=100)(points))
        spreads.append(sum(np.sum((points[cells == k] - points[cells == k].mean(0)) ** 2) for k in range(6)))
    assert 0.999 * best <= min(spreads) <= 1.02 * best
    assert max(spreads) <= 1.15 * best


def test_k_means_standardised():
    """The dimension that tells is 1,000 times smaller than the one that does not, and a third one does not vary."""
    random = np.random.default_rng(3)
    side = random.integers(0, 2, (40, 10))
    observations = np.stack(
        [1000 * random.normal(size=side.shape), 5.0 + 3.0 * side, np.full(side.shape, 7.0)], axis=-1
    )
    observations[..., 0] *= 0.1
    found = np.asarray(abstractions.k_means(jax.random.key(3), observations, 2, standardise=True)(observations))
    raw = np.asarray(abstractions.k_means(jax.random.key(3), observations, 2)(observations))
    agreement = [max(np.mean(x == side), np.mean(x != side)) for x in (found, raw)]
    assert agreement[0] > 0.95 > 0.7 > agreement[1]


def test_k_means_leaves_rounding_as_it_is():
    """A dimension that varies in its last digit alone is not blown up."""
    last = np.where(np.arange(7) < 3, 0.1, np.nextafter(0.1, 1.0)) + np.zeros((100, 1))
    observations = np.stack([last, np.arange(7) % 2 + np.zeros((100, 1))], axis=-1)
    assert np.std(last) > 0
    phi = abstractions.k_means(jax.random.key(0), observations, 2, standardise=True)
    cells = np.asarray(phi(observations))
    np.testing.assert_array_equal(cells == cells[0, 0], np.broadcast_to(np.arange(7) % 2 == 0, cells.shape))
    near = observations[:1] + np.array([1e-9, 0.0])
    np.testing.assert_array_equal(phi(near), cells[:1])


def test_k_means_of_fewer_points_than_cells():
    observations = np.array([[[0.0], [1.0], [0.0]]])
    cells = abstractions.k_means(jax.random.key(0), observations, 5)(observations)
    assert cells[0, 0] == cells[0, 2] != cells[0, 1]


def test_tiles():
    phi = abstractions.tiles([0.0, -1.0, 0.0], [1.0, 1.0, 9.0], [2, 4, 3])
    assert phi.num_states == 24
    observations = np.array([[[0.4, -0.9, 0.0], [0.5, 0.0, 8.9], [1.0, 1.0, 9.0], [-5.0, 7.0, np.nan]]])
    expected = [[0, (1 * 4 + 2) * 3 + 2, 23, (0 * 4 + 3) * 3 + 0]]
    np.testing.assert_array_equal(phi(observations), expected)
    line = abstractions.tiles([0.0], [1.0], [10])
    np.testing.assert_array_equal(line(np.array([[0.05, 0.95, 0.31]])), [[0, 9, 3]])


def test_hashed():
    key = jax.random.key(4)
    phi = abstractions.hashed(key, 5, 3)
    observations = np.random.default_rng(0).normal(size=(200, 20, 5))
    cells = np.asarray(phi(observations))
    assert phi.num_states == 8
    assert sorted(np.unique(cells)) == list(range(8))
    np.testing.assert_array_equal(phi(3.0 * observations), cells)
    np.testing.assert_array_equal(phi(-observations), 7 - cells)
    np.testing.assert_array_equal(abstractions.hashed(key, 5, 3)(observations), cells)
    np.testing.assert_array_equal(abstractions.hashed(key, 5, 3, centre=2.0)(observations + 2.0), cells)
    assert len(np.unique(phi(50.0 + observations))) < 8
    # bits differ with probability angle / pi
    many = abstractions.hashed(key, 2, 20)
    pair = np.asarray(many(np.array([[[1.0, 0.0], [1.0, 1.0]]])))[0]
    assert 1 <= (int(pair[0]) ^ int(pair[1])).bit_count() <= 10


def test_transformations():
    observations = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
    with jax.enable_x64(True):
        made = [
            abstractions.k_means(jax.random.key(0), observations[0], 3, standardise=True),
            abstractions.random_centroids(jax.random.key(0), 3, 2),
            abstractions.tiles([-2.0, -2.0], [2.0, 2.0], [3, 3]),
            abstractions.hashed(jax.random.key(0), 2, 3),
            abstractions.time(5),
        ]
        for phi in made:
            together = jax.jit(jax.vmap(phi))(observations)
            for i in range(3):
                np.testing.assert_array_equal(together[i], phi(observations[i]))
        fitted = jax.jit(lambda x: abstractions.k_means(jax.random.key(0), x, 3, standardise=True)(x))(observations[0])
    np.testing.assert_array_equal(fitted, made[0](observations[0]))
    with pytest.raises(ValueError, match="enable_x64"):
        jax.jit(made[2])(observations[0])
    before = abstractions._lloyd._cache_size()
    abstractions.k_means(jax.random.key(1), observations[1], 3, standardise=True)
    assert abstractions._lloyd._cache_size() <= before + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: abstractions.tabular(0), "num_states must be at least 1"),
        (lambda: abstractions.tabular(3)(np.zeros((2, 3))), "must be integers"),
        (lambda: abstractions.tabular(3)(np.zeros((2, 3, 4), int)), r"must be \[n, T\]"),
        (lambda: abstractions.time(0), "horizon must be"),
        (lambda: abstractions.state_and_time(abstractions.tabular(2), 0), "horizon must be"),
        (lambda: abstractions.nearest_centroid(np.zeros(3)), "centroids must be"),
        (lambda: abstractions.nearest_centroid(np.full((2, 3), np.nan)), "must be finite"),
        (lambda: abstractions.nearest_centroid(np.zeros((2, 3)), scale=[1.0, 0.0, 1.0]), "scale must be positive"),
        (lambda: abstractions.nearest_centroid(np.zeros((2, 3)))(np.zeros((4, 5, 2))), "of 3 numbers a step"),
        (lambda: abstractions.random_centroids(jax.random.key(0), 2, 3, law="cauchy"), "law must be one of"),
        (lambda: abstractions.k_means(jax.random.key(0), np.zeros((2, 3, 1)), 0), "num_states must be"),
        (lambda: abstractions.k_means(jax.random.key(0), np.zeros(3), 2), "observations must be"),
        (
            lambda: abstractions.k_means(jax.random.key(0), np.zeros((2, 3)), 2, mask=np.zeros((2, 3), bool)),
            "mask must be",
        ),
        (lambda: abstractions.tiles([0.0], [1.0, 2.0], [2]), "one length"),
        (lambda: abstractions.tiles([1.0], [1.0], [2]), "low must be below high"),
        (lambda: abstractions.tiles([0.0], [1.0], [0]), "bins must be at least 1"),
        (lambda: abstractions.tiles([0.0] * 6, [1.0] * 6, [100] * 6), "more than int32 can number"),
        (lambda: abstractions.state_and_time(abstractions.tabular(10**7), 1000), "make the abstraction coarser"),
        (lambda: abstractions.k_means(jax.random.key(0), np.full((2, 3), np.nan), 2), "observations must be finite"),
        (lambda: abstractions.hashed(jax.random.key(0), 2, 21), "bits must be at most 20"),
    ],
)
def test_what_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()
