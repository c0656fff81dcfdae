"""What every reference policy must do: fit, apply, repeat itself, report, refuse; and the constructors' errors."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_off import references
from jaxrl_off.references import REFERENCES, make
from jaxrl_off.references.base import check_demonstrations, minimise

SMALL_NETWORK = {"sizes": (8,), "steps": 7, "batch_size": 16}
OPTIONS = {
    "uniform": {},
    "gaussian_network": SMALL_NETWORK,
    "ensemble": {**SMALL_NETWORK, "members": 3},
    "dropout": {**SMALL_NETWORK, "masks": 4},
    "gp_icm": {"steps": 7, "fit_points": 16, "capacity": 32},
    "gp_independent": {"steps": 7, "fit_points": 16, "capacity": 32},
    "gp_sparse": {"steps": 7, "inducing": 6, "batch_size": 16},
}


def demonstrations(count=30, seed=0):
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(count, 3)).astype(np.float32)
    observations[:, 1] = 2.5  # carries no information
    return observations, np.sin(observations[:, [0, 2]]) + 0.1 * rng.normal(size=(count, 2)).astype(np.float32)


@functools.cache
def fitted(name):
    reference, log = make(name, **OPTIONS[name]), []
    params = reference.fit(jax.random.key(0), *demonstrations(), progress=lambda *report: log.append(report))
    return reference, params, log


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_the_registry_is_covered():
    assert set(OPTIONS) == set(REFERENCES)
    assert doctest.testmod(references).failed == 0


@pytest.mark.parametrize("name", REFERENCES)
def test_fits_and_applies_under_jit_and_vmap_to_any_batch(name):
    reference, params, _ = fitted(name)
    observation = jax.random.normal(jax.random.key(1), (2, 3, 3))

    @jax.jit
    def everything(params, observation):
        got = reference.apply(params, observation)
        one_by_one = jax.vmap(jax.vmap(reference.apply, in_axes=(None, 0)), in_axes=(None, 0))(params, observation)
        slope = jax.grad(lambda x: jnp.sum(reference.apply(params, x).log_prob(jnp.ones((2, 3, 2)))))(observation)
        return got, one_by_one, slope

    got, one_by_one, slope = everything(params, observation)
    density = got.log_prob(jnp.zeros((2, 3, 2)))
    assert density.shape == (2, 3)
    assert density.dtype == jnp.float32
    assert np.all(np.isfinite(density))
    if name != "uniform":
        assert got.mean.shape == got.log_std.shape == (2, 3, 2)
    assert_trees_close(one_by_one, got, rtol=1e-4, atol=1e-4)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", REFERENCES)
def test_the_same_key_gives_the_same_parameters_in_float32_and_nothing_is_compiled_again(name):
    reference, params, _ = fitted(name)
    compiled = references.base._descend._cache_size()
    again = reference.fit(jax.random.key(0), *demonstrations())
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert {x.dtype for x in jax.tree.leaves(params)} <= {jnp.dtype("float32"), jnp.dtype("uint32")}
    if name in ("gp_icm", "gp_independent"):  # padded: other numbers of points share the programs
        fewer = reference.fit(jax.random.key(0), *demonstrations(25))
        assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(jnp.shape, params)
    assert references.base._descend._cache_size() == compiled
    if name not in ("uniform", "gp_independent"):  # nothing random in it while all points are used
        other = reference.fit(jax.random.key(1), *demonstrations())
        assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("name", REFERENCES)
def test_progress_is_reported_outside_the_float64_context(name):
    _, _, log = fitted(name)
    steps = [step for step, _, _ in log]
    assert steps == sorted(set(steps))
    assert steps[-1] == log[-1][1]
    assert {total for _, total, _ in log} == {log[-1][1]}
    assert all(isinstance(value, float) and np.isfinite(value) for _, _, metrics in log for value in metrics.values())
    assert len(log) >= (1 if name == "uniform" else 7)
    dtypes = []
    reference = make(name, **{**OPTIONS[name], **({} if name == "uniform" else {"steps": 1})})
    reference.fit(jax.random.key(0), *demonstrations(), progress=lambda *_: dtypes.append(jnp.zeros(1).dtype))
    assert set(dtypes) == {jnp.dtype("float32")}


def spoilt(row, column, value):
    observations, actions = demonstrations()
    observations[row, column] = value
    return observations, actions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            spoilt(4, 2, np.nan),
            r"observations must be finite, got nan in row 4, column 2 \(1 rows are affected\); drop",
        ),
        (demonstrations()[:1] + (np.full((30, 2), np.inf),), r"actions must be finite, got inf in row 0.*30 rows"),
        ((np.zeros((30, 2, 2)), np.zeros((30, 2))), r"observations must have the shape \[N, O\].*got \[30, 2, 2\]"),
        ((np.zeros((30, 2)), np.zeros(30)), r"actions must have the shape \[N, A\].*got \[30\]"),
        ((np.zeros((31, 2)), np.zeros((30, 2))), r"the same length, got 31 and 30; a trajectory's last"),
        ((np.zeros((1, 2)), np.zeros((1, 2))), r"at least 2 demonstration steps.*got 1"),
        ((np.full((3, 1), "a"), np.zeros((3, 2))), r"observations must be real numbers, got the type"),
    ],
)
@pytest.mark.parametrize("name", ["uniform", "gaussian_network", "gp_icm"])
def test_unusable_demonstrations_are_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        make(name, **OPTIONS[name]).fit(jax.random.key(0), *given)


def test_usable_types_are_converted():
    observations, actions = check_demonstrations([[1], [2]], np.array([[True], [False]]))
    assert observations.dtype == actions.dtype == np.float64
    np.testing.assert_array_equal(actions, [[1.0], [0.0]])


def test_observations_that_never_change_are_refused_by_the_processes():
    for name in ("gp_icm", "gp_sparse"):
        with pytest.raises(ValueError, match="every observation dimension is constant"):
            make(name, **OPTIONS[name]).fit(jax.random.key(0), np.ones((5, 2)), np.zeros((5, 1)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian", {}, "unknown reference 'gaussian'; choose one of uniform, gaussian_network"),
        ("gp_icm", {"kernels": 1}, "'gp_icm' has no option 'kernels'; it has: kernel, rank"),
        ("gp_icm", {"kernel": "periodic"}, "unknown kernel 'periodic'; choose one of rbf, matern12"),
        ("gp_icm", {"ref_scale": "variance"}, "ref_scale must be 'std' or 'var'"),
        ("gp_icm", {"rank": 0}, "rank must be greater than 0, got 0"),
        ("gp_independent", {"capacity": 0}, "capacity must be greater than 0, got 0"),
        ("gp_sparse", {"inducing": 0}, "inducing must be greater than 0"),
        ("gaussian_network", {"entropy_bonus": 1.0}, "entropy_bonus must be less than 1.*got 1.0"),
        (
            "gaussian_network",
            {"std_floor": 1.0, "std_ceiling": 0.5},
            "std_floor < std_ceiling is needed, got 1.0 and 0.5",
        ),
        ("gaussian_network", {"fixed_std": 0.0}, "fixed_std must be greater than 0"),
        ("gaussian_network", {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ("gaussian_network", {"sizes": (0,)}, "sizes must be widths of at least 1"),
        ("ensemble", {"members": 1}, "members must be at least 2, got 1; use gaussian_network"),
        ("ensemble", {"activation": "sine"}, "unknown activation 'sine'; choose one of relu"),
        ("dropout", {"rate": 1.0}, "rate must be between 0 and 1, got 1.0"),
        ("dropout", {"masks": 1}, "masks must be at least 2"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_updates_that_are_not_finite_are_left_out_and_counted():
    def loss(params, data, key):
        bad = jax.random.bernoulli(key, 0.3)
        return jnp.where(bad, jnp.nan, 1.0) * jnp.sum(jnp.square(params - data))

    log = []
    optimiser = optax.adam(0.1)
    key, target = jax.random.key(0), jnp.ones(3)
    got = minimise(
        loss, jnp.zeros(3), target, key, optimiser, 205, reports=10, progress=lambda *report: log.append(report)
    )
    np.testing.assert_allclose(got, target, atol=0.02)
    assert 30 < sum(metrics["skipped"] for _, _, metrics in log) < 90
    assert [step for step, _, _ in log] == [*range(21, 205, 21), 205]
    assert log[0][2]["loss"] > log[-1][2]["loss"]
    with pytest.raises(FloatingPointError, match="not finite in 5 updates up to number 5"):
        minimise(lambda p, d, k: jnp.log(-p), jnp.ones(()), (), key, optimiser, 5, reports=1)
