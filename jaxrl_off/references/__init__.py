"""Reference (behaviour) policies pi_0: learned from demonstrations once, then frozen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.references.base import Progress, Reference
from jaxrl_off.references.calibration import (
    Calibration,
    PrincipalPlane,
    calibrate,
    on_plane,
    plot_calibration,
    principal_plane,
)
from jaxrl_off.references.ensemble import dropout, ensemble
from jaxrl_off.references.gaussian_process import gp_icm, gp_independent, gp_sparse
from jaxrl_off.references.network import gaussian_network
from jaxrl_off.references.uniform import Uniform, uniform

if TYPE_CHECKING:
    from jaxrl_off.references import (
        base,
        calibration,
        gaussian_process,
        network,
    )

REFERENCES: dict[str, Callable[..., Reference]] = {
    "uniform": uniform,
    "gaussian_network": gaussian_network,
    "ensemble": ensemble,
    "dropout": dropout,
    "gp_icm": gp_icm,
    "gp_independent": gp_independent,
    "gp_sparse": gp_sparse,
}


def make(name: str, **options: Any) -> Reference:
    """Build a reference policy by name.

    Args:
        name: a key of `REFERENCES`.
        **options: of that constructor.

    Raises:
        ValueError: for an unknown name or option, or an option out of range.

    Example:
        >>> reference = make("gp_icm", kernel="matern52")
    """
    if name not in REFERENCES:
        raise ValueError(f"unknown reference {name!r}; choose one of {', '.join(REFERENCES)}.")
    allowed = list(inspect.signature(REFERENCES[name]).parameters)
    for option in options:
        if option not in allowed:
            raise ValueError(f"the reference {name!r} has no option {option!r}; it has: {', '.join(allowed)}.")
    return REFERENCES[name](**options)


__all__ = [
    "REFERENCES",
    "Calibration",
    "PrincipalPlane",
    "Progress",
    "Reference",
    "Uniform",
    "base",
    "calibrate",
    "calibration",
    "dropout",
    "ensemble",
    "gaussian_network",
    "gaussian_process",
    "gp_icm",
    "gp_independent",
    "gp_sparse",
    "make",
    "network",
    "on_plane",
    "plot_calibration",
    "principal_plane",
    "uniform",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
