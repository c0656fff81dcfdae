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

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.estimators.trajectory.behaviour import (
    BehaviourReport,
    clone_behaviour,
)
from jaxrl_off.estimators.trajectory.columns.target_policy import (
    TargetActions,
    target_actions,
)
from jaxrl_off.estimators.trajectory.columns.transitions import (
    ActionValues,
)
from jaxrl_off.estimators.trajectory.occupancy.tabular import (
    best_dice,
    density_ratio,
    dual_dice,
    gen_dice,
    marginalised_is,
    minimax_weight,
)
from jaxrl_off.estimators.trajectory.reward_processes.abstractions import (
    Abstraction,
)
from jaxrl_off.estimators.trajectory.reward_processes.process import (
    AbstractRewardProcess,
)
from jaxrl_off.estimators.trajectory.reward_processes.selection import (
    Candidates,
    Selection,
    opera,
    select_by_error,
    select_by_slope,
    star_candidates,
)
from jaxrl_off.estimators.trajectory.reward_processes.star import (
    abstract_reward_process,
    star,
    star_values,
)
from jaxrl_off.estimators.trajectory.streaming import (
    Moments,
    Stream,
    merge,
    star_streaming,
)
from jaxrl_off.estimators.trajectory.suite import (
    ESTIMATORS,
    evaluate,
)
from jaxrl_off.estimators.trajectory.values.fitting_model import (
    FittedModelConfig,
)
from jaxrl_off.estimators.trajectory.values.linear import (
    LinearQ,
    fit_linear_q,
    linear_q_evaluation,
)
from jaxrl_off.estimators.trajectory.values.model import (
    FittedModel,
    fit_model,
    model_values,
)
from jaxrl_off.estimators.trajectory.values.network import (
    FittedQ,
    FittedQConfig,
    MinimaxQConfig,
    fit_network_q,
    fitted_q_evaluation,
    network_values,
)
from jaxrl_off.estimators.trajectory.values.tabular import (
    model_based,
    mrdr,
    q_regression,
    tabular_q,
    values_on,
)
from jaxrl_off.estimators.trajectory.values.traces import (
    fit_traces,
    trace_evaluation,
)
from jaxrl_off.estimators.trajectory.weights.doubly_robust import (
    cross_fitted,
    direct_method,
    double_reinforcement_learning,
    doubly_robust,
    weighted_doubly_robust,
)
from jaxrl_off.estimators.trajectory.weights.importance import (
    cwpdis,
    empirical_likelihood,
    naive,
    pdis,
    trajectory_is,
    wis,
)
from jaxrl_off.estimators.trajectory.weights.magic import (
    magic,
)

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory import (
        behaviour,
        bounds,
        columns,
        occupancy,
        reward_processes,
        statistics,
        steps,
        streaming,
        suite,
        values,
        weights,
    )

__all__ = [
    "ESTIMATORS",
    "AbstractRewardProcess",
    "Abstraction",
    "ActionValues",
    "BehaviourReport",
    "Candidates",
    "FittedModel",
    "FittedModelConfig",
    "FittedQ",
    "FittedQConfig",
    "LinearQ",
    "MinimaxQConfig",
    "Moments",
    "Selection",
    "Stream",
    "TargetActions",
    "abstract_reward_process",
    "behaviour",
    "best_dice",
    "bounds",
    "clone_behaviour",
    "columns",
    "cross_fitted",
    "cwpdis",
    "density_ratio",
    "direct_method",
    "double_reinforcement_learning",
    "doubly_robust",
    "dual_dice",
    "empirical_likelihood",
    "evaluate",
    "fit_linear_q",
    "fit_model",
    "fit_network_q",
    "fit_traces",
    "fitted_q_evaluation",
    "gen_dice",
    "linear_q_evaluation",
    "magic",
    "marginalised_is",
    "merge",
    "minimax_weight",
    "model_based",
    "model_values",
    "mrdr",
    "naive",
    "network_values",
    "occupancy",
    "opera",
    "pdis",
    "q_regression",
    "reward_processes",
    "select_by_error",
    "select_by_slope",
    "star",
    "star_candidates",
    "star_streaming",
    "star_values",
    "statistics",
    "steps",
    "streaming",
    "suite",
    "tabular_q",
    "target_actions",
    "trace_evaluation",
    "trajectory_is",
    "values",
    "values_on",
    "weighted_doubly_robust",
    "weights",
    "wis",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
