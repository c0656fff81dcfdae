"""Sizes of a training loop: the settings a user gives, and the whole numbers they come to."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Sizes of the loop, all static. A "sample" is one decision of one lane.

    Attributes:
        total_steps: samples to collect; rounded down to whole iterations, and to whole intervals between logs.
        collect_length: decisions per lane and iteration; a multiple of `rollout_length`. The TD(lambda) tail of a roll-out
            looks ahead to the end of the chunk.
        rollout_length: decisions per roll-out, the unit that is stored and sampled (1: single transitions).
        batch_size: samples per optimiser step; a multiple of `rollout_length`.
        reuse: how often a sample is used on average, `updates x batch_size / samples`.
        replay_capacity: samples kept over all lanes; 0 means fresh data only, in `reuse` shuffled epochs.
        publish_interval: updates between publications of the policy to the actors (paper: 100). Publication happens
            between iterations.
        burn_in: samples collected before the first update.
        log_points: rows of metrics that `train` returns; `run` writes as many. Up to twice as many, where that leaves fewer
            samples over.
    """

    total_steps: int
    collect_length: int = 128
    rollout_length: int = 1
    batch_size: int = 128
    reuse: float = 4.0
    replay_capacity: int = 0
    publish_interval: int = 1
    burn_in: int = 0
    log_points: int = 50

    def __post_init__(self) -> None:
        """Take whole floats such as `1e6` for integers.

        Raises:
            ValueError: for a size that is no whole number.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
            if field.name == "reuse":
                if not number or value <= 0:
                    raise ValueError(f"reuse must be a number above 0, got {value!r}.")
            elif not number or value != int(value):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}.")
            else:
                object.__setattr__(self, field.name, int(value))


class Plan(NamedTuple):
    """What `LoopSettings` come to for a number of lanes; all whole numbers."""

    samples_per_iteration: int
    rollouts_per_iteration: int
    rollouts_per_batch: int
    updates_per_iteration: int
    iterations: int
    burn_in_iterations: int
    log_points: int
    iterations_per_log: int

    @property
    def total_updates(self) -> int:
        """Optimiser steps of the whole run."""
        return self.iterations * self.updates_per_iteration

    def samples_after(self, number: int) -> int:
        """Samples collected after so many log intervals, burn-in included."""
        return (number * self.iterations_per_log + self.burn_in_iterations) * self.samples_per_iteration


def plan(settings: LoopSettings, num_envs: int) -> Plan:
    """Check the settings and work out the counts for `num_envs` lanes.

    Raises:
        ValueError: naming the sizes that do not fit and the nearest ones that would.
    """
    s = settings
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    for name in ("total_steps", "collect_length", "rollout_length", "batch_size", "publish_interval", "log_points"):
        if getattr(s, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(s, name)}.")
    if s.burn_in < 0:
        raise ValueError(f"burn_in must be at least 0, got {s.burn_in}.")
    if s.collect_length % s.rollout_length:
        raise ValueError(f"collect_length={s.collect_length} must be a multiple of rollout_length={s.rollout_length}.")
    if s.batch_size % s.rollout_length:
        raise ValueError(f"batch_size={s.batch_size} must be a multiple of rollout_length={s.rollout_length}.")
    samples = num_envs * s.collect_length
    exact = s.reuse * samples / s.batch_size
    updates = round(exact)
    if updates < 1 or abs(updates - exact) > 1e-6 * exact:
        raise ValueError(
            f"reuse={s.reuse} of {samples} samples per iteration in batches of {s.batch_size} makes {exact:.3f} updates, "
            f"which is no whole number; the nearest reuse that fits is {max(updates, 1) * s.batch_size / samples}."
        )
    if s.replay_capacity == 0:
        if samples % s.batch_size or updates % (samples // s.batch_size):
            raise ValueError(
                f"without a replay, reuse ({s.reuse}) must be a whole number of epochs and batch_size ({s.batch_size}) must "
                f"divide num_envs x collect_length ({samples}); set replay_capacity to sample with replacement instead."
            )
        if s.burn_in:
            raise ValueError("burn_in needs a replay; set replay_capacity or burn_in=0.")
    elif s.replay_capacity < max(samples, s.batch_size) or s.replay_capacity % s.rollout_length:
        raise ValueError(
            f"replay_capacity={s.replay_capacity} must be a multiple of rollout_length={s.rollout_length} and hold at least "
            f"one iteration ({samples} samples) and one batch ({s.batch_size})."
        )
    burn_in = -(-s.burn_in // samples)
    iterations = s.total_steps // samples - burn_in
    if iterations < 1:
        raise ValueError(
            f"total_steps={s.total_steps} is less than one iteration of {samples} samples after {burn_in} of burn-in."
        )
    per_log = iterations // min(s.log_points, iterations)
    log_points = iterations // per_log
    return Plan(
        samples_per_iteration=samples,
        rollouts_per_iteration=samples // s.rollout_length,
        rollouts_per_batch=s.batch_size // s.rollout_length,
        updates_per_iteration=updates,
        iterations=log_points * per_log,
        burn_in_iterations=burn_in,
        log_points=log_points,
        iterations_per_log=per_log,
    )
