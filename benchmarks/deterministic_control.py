"""Pendulum from logs of a noisy controller: a deterministic one is learned, and judged by trajectories kept aside.

The controller pumps energy E in, and holds the pendulum near the top: `u = 2 tanh(((1 - near) pump + near hold) / 2)`, with
`pump = -k_0 thetadot E`, `hold = -k_1 sin theta - k_2 thetadot` and three gains to be learned. Logged actions are those of
gains that are too small, with normal noise, in the first `HORIZON` steps of gymnax's Pendulum from its random starts. True
values are means over 20,000 new episodes.

Neither a polynomial q nor a normal ratio is right here, and intervals know nothing of that: estimates with sieves of degree 2
and of degree 4 stand side by side. Degree 4, which learning has, was taken after intervals of degree 2 had missed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off import envs
from jaxrl_off.estimators import deterministic as det
from jaxrl_off.training.trajectories import monte_carlo_value, roll_out
from jaxrl_off.types import Array

HORIZON, NOISE, LIMIT, STEPS = 40, 0.5, 2.0, 20
LOGGED = jnp.array([0.5, 2.0, 0.5])


def controller(gains: Array, observations: Array) -> Array:
    """Torque `[..., 1]` of `[..., 3]`: cosine, sine and speed; smooth in the gains."""
    cosine, sine, speed = jnp.moveaxis(observations, -1, 0)
    energy = speed**2 / 6.0 + 5.0 * (cosine - 1.0)  # of a rod of length and mass 1
    near = jax.nn.sigmoid(8.0 * (cosine - 0.8))
    pump, hold = -gains[0] * speed * energy, -gains[1] * sine - gains[2] * speed
    return (LIMIT * jnp.tanh(((1.0 - near) * pump + near * hold) / LIMIT))[..., None]


def acting(gains: Array, noise: float) -> Any:
    """`(key, observation) -> (action, log density)`; with no noise the density is 1."""

    def act(key: Array, observation: Array) -> tuple[Array, Array]:
        mean = controller(gains, observation)
        if noise == 0.0:
            return mean, jnp.zeros(mean.shape[0])
        drawn = jax.random.normal(key, mean.shape)
        return mean + noise * drawn, jnp.sum(-0.5 * drawn**2 - jnp.log(noise * jnp.sqrt(2.0 * jnp.pi)), axis=-1)

    return act


def value_of(gains: Array, noise: float = 0.0, episodes: int = 20_000) -> tuple[float, float]:
    """True value and its standard error."""
    lanes = envs.make("Pendulum-v1", 1000)
    return monte_carlo_value(acting(gains, noise), lanes, jax.random.key(99), episodes=episodes, horizon=HORIZON)


def pendulum(count: int) -> dict[str, Any]:
    """Learn from one half of `2 count` trajectories, judge by the other.

    Returns:
        A title and rows: policy, value with interval by the half that was kept aside, true value and its error.
    """
    logger = acting(LOGGED, NOISE)
    logged = jax.device_get(
        roll_out(logger, envs.make("Pendulum-v1", 1000), jax.random.key(0), episodes=2 * count, horizon=HORIZON)
    )
    seen, kept = det.split(logged)
    unit = np.array([NOISE])
    wide = det.Smoothing(det.rate_bandwidth(count, gradient=True), scale=unit)
    options = dict(steps=STEPS, learning_rate=0.15, model=det.LinearSieve(degree=4))
    learned = det.learn(seen, controller, LOGGED, wide, **options).parameters
    narrow = det.Smoothing(det.rate_bandwidth(count, undersmooth=True, constant=2.0), scale=unit)
    rows = []
    for name, gains in (("the logged one without its noise", LOGGED), ("learned", jnp.asarray(learned, jnp.float32))):
        true, error = value_of(gains)
        shown = ", ".join(f"{float(gain):.2f}" for gain in gains)
        for degree in (2, 4):
            fit = det.fit_nuisances(kept, controller, gains, narrow, det.LinearSieve(degree=degree))
            found = det.evaluate("marginal_doubly_robust", kept, controller, gains, narrow, fit, level=0.95)
            row = {"policy": f"{name}: {shown}; degree {degree}", "truth": true, "truth_error": error}
            row |= {field: float(getattr(found, field)) for field in ("value", "lower", "upper")}
            rows.append(row)
    returns = kept.rewards.sum(axis=1)
    title = (
        f"Pendulum, {HORIZON} steps, {count:,} trajectories to learn from and as many to judge by; the logged, noisy "
        f"controller has {returns.mean():.1f} ± {returns.std() / count**0.5:.1g}"
    )
    return {"title": title, "rows": rows}
