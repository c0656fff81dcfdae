"""Logs of decisions of one step each (`BanditLog`): made of arrays and checked; `bandit_files` reads them from files.

Whatever the source, a log is checked before it is handed over, and comes with a `Report` of what was left out. Rows
that cannot be used are an error that names the first of them, or are dropped and counted where `on_bad="drop"` asks for
it. All of this is NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_off.types import BanditLog

_MOST_ACTIONS = 2**31 - 1
_MOST_COUNTED = 2**20  # more actions than this are not inferred from the largest one, which then is an id
_MOST_PROBABLE = 1.0 + 1e-6  # softmax in float32 may round above 1; such probabilities are taken as 1
_NEEDED = {
    "action": "which action was taken, an integer from 0",
    "reward": "what came of the action; NaN where it was not observed",
    "propensity": "h(a|x), with what probability the logged action was taken. Where that was not logged, estimate it first, "
    "for example with a classifier of actions by contexts",
}
_ADVICE = {
    "context": "Fill in what is missing, or leave that column out",
    "action": "Number actions from 0 without gaps (`numbered` does so), and give num_actions if the log may lack the last one",
    "reward": "Write NaN where a reward was not observed",
    "propensity": "It is h(a|x) of the action that was taken, which therefore was possible; correct the log",
    "target_propensity": "It is pi(a|x) of the action that was logged; correct the log",
}


class Report(NamedTuple):
    """What became of the rows of a log.

    Attributes:
        rows: how many are in the log.
        dropped: how many were left out; 0 unless `on_bad="drop"`.
        reasons: how many of those were wrong in what: the name of a field, "column NAME" of a further column, or
            "malformed line". A row that is wrong in two fields counts in both.
    """

    rows: int
    dropped: int
    reasons: dict[str, int]


class Origin(NamedTuple):
    """The file that rows were read from; errors name it.

    Attributes:
        path: of the file.
        lines: `int[n]`, on which line each row begins; None where rows are counted from 0.
        malformed: how many lines were left out because they could not be read.
    """

    path: str | Path
    lines: Any = None
    malformed: int = 0


def from_arrays(
    *,
    action: Any,
    reward: Any,
    propensity: Any,
    context: Any = None,
    target_propensity: Any = None,
    num_actions: int | None = None,
    columns: Any = None,
    on_bad: str = "error",
) -> tuple[BanditLog, Report]:
    """A checked log of arrays, or of columns of a data frame.

    Args:
        action: `int[n]`, a, counted from 0; `numbered` makes that of names and ids.
        reward: `float[n]`, r; NaN where it is censored.
        propensity: `float[n]`, h(a|x).
        context: `float[n, d]`, x, or `float[n]` for one feature; None for none.
        target_propensity: `float[n]`, pi(a|x), or None.
        num_actions: K; None for the largest action of the rows that are kept, and one.
        columns: further columns of n rows, numbers or text: a dictionary, or a data frame of pandas or polars.
        on_bad: "error", or "drop" for rows with values that are not allowed.

    Returns:
        The log, with int32 actions, float64 statistics and contexts of the floating type they had, and the report.

    Raises:
        ValueError: for arrays that do not fit together and, unless dropped, values that are not allowed.

    Example:
        >>> log, report = from_arrays(action=[0, 1, 2], reward=[1.0, float("nan"), 0.0], propensity=[0.5, 0.25, 0.0],
        ...                           on_bad="drop")
        >>> log.action.tolist(), log.num_actions, report
        ([0, 1], 2, Report(rows=2, dropped=1, reasons={'propensity': 1}))
    """
    log = BanditLog(context, action, reward, propensity, target_propensity, num_actions, _by_name(columns))
    return check(log, on_bad=on_bad)


def numbered(actions: Any, names: Sequence[Any] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers from 0 for actions that are names or ids, however large.

    Args:
        actions: `[n]`, text, integers, or a column of categories.
        names: of all actions, in the order of the columns of the policy that will be judged; None for those in `actions`, in
            alphabetical order.

    Returns:
        `int64[n]`, and the names; with these, `num_actions=len(names)`.

    Raises:
        ValueError: for missing actions, and for actions that are not among the names.

    Example:
        >>> numbered(["pear", "apple", "pear"])
        (array([1, 0, 1]), ('apple', 'pear'))
    """
    array = _array(actions, "actions")
    missing = np.array([_is_missing(value) or str(value) == "" for value in array.flat], bool)
    if array.ndim != 1 or missing.any():
        found = f"shape {array.shape}" if array.ndim != 1 else f"none in row {int(np.argmax(missing))}"
        raise ValueError(f"actions must be one column with a name or an id in every row, got {found}.")
    text = np.array([str(value) for value in array.tolist()], np.str_)
    known, code = np.unique(text, return_inverse=True)
    if names is None:
        return code, tuple(known.tolist())
    index: dict[str, int] = {str(name): number for number, name in enumerate(names)}
    others = [name for name in known.tolist() if name not in index]
    if others:
        raise ValueError(
            f"actions hold {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}, which are not among the names "
            f"{', '.join(list(index)[:10])}{', ...' if len(index) > 10 else ''}. Add them, or leave such rows out."
        )
    return np.array([index[name] for name in known.tolist()], np.int64)[code], tuple(index)


def check(
    log: BanditLog,
    *,
    on_bad: str = "error",
    origin: Origin | None = None,
    reward_range: tuple[float, float] | None = None,
    finite: Sequence[str] = (),
) -> tuple[BanditLog, Report]:
    """Refuse what estimates would go wrong on, or leave such rows out.

    Contexts must be finite, actions integers in [0, K), rewards finite or NaN (censored), propensities in (0, 1] and
    target propensities in [0, 1].

    Args:
        log: what was read; its actions may be floats, and `num_actions` None: the largest action of the rows that are
            kept, and one.
        on_bad: "error", or "drop" for rows with values that are not allowed.
        origin: the file, which errors name and whose malformed lines count as dropped, or None.
        reward_range: what rewards can be. One outside it is an error whatever `on_bad` says: to leave such rows out
            would shift every estimate.
        finite: names of further columns that must be finite numbers, such as predicted rewards.

    Returns:
        The log, with types as `from_arrays` says, and the report.

    Raises:
        ValueError: for arrays that do not fit together, no rows and, unless dropped, values that are not allowed.
    """
    if on_bad not in ("error", "drop"):
        raise ValueError(f"on_bad must be 'error' or 'drop', got {on_bad!r}.")
    of = "" if origin is None else f" of {origin.path}"
    log = _structured(log, of)
    most = _MOST_ACTIONS if log.num_actions is None else log.num_actions
    allowed = {"context": "finite", "action": f"an integer in [0, {most})", "reward": "finite or NaN"}
    allowed |= {"propensity": "in (0, 1]", "target_propensity": "in [0, 1]"}
    values = {name: getattr(log, name) for name in allowed}
    wrong = {
        "context": ~np.isfinite(log.context).all(axis=1),
        "action": ~((log.action >= 0) & (log.action < most) & (log.action == np.floor(log.action))),
        "reward": np.isinf(log.reward),
        "propensity": ~((log.propensity > 0) & (log.propensity <= _MOST_PROBABLE)),
    }
    if log.target_propensity is not None:
        wrong["target_propensity"] = ~((log.target_propensity >= 0) & (log.target_propensity <= _MOST_PROBABLE))
    for name in finite:
        key = f"column {name}"
        values[key], allowed[key] = as_numbers(log.columns[name], name + of), "finite"
        wrong[key] = ~np.isfinite(values[key]).all(axis=tuple(range(1, values[key].ndim)))

    def place(bad: np.ndarray, column: np.ndarray) -> str:
        row = int(np.argmax(bad))
        line = f"row {row}" if origin is None or origin.lines is None else f"line {origin.lines[row]}"
        return f"{line}{of} has {column[row]}, and {int(bad.sum())} of {len(bad)} rows are so"

    reasons = {name: int(bad.sum()) for name, bad in wrong.items() if bad.any()}
    if reasons and on_bad == "error":
        name = next(iter(reasons))
        advice = _ADVICE.get(name, "Correct the log")
        if name == "action" and log.action.min() == 1 and log.action.max() == log.num_actions:
            advice = "The actions seem to be counted from 1; take 1 off"
        raise ValueError(
            f"{name} must be {allowed[name]}; {place(wrong[name], values[name])}. {advice}; "
            "on_bad='drop' leaves such rows out and counts them."
        )
    keep, malformed = ~np.any(list(wrong.values()), axis=0), 0 if origin is None else origin.malformed
    if not keep.any():
        found = [f"{len(keep)} were read", *(f"{name} is wrong in {count}" for name, count in reasons.items())]
        raise ValueError(
            f"{'the log' if origin is None else origin.path} has no row that can be used: {', '.join(found)}, and "
            f"{malformed} lines are malformed. Correct the log."
        )
    if reward_range is not None:
        low, high = reward_range
        outside = keep & ((log.reward < low) | (log.reward > high))
        if outside.any():
            raise ValueError(
                f"reward must be in [{low:g}, {high:g}], the range that was given; {place(outside, log.reward)}. Give "
                "the range that rewards can have, or correct the log."
            )
    target = log.target_propensity
    kept = BanditLog(
        context=log.context[keep],
        action=log.action[keep].astype(np.int32),
        reward=log.reward[keep],
        propensity=np.minimum(log.propensity[keep], 1.0),
        target_propensity=None if target is None else np.minimum(target[keep], 1.0),
        num_actions=_counted(log, keep) if log.num_actions is None else log.num_actions,
        columns={name: column[keep] for name, column in log.columns.items()},
    )
    reasons = ({"malformed line": malformed} if malformed else {}) | reasons
    return kept, Report(int(keep.sum()), int((~keep).sum()) + malformed, reasons)


def from_obp(
    feedback: Mapping[str, Any], action_dist: Any = None, *, on_bad: str = "error"
) -> tuple[BanditLog, Report]:
    """A checked log of a dictionary in Open Bandit Pipeline's layout.

    Args:
        feedback: `action [n]`, `reward [n]`, `pscore [n]`, `n_actions` and, optionally, `context [n, d]` and
            `position [n]`, counted from 0 (`read_open_bandit` leaves the files' 1 to 3), which is kept in `columns`.
            Other keys, `action_context [K, e]` among them, are ignored; so is `n_rounds`, which releases of the
            Pipeline have set wrongly in test splits.
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
    action, num_actions = as_numbers(feedback["action"], "action"), _count(feedback["n_actions"], "n_actions")
    position = feedback.get("position")
    target = None
    if action_dist is not None:
        action_dist = as_numbers(action_dist, "action_dist")
        if action_dist.ndim != 3 or action_dist.shape[:2] != (*action.shape, num_actions):
            raise ValueError(
                f"action_dist has shape {action_dist.shape}; with {action.size} rows and {num_actions} actions, "
                f"({action.size}, {num_actions}, len_list) is allowed."
            )
        slot = np.zeros(action.shape) if position is None else as_numbers(position, "position")
        if slot.shape != action.shape:
            raise ValueError(f"position has shape {slot.shape}; there are {action.size} actions, with one each.")
        length = action_dist.shape[2]
        bad = ~((slot >= 0) & (slot < length) & (slot == np.floor(slot)))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"position must hold integers in [0, {length}), the len_list of action_dist; row {row} has "
                f"{slot[row]:g}, and {int(bad.sum())} of {action.size} rows are so. If positions are counted from 1, "
                "take 1 off."
            )
        # where the action itself is wrong, `check` says so
        fine = (action >= 0) & (action < num_actions) & (action == np.floor(action))
        chosen = np.where(fine, action, 0).astype(int)
        target = action_dist[np.arange(len(action)), chosen, slot.astype(int)]
    return from_arrays(
        action=action,
        reward=feedback["reward"],
        propensity=feedback["pscore"],
        context=feedback.get("context"),
        target_propensity=target,
        num_actions=num_actions,
        columns={} if position is None else {"position": position},
        on_bad=on_bad,
    )


def as_numbers(values: Any, name: str, *, keep_floats: bool = False) -> np.ndarray:
    """An array of numbers; None and the NA of pandas in it become NaN.

    Args:
        values: numbers or truth values. Text is refused even where it could be read as numbers.
        name: what they are, for errors.
        keep_floats: whether floating types other than float64 stay.

    Raises:
        ValueError: for text, complex numbers, dates, and what is ragged.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a NumPy masked array; leave masked rows out before the log is made.")
    array = _array(values, name)
    if array.dtype.kind == "O":
        missing = np.array([_is_missing(value) for value in array.flat], bool).reshape(array.shape)
        array = np.where(missing, np.array(None), array)
    kind = array.dtype.kind
    words = [value for value in array.flat if isinstance(value, str | bytes)] if kind in "SUO" else []
    if words:
        raise ValueError(
            f"{name} must be numbers, and holds text such as {str(words[0])!r}. {_how_to_number(name, words)}."
        )
    try:
        if kind in "cmM":
            raise TypeError(f"it is of type {array.dtype}")
        return array if keep_floats and kind == "f" else array.astype(np.float64, copy=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be an array of real numbers, and cannot be made one: {error}.") from error


def _how_to_number(name: str, words: Sequence[str | bytes]) -> str:
    if name.startswith("action"):
        return "`bandit_logs.numbered` numbers actions that are names or ids"
    if {str(word).lower() for word in words} <= {"true", "false"}:
        return "Make truth values of it: `column == 'True'`"
    return "Convert it to numbers, or leave it out"


def _is_missing(value: Any) -> bool:
    """None, NaN, or the NA of pandas, which need not be installed."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and np.isnan(value))


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ValueError(f"{name} must be an array, and its rows have different lengths. Fill them up.") from error
        raise ValueError(f"{name} must be an array, and cannot be made one: {error}.") from error


def _by_name(columns: Any) -> dict[str, Any]:
    """Columns of a dictionary, or of a data frame, which lists their names as `columns`."""
    names = columns if isinstance(columns, Mapping) else getattr(columns, "columns", None)
    if columns is not None and names is None:
        raise ValueError(
            f"columns must be a dictionary of columns by name, or a data frame, got {type(columns).__name__}."
        )
    return {} if names is None else {str(name): columns[name] for name in names}


def _count(given: Any, name: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or not 1 <= given <= _MOST_ACTIONS:
        raise ValueError(f"{name} must be an integer in [1, 2^31), got {given!r}. {_ADVICE['action']}.")
    return int(given)


def _counted(log: BanditLog, keep: np.ndarray) -> int:
    """The largest action and one."""
    largest = int(log.action[keep].max())
    if largest >= _MOST_COUNTED:
        raise ValueError(
            f"the largest action is {largest}, so that there would be {largest + 1} actions; it seems to be an id. Number ids "
            "with `bandit_logs.numbered`, or give num_actions if there are so many."
        )
    return largest + 1


def _structured(log: BanditLog, of: str) -> BanditLog:
    """The same with NumPy columns of as many rows; statistics in float64."""
    for name, what in _NEEDED.items():
        if getattr(log, name) is None:
            raise ValueError(f"{name}{of} is None, and is needed: {what}.")
    num_actions = None if log.num_actions is None else _count(log.num_actions, "num_actions")
    action = as_numbers(log.action, "action" + of)
    if action.ndim != 1:
        raise ValueError(
            f"action{of} must be int[n], one column, got shape {action.shape}. Of a data frame pass a column, such as "
            'frame["action"], and not a frame.'
        )
    given = np.zeros((len(action), 0)) if log.context is None else log.context
    shape, context = action.shape, as_numbers(given, "context" + of, keep_floats=True)
    if context.ndim == 1:
        context = context[:, None]
    given = {"reward": log.reward, "propensity": log.propensity, "target_propensity": log.target_propensity}
    arrays = {name: as_numbers(x, name + of) for name, x in given.items() if x is not None}
    columns = {name: _array(column, name + of) for name, column in log.columns.items()}
    table = [("context", context, {2}), *((name, column, {1}) for name, column in arrays.items())]
    table += [(name, column, {column.ndim}) for name, column in columns.items()]
    for name, column, dimensions in table:
        if column.shape[:1] != shape or column.ndim not in dimensions:
            raise ValueError(
                f"{name}{of} has shape {column.shape}; there are {len(action)} actions, so "
                f"{f'({len(action)}, d)' if name == 'context' else f'({len(action)},)'} is allowed, one row for each."
            )
    target = arrays.get("target_propensity")
    return BanditLog(context, action, arrays["reward"], arrays["propensity"], target, num_actions, columns)
