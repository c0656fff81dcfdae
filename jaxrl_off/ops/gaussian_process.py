"""Gaussian-process regression: kernels, exact, multitask and sparse posteriors, marginal likelihoods.

Three models with one convention. Inputs `x` are `[N, O]`; the kernel `k` has unit variance and one lengthscale per input
dimension (automatic relevance determination); the noise is Gaussian.

* *Exact*, one output: `f ~ GP(m, sigma^2 k)`, `y = f + e`, `e ~ N(0, noise)`.
* *Multitask*, D outputs (intrinsic coregionalisation model): `cov(f_c(x), f_d(x')) = B_cd k(x, x')` with
  `B = V V^T + diag(kappa)` and `e_d ~ N(0, noise_d)`, solved with one eigendecomposition instead of a system of size N D.
* *Sparse*, one output: M inducing points with a whitened Gaussian variational distribution.

Several independent outputs are `jax.vmap` of the functions for one. Points may be padded: those with `mask` False carry no
weight, so that data sets of different size share one compiled program. Every function works in the precision of its
arguments. Conditioning needs float64 when the noise is small against the signal (`with jax.enable_x64(True)`); the cached
posteriors may be cast to float32 afterwards, since a query only multiplies matrices.

References: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006 (chapters 2 and 4); Bonilla et al.,
"Multi-task Gaussian Process Prediction", NeurIPS 2007; Hensman et al., "Scalable Variational Gaussian Process
Classification", AISTATS 2015. The multitask formulas were derived for this library and are checked against the dense solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxrl_off.types import Array

Kernel = Callable[[Array, Array, Array], Array]
_LOG_2PI = math.log(2.0 * math.pi)
_SQRT_3, _SQRT_5 = math.sqrt(3.0), math.sqrt(5.0)
# Added to the diagonal of the inducing points' kernel matrix, which has no noise to keep it positive definite.
_JITTER = 1e-6


class ExactParameters(NamedTuple):
    """Hyperparameters of the exact model.

    Attributes:
        lengthscale: `float[O]`, positive.
        mean: `float[]`, m.
        variance: `float[]`, sigma^2, positive.
        noise: `float[]`, variance of the observation noise, positive.
    """

    lengthscale: Array
    mean: Array
    variance: Array
    noise: Array


class MultitaskParameters(NamedTuple):
    """Hyperparameters of the multitask model.

    Attributes:
        lengthscale: `float[O]`, positive, shared by all outputs.
        mean: `float[D]`, m.
        factor: `float[D, R]`, V; R is the rank.
        diagonal: `float[D]`, kappa, not negative.
        noise: `float[D]`, variance of the observation noise (task noise plus global noise), positive.
    """

    lengthscale: Array
    mean: Array
    factor: Array
    diagonal: Array
    noise: Array

    @property
    def covariance(self) -> Array:
        """B, `float[D, D]`."""
        return _dot(self.factor, self.factor.T) + jnp.diag(self.diagonal)


class SparseParameters(NamedTuple):
    """Hyperparameters and variational distribution of the sparse model.

    The values at the inducing points are `u = m + sigma L e` with `L L^T = k(Z, Z)` and `q(e) = N(q_mean, S S^T)`.

    Attributes:
        inducing: `float[M, O]`, Z.
        lengthscale: `float[O]`, positive.
        mean: `float[]`, m.
        variance: `float[]`, sigma^2, positive.
        noise: `float[]`, positive.
        q_mean: `float[M]`.
        q_factor: `float[M, M]`, S, lower triangular with a positive diagonal.
    """

    inducing: Array
    lengthscale: Array
    mean: Array
    variance: Array
    noise: Array
    q_mean: Array
    q_factor: Array


class ExactPosterior(NamedTuple):
    """What a query of the exact model needs.

    Attributes:
        parameters: the hyperparameters.
        inputs: `float[N, O]`.
        weights: `float[N]`, `sigma^2 (sigma^2 K + noise I)^-1 (y - m)`; 0 for padded points.
        inverse_factor: `float[N, N]`, `L^-1` of `L L^T = (sigma^2 / noise) K + I`; rows and columns of padded points are 0.
    """

    parameters: ExactParameters
    inputs: Array
    weights: Array
    inverse_factor: Array


class MultitaskPosterior(NamedTuple):
    """What a query of the multitask model needs.

    Attributes:
        parameters: the hyperparameters.
        inputs: `float[N, O]`.
        weights: `float[N, D]`, what the kernel vector is multiplied with to give the mean; 0 for padded points.
        eigenvectors: `float[N, N]`, Q of `K = Q diag(s) Q^T`; rows of padded points are 0.
        shrinkage: `float[N, D]`, `lambda_d^2 / (s_i lambda_d + 1)`.
        task_eigenvalues: `float[D]`, lambda of `diag(noise)^-1/2 B diag(noise)^-1/2 = U diag(lambda) U^T`.
        task_mixing: `float[D, D]`, `(sqrt(noise_c) U_cd)^2`, from rotated to given outputs.
    """

    parameters: MultitaskParameters
    inputs: Array
    weights: Array
    eigenvectors: Array
    shrinkage: Array
    task_eigenvalues: Array
    task_mixing: Array


class SparsePosterior(NamedTuple):
    """What a query of the sparse model needs.

    Attributes:
        parameters: hyperparameters and variational distribution.
        inverse_factor: `float[M, M]`, `L^-1`.
    """

    parameters: SparseParameters
    inverse_factor: Array


class Prediction(NamedTuple):
    """Moments of the outputs at Q queries; `[Q]` for one output, `[Q, D]` for the multitask model.

    Attributes:
        mean: of the latent function and of an observation.
        latent_variance: of the latent function, at least 0.
        variance: of an observation, noise included.
    """

    mean: Array
    latent_variance: Array
    variance: Array


def _dot(x: Array, y: Array) -> Array:
    # Accelerators multiply float32 with fewer bits by default, which the differences below cannot bear.
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def squared_distance(x: Array, y: Array) -> Array:
    """`|x_i - y_j|^2`, `float[N, M]`, from differences: the expanded square loses digits where points are close.

    The gradient is written with matrix products; the derivative of the differences would need N x M x O numbers.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape_suffix([x, y], 1)

    def add(total: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.square(columns[0][:, None] - columns[1][None, :]), None

    return jax.lax.scan(add, jnp.zeros((x.shape[0], y.shape[0]), x.dtype), (x.T, y.T))[0]


def _squared_distance_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return squared_distance(x, y), (x, y)


def _squared_distance_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = saved
    by_x = jnp.sum(gradient, axis=1)[:, None] * x - _dot(gradient, y)
    by_y = jnp.sum(gradient, axis=0)[:, None] * y - _dot(gradient.T, x)
    return 2.0 * by_x, 2.0 * by_y


squared_distance.defvjp(_squared_distance_forward, _squared_distance_backward)


def _distance(x: Array, y: Array, lengthscale: Array) -> Array:
    squares = squared_distance(x / lengthscale, y / lengthscale)
    zero = squares <= 0.0
    # sqrt has an infinite slope at 0; where it is not taken its argument must not be 0 either.
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


def rbf(x: Array, y: Array, lengthscale: Array) -> Array:
    """Squared-exponential kernel `exp(-r^2 / 2)`, `r^2 = sum_o ((x_o - y_o) / lengthscale_o)^2`.

    Args:
        x: `float[N, O]`.
        y: `float[M, O]`.
        lengthscale: `float[O]`.

    Returns:
        `float[N, M]`.
    """
    return jnp.exp(-0.5 * squared_distance(x / lengthscale, y / lengthscale))


def matern12(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 1/2, `exp(-r)`; arguments as `rbf`. Its gradient at r = 0 is taken to be 0."""
    return jnp.exp(-_distance(x, y, lengthscale))


def matern32(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 3/2, `(1 + sqrt(3) r) exp(-sqrt(3) r)`; arguments as `rbf`."""
    r = _SQRT_3 * _distance(x, y, lengthscale)
    return (1.0 + r) * jnp.exp(-r)


def matern52(x: Array, y: Array, lengthscale: Array) -> Array:
    """Matern kernel of smoothness 5/2, `(1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r)`; arguments as `rbf`."""
    r = _SQRT_5 * _distance(x, y, lengthscale)
    return (1.0 + r + jnp.square(r) / 3.0) * jnp.exp(-r)


KERNELS: dict[str, Kernel] = {"rbf": rbf, "matern12": matern12, "matern32": matern32, "matern52": matern52}


def pad_points(inputs: Array, targets: Array, capacity: int) -> tuple[Array, Array, Array]:
    """Append zeros up to a fixed number of points.

    Args:
        inputs: `float[N, O]`.
        targets: `float[N, ...]`.
        capacity: number of points afterwards.

    Returns:
        Inputs `float[capacity, O]`, targets `float[capacity, ...]` and the mask `bool[capacity]`.

    Raises:
        ValueError: if there are more points than `capacity`.
    """
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    extra = capacity - inputs.shape[0]
    if extra < 0:
        raise ValueError(
            f"{inputs.shape[0]} points do not fit a capacity of {capacity}; raise it or pass fewer points."
        )

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))

    return pad(inputs), pad(targets), jnp.arange(capacity) < inputs.shape[0]


def _masked_gram(kernel: Kernel, lengthscale: Array, inputs: Array, mask: Array) -> Array:
    return kernel(inputs, inputs, lengthscale) * mask[:, None] * mask[None, :]


def _mask_like(inputs: Array, mask: Array | None) -> Array:
    if mask is None:
        return jnp.ones(inputs.shape[0], inputs.dtype)
    chex.assert_shape(mask, (inputs.shape[0],))
    return mask.astype(inputs.dtype)


def _inverse_factor(matrix: Array) -> Array:
    """`L^-1` of `L L^T = matrix`."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return solve_triangular(jnp.linalg.cholesky(matrix), identity, lower=True)


@jax.custom_vjp
def _whitened_log_likelihood(gram: Array, task: Array, residual: Array) -> Array:
    """`log N(vec(residual); 0, gram (x) task + I)` without the constant; see `_whitened_backward`."""
    return _whitened_forward(gram, task, residual)[0]


def _whitened_forward(gram: Array, task: Array, residual: Array) -> tuple[Array, tuple[Array, ...]]:
    task_eigenvalues, rotation = jnp.linalg.eigh(task)
    eigenvalues, eigenvectors = jnp.linalg.eigh(gram)
    task_eigenvalues, eigenvalues = jnp.maximum(task_eigenvalues, 0.0), jnp.maximum(eigenvalues, 0.0)
    denominator = eigenvalues[:, None] * task_eigenvalues + 1.0
    rotated = _dot(eigenvectors.T, _dot(residual, rotation))
    value = -0.5 * jnp.sum(jnp.square(rotated) / denominator + jnp.log(denominator))
    return value, (eigenvalues, eigenvectors, task_eigenvalues, rotation, denominator, rotated / denominator)


def _whitened_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    """The derivatives, from the eigenvalues and eigenvectors but not through them.

    With `gram = Q diag(s) Q^T`, `task = U diag(lambda) U^T`, `den_id = s_i lambda_d + 1`, `G = (Q^T residual U) / den` and
    `A = Q G`: `d/d gram = 1/2 A diag(lambda) A^T - 1/2 Q diag(sum_d lambda_d / den_id) Q^T`,
    `d/d task = 1/2 U (G^T diag(s) G - diag(sum_i s_i / den_id)) U^T` and `d/d residual = -A U^T`.
    Nothing is divided by a difference of eigenvalues, so that equal ones, where the derivative of the eigenvectors does
    not exist, do no harm.
    """
    eigenvalues, eigenvectors, task_eigenvalues, rotation, denominator, weights = saved
    spread = _dot(eigenvectors, weights)
    shrunk = jnp.sum(task_eigenvalues / denominator, axis=1)
    by_gram = _dot(spread * task_eigenvalues, spread.T) - _dot(eigenvectors * shrunk, eigenvectors.T)
    traces = jnp.sum(eigenvalues[:, None] / denominator, axis=0)
    inner = _dot(weights.T, eigenvalues[:, None] * weights) - jnp.diag(traces)
    by_task = _dot(rotation, _dot(inner, rotation.T))
    return 0.5 * cotangent * by_gram, 0.5 * cotangent * by_task, -cotangent * _dot(spread, rotation.T)


_whitened_log_likelihood.defvjp(_whitened_forward, _whitened_backward)


def multitask_log_likelihood(
    kernel: Kernel, parameters: MultitaskParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> Array:
    """Log marginal likelihood `log N(vec(y); m, K (x) B + I (x) diag(noise))`.

    `-1/2 sum_d r_d^T (lambda_d K + I)^-1 r_d - 1/2 sum_d log det(lambda_d K + I) - N/2 sum_d log noise_d - N D/2 log 2 pi`
    with `R = (Y - m) diag(noise)^-1/2 U`, for all outputs from one eigendecomposition of K: its cost hardly grows with D.
    First derivatives (reverse mode only) are exact, also where eigenvalues repeat.

    Args:
        kernel: a value of `KERNELS`.
        parameters: hyperparameters.
        inputs: `float[N, O]`.
        targets: `float[N, D]`.
        mask: `bool[N]`, False for padded points; None if there are none.

    Returns:
        `float[]`, in nats.
    """
    chex.assert_rank([inputs, targets], 2)
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    chex.assert_shape(parameters.mean, (targets.shape[1],))
    mask = _mask_like(inputs, mask)
    scale = jnp.sqrt(parameters.noise)
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    residual = (targets - parameters.mean) / scale * mask[:, None]
    whitened = _whitened_log_likelihood(gram, parameters.covariance / jnp.outer(scale, scale), residual)
    return whitened - jnp.sum(mask) * jnp.sum(jnp.log(scale) + 0.5 * _LOG_2PI)


def multitask_posterior(
    kernel: Kernel, parameters: MultitaskParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> MultitaskPosterior:
    """Condition the multitask model on data: one eigendecomposition of the N x N kernel matrix, one of the D x D one.

    `K = Q diag(s) Q^T`; the mean is `k(x, X) A diag(lambda) U^T diag(noise)^1/2 + m` with
    `A = Q ((Q^T R) / (s lambda^T + 1))` and R as in `multitask_log_likelihood`. Not to be differentiated.

    Args:
        kernel: a value of `KERNELS`.
        parameters: hyperparameters.
        inputs: `float[N, O]`; float64 if the noise is small.
        targets: `float[N, D]`.
        mask: `bool[N]`, False for padded points; None if there are none.

    Returns:
        The cached posterior.
    """
    chex.assert_rank([inputs, targets], 2)
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    chex.assert_shape(parameters.mean, (targets.shape[1],))
    mask = _mask_like(inputs, mask)
    scale = jnp.sqrt(parameters.noise)
    task_eigenvalues, rotation = jnp.linalg.eigh(parameters.covariance / jnp.outer(scale, scale))
    task_eigenvalues = jnp.maximum(task_eigenvalues, 0.0)
    eigenvalues, eigenvectors = jnp.linalg.eigh(_masked_gram(kernel, parameters.lengthscale, inputs, mask))
    # Null vectors of the data may mix with padded points, which a query would see.
    eigenvectors = eigenvectors * mask[:, None]
    denominator = jnp.maximum(eigenvalues, 0.0)[:, None] * task_eigenvalues + 1.0
    residual = _dot((targets - parameters.mean) / scale * mask[:, None], rotation)
    weights = _dot(eigenvectors, _dot(eigenvectors.T, residual) / denominator)
    return MultitaskPosterior(
        parameters=parameters,
        inputs=inputs,
        weights=_dot(weights * task_eigenvalues, rotation.T) * scale,
        eigenvectors=eigenvectors,
        shrinkage=jnp.square(task_eigenvalues) / denominator,
        task_eigenvalues=task_eigenvalues,
        task_mixing=jnp.square(scale[:, None] * rotation),
    )


def multitask_predict(kernel: Kernel, posterior: MultitaskPosterior, queries: Array) -> Prediction:
    """Moments of every output; covariances between outputs are dropped.

    Latent variance of output c: `sum_d noise_c U_cd^2 (lambda_d - lambda_d^2 sum_i (k(x, X) Q)_i^2 / (s_i lambda_d + 1))`.

    Args:
        kernel: what the posterior was made with.
        posterior: of `multitask_posterior`.
        queries: `float[Q, O]`.

    Returns:
        `Prediction` of `float[Q, D]`.
    """
    cross = kernel(queries, posterior.inputs, posterior.parameters.lengthscale)
    mean = _dot(cross, posterior.weights) + posterior.parameters.mean
    reduction = _dot(jnp.square(_dot(cross, posterior.eigenvectors)), posterior.shrinkage)
    rotated = jnp.maximum(posterior.task_eigenvalues - reduction, 0.0)
    latent = _dot(rotated, posterior.task_mixing.T)
    return Prediction(mean, latent, latent + posterior.parameters.noise)


def exact_log_likelihood(
    kernel: Kernel, parameters: ExactParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> Array:
    """Log marginal likelihood `log N(y; m, sigma^2 K + noise I)`, by a Cholesky factor.

    Args:
        kernel: a value of `KERNELS`.
        parameters: hyperparameters.
        inputs: `float[N, O]`.
        targets: `float[N]`.
        mask: `bool[N]`, False for padded points; None if there are none.

    Returns:
        `float[]`, in nats.
    """
    chex.assert_rank([inputs, targets], [2, 1])
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    mask = _mask_like(inputs, mask)
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    factor = jnp.linalg.cholesky(parameters.variance / parameters.noise * gram + jnp.eye(len(mask), dtype=inputs.dtype))
    whitened = solve_triangular(factor, (targets - parameters.mean) * mask, lower=True)
    squares = jnp.sum(jnp.square(whitened)) / parameters.noise
    constant = jnp.sum(mask) * (jnp.log(parameters.noise) + _LOG_2PI)
    return -0.5 * (squares + constant) - jnp.sum(jnp.log(jnp.diagonal(factor)))


def exact_posterior(
    kernel: Kernel, parameters: ExactParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> ExactPosterior:
    """Condition the exact model on data by a Cholesky factor, whose inverse is kept; arguments as `exact_log_likelihood`."""
    chex.assert_rank([inputs, targets], [2, 1])
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    mask = _mask_like(inputs, mask)
    ratio = parameters.variance / parameters.noise
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    inverse_factor = _inverse_factor(ratio * gram + jnp.eye(inputs.shape[0], dtype=inputs.dtype))
    inverse_factor = inverse_factor * mask[:, None] * mask[None, :]
    weights = ratio * _dot(inverse_factor.T, _dot(inverse_factor, targets - parameters.mean))
    return ExactPosterior(parameters, inputs, weights, inverse_factor)


def exact_predict(kernel: Kernel, posterior: ExactPosterior, queries: Array) -> Prediction:
    """Moments at `queries` (`float[Q, O]`): mean `m + k(x, X) w`, latent variance `sigma^2 (1 - |L^-1 k(X, x)|^2 ratio)`.

    Returns:
        `Prediction` of `float[Q]`.
    """
    parameters = posterior.parameters
    cross = kernel(queries, posterior.inputs, parameters.lengthscale)
    half = _dot(cross, posterior.inverse_factor.T)
    explained = parameters.variance / parameters.noise * jnp.sum(jnp.square(half), axis=-1)
    latent = parameters.variance * jnp.maximum(1.0 - explained, 0.0)
    return Prediction(parameters.mean + _dot(cross, posterior.weights), latent, latent + parameters.noise)


def sparse_posterior(kernel: Kernel, parameters: SparseParameters) -> SparsePosterior:
    """Factorise the inducing points' kernel matrix (with 1e-6 added to its diagonal); differentiable."""
    gram = kernel(parameters.inducing, parameters.inducing, parameters.lengthscale)
    return SparsePosterior(parameters, _inverse_factor(gram + _JITTER * jnp.eye(gram.shape[0], dtype=gram.dtype)))


def sparse_predict(kernel: Kernel, posterior: SparsePosterior, queries: Array) -> Prediction:
    """Moments at `queries` (`float[Q, O]`) under the variational distribution.

    With `p = L^-1 k(Z, x)`: mean `m + sigma p^T q_mean`, latent variance `sigma^2 (1 - |p|^2 + |S^T p|^2)`, which goes back
    to the prior where p vanishes.

    Returns:
        `Prediction` of `float[Q]`.
    """
    parameters = posterior.parameters
    projection = _dot(kernel(queries, parameters.inducing, parameters.lengthscale), posterior.inverse_factor.T)
    mean = parameters.mean + jnp.sqrt(parameters.variance) * _dot(projection, parameters.q_mean)
    unexplained = jnp.maximum(1.0 - jnp.sum(jnp.square(projection), axis=-1), 0.0)
    uncertain = jnp.sum(jnp.square(_dot(projection, parameters.q_factor)), axis=-1)
    latent = parameters.variance * (unexplained + uncertain)
    return Prediction(mean, latent, latent + parameters.noise)


def sparse_elbo(
    kernel: Kernel, parameters: SparseParameters, inputs: Array, targets: Array, num_points: Array | int
) -> Array:
    """Evidence lower bound, estimated from a minibatch without bias.

    `N/b sum_i (log N(y_i; mean_i, noise) - latent_i / (2 noise)) - KL(N(q_mean, S S^T) || N(0, I))`.

    Args:
        kernel: a value of `KERNELS`.
        parameters: hyperparameters and variational distribution.
        inputs: `float[b, O]`.
        targets: `float[b]`.
        num_points: N, number of points of the whole data set.

    Returns:
        `float[]`, in nats; at most the log marginal likelihood if the minibatch is the whole data set.
    """
    chex.assert_rank([inputs, targets], [2, 1])
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    prediction = sparse_predict(kernel, sparse_posterior(kernel, parameters), inputs)
    errors = jnp.square(targets - prediction.mean) + prediction.latent_variance
    expected = -0.5 * (errors / parameters.noise + jnp.log(parameters.noise) + _LOG_2PI)
    squares = jnp.sum(jnp.square(parameters.q_factor)) + jnp.sum(jnp.square(parameters.q_mean))
    log_determinant = jnp.sum(jnp.log(jnp.diagonal(parameters.q_factor)))
    divergence = 0.5 * (squares - parameters.q_mean.shape[0]) - log_determinant
    return num_points * jnp.mean(expected) - divergence


def optimal_variational(
    kernel: Kernel, parameters: SparseParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> SparseParameters:
    """Replace the variational distribution by the best one for the given hyperparameters and inducing points.

    The bound is quadratic in q: with `P = L^-1 k(Z, X)` and `c = sigma^2 / noise`, `(S S^T)^-1 = I + c P P^T` and
    `q_mean = S S^T P (y - m) c / sigma` (Titsias, "Variational Learning of Inducing Variables in Sparse Gaussian
    Processes", AISTATS 2009).

    Args:
        kernel: a value of `KERNELS`.
        parameters: `q_mean` and `q_factor` are ignored.
        inputs: `float[N, O]`.
        targets: `float[N]`.
        mask: `bool[N]`, False for padded points; None if there are none.
    """
    chex.assert_rank([inputs, targets], [2, 1])
    mask = _mask_like(inputs, mask)
    inverse_factor = sparse_posterior(kernel, parameters).inverse_factor
    cross = kernel(inputs, parameters.inducing, parameters.lengthscale) * mask[:, None]
    projection = _dot(cross, inverse_factor.T)
    ratio = parameters.variance / parameters.noise
    precision = jnp.eye(inverse_factor.shape[0], dtype=inputs.dtype) + ratio * _dot(projection.T, projection)
    # Lower-triangular S: the factor of the covariance itself, as the parametrisation asks for.
    root = _inverse_factor(precision)
    covariance = _dot(root.T, root)
    weighted = _dot(projection.T, (targets - parameters.mean) * mask) * ratio / jnp.sqrt(parameters.variance)
    return parameters._replace(q_mean=_dot(covariance, weighted), q_factor=jnp.linalg.cholesky(covariance))
