"""Domains on which all estimators of off-policy values are compared: several policies each, to be ranked as well as valued.

| | what it is | states | actions | T | policies that are judged |
|---|---|---|---|---|---|
| `graph` | two rails (Voloshin et al.) | 33 | 2 | 16 | take the upper rail with 0.1 to 0.9; it is 0.5 that acts |
| `random` | a process without structure | 12 | 3 | 30 | softmax of the uniform policy's action values, of five temperatures |
| `mountain_car` | Mountain Car on a grid | 145 | 3 | 100 | push where the car moves with 1/3 to 0.8; it is 0.45 that acts |
| `sepsis` | ICU-Sepsis | 716 | 25 | 50 | the expert, hardened or softened, and mixtures with the best policy |
| `cartpole` | CartPole, four numbers | 216 tiles | 2 | 50 | towards where the pole leans with 0.3 to 0.9; it is 0.5 that acts |
| `asterix` | MinAtar's Asterix, 400 bits | 32 cells | 6 | 75 | the same whatever is seen |
| `pendulum` | brax's inverted pendulum, four numbers | - | a number | 50 | our PPO, five learning rates |

Values are exact in finite processes, and otherwise means of 40,000 roll-outs (`pendulum`: 2,000). Discounts are 0.98 (`graph`),
0.8 (`random`), 0.95 (`mountain_car`) and 0.99: DICE has no estimators for 1. What the horizon cuts off in `random` and
`mountain_car` is below 1 % of values, and tabular methods take these processes for endless; elsewhere the horizon ends them.
Tabular methods see tiles and cells of CartPole and Asterix instead of the state; none has states in which a policy differs. In
Asterix policies are worth nearly the same, so that what is said of rankings there is noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.star import domains as star_domains
from jaxrl_off import agents, envs, training
from jaxrl_off.envs import chain, finite, icu_sepsis, tabular
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.reward_processes import abstractions
from jaxrl_off.types import Array, Trajectories

# values of the judged policies and, last, of the one that acts, with errors: `measured(name)`
TRUTHS = {
    "cartpole": (
        (12.5611, 0.0184),
        (23.7375, 0.0475),
        (27.4765, 0.0485),
        (30.2169, 0.0444),
        (32.2328, 0.0369),
        (19.2449, 0.0395),
    ),
    "asterix": (
        (6.175, 0.0204),
        (6.2695, 0.0219),
        (6.1896, 0.0201),
        (6.3874, 0.0238),
        (6.4194, 0.0237),
        (6.2895, 0.0219),
    ),
}
RATES = (1e-5, 3e-4, 6e-4, 1e-3, 3e-3)
# chances to go where the pole leans; chances of the six actions
LEANING = (0.3, 0.6, 0.7, 0.8, 0.9)
ACTING = (
    (0.01, 0.4, 0.05, 0.5, 0.02, 0.02),
    (0.1, 0.3, 0.1, 0.3, 0.1, 0.1),
    (0.5, 0.1, 0.1, 0.1, 0.1, 0.1),
    (0.05, 0.15, 0.3, 0.15, 0.3, 0.05),
    (0.1, 0.05, 0.4, 0.05, 0.35, 0.05),
)


class Domain(NamedTuple):
    """A behaviour policy, and K policies to be judged by its data.

    Attributes:
        name: key of `DOMAINS`.
        discount: gamma.
        sample: `(key, n) -> Trajectories` of the behaviour policy.
        log_prob: `Trajectories -> float[K, n, T]` of the judged policies; arbitrary in the padding.
        truth: `float64[K]`, their values.
        truth_error: `float64[K]`, standard errors of these; 0 where they are exact.
        behaviour_value: of the policy that acts.
        horizon_exit: whether the horizon ends the process, or only what is seen of it; see `tabular_steps`.
        states: `Trajectories -> int32[n, T]`, for tabular methods, or None.
        tables: `float64[K, S, A]`, the judged policies on these states, or None.
        behaviour_table: `float64[S, A]`, or None.
        abstractions: of observations, for STAR, from coarse to fine.
        targets: `Trajectories -> TargetActions [K, n, T + 1, ...]` of the judged policies, or None.
    """

    name: str
    discount: float
    sample: Callable[[Array, int], Trajectories]
    log_prob: Callable[[Trajectories], Array]
    truth: np.ndarray
    truth_error: np.ndarray
    behaviour_value: float
    horizon_exit: bool
    states: Callable[[Trajectories], Array] | None
    tables: np.ndarray | None
    behaviour_table: np.ndarray | None
    abstractions: tuple[abstractions.Abstraction, ...]
    targets: Callable[[Trajectories], TargetActions] | None = None


def graph() -> Domain:
    """Two rails of 16 steps, with slippage of a quarter."""
    process = chain.graph(16)
    upper = np.array([0.1, 0.3, 0.6, 0.75, 0.9])
    tables = np.stack([np.tile([p, 1.0 - p], (33, 1)) for p in upper])
    return _finite("graph", process, np.full((33, 2), 0.5), tables)


def random() -> Domain:
    """Twelve states, three actions, no structure; rewards in [0, 1]."""
    with jax.enable_x64(True):
        mdp = jax.tree.map(np.asarray, tabular.random_mdp(jax.random.key(0), 12, 3, 0.8))
        uniform = finite.uniform_policy(12, 3)
        values = np.asarray(tabular.state_action_values(mdp, uniform))
    gain = (values - values.mean(axis=1, keepdims=True)) / (values - values.mean(axis=1, keepdims=True)).std()
    tables = np.stack([_softmax(slope * gain) for slope in (-1.0, -0.5, 0.5, 1.0, 2.0)])
    process = chain.Chain(mdp, np.zeros(12, bool), None, 30)
    return _finite("random", process, uniform, tables, horizon_exit=False)


def mountain_car() -> Domain:
    """Mountain Car on 12 by 12 cells, decisions of five steps."""
    process = chain.mountain_car(100, positions=12, speeds=12, discount=0.95)
    forward = np.where(np.arange(12) >= 6, 2, 0)
    pushed = np.append(np.tile(forward, 12), 1)

    def pushing(p: float) -> np.ndarray:
        return np.where(np.arange(3) == pushed[:, None], p, (1.0 - p) / 2.0)

    tables = np.stack([pushing(p) for p in (1 / 3, 0.4, 0.5, 0.65, 0.8)])
    return _finite("mountain_car", process, pushing(0.45), tables, horizon_exit=False)


def sepsis() -> Domain:
    """ICU-Sepsis; the expert, half of the time softened and half of the time replaced by chance, acts.

    Raises:
        ImportError: if the package `icu-sepsis` is not installed.
    """
    data = icu_sepsis.load()
    mdp = data.mdp._replace(discount=np.float64(0.99))
    uniform = finite.uniform_policy(*data.expert.shape)
    value = np.zeros(len(uniform))
    for _ in range(200):
        action_values = mdp.reward + 0.99 * mdp.transition @ value
        value = np.where(data.terminal, 0.0, action_values.max(axis=1))
    best = np.eye(uniform.shape[1])[action_values.argmax(axis=1)]
    expert = data.expert
    tables = np.stack(
        [finite.softened(expert, 0.5), expert, uniform, 0.7 * expert + 0.3 * best, 0.4 * expert + 0.6 * best]
    )
    behaviour = 0.5 * finite.softened(expert, 2.0) + 0.5 * uniform
    process = chain.Chain(mdp, data.terminal, data.arrival_reward, 50)
    coarse = tuple(_looked_up(data.features, cells) for cells in (4, 16, 64))
    return _finite("sepsis", process, behaviour, tables, coarse)


def cartpole() -> Domain:
    """CartPole of `star_domains`."""
    low, high, bins = (-2.4, -2.0, -0.21, -2.0), (2.4, 2.0, 0.21, 2.0), (3, 3, 6, 4)
    phi = abstractions.tiles(low, high, bins)
    # the angle's tiles meet at 0, where policies change
    right = np.unravel_index(np.arange(phi.num_states), bins)[2] >= bins[2] // 2

    tables = np.stack([np.where(right[:, None], [1.0 - p, p], [p, 1.0 - p]) for p in LEANING])
    cells = tuple(abstractions.tiles(low, high, cut) for cut in ((1, 1, 2, 1), (1, 1, 4, 2), (1, 1, 6, 4)))
    return _observed("cartpole", tables, phi, cells, vectors=True)


def asterix() -> Domain:
    """Asterix of `star_domains`."""
    cells = tuple(abstractions.random_centroids(jax.random.key(cells), cells, 400) for cells in (2, 8, 16, 32))
    tables = np.tile(np.array(ACTING)[:, None], (1, 32, 1))
    return _observed("asterix", tables, cells[-1], cells, vectors=False)


def _leaning(p: float) -> star_domains.LogPolicy:
    rows = jnp.log(jnp.array([[p, 1.0 - p], [1.0 - p, p]]))
    return lambda observation: rows[(jnp.asarray(observation)[..., 2] > 0).astype(jnp.int32)]


def _whatever_is_seen(row: tuple[float, ...]) -> star_domains.LogPolicy:
    logarithms = jnp.log(jnp.asarray(row, jnp.float32))
    return lambda observation: jnp.broadcast_to(logarithms, (*jnp.shape(observation)[:-1], 6))


def _looked_up(features: np.ndarray, cells: int) -> abstractions.Abstraction:
    """States by k-means on their features."""
    phi = abstractions.k_means(jax.random.key(cells), features[None], cells)
    table = np.asarray(phi(features[None]))[0]
    return abstractions.Abstraction(lambda states: table[np.asarray(states)], cells)


def _finite(
    name: str,
    process: chain.Chain,
    behaviour: np.ndarray,
    tables: np.ndarray,
    coarse: tuple[abstractions.Abstraction, ...] = (),
    *,
    horizon_exit: bool = True,
) -> Domain:
    """A finite process; without abstractions, neighbouring states are put together."""
    draw, size = process.sampler(), len(behaviour)
    logarithms = np.log(np.maximum(tables, 1e-300))
    if not coarse:
        # a grid of more than 64 cells takes minutes to choose from
        cells = sorted({max(1, size // divisor) for divisor in (16, 4, 1) if size // divisor <= 64} | {1})
        coarse = tuple(abstractions.Abstraction(functools.partial(_block, count=c, size=size), c) for c in cells)
    return Domain(
        name,
        float(process.mdp.discount),
        lambda key, n: draw(key, n, behaviour),
        lambda data: np.where(
            tables[:, data.observations, data.actions] > 0, logarithms[:, data.observations, data.actions], -np.inf
        ),
        np.array([float(process.value(table)) for table in tables]),
        np.zeros(len(tables)),
        float(process.value(behaviour)),
        horizon_exit,
        lambda data: data.observations,
        tables,
        behaviour,
        coarse,
    )


def _block(states: Array, *, count: int, size: int) -> Array:
    return (jnp.asarray(states) * count // size).astype(jnp.int32)


def _observed(
    name: str,
    tables: np.ndarray,
    phi: abstractions.Abstraction,
    cells: tuple[abstractions.Abstraction, ...],
    *,
    vectors: bool,
) -> Domain:
    """A domain of `star_domains` with other policies, and a discount of 0.99."""
    base, policies = star_domains.DOMAINS[name](), POLICIES[name]()
    truth, error = np.array(TRUTHS[name]).T
    return Domain(
        name,
        0.99,
        lambda key, n: base.sample(key, n, base.behaviour),
        lambda data: np.stack([np.asarray(star_domains.log_prob_of(policy, data), np.float64) for policy in policies]),
        truth[:-1],
        error[:-1],
        float(truth[-1]),
        True,
        lambda data: phi(data.observations),
        tables,
        np.full(tables.shape[1:], 1.0 / tables.shape[2]),
        cells,
        functools.partial(_targets, policies) if vectors else None,
    )


def _targets(policies: list[star_domains.LogPolicy], data: Trajectories) -> TargetActions:
    return TargetActions(None, np.stack([target_actions(data, policy).weights for policy in policies]))


def measured(name: str, *, episodes: int = 40_000) -> list[tuple[float, float]]:
    """Means of discounted returns of roll-outs, and their standard errors, as `TRUTHS` has them."""
    base, policies = star_domains.DOMAINS[name](), POLICIES[name]()
    return [_measured(base, policy, seed, episodes) for seed, policy in enumerate([*policies, base.behaviour])]


def _measured(
    base: star_domains.Domain, policy: star_domains.LogPolicy, seed: int, episodes: int
) -> tuple[float, float]:
    lanes = min(2000, episodes)

    @jax.jit
    def returns(key: Array) -> Array:
        data = base.sample(key, lanes, policy)
        return jnp.where(data.mask, data.rewards, 0.0) @ (0.99 ** jnp.arange(base.horizon))

    keys = jax.random.split(jax.random.key(seed), episodes // lanes)
    found = np.concatenate([np.asarray(returns(key), np.float64) for key in keys])
    return round(float(found.mean()), 4), round(float(found.std(ddof=1) / np.sqrt(len(found))), 4)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def pendulum() -> Domain:
    """Brax's inverted pendulum, and PPO after as many steps with five learning rates; the second one acts.

    Raises:
        ImportError: if brax is not installed.
    """
    environment, config = envs.make("brax/inverted_pendulum", 8), agents.preset("ppo", sizes=(32, 32))
    train = training.make_train(agents.make, environment, training.LoopSettings(total_steps=20_480))
    configs = training.stack_configs([config.replace(learning_rate=rate) for rate in RATES])
    keys = jax.random.split(jax.random.key(0), len(RATES))
    trained = jax.jit(lambda c, k: training.sweep(lambda *member: train(*member).state.agent, c, k))(configs, keys)
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], trained) for i in range(len(RATES))]
    policies = [training.policy_functions(config, environment.spec, state) for state in states]

    @functools.partial(jax.jit, static_argnums=2)
    def play(state: Any, key: Array, n: int) -> Trajectories:
        act = training.policy_functions(config, environment.spec, state).act
        return training.roll_out(act, envs.make("brax/inverted_pendulum", n), key, episodes=n, horizon=50)

    def returns(state: Any) -> np.ndarray:
        played = [play(state, key, 200) for key in jax.random.split(jax.random.key(1), 10)]
        return np.concatenate([np.where(x.mask, x.rewards, 0.0) @ 0.99 ** np.arange(50) for x in played])

    found = np.stack([returns(state) for state in states])
    truth, error = found.mean(axis=1), found.std(axis=1, ddof=1) / np.sqrt(found.shape[1])

    def log_prob(data: Trajectories) -> np.ndarray:
        columns = [np.asarray(policy.log_prob(data.observations, data.actions), np.float64) for policy in policies]
        return np.stack(columns)

    def targets(data: Trajectories) -> TargetActions:
        drawn = [target_actions(data, policy.act, samples=5, key=jax.random.key(2)) for policy in policies]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)

    low, high = (-1.0, -0.2, -1.0, -1.0), (1.0, 0.2, 1.0, 1.0)
    cells = tuple(abstractions.tiles(low, high, bins) for bins in ((1, 2, 1, 2), (1, 4, 1, 4), (2, 4, 2, 4)))
    rest = dict(states=None, tables=None, behaviour_table=None, abstractions=cells, targets=targets)
    return Domain(
        "pendulum", 0.99, lambda key, n: play(states[1], key, n), log_prob, truth, error, float(truth[1]), True, **rest
    )


DOMAINS: dict[str, Callable[[], Domain]] = {
    "graph": graph,
    "random": random,
    "mountain_car": mountain_car,
    "sepsis": sepsis,
    "cartpole": cartpole,
    "asterix": asterix,
    "pendulum": pendulum,
}
POLICIES: dict[str, Callable[[], list[star_domains.LogPolicy]]] = {
    "cartpole": lambda: [_leaning(p) for p in LEANING],
    "asterix": lambda: [_whatever_is_seen(row) for row in ACTING],
}
