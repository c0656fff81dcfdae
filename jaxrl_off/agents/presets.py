"""What the configurations of all families share: static fields, named presets, checks with useful messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import flax.struct

Config = TypeVar("Config")


def static(default: Any) -> Any:
    """A field that is part of the program, not of its data: a switch or a size."""
    return flax.struct.field(pytree_node=False, default=default)


def build(
    config_class: type[Config], presets: Mapping[str, dict[str, Any]], name: str, overrides: dict[str, Any]
) -> Config:
    """The named preset with its overrides, unchecked.

    Raises:
        ValueError: for an unknown preset or field.
    """
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(presets)}.")
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    unknown = [key for key in overrides if key not in fields]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no field of the configuration; fields are: {', '.join(fields)}.")
    return config_class(**{**presets[name], **overrides})


def check_choices(config: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise a ValueError where a field is none of its choices."""
    for name, allowed in choices.items():
        given = getattr(config, name)
        if given not in allowed:
            raise ValueError(f"{name}={given!r} is not known; choose one of {', '.join(allowed)}.")


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ValueError where a plain number lies outside its range; arrays and tracers are not looked at."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(f"{name}={value} is outside [{low}, {high}].")
