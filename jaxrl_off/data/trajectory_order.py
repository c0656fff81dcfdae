"""The order of rows in a flat table of steps, and where its trajectories end."""

from __future__ import annotations

import numpy as np

_CLOSE = 1e-4  # how far a next observation may be from what the next row observes, on the scale of observations


def ordered(columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows in the order of their trajectories, and where each of these stops.

    Args:
        columns: of `data.trajectories.from_flat`, N rows each, `timeouts` only needed without `episode`.

    Returns:
        The columns without `episode` and `step`, sorted by these where both are given, with `timeouts` at every end that
        is no terminal; and `int[n]`, the row after the last one of each trajectory.

    Raises:
        ValueError: if rows are out of order, or steps are missing.
    """
    columns = dict(columns)
    episode, step = columns.pop("episode", None), columns.pop("step", None)
    terminals = columns["terminals"].astype(bool)
    if episode is None:
        timeouts = columns["timeouts"].astype(bool)
        timeouts[-1] |= not terminals[-1]
        stops = np.flatnonzero(terminals | timeouts) + 1
        _check_steps(step, stops, None)
    else:
        columns.setdefault("timeouts", np.zeros(len(terminals), bool))
        first, number = np.unique(episode, return_index=True, return_inverse=True)[1:]
        appears = first[number.reshape(-1)]
        if step is None and (np.diff(appears) < 0).any():
            row = int(np.argmax(np.diff(appears) < 0)) + 1
            raise ValueError(
                f"the rows of episode {episode[row]} are in several places (row {row} and before), so that the table is not "
                "sorted. Pass a step column too, which sorts the rows of each episode, or sort them yourself."
            )
        order = np.arange(len(terminals)) if step is None else np.lexsort((step, appears))
        columns = {name: column[order] for name, column in columns.items()}
        episode, appears = episode[order], appears[order]
        step = None if step is None else step[order]
        stops = np.append(np.flatnonzero(np.diff(appears)) + 1, len(appears))
        _check_steps(step, stops, episode)
        columns["timeouts"] = _ended(columns, stops, episode)
        return columns, stops
    columns["timeouts"] = timeouts
    _check_successors(columns, stops)
    return columns, stops


def _ended(columns: dict[str, np.ndarray], stops: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Timeouts where episodes end without a terminal; an end within an episode is refused."""
    terminals, timeouts = columns["terminals"].astype(bool), columns["timeouts"].astype(bool)
    last = np.zeros(len(terminals), bool)
    last[stops - 1] = True
    within = (terminals | timeouts) & ~last
    if within.any():
        raise ValueError(
            f"episode {episode[within][0]} goes on after a terminal or a timeout. Give every episode a number of its own, or "
            "fix the flags; if the rows are not sorted, pass a step column."
        )
    return last & ~terminals


def _check_steps(step: np.ndarray | None, stops: np.ndarray, episode: np.ndarray | None) -> None:
    """Refuse steps that do not count up by 1 from one number in every trajectory."""
    if step is None:
        return
    starts = np.append(0, stops[:-1])
    expected = step.min() + np.arange(len(step)) - np.repeat(starts, stops - starts)
    wrong = step != expected
    if wrong.any():
        row = int(np.argmax(wrong))
        if episode is None:
            raise ValueError(
                f"row {row} has step {step[row]:g} where {expected[row]:g} follows, so that the table is not sorted, or steps "
                "are missing. Sort the rows, or pass an episode column too, by which they are sorted."
            )
        raise ValueError(
            f"episode {episode[row]} has step {step[row]:g} where {expected[row]:g} is needed: a step is missing or doubled. "
            "Steps of every episode count up by 1 from the same number. Fix or remove this episode."
        )


def _check_successors(columns: dict[str, np.ndarray], stops: np.ndarray) -> None:
    """Refuse next observations that are not what the next row observes."""
    successors, observations = columns.get("next_observations"), columns["observations"]
    if successors is None or successors.shape != observations.shape:
        return
    goes_on = np.ones(len(observations), bool)
    goes_on[stops - 1] = False
    here = np.flatnonzero(goes_on)
    if not len(here):
        return
    given, seen = (x.reshape(len(x), -1).astype(np.float64) for x in (successors[here], observations[here + 1]))
    apart = np.abs(given - seen) > _CLOSE * (1.0 + np.abs(seen))
    wrong = (apart & np.isfinite(given) & np.isfinite(seen)).any(axis=1)
    if wrong.any():
        row = int(here[np.argmax(wrong)])
        raise ValueError(
            f"next_observations of row {row} are not the observations of row {row + 1}, nor are those of {int(wrong.sum())} "
            "rows in all: the table is not sorted, or an end is not marked. Pass episode and step columns, by which rows are "
            "sorted, or mark every end in terminals or timeouts."
        )
