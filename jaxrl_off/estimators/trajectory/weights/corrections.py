"""What estimators that correct a fitted action-value function share: their columns, and from these to an `Estimate`.

`doubly_robust` says what is estimated where a trajectory was cut, and with which formula.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.estimators.common import is_concrete, standard_error
from jaxrl_off.estimators.trajectory.bounds import Limits
from jaxrl_off.estimators.trajectory.statistics import Settings, estimate_statistic
from jaxrl_off.estimators.trajectory.steps import Steps, column_of, z_score
from jaxrl_off.estimators.trajectory.weights import forms
from jaxrl_off.types import Array, Estimate


class Corrected(NamedTuple):
    """Checked columns of an estimator that corrects; of T steps, or T + 1 where returns are bootstrapped from `final`.

    Attributes:
        steps: columns; the bootstrapping step has no reward and is not in the mask.
        log_weight: `float64[n, T]`, kept in the padding.
        q: `float64[n, T]`.
        v: `float64[n, T]`.
    """

    steps: Steps
    log_weight: Array
    q: Array
    v: Array


def corrected_columns(
    steps: Steps, log_weight: Array, q: Any, v: Any, final: Any, *, horizon_exit: bool, discount: Any
) -> Corrected:
    """Checked columns of the quantity that `horizon_exit` chooses; see `doubly_robust`. To be called within `float64`.

    Args:
        steps: columns.
        log_weight: `float64[n, T]`, kept in the padding.
        q: `float[n, T]`.
        v: `float[n, T]`.
        final: `float[n]` or None.
        horizon_exit: True for returns within the horizon; False if the process goes on where trajectories were cut.
        discount: gamma.

    Raises:
        ValueError: for columns that do not fit, or a `final` that would be ignored.
    """
    q, v = column_of("q", q, steps), column_of("v", v, steps)
    if horizon_exit:
        if final is not None:
            raise ValueError(
                "final is the value of what follows a trajectory that was cut, and horizon_exit=True says that nothing does: "
                "it would be ignored. Pass horizon_exit=False to bootstrap from it, or leave final out."
            )
        return Corrected(steps, log_weight, q, v)
    horizon = steps.mask.shape[1]
    lengths, cut = jnp.sum(steps.mask, axis=1), (steps.cut > 0)[:, None]
    if final is None:
        last = jnp.arange(horizon) == lengths[:, None] - 1
        return Corrected(steps, log_weight, jnp.where(last & cut & steps.mask, steps.rewards, q), v)
    final = _checked_final(final, steps)
    following = cut & (jnp.arange(horizon + 1) == lengths[:, None])

    def longer(column: Array) -> Array:
        return jnp.pad(column, [(0, 0), (0, 1)])

    more = steps._replace(
        rewards=longer(steps.rewards),
        log_ratio=longer(steps.log_ratio),
        mask=longer(steps.mask),
        discounts=jnp.asarray(discount, jnp.float64) ** jnp.arange(horizon + 1),
    )
    kept = jnp.concatenate([log_weight, log_weight[:, -1:]], axis=1)
    return Corrected(more, kept, longer(q), jnp.where(following, final[:, None], longer(v)))


def _checked_final(given: Any, steps: Steps) -> Array:
    final = jnp.asarray(given, jnp.float64)
    if final.shape != steps.counts.shape:
        raise ValueError(
            f"final has shape {final.shape}; one value for each of {len(steps.counts)} trajectories is needed."
        )
    needed = (steps.counts > 0) & (steps.cut > 0)
    if is_concrete(final, needed) and not bool(jnp.all(jnp.isfinite(final) | ~needed)):
        raise ValueError("final must be finite for every trajectory whose last step did not terminate.")
    return jnp.where(needed, final, 0.0)


def correction_diagnostics(columns: Corrected, form: forms.Form) -> dict[str, Array]:
    """By how much the data change the direct method, `correction`, and that in standard errors, `correction_z`."""
    if form.correction is None:
        return {}
    counts = columns.steps.counts
    total = jnp.sum(counts)
    correction, slope = jax.value_and_grad(forms.correction_of(form, *columns))(counts)
    error = standard_error(counts, total * slope)
    return {"correction": correction, "correction_z": z_score(correction, 0.0, error, total)}


@functools.partial(jax.jit, static_argnames=("form", "settings", "size"))
def estimate_corrected(
    columns: Corrected, limits: Limits | None = None, *, form: forms.Form, settings: Settings, size: int | None
) -> Estimate:
    """The `Estimate` of one of the `forms`; arguments as of `statistics.estimate_statistic`."""
    statistic, log_weight = forms.statistic_of(form, *columns), columns.log_weight[:, -1]
    found = correction_diagnostics(columns, form)
    return estimate_statistic(
        statistic, columns.steps, log_weight, settings, diagnostics=found, size=size, limits=limits
    )
