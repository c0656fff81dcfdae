"""Sparse variational Gaussian-process regression of one output; conventions as in `gaussian_process`.

References: Titsias, "Variational Learning of Inducing Variables in Sparse Gaussian Processes", AISTATS 2009; Hensman et al.,
"Scalable Variational Gaussian Process Classification", AISTATS 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp

from jaxrl_off.ops.gaussian_process import LOG_2PI, Prediction, inverse_factor_of, mask_like
from jaxrl_off.ops.kernels import Kernel, precise_dot
from jaxrl_off.types import Array

# Added to the diagonal of the inducing points' kernel matrix, which has no noise to keep it positive definite.
_JITTER = 1e-6


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


class SparsePosterior(NamedTuple):
    """What a query of the sparse model needs.

    Attributes:
        parameters: hyperparameters and variational distribution.
        inverse_factor: `float[M, M]`, `L^-1`.
    """

    parameters: SparseParameters
    inverse_factor: Array


def sparse_posterior(kernel: Kernel, parameters: SparseParameters) -> SparsePosterior:
    """Factorise the inducing points' kernel matrix (with 1e-6 added to its diagonal); differentiable."""
    gram = kernel(parameters.inducing, parameters.inducing, parameters.lengthscale)
    return SparsePosterior(parameters, inverse_factor_of(gram + _JITTER * jnp.eye(gram.shape[0], dtype=gram.dtype)))


def sparse_predict(kernel: Kernel, posterior: SparsePosterior, queries: Array) -> Prediction:
    """Moments at `queries` (`float[Q, O]`) under the variational distribution.

    With `p = L^-1 k(Z, x)`: mean `m + sigma p^T q_mean`, latent variance `sigma^2 (1 - |p|^2 + |S^T p|^2)`, which goes back
    to the prior where p vanishes.

    Returns:
        `Prediction` of `float[Q]`.
    """
    parameters = posterior.parameters
    projection = precise_dot(kernel(queries, parameters.inducing, parameters.lengthscale), posterior.inverse_factor.T)
    mean = parameters.mean + jnp.sqrt(parameters.variance) * precise_dot(projection, parameters.q_mean)
    unexplained = jnp.maximum(1.0 - jnp.sum(jnp.square(projection), axis=-1), 0.0)
    uncertain = jnp.sum(jnp.square(precise_dot(projection, parameters.q_factor)), axis=-1)
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
    expected = -0.5 * (errors / parameters.noise + jnp.log(parameters.noise) + LOG_2PI)
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
    mask = mask_like(inputs, mask)
    inverse_factor = sparse_posterior(kernel, parameters).inverse_factor
    cross = kernel(inputs, parameters.inducing, parameters.lengthscale) * mask[:, None]
    projection = precise_dot(cross, inverse_factor.T)
    ratio = parameters.variance / parameters.noise
    precision = jnp.eye(inverse_factor.shape[0], dtype=inputs.dtype) + ratio * precise_dot(projection.T, projection)
    # Lower-triangular S: the factor of the covariance itself, as the parametrisation asks for.
    root = inverse_factor_of(precision)
    covariance = precise_dot(root.T, root)
    weighted = precise_dot(projection.T, (targets - parameters.mean) * mask) * ratio / jnp.sqrt(parameters.variance)
    return parameters._replace(q_mean=precise_dot(covariance, weighted), q_factor=jnp.linalg.cholesky(covariance))
