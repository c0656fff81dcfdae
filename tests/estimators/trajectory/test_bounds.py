"""High-confidence bounds on trajectories: ranges against all trajectories that there are, and coverage by simulation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.estimators.trajectory import bounds
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.ops import intervals
from jaxrl_off.types import Trajectories

HORIZON, DISCOUNT = 3, 0.9
BEHAVIOUR, TARGET = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.6, 0.3])
REWARDS = np.array([0.2, 1.0, 0.0])
# action 2 ends a trajectory; returns are within [0, 1 + 0.9 + 0.81]
RETURNS = (0.0, 1.0 + DISCOUNT + DISCOUNT**2)
LARGEST = (TARGET / BEHAVIOUR).max()
Q = np.array([0.3, 0.8, 0.1])
V = TARGET @ Q


def everything():
    """All trajectories of the process, padded, and their probabilities under the behaviour policy."""
    rows, chances = [], []
    for actions in itertools.product(range(3), repeat=HORIZON):
        length = next((t + 1 for t, action in enumerate(actions) if action == 2), HORIZON)
        if any(actions[length:]):
            continue
        rows.append((actions, length))
        chances.append(np.prod(BEHAVIOUR[list(actions[:length])]))
    actions, lengths = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    return trajectories(actions, lengths), np.array(chances)


def trajectories(actions, lengths):
    mask = np.arange(HORIZON) < lengths[..., None]
    ends = mask & (actions == 2)
    log_prob = np.where(mask, np.log(BEHAVIOUR)[actions], np.nan)
    return Trajectories(None, actions, REWARDS[actions], log_prob, mask, ends, ends & False, None)


def sampled(repetitions, n, seed=0):
    random = np.random.default_rng(seed)
    actions = random.choice(3, p=BEHAVIOUR, size=(repetitions, n, HORIZON))
    stops = np.where((actions == 2).any(axis=-1), np.argmax(actions == 2, axis=-1) + 1, HORIZON)
    return trajectories(actions, stops)


def target(data):
    return np.log(TARGET)[data.actions]


def truth():
    """By `V_t = E[r] + gamma P(goes on) V_{t+1}`."""
    value = 0.0
    for _ in range(HORIZON):
        value = TARGET @ REWARDS + DISCOUNT * (1.0 - TARGET[2]) * value
    return value


POWERS = LARGEST ** np.arange(1, HORIZON + 1)


def corrected_by_table(data, log_prob, **keywords):
    with jax.enable_x64(True):
        q = jnp.asarray(Q)[data.actions]
        return corrected.doubly_robust(data, log_prob, q, jnp.full_like(q, V), **keywords)


KNOWN = {
    "trajectory_is": (weighted.trajectory_is, dict(return_range=RETURNS, weight_max=POWERS)),
    "pdis": (weighted.pdis, dict(reward_range=(0.0, 1.0), weight_max=POWERS)),
    "doubly_robust": (
        corrected_by_table,
        dict(value_range=RETURNS, weight_max=POWERS),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_ranges_hold_for_all_trajectories(name):
    """The widest bounds, of one trajectory, are the range; every trajectory's term is in it, and their mean is the truth."""
    method, known = KNOWN[name]
    data, chances = everything()
    terms = []
    for row in range(len(chances)):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], data)
        terms.append(float(method(one, target(one), discount=DISCOUNT).value))
    # a level so high that nothing but the range is left, and a window that forbids to cut it to what the value can be
    options = dict(level=1.0 - 1e-12, interval="hoeffding", window=HORIZON, discount=DISCOUNT)
    found = method(data, target(data), counts=1e-3 * chances, **known, **options)
    low, high = float(found.lower), float(found.upper)
    assert low <= min(terms)
    assert max(terms) <= high
    assert chances @ terms == pytest.approx(truth(), rel=1e-12)
    by_hand = {
        "trajectory_is": (0.0, POWERS[-1] * RETURNS[1]),
        "pdis": (0.0, POWERS @ DISCOUNT ** np.arange(3)),
        "doubly_robust": np.array([-1, 1]) * RETURNS[1] * (POWERS @ DISCOUNT ** np.arange(3)) + RETURNS,
    }
    np.testing.assert_allclose((low, high), by_hand[name], rtol=1e-12)
    cut = method(data, target(data), counts=1e-3 * chances, **known, **options | dict(window=None))
    np.testing.assert_allclose((cut.lower, cut.upper), RETURNS, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["pdis", *(pytest.param(x, marks=pytest.mark.long) for x in ("trajectory_is", "doubly_robust"))]
)
def test_bounds_cover(name):
    """At least as often as they say, on 400 data sets of 60 trajectories; the sharper ones are narrower."""
    method, known = KNOWN[name]
    data, value, widths = sampled(400, 60), truth(), {}
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (data, target(data)))
        for kind in bounds.BOUNDED:
            options = dict(discount=DISCOUNT, level=0.9, interval=kind) | known
            found = jax.jit(jax.vmap(lambda d, t, options=options: method(d, t, **options)))(*arguments)
            covered = float(np.mean((found.lower <= value) & (value <= found.upper)))
            assert covered >= 0.9 - 3.0 * np.sqrt(0.09 / 400)
            widths[kind] = float(np.mean(found.upper - found.lower))
    # doubly robust terms may be so far apart that nothing but the range of the value is left
    assert widths["betting"] < widths["hoeffding"] or name == "doubly_robust"


@pytest.mark.parametrize("name", ["trajectory_is", "pdis"])
def test_lower_bounds_that_need_no_largest_weight(name):
    method, known = KNOWN[name]
    data, value = sampled(300, 200, seed=1), truth()
    known = {range_name: (0.0, np.inf) for range_name in known if range_name != "weight_max"}
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (data, target(data)))
        for kind, truncation in (("anderson", None), ("empirical_bernstein", 3.0), ("hoeffding", 3.0)):
            options = dict(discount=DISCOUNT, level=0.9, sides="lower", interval=kind, truncation=truncation) | known
            found = jax.jit(jax.vmap(lambda d, t, options=options: method(d, t, **options)))(*arguments)
            assert np.mean(found.lower <= value) >= 0.9
            assert np.all(found.upper == np.inf)
            assert np.mean(found.lower) > 0.05


def test_one_step_is_a_bandit():
    random = np.random.default_rng(3)
    actions = random.choice(3, p=BEHAVIOUR, size=(50, 1))
    mask, rewards = np.ones((50, 1), bool), random.random((50, 1))
    data = Trajectories(None, actions, rewards, np.log(BEHAVIOUR)[actions], mask, mask, ~mask, None)
    weights = (TARGET / BEHAVIOUR)[actions][:, 0]
    shared = dict(level=0.9, sides="two")
    for kind in ("hoeffding", "empirical_bernstein", "betting"):
        expected = bandit.ips(
            weights, rewards[:, 0], weight_range=(0.0, 4.0), interval=kind, ordered=kind == "betting", **shared
        )
        for method, name in ((weighted.trajectory_is, "return_range"), (weighted.pdis, "reward_range")):
            known = {name: (0.0, 1.0), "weight_max": 4.0, "ordered": kind == "betting"}
            found = method(data, target(data), interval=kind, **known, **shared)
            np.testing.assert_allclose((found.lower, found.upper), (expected.lower, expected.upper), rtol=1e-9)
    columns = dict(predicted=Q[actions[:, 0]], predicted_target=np.full(50, V))
    expected = bandit.doubly_robust(
        weights, rewards[:, 0], weight_range=(0.0, 4.0), interval="hoeffding", **columns, **shared
    )
    found = KNOWN["doubly_robust"][0](
        data, target(data), interval="hoeffding", weight_max=4.0, value_range=(0.0, 1.0), **shared
    )
    np.testing.assert_allclose((found.lower, found.upper), (expected.lower, expected.upper), rtol=1e-9)
    expected = bandit.empirical_likelihood(weights, rewards[:, 0], weight_range=(0.0, 4.0), **shared)
    found = weighted.empirical_likelihood(data, target(data), return_range=(0.0, 1.0), weight_max=4.0, **shared)
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-9)


def test_clip_gives_a_largest_weight():
    data = jax.tree.map(lambda x: x[0], sampled(1, 40))
    options = dict(discount=DISCOUNT, clip=1.2, level=0.9, interval="hoeffding")
    found = weighted.pdis(data, target(data), reward_range=(0.0, 1.0), **options)
    largest = 1.2 ** np.arange(1, 4)
    same = weighted.pdis(data, target(data), reward_range=(0.0, 1.0), weight_max=np.inf, **options)
    np.testing.assert_allclose((found.lower, found.upper), (same.lower, same.upper), rtol=1e-12)
    width = DISCOUNT ** np.arange(3) @ largest * np.sqrt(np.log(2 / 0.1) / 80)
    assert float(found.upper - found.value) == pytest.approx(width, rel=1e-12)
    windowed = weighted.pdis(data, target(data), reward_range=(0.0, 1.0), window=2, **options)
    width = DISCOUNT ** np.arange(3) @ 1.2 ** np.array([1, 2, 2]) * np.sqrt(np.log(2 / 0.1) / 80)
    assert float(windowed.upper - windowed.value) == pytest.approx(width, rel=1e-12)


def test_ranges_may_be_arrays():
    data = jax.tree.map(lambda x: x[0], sampled(1, 40))
    for method, known in KNOWN.values():
        options = dict(discount=DISCOUNT, level=0.9, interval="hoeffding")
        as_array = {name: np.asarray(value) for name, value in known.items()}
        found, expected = (method(data, target(data), **options, **given) for given in (as_array, known))
        assert float(found.lower) == float(expected.lower)


def test_truncated_means_are_of_truncated_terms():
    data = jax.tree.map(lambda x: x[0], sampled(1, 40))
    found = weighted.trajectory_is(data, target(data), discount=DISCOUNT, truncation=1.5)
    ratios = np.where(data.mask, (TARGET / BEHAVIOUR)[data.actions], 1.0)
    returns = np.sum(np.where(data.mask, data.rewards, 0.0) * DISCOUNT ** np.arange(3), axis=1)
    assert float(found.value) == pytest.approx(np.minimum(ratios.prod(axis=1) * returns, 1.5).mean(), rel=1e-12)


def test_anderson_against_its_definition():
    """`b - integral of min(1, F + epsilon)` on a fine grid; multiplicities are copies."""
    values, counts, (low, high), level = (
        np.array([0.9, 0.1, 7.0, 0.4]),
        np.array([3.0, 2.0, 0.0, 6.0]),
        (-0.2, 1.5),
        0.8,
    )
    grid = np.linspace(low, high, 400_001)
    share = np.sum(counts[:, None] * (values[:, None] <= grid), axis=0) / 11.0
    shift = np.sqrt(np.log(2.0 / 0.2) / 22.0)
    expected = [high - np.trapezoid(f, grid) for f in (np.minimum(share + shift, 1.0), np.maximum(share - shift, 0.0))]
    with jax.enable_x64(True):
        given = dict(minimum=low, maximum=high, level=level)
        found = intervals.anderson_interval(jnp.asarray(values), jnp.asarray(counts), **given)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        copies = intervals.anderson_interval(jnp.asarray(np.repeat(values, counts.astype(int))), **given)
        np.testing.assert_allclose(copies, found, rtol=1e-12)
        lower = intervals.anderson_interval(jnp.asarray(values), minimum=0.0, maximum=jnp.inf, sides="lower")
        assert 0.0 < float(lower.lower) < 2.1
        assert np.isinf(lower.upper)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("trajectory_is", dict(), "return_range was not given"),
        ("pdis", dict(weight_max=30.0), "reward_range was not given"),
        ("trajectory_is", dict(return_range=RETURNS), "weights have no largest"),
        ("trajectory_is", dict(return_range=RETURNS, weight_max=np.inf), "weights have no largest"),
        ("trajectory_is", dict(return_range=(0.0, np.inf), weight_max=30.0), "has no end"),
        ("pdis", dict(reward_range=(-1.0, 1.0), interval="anderson", sides="lower"), "goes below 0"),
        ("doubly_robust", dict(value_range=RETURNS, interval="anderson", sides="lower"), "Give weight_max"),
        ("trajectory_is", dict(return_range=RETURNS, truncation=1.0), 'sides must be "lower"'),
        ("trajectory_is", dict(return_range=RETURNS, truncation=-1.0, sides="lower"), "positive and finite"),
        ("trajectory_is", dict(return_range=RETURNS, weight_max=0.5), "at least 1"),
        ("trajectory_is", dict(return_range=RETURNS, weight_max=1.01), "weight_max is what weights can be"),
        ("pdis", dict(reward_range=(0.0, 1.0), weight_max=np.ones(5) * 9), "weight_max has shape"),
        ("pdis", dict(reward_range=(0.0, 0.5), weight_max=30.0), "reward_range is what can be"),
        ("pdis", dict(reward_range=(1.0, 0.5), weight_max=30.0), "low < high"),
        ("doubly_robust", dict(value_range=(0.35, 3.0), weight_max=30.0), "value_range is what can be"),
        ("doubly_robust", dict(value_range=(1.0, 0.0), weight_max=30.0), r"low < high, got \(1.0, 0.0\)"),
        ("pdis", dict(KNOWN["pdis"][1], interval="betting", counts=np.full(40, 2)), "counts must be 0 or 1"),
        ("wis", dict(), "for means of terms of known range"),
    ],
)
def test_what_has_no_bound(method, options, message):
    data = jax.tree.map(lambda x: x[0], sampled(1, 40))
    method = KNOWN[method][0] if method in KNOWN else getattr(weighted, method)
    with pytest.raises(ValueError, match=message):
        method(data, target(data), **dict(level=0.9, interval="hoeffding", discount=DISCOUNT) | options)


def test_betting_does_not_read_an_order_that_the_data_chose():
    """The defect: of rewards that stand in order the interval was [.083, .029], the lower bound above the upper one."""
    n = 400
    mask, rewards = np.ones((n, 1), bool), np.repeat([0.0, 1.0], n // 2)[:, None]
    options = dict(level=0.95, interval="betting", reward_range=(0.0, 1.0), weight_max=2.0)

    def interval(rewards, **more):
        data = Trajectories(None, None, rewards, np.zeros((n, 1)), mask, mask, ~mask, None)
        found = weighted.pdis(data, np.zeros((n, 1)), **options, **more)
        return float(found.lower), float(found.value), float(found.upper)

    found = [interval(rewards), interval(rewards[::-1]), interval(np.random.default_rng(0).permutation(rewards))]
    for lower, value, upper in found:
        assert value == 0.5
        assert 0.4 < lower < 0.5 < upper < 0.62
    np.testing.assert_allclose(np.diff([x[::2] for x in found])[:, 0], 0.14, atol=0.03)  # of one width
    assert interval(rewards, seed=1) != found[0]
    lower, _, upper = interval(rewards, ordered=True)
    assert lower <= upper
