"""All families under one roof: presets by name, and `make` for whatever config is given."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from jaxrl_off.agents import (
    dapg,
    dapg_config,
    divergence_augmented,
    divergence_augmented_config,
    kl_regularised,
    kl_regularised_config,
)
from jaxrl_off.agents.base import Agent
from jaxrl_off.agents.layers import PolicyLayers
from jaxrl_off.agents.normalisation import NormalisedState, layers_with_moments
from jaxrl_off.envs.base import EnvironmentSpec


class Family(NamedTuple):
    """Algorithms that are one algorithm with different settings.

    Attributes:
        config: its configuration class.
        presets: `{name: fields that differ from the defaults}`.
        preset: `(name, **overrides) -> config`.
        check: raises a ValueError for a config that is invalid.
        make: `(config, spec, total_updates=..., ...) -> Agent`.
        make_policy: `(config, spec) -> (state, observation) -> distribution`, the policy of such an agent, for which no
            references and demonstrations are needed.
        policy_layers: `(config, spec, state) -> PolicyLayers`, that policy as arrays; None where it cannot be given.
    """

    config: type
    presets: dict[str, dict[str, Any]]
    preset: Callable[..., Any]
    check: Callable[[Any], None]
    make: Callable[..., Agent]
    make_policy: Callable[[Any, EnvironmentSpec], Callable[[Any, Any], Any]]
    policy_layers: Callable[[Any, EnvironmentSpec, Any], PolicyLayers] | None = None


def _family(config: type, settings: ModuleType, module: ModuleType) -> Family:
    return Family(
        config, settings.PRESETS, settings.preset, settings.check, module.make, module.make_policy, module.policy_layers
    )


def register(name: str, family: Family) -> None:
    """Add a family of your own, so that `preset`, `make`, `training.run` and the command line know its presets.

    Args:
        name: of the family; must be new.
        family: its parts; its presets must be new, too.

    Raises:
        ValueError: for a name or presets that are taken.
    """
    taken = [x for x in ({name} & FAMILIES.keys()) | (family.presets.keys() & PRESETS.keys())]
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))} is taken; choose another name.")
    FAMILIES[name] = family
    PRESETS.update(family.presets)


FAMILIES: dict[str, Family] = {
    "divergence_augmented": _family(
        divergence_augmented_config.DivergenceAugmentedConfig, divergence_augmented_config, divergence_augmented
    ),
    "kl_regularised": _family(kl_regularised_config.KLRegularisedConfig, kl_regularised_config, kl_regularised),
    "dapg": _family(dapg_config.DapgConfig, dapg_config, dapg),
}
PRESETS: dict[str, dict[str, Any]] = {
    name: fields for family in FAMILIES.values() for name, fields in family.presets.items()
}


def family_of(config: Any) -> str:
    """Key of `FAMILIES` that a config belongs to.

    Raises:
        TypeError: if it belongs to none.
    """
    for name, family in FAMILIES.items():
        if isinstance(config, family.config):
            return name
    known = ", ".join(family.config.__name__ for family in FAMILIES.values())
    raise TypeError(f"{type(config).__name__} is no configuration of an agent; those are: {known}.")


def preset(name: str, **overrides: Any) -> Any:
    """A named member of any family.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of its configuration that differ from the preset.

    Returns:
        A checked config of the family that has the preset.

    Raises:
        ValueError: for an unknown preset, field or choice, or a number outside its range.

    Example:
        >>> preset("ppo_da", learning_rate=3e-4).divergence, preset("sac").temperature
        ('kl', 'entropy')
    """
    for family in FAMILIES.values():
        if name in family.presets:
            return family.preset(name, **overrides)
    raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")


def wants_reference(config: Any) -> bool:
    """Whether `make` wants a reference policy for this config."""
    return getattr(config, "with_reference", False)


def wants_demonstrations(config: Any) -> bool:
    """Whether `make` wants demonstrations for this config."""
    return getattr(config, "with_demonstrations", False)


def check(config: Any) -> None:
    """Refuse a config whose choices or numbers cannot be meant.

    Raises:
        ValueError: naming the field, what was given and what is allowed.
        TypeError: if it is no config of an agent.
    """
    FAMILIES[family_of(config)].check(config)


def make(config: Any, spec: EnvironmentSpec, *, total_updates: int, **parts: Any) -> Agent:
    """Build the agent that a config asks for; `parts` are those of its family's own `make`.

    Example:
        >>> from jaxrl_off import envs
        >>> agent = make(preset("ppo_da"), envs.make("CartPole-v1", 4).spec, total_updates=100)
    """
    return FAMILIES[family_of(config)].make(config, spec, total_updates=total_updates, **parts)


def make_policy(config: Any, spec: EnvironmentSpec) -> Callable[[Any, Any], Any]:
    """The published policy of the agent that `make` gives, as a function of its state.

    Args:
        config: of any family; neither a reference nor demonstrations are needed.
        spec: of the environment.

    Returns:
        `(state, observation[N, ...]) -> distribution [N]`, over canonical actions (the box mapped to [-1, 1]^D) where
        actions are continuous.

    Raises:
        ValueError: for a recurrent policy.
    """
    return FAMILIES[family_of(config)].make_policy(config, spec)


def policy_layers(config: Any, spec: EnvironmentSpec, state: Any) -> PolicyLayers:
    """The published policy of the agent that `make` gives, as dense layers in NumPy arrays.

    Args:
        config: of any family.
        spec: of the environment.
        state: of the agent, normalised or not.

    Returns:
        `PolicyLayers`, with the observation normalisation of the state.

    Raises:
        ValueError: for a policy that has other layers than dense ones, or recurrent state.
    """
    family = FAMILIES[family_of(config)]
    if family.policy_layers is None:
        raise ValueError(f"the family of {type(config).__name__} does not give its policy as dense layers.")
    normalised = isinstance(state, NormalisedState)
    try:
        layers = family.policy_layers(config, spec, state.agent if normalised else state)
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"the state of this agent does not hold the network that its config describes ({error}), for example because it "
            "was given a network of your own; its policy cannot be given as dense layers."
        ) from error
    return layers_with_moments(layers, state.observation) if normalised else layers
