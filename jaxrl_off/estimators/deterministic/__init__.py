"""Kernelised doubly robust estimates of the value of a deterministic policy, and of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.estimators.deterministic.bandwidth import (
    extrapolate,
    plug_in_bandwidth,
    rate_bandwidth,
    select_bandwidth,
)
from jaxrl_off.estimators.deterministic.behaviour import estimate_behaviour_density
from jaxrl_off.estimators.deterministic.estimates import METHODS, evaluate, gradient
from jaxrl_off.estimators.deterministic.gradients import GradientEstimate
from jaxrl_off.estimators.deterministic.learning import (
    OBJECTIVES,
    Learning,
    deterministic_policy_gradient,
    learn,
    split,
)
from jaxrl_off.estimators.deterministic.metric import kernel_metric
from jaxrl_off.estimators.deterministic.nuisances import (
    Nuisances,
    fit_action_gradient,
    fit_curvature,
    fit_nuisances,
    given_nuisances,
)
from jaxrl_off.estimators.deterministic.regressions import LinearSieve, NetworkRegression
from jaxrl_off.estimators.deterministic.smoothing import Smoothing, action_scale

if TYPE_CHECKING:
    from jaxrl_off.estimators.deterministic import (
        bandwidth,
        behaviour,
        estimates,
        gradients,
        learning,
        metric,
        nuisances,
        ratios,
        recursions,
        regressions,
        smoothing,
    )

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "GradientEstimate",
    "Learning",
    "LinearSieve",
    "NetworkRegression",
    "Nuisances",
    "Smoothing",
    "action_scale",
    "bandwidth",
    "behaviour",
    "deterministic_policy_gradient",
    "estimate_behaviour_density",
    "estimates",
    "evaluate",
    "extrapolate",
    "fit_action_gradient",
    "fit_curvature",
    "fit_nuisances",
    "given_nuisances",
    "gradient",
    "gradients",
    "kernel_metric",
    "learn",
    "learning",
    "metric",
    "nuisances",
    "plug_in_bandwidth",
    "rate_bandwidth",
    "ratios",
    "recursions",
    "regressions",
    "select_bandwidth",
    "smoothing",
    "split",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
