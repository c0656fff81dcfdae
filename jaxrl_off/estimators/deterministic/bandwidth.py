"""Choosing the bandwidth: by rate, by plugging in, by SLOPE, and a check by extrapolation.

A kernelised estimate has bias `B h^2` and variance `C / (n h^D)`, D the number of dimensions that kernels smooth in one term: A
for a marginal estimator, A times the horizon for a cumulative one; the variance of a gradient is `C / (n h^(D + 2))`. The error
is least at `h = (D C / (4 n B^2))^(1 / (D + 4))`, of order `n^(-1 / (D + 4))`, or `n^(-1 / (D + 6))` for gradients. n is the
number of trajectories, not of steps. These orders are derived for kernels of second order; only that marginal ones do not
depend on the horizon is said in the paper's abstract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrl_off.estimators.common import float64
from jaxrl_off.estimators.deterministic.estimates import METHODS
from jaxrl_off.estimators.selection import slope
from jaxrl_off.estimators.trajectory.steps import quotient
from jaxrl_off.types import Array, Estimate


class BandwidthChoice(NamedTuple):
    """What `select_bandwidth` found.

    Attributes:
        bandwidth: the one that was chosen.
        estimate: with it.
        estimates: of all, in the order of the bandwidths that were given.
    """

    bandwidth: float
    estimate: Estimate
    estimates: tuple[Estimate, ...]


class Extrapolation(NamedTuple):
    """What two bandwidths, h and h / 2, say of bias; float64.

    Attributes:
        value: `(4 V_{h/2} - V_h) / 3`, from which the bias of order h^2 is gone.
        bias: of `V_{h/2}`, `(V_h - V_{h/2}) / 3`.
        bias_in_errors: the same in standard errors of `V_{h/2}`: intervals cover where it is small, say below 1/4.
    """

    value: Array
    bias: Array
    bias_in_errors: Array


def rate_bandwidth(
    n: int,
    *,
    method: str = "marginal_doubly_robust",
    horizon: int = 1,
    dimension: int = 1,
    gradient: bool = False,
    undersmooth: bool = False,
    constant: float = 1.0,
) -> float:
    """`constant n^(-1 / (D + 4))`, and with 6 for gradients.

    Args:
        n: trajectories.
        method: key of `METHODS`.
        horizon: number of actions in a trajectory; of no influence on marginal methods.
        dimension: A.
        gradient: whether it is for a gradient.
        undersmooth: for intervals: 3 in the place of 4, and 5 of 6, so that bias vanishes next to the error.
        constant: in units of `Smoothing.scale`, by default the deviations of the logged actions.

    Raises:
        ValueError: for numbers that are not positive, or unknown methods.

    Example:
        >>> print(f"{rate_bandwidth(32):.3f} {rate_bandwidth(32, undersmooth=True):.3f}")
        0.500 0.420
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if min(n, horizon, dimension) < 1 or not constant > 0:
        raise ValueError(
            f"n, horizon and dimension must be at least 1, constant positive, got {n}, {horizon}, {dimension}, {constant}."
        )
    smoothed = dimension * (horizon if METHODS[method].weights == "cumulative" else 1)
    order = smoothed + 4 + 2 * (gradient or not METHODS[method].valued) - undersmooth
    return float(constant * n ** (-1.0 / order))


def extrapolate(wide: Estimate, narrow: Estimate) -> Extrapolation:
    """Richardson's extrapolation of estimates with bandwidths h and h / 2, from the same data.

    Args:
        wide: with h.
        narrow: with h / 2.
    """
    with float64(wide, narrow):
        difference = wide.value - narrow.value
        bias = difference / 3.0
        return Extrapolation(narrow.value - bias, bias, quotient(bias, narrow.standard_error))


def plug_in_bandwidth(wide: Estimate, narrow: Estimate, bandwidth: float, *, smoothed: int = 1) -> float:
    """`(D C / (4 n B^2))^(1 / (D + 4))`, B and C from estimates with bandwidths h and h / 2.

    `C / n = s^2 h^D`, s the standard error with h, and `B = (V_h - V_{h/2}) / (3/4 h^2)`. Bias that is smaller than the noise
    of the difference is taken to be as large as that, so that h does not grow without end where no bias is seen.

    Args:
        wide: with h.
        narrow: with h / 2, from the same data.
        bandwidth: h.
        smoothed: D; A for marginal methods and bandits. Of gradients by one parameter (`GradientEstimate` serves) D + 2.

    Raises:
        ValueError: for a bandwidth or D that is not positive, estimates that are not finite, or without error.
    """
    if not bandwidth > 0 or smoothed < 1:
        raise ValueError(f"bandwidth and smoothed must be positive, got {bandwidth} and {smoothed}.")
    error, other = float(wide.standard_error), float(narrow.standard_error)
    if not (error > 0 and other > 0 and math.isfinite(error) and math.isfinite(other)):
        raise ValueError(
            f"standard errors are {error} and {other}; without variance there is nothing to balance. Use a wider bandwidth."
        )
    difference = abs(float(wide.value) - float(narrow.value))
    if not math.isfinite(difference):
        raise ValueError(f"estimates are {float(wide.value)} and {float(narrow.value)}; both must be finite.")
    difference = max(difference, (error**2 + other**2) ** 0.5)
    curvature = difference / (0.75 * bandwidth**2)
    return float((smoothed * error**2 * bandwidth**smoothed / (4.0 * curvature**2)) ** (1.0 / (smoothed + 4)))


def select_bandwidth(
    estimate_with: Callable[[float], Estimate], bandwidths: Sequence[float], *, sides: str = "two"
) -> BandwidthChoice:
    """The bandwidth that balances bias and deviation by SLOPE, `estimators.bandit.slope`.

    Candidates whose standard error is 0 or not finite are left out: with so narrow a kernel no action, or one alone, is near
    the target, and an interval without width would win against all others.

    Args:
        estimate_with: the estimate with a bandwidth, with a level.
        bandwidths: candidates.
        sides: of the intervals.

    Raises:
        ValueError: for no candidates with an error, or as `slope`.
    """
    estimates = tuple(estimate_with(bandwidth) for bandwidth in bandwidths)
    usable = [i for i, found in enumerate(estimates) if 0.0 < float(found.standard_error) < math.inf]
    if not usable:
        raise ValueError(f"no estimate with bandwidths {list(bandwidths)} has an error; give wider ones.")
    chosen = usable[slope([estimates[i] for i in usable], sides=sides)]
    return BandwidthChoice(bandwidths[chosen], estimates[chosen], estimates)
