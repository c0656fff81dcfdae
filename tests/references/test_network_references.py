"""Uniform, network, ensemble and dropout references against closed forms, and the pathology that Gaussian processes cure."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.references import dropout, ensemble, gaussian_network, gp_icm, uniform
from jaxrl_off.references.ensemble import match_moments
from jaxrl_off.references.network import GaussianMLP


@functools.cache
def noise_only(count=2000):
    """Actions that are noise of standard deviation 0.3 and 0.6, whatever the observation."""
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(count, 2))
    actions = (actions - actions.mean(0)) / actions.std(0) * np.array([0.3, 0.6])
    return 0.1 * rng.normal(size=(count, 1)), actions


def std_at(reference, params, observations):
    return jnp.exp(reference.apply(params, jnp.asarray(observations, jnp.float32)).log_std)


def test_uniform_is_a_constant_and_normalised_on_the_cube():
    demos = noise_only()
    observation, action = jnp.zeros((4, 5, 1)), jnp.full((4, 5, 2), 0.9)
    for reference, expected in ((uniform(), 0.0), (uniform(normalised=True), -2.0 * math.log(2.0))):
        policy = reference.apply(reference.fit(jax.random.key(0), *demos), observation)
        np.testing.assert_allclose(policy.log_prob(action), np.full((4, 5), expected), rtol=1e-6)
        assert not np.any(jax.grad(lambda a, policy=policy: jnp.sum(policy.log_prob(a)))(action))


@pytest.mark.parametrize("bonus", [0.0, 0.5])
def test_maximum_likelihood_finds_the_variance_and_the_entropy_bonus_inflates_it(bonus):
    # Without a hidden layer the optimum is known: s^2 = E[(a - mu)^2] / (1 - c).
    reference = gaussian_network(sizes=(), steps=1500, batch_size=1000, learning_rate=0.01, entropy_bonus=bonus)
    params = reference.fit(jax.random.key(0), *noise_only())
    expected = np.array([0.3, 0.6]) / math.sqrt(1 - bonus)
    np.testing.assert_allclose(std_at(reference, params, np.zeros(1)), expected, rtol=0.04)


def test_fixed_std_fits_the_mean_only_and_floor_and_ceiling_bound_what_is_handed_out():
    rng = np.random.default_rng(1)
    observations = rng.normal(size=(500, 2))
    actions = observations @ np.array([[0.5], [-0.3]]) + 0.1 + 0.05 * rng.normal(size=(500, 1))
    options = {"sizes": (), "steps": 800, "learning_rate": 0.02}
    reference = gaussian_network(fixed_std=0.2, **options)
    params = reference.fit(jax.random.key(0), observations, actions)
    policy = reference.apply(params, jnp.array([[1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(policy.mean[:, 0], [0.3, 0.1], atol=0.02)
    np.testing.assert_allclose(policy.log_std, math.log(0.2), rtol=1e-6)
    # The parameters are of the same kind, so the same fit can be seen through other bounds.
    free = gaussian_network(**options)
    params = free.fit(jax.random.key(0), observations, actions)
    assert 0.03 < float(jnp.max(std_at(free, params, observations[:5]))) < 0.1
    np.testing.assert_allclose(
        std_at(gaussian_network(sizes=(), std_floor=0.3), params, observations[:5]), 0.3, rtol=1e-5
    )
    np.testing.assert_allclose(
        std_at(gaussian_network(sizes=(), std_ceiling=0.02), params, observations[:5]), 0.02, rtol=1e-5
    )


def test_log_std_is_clipped_and_starts_near_zero():
    module = GaussianMLP(2, (4,))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 3)))
    assert np.all(np.abs(module.apply(variables, 10.0 * jnp.ones((1, 3))).log_std) < 0.2)
    variables["params"]["log_std"]["bias"] = jnp.array([-50.0, 50.0])
    np.testing.assert_array_equal(module.apply(variables, jnp.zeros(3)).log_std, [-20.0, 2.0])


def test_weight_decay_shrinks_the_weights():
    norms = []
    for decay in (0.0, 0.1):
        reference = gaussian_network(sizes=(16,), steps=300, learning_rate=0.01, weight_decay=decay)
        params = reference.fit(jax.random.key(0), *noise_only())
        norms.append(float(jnp.linalg.norm(params["params"]["Dense_0"]["kernel"])))
    assert norms[1] < 0.3 * norms[0]


def test_moments_are_those_of_the_mixture():
    keys = jax.random.split(jax.random.key(0), 3)
    members = DiagonalNormal(jax.random.normal(keys[0], (4, 5, 2)), 0.3 * jax.random.normal(keys[1], (4, 5, 2)))
    got = match_moments(members)
    draws = jax.vmap(members.sample)(jax.random.split(keys[2], 40000)).reshape(-1, 5, 2)
    np.testing.assert_allclose(got.mean, members.mean.mean(0), atol=1e-6)
    np.testing.assert_allclose(got.mean, draws.mean(0), atol=0.03)
    np.testing.assert_allclose(jnp.exp(got.log_std), draws.std(0), rtol=0.02)


def test_ensemble_is_the_mixture_of_members_that_differ():
    reference = ensemble(members=3, sizes=(8,), steps=50)
    params = reference.fit(jax.random.key(0), *noise_only())
    observation = jnp.array([[0.1], [3.0]])
    single = gaussian_network(sizes=(8,))
    each = [single.apply(jax.tree.map(lambda x, i=i: x[i], params), observation) for i in range(3)]
    assert np.ptp([member.mean[1, 0] for member in each]) > 1e-3
    expected = match_moments(DiagonalNormal(*(jnp.stack(x) for x in zip(*each, strict=True))))
    got = reference.apply(params, observation)
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.log_std, expected.log_std, rtol=1e-5, atol=1e-6)


def test_dropout_uses_fixed_masks_that_leave_out_the_stated_share():
    reference = dropout(sizes=(64,), steps=20, masks=8, rate=0.25)
    params = reference.fit(jax.random.key(0), *noise_only())
    observation = jnp.array([[0.1], [3.0], [0.1]])
    got = reference.apply(params, observation)
    np.testing.assert_array_equal(got.mean[0], got.mean[2])
    # With one hidden layer whose weights are known, the mean over masks follows from which units are kept.
    variables = jax.tree.map(jnp.zeros_like, params.variables)
    variables["params"]["Dense_0"]["bias"] = jnp.ones(64)
    variables["params"]["mean"]["kernel"] = jnp.full((64, 2), 1.0 / 64)
    variables["params"]["log_std"]["bias"] = jnp.full(2, -20.0)
    policy = reference.apply(params._replace(variables=variables), observation)
    np.testing.assert_allclose(policy.mean, 1.0, atol=0.1)  # kept / (1 - rate), averaged
    expected = math.sqrt(0.25 / 0.75 / 64)  # binomial
    assert np.all(np.abs(jnp.exp(policy.log_std) / expected - 1.0) < 0.6)


def circle(demos=15, points=60):
    """The toy of nppac.md section 5: trajectories round a circle, action along the tangent with noise 0.05."""
    rng = np.random.default_rng(0)
    angle = np.tile(np.linspace(0, 2 * np.pi, points, endpoint=False), demos) + 0.02 * rng.normal(size=demos * points)
    radius = np.repeat(1 + 0.05 * rng.normal(size=demos), points)
    observations = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    tangent = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
    return observations, 0.5 * tangent + 0.05 * rng.normal(size=observations.shape)


def test_network_std_collapses_away_from_the_data_and_that_of_the_process_rises():
    observations, actions = circle()
    grid = np.stack(np.meshgrid(*[np.linspace(-6, 6, 31)] * 2), axis=-1).reshape(-1, 2)
    nearest = np.sqrt(((grid[:, None] - observations) ** 2).sum(-1)).min(axis=1)
    far = grid[(nearest > 2) & (nearest < 6)]
    ratios, on_data = {}, {}
    network = gaussian_network(sizes=(64, 64), steps=2000, batch_size=128)
    for name, reference in (
        ("network", network),
        ("process", gp_icm(steps=100, fit_points=150)),
    ):
        params = reference.fit(jax.random.key(0), observations, actions)
        near, away = (float(jnp.exp(jnp.mean(jnp.log(std_at(reference, params, x))))) for x in (observations, far))
        ratios[name], on_data[name] = away / near, near
    assert all(0.03 < std < 0.08 for std in on_data.values()), on_data
    assert ratios["network"] < 0.1
    assert ratios["process"] > 3.0
