"""Names of the estimators for deterministic policies, and the rates at which their errors should fall."""

SHORT = {
    "cumulative_importance_sampling": "cumulative IS",
    "marginal_importance_sampling": "marginal IS",
    "direct_method": "direct method",
    "cumulative_doubly_robust": "cumulative DR",
    "marginal_doubly_robust": "marginal DR",
    "cumulative_policy_gradient": "cumulative policy gradient",
    "marginal_policy_gradient": "marginal policy gradient",
    "deterministic_policy_gradient": "DPG plug-in",
}
MARGINAL = ("marginal_importance_sampling", "direct_method", "marginal_doubly_robust")
CUMULATIVE = ("cumulative_importance_sampling", "cumulative_doubly_robust")


def expected_slope(method: str, horizon: int, *, gradient: bool) -> float:
    """-4 / (D + 4) of values, -4 / (D + 6) of gradients; D is 1 of marginal estimators, and the horizon of cumulative ones."""
    return -4.0 / ((horizon if method in CUMULATIVE else 1) + (6 if gradient else 4))
