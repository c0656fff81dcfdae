"""What estimators fit functions to: steps with their successors, the target's actions, tables, and features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.columns import (
        action_networks,
        ends,
        features,
        kernel_features,
        tables,
        target_policy,
        transitions,
    )

__all__ = [
    "action_networks",
    "ends",
    "features",
    "kernel_features",
    "tables",
    "target_policy",
    "transitions",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
