"""What estimates say of themselves in words."""

import numpy as np
import pytest

from jaxrl_off.estimators import warnings
from jaxrl_off.types import Estimate

SOUND = dict(
    finite=1.0, no_overlap=0.0, mean_weight=1.0, mean_ratio=1.0, mean_ratio_z=0.3, correction=0.1, correction_z=1.0
)
SOUND |= dict(behaviour_estimated=0.0, below_floor=0.0, cut_share=0.0, unconverged=0.0, initial_error_left=0.0)


def estimate(**changes):
    return Estimate(1.0, 0.1, None, None, 50.0, SOUND | changes)


def test_nothing_to_say():
    assert warnings.warnings_of(estimate()) == ()
    assert warnings.warnings_of(Estimate(1.0, 0.1, None, None, 50.0, {})) == ()
    # too few rows for a standard error: no z, and nothing said
    assert warnings.warnings_of(estimate(mean_ratio=0.2, mean_ratio_z=np.nan)) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(finite=0.0), "There is no value"),
        (dict(no_overlap=1.0, mean_weight=5e-15), "mean weight 5e-15, expected 1"),
        (
            dict(mean_ratio=0.04, mean_ratio_z=-np.inf),
            "average 0.04 instead of 1 (with no spread that could explain it)",
        ),
        (dict(mean_ratio=0.9, mean_ratio_z=-6.0), "what the behaviour policy never does"),
        (dict(mean_ratio=1.4, mean_ratio_z=6.0), "probabilities are probably wrong"),
        (dict(correction=-5.9, correction_z=-9.0), "by -5.9 (9.0 standard errors): the fitted Q is biased."),
        (dict(correction=-5.9, correction_z=-np.inf, cut_share=1.0), "with the same horizon_exit"),
        (dict(unconverged=1.0, initial_error_left=0.37), "37 % of its initial error"),
        (dict(behaviour_estimated=1.0), "estimated from the data, not logged"),
        (dict(below_floor=1.0), "effective sample size is below the floor"),
    ],
)
def test_each_sentence_has_its_reason(changes, words):
    (sentence,) = warnings.warnings_of(estimate(**changes))
    assert words in sentence


def test_weights_of_decisions_of_one_step():
    numbers = dict(rows=200.0, mean_weight=0.2, mean_weight_z=-8.0)
    (sentence,) = warnings.warnings_of(Estimate(1.0, 0.1, None, None, 50.0, numbers))
    assert "Importance weights average 0.2 instead of 1 (8.0 standard errors)" in sentence
    assert warnings.warnings_of(Estimate(1.0, 0.1, None, None, 2.0, numbers | dict(rows=2.0))) == ()


def test_no_spread_is_no_certainty():
    (sentence,) = warnings.warnings_of(estimate()._replace(standard_error=0.0))
    assert "the standard error is 0. That is no certainty" in sentence
    (sentence,) = warnings.warnings_of(estimate(no_overlap=1.0, mean_weight=0.0)._replace(standard_error=0.0))
    assert "next to nothing" in sentence
