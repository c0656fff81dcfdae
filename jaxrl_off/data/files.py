"""Files of arrays, written whole or not at all and never over another unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def new_npz(path: str | Path, what: str, *, overwrite: bool = False, otherwise: str = "remove it first") -> Path:
    """The path of an `.npz` that is to be written.

    Args:
        path: ends in `.npz`.
        what: goes into the file, for the error: "demonstrations are written".
        overwrite: whether a file of that name is replaced.
        otherwise: what the caller can do where there is one, besides giving another path.

    Raises:
        FileExistsError: if there is such a file and `overwrite` was not given.
        ValueError: if the path does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{what} to a path that ends in .npz, got {path}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another path, or {otherwise}.")
    return path


def write_npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays to a path of `new_npz`; its folder is made if need be. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
