"""Controllers from logs of noisy ones: a deterministic policy is learned, and judged by trajectories kept aside.

* Pendulum (gymnax), 40 steps: the controller pumps energy E in, and holds the pendulum near the top,
  `u = 2 tanh(((1 - near) pump + near hold) / 2)` with `pump = -k_0 thetadot E`, `hold = -k_1 sin theta - k_2 thetadot`.
* InvertedPendulum (MuJoCo, through gymnasium), 50 steps, worth 1 each until the pole falls: `u = 3 tanh((k_0 theta + 0.1 k_1
  thetadot) / 3)`.

Logged actions are those of gains that are too small, with normal noise; all gains are learned. True values are means over new
episodes.

Neither a polynomial q nor a normal ratio is right here, and intervals know nothing of that: estimates with sieves of two
degrees stand side by side, beside the smallest effective sample size of a step. Where that is a few trajectories, the estimate
is the direct method's and the interval says nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.jobs import rounded
from jaxrl_off import envs
from jaxrl_off.estimators import deterministic as det
from jaxrl_off.training.trajectories import monte_carlo_value, roll_out
from jaxrl_off.types import Array

Controller = Callable[[Array, Array], Array]


def swing_up(gains: Array, observations: Array) -> Array:
    """Torque `[..., 1]` of cosine, sine and speed `[..., 3]`; smooth in the gains."""
    cosine, sine, speed = jnp.moveaxis(observations, -1, 0)
    energy = speed**2 / 6.0 + 5.0 * (cosine - 1.0)  # of a rod of length and mass 1
    near = jax.nn.sigmoid(8.0 * (cosine - 0.8))
    pump, hold = -gains[0] * speed * energy, -gains[1] * sine - gains[2] * speed
    return (2.0 * jnp.tanh(((1.0 - near) * pump + near * hold) / 2.0))[..., None]


def balance(gains: Array, observations: Array) -> Array:
    """Force `[..., 1]` of place, angle and their speeds `[..., 4]`; the second gain is in units of 0.1."""
    return (3.0 * jnp.tanh((gains[0] * observations[..., 1] + 0.1 * gains[1] * observations[..., 3]) / 3.0))[..., None]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is logged, and how it is learned from.

    Attributes:
        environment: name in `envs.make`.
        lanes: that play at once.
        horizon: T.
        controller: the policy tau.
        logged: its gains in the logs.
        noise: deviation of what is added to each action, and the unit of bandwidths.
        degrees: of sieves, the last of which learning has.
        steps: of learning.
        learning_rate: of it.
        truth_episodes: for true values.
    """

    environment: str
    lanes: int
    horizon: int
    controller: Controller
    logged: tuple[float, ...]
    noise: float
    degrees: tuple[int, ...]
    steps: int
    learning_rate: float
    truth_episodes: int


TASKS = {
    "Pendulum": Task("Pendulum-v1", 1000, 40, swing_up, (0.5, 2.0, 0.5), 0.5, (2, 4), 20, 0.15, 20_000),
    "InvertedPendulum": Task(
        "gymnasium/InvertedPendulum-v5", 100, 50, balance, (1.0, 0.5), 0.15, (2, 3), 20, 0.15, 2_000
    ),
}


def acting(task: Task, gains: Array, noise: float) -> Any:
    """`(key, observation) -> (action, log density)`; with no noise the density is 1."""

    def act(key: Array, observation: Array) -> tuple[Array, Array]:
        mean = task.controller(gains, observation)
        if noise == 0.0:
            return mean, jnp.zeros(mean.shape[0])
        drawn = jax.random.normal(key, mean.shape)
        return mean + noise * drawn, jnp.sum(-0.5 * drawn**2 - jnp.log(noise * jnp.sqrt(2.0 * jnp.pi)), axis=-1)

    return act


def value_of(task: Task, gains: Array, noise: float = 0.0) -> tuple[float, float]:
    """True value and its standard error."""
    with contextlib.closing(envs.make(task.environment, task.lanes)) as lanes:
        return monte_carlo_value(
            acting(task, gains, noise), lanes, jax.random.key(99), episodes=task.truth_episodes, horizon=task.horizon
        )


def control(name: str, count: int) -> dict[str, Any]:
    """Learn from one half of `2 count` trajectories, judge by the other.

    Args:
        name: key of `TASKS`.
        count: of trajectories in each half.

    Returns:
        A title and rows: policy, value with interval by the half that was kept aside, smallest effective sample size, true
        value and its error.
    """
    task = TASKS[name]
    logged_gains = jnp.array(task.logged)
    with contextlib.closing(envs.make(task.environment, task.lanes)) as lanes:
        logger = acting(task, logged_gains, task.noise)
        logged = roll_out(logger, lanes, jax.random.key(0), episodes=2 * count, horizon=task.horizon)
    seen, kept = det.split(jax.device_get(logged))
    unit = np.array([task.noise])
    wide = det.Smoothing(det.rate_bandwidth(count, gradient=True), scale=unit)
    options = dict(steps=task.steps, learning_rate=task.learning_rate, model=det.LinearSieve(degree=task.degrees[-1]))
    learned = det.learn(seen, task.controller, logged_gains, wide, **options).parameters
    width = det.rate_bandwidth(count, undersmooth=True, constant=2.0)
    narrow = det.Smoothing(width, scale=unit)
    rows = []
    for label, gains in (
        ("the logged one without its noise", logged_gains),
        ("learned", jnp.asarray(learned, jnp.float32)),
    ):
        true, error = value_of(task, gains)
        shown = ", ".join(f"{float(gain):.2f}" for gain in gains)
        for degree in task.degrees:
            fit = det.fit_nuisances(kept, task.controller, gains, narrow, det.LinearSieve(degree=degree))
            found = det.evaluate("marginal_doubly_robust", kept, task.controller, gains, narrow, fit, level=0.95)
            row = {"policy": f"{label}: {shown}; degree {degree}", "truth": true, "truth_error": error}
            row |= {field: rounded(float(getattr(found, field))) for field in ("value", "lower", "upper")}
            row["effective"] = rounded(float(found.diagnostics["smallest_effective_sample_size"]))
            rows.append(row)
    returns = kept.rewards.sum(axis=1)
    title = (
        f"{name}, {task.horizon} steps, {count:,} trajectories to learn from and as many to judge by; the logged, noisy "
        f"controller has {returns.mean():.1f} ± {returns.std() / count**0.5:.1g}"
    )
    return {"title": title, "rows": rows}
