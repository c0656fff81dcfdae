"""What the commands share: tables, choices with suggestions, JSON options."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

_ALIASES = {  # what Python calls otherwise than the command line
    "weight_range": "weight_max",
    "clip_actions": "repair_demonstrations",
    "repair": "repair_demonstrations",
}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int | None = None) -> None:
    """Print a table that fits into the terminal's width.

    Args:
        title: printed above.
        columns: names.
        rows: cells.
        texts: how many columns from the left are text; the others are numbers, which are never broken, whereas the first column
            is where need be. None for text alone, of which the first column is never broken.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table() if texts is None else Table(box=box.SIMPLE_HEAD, padding=(0, 0))
    for i, column in enumerate(columns):
        numbers = texts is not None and i >= texts
        whole = i == 0 if texts is None else i > 0
        table.add_column(column, overflow="fold", no_wrap=whole, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print(title)  # rich would break it at the table's width
    Console().print(table)


def in_flags(message: str, options: Any) -> str:
    """A message of the library with its options spelled as those of the command: `on_bad='drop'` becomes `--on-bad drop`.

    Args:
        message: of an error.
        options: of the command, a dataclass.
    """
    known = {field.name for field in dataclasses.fields(options)}
    names = {name: name for name in known} | {name: flag for name, flag in _ALIASES.items() if flag in known}

    def flag(match: re.Match[str]) -> str:
        option, value = "--" + names[match["name"]].replace("_", "-"), match["value"]
        if value == "True":
            return option
        quoted = value[0] in "'\"" and re.fullmatch(r"[\w.]+", value[1:-1])
        return f"{option} {value[1:-1] if quoted else value}"

    spelled = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    message = re.sub(rf"\b(?P<name>{spelled})=(?P<value>'[^']*'|\"[^\"]*\"|[\w.+-]*\w)", flag, message)
    options_alone = "|".join(
        name for name in names if name in ("weight_range", "reward_range", "return_range", "num_actions")
    )
    if not options_alone:
        return message
    return re.sub(rf"(?<!`)\b({options_alone})\b", lambda match: "--" + names[match[1]].replace("_", "-"), message)


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
