"""Algorithms: one file a family, each a `Config`, its presets and `make(config, spec, ...) -> Agent`."""

from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.config import PRESETS, DivergenceAugmentedConfig, check, preset
from jaxrl_off.agents.divergence_augmented import AgentState, make

__all__ = [
    "PRESETS",
    "ActOutput",
    "Agent",
    "AgentState",
    "Chunk",
    "DivergenceAugmentedConfig",
    "check",
    "make",
    "preset",
]
