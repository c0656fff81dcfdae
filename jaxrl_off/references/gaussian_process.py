"""Gaussian-process references: their standard deviation is small at the demonstrations and returns to the prior elsewhere.

Rudner, Lu, Osborne, Gal and Teh, "On Pathologies in KL-Regularized Reinforcement Learning from Expert Demonstrations",
NeurIPS 2021 (N-PPAC). The settings are those of the authors' code (GPyTorch): the multitask process of `gp_icm`, Adam with
learning rate 0.1 on the marginal likelihood, positive parameters through softplus starting at softplus(0), noise variances
of at least 1e-4, raw observations and actions, a constant mean per action dimension that starts at 0. Deliberate
differences: variances are exact where the code approximates them (LOVE); 300 steps on at most 1000 points instead of 1000
on all, after which the process is conditioned on all points; observation dimensions without variance are dropped (in the code
their lengthscale never moves and any later other value there takes the kernel to 0). Hyperparameters are fitted and the
process is conditioned in float64, on whatever the default device is; what is kept and queried is float32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.ops import gaussian_process as gp
from jaxrl_off.ops import sparse_gaussian_process as sgp
from jaxrl_off.ops.kernels import KERNELS, Kernel
from jaxrl_off.references.base import Progress, Reference, check_demonstrations, check_positive, minimise
from jaxrl_off.types import Array, PyTree

NOISE_FLOOR = 1e-4
REF_SCALES = ("std", "var")
_SPARSE_AXES = sgp.SparseParameters(None, None, 0, 0, 0, 0, 0)
_OWN_AXES = sgp.SparseParameters(0, 0, 0, 0, 0, 0, 0)


class GaussianProcessParams(NamedTuple):
    """A fitted Gaussian-process reference.

    Attributes:
        posterior: cached posterior of `ops.gaussian_process`, float32; one per action dimension, stacked, where these are
            independent.
        shift: `float32[O]`, subtracted from an observation.
        scale: `float32[O]`, multiplied with the difference; 0 for dimensions without variance in the demonstrations.
    """

    posterior: PyTree
    shift: Array
    scale: Array


class _RawMultitask(NamedTuple):
    lengthscale: Array
    mean: Array
    factor: Array
    diagonal: Array
    task_noise: Array
    global_noise: Array

    def constrained(self) -> gp.MultitaskParameters:
        noise = jax.nn.softplus(self.task_noise) + jax.nn.softplus(self.global_noise) + 2.0 * NOISE_FLOOR
        lengthscale, diagonal = jax.nn.softplus(self.lengthscale), jax.nn.softplus(self.diagonal)
        return gp.MultitaskParameters(lengthscale, self.mean, self.factor, diagonal, noise)


class _RawExact(NamedTuple):
    lengthscale: Array
    mean: Array
    variance: Array
    noise: Array

    def constrained(self) -> gp.ExactParameters:
        lengthscale, variance = jax.nn.softplus(self.lengthscale), jax.nn.softplus(self.variance)
        return gp.ExactParameters(lengthscale, self.mean, variance, jax.nn.softplus(self.noise) + NOISE_FLOOR)


class _RawSparse(NamedTuple):
    inducing: Array
    lengthscale: Array
    mean: Array
    variance: Array
    noise: Array
    q_mean: Array
    q_factor: Array

    def constrained(self) -> sgp.SparseParameters:
        softplus = jax.nn.softplus
        diagonal = softplus(jnp.diagonal(self.q_factor, axis1=-2, axis2=-1))[..., None] * jnp.eye(self.q_mean.shape[-1])
        return sgp.SparseParameters(
            inducing=self.inducing,
            lengthscale=softplus(self.lengthscale),
            mean=self.mean,
            variance=softplus(self.variance),
            noise=softplus(self.noise) + NOISE_FLOOR,
            q_mean=self.q_mean,
            q_factor=jnp.tril(self.q_factor, -1) + diagonal,
        )


_multitask_posterior = jax.jit(gp.multitask_posterior, static_argnums=0)
_best_variational = jax.jit(sgp.optimal_variational, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _independent_posterior(
    kernel: Kernel, parameters: gp.ExactParameters, inputs: Array, targets: Array, mask: Array
) -> gp.ExactPosterior:
    def one(output: tuple[gp.ExactParameters, Array]) -> gp.ExactPosterior:
        return _single_precision(gp.exact_posterior(kernel, output[0], inputs, output[1], mask))

    # One after the other, so that only one factor at a time is held in float64.
    return jax.lax.map(one, (parameters, targets.T))


def _single_precision(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _scaling(observations: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale. The kernels do not see a shift; it keeps digits when the observations are far from 0."""
    shift, std = observations.mean(axis=0), observations.std(axis=0)
    constant = std <= 1e-8 * np.maximum(1.0, np.abs(observations).max(axis=0))
    if constant.all():
        raise ValueError(
            "every observation dimension is constant over the demonstrations; there is nothing to condition on."
        )
    return shift, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std) if standardise else 1.0)


def _chosen_rows(key: Array, count: int, at_most: int) -> np.ndarray:
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.asarray(jax.random.permutation(key, count)[:at_most]))


def _check(kernel: str, ref_scale: str, **positive: float | None) -> Kernel:
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; choose one of {', '.join(KERNELS)}.")
    if ref_scale not in REF_SCALES:
        raise ValueError(f"ref_scale must be 'std' or 'var' (the released code's), got {ref_scale!r}.")
    check_positive(**{name: value for name, value in positive.items() if value is not None})
    return KERNELS[kernel]


def _policy(prediction: gp.Prediction, ref_scale: str, batch: tuple[int, ...]) -> DiagonalNormal:
    # The released code hands the variance to a distribution that takes a standard deviation.
    log_std = (0.5 if ref_scale == "std" else 1.0) * jnp.log(prediction.variance)
    return DiagonalNormal(prediction.mean.reshape(*batch, -1), log_std.reshape(*batch, -1))


def _scaled_rows(params: GaussianProcessParams, observation: Array) -> Array:
    return ((observation - params.shift) * params.scale).reshape(-1, observation.shape[-1])


class _ExactOptions(NamedTuple):
    """Options that `gp_icm` and `gp_independent` share; see `gp_icm`."""

    learning_rate: float
    steps: int
    fit_points: int
    capacity: int | None
    ref_scale: str
    standardise: bool


def _exact_reference(initial: Any, loss: Any, condition: Any, predict: Any, options: _ExactOptions) -> Reference:
    """What `gp_icm` and `gp_independent` share: choose rows, pad, fit, condition, cast.

    Args:
        initial: `(key, O, A) -> raw parameters`.
        loss: of `minimise`, on `(inputs, targets, mask)`.
        condition: `(parameters, inputs, targets, mask) -> posterior`.
        predict: `(posterior, queries) -> Prediction` of `[Q, A]`.
        options: of the constructor.
    """
    steps, capacity = options.steps, options.capacity
    optimiser = optax.adam(options.learning_rate)

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> GaussianProcessParams:
        observations, actions = check_demonstrations(observations, actions)
        shift, scale = _scaling(observations, options.standardise)
        all_key, subset_key, init_key, fit_key = jax.random.split(key, 4)
        size = len(actions) if capacity is None else capacity
        kept = _chosen_rows(all_key, len(actions), size)
        inputs, targets = ((observations - shift) * scale)[kept], actions[kept]
        fit_size = min(options.fit_points, size)
        rows = _chosen_rows(subset_key, len(targets), fit_size)
        with jax.enable_x64(True):
            raw = initial(init_key, inputs.shape[1], targets.shape[1])
            data = gp.pad_points(jnp.asarray(inputs[rows]), jnp.asarray(targets[rows]), fit_size)

        def report(step: int, _: int, metrics: dict[str, float]) -> None:
            if progress is not None:
                progress(step, steps + 1, metrics)

        name = "negative_log_likelihood"
        raw = minimise(loss, raw, data, fit_key, optimiser, steps, name=name, double=True, progress=report)
        with jax.enable_x64(True):
            padded = gp.pad_points(jnp.asarray(inputs), jnp.asarray(targets), size)
            posterior = jax.block_until_ready(_single_precision(condition(raw.constrained(), *padded)))
        report(steps + 1, steps + 1, {"points": float(len(targets))})
        return GaussianProcessParams(posterior, jnp.asarray(shift, jnp.float32), jnp.asarray(scale, jnp.float32))

    def apply(params: GaussianProcessParams, observation: Array) -> DiagonalNormal:
        prediction = predict(params.posterior, _scaled_rows(params, observation))
        return _policy(prediction, options.ref_scale, observation.shape[:-1])

    return Reference(fit, apply)


def gp_icm(
    *,
    kernel: str = "rbf",
    rank: int = 1,
    learning_rate: float = 0.1,
    steps: int = 300,
    fit_points: int = 1000,
    capacity: int | None = None,
    ref_scale: str = "std",
    standardise: bool = False,
) -> Reference:
    """One exact multitask process for all action dimensions, the reference of N-PPAC.

    `K = B (x) k(X, X)`, `B = V V^T + diag(kappa)`; the policy's variance is that of an observation, noise included, and
    covariances between action dimensions are dropped. V starts from standard normals (as GPyTorch does, from general
    knowledge), everything else at 0 before the softplus.

    Args:
        kernel: a key of `ops.kernels.KERNELS`. The paper's code: rbf for locomotion, matern52 for pen, matern12 for
            door and relocate.
        rank: of V.
        learning_rate: of Adam.
        steps: number of full-batch updates of the hyperparameters.
        fit_points: the hyperparameters are fitted on so many points at most, drawn at random.
        capacity: number of points the cache holds; a random subset is kept of more, fewer are padded, so that all data sets
            share one compiled program. None for as many as there are.
        ref_scale: `"std"`, or `"var"` for parity with the released code, which uses the variance as the standard deviation
            and so a far sharper policy; temperatures are not comparable between the two.
        standardise: whether observations are scaled to unit variance. The paper's code leaves that to the lengthscales.

    Raises:
        ValueError: for options out of range.
    """
    function = _check(
        kernel, ref_scale, rank=rank, learning_rate=learning_rate, steps=steps, fit_points=fit_points, capacity=capacity
    )

    def initial(key: Array, inputs: int, outputs: int) -> _RawMultitask:
        zeros = jnp.zeros(outputs)
        factor = jax.random.normal(key, (outputs, rank), jnp.float64)
        return _RawMultitask(jnp.zeros(inputs), zeros, factor, zeros, zeros, jnp.zeros(()))

    def loss(raw: _RawMultitask, data: tuple[Array, Array, Array], _: Array) -> Array:
        likelihood = gp.multitask_log_likelihood(function, raw.constrained(), *data)
        return -likelihood / (jnp.sum(data[2]) * data[1].shape[1])

    condition = functools.partial(_multitask_posterior, function)
    predict = functools.partial(gp.multitask_predict, function)
    options = _ExactOptions(learning_rate, steps, fit_points, capacity, ref_scale, standardise)
    return _exact_reference(initial, loss, condition, predict, options)


def gp_independent(
    *,
    kernel: str = "rbf",
    learning_rate: float = 0.1,
    steps: int = 300,
    fit_points: int = 1000,
    capacity: int | None = None,
    ref_scale: str = "std",
    standardise: bool = False,
) -> Reference:
    """An exact process of its own for every action dimension, each with its lengthscales, variance and noise.

    Costs an N x N factor per action dimension in memory and in every query, where `gp_icm` needs one. Arguments as there.

    Raises:
        ValueError: for options out of range.
    """
    function = _check(
        kernel, ref_scale, learning_rate=learning_rate, steps=steps, fit_points=fit_points, capacity=capacity
    )

    def initial(_: Array, inputs: int, outputs: int) -> _RawExact:
        zeros = jnp.zeros(outputs)
        return _RawExact(jnp.zeros((outputs, inputs)), zeros, zeros, zeros)

    def loss(raw: _RawExact, data: tuple[Array, Array, Array], _: Array) -> Array:
        inputs, targets, mask = data

        def one(output: tuple[gp.ExactParameters, Array]) -> Array:
            return gp.exact_log_likelihood(function, output[0], inputs, output[1], mask)

        return -jnp.sum(jax.lax.map(one, (raw.constrained(), targets.T))) / (jnp.sum(mask) * targets.shape[1])

    def predict(posterior: gp.ExactPosterior, queries: Array) -> gp.Prediction:
        cached = posterior._replace(inputs=posterior.inputs[0])
        axes = gp.ExactPosterior(0, None, 0, 0)
        return jax.vmap(functools.partial(gp.exact_predict, function), (axes, None), 1)(cached, queries)

    condition = functools.partial(_independent_posterior, function)
    options = _ExactOptions(learning_rate, steps, fit_points, capacity, ref_scale, standardise)
    return _exact_reference(initial, loss, condition, predict, options)


def gp_sparse(
    *,
    kernel: str = "rbf",
    inducing: int = 200,
    shared_kernel: bool = True,
    learning_rate: float = 0.01,
    steps: int = 2000,
    batch_size: int = 256,
    ref_scale: str = "std",
    standardise: bool = False,
) -> Reference:
    """Sparse variational process for every action dimension, for data too large for the exact ones.

    Adam maximises the evidence lower bound on minibatches in the hyperparameters, the inducing points and the variational
    distribution; this last is then replaced by the best one, which has a closed form, on all points.

    Args:
        kernel: a key of `ops.kernels.KERNELS`.
        inducing: M, number of inducing points (the authors' unused option: 200). They start at random demonstrations (there:
            uniform in [0, 1]) and move.
        shared_kernel: whether lengthscales and inducing points are common to all action dimensions; variance, noise and mean
            never are. The authors' option has them separate.
        learning_rate: of Adam.
        steps: number of updates.
        batch_size: of the minibatches, drawn with replacement.
        ref_scale: as in `gp_icm`.
        standardise: as in `gp_icm`.

    Raises:
        ValueError: for options out of range.
    """
    function = _check(
        kernel, ref_scale, inducing=inducing, learning_rate=learning_rate, steps=steps, batch_size=batch_size
    )
    axes = _SPARSE_AXES if shared_kernel else _OWN_AXES
    cached_axes = sgp.SparsePosterior(axes, None if shared_kernel else 0)
    optimiser = optax.adam(learning_rate)

    def loss(raw: _RawSparse, data: tuple[Array, Array], key: Array) -> Array:
        inputs, targets = data
        rows = jax.random.randint(key, (batch_size,), 0, inputs.shape[0])

        def one(parameters: sgp.SparseParameters, column: Array) -> Array:
            return sgp.sparse_elbo(function, parameters, inputs[rows], column, inputs.shape[0])

        bounds = jax.vmap(one, (axes, 1))(raw.constrained(), targets[rows])
        return -jnp.mean(bounds) / inputs.shape[0]

    def fit(key: Array, observations: Any, actions: Any, *, progress: Progress | None = None) -> GaussianProcessParams:
        observations, actions = check_demonstrations(observations, actions)
        shift, scale = _scaling(observations, standardise)
        choice_key, fit_key = jax.random.split(key)
        inputs, (count, outputs) = (observations - shift) * scale, actions.shape
        points = inputs[_chosen_rows(choice_key, count, inducing)]
        own = () if shared_kernel else (outputs,)
        with jax.enable_x64(True):
            zeros, (size, width) = jnp.zeros(outputs), points.shape
            # softplus(log(e - 1)) = 1: q starts at the prior.
            unit = jnp.full((outputs, size), np.log(np.expm1(1.0)))[..., None] * jnp.eye(size)
            raw = _RawSparse(
                inducing=jnp.broadcast_to(jnp.asarray(points), (*own, size, width)),
                lengthscale=jnp.zeros((*own, width)),
                mean=zeros,
                variance=zeros,
                noise=zeros,
                q_mean=jnp.zeros((outputs, size)),
                q_factor=unit,
            )
            data = (jnp.asarray(inputs), jnp.asarray(actions))
        name = "negative_evidence_bound"
        raw = minimise(loss, raw, data, fit_key, optimiser, steps, name=name, double=True, progress=progress)
        with jax.enable_x64(True):
            fitted = raw.constrained()
            best = []
            for d in range(outputs):
                one = sgp.SparseParameters(*(x if axis is None else x[d] for x, axis in zip(fitted, axes, strict=True)))
                best.append(_best_variational(function, one, data[0], data[1][:, d]))
            fitted = fitted._replace(
                q_mean=jnp.stack([one.q_mean for one in best]), q_factor=jnp.stack([one.q_factor for one in best])
            )
            posterior = jax.vmap(functools.partial(sgp.sparse_posterior, function), (axes,), cached_axes)(fitted)
            posterior = _single_precision(posterior)
        return GaussianProcessParams(posterior, jnp.asarray(shift, jnp.float32), jnp.asarray(scale, jnp.float32))

    def apply(params: GaussianProcessParams, observation: Array) -> DiagonalNormal:
        predict = functools.partial(sgp.sparse_predict, function)
        prediction = jax.vmap(predict, (cached_axes, None), 1)(params.posterior, _scaled_rows(params, observation))
        return _policy(prediction, ref_scale, observation.shape[:-1])

    return Reference(fit, apply)
