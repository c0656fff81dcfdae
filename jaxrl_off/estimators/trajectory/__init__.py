"""The value of a policy from whole trajectories of another one: estimates, intervals, and what they lean on.

`evaluate` runs many estimators at once. Modules are namespaces of what belongs together:

| module | what is in it |
|---|---|
| `weighted` | importance sampling: ordinary, per decision, weighted; empirical likelihood |
| `corrected` | direct, doubly robust, mixed (MAGIC), double reinforcement learning; cross-fitting |
| `star`, `abstractions`, `star_selection` | abstract reward processes, their abstractions, and rules that choose among them |
| `tabular`, `tabular_occupancy` | finite states and actions: models, action values, marginal ratios, DICE |
| `linear_q`, `linear_occupancy`, `traces` | linear features in closed form: LSTD-Q, regressions, Retrace and its kin, DICE |
| `linear_features`, `linear_systems` | the features and systems of these, and what is done where there is no fixed point |
| `fitted_q`, `fitted_model`, `network_occupancy` | networks: fitted Q-evaluation, minimax Q, models, DICE, minimax weights |
| `target_policy`, `transitions` | what the target would do in every state, `target_actions`; steps to fit functions to |
| `streaming` | estimates of trajectories that do not fit into memory |
| `suite` | `evaluate` and its table of estimators |
"""

from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.suite import evaluate
from jaxrl_off.estimators.trajectory.weights.doubly_robust import (
    cross_fitted,
    direct_method,
    double_reinforcement_learning,
    doubly_robust,
    magic,
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

__all__ = [
    "TargetActions",
    "cross_fitted",
    "cwpdis",
    "direct_method",
    "double_reinforcement_learning",
    "doubly_robust",
    "empirical_likelihood",
    "evaluate",
    "magic",
    "naive",
    "pdis",
    "target_actions",
    "trajectory_is",
    "weighted_doubly_robust",
    "wis",
]
