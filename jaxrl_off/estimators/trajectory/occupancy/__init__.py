"""Marginal (state and action) occupancy ratios: tables, linear features, networks; DICE and minimax weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.occupancy import (
        fitting,
        linear,
        network,
        ratios,
        tabular,
    )

__all__ = [
    "fitting",
    "linear",
    "network",
    "ratios",
    "tabular",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
