"""Vowpal Wabbit's text format, plain or gzipped: labelled examples, and logged decisions.

An example is a line `label 'tag|namespace:scale name:value name ... |namespace ...`, of which the tag, namespaces,
scales and values (then 1) may be left out; a value that is a word is part of the name. Features become the columns of a
dense matrix: see `columns` of `read_labelled`. A name that occurs twice in a line counts with the sum of its values, as
in Vowpal Wabbit. The constant feature that Vowpal Wabbit adds is not added. Examples over several lines (`shared`,
action-dependent features) are not read.

Reference: the wiki of Vowpal Wabbit, "Input format" and "Logged contextual bandit example".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_off.data.bandit_logs import Origin, Report, check
from jaxrl_off.data.files import open_text, parse_number
from jaxrl_off.types import BanditLog

# all features as index:value, without a namespace
_PLAIN = re.compile(r"(?:\s++\d{1,9}+:[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?(?=\s|$))*+\s*+", re.ASCII)
_LARGEST = 2**30


class Labelled(NamedTuple):
    """Examples with a class each.

    Attributes:
        features: `float32[n, d]`, 0 where a line does not name a feature.
        labels: `int32[n]`, counted from 0.
        num_labels: K, the largest label and one.
        names: of the d features, `namespace^name` where there is a namespace; empty where names are hashed.
        report: what was left out.
    """

    features: np.ndarray
    labels: np.ndarray
    num_labels: int
    names: tuple[str, ...]
    report: Report


class _Examples(NamedTuple):
    labels: list[Any]
    features: np.ndarray
    names: tuple[str, ...]
    lines: np.ndarray
    malformed: int


def read_labelled(
    path: str | Path, *, columns: str | int | Sequence[str] = "index", first_label: int = 1, on_bad: str = "error"
) -> Labelled:
    """Read multiclass examples, `label | features`.

    Args:
        path: a text file, or a gzipped one that ends in `.gz`.
        columns: which column a feature goes to. "index": names are integers from 0, and there is at most one namespace;
            "order": columns in the order of first appearance; an integer D: CRC-32 of the name modulo D (not Vowpal
            Wabbit's hash); a sequence of names, as of an earlier file: those columns, and features of other names are
            left out, all of them by an empty one.
        first_label: of the file; labels are counted from it.
        on_bad: "error", or "drop" for malformed lines.

    Returns:
        Examples in the order of the file. Values are rounded to float32: integers above 2^24 are not exact.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for malformed lines, with file and line, unless dropped; no examples; indices of two namespaces; or
            a matrix of more than 2^30 numbers.
    """

    def label_of(text: str) -> int:
        label = int(text) - first_label
        if not 0 <= label < 2**31:
            raise ValueError
        return label

    examples = _read(path, columns, label_of, f"a label, an integer from first_label={first_label}", on_bad)
    labels = np.array(examples.labels, np.int32)
    reasons = {"malformed line": examples.malformed} if examples.malformed else {}
    report = Report(len(labels), examples.malformed, reasons)
    return Labelled(examples.features, labels, int(labels.max()) + 1, examples.names, report)


def read_cb(
    path: str | Path,
    *,
    reward_offset: float = 0.0,
    first_action: int = 1,
    num_actions: int | None = None,
    reward_range: tuple[float, float] | None = None,
    columns: str | int | Sequence[str] = "index",
    on_bad: str = "error",
) -> tuple[BanditLog, Report]:
    """Read logged decisions, `action:cost:probability | features`, one action a line.

    Args:
        path: a text file, or a gzipped one that ends in `.gz`.
        reward_offset: r = reward_offset - cost: 0 for rewards that are negative costs, 1 for costs in [0, 1]. A cost of
            NaN becomes a censored reward.
        first_action: of the file; actions are counted from it.
        num_actions: K; None for the largest action of the rows that are kept, and one.
        reward_range: as in `bandit_logs.check`.
        columns: as in `read_labelled`.
        on_bad: "error", or "drop" for malformed lines and for rows with values that are not allowed.

    Returns:
        A checked log and its report.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_labelled` and `bandit_logs.check` do.
    """

    def decision_of(text: str) -> tuple[float, float, float]:
        action, cost, probability = text.split(":")
        return float(int(action) - first_action), float(cost), float(probability)

    examples = _read(path, columns, decision_of, "a decision, action:cost:probability", on_bad)
    actions, costs, probabilities = np.array(examples.labels, np.float64).T
    if on_bad == "error" and (actions < 0).any():
        row = int(np.argmax(actions < 0))
        raise ValueError(
            f"line {examples.lines[row]} of {path} has the action {actions[row] + first_action:g}, and actions are counted "
            f"from {first_action}. If they are counted from 0, give first_action=0; on_bad='drop' leaves such lines out and "
            "counts them."
        )
    log = BanditLog(examples.features, actions, reward_offset - costs, probabilities, None, num_actions, {})
    origin = Origin(path, examples.lines, examples.malformed)
    return check(log, on_bad=on_bad, origin=origin, reward_range=reward_range)


def _read(
    path: str | Path,
    columns: str | int | Sequence[str],
    label_of: Callable[[str], Any],
    wanted: str,
    on_bad: str,
) -> _Examples:
    """Parse line by line, but lines of nothing than `index:value` all at once."""
    if on_bad not in ("error", "drop"):
        raise ValueError(f"on_bad must be 'error' or 'drop', got {on_bad!r}.")
    mapping = _Columns(columns)
    with open_text(path) as file:
        text = file.read().split("\n")
    labels, lines, plain, plain_rows, entries, bad = [], [], [], [], [], []
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        head, bar, body = line.partition("|")
        try:
            if not bar:
                raise ValueError("no | between label and features")
            label = _label(head, label_of, wanted)
            if mapping.kind == "index" and _PLAIN.fullmatch(body):
                if body.strip():  # an example without features has no namespace either
                    plain.append(body)
                    plain_rows.append(len(labels))
                    mapping.namespaces.add("")
            else:
                entries += [(len(labels), column, value) for column, value in mapping.parse(body)]
        except ValueError as error:
            bad.append((number, f"{error}"))
            continue
        labels.append(label)
        lines.append(number)
    if len(mapping.namespaces) > 1:
        raise ValueError(
            f"{path} has indices in several namespaces, {', '.join(sorted(map(repr, mapping.namespaces)))}; "
            "columns='order' keeps them apart."
        )
    features = _dense(labels, plain, plain_rows, entries, mapping.size(), path)
    finite = np.isfinite(features).all(axis=1)
    bad += [(lines[row], "a value beyond float32") for row in np.flatnonzero(~finite)]
    if bad and on_bad == "error":
        line, what = min(bad)
        raise ValueError(
            f"line {line} of {path} is malformed: {what}; {len(bad)} lines are so. Mend the file; on_bad='drop' leaves "
            "such lines out and counts them."
        )
    if not finite.any():
        raise ValueError(f"{path} has no examples, and {len(bad)} malformed lines; an example is `label | features`.")
    kept = [labels[row] for row in np.flatnonzero(finite)]
    return _Examples(kept, features[finite], mapping.names(features.shape[1]), np.array(lines)[finite], len(bad))


def _label(head: str, label_of: Callable[[str], Any], wanted: str) -> Any:
    tokens = head.split()
    # a tag touches the bar, even where it stands alone and the example has no label
    if tokens and (tokens[-1].startswith("'") or not head[-1].isspace()):
        tokens.pop()
    try:
        if len(tokens) != 1 or not tokens[0].isascii() or "_" in tokens[0]:
            raise ValueError
        return label_of(tokens[0])
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{head.strip()!r} before the |, where {wanted}, must stand, with a space after it (neither importance "
            "weights nor several actions in a line are read)"
        ) from error


class _Columns:
    """Features of a line to columns; learns names as it goes."""

    def __init__(self, columns: str | int | Sequence[str]) -> None:
        self.kind, self.number = "", 0
        self.index: dict[str, int] = {}
        if isinstance(columns, str):
            self.kind = columns if columns in ("index", "order") else ""
        elif isinstance(columns, int | np.integer):
            if not isinstance(columns, bool) and columns > 0:
                self.kind, self.number = "hash", int(columns)
        elif isinstance(columns, Sequence) and all(isinstance(name, str) for name in columns):
            self.kind, self.index = "names", {name: column for column, name in enumerate(columns)}
            if len(self.index) < len(columns):
                raise ValueError(f"columns must be different names; {len(columns) - len(self.index)} occur again.")
        if not self.kind:
            raise ValueError(
                f"columns must be 'index', 'order', a positive integer or a sequence of names, got {columns!r}."
            )
        self.namespaces: set[str] = set()

    def size(self) -> int | None:
        return None if self.kind == "index" else self.number or len(self.index)

    def names(self, size: int) -> tuple[str, ...]:
        return (
            tuple(self.index) if self.kind in ("order", "names") else tuple(map(str, range(size * (not self.number))))
        )

    def parse(self, body: str) -> list[tuple[int, float]]:
        found = []
        for part in body.split("|"):
            tokens, namespace, scale = part.split(), "", 1.0
            if tokens and not part[0].isspace():
                namespace, colon, given = tokens.pop(0).partition(":")
                scale = _value(given) if colon else 1.0
            for token in tokens:
                name, colon, given = token.partition(":")
                if given[:1].isalpha() and given.lower() not in ("nan", "inf", "infinity"):
                    name, colon = token, ""
                if not name:
                    raise ValueError(f"the feature {token!r}, which has no name")
                if self.kind == "index" and not (name.isascii() and name.isdigit() and len(name) < 10):
                    raise ValueError(f"the feature {name!r}, which is no index below 10^9; columns='order' reads names")
                found.append((namespace, name, scale * (_value(given) if colon else 1.0)))
        # only now, so that a malformed line leaves nothing behind
        columns = [self._column(namespace, name) for namespace, name, _ in found]
        return [(column, value) for column, (*_, value) in zip(columns, found, strict=True) if column is not None]

    def _column(self, namespace: str, name: str) -> int | None:
        if self.kind == "index":
            self.namespaces.add(namespace)
            return int(name)
        full = f"{namespace}^{name}" if namespace else name
        if self.kind == "hash":
            return zlib.crc32(full.encode()) % self.number
        return self.index.setdefault(full, len(self.index)) if self.kind == "order" else self.index.get(full)


def _value(text: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"the value {text!r}, which is no finite number")
    return value


def _dense(
    labels: list[Any],
    plain: list[str],
    plain_rows: list[int],
    entries: list[tuple[int, int, float]],
    size: int | None,
    path: str | Path,
) -> np.ndarray:
    """`float32[n, d]` of the features, d the largest index and one if `size` is None."""
    numbers = np.fromstring(" ".join(plain).replace(":", " "), sep=" ").reshape(-1, 2)
    counts = [body.count(":") for body in plain]
    rows = np.concatenate([np.repeat(plain_rows, counts).astype(int), np.array([row for row, *_ in entries], int)])
    columns = np.concatenate([numbers[:, 0].astype(int), np.array([column for _, column, _ in entries], int)])
    values = np.concatenate([numbers[:, 1], np.array([value for *_, value in entries], float)])
    width = int(columns.max(initial=-1)) + 1 if size is None else size
    if len(labels) * width > _LARGEST:
        raise ValueError(
            f"the features of {path} are {len(labels)} x {width} numbers, more than 2^30; columns=1024 hashes them, "
            "and columns='order' numbers those that occur."
        )
    with np.errstate(over="ignore"):
        features = np.zeros((len(labels), width), np.float32)
        np.add.at(features, (rows, columns), values.astype(np.float32))
    return features
