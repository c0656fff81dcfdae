"""The generic driver: some work that is done row by row, kept in a directory so that it can be killed and resumed exactly.

It knows nothing of environments, agents or the names of metrics. What it needs of the work is a `Work`; what it does is the
same for training with an environment, from fixed data, or of a language model: who the run is (its identity), rows of metrics,
progress, checkpoints, resume, Ctrl-C, a stop where numbers are no longer finite, and a callback.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.training import checkpoints
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.metrics import CSV_NAME, JSONL_NAME, TENSORBOARD_NAME, MetricsWriters, Row, read_last_row
from jaxrl_off.training.progress import Interruption, display, say
from jaxrl_off.types import Array, PyTree

CONFIG_NAME = "config.json"
LABELS = ("preset", "jax", "backend")


class TrainingDiverged(ArithmeticError):
    """Loss or parameters stopped being finite; the message says where and what to try."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after saving a checkpoint; the message says how to resume."""


class Work(NamedTuple):
    """What the driver moves forward.

    Attributes:
        rows: rows of metrics that the whole work has.
        begin: `() -> state`, from scratch.
        like: `() -> state`, its structure (`jax.ShapeDtypeStruct`), for reading checkpoints.
        advance: `(state, number) -> (state, row)`, everything up to row `number`, counted from 1; the row holds plain
            numbers. The state that was given may be used up.
        learner: `state -> pytree`, what must stay finite, and what the callback is given.
        saved: `state -> pytree`, what of it a checkpoint holds.
        revived: `pytree -> state`, what `saved` gave as a state to go on from.
        size: `number -> int`, how much is done after a row.
        unit: of `size`, such as "steps".
        describe: `row -> str`, the row in a few words for the progress display.
        diverged: `row -> bool`, whether its metrics say that numbers are no longer finite.
        advice: `row -> str`, what to try then.
    """

    rows: int
    begin: Callable[[], Any]
    like: Callable[[], Any]
    advance: Callable[[Any, int], tuple[Any, Row]]
    learner: Callable[[Any], PyTree]
    saved: Callable[[Any], PyTree]
    revived: Callable[[PyTree], Any]
    size: Callable[[int], int]
    unit: str
    describe: Callable[[Row], str]
    diverged: Callable[[Row], bool]
    advice: Callable[[Row], str]

    def position(self, number: int) -> str:
        """How far a row is, in words."""
        return f"{self.size(number):,} {self.unit}"


Callback = Callable[[Row, Any], "bool | None"]


class Driven(NamedTuple):
    """What `drive` returns.

    Attributes:
        state: the last one; of a finished run that was only read back, what its last checkpoint holds.
        row: the last row of metrics.
        number: rows that are done.
    """

    state: Any
    row: Row
    number: int


def claim(directory: Path, identity: dict[str, Any], files: Iterable[str], *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may write to a directory.

    Args:
        directory: of the run; need not exist.
        identity: of the run; JSON-able.
        files: names of further files that such a run keeps.
        resume: whether an earlier run with the same identity goes on.
        overwrite: whether an earlier run is removed.

    Raises:
        FileExistsError: if there is a run, and it is neither to be resumed nor to be overwritten.
        CheckpointError: if the run that is to be resumed is another one.
        ValueError: if both are asked for.
    """
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True exclude each other; choose one.")
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give a directory.")
    names = (CONFIG_NAME, JSONL_NAME, CSV_NAME, TENSORBOARD_NAME, checkpoints.FOLDER, *files)
    taken = [name for name in names if (directory / name).exists()]
    if not resume:
        if taken and not overwrite:
            raise FileExistsError(
                f"{directory} already holds a run ({', '.join(taken)}). Resume it with resume=True (command line: "
                "--resume), replace it with overwrite=True (--overwrite), or give another directory."
            )
        return
    description = read_description(directory)
    if description is None and not checkpoints.steps(directory):
        kept = [name for name in files if (directory / name).exists()]
        if kept:
            raise CheckpointError(
                f"{directory} holds {' and '.join(kept)} of a run, but neither its {CONFIG_NAME} nor a checkpoint; give "
                "another directory, or remove them."
            )
    if description is not None:
        stored = {name: value for name, value in description.items() if name not in LABELS}
        checkpoints.check_identity(stored, identity, directory / CONFIG_NAME)
        if description.get("jax") != jax.__version__:
            say(f"the run began with jax {description.get('jax')}, this is {jax.__version__}: bits may differ.")


def clear(directory: Path, files: Iterable[str]) -> None:
    """Remove an earlier run from a directory, and nothing else."""
    for name in (CONFIG_NAME, JSONL_NAME, CSV_NAME, TENSORBOARD_NAME, checkpoints.FOLDER, *files):
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def drive(
    work: Work,
    directory: Path,
    identity: dict[str, Any],
    *,
    label: str,
    checkpoint_every: int = 5,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    callback: Callback | None = None,
) -> Driven:
    """Do the work from where it stands to its end; `claim` and `write_description` come first.

    Args:
        work: what is done.
        directory: of the run.
        identity: of the run, kept in every checkpoint.
        label: in front of the progress.
        checkpoint_every: rows between checkpoints; the end always gets one. The last two are kept.
        resume: whether to go on from the newest good checkpoint; without one the work starts from scratch.
        progress: whether to show progress.
        tensorboard: whether to write event files, too.
        callback: `(row, learner) -> stop?`, called after every row with the row of metrics and `work.learner(state)`. Where
            it returns True, a checkpoint is saved and the run ends there; it can be resumed.

    Returns:
        A `Driven`.

    Raises:
        CheckpointError: if a checkpoint cannot be read or written.
        TrainingDiverged: if numbers stop being finite. Checkpoints hold finite states only.
        TrainingInterrupted: after Ctrl-C.
    """
    start, state = 0, None
    number: int = 0
    row: Row = {}
    if resume and checkpoints.steps(directory):
        start, stored = checkpoints.restore(directory, work.saved(work.like()), identity)
        if start == work.rows:
            say(f"the run in {directory} is finished; returning what it stored.")
            return Driven(stored, read_last_row(directory) or {}, start)
        say(f"resuming {directory} after {work.position(start)}.")
        state = work.revived(stored)
    elif resume:
        say(f"no checkpoint in {directory}; starting from scratch.")
    with MetricsWriters(directory, keep_rows=start, tensorboard=tensorboard) as writers:
        shown = display(work.rows, start, label, work.size, work.unit, work.describe) if progress else nullcontext(None)
        before = read_last_row(directory) if start else None
        with Interruption() as interruption, shown as show:
            clock = time.perf_counter() - (before["seconds"] if before else 0.0)
            if state is None:
                state = work.begin()
            for number in range(start + 1, work.rows + 1):
                state, row = work.advance(state, number)
                row["seconds"] = round(time.perf_counter() - clock, 3)
                writers.write(row)
                if show is not None:
                    show(number, row)
                if work.diverged(row) or not bool(_all_finite(work.learner(state))):
                    raise TrainingDiverged(_diverged(directory, work, number, row))
                last = number == work.rows
                stop = callback is not None and bool(callback(row, work.learner(state)))
                if last or stop or interruption.asked or number % checkpoint_every == 0:
                    checkpoints.save(directory, number, work.saved(state), identity)
                if stop and not last:
                    say(f"the callback stopped the run after {work.position(number)}.")
                    break
                if interruption.asked and not last:
                    raise TrainingInterrupted(
                        f"stopped after {work.position(number)}; the checkpoint is in {directory}. To go on, start the same "
                        "run with resume=True (command line: the same command with --resume)."
                    )
    return Driven(state, row, number)


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _diverged(directory: Path, work: Work, number: int, row: Row) -> str:
    kept = checkpoints.steps(directory)
    last = f"the checkpoint after {work.position(kept[-1])} is kept" if kept else "none was saved before"
    return (
        f"training diverged: loss or parameters stopped being finite between {work.position(number - 1)} and "
        f"{work.position(number)} (row {number} of {directory / JSONL_NAME}); {last}. {work.advice(row)}"
    )


def read_description(directory: Path) -> dict[str, Any] | None:
    """Content of `config.json`, or None where there is none.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path = directory / CONFIG_NAME
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        description["family"], description["config"], description["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete it and resume with the "
            "arguments the run was started with."
        ) from error
    return description


def description_text(description: dict[str, Any]) -> str:
    """A description as strict JSON, for `write_description`.

    Raises:
        ValueError: for what JSON cannot hold.
    """
    try:
        return json.dumps(checkpoints.strict(description), indent=2, allow_nan=False)
    except TypeError as error:
        raise ValueError(
            f"environment_parameters and reference_options must be JSON-able (numbers, strings, lists): {error}"
        ) from error


def write_description(directory: Path, text: str) -> None:
    """Write `config.json`, whole, where there is none yet; the directory is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG_NAME
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
