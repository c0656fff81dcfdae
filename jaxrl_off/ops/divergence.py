"""Bregman divergences to the behaviour policy and their multi-step, importance-weighted traces.

Mirror descent on state-action distributions, `min_pi D_F(mu_pi, mu_t) - eta <r, mu_pi>`, has the gradient of a policy
gradient with the extra reward `-f / eta`, where `f(s, a) = grad F(mu_pi) - grad F(mu_t)` (Wang et al., "Divergence-Augmented
Policy Optimization", NeurIPS 2019, eq. 7-10). `divergence_terms` gives f, `multi_step_divergence` sums it along the
trajectory.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.ops.returns import backward_recursion
from jaxrl_off.types import Array


def bregman_divergence(generator: Callable[[Array], Array], x: Array, y: Array) -> Array:
    """`D_F(x, y) = F(x) - F(y) - <grad F(y), x - y>`.

    Args:
        generator: convex F, `float[...] -> float[]`.
        x: `float[...]`.
        y: `float[...]`, same shape.

    Returns:
        `float[]`, non-negative for convex F. `F(x) = sum x log x - x` gives the (generalised) KL divergence KL(x || y).

    Example:
        >>> float(bregman_divergence(lambda z: 0.5 * jnp.sum(z**2), jnp.array([3.0]), jnp.array([1.0])))
        2.0
    """
    chex.assert_equal_shape([x, y])
    value, gradient = jax.value_and_grad(generator)(y)
    return generator(x) - value - jnp.sum(gradient * (x - y))


_EXPONENT_CLIP = 3.0


def _clipped_exp(exponent: Array) -> Array:
    return jnp.exp(jnp.clip(exponent, -_EXPONENT_CLIP, _EXPONENT_CLIP))


DIVERGENCES: dict[str, Callable[[Array, Array], Array]] = {
    "kl": lambda p, q: p - q,
    "reverse_kl": lambda p, q: 1.0 - _clipped_exp(q - p),
    "hellinger": lambda p, q: 1.0 - _clipped_exp(0.5 * (q - p)),
    "inf": lambda p, q: _clipped_exp(-0.5 * q) - _clipped_exp(-0.5 * p),
    "entropy": lambda p, q: p,
}


def divergence_terms(
    divergence: str | Callable[[Array, Array], Array], log_prob: Array, behaviour_log_prob: Array
) -> Array:
    """The per-step term `f(s, a)` of a divergence, without gradient. `p = log pi(a|s)`, `q = log pi_t(a|s)`.

    | name | f | divergence |
    |---|---|---|
    | `kl` | `p - q` | conditional KL(pi \\|\\| pi_t), the paper's choice |
    | `reverse_kl` | `1 - exp(q - p)` | KL(pi_t \\|\\| pi) |
    | `hellinger` | `1 - exp((q - p) / 2)` | squared Hellinger distance |
    | `inf` | `exp(-q / 2) - exp(-p / 2)` | implicitly normalised forecaster (0-potential) |
    | `entropy` | `p` | negative entropy: the "PPO+Entropy" ablation |

    Exponents are clipped to +-3 as in the authors' code (their section 4 names INF; the formulas come from the code).

    Args:
        divergence: a key of `DIVERGENCES`, or a function `(p, q) -> f` of arrays of one shape.
        log_prob: `float[...]`, p.
        behaviour_log_prob: `float[...]`, q.

    Returns:
        `float[...]`, f.

    Raises:
        ValueError: for an unknown name.
    """
    if not callable(divergence) and divergence not in DIVERGENCES:
        raise ValueError(
            f"unknown divergence {divergence!r}; choose one of {', '.join(DIVERGENCES)}, or give a function "
            "(log_prob, behaviour_log_prob) -> terms."
        )
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    terms = (divergence if callable(divergence) else DIVERGENCES[divergence])(log_prob, behaviour_log_prob)
    chex.assert_equal_shape([terms, log_prob])
    return jax.lax.stop_gradient(terms)


def kl_k1(log_prob: Array, reference_log_prob: Array) -> Array:
    """The estimator `k1 = log pi - log ref` of `KL(pi || ref)` from samples of pi: unbiased, of either sign, high variance.

    k1, k2 and k3 are Schulman's names ("Approximating KL Divergence", 2020). As a loss only k2 has the gradient of the KL
    divergence in expectation on samples of pi; k1's is 0.

    Args:
        log_prob: `float[...]`, log pi of the samples.
        reference_log_prob: `float[...]`, log ref of the same samples.

    Returns:
        `float[...]`, one estimate for each sample.
    """
    chex.assert_equal_shape([log_prob, reference_log_prob])
    return log_prob - reference_log_prob


def kl_k2(log_prob: Array, reference_log_prob: Array) -> Array:
    """The estimator `k2 = (log pi - log ref)^2 / 2`: biased, never negative; its gradient is that of the KL. See `kl_k1`."""
    return 0.5 * jnp.square(kl_k1(log_prob, reference_log_prob))


def kl_k3(log_prob: Array, reference_log_prob: Array, *, log_clip: float = 20.0) -> Array:
    """The estimator `k3 = exp(log ref - log pi) - 1 - (log ref - log pi)`: unbiased and never negative. See `kl_k1`.

    Args:
        log_prob: `float[...]`, log pi of samples of pi.
        reference_log_prob: `float[...]`, log ref of the same samples.
        log_clip: bound on the absolute log-ratio, so that the exponential stays finite (20 as in verl). The gradient is zero
            where clipped.

    Returns:
        `float[...]`, one estimate for each sample.

    Example:
        >>> round(float(kl_k3(jnp.array(0.3), jnp.array(0.0))), 6)
        0.040818
    """
    log_ratio = jnp.clip(-kl_k1(log_prob, reference_log_prob), -log_clip, log_clip)
    return jnp.expm1(log_ratio) - log_ratio


def multi_step_divergence(
    terms: Array,
    ratios: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    *,
    rho_bar: Array | float = 1.0,
    c_bar: Array | float = 0.5,
    product_start: int = 1,
    released_code: bool = False,
) -> Array:
    """Off-policy estimate of `Q^pi(f)`, the discounted sum of divergence terms from each step on.

    `D_i = f_i + sum_{j>=1} gamma^j (prod_{k=s..j-1} c_{i+k}) rho_{i+j} f_{i+j}` with `s = product_start`,
    `rho = min(rho_bar, ratio)`, `c = min(c_bar, ratio)`; the sum stops at the first end and at the last step.

    With `product_start=1` this is V-trace with zero values and reward f (section 5 of the paper and its code), unbiased for
    `Q^pi(f)` when both bars are infinite. `product_start=0` is the printed eq. 12 and Algorithm 1; there `c_bar=0` leaves
    `D = f`. The paper prints both.

    Args:
        terms: `float[T]`, f.
        ratios: `float[T]`.
        terminated: `bool[T]`.
        truncated: `bool[T]`; like `terminated` it cuts the sum (the paper is silent on truncation).
        gamma: discount in [0, 1].
        rho_bar: the paper's 1.0.
        c_bar: the paper's 0.5 (its code: 0 or 1).
        product_start: 1 or 0.
        released_code: reproduce the index slip of the released `truncIS` (the term of the next step where that of the
            current one is meant). For golden tests only.

    Returns:
        `float[T]`, D, without gradient.

    Raises:
        ValueError: if `product_start` is neither 0 nor 1, or `released_code` is combined with 0.
    """
    if product_start not in (0, 1) or (released_code and product_start == 0):
        raise ValueError(
            f"product_start must be 0 or 1 (1 with released_code), got {product_start} with released_code={released_code}."
        )
    chex.assert_rank(terms, 1)
    chex.assert_equal_shape([terms, ratios, terminated, truncated])
    terms, ratios = jax.lax.stop_gradient((terms, ratios))
    rho, c = jnp.minimum(rho_bar, ratios), jnp.minimum(c_bar, ratios)
    discount = gamma * (1.0 - (terminated | truncated).astype(terms.dtype))
    weighted = terms
    if released_code:
        weighted = jnp.concatenate([terms[1:], terms[-1:]])
    # W_i = rho_i f_i + gamma c_i W_{i+1} is what step i contributes to the step before it.
    contributions = backward_recursion(rho * weighted, discount * c)
    following = jnp.concatenate([contributions[1:], jnp.zeros(1, terms.dtype)])
    first_factor = c if product_start == 0 else 1.0
    return terms + discount * first_factor * following
