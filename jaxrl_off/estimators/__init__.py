"""Judging policies with data that other policies generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.estimators.warnings import warnings_of

if TYPE_CHECKING:
    from jaxrl_off.estimators import (
        bandit,
        common,
        deterministic,
        metrics,
        selection,
        trajectory,
        warnings,
    )

__all__ = [
    "bandit",
    "common",
    "deterministic",
    "metrics",
    "selection",
    "trajectory",
    "warnings",
    "warnings_of",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
