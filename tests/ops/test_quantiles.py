"""Quantiles of Student's t and of the beta law, against mpmath, scipy and closed forms."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxrl_off.ops import quantiles
from jaxrl_off.ops.quantiles import beta_quantile, student_t_quantile

FAST = settings(max_examples=60, deadline=None, derandomize=True, database=None)
TAILS = (1.0 - np.array([0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0 - 1e-6])) / 2.0

# By 40-digit quadrature and Newton's method (mpmath): tail probability, degrees, t.
STUDENT = [
    (0.025, 0.5, 164.557673480488515),
    (0.025, 30, 2.04227245630123828),
    (0.025, 1e3, 1.96233908082640846),
    (0.025, 1e6, 1.95996635681410701),
    (0.025, 1e9, 1.95996398691232544),
    (5e-7, 30, 6.11907562038421685),
    (5e-7, 1e3, 4.92228952342958798),
    (5e-7, 1e6, 4.89166896071038528),
    (5e-7, 1e9, 4.89163850618343682),
    (0.25, 0.5, 1.55377397403003731),
    (0.25, 30, 0.682755693321292553),
    (0.25, 1e3, 0.674735164607009437),
    (0.25, 1e6, 0.674489995531087379),
    (0.25, 1e9, 0.674489750441416669),
]

jit_student = jax.jit(student_t_quantile)
jit_beta = jax.jit(beta_quantile)


def on_eight(function, *arguments):
    """The compiled function on arguments broadcast and padded to eight, so that it compiles once."""
    arguments = np.broadcast_arrays(*(np.asarray(x, float) for x in arguments))
    padded = [np.pad(np.ravel(x), (0, 8 - x.size), mode="edge") for x in arguments]
    return np.reshape(np.asarray(function(*padded))[: arguments[0].size], arguments[0].shape)


def student(tail, degrees):
    return on_eight(jit_student, tail, degrees)


def beta(probability, a, b):
    return on_eight(jit_beta, probability, a, b)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("tail", "degrees", "expected"), STUDENT)
def test_student_to_forty_digits(tail, degrees, expected):
    # 5e-7 itself is known to a relative 1e-16 only.
    np.testing.assert_allclose(student(tail, degrees), expected, rtol=2e-14)


def test_student_closed_forms_of_one_and_two_degrees():
    np.testing.assert_allclose(student(TAILS, 1.0), 1.0 / np.tan(np.pi * TAILS), rtol=1e-12)
    central = 1.0 - 2.0 * TAILS
    np.testing.assert_allclose(student(TAILS, 2.0), central * np.sqrt(0.5 / (TAILS * (1.0 - TAILS))), rtol=1e-12)


@pytest.mark.parametrize("degrees", [0.5, 0.7, 1.5, 3.0, 7.3, 50.0, 2e3, 1e5, 1e7, 1e9])
def test_student_agrees_with_scipy(degrees):
    np.testing.assert_allclose(student(TAILS, degrees), stats.t.isf(TAILS, degrees), rtol=1e-12)


def test_student_of_infinite_degrees_is_normal():
    np.testing.assert_allclose(student(TAILS, np.inf), stats.norm.isf(TAILS), rtol=1e-13)


@FAST
@given(st.floats(1e-12, 1.0 - 1e-12), st.floats(0.5, 1e6))
def test_student_is_odd_and_inverts_the_law(tail, degrees):
    with jax.enable_x64(True):
        t = float(student(tail, degrees))
        mirrored = float(student(1.0 - tail, degrees))
    np.testing.assert_allclose(mirrored, -t, rtol=1e-3, atol=1e-12)  # 1 - tail has lost digits of a small tail
    np.testing.assert_allclose(stats.t.sf(t, degrees), tail, rtol=1e-10)


def test_student_at_the_ends_and_the_centre():
    np.testing.assert_array_equal(student(np.array([0.0, 0.5, 1.0]), 3.0), [np.inf, 0.0, -np.inf])
    assert np.isnan(student(0.025, np.nan))


def test_student_gradients_are_those_of_the_implicit_function():
    tail, degrees, step = 0.025, 7.0, 1e-4
    to_tail, to_degrees = jax.grad(jit_student, argnums=(0, 1))(tail, degrees)
    quantile = stats.t.isf(tail, degrees)
    difference = stats.t.isf(tail, degrees + step) - stats.t.isf(tail, degrees - step)
    np.testing.assert_allclose(to_tail, -1.0 / stats.t.pdf(quantile, degrees), rtol=1e-10)
    np.testing.assert_allclose(to_degrees, difference / (2.0 * step), rtol=1e-7)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1),
        (1, 10),
        (2, 1e3),
        (0.5, 0.5),
        (10, 3),
        (0.25, 8),
        (500, 1e6),
        (1e5, 1e6),
        (5e5, 5e5),
        (1e6, 1),
        (1e8, 1e8),
    ],
)
def test_beta_agrees_with_scipy(a, b):
    probability = np.array([1e-9, 1e-6, 0.025, 0.3, 0.5, 0.9, 0.975, 1.0 - 1e-6])
    got, expected = np.asarray(beta(probability, a, b)), stats.beta.ppf(probability, a, b)
    np.testing.assert_allclose(got, expected, rtol=1e-11)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * stats.beta.std(a, b))


@pytest.mark.parametrize("trials", [1, 10, 1000, 10**7])
def test_beta_closed_forms_of_no_success_and_of_one(trials):
    probability = np.array([0.005, 0.5, 0.95, 0.999])
    nothing = -np.expm1(np.log1p(-probability) / trials)
    np.testing.assert_allclose(beta(probability, 1.0, trials), nothing, rtol=1e-12)
    np.testing.assert_allclose(beta(probability, trials, 1.0), probability ** (1.0 / trials), rtol=1e-12)


def test_beta_at_the_ends():
    np.testing.assert_array_equal(beta(np.array([0.0, 1.0]), 3.0, 2.0), [0.0, 1.0])
    np.testing.assert_array_equal(beta(0.025, 0.0, 5.0), 0.0)
    np.testing.assert_array_equal(beta(0.975, 5.0, 0.0), 1.0)


@pytest.mark.parametrize("a", [0.01, 0.1])
def test_beta_below_the_median_of_less_than_one_success(a):
    """What an unrounded Clopper-Pearson bound asks for."""
    probability = np.array([0.025, 0.2, 0.45])
    np.testing.assert_allclose(beta(probability, a, 10.0), stats.beta.ppf(probability, a, 10.0), rtol=1e-11)


def test_beta_reproduces_the_clopper_pearson_interval_of_vw_estimators():
    """Data formula I of the notes; they count N / w_max trials and sum(w r) / w_max successes."""
    i = np.arange(1, 1001)
    weights = 5.0 * np.modf(i * 0.6180339887498949)[0] ** 4
    rewards = np.modf(i * 0.4142135623730951)[0]
    trials, successes = len(i) / weights.max(), np.sum(weights * rewards) / weights.max()
    got = beta(np.array([0.025, 0.975]), successes + np.array([0.0, 1.0]), trials - successes + np.array([1.0, 0.0]))
    np.testing.assert_allclose(got, [0.42975754, 0.57230828], atol=5e-9)


def test_beta_gradients_are_those_of_the_implicit_function():
    probability, a, b, step = 0.025, 7.0, 20.0, 1e-4
    quantile = stats.beta.ppf(probability, a, b)
    to_probability, to_a, to_b = jax.grad(jit_beta, argnums=(0, 1, 2))(probability, a, b)
    np.testing.assert_allclose(to_probability, 1.0 / stats.beta.pdf(quantile, a, b), rtol=1e-10)
    difference = stats.beta.ppf(probability, a + step, b) - stats.beta.ppf(probability, a - step, b)
    np.testing.assert_allclose(to_a, difference / (2.0 * step), rtol=1e-6)
    difference = stats.beta.ppf(probability, a, b + step) - stats.beta.ppf(probability, a, b - step)
    np.testing.assert_allclose(to_b, difference / (2.0 * step), rtol=1e-6)


def test_jit_vmap_and_broadcasting_agree():
    degrees = jnp.array([0.5, 3.0, 1e6])
    together = student_t_quantile(TAILS[:, None], degrees)
    assert together.shape == (len(TAILS), 3)
    mapped = jax.jit(jax.vmap(jax.vmap(student_t_quantile, (None, 0)), (0, None)))(TAILS, degrees)
    np.testing.assert_allclose(mapped, together, rtol=1e-13)
    np.testing.assert_allclose(beta_quantile(0.3, degrees, 2.0), beta(0.3, np.asarray(degrees), 2.0), rtol=1e-13)


def test_doctests():
    assert doctest.testmod(quantiles).failed == 0
