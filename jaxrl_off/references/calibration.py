"""How sure a reference policy is of itself: its standard deviation and log-likelihood on, near and far from the data.

A KL penalty towards `pi_0 = N(mu_0(s), sigma_0(s)^2)` has the gradient `(a - mu_0) / sigma_0^2` in the action. Where `sigma_0`
falls away from the demonstrations, as maximum likelihood lets it, that gradient explodes; a calibrated reference is sure
near the data and unsure elsewhere. Statistics are float64 of float32 predictions.

Reference: Rudner, Lu, Osborne, Gal and Teh, "On Pathologies in KL-Regularized Reinforcement Learning from Expert
Demonstrations", NeurIPS 2021; figure 1 shows the standard deviation on the plane of the states' first two principal
components.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.ops.kernels import squared_distance
from jaxrl_off.references.base import check_demonstrations, check_positive
from jaxrl_off.types import Array, PyTree

Apply = Callable[[PyTree, Array], DiagonalNormal]


class Calibration(NamedTuple):
    """One row for each set of states: the demonstrations', held-out ones, then those at growing distance.

    Attributes:
        states: `R` names: `"data"`, `"held out"`, and `"0.5 std"` and so on for perturbed ones.
        std: `float64[R]`, sigma_0, geometric mean over states and action dimensions.
        log_likelihood: `float64[R]`, log pi_0(a|s) per action dimension, mean over states, in nats. Of perturbed states, of
            the action that was taken at the nearest demonstration.
        gradient_scale: `float64[R]`, 99th percentile of 1 / sigma_0^2 over states and action dimensions.
        distance: `float64[R]`, to the nearest demonstration, mean over states; the unit is the standard deviation of each
            observation dimension.
    """

    states: tuple[str, ...]
    std: np.ndarray
    log_likelihood: np.ndarray
    gradient_scale: np.ndarray
    distance: np.ndarray


class PrincipalPlane(NamedTuple):
    """The plane through the mean of observations along which they vary the most.

    Attributes:
        mean: `float64[O]`.
        directions: `float64[2, O]`, orthonormal, each with its largest component positive.
        explained: `float64[2]`, share of the variance along each.
    """

    mean: np.ndarray
    directions: np.ndarray
    explained: np.ndarray

    def project(self, observations: Any) -> np.ndarray:
        """Coordinates `float64[..., 2]` of the points of the plane nearest to `observations` (`float[..., O]`)."""
        return (np.asarray(observations, np.float64) - self.mean) @ self.directions.T


def calibrate(
    apply: Apply,
    params: PyTree,
    observations: Any,
    actions: Any,
    key: Array,
    *,
    held_out: tuple[Any, Any] | None = None,
    distances: Sequence[float] = (0.1, 0.5, 1.0, 2.0, 5.0),
    points: int = 2000,
    batch_size: int = 512,
) -> Calibration:
    """Compare a reference on the data with itself elsewhere.

    Perturbed states are demonstrated ones plus `distance * std * noise`, with the standard deviation of each observation
    dimension over the demonstrations and the same standard normal noise for all distances. Dimensions that do not vary in
    the demonstrations are not perturbed, and do not count in distances.

    Args:
        apply: of a `Reference` that gives a `DiagonalNormal`.
        params: of `apply`.
        observations: `float[N, O]`, of the demonstrations that it was fitted to.
        actions: `float[N, A]`.
        key: consumed.
        held_out: observations and actions of demonstrations that it was not fitted to.
        distances: positive, one row each.
        points: states per row at most; a random choice where there are more.
        batch_size: states that are queried at once. Results do not depend on it.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: for demonstrations that cannot be used, numbers out of range, or a reference that gives something else.

    Example:
        >>> sure = lambda params, o: DiagonalNormal(jnp.zeros_like(o), jnp.full_like(o, -2.0))
        >>> result = calibrate(sure, (), np.eye(3), np.zeros((3, 3)), jax.random.key(0), distances=(1.0,))
        >>> result.states, result.std.round(3).tolist()
        (('data', '1 std'), [0.135, 0.135])
    """
    observations, actions = check_demonstrations(observations, actions)
    check_positive(points=points, batch_size=batch_size)
    for distance in distances:
        check_positive(distances=distance)
    mean, varies = observations.mean(axis=0), np.ptp(observations, axis=0) > 0
    if not varies.any():
        raise ValueError("all observations are the same, so there is no unit of distance; give more of them.")
    spread = np.where(varies, observations.std(axis=0), 0.0)
    unit = np.where(varies, spread, np.inf)
    demonstrated = ((observations - mean) / unit).astype(np.float32)

    data_key, held_out_key, noise_key = jax.random.split(key, 3)
    chosen = _choose(data_key, len(observations), points)
    states = observations[chosen]
    noise = np.asarray(jax.random.normal(noise_key, states.shape), np.float64)
    sets: list[tuple[str, np.ndarray, np.ndarray | None]] = [("data", states, actions[chosen])]
    if held_out is not None:
        others = check_demonstrations(*held_out)
        sizes, allowed = ([x.shape[1] for x in pair] for pair in (others, (observations, actions)))
        if sizes != allowed:
            raise ValueError(
                f"observations and actions of held_out have sizes {sizes}; {allowed}, as the demonstrations', are allowed."
            )
        chosen = _choose(held_out_key, len(others[0]), points)
        sets.append(("held out", others[0][chosen], others[1][chosen]))
    sets += [(f"{distance:g} std", states + distance * spread * noise, None) for distance in distances]

    def row(name: str, states: np.ndarray, taken: np.ndarray | None) -> tuple[Any, ...]:
        nearest = functools.partial(_nearest, demonstrated)
        index, distance = _in_batches(nearest, (states - mean) / unit, batch_size)
        policy = _policies(apply, params, states, batch_size)
        with jax.enable_x64(True):
            log_prob = np.asarray(policy.log_prob(actions[index] if taken is None else taken))
        std, precision = np.exp(np.mean(policy.log_std)), np.exp(-2.0 * policy.log_std)
        return name, std, np.mean(log_prob) / actions.shape[1], np.percentile(precision, 99), np.mean(distance)

    names, *columns = zip(*(row(*given) for given in sets), strict=True)
    return Calibration(names, *(np.asarray(column, np.float64) for column in columns))


def principal_plane(observations: Any) -> PrincipalPlane:
    """The first two principal components of observations, in their own units.

    Args:
        observations: `float[N, O]`.

    Raises:
        ValueError: if they are not such an array, or vary along less than two directions.
    """
    observations = np.asarray(observations, np.float64)
    if observations.ndim != 2:
        raise ValueError(f"observations must have the shape [N, O], got {list(observations.shape)}.")
    mean = observations.mean(axis=0)
    _, sizes, directions = np.linalg.svd(observations - mean, full_matrices=False)
    if len(sizes) < 2 or sizes[1] <= 1e-10 * sizes[0]:
        raise ValueError(
            f"the observations ({list(observations.shape)}) vary along less than two directions, so they span no plane; "
            "give more of them, or of more dimensions."
        )
    directions = directions[:2]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1, keepdims=True), axis=1)
    return PrincipalPlane(mean, directions * np.sign(largest), (sizes**2 / np.sum(sizes**2))[:2])


def on_plane(
    apply: Apply, params: PyTree, plane: PrincipalPlane, grid: tuple[Any, Any], *, batch_size: int = 512
) -> np.ndarray:
    """Standard deviation of a reference on a grid in the plane; in all other directions the states are at the mean.

    Args:
        apply: of a `Reference` that gives a `DiagonalNormal`.
        params: of `apply`.
        plane: of `principal_plane`.
        grid: coordinates `float[W]` along the first and `float[H]` along the second direction; 0 is the mean.
        batch_size: states that are queried at once.

    Returns:
        `float64[H, W]`, geometric mean over action dimensions.

    Raises:
        ValueError: for a reference that gives something else.
    """
    coordinates = np.stack(np.meshgrid(*grid), axis=-1)
    states = plane.mean + coordinates.reshape(-1, 2) @ plane.directions
    log_std = _policies(apply, params, states, batch_size).log_std
    return np.exp(np.mean(log_std, axis=-1)).reshape(coordinates.shape[:2])


def plot_calibration(planes: Mapping[str, np.ndarray], grid: tuple[Any, Any], projections: Any) -> Any:
    """Draw standard deviations on a plane side by side, on one logarithmic colour scale, with the demonstrations as dots.

    Args:
        planes: what `on_plane` gave for each reference, by its name.
        grid: of `on_plane`.
        projections: `float[N, 2]`, `PrincipalPlane.project` of the demonstrations' observations.

    Returns:
        A `matplotlib.figure.Figure` of one panel a reference; `savefig` writes it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is nothing to draw.
    """
    try:
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'plot_calibration needs matplotlib, which is not installed ({error}): pip install "jaxrl_off[bench]".'
        ) from error
    if not planes:
        raise ValueError("planes is empty; give what on_plane returned for one reference or more, by name.")
    scale = LogNorm(min(x.min() for x in planes.values()), max(x.max() for x in planes.values()))
    figure = Figure(figsize=(1.0 + 3.0 * len(planes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(planes), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (name, std) in zip(panels, planes.items(), strict=True):
        mesh = panel.pcolormesh(*grid, std, norm=scale, shading="nearest")
        panel.plot(*np.asarray(projections).T, "k.", markersize=1.5, alpha=0.4)
        panel.set(title=name, xlabel="first principal component")
    panels[0].set_ylabel("second principal component")
    figure.colorbar(mesh, ax=list(panels), label="standard deviation")
    return figure


def _choose(key: Array, count: int, at_most: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(key, count)[:at_most])


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply: Apply, params: PyTree, states: Array) -> DiagonalNormal:
    return apply(params, states)


def _policies(apply: Apply, params: PyTree, states: np.ndarray, batch_size: int) -> DiagonalNormal:
    """`float64[N, A]`, NumPy."""
    query = functools.partial(_apply, apply, params)
    kind = jax.eval_shape(query, states[:1].astype(np.float32))
    if not isinstance(kind, DiagonalNormal):
        raise ValueError(
            f"the reference gives a {type(kind).__name__}; only a DiagonalNormal has the standard deviation asked for."
        )
    return jax.tree.map(np.float64, _in_batches(query, states, batch_size))


@jax.jit
def _nearest(demonstrated: Array, states: Array) -> tuple[Array, Array]:
    """Index `int32[B]` of the nearest demonstration (`float32[N, O]`) to each state (`float32[B, O]`), and its distance."""
    squares = squared_distance(states, demonstrated)
    return jnp.argmin(squares, axis=1), jnp.sqrt(jnp.min(squares, axis=1))


def _in_batches(function: Callable[[Array], PyTree], states: np.ndarray, batch_size: int) -> PyTree:
    """`function(states)` as NumPy arrays, so many float32 rows at a time, so that memory stays bounded."""
    starts = range(0, len(states), batch_size)
    parts = [jax.device_get(function(states[start : start + batch_size].astype(np.float32))) for start in starts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
