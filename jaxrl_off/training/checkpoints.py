"""Checkpoints of a run: its state, a pytree of arrays, on disk through orbax; atomic, checked, tied to the run that wrote it.

A checkpoint is a folder `checkpoints/<step>/` with orbax's `state/` and a `manifest.json` that holds the identity of
the run (library, environment, config, settings), and path, shape, dtype and CRC-32 of every array. It is written under
a temporary name and renamed when complete, so that a process killed at any moment leaves only whole checkpoints.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_off.types import PyTree

FOLDER = "checkpoints"
_TEMPORARY = ".unfinished-"
_MARGIN = 16 * 2**20


class CheckpointError(ValueError):
    """A checkpoint cannot be saved or used; the message says what was found, what is allowed and what to do."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
        step: rows of metrics behind it.
        state: what was saved.
    """

    step: int
    state: PyTree


class _Damaged(Exception):
    """This checkpoint is incomplete or changed; an older one may be good."""


def library_version() -> str:
    """Version of the installed `jaxrl_off`."""
    return importlib.metadata.version("jaxrl_off")


def steps(directory: str | Path) -> list[int]:
    """Steps of the checkpoints in a run's directory, oldest first; unfinished ones do not count."""
    folder = Path(directory) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit())


def fingerprint(tree: PyTree) -> list[dict[str, Any]]:
    """Structure of a pytree: path, shape and dtype of every leaf (arrays or `jax.ShapeDtypeStruct`)."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        {"path": jax.tree_util.keystr(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in leaves
    ]


def save(directory: str | Path, step: int, state: PyTree, identity: dict[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint, whole or not at all, and then remove all but the newest `keep`.

    Args:
        directory: of the run.
        step: rows of metrics behind the state; a checkpoint of the same step is replaced.
        state: what to save. Its arrays are copied to the host.
        identity: JSON-able description of the run; `restore` compares it.
        keep: checkpoints to keep.

    Returns:
        The folder written.

    Raises:
        CheckpointError: if the disk has no room or writing fails; earlier checkpoints are untouched.
    """
    folder = Path(directory) / FOLDER
    arrays, leaves = _to_host(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(stale, ignore_errors=True)
        needed, free = sum(array.nbytes for array in arrays.values()) + _MARGIN, shutil.disk_usage(folder).free
        if free < needed:
            raise CheckpointError(
                _cannot_save(folder, step, f"it needs up to {_size(needed)}, but the disk has {_size(free)} free")
            )
        temporary, final = folder / f"{_TEMPORARY}{step}", folder / f"{step:08d}"
        _write(temporary, arrays, {"step": step, "identity": strict(identity), "leaves": leaves})
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
    except CheckpointError:
        raise
    except Exception as error:  # besides OSError, whatever tensorstore makes of one
        shutil.rmtree(folder / f"{_TEMPORARY}{step}", ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        reason = "the disk is full" if full else f"writing failed ({type(error).__name__}: {error})"
        raise CheckpointError(_cannot_save(folder, step, reason)) from error
    found = steps(directory)
    newer = [other for other in found if other > step]  # left by a damaged checkpoint that a resume went back behind
    for other in newer + [other for other in found if other <= step][:-keep]:
        shutil.rmtree(folder / f"{other:08d}", ignore_errors=True)
    return final


def restore(directory: str | Path, like: PyTree, identity: dict[str, Any]) -> Restored:
    """Read the newest good checkpoint.

    Args:
        directory: of the run.
        like: the state's structure, arrays or `jax.eval_shape(loop.init, key)`.
        identity: of the run that wants to go on; must equal what the checkpoint was saved with.

    Returns:
        A `Restored`. If the newest checkpoint is damaged and an older one is good, the older, with a warning.

    Raises:
        CheckpointError: if there is none, all are damaged, or it belongs to another run.
    """
    folder = Path(directory) / FOLDER
    found = steps(directory)
    if not found:
        raise CheckpointError(
            f"{directory} holds no checkpoint (looked for numbered folders in {folder}). Give the directory of a run "
            "that has written one, or start the run without resuming."
        )
    reasons = []
    for step in reversed(found):
        try:
            state = _read(folder / f"{step:08d}", like, identity)
        except _Damaged as damage:
            reasons.append(f"{folder / f'{step:08d}'}: {damage}")
            continue
        if reasons:
            warnings.warn(
                f"skipped damaged checkpoints ({'; '.join(reasons)}) and went back to step {step}.", stacklevel=2
            )
        return Restored(step, state)
    raise CheckpointError(
        f"no checkpoint in {folder} can be read: {'; '.join(reasons)}. Restore that folder from a copy, or start the "
        "run again in a new directory."
    )


def check_identity(stored: dict[str, Any], given: dict[str, Any], where: str | Path) -> None:
    """Refuse to go on with a run that another one has begun.

    Raises:
        CheckpointError: listing every field that differs.
    """
    before, now = _flat(stored), _flat(given)
    missing = "(absent)"
    differences = [
        f"{name}: stored {before.get(name, missing)!r}, given {now.get(name, missing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differences:
        raise CheckpointError(
            f"{where} belongs to another run: {'; '.join(differences)}. Resuming is exact and allows no change; give "
            "what is stored, or start a new run in another directory."
        )


def _to_host(state: PyTree) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays by name, and the manifest's entry of every leaf."""
    arrays, entries = {}, fingerprint(state)
    for i, leaf in enumerate(jax.tree.leaves(state)):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            entries[i]["key"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        array = np.asarray(jax.device_get(leaf))
        entries[i]["crc32"] = _checksum(array)
        if array.size:  # orbax refuses arrays without elements; their shape says all
            arrays[_name(i)] = array
    return arrays, entries


@contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's log, which prints pages of tracebacks from its threads beside the error that it raises anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write(folder: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    import orbax.checkpoint

    with _quiet(), orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / "state", arrays)
        checkpointer.wait_until_finished()
    with open(folder / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, like: PyTree, identity: dict[str, Any]) -> PyTree:
    import orbax.checkpoint

    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        stored, entries = manifest["identity"], manifest["leaves"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
    check_identity(stored, identity, folder)
    expected = fingerprint(like)
    actual = [{name: entry[name] for name in ("path", "shape", "dtype")} for entry in entries]
    if actual != expected:
        extra = [_leaf_text(leaf) for leaf in actual if leaf not in expected]
        missing = [_leaf_text(leaf) for leaf in expected if leaf not in actual]
        raise CheckpointError(
            f"{folder} holds a state of another structure: stored but not expected: {_some(extra)}; expected but not "
            f"stored: {_some(missing)}. It was written by other code of the same version; use that code, or start a "
            "new run."
        )
    targets = {}
    keys_like = [jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(like)]
    for i, leaf in enumerate(keys_like):
        if 0 not in leaf.shape:
            targets[_name(i)] = np.zeros(leaf.shape, leaf.dtype)
    try:
        with _quiet(), orbax.checkpoint.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder.absolute() / "state", targets)
    except Exception as error:  # orbax and tensorstore raise whatever they meet in a broken file
        raise _Damaged(f"orbax cannot read it ({type(error).__name__}: {str(error)[:200]})") from error
    leaves = []
    for i, (leaf, entry) in enumerate(zip(keys_like, entries, strict=True)):
        array = np.asarray(arrays[_name(i)]) if _name(i) in arrays else np.zeros(leaf.shape, leaf.dtype)
        if _checksum(array) != entry["crc32"]:
            raise _Damaged(f"the checksum of {entry['path']} does not fit")
        # a copy of its own: the loop donates its state, and memory shared with NumPy cannot be donated
        placed = jax.device_put(array, may_alias=False)
        leaves.append(jax.random.wrap_key_data(placed, impl=entry["key"]) if "key" in entry else placed)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(index: int) -> str:
    return f"leaf_{index:05d}"


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _leaf_text(leaf: dict[str, Any]) -> str:
    return f"{leaf['path']} {leaf['dtype']}{leaf['shape']}"


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "") if texts else "nothing"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}} -> {"a.b": 1}`, in JSON's types."""
    if isinstance(tree, dict) and (tree or not prefix):
        return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: json.loads(json.dumps(strict(tree)))}


def strict(tree: Any) -> Any:
    """JSON-able data without the numbers that JSON lacks, which become the texts "Infinity", "-Infinity" and "NaN"."""
    if isinstance(tree, dict):
        return {name: strict(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [strict(value) for value in tree]
    return json.dumps(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def _cannot_save(folder: Path, step: int, reason: str) -> str:
    kept = steps(folder.parent)
    last = f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no earlier checkpoint"
    return (
        f"cannot save the checkpoint of step {step} in {folder}: {reason}; {last}. Free space (a smaller "
        "replay_capacity makes smaller checkpoints), then resume."
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
