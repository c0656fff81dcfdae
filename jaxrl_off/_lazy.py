"""Modules that are imported when they are first used, one helper for every `__init__.py` of the package."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import Any


def modules_on_demand(package: str, public: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose modules are reachable as attributes without an import statement.

    A package lists every public name in `__all__`, functions and modules alike, and imports its functions as usual. A
    listed name that is not bound yet is a module, which is imported when the attribute is first asked for. A function
    that has the name of a module (`training.run`) is imported by the package, hence it is bound first and stays.

    Args:
        package: `__name__` of the package.
        public: its `__all__`.

    Returns:
        The two functions, to be assigned to `__getattr__` and `__dir__`.
    """

    def get(name: str) -> Any:
        if name in public:
            return importlib.import_module(f"{package}.{name}")
        near = difflib.get_close_matches(name, public, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint} It has: {', '.join(public)}.")

    def names() -> list[str]:
        return sorted(public)

    return get, names
