"""SLOPE: the rule by hand, and its error beside the best in simulation."""

import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.types import Estimate


def estimate(value, deviation=None):
    ends = (None, None) if deviation is None else (value - deviation, value + deviation)
    return Estimate(np.float64(value), np.float64(0.1), *ends, np.float64(1.0), {})


def test_the_rule_by_hand():
    # deviations fall; the third is too far from the first: 0.5 > 0.05 + 1.449 * 0.2
    family = [estimate(1.0, 0.2), estimate(0.8, 0.1), estimate(0.5, 0.05)]
    assert bandit.slope(family) == 1
    assert bandit.slope(family[::-1]) == 1
    # near enough: 0.33 <= 0.05 + 1.449 * 0.2 and 0.13 <= 0.05 + 1.449 * 0.1
    family[2] = estimate(0.67, 0.05)
    assert bandit.slope(family) == 2
    assert bandit.slope([estimate(1.0), estimate(0.0)], deviations=[0.5, 0.0]) == 0
    assert bandit.slope([estimate(3.0, 1.0)]) == 0


def test_one_sided_intervals_count_by_their_side():
    # upper ends are those of the reward range, and say nothing
    family = [estimate(1.0, 0.2), estimate(0.8, 0.1), estimate(0.5, 0.05)]
    lower = [e._replace(upper=np.float64(50.0)) for e in family]
    assert bandit.slope(lower, sides="lower") == bandit.slope(family) == 1
    assert bandit.slope([e._replace(lower=np.float64(-np.inf)) for e in family], sides="upper") == 1
    # taken for two-sided, deviations of almost 50 forbid nothing and turn the order round
    assert bandit.slope(lower) == 0


def test_its_error_is_within_the_promised_factor_of_the_best():
    """Clipped weights on a heavy-tailed log: bias and deviation trade off, and no fixed clip is best throughout."""
    random = np.random.default_rng(0)
    clips = [1.0, 3.0, 10.0, 30.0, 100.0]
    squared = np.zeros((2, len(clips) + 1))
    for trial in range(60):
        count, scale = 300, (1.0, 30.0)[trial % 2]
        weights = np.where(random.uniform(size=count) < 1 / (1 + scale), 1 + scale, 0.0)
        rewards = (random.uniform(size=count) < 0.5).astype(float)
        family = [
            bandit.clipped_ips(weights, rewards, clip=clip, level=0.95, weight_range=(0.0, 101.0)) for clip in clips
        ]
        errors = [(float(e.value) - 0.5) ** 2 for e in family]
        squared[trial % 2] += [*errors, errors[bandit.slope(family)]]
    for row in squared:
        assert row[-1] <= (3 + 6**0.5) ** 2 * row[:-1].min()
    # where there is hardly a weight to clip, it does not clip; where there is, it stays away from the worst
    assert squared[0, -1] < 0.1 * squared[0, 0]
    assert squared.sum(axis=0)[-1] < squared.sum(axis=0)[:-1].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(estimates=[]), "no estimates"),
        (dict(estimates=[estimate(1.0)]), "has no interval"),
        (dict(estimates=[estimate(1.0)], deviations=[-1.0]), "not negative"),
        (dict(estimates=[estimate(1.0)], deviations=[1.0, 2.0]), "deviations must be 1"),
        (dict(estimates=[estimate(1.0, np.inf)]), "say which side"),
        (dict(estimates=[estimate(1.0, 0.5)], sides="left"), "sides must be one of"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bandit.slope(**arguments)
