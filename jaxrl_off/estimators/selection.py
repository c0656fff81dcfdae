"""Choosing a hyperparameter of an estimator without the truth: SLOPE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl_off.estimators.common import check_level
from jaxrl_off.types import Estimate


def slope(estimates: Sequence[Estimate], *, sides: str = "two", deviations: Any = None) -> int:
    """Index of the estimate that balances bias and deviation, by Lepski's principle.

    In the order of falling deviations, along which bias must grow, the last estimate i for which
    `|V_i - V_j| <= d_i + (sqrt(6) - 1) d_j` holds for all j before it. Its error is at most `(3 + sqrt(6))` times that of
    the best, where each d bounds the deviation of its estimate from its mean.

    Reference: Su, Srinath and Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation", ICML 2020, theorem 3 for
    the constants.

    Args:
        estimates: of one estimator family, such as `clipped_ips` at several clips, made with a level: d is the distance to the
            farther end of the interval, the other of which may be cut at the end of the reward range.
        sides: of these intervals: "two"; or "lower" or "upper" for one-sided ones, of which d is the distance to that end.
        deviations: `float[m]`, d; in place of intervals.

    Returns:
        The index into `estimates`.

    Raises:
        ValueError: if there are no estimates, one has no interval, or sides or deviations are invalid.

    Example:
        >>> from jaxrl_off.estimators.bandit import clipped_ips
        >>> log = dict(weights=[0.0, 0.5, 1.0, 4.0] * 50, rewards=[0.0, 1.0, 0.0, 1.0] * 50, level=0.95)
        >>> slope([clipped_ips(**log, clip=clip) for clip in (1.0, 2.0, 4.0)])
        2
    """
    if not estimates:
        raise ValueError("there are no estimates to choose from.")
    check_level(None, sides)
    if deviations is None:
        if any(estimate.lower is None or estimate.upper is None for estimate in estimates):
            raise ValueError("an estimate has no interval; make them with a level, or give deviations.")
        ends = {"two": ("lower", "upper"), "lower": ("lower",), "upper": ("upper",)}[sides]
        deviations = [max(abs(float(getattr(e, end)) - float(e.value)) for end in ends) for e in estimates]
    widths = np.asarray(deviations, np.float64)
    if widths.shape != (len(estimates),) or not np.isfinite(widths).all() or (widths < 0).any():
        raise ValueError(
            f"deviations must be {len(estimates)} finite numbers that are not negative, got {deviations}. Of one-sided "
            "intervals say which side."
        )
    values = np.array([float(estimate.value) for estimate in estimates])
    order = np.argsort(-widths, kind="stable")
    chosen = order[0]
    for place, i in enumerate(order):
        before = order[:place]
        if np.all(np.abs(values[i] - values[before]) <= widths[i] + (math.sqrt(6.0) - 1.0) * widths[before]):
            chosen = i
    return int(chosen)
