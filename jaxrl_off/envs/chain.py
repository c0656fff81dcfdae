"""Small finite processes on which estimators of off-policy values are compared, with exact values.

| function | process |
|---|---|
| `graph` | two rails that end after T steps (Voloshin et al.'s "Graph") |
| `toy_mountain_car` | a walk that must reach its right end (their "Toy-MC") |
| `mountain_car` | Mountain Car, its position and speed on a grid |

All come as a `Chain`, whose `value` is exact and whose `sample` draws trajectories of numbered states.

Reference: Voloshin, Le, Jiang and Yue, "Empirical Study of Off-Policy Policy Evaluation for Reinforcement Learning",
NeurIPS 2021 datasets track, and its code, COBS (`ope/envs/graph.py`, `discrete_toy_mc.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxrl_off.envs.finite import Sample, finite_horizon_value, sampler
from jaxrl_off.envs.tabular import TabularMDP
from jaxrl_off.types import Array


class Chain(NamedTuple):
    """A finite process that ends; NumPy arrays in float64.

    Attributes:
        mdp: the process. Terminal states lead to themselves without reward.
        terminal: `bool[S]`.
        arrival_reward: `float[S]`, reward of entering each state, or None where rewards are `mdp.reward`.
        horizon: T, steps after which everything stops.
    """

    mdp: TabularMDP
    terminal: np.ndarray
    arrival_reward: np.ndarray | None
    horizon: int

    def value(self, policy: Any) -> Array:
        """Exact value `float64[]` of `policy [S, A]`; see `finite.finite_horizon_value`."""
        return finite_horizon_value(self.mdp, policy, self.horizon)

    def sampler(self) -> Sample:
        """`(key, n, policy [S, A]) -> Trajectories`; see `finite.sampler`. Make it once, as each one compiles anew."""
        return sampler(self.mdp, self.horizon, terminal=self.terminal, arrival_reward=self.arrival_reward)


def graph(horizon: int, *, slippage: float = 0.25, sparse_reward: bool = False, discount: float = 0.98) -> Chain:
    """Two rails: from everywhere action 0 leads to the next state of the upper rail, action 1 to that of the lower one.

    State 0 is the start, states 2 t - 1 and 2 t are where one may be after t steps on the upper and on the lower rail,
    and the last is where it ends. An upper state yields 1 on entering it, a lower one -1.

    Args:
        horizon: T, at least 1: steps of every episode, the last of which ends it.
        slippage: probability to get to the other rail than the action says.
        sparse_reward: reward of the last step alone.
        discount: gamma.

    Returns:
        A `Chain` of 2 T + 1 states. With `u` the probability of the upper rail, alike in all states, the value is
        `(2 u - 1) sum_t gamma^t`, over the last t alone where rewards are sparse.

    Deviation from COBS, which has T - 1 steps between rails and a last one that leaves with the reward of where one
    already is, and lets rewards be noisy: here the last step enters a rail like all others, and rewards are not noisy.

    Raises:
        ValueError: for a horizon below 1, or a slippage or discount outside [0, 1].
    """
    _check(horizon, discount)
    if not 0.0 <= slippage <= 1.0:
        raise ValueError(f"slippage must be in [0, 1], got {slippage}.")
    num_states = 2 * horizon + 1
    transition = np.zeros((num_states, 2, num_states))
    for state in range(2 * horizon - 1):
        upper = 2 * ((state + 1) // 2) + 1
        transition[state, 0, upper], transition[state, 0, upper + 1] = 1.0 - slippage, slippage
        transition[state, 1, upper + 1], transition[state, 1, upper] = 1.0 - slippage, slippage
    arrival_reward = np.where(np.arange(num_states) % 2 == 1, 1.0, -1.0)
    arrival_reward[0] = 0.0
    if sparse_reward:
        arrival_reward[: 2 * horizon - 1] = 0.0
    return _chain(transition, arrival_reward, np.eye(num_states)[0], [-2, -1], horizon, discount)


def toy_mountain_car(
    horizon: int = 250, *, left: int = 10, right: int = 10, discount: float = 0.99, random_start: bool = False
) -> Chain:
    """A walk on a line: action 0 goes left, but not beyond the end, action 1 goes right; -1 a step until the goal.

    Args:
        horizon: T.
        left: states to the left of the start.
        right: states to the right of it, before the goal.
        discount: gamma.
        random_start: anywhere but in the goal, instead of in the middle.

    Returns:
        A `Chain` of `left + right + 2` states, counted from the left; the last is the goal.

    Raises:
        ValueError: for a horizon below 1, negative numbers of states, or a discount outside [0, 1].
    """
    _check(horizon, discount)
    if left < 0 or right < 0:
        raise ValueError(f"left and right must not be negative, got {left} and {right}.")
    num_states = left + right + 2
    states = np.arange(num_states)
    transition = np.zeros((num_states, 2, num_states))
    transition[states, 0, np.maximum(states - 1, 0)] = 1.0
    transition[states, 1, np.minimum(states + 1, num_states - 1)] = 1.0
    initial = (
        np.where(states < num_states - 1, 1.0 / (num_states - 1), 0.0) if random_start else np.eye(num_states)[left]
    )
    return _chain(transition, np.full(num_states, -1.0), initial, [-1], horizon, discount)


def mountain_car(
    horizon: int = 250,
    *,
    positions: int = 20,
    speeds: int = 20,
    repeat: int = 5,
    points: int = 8,
    discount: float = 0.99,
) -> Chain:
    """Gymnasium's Mountain Car on a grid: push left, not at all or right; -1 a decision until the hill is climbed.

    A cell stands for all its points alike: P(z'|z, a) is the share of a regular grid of points within z that the
    equations of motion bring to z'. The process is Markov by construction, hence a model of its own, whose values are
    exact and not those of the car, since what a cell does not tell apart spreads at every step. COBS runs the car
    itself, on no grid.

    Args:
        horizon: T, in decisions.
        positions: cells from -1.2 to the goal at 0.5.
        speeds: cells from -0.07 to 0.07.
        repeat: steps that each decision lasts (5 in COBS).
        points: points a cell and dimension.
        discount: gamma, of a decision.

    Returns:
        A `Chain` of `positions speeds + 1` states, of which the speed counts fastest and the last is the goal. It
        starts at rest at positions from -0.6 to -0.4, as the car does.

    Raises:
        ValueError: for numbers below 1 or a discount outside [0, 1].
    """
    _check(horizon, discount)
    for name, value in dict(positions=positions, speeds=speeds, repeat=repeat, points=points).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    goal = positions * speeds

    def cells(position: np.ndarray, speed: np.ndarray) -> np.ndarray:
        row = np.clip(np.floor((position + 1.2) / 1.7 * positions), 0, positions - 1)
        column = np.clip(np.floor((speed + 0.07) / 0.14 * speeds), 0, speeds - 1)
        return np.where(position >= 0.5, goal, row * speeds + column).astype(int)

    within = (np.arange(points) + 0.5) / points
    low_position, low_speed, at, fast = np.meshgrid(
        np.arange(positions), np.arange(speeds), within, within, indexing="ij"
    )
    transition = np.zeros((goal + 1, 3, goal + 1))
    for action in range(3):
        position = -1.2 + 1.7 * (low_position + at) / positions
        speed = -0.07 + 0.14 * (low_speed + fast) / speeds
        for _ in range(repeat):
            climbed = position >= 0.5
            faster = np.clip(speed + 0.001 * (action - 1) - 0.0025 * np.cos(3.0 * position), -0.07, 0.07)
            further = np.clip(position + faster, -1.2, 0.6)
            faster = np.where((further <= -1.2) & (faster < 0), 0.0, faster)
            position, speed = np.where(climbed, position, further), np.where(climbed, speed, faster)
        after = cells(position, speed).reshape(goal, -1)
        np.add.at(transition[:, action], (np.arange(goal)[:, None], after), 1.0 / points**2)
    start = np.linspace(-0.6, -0.4, 1000, endpoint=False) + 1e-4
    initial = np.bincount(cells(start, np.full(1000, 1e-9)), minlength=goal + 1) / 1000
    return _chain(transition, np.full(goal + 1, -1.0), initial, [-1], horizon, discount)


def _chain(
    transition: np.ndarray,
    arrival_reward: np.ndarray,
    initial: np.ndarray,
    ends: list[int],
    horizon: int,
    discount: float,
) -> Chain:
    """Make the ends absorbing and without reward, and rewards those expected of state and action."""
    terminal = np.zeros(len(initial), bool)
    terminal[ends] = True
    reward = np.where(terminal[:, None], 0.0, transition @ arrival_reward)
    transition[terminal] = np.eye(len(initial))[terminal][:, None]
    return Chain(TabularMDP(transition, reward, initial, np.float64(discount)), terminal, arrival_reward, horizon)


def _check(horizon: int, discount: float) -> None:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}.")
