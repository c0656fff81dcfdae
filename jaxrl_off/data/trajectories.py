"""Logged trajectories (`Trajectories`): of episodes, arrays, demonstrations and files; checked, cut, joined, stored.

All of this is NumPy on the host. What does not fit into memory is read by `trajectory_streams`. Constructors check that
pieces fit together; what stands in them is checked by `check`. Rewards and log-probabilities are float64, observations
and actions keep their type, but for integers of 64 bits, which become int32. Padding is 0 and False.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.data.files import new_npz, write_npz
from jaxrl_off.data.trajectory_checks import ALWAYS, described, structured
from jaxrl_off.data.trajectory_checks import check as check
from jaxrl_off.data.trajectory_order import ordered
from jaxrl_off.types import Trajectories

_EPISODE = ("observations", "actions", "rewards", "terminations", "truncations")
FLAT = ("observations", "actions", "rewards", "terminals", "timeouts")
_OPTIONAL = ("next_observations", "behaviour_log_prob", "episode", "step")
_OF_ROWS = ("final_observation", "behaviour_estimated")  # fields without an axis of T


def from_episodes(episodes: Sequence[Mapping[str, Any]]) -> Trajectories:
    """Pad episodes to one length.

    Args:
        episodes: dictionaries with `observations` `[T + 1, ...]` or `[T, ...]`, `actions` `int[T]` or `float[T, A]`,
            `rewards [T]`, `terminations [T]`, `truncations [T]` and, in all of them or none, `behaviour_log_prob [T]`;
            `T` may differ. Other keys are ignored, so that `vars(episode)` of Minari's episodes will do.

    Returns:
        Trajectories; not truncated where terminated. `final_observation` is None if it is not known of an episode that
        did not terminate. No step is dropped then, other than by `data.demonstrations.from_episodes`: its reward
        counts.

    Raises:
        ValueError: if there are no episodes, one has no steps, a key is missing, or shapes do not fit.

    Example:
        >>> end = dict(terminations=[False, True], truncations=[False, False])
        >>> data = from_episodes([dict(observations=[4, 7], actions=[0, 1], rewards=[0.0, 1.0], **end)])
        >>> data.observations.tolist(), data.rewards.tolist()
        ([[4, 7]], [[0.0, 1.0]])
    """
    if not len(episodes):
        raise ValueError("there are no episodes; give at least one.")
    with_log_prob = [episode.get("behaviour_log_prob") is not None for episode in episodes]
    if any(with_log_prob) and not all(with_log_prob):
        raise ValueError(
            f"episode {with_log_prob.index(False)} lacks behaviour_log_prob, which others have; give it to all or none."
        )
    names = (*_EPISODE, "behaviour_log_prob") if all(with_log_prob) else _EPISODE
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    finals: list[np.ndarray | None] = []
    for number, episode in enumerate(episodes):
        where = f"episode {number}"
        require_names(episode, _EPISODE, where)
        arrays = {name: np.asarray(episode[name]) for name in names}
        steps = len(arrays["actions"]) if arrays["actions"].ndim else 0
        observations = arrays["observations"]
        if not steps or not observations.ndim or len(observations) not in (steps, steps + 1):
            raise ValueError(
                f"{where} has observations {observations.shape} and actions {arrays['actions'].shape}; with T actions, "
                "at least one, T + 1 observations (with the last successor) or T are allowed."
            )
        for name, array in arrays.items():
            columns[name].append(_steps(array[:steps] if name == "observations" else array, name, steps, where))
        finals.append(_final(observations[steps - 1 :], columns["terminations"][-1]))
    lengths = np.array([len(actions) for actions in columns["actions"]])
    flat = {name: _joined(name, parts) for name, parts in columns.items()}
    return _padded(lengths, flat, finals)


def from_flat(arrays: Mapping[str, Any]) -> Trajectories:
    """Split a flat table of steps, such as D4RL's files, into trajectories.

    Rows are sorted by `episode` and `step` where both are given. Otherwise they have to be in order, and what shows that they
    are not is refused: an episode in several places, steps that do not count up by 1, or `next_observations` that are not
    what the next row observes.

    Args:
        arrays: `observations [N, ...]`, `actions` `int[N]` or `float[N, A]`, `rewards [N]`, `terminals [N]`,
            `timeouts [N]` and, optionally, `next_observations [N, ...]`, `behaviour_log_prob [N]`, and `episode [N]` and
            `step [N]`: which trajectory a row belongs to, and its place there, from 0 or 1. Other keys are ignored.
            Without `episode`, a trajectory ends where a terminal or a timeout is set; with it, where the episode ends,
            and `timeouts` may be missing.

    Returns:
        Trajectories, as from `from_episodes`; with `episode` in the order in which episodes first appear. Where a trajectory
        ends without a terminal or a timeout, it was cut, and is marked as truncated.

    Raises:
        ValueError: if there are no steps, a key is missing, shapes do not fit, or rows are out of order.

    Example:
        >>> table = dict(episode=[7, 3, 7], step=[1, 0, 0], rewards=[2.0, 5.0, 1.0], terminals=[True, True, False])
        >>> from_flat(table | dict(observations=[1, 4, 0], actions=[0, 0, 1])).rewards.tolist()
        [[1.0, 2.0], [5.0, 0.0]]
    """
    needed = tuple(name for name in FLAT if name != "timeouts" or arrays.get("episode") is None)
    require_names(arrays, needed, "the data")
    given = {name: np.asarray(arrays[name]) for name in (*FLAT, *_OPTIONAL) if arrays.get(name) is not None}
    count = len(given["actions"]) if given["actions"].ndim else 0
    if not count:
        raise ValueError(f"the data has actions of shape {given['actions'].shape}; at least one step is needed.")
    given = {name: _steps(array, name, count, "the data") for name, array in given.items()}
    given, stops = ordered(given)
    terminals, timeouts = given.pop("terminals").astype(bool), given.pop("timeouts").astype(bool)
    starts = np.append(0, stops[:-1])
    successors = given.pop("next_observations", None)
    finals = []
    for stop in stops:
        after = () if successors is None else (successors[stop - 1],)
        finals.append(_final([given["observations"][stop - 1], *after], terminals[:stop]))
    return _padded(stops - starts, given | {"terminations": terminals, "truncations": timeouts}, finals)


def read_hdf5(path: str | Path, *, behaviour_log_prob: str | None = None) -> Trajectories:
    """Read an HDF5 file in D4RL's layout, whose data sets are the arrays of `from_flat`.

    Args:
        path: of the file.
        behaviour_log_prob: name of the data set that holds these; D4RL's locomotion data has
            `"infos/action_log_probs"`.

    Raises:
        ImportError: if h5py is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no HDF5, lacks a data set, or as `from_flat`.
    """
    with open_hdf5(path, behaviour_log_prob=behaviour_log_prob) as arrays:
        return from_flat({name: array[()] for name, array in arrays.items()})


@contextlib.contextmanager
def open_hdf5(path: str | Path, *, behaviour_log_prob: str | None = None) -> Iterator[dict[str, Any]]:
    """The data sets of a file in D4RL's layout by the names of `from_flat`, to be read as a whole or by slices.

    Args, Raises: as `read_hdf5`.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f'HDF5 files need h5py, which is not installed ({error}): pip install "jaxrl_off[minari]".'
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file ({error}).") from error
    with file:
        arrays = {name: file[name] for name in (*FLAT, "next_observations", "episode", "step") if name in file}
        if behaviour_log_prob is not None and behaviour_log_prob not in file:
            raise ValueError(f"{path} has no {behaviour_log_prob}; it has {', '.join(file)}.")
        if behaviour_log_prob is not None:
            arrays["behaviour_log_prob"] = file[behaviour_log_prob]
        require_names(arrays, FLAT, str(path))
        yield arrays


def from_demonstrations(demonstrations: Demonstrations, behaviour_log_prob: Any = None) -> Trajectories:
    """Pad demonstrations, for example of `data.minari_files.from_minari`, whose actions are continuous.

    Args:
        demonstrations: `N` transitions.
        behaviour_log_prob: `float[N]`, log-density of each action under who demonstrated, or None.

    Raises:
        ValueError: if there is not one log-probability a transition.
    """
    demos, count = demonstrations, len(demonstrations.episode)
    flat = dict(observations=demos.observation, actions=demos.action, rewards=demos.reward)
    flat |= dict(terminations=demos.terminated, truncations=demos.truncated)
    if behaviour_log_prob is not None:
        flat["behaviour_log_prob"] = _steps(
            np.asarray(behaviour_log_prob), "behaviour_log_prob", count, "the demonstrations"
        )
    lengths = np.bincount(demos.episode)
    return _padded(lengths, flat, list(demos.next_observation[np.cumsum(lengths) - 1]))


def chunks(trajectories: Trajectories, size: int) -> Iterator[Trajectories]:
    """Consecutive trajectories, `size` at a time; the last ones may be fewer.

    Raises:
        ValueError: if `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    pieces = (slice(start, start + size) for start in range(0, len(trajectories.rewards), size))
    return (jax.tree.map(lambda x, piece=piece: x[piece], trajectories) for piece in pieces)


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Join trajectories, padded to the longest horizon.

    Raises:
        ValueError: if there are none, a field is None in some and not in all, or shapes of a step differ.
    """
    if not len(parts):
        raise ValueError("there is nothing to concatenate; give at least one part.")
    horizon = max(part.rewards.shape[1] for part in parts)
    joined = {}
    for name in Trajectories._fields:
        fields, lead = [getattr(part, name) for part in parts], 1 if name in _OF_ROWS else 2
        if name == "behaviour_estimated" and any(field is not None for field in fields):
            fields = [
                np.zeros(len(part.rewards), bool) if field is None else field
                for field, part in zip(fields, parts, strict=True)
            ]
        trees = [jax.tree.structure(field) for field in fields]
        steps = [[np.shape(leaf)[lead:] for leaf in jax.tree.leaves(field)] for field in fields]
        for number in range(1, len(parts)):
            if trees[number] != trees[0] or steps[number] != steps[0]:
                raise ValueError(
                    f"{name} of part {number} is {described(fields[number])}, that of part 0 {described(fields[0])}; "
                    "all parts must have it, or none, and in one shape but for [n, T]. Replace it by None in all parts."
                )
        if lead == 2:
            fields = [jax.tree.map(lambda x: _to_horizon(np.asarray(x), horizon), field) for field in fields]
        joined[name] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *fields)
    return Trajectories(**joined)


def save(trajectories: Trajectories, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an `.npz` that `load` reads back bit for bit; whole or not at all.

    Args:
        trajectories: whose observations are single arrays, or None.
        path: ends in `.npz`; its folder is made if need be.
        overwrite: replace a file of that name.

    Returns:
        The path written.

    Raises:
        FileExistsError: if there is such a file and `overwrite` was not given.
        ValueError: if the path does not end in `.npz`, or the arrays do not fit together.
    """
    otherwise = "overwrite=True to replace it"
    path = new_npz(path, "trajectories are written", overwrite=overwrite, otherwise=otherwise)
    fields = structured(trajectories, ())._asdict()
    for name, field in fields.items():
        if field is not None and not isinstance(field, np.ndarray):
            raise ValueError(
                f"{name} is a {type(field).__name__} of arrays; only single arrays are written. Flatten it."
            )
    return write_npz(path, {name: field for name, field in fields.items() if field is not None})


def load(path: str | Path) -> Trajectories:
    """Read what `save` wrote; fields that the file lacks are None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no `.npz` of numbers, lacks a field that is always there, or arrays do not fit together.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not an .npz file; `load` reads what `save` wrote. For other files, make arrays of their columns and "
            "call `from_flat` or `from_episodes`."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in Trajectories._fields if name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz file of numbers ({error}).") from error
    require_names(arrays, ALWAYS, str(path))
    return structured(Trajectories(**(dict.fromkeys(Trajectories._fields) | arrays)), ())


def _padded(lengths: np.ndarray, flat: Mapping[str, np.ndarray], finals: list[np.ndarray | None]) -> Trajectories:
    """Trajectories of consecutive steps; `finals` are what followed their last ones, None where that is not known."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    def pad(values: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(lengths), lengths.max(), *values.shape[1:]), values.dtype)
        padded[rows, columns] = values
        return padded

    actions, log_prob = flat["actions"], flat.get("behaviour_log_prob")
    if (actions.dtype.kind, actions.ndim) not in (("i", 1), ("u", 1), ("f", 2)):
        raise ValueError(
            f"actions are {actions.dtype} of shape {list(actions.shape[1:])} a step; one integer a step or "
            "float[A] is allowed."
        )
    terminated = flat["terminations"].astype(bool)
    observations = _compact(flat["observations"], "observations")
    final = None
    if all(value is not None for value in finals):
        given = np.stack(finals)
        final = given.astype(observations.dtype)
        if observations.dtype.kind in "biu" and (final != given).any():
            raise ValueError(
                f"observations are {observations.dtype}, and what followed the last steps is not: {given[final != given][0]}."
            )
        if final.shape[1:] != observations.shape[1:]:
            raise ValueError(
                f"next_observations have steps of {final.shape[1:]}, observations {observations.shape[1:]}."
            )
    return Trajectories(
        observations=pad(observations),
        actions=pad(_compact(actions, "actions")),
        rewards=pad(flat["rewards"].astype(np.float64)),
        behaviour_log_prob=None if log_prob is None else pad(log_prob.astype(np.float64)),
        mask=pad(np.ones(len(rows), bool)),
        terminated=pad(terminated),
        truncated=pad(flat["truncations"].astype(bool) & ~terminated),
        final_observation=final,
    )


def _final(last: Sequence[Any], terminations: np.ndarray) -> np.ndarray | None:
    """What followed the last observation; after a terminated step nobody looks at it."""
    if len(last) == 2:
        return np.asarray(last[1])
    return np.asarray(last[0]) if terminations[-1] else None


def _joined(name: str, parts: list[np.ndarray]) -> np.ndarray:
    for number, part in enumerate(parts):
        if part.shape[1:] != parts[0].shape[1:] or (name == "actions" and part.dtype.kind != parts[0].dtype.kind):
            raise ValueError(
                f"{name} of episode {number} are {described(part)}, those of episode 0 {described(parts[0])}; "
                "all episodes must have one type and one shape a step."
            )
    return np.concatenate(parts)


def _steps(array: np.ndarray, name: str, steps: int, where: str) -> np.ndarray:
    scalar = name not in ("observations", "next_observations", "actions")
    if array.shape[:1] != (steps,) or (scalar and array.ndim != 1) or array.dtype.kind not in "biuf":
        wanted = f"[{steps}]" if scalar else f"[{steps}, ...]"
        raise ValueError(f"{name} of {where} are {described(array)}; numbers of shape {wanted} are allowed.")
    return array


def _compact(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 4:
        return array.astype(np.int32) if name == "actions" and array.dtype.kind in "iu" else array
    if array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min:
        raise ValueError(f"{name} go from {array.min()} to {array.max()}, which int32 cannot hold; number them anew.")
    return array.astype(np.int32)


def _to_horizon(array: np.ndarray, horizon: int) -> np.ndarray:
    return np.pad(array, [(0, 0), (0, horizon - array.shape[1])] + [(0, 0)] * (array.ndim - 2))


def require_names(given: Mapping[str, Any], wanted: Sequence[str], where: str) -> None:
    """Refuse arrays by name among which some are missing or None.

    Raises:
        ValueError: naming them.
    """
    missing = [name for name in wanted if given.get(name) is None]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(given)) or 'nothing'}.")
