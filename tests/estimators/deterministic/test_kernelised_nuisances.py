"""Nuisances that are fitted: recursions against NumPy, derivatives through the fit, folds, lengths, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import deterministic as det
from jaxrl_off.types import Trajectories

N, HORIZON, GAMMA = 60, 3, 0.9
THETA = np.array([[0.6, -0.2]])
FOLDS = dict(folds=2, seed=3, discount=GAMMA)


def policy(matrix, observations):
    return observations @ matrix.T


@pytest.fixture(scope="module")
def data():
    """Two numbers observed, one acted; rows of different lengths, and nonsense in the padding."""
    rng = np.random.default_rng(0)
    states, actions = np.zeros((N, HORIZON, 2)), np.zeros((N, HORIZON, 1))
    states[:, 0] = rng.normal(size=(N, 2))
    for t in range(HORIZON):
        actions[:, t] = 0.5 * states[:, t, :1] + rng.normal(size=(N, 1))
        if t + 1 < HORIZON:
            states[:, t + 1] = 0.6 * states[:, t] + [0.3, -0.2] * actions[:, t] + 0.3 * rng.normal(size=(N, 2))
    rewards = states[..., 0] - (actions[..., 0] - 0.3) ** 2 + 0.1 * rng.normal(size=(N, HORIZON))
    density = -0.5 * (actions[..., 0] - 0.5 * states[..., 0]) ** 2 - 0.5 * np.log(2 * np.pi)
    mask = np.arange(HORIZON) < rng.choice([2, 3], p=[0.2, 0.8], size=(N, 1))
    states[~mask], rewards[~mask], density[~mask] = np.nan, np.nan, np.nan
    none = np.zeros_like(mask)
    return Trajectories(states, actions, rewards, density, mask, none, none, None)


@pytest.fixture(scope="module")
def smoothing():
    return det.Smoothing(0.7, form="soft", scale=np.array([1.2]))


@pytest.fixture(scope="module")
def fitted(data, smoothing):
    return det.fit_nuisances(data, policy, THETA, smoothing, gradient=True, **FOLDS)


def quadratic(x):
    return np.stack([x[..., i] * x[..., j] for i in range(x.shape[-1]) for j in range(i + 1)], axis=-1)


def regression(x, y, weights):
    """Least squares with an intercept on all products of inputs and 1."""

    def features(x):
        return quadratic(np.concatenate([np.ones_like(x[..., :1]), x], axis=-1))

    root = np.sqrt(weights)[:, None]
    coefficients = np.linalg.lstsq(root * features(x), root[:, 0] * y, rcond=None)[0]
    return lambda x: features(x) @ coefficients


def test_values_and_ratios_are_those_of_loops(data, smoothing, fitted):
    mask = data.mask
    states, rewards = (np.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0.0) for x in data[::2][:2])
    member = np.random.default_rng(3).permutation(np.arange(N) % 2)
    width = 0.7 * 1.2
    target = states @ THETA.T
    eta = np.exp(-0.5 * ((data.actions - target)[..., 0] / width) ** 2) / width / np.sqrt(2 * np.pi)
    eta = np.where(mask, eta / np.exp(np.where(mask, data.behaviour_log_prob, 0.0)), 1.0)
    nodes, shares = np.polynomial.hermite_e.hermegauss(5)
    shares = shares / shares.sum()
    for fold in range(2):
        train, own = (member != fold).astype(float), member == fold
        following = np.zeros(N)
        for t in reversed(range(HORIZON)):
            x = np.concatenate([states[:, t], data.actions[:, t]], axis=-1)
            q = regression(x, rewards[:, t] + GAMMA * following, train * mask[:, t])
            v = sum(
                share * q(np.concatenate([states[:, t], target[:, t] + node * width], axis=-1))
                for node, share in zip(nodes, shares, strict=True)
            )
            following = np.where(mask[:, t], v, 0.0)
            np.testing.assert_allclose(fitted.q[own, t], np.where(mask[:, t], q(x), 0.0)[own], atol=1e-6)
            np.testing.assert_allclose(fitted.v[own, t], following[own], atol=1e-6)
        mu = eta[:, 0]
        for t in range(1, HORIZON):
            weights, x = train * mask[:, t], states[:, t]
            laws = []
            for mass in (weights * mu, weights):
                mean = mass @ x / mass.sum()
                covariance = ((x - mean) * mass[:, None]).T @ (x - mean) / mass.sum()
                errors = np.linalg.solve(covariance, (x - mean).T).T * (x - mean)
                laws.append(np.exp(-0.5 * errors.sum(1)) / np.sqrt(np.linalg.det(covariance)))
            ratio = laws[0] / laws[1]
            ratio *= (weights @ mu) / (train @ mu) * train.sum() / (weights @ ratio)
            shown = own & mask[:, t]
            np.testing.assert_allclose(fitted.ratio[shown, t], ratio[shown], rtol=1e-5)
            mu = np.where(mask[:, t], ratio * eta[:, t], mu)
    np.testing.assert_array_equal(fitted.ratio[:, 0], 1.0)


METHODS = ("marginal_importance_sampling", "cumulative_doubly_robust", "marginal_doubly_robust")


@pytest.mark.parametrize(
    ("form", "model", "normalised"),
    [
        ("soft", det.LinearSieve(), False),
        ("mixed", det.LinearSieve(ratio="polynomial", ratio_degree=2), True),
    ],
)
def test_the_recursion_is_the_derivative_through_the_fit(data, form, model, normalised):
    smoothing = det.Smoothing(0.7, form=form, scale=1.0)
    options = dict(self_normalised=normalised, discount=GAMMA)

    def values(theta):
        nuisances = det.fit_nuisances(data, policy, theta, smoothing, model, **FOLDS)
        return jnp.stack([det.evaluate(m, data, policy, theta, smoothing, nuisances, **options).value for m in METHODS])

    with jax.enable_x64(True):
        wanted = jax.jit(jax.jacrev(values))(jnp.asarray(THETA))
    nuisances = det.fit_nuisances(data, policy, THETA, smoothing, model, gradient=True, **FOLDS)
    if model.ratio == "polynomial":
        assert np.asarray(nuisances.clipped).sum() > 0
    for place, method in enumerate(METHODS):
        found = det.gradient(method, data, policy, THETA, smoothing, nuisances, **options)
        np.testing.assert_allclose(found.value, wanted[place], rtol=1e-7, atol=1e-9)
        assert found.covariance.shape == (2, 2)
        np.testing.assert_allclose(np.sqrt(np.diagonal(found.covariance)), found.standard_error[0])


def test_what_counts_twice_is_there_twice(data, smoothing, fitted):
    counts = np.random.default_rng(1).integers(0, 3, size=N)
    twice = jax.tree.map(lambda x: np.repeat(x, counts, axis=0), data)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, counts, axis=0), fitted)
    for normalised in (False, True):
        shared = dict(self_normalised=normalised, discount=GAMMA)
        one = det.gradient("marginal_doubly_robust", data, policy, THETA, smoothing, fitted, counts=counts, **shared)
        other = det.gradient("marginal_doubly_robust", twice, policy, THETA, smoothing, repeated, **shared)
        np.testing.assert_allclose(one.value, other.value, rtol=1e-9)
        np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-9)


def test_what_is_nearly_a_function_of_the_rest_does_not_swamp_the_ratio(data, smoothing, fitted):
    """Normal laws would see two of them where a curve is thin: of 60 rows some have ratios of thousands, others of 0."""
    first, second = data.observations[..., 0], data.observations[..., 1]
    third = first - second + 0.005 * first**2
    wider = data._replace(observations=np.concatenate([data.observations, third[..., None]], axis=-1))

    def of_two(matrix, observations):
        return policy(matrix, observations[..., :2])

    found = det.fit_nuisances(wider, of_two, THETA, smoothing, **FOLDS)
    np.testing.assert_allclose(found.ratio[data.mask], fitted.ratio[data.mask], rtol=0.05, atol=0.01)
    swamped = det.LinearSieve(ratio_tolerance=1e-8)
    other = det.fit_nuisances(wider, of_two, THETA, smoothing, swamped, **FOLDS)
    assert np.max(np.abs(other.ratio - fitted.ratio)[data.mask]) > 0.5


def test_rows_depend_on_other_folds_alone(data, smoothing, fitted):
    member = np.random.default_rng(3).permutation(np.arange(N) % 2)
    changed = data._replace(rewards=np.where((member == 0)[:, None], 7.0, data.rewards))
    found = det.fit_nuisances(changed, policy, THETA, smoothing, gradient=True, **FOLDS)
    np.testing.assert_array_equal(found.q[member == 0], fitted.q[member == 0])
    assert (np.abs(found.q - fitted.q)[member == 1, 0] > 0.1).all()


@pytest.fixture(scope="module")
def two_steps():
    """A reward of the second state alone, of 400 rows."""
    rng = np.random.default_rng(5)
    first, noise = rng.normal(size=400), rng.normal(size=(400, 2))
    actions = np.stack([noise[:, 0], noise[:, 1]], axis=1)
    states = np.stack([first, 0.5 * first + actions[:, 0]], axis=1)
    rewards = np.stack([0.0 * first, -((actions[:, 1] - states[:, 1]) ** 2)], axis=1)
    density = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi)
    ends = np.ones((400, 2), bool)
    return Trajectories(states[..., None], actions[..., None], rewards, density, ends, ~ends, ~ends, None)


def test_networks_learn_values_and_derivatives(two_steps):
    def gain(theta, observations):
        return theta * observations

    model = det.NetworkRegression(sizes=(32,), updates=300, batch_size=64)
    smoothing, options = det.Smoothing(0.5, scale=1.0), dict(largest_ratio=20.0, folds=2)
    found = det.fit_nuisances(two_steps, gain, 0.5, smoothing, model, gradient=True, **options)
    x, a = two_steps.observations[..., 0], two_steps.actions[..., 0]
    after = 0.5 * x[:, 0] + a[:, 0]
    wanted = {
        "q": np.stack([-0.25 * after**2, -((a[:, 1] - x[:, 1]) ** 2)], axis=1),
        "q_gradient": np.stack([after**2, np.zeros(400)], axis=1),
        # (theta x + x / 2)^2 (1 - theta)^2 is what is worth at first, by its derivative at 1/2
        "v_gradient": np.stack([x[:, 0] ** 2 * (1.0 - 0.5), x[:, 1] ** 2], axis=1),
    }
    for name, values in wanted.items():
        learned = np.asarray(getattr(found, name)).reshape(400, 2)
        errors = np.sqrt(np.mean((learned - values) ** 2, axis=0))
        # a constant is as wrong as the deviation; 0.01 where there is nothing to learn
        np.testing.assert_array_less(errors, 0.5 * values.std(axis=0) + 0.01, err_msg=name)
    assert np.asarray(found.ratio).min() >= 0.0
    explicit = det.gradient("marginal_doubly_robust", two_steps, gain, 0.5, smoothing, found)
    with jax.enable_x64(True):

        def value(theta):
            made = det.fit_nuisances(two_steps, gain, theta, smoothing, model, gradient=True, **options)
            return det.evaluate("marginal_doubly_robust", two_steps, gain, theta, smoothing, made).value

        derived = jax.grad(value)(jnp.asarray(0.5))
    np.testing.assert_allclose(explicit.value, derived, rtol=1e-6)


def test_what_cannot_be_meant_is_refused(data, smoothing, fitted):
    def fit(given=data, smooth=smoothing, **options):
        return det.fit_nuisances(given, policy, THETA, smooth, **options)

    with pytest.raises(ValueError, match="folds must be between 2"):
        fit(folds=1)
    with pytest.raises(ValueError, match="largest_ratio must be above 1"):
        fit(largest_ratio=1.0)
    for bandwidth in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="bandwidth must be positive"):
            fit(smooth=det.Smoothing(bandwidth, scale=1.0))
    constant = data._replace(observations=np.ones_like(data.observations), actions=np.ones_like(data.actions))
    with pytest.raises(ValueError, match="features are constant"):
        fit(constant)
    with pytest.raises(ValueError, match="uniform kernel has no gradient"):
        fit(smooth=det.Smoothing(1.0, kernel="uniform", scale=1.0), gradient=True)
    with pytest.raises(ValueError, match="float\\[n, T, A\\]|n, T, A"):
        fit(data._replace(actions=data.actions[..., 0]))
    point = det.Smoothing(0.5, form="point", scale=1.0)
    with pytest.raises(ValueError, match="needs behaviour_at_target"):
        fit(smooth=point)
    with pytest.raises(ValueError, match="must be positive at the target action"):
        fit(smooth=point, behaviour_at_target=np.where(data.mask, -np.inf, 0.0))
    with pytest.raises(ValueError, match="as a function"):
        fit(smooth=point, behaviour_at_target=np.zeros((N, HORIZON)), gradient=True)
    with pytest.raises(ValueError, match="form must be one of"):
        det.Smoothing(1.0, form="hard", scale=1.0)
    with pytest.raises(ValueError, match="within the bounds"):
        fit(smooth=det.Smoothing(1.0, lower=-0.1, upper=0.1, scale=1.0))
    evaluate = det.evaluate
    with pytest.raises(ValueError, match="needs nuisances with q and v and the marginal ratio"):
        evaluate("marginal_doubly_robust", data, policy, THETA, smoothing)
    with pytest.raises(ValueError, match="method must be one of"):
        evaluate("magic", data, policy, THETA, smoothing, fitted)
    with pytest.raises(ValueError, match="has no value"):
        evaluate("marginal_policy_gradient", data, policy, THETA, smoothing, fitted)
    with pytest.raises(ValueError, match="q_gradient"):
        det.gradient("cumulative_doubly_robust", data, policy, THETA, smoothing, fitted._replace(q_gradient=None))
    with pytest.raises(ValueError, match="must not be negative"):
        evaluate("marginal_importance_sampling", data, policy, THETA, smoothing, fitted._replace(ratio=-fitted.ratio))
    with pytest.raises(ValueError, match="the policy gives shape"):
        evaluate("cumulative_importance_sampling", data, lambda p, s: s @ np.ones((2, 3)), THETA, smoothing)
