"""Surrogates of policy gradients and estimators of the KL divergence: golden numbers, gradients, identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.distributions import Categorical
from jaxrl_off.ops import surrogates
from jaxrl_off.ops.divergence import kl_k1, kl_k2, kl_k3

# an example with two sequences of two and one token; numbers computed in NumPy float64
PI, OLD = jnp.array([[0.5, 0.4], [0.2, 0.1]]), jnp.array([[0.4, 0.5], [0.4, 0.1]])
RATIO = PI / OLD
ADVANTAGE = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
MASK = np.array([[1.0, 1.0], [1.0, 0.0]])


def token_mean(values):
    return float((np.asarray(values) * MASK).sum() / MASK.sum())


def test_clip_of_golden_example():
    np.testing.assert_allclose(-surrogates.clip(RATIO, ADVANTAGE), [[-1.2, -0.8], [0.8, 1.0]], rtol=1e-6)
    assert token_mean(-surrogates.clip(RATIO, ADVANTAGE)) == pytest.approx(-0.4, rel=1e-6)
    higher = surrogates.clip(RATIO, ADVANTAGE, 0.2, 0.28)
    np.testing.assert_allclose(-higher, [[-1.25, -0.8], [0.8, 1.0]], rtol=1e-6)
    assert token_mean(-higher) == pytest.approx(-0.4166666667, rel=1e-6)


def test_truncate_is_cispo_in_the_golden_example():
    assert token_mean(-surrogates.truncate(RATIO, jnp.log(PI), ADVANTAGE, 1.28)) == pytest.approx(
        0.2649158683, rel=1e-6
    )
    both = -surrogates.truncate(RATIO, jnp.log(PI), ADVANTAGE, 1.2, 0.8)
    assert token_mean(both) == pytest.approx(0.0924196241, rel=1e-6)


def test_acers_correction_at_the_sampled_action():
    """At the sampled action the weight is `min(c, r) + max(0, 1 - c / r)`."""
    ratio, log_prob = jnp.array([0.5, 2.0, 8.0]), jnp.array([-1.0, -1.0, -1.0])
    found = surrogates.truncate_with_correction(ratio, log_prob, -jnp.ones(3), 2.0)
    np.testing.assert_allclose(found, [0.5, 2.0, 2.75], rtol=1e-6)


def test_every_surrogate_has_the_on_policy_gradient_where_nothing_is_off_policy():
    logits, actions, advantage = jnp.array([0.3, -0.2, 0.5]), jnp.array([0, 1, 2, 2]), jnp.array([1.0, -2.0, 0.5, 3.0])
    old = jax.nn.log_softmax(logits)[actions]

    def gradient(surrogate):
        def loss(x):
            log_prob = jax.nn.log_softmax(x)[actions]
            return jnp.mean(surrogate(jnp.exp(log_prob - old), log_prob))

        return np.asarray(jax.grad(loss)(logits))

    plain = gradient(lambda _, log_prob: advantage * log_prob)
    assert np.abs(plain).max() > 0.1
    for name, surrogate in {
        "identity": lambda r, _: surrogates.identity(r, advantage),
        "clip": lambda r, _: surrogates.clip(r, advantage, 0.2, 0.28),
        "centred_clip": lambda r, _: surrogates.centred_clip(r, advantage, jnp.ones(4)),
        "truncate": lambda r, log_prob: surrogates.truncate(r, log_prob, advantage, 5.0, 0.5),
        "acer": lambda r, log_prob: surrogates.truncate_with_correction(r, log_prob, advantage, 1.0),
    }.items():
        np.testing.assert_allclose(gradient(surrogate), plain, rtol=1e-5, err_msg=name)


def test_gradient_stops_where_the_clip_says_so():
    ratio, advantage = jnp.array([1.5, 1.5, 0.5, 0.5]), jnp.array([1.0, -1.0, 1.0, -1.0])
    gradient = jax.grad(lambda r: jnp.sum(surrogates.clip(r, advantage)))(ratio)
    np.testing.assert_array_equal(gradient, [0.0, -1.0, 1.0, 0.0])
    moved = jax.grad(lambda r: jnp.sum(surrogates.centred_clip(r, advantage, jnp.array([1.4, 1.4, 0.6, 0.6]))))(ratio)
    np.testing.assert_array_equal(moved, advantage)
    # advantages are constants
    assert float(jax.grad(lambda a: jnp.sum(surrogates.identity(ratio, a)))(advantage).sum()) == 0.0


def test_exponential_weights_of_the_better_half():
    advantage = jnp.array([0.0, 1.0, 2.0, 3.0, 100.0])
    mask = jnp.array([True, True, True, True, False])
    psi, loss = surrogates.exponential_weights(advantage, 2.0, 0.1, mask)
    weights = np.exp(np.array([2.0, 3.0]) / 2.0)
    np.testing.assert_allclose(psi, [0.0, 0.0, *(weights / weights.sum()), 0.0], rtol=1e-6)
    assert float(loss) == pytest.approx(2.0 * (0.1 + np.log(weights.mean())), rel=1e-6)


def test_kl_estimators():
    difference = jnp.array([0.3, -0.1])
    np.testing.assert_allclose(kl_k3(difference, jnp.zeros(2)), [0.04081822, 0.00517092], rtol=1e-5)
    np.testing.assert_allclose(kl_k2(difference, jnp.zeros(2)), [0.045, 0.005], rtol=1e-6)
    first, second = Categorical(jnp.array([0.2, -0.5, 0.1])), Categorical(jnp.array([-0.3, 0.4, 0.0]))
    actions = jnp.arange(3)
    log_prob, reference = jax.vmap(first.log_prob)(actions), jax.vmap(second.log_prob)(actions)
    exact = float(first.kl(second))
    for estimator in (kl_k1, kl_k3):  # unbiased: the expectation over samples of the first is the divergence
        assert float(jnp.sum(jnp.exp(log_prob) * estimator(log_prob, reference))) == pytest.approx(exact, rel=1e-5)
    assert float(kl_k3(jnp.array(0.0), jnp.array(1000.0))) == pytest.approx(np.expm1(20.0) - 20.0, rel=1e-5)


def test_only_k2_has_the_gradient_of_the_divergence():
    reference = Categorical(jnp.array([-0.3, 0.4, 0.0]))
    logits, actions = jnp.array([0.2, -0.5, 0.1]), jnp.arange(3)
    weights = jax.nn.softmax(logits)

    def expected(estimator):
        def loss(x):
            log_prob = jax.nn.log_softmax(x)[actions]
            return jnp.sum(weights * estimator(log_prob, jax.vmap(reference.log_prob)(actions)))

        return np.asarray(jax.grad(loss)(logits))

    exact = np.asarray(jax.grad(lambda x: Categorical(x).kl(reference))(logits))
    np.testing.assert_allclose(expected(kl_k2), exact, atol=1e-6)
    np.testing.assert_allclose(expected(kl_k1), np.zeros(3), atol=1e-6)
