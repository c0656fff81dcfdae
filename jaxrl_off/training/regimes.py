"""Regimes: named `LoopSettings`, from fresh data only to the paper's large, stale replay."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, NamedTuple

from jaxrl_off.training.settings import LoopSettings


class Regime(NamedTuple):
    """How data are collected and reused.

    Attributes:
        num_envs: lanes.
        settings: sizes of the loop; `total_steps` is a default to override.
        source: where the numbers come from.
    """

    num_envs: int
    settings: LoopSettings
    source: str


_SMALL_REPLAY = LoopSettings(
    total_steps=2_000_000,
    collect_length=32,
    rollout_length=32,
    batch_size=512,
    reuse=8.0,
    replay_capacity=32_768,
    publish_interval=1,
    burn_in=1024,
)

_PAPER = LoopSettings(
    total_steps=60_000_000,
    collect_length=256,
    rollout_length=32,
    batch_size=1024,
    reuse=7.0,
    replay_capacity=16 * 16_384,
    publish_interval=100,
    burn_in=1024,
    log_points=300,
)

REGIMES: dict[str, Regime] = {
    "ppo": Regime(
        4,
        LoopSettings(
            total_steps=1_000_000, collect_length=128, rollout_length=1, batch_size=128, reuse=4.0, replay_capacity=0
        ),
        "4 lanes of 128 steps, 4 epochs of 4 minibatches: the defaults of CleanRL's ppo.py.",
    ),
    "data_scarce": Regime(
        16,
        _SMALL_REPLAY,
        "The paper's data-scarce setting (16 actors, each sample used about 7 to 8 times, roll-outs of 32) scaled "
        "down to MinAtar: a replay of 32768 samples over all lanes, batches of 16 roll-outs. Sizes are ours.",
    ),
    "data_rich": Regime(
        16,
        dataclasses.replace(_SMALL_REPLAY, reuse=1.0),
        "data_scarce with every sample used once on average, so that reuse is all that differs.",
    ),
    "off_policy": Regime(
        4,
        LoopSettings(
            total_steps=100_000,
            collect_length=32,
            rollout_length=1,
            batch_size=256,
            reuse=256.0,
            replay_capacity=102_400,
            burn_in=4096,
        ),
        "One update of 256 samples per sample collected, as SAC and N-PPAC; everything collected is kept. Lanes and lengths "
        "are ours.",
    ),
    "npg": Regime(
        16,
        LoopSettings(
            total_steps=1_000_000,
            collect_length=200,
            rollout_length=200,
            batch_size=3200,
            reuse=1.0,
            replay_capacity=0,
        ),
        "Fresh data and one update of all of it, as natural policy gradients (npg, dapg): 16 lanes of 200 steps. The authors "
        "of DAPG take 200 trajectories of up to 200 steps in each of 100 iterations.",
    ),
    "rlpd": Regime(
        1,
        LoopSettings(
            total_steps=250_000,
            collect_length=50,
            rollout_length=1,
            batch_size=256,
            reuse=20.0 * 256.0,
            replay_capacity=250_000,
            burn_in=5000,
        ),
        "RLPD (Ball et al., 2023): 20 updates of 256 samples per sample collected, the first after 5000. Its code updates "
        "after every sample, this after 50.",
    ),
    "paper_data_scarce": Regime(
        16,
        _PAPER,
        "Wang et al. (2019), Table 1 and section 5.1: 16 actors, roll-outs of 32, batches of 1024, 60M samples "
        "generated and 400M trained on (reuse 6.7, here 7), publication every 100 updates, burn-in 1024. Replay 16384 "
        "samples per actor, as the authors' code reads the table. collect_length is ours: their actors run "
        "asynchronously.",
    ),
    "paper_data_rich": Regime(
        64,
        dataclasses.replace(_PAPER, total_steps=240_000_000, reuse=1.75, replay_capacity=64 * 16_384),
        "Wang et al. (2019), Appendix C, Figure 4: as paper_data_scarce with 64 actors. Inferred, since the paper "
        "gives no totals for it: four times the samples and a quarter of the reuse at the same number of updates.",
    ),
}
"""See `jaxrl-off list regimes`. "The paper" is Wang et al., "Divergence-Augmented Policy Optimization", NeurIPS
2019."""


def regime(name: str, **overrides: Any) -> Regime:
    """A named regime.

    Args:
        name: a key of `REGIMES`.
        **overrides: `num_envs`, and fields of `LoopSettings` that differ.

    Returns:
        The `Regime`; `plan(regime.settings, regime.num_envs)` checks whether its sizes fit together.

    Raises:
        ValueError: for an unknown regime or field.

    Example:
        >>> regime("data_rich", total_steps=100_000).settings.reuse
        1.0
    """
    if name not in REGIMES:
        close = difflib.get_close_matches(name, REGIMES, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown regime {name!r}; {hint}known are: {', '.join(REGIMES)}.")
    fields = ["num_envs", *(field.name for field in dataclasses.fields(LoopSettings))]
    unknown = [key for key in overrides if key not in fields]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no size of a regime; sizes are: {', '.join(fields)}.")
    base = REGIMES[name]
    num_envs = overrides.pop("num_envs", base.num_envs)
    return Regime(num_envs, dataclasses.replace(base.settings, **overrides), base.source)
