"""Algorithms: one file a family, each with a `Config`, its presets and `make(config, spec, ...) -> Agent`."""

from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.dapg import DapgConfig, NaturalGradientState
from jaxrl_off.agents.divergence_augmented import AgentState
from jaxrl_off.agents.divergence_augmented_config import DivergenceAugmentedConfig
from jaxrl_off.agents.families import (
    FAMILIES,
    PRESETS,
    check,
    family_of,
    make,
    preset,
    wants_demonstrations,
    wants_reference,
)
from jaxrl_off.agents.kl_regularised import ActorCriticState
from jaxrl_off.agents.kl_regularised_config import KLRegularisedConfig

__all__ = [
    "FAMILIES",
    "PRESETS",
    "ActOutput",
    "ActorCriticState",
    "Agent",
    "AgentState",
    "Chunk",
    "DapgConfig",
    "DivergenceAugmentedConfig",
    "KLRegularisedConfig",
    "NaturalGradientState",
    "check",
    "family_of",
    "make",
    "preset",
    "wants_demonstrations",
    "wants_reference",
]
