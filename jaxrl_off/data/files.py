"""Files: arrays are written whole or not at all and never over another unasked, text is read whether compressed or not."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

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


@contextlib.contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """Open UTF-8 text, which a name that ends in `.gz` says is compressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decompressed or decoded.
    """
    opened = gzip.open if str(path).lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not {'gzipped ' * (opened is gzip.open)}UTF-8 text ({error}).") from error


def suffix_of(path: str | Path) -> str:
    """What a name says that a file is, in lower case: `.csv` of `log.csv` and of `LOG.CSV.GZ`."""
    suffixes = Path(str(path).lower()).suffixes or [""]
    return suffixes[-2] if suffixes[-1] == ".gz" and len(suffixes) > 1 else suffixes[-1]


def parse_number(text: str) -> float:
    """A number that is written in ASCII, without the `_` between digits that Python allows.

    Raises:
        ValueError: if it is none.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"could not convert {text!r} to a number")
    return float(text)
