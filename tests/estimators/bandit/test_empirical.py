"""Empirical likelihood of bandit logs: golden numbers, identities, edges, transformations."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_off.estimators.bandit import (
    action_control_variates,
    censored_empirical_likelihood,
    cressie_read,
    empirical_likelihood,
    empirical_likelihood_difference,
    euclidean,
    power_divergence,
    predictor_control_variates,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "empirical_likelihood.json").read_text())
CASES = GOLDEN["cases"]
IRRATIONAL = 0.6180339887498949, 0.4142135623730951


def formula(count, largest):
    """The reference's data without random numbers."""
    i = np.arange(1, count + 1)
    return largest * np.modf(i * IRRATIONAL[0])[0] ** 4, np.modf(i * IRRATIONAL[1])[0]


def log_of(name):
    case = CASES[name]
    if "rows" in case:
        counts, weights, rewards = np.array(case["rows"], float).T
    else:
        weights, rewards = formula(case["formula"], case["weight_range"][1])
        counts = np.ones(len(weights))
    return weights, rewards, dict(counts=counts, weight_range=case["weight_range"], reward_range=case["reward_range"])


def numbers(estimate):
    return [float(x) for x in (estimate.value, estimate.lower, estimate.upper)]


@pytest.mark.parametrize("name", CASES)
def test_golden_estimates_and_intervals(name):
    weights, rewards, options = log_of(name)
    exact = CASES[name]["exact"]
    estimate = empirical_likelihood(weights, rewards, level=0.95, **options)
    np.testing.assert_allclose(numbers(estimate), [exact["vhat"], exact["ci_lb"], exact["ci_ub"]], atol=1e-10)
    found = [float(estimate.diagnostics[key]) for key in ("value_low", "value_high", "missing_weight", "threshold")]
    np.testing.assert_allclose(found, [exact[key] for key in ("vmin", "vmax", "missing_weight", "Delta")], atol=1e-10)
    # the authors' code stops early, but not far away
    np.testing.assert_allclose(
        numbers(estimate)[1:], [CASES[name]["reference"][k] for k in ("ci_lb", "ci_ub")], atol=5e-5
    )


@pytest.mark.parametrize("name", CASES)
def test_golden_power_divergences(name):
    weights, rewards, options = log_of(name)
    expected = CASES[name]["cressie_read"]
    estimate = cressie_read(weights, rewards, level=0.95, **options)
    found = [*numbers(estimate), *(float(estimate.diagnostics[key]) for key in ("value_low", "value_high"))]
    np.testing.assert_allclose(found, [expected[k] for k in ("vhat", "ci_lb", "ci_ub", "vmin", "vmax")], atol=2e-10)
    assert float(euclidean(weights, rewards, **options).value) == pytest.approx(CASES[name]["euclidean"], abs=2e-10)
    for text, value in CASES[name]["power"].items():
        power = {"2/3": 2 / 3, "1": 1.0, "-1/2": -0.5}[text]
        # what the reference gives was found by an iterative solver
        found = float(power_divergence(weights, rewards, power=power, **options).value)
        assert found == pytest.approx(value, abs=2e-5)


def test_golden_difference():
    golden = GOLDEN["difference"]
    counts, first, second, rewards = np.array(golden["rows"], float).T
    options = dict(counts=counts, weight_range=golden["weight_range"], level=0.95)
    estimate = empirical_likelihood_difference(first, second, rewards, **options)
    assert float(estimate.value) == pytest.approx(golden["estimate"], abs=1e-8)
    np.testing.assert_allclose(numbers(estimate)[1:], golden["interval"], atol=1e-3)
    swapped = empirical_likelihood_difference(second, first, rewards, **options)
    np.testing.assert_allclose(numbers(swapped), -np.array(numbers(estimate))[[0, 2, 1]], atol=1e-11)


def test_golden_control_variates():
    golden = GOLDEN["control_variate"]
    counts, weights, rewards, actions = np.array(golden["rows"], float).T
    options = dict(counts=counts, weight_range=golden["weight_range"], level=0.95)
    variates = action_control_variates(weights, actions.astype(int), 2, golden["weight_range"])
    estimate = empirical_likelihood(weights, rewards, control_variates=variates, **options)
    np.testing.assert_allclose(numbers(estimate), [golden["estimate"], *golden["interval"]], atol=1e-6)
    found = [float(estimate.diagnostics[key]) for key in ("value_low", "value_high")]
    np.testing.assert_allclose(found, [golden["low"], golden["high"]], atol=1e-6)
    plain = numbers(empirical_likelihood(weights, rewards, **options))
    assert plain[0] == pytest.approx(golden["without"], abs=1e-9)
    np.testing.assert_allclose(plain[1:], golden["without_interval"], atol=1e-6)


def test_golden_censored():
    weights, rewards, options = log_of("G")
    extra = np.array(GOLDEN["censored"]["extra"])
    weights, counts = np.append(weights, extra[:, 1]), np.append(options["counts"], extra[:, 0])
    rewards = np.append(rewards, np.full(len(extra), np.nan))
    estimate = censored_empirical_likelihood(
        weights, rewards, np.isfinite(rewards), counts=counts, weight_range=(0.0, 380.0), level=0.95
    )
    found = [float(x) for x in (estimate.value, estimate.diagnostics["value_low"], estimate.diagnostics["value_high"])]
    np.testing.assert_allclose(found, [GOLDEN["censored"][key] for key in ("estimate", "low", "high")], atol=1e-9)
    assert float(estimate.lower) < found[1] < found[2] < float(estimate.upper)


def test_censored_with_all_observed_is_the_plain_one():
    weights, rewards = formula(300, 5.0)
    options = dict(weight_range=(0.0, 5.0), level=0.9)
    plain = empirical_likelihood(weights, rewards, **options)
    observed = censored_empirical_likelihood(weights, rewards, np.ones(300, bool), **options)
    np.testing.assert_allclose(numbers(observed), numbers(plain), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(2, 12), largest=st.sampled_from([1.5, 4.0, 1000.0]))
def test_interval_is_the_extreme_of_the_primal_problem(data, count, largest):
    """KKT from the outside: bounds are ordered, hold the estimate's interval, and the reward's reflection swaps them."""
    unit = st.floats(0.0, 1.0)
    weights = largest * np.array(data.draw(st.lists(unit, min_size=count, max_size=count))) ** 3
    rewards = np.array(data.draw(st.lists(unit, min_size=count, max_size=count)))
    options = dict(weight_range=(0.0, largest), level=0.95)
    estimate = empirical_likelihood(weights, rewards, **options)
    value, lower, upper = numbers(estimate)
    low, high = (float(estimate.diagnostics[key]) for key in ("value_low", "value_high"))
    assert all(math.isfinite(x) for x in (value, lower, upper, low, high))
    assert -1e-10 <= lower <= low + 1e-9 <= high + 2e-9 <= upper + 3e-9 <= 1.0 + 4e-9
    mirrored = numbers(empirical_likelihood(weights, 1.0 - rewards, **options))
    np.testing.assert_allclose(mirrored, [1.0 - value, 1.0 - upper, 1.0 - lower], atol=1e-8)


def test_agrees_with_a_general_solver():
    """The lower bound's primal problem, by SciPy."""
    from scipy.optimize import minimize

    weights, rewards = formula(12, 4.0)
    estimate = empirical_likelihood(weights, rewards, weight_range=(0.0, 4.0), level=0.9, calibration="chi2")
    threshold = float(estimate.diagnostics["threshold"])
    # corners of the support carry mass at the worst reward, 0
    everything = np.concatenate([weights, [0.0, 4.0]])

    def best(start):
        constraints = [
            {"type": "eq", "fun": lambda q: q.sum() - 1.0},
            {"type": "eq", "fun": lambda q: q @ everything - 1.0},
        ]
        options = dict(
            bounds=[(1e-9, 1)] * 12 + [(0, 1)] * 2, constraints=constraints, options=dict(ftol=1e-14, maxiter=500)
        )
        fit = minimize(lambda q: -np.log(q[:12]).sum(), start, **options)
        floor = -fit.fun - threshold
        constraints.append({"type": "ineq", "fun": lambda q: np.log(q[:12]).sum() - floor})
        return minimize(lambda q: q[:12] @ (weights * rewards), fit.x, **options).fun

    assert float(estimate.lower) == pytest.approx(best(np.full(14, 1 / 14)), abs=1e-6)


@pytest.mark.parametrize(
    ("weights", "rewards", "expected"),
    [
        ([2.0, 3.0], [0.0, 0.0], (0.0, 0.0, None)),  # all weights above 1, no reward
        ([0.5], [1.0], (None, 0.0, 1.0)),  # one row says nothing
        ([0.0, 4.0], [0.3, 0.3], (0.3, None, None)),  # weights at both ends of their range
        ([1.0] * 50, [1.0] * 50, (1.0, None, 1.0)),  # all rewards at their upper end
        ([1.0] * 50, [0.0] * 50, (0.0, 0.0, None)),
    ],
)
def test_degenerate_logs(weights, rewards, expected):
    estimate = empirical_likelihood(weights, rewards, weight_range=(0.0, 4.0), level=0.95)
    for found, wanted in zip(numbers(estimate), expected, strict=True):
        assert math.isfinite(found)
        if wanted is not None:
            assert found == pytest.approx(wanted, abs=1e-9)


def test_duplicates_are_counts_and_padding_is_nothing():
    weights, rewards = formula(40, 6.0)
    options = dict(weight_range=(0.0, 6.0), level=0.95)
    counts = 1.0 + np.arange(40) % 3
    counted = empirical_likelihood(weights, rewards, counts=counts, **options)
    repeated = empirical_likelihood(
        np.repeat(weights, counts.astype(int)), np.repeat(rewards, counts.astype(int)), **options
    )
    padded = empirical_likelihood(
        np.append(weights, [np.nan, -7.0]),
        np.append(rewards, [9.0, np.nan]),
        counts=np.append(counts, [0, 0]),
        **options,
    )
    for other in (repeated, padded):
        np.testing.assert_allclose(numbers(other), numbers(counted), rtol=1e-10)
        np.testing.assert_allclose(float(other.standard_error), float(counted.standard_error), rtol=1e-9)


def test_jit_vmap_and_float64_under_a_float32_default():
    assert not jax.config.jax_enable_x64
    logs = [formula(n, 5.0) for n in (30, 80)]
    options = dict(weight_range=(0.0, 5.0), level=0.95)
    counts = np.zeros((2, 80))
    stacked = np.ones((2, 2, 80))
    for row, (weights, rewards) in enumerate(logs):
        counts[row, : len(weights)], stacked[0, row, : len(weights)], stacked[1, row, : len(weights)] = (
            1,
            weights,
            rewards,
        )

    def call(weights, rewards, counts):
        return empirical_likelihood(weights, rewards, counts=counts, **options)

    with jax.enable_x64(True):
        together = jax.vmap(call)(*jnp.asarray(stacked), jnp.asarray(counts))
    for row, (weights, rewards) in enumerate(logs):
        alone = empirical_likelihood(weights, rewards, **options)
        assert alone.lower.dtype == jnp.float64
        np.testing.assert_allclose([float(x[row]) for x in together[:4]], [float(x) for x in alone[:4]], rtol=1e-10)
    # float32 columns under jit: the arithmetic is still that of float64
    weights, rewards = (jnp.asarray(x, jnp.float32) for x in logs[1])
    compiled = jax.jit(lambda w, r: empirical_likelihood(w, r, **options))(weights, rewards)
    exact = empirical_likelihood(np.asarray(weights, float), np.asarray(rewards, float), **options)
    np.testing.assert_allclose(numbers(compiled), numbers(exact), rtol=1e-12)


@pytest.mark.parametrize("name", ["value", "lower", "upper"])
@pytest.mark.parametrize(("count", "largest"), [(25, 5.0), (10, 2000.0)])
def test_gradients_against_finite_differences(name, count, largest):
    weights, rewards = formula(count, 3.0)

    def result(weights, rewards):
        return getattr(empirical_likelihood(weights, rewards, weight_range=(0.0, largest), level=0.9), name)

    with jax.enable_x64(True):
        gradients = jax.grad(result, (0, 1))(jnp.asarray(weights), jnp.asarray(rewards))
    for column, gradient in enumerate(gradients):
        for row in (0, 7):
            step = np.zeros((2, count))
            step[column, row] = 1e-5
            up, down = (float(result(*(np.stack([weights, rewards]) + sign * step))) for sign in (1, -1))
            assert float(gradient[row]) == pytest.approx((up - down) / 2e-5, rel=2e-4, abs=2e-8)


def test_one_sided_bounds_are_those_of_a_wider_two_sided_interval():
    weights, rewards = formula(100, 5.0)
    options = dict(weight_range=(0.0, 5.0))
    two = empirical_likelihood(weights, rewards, level=0.9, **options)
    lower = empirical_likelihood(weights, rewards, level=0.95, sides="lower", **options)
    upper = empirical_likelihood(weights, rewards, level=0.95, sides="upper", **options)
    np.testing.assert_allclose([float(lower.lower), float(upper.upper)], numbers(two)[1:], rtol=1e-10)
    assert (float(lower.upper), float(upper.lower)) == (1.0, 0.0)


def test_infinite_weights_are_the_limit_of_large_ones():
    weights, rewards = formula(60, 2.0)
    large, infinite = (
        numbers(empirical_likelihood(weights, rewards, weight_range=(0.0, high), level=0.95))
        for high in (1e9, math.inf)
    )
    np.testing.assert_allclose(infinite, large, atol=1e-6)
    # and then the estimate gives what is missing from a mean weight of 1 the middle reward
    mean = weights.mean()
    assert mean < 1.0
    assert infinite[0] == pytest.approx((weights * rewards).mean() + 0.5 * (1.0 - mean), abs=1e-9)


def test_calibrations_are_ordered_and_agree_with_their_formulas():
    weights, rewards = formula(200, 5.0)
    widths, thresholds = [], []
    for calibration in ("chi2", "f", "finite_sample"):
        estimate = empirical_likelihood(weights, rewards, weight_range=(0.0, 5.0), level=0.95, calibration=calibration)
        widths.append(float(estimate.upper - estimate.lower))
        thresholds.append(float(estimate.diagnostics["threshold"]))
    assert widths == sorted(widths)
    expected = [0.5 * 1.959963984540054**2, 1.9442, math.log(1 / 0.025) + math.log(201) + math.log(2)]
    np.testing.assert_allclose(thresholds, expected, rtol=1e-4)


def test_reward_predictor():
    random = np.random.default_rng(0)
    weights = random.exponential(size=400)
    predicted = random.uniform(0.2, 0.8, size=400)
    rewards = np.clip(predicted + 0.02 * random.normal(size=400), 0, 1)
    target = random.uniform(0.2, 0.8, size=400)
    options = dict(weight_range=(0.0, 40.0), level=0.95)
    doubly = empirical_likelihood(weights, rewards, predicted=predicted, predicted_target=target, **options)
    plain = empirical_likelihood(weights, rewards, **options)
    # the log leaves next to nothing but the mean of the target's predictions open
    assert float(doubly.standard_error) < float(plain.standard_error)
    assert float(doubly.value) == pytest.approx(target.mean(), abs=0.01)
    # a prediction that says nothing changes nothing but for rounding
    constant = empirical_likelihood(
        weights, rewards, predicted=np.zeros(400), predicted_target=np.zeros(400), **options
    )
    assert float(constant.value) == pytest.approx(float(plain.value), abs=1e-9)
    variates = predictor_control_variates(weights, predicted, target, (0.0, 40.0))
    with_variates = empirical_likelihood(weights, rewards, control_variates=variates, **options)
    assert float(with_variates.upper - with_variates.lower) < float(plain.upper - plain.lower)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weights=[0.5, 9.0]), "row 1 has 9.0"),
        (dict(weights=[0.5, np.nan]), "weights must be finite"),
        (dict(rewards=[0.5, 1.5]), "rewards must be finite and in"),
        (dict(rewards=[0.5]), "every row needs one of each"),
        (dict(counts=[0.0, 0.0]), "the log is empty"),
        (dict(counts=[1.0, -1.0]), "counts must be finite and not negative"),
        (dict(weight_range=(1.0, 4.0)), "0 <= low < 1 < high"),
        (dict(weight_range=(0.0, 0.9)), "0 <= low < 1 < high"),
        (dict(reward_range=(1.0, 0.0)), "low < high"),
        (dict(level=95.0), "between 0 and 1"),
        (dict(sides="left"), "sides must be one of"),
        (dict(calibration="exact"), "calibration must be one of"),
        (dict(predicted=[0.1, 0.2]), "both, or neither"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = dict(weights=[0.5, 1.5], rewards=[0.5, 1.0], weight_range=(0.0, 4.0), level=0.95)
    with pytest.raises(ValueError, match=message):
        empirical_likelihood(**(good | change))


def test_transformations_from_outside_a_compiled_function():
    """`vmap` and `grad` of a jitted caller are traced where x64 is off; no digit may be lost to that."""
    weights, rewards = formula(30, 5.0)
    weights, rewards = (jnp.asarray(x, jnp.float32) for x in (weights, rewards))

    @jax.jit
    def lower(w, r):
        return empirical_likelihood(w, r, weight_range=(0.0, 5.0), level=0.95).lower

    alone = float(lower(weights, rewards))
    together = jax.vmap(lower)(jnp.stack([weights, weights[::-1]]), jnp.stack([rewards, rewards[::-1]]))
    np.testing.assert_allclose(np.asarray(together), alone, rtol=1e-12)
    slope = jax.grad(lower, argnums=1)(weights, rewards)
    with jax.enable_x64(True):
        exact = jax.grad(lower, argnums=1)(jnp.asarray(weights, jnp.float64), jnp.asarray(rewards, jnp.float64))
    np.testing.assert_allclose(slope, exact, rtol=1e-5)
