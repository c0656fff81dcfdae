"""Gaussian-process regression: exact and multitask models (the sparse one: `sparse_gaussian_process`).

Models with one convention. Inputs `x` are `[N, O]`; the kernel `k` (`ops.kernels`) has unit variance and one lengthscale per
input dimension; the noise is Gaussian.

* *Exact*, one output: `f ~ GP(m, sigma^2 k)`, `y = f + e`, `e ~ N(0, noise)`.
* *Multitask*, D outputs (intrinsic coregionalisation model): `cov(f_c(x), f_d(x')) = B_cd k(x, x')` with
  `B = V V^T + diag(kappa)` and `e_d ~ N(0, noise_d)`, solved with one eigendecomposition instead of a system of size N D.
* *Sparse*, one output: M inducing points with a whitened Gaussian variational distribution.

Several independent outputs are `jax.vmap` of the functions for one. Points may be padded: those with `mask` False carry no
weight, so that data sets of different size share one compiled program. Every function works in the precision of its
arguments. Conditioning needs float64 when the noise is small against the signal (`with jax.enable_x64(True)`); the cached
posteriors may be cast to float32 afterwards, since a query only multiplies matrices.

References: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006 (chapters 2 and 4); Bonilla et al.,
"Multi-task Gaussian Process Prediction", NeurIPS 2007. The multitask formulas were derived for this library and are checked
against the dense solve.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxrl_off.ops.kernels import Kernel, precise_dot
from jaxrl_off.types import Array

LOG_2PI = math.log(2.0 * math.pi)


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
        return precise_dot(self.factor, self.factor.T) + jnp.diag(self.diagonal)


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


def mask_like(inputs: Array, mask: Array | None) -> Array:
    """The mask as numbers of the inputs' type, ones where none was given."""
    if mask is None:
        return jnp.ones(inputs.shape[0], inputs.dtype)
    chex.assert_shape(mask, (inputs.shape[0],))
    return mask.astype(inputs.dtype)


def inverse_factor_of(matrix: Array) -> Array:
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
    rotated = precise_dot(eigenvectors.T, precise_dot(residual, rotation))
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
    spread = precise_dot(eigenvectors, weights)
    shrunk = jnp.sum(task_eigenvalues / denominator, axis=1)
    by_gram = precise_dot(spread * task_eigenvalues, spread.T) - precise_dot(eigenvectors * shrunk, eigenvectors.T)
    traces = jnp.sum(eigenvalues[:, None] / denominator, axis=0)
    inner = precise_dot(weights.T, eigenvalues[:, None] * weights) - jnp.diag(traces)
    by_task = precise_dot(rotation, precise_dot(inner, rotation.T))
    return 0.5 * cotangent * by_gram, 0.5 * cotangent * by_task, -cotangent * precise_dot(spread, rotation.T)


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
    mask = mask_like(inputs, mask)
    scale = jnp.sqrt(parameters.noise)
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    residual = (targets - parameters.mean) / scale * mask[:, None]
    whitened = _whitened_log_likelihood(gram, parameters.covariance / jnp.outer(scale, scale), residual)
    return whitened - jnp.sum(mask) * jnp.sum(jnp.log(scale) + 0.5 * LOG_2PI)


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
    mask = mask_like(inputs, mask)
    scale = jnp.sqrt(parameters.noise)
    task_eigenvalues, rotation = jnp.linalg.eigh(parameters.covariance / jnp.outer(scale, scale))
    task_eigenvalues = jnp.maximum(task_eigenvalues, 0.0)
    eigenvalues, eigenvectors = jnp.linalg.eigh(_masked_gram(kernel, parameters.lengthscale, inputs, mask))
    # Null vectors of the data may mix with padded points, which a query would see.
    eigenvectors = eigenvectors * mask[:, None]
    denominator = jnp.maximum(eigenvalues, 0.0)[:, None] * task_eigenvalues + 1.0
    residual = precise_dot((targets - parameters.mean) / scale * mask[:, None], rotation)
    weights = precise_dot(eigenvectors, precise_dot(eigenvectors.T, residual) / denominator)
    return MultitaskPosterior(
        parameters=parameters,
        inputs=inputs,
        weights=precise_dot(weights * task_eigenvalues, rotation.T) * scale,
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
    mean = precise_dot(cross, posterior.weights) + posterior.parameters.mean
    reduction = precise_dot(jnp.square(precise_dot(cross, posterior.eigenvectors)), posterior.shrinkage)
    rotated = jnp.maximum(posterior.task_eigenvalues - reduction, 0.0)
    latent = precise_dot(rotated, posterior.task_mixing.T)
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
    mask = mask_like(inputs, mask)
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    factor = jnp.linalg.cholesky(parameters.variance / parameters.noise * gram + jnp.eye(len(mask), dtype=inputs.dtype))
    whitened = solve_triangular(factor, (targets - parameters.mean) * mask, lower=True)
    squares = jnp.sum(jnp.square(whitened)) / parameters.noise
    constant = jnp.sum(mask) * (jnp.log(parameters.noise) + LOG_2PI)
    return -0.5 * (squares + constant) - jnp.sum(jnp.log(jnp.diagonal(factor)))


def exact_posterior(
    kernel: Kernel, parameters: ExactParameters, inputs: Array, targets: Array, mask: Array | None = None
) -> ExactPosterior:
    """Condition the exact model on data by a Cholesky factor, whose inverse is kept; arguments as `exact_log_likelihood`."""
    chex.assert_rank([inputs, targets], [2, 1])
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    mask = mask_like(inputs, mask)
    ratio = parameters.variance / parameters.noise
    gram = _masked_gram(kernel, parameters.lengthscale, inputs, mask)
    inverse_factor = inverse_factor_of(ratio * gram + jnp.eye(inputs.shape[0], dtype=inputs.dtype))
    inverse_factor = inverse_factor * mask[:, None] * mask[None, :]
    weights = ratio * precise_dot(inverse_factor.T, precise_dot(inverse_factor, targets - parameters.mean))
    return ExactPosterior(parameters, inputs, weights, inverse_factor)


def exact_predict(kernel: Kernel, posterior: ExactPosterior, queries: Array) -> Prediction:
    """Moments at `queries` (`float[Q, O]`): mean `m + k(x, X) w`, latent variance `sigma^2 (1 - |L^-1 k(X, x)|^2 ratio)`.

    Returns:
        `Prediction` of `float[Q]`.
    """
    parameters = posterior.parameters
    cross = kernel(queries, posterior.inputs, parameters.lengthscale)
    half = precise_dot(cross, posterior.inverse_factor.T)
    explained = parameters.variance / parameters.noise * jnp.sum(jnp.square(half), axis=-1)
    latent = parameters.variance * jnp.maximum(1.0 - explained, 0.0)
    return Prediction(parameters.mean + precise_dot(cross, posterior.weights), latent, latent + parameters.noise)
