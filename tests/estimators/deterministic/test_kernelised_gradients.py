"""Gradients of kernelised values: intervals, horizons of 1, what they need and refuse."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import deterministic as det
from jaxrl_off.ops import intervals
from jaxrl_off.types import Trajectories

N, HORIZON, WIDTH = 200, 2, 0.6
START = {"gain": np.array([[0.7]]), "offset": np.array([0.1])}
SMOOTHING = det.Smoothing(WIDTH, scale=1.0)


def policy(parameters, observations):
    return observations @ parameters["gain"] + parameters["offset"]


def logged(rng, n, horizon):
    states = rng.normal(size=(n, horizon, 1))
    noise = rng.normal(size=states.shape)
    actions = 0.5 * states + noise
    rewards = 1.0 - (actions - states)[..., 0] ** 2 + 0.2 * rng.normal(size=(n, horizon))
    ends = np.ones((n, horizon), bool)
    density = (-0.5 * noise**2 - 0.5 * np.log(2.0 * np.pi))[..., 0]
    return Trajectories(states, actions, rewards, density, ends, ~ends, ~ends, None)


@pytest.fixture(scope="module")
def data():
    return logged(np.random.default_rng(0), N, HORIZON)


@pytest.fixture(scope="module")
def terms(data):
    """`lambda_t G_t r_t`, summed, of `[gain, offset]` for every row."""
    x, a = data.observations[..., 0], data.actions[..., 0]
    u = (a - 0.7 * x - 0.1) / WIDTH
    log_kernel = -0.5 * u**2 - np.log(WIDTH) - 0.5 * np.log(2.0 * np.pi)
    weight = np.exp(np.cumsum(log_kernel - data.behaviour_log_prob, axis=1))
    score = (u / WIDTH)[..., None] * np.stack([x, np.ones_like(x)], axis=-1)
    return np.sum((weight * data.rewards)[..., None] * np.cumsum(score, axis=1), axis=1)


def estimated(data, **settings):
    return det.gradient("cumulative_importance_sampling", data, policy, START, SMOOTHING, **settings)


def flat(tree):
    return np.concatenate([np.ravel(tree["gain"]), np.ravel(tree["offset"])])


@pytest.mark.parametrize("estimator", [det.evaluate, det.gradient])
def test_resamples_of_parts_of_trajectories_are_refused(data, estimator):
    given = "cumulative_importance_sampling", data, policy, START, SMOOTHING
    halves = np.full(N, 1.5)
    with pytest.raises(ValueError, match=r"row 0 has 1.5.*interval='student_t'"):
        estimator(*given, counts=halves, level=0.9, interval="bootstrap")


@pytest.mark.parametrize("interval", ["normal", "bootstrap", "bca"])
def test_bounds_of_each_parameter_are_those_of_the_mean_of_its_terms(data, terms, interval):
    found = estimated(data, level=0.9, interval=interval, resamples=200, seed=4)
    np.testing.assert_allclose(flat(found.value), terms.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(terms.T) / N, rtol=1e-9)
    np.testing.assert_allclose(flat(found.standard_error) ** 2, np.diagonal(found.covariance), rtol=1e-9)
    assert found.lower["gain"].shape == found.upper["gain"].shape == (1, 1)
    with jax.enable_x64(True):
        for place in range(2):
            column, ones = jnp.asarray(terms[:, place]), jnp.ones(N)
            if interval == "normal":
                wanted = intervals.normal_interval(column, level=0.9)
            else:
                function = intervals.percentile_interval if interval == "bootstrap" else intervals.bca_interval
                key = jax.random.key(4)
                wanted = function(key, lambda c, x=column: c @ x / jnp.sum(c), ones, resamples=200, level=0.9)
            np.testing.assert_allclose([flat(found.lower)[place], flat(found.upper)[place]], wanted, rtol=1e-8)


def test_without_a_level_there_are_no_bounds_and_sides_are_one_or_two(data):
    found = estimated(data)
    assert found.lower is None
    assert found.upper is None
    assert {"effective_sample_sizes", "clipped_share", "mean_weight", "below_floor", "finite"} <= set(found.diagnostics)
    one = estimated(data, level=0.9, sides="lower")
    quantile = 1.2858  # of Student's t with 199 degrees of freedom
    np.testing.assert_allclose(flat(one.lower), flat(one.value) - quantile * flat(one.standard_error), rtol=1e-4)
    assert np.isinf(flat(one.upper)).all()
    with pytest.raises(ValueError, match="level must be"):
        estimated(data, level=90)
    with pytest.raises(ValueError, match="interval must be one of"):
        estimated(data, level=0.9, interval="magic")


def test_self_normalised_bootstrap_intervals_are_as_wide_as_errors_say(data):
    shared = dict(level=0.9, self_normalised=True, counts=np.tile([2.0, 1.0], N // 2), resamples=300)
    found = estimated(data, interval="bootstrap", **shared)
    np.testing.assert_allclose(flat(found.upper) - flat(found.lower), 3.29 * flat(found.standard_error), rtol=0.25)
    assert (flat(found.lower) < flat(found.value)).all()
    assert (flat(found.value) < flat(found.upper)).all()


def test_one_trajectory_has_no_error_that_is_known():
    found = estimated(logged(np.random.default_rng(1), 1, 2), level=0.9)
    assert np.isinf(flat(found.standard_error)).all()
    assert np.isinf(flat(found.lower)).all()
    assert np.isfinite(flat(found.value)).all()


def test_plug_in_gradients_have_the_same_intervals(data):
    rng = np.random.default_rng(2)
    slope, ratio = rng.normal(size=data.actions.shape), rng.exponential(size=data.rewards.shape)
    found = det.deterministic_policy_gradient(
        data, policy, START, slope, det.Nuisances(ratio=ratio), discount=0.5, level=0.9, interval="normal"
    )
    pull = ratio * [1.0, 0.5] * slope[..., 0]
    terms = np.stack([np.sum(pull * data.observations[..., 0], axis=1), np.sum(pull, axis=1)], axis=-1)
    np.testing.assert_allclose(flat(found.value), terms.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(terms.T) / N, rtol=1e-9)
    half = 1.6448536269514722 * terms.std(axis=0, ddof=1) / N**0.5
    np.testing.assert_allclose(flat(found.upper), terms.mean(axis=0) + half, rtol=1e-9)
    last = ratio[:, -1]
    np.testing.assert_allclose(found.effective_sample_size, last.sum() ** 2 / np.sum(last**2))
    np.testing.assert_allclose(found.diagnostics["mean_weight"], last.mean())


MARGINAL = [name for name, method in det.METHODS.items() if method.weights == "marginal"]


@pytest.mark.parametrize("method", MARGINAL)
def test_bandits_need_no_ratio_and_marginal_is_cumulative(method):
    bandit = logged(np.random.default_rng(3), 50, 1)
    rng = np.random.default_rng(4)
    q, v = rng.normal(size=(2, 50, 1))
    q_gradient, v_gradient = rng.normal(size=(2, 50, 1, 2))
    nuisances = det.Nuisances(q=q, v=v, q_gradient=q_gradient, v_gradient=v_gradient)
    given = bandit, policy, START, SMOOTHING, nuisances
    other = method.replace("marginal", "cumulative")
    one, two = (det.gradient(name, *given) for name in (method, other))
    np.testing.assert_allclose(flat(one.value), flat(two.value), rtol=1e-12)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-12)
    if method == "marginal_doubly_robust":
        assert det.evaluate(method, *given).value == det.evaluate(other, *given).value
    longer = logged(np.random.default_rng(3), 50, 2)
    with pytest.raises(ValueError, match="the marginal ratio"):
        det.gradient(method, longer, *given[1:])


def test_plug_in_gradients_of_bandits_need_no_ratio():
    bandit, longer = (logged(np.random.default_rng(3), 50, horizon) for horizon in (1, 2))
    slope = det.deterministic_policy_gradient(bandit, policy, START, bandit.actions, det.Nuisances())
    np.testing.assert_allclose(flat(slope.value)[1], bandit.actions.mean(), rtol=1e-9)
    with pytest.raises(ValueError, match="the marginal ratio"):
        det.deterministic_policy_gradient(longer, policy, START, longer.actions, det.Nuisances())


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("method", ["cumulative_policy_gradient", "marginal_policy_gradient"])
def test_policy_gradients_are_sums_of_weighted_scores_and_need_no_derivatives(data, method, normalised):
    rng = np.random.default_rng(5)
    q, ratio = rng.normal(size=(N, HORIZON)), rng.exponential(size=(N, HORIZON))
    x, u = data.observations[..., 0], (data.actions - 0.7 * data.observations - 0.1)[..., 0] / WIDTH
    eta = np.exp(-0.5 * u**2 - data.behaviour_log_prob) / WIDTH / np.sqrt(2.0 * np.pi)
    weight = ratio * eta if method.startswith("marginal") else np.cumprod(eta, axis=1)
    if normalised:
        weight = weight / weight.mean(axis=0)
    score = (u / WIDTH)[..., None] * np.stack([x, np.ones_like(x)], axis=-1)
    wanted = np.einsum("nt,t,ntp->p", weight * q, [1.0, 0.9], score) / N
    nuisances = det.Nuisances(q=q, ratio=ratio)
    options = dict(self_normalised=normalised, discount=0.9)
    found = det.gradient(method, data, policy, START, SMOOTHING, nuisances, **options)
    np.testing.assert_allclose(flat(found.value), wanted, rtol=1e-9)
    with pytest.raises(ValueError, match="needs nuisances with q"):
        det.gradient(method, data, policy, START, SMOOTHING, det.Nuisances(ratio=ratio))


def test_the_direct_method_needs_values_of_states_alone(data):
    v, slope = np.random.default_rng(6).normal(size=(2, N, HORIZON))
    nuisances = det.Nuisances(v=v, v_gradient=np.stack([slope, v], axis=-1))
    given = "direct_method", data, policy, START, SMOOTHING
    np.testing.assert_allclose(det.evaluate(*given, nuisances).value, v[:, 0].mean())
    found = det.gradient(*given, nuisances)
    np.testing.assert_allclose(flat(found.value), [slope[:, 0].mean(), v[:, 0].mean()], rtol=1e-9)
    with pytest.raises(ValueError, match="needs nuisances with v;"):
        det.evaluate(*given, det.Nuisances(q=v))
    with pytest.raises(ValueError, match="v_gradient"):
        det.gradient(*given, det.Nuisances(v=v))


def test_what_has_no_slope_is_not_differentiated(data):
    def value(parameters, smoothing, **options):
        return det.evaluate("cumulative_importance_sampling", data, policy, parameters, smoothing, **options).value

    with jax.enable_x64(True):
        start = jax.tree.map(jnp.asarray, START)
        for kernel in ("epanechnikov", "triangular", "cosine"):
            slope = jax.grad(value)(start, det.Smoothing(WIDTH, kernel=kernel, scale=1.0))
            assert np.abs(flat(slope)).min() > 0
        uniform = det.Smoothing(WIDTH, kernel="uniform", scale=1.0)
        with pytest.raises(ValueError, match="uniform kernel has no gradient"):
            jax.grad(value)(start, uniform)
        with pytest.raises(ValueError, match="uniform kernel has no gradient"):
            jax.jit(jax.jacfwd(lambda start: value(start, uniform)))(start)
        # values, and their derivatives by data, are as they were
        assert np.isfinite(jax.jit(value)(start, uniform))
        point, density = (
            det.Smoothing(WIDTH, form="point", scale=1.0),
            dict(behaviour_at_target=data.behaviour_log_prob),
        )
        assert np.isfinite(value(start, point, **density))
        with pytest.raises(ValueError, match="as a function"):
            jax.grad(lambda start: value(start, point, **density))(start)


def test_policies_are_asked_about_observed_states_alone():
    """Half of the steps are padding; a policy that has no slope at 0 is differentiated both ways."""
    data = logged(np.random.default_rng(7), 40, 2)
    mask = np.stack([np.ones(40, bool), np.arange(40) % 2 == 0], axis=1)
    blank = {name: np.where(mask[..., None], getattr(data, name), np.nan) for name in ("observations", "actions")}
    data = data._replace(mask=mask, **blank)

    def directed(gain, observations):
        return gain * observations / jnp.linalg.norm(observations, axis=-1, keepdims=True)

    given = "cumulative_importance_sampling", data, directed
    with jax.enable_x64(True):
        derived = jax.grad(lambda gain: det.evaluate(*given, gain, SMOOTHING).value)(jnp.asarray(0.7))
    np.testing.assert_allclose(derived, det.gradient(*given, 0.7, SMOOTHING).value, rtol=1e-8)
    assert np.isfinite(derived)


@functools.partial(jax.jit, static_argnames="kernel")
def repeated(kernel):
    """Gradients and bounds of a bandit of value `-(gain - 1)^2 - h^2 M2`, of many data sets."""

    def gained(gain, observations):
        return gain * observations

    def once(key):
        noise = jax.random.normal(key, (3, 1000, 1), jnp.float64)
        x, a = noise[0], 0.5 * noise[0] + noise[1]
        ends = jnp.ones(x.shape, bool)
        density = -0.5 * noise[1] ** 2 - 0.5 * jnp.log(2.0 * jnp.pi)
        data = Trajectories(x[..., None], a[..., None], -((a - x) ** 2), density, ends, ~ends, ~ends, None)
        smoothing = det.Smoothing(0.5, kernel=kernel, scale=1.0)
        found = det.gradient("marginal_importance_sampling", data, gained, jnp.asarray(0.8), smoothing, level=0.9)
        return found.value, found.lower, found.upper

    return jax.vmap(once)(jax.random.split(jax.random.key(5), 300))


@pytest.mark.parametrize("kernel", ["gaussian", "epanechnikov"])
def test_intervals_cover(kernel):
    """Smoothing adds no bias to this gradient, which is 0.4."""
    with jax.enable_x64(True):
        value, lower, upper = (np.asarray(x) for x in repeated(kernel))
    assert abs(value.mean() - 0.4) < 4.0 * value.std() / 300**0.5
    assert abs(((lower < 0.4) & (0.4 < upper)).mean() - 0.9) < 4.0 * (0.09 / 300) ** 0.5
