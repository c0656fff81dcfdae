"""Surrogate objectives of policy gradients from off-policy data, as functions of arrays.

Each takes the importance ratio `r = pi(a|s) / mu(a|s)` to the policy mu that acted and an advantage A, of any common shape, and
returns the surrogate of every sample, which is to be **maximised**; a loss is minus its (masked) mean. The policy gradient of
the identity surrogate at `pi = mu` is the on-policy one. Advantages are constants: no gradient flows through them.

| function | surrogate | used by |
|---|---|---|
| `identity` | `r A` | importance weighting; Wang et al. 2019, eq. 13 |
| `clip` | `min(r A, clip(r, 1 - low, 1 + high) A)` | PPO; GRPO; "clip-higher" with `high > low` |
| `centred_clip` | the same around a centre in place of 1 | GePPO |
| `truncate` | `clip(r, floor, cap) A log pi`, gradient through `log pi` alone | IMPALA; P3O; CISPO |
| `truncate_with_correction` | adds the bias correction `max(0, 1 - cap / r)` | ACER |
| `exponential_weights` | weights of maximum likelihood | V-MPO |

References: Schulman et al., "Proximal Policy Optimization Algorithms", 2017; Queeney, Paschalidis and Cassandras, "Generalized
Proximal Policy Optimization with Sample Reuse", NeurIPS 2021; Espeholt et al., "IMPALA", ICML 2018; Wang et al., "Sample
Efficient Actor-Critic with Experience Replay", ICLR 2017; MiniMax, "MiniMax-M1", 2025 (CISPO); Song et al., "V-MPO", ICLR 2020.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrl_off.types import Array


def identity(ratio: Array, advantage: Array) -> Array:
    """Importance weighting, `r A`.

    Args:
        ratio: `float[...]`, r; differentiable.
        advantage: `float[...]`, A.

    Returns:
        `float[...]`.
    """
    chex.assert_equal_shape([ratio, advantage])
    return ratio * jax.lax.stop_gradient(advantage)


def clip(ratio: Array, advantage: Array, low: Array | float = 0.2, high: Array | float = 0.2) -> Array:
    """The pessimistic clipped surrogate of PPO, `min(r A, clip(r, 1 - low, 1 + high) A)`.

    Args:
        ratio: `float[...]`, r; differentiable.
        advantage: `float[...]`, A.
        low: how far below 1 the ratio still has a gradient where A < 0; PPO's 0.2.
        high: how far above 1 it still has one where A > 0; PPO's 0.2, 0.28 in the "clip-higher" of language models.

    Returns:
        `float[...]`.

    Example:
        >>> clip(jnp.array([1.5, 1.5, 0.5]), jnp.array([1.0, -1.0, -1.0]), 0.25, 0.25).tolist()
        [1.25, -1.5, -0.75]
    """
    return centred_clip(ratio, advantage, 1.0, low, high)


def centred_clip(
    ratio: Array, advantage: Array, centre: Array | float, low: Array | float = 0.2, high: Array | float = 0.2
) -> Array:
    """The clipped surrogate around another centre, `min(r A, clip(r, centre - low, centre + high) A)` (GePPO, eq. 9).

    Args:
        ratio: `float[...]`, r; differentiable.
        advantage: `float[...]`, A.
        centre: `float[...]` or a number, the ratio `pi_k(a|s) / mu(a|s)` of the policy that the update starts from; 1 gives
            `clip`.
        low: as for `clip`.
        high: as for `clip`.

    Returns:
        `float[...]`.
    """
    chex.assert_equal_shape([ratio, advantage])
    advantage = jax.lax.stop_gradient(advantage)
    centre = jax.lax.stop_gradient(centre)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, centre - low, centre + high) * advantage)


def truncate(
    ratio: Array, log_prob: Array, advantage: Array, cap: Array | float = 1.0, floor: Array | float = 0.0
) -> Array:
    """Policy gradient with a truncated importance weight, `clip(r, floor, cap) A log pi`.

    The weight is a constant: every sample keeps a gradient, unlike with `clip`. With `cap=1` this is IMPALA's; with
    `cap=1 + epsilon` CISPO's; with the batch's effective sample size P3O's.

    Args:
        ratio: `float[...]`, r; its gradient is not used.
        log_prob: `float[...]`, log pi(a|s); differentiable.
        advantage: `float[...]`, A.
        cap: largest weight.
        floor: smallest weight; 0 for none.

    Returns:
        `float[...]`. Its value has no meaning of its own (it contains `log pi`); its gradient has.
    """
    chex.assert_equal_shape([ratio, log_prob, advantage])
    weight, advantage = jax.lax.stop_gradient((jnp.clip(ratio, floor, cap), advantage))
    return weight * advantage * log_prob


def truncate_with_correction(ratio: Array, log_prob: Array, advantage: Array, cap: Array | float = 1.0) -> Array:
    """Truncated importance weight with its bias correction, `(min(cap, r) + max(0, 1 - cap / r)) A log pi` (ACER, eq. 7).

    The paper takes the expectation of the second term over actions of pi; here, as in the code of Divergence-Augmented Policy
    Optimization, it is evaluated at the sampled action.

    Args:
        ratio: `float[...]`, r > 0; its gradient is not used.
        log_prob: `float[...]`, log pi(a|s); differentiable.
        advantage: `float[...]`, A.
        cap: c, where the weight is truncated.

    Returns:
        `float[...]`.
    """
    chex.assert_equal_shape([ratio, log_prob, advantage])
    ratio, advantage = jax.lax.stop_gradient((ratio, advantage))
    weight = jnp.minimum(cap, ratio) + jnp.maximum(0.0, 1.0 - cap / ratio)
    return weight * advantage * log_prob


def exponential_weights(
    advantage: Array, temperature: Array | float, target: Array | float, mask: Array
) -> tuple[Array, Array]:
    """V-MPO's weights of maximum likelihood, and the loss of their temperature (Song et al. 2020, eq. 2 to 4).

    `psi = softmax(A / eta)` over the better half of the batch (advantages of at least the median), 0 elsewhere; the temperature
    minimises `eta (epsilon + log mean exp(A / eta))` over the same half.

    Args:
        advantage: `float[N]`, A.
        temperature: eta > 0; differentiable in the second result alone.
        target: epsilon_eta.
        mask: `bool[N]`, which samples count.

    Returns:
        `(psi, temperature_loss)`: `float[N]`, constant, sum 1; `float[]`. The surrogate to maximise is `sum(psi log pi)`.
    """
    chex.assert_rank(advantage, 1)
    chex.assert_equal_shape([advantage, mask])
    advantage = jax.lax.stop_gradient(advantage)
    chosen = mask & (advantage >= jnp.nanmedian(jnp.where(mask, advantage, jnp.nan)))
    scaled = jnp.where(chosen, advantage / temperature, -jnp.inf)
    log_mean_exp = jax.nn.logsumexp(scaled) - jnp.log(jnp.maximum(jnp.sum(chosen), 1))
    return jax.lax.stop_gradient(jax.nn.softmax(scaled)), temperature * (target + log_mean_exp)
