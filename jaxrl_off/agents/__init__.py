"""Algorithms: one file a family, each with a `Config`, its presets and `make(config, spec, ...) -> Agent`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.agents.base import ActOutput, Agent, Chunk
from jaxrl_off.agents.dapg_config import DapgConfig
from jaxrl_off.agents.dapg_updates import NaturalGradientState
from jaxrl_off.agents.divergence_augmented import AgentState
from jaxrl_off.agents.divergence_augmented_config import DivergenceAugmentedConfig
from jaxrl_off.agents.families import (
    FAMILIES,
    PRESETS,
    Family,
    check,
    family_of,
    make,
    make_policy,
    policy_layers,
    preset,
    register,
    wants_demonstrations,
    wants_reference,
)
from jaxrl_off.agents.kl_regularised_config import KLRegularisedConfig
from jaxrl_off.agents.kl_regularised_updates import ActorCriticState

if TYPE_CHECKING:
    from jaxrl_off.agents import (
        base,
        dapg,
        dapg_config,
        dapg_updates,
        divergence_augmented,
        divergence_augmented_config,
        divergence_augmented_losses,
        families,
        kl_regularised,
        kl_regularised_config,
        kl_regularised_losses,
        kl_regularised_updates,
        layers,
        normalisation,
    )

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
    "Family",
    "KLRegularisedConfig",
    "NaturalGradientState",
    "base",
    "check",
    "dapg",
    "dapg_config",
    "dapg_updates",
    "divergence_augmented",
    "divergence_augmented_config",
    "divergence_augmented_losses",
    "families",
    "family_of",
    "kl_regularised",
    "kl_regularised_config",
    "kl_regularised_losses",
    "kl_regularised_updates",
    "layers",
    "make",
    "make_policy",
    "normalisation",
    "policy_layers",
    "preset",
    "register",
    "wants_demonstrations",
    "wants_reference",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
