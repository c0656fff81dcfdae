"""What the end of a row means, in tables and for functions that are fitted alike.

A terminated step is an exit: nothing of value follows. Any other end of a row is a cut, a truncation or the end of the horizon.

* `horizon_exit=True`: a cut is an exit as well. Values then approximate those of returns within the horizon, which the
  estimators in `weights` judge; a model or a function without a time index can do so only approximately.
* `horizon_exit=False`: the process goes on, from `final_observation` if that is given. Otherwise the last step is left out,
  reward and all, as nobody knows what it led to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.types import Trajectories


class Ends(NamedTuple):
    """Booleans `[n, T]`, of NumPy where all is known.

    Attributes:
        goes_on: whether the row has a further step.
        usable: whether one can learn from the step.
        continues: whether something of value follows it.
    """

    goes_on: Any
    usable: Any
    continues: Any


def ends_of(trajectories: Trajectories, mask: Any, counted: Any, *, horizon_exit: bool) -> Ends:
    """How rows end.

    Args:
        trajectories: n of them.
        mask: `bool[n, T]`, steps that were made.
        counted: `bool[n, T]`, steps of trajectories that count.
        horizon_exit: see the module.

    Raises:
        ValueError: for rows that go on after a step that ended them.
    """
    concrete = is_concrete(trajectories, mask, counted)
    library = np if concrete else jnp
    goes_on = library.concatenate([mask[:, 1:], library.zeros_like(mask[:, :1])], axis=1)
    terminated = library.asarray(trajectories.terminated, bool) & mask
    ended = terminated | (library.asarray(trajectories.truncated, bool) & mask)
    if concrete and (goes_on & ended & counted).any():
        row, step = np.argwhere(goes_on & ended & counted)[0]
        raise ValueError(
            f"trajectory {row} goes on after step {step}, which terminated or truncated it; give every trajectory its "
            "own row."
        )
    if horizon_exit:
        return Ends(goes_on, mask, goes_on & ~terminated)
    if trajectories.final_observation is None:
        return Ends(goes_on, goes_on | terminated, goes_on & ~terminated)
    return Ends(goes_on, mask, mask & ~terminated)
