"""Calibration: numbers of a reference made by hand, brute-force neighbours, principal planes, and the paper's figure 1."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.references import (
    calibrate,
    gaussian_network,
    gp_icm,
    on_plane,
    plot_calibration,
    principal_plane,
    uniform,
)


def by_hand(params, observation):
    """Mean and standard deviation that depend on every dimension of `float[..., 3]`; two actions."""
    mean = params * observation[..., :2]
    return DiagonalNormal(mean, jnp.stack([0.3 * observation[..., 0], 0.1 * observation[..., 2] - 1.0], axis=-1))


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)) * [1.0, 5.0, 0.2] + [0.0, 100.0, -1.0], rng.normal(size=(count, 2))


def expected_row(states, actions, demonstrated):
    """Standard deviation, log-likelihood and gradient scale of `by_hand`, and brute-force neighbours, in float64."""
    mean = 0.5 * states[:, :2]
    std = np.exp(np.stack([0.3 * states[:, 0], 0.1 * states[:, 2] - 1.0], axis=-1))
    gaps = (states[:, None] - demonstrated) / demonstrated.std(axis=0)
    distance = np.sqrt(np.sum(gaps**2, axis=-1))
    return (
        np.exp(np.log(std).mean()),
        stats.norm.logpdf(actions, mean, std).mean(),
        np.percentile(std**-2, 99),
        distance.min(axis=1).mean(),
    )


def test_every_row_against_scipy_and_brute_force():
    (observations, actions), (others, other_actions) = data(60), data(40, seed=1)
    seen = []

    def spied(params, observation):
        jax.debug.callback(lambda x: seen.append(np.asarray(x, np.float64)), observation)
        return by_hand(params, observation)

    result = calibrate(
        spied,
        jnp.float32(0.5),
        observations,
        actions,
        jax.random.key(0),
        held_out=(others, other_actions),
        distances=(0.5, 3.0),
    )
    jax.effects_barrier()
    assert result.states == ("data", "held out", "0.5 std", "3 std")
    rows = list(zip(*result[1:], strict=True))
    np.testing.assert_allclose(rows[0], expected_row(observations, actions, observations), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(rows[1], expected_row(others, other_actions, observations), rtol=1e-5)
    assert [len(states) for states in seen] == [60, 40, 60, 60]
    for row, states in zip(rows[2:], seen[2:], strict=True):
        gaps = (states[:, None] - observations) / observations.std(axis=0)
        nearest = np.sum(gaps**2, axis=-1).argmin(axis=1)
        assert len(set(nearest)) > 10
        np.testing.assert_allclose(row, expected_row(states, actions[nearest], observations), rtol=1e-5)
    # The same noise at both distances, of unit size in the units of each dimension.
    order = [np.abs(observations - states).sum(axis=1).argmin() for states in seen[0]]
    noise = [
        (states - observations[order]) / observations.std(axis=0) / d
        for states, d in zip(seen[2:], (0.5, 3.0), strict=True)
    ]
    np.testing.assert_allclose(noise[0], noise[1], atol=1e-4)
    np.testing.assert_allclose(noise[0].std(axis=0), 1.0, atol=0.3)
    np.testing.assert_allclose(noise[0].mean(axis=0), 0.0, atol=0.4)
    assert all(column.dtype == np.float64 for column in result[1:])


def test_batches_do_not_change_results():
    arguments = (by_hand, jnp.float32(0.5), *data(50), jax.random.key(0))
    whole = calibrate(*arguments, held_out=data(23, seed=1))
    for size in (1, 7, 50):
        for left, right in zip(
            calibrate(*arguments, held_out=data(23, seed=1), batch_size=size)[1:], whole[1:], strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-6)


def test_points_limit_the_states_but_not_the_neighbours():
    observations, actions = data(300)
    seen = []

    def spied(params, observation):
        jax.debug.callback(lambda x: seen.append(np.asarray(x, np.float64)), observation)
        return by_hand(params, observation)

    held_out = data(400, seed=1)
    result = calibrate(
        spied,
        jnp.float32(0.5),
        observations,
        actions,
        jax.random.key(0),
        held_out=held_out,
        points=20,
        distances=(0.01,),
    )
    jax.effects_barrier()
    assert [len(states) for states in seen] == [20, 20, 20]
    for states, source in ((seen[0], observations), (seen[1], held_out[0])):
        rows = np.abs(states[:, None] - source).sum(axis=-1)
        assert rows.min(axis=1).max() < 1e-4
        assert len(set(rows.argmin(axis=1))) == 20  # without replacement
        assert rows.argmin(axis=1).max() > 40  # and not the first ones
    assert result.distance[0] == 0.0
    gaps = (seen[1][:, None] - observations) / observations.std(axis=0)  # to all 300
    np.testing.assert_allclose(result.distance[1], np.sqrt(np.sum(gaps**2, axis=-1)).min(axis=1).mean(), rtol=1e-5)
    other = calibrate(by_hand, jnp.float32(0.5), observations, actions, jax.random.key(1), points=20, distances=())
    assert other.std[0] != result.std[0]  # a random choice


def test_tiny_standard_deviations_and_dimensions_that_do_not_vary():
    observations, actions = data(30)
    observations[:, 1] = 0.1  # whose standard deviation in float64 is not exactly 0
    sure = lambda params, o: DiagonalNormal(jnp.zeros((len(o), 2)), jnp.full((len(o), 2), -20.0))  # noqa: E731
    held_out = (observations + np.array([0.0, 7.0, 0.0]), actions)
    result = calibrate(sure, (), observations, actions, jax.random.key(0), held_out=held_out, distances=(1.0,))
    np.testing.assert_allclose(result.std, np.exp(-20.0), rtol=1e-6)
    np.testing.assert_allclose(result.gradient_scale, np.exp(40.0), rtol=1e-5)
    np.testing.assert_allclose(result.log_likelihood[0], stats.norm.logpdf(actions, 0, np.exp(-20.0)).mean(), rtol=1e-9)
    np.testing.assert_array_equal(result.distance[:2], 0.0)
    assert 0.0 < result.distance[2] < 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": np.zeros((5, 3))}, "all observations are the same"),
        ({"observations": np.zeros(5)}, r"observations must have the shape \[N, O\]"),
        ({"actions": np.zeros((4, 2))}, "same length, got 5 and 4"),
        ({"distances": (1.0, 0.0)}, "distances must be greater than 0, got 0.0"),
        ({"points": 0}, "points must be greater than 0"),
        ({"batch_size": 0}, "batch_size must be greater than 0"),
        ({"held_out": (np.zeros((9, 2)), np.zeros((9, 2)))}, r"held_out have sizes \[2, 2\]; \[3, 2\]"),
        ({"apply": uniform().apply, "params": jnp.zeros(())}, "gives a Uniform; only a DiagonalNormal"),
    ],
)
def test_errors(change, message):
    observations, actions = data(5)
    given = {
        "apply": by_hand,
        "params": 0.5,
        "observations": observations,
        "actions": actions,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        calibrate(**given | change)


def test_principal_plane_is_that_of_sklearn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 6)) * [1, 2, 3, 0.1, 5, 1] + 3.0
    plane, expected = principal_plane(observations), decomposition.PCA(2).fit(observations)
    np.testing.assert_allclose(plane.mean, expected.mean_)
    np.testing.assert_allclose(plane.explained, expected.explained_variance_ratio_)
    np.testing.assert_allclose(np.abs(plane.directions), np.abs(expected.components_), atol=1e-9)
    np.testing.assert_allclose(np.abs(plane.project(observations)), np.abs(expected.transform(observations)), atol=1e-9)
    assert np.all(plane.directions.max(axis=1) == np.abs(plane.directions).max(axis=1))
    np.testing.assert_allclose(principal_plane(-observations).directions, plane.directions, atol=1e-9)
    np.testing.assert_allclose(plane.project(plane.mean + 2.0 * plane.directions[1]), [0.0, 2.0], atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (2, 3)])
def test_observations_that_span_no_plane(shape):
    with pytest.raises(ValueError, match=r"\[N, O\]|less than two directions"):
        principal_plane(np.random.default_rng(0).normal(size=shape))


def test_on_plane_at_known_places():
    """The plane is that of the first two of three dimensions; log sigma_0 is known at each place of it."""
    rng = np.random.default_rng(0)
    plane = principal_plane(rng.normal(size=(100, 3)) * [5.0, 1.0, 0.0] + [10.0, 20.0, 30.0])
    grid = (np.array([-1.0, 0.0, 2.0]), np.array([0.5, 1.5]))

    def reference(params, o):
        gaps = o - params
        return DiagonalNormal(
            gaps[..., :2], jnp.stack([gaps[..., 0] + 0.1 * gaps[..., 1], gaps[..., 2] - 3.0], axis=-1)
        )

    for size in (512, 4):
        got = on_plane(reference, jnp.asarray(plane.mean, jnp.float32), plane, grid, batch_size=size)
        across, up = np.meshgrid(*grid)
        assert got.shape == (2, 3)
        places = across[..., None] * plane.directions[0] + up[..., None] * plane.directions[1]
        expected = np.exp((places[..., 0] + 0.1 * places[..., 1] - 3.0) / 2)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="gives a Uniform"):
        on_plane(uniform().apply, jnp.zeros(()), plane, grid)


def test_figure_has_a_panel_for_each_reference_and_one_scale(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    grid = (np.linspace(-2, 2, 5), np.linspace(-1, 1, 4))
    planes = {name: scale * np.ones((4, 5)) for name, scale in (("network", 1e-6), ("process", 0.5), ("fixed", 0.1))}
    dots = np.random.default_rng(0).normal(size=(7, 2))
    figure = plot_calibration(planes, grid, dots)
    *panels, bar = figure.axes
    assert [panel.get_title() for panel in panels] == list(planes)
    assert bar.get_ylabel() == "standard deviation"
    for panel, std in zip(panels, planes.values(), strict=True):
        mesh = panel.collections[0]
        np.testing.assert_array_equal(mesh.get_array(), std)
        assert (mesh.norm.vmin, mesh.norm.vmax, type(mesh.norm).__name__) == (1e-6, 0.5, "LogNorm")
        np.testing.assert_array_equal(panel.lines[0].get_xydata(), dots)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    plot_calibration({"fixed": planes["fixed"]}, grid, dots).savefig(tmp_path / "single.png")
    with pytest.raises(ValueError, match="planes is empty"):
        plot_calibration({}, grid, dots)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[bench\]"'):
        plot_calibration(planes, grid, dots)


def circle(demos=15, points=60):
    """The toy of nppac.md section 5: trajectories round a circle, action along the tangent with noise 0.05."""
    rng = np.random.default_rng(0)
    angle = np.tile(np.linspace(0, 2 * np.pi, points, endpoint=False), demos) + 0.02 * rng.normal(size=demos * points)
    radius = np.repeat(1 + 0.05 * rng.normal(size=demos), points)
    observations = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    tangent = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
    return observations, 0.5 * tangent + 0.05 * rng.normal(size=observations.shape)


@pytest.mark.slow
def test_network_collapses_away_from_the_data_and_the_process_does_not():
    observations, actions = circle()
    results = {}
    for name, reference in (
        ("network", gaussian_network(sizes=(64, 64), steps=2000, batch_size=128)),
        ("process", gp_icm(steps=100, fit_points=150)),
    ):
        params = reference.fit(jax.random.key(0), observations[60:], actions[60:])
        results[name] = calibrate(
            reference.apply,
            params,
            observations[60:],
            actions[60:],
            jax.random.key(1),
            held_out=(observations[:60], actions[:60]),
            distances=(0.05, 5.0),
        )
    network, process = results["network"], results["process"]
    for result in (network, process):
        assert np.all((result.std[:3] > 0.03) & (result.std[:3] < 0.08))  # the noise is 0.05
        assert np.all(np.abs(result.log_likelihood[:2] - stats.norm(0, 0.05).entropy() * -1) < 0.4)
        assert result.distance[-1] > 2.0
    assert network.std[-1] < 0.1 * network.std[0]
    assert process.std[-1] > 3.0 * process.std[0]
    assert network.gradient_scale[-1] > 10.0 * process.gradient_scale[-1]  # nppac.md section 8, acceptance (4)
    assert network.log_likelihood[-1] < process.log_likelihood[-1] - 100.0
