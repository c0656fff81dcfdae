"""Kernels in the place of the density of a deterministic policy, which does not exist.

`K_h(a - tau) = prod_d K(u_d) / h_d`, `u_d = (a_d - tau_d) / h_d`, `h_d = h scale_d`. With a metric R, a matrix of determinant 1
in each state, `R u` stands for u. Where actions are bounded K_h is divided by its mass within the bounds, so that no mass is
lost; the bias of smoothing is then of order h, not h^2, in states whose target is within h of a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, is_concrete
from jaxrl_off.ops.kernels import SMOOTHING_KERNELS, kernel_quadrature
from jaxrl_off.pytrees import static
from jaxrl_off.types import Array, Trajectories

FORMS = ("mixed", "soft", "point")
_MOST_NODES = 243  # of a product rule; above, 2 A nodes that are exact to degree 3
_PANEL = 12  # nodes on each side of the target where the kernel is cut
_EFFECTIVELY_INFINITE = 7.0  # deviations of a Gaussian: its mass beyond is 1e-12


@flax.struct.dataclass
class Smoothing:
    """How a deterministic policy is made to have a density; bandwidths are leaves, names are static.

    | form | ratio `eta_t` | values |
    |---|---|---|
    | "mixed" | `K_h(a_t - tau(s_t)) / b(a_t|s_t)` | `v_t(s) = q_t(s, tau(s))` |
    | "soft" | the same | `v_t(s) = int K_h(a - tau(s)) q_t(s, a) da` |
    | "point" | `K_h(a_t - tau(s_t)) / b(tau(s_t)|s_t)` | `v_t(s) = q_t(s, tau(s))` |

    "soft" has the value of the smoothed policy for its target, without bias where q and ratio are those of the smoothed policy,
    for the same h. The others aim at the deterministic policy: a bias of order h^2, which is 0 where q is exact.

    Attributes:
        bandwidth: h > 0, in units of `scale`. Derivatives do not pass through it.
        form: "mixed", "soft" or "point".
        kernel: key of `ops.kernels.SMOOTHING_KERNELS`; "uniform" has no gradient, and refuses to be differentiated.
        nodes: of the quadrature of soft values, for each dimension of actions: exact for q that are polynomials in the
            action of degree up to `2 nodes - 1`. Where products would have more than 243 nodes, a rule exact to degree 3.
            Of no influence where actions are bounded: there are 24 nodes a dimension then, for up to 2 dimensions.
        scale: `float[A]` or one number, units of the actions. None (the default) for `action_scale` of the trajectories, the
            deviations of the logged actions: bandwidths have no unit then, and estimates do not depend on that of the actions.
            1 for bandwidths in the units of the actions.
        lower: `float[A]`, bounds of the actions, or None.
        upper: `float[A]`, or None.
        metric: `float[n, T, A, A]`, R, of `metric.kernel_metric`, of determinant 1, or None; not together with bounds.
    """

    bandwidth: Any
    form: str = static("mixed")
    kernel: str = static("gaussian")
    nodes: int = static(3)
    scale: Any = None
    lower: Any = None
    upper: Any = None
    metric: Any = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}.")
        if self.kernel not in SMOOTHING_KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(SMOOTHING_KERNELS)}, got {self.kernel!r}.")
        if self.nodes < 1:
            raise ValueError(f"nodes must be at least 1, got {self.nodes}.")
        if (self.lower is None) != (self.upper is None):
            raise ValueError("bounds of actions need both lower and upper; use -inf or inf where there is none.")
        if self.metric is not None and self.lower is not None:
            raise ValueError(
                "a metric turns actions, and the mass within bounds is then not known; give one of the two."
            )


def required(smoothing: Any) -> Smoothing:
    """The argument, if it is a `Smoothing`.

    Raises:
        ValueError: if it is something else, such as a bandwidth alone.
    """
    if not isinstance(smoothing, Smoothing):
        raise ValueError(
            f"smoothing must be a Smoothing, got {smoothing!r}. For a bandwidth h write Smoothing(h), or "
            "Smoothing(rate_bandwidth(n)) for one that suits n trajectories."
        )
    return smoothing


def checked(smoothing: Smoothing, size: int) -> Smoothing:
    """The same in float64, numbers checked where they are known.

    Args:
        smoothing: as given, with a scale; None is taken for 1 here, where no log is known.
        size: A.

    Raises:
        ValueError: for a bandwidth or scale that is not positive and finite, bounds in the wrong order, or other shapes.
    """

    def column(name: str, given: Any, default: float) -> Array:
        values = jnp.asarray(default if given is None else given, jnp.float64)
        if values.ndim and values.shape != (size,):
            raise ValueError(f"{name} has shape {values.shape}; actions have {size} numbers.")
        return jnp.broadcast_to(values, (size,))

    bandwidth = jnp.asarray(smoothing.bandwidth, jnp.float64)
    if bandwidth.ndim:
        raise ValueError(f"bandwidth must be one number, got shape {bandwidth.shape}; let scale differ by dimension.")
    scale = column("scale", smoothing.scale, 1.0)
    if is_concrete(bandwidth) and not 0.0 < bandwidth < np.inf:
        raise ValueError(
            f"bandwidth must be positive and finite, got {bandwidth}: a deterministic policy has no density without a kernel. "
            "See bandwidth.rate_bandwidth."
        )
    if is_concrete(scale) and not bool(jnp.all((scale > 0) & jnp.isfinite(scale))):
        raise ValueError(f"scale must be positive and finite, got {scale}; leave out actions that never vary.")
    lower = upper = None
    if smoothing.lower is not None:
        lower, upper = column("lower", smoothing.lower, -np.inf), column("upper", smoothing.upper, np.inf)
        if is_concrete(lower, upper) and not bool(jnp.all(lower < upper)):
            raise ValueError(f"lower must be below upper, got {lower} and {upper}.")
    metric = smoothing.metric
    if metric is not None:
        metric = jnp.asarray(metric, jnp.float64)
        if metric.shape[-2:] != (size, size) or metric.ndim != 4:
            raise ValueError(f"metric has shape {metric.shape}; [n, T, {size}, {size}] is needed.")
    found = Smoothing(
        jax.lax.stop_gradient(bandwidth), smoothing.form, smoothing.kernel, smoothing.nodes, scale, lower, upper
    )
    return found.replace(metric=None if metric is None else jax.lax.stop_gradient(metric))


def action_scale(trajectories: Trajectories) -> Array:
    """Deviations of the logged actions over all steps, `float64[A]`: the default of `Smoothing.scale`.

    Args:
        trajectories: with actions `float[n, T, A]`.

    Raises:
        ValueError: for other actions, or one that does not vary.
    """
    mask = np.asarray(trajectories.mask, bool)
    actions = None if trajectories.actions is None else np.asarray(trajectories.actions, np.float64)
    if actions is None or actions.ndim != 3 or actions.shape[:2] != mask.shape:
        given = None if actions is None else actions.shape
        raise ValueError(f"actions must be float[n, T, A] with the mask's [n, T] = {mask.shape}, got {given}.")
    with float64(actions):
        return deviations(jnp.asarray(actions), jnp.asarray(mask))


def deviations(actions: Array, mask: Array) -> Array:
    """Standard deviations `float64[A]` of actions `[n, T, A]` over the steps of the mask `[n, T]`.

    Raises:
        ValueError: for an action that does not vary.
    """
    share = mask / jnp.sum(mask)
    mean = jnp.tensordot(share, actions, axes=2)
    variance = jnp.tensordot(share, jnp.square(actions - mean), axes=2)
    if is_concrete(variance) and not bool(jnp.all(variance > 1e-20 * jnp.square(mean))):
        raise ValueError(
            f"logged actions have deviations {np.sqrt(np.asarray(variance))}: one of them never varies, so the log says "
            "nothing about other values of it. Leave out actions that never vary."
        )
    return jax.lax.stop_gradient(jnp.sqrt(variance))


def refusing_gradients(message: str) -> Callable[[Array], Array]:
    """The identity, which raises `ValueError(message)` where it is differentiated: in the place of a silently wrong slope."""

    @jax.custom_jvp
    def same(x: Array) -> Array:
        return x

    @same.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        raise ValueError(message)

    return same


NO_SLOPE = (
    "the uniform kernel has no gradient: its ratios are constant but for jumps. Use 'epanechnikov' or 'gaussian'."
)
_without_slope = refusing_gradients(NO_SLOPE)


def log_kernel(smoothing: Smoothing, actions: Array, target: Array) -> Array:
    """`log K_h(a - tau)`, `float64[...]`.

    Args:
        smoothing: of `checked`.
        actions: `float64[..., A]`.
        target: `float64[..., A]`, tau(s).

    Raises:
        ValueError: where it is differentiated with the uniform kernel.
    """
    if smoothing.kernel == "uniform":
        target = _without_slope(target)
    kernel = SMOOTHING_KERNELS[smoothing.kernel]
    width = smoothing.bandwidth * smoothing.scale
    u = (actions - target) / width
    if smoothing.metric is not None:
        u = jnp.einsum("...ij,...j->...i", smoothing.metric, u)
    found = jnp.sum(kernel.log_density(u) - jnp.log(width), axis=-1)
    if smoothing.lower is None:
        return found
    mass = kernel.distribution((smoothing.upper - target) / width) - kernel.distribution(
        (smoothing.lower - target) / width
    )
    return found - jnp.sum(jnp.log(jnp.maximum(mass, 1e-300)), axis=-1)


def action_nodes(smoothing: Smoothing, target: Array) -> tuple[Array, Array]:
    """Actions and weights with `v(s) = sum_m weight_m q(s, a_m)`: one node at the target, or those of soft values.

    Args:
        smoothing: of `checked`; its metric `[..., A, A]`.
        target: `float64[..., A]`, tau(s).

    Returns:
        `float64[..., M, A]` and `float64[..., M]`.
    """
    if smoothing.form != "soft":
        return target[..., None, :], jnp.ones((*target.shape[:-1], 1))
    size, width = target.shape[-1], smoothing.bandwidth * smoothing.scale
    if smoothing.lower is not None:
        nodes, weights = _cut_rule(smoothing, target, width)  # [..., A, m]
        grids = np.stack(np.meshgrid(*[np.arange(nodes.shape[-1])] * size, indexing="ij"), -1).reshape(-1, size)
        if len(grids) > 24**2:
            raise ValueError(f"soft values of {size} bounded actions need too many nodes; use form 'mixed' or 'point'.")
        chosen = nodes[..., np.arange(size), grids]
        return target[..., None, :] + chosen * width, jnp.prod(weights[..., np.arange(size), grids], axis=-1)
    offsets, weights = _rule(smoothing.kernel, smoothing.nodes, size)
    if smoothing.metric is not None:
        turned = jnp.linalg.solve(smoothing.metric, jnp.asarray(offsets).T)  # [..., A, M]
        return target[..., None, :] + jnp.moveaxis(turned, -1, -2) * width, jnp.broadcast_to(
            weights, (*target.shape[:-1], len(weights))
        )
    return target[..., None, :] + offsets * width, jnp.broadcast_to(weights, (*target.shape[:-1], len(weights)))


def _rule(kernel: str, order: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[M, A]` and weights `[M]` for the product of kernels."""
    if order**size > _MOST_NODES:
        reach = math.sqrt(size * SMOOTHING_KERNELS[kernel].second_moment)
        return reach * np.concatenate([np.eye(size), -np.eye(size)]), np.full(2 * size, 0.5 / size)
    nodes, weights = kernel_quadrature(kernel, order)
    grids = np.stack(np.meshgrid(*[np.arange(order)] * size, indexing="ij"), -1).reshape(-1, size)
    return nodes[grids], np.prod(weights[grids], axis=-1)


def _cut_rule(smoothing: Smoothing, target: Array, width: Array) -> tuple[Array, Array]:
    """Nodes and weights `[..., A, m]` for kernels that bounds cut: Gauss and Legendre's on both sides of the target."""
    kernel = SMOOTHING_KERNELS[smoothing.kernel]
    reach = min(kernel.support, _EFFECTIVELY_INFINITE)
    low = jnp.clip((smoothing.lower - target) / width, -reach, reach)
    high = jnp.clip((smoothing.upper - target) / width, -reach, reach)
    middle = jnp.clip(0.0, low, high)
    points, masses = np.polynomial.legendre.leggauss(_PANEL)
    points, masses = 0.5 * (points + 1.0), 0.5 * masses
    nodes = jnp.concatenate(
        [start[..., None] + (end - start)[..., None] * points for start, end in ((low, middle), (middle, high))],
        axis=-1,
    )
    lengths = jnp.concatenate(
        [(end - start)[..., None] * masses for start, end in ((low, middle), (middle, high))], axis=-1
    )
    weights = lengths * jnp.exp(kernel.log_density(nodes))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return nodes, weights / jnp.where(total > 0, total, 1.0)
