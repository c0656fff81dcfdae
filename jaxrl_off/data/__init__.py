"""Replay; readers and writers of trajectories, bandit logs and demonstrations; policies and pytrees as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off.data import (
        bandit_files,
        bandit_logs,
        demonstrations,
        files,
        minari_files,
        policy_files,
        replay,
        trajectories,
        trajectory_checks,
        trajectory_order,
        trajectory_streams,
        trees,
        vowpal_wabbit,
    )

__all__ = [
    "bandit_files",
    "bandit_logs",
    "demonstrations",
    "files",
    "minari_files",
    "policy_files",
    "replay",
    "trajectories",
    "trajectory_checks",
    "trajectory_order",
    "trajectory_streams",
    "trees",
    "vowpal_wabbit",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
