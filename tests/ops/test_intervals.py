"""Confidence intervals: golden values, independent loops, coverage, padding."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.stats._resampling import BootstrapResult

from jaxrl_off.ops import intervals
from jaxrl_off.ops.confidence_sequences import bernstein_sequence, betting_interval
from jaxrl_off.ops.intervals import (
    bca_interval,
    bootstrap_replicates,
    clopper_pearson_interval,
    empirical_bernstein_interval,
    hoeffding_interval,
    normal_interval,
    percentile_interval,
    student_t_interval,
)

UNIT = {"minimum": 0.0, "maximum": 1.0}
COUNTED = {
    "normal": normal_interval,
    "student": student_t_interval,
    "hoeffding": partial(hoeffding_interval, **UNIT),
    "bernstein": partial(empirical_bernstein_interval, **UNIT),
    "binomial": partial(clopper_pearson_interval, **UNIT),
}
ORDERED = {
    "sequence": partial(bernstein_sequence, **UNIT),
    "betting": partial(betting_interval, **UNIT),
}
EVERY = {**COUNTED, **ORDERED}
BOOTSTRAPS = {"percentile": percentile_interval, "bca": bca_interval}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnames="sides")
def everything(values, kept, level, sides="two"):
    """All intervals but the bootstraps', compiled together; tests use 60 values, so that this is seldom."""
    counted = {name: interval(values, kept, level=level, sides=sides) for name, interval in COUNTED.items()}
    ordered = {name: interval(values, kept > 0, level=level, sides=sides) for name, interval in ORDERED.items()}
    return jax.tree.map(lambda end: end[-1] if end.ndim else end, {**counted, **ordered})


def of_rows(values, kept, levels, sides="two"):
    """`everything` of 2000 rows, again compiled seldom."""
    return jax.vmap(partial(everything, sides=sides))(values, kept, np.broadcast_to(levels, 2000))


def padded(values, counts):
    """60 rows: values and their counts, the rest nothing, some of it in between."""
    rows = 2 * np.arange(len(values)) + 1 if len(values) < 30 else np.arange(len(values))
    all_values, all_counts = np.where(np.arange(60) % 3, np.nan, np.inf), np.zeros(60)
    all_values[rows], all_counts[rows] = values, counts
    return all_values, all_counts


def weighted_rewards(size: int) -> np.ndarray:
    """Data formula I of the notes on empirical likelihood, times the weights: values in [0, 5]."""
    i = np.arange(1, size + 1)
    return 5.0 * np.modf(i * 0.6180339887498949)[0] ** 4 * np.modf(i * 0.4142135623730951)[0]


def mean_of(values):
    return lambda counts: jnp.sum(counts * values) / jnp.sum(counts)


def variance_of(values):
    def statistic(counts):
        mean = jnp.sum(counts * values) / jnp.sum(counts)
        return jnp.sum(counts * (values - mean) ** 2) / jnp.sum(counts)

    return statistic


@pytest.mark.parametrize(
    ("size", "hoeffding", "bernstein", "student"),
    [
        (1000, 0.28631395, 0.37254016, 0.44978722),
        (10000, 0.43286155, 0.47126040, 0.48461487),
        (100000, 0.47872607, 0.49198986, 0.49510267),
    ],
)
def test_lower_bounds_of_the_open_bandit_pipeline(size, hoeffding, bernstein, student):
    values, known = jnp.asarray(weighted_rewards(size)), {"minimum": 0.0, "maximum": 5.0}
    one = {"level": 0.975, "sides": "lower"}
    np.testing.assert_allclose(hoeffding_interval(values, **known, **one).lower, hoeffding, atol=5e-9)
    np.testing.assert_allclose(empirical_bernstein_interval(values, **known, **one).lower, bernstein, atol=5e-9)
    np.testing.assert_allclose(student_t_interval(values, **one).lower, student, atol=5e-9)


@pytest.mark.parametrize(("size", "expected"), [(1000, (0.44984933, 0.55224797)), (10000, (0.48461683, 0.51691643))])
def test_gaussian_interval_of_vw_estimators(size, expected):
    np.testing.assert_allclose(normal_interval(jnp.asarray(weighted_rewards(size))), expected, atol=5e-9)


def test_percentile_interval_of_the_open_bandit_pipeline():
    """Both of 10000 resamples; a replicate's quantile has a standard error of 7e-4."""
    values = jnp.asarray(weighted_rewards(1000))
    interval = partial(percentile_interval, statistic=mean_of(values), counts=jnp.ones(1000), resamples=10000)
    got = jax.jit(interval)(jax.random.key(0))
    np.testing.assert_allclose(got, (0.44952350, 0.55335638), atol=3e-3)


@pytest.mark.parametrize(("size", "width"), [(14385, 0.6028), (162378, 0.1978)])
def test_binomial_widths_of_the_papers_figure(size, width):
    """Weights 0, 2, 1000 with E[w^2] = 100, uniform values of the policy, clipped (section 5c of the notes)."""
    random, repetitions = np.random.default_rng(0), 2000
    weights, probabilities = np.array([0.0, 2.0, 1000.0]), np.array([0.549, 0.4509018036, 98 / 998000])
    value, (_, two, thousand) = random.random(repetitions), weights * probabilities
    low, high = np.maximum(0.0, (value - thousand) / two), np.minimum(1.0, value / two)
    of_two = low + (high - low) * random.random(repetitions)
    of_thousand = np.clip((value - two * of_two) / thousand, 0.0, 1.0)
    seen = random.multinomial(size, probabilities, repetitions)
    ones = np.stack([random.binomial(seen[:, 1], of_two), random.binomial(seen[:, 2], of_thousand)], axis=1)
    counts = np.concatenate([size - ones.sum(1, keepdims=True), ones], axis=1).astype(float)
    interval = partial(clopper_pearson_interval, jnp.asarray(weights), minimum=0.0, maximum=1000.0)
    lower, upper = np.clip(jax.jit(jax.vmap(partial(interval, round_outwards=False)))(jnp.asarray(counts)), 0.0, 1.0)
    spread = np.std(upper - lower) * np.sqrt(1 / repetitions + 1 / 10000)
    assert abs(np.mean(upper - lower) - width) < 4 * spread
    assert np.mean((lower <= value) & (value <= upper)) > 0.995
    wide_lower, wide_upper = np.clip(jax.jit(jax.vmap(interval))(jnp.asarray(counts)), 0.0, 1.0)
    assert np.all(wide_lower <= lower + 1e-12)
    assert np.all(wide_upper >= upper - 1e-12)


@pytest.mark.parametrize("successes", [0, 1, 7, 20])
def test_clopper_pearson_is_scipys_where_values_are_binary(successes):
    values = jnp.array([-2.0, 3.0])
    counts = jnp.array([20.0 - successes, successes])
    got = clopper_pearson_interval(values, counts, minimum=-2.0, maximum=3.0, level=0.9)
    expected = stats.binomtest(successes, 20).proportion_ci(0.9, "exact")
    np.testing.assert_allclose(got, (-2.0 + 5.0 * expected.low, -2.0 + 5.0 * expected.high), rtol=1e-12, atol=1e-14)


def test_clopper_pearson_does_not_round_whole_counts_by_rounding_errors():
    values = jnp.full(30, 0.1)  # the sum is not 3, but nearly
    got = clopper_pearson_interval(values, **UNIT)
    expected = stats.binomtest(3, 30).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(got, (expected.low, expected.high), rtol=1e-12)


def test_counts_are_repetitions_and_padding_is_nothing():
    values, counts = np.array([0.1, 0.6, 1.0, 0.3]), np.array([3, 2, 1, 4])
    repeated = np.repeat(values, counts)
    got, expected = everything(*padded(values, counts), 0.9), everything(*padded(repeated, np.ones(10)), 0.9)
    compact = {
        name: interval(jnp.asarray(repeated), level=0.9) for name, interval in EVERY.items()
    }  # no padding, no jit
    compact["sequence"] = [end[-1] for end in compact["sequence"]]
    for name in EVERY:
        np.testing.assert_allclose(expected[name], compact[name], rtol=1e-12, err_msg=name)
        if name in COUNTED:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-12, err_msg=name)


def test_a_sequence_stands_still_where_nothing_is_observed():
    values, mask = np.random.default_rng(0).random(60), np.arange(60) % 3 > 0
    sequence = jax.jit(ORDERED["sequence"])
    part = sequence(jnp.asarray(np.pad(values[mask], (0, 20), constant_values=np.nan)), jnp.arange(60) < 40)
    whole = sequence(jnp.asarray(np.where(mask, values, np.nan)), jnp.asarray(mask))
    for got, expected in zip(whole, part, strict=True):
        np.testing.assert_allclose(got[mask], expected[:40], rtol=1e-12)
        np.testing.assert_array_equal(got[3::3], got[2:-1:3])


def test_one_sided_is_half_of_two_sided():
    values = np.random.default_rng(2).random((2000, 60))
    two = of_rows(values, np.ones((2000, 60)), 0.9)
    lower, upper = (of_rows(values, np.ones((2000, 60)), 0.95, sides) for sides in ("lower", "upper"))
    for name in EVERY:
        np.testing.assert_allclose(lower[name].lower, two[name].lower, rtol=1e-12)
        np.testing.assert_allclose(upper[name].upper, two[name].upper, rtol=1e-12)
        ends = (-np.inf, np.inf) if name in ("normal", "student") else (0.0, 1.0)
        assert np.all(upper[name].lower == ends[0])
        assert np.all(lower[name].upper == ends[1])


def test_vmap_is_a_loop():
    values = np.random.default_rng(3).random((2000, 60))
    kept = (np.random.default_rng(4).random((2000, 60)) < 0.8).astype(float)
    levels = np.linspace(0.5, 0.999, 2000)
    mapped = of_rows(values, kept, levels)
    for row in range(0, 2000, 100):
        single = everything(values[row], kept[row], float(levels[row]))
        for name in EVERY:
            np.testing.assert_allclose([end[row] for end in mapped[name]], single[name], rtol=1e-12)


def test_too_few_observations_leave_the_whole_range():
    nothing = everything(*padded([], []), 0.9)
    one = everything(*padded([0.4], [1.0]), 0.9)
    for name in EVERY:
        ends = (-np.inf, np.inf) if name in ("normal", "student") else (0.0, 1.0)
        assert tuple(nothing[name]) == ends
        if name in ("normal", "student", "bernstein"):
            assert tuple(one[name]) == ends


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_values_without_spread(constant):
    for lower, upper in everything(*padded(np.full(20, constant), np.ones(20)), 0.9).values():
        assert lower <= constant <= upper


def test_gradients_are_finite_without_spread():
    for interval in (COUNTED["normal"], COUNTED["bernstein"]):
        gradient = jax.jit(jax.grad(lambda x, interval=interval: interval(x).upper))(jnp.full(60, 0.01))
        np.testing.assert_allclose(gradient, 1.0 / 60.0, rtol=1e-12)


def reference_bets(values: np.ndarray, delta: float) -> tuple[list[float], list[float]]:
    """lambda_t before any cap, and the mean before t, one observation after the other."""
    bets, means, total, squares, variance = [], [], 0.0, 0.0, 0.25
    mean = 0.5
    for t, x in enumerate(values, start=1):
        bets.append(np.sqrt(2.0 * np.log(1.0 / delta) / (variance * t * np.log(1.0 + t))))
        means.append(mean)
        total += x
        mean = (0.5 + total) / (t + 1.0)
        squares += (x - mean) ** 2
        variance = (0.25 + squares) / (t + 1.0)
    return bets, means


def test_bernstein_sequence_agrees_with_a_loop():
    values, delta = np.random.default_rng(5).beta(1.0, 3.0, 80), 0.05
    bets, means = reference_bets(values, delta)
    stakes, gains, costs, lower, upper = 0.0, 0.0, 0.0, 0.0, 1.0
    got = jax.jit(partial(bernstein_sequence, minimum=-1.0, maximum=1.0, level=0.9))(2.0 * values - 1.0)
    for t, x in enumerate(values):
        bet = min(bets[t], 0.5)
        stakes, gains = stakes + bet, gains + bet * x
        costs += 4.0 * (x - means[t]) ** 2 * (-np.log(1.0 - bet) - bet) / 4.0
        radius = (np.log(1.0 / delta) + costs) / stakes
        lower, upper = max(lower, gains / stakes - radius), min(upper, gains / stakes + radius)
        np.testing.assert_allclose((got.lower[t], got.upper[t]), (2 * lower - 1, 2 * upper - 1), rtol=1e-10)
    assert upper - lower < 0.6


def test_betting_interval_agrees_with_capitals_on_a_grid():
    values, alpha = np.random.default_rng(6).beta(1.0, 3.0, 120), 0.1
    bets, _ = reference_bets(values, alpha / 2.0)
    kept = []
    for m in np.linspace(0.0005, 0.9995, 1000):
        above = below = 1.0
        richest = 1.0
        for bet, x in zip(bets, values, strict=True):
            above *= 1.0 + min(bet, 0.5 / m) * (x - m)
            below *= 1.0 - min(bet, 0.5 / (1.0 - m)) * (x - m)
            richest = max(richest, 0.5 * above, 0.5 * below)
        if richest < 1.0 / alpha:
            kept.append(m)
    lower, upper = jax.jit(partial(ORDERED["betting"], level=1.0 - alpha))(values)
    assert kept[0] - 1e-3 <= lower <= kept[0]
    assert kept[-1] <= upper <= kept[-1] + 1e-3
    sequence = jax.jit(partial(ORDERED["sequence"], level=1.0 - alpha))(values)
    assert upper - lower < sequence.upper[-1] - sequence.lower[-1]


LAWS = {
    "uniform": lambda random, shape: (random.random(shape), 0.5),
    "rare": lambda random, shape: ((random.random(shape) < 0.08).astype(float), 0.08),
    "weighted": lambda random, shape: (random.random(shape) ** 4 * random.random(shape), 0.1),
}


@pytest.mark.parametrize("law", LAWS)
def test_finite_sample_intervals_cover(law):
    """2000 repetitions: the standard error of a coverage of 0.9 is 0.007, of 0.8 0.009."""
    values, mean = LAWS[law](np.random.default_rng(7), (2000, 60))
    two, below = of_rows(values, np.ones((2000, 60)), 0.9), of_rows(values, np.ones((2000, 60)), 0.8, "lower")
    for name in ("hoeffding", "bernstein", "binomial", "sequence", "betting"):
        assert np.mean((two[name].lower <= mean) & (mean <= two[name].upper)) > 0.9 - 3 * 0.007, name
        assert np.mean(below[name].lower <= mean) > 0.8 - 3 * 0.009, name
    if law == "uniform":  # where these are nearly exact
        for name in ("normal", "student"):
            assert abs(np.mean((two[name].lower <= mean) & (mean <= two[name].upper)) - 0.9) < 3 * 0.007, name


def test_student_is_exact_for_normal_values_and_the_normal_interval_too_short():
    """20000 repetitions: the standard error is 0.0021; four values at a level of 0.9."""
    values = jnp.asarray(np.random.default_rng(8).normal(3.0, 2.0, (20000, 4)))
    covered = {
        name: np.mean((lower <= 3.0) & (3.0 <= upper))
        for name in ("normal", "student")
        for lower, upper in [jax.jit(jax.vmap(partial(COUNTED[name], level=0.9)))(values)]
    }
    assert abs(covered["student"] - 0.9) < 4 * 0.0021
    exact = stats.t.cdf(stats.norm.ppf(0.95), 3) - stats.t.cdf(-stats.norm.ppf(0.95), 3)
    assert abs(covered["normal"] - exact) < 4 * 0.0026


def test_bootstraps_cover_a_skewed_mean_and_acceleration_helps():
    """600 repetitions of 40 values, exponential: the standard error of 0.9 is 0.012. Upper misses should be 5 %."""
    values = jnp.asarray(np.random.default_rng(9).exponential(1.0, (600, 40)))
    keys, misses = jax.random.split(jax.random.key(1), 600), {}
    for name, interval in BOOTSTRAPS.items():

        def one(row, interval=interval):
            return interval(row[0], mean_of(row[1]), jnp.ones(40), resamples=400, level=0.9)

        lower, upper = jax.jit(partial(jax.lax.map, one))((keys, values))
        assert np.mean((lower <= 1.0) & (1.0 <= upper)) > 0.9 - 0.03 - 3 * 0.012
        misses[name] = np.mean(upper < 1.0)
    assert misses["bca"] < misses["percentile"]


def test_resampled_counts_are_multinomial():
    """20000 resamples of N = 10: means to 5 standard errors, and no row that was not there."""
    counts, probabilities = jnp.array([3.0, 0.0, 5.0, 2.0]), np.array([0.3, 0.0, 0.5, 0.2])
    codes = jnp.array([1.0, 1e3, 1e6, 1e9])
    replicates = partial(bootstrap_replicates, statistic=lambda c: jnp.sum(c * codes), resamples=20000, size=10)
    drawn = (
        np.asarray(jax.jit(replicates)(jax.random.key(0), counts=counts)).astype(np.int64)[:, None]
        // np.array([1, 1000, 10**6, 10**9])
        % 1000
    )
    np.testing.assert_array_equal(drawn.sum(1), 10)
    error = 5 * np.sqrt(10 * probabilities * (1 - probabilities) / 20000)
    assert np.all(np.abs(drawn.mean(0) - 10 * probabilities) <= error)
    covariance = 10 * (np.diag(probabilities) - np.outer(probabilities, probabilities))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.12)


@pytest.mark.parametrize(
    ("name", "statistic", "sides", "alternative"),
    [
        ("bca", mean_of, "two", "two-sided"),
        ("bca", variance_of, "lower", "greater"),
        ("percentile", variance_of, "upper", "less"),
    ],
)
def test_bootstrap_intervals_are_scipys_of_the_same_replicates(name, statistic, sides, alternative):
    """With counts here, repeated rows there."""
    values, counts = np.random.default_rng(10).exponential(1.0, 15), np.arange(15) % 4
    given = {"statistic": statistic(jnp.asarray(values)), "counts": jnp.asarray(counts, float)}
    given |= {"resamples": 700, "size": 40}
    replicates = jax.jit(partial(bootstrap_replicates, **given))(jax.random.key(2))
    got = jax.jit(partial(BOOTSTRAPS[name], level=0.9, sides=sides, **given))(jax.random.key(2))
    expected = stats.bootstrap(
        (np.repeat(values, counts),),
        np.mean if statistic is mean_of else np.var,
        confidence_level=0.9,
        alternative=alternative,
        method="BCa" if name == "bca" else name,
        n_resamples=0,
        bootstrap_result=BootstrapResult(None, np.asarray(replicates), None),
    ).confidence_interval
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@partial(jax.jit, static_argnames="size")
def bca_of_variance(key, values, counts, size=None):
    return bca_interval(key, variance_of(values), counts, resamples=200, size=size)


def test_padding_and_vmap_do_not_change_a_bootstrap():
    values, keys = np.random.default_rng(11).random((3, 20)), jax.random.split(jax.random.key(3), 3)
    with_padding = np.pad(values, ((0, 0), (0, 5)), constant_values=9.0)
    counts = np.pad(np.ones(20), (0, 5))
    mapped = jax.vmap(bca_of_variance, (0, 0, None))(keys, with_padding, counts)
    for row in range(3):
        expected = bca_of_variance(keys[row], values[row], jnp.ones(20))
        np.testing.assert_allclose([end[row] for end in mapped], expected, rtol=1e-12)


def test_degenerate_bootstraps():
    """No spread: the point itself. A sample for which there is no room: NaN. None at all: nothing is known."""
    key = jax.random.key(5)
    np.testing.assert_allclose(bca_of_variance(key, np.full(20, 0.3), jnp.ones(20)), (0.0, 0.0), atol=1e-15)
    assert np.all(np.isnan(bca_of_variance(key, np.arange(20.0), np.full(20, 2.0))))
    assert tuple(map(float, bca_of_variance(key, np.arange(20.0), np.zeros(20)))) == (-np.inf, np.inf)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"level": 1}, {"level": 95.0}, {"sides": "both"}])
def test_bad_arguments(name, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got"):
        EVERY[name](jnp.ones(3), **wrong)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("normal", "student")])
def test_an_empty_range_is_an_error(name):
    with pytest.raises(ValueError, match="minimum must be below maximum, got 2.0 and 1.0"):
        EVERY[name](jnp.ones(3), minimum=2.0)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"size": 0}, {"level": 1.5}, {"sides": "none"}])
def test_bad_arguments_of_bootstraps(wrong):
    for interval in BOOTSTRAPS.values():
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got"):
            interval(jax.random.key(0), jnp.sum, jnp.ones(3), **wrong)


def test_doctests():
    assert doctest.testmod(intervals).failed == 0
