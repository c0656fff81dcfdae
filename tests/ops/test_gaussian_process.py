"""Gaussian processes against golden numbers, dense linear algebra in NumPy, scikit-learn, finite differences and limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.ops import gaussian_process as gp
from jaxrl_off.ops import sparse_gaussian_process as sgp
from jaxrl_off.ops.gaussian_process import ExactParameters, MultitaskParameters
from jaxrl_off.ops.kernels import KERNELS
from jaxrl_off.ops.sparse_gaussian_process import SparseParameters

GOLDEN_QUERIES = np.array([[0.5], [1.0], [10.0]])
# nppac.md section 7: X = 0, 1, 2, y = 0, 1, 0, lengthscale 1, noise variance 0.1: mean, latent variance, log likelihood.
GOLDEN = {
    "rbf": ([0.57454783, 0.80174681, 0.0], [0.08239524, 0.08017468, 1.0], -3.49357802),
    "matern12": ([0.40806311, 0.88647884, 1.134e-05], [0.49852414, 0.08864788, 0.9999999], -3.34869574),
    "matern32": ([0.51788032, 0.86170428, -4.09e-06], [0.21992791, 0.08617043, 1.0], -3.3733584),
    "matern52": ([0.54565883, 0.84771568, -9.7e-07], [0.15074394, 0.08477157, 1.0], -3.39524912),
}
NAMES = tuple(KERNELS)
SMALL = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnums=0)
def multitask(kernel, parameters, inputs, targets, queries, mask=None):
    posterior = gp.multitask_posterior(kernel, parameters, inputs, targets, mask)
    return gp.multitask_predict(kernel, posterior, queries)


@functools.partial(jax.jit, static_argnums=0)
def exact(kernel, parameters, inputs, targets, queries, mask=None):
    posterior = gp.exact_posterior(kernel, parameters, inputs, targets, mask)
    return gp.exact_predict(kernel, posterior, queries)


optimal = jax.jit(sgp.optimal_variational, static_argnums=0)
predict_sparse = jax.jit(
    lambda k, parameters, x: sgp.sparse_predict(k, sgp.sparse_posterior(k, parameters), x), static_argnums=0
)
elbo = jax.jit(sgp.sparse_elbo, static_argnums=0)
exact_gradient = jax.jit(jax.value_and_grad(gp.exact_log_likelihood, argnums=1), static_argnums=0)
multitask_likelihood = jax.jit(gp.multitask_log_likelihood, static_argnums=0)
exact_likelihood = jax.jit(gp.exact_log_likelihood, static_argnums=0)


def scalar_parameters(lengthscale=(1.0,), mean=0.0, variance=1.0, noise=0.1, dtype=jnp.float64):
    return ExactParameters(*(jnp.asarray(x, dtype) for x in (lengthscale, mean, variance, noise)))


def problem(points=40, outputs=3, dims=4, rank=1, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(points, dims))
    targets = np.sin(inputs @ rng.normal(size=(dims, outputs))) + 0.1 * rng.normal(size=(points, outputs))
    parameters = MultitaskParameters(
        lengthscale=jnp.asarray(rng.uniform(0.8, 3.0, dims)),
        mean=jnp.asarray(0.2 * rng.normal(size=outputs)),
        factor=jnp.asarray(rng.normal(size=(outputs, rank))),
        diagonal=jnp.asarray(rng.uniform(0.1, 0.5, outputs)),
        noise=jnp.asarray(rng.uniform(0.01, 0.2, outputs)),
    )
    return jnp.asarray(inputs), jnp.asarray(targets), parameters


def dense_gram(name, x, y, lengthscale):
    r = np.sqrt((((x[:, None, :] - y[None, :, :]) / lengthscale) ** 2).sum(-1))
    return {
        "rbf": np.exp(-0.5 * r**2),
        "matern12": np.exp(-r),
        "matern32": (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r),
        "matern52": (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r),
    }[name]


def dense_multitask(name, parameters, inputs, targets, queries):
    """The N D x N D system, written out in NumPy: mean, latent variance and log marginal likelihood."""
    p, (inputs, targets, queries) = jax.tree.map(np.asarray, (parameters, (inputs, targets, queries)))
    count, outputs = targets.shape
    covariance = p.factor @ p.factor.T + np.diag(p.diagonal)
    full = np.kron(covariance, dense_gram(name, inputs, inputs, p.lengthscale))
    full += np.kron(np.diag(p.noise), np.eye(count))
    residual = (targets - p.mean).T.reshape(-1)
    cross = np.kron(covariance, dense_gram(name, queries, inputs, p.lengthscale))
    mean = (cross @ np.linalg.solve(full, residual)).reshape(outputs, -1).T + p.mean
    reduction = np.sum(cross * np.linalg.solve(full, cross.T).T, axis=1).reshape(outputs, -1).T
    likelihood = -0.5 * residual @ np.linalg.solve(full, residual)
    likelihood -= 0.5 * np.linalg.slogdet(full)[1] + 0.5 * count * outputs * math.log(2 * math.pi)
    return mean, np.diag(covariance) - reduction, likelihood


def finite_difference(function, x, step=1e-5):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", NAMES)
def test_golden_table(name):
    inputs, targets = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([0.0, 1.0, 0.0])
    mean, variance, likelihood = GOLDEN[name]
    got = exact(KERNELS[name], scalar_parameters(), inputs, targets, GOLDEN_QUERIES)
    np.testing.assert_allclose(got.mean, mean, atol=6e-9)
    np.testing.assert_allclose(got.latent_variance, variance, atol=6e-9)
    np.testing.assert_allclose(got.variance, np.asarray(variance) + 0.1, atol=6e-9)
    got = exact_likelihood(KERNELS[name], scalar_parameters(), inputs, targets)
    np.testing.assert_allclose(got, likelihood, atol=6e-9)


@pytest.mark.parametrize("name", NAMES)
def test_kernel_equals_its_formula_and_has_a_finite_gradient_at_distance_zero(name):
    rng = np.random.default_rng(1)
    x, y, lengthscale = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), rng.uniform(0.5, 2.0, 3)
    np.testing.assert_allclose(KERNELS[name](x, y, lengthscale), dense_gram(name, x, y, lengthscale), **SMALL)

    weights = rng.normal(size=(5, 7))

    @jax.jit
    def loss(x, y, lengthscale):
        return jnp.sum(weights * KERNELS[name](x, y, lengthscale))

    arguments = [jnp.asarray(x), jnp.asarray(y), jnp.asarray(lengthscale)]
    for i, gradient in enumerate(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)):
        expected = finite_difference(
            lambda z, i=i: loss(*arguments[:i], jnp.asarray(z), *arguments[i + 1 :]), arguments[i]
        )
        np.testing.assert_allclose(gradient, expected, atol=1e-8)
    at_zero = jax.grad(lambda z: jnp.sum(KERNELS[name](z, z, jnp.ones(3))))(jnp.ones((4, 3)))
    np.testing.assert_array_equal(at_zero, np.zeros((4, 3)))


@pytest.mark.parametrize("name", ["rbf", "matern12"])
@pytest.mark.parametrize("rank", [1, 2])
def test_multitask_equals_the_dense_kronecker_solve(name, rank):
    inputs, targets, parameters = problem(rank=rank)
    queries = jnp.concatenate([jax.random.normal(jax.random.key(3), (6, 4)), inputs[:3], 50 + jnp.zeros((1, 4))])
    mean, variance, likelihood = dense_multitask(name, parameters, inputs, targets, queries)
    got = multitask(KERNELS[name], parameters, inputs, targets, queries)
    np.testing.assert_allclose(got.mean, mean, **SMALL)
    np.testing.assert_allclose(got.latent_variance, variance, **SMALL)
    np.testing.assert_allclose(got.variance, variance + np.asarray(parameters.noise), **SMALL)
    np.testing.assert_allclose(multitask_likelihood(KERNELS[name], parameters, inputs, targets), likelihood, rtol=1e-11)


@pytest.mark.parametrize("case", ["general", "repeated eigenvalues", "uncoupled and equal"])
def test_likelihood_gradient_equals_finite_differences_of_the_dense_formula(case):
    inputs, targets, parameters = problem(points=9, outputs=3, dims=2, rank=1, seed=4)
    if case != "general":
        # Rank one plus a multiple of the noise: D - 1 equal eigenvalues of the whitened task covariance, or D.
        parameters = parameters._replace(noise=jnp.full(3, 0.1), diagonal=jnp.full(3, 0.3))
    if case == "uncoupled and equal":
        parameters = parameters._replace(factor=jnp.zeros((3, 1)))
    gradient = jax.jit(jax.grad(multitask_likelihood, argnums=1), static_argnums=0)(
        KERNELS["matern52"], parameters, inputs, targets
    )
    for field, value in parameters._asdict().items():
        expected = finite_difference(
            lambda x, field=field: dense_multitask(
                "matern52", parameters._replace(**{field: x}), inputs, targets, inputs[:1]
            )[2],
            value,
        )
        np.testing.assert_allclose(getattr(gradient, field), expected, rtol=1e-6, atol=1e-7, err_msg=field)


def test_likelihood_gradient_is_finite_without_correlation_left():
    # A factor and a diagonal of zero: B = 0, every eigenvalue is 0.
    inputs, targets, parameters = problem(points=9, dims=2)
    parameters = parameters._replace(factor=jnp.zeros((3, 1)), diagonal=jnp.zeros(3))
    gradient = jax.grad(multitask_likelihood, argnums=1)(KERNELS["rbf"], parameters, inputs, targets)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in gradient)


def test_exact_equals_multitask_with_one_output_and_vmap_gives_independent_outputs():
    inputs, targets, parameters = problem()
    variances, noises = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.3, 0.01, 0.1])
    stacked = ExactParameters(jnp.stack([parameters.lengthscale] * 3), parameters.mean, variances, noises)
    queries = jax.random.normal(jax.random.key(5), (8, 4))
    kernel = KERNELS["matern32"]
    got = jax.vmap(functools.partial(exact, kernel), in_axes=(0, None, 1, None), out_axes=1)(
        stacked, inputs, targets, queries
    )
    likelihoods = jax.vmap(functools.partial(exact_likelihood, kernel), in_axes=(0, None, 1))(stacked, inputs, targets)
    uncoupled = parameters._replace(factor=jnp.zeros((3, 1)), diagonal=variances, noise=noises)
    expected = multitask(kernel, uncoupled, inputs, targets, queries)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **SMALL)
    np.testing.assert_allclose(likelihoods.sum(), multitask_likelihood(kernel, uncoupled, inputs, targets), rtol=1e-12)


def test_agrees_with_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process import kernels as sk

    inputs, targets, parameters = problem()
    lengthscale = np.asarray(parameters.lengthscale)
    shapes = {
        "rbf": sk.RBF(lengthscale),
        "matern12": sk.Matern(lengthscale, nu=0.5),
        "matern32": sk.Matern(lengthscale, nu=1.5),
        "matern52": sk.Matern(lengthscale, nu=2.5),
    }
    queries = np.random.default_rng(6).normal(size=(10, 4))
    for name, shape in shapes.items():
        kernel = sk.ConstantKernel(0.7) * shape + sk.WhiteKernel(0.05)
        peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(inputs, targets[:, 0])
        mean, std = peer.predict(queries, return_std=True)
        ours = scalar_parameters(lengthscale, 0.0, 0.7, 0.05)
        got = exact(KERNELS[name], ours, inputs, targets[:, 0], queries)
        np.testing.assert_allclose(got.mean, mean, **SMALL)
        np.testing.assert_allclose(jnp.sqrt(got.variance), std, **SMALL)
        likelihood, gradient = peer.log_marginal_likelihood(kernel.theta, eval_gradient=True)
        value, ours = exact_gradient(KERNELS[name], ours, inputs, targets[:, 0])
        np.testing.assert_allclose(value, likelihood, rtol=1e-10)
        np.testing.assert_allclose(ours.variance * 0.7, gradient[0], rtol=1e-7)
        np.testing.assert_allclose(ours.lengthscale * lengthscale, gradient[1:-1], rtol=1e-7)
        np.testing.assert_allclose(ours.noise * 0.05, gradient[-1], rtol=1e-7)


def test_padded_equals_unpadded_and_one_program_serves_every_size():
    inputs, targets, parameters = problem()
    queries = jnp.concatenate([jax.random.normal(jax.random.key(5), (8, 4)), jnp.zeros((1, 4))])
    kernel = KERNELS["rbf"]
    scalar = scalar_parameters(parameters.lengthscale, 0.3, 0.7, 0.02)
    sparse = SparseParameters(
        inputs[:10], parameters.lengthscale, *(jnp.asarray(x) for x in (0.3, 0.7, 0.02)), jnp.zeros(10), jnp.eye(10)
    )
    programs = [
        jax.jit(lambda x, y, mask: multitask(kernel, parameters, x, y, queries, mask)),
        jax.jit(lambda x, y, mask: multitask_likelihood(kernel, parameters, x, y, mask)),
        jax.jit(lambda x, y, mask: jax.grad(multitask_likelihood, 1)(kernel, parameters, x, y, mask)),
        jax.jit(lambda x, y, mask: exact(kernel, scalar, x, y[:, 0], queries, mask)),
        jax.jit(lambda x, y, mask: exact_likelihood(kernel, scalar, x, y[:, 0], mask)),
        jax.jit(lambda x, y, mask: sgp.optimal_variational(kernel, sparse, x, y[:, 0], mask)),
    ]
    for program in programs:
        for count in (31, 40):
            padded = gp.pad_points(inputs[:count], targets[:count], 48)
            # Whatever stands in the padding must not matter.
            padded = (padded[0].at[count:].set(0.1), padded[1].at[count:].set(7.0), padded[2])
            got = program(*padded)
            if count == 31:
                expected = program(inputs[:count], targets[:count], jnp.ones(count, bool))
                jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got, expected)
        assert program._cache_size() == 2  # 48, and 31 without padding
    with pytest.raises(ValueError, match="40 points do not fit a capacity of 39"):
        gp.pad_points(inputs, targets, 39)


@pytest.mark.parametrize("name", NAMES)
def test_variance_far_away_is_prior_plus_noise_and_at_a_point_below_the_bound_of_that_point_alone(name):
    inputs, targets, parameters = problem()
    prior = jnp.diag(parameters.covariance)
    far = multitask(KERNELS[name], parameters, inputs, targets, 1e3 + jnp.zeros((2, 4)))
    np.testing.assert_allclose(far.mean, jnp.broadcast_to(parameters.mean, (2, 3)), atol=1e-9)
    np.testing.assert_allclose(far.variance, jnp.broadcast_to(prior + parameters.noise, (2, 3)), rtol=1e-9)
    near = multitask(KERNELS[name], parameters, inputs, targets, inputs)
    # One observation of output d alone leaves b n / (b + n); more data can only lower it.
    alone = prior * parameters.noise / (prior + parameters.noise)
    assert np.all(near.latent_variance <= alone * (1 + 1e-9))
    assert np.all(near.variance >= parameters.noise)


def test_float32_queries_of_a_float64_posterior_are_accurate():
    # The learned scales of the released hand policies: signal variance 0.1, noise variance 2e-4 and 600 clustered points.
    rng = np.random.default_rng(7)
    inputs = jnp.asarray(rng.normal(size=(600, 2)) @ rng.normal(size=(2, 10)) + 0.05 * rng.normal(size=(600, 10)))
    targets = jnp.asarray(0.3 * np.sin(inputs @ rng.normal(size=(10, 4)) / 3) + 0.014 * rng.normal(size=(600, 4)))
    parameters = MultitaskParameters(
        *(
            jnp.asarray(x)
            for x in (np.full(10, 5.0), np.zeros(4), np.full((4, 1), 0.2), np.full(4, 0.1), np.full(4, 2e-4))
        )
    )
    queries = jnp.concatenate([inputs[:50] + 0.3, inputs[:20], inputs[:20] + 30.0])
    scalar = scalar_parameters(np.full(10, 5.0), 0.0, 0.14, 2e-4)
    sparse = SparseParameters(inputs[::6], *scalar, jnp.zeros(100), jnp.eye(100))
    for name in ("rbf", "matern12"):
        kernel = KERNELS[name]
        posterior = jax.jit(gp.multitask_posterior, static_argnums=0)(kernel, parameters, inputs, targets)
        single = jax.jit(gp.exact_posterior, static_argnums=0)(kernel, scalar, inputs, targets[:, 0])
        best = optimal(kernel, sparse, inputs, targets[:, 0])
        variational = jax.jit(sgp.sparse_posterior, static_argnums=0)(kernel, best)
        cases = [(gp.multitask_predict, posterior), (gp.exact_predict, single), (sgp.sparse_predict, variational)]
        for function, cache in cases:
            predict = jax.jit(function, static_argnums=0)
            expected = predict(kernel, cache, queries)
            single_precision = jax.tree.map(lambda x: x.astype(jnp.float32), (cache, queries))
            got = predict(kernel, *single_precision)
            assert got.mean.dtype == got.variance.dtype == jnp.float32
            np.testing.assert_allclose(got.mean, expected.mean, atol=1e-3)
            np.testing.assert_allclose(jnp.sqrt(got.variance), jnp.sqrt(expected.variance), atol=1e-3)
            assert np.all(got.variance >= np.float32(2e-4))


def test_sparse_with_the_best_q_at_the_data_is_the_exact_process():
    inputs, targets, parameters = problem(points=25, outputs=1)
    targets = targets[:, 0]
    scalar = scalar_parameters(parameters.lengthscale, 0.3, 0.7, 0.05)
    queries = jnp.concatenate([jax.random.normal(jax.random.key(5), (8, 4)), 100 + jnp.zeros((1, 4))])
    for name in ("rbf", "matern12"):
        kernel = KERNELS[name]
        start = SparseParameters(inputs, *scalar, jnp.zeros(25), jnp.eye(25))
        best = optimal(kernel, start, inputs, targets)
        got = predict_sparse(kernel, best, queries)
        expected = exact(kernel, scalar, inputs, targets, queries)
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)  # 1e-6 on the diagonal of k(Z, Z)
        bound = elbo(kernel, best, inputs, targets, 25)
        likelihood = exact_likelihood(kernel, scalar, inputs, targets)
        np.testing.assert_allclose(bound, likelihood, atol=1e-3)


def test_sparse_bound_is_below_the_likelihood_best_at_the_optimum_and_unbiased_over_minibatches():
    inputs, targets, parameters = problem(points=30, outputs=1)
    targets, kernel = targets[:, 0], KERNELS["rbf"]
    scalar = scalar_parameters(parameters.lengthscale, 0.3, 0.7, 0.05)
    start = SparseParameters(inputs[:8] + 0.1, *scalar, jnp.zeros(8), jnp.eye(8))
    best = optimal(kernel, start, inputs, targets)

    @jax.jit
    def bound(parameters):
        return sgp.sparse_elbo(kernel, parameters, inputs, targets, 30)

    top = bound(best)
    assert bound(start) < top < exact_likelihood(kernel, scalar, inputs, targets)
    slope = jax.jit(jax.grad(bound))
    gradient = slope(best)
    np.testing.assert_allclose(gradient.q_mean, 0.0, atol=1e-7)
    np.testing.assert_allclose(jnp.tril(gradient.q_factor), 0.0, atol=1e-6)
    parts = [elbo(kernel, best, inputs[i : i + 5], targets[i : i + 5], 30) for i in range(0, 30, 5)]
    np.testing.assert_allclose(np.mean(parts), top, rtol=1e-10)
    other = best._replace(lengthscale=best.lengthscale * 1.3, noise=best.noise * 2, inducing=best.inducing + 0.2)
    for field in ("inducing", "lengthscale", "mean", "variance", "noise", "q_mean"):
        expected = finite_difference(
            lambda x, field=field: bound(other._replace(**{field: jnp.asarray(x)})), other._asdict()[field]
        )
        np.testing.assert_allclose(getattr(slope(other), field), expected, rtol=1e-5, atol=1e-5)


def test_shapes_are_checked():
    inputs, targets, parameters = problem()
    with pytest.raises(AssertionError):
        gp.multitask_posterior(KERNELS["rbf"], parameters, inputs, targets[:-1])
    with pytest.raises(AssertionError):
        gp.multitask_log_likelihood(KERNELS["rbf"], parameters, inputs, targets[:, :2])
    with pytest.raises(AssertionError):
        gp.exact_log_likelihood(KERNELS["rbf"], scalar_parameters(), inputs, targets)
