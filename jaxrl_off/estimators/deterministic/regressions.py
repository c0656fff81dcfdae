"""Regressions of several numbers on inputs, one for each step and fold: linear in features, or networks.

Both are pure functions `start(inputs, outputs, key) -> fitted`, `fit(fitted, inputs, targets, weights, key) -> fitted` and
`predict(fitted, inputs) -> outputs`, for inputs `[..., O]` or `[..., O + A]`. What was fitted at the neighbouring step is where
networks begin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_off.estimators.trajectory.steps import quotient, weights_of
from jaxrl_off.estimators.trajectory.values.fitting_model import still_falling
from jaxrl_off.networks import ACTIVATIONS, MLP
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, PyTree

RATIOS = ("normal", "polynomial")
_MOST_FEATURES = 1000


@flax.struct.dataclass
class LinearSieve:
    """Least squares on polynomials or given features, in closed form; derivatives pass through the fit.

    The authors' code has polynomials of degree 4 for the marginal ratio. These grow in the tails, where ratios vanish, and are
    negative in places: estimates that lean on the ratio alone are then of no use. "normal" is the ratio of the normal laws that
    have the first two moments of the two laws of states: positive, exact where both are normal, and of finite variance
    where the target's law is less wide than sqrt(2) times the other.

    Attributes:
        degree: of the polynomials in observation and action that q is linear in; all monomials up to it.
        ratio: "normal" or "polynomial", for the marginal ratio.
        ratio_degree: of polynomials in the observation.
        ratio_tolerance: principal components of the observation whose variance is below this share of the largest one's are
            left out of the normal ratio. They are nearly functions of the others (sines and cosines, differences), and what
            normal laws say of them swamps all else.
        ridge: added to the covariance of the features.
        features: `inputs [O + A] -> [F]` in the place of the polynomials of q; no intercept is needed. Inputs are observations
            and actions in a row, less their mean and over their deviation in each step.
        ratio_features: `inputs [O] -> [F]`, likewise for the ratio, in the place of what `ratio` says.
    """

    degree: int = static(2)
    ratio: str = static("normal")
    ratio_degree: int = static(4)
    ratio_tolerance: Any = 1e-3
    ridge: Any = 1e-8
    features: Callable[[Array], Array] | None = static(None)
    ratio_features: Callable[[Array], Array] | None = static(None)

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.degree < 1 or self.ratio_degree < 1:
            raise ValueError(f"degrees must be at least 1, got {self.degree} and {self.ratio_degree}.")
        if self.ratio not in RATIOS:
            raise ValueError(f"ratio must be one of {', '.join(RATIOS)}, got {self.ratio!r}.")


@flax.struct.dataclass
class NetworkRegression:
    """Multilayer perceptrons, by Adam on minibatches; float32. Derivatives do not pass through the fit.

    Attributes:
        sizes: widths of the hidden layers.
        activation: key of `networks.ACTIVATIONS`. Smooth ones have derivatives in the action that are of use; "tanh" is odd,
            and slow to learn the even functions that values often are.
        updates: gradient steps for each step of the horizon.
        batch_size: of trajectories, drawn with replacement.
        learning_rate: of Adam, at first; falls to 0 linearly in each step of the horizon.
    """

    sizes: tuple[int, ...] = static((64, 64))
    activation: str = static("swish")
    updates: int = static(200)
    batch_size: int = static(256)
    learning_rate: Any = 1e-2

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if not self.sizes or min(self.updates, self.batch_size, *self.sizes) < 1:
            raise ValueError("sizes, updates and batch_size must all be at least 1.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")


class Fitted(NamedTuple):
    """A regression that was fitted.

    Attributes:
        mean: `[k]` of the inputs.
        deviation: `[k]`; 1 where they are constant.
        parameters: coefficients `[F, D]`, or a network's.
        intercept: `[D]`.
        scale: `[D]` of the targets.
        still_falling: `[]`, how much the loss of a network still fell; see `fitting_model.still_falling`. 0 in closed form.
    """

    mean: Array
    deviation: Array
    parameters: PyTree
    intercept: Array
    scale: Array
    still_falling: Array


class Regression(NamedTuple):
    """Functions; see the module."""

    start: Callable[[int, int, Array], Fitted]
    fit: Callable[[Fitted, Array, Array, Array, Array], Fitted]
    predict: Callable[[Fitted, Array], Array]


def regression_of(model: LinearSieve | NetworkRegression, *, ratio: bool) -> Regression:
    """The functions of a model, for q or for the marginal ratio.

    Raises:
        ValueError: for something else than the two models.
    """
    if isinstance(model, LinearSieve):
        given = model.ratio_features if ratio else model.features
        if ratio and given is None and model.ratio == "normal":
            return _normal_ratio(model.ridge, model.ratio_tolerance)
        degree = model.ratio_degree if ratio else model.degree
        return _linear(given or _monomials(degree), model.ridge)
    if isinstance(model, NetworkRegression):
        return _network(model)
    raise ValueError(f"model must be a LinearSieve or a NetworkRegression, got {type(model).__name__}.")


def _moments(inputs: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and deviation of columns, deviation 1 where there is none."""
    shares = quotient(weights, jnp.sum(weights))
    mean = shares @ inputs
    variance = shares @ jnp.square(inputs - mean)
    varies = variance > 1e-20 * (1.0 + mean**2)
    return mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 1.0)


def _monomials(degree: int) -> Callable[[Array], Array]:
    """All monomials up to a degree, but for 1."""

    def features(inputs: Array) -> Array:
        size = inputs.shape[-1]
        powers = itertools.combinations_with_replacement(range(size + 1), degree)
        index = np.array(list(itertools.islice(powers, 1, _MOST_FEATURES + 2)))  # the first is 1
        if len(index) > _MOST_FEATURES:
            raise ValueError(
                f"polynomials of degree {degree} in {size} numbers are more than {_MOST_FEATURES}; lower the degree, or give "
                "features."
            )
        padded = jnp.concatenate([jnp.ones_like(inputs[..., :1]), inputs], axis=-1)
        found = padded[..., index[:, 0]]
        for place in range(1, degree):
            found = found * padded[..., index[:, place]]
        return found

    return features


def _linear(features: Callable[[Array], Array], ridge: Any) -> Regression:
    def expand(fitted: Fitted, inputs: Array) -> Array:
        scaled = (inputs - fitted.mean) / fitted.deviation
        return jnp.vectorize(features, signature="(k)->(f)")(scaled).astype(jnp.float64)

    def start(size: int, outputs: int, key: Array) -> Fitted:
        count = jax.eval_shape(features, jax.ShapeDtypeStruct((size,), jnp.float64)).shape
        if len(count) != 1:
            raise ValueError(f"features have shape {count}; a vector is needed.")
        zeros = jnp.zeros(outputs)
        return Fitted(jnp.zeros(size), jnp.ones(size), jnp.zeros((*count, outputs)), zeros, zeros + 1.0, jnp.zeros(()))

    def fit(fitted: Fitted, inputs: Array, targets: Array, weights: Array, key: Array) -> Fitted:
        mean, deviation = _moments(inputs, weights)
        fitted = fitted._replace(mean=mean, deviation=deviation)
        x, shares = expand(fitted, inputs), quotient(weights, jnp.sum(weights))
        centre, middle = shares @ x, shares @ targets
        centred = x - centre
        weighted = centred * shares[:, None]
        covariance = weighted.T @ centred
        still = jnp.where(jnp.diagonal(covariance) > 1e-18, 0.0, 1.0)
        coefficients = jnp.linalg.solve(covariance + jnp.diag(ridge + still), weighted.T @ (targets - middle))
        return fitted._replace(parameters=coefficients, intercept=middle - centre @ coefficients)

    def predict(fitted: Fitted, inputs: Array) -> Array:
        return expand(fitted, inputs) @ fitted.parameters + fitted.intercept

    return Regression(start, fit, predict)


class _Exponent(NamedTuple):
    """`log w = x^T square x + linear x + constant`, and its derivatives: the last axis is `1 + P`."""

    square: Array
    linear: Array
    constant: Array


def _normal_ratio(ridge: Any, tolerance: Any) -> Regression:
    """`w = N(z; m, C) / N(z; 0, I)` in principal components z, white under the logs; m and C have the targets for weights.

    Targets are mu of the step before and its derivatives; what is predicted are w and its derivatives.
    """

    def start(size: int, outputs: int, key: Array) -> Fitted:
        zeros = jnp.zeros(outputs)
        exponent = _Exponent(jnp.zeros((size, size, outputs)), jnp.zeros((size, outputs)), zeros)
        return Fitted(jnp.zeros(size), jnp.ones(size), exponent, zeros, zeros + 1.0, jnp.zeros(()))

    def fit(fitted: Fitted, inputs: Array, targets: Array, weights: Array, key: Array) -> Fitted:
        mean, deviation = _moments(inputs, weights)
        x = (inputs - mean) / deviation
        variances, directions = jnp.linalg.eigh((x * quotient(weights, jnp.sum(weights))[:, None]).T @ x)
        kept = variances > jnp.maximum(tolerance * variances[-1], 1e-18)
        whiten = directions * jnp.where(kept, 1.0 / jnp.sqrt(jnp.where(kept, variances, 1.0)), 0.0)
        z, one = x @ whiten, jnp.eye(len(kept))
        size = 1.0 + ridge  # variance of the logs, as ridge makes it

        def exponent(mass: Array) -> _Exponent:
            shares = quotient(weights * mass, weights @ mass)
            centre = shares @ z
            covariance = ((z - centre) * shares[:, None]).T @ (z - centre)
            precision = jnp.linalg.inv(jnp.where(kept[:, None] & kept, covariance, one) + ridge * one)
            volume = jnp.linalg.slogdet(size * precision)[1]
            square = 0.5 * whiten @ (one / size - precision) @ whiten.T
            return _Exponent(square, whiten @ precision @ centre, 0.5 * (volume - centre @ precision @ centre))

        found = exponent(targets[:, 0])
        slopes = jax.vmap(lambda slope: jax.jvp(exponent, (targets[:, 0],), (slope,))[1], 1, -1)(targets[:, 1:])
        joined = jax.tree.map(lambda one, more: jnp.concatenate([one[..., None], more], axis=-1), found, slopes)
        return fitted._replace(mean=mean, deviation=deviation, parameters=joined)

    def predict(fitted: Fitted, inputs: Array) -> Array:
        x, exponent = (inputs - fitted.mean) / fitted.deviation, fitted.parameters
        found = jnp.einsum("...i,...j,ijp->...p", x, x, exponent.square) + x @ exponent.linear + exponent.constant
        ratio = weights_of(found[..., :1])
        return jnp.concatenate([ratio, ratio * found[..., 1:]], axis=-1)

    return Regression(start, fit, predict)


class _Network(nn.Module):
    sizes: tuple[int, ...]
    activation: str
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(0.01))(MLP(self.sizes, self.activation)(x))


def _network(model: NetworkRegression) -> Regression:
    schedule = optax.linear_schedule(1.0, 0.0, model.updates)
    optimiser = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))

    def start(size: int, outputs: int, key: Array) -> Fitted:
        parameters = _Network(model.sizes, model.activation, outputs).init(key, jnp.zeros(size, jnp.float32))
        zeros = jnp.zeros(outputs)
        return Fitted(jnp.zeros(size), jnp.ones(size), parameters, zeros, zeros + 1.0, jnp.zeros(()))

    def fit(fitted: Fitted, inputs: Array, targets: Array, weights: Array, key: Array) -> Fitted:
        mean, deviation = _moments(inputs, weights)
        middle, scale = _moments(targets, weights)
        x = ((inputs - mean) / deviation).astype(jnp.float32)
        y = ((targets - middle) / scale).astype(jnp.float32)
        share = jnp.cumsum(jnp.where(jnp.any(weights > 0), weights, 1.0))
        network = _Network(model.sizes, model.activation, targets.shape[-1])

        def loss(parameters: PyTree, rows: Array) -> Array:
            return jnp.mean(jnp.sum(jnp.square(network.apply(parameters, x[rows]) - y[rows]), axis=-1))

        def update(carry: tuple[PyTree, PyTree], draw: Array) -> tuple[tuple[PyTree, PyTree], Array]:
            parameters, state = carry
            rows = jnp.searchsorted(share, draw * share[-1], side="right")
            value, slope = jax.value_and_grad(loss)(parameters, jnp.minimum(rows, len(share) - 1))
            steps, state = optimiser.update(slope, state, parameters)
            rate = jnp.asarray(model.learning_rate, jnp.float32)
            parameters = jax.tree.map(lambda p, s: (p - rate * s).astype(p.dtype), parameters, steps)
            return (parameters, state), value / targets.shape[-1]

        draws = jax.random.uniform(key, (model.updates, min(model.batch_size, len(inputs))), jnp.float64)
        start = fitted.parameters, optimiser.init(fitted.parameters)
        (parameters, _), losses = jax.lax.scan(update, start, draws)
        return Fitted(mean, deviation, parameters, middle, scale, still_falling(losses).astype(jnp.float64))

    def predict(fitted: Fitted, inputs: Array) -> Array:
        scaled = ((inputs - fitted.mean) / fitted.deviation).astype(jnp.float32)
        found = _Network(model.sizes, model.activation, len(fitted.scale)).apply(fitted.parameters, scaled)
        return found.astype(jnp.float64) * fitted.scale + fitted.intercept

    return Regression(start, fit, predict)
