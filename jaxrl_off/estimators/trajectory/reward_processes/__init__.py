"""STAR: abstract reward processes, the abstractions of states they need, and rules that choose among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.reward_processes import (
        abstractions,
        process,
        selection,
        star,
    )

__all__ = [
    "abstractions",
    "process",
    "selection",
    "star",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
