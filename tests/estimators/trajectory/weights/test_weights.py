"""Importance sampling and doubly robust estimators on trajectories, against golden numbers and loops in NumPy."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.estimators.trajectory.occupancy.tabular import marginalised_is
from jaxrl_off.estimators.trajectory.statistics import settings_of
from jaxrl_off.estimators.trajectory.steps import log_weights, steps_of
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.estimators.trajectory.weights import magic as magic_module
from jaxrl_off.estimators.trajectory.weights.magic import magic
from jaxrl_off.types import Trajectories

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "star.json").read_text())
WEIGHTED = (weighted.naive, weighted.trajectory_is, weighted.pdis, weighted.wis, weighted.cwpdis)
CORRECTED = (corrected.doubly_robust, corrected.weighted_doubly_robust, magic)


def golden():
    """Trajectories, log ratios, q and v of the golden file; padding is made worthless."""
    mask = np.array(GOLDEN["valid"], bool)
    states, actions = np.array(GOLDEN["s"]), np.array(GOLDEN["a"])
    table, policy = np.array(GOLDEN["Q_for_DR"]), np.array(GOLDEN["policy_e"])
    hole = np.where(mask, 0.0, np.nan)
    done = np.array(GOLDEN["done"], bool) & mask
    rewards = np.array(GOLDEN["r"]) + hole
    data = Trajectories(states, actions, rewards, 0.0 + hole, mask, done, done & False, None)
    values = np.sum(table * policy, axis=1)
    return data, np.log(GOLDEN["rho"]) + hole, table[states, actions] + hole, values[states] + hole


def simulated(seed=0, n=40, horizon=6, scale=0.4):
    """Trajectories of random lengths, ratios with zeros among them, and a useless Q."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, horizon + 1, n)
    mask = np.arange(horizon) < lengths[:, None]
    log_ratio = random.normal(-0.5 * scale**2, scale, (n, horizon))
    log_ratio[random.random((n, horizon)) < 0.03] = -np.inf
    rewards = random.normal(1.0, 1.0, (n, horizon))
    ends = np.arange(horizon) == lengths[:, None] - 1
    data = Trajectories(None, None, rewards, np.zeros((n, horizon)), mask, ends, ends & False, None)
    return data, log_ratio, random.normal(size=(n, horizon)), random.normal(size=(n, horizon))


def loop(data, log_ratio, q, v, discount, counts, window=None, clip=np.inf):
    """All estimates, step by step; a trajectory that has ended goes on with rewards, q and v of 0 and ratios of 1."""
    n, horizon = data.rewards.shape
    weights, returns, terms = np.ones((n, horizon)), np.zeros(n), np.zeros((n, horizon, 3))
    for i in range(n):
        ratios = []
        for t in range(horizon):
            if data.mask[i, t]:
                ratios.append(min(np.exp(log_ratio[i, t]), clip))
                returns[i] += discount**t * data.rewards[i, t]
                terms[i, t] = data.rewards[i, t], q[i, t], v[i, t]
            weights[i, t] = np.prod(ratios if window is None else ratios[max(len(ratios) - window, 0) :])
    before = np.concatenate([np.ones((n, 1)), weights[:, :-1]], axis=1)
    gamma, total, last = discount ** np.arange(horizon), counts.sum(), weights[:, -1]
    c = counts[:, None]
    with np.errstate(invalid="ignore"):
        u, u_before = (np.nan_to_num(c * x / np.sum(c * x, axis=0)) for x in (weights, before))
    r, q, v = np.moveaxis(terms, -1, 0)
    return {
        "naive": counts @ returns / total,
        "trajectory_is": counts @ (last * returns) / total,
        "pdis": np.sum(c * weights * r @ gamma[:, None]) / total,
        "wis": counts @ (last * returns) / (counts @ last),
        "cwpdis": np.sum(gamma * np.sum(u * r, axis=0)),
        "direct_method": counts @ v[:, 0] / total,
        "doubly_robust": np.sum(c * gamma * (weights * (r - q) + before * v)) / total,
        "weighted_doubly_robust": np.sum(gamma * (u * (r - q) + u_before * v)),
    }


def test_golden_numbers():
    data, log_ratio, q, v = golden()
    found = {f.__name__: f(data, log_ratio, discount=0.9) for f in WEIGHTED}
    found |= {f.__name__: f(data, log_ratio, q, v, discount=0.9) for f in CORRECTED}
    found["direct_method"] = corrected.direct_method(data, v)
    names = dict(NAIVE="naive", IS="trajectory_is", PDIS="pdis", WIS="wis", CWPDIS="cwpdis", DM="direct_method")
    names |= dict(DR="doubly_robust", WDR="weighted_doubly_robust")
    for golden_name, name in names.items():
        assert float(found[name].value) == pytest.approx(GOLDEN["estimates"][golden_name], rel=1e-12)
    assert float(found["wis"].effective_sample_size) == pytest.approx(GOLDEN["estimates"]["ESS_full"], rel=1e-12)
    assert float(found["wis"].diagnostics["mean_length"]) == 3.4
    assert float(found["wis"].diagnostics["below_floor"]) == 1.0


@pytest.mark.parametrize(
    ("window", "clip"), [(None, None), (0, None), (2, None), (6, None), (None, 1.2), (3, 1.2), (None, 0.7)]
)
def test_weights_are_those_of_a_loop(window, clip):
    data, log_ratio, *_ = simulated()
    with jax.enable_x64(True):
        found = jnp.exp(log_weights(steps_of(data, log_ratio), window=window, clip=clip))
    for i, row in enumerate(data.mask):
        ratios = np.minimum(np.exp(log_ratio[i, row]), np.inf if clip is None else clip)
        for t in range(6):
            made = ratios[: t + 1]
            expected = np.prod(made if window is None else made[max(len(made) - window, 0) :])
            assert float(found[i, t]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("window", "clip"), [(None, None), (3, 1.2)])
def test_estimates_are_those_of_a_loop(window, clip):
    data, log_ratio, q, v = simulated()
    counts = np.random.default_rng(1).integers(0, 3, 40).astype(float)
    options = dict(discount=0.8, counts=counts, window=window, clip=clip)
    expected = loop(data, log_ratio, q, v, 0.8, counts, window, np.inf if clip is None else clip)
    for f in WEIGHTED[1:]:
        assert float(f(data, log_ratio, **options).value) == pytest.approx(expected[f.__name__], rel=1e-12)
    for f in CORRECTED[:2]:
        assert float(f(data, log_ratio, q, v, **options).value) == pytest.approx(expected[f.__name__], rel=1e-12)
    rest = dict(discount=0.8, counts=counts)
    assert float(weighted.naive(data, **rest).value) == pytest.approx(expected["naive"])
    assert float(corrected.direct_method(data, v, counts=counts).value) == pytest.approx(expected["direct_method"])


def test_corrections_of_nothing_and_on_policy():
    data, log_ratio, q, v = simulated()
    zero = np.zeros_like(q)
    for corrected_form, plain in ((CORRECTED[0], weighted.pdis), (CORRECTED[1], weighted.cwpdis)):
        found, expected = (
            corrected_form(data, log_ratio, zero, zero, discount=0.9),
            plain(data, log_ratio, discount=0.9),
        )
        for name in ("value", "standard_error"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)
    on_policy = [float(f(data, zero, discount=0.9).value) for f in WEIGHTED]
    np.testing.assert_allclose(on_policy[:4], on_policy[0], rtol=1e-12)
    # a perfect Q of a deterministic process leaves nothing to correct
    rewards = np.where(data.mask, data.rewards, 0.0)
    ahead = np.zeros_like(rewards)
    for t in range(5, -1, -1):
        ahead[:, t] = rewards[:, t] + 0.9 * (ahead[:, t + 1] if t < 5 else 0.0)
    # v_t = q_t makes the sum telescope whatever the weights
    found = corrected.doubly_robust(data, log_ratio, ahead, ahead, discount=0.9)
    assert float(found.value) == pytest.approx(ahead[:, 0].mean())


@pytest.mark.parametrize(
    "estimator",
    [
        *(pytest.param(f, marks=pytest.mark.long) for f in (*WEIGHTED[:3], CORRECTED[0])),
        *(weighted.wis, weighted.cwpdis, corrected.weighted_doubly_robust),
    ],
)
def test_standard_error_is_the_jackknifes_limit(estimator):
    """Against the jackknife, with as many copies of every trajectory that leaving one out is infinitesimal."""
    data, *columns = simulated(n=12)
    columns = columns if estimator in CORRECTED else columns[:1]
    copies, n = 2000.0, 12

    def value(counts):
        return float(estimator(data, *columns, discount=0.9, counts=counts).value)

    counts = np.full(n, copies)
    whole = value(counts)
    influence = np.array([n * copies * (whole - value(counts - np.eye(n)[i])) for i in range(n)])
    expected = np.sqrt(np.sum((influence - influence.mean()) ** 2) / (n * (n - 1)))
    assert float(estimator(data, *columns, discount=0.9).standard_error) == pytest.approx(expected, rel=1e-3)


def test_padding_and_multiplicities_change_nothing():
    data, log_ratio, q, v = simulated()
    settings = dict(discount=0.9, level=0.9)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), data)
    padded = jax.tree.map(lambda x: np.pad(x.astype(float), [(0, 5), (0, 3)], constant_values=np.nan), data)
    padded = padded._replace(mask=np.pad(data.mask, [(0, 5), (0, 3)]))
    wider = [np.pad(x, [(0, 5), (0, 3)], constant_values=np.nan) for x in (log_ratio, q, v)]
    counts = np.pad(np.ones(40), (0, 5))
    for f in (weighted.cwpdis, corrected.weighted_doubly_robust):
        count = 1 if f in WEIGHTED else 3
        columns = (log_ratio, q, v)[:count]
        doubled = f(twice, *(np.concatenate([x, x]) for x in columns), **settings)
        for other in (f(data, *columns, counts=np.full(40, 2.0), **settings), doubled):
            np.testing.assert_allclose(other.value, doubled.value, rtol=1e-9)
            np.testing.assert_allclose(other.lower, doubled.lower, rtol=1e-9)
        plain, other = f(data, *columns, **settings), f(padded, *wider[:count], counts=counts, **settings)
        np.testing.assert_allclose(other.value, plain.value, rtol=1e-12)
        np.testing.assert_allclose(other.upper, plain.upper, rtol=1e-9)
        np.testing.assert_allclose(other.effective_sample_size, plain.effective_sample_size, rtol=1e-12)


def test_bootstrap_computes_every_resample_anew():
    data, log_ratio, *_ = simulated()
    found = weighted.wis(data, log_ratio, discount=0.9, level=0.9, interval="bootstrap", resamples=4000)
    random, draws = np.random.default_rng(0), []
    gamma = 0.9 ** np.arange(6)
    returns = np.sum(np.where(data.mask, data.rewards, 0.0) * gamma, axis=1)
    weights = np.exp(np.sum(np.where(data.mask, log_ratio, 0.0), axis=1))
    for _ in range(4000):
        rows = random.integers(0, 40, 40)
        draws.append(weights[rows] @ returns[rows] / weights[rows].sum())
    expected = np.quantile(draws, [0.05, 0.95])
    np.testing.assert_allclose([found.lower, found.upper], expected, atol=0.1 * np.ptp(expected))
    assert float(found.standard_error) == pytest.approx(np.std(draws), rel=0.15)


def test_long_horizons_do_not_overflow():
    """The weights are e^(+-3,000): ratios of sums are exact, sums are cut, and nothing is NaN."""
    n, horizon = 4, 1000
    log_ratio = np.tile(np.array([3.0, 2.9, -3.0, -np.inf])[:, None], horizon)
    mask = np.ones((n, horizon), bool)
    data = Trajectories(
        None, None, np.arange(4.0)[:, None] + 0 * log_ratio.clip(-1, 1), 0 * mask, mask, ~mask, ~mask, None
    )
    assert float(weighted.wis(data, log_ratio).value) == pytest.approx(0.0, abs=1e-30)
    assert float(weighted.cwpdis(data, -log_ratio.clip(-9)).value) == pytest.approx(3000.0, rel=1e-3)
    zeros = np.zeros((n, horizon))
    assert float(corrected.weighted_doubly_robust(data, log_ratio, zeros, zeros).value) == pytest.approx(0.0, abs=100.0)
    cut = weighted.trajectory_is(data, log_ratio)
    assert np.isfinite([float(cut.value), float(cut.standard_error)]).all()
    assert float(cut.diagnostics["largest_log_weight"]) == pytest.approx(3000.0)


def test_what_weights_tell():
    """Every diagnostic by hand, of trajectories that count several times or not at all."""
    data, log_ratio, *_ = simulated()
    random = np.random.default_rng(2)
    counts = random.integers(0, 3, 40).astype(float)
    weights = np.exp(np.sum(np.where(data.mask, log_ratio, 0.0), axis=1))
    counts[np.argmax(weights)], estimated = 0.0, random.random(40) < 0.5
    total, kept, lengths = counts.sum(), counts > 0, data.mask.sum(axis=1)
    mean, whole = counts @ weights / total, counts @ weights
    error = np.sqrt(counts @ (weights - mean) ** 2 / (total * (total - 1)))
    excess = np.sum(np.where(data.mask, np.exp(log_ratio) - 1.0, 0.0), axis=1)
    excess_mean = counts @ excess / total
    excess_error = np.sqrt(counts @ (excess - excess_mean) ** 2 / (total * (total - 1)))
    expected = {
        "rows": total,
        "mean_weight": mean,
        "mean_weight_z": (mean - 1) / error,
        "largest_share": weights[kept].max() / whole,
        "largest_log_weight": np.log(weights[kept].max()),
        "mean_ratio": 1.0 + excess_mean / (counts @ lengths / total),
        "mean_ratio_z": excess_mean / excess_error,
        "no_overlap": 0.0,
        "cut_share": 0.0,
        "horizon_exit": 1.0,
        "mean_length": counts @ lengths / total,
        "behaviour_estimated": counts @ estimated / total,
        "finite": 1.0,
    }
    effective = whole**2 / (counts @ weights**2)
    for below in (0.0, 1.0):
        found = weighted.wis(
            data._replace(behaviour_estimated=estimated), log_ratio, counts=counts, floor=effective + 0.2 * below - 0.1
        )
        assert float(found.effective_sample_size) == pytest.approx(effective, rel=1e-12)
        assert set(found.diagnostics) == {*expected, "below_floor"}
        for name, value in (expected | {"below_floor": below}).items():
            assert float(found.diagnostics[name]) == pytest.approx(value, rel=1e-12), name


def test_weights_that_are_all_zero():
    data, log_ratio, *_ = simulated()
    nothing = np.full_like(log_ratio, -np.inf)
    assert float(weighted.pdis(data, nothing, level=0.95).value) == 0.0
    found = weighted.wis(data, nothing, level=0.95)
    assert np.isnan(float(found.value))
    assert (float(found.lower), float(found.upper), float(found.diagnostics["finite"])) == (-np.inf, np.inf, 0.0)
    assert float(weighted.cwpdis(data, nothing).value) == 0.0


def test_magic_mixes_from_the_direct_method_to_the_corrected_one():
    data, log_ratio, q, v = simulated(n=200)
    ends = [float(corrected.direct_method(data, v).value), float(CORRECTED[1](data, log_ratio, q, v).value)]
    found = magic(data, log_ratio, q, v, lengths=2)
    share = float(found.diagnostics["direct_share"])
    assert share + float(found.diagnostics["corrected_share"]) == pytest.approx(1.0)
    assert float(found.value) == pytest.approx(share * ends[0] + (1 - share) * ends[1])
    # a constant v far off is trusted little, though it does not vary; one at the truth is all that is taken
    far = magic(data, log_ratio, q, np.full_like(v, 90.0), lengths=2)
    assert float(far.diagnostics["direct_share"]) < 0.01
    rewards = np.where(data.mask, data.rewards, 0.0)
    truth = float(CORRECTED[1](data, log_ratio, 0 * q, 0 * v).value)
    first = np.where(np.arange(6) == 0, truth, 0.0) + 0 * rewards
    near = magic(data, log_ratio, first, first, lengths=2)
    assert float(near.diagnostics["direct_share"]) > 0.99


@pytest.mark.parametrize(("interval", "sides"), [("student_t", "two"), ("bootstrap", "lower"), ("student_t", "upper")])
def test_magics_interval_is_that_of_the_corrected_end_and_holds_the_value(interval, sides):
    """The direct method varies not at all here: its own interval would be a point, whatever Q is."""
    data, log_ratio, q, v = simulated(n=200)
    options = dict(level=0.9, interval=interval, sides=sides, resamples=200)
    ends = corrected.weighted_doubly_robust(data, log_ratio, 0 * q, np.full_like(v, 1.0), **options)
    outside = float(ends.value) + np.array([0.0, -40.0, 40.0])
    for constant in outside:
        first = np.where(np.arange(6) == 0, constant, 0.0) + 0 * q
        found = magic(data, log_ratio, first, first, lengths=2, **options)
        wide = corrected.weighted_doubly_robust(data, log_ratio, first, first, **options)
        share = float(found.diagnostics["direct_share"])
        value = share * constant + (1 - share) * float(wide.value)
        assert float(found.value) == pytest.approx(value)
        np.testing.assert_allclose(found.lower, min(float(wide.lower), value), rtol=1e-9)
        np.testing.assert_allclose(found.upper, max(float(wide.upper), value), rtol=1e-9)
        assert float(found.standard_error) == pytest.approx((1 - share) * float(wide.standard_error), rel=1e-6)


def test_magics_interval_holds_a_value_outside_the_corrected_one(monkeypatch):
    data, log_ratio, q, v = simulated(n=200)
    wide = corrected.weighted_doubly_robust(data, log_ratio, q, v, level=0.9)
    first = float(corrected.direct_method(data, v).value)
    assert not float(wide.lower) < first < float(wide.upper)
    monkeypatch.setattr(magic_module, "_mixture", lambda *arguments: jnp.array([1.0, 0.0]))
    jax.clear_caches()
    found = magic(data, log_ratio, q, v, lengths=2, level=0.9)
    jax.clear_caches()
    ends = np.sort([float(wide.lower), float(wide.upper), first])[[0, 2]]
    assert float(found.value) == pytest.approx(first)
    np.testing.assert_allclose([found.lower, found.upper], ends, rtol=1e-9)


def test_magic_is_the_written_out_programme():
    """g, Omega and b by loops, with the interval that the bootstrap gave, and the quadratic programme by scipy."""
    from scipy.optimize import minimize

    from jaxrl_off.ops.intervals import percentile_interval

    data, log_ratio, q, v = simulated(n=60)
    n, horizon = data.rewards.shape
    mask = data.mask
    r, q0, v0 = (np.where(mask, x, 0.0) for x in (data.rewards, q, v))
    weights = np.exp(np.cumsum(np.where(mask, log_ratio, 0.0), axis=1))
    gamma = 0.9 ** np.arange(horizon)

    def returns(counts):
        total = (counts[:, None] * weights).sum(0)
        u = counts[:, None] * weights / total
        before = np.concatenate([(counts / counts.sum())[:, None], u[:, :-1]], axis=1)
        following = (before * v0).sum(0) * gamma
        steps = (u * (r - q0)).sum(0) * gamma + following
        return np.array([steps[:j].sum() + (following[j] if j < horizon else 0.0) for j in range(horizon + 1)])

    g, ones = returns(np.ones(n)), np.ones(n)
    influence = np.array([(returns(ones + 1e-5 * row) - returns(ones - 1e-5 * row)) * n / 2e-5 for row in np.eye(n)])
    omega = (influence - influence.mean(0)).T @ (influence - influence.mean(0)) / (n * (n - 1))
    with jax.enable_x64(True):
        weights_, r_, q_, v_ = (jnp.asarray(x) for x in (weights, r, q0, v0))

        def last(counts):
            total, plain = counts @ weights_, jnp.sum(counts)
            errors = gamma * (counts @ (weights_ * (r_ - q_))) / total
            before = jnp.concatenate([jnp.ones((n, 1)), weights_[:, :-1]], axis=1)
            below = jnp.concatenate([plain[None], total[:-1]])
            return jnp.sum(errors + gamma * (counts @ (before * v_)) / below)

        low, high = percentile_interval(jax.random.key(0), last, jnp.ones(n), resamples=1000, level=0.9)
    b = g - np.clip(g, low, high)
    matrix = omega + np.outer(b, b)
    bounds, constraint = [(0, 1)] * len(g), {"type": "eq", "fun": lambda x: x.sum() - 1}
    best = minimize(
        lambda x: 1e3 * x @ matrix @ x, ones[: len(g)] / len(g), bounds=bounds, constraints=constraint, tol=1e-14
    )
    found = magic(data, log_ratio, q, v, discount=0.9)
    assert float(found.value) == pytest.approx(best.x @ g, rel=1e-3)


def test_double_reinforcement_learning():
    data, log_ratio, q, v = simulated()
    weights = np.exp(np.cumsum(np.where(data.mask, log_ratio, 0.0), axis=1))
    found = corrected.double_reinforcement_learning(data, weights, q, v, discount=0.9)
    expected = corrected.doubly_robust(data, log_ratio, q, v, discount=0.9)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-12)
    with pytest.raises(ValueError, match="not be negative"):
        corrected.double_reinforcement_learning(data, -weights, q, v)


def test_cross_fitting_never_sees_the_row_it_predicts():
    counts = np.ones(11)

    def fit(counts):
        return {"seen": np.tile(counts, (11, 1)), "sum": np.full(11, counts.sum())}

    made = corrected.cross_fitted(fit, counts, folds=3)
    assert np.all(np.diag(made["seen"]) == 0.0)
    assert sorted(set(np.asarray(made["sum"]).tolist())) == [7.0, 8.0]
    with pytest.raises(ValueError, match="between 2 and"):
        corrected.cross_fitted(fit, counts, folds=1)


def test_empirical_likelihood_takes_trajectories_for_decisions():
    data, log_ratio, *_ = simulated()
    weights = np.exp(np.sum(np.where(data.mask, log_ratio, 0.0), axis=1))
    returns = np.sum(np.where(data.mask, data.rewards, 0.0), axis=1)
    ranges = dict(weight_max=float(weights.max()) + 1.0, return_range=(-20.0, 20.0))
    found = weighted.empirical_likelihood(data, log_ratio, level=0.9, **ranges)
    expected = bandit.empirical_likelihood(
        weights, returns, weight_range=(0.0, ranges["weight_max"]), reward_range=(-20.0, 20.0), level=0.9
    )
    np.testing.assert_allclose([found.value, found.lower], [expected.value, expected.lower], rtol=1e-9)
    effective = float(found.effective_sample_size)
    for floor, below in ((effective - 0.1, 0.0), (effective + 0.1, 1.0)):
        found = weighted.empirical_likelihood(data, log_ratio, floor=floor, **ranges)
        assert float(found.diagnostics["below_floor"]) == below


@pytest.mark.parametrize("estimator", [CORRECTED[1], pytest.param(magic, marks=pytest.mark.long)])
def test_transformations(estimator):
    """One compiled program for data of one shape; vmap over data sets; gradients; and no silent float32."""
    sets = [simulated(seed) for seed in range(3)]
    data, log_ratio, q, v = jax.tree.map(lambda *x: np.stack(x), *sets)

    def both(data, log_ratio, q, v):
        settings = dict(discount=0.9, level=0.95)
        return weighted.cwpdis(data, log_ratio, **settings), estimator(data, log_ratio, q, v, **settings)

    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(both))(*jax.tree.map(jnp.asarray, (data, log_ratio, q, v)))
        slope = jax.grad(lambda r: weighted.wis(sets[0][0]._replace(rewards=r), sets[0][1]).value)(
            jnp.asarray(sets[0][0].rewards)
        )
    for i, one in enumerate(sets):
        for found, expected in zip(together, both(*one), strict=True):
            assert float(found.value[i]) == pytest.approx(float(expected.value), rel=1e-9)
            assert float(found.lower[i]) == pytest.approx(float(expected.lower), rel=1e-6)
    weights = np.exp(np.sum(np.where(sets[0][0].mask, sets[0][1], 0.0), axis=1))
    np.testing.assert_allclose(slope, sets[0][0].mask * (weights / weights.sum())[:, None], rtol=1e-9)
    with pytest.raises(ValueError, match="enable_x64"):
        jax.vmap(both)(data, log_ratio, q, v)
    before = weighted._run._cache_size()
    weighted.cwpdis(sets[1][0], sets[1][1], discount=0.7, level=0.95)
    assert weighted._run._cache_size() <= before + 1
    before = weighted._run._cache_size()
    weighted.cwpdis(sets[2][0], sets[2][1], discount=0.5, level=0.95)
    assert weighted._run._cache_size() == before


@pytest.mark.parametrize(
    ("interval", "sides"),
    [("student_t", "two"), ("student_t", "upper"), ("normal", "lower"), ("bootstrap", "two"), ("bca", "upper")],
)
def test_intervals(interval, sides):
    data, log_ratio, *_ = simulated(n=80)
    options = dict(level=0.9, sides=sides, interval=interval, resamples=300)
    found = weighted.cwpdis(data, log_ratio, **options)
    lower, value, upper = (float(x) for x in (found.lower, found.value, found.upper))
    assert lower < value < upper
    error = float(found.standard_error)
    wide = 1.7 if sides == "two" else 1.3
    assert lower == -np.inf if sides == "upper" else value - lower == pytest.approx(wide * error, rel=0.5)
    assert upper == np.inf if sides == "lower" else upper - value == pytest.approx(wide * error, rel=0.5)


@pytest.mark.long
def test_coverage_of_a_long_log():
    """Student t on 300 repetitions of 200 trajectories of a two-armed chain, whose values are known."""
    repetitions, n, horizon, chance = 300, 200, 3, 0.8
    random = np.random.default_rng(5)
    actions = random.random((repetitions, n, horizon)) < 0.5
    rewards = actions + random.normal(size=actions.shape)
    target = np.where(actions, np.log(chance), np.log(1 - chance))
    mask = np.ones(actions.shape, bool)
    log_half = np.full(actions.shape, np.log(0.5))
    data = Trajectories(None, actions, rewards, log_half, mask, ~mask, ~mask, None)
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (data, target))
        for f in (weighted.pdis, weighted.wis, weighted.cwpdis):
            found = jax.vmap(lambda d, t, f=f: f(d, t, level=0.9))(*arguments)
            covered = np.mean((found.lower <= horizon * chance) & (horizon * chance <= found.upper))
            # three standard errors of 300 draws; self-normalisation costs some coverage
            assert 0.9 - 0.06 < covered < 0.9 + 0.06
            assert np.mean(found.standard_error) == pytest.approx(float(np.std(found.value)), rel=0.15)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (dict(behaviour_log_prob=None), {}, "clone_behaviour"),
        (dict(rewards=np.ones((2, 3))), {}, "both be"),
        (dict(mask=np.array([[True, False, True]] * 4)), {}, "without a gap|has a gap"),
        (dict(mask=np.zeros((4, 3), bool)), {}, "without a gap|has a gap"),
        (dict(rewards=np.full((4, 3), np.nan)), {}, "[Ss]tep 0 of trajectory 0"),
        (dict(behaviour_log_prob=np.full((4, 3), -np.inf)), {}, "cannot have probability 0"),
        ({}, dict(discount=1.5), "discount must be in"),
        ({}, dict(counts=np.zeros(4)), "at least one must be above 0"),
        ({}, dict(counts=np.ones(3)), "there are 4"),
        ({}, dict(level=95.0), "level must be between"),
        ({}, dict(interval="gaussian"), "interval must be one of"),
        ({}, dict(window=-1), "window must be"),
        ({}, dict(clip=0.0), "clip must be positive"),
        ({}, dict(resamples=0), "resamples"),
        ({}, dict(floor=-1.0), "floor must be"),
        ({}, dict(discount=np.full(3, 0.9)), "one number for all"),
        ({}, dict(counts=np.full(4, 0.5), level=0.9, interval="bootstrap"), "whole numbers for them; row 0 has 0.5"),
        ({}, dict(counts=np.full(4, 0.5), level=0.9, interval="bca"), "Take interval='student_t'"),
    ],
)
def test_what_cannot_be_meant(change, options, message):
    mask = np.ones((4, 3), bool)
    data = Trajectories(None, None, np.ones((4, 3)), np.zeros((4, 3)), mask, ~mask, ~mask, None)._replace(**change)
    with pytest.raises(ValueError, match=message):
        weighted.pdis(data, np.zeros((4, 3)), **options)


def test_columns_that_do_not_fit():
    data, log_ratio, q, v = simulated()
    with pytest.raises(ValueError, match="every step needs one"):
        corrected.doubly_robust(data, log_ratio, q[:, :2], v)
    with pytest.raises(ValueError, match="must be finite"):
        corrected.doubly_robust(data, log_ratio, np.nan * q, v)
    with pytest.raises(ValueError, match="lengths"):
        magic(data, log_ratio, q, v, lengths=1)
    with pytest.raises(ValueError, match="whole numbers"):
        magic(data, log_ratio, q, v, counts=np.full(40, 0.5))
    with pytest.raises(ValueError, match="target_log_prob has shape"):
        weighted.wis(data, log_ratio[:, :2])
    assert settings_of().interval == "student_t"


def test_unknown_options_are_refused_with_all_that_there_are():
    data, log_ratio, q, v = simulated()
    with pytest.raises(
        TypeError, match="pdis has no option 'size'. Did you mean 'sides'.* are discount, counts, window, clip, .*floor"
    ):
        weighted.pdis(data, log_ratio, size=3)
    with pytest.raises(TypeError, match="pdis has no option 'gamma'.*discount"):
        weighted.pdis(data, log_ratio, gamma=0.9)
    for f, columns, option in (
        (weighted.naive, (), "window"),
        (corrected.direct_method, (v,), "discount"),
        (corrected.double_reinforcement_learning, (q, q, v), "clip"),
    ):
        with pytest.raises(TypeError, match=f"has no option '{option}'"):
            f(data, *columns, **{option: 1})
    for f in (*WEIGHTED, *CORRECTED, corrected.direct_method, corrected.double_reinforcement_learning):
        parameters = inspect.signature(f).parameters.values()
        assert not any(x.kind == x.VAR_KEYWORD for x in parameters)


def test_no_overlap_is_no_certainty():
    """The behaviour policy always did what the target does one time in 500: nothing is known of the target."""
    n, horizon = 60, 5
    mask = np.ones((n, horizon), bool)
    rewards = np.random.default_rng(0).normal(1.0, 0.1, mask.shape)
    data = Trajectories(None, None, rewards, np.zeros(mask.shape), mask, ~mask, ~mask, None)
    rare, never = np.full(mask.shape, np.log(1 / 500)), np.full(mask.shape, -np.inf)
    q = np.ones(mask.shape)
    for log_prob, ratio in ((rare, 1 / 500), (never, 0.0)):
        for f in (weighted.wis, corrected.weighted_doubly_robust):
            columns = (q, q) if f in CORRECTED else ()
            found = f(data, log_prob, *columns, level=0.95)
            assert (float(found.lower), float(found.upper)) == (-np.inf, np.inf), f.__name__
            told = {name: float(x) for name, x in found.diagnostics.items()}
            assert (told["mean_weight_z"], told["mean_ratio_z"], told["no_overlap"]) == (-np.inf, -np.inf, 1.0)
            assert told["mean_ratio"] == pytest.approx(ratio)
        # what is known of rewards is what is known of the value
        ranged = dict(level=0.95, reward_range=(0.0, 2.0), weight_max=np.inf, sides="lower", interval="anderson")
        assert float(weighted.pdis(data, log_prob, **ranged).lower) == 0.0
        one = weighted.trajectory_is(data, log_prob, level=0.95, return_range=(-1.0, 12.0))
        assert (float(one.lower), float(one.upper)) == (-1.0, 12.0)
        # weights that are made to have mean 1 hide nothing
        states = data._replace(observations=np.zeros(mask.shape, np.int32), actions=np.zeros(mask.shape, np.int32))
        found = marginalised_is(states, np.ones((1, 1)), target_log_prob=log_prob, level=0.95)
        assert (float(found.lower), float(found.upper)) == (-np.inf, np.inf)
    # weights that vary, and have mean 1: nothing is missing
    log_prob = np.where(np.random.default_rng(1).random(mask.shape) < 0.5, np.log(1.4), np.log(0.6))
    found = weighted.wis(data, log_prob, level=0.95)
    assert float(found.diagnostics["no_overlap"]) == 0.0
    assert np.isfinite(float(found.lower))
    few = jax.tree.map(lambda x: x[:2], (data, log_prob))
    assert np.isnan(float(weighted.wis(*few).diagnostics["mean_weight_z"]))  # two rows have no error to speak of


def test_probabilities_and_masked_arrays_are_refused():
    """Both gave numbers, of something else."""
    mask = np.ones((4, 3), bool)
    data = Trajectories(None, np.ones((4, 3), int), np.ones((4, 3)), np.full((4, 3), -1.0), mask, ~mask, ~mask, None)
    with pytest.raises(
        ValueError, match="target_log_prob is at least 0 at every step, up to 0.3.*pass their logarithms"
    ):
        weighted.pdis(data, np.full((4, 3), 0.3))
    with pytest.raises(ValueError, match="behaviour_log_prob is at least 0"):
        weighted.pdis(data._replace(behaviour_log_prob=np.full((4, 3), 0.5)), np.full((4, 3), -0.7))
    # densities may be above 1
    dense = data._replace(actions=np.ones((4, 3, 1)), behaviour_log_prob=np.full((4, 3), 0.5))
    assert float(weighted.pdis(dense, np.full((4, 3), 0.5)).value) == 3.0
    rewards = np.ma.masked_equal(np.arange(12.0).reshape(4, 3), 5.0)
    with pytest.raises(ValueError, match="rewards is a NumPy masked array"):
        weighted.pdis(data._replace(rewards=rewards), np.full((4, 3), -0.7))
