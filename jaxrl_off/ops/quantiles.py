"""Quantiles that JAX lacks: Student t and beta, elementwise, jittable, differentiable.

Both laws are one. The logarithm of the odds of a beta law, `y = log(x / (1 - x))`, has the density

    `f(y) = x^a (1 - x)^b / B(a, b)`,

log-concave for all positive a and b and with its mode at `y = log(a / b)`; and T^2 / degrees is the odds of a beta law
with a = 1/2 and b = degrees / 2. In the deviation `d = y - log(a / b)` the Student quantile is `exp(d / 2)`.

The tails are integrals of nearly exponential functions (of `-log x` below, of `-log(1 - x)` above), which the
double-exponential rule of Takahasi and Mori (1974) takes to some 1e-15, tail and normaliser alike. The logarithm of a
tail probability is concave in d, so that Newton's method finds the quantile from anywhere. The usual way,
`jax.scipy.special.betainc`, loses digits in differences of log-gamma functions (a relative 1e-6 at 1e9 degrees), and
its continued fraction stops at 600 terms, before it has converged where a and b are in the millions.

All functions want float64 (`with jax.enable_x64(True)`). The normal quantile is `jax.scipy.special.ndtri`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.types import Array

_SPACING = 0.125
_EXPONENTS = np.arange(-3.75, 10.0, _SPACING)
_NODES = np.exp(_EXPONENTS - np.exp(-_EXPONENTS))
_WEIGHTS = _SPACING * (1.0 + np.exp(-_EXPONENTS)) * _NODES

_MAX_STEPS = 60
_CLOSE = 1e-7  # error of the log-probability from which one Newton step reaches float64's precision
_MAX_DEGREES = 1e15  # from here on the normal law, to 1e-14


def student_t_quantile(tail_probability: Array | float, degrees: Array | float) -> Array:
    """The t that Student's law exceeds with a given probability, `P(T > t) = tail_probability`.

    Args:
        tail_probability: `float[...]` in [0, 1]; (1 - level) / 2 for a two-sided level.
        degrees: `float[...]`, degrees of freedom, at least 0.5; need not be whole; infinity gives the normal law.

    Returns:
        `float[...]`, t, to a relative 1e-13; infinite at probabilities 0 and 1. Differentiable in both arguments.

    Reference: the law of `T^2 / (degrees + T^2)` is beta(1/2, degrees / 2), Abramowitz and Stegun (1964), 26.5.27.

    Example:
        >>> with jax.enable_x64(True):
        ...     print(f"{student_t_quantile(0.025, 10.0):.9f}")
        2.228138852
    """
    tail, degrees = jnp.broadcast_arrays(_float(tail_probability), _float(degrees))
    outside = 2.0 * jnp.minimum(tail, 1.0 - tail)  # P(|T| > |t|)
    half = jnp.full_like(degrees, 0.5)
    deviation = _deviation(1.0 - outside, outside, half, half * jnp.minimum(degrees, _MAX_DEGREES))
    return jnp.sign(0.5 - tail) * jnp.exp(0.5 * deviation)


def beta_quantile(probability: Array | float, a: Array | float, b: Array | float) -> Array:
    """The x that the beta law stays below with a given probability, `P(X < x) = probability`.

    Args:
        probability: `float[...]` in [0, 1].
        a: `float[...]`, at least 1/4, or 0: the law sits at 0, as the lower Clopper-Pearson bound of no success wants.
            Between 0 and 1/4 the quantile loses digits above the median, and is underflow's 0 far below it.
        b: `float[...]`, at least 1/4, or 0: the law sits at 1. As for `a`, with the sides exchanged.

    Returns:
        `float[...]`, x in [0, 1], to a relative 1e-11. Differentiable in all arguments.

    Example: no success in ten trials leaves a rate of up to 30.8 % at a two-sided level of 95 %.
        >>> with jax.enable_x64(True):
        ...     print(f"{beta_quantile(0.975, 1.0, 10.0):.9f}")
        0.308497108
    """
    probability, a, b = jnp.broadcast_arrays(_float(probability), _float(a), _float(b))
    degenerate = (a == 0) | (b == 0)
    safe_a, safe_b = jnp.where(degenerate, 1.0, a), jnp.where(degenerate, 1.0, b)
    log_odds = _deviation(probability, 1.0 - probability, safe_a, safe_b) + jnp.log(safe_a / safe_b)
    return jnp.where(degenerate, jnp.where(a == 0, 0.0, 1.0), jax.nn.sigmoid(log_odds))


def _float(values: Array | float) -> Array:
    return jnp.asarray(values, jnp.result_type(float))


@jax.jit  # one compilation, not a hundred, for those who call the quantiles outside jit
def _deviation(below: Array, above: Array, a: Array, b: Array) -> Array:
    """The d that leaves the probabilities `below` and `above`, which sum to 1; all `float[...]` of one shape."""
    # Solve in the smaller tail; but beside a small parameter only that parameter's own tail is easily integrated.
    upper = jnp.where(jnp.minimum(a, b) < 0.25, b < a, above < below)
    outwards = jnp.where(upper, 1.0, -1.0)
    probability = jnp.where(upper, above, below)
    possible = (below > 0) & (above > 0)
    log_probability = jnp.log(jnp.where(possible, probability, 0.5))
    ends = jnp.stack([jnp.zeros_like(upper), jnp.ones_like(upper)])
    log_total = jnp.log(jnp.sum(_tail(jnp.zeros_like(a), ends, a, b), axis=0))

    def newton(deviation: Array, constants: tuple[Array, ...]) -> tuple[Array, Array]:
        log_probability, log_total, a, b = constants
        tail = _tail(deviation, upper, a, b)
        error = _log_density(deviation, a, b) + jnp.log(tail) - log_total - log_probability
        return deviation + outwards * tail * error, error

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[2] < _MAX_STEPS) & jnp.any(jnp.abs(carry[1]) > _CLOSE)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return *newton(carry[0], fixed), carry[2] + 1

    constants = (log_probability, log_total, a, b)
    fixed = jax.lax.stop_gradient(constants)
    # The logarithm of a normal tail is about log(1/2) - z^2 / 2; the variance of y is about 1 / a + 1 / b.
    squared = 2.0 * jnp.maximum(jnp.log(0.5) - fixed[0], 0.0) * (1.0 / fixed[2] + 1.0 / fixed[3])
    start = outwards * jnp.sqrt(squared)
    solution, _, _ = jax.lax.while_loop(unfinished, step, (start, jnp.full_like(start, jnp.inf), jnp.int32(0)))
    # The last step, outside the loop, carries the derivatives: those of the implicit function.
    solution, _ = newton(solution, constants)
    return jnp.where(possible, solution, jnp.where(below > 0, jnp.inf, -jnp.inf))


def _log_density(deviation: Array, a: Array, b: Array) -> Array:
    """`log f(d) - log f(0) = a d - (a + b) log(1 + x(0) (e^d - 1))`, `x(0) = a / (a + b)`; or the same from 1 - x."""
    # The smaller of x(0) and 1 - x(0) loses fewer digits.
    small, large = jnp.minimum(a, b), jnp.maximum(a, b)
    deviation = jnp.where(a <= b, deviation, -deviation)
    overflow = deviation > 500.0  # there 1 + x(0) (e^d - 1) is x(0) e^d
    growth = jnp.log1p(small / (small + large) * jnp.expm1(jnp.where(overflow, 0.0, deviation)))
    growth = jnp.where(overflow, deviation + jnp.log(small / (small + large)), growth)
    return small * deviation - (small + large) * growth


def _tail(deviation: Array, upper: Array, a: Array, b: Array) -> Array:
    """Integral of f below `deviation`, or above it where `upper`, over `f(deviation)`.

    Below x, with `x' = x e^-s`: `1 / (1 - x) int_0^inf exp(-a s + (b - 1) log(1 + x / (1 - x) (1 - e^-s))) ds`.
    """
    near, far = jnp.where(upper, b, a), jnp.where(upper, a, b)
    odds = near / far * jnp.exp(jnp.where(upper, -deviation, deviation))
    slope = near - (far - 1.0) * odds  # of the exponent, at s = 0
    scale = 1.0 / (jnp.maximum(slope, 0.0) + jnp.sqrt(jnp.abs(far - 1.0) * odds * (1.0 + odds)))
    s = scale[..., None] * jnp.asarray(_NODES, scale.dtype)
    exponent = -near[..., None] * s + (far[..., None] - 1.0) * jnp.log1p(-odds[..., None] * jnp.expm1(-s))
    # no matrix product: JAX batches or derives one where x64 may be off again, and then rounds it to float32
    return (1.0 + odds) * scale * jnp.sum(jnp.exp(exponent) * jnp.asarray(_WEIGHTS, exponent.dtype), axis=-1)
