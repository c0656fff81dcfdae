"""Learn from, and judge policies with, data that some other policy generated: pure functions that JAX compiles.

Sub-packages are imported when first used, so that `import jaxrl_off` costs little more than `import jax`:
`types`, `ops`, `distributions`, `networks`, `envs`, `data`, `references`, `agents`, `training`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = ("agents", "data", "distributions", "envs", "networks", "ops", "references", "training", "types")
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    """Import a sub-package on first use."""
    if name in _SUBMODULES:
        return importlib.import_module(f"jaxrl_off.{name}")
    raise AttributeError(f"module 'jaxrl_off' has no attribute {name!r}; it has: {', '.join(_SUBMODULES)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
