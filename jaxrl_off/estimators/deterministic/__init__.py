"""Kernelised doubly robust estimates of the value of a deterministic policy, and of its gradient."""

from jaxrl_off.estimators.deterministic.bandwidth import extrapolate as extrapolate
from jaxrl_off.estimators.deterministic.bandwidth import plug_in_bandwidth as plug_in_bandwidth
from jaxrl_off.estimators.deterministic.bandwidth import rate_bandwidth as rate_bandwidth
from jaxrl_off.estimators.deterministic.bandwidth import select_bandwidth as select_bandwidth
from jaxrl_off.estimators.deterministic.behaviour import estimate_behaviour_density as estimate_behaviour_density
from jaxrl_off.estimators.deterministic.estimates import METHODS as METHODS
from jaxrl_off.estimators.deterministic.estimates import evaluate as evaluate
from jaxrl_off.estimators.deterministic.estimates import gradient as gradient
from jaxrl_off.estimators.deterministic.gradients import GradientEstimate as GradientEstimate
from jaxrl_off.estimators.deterministic.learning import OBJECTIVES as OBJECTIVES
from jaxrl_off.estimators.deterministic.learning import Learning as Learning
from jaxrl_off.estimators.deterministic.learning import deterministic_policy_gradient as deterministic_policy_gradient
from jaxrl_off.estimators.deterministic.learning import learn as learn
from jaxrl_off.estimators.deterministic.learning import split as split
from jaxrl_off.estimators.deterministic.metric import kernel_metric as kernel_metric
from jaxrl_off.estimators.deterministic.nuisances import Nuisances as Nuisances
from jaxrl_off.estimators.deterministic.nuisances import fit_action_gradient as fit_action_gradient
from jaxrl_off.estimators.deterministic.nuisances import fit_curvature as fit_curvature
from jaxrl_off.estimators.deterministic.nuisances import fit_nuisances as fit_nuisances
from jaxrl_off.estimators.deterministic.nuisances import given_nuisances as given_nuisances
from jaxrl_off.estimators.deterministic.regressions import LinearSieve as LinearSieve
from jaxrl_off.estimators.deterministic.regressions import NetworkRegression as NetworkRegression
from jaxrl_off.estimators.deterministic.smoothing import Smoothing as Smoothing
from jaxrl_off.estimators.deterministic.smoothing import action_scale as action_scale
