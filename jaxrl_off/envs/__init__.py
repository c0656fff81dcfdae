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


def make(name: str, num_envs: int, **parameters: Any) -> Environment:
    """Build an environment by name.

    Args:
        name: `"family/id"`; without a family, gymnax is meant. Examples: `"CartPole-v1"`, `"Breakout-MinAtar"`,
            `"brax/hopper"`, `"ale/breakout"`, `"gymnasium/HalfCheetah-v5"`, `"adroit/door"`, `"probe/discount"`,
            `"tabular/random"`.
        num_envs: number of lanes that run side by side.
        **parameters: passed to the family's own `make`.

    Returns:
        A batched `Environment`.

    Raises:
        ValueError: for an unknown family, id or parameter.
        ImportError: if the family's package is not installed; the message names the extra that brings it.

    Example:
        >>> import jax
        >>> env = make("CartPole-v1", num_envs=4)
        >>> state, timestep = env.reset(jax.random.key(0))
        >>> timestep.observation.shape
        (4, 4)
    """
    family, _, identifier = name.partition("/") if "/" in name else ("gymnax", "/", name)
    if family not in families:
        raise ValueError(f"unknown environment family {family!r} in {name!r}; known are: {', '.join(families)}.")
    return importlib.import_module(families[family]).make(identifier, num_envs, **parameters)
