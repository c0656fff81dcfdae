"""Judging policies with data that other policies generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.estimators import (
        bandit,
        common,
        deterministic,
        metrics,
        selection,
        trajectory,
    )

__all__ = [
    "bandit",
    "common",
    "deterministic",
    "metrics",
    "selection",
    "trajectory",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
