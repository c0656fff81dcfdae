"""What the commands share: tables, choices with suggestions, JSON options."""

from __future__ import annotations

import difflib
import importlib
import json
from typing import Any


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print(title)  # rich would break it at the table's width
    Console().print(table)


def check_choice(kind: str, given: str, known: list[str]) -> None:
    """Refuse what is not known, with close names."""
    if given in known:
        return
    by_lower = {name.lower(): name for name in known}
    close = [by_lower[name] for name in difflib.get_close_matches(given.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"unknown {kind} {given!r}; {hint}`jaxrl-off list {kind}s` shows them all.")


def check_environment(name: str) -> None:
    """Suggest close names over all families before anything is built."""
    from jaxrl_off.envs import families

    family, _, identifier = name.partition("/") if "/" in name else ("gymnax", "/", name)
    if family == "gymnasium":
        return  # takes more than its registry: ids without version, "module:id"
    if family in families and identifier in registered(family):
        return
    known = []
    for other in families:
        try:
            known += [identifier if other == "gymnax" else f"{other}/{identifier}" for identifier in registered(other)]
        except ImportError:
            continue
    check_choice("environment", name, known)


def registered(family: str) -> list[str]:
    """Names of a family of environments."""
    from jaxrl_off.envs import families

    return importlib.import_module(families[family]).registered()


def json_object(option: str, text: str) -> dict[str, Any]:
    """An option that is a JSON object.

    Raises:
        ValueError: if it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{option} must be a JSON object, got {text!r} ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, got {text!r}.")
    return value
