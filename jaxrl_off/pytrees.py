"""Frozen dataclasses that are pytrees: static fields, and checks of their values that name what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import flax.struct

Config = TypeVar("Config")


def static(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the compiled program, not of its data: a switch or a size.

    Args:
        default: the field's default; without one the field is required.

    Example:
        >>> import jax
        >>> @flax.struct.dataclass
        ... class Fit:
        ...     updates: int = static(10)
        ...     learning_rate: float = 1e-3
        >>> jax.tree.leaves(Fit())
        [0.001]
    """
    return flax.struct.field(pytree_node=False, default=default)


def build(
    config_class: type[Config], presets: Mapping[str, dict[str, Any]], name: str, overrides: dict[str, Any]
) -> Config:
    """The named preset with its overrides, unchecked.

    Raises:
        ValueError: for an unknown preset or field; the message lists all of them and names the nearest.
    """
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(presets)}.{nearest(name, presets)}")
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    unknown = [key for key in overrides if key not in fields]
    if unknown:
        hints = "".join(nearest(key, fields) for key in unknown)
        raise ValueError(f"unknown field {', '.join(unknown)}; the fields are {', '.join(fields)}.{hints}")
    return config_class(**{**presets[name], **overrides})


def check_choices(config: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise a ValueError if a field has a value that is not one of its choices."""
    for name, allowed in choices.items():
        given = getattr(config, name)
        if given not in allowed:
            hint = nearest(given, allowed)
            raise ValueError(f"{name}={given!r} is not known; choose one of {', '.join(allowed)}.{hint}")


POSITIVE = (math.nextafter(0.0, 1.0), math.inf)
"""The range of numbers above 0, for `check_ranges`."""


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ValueError if a field is no number, NaN, or outside its closed range; arrays and tracers are not looked at."""
    for name, allowed in ranges.items():
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number and not (value is None or isinstance(value, (str, bool, list, tuple, dict))):
            continue  # an array or a tracer
        if not number or math.isnan(value) or not allowed[0] <= value <= allowed[1]:
            bounds = "above 0" if allowed == POSITIVE else f"in [{allowed[0]:g}, {allowed[1]:g}]"
            raise ValueError(f"{name}={value!r} is not allowed: {name} must be a number {bounds}.")


def nearest(given: Any, allowed: Iterable[str]) -> str:
    """The sentence `" Did you mean 'x'?"` with the nearest allowed name; empty if none is near."""
    matches = difflib.get_close_matches(str(given), list(allowed), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
