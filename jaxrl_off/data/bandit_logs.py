"""Logs of decisions of one step each (`BanditLog`): made of arrays, read from files, and checked.

Whatever the source, a log is checked before it is handed over, and comes with a `Report` of what was left out. Rows
that cannot be used are an error that names the first of them, or are dropped and counted where `on_bad="drop"` asks for
it. All of this is NumPy on the host.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import operator
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from jaxrl_off.types import BanditLog

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_DROP = "on_bad='drop' leaves such rows out and counts them"
_ADVICE = {
    "context": "Fill in what is missing, or leave that column out",
    "action": "Number actions from 0 without gaps, and give num_actions if the log need not hold the last one",
    "reward": "Write NaN where a reward was not observed",
    "propensity": "It is h(a|x) of the action that was taken, which therefore was possible; mend the log",
    "target_propensity": "It is pi(a|x) of the action that was logged; mend the log",
}


class Report(NamedTuple):
    """What became of the rows of a log.

    Attributes:
        rows: how many are in the log.
        dropped: how many were left out; 0 unless `on_bad="drop"`.
        reasons: how many of those were wrong in what: the name of a field, or "malformed line". A row that is wrong in
            two fields counts in both.
    """

    rows: int
    dropped: int
    reasons: dict[str, int]


class _Table(NamedTuple):
    cells: dict[str, np.ndarray]
    names: Sequence[str] = ()
    lines: np.ndarray | None = None
    malformed: int = 0


def from_arrays(
    *,
    action: Any,
    reward: Any,
    propensity: Any,
    context: Any = None,
    target_propensity: Any = None,
    num_actions: int | None = None,
    columns: Mapping[str, Any] | None = None,
    on_bad: str = "error",
) -> tuple[BanditLog, Report]:
    """A checked log of arrays.

    Args:
        action: `int[n]`, a, counted from 0.
        reward: `float[n]`, r; NaN where it is censored.
        propensity: `float[n]`, h(a|x).
        context: `float[n, d]`, x, or `float[n]` for one feature; None for none.
        target_propensity: `float[n]`, pi(a|x), or None.
        num_actions: K; None for the largest action and one.
        columns: further columns of n rows, numbers or text.
        on_bad: "error", or "drop" for rows with values that are not allowed.

    Returns:
        The log, with int32 actions, float64 statistics and contexts of the floating type they had, and the report.

    Raises:
        ValueError: for arrays that do not fit together and, unless dropped, values that are not allowed.

    Example:
        >>> log, report = from_arrays(action=[0, 2, 1], reward=[1.0, float("nan"), 0.0], propensity=[0.5, 0.25, 0.0],
        ...                           on_bad="drop")
        >>> log.action.tolist(), log.num_actions, report
        ([0, 2], 3, Report(rows=2, dropped=1, reasons={'propensity': 1}))
    """
    action = _numbers(action, "action")
    given = context if context is not None else np.zeros((len(action) if action.ndim else 0, 0))
    log = BanditLog(
        given, action, reward, propensity, target_propensity, _count_actions(action, num_actions), dict(columns or {})
    )
    return check(log, on_bad=on_bad)


def check(
    log: BanditLog, *, on_bad: str = "error", origin: tuple[str | Path, Any] | None = None
) -> tuple[BanditLog, Report]:
    """Refuse what estimates would go wrong on, or leave such rows out.

    Contexts must be finite, actions integers in [0, K), rewards finite or NaN (censored), propensities in (0, 1] and
    target propensities in [0, 1].

    Args:
        log: what was read; its actions may be floats.
        on_bad: "error", or "drop" for rows with values that are not allowed.
        origin: a path and `int[n]`, the line of that file that each row came from, or None; to be named in errors.

    Returns:
        The log, with types as `from_arrays` says, and the report.

    Raises:
        ValueError: for arrays that do not fit together, no rows and, unless dropped, values that are not allowed.
    """
    if on_bad not in ("error", "drop"):
        raise ValueError(f"on_bad must be 'error' or 'drop', got {on_bad!r}.")
    log = _structured(log)
    wrong = {
        "context": ~np.isfinite(log.context).all(axis=1),
        "action": ~((log.action >= 0) & (log.action < log.num_actions) & (log.action == np.floor(log.action))),
        "reward": np.isinf(log.reward),
        "propensity": ~((log.propensity > 0) & (log.propensity <= 1)),
    }
    allowed = {"context": "finite", "action": f"an integer in [0, {log.num_actions})", "reward": "finite or NaN"}
    allowed |= {"propensity": "in (0, 1]", "target_propensity": "in [0, 1]"}
    if log.target_propensity is not None:
        wrong["target_propensity"] = ~((log.target_propensity >= 0) & (log.target_propensity <= 1))
    reasons = {name: int(bad.sum()) for name, bad in wrong.items() if bad.any()}
    count = len(log.action)
    if reasons and on_bad == "error":
        name = next(iter(reasons))
        row = int(np.argmax(wrong[name]))
        path, lines = origin or ("", None)
        place = (f"row {row}" if lines is None else f"line {lines[row]}") + f" of {path}" * bool(path)
        raise ValueError(
            f"{name} must be {allowed[name]}; {place} has {getattr(log, name)[row]}, and {reasons[name]} of {count} "
            f"rows are so. {_ADVICE[name]}; {_DROP}."
        )
    keep = ~np.any(list(wrong.values()), axis=0)
    if not keep.any():
        raise ValueError(
            f"no row of {count} is left: {', '.join(f'{name} is wrong in {k}' for name, k in reasons.items())}. "
            "Mend the log."
        )
    fields = {name: None if x is None else x[keep] for name, x in log._asdict().items() if name in allowed}
    fields["action"] = fields["action"].astype(np.int32)
    columns = {name: column[keep] for name, column in log.columns.items()}
    kept = log._replace(**fields, columns=columns)
    return kept, Report(int(keep.sum()), int(count - keep.sum()), reasons)


def from_obp(
    feedback: Mapping[str, Any], action_dist: Any = None, *, on_bad: str = "error"
) -> tuple[BanditLog, Report]:
    """A checked log of a dictionary in Open Bandit Pipeline's layout.

    Args:
        feedback: `action [n]`, `reward [n]`, `pscore [n]`, `n_actions` and, optionally, `context [n, d]` and
            `position [n]`, which is kept in `columns`. Other keys, `action_context [K, e]` among them, are ignored; so
            is `n_rounds`, which releases of the Pipeline have set wrongly in test splits.
        action_dist: `float[n, K, len_list]`, pi(a|x) at each position, of which that of the logged action at the logged
            position (the first, where there are none) becomes `target_propensity`; None for no target.
        on_bad: as in `from_arrays`.

    Returns:
        The log, with types as `from_arrays` says, and the report.

    Raises:
        ValueError: if a key is missing or None, arrays do not fit together, and as `from_arrays` does.

    Reference: Saito, Aihara, Matsutani and Narita, "Open Bandit Dataset and Pipeline", NeurIPS 2021 datasets track.
    """
    if not isinstance(feedback, Mapping):
        raise ValueError(
            f"feedback must be a dictionary, got {type(feedback).__name__}; of a time series split, pass one of "
            "the two."
        )
    missing = [key for key in ("action", "reward", "pscore", "n_actions") if feedback.get(key) is None]
    if missing:
        raise ValueError(
            f"feedback lacks {', '.join(missing)}; it has {', '.join(map(str, feedback)) or 'nothing'}. Without "
            "probabilities of the logged actions (pscore) nothing can be estimated; estimate them first."
        )
    action = _numbers(feedback["action"], "action")
    position = feedback.get("position")
    target = None
    if action_dist is not None:
        action_dist = _numbers(action_dist, "action_dist")
        expected = (*action.shape, int(feedback["n_actions"]))
        if action_dist.ndim != 3 or action_dist.shape[:2] != expected:
            raise ValueError(
                f"action_dist has shape {action_dist.shape}; with {action.size} rows and {feedback['n_actions']} "
                f"actions, ({expected[0]}, {expected[1]}, len_list) is allowed."
            )
        slot = np.zeros(action.shape) if position is None else _numbers(position, "position")
        length = action_dist.shape[2]
        if slot.shape != action.shape or not np.all((slot >= 0) & (slot < length) & (slot == np.floor(slot))):
            raise ValueError(
                f"position must hold {action.size} integers in [0, {length}), the len_list of action_dist; "
                f"got shape {slot.shape}, from {np.min(slot, initial=np.inf):g} to {np.max(slot, initial=-np.inf):g}."
            )
        # where the action itself is wrong, `check` says so
        fine = (action >= 0) & (action < expected[1]) & (action == np.floor(action))
        chosen = np.where(fine, action, 0).astype(int)
        target = action_dist[np.arange(len(action)), chosen, slot.astype(int)]
    return from_arrays(
        action=action,
        reward=feedback["reward"],
        propensity=feedback["pscore"],
        context=feedback.get("context"),
        target_propensity=target,
        num_actions=int(feedback["n_actions"]),
        columns={} if position is None else {"position": position},
        on_bad=on_bad,
    )


def read_table(
    path: str | Path,
    *,
    action: str = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    target_propensity: str | None = None,
    context: Sequence[str] = (),
    columns: Sequence[str] = (),
    num_actions: int | None = None,
    delimiter: str = ",",
    on_bad: str = "error",
) -> tuple[BanditLog, Report]:
    """Read a checked log from a table with named columns.

    Args:
        path: delimited text with a line of names (`.csv`, `.tsv` or `.txt`, also with `.gz`), Parquet (`.parquet`,
            `.pq`), or NumPy's `.npz`, of which an array is a column.
        action: name of the column of actions.
        reward: of rewards; an empty cell, a null or NaN is a censored reward.
        propensity: of h(a|x).
        target_propensity: of pi(a|x), or None.
        context: of features, in the order wanted; arrays of an `.npz` may be `[n, d]`.
        columns: of further columns to be kept; in text, numbers if all cells are.
        num_actions: K; None for the largest action and one.
        delimiter: between cells of text.
        on_bad: "error", or "drop" for malformed lines and for rows with values that are not allowed.

    Returns:
        The log, with types as `from_arrays` says, and the report.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for Parquet, without pandas and pyarrow.
        ValueError: for columns that are not there, and, with file and line, malformed lines and values that are not
            allowed.
    """
    if isinstance(context, str) or isinstance(columns, str):
        raise ValueError(
            f"context and columns must be lists of names, got {context!r} and {columns!r}; put one name in a list."
        )
    fields = {"action": action, "reward": reward, "propensity": propensity}
    fields |= {} if target_propensity is None else {"target_propensity": target_propensity}
    kinds = dict.fromkeys(columns, "any") | dict.fromkeys([*fields.values(), *context], "number")
    kinds[reward] = "number or empty"
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        suffix = Path(path).with_suffix("").suffix.lower()
    if suffix == ".npz":
        table = _read_npz(path, kinds)
    elif suffix in _PARQUET_SUFFIXES:
        table = _read_parquet(path, kinds)
    elif suffix in _TEXT_SUFFIXES:
        table = _read_text(path, delimiter, lambda names: kinds, on_bad)
    else:
        raise ValueError(
            f"{path} is of no known kind; it must end in {', '.join((*_TEXT_SUFFIXES, *_PARQUET_SUFFIXES))} or .npz, "
            "and text may have .gz after that."
        )
    arrays = {field: _numbers(table.cells[name], name) for field, name in fields.items()}
    features = [_numbers(table.cells[name], name) for name in context]
    return _finish(
        table,
        path,
        on_bad,
        context=np.column_stack(features) if features else np.zeros((len(arrays["action"]), 0)),
        num_actions=_count_actions(arrays["action"], num_actions),
        target_propensity=arrays.pop("target_propensity", None),
        columns={name: table.cells[name] for name in columns},
        **arrays,
    )


def read_open_bandit(path: str | Path, *, affinities: bool = False, on_bad: str = "error") -> tuple[BanditLog, Report]:
    """Read a checked log from a file of the Open Bandit Dataset.

    The action is `item_id`, the reward `click`, the propensity `propensity_score`; `position` and `timestamp` are kept
    in `columns`. Rows keep the order of the file (the Pipeline sorts them by time).

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

    def choose(names: Sequence[str]) -> dict[str, str]:
        kinds = dict.fromkeys(("item_id", "click", "propensity_score"), "number")
        kinds |= dict.fromkeys(("position", "timestamp"), "any")
        kinds |= {name: "text" for name in names if name.startswith("user_feature_")}
        return kinds | {name: "number" for name in names if affinities and name.startswith(items)}

    table = _read_text(path, ",", choose, on_bad)
    cells, parts = table.cells, [np.zeros((len(table.lines), 0), np.float32)]
    for name, column in cells.items():
        if name.startswith("user_feature_"):
            values, code = np.unique(column, return_inverse=True)
            parts.append(np.eye(len(values), dtype=np.float32)[code])
        elif name.startswith(items):
            parts.append(column[:, None])
    return _finish(
        table,
        path,
        on_bad,
        context=np.concatenate(parts, axis=1, dtype=np.float32),
        action=cells["item_id"],
        reward=cells["click"],
        propensity=cells["propensity_score"],
        target_propensity=None,
        num_actions=sum(name.startswith(items) for name in table.names) or _count_actions(cells["item_id"], None),
        columns={name: cells[name] for name in ("position", "timestamp")},
    )


@contextlib.contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """Open UTF-8 text, which a name that ends in `.gz` says is compressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decompressed or decoded.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not {'gzipped ' * (opened is gzip.open)}UTF-8 text ({error}).") from error


def _read_text(
    path: str | Path, delimiter: str, choose: Callable[[Sequence[str]], Mapping[str, str]], on_bad: str
) -> _Table:
    """Columns that `choose(names)` gives kinds: "number", "number or empty" (then NaN), "text" or "any"."""
    records, lines, malformed = [], [], []
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            kinds = choose(names)
            _require(kinds, names, path)
            pick = operator.itemgetter(*(names.index(name) for name in kinds))
            for record in reader:
                if len(record) == len(names):
                    records.append(pick(record))
                    lines.append(reader.line_num)
                elif record:
                    malformed.append((reader.line_num, f"{len(record)} cells, and there are {len(names)} names"))
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {path} cannot be parsed: {error}. Mend the file.") from error
    columns = zip(*records, strict=True) if records else [()] * len(kinds)
    cells = {name: _parse(column, kinds[name]) for name, column in zip(kinds, columns, strict=True)}
    good = np.ones(len(records), bool)
    for name, (_, wrong) in cells.items():
        good[wrong] = False
        malformed += [(lines[row], f"{records[row][list(kinds).index(name)]!r} as {name}") for row in wrong]
    if malformed and on_bad == "error":
        line, what = min(malformed)
        count = len({line for line, _ in malformed})
        raise ValueError(f"line {line} of {path} has {what}; {count} lines are malformed. Mend the file; {_DROP}.")
    kept = {name: column[good] for name, (column, _) in cells.items()}
    return _Table(kept, names, np.asarray(lines, int)[good], len({line for line, _ in malformed}))


def _parse(column: Sequence[str], kind: str) -> tuple[np.ndarray, list[int]]:
    """A column of cells, and the rows in which it cannot be what it must be."""
    if kind in ("text", "any"):
        for parse in (int, float) if kind == "any" else ():
            with contextlib.suppress(ValueError, OverflowError):
                return np.fromiter(map(parse, column), parse, len(column)), []
        return np.array(column, dtype=np.str_), []
    if kind == "number or empty":
        column = [cell if cell.strip() else "nan" for cell in column]
    try:
        return np.fromiter(map(float, column), float, len(column)), []
    except ValueError:
        values, wrong = np.full(len(column), np.nan), []
        for row, cell in enumerate(column):
            try:
                values[row] = float(cell)
            except ValueError:
                wrong.append(row)
        return values, wrong


def _read_npz(path: str | Path, wanted: Mapping[str, str]) -> _Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            table = _Table({name: file[name] for name in wanted if name in file.files}, file.files)
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not an .npz of numbers and text ({error}).") from error
    _require(wanted, table.names, path)
    return table


def _read_parquet(path: str | Path, wanted: Mapping[str, str]) -> _Table:
    try:
        import pandas
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"Parquet files need pandas and pyarrow, of which one is not installed ({error}): "
            "pip install pandas pyarrow."
        ) from error
    names = pyarrow.parquet.read_schema(path).names
    _require(wanted, names, path)
    frame = pandas.read_parquet(path, engine="pyarrow", columns=list(wanted))
    return _Table({name: frame[name].to_numpy() for name in wanted}, names)


def _require(wanted: Mapping[str, str], names: Sequence[str], path: str | Path) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"{path} has no columns {', '.join(missing)}; it has {', '.join(names) or 'none'}. Say which is which "
            "by name."
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has several columns {', '.join(twice)}; give them different names.")


def _finish(table: _Table, path: str | Path, on_bad: str, **fields: Any) -> tuple[BanditLog, Report]:
    log, report = check(BanditLog(**fields), on_bad=on_bad, origin=(path, table.lines))
    if table.malformed:
        reasons = {"malformed line": table.malformed} | report.reasons
        report = Report(report.rows, report.dropped + table.malformed, reasons)
    return log, report


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be an array of numbers, and cannot be made one: {error}.") from error


def _count_actions(action: np.ndarray, num_actions: int | None) -> int:
    if num_actions is not None:
        return num_actions
    fine = action[np.isfinite(action) & (action >= 0)]
    return int(fine.max(initial=0)) + 1


def _structured(log: BanditLog) -> BanditLog:
    """The same with NumPy columns of as many rows; statistics in float64."""
    if isinstance(log.num_actions, bool) or not isinstance(log.num_actions, int | np.integer):
        raise ValueError(f"num_actions must be an integer, got {log.num_actions!r}.")
    if not 1 <= log.num_actions < 2**31:
        raise ValueError(f"num_actions must be in [1, 2^31), got {log.num_actions}. {_ADVICE['action']}.")
    action = _numbers(log.action, "action")
    if action.ndim != 1 or not len(action):
        raise ValueError(f"action must be int[n] with one row or more, got shape {action.shape}.")
    shape, context = action.shape, np.asarray(log.context)
    if context.dtype.kind != "f":
        context = _numbers(context, "context")
    if context.ndim == 1:
        context = context[:, None]
    given = {"reward": log.reward, "propensity": log.propensity, "target_propensity": log.target_propensity}
    arrays = {name: _numbers(x, name) for name, x in given.items() if x is not None or name != "target_propensity"}
    columns = {name: np.asarray(column) for name, column in log.columns.items()}
    for name, column in ({"context": context} | arrays | columns).items():
        fits = column.shape[:1] == shape and (name not in arrays or column.ndim == 1)
        if not fits or (name == "context" and column.ndim != 2):
            raise ValueError(
                f"{name} has shape {column.shape}; there are {len(action)} actions, so [n, d] for the context and [n] "
                "for others, with that n, is allowed."
            )
    arrays.setdefault("target_propensity", None)
    return BanditLog(context, action, **arrays, num_actions=int(log.num_actions), columns=columns)
