"""Minari data sets: the record of `jaxrl-off collect`, and a source of demonstrations.

Minari keeps data sets in the folder that the environment variable `MINARI_DATASETS_PATH` names. Nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_off.data.demonstrations import Demonstrations, check, from_episodes
from jaxrl_off.envs.base import EnvironmentSpec


def from_minari(dataset: Any) -> Demonstrations:
    """Read a Minari data set.

    Args:
        dataset: an id such as `"door/expert-v0"` of a data set on this machine, or a `minari.MinariDataset` (for example
            after `filter_episodes`).

    Returns:
        Demonstrations, with the successors that Minari keeps; not yet checked for content.

    Raises:
        ImportError: if minari is not installed.
        FileNotFoundError: if this machine has no such data set.
        ValueError: if it has no episodes, or observations or actions are not flat vectors.
    """
    minari = _minari()
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except FileNotFoundError as error:
            here = ", ".join(sorted(minari.list_local_datasets())) or "none"
            raise FileNotFoundError(
                f"there is no Minari data set {dataset!r} on this machine; there are: {here}. Nothing is downloaded: fetch "
                "it with `minari download`, or set MINARI_DATASETS_PATH to the folder that holds it."
            ) from error
    episodes = []
    for number, episode in enumerate(dataset.iterate_episodes()):
        for name in ("observations", "actions"):
            if not isinstance(getattr(episode, name), np.ndarray):
                raise ValueError(
                    f"{name} of episode {number} of {dataset.spec.dataset_id} are a "
                    f"{type(getattr(episode, name)).__name__}; only arrays are taken. Flatten the spaces when recording."
                )
        episodes.append(vars(episode))
    return from_episodes(episodes)


def to_minari(
    demonstrations: Demonstrations,
    dataset_id: str,
    spec: EnvironmentSpec,
    *,
    environment_id: str | None = None,
    algorithm_name: str | None = None,
    author: str | None = None,
    description: str | None = None,
) -> Any:
    """Write a new Minari data set.

    Args:
        demonstrations: whole trajectories, none of them subsampled or cut.
        dataset_id: `"[namespace/]name-v0"`; the version is required.
        spec: of the environment that they were recorded in; its shapes become the spaces of the data set.
        environment_id: Gymnasium id to store, so that Minari can rebuild the environment (which is built once here). Its
            reward may be another than the recorded one.
        algorithm_name: who acted.
        author: of the data.
        description: in words.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        ImportError: if minari is not installed.
        FileExistsError: if there is such a data set; nothing is overwritten.
        ValueError: for an invalid id, demonstrations that `check` refuses, or subsampled ones.
    """
    path = check_new_id(dataset_id)
    minari = _minari()
    import gymnasium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant dimensions are no harm to a record
        check(demonstrations, spec)
    demos = demonstrations
    same = demos.episode[1:] == demos.episode[:-1]
    broken = np.flatnonzero(same & (demos.next_observation[:-1] != demos.observation[1:]).any(1))
    if broken.size:
        raise ValueError(
            f"{broken.size} steps are not followed by their successor, first step {broken[0]}: Minari stores a trajectory as "
            "one chain of observations. Write the demonstrations before subsampling them."
        )

    buffers = []
    for number in range(int(demos.episode[-1]) + 1):
        part = Demonstrations(*(field[demos.episode == number] for field in demos))
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=np.concatenate([part.observation, part.next_observation[-1:]]),
                actions=part.action,
                rewards=part.reward,
                terminations=part.terminated,
                truncations=part.truncated,
            )
        )
    box, action_space = gymnasium.spaces.Box, spec.action_space
    low, high = (np.asarray(bound, np.float32) for bound in (action_space.low, action_space.high))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari warns of every piece of metadata that is not given
            return minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=environment_id,
                observation_space=box(-np.inf, np.inf, demos.observation.shape[1:], np.float32),
                action_space=box(low, high, dtype=np.float32),
                algorithm_name=algorithm_name,
                author=author,
                description=description,
            )
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # no half-written data set
        raise


def check_new_id(dataset_id: str) -> Path:
    """The folder of a data set that is still to be written.

    Raises:
        ImportError: if minari is not installed.
        ValueError: for an invalid id.
        FileExistsError: if there is such a data set.
    """
    _minari()
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    if not re.search(r"-v\d+$", dataset_id):
        raise ValueError(f"a Minari id ends in its version, such as {dataset_id}-v0; got {dataset_id!r}.")
    parse_dataset_id(dataset_id)
    path = get_dataset_path(dataset_id)
    if path.exists():
        raise FileExistsError(f"there is a Minari data set {dataset_id!r} at {path}; give another name or version.")
    return path


def _minari() -> Any:
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise ImportError(
            f'Minari data sets need minari, which is not installed ({error}): pip install "jaxrl_off[minari]".'
        ) from error
    return minari
