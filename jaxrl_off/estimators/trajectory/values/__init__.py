"""Action values of the target policy, fitted to data: tables, linear features, traces, networks, models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.values import (
        fitting_minimax_q,
        fitting_model,
        fitting_q,
        linear,
        linear_systems,
        model,
        network,
        tabular,
        traces,
    )

__all__ = [
    "fitting_minimax_q",
    "fitting_model",
    "fitting_q",
    "linear",
    "linear_systems",
    "model",
    "network",
    "tabular",
    "traces",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
