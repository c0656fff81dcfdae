"""The value of a policy from logged decisions of one step each: estimates, intervals, and learning from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.estimators.bandit.cressie_read import cressie_read, euclidean, power_divergence
from jaxrl_off.estimators.bandit.empirical import (
    ControlVariates,
    action_control_variates,
    censored_empirical_likelihood,
    empirical_likelihood,
    empirical_likelihood_difference,
    likelihood_weights,
    predictor_control_variates,
)
from jaxrl_off.estimators.bandit.learning import LearnedPolicy, Learning, learn
from jaxrl_off.estimators.bandit.online import Grid, Histogram, grid_of, make_histogram, update_histogram
from jaxrl_off.estimators.bandit.reward_models import cross_fitted
from jaxrl_off.estimators.bandit.weighted import (
    clipped_ips,
    direct_method,
    doubly_robust,
    emp,
    ips,
    pseudo_inverse,
    self_normalised_doubly_robust,
    shrunk_doubly_robust,
    snips,
    sub_gaussian_ips,
    switch_doubly_robust,
)
from jaxrl_off.estimators.selection import slope

if TYPE_CHECKING:
    from jaxrl_off.estimators.bandit import (
        common,
        empirical,
        empirical_core,
        learning,
        online,
        reward_models,
        terms,
        weighted,
    )

__all__ = [
    "ControlVariates",
    "Grid",
    "Histogram",
    "LearnedPolicy",
    "Learning",
    "action_control_variates",
    "censored_empirical_likelihood",
    "clipped_ips",
    "common",
    "cressie_read",
    "cross_fitted",
    "direct_method",
    "doubly_robust",
    "emp",
    "empirical",
    "empirical_core",
    "empirical_likelihood",
    "empirical_likelihood_difference",
    "euclidean",
    "grid_of",
    "ips",
    "learn",
    "learning",
    "likelihood_weights",
    "make_histogram",
    "online",
    "power_divergence",
    "predictor_control_variates",
    "pseudo_inverse",
    "reward_models",
    "self_normalised_doubly_robust",
    "shrunk_doubly_robust",
    "slope",
    "snips",
    "sub_gaussian_ips",
    "switch_doubly_robust",
    "terms",
    "update_histogram",
    "weighted",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
