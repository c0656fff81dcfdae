"""Demonstrations: whole trajectories of somebody who knows the task, as flat NumPy arrays, read, checked and cut.

Files come in three layouts (`load`), other sources as lists of episodes, flat dictionaries or Minari data sets
(`jaxrl_off.data.minari_files`). Reading repairs nothing silently: what is dropped is warned of, and `check` refuses what
it was not asked to repair.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_off.data.files import new_npz, write_npz
from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec
from jaxrl_off.types import Array


class Demonstrations(NamedTuple):
    """`N` transitions of `E` trajectories, one trajectory after the other.

    Attributes:
        observation: `float32[N, O]`, s.
        action: `float32[N, A]`, in the units of the environment.
        reward: `float32[N]`.
        terminated: `bool[N]`, whether the value of what follows is zero.
        truncated: `bool[N]`, whether the trajectory was cut here; False where `terminated`.
        next_observation: `float32[N, O]`, s', before any reset. Arbitrary where `terminated`.
        episode: `int32[N]`, index of the trajectory, from 0 and without gaps, non-decreasing.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observation: np.ndarray
    episode: np.ndarray


_DTYPES = dict(zip(Demonstrations._fields, "float32 float32 float32 bool bool float32 int32".split(), strict=True))
_FLAT = ("observations", "actions", "rewards", "terminals", "timeouts")
_EPISODE = ("observations", "actions", "rewards", "terminations", "truncations")
_COMPACT = ("obs", "act", "lens")


def from_episodes(episodes: Sequence[Mapping[str, Any]]) -> Demonstrations:
    """Join episodes.

    Args:
        episodes: dictionaries with `observations` `[T + 1, O]` or `[T, O]`, `actions [T, A]`, `rewards [T]`,
            `terminations [T]` and `truncations [T]`; `T` may differ. Other keys are ignored.

    Returns:
        Demonstrations. Where an episode has only `T` observations, the successor of its last step is not known: if that
        step terminated, it does not matter (the observation is repeated); otherwise the step is dropped, with a
        warning, and its truncation passes to the step before.

    Raises:
        ValueError: if there are no episodes or no steps, a key is missing, or shapes do not fit.
    """
    pieces = []
    for number, episode in enumerate(episodes):
        where = f"episode {number}"
        _require(episode, _EPISODE, where)
        actions = _matrix(episode["actions"], "actions", where)
        observations = _matrix(episode["observations"], "observations", where)
        steps = len(actions)
        if len(observations) not in (steps, steps + 1):
            raise ValueError(
                f"{where} has {len(observations)} observations for {steps} actions; "
                f"{steps + 1} (with the last successor) or {steps} are allowed."
            )
        vectors = [_vector(episode[key], key, steps, where) for key in _EPISODE[2:]]
        pieces.append((observations[:steps], actions, *vectors, observations[1:]))
    return _join(pieces)


def from_arrays(arrays: Mapping[str, Any]) -> Demonstrations:
    """Split flat arrays, as D4RL lays them out, into trajectories.

    Args:
        arrays: `observations [N, O]`, `actions [N, A]`, `rewards [N]`, `terminals [N]`, `timeouts [N]` and, optionally,
            `next_observations [N, O]`. Other keys are ignored. A trajectory ends where a terminal or a timeout is set.

    Returns:
        Demonstrations. Without `next_observations`, last steps are treated as in `from_episodes`. Steps after the last
        end form a cut trajectory, which `check` refuses or repairs.

    Raises:
        ValueError: if there are no steps, a key is missing, or shapes do not fit.
    """
    _require(arrays, _FLAT, "the data")
    actions = _matrix(arrays["actions"], "actions", "the data")
    count = len(actions)
    names = ("observations", "next_observations") if "next_observations" in arrays else ("observations",)
    matrices = [_matrix(arrays[name], name, "the data") for name in names]
    for name, matrix in zip(names, matrices, strict=True):
        if matrix.shape != (count, matrices[0].shape[1]):
            raise ValueError(
                f"{name} of the data has shape {matrix.shape}; actions has {count} steps, "
                f"so {(count, matrices[0].shape[1])} is allowed."
            )
    rewards, terminals, timeouts = (_vector(arrays[key], key, count, "the data") for key in _FLAT[2:])
    ends = np.flatnonzero(terminals.astype(bool) | timeouts.astype(bool)) + 1
    starts = [0, *(int(end) for end in ends if end < count), count]
    pieces = []
    for start, end in zip(starts, starts[1:], strict=False):
        now = slice(start, end)
        successor = matrices[1][now] if len(names) == 2 else matrices[0][start + 1 : end]
        pieces.append((matrices[0][now], actions[now], rewards[now], terminals[now], timeouts[now], successor))
    return _join(pieces)


def load(path: str | Path, *, reward: float | None = None) -> Demonstrations:
    """Read demonstrations from an `.npz` file.

    Args:
        path: a file with one of these sets of keys: the fields of `Demonstrations` (what `save` writes); the flat keys
            of `from_arrays`; or `obs [N, O]`, `act [N, A]`, `lens [E]` (steps of each trajectory) and, optionally,
            `rew [N]`: such trajectories are taken to be truncated at their end and lose their last step (see
            `from_episodes`).
        reward: the reward of every step of a file that has none, for demonstrations from which only actions are learnt.

    Returns:
        Demonstrations, not yet checked for content: see `check`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an `.npz` of numbers, has none of these sets of keys, shapes do not fit, or it has no
            rewards and `reward` was not given.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz of numbers ({error}).") from error
    if all(key in arrays for key in Demonstrations._fields):
        demos = Demonstrations(*(np.asarray(arrays[key], dtype) for key, dtype in _DTYPES.items()))
        _check_structure(demos)
        return demos
    if all(key in arrays for key in _COMPACT):
        return _from_compact(arrays, reward, path)
    if reward is not None and "rewards" not in arrays and "actions" in arrays:
        arrays["rewards"] = np.full(len(arrays["actions"]), reward, np.float32)
    _require(arrays, _FLAT, f"{path} (which has neither {_COMPACT} nor the fields of Demonstrations)")
    return from_arrays(arrays)


def save(demonstrations: Demonstrations, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an `.npz` that `load` reads back bit for bit; whole or not at all.

    Args:
        demonstrations: what to write.
        path: ends in `.npz`; its folder is made if need be.
        overwrite: replace a file of that name.

    Returns:
        The path written.

    Raises:
        FileExistsError: if there is such a file and `overwrite` was not given.
        ValueError: if the path does not end in `.npz`, or the arrays do not fit together.
    """
    otherwise = "overwrite=True to replace it"
    path = new_npz(path, "demonstrations are written", overwrite=overwrite, otherwise=otherwise)
    _check_structure(demonstrations)
    return write_npz(path, demonstrations._asdict())


def check(
    demonstrations: Demonstrations,
    spec: EnvironmentSpec | None = None,
    *,
    repair: bool = False,
    clip_actions: bool = False,
) -> tuple[Demonstrations, dict[str, Any]]:
    """Refuse what learning would choke on, or repair what can be.

    Args:
        demonstrations: what was read.
        spec: of the environment they are for: sizes must agree, and actions must lie in its box instead of [-1, 1].
        repair: mark the last step of a cut trajectory (neither terminated nor truncated) as truncated.
        clip_actions: clip actions to the box.

    Returns:
        The demonstrations, and a report: `episodes` and `steps` (how many), `marked_truncated` (how many trajectories),
        `clipped_actions` (share of action components that lay outside the box) and `constant_observation_dimensions`
        (a list of indices; also a warning, since a length scale or a standard deviation cannot be fitted to them).

    Raises:
        ValueError: for arrays that do not fit together or to `spec`, NaN or infinity, an end inside a trajectory, and,
            unless repaired, a cut trajectory or an action outside the box.
    """
    _check_structure(demonstrations)
    demos, space = demonstrations, None
    if spec is not None:
        space = spec.action_space
        if not isinstance(space, ContinuousSpace):
            raise ValueError(f"demonstrations have continuous actions; {spec.name} has {space}.")
        expected = (spec.observation_shape, (int(np.prod(space.shape)),))
        given = (demos.observation.shape[1:], demos.action.shape[1:])
        if given != expected:
            raise ValueError(
                f"observations and actions of the demonstrations have shapes {given}; {spec.name} has {expected}."
            )
    for name in ("observation", "action", "reward", "next_observation"):
        bad = ~np.isfinite(getattr(demos, name))
        if bad.any():
            steps = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
            episodes = np.unique(demos.episode[steps])
            raise ValueError(
                f"{name} holds NaN or infinity in {len(steps)} of {len(bad)} steps, first in step {steps[0]}; only finite "
                f"numbers are allowed. Leave out the trajectories {_some(episodes)} with subset(episodes=...)."
            )

    report: dict[str, Any] = {"episodes": int(demos.episode[-1]) + 1, "steps": len(demos.episode)}
    last = _last_steps(demos.episode)
    ended = demos.terminated | demos.truncated
    inside = np.setdiff1d(np.flatnonzero(ended), last)
    if inside.size:
        raise ValueError(
            f"{inside.size} steps are terminated or truncated but not the last of their trajectory, first step "
            f"{inside[0]} of trajectory {demos.episode[inside[0]]}; number the trajectories anew from these ends."
        )
    cut = last[~ended[last]]
    if cut.size and not repair:
        raise ValueError(
            f"{cut.size} of {len(last)} trajectories are cut: {_some(demos.episode[cut])}. The last step must be terminated "
            "or truncated; repair=True marks it as truncated."
        )
    if cut.size:
        truncated = demos.truncated.copy()
        truncated[cut] = True
        demos = demos._replace(truncated=truncated)
    report["marked_truncated"] = int(cut.size)

    low = np.float32(-1.0 if space is None else space.low)
    high = np.float32(1.0 if space is None else space.high)
    outside = (demos.action < low) | (demos.action > high)
    if outside.any() and not clip_actions:
        raise ValueError(
            f"{outside.mean():.2%} of the action components lie outside the box, from {demos.action.min():.6g} to "
            f"{demos.action.max():.6g}; allowed is {_interval(low, high)}. clip_actions=True clips them."
        )
    if outside.any():
        demos = demos._replace(action=np.clip(demos.action, low, high))
    report["clipped_actions"] = float(outside.mean())

    constant = np.flatnonzero(np.ptp(demos.observation, axis=0) == 0).tolist()
    if constant:
        warnings.warn(
            f"observation dimensions {constant} do not vary in the demonstrations; what is fitted to them says nothing "
            "about other values.",
            stacklevel=2,
        )
    report["constant_observation_dimensions"] = constant
    return demos, report


def subset(
    demonstrations: Demonstrations,
    *,
    episodes: Sequence[int] | None = None,
    number: int | None = None,
    every: int | None = None,
    key: Array | None = None,
) -> Demonstrations:
    """Pick whole trajectories; exactly one of `episodes`, `number`, `every` says which.

    Args:
        demonstrations: to pick from.
        episodes: indices, in the order wanted.
        number: how many: the first ones, or, with `key`, random ones without replacement (in their old order).
        every: the first and every so-many-th after it.
        key: random key for `number`.

    Returns:
        The trajectories, numbered from 0.

    Raises:
        ValueError: if not exactly one is given, or there are no such trajectories, or `key` is given without `number`.
    """
    count = int(demonstrations.episode[-1]) + 1
    if sum(choice is not None for choice in (episodes, number, every)) != 1:
        raise ValueError("give exactly one of episodes, number and every.")
    if key is not None and number is None:
        raise ValueError("key goes with number, the only random choice.")
    if episodes is not None:
        chosen = np.asarray(episodes, int).reshape(-1)
        if not chosen.size or chosen.min() < 0 or chosen.max() >= count or len(np.unique(chosen)) != len(chosen):
            raise ValueError(
                f"episodes must be distinct indices in 0 .. {count - 1}, at least one; got {list(episodes)}."
            )
    elif number is not None:
        if not 1 <= number <= count:
            raise ValueError(f"number must be in 1 .. {count}, the number of trajectories, got {number}.")
        order = np.arange(count) if key is None else np.asarray(jax.random.permutation(key, count))
        chosen = np.sort(order[:number])
    else:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        chosen = np.arange(0, count, every)
    starts = np.searchsorted(demonstrations.episode, chosen, side="left")
    stops = np.searchsorted(demonstrations.episode, chosen, side="right")
    steps = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
    picked = Demonstrations(*(field[steps] for field in demonstrations))
    return picked._replace(episode=np.repeat(np.arange(len(chosen), dtype=np.int32), stops - starts))


def subsample(demonstrations: Demonstrations, every: int) -> Demonstrations:
    """Keep every so-many-th step of each trajectory, from its first, and its last step so that its end is kept.

    Each kept step is still a true transition; sums of rewards are no longer returns.

    Raises:
        ValueError: if `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    last = _last_steps(demonstrations.episode)
    first = np.concatenate([[0], last[:-1] + 1])
    keep = (np.arange(len(demonstrations.episode)) - first[demonstrations.episode]) % every == 0
    keep[last] = True
    return Demonstrations(*(field[keep] for field in demonstrations))


def episode_returns(demonstrations: Demonstrations) -> np.ndarray:
    """Undiscounted return of each trajectory, `float64[E]`."""
    return np.bincount(demonstrations.episode, weights=demonstrations.reward.astype(np.float64))


def _from_compact(arrays: Mapping[str, Any], reward: float | None, path: str | Path) -> Demonstrations:
    lengths, steps = np.asarray(arrays["lens"]), len(_matrix(arrays["act"], "act", str(path)))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not lengths.size or lengths.min() < 1:
        raise ValueError(f"lens of {path} must be positive integers, one a trajectory, got {lengths}.")
    if lengths.sum() != steps:
        raise ValueError(f"lens of {path} sums to {lengths.sum()}, but act has {steps} steps.")
    if "rew" not in arrays and reward is None:
        raise ValueError(
            f"{path} has no rewards (rew); it has {', '.join(sorted(arrays))}. reward=0.0 sets them to that, which serves "
            "where only actions are learnt from the demonstrations."
        )
    timeouts = np.zeros(steps, bool)
    timeouts[np.cumsum(lengths) - 1] = True
    return from_arrays(
        {
            "observations": arrays["obs"],
            "actions": arrays["act"],
            "rewards": arrays["rew"] if "rew" in arrays else np.full(steps, reward, np.float32),
            "terminals": np.zeros(steps, bool),
            "timeouts": timeouts,
        }
    )


def _join(pieces: list[tuple[np.ndarray, ...]]) -> Demonstrations:
    """Join `(observation, action, reward, terminated, truncated, successor)`; successors may lack the last one."""
    complete, dropped = [], 0
    for observation, action, reward, terminated, truncated, successor in pieces:
        terminated = terminated.astype(bool)
        truncated = truncated.astype(bool) & ~terminated
        if len(successor) < len(action) and terminated[-1]:
            successor = np.concatenate([successor, observation[-1:]])
        elif len(successor) < len(action):
            dropped += 1
            if len(action) == 1:
                continue
            truncated[-2] = truncated[-1]
            observation, action, reward, terminated, truncated = (
                field[:-1] for field in (observation, action, reward, terminated, truncated)
            )
        complete.append((observation, action, reward, terminated, truncated, successor))
    if not complete:
        raise ValueError(
            f"there is no transition in {len(pieces)} episodes; give one that has an action and an observation after it."
        )
    if dropped:
        warnings.warn(
            f"the last step of {dropped} of {len(pieces)} trajectories was dropped, because its successor is not in the "
            "data; the step before it ends the trajectory.",
            stacklevel=3,
        )
    for index, name in ((0, "observations"), (1, "actions")):
        sizes = sorted({piece[index].shape[1] for piece in complete})
        if len(sizes) > 1:
            raise ValueError(f"{name} of the episodes differ in size: {sizes}; all must have the same.")
    numbers = [np.full(len(piece[1]), number) for number, piece in enumerate(complete)]
    fields = [np.concatenate(parts) for parts in zip(*complete, strict=True)] + [np.concatenate(numbers)]
    return Demonstrations(*(field.astype(dtype) for field, dtype in zip(fields, _DTYPES.values(), strict=True)))


def _check_structure(demos: Demonstrations) -> None:
    count = len(demos.episode) if np.ndim(demos.episode) == 1 else 0
    if not count:
        raise ValueError(f"episode must be int32[N] with at least one step, got shape {np.shape(demos.episode)}.")
    size = np.shape(demos.observation)[1:]
    for name, field in demos._asdict().items():
        rank = 2 if name in ("observation", "action", "next_observation") else 1
        agrees = not name.endswith("observation") or np.shape(field)[1:] == size
        if np.ndim(field) != rank or len(field) != count or not agrees:
            raise ValueError(
                f"{name} has shape {np.shape(field)}; with {count} steps and observations of shape {size}, "
                f"{'[N, size]' if rank == 2 else '[N]'} is allowed."
            )
    jumps = np.diff(demos.episode)
    if demos.episode[0] != 0 or np.any((jumps != 0) & (jumps != 1)):
        raise ValueError("episode must count trajectories from 0, one after the other, without gaps or returns.")


def _last_steps(episode: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.append(np.diff(episode) != 0, True))


def _require(given: Mapping[str, Any], wanted: Sequence[str], where: str) -> None:
    missing = [key for key in wanted if key not in given]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(given)) or 'nothing'}.")


def _matrix(values: Any, name: str, where: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim != 2:
        raise ValueError(f"{name} of {where} has shape {array.shape}; [steps, size] is allowed. Flatten it first.")
    return array


def _vector(values: Any, name: str, length: int, where: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (length,):
        raise ValueError(f"{name} of {where} has shape {array.shape}; ({length},), one a step, is allowed.")
    return array


def _some(numbers: Any) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ... ({len(numbers)})"


def _interval(low: np.ndarray, high: np.ndarray) -> str:
    return f"[{np.min(low):g}, {np.max(high):g}]" + (" in each component's own bounds" if np.ndim(low) else "")
