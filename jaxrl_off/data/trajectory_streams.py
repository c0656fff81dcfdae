"""Trajectories from files that do not fit into memory, some at a time: what `estimators.trajectory.streaming` takes.

All functions are iterators of `Trajectories` of `size` rows, the last ones maybe fewer, each padded to its own longest. What is
held is one chunk. Chunks are what `trajectories` makes of the whole, cut up; `check` refuses or drops what is wrong in one.
"""

from __future__ import annotations

import contextlib
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_off.data.trajectories import FLAT, from_episodes, from_flat, open_hdf5, require_names
from jaxrl_off.data.trajectory_checks import ALWAYS, structured
from jaxrl_off.types import Trajectories

_BLOCK = 2**18  # flags that are read at a time in search of ends


def iterate_episodes(episodes: Iterable[Mapping[str, Any]], size: int) -> Iterator[Trajectories]:
    """Chunks of episodes, as `from_episodes` takes them, which need not exist before they are asked for.

    Minari's are read from its file one by one by `(vars(episode) for episode in dataset.iterate_episodes())`.

    Args:
        episodes: dictionaries.
        size: trajectories of a chunk.

    Raises:
        ValueError: if size is below 1, or as `from_episodes`.

    Example:
        >>> def played(length):
        ...     end = np.arange(length) == length - 1
        ...     steps = dict(observations=np.zeros(length), actions=np.zeros(length, int), rewards=np.ones(length))
        ...     return steps | dict(terminations=end, truncations=end & False)
        >>> [chunk.rewards.sum(axis=1).tolist() for chunk in iterate_episodes(map(played, (1, 3, 2)), 2)]
        [[1.0, 3.0], [2.0]]
    """
    _check_size(size)
    source = iter(episodes)
    while chunk := list(itertools.islice(source, size)):
        yield from_episodes(chunk)


def iterate_flat(arrays: Mapping[str, Any], size: int) -> Iterator[Trajectories]:
    """Chunks of flat arrays, as `from_flat` takes them, of which only slices are read.

    Args:
        arrays: data sets of h5py, memory maps, or arrays, by name. With `episode`, its rows have to be next to each other.
        size: trajectories of a chunk.

    Raises:
        ValueError: if size is below 1, or as `from_flat`.
    """
    _check_size(size)
    require_names(arrays, [name for name in FLAT if name != "timeouts" or arrays.get("episode") is None], "the data")
    names = [name for name, array in arrays.items() if array is not None]
    start, stops, total = 0, [], len(arrays["rewards"])
    begun: set[Any] = set()  # episodes, of which none may come back
    for block in range(0, total, _BLOCK):
        if "episode" in names:
            episode = np.asarray(arrays["episode"][block : block + _BLOCK + 1])
            changes = np.flatnonzero(episode[1:] != episode[:-1]) + 1
            begins = episode[np.append(0, changes)] if block == 0 else episode[changes]
            again = begun.intersection(begins.tolist()) or len(set(begins.tolist())) < len(begins)
            if again:
                raise ValueError(
                    "the rows of an episode are in several places of the table. A stream is read in order: sort the rows by "
                    "episode and step first, or read the whole with `from_flat`."
                )
            begun.update(begins.tolist())
            stops += (changes + block).tolist()
        else:
            flags = (np.asarray(arrays[name][block : block + _BLOCK], bool) for name in ("terminals", "timeouts"))
            stops += (np.flatnonzero(np.logical_or(*flags)) + block + 1).tolist()
        while len(stops) >= size:
            yield from_flat({name: arrays[name][start : stops[size - 1]] for name in names})
            start, stops = stops[size - 1], stops[size:]
    if start < total:
        yield from_flat({name: arrays[name][start:] for name in names})


def iterate_hdf5(path: str | Path, size: int, *, behaviour_log_prob: str | None = None) -> Iterator[Trajectories]:
    """Chunks of an HDF5 file in D4RL's layout.

    Args:
        path: as in `read_hdf5`.
        size: trajectories of a chunk.
        behaviour_log_prob: as there.

    Raises:
        ValueError: if size is below 1; and as `read_hdf5`.
    """
    with open_hdf5(path, behaviour_log_prob=behaviour_log_prob) as arrays:
        yield from iterate_flat(arrays, size)


def iterate_npz(path: str | Path, size: int) -> Iterator[Trajectories]:
    """Chunks of what `save` wrote, each padded to the horizon of all.

    Args:
        path: of the file.
        size: trajectories of a chunk.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if size is below 1, or as `load`.
    """
    _check_size(size)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not an .npz of numbers ({error}).") from error
        names = [name for name in Trajectories._fields if f"{name}.npy" in archive.namelist()]
        missing = [name for name in ALWAYS if name not in names]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(archive.namelist()) or 'nothing'}.")
        columns = {name: _Column(stack.enter_context(archive.open(f"{name}.npy")), path) for name in names}
        for start in range(0, len(columns["rewards"]), size):
            chunk = {name: column.read(min(size, len(column) - start)) for name, column in columns.items()}
            yield structured(Trajectories(**(dict.fromkeys(Trajectories._fields) | chunk)), ())


class _Column:
    """Rows of an array in a file in NumPy's format, in their order."""

    def __init__(self, file: Any, path: str | Path) -> None:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        try:
            shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is not an .npz of numbers ({error}).") from error
        if fortran or dtype.hasobject or not shape:
            raise ValueError(f"{path} is not an .npz of rows of numbers; write it with `save`.")
        self._file, self._rows, self._shape, self._dtype = file, shape[0], shape[1:], dtype

    def __len__(self) -> int:
        return self._rows

    def read(self, rows: int) -> np.ndarray:
        """The next ones."""
        shape = (rows, *self._shape)
        return np.frombuffer(self._file.read(int(np.prod(shape)) * self._dtype.itemsize), self._dtype).reshape(shape)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
