"""Estimators that weight whole trajectories or steps: importance sampling, and its doubly robust corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.weights import (
        doubly_robust,
        forms,
        importance,
    )

__all__ = [
    "doubly_robust",
    "forms",
    "importance",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
