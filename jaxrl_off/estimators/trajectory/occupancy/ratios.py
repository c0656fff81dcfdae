"""What the estimators of occupancies share: the check of their discount, and ratios at the steps of trajectories."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.columns.transitions import Transitions
from jaxrl_off.types import Array


class OccupancyRatio(NamedTuple):
    """A ratio of occupancies at the steps of trajectories; 0 where a step is not learned from.

    Attributes:
        ratio: `float64[n, T]`, zeta(s_t, a_t), divided by what the method's estimate is divided by: the value of the
            method is the mean of `ratio r` over the steps, divided by 1 - gamma.
        marginal_ratio: `float64[n, T]`, `mu_t = gamma^-t zeta_t N / ((1 - gamma) L)` with N trajectories and L steps in
            all: the value is `mean_i sum_t gamma^t mu_t r_t`, and `trajectory.double_reinforcement_learning` with mu, q
            and v is that of the discounted occupancy, `E v(s_0) + E_D[zeta (r + gamma v(s') - q)] / (1 - gamma)`, if
            rows end in exits (it has no v of what follows a row). It refuses negative ratios.
    """

    ratio: Array
    marginal_ratio: Array


def check_discount(discount: Any) -> None:
    """Refuse a discount outside [0, 1).

    Raises:
        ValueError: for one that is.
    """
    if is_concrete(discount) and not 0.0 <= discount < 1.0:
        raise ValueError(
            f"discount must be in [0, 1), got {discount}: at 1 the target has no normalised occupancy. Use "
            "marginalised_is or tabular.model_based."
        )


def ratio_at(zeta: Array, transitions: Transitions) -> OccupancyRatio:
    """An `OccupancyRatio` of zeta `[n, T]`, also in trajectories that count 0; to be called within `float64`.

    Raises:
        ValueError: where gamma^t is 0, so that no mu_t could make gamma^t mu_t what it has to be.
    """
    discounts = transitions.steps.discounts
    if is_concrete(discounts) and not bool(jnp.all(discounts > 0)):
        raise ValueError(
            f"gamma^t is 0 after {int(jnp.sum(discounts > 0))} of {len(discounts)} steps, and marginal ratios are divided "
            "by it; use a larger discount, or the estimate of the method itself."
        )
    counts, used = transitions.steps.counts, transitions.used
    zeta = jnp.where(transitions.usable, zeta, 0.0)
    scale = jnp.sum(counts) / (jnp.sum(counts[:, None] * used) * (1.0 - transitions.discount))
    return OccupancyRatio(zeta, zeta * scale / discounts)
