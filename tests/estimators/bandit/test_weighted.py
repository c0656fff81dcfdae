"""The family of weighted and doubly robust estimators, against NumPy, a known population, and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit

COUNT = 200


@pytest.fixture(scope="module")
def log():
    random = np.random.default_rng(3)
    predicted, target = random.uniform(size=(2, COUNT))
    return dict(
        weights=3.0 * random.uniform(size=COUNT) ** 2,
        rewards=random.uniform(size=COUNT),
        predicted=predicted,
        predicted_target=target,
    )


def loop(log, term):
    """Mean of a term, row by row, in Python's own numbers."""
    rows = zip(*(log[k] for k in ("weights", "rewards", "predicted", "predicted_target")), strict=True)
    return math.fsum(term(*(float(x) for x in row)) for row in rows) / COUNT


DOUBLY = ("predicted", "predicted_target")
CASES = {
    "ips": (lambda w, r, q, v: w * r, {}, ()),
    "clipped_ips": (lambda w, r, q, v: min(w, 1.5) * r, dict(clip=1.5), ()),
    "sub_gaussian_ips": (lambda w, r, q, v: w * r / (0.7 + 0.3 * w), dict(shrinkage=0.3), ()),
    "direct_method": (lambda w, r, q, v: v, {}, DOUBLY[1:]),
    "doubly_robust": (lambda w, r, q, v: v + w * (r - q), {}, DOUBLY),
    "switch_doubly_robust": (lambda w, r, q, v: v + (w <= 1.0) * w * (r - q), dict(threshold=1.0), DOUBLY),
    "shrunk_doubly_robust": (lambda w, r, q, v: v + 2 * w / (w * w + 2) * (r - q), dict(shrinkage=2.0), DOUBLY),
}


def call(name, log, **options):
    _, parameters, columns = CASES[name]
    extra = {column: log[column] for column in columns}
    return getattr(bandit, name)(log["weights"], log["rewards"], **extra, **parameters, **options)


@pytest.mark.parametrize("name", CASES)
def test_means_are_those_of_a_loop_and_errors_those_of_the_terms(name, log):
    term = CASES[name][0]
    estimate = call(name, log, level=0.95)
    mean = loop(log, term)
    assert float(estimate.value) == pytest.approx(mean, rel=1e-12)
    error = math.sqrt(loop(log, lambda *row: (term(*row) - mean) ** 2) / (COUNT - 1))
    assert float(estimate.standard_error) == pytest.approx(error, rel=1e-10)
    # Student's t with 199 degrees
    np.testing.assert_allclose(
        [float(estimate.lower), float(estimate.upper)],
        np.clip(mean + 1.971956545 * error * np.array([-1, 1]), 0, 1),
        rtol=1e-8,
    )


def test_self_normalised_ones(log):
    weights, rewards, predicted, target = (log[k] for k in ("weights", "rewards", *DOUBLY))
    ratio = (weights * rewards).sum() / weights.sum()
    estimate = bandit.snips(weights, rewards, level=0.95)
    assert float(estimate.value) == pytest.approx(ratio, rel=1e-12)
    delta = (weights * (rewards - ratio)).std(ddof=1) / weights.mean() / math.sqrt(COUNT)
    assert float(estimate.standard_error) == pytest.approx(delta, rel=1e-10)
    ends = np.array([estimate.lower, estimate.upper], np.float64)
    np.testing.assert_allclose(ends, ratio + 1.971956545 * delta * np.array([-1, 1]), rtol=1e-8)
    estimate = bandit.self_normalised_doubly_robust(weights, rewards, predicted=predicted, predicted_target=target)
    expected = target.mean() + (weights * (rewards - predicted)).sum() / weights.sum()
    assert float(estimate.value) == pytest.approx(expected, rel=1e-12)


def test_limits_meet(log):
    def value(name, **options):
        extra = {k: log[k] for k in DOUBLY} if "doubly" in name else {}
        return float(getattr(bandit, name)(log["weights"], log["rewards"], **extra, **options).value)

    assert value("clipped_ips", clip=math.inf) == pytest.approx(value("ips"), rel=1e-12)
    assert value("sub_gaussian_ips", shrinkage=0.0) == pytest.approx(value("ips"), rel=1e-12)
    for name, options in (
        ("switch_doubly_robust", dict(threshold=math.inf)),
        ("shrunk_doubly_robust", dict(shrinkage=1e15)),
    ):
        assert value(name, **options) == pytest.approx(value("doubly_robust"), rel=1e-12)
    assert value("switch_doubly_robust", threshold=1e-9) == pytest.approx(
        float(np.mean(log["predicted_target"])), abs=1e-9
    )
    # predictions of nothing leave inverse propensity scores
    nothing = dict(predicted=np.zeros(COUNT), predicted_target=np.zeros(COUNT))
    doubly = bandit.doubly_robust(log["weights"], log["rewards"], **nothing)
    assert float(doubly.value) == pytest.approx(value("ips"), rel=1e-12)


def test_emp_is_the_ratio_under_the_likelihoods_law():
    # the log of case B: mass is missing, and the three estimates differ
    weights, rewards, counts = np.array([1.0101010101010102, 0.0]), np.array([1.0, 0.0]), np.array([2.0, 8.0])
    options = dict(counts=counts, weight_range=(0.0, 2000.0))
    full = bandit.empirical_likelihood(weights, rewards, **options)
    tilt = -1 / 1999.0
    law = counts / 10 / (1 + tilt * (weights - 1))
    assert float(bandit.emp(weights, rewards, **options).value) == pytest.approx(
        law[0] * weights[0] / law.sum(), rel=1e-9
    )
    assert float(full.value) > 0.6


def test_pseudo_inverse_is_unbiased_for_sums_over_slots():
    """All slates of two slots, weighted by their probability: the population's value, exactly."""
    behaviour, target = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), np.array([[0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
    worth = np.array([[0.1, 0.4, 0.3], [0.0, 0.5, 0.2]])
    slates = np.array([(a, b) for a in range(3) for b in range(3)])
    share = behaviour[0, slates[:, 0]] * behaviour[1, slates[:, 1]]
    slot_weights = np.stack([(target / behaviour)[slot, slates[:, slot]] for slot in (0, 1)], axis=1)
    rewards = worth[0, slates[:, 0]] + worth[1, slates[:, 1]]
    estimate = bandit.pseudo_inverse(slot_weights, rewards, counts=1000 * share)
    assert float(estimate.value) == pytest.approx((target * worth).sum(), rel=1e-12)


@pytest.mark.parametrize("name", ["ips", "snips", "doubly_robust"])
def test_unbiased_in_a_small_world(name):
    """Contexts, actions and rewards enumerated: the estimate of the population is the value."""
    random = np.random.default_rng(0)
    behaviour, target = (x / x.sum(axis=1, keepdims=True) for x in random.uniform(0.1, 1.0, size=(2, 4, 3)))
    chance, predictions = random.uniform(size=(2, 4, 3))
    rows = [(x, a, r) for x in range(4) for a in range(3) for r in (0, 1)]
    x, a, r = np.array(rows).T
    share = 0.25 * behaviour[x, a] * np.where(r == 1, chance[x, a], 1 - chance[x, a])
    extra = {}
    if name == "doubly_robust":
        extra = dict(predicted=predictions[x, a], predicted_target=(target * predictions).sum(axis=1)[x])
    estimate = getattr(bandit, name)((target / behaviour)[x, a], r, counts=1e4 * share, **extra)
    assert float(estimate.value) == pytest.approx((target * chance).sum() / 4, rel=1e-12)
    assert float(estimate.diagnostics["mean_weight"]) == pytest.approx(1.0, rel=1e-12)


def test_intervals_of_all_kinds_hold_the_estimate_in_their_order(log):
    widths = {}
    for kind in (
        "normal",
        "student_t",
        "bootstrap",
        "bca",
        "betting",
        "empirical_bernstein",
        "hoeffding",
        "clopper_pearson",
    ):
        estimate = call("ips", log, level=0.95, interval=kind, weight_range=(0.0, 3.0))
        assert 0.0 <= float(estimate.lower) < float(estimate.value) < float(estimate.upper) <= 1.0
        widths[kind] = float(estimate.upper - estimate.lower)
    assert widths["normal"] < widths["student_t"] < widths["betting"] < widths["hoeffding"]
    assert widths["bootstrap"] == pytest.approx(widths["normal"], rel=0.15)
    # the likelihood knows that weights are 1 on average
    options = dict(weight_range=(0.0, 3.0), level=0.95)
    likelihood = bandit.empirical_likelihood(log["weights"], log["rewards"], **options)
    assert float(likelihood.upper - likelihood.lower) < widths["normal"]


def test_vmap_with_padding_grad_and_jit(log):
    weights, rewards = log["weights"], log["rewards"]
    counts = np.ones((2, COUNT))
    counts[1, 120:] = 0
    with jax.enable_x64(True):
        stacked = jax.vmap(lambda c: bandit.snips(jnp.asarray(weights), jnp.asarray(rewards), counts=c, level=0.9))(
            jnp.asarray(counts)
        )
        slope = jax.grad(lambda w: bandit.snips(w, jnp.asarray(rewards)).value)(jnp.asarray(weights))
    short = bandit.snips(weights[:120], rewards[:120], level=0.9)
    np.testing.assert_allclose([float(x[1]) for x in stacked[:5]], [float(x) for x in short[:5]], rtol=1e-10)
    ratio = (weights * rewards).sum() / weights.sum()
    np.testing.assert_allclose(slope, (rewards - ratio) / weights.sum(), rtol=1e-9)


def test_cross_fitted_predictions_come_from_other_rows():
    random = np.random.default_rng(1)
    features, actions = random.normal(size=(400, 3)), random.integers(0, 2, size=400)
    truth = features @ np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]]) + np.array([0.3, -0.2])
    rewards = truth[np.arange(400), actions]
    predicted = np.asarray(bandit.cross_fitted(features, actions, rewards, 2, ridge=1e-6))
    np.testing.assert_allclose(predicted, truth, atol=1e-5)
    # a row's own reward has no part in its prediction
    changed = rewards.copy()
    changed[7] += 100.0
    again = np.asarray(bandit.cross_fitted(features, actions, changed, 2, ridge=1e-6))
    np.testing.assert_allclose(again[7], predicted[7], atol=1e-8)
    assert np.abs(again - predicted).max() > 0.1


def test_the_variance_objective_has_the_least_variance():
    random = np.random.default_rng(2)
    features, actions = random.normal(size=(3000, 2)), random.integers(0, 3, size=3000)
    # not linear, so that what is minimised matters
    rewards = (np.abs(features[:, 0]) * (actions + 1) + 0.1 * random.normal(size=3000)) / 10
    target = np.full((3000, 3), 0.05)
    target[:, 2] = 0.9
    weights = target[np.arange(3000), actions] * 3
    errors, rows = {}, np.arange(3000)
    known = dict(target_probabilities=target, propensities=np.full(3000, 1 / 3))
    for objective in ("squares", "importance", "variance"):
        q = np.asarray(bandit.cross_fitted(features, actions, rewards, 3, objective=objective, **known))
        extra = dict(predicted=q[rows, actions], predicted_target=(target * q).sum(axis=1), reward_range=(-1, 2))
        errors[objective] = float(bandit.doubly_robust(weights, rewards, **extra).standard_error)
    assert errors["variance"] < 1.001 * min(errors.values())
    assert errors["variance"] < float(bandit.ips(weights, rewards, reward_range=(-1, 2)).standard_error)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ips", dict(interval="exact"), "interval must be one of"),
        ("ips", dict(interval="hoeffding", level=0.9), "weight_range was not given"),
        ("ips", dict(interval="betting", level=0.9, weight_range=(0, math.inf)), "weight_range is infinite"),
        ("snips", dict(interval="hoeffding", level=0.9, weight_range=(0, 3)), "the estimator is a ratio"),
        ("clipped_ips", dict(clip=0.0), "clip must be positive"),
        ("sub_gaussian_ips", dict(shrinkage=2.0), "shrinkage must be in"),
        ("pseudo_inverse", dict(weight_range=(0, 3)), "no range of their own"),
        ("ips", dict(resamples=0), "resamples must be at least 1"),
    ],
)
def test_bad_settings_are_refused(name, options, message, log):
    with pytest.raises(ValueError, match=message):
        getattr(bandit, name)(log["weights"], log["rewards"], **options)


# the most that the weight of a row can be once the estimator has changed it
BOUNDS = {
    "clipped_ips": 1.5,
    "sub_gaussian_ips": 1.0 / 0.3,
    "direct_method": 0.0,
    "switch_doubly_robust": 1.0,
    "shrunk_doubly_robust": 0.5 * math.sqrt(2.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_clipped_has_bounded_intervals_whatever_weights_are(name, log):
    """Hoeffding's half-width is the range times `sqrt(log(2 / delta) / 2 n)`."""
    bound = BOUNDS[name]
    length = {
        "direct_method": 1.0,
        "switch_doubly_robust": 1.0 + 2.0 * bound,
        "shrunk_doubly_robust": 1.0 + 2.0 * bound,
    }
    half = length.get(name, bound) * math.sqrt(math.log(2 / 0.05) / (2 * COUNT))
    for weight_range in (None, (0.0, math.inf), (0.0, 1e9)):
        estimate = call(name, log, level=0.95, interval="hoeffding", weight_range=weight_range)
        assert float(estimate.upper) == pytest.approx(min(float(estimate.value) + half, 1.0 + bound * 10), rel=1e-7)
    # where weights are known to be smaller, so is the range
    small = call(name, log, level=0.95, interval="hoeffding", weight_range=(0.0, 3.0))
    if name == "sub_gaussian_ips":
        half *= 0.3 * 3.0 / (0.7 + 0.3 * 3.0)
    assert float(small.upper) == pytest.approx(float(small.value) + half, rel=1e-7)


@pytest.mark.parametrize("name", ["ips", "doubly_robust"])
def test_what_is_not_clipped_needs_a_range(name, log):
    with pytest.raises(ValueError, match="weight_range was not given"):
        call(name, log, level=0.95, interval="hoeffding")
    with pytest.raises(ValueError, match="weight_range is infinite"):
        call(name, log, level=0.95, interval="hoeffding", weight_range=(0.0, math.inf))
