"""The scalar linear system of the authors' experiments, whose truths are known in closed form.

`x_0 = 0, x_{t+1} = a_t - x_t + N(0, noise^2)`, reward `-x_t^2`; the logged action is `N(behaviour x, deviation^2)`, the policy
`tau(x) = gain x`, best at 1. With `rho = gain - 1` and s^2 = noise^2 (+ h^2 for the policy that is smoothed by a Gaussian):
`V = -sum_{t < H} s^2 sum_{k < t} rho^{2 k}`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.types import Array, Trajectories


class Process(NamedTuple):
    """A case; hashable.

    Attributes:
        horizon: H, number of actions.
        gain: theta of the policy.
        noise: deviation of the state's noise.
        deviation: of the logged actions.
        behaviour: gain of the behaviour policy.
    """

    horizon: int
    gain: float
    noise: float = 0.03
    deviation: float = 1.0
    behaviour: float = 0.8


def policy(gain: Array, observations: Array) -> Array:
    """tau."""
    return gain * observations


def log_density(process: Process, observations: Array, actions: Array) -> Array:
    """log b(a|x), `[...]` of `[..., 1]`."""
    u = (actions - process.behaviour * observations)[..., 0] / process.deviation
    return -0.5 * u**2 - jnp.log(process.deviation * jnp.sqrt(2.0 * jnp.pi))


def simulate(key: Array, count: int, process: Process) -> Trajectories:
    """`count` trajectories, float64; to be called with x64 on."""
    shape = process.horizon, count
    action_key, state_key = jax.random.split(key)
    explored = process.deviation * jax.random.normal(action_key, shape, jnp.float64)
    pushed = process.noise * jax.random.normal(state_key, shape, jnp.float64)

    def step(x: Array, noises: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        action = process.behaviour * x + noises[0]
        return action - x + noises[1], (x, action)

    last, (states, actions) = jax.lax.scan(step, jnp.zeros(count, jnp.float64), (explored, pushed))
    states, actions = states.T[..., None], actions.T[..., None]
    ends = jnp.broadcast_to(jnp.arange(process.horizon) == process.horizon - 1, shape[::-1])
    density, none = log_density(process, states, actions), jnp.zeros_like(ends)
    return Trajectories(states, actions, -(states[..., 0] ** 2), density, ~none, none, ends, last[:, None])


def truth(process: Process, width: float = 0.0, gain: Any = None) -> tuple[float, float]:
    """V and its derivative, of the policy itself or smoothed by a Gaussian of this width."""
    rho = (process.gain if gain is None else float(gain)) - 1.0
    horizon, variance = process.horizon, process.noise**2 + width**2
    k = np.arange(1, horizon)
    left = horizon - 1 - k  # in how many of the states x_{k+1} .. x_{H-1} the noise of k steps before is still felt
    value = -variance * (horizon - 1 + left @ rho ** (2 * k))
    return float(value), float(-variance * (left @ (2 * k * rho ** (2 * k - 1))))
