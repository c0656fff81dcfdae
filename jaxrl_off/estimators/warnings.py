"""What an `Estimate` should not be trusted for, in words: plain sentences from its diagnostics.

One table: a diagnostic, when it matters, and what to say. A diagnostic that an estimate does not have says nothing. A family
of estimators adds its diagnostics and sentences to `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrl_off.types import Estimate

FEWEST_FOR_Z = 10  # rows below which a standard error says nothing
SURPRISING_Z = 4.0  # standard errors beyond which chance is no explanation

Numbers = Mapping[str, float]


class Rule(NamedTuple):
    """When a diagnostic matters, and what it says.

    Attributes:
        needs: diagnostics, or "standard_error", without which the rule says nothing.
        applies: `diagnostics -> bool`; these are floats, which may be NaN.
        sentence: `diagnostics -> str`.
    """

    needs: tuple[str, ...]
    applies: Callable[[Numbers], bool]
    sentence: Callable[[Numbers], str]


def _short(number: float) -> str:
    return f"{number:.3g}"


def _errors(z: float) -> str:
    """How far from what is expected, in words."""
    return "with no spread that could explain it" if math.isinf(z) else f"{abs(z):.1f} standard errors"


def _ratios(d: Numbers) -> str:
    return f"Importance ratios of single steps average {_short(d['mean_ratio'])} instead of 1 ({_errors(d['mean_ratio_z'])})"


RULES: tuple[Rule, ...] = (
    Rule(
        ("finite",),
        lambda d: d["finite"] == 0.0,
        lambda d: "There is no value: all weights are 0, or the fitted process never ends.",
    ),
    Rule(
        ("no_overlap", "mean_weight"),
        lambda d: d["no_overlap"] > 0.0,
        lambda d: (
            f"The log has next to nothing of what the target policy does (mean weight {_short(d['mean_weight'])}, expected 1). "
            "The value cannot be estimated from it; the interval is all that the value can be."
        ),
    ),
    Rule(
        ("mean_ratio", "mean_ratio_z"),
        lambda d: d["mean_ratio_z"] < -SURPRISING_Z and d.get("no_overlap", 0.0) == 0.0,
        lambda d: (
            f"{_ratios(d)}: the target policy does what the behaviour policy never does, or the logged probabilities are wrong."
        ),
    ),
    Rule(
        ("mean_ratio", "mean_ratio_z"),
        lambda d: d["mean_ratio_z"] > SURPRISING_Z,
        lambda d: f"{_ratios(d)}: the logged behaviour probabilities are probably wrong.",
    ),
    Rule(
        ("mean_weight", "mean_weight_z", "rows"),
        lambda d: (
            "mean_ratio" not in d
            and d.get("no_overlap", 0.0) == 0.0
            and d["rows"] >= FEWEST_FOR_Z
            and abs(d["mean_weight_z"]) > SURPRISING_Z
        ),
        lambda d: (
            f"Importance weights average {_short(d['mean_weight'])} instead of 1 ({_errors(d['mean_weight_z'])}): the logged "
            "probabilities are probably wrong, or the target policy does what was never logged."
        ),
    ),
    Rule(
        ("stretched",),
        lambda d: d["stretched"] > 0.0,
        lambda d: (
            "The value lies outside the interval cut to what is possible; the interval was stretched to it. Few rows carry "
            "the weight, or the logged probabilities are wrong: prefer a self-normalised estimator."
        ),
    ),
    Rule(
        ("correction", "correction_z"),
        lambda d: abs(d["correction_z"]) > SURPRISING_Z,
        lambda d: (
            f"The data change the direct method's value by {_short(d['correction'])} ({_errors(d['correction_z'])}): the "
            "fitted Q is biased"
            + (
                ", or Q was fitted for a process that goes on where trajectories were cut; fit and estimate with the same "
                "horizon_exit."
                if d.get("cut_share", 0.0) > 0.0
                else "."
            )
        ),
    ),
    Rule(
        ("standard_error",),
        lambda d: d["standard_error"] == 0.0 and d.get("no_overlap", 0.0) == 0.0,
        lambda d: (
            "Everything that was averaged is equal, so that the standard error is 0. That is no certainty: what was not seen "
            "may differ. Use an interval that knows the range, such as 'empirical_bernstein'."
        ),
    ),
    Rule(
        ("unconverged", "initial_error_left"),
        lambda d: d["unconverged"] > 0.0,
        lambda d: (
            f"The fit has not converged ({_short(100.0 * d['initial_error_left'])} % of its initial error is left"
            + (
                f", and by the Bellman equations the value would still change by about {_short(d['bellman_error'])}"
                if "bellman_error" in d
                else ""
            )
            + "): raise the number of updates. Until then the value is biased, which neither the interval nor the agreement of "
            "an ensemble shows."
        ),
    ),
    Rule(
        ("unconverged", "still_falling"),
        lambda d: d["unconverged"] > 0.0,
        lambda d: (
            "The fit has not converged: its loss was still falling when the updates ended. Raise the number of updates; until "
            "then the value is biased, and the interval does not show it."
        ),
    ),
    Rule(
        ("unconverged", "flow_residual"),
        lambda d: d["unconverged"] > 0.0,
        lambda d: (
            f"The fitted occupancy does not satisfy its flow equations (residual {_short(d['flow_residual'])}, 0 if it did): "
            "raise the number of updates or the size of the networks. Neither the interval nor the agreement of an ensemble "
            "shows this."
        ),
    ),
    Rule(
        ("settled", "spectral_radius"),
        lambda d: d["settled"] == 0.0,
        lambda d: (
            "Rounds of fitted Q-evaluation do not converge on these data (spectral radius "
            f"{_short(d['spectral_radius'])}): the value is that of finitely many rounds or of a lower discount, and biased. "
            "Use fewer features, or more data."
        ),
    ),
    Rule(
        ("unsettled",),
        lambda d: d["unsettled"] > 0.0,
        lambda d: (
            f"The constraint that ratios are not negative is not met exactly (wrong for {_short(d['unsettled'])} pairs): the "
            "solver stopped before it settled."
        ),
    ),
    Rule(
        ("fit_in_error",),
        lambda d: d["fit_in_error"] == 0.0,
        lambda d: (
            "The standard error and the interval do not include the error of the fit, and are too small. Use members of a "
            "bootstrap, or correct the fit with the doubly robust estimator."
        ),
    ),
    Rule(
        ("behaviour_estimated",),
        lambda d: d["behaviour_estimated"] > 0.0,
        lambda d: (
            "Behaviour probabilities were estimated from the data, not logged; the standard error and the interval do not "
            "account for that."
        ),
    ),
    Rule(
        ("below_floor",),
        lambda d: d["below_floor"] > 0.0,
        lambda d: (
            "Few trajectories carry the weight: the effective sample size is below the floor, the interval unreliable."
        ),
    ),
)


def warnings_of(estimate: Estimate) -> tuple[str, ...]:
    """Plain sentences on what is wrong with an estimate, by its diagnostics; none if nothing is.

    Args:
        estimate: of any estimator, of concrete numbers and without leading axes.

    Returns:
        Sentences, the most important first.

    Example:
        >>> numbers = {"mean_ratio": 0.5, "mean_ratio_z": -9.0}
        >>> warnings_of(Estimate(1.0, 0.1, None, None, 20.0, numbers))[0][:58]
        'Importance ratios of single steps average 0.5 instead of 1'
    """
    numbers = {name: float(value) for name, value in estimate.diagnostics.items() if getattr(value, "ndim", 0) == 0}
    if estimate.standard_error is not None:
        numbers["standard_error"] = float(estimate.standard_error)
    return tuple(
        rule.sentence(numbers)
        for rule in RULES
        if all(name in numbers for name in rule.needs) and rule.applies(numbers)
    )
