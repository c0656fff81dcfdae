"""What users do by mistake, and corners where estimators once gave wrong numbers."""

from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.ops import intervals

W, R = np.array([0.5, 1.0, 2.0, 0.7]), np.array([0.1, 0.9, 0.4, 0.7])
KEY = jax.random.key(0)
X, A, H = np.eye(4), np.array([0, 1, 1, 0]), np.full(4, 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bandit.ips(W[:, None], R),
        lambda: bandit.snips(W, R[:, None]),
        lambda: bandit.ips(W, R, counts=np.ones((4, 1))),
        lambda: bandit.doubly_robust(W, R, predicted=R[:, None], predicted_target=R),
        lambda: bandit.cressie_read(W[:, None], R, weight_range=(0, 4)),
        lambda: bandit.empirical_likelihood(W[:, None], R, weight_range=(0, 4)),
        lambda: bandit.pseudo_inverse(W, R),
        lambda: bandit.update_histogram(bandit.make_histogram((0, 4)), np.ones((2, 1)), [0.5, 0.5]),
        lambda: bandit.learn(KEY, X, A, R[:, None], H, 2, objective="ips"),
        lambda: bandit.learn(KEY, X, A, R, H[:, None], 2, objective="ips"),
        lambda: bandit.cross_fitted(X, A, R[:, None], 2),
        lambda: bandit.cross_fitted(X, A[:1], R, 2),
        lambda: bandit.cross_fitted(X, A, R, 3, target_probabilities=np.ones((4, 2))),
        lambda: bandit.learn(KEY, X, A, R, H, 2, objective="doubly_robust", predictions=np.ones((3, 2))),
    ],
)
def test_columns_of_another_shape_never_broadcast(call):
    with pytest.raises(ValueError, match="shape|fit together|one column"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandit.learn(KEY, X, A + 0.7, R, H, 2, objective="ips"), "whole numbers"),
        (lambda: bandit.learn(KEY, X, A, R, H, 2, objective="variance_penalty", batch_size=1), "2 rows or more"),
        (lambda: bandit.learn(KEY, X, A, R, H, 2, objective="variance_penalty", penalty=-1.0), "penalty"),
        (lambda: bandit.learn(KEY, X, A, R, H, 2, weight_range=(0.0, 1.5)), "allows a weight of 2"),
        (lambda: bandit.learn(KEY, X, A, R, H, 2, weight_range=(0.0, 2.0), level=None), "level must be"),
        (
            lambda: bandit.learn(KEY, X, A, R, H, 2, objective="doubly_robust", predictions=np.full((4, 2), np.nan)),
            "finite",
        ),
        (lambda: bandit.cross_fitted(X, A + 0.5, R, 2), "whole numbers"),
        (lambda: bandit.cross_fitted(X, A, R * np.nan, 2), "rewards must be finite"),
        (lambda: bandit.cross_fitted(X, A, R, 2, propensities=0.0 * H), "in \\(0, 1\\]"),
        (lambda: bandit.ips(W, R, counts=[0.5] * 4, level=0.9, interval="bootstrap"), "whole numbers"),
        (lambda: bandit.ips(W, R, counts=[2] * 4, level=0.9, interval="betting", weight_range=(0, 4)), "0 or 1"),
        (
            lambda: bandit.direct_method(
                W, R, predicted_target=[5.0] * 4, level=0.9, interval="hoeffding", weight_range=(0, 4)
            ),
            "outside",
        ),
        (
            lambda: bandit.doubly_robust(
                W, R, predicted=R - 1.0, predicted_target=R, level=0.9, interval="betting", weight_range=(0, 4)
            ),
            "reward range",
        ),
    ],
)
def test_what_cannot_be_meant(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_predictions_can_be_cut_to_the_reward_range():
    random = np.random.default_rng(0)
    features, actions, rewards = random.normal(size=(60, 3)), random.integers(0, 2, 60), random.integers(0, 2, 60)
    plain = np.asarray(bandit.cross_fitted(features, actions, rewards, 2))
    assert plain.min() < 0.0 or plain.max() > 1.0
    np.testing.assert_array_equal(
        bandit.cross_fitted(features, actions, rewards, 2, reward_range=(0, 1)), plain.clip(0, 1)
    )


def test_float32_calls_leave_later_ones_alone():
    """Outside x64 the intervals are float32; what follows in the process must not find their programs."""
    intervals.student_t_interval(jnp.array([1.0, 2.0, 3.0]))
    assert np.isfinite(float(bandit.ips(W, R, level=0.9).lower))


@pytest.mark.parametrize("interval", ["bootstrap", "bca"])
def test_bootstraps_work_under_jit_without_x64(interval):
    def bounds(weights):
        found = bandit.ips(weights, R, level=0.9, interval=interval, resamples=200)
        return found.lower, found.upper

    eager = bounds(W)
    for compiled, expected in zip(jax.jit(bounds)(jnp.asarray(W)), eager, strict=True):
        assert float(compiled) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("interval", ["bootstrap", "bca"])
def test_resamples_without_weight_leave_an_interval(interval):
    random = np.random.default_rng(2)
    for _ in range(3):
        weights = np.where(random.random(30) < 0.1, 10.0, 0.0)
        weights[0] = 10.0
        found = bandit.snips(weights, random.random(30), level=0.9, interval=interval, resamples=200)
        assert float(found.lower) <= float(found.value) <= float(found.upper)
    single = bandit.ips([1.0], [0.5], level=0.95, interval=interval)
    assert (float(single.lower), float(single.upper)) == (0.0, 1.0)


def test_diagnostics_of_slates_are_those_of_their_weights():
    slots = np.array([[2.0, 0.5], [0.0, 1.0], [3.0, 2.0], [0.5, 0.5]])
    found = bandit.pseudo_inverse(slots, R)
    weights = slots.sum(axis=1) - 1.0
    assert float(found.value) == pytest.approx(np.mean(weights * R))
    assert float(found.diagnostics["largest_weight"]) == 4.0
    assert float(found.diagnostics["mean_weight"]) == pytest.approx(weights.mean())
    assert float(found.diagnostics["clipped_rows"]) == float(found.diagnostics["clipped_weight"]) == 0.0


def test_standard_error_has_a_derivative_where_it_is_0():
    slope = jax.grad(lambda w: bandit.ips(w, np.ones(5)).standard_error)(jnp.ones(5))
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize("largest", [1e2, 1e5, 1e7, 1e9])
def test_cressie_read_keeps_its_digits_at_large_weight_ranges(largest):
    """Against the closed form in 60 digits."""
    getcontext().prec = 60
    random = np.random.default_rng(4)
    weights, rewards = random.uniform(0.2, 1.9, 30).round(3), random.random(30).round(3)
    found = bandit.cressie_read(weights, rewards, weight_range=(0.0, largest), level=0.9)
    w, r, n = [Decimal(str(x)) for x in weights], [Decimal(str(x)) for x in rewards], Decimal(30)
    sw, sww = sum(w), sum(x * x for x in w)
    added = Decimal(int(largest)) if sw < n else Decimal(0)
    a, b = (added + sw) / (1 + n), (added**2 + sww) / (1 + n)
    star = (n + 1) * (a - 1) ** 2 / (b - a * a)
    phi = (-star - 2 * Decimal(float(found.diagnostics["threshold"])) / 2) / (2 * (n + 1))
    ends = []
    for edge, sign in ((Decimal(0), 1), (Decimal(1), -1)):
        candidates = []
        for added in (Decimal(0), Decimal(int(largest))):
            m, mm = (added + sw) / (1 + n), (added**2 + sww) / (1 + n)
            mr = sign * (added * edge + sum(x * y for x, y in zip(w, r, strict=True))) / (1 + n)
            mmr = sign * (added**2 * edge + sum(x * x * y for x, y in zip(w, r, strict=True))) / (1 + n)
            mmrr = ((added * edge) ** 2 + sum((x * y) ** 2 for x, y in zip(w, r, strict=True))) / (1 + n)
            variance, covariance = mm - m * m, mmr - m * mr
            x = mr + (1 - m) * covariance / variance
            y, z = covariance**2 / variance - (mmrr - mr**2), phi + (1 - m) ** 2 / (2 * variance)
            if z <= 0:
                candidates.append(x - (2 * y * z).sqrt())
        ends.append(float(sign * min(candidates)))
    np.testing.assert_allclose([found.lower, found.upper], np.clip(ends, 0.0, 1.0), rtol=1e-9)


def test_intervals_of_clipped_terms_are_not_cut_to_a_point():
    """The mean of terms that were clipped lies below all rewards; its interval holds it."""
    log = dict(weights=[0.0, 0.0, 0.0, 4.0] * 100, rewards=[1.5, 1.2, 1.9, 1.7] * 100, reward_range=(1.0, 2.0))
    for interval in ("student_t", "hoeffding"):
        found = bandit.clipped_ips(**log, clip=1.0, level=0.95, interval=interval, weight_range=(0.0, 5.0))
        assert float(found.lower) < float(found.value) < float(found.upper)
