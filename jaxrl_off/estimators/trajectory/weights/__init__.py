"""Estimators that weight whole trajectories or steps: importance sampling, and its doubly robust corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.weights import (
        corrections,
        doubly_robust,
        forms,
        importance,
        magic,
    )

__all__ = [
    "corrections",
    "doubly_robust",
    "forms",
    "importance",
    "magic",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
