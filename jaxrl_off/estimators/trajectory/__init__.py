"""The value of a policy from whole trajectories of another one: estimates, intervals, and what they lean on.

Everything public is an attribute of this package: `from jaxrl_off.estimators import trajectory; trajectory.star(...)`.
`evaluate` runs many estimators at once. The rooms:

| room | what is in it |
|---|---|
| `weights` | importance sampling; direct, doubly robust, mixed (MAGIC) and double reinforcement learning; cross-fitting |
| `reward_processes` | STAR: abstract reward processes, their abstractions, and rules that choose among them |
| `values` | action values and models: by counting, linear in closed form, by traces such as Retrace, by networks |
| `occupancy` | ratios of visits: marginalised importance sampling and DICE, by counting, linear, by networks |
| `columns` | checked columns, features, and what the target would do in every state (`target_actions`) |
| `suite` | `evaluate` and its table of estimators |
| `streaming` | estimates of trajectories that do not fit into memory |
| `behaviour` | behaviour probabilities estimated where they were not logged |
| `bounds`, `statistics`, `steps` | intervals of known coverage; from statistics to estimates; checked steps and weights |

Where linear or network versions share the name of a tabular estimator (`gen_dice`, `dual_dice`, `minimax_weight`,
`density_ratio`, `model_based`), the name here is the tabular one; take the others from `occupancy.linear`,
`occupancy.network` and `values.model`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "behaviour": ("BehaviourReport", "clone_behaviour"),
    "columns.target_policy": ("TargetActions", "target_actions"),
    "columns.transitions": ("ActionValues",),
    "occupancy.tabular": (
        "best_dice",
        "density_ratio",
        "dual_dice",
        "gen_dice",
        "marginalised_is",
        "minimax_weight",
    ),
    "reward_processes.process": ("AbstractRewardProcess",),
    "reward_processes.selection": (
        "Candidates",
        "Selection",
        "opera",
        "select_by_error",
        "select_by_slope",
        "star_candidates",
    ),
    "reward_processes.star": ("abstract_reward_process", "star", "star_values"),
    "streaming": ("Moments", "Stream", "merge", "star_streaming"),
    "suite": ("evaluate",),
    "values.linear": ("LinearQ", "fit_linear_q", "linear_q_evaluation"),
    "values.network": (
        "FittedQ",
        "FittedQConfig",
        "MinimaxQConfig",
        "fit_network_q",
        "fitted_q_evaluation",
        "network_values",
    ),
    "values.tabular": ("model_based", "mrdr", "q_regression", "tabular_q", "values_on"),
    "values.traces": ("fit_traces", "trace_evaluation"),
    "weights.doubly_robust": (
        "cross_fitted",
        "direct_method",
        "double_reinforcement_learning",
        "doubly_robust",
        "weighted_doubly_robust",
    ),
    "weights.importance": ("cwpdis", "empirical_likelihood", "naive", "pdis", "trajectory_is", "wis"),
    "weights.magic": ("magic",),
}
_MODULES = (
    "behaviour",
    "bounds",
    "columns",
    "occupancy",
    "reward_processes",
    "statistics",
    "steps",
    "streaming",
    "suite",
    "values",
    "weights",
)
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, *_MODULES])


def __getattr__(name: str) -> Any:
    """The public name from its home, which is imported when it is first asked for."""
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
