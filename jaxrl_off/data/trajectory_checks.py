"""Checks of trajectories before they are estimated from: that arrays fit together, and that their values are valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_off.data.bandit_logs import Report
from jaxrl_off.types import Trajectories

ALWAYS = ("rewards", "mask", "terminated", "truncated")
_ALLOWED = {
    "mask": "True in the first steps of each trajectory, at least one, and nowhere else",
    "observations": "finite",
    "actions": "finite and, where they are integers, not negative",
    "rewards": "finite",
    "behaviour_log_prob": "finite and, for discrete actions, not above 0",
    "terminated": "True in the last step alone",
    "truncated": "True in the last step alone, and not where terminated is",
    "final_observation": "finite unless the last step terminated",
}
_ADVICE = {
    "mask": "Put the steps of a trajectory at the beginning of its row",
    "behaviour_log_prob": "It is log pi_b(a|s) of an action that was taken, which therefore was possible",
    "terminated": "Make what follows an end a trajectory of its own",
    "truncated": "Make what follows an end a trajectory of its own; where one terminated, it was not cut",
}


def check(
    trajectories: Trajectories, *, require: Sequence[str] = (), on_bad: str = "error"
) -> tuple[Trajectories, Report]:
    """Refuse trajectories with invalid values, or leave them out.

    Numbers must be finite, steps without gaps, ends last and of one kind; the log-probability of a logged action is not
    -inf and, for discrete actions, not above 0. Padding is ignored.

    Args:
        trajectories: n of them, NumPy or JAX.
        require: names of fields that must not be None, such as `["behaviour_log_prob"]`.
        on_bad: "error", or "drop" for trajectories with a step that is not allowed.

    Returns:
        The trajectories as NumPy arrays, and a report: how many trajectories there are, how many were dropped, and how
        many were wrong in which field.

    Raises:
        ValueError: for arrays that do not fit together, missing fields, no trajectories and, unless dropped, steps that
            are not allowed; the first of them is named.
    """
    if on_bad not in ("error", "drop"):
        raise ValueError(f"on_bad must be 'error' or 'drop', got {on_bad!r}.")
    data = structured(trajectories, require)
    mask, terminated = data.mask, data.terminated
    after = np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    last = mask & ~after
    gap = mask & ~np.pad(mask[:, :-1], [(0, 0), (1, 0)])
    gap[:, 0] = ~mask[:, 0]
    wrong = {
        "mask": gap,
        "terminated": terminated & mask & after,
        "truncated": data.truncated & mask & (after | terminated),
        "rewards": mask & ~np.isfinite(data.rewards),
    }
    if data.observations is not None:
        wrong["observations"] = mask & ~_finite(data.observations, 2)
    if data.actions is not None:
        wrong["actions"] = mask & ~_finite(data.actions, 2)
        if data.actions.ndim == 2:
            wrong["actions"] |= mask & (data.actions < 0)
    if data.behaviour_log_prob is not None:
        limit = 1e-5 if data.actions is not None and data.actions.ndim == 2 else np.inf  # room for float32
        fine = np.isfinite(data.behaviour_log_prob) & (data.behaviour_log_prob <= limit)
        wrong["behaviour_log_prob"] = mask & ~fine
    if data.final_observation is not None:
        wrong["final_observation"] = last & ~terminated & ~_finite(data.final_observation, 1)[:, None]
    reasons = {name: int(bad.any(axis=1).sum()) for name, bad in wrong.items() if bad.any()}
    if reasons and on_bad == "error":
        name = next(iter(reasons))
        row, step = np.argwhere(wrong[name])[0]
        place = row if name == "final_observation" else (row, step)
        shown = _short([leaf[place] for leaf in jax.tree.leaves(getattr(data, name))])
        advice = f"{_ADVICE[name]}; " if name in _ADVICE else ""
        raise ValueError(
            f"{name} must be {_ALLOWED[name]}; step {step} of trajectory {row} has {shown}. This concerns "
            f"{reasons[name]} of {len(mask)} trajectories. {advice}on_bad='drop' leaves them out and counts them."
        )
    keep = ~np.any([bad.any(axis=1) for bad in wrong.values()], axis=0)
    if not keep.any():
        found = ", ".join(f"{name} is wrong in {count}" for name, count in reasons.items())
        raise ValueError(f"none of {len(keep)} trajectories is valid: {found}. Fix the data.")
    kept = data if keep.all() else jax.tree.map(lambda x: x[keep], data)
    return kept, Report(int(keep.sum()), int((~keep).sum()), reasons)


def structured(data: Trajectories, require: Sequence[str]) -> Trajectories:
    """The same as NumPy arrays that fit together."""
    unknown = [name for name in require if name not in Trajectories._fields]
    if unknown:
        raise ValueError(f"trajectories have no {', '.join(unknown)}; they have {', '.join(Trajectories._fields)}.")
    missing = [name for name in (*ALWAYS, *require) if getattr(data, name) is None]
    if missing:
        hint = " `clone_behaviour` estimates behaviour_log_prob." if "behaviour_log_prob" in missing else ""
        raise ValueError(f"the trajectories lack {', '.join(missing)}, which must not be None.{hint}")
    data = jax.tree.map(np.asarray, data)
    shape = data.rewards.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"rewards must be [n, T], with n and T at least 1, got shape {shape}.")
    kinds = dict(rewards="fiu", behaviour_log_prob="f", mask="b", terminated="b", truncated="b")
    for name, kind in kinds.items():
        field = getattr(data, name)
        if field is not None and (field.shape != shape or field.dtype.kind not in kind):
            raise ValueError(
                f"{name} is {described(field)}; {'bool' if kind == 'b' else 'float'}{list(shape)} is allowed."
            )
    estimated = data.behaviour_estimated
    if estimated is not None and (estimated.shape != shape[:1] or estimated.dtype != bool):
        raise ValueError(f"behaviour_estimated is {described(estimated)}; bool{list(shape[:1])} is allowed.")
    actions = data.actions
    if actions is not None:
        fits = actions.shape[:2] == shape and (actions.dtype.kind, actions.ndim) in (("i", 2), ("u", 2), ("f", 3))
        if not fits:
            raise ValueError(f"actions are {described(actions)}; int{list(shape)} or float{[*shape, 'A']} is allowed.")
    seen = [np.shape(leaf) for leaf in jax.tree.leaves(data.observations)]
    final = [np.shape(leaf) for leaf in jax.tree.leaves(data.final_observation)]
    if any(size[:2] != shape for size in seen):
        raise ValueError(f"observations have shapes {seen}; {[*shape, '...']} is allowed.")
    agree = not seen or not final or [size[1:] for size in final] == [size[2:] for size in seen]
    if not agree or any(size[:1] != shape[:1] for size in final):
        raise ValueError(
            f"final_observation has shapes {final}, observations {seen}; the former must lack the axis of T."
        )
    return data


def described(field: Any) -> str:
    """Types and shapes of an array, or of a tree of them, for an error."""
    leaves = [f"{np.asarray(x).dtype}{list(np.shape(x))}" for x in jax.tree.leaves(field)]
    return ", ".join(leaves) or "None"


def _finite(tree: Any, lead: int) -> np.ndarray:
    return np.all([np.isfinite(x).reshape(*x.shape[:lead], -1).all(axis=-1) for x in jax.tree.leaves(tree)], axis=0)


def _short(values: list[np.ndarray]) -> str:
    text = ", ".join(np.array2string(value, threshold=6, edgeitems=2) for value in values)
    return " ".join(text.split())
