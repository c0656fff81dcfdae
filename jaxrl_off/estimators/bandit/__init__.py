"""The value of a policy from logged decisions of one step each: estimates, intervals, and learning from them."""

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

__all__ = [
    "ControlVariates",
    "Grid",
    "Histogram",
    "LearnedPolicy",
    "Learning",
    "action_control_variates",
    "censored_empirical_likelihood",
    "clipped_ips",
    "cressie_read",
    "cross_fitted",
    "direct_method",
    "doubly_robust",
    "emp",
    "empirical_likelihood",
    "empirical_likelihood_difference",
    "euclidean",
    "grid_of",
    "ips",
    "learn",
    "likelihood_weights",
    "make_histogram",
    "power_divergence",
    "predictor_control_variates",
    "pseudo_inverse",
    "self_normalised_doubly_robust",
    "shrunk_doubly_robust",
    "slope",
    "snips",
    "sub_gaussian_ips",
    "switch_doubly_robust",
    "update_histogram",
]
