"""The three domains of "Abstract Reward Processes" (STAR, NeurIPS 2024): data sets to draw, policies, and true values.

| | CartPole | ICU-Sepsis | Asterix (MinAtar) |
|---|---|---|---|
| horizon, discount | 50, 1 | 150, 1 | 75, 1 |
| reward | 1 each step, the last included | 1 on survival | 0.1 each step, 10 more for gold |
| behaviour | uniform over 2 | the expert, softened: softmax(log pi / 2) | uniform over 6 |
| target | towards where the pole leans with 0.9 | the expert | the same whatever is seen |
| observation | 4 numbers | number of the state | 400 bits |

Settings are those of the authors' code (`cfgs/*.json` of shreyasc-13/STAR at ee529c9), but: their sepsis is an earlier
process of 747 states, ours that of the package `icu-sepsis` 2.0.1 (716); their Asterix is MinAtar's, ours gymnax's,
which agrees in value and length to within Monte Carlo error. Everything is JAX in float32, to be vmapped over keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.envs import (
    DiscreteSpace,
    EnvironmentSpec,
    LaneEnvironment,
    Transitioned,
    finite,
    gymnax_envs,
    icu_sepsis,
    vectorise,
)
from jaxrl_off.envs.base import Environment
from jaxrl_off.training.trajectories import monte_carlo_value, roll_out
from jaxrl_off.types import Array, Trajectories

LogPolicy = Callable[[Any], Array]

UNIFORM_OVER_2 = jnp.log(jnp.full(2, 1 / 2))
LEANING = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
ASTERIX_TARGET = jnp.log(jnp.array([0.01, 0.4, 0.05, 0.5, 0.02, 0.02]))


class Truth(NamedTuple):
    """Value of a policy; its standard error is 0 where it is exact."""

    value: float
    standard_error: float


class Domain(NamedTuple):
    """One of the three.

    Attributes:
        name: "cartpole", "sepsis" or "asterix".
        horizon: T; who still acts then is neither terminated nor truncated.
        discount: gamma.
        behaviour: `observation [...] -> float32[..., A]`, log-probabilities of the policy that acts.
        target: likewise of the policy to be judged.
        sample: `(key, n, policy) -> Trajectories` of `n` rows under `behaviour`, `target` or another such function;
            jitted, `n` and `policy` static.
        truth: value of `target`.
        behaviour_truth: value of `behaviour`.
    """

    name: str
    horizon: int
    discount: float
    behaviour: LogPolicy
    target: LogPolicy
    sample: Callable[[Array, int, LogPolicy], Trajectories]
    truth: Truth
    behaviour_truth: Truth

    def target_log_prob(self, trajectories: Trajectories) -> Array:
        """`float32[n, T]`, log pi_e(a_t|s_t); arbitrary in the padding."""
        return log_prob_of(self.target, trajectories)


def log_prob_of(policy: LogPolicy, trajectories: Trajectories) -> Array:
    """`float32[n, T]`, log-probabilities of the logged actions under a policy; arbitrary in the padding."""
    actions = jnp.asarray(trajectories.actions)
    return jnp.take_along_axis(policy(trajectories.observations), actions[..., None], axis=-1)[..., 0]


def cartpole() -> Domain:
    """CartPole with Gymnasium's constants (gymnax `CartPole-v1`), cut after 50 steps."""

    def behaviour(observation: Any) -> Array:
        return jnp.broadcast_to(UNIFORM_OVER_2, (*jnp.shape(observation)[:-1], 2))

    def target(observation: Any) -> Array:
        return LEANING[(jnp.asarray(observation)[..., 2] > 0).astype(jnp.int32)]

    return Domain("cartpole", 50, 1.0, behaviour, target, _sampler(_cartpole_lanes, 50), *TRUTHS["cartpole"])


def asterix() -> Domain:
    """Asterix of MinAtar with all six actions, cut after 75 steps."""

    def behaviour(observation: Any) -> Array:
        return jnp.full((*jnp.shape(observation)[:-1], 6), -jnp.log(6.0))

    def target(observation: Any) -> Array:
        return jnp.broadcast_to(ASTERIX_TARGET, (*jnp.shape(observation)[:-1], 6))

    return Domain("asterix", 75, 1.0, behaviour, target, _sampler(_asterix_lanes, 75), *TRUTHS["asterix"])


def sepsis() -> Domain:
    """ICU-Sepsis, cut after 150 steps; its values are exact.

    Raises:
        ImportError: if the package `icu-sepsis` is not installed.
    """
    process = icu_sepsis.load()
    tables = {"behaviour": finite.softened(process.expert, 2.0), "target": process.expert}
    draw = finite.sampler(process.mdp, 150, terminal=process.terminal, arrival_reward=process.arrival_reward)
    states = jnp.arange(len(process.terminal))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def sample(key: Array, n: int, policy: LogPolicy) -> Trajectories:
        return draw(key, n, jnp.exp(policy(states)))

    def policy_of(table: Any) -> LogPolicy:
        log_table = jnp.log(jnp.asarray(table, jnp.float32))
        return lambda observation: log_table[observation]

    behaviour, target = (policy_of(tables[who]) for who in ("behaviour", "target"))
    truths = {who: float(finite.finite_horizon_value(process.mdp, table, 150)) for who, table in tables.items()}
    exact = Truth(truths["target"], 0.0), Truth(truths["behaviour"], 0.0)
    return Domain("sepsis", 150, 1.0, behaviour, target, sample, *exact)


DOMAINS: dict[str, Callable[[], Domain]] = {"cartpole": cartpole, "sepsis": sepsis, "asterix": asterix}
# of the target and of the behaviour policy: `measured(name, 0, episodes)` with 1,000,000 and 160,000 of each
TRUTHS = {
    "cartpole": (Truth(39.3153, 0.0105), Truth(21.8507, 0.0104)),
    "asterix": (Truth(8.6364, 0.0157), Truth(8.7932, 0.0171)),
}


def measured(name: str, seed: int, episodes: int, *, lanes: int = 20_000) -> tuple[Truth, Truth]:
    """Values of the target and the behaviour policy of "cartpole" or "asterix" by Monte Carlo."""
    domain, build = DOMAINS[name](), {"cartpole": _cartpole_lanes, "asterix": _asterix_lanes}[name]
    environment, keys = build(min(lanes, episodes)), jax.random.split(jax.random.key(seed))
    settings = dict(episodes=episodes, horizon=domain.horizon, discount=domain.discount)
    policies = (domain.target, domain.behaviour)
    found = [monte_carlo_value(_acting(p), environment, key, **settings) for p, key in zip(policies, keys, strict=True)]
    return Truth(*found[0]), Truth(*found[1])


def _acting(policy: LogPolicy) -> Callable[[Array, Array], tuple[Array, Array]]:
    def act(key: Array, observation: Array) -> tuple[Array, Array]:
        log_probabilities = policy(observation)
        action = jax.random.categorical(key, log_probabilities)
        return action, jnp.take_along_axis(log_probabilities, action[:, None], axis=1)[:, 0]

    return act


def _sampler(lanes: Callable[[int], Environment], horizon: int) -> Callable[[Array, int, LogPolicy], Trajectories]:
    @functools.partial(jax.jit, static_argnums=(1, 2))
    def sample(key: Array, n: int, policy: LogPolicy) -> Trajectories:
        return roll_out(_acting(policy), lanes(n), key, episodes=n, horizon=horizon)

    return sample


def _cartpole_lanes(n: int) -> Environment:
    return gymnax_envs.make("CartPole-v1", n)


def _asterix_lanes(n: int) -> Environment:
    from gymnax.environments.minatar.asterix import MinAsterix

    game = MinAsterix(use_minimal_action_set=False)
    parameters = game.default_params
    spec = EnvironmentSpec("star/asterix", (400,), "bool", DiscreteSpace(6))

    def observe(grid: Array) -> Array:
        return grid.reshape(400).astype(bool)

    def reset(key: Array) -> tuple[Array, Any]:
        grid, state = game.reset_env(key, parameters)
        return observe(grid), jax.tree.map(jnp.asarray, state)

    def step(key: Array, state: Any, action: Array) -> Transitioned:
        grid, successor, gold, terminated, _ = game.step_env(key, state, action, parameters)
        successor = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), successor, state)
        reward, ended = 0.1 + 10.0 * jnp.asarray(gold, jnp.float32), jnp.asarray(terminated, bool)
        return Transitioned(observe(grid), successor, reward, ended, jnp.zeros((), bool))

    return vectorise(LaneEnvironment(spec, reset, step), n)
