"""Many estimators on trajectories in one call: `evaluate(trajectories, target_log_prob, estimators=(...), ...)`.

| name | function | needs, besides trajectories | also takes |
|---|---|---|---|
| `naive` | `naive` | | |
| `is`, `pdis`, `wis`, `cwpdis` | `trajectory_is`, `pdis`, `wis`, `cwpdis` | `target_log_prob` | |
| `el` | `empirical_likelihood` | `target_log_prob`; options `return_range`, `weight_max` | |
| `dm` | `direct_method` | `v` | |
| `dr`, `wdr`, `magic` | `doubly_robust`, `weighted_doubly_robust`, `magic` | `target_log_prob`, `q`, `v` | `final` |
| `drl` | `double_reinforcement_learning` | `marginal_ratio`, `q`, `v` | `final` |
| `fqe` | `linear_q_evaluation` | `target` | |
| `retrace` | `trace_evaluation` | `target` | `target_log_prob` |
| `star` | `star` | `target_log_prob`, `states`, `num_states` | `final_states` |
| `model` | `model_based` | `target_policy` | |
| `mis` | `marginalised_is` | `target_policy` | `target_log_prob` |
| `mwl`, `dual_dice`, `gen_dice`, `best_dice` | `minimax_weight`, `dual_dice`, ... of tables | `target_policy` | |

Each is what its function gives, which says what is meant by arguments and diagnostics; resamples of the bootstrap are the
same for all, as they depend on `seed` alone. What is passed to all has one meaning for all. What changes an estimator (a
window, features, a range) is passed to that estimator, by `options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_off.estimators.common import did_you_mean, is_concrete, named_options
from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
from jaxrl_off.estimators.trajectory.reward_processes.star import star
from jaxrl_off.estimators.trajectory.statistics import Settings
from jaxrl_off.estimators.trajectory.values import linear, tabular, traces
from jaxrl_off.estimators.trajectory.weights import doubly_robust, importance
from jaxrl_off.estimators.trajectory.weights.magic import magic
from jaxrl_off.types import Estimate, Trajectories

_ASKED = ("counts", *Settings._fields)
_STATISTIC = ("discount", *_ASKED)
_CUT = (*_STATISTIC, "horizon_exit")
_WEIGHTS = ("window", "clip")
_HINTS = {
    "target_log_prob": "log pi_e(a_t|s_t), which `training.policy_functions` gives for the policy of a run",
    "q": "action values along the trajectories, from `fit_linear_q` or another fit",
    "v": "values along the trajectories, from `fit_linear_q` or another fit",
    "marginal_ratio": "from `occupancy.tabular.density_ratio`",
    "target": "candidates from `target_actions`",
    "states": "cells from `abstractions`",
    "num_states": "the number of cells of the abstraction",
    "target_policy": "a table [S, A]",
    "return_range": "(low, high) of discounted returns",
    "weight_max": "the largest final weight, or infinity",
}


class Method(NamedTuple):
    """An estimator, and what it takes.

    Attributes:
        function: that makes the `Estimate` of trajectories and named arguments.
        needs: what has to be passed to all.
        shared: what else it takes of what is passed to all.
        options: what can be passed to it alone; the settings of its interval, too.
        required: options that it cannot do without.
    """

    function: Callable[..., Estimate]
    needs: tuple[str, ...] = ()
    shared: tuple[str, ...] = _STATISTIC
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """All that can be passed by `options`."""
        return (*self.options, *(name for name in self.shared if name in Settings._fields))


ESTIMATORS: dict[str, Method] = {
    "naive": Method(importance.naive),
    "is": Method(
        importance.trajectory_is,
        ("target_log_prob",),
        options=(*_WEIGHTS, "return_range", "weight_max", "truncation", "ordered"),
    ),
    "pdis": Method(
        importance.pdis,
        ("target_log_prob",),
        options=(*_WEIGHTS, "reward_range", "weight_max", "truncation", "ordered"),
    ),
    "wis": Method(importance.wis, ("target_log_prob",), options=_WEIGHTS),
    "cwpdis": Method(importance.cwpdis, ("target_log_prob",), options=_WEIGHTS),
    "el": Method(
        importance.empirical_likelihood,
        ("target_log_prob",),
        ("discount", "counts", "level", "sides", "floor"),
        ("return_range", "weight_max", "calibration"),
        ("return_range", "weight_max"),
    ),
    "dm": Method(doubly_robust.direct_method, ("v",), (*_ASKED, "horizon_exit")),
    "dr": Method(
        doubly_robust.doubly_robust,
        ("target_log_prob", "q", "v"),
        (*_CUT, "final"),
        (*_WEIGHTS, "value_range", "weight_max", "ordered"),
    ),
    "wdr": Method(doubly_robust.weighted_doubly_robust, ("target_log_prob", "q", "v"), (*_CUT, "final"), _WEIGHTS),
    "magic": Method(magic, ("target_log_prob", "q", "v"), (*_CUT, "final"), (*_WEIGHTS, "lengths")),
    "drl": Method(doubly_robust.double_reinforcement_learning, ("marginal_ratio", "q", "v"), (*_CUT, "final")),
    "fqe": Method(linear.linear_q_evaluation, ("target",), _CUT, ("features", "ridge")),
    "retrace": Method(
        traces.trace_evaluation,
        ("target",),
        (*_CUT, "target_log_prob"),
        ("features", "ridge", "trace", "lambda_"),
    ),
    "star": Method(
        star,
        ("target_log_prob", "states", "num_states"),
        (*_CUT, "final_states"),
        (*_WEIGHTS, "discounted_counts", "normalisation", "termination", "smoothing"),
    ),
    "model": Method(tabular.model_based, ("target_policy",), _CUT, ("unseen",)),
    "mis": Method(tabular_occupancy.marginalised_is, ("target_policy",), (*_STATISTIC, "target_log_prob")),
    "mwl": Method(tabular_occupancy.minimax_weight, ("target_policy",), _CUT),
    "dual_dice": Method(tabular_occupancy.dual_dice, ("target_policy",), _CUT),
    "gen_dice": Method(tabular_occupancy.gen_dice, ("target_policy",), _CUT),
    "best_dice": Method(tabular_occupancy.best_dice, ("target_policy",), _CUT),
}


@named_options
def evaluate(
    trajectories: Trajectories,
    target_log_prob: Any = None,
    *,
    estimators: Sequence[str] = ("naive", "is", "pdis", "wis", "cwpdis"),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    q: Any = None,
    v: Any = None,
    final: Any = None,
    marginal_ratio: Any = None,
    target: Any = None,
    states: Any = None,
    num_states: int | None = None,
    final_states: Any = None,
    target_policy: Any = None,
    horizon_exit: bool = True,
    discount: float = 1.0,
    counts: Any = None,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> dict[str, Estimate]:
    """The value of a policy by several estimators.

    Args:
        trajectories: n of them, as in `pdis`.
        target_log_prob: `float[n, T]`, log pi_e(a_t|s_t), or None where no estimator needs it.
        estimators: names; see the module. Have `naive` among them: it is what the policy that acted is worth.
        options: for single estimators, `{"star": {"window": 2}, "el": {"return_range": (0, 1), "weight_max": 50}}`; these may
            also have settings of their interval, which then replace those passed to all.
        q: `float[n, T]`, Q(s_t, a_t).
        v: `float[n, T]`, V(s_t).
        final: `float[n]`, V of what followed the last step, with `horizon_exit=False`.
        marginal_ratio: `float[n, T]`.
        target: candidates of `target_actions`.
        states: `int32[n, T]`, cells.
        num_states: number of cells.
        final_states: `int32[n]`, cells of what followed the last step.
        target_policy: `float[S, A]`.
        horizon_exit: what all estimators estimate: True for returns within the horizon; False if the process goes on where
            trajectories were cut. Estimators that judge returns within the horizon alone are refused with False, if some
            trajectory was cut.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, 0 for padding; None for once each.
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca"; `el` has its own.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate` for each name, in this order.

    Raises:
        ValueError: for unknown names and options, for what an estimator needs and was not given, and as the functions.

    Example:
        >>> half, end = np.log([[0.5, 0.5]]), np.array([[False, True]])
        >>> data = Trajectories(None, None, np.ones((1, 2)), half, np.ones((1, 2), bool), end, ~end & False, None)
        >>> found = evaluate(data, np.log([[0.8, 0.25]]), estimators=["naive", "pdis", "wis"], discount=0.5)
        >>> {name: round(float(estimate.value), 9) for name, estimate in found.items()}
        {'naive': 1.5, 'pdis': 2.0, 'wis': 1.5}
    """
    check_names(estimators)
    own = _checked_options(estimators, {} if options is None else options)
    given = dict(target_log_prob=target_log_prob, q=q, v=v, final=final, marginal_ratio=marginal_ratio, target=target)
    given |= dict(states=states, num_states=num_states, final_states=final_states, target_policy=target_policy)
    given = {word: value for word, value in given.items() if value is not None}
    given |= dict(horizon_exit=horizon_exit, discount=discount, counts=counts, level=level, sides=sides)
    given |= dict(interval=interval, resamples=resamples, seed=seed, floor=floor)
    for name in estimators:
        method = ESTIMATORS[name]
        missing = [f"{word} ({_HINTS[word]})" for word in method.needs if word not in given]
        missing += [f"options={{{name!r}: ...}} with {w} ({_HINTS[w]})" for w in method.required if w not in own[name]]
        if missing:
            raise ValueError(f"{name} needs {' and '.join(missing)}.")
    if not horizon_exit:
        _check_goes_on(estimators, trajectories)
    found = {}
    for name in estimators:
        method = ESTIMATORS[name]
        taken = {word: given[word] for word in (*method.needs, *method.shared) if word in given}
        found[name] = method.function(trajectories, **(taken | own[name]))
    return found


def check_names(estimators: Sequence[str]) -> None:
    """Refuse names that are not in `ESTIMATORS`.

    Raises:
        ValueError: for none, and for unknown ones.
    """
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if isinstance(estimators, str) or unknown or not len(estimators):
        shown = repr(estimators)
        if unknown and not isinstance(estimators, str):
            shown = ", ".join(unknown) + "." + did_you_mean(str(unknown[0]), ESTIMATORS)
        raise ValueError(f"estimators must be a sequence of names from {', '.join(ESTIMATORS)}; got {shown}")


def _checked_options(estimators: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options of every estimator that was asked for."""
    for name, words in options.items():
        if name not in estimators:
            raise ValueError(
                f"options are given for {name!r}, which is not among the estimators {', '.join(estimators)}."
                f"{did_you_mean(str(name), estimators)}"
            )
        known = ESTIMATORS[name].own
        for word in words:
            if word not in known:
                raise ValueError(
                    f"{name} has no option {word!r}.{did_you_mean(str(word), known)} Its options are {', '.join(known)}."
                )
    return {name: dict(options.get(name, {})) for name in estimators}


def _check_goes_on(estimators: Sequence[str], trajectories: Trajectories) -> None:
    """Refuse a mixture of what is estimated."""
    within = [name for name in estimators if "horizon_exit" not in ESTIMATORS[name].shared]
    mask, terminated = trajectories.mask, trajectories.terminated
    ended = is_concrete(mask, terminated) and bool((np.asarray(mask) & np.asarray(terminated)).any(axis=1).all())
    if within and not ended:
        allowed = [name for name, method in ESTIMATORS.items() if "horizon_exit" in method.shared]
        raise ValueError(
            f"{', '.join(within)} can judge only returns within the horizon, and some trajectories were cut before they "
            f"terminated. With horizon_exit=False take only of {', '.join(allowed)}; or call evaluate again for the others "
            "with horizon_exit=True, which is another quantity."
        )
