"""Intervals never look more certain than the data are, and estimates say what they should not be trusted for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.estimators.warnings import warnings_of
from jaxrl_off.ops.confidence_sequences import bernstein_sequence, betting_interval

BETTING = dict(level=0.95, interval="betting", weight_range=(0.0, 2.0))


def ends(estimate):
    return float(estimate.lower), float(estimate.upper)


def test_sorted_rows_do_not_decide_what_betting_says():
    ones, rewards = np.ones(1000), np.repeat([0.0, 1.0], 500)
    ascending, descending = (bandit.ips(ones, x, **BETTING) for x in (rewards, rewards[::-1]))
    for estimate in (ascending, descending):
        assert float(estimate.lower) < 0.5 < float(estimate.upper)
        assert float(estimate.upper - estimate.lower) < 0.25
    widths = [float(x.upper - x.lower) for x in (ascending, descending)]
    assert widths[0] == pytest.approx(
        widths[1], rel=0.5
    )  # a permutation is drawn, and another one for them turned round
    assert ends(bandit.ips(ones, rewards, **BETTING)) == ends(ascending)
    assert ends(bandit.ips(ones, rewards, **BETTING, seed=1)) != ends(ascending)
    # sorted rows declared to be in the order of time contradict one mean: all that is left is the range
    assert ends(bandit.ips(ones, rewards, **BETTING, ordered=True)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="ordered=True is for interval='betting'"):
        bandit.ips(ones, rewards, level=0.95, ordered=True)


def test_bounds_never_cross():
    with jax.enable_x64(True):
        values = jnp.repeat(jnp.array([0.0, 1.0]), 500)
        betting = betting_interval(values, minimum=0.0, maximum=2.0)
        sequence = bernstein_sequence(values, minimum=0.0, maximum=1.0)
        assert (float(betting.lower), float(betting.upper)) == (0.0, 2.0)
        assert (sequence.lower <= sequence.upper).all()
        assert (float(sequence.lower[-1]), float(sequence.upper[-1])) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["ips", "snips"])
def test_no_overlap_is_no_certainty(name):
    estimate = getattr(bandit, name)(np.zeros(1000), np.ones(1000), level=0.95, reward_range=(-1.0, 2.0))
    assert ends(estimate) == (-1.0, 2.0)
    assert float(estimate.diagnostics["mean_weight_z"]) == -np.inf
    assert float(estimate.diagnostics["no_overlap"]) == 1.0
    assert "next to nothing of what the target policy does" in " ".join(warnings_of(estimate))


def test_no_overlap_leaves_the_direct_method_as_it_is_and_takes_the_interval_of_doubly_robust():
    columns = dict(predicted_target=np.linspace(0.4, 0.6, 100))
    direct = bandit.direct_method(np.zeros(100), np.ones(100), level=0.95, **columns)
    robust = bandit.doubly_robust(np.zeros(100), np.ones(100), level=0.95, predicted=np.full(100, 0.5), **columns)
    assert 0.45 < float(direct.lower) < float(direct.upper) < 0.55
    assert float(robust.value) == pytest.approx(0.5)
    assert ends(robust) == (0.0, 1.0)


def test_z_is_infinite_without_spread_and_missing_for_few_rows():
    constant = bandit.ips(np.full(1000, 0.5), np.linspace(0, 1, 1000))
    assert float(constant.diagnostics["mean_weight_z"]) == -np.inf
    assert "with no spread that could explain it" in " ".join(warnings_of(constant))
    few = bandit.ips([0.5, 0.5 + 1e-9], [1.0, 0.0])
    assert np.isnan(float(few.diagnostics["mean_weight_z"]))
    quadratic = bandit.cressie_read(np.full(1000, 0.5), np.linspace(0, 1, 1000), weight_range=(0.0, 3.0))
    assert float(quadratic.diagnostics["mean_weight_z"]) == -np.inf


def test_an_interval_always_holds_its_value():
    above = bandit.ips([3, 3, 0, 3], [1, 1, 0, 1], level=0.95)
    assert float(above.value) == 2.25
    assert ends(above) == (0.0, 2.25)
    assert "stretched to it" in " ".join(warnings_of(above))
    # an interval wholly above the range says nothing within it
    impossible = bandit.ips(np.tile([3.0, 3.1], 50), np.ones(100), level=0.95)
    assert ends(impossible) == (0.0, pytest.approx(3.05))
    inside = bandit.ips(np.tile([0.5, 1.5], 50), np.tile([1.0, 0.0, 0.5], 34)[:100], level=0.95)
    assert float(inside.diagnostics["stretched"]) == 0.0


def test_equal_rewards_come_with_words():
    for name in ("ips", "snips"):
        estimate = getattr(bandit, name)(np.tile([0.5, 1.5], 200), np.zeros(400), level=0.95)
        assert "That is no certainty" in " ".join(warnings_of(estimate))


def test_huge_weights_do_not_overflow():
    estimate = bandit.snips([1e308] * 4, [0.0, 1.0, 0.0, 1.0], level=0.95)
    assert float(estimate.value) == 0.5
    assert float(estimate.effective_sample_size) == pytest.approx(4.0)
    assert 0.0 <= float(estimate.lower) < 0.5 < float(estimate.upper) <= 1.0
    robust = bandit.self_normalised_doubly_robust(
        [1e308] * 4, [0.0, 1.0, 0.0, 1.0], predicted=[0.0] * 4, predicted_target=[0.0] * 4
    )
    assert float(robust.value) == 0.5


def test_masked_arrays_are_refused():
    masked = np.ma.array([1.0, 99.0], mask=[False, True])
    for weights, rewards in ((masked, [0.0, 1.0]), ([1.0, 1.0], masked)):
        with pytest.raises(ValueError, match="masked array"):
            bandit.ips(weights, rewards)
