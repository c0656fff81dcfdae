"""Gaussian-process references against the dense formulas, the released code's quirk, and what fitting must achieve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops import gaussian_process as gp
from jaxrl_off.references import gp_icm, gp_independent, gp_sparse


@functools.cache
def demonstrations():
    """Two actions that depend on dimensions 0 and 2 of four; dimension 3 is constant; noise of std 0.1 and 0.3."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(80, 4)) + 100.0
    observations[:, 3] = -7.0
    signal = np.stack([np.sin(2 * observations[:, 0]), np.cos(2 * observations[:, 0]) + 0.5 * observations[:, 2]], -1)
    return observations, signal - signal.mean(0) + rng.normal(size=(80, 2)) * np.array([0.1, 0.3])


@functools.cache
def fitted(make, **options):
    reference = make(**options)
    return reference, reference.fit(jax.random.key(0), *demonstrations())


SPARSE = {"learning_rate": 0.05, "steps": 300, "inducing": 40, "batch_size": 80}
icm = functools.partial(fitted, gp_icm, steps=150)


def queries():
    observations, _ = demonstrations()
    far = observations[:1] + np.array([50.0, 0.0, 0.0, 0.0])
    return np.concatenate([observations[:6] + 0.05 * np.array([1, 1, 1, 0]), far])


def dense(parameters, inputs, targets, points):
    """Mean and observation variance by the full system in NumPy, RBF kernel."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)

    def gram(x, y):
        return np.exp(-0.5 * (((x[:, None] - y[None]) / p.lengthscale) ** 2).sum(-1))

    covariance = p.factor @ p.factor.T + np.diag(p.diagonal)
    full = np.kron(covariance, gram(inputs, inputs)) + np.kron(np.diag(p.noise), np.eye(len(inputs)))
    cross = np.kron(covariance, gram(points, inputs))
    solved = np.linalg.solve(full, np.concatenate([(targets - p.mean).T.reshape(-1, 1), cross.T], axis=1))
    mean = (cross @ solved[:, 0]).reshape(2, -1).T + p.mean
    reduction = np.sum(cross * solved[:, 1:].T, axis=1).reshape(2, -1).T
    return mean, np.diag(covariance) - reduction + p.noise


def test_icm_hands_out_the_exact_posterior_of_all_points_with_noise():
    observations, actions = demonstrations()
    reference, params = fitted(gp_icm, steps=150, fit_points=60)
    mean, variance = dense(params.posterior.parameters, observations, actions, queries())
    got = jax.jit(reference.apply)(params, jnp.asarray(queries(), jnp.float32))
    np.testing.assert_allclose(got.mean, mean, atol=1e-3)
    np.testing.assert_allclose(jnp.exp(got.log_std), np.sqrt(variance), atol=1e-3)
    prior = np.diag(params.posterior.parameters.covariance) + params.posterior.parameters.noise
    np.testing.assert_allclose(jnp.exp(2 * got.log_std[-1]), prior, rtol=1e-3)


def test_fitting_finds_noise_and_relevance():
    _, params = icm()
    parameters = params.posterior.parameters
    np.testing.assert_allclose(jnp.sqrt(parameters.noise), [0.1, 0.3], rtol=0.35)
    assert parameters.lengthscale[1] > 3 * parameters.lengthscale[0]
    np.testing.assert_allclose(parameters.lengthscale[3], np.log(2.0), rtol=1e-6)  # a constant dimension never moves
    assert np.all(parameters.noise >= 2e-4)


def test_more_steps_raise_the_likelihood():
    log = []
    reference = gp_icm(steps=60)
    reference.fit(jax.random.key(0), *demonstrations(), progress=lambda step, total, metrics: log.append(metrics))
    values = [metrics["negative_log_likelihood"] for metrics in log[:-1]]
    assert values[-1] < values[0] - 0.5
    assert log[-1] == {"points": 80.0}


def test_dimensions_without_variance_are_ignored_later():
    _, params = icm()
    reference = gp_icm()
    point = jnp.asarray(queries()[:3], jnp.float32)
    moved = point.at[:, 3].add(4.0)
    jax.tree.map(np.testing.assert_array_equal, reference.apply(params, point), reference.apply(params, moved))
    shifted = reference.apply(params, point.at[:, 0].add(1.0))
    assert np.any(np.abs(shifted.mean - reference.apply(params, point).mean) > 0.1)


@pytest.mark.parametrize(("make", "options"), [(gp_icm, {"steps": 150}), (gp_sparse, SPARSE)])
def test_ref_scale_var_hands_out_the_variance_as_standard_deviation(make, options):
    reference, params = fitted(make, **options)
    point = jnp.asarray(queries(), jnp.float32)
    std, var = reference.apply(params, point), make(ref_scale="var").apply(params, point)
    np.testing.assert_array_equal(std.mean, var.mean)
    np.testing.assert_allclose(jnp.exp(var.log_std), jnp.exp(std.log_std) ** 2, rtol=1e-5)


def test_capacity_pads_or_draws_a_subset():
    point = jnp.asarray(queries(), jnp.float32)
    (reference, params), (padded, padded_params) = icm(), fitted(gp_icm, steps=150, capacity=96)
    assert padded_params.posterior.inputs.shape == (96, 4)
    got, expected = reference.apply(params, point), padded.apply(padded_params, point)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, expected)
    observations, actions = demonstrations()
    reference, params = fitted(gp_icm, steps=20, capacity=50)
    kept = params.posterior.inputs + params.shift * (params.scale > 0)
    assert kept.shape == (50, 4)
    distance = np.abs(kept[:, None, :3] - observations[None, :, :3]).max(-1)
    assert np.all(distance.min(axis=1) < 1e-4)
    assert len(set(distance.argmin(axis=1))) == 50


def test_standardise_makes_the_fit_independent_of_the_units():
    observations, actions = demonstrations()
    reference = gp_icm(steps=20, standardise=True)
    units = np.array([1e-3, 10.0, 1e3, 2.0])
    got = []
    for factor in (np.ones(4), units):
        params = reference.fit(jax.random.key(0), observations * factor, actions)
        got.append(reference.apply(params, jnp.asarray(queries() * factor, jnp.float32)))
    np.testing.assert_allclose(got[0].mean, got[1].mean, atol=2e-3)
    np.testing.assert_allclose(got[0].log_std, got[1].log_std, atol=2e-3)


def test_independent_processes_are_exact_and_have_their_own_hyperparameters():
    observations, actions = demonstrations()
    reference, params = fitted(gp_independent, steps=150)
    posterior = params.posterior
    assert posterior.parameters.lengthscale.shape == (2, 4)
    np.testing.assert_allclose(jnp.sqrt(posterior.parameters.noise), [0.1, 0.3], rtol=0.35)
    got = reference.apply(params, jnp.asarray(queries(), jnp.float32))
    for d in range(2):
        p = jax.tree.map(lambda x, d=d: np.asarray(x[d], np.float64), posterior.parameters)
        # The dense formula again, with the other output cut off.
        cut = gp.MultitaskParameters(
            p.lengthscale, np.full(2, p.mean), np.zeros((2, 1)), np.full(2, p.variance), np.full(2, p.noise)
        )
        mean, variance = dense(cut, observations, actions, queries())
        np.testing.assert_allclose(got.mean[:, d], mean[:, d], atol=1e-3)
        np.testing.assert_allclose(jnp.exp(got.log_std[:, d]), np.sqrt(variance[:, d]), atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_sparse_processes_come_close_to_the_exact_ones_and_return_to_the_prior(shared):
    reference, params = fitted(gp_sparse, **SPARSE, **({} if shared else {"shared_kernel": False}))
    parameters = params.posterior.parameters
    assert parameters.lengthscale.shape == ((4,) if shared else (2, 4))
    exact, exact_params = icm()
    got, expected = (
        r.apply(p, jnp.asarray(queries(), jnp.float32)) for r, p in ((reference, params), (exact, exact_params))
    )
    np.testing.assert_allclose(got.mean[:-1], expected.mean[:-1], atol=0.25)
    np.testing.assert_allclose(got.log_std[:-1], expected.log_std[:-1], atol=0.4)
    np.testing.assert_allclose(jnp.exp(2 * got.log_std[-1]), parameters.variance + parameters.noise, rtol=1e-4)
    np.testing.assert_allclose(got.mean[-1], parameters.mean, atol=1e-4)
