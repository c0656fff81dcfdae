"""Environments behind one interface; `make(name, num_envs)` builds any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.envs.base import (
    ContinuousSpace,
    DiscreteSpace,
    Environment,
    EnvironmentSpec,
    LaneEnvironment,
    Transitioned,
    vectorise,
)
from jaxrl_off.pytrees import nearest

if TYPE_CHECKING:
    from jaxrl_off.envs import (
        adroit,
        atari,
        base,
        brax_envs,
        chain,
        finite,
        gymnasium_envs,
        gymnax_envs,
        icu_sepsis,
        labelled_bandit,
        probes,
        tabular,
        workers,
    )

__all__ = [
    "ContinuousSpace",
    "DiscreteSpace",
    "Environment",
    "EnvironmentSpec",
    "LaneEnvironment",
    "Transitioned",
    "adroit",
    "atari",
    "base",
    "brax_envs",
    "chain",
    "families",
    "finite",
    "gymnasium_envs",
    "gymnax_envs",
    "icu_sepsis",
    "labelled_bandit",
    "make",
    "probes",
    "tabular",
    "vectorise",
    "workers",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)

families = {
    "gymnax": "jaxrl_off.envs.gymnax_envs",
    "brax": "jaxrl_off.envs.brax_envs",
    "ale": "jaxrl_off.envs.atari",
    "gymnasium": "jaxrl_off.envs.gymnasium_envs",
    "adroit": "jaxrl_off.envs.adroit",
    "probe": "jaxrl_off.envs.probes",
    "tabular": "jaxrl_off.envs.tabular",
}


def make(name: str | Environment | LaneEnvironment, num_envs: int, **parameters: Any) -> Environment:
    """Build an environment by name, or take one that is built already.

    Args:
        name: `"family/id"`; without a family, gymnax is meant. Examples: `"CartPole-v1"`, `"Breakout-MinAtar"`,
            `"brax/hopper"`, `"ale/breakout"`, `"gymnasium/HalfCheetah-v5"`, `"adroit/door"`, `"probe/discount"`,
            `"tabular/random"`. An `Environment` is returned as it is if it has `num_envs` lanes; a `LaneEnvironment`
            is vectorised.
        num_envs: number of lanes that run side by side.
        **parameters: passed to the family's own `make`.

    Returns:
        A batched `Environment`.

    Raises:
        TypeError: if `name` is neither text nor an environment of this library.
        ValueError: for an unknown family, id or parameter; for a built environment with another number of lanes, or one
            that is given parameters.
        ImportError: if the family's package is not installed; the message names the extra that brings it.

    Example:
        >>> import jax
        >>> env = make("CartPole-v1", num_envs=4)
        >>> state, timestep = env.reset(jax.random.key(0))
        >>> timestep.observation.shape
        (4, 4)
    """
    if isinstance(name, (Environment, LaneEnvironment)):
        return _built(name, num_envs, parameters)
    if not isinstance(name, str):
        raise TypeError(
            "an environment is given by a name such as 'CartPole-v1', as an Environment or as a LaneEnvironment, got a "
            f"{type(name).__module__}.{type(name).__qualname__}. Gymnasium environments of your own: "
            "jaxrl_off.envs.gymnasium_envs.from_function(lambda: YourEnvironment(), num_envs, name)."
        )
    family, _, identifier = name.partition("/") if "/" in name else ("gymnax", "/", name)
    if family not in families:
        raise ValueError(
            f"unknown environment family {family!r} in {name!r}.{nearest(family, families)} Known are: "
            f"{', '.join(families)}; a name without a family is one of gymnax."
        )
    return importlib.import_module(families[family]).make(identifier, num_envs, **parameters)


def _built(given: Environment | LaneEnvironment, num_envs: int, parameters: dict[str, Any]) -> Environment:
    if parameters:
        raise ValueError(f"{given.spec.name} is built already and takes no parameters, got {', '.join(parameters)}.")
    if isinstance(given, LaneEnvironment):
        return vectorise(given, num_envs)
    if given.num_envs != num_envs:
        raise ValueError(
            f"{given.spec.name} has {given.num_envs} lanes, but num_envs={num_envs}; build it with that many, or pass a "
            "LaneEnvironment, which is vectorised here."
        )
    return given
