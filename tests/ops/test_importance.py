"""Importance ratios, masked means and the effective sample size."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_off.ops import importance
from jaxrl_off.ops.importance import effective_sample_size, importance_ratio, masked_mean

SIZE = 6
FAST = settings(max_examples=50, deadline=None, derandomize=True, database=None)
reals = hnp.arrays(np.float64, SIZE, elements=st.floats(-30.0, 5.0))
weights_strategy = hnp.arrays(np.float64, SIZE, elements=st.floats(0.0, 1e3).map(lambda x: round(x, 6)))
masks = hnp.arrays(np.bool_, SIZE)

jit_ratio = jax.jit(importance_ratio)
jit_mean = jax.jit(masked_mean)
jit_ess = jax.jit(effective_sample_size)


def reference_ess(weights: np.ndarray) -> float:
    """Kish, by loops: the square of the sum over n times the sum of squares."""
    total, squares = 0.0, 0.0
    for weight in weights:
        total += weight
        squares += weight * weight
    return 0.0 if squares == 0 else total * total / (len(weights) * squares)


@FAST
@given(reals, reals, st.floats(0.1, 40.0))
def test_ratio_agrees_with_numpy(log_prob, behaviour, log_clip):
    with jax.enable_x64(True):
        got = np.asarray(jit_ratio(log_prob, behaviour, log_clip=log_clip))
    for value, p, q in zip(got, log_prob, behaviour, strict=True):
        expected = np.exp(max(-log_clip, min(log_clip, p - q)))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_ratio_defaults_to_a_clip_of_ten_and_infinity_turns_it_off():
    p, q = jnp.array([-1.0, -30.0, 3.0]), jnp.array([-1.5, 0.0, -20.0])
    np.testing.assert_allclose(importance_ratio(p, q), np.exp([0.5, -10.0, 10.0]), rtol=1e-6)
    np.testing.assert_allclose(importance_ratio(p, q, log_clip=jnp.inf), np.exp([0.5, -30.0, 23.0]), rtol=1e-5)


def test_ratio_gradient_is_the_ratio_inside_and_zero_where_clipped():
    p, q = jnp.array([-1.0, -30.0, 3.0]), jnp.array([-1.5, 0.0, -20.0])
    to_p, to_q = jax.grad(lambda p, q: jnp.sum(importance_ratio(p, q)), argnums=(0, 1))(p, q)
    np.testing.assert_allclose(to_p, [np.exp(0.5), 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(to_q, [-np.exp(0.5), 0.0, 0.0], rtol=1e-6)


def test_ratio_of_an_impossible_action_is_finite_with_finite_gradient():
    p = jnp.array([-jnp.inf, -1e30])
    q = jnp.array([-1.0, -1.0])
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(importance_ratio(p, q)))(p)
    np.testing.assert_allclose(value, 2 * np.exp(-10.0), rtol=1e-5)
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


@FAST
@given(reals, masks)
def test_masked_mean_is_the_mean_of_the_selected(values, mask):
    with jax.enable_x64(True):
        got = float(jit_mean(values, mask))
    expected = values[mask].mean() if mask.any() else 0.0
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_masked_mean_of_a_matrix_and_its_gradient():
    values = jnp.arange(6.0).reshape(2, 3)
    mask = jnp.array([[True, False, False], [False, True, True]])
    assert float(masked_mean(values, mask)) == pytest.approx(3.0)
    np.testing.assert_allclose(jax.grad(masked_mean)(values, mask), np.asarray(mask) / 3.0, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(masked_mean)(values, jnp.zeros_like(mask)), np.zeros((2, 3)))


def test_masked_mean_ignores_what_is_not_selected_even_if_it_is_not_finite():
    values, mask = jnp.array([1.0, jnp.nan, 3.0, jnp.inf]), jnp.array([True, False, True, False])
    assert float(masked_mean(values, mask)) == pytest.approx(2.0)
    np.testing.assert_allclose(jax.grad(masked_mean)(values, mask), [0.5, 0.0, 0.5, 0.0])


@FAST
@given(weights_strategy, masks)
def test_effective_sample_size_agrees_with_numpy(weights, mask):
    with jax.enable_x64(True):
        everything, selected = float(jit_ess(weights)), float(jit_ess(weights, mask))
    np.testing.assert_allclose(everything, reference_ess(weights), rtol=1e-12)
    np.testing.assert_allclose(selected, reference_ess(weights[mask]), rtol=1e-12)
    assert 0.0 <= selected <= 1.0 + 1e-12
    if weights.any():
        assert everything >= 1.0 / SIZE - 1e-12


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_effective_sample_size_does_not_depend_on_the_scale(scale):
    """Products of ratios along a trajectory are easily this small or large, and float32 holds them."""
    assert float(effective_sample_size(jnp.full(5, scale))) == pytest.approx(1.0, rel=1e-5)
    assert float(effective_sample_size(scale * jnp.array([1.0, 3.0]))) == pytest.approx(0.8, rel=1e-5)


def test_effective_sample_size_special_cases():
    assert float(effective_sample_size(jnp.array([0.0, 0.0, 7.0, 0.0]))) == pytest.approx(0.25)
    assert float(effective_sample_size(jnp.zeros(4))) == 0.0
    assert float(effective_sample_size(jnp.ones(4), jnp.zeros(4, bool))) == 0.0


@pytest.mark.parametrize("outlier", [jnp.inf, jnp.nan])
def test_effective_sample_size_ignores_what_is_not_selected_even_if_it_is_not_finite(outlier):
    assert float(effective_sample_size(jnp.array([1.0, outlier]), jnp.array([True, False]))) == 1.0


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
def test_effective_sample_size_has_finite_gradient(weights):
    weights = jnp.array(weights)
    assert np.isfinite(jax.grad(effective_sample_size)(weights)).all()
    assert np.isfinite(jax.grad(effective_sample_size)(weights, jnp.array([True, False]))).all()


def test_vmap_is_a_loop_and_jit_compiles_once():
    traces = []

    def everything(p, q, mask):
        traces.append(None)
        ratio = importance_ratio(p, q)
        return ratio, masked_mean(ratio, mask), effective_sample_size(ratio, mask)

    rng = np.random.default_rng(0)
    p, q = jnp.asarray(rng.normal(size=(2, 4, SIZE)), jnp.float32)
    mask = jnp.asarray(rng.random((4, SIZE)) < 0.6)
    looped = [everything(p[i], q[i], mask[i]) for i in range(4)]
    batched = jax.vmap(everything)(p, q, mask)
    compiled = jax.jit(everything)
    traces.clear()
    for i in range(4):
        for one, other, jitted in zip(looped[i], batched, compiled(p[i], q[i], mask[i]), strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5)
            np.testing.assert_allclose(one, jitted, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("function", [importance_ratio, masked_mean, effective_sample_size])
def test_unequal_shapes_are_refused(function):
    with pytest.raises(AssertionError, match="shape"):
        function(jnp.zeros(3), jnp.zeros(4))


def test_examples_in_the_docstrings():
    assert doctest.testmod(importance).failed == 0
