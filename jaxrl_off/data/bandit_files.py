"""Logs of decisions of one step each, read from files: text, NumPy archives, Parquet, the Open Bandit Dataset.

Each is checked by `bandit_logs.check`, whose errors then name the file and, of text, the line. Vowpal Wabbit's text is
read by `vowpal_wabbit`.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import operator
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl_off.data.bandit_logs import Origin, Report, as_numbers, check, numbered
from jaxrl_off.data.files import open_text, parse_number, suffix_of
from jaxrl_off.types import BanditLog

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_DELIMITERS = (",", ";", "\t", "|")
_KINDS = ("any", "number", "text")  # of further columns
_AS_REWARD = {"": "nan", "true": "1", "false": "0"}  # cells in lower case
_Wanted = tuple[str, str]  # a name, and one of _KINDS, "number or empty" (a censored reward) or "features"


class _Table(NamedTuple):
    cells: dict[_Wanted, np.ndarray]
    names: Sequence[str]
    origin: Origin


def read_table(
    path: str | Path,
    *,
    action: str | None = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    target_propensity: str | None = None,
    named_actions: bool = False,
    context: Sequence[str] = (),
    columns: Sequence[str] | Mapping[str, str] = (),
    num_actions: int | None = None,
    reward_range: tuple[float, float] | None = None,
    delimiter: str | None = None,
    on_bad: str = "error",
) -> tuple[BanditLog, Report]:
    """Read a checked log from a table with named columns.

    Args:
        path: delimited text with a line of names (`.csv`, `.tsv` or `.txt`, also with `.gz`), Parquet (`.parquet`,
            `.pq`), or NumPy's `.npz`, of which an array is a column.
        action: name of the column of actions; None where nothing will look at them, and all are 0.
        reward: of rewards; an empty cell, a null or NaN is a censored reward. Text may be True or False.
        propensity: of h(a|x).
        target_propensity: of pi(a|x), or None.
        named_actions: whether actions are names or ids instead of numbers from 0. They are numbered in alphabetical order, as
            by `bandit_logs.numbered`, and their text is kept in `columns`.
        context: of features, in the order wanted; arrays of an `.npz` may be `[n, d]`.
        columns: of further columns to be kept, or a dictionary of what they hold by name. "number": finite numbers, one
            a row, others are not allowed. "text": as it stands, a null is empty. "any" (of names alone): what the file
            has; in text, integers or floats if all cells are written as Python writes those, so that nothing is lost
            ("01", "1e3" and "0.50" are text).
        num_actions: K; None for the largest action of the rows that are kept, and one.
        reward_range: as in `bandit_logs.check`.
        delimiter: between cells of text; None for a tab in `.tsv` and else a comma.
        on_bad: "error", or "drop" for malformed lines and for rows with values that are not allowed. A quote that is
            never closed takes in all lines after it, and always is an error.

    Returns:
        The log, with types as `from_arrays` says, and the report.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for Parquet, without pyarrow.
        ValueError: for columns that are not there, and, with file and line, malformed lines and values that are not
            allowed.
    """
    if isinstance(context, str) or isinstance(columns, str):
        raise ValueError(
            f"context and columns must be lists of names, got {context!r} and {columns!r}; put one name in a list."
        )
    further = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, "any")
    for name, kind in further.items():
        if kind not in _KINDS:
            raise ValueError(f"the column {name} must be one of {', '.join(_KINDS)}, got {kind!r}.")
    if action is None and named_actions:
        raise ValueError("named_actions=True needs the column of actions; give its name as action.")
    fields = {} if action is None else {"action": (action, "text" if named_actions else "number")}
    fields |= {"reward": (reward, "number or empty"), "propensity": (propensity, "number")}
    fields |= {} if target_propensity is None else {"target_propensity": (target_propensity, "number")}
    features = [(name, "features") for name in context]
    wanted = list(dict.fromkeys([*fields.values(), *features, *further.items()]))
    suffix = suffix_of(path)
    if suffix == ".npz":
        table = _read_npz(path, wanted)
    elif suffix in _PARQUET_SUFFIXES:
        table = _read_parquet(path, wanted)
    elif suffix in _TEXT_SUFFIXES:
        between = delimiter if delimiter is not None else "\t" if suffix == ".tsv" else ","
        table = _read_text(path, between, lambda names: wanted, on_bad)
    else:
        raise ValueError(
            f"{path} is of no known kind; it must end in {', '.join((*_TEXT_SUFFIXES, *_PARQUET_SUFFIXES))} or .npz, "
            "and text may have .gz after that."
        )
    arrays = {field: table.cells[column] for field, column in fields.items()}
    rows = len(arrays["reward"])
    kept = {name: table.cells[name, kind] for name, kind in further.items()}
    if action is None:
        arrays["action"], num_actions = np.zeros(rows), num_actions or 1
    elif named_actions:
        kept[action] = names = _tidy(arrays["action"])
        arrays["action"], num_actions = _coded(names, num_actions, f"{action} of {path}")
    log = BanditLog(
        np.column_stack([table.cells[column] for column in features]) if features else np.zeros((rows, 0)),
        arrays["action"],
        arrays["reward"],
        arrays["propensity"],
        arrays.get("target_propensity"),
        num_actions,
        kept,
    )
    finite = [name for name, kind in further.items() if kind == "number"]
    log, report = check(log, on_bad=on_bad, origin=table.origin, reward_range=reward_range, finite=finite)
    loose = [name for name, kind in further.items() if kind == "any"] if suffix in _TEXT_SUFFIXES else []
    return _with_numbers(log, loose), report


def read_open_bandit(path: str | Path, *, affinities: bool = False, on_bad: str = "error") -> tuple[BanditLog, Report]:
    """Read a checked log from a file of the Open Bandit Dataset.

    The action is `item_id`, the reward `click`, the propensity `propensity_score`; `position` and `timestamp` are kept
    in `columns`. Positions are the file's, 1 to 3, where the Pipeline and `from_obp` count from 0. Rows keep the order
    of the file (the Pipeline sorts them by time).

    Args:
        path: of a campaign and policy, such as `random/all/all.csv`, also with `.gz`.
        affinities: append the columns `user-item_affinity_*` to the context.
        on_bad: as in `read_table`.

    Returns:
        The log and the report. The context, float32, is a one-hot code of each of `user_feature_*`, hashes as text,
        with a feature for every value in the file, in alphabetical order (the Pipeline leaves the first out). K is the
        number of affinities or, where the file has none, the largest action and one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_table` does.

    Reference: Saito, Aihara, Matsutani and Narita, "Open Bandit Dataset and Pipeline", NeurIPS 2021 datasets track.
    """
    items = "user-item_affinity_"
    action, reward, propensity = (("item_id", "number"), ("click", "number"), ("propensity_score", "number"))
    further = ("position", "timestamp")

    def choose(names: Sequence[str]) -> list[_Wanted]:
        wanted = [action, reward, propensity, *((name, "any") for name in further)]
        wanted += [(name, "text") for name in names if name.startswith("user_feature_")]
        return wanted + [(name, "features") for name in names if affinities and name.startswith(items)]

    table = _read_text(path, ",", choose, on_bad)
    cells, parts = table.cells, [np.zeros((len(table.origin.lines), 0), np.float32)]
    for (_, kind), column in cells.items():
        if kind == "text":
            values, code = np.unique(column, return_inverse=True)
            parts.append(np.eye(len(values), dtype=np.float32)[code])
        elif kind == "features":
            parts.append(column[:, None])
    log = BanditLog(
        np.concatenate(parts, axis=1, dtype=np.float32),
        cells[action],
        cells[reward],
        cells[propensity],
        None,
        sum(name.startswith(items) for name in table.names) or None,
        {name: cells[name, "any"] for name in further},
    )
    log, report = check(log, on_bad=on_bad, origin=table.origin)
    return _with_numbers(log, further), report


def _read_text(
    path: str | Path, delimiter: str, choose: Callable[[Sequence[str]], list[_Wanted]], on_bad: str
) -> _Table:
    """Columns that `choose(names)` wants; what is "any" is left as text."""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter must be one character, no quote and no end of line, got {delimiter!r}.")
    records, lines, malformed, begins = [], [], [], 1
    with open_text(path) as file:
        header = file.readline()
        _check_delimiter(header, delimiter, choose, path)
        reader = csv.reader(itertools.chain([header] if header else [], file), delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            wanted = choose(names)
            _require(wanted, names, path)
            pick = operator.itemgetter(*(names.index(name) for name, _ in wanted))
            begins = reader.line_num + 1
            for record in reader:
                if len(record) == len(names):
                    records.append(pick(record))
                    lines.append(begins)
                elif record:
                    malformed.append((begins, f"{len(record)} cells, and there are {len(names)} names"))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num} of {path}, in a record that begins on line {begins}, cannot be parsed: "
                f"{error}. Mend the file; such a line cannot be dropped."
            ) from error
    columns = dict(zip(wanted, zip(*records, strict=True) if records else [()] * len(wanted), strict=True))
    good, cells = np.ones(len(records), bool), {}
    for (name, kind), column in columns.items():
        if kind in ("text", "any"):
            cells[name, kind] = np.array(column, dtype=np.str_)
            continue
        filled = column
        if kind == "number or empty":
            filled = [_AS_REWARD.get(cell.strip().lower(), cell) for cell in column]
        cells[name, kind], wrong = _parse(filled)
        good[wrong] = False
        malformed += [(lines[row], f"{column[row]!r} as {name}{_hint(column[row])}") for row in wrong]
    count = len({line for line, _ in malformed})
    if malformed and on_bad == "error":
        line, what = min(malformed)
        raise ValueError(
            f"line {line} of {path} has {what}; {count} lines are malformed. Mend the file; on_bad='drop' leaves such "
            "lines out and counts them."
        )
    kept = {column: values[good] for column, values in cells.items()}
    return _Table(kept, names, Origin(path, np.asarray(lines, int)[good], count))


def _check_delimiter(
    header: str, delimiter: str, choose: Callable[[Sequence[str]], list[_Wanted]], path: str | Path
) -> None:
    """Refuse a file whose names are all there if another character is what stands between them."""

    def lacks(between: str) -> bool:
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=between, strict=True), [])]
        except csv.Error:
            return True
        return any(name not in names for name, _ in choose(names))

    if lacks(delimiter):
        for other in _DELIMITERS:
            if other != delimiter and not lacks(other):
                raise ValueError(
                    f"{path} has {other!r} between its cells, and was read as if it were {delimiter!r}; give "
                    f"delimiter={other!r}."
                )


def _hint(cell: str) -> str:
    """What may have been meant by a cell that is no number."""
    comma = cell.count(",") == 1 and cell.replace(",", "").strip().lstrip("-").isdecimal()
    return " (numbers are written with a decimal point)" if comma else ""


def _tidy(names: np.ndarray) -> np.ndarray:
    """Names of actions without spaces around them; 7.0, as integers become in a column with missing ones, is 7."""
    stripped = [name.strip() for name in names.tolist()]
    return np.array(
        [name[:-2] if name.endswith(".0") and name[:-2].isdecimal() else name for name in stripped], np.str_
    )


def _coded(names: np.ndarray, num_actions: int | None, where: str) -> tuple[np.ndarray, int]:
    """Numbers of named actions, NaN where the name is missing, and how many actions there are."""
    there = ~np.isin(names, ("", "nan", "None"))
    code, known = np.full(len(names), np.nan), ()
    code[there], known = numbered(names[there])
    if num_actions is not None and num_actions < len(known):
        raise ValueError(
            f"{where} has {len(known)} different actions, and num_actions is {num_actions}; give at least {len(known)}."
        )
    return code, max(len(known), 1) if num_actions is None else num_actions


def _parse(column: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Cells as numbers, and the rows of those that are none."""
    together = "".join(column)
    if together.isascii() and "_" not in together:
        with contextlib.suppress(ValueError):  # the usual case, fast
            return np.fromiter(map(float, column), float, len(column)), []
    values, wrong = np.full(len(column), np.nan), []
    for row, cell in enumerate(column):
        try:
            values[row] = parse_number(cell)
        except ValueError:
            wrong.append(row)
    return values, wrong


def _with_numbers(log: BanditLog, names: Sequence[str]) -> BanditLog:
    """Text columns as numbers where that loses nothing; of rows that are kept, so that others do not matter."""
    changed = {}
    for name in names:
        cells = log.columns[name].tolist()
        for parse, dtype in ((int, np.int64), (float, np.float64)):
            with contextlib.suppress(ValueError, OverflowError):
                values = [parse(cell) for cell in cells]
                if all(str(value) == cell for value, cell in zip(values, cells, strict=True)):
                    changed[name] = np.array(values, dtype)
                    break
    return log._replace(columns=log.columns | changed)


def _read_npz(path: str | Path, wanted: Sequence[_Wanted]) -> _Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name, _ in wanted if name in names}
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not an .npz of numbers and text ({error}).") from error
    _require(wanted, names, path)
    first, cells = wanted[0][0], {}
    for name, kind in wanted:
        shape, most = arrays[name].shape, {"any": np.inf, "features": 2}.get(kind, 1)
        if not 1 <= len(shape) <= most or shape[0] != arrays[first].shape[0]:
            raise ValueError(
                f"{name} of {path} has shape {shape}, and {first} {arrays[first].shape}; [n]{', [n, d]' * (most > 1)} "
                "with the same n is allowed."
            )
        cells[name, kind] = _converted(arrays[name], kind, f"{name} of {path}")
    return _Table(cells, names, Origin(path))


def _read_parquet(path: str | Path, wanted: Sequence[_Wanted]) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f'Parquet files need pyarrow, which is not installed ({error}): pip install "jaxrl_off[parquet]".'
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _require(wanted, names, path)
            table = file.read(columns=list(dict.fromkeys(name for name, _ in wanted)))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read as Parquet ({error}).") from error
    cells = {}
    for name, kind in wanted:
        column = table.column(name)
        if kind == "text":  # here, since integers with nulls become floats in NumPy
            try:
                column = column.cast(pyarrow.string()).fill_null("")
            except pyarrow.ArrowException as error:
                raise ValueError(f"{name} of {path} cannot be read as text ({error}).") from error
        cells[name, kind] = _converted(column.to_numpy(), kind, f"{name} of {path}")
    return _Table(cells, names, Origin(path))


def _converted(column: np.ndarray, kind: str, name: str) -> np.ndarray:
    if kind == "any":
        return column
    return column.astype(np.str_) if kind == "text" else as_numbers(column, name, keep_floats=kind == "features")


def _require(wanted: Sequence[_Wanted], names: Sequence[str], path: str | Path) -> None:
    asked = dict.fromkeys(name for name, _ in wanted)
    missing = [name for name in asked if name not in names]
    if missing:
        raise ValueError(
            f"{path} has no columns {', '.join(missing)}; it has {', '.join(names) or 'none'}. Say which is which "
            "by name."
        )
    twice = [name for name in asked if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has several columns {', '.join(twice)}; give them different names.")
