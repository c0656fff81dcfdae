"""All estimators on trajectories in one call: `evaluate(trajectories, target_log_prob, estimators=(...), ...)`.

| name | function | needs, besides trajectories |
|---|---|---|
| `naive` | `weighted.naive` | |
| `is`, `pdis`, `wis`, `cwpdis` | `weighted.trajectory_is`, `pdis`, ... | `target_log_prob` |
| `el` | `weighted.empirical_likelihood` | `target_log_prob`, `return_range`, `weight_max` |
| `dm` | `corrected.direct_method` | `v` |
| `dr`, `wdr`, `magic` | `corrected.doubly_robust`, ... | `target_log_prob`, `q`, `v` |
| `drl` | `corrected.double_reinforcement_learning` | `marginal_ratio`, `q`, `v` |
| `fqe` | `linear_q.linear_q_evaluation` | `target` |
| `retrace` | `traces.trace_evaluation` | `target` |
| `star` | `star.star` | `target_log_prob`, `states`, `num_states` |
| `model` | `tabular.model_based` | `target_policy` |
| `mis` | `tabular_occupancy.marginalised_is` | `target_policy` |
| `mwl`, `dual_dice`, `gen_dice`, `best_dice` | `tabular_occupancy.minimax_weight`, ... | `target_policy`, `discount` |

Each is what its function gives, which says what is meant by arguments and diagnostics; resamples of the bootstrap are the
same for all, as they depend on `seed` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
from jaxrl_off.estimators.trajectory.reward_processes.star import star
from jaxrl_off.estimators.trajectory.statistics import Settings
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import tabular, traces
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.types import Estimate, Trajectories

_STATISTIC = ("discount", "counts", *Settings._fields)
_RATIOS = (*_STATISTIC, "window", "clip")
_TABLE = (*_STATISTIC, "horizon_exit")
_HINTS = {
    "target_log_prob": "log pi_e(a_t|s_t), which `training.policy_functions` gives for the policy of a run",
    "q": "action values along the trajectories, from `linear_q.fit_linear_q` or another fit",
    "v": "values along the trajectories, from `linear_q.fit_linear_q` or another fit",
    "marginal_ratio": "from `tabular_occupancy.density_ratio`",
    "target": "candidates from `target_actions`",
    "states": "cells from `abstractions`",
    "num_states": "of the abstraction",
    "target_policy": "a table [S, A]",
    "return_range": "(low, high) of discounted returns",
    "weight_max": "the largest final weight, or infinity",
    "discount": "below 1",
}


class Method(NamedTuple):
    """An estimator, and what it takes.

    Attributes:
        function: that makes the `Estimate` of trajectories and keywords.
        needs: keywords without a default.
        options: further keywords.
    """

    function: Callable[..., Estimate]
    needs: tuple[str, ...]
    options: tuple[str, ...]


ESTIMATORS: dict[str, Method] = {
    "naive": Method(weighted.naive, (), _STATISTIC),
    "is": Method(weighted.trajectory_is, ("target_log_prob",), (*_RATIOS, "return_range", "weight_max", "truncation")),
    "pdis": Method(weighted.pdis, ("target_log_prob",), (*_RATIOS, "reward_range", "weight_max", "truncation")),
    "wis": Method(weighted.wis, ("target_log_prob",), _RATIOS),
    "cwpdis": Method(weighted.cwpdis, ("target_log_prob",), _RATIOS),
    "el": Method(
        weighted.empirical_likelihood,
        ("target_log_prob", "return_range", "weight_max"),
        ("discount", "counts", "level", "sides", "calibration", "floor"),
    ),
    "dm": Method(corrected.direct_method, ("v",), _STATISTIC),
    "dr": Method(corrected.doubly_robust, ("target_log_prob", "q", "v"), (*_RATIOS, "value_range", "weight_max")),
    "wdr": Method(corrected.weighted_doubly_robust, ("target_log_prob", "q", "v"), _RATIOS),
    "magic": Method(corrected.magic, ("target_log_prob", "q", "v"), (*_RATIOS, "lengths")),
    "drl": Method(corrected.double_reinforcement_learning, ("marginal_ratio", "q", "v"), _STATISTIC),
    "fqe": Method(linear_q.linear_q_evaluation, ("target",), (*_TABLE, "features", "ridge")),
    "retrace": Method(
        traces.trace_evaluation,
        ("target",),
        (*_TABLE, "features", "ridge", "trace", "lambda_", "target_log_prob"),
    ),
    "star": Method(
        star,
        ("target_log_prob", "states", "num_states"),
        (*_RATIOS, "horizon_exit", "discounted_counts", "normalisation", "termination", "final_states", "smoothing"),
    ),
    "model": Method(tabular.model_based, ("target_policy",), (*_TABLE, "unseen")),
    "mis": Method(tabular_occupancy.marginalised_is, ("target_policy",), (*_STATISTIC, "target_log_prob")),
    "mwl": Method(tabular_occupancy.minimax_weight, ("target_policy", "discount"), _TABLE),
    "dual_dice": Method(tabular_occupancy.dual_dice, ("target_policy", "discount"), _TABLE),
    "gen_dice": Method(tabular_occupancy.gen_dice, ("target_policy", "discount"), _TABLE),
    "best_dice": Method(tabular_occupancy.best_dice, ("target_policy", "discount"), _TABLE),
}


def evaluate(
    trajectories: Trajectories,
    target_log_prob: Any = None,
    *,
    estimators: Sequence[str] = ("naive", "is", "pdis", "wis", "cwpdis"),
    **keywords: Any,
) -> dict[str, Estimate]:
    """The value of a policy by several estimators.

    Args:
        trajectories: n of them, as in `weighted.pdis`.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t), or None where no estimator needs it.
        estimators: names; see the module. Have `naive` among them: it is what the policy that acted is worth.
        **keywords: what the estimators need, each with one meaning for all, and options of theirs: `discount`, `counts`,
            `window`, `clip`, `level`, `sides`, `interval` (not of `el`, which has its own), `resamples`, `seed`,
            `floor`, and those of single ones. An estimator that does not take one does without.

    Returns:
        An `Estimate` for each name, in this order.

    Raises:
        ValueError: for unknown names and keywords, for what an estimator needs and was not given, and as the functions.

    Example:
        >>> import numpy as np
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> found = evaluate(data, np.log([[0.8, 0.25]]), estimators=["naive", "pdis", "wis"], discount=0.5)
        >>> {name: round(float(estimate.value), 9) for name, estimate in found.items()}
        {'naive': 1.5, 'pdis': 2.0, 'wis': 1.5}
    """
    check_names(estimators)
    known = {word for method in ESTIMATORS.values() for word in (*method.needs, *method.options)}
    unknown = [word for word in keywords if word not in known]
    if unknown:
        raise ValueError(f"unknown keywords {', '.join(unknown)}; there are {', '.join(sorted(known))}.")
    given = {word: value for word, value in keywords.items() if value is not None}
    if target_log_prob is not None:
        given["target_log_prob"] = target_log_prob
    for name in estimators:
        missing = [f"{word} ({_HINTS[word]})" for word in ESTIMATORS[name].needs if word not in given]
        if missing:
            raise ValueError(f"{name} needs {' and '.join(missing)}.")
    found = {}
    for name in estimators:
        method = ESTIMATORS[name]
        taken = {word: given[word] for word in (*method.needs, *method.options) if word in given}
        found[name] = method.function(trajectories, **taken)
    return found


def check_names(estimators: Sequence[str]) -> None:
    """Refuse names that are not in `ESTIMATORS`.

    Raises:
        ValueError: for none, and for unknown ones.
    """
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if isinstance(estimators, str) or unknown or not len(estimators):
        shown = ", ".join(unknown) if unknown and not isinstance(estimators, str) else repr(estimators)
        raise ValueError(f"estimators must be a sequence of names from {', '.join(ESTIMATORS)}; got {shown}.")
