"""Metrics on disk: append-only JSON lines, CSV and TensorBoard, in constant memory.

A run writes one row per log interval. To resume after row `k`, open the writers with `keep_rows=k`: later rows are cut
off, so that the files end up as those of a run that was never interrupted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

JSONL_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
TENSORBOARD_NAME = "tensorboard"

Row = dict[str, float | int]


def plain_row(row: dict[str, Any]) -> Row:
    """Python numbers from scalars of NumPy or JAX.

    Float32 becomes the shortest decimal that stands for it (`0.1`, not `0.10000000149011612`).

    Raises:
        ValueError: if a value is no scalar number.
    """
    return {name: _plain(name, value) for name, value in row.items()}


def _plain(name: str, value: Any) -> float | int:
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biuf":
        raise ValueError(f"metric {name!r} must be a scalar number, got {array.dtype}{list(array.shape)}.")
    if array.dtype.kind != "f":
        return int(array)
    return float(array) if array.dtype == np.float64 else float(str(np.float32(array)))


class JsonlWriter:
    """One strict JSON object a line; what is not finite becomes `null`."""

    def __init__(self, path: str | Path, keep_rows: int = 0):
        """Open `path` and cut it after `keep_rows` rows.

        Raises:
            ValueError: if it holds fewer.
        """
        _truncate(Path(path), keep_rows)
        self._file = open(path, "a", encoding="utf-8", newline="\n")

    def write(self, row: Row) -> None:
        """Append one row; it is handed to the operating system at once."""
        clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CsvWriter:
    """Comma-separated values; the first row fixes the columns; what is not finite is left empty."""

    def __init__(self, path: str | Path, keep_rows: int = 0):
        """Open `path` and cut it after its header and `keep_rows` rows.

        Raises:
            ValueError: if it holds fewer.
        """
        _truncate(Path(path), keep_rows + 1 if keep_rows else 0)
        self._path = Path(path)
        self._columns: list[str] | None = None
        if keep_rows:
            with open(path, encoding="utf-8", newline="") as file:
                self._columns = next(csv.reader(file))
        self._file = open(path, "a", encoding="utf-8", newline="")

    def write(self, row: Row) -> None:
        """Append one row; it is handed to the operating system at once.

        Raises:
            ValueError: if its columns are not those of the first row.
        """
        if self._columns is None:
            self._columns = list(row)
            self._file.write(_csv_line(self._columns))
        if set(row) != set(self._columns):
            missing, extra = sorted(set(self._columns) - set(row)), sorted(set(row) - set(self._columns))
            raise ValueError(
                f"the columns of {self._path} were fixed by its first row; missing: {', '.join(missing) or 'none'}; "
                f"not in the file: {', '.join(extra) or 'none'}. Write NaN where a metric has no value."
            )
        self._file.write(_csv_line([row[name] if math.isfinite(row[name]) else "" for name in self._columns]))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardWriter:
    """Event files for TensorBoard, through tensorboardX."""

    def __init__(self, directory: str | Path, purge_step: int = 0):
        """Start an event file.

        Args:
            directory: where event files go.
            purge_step: the first step to come; TensorBoard then hides older events from there on, as event files cannot
                be cut.

        Raises:
            ImportError: if tensorboardX is not installed.
        """
        self._writer = require_tensorboardx().SummaryWriter(str(directory), purge_step=purge_step)

    def write(self, row: Row) -> None:
        """Append the finite values of one row at its `steps`."""
        for name, value in row.items():
            if name != "steps" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(row["steps"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MetricsWriters:
    """All writers of a run's directory as one."""

    def __init__(self, directory: str | Path, *, keep_rows: int = 0, tensorboard: bool = False):
        """Open `metrics.jsonl`, `metrics.csv` and, if asked for, `tensorboard/`.

        Args:
            directory: of the run; made if missing.
            keep_rows: rows to keep from before; 0 starts afresh.
            tensorboard: also write event files.

        Raises:
            ImportError: if `tensorboard` and tensorboardX is not installed; raised before any file is touched.
            ValueError: if the files hold fewer than `keep_rows` rows.
        """
        if tensorboard:
            require_tensorboardx()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._writers: list[Any] = [JsonlWriter(directory / JSONL_NAME, keep_rows)]
        self._writers.append(CsvWriter(directory / CSV_NAME, keep_rows))
        if tensorboard:
            last = read_last_row(directory)
            purge = int(last["steps"]) + 1 if last else 0
            self._writers.append(TensorboardWriter(directory / TENSORBOARD_NAME, purge))

    def write(self, row: Row) -> None:
        """Append one row of `plain_row` to every file."""
        for writer in self._writers:
            writer.write(row)

    def close(self) -> None:
        """Close every file."""
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> MetricsWriters:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_tensorboardx() -> Any:
    """The package tensorboardX.

    Raises:
        ImportError: if it is not installed, naming the extra that brings it.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            'tensorboard=True needs tensorboardX, which is not installed: pip install "jaxrl_off[tensorboard]".'
        ) from error
    return tensorboardX


def read_last_row(directory: str | Path) -> Row | None:
    """The last complete row of a run's `metrics.jsonl` (`null` read as NaN), or None if there is none."""
    path = Path(directory) / JSONL_NAME
    if not path.exists():
        return None
    last = b""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                last = line
    if not last:
        return None
    return {name: math.nan if value is None else value for name, value in json.loads(last).items()}


def _truncate(path: Path, lines: int) -> None:
    """Cut a file after so many complete lines, reading it one line at a time."""
    if not path.exists():
        if lines:
            raise ValueError(_too_short(path, lines, 0))
        return
    with open(path, "r+b") as file:
        end = 0
        for found in range(lines):
            line = file.readline()
            if not line.endswith(b"\n"):
                raise ValueError(_too_short(path, lines, found))
            end += len(line)
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())


def _too_short(path: Path, wanted: int, found: int) -> str:
    return (
        f"{path} holds {found} complete lines, but the checkpoint to resume from was written after line {wanted}; the "
        "file was changed or lost. Restore it, or start the run again in a new directory."
    )


def _csv_line(values: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
