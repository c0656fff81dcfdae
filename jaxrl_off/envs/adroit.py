"""The four Adroit hand tasks of gymnasium-robotics with the rewards of the KL-regularised papers.

A 24-degree hand on a moving arm opens a `door`, turns a `pen`, moves a ball (`relocate`) or drives a nail (`hammer`).
Rewards, where "at the goal" is the simulator's own `info["success"]` of the step:

| reward | a step at the goal | any other step | note |
|---|---|---|---|
| `zero_one` | 1 | 0 | N-PPAC trains on it; the return is the number of steps at the goal |
| `binary` | 0 | -1 | success - 1; the return of AWAC's and RLPD's demonstrations |
| `sparse` | 10 | -0.1 | gymnasium-robotics' own |
| `dense` | shaped | shaped | gymnasium-robotics' own; its version 1 changed in release 1.2.1 |

Nothing ends on success, and nothing terminates: an episode is truncated after `max_episode_steps` (the authors' code
took that for a termination, this library does not). An episode succeeded if any of its steps was at the goal, which
`succeeded` tells from its return.

Reference: Rajeswaran et al. (2018), "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning and
Demonstrations"; Rudner et al. (2021), "On Pathologies in KL-Regularized Reinforcement Learning from Expert
Demonstrations".
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal, get_args

import jax.numpy as jnp

from jaxrl_off.envs.base import Environment
from jaxrl_off.envs.gymnasium_envs import from_function
from jaxrl_off.types import Array

Reward = Literal["zero_one", "binary", "sparse", "dense"]

_TASKS = {"door": "Door", "hammer": "Hammer", "pen": "Pen", "relocate": "Relocate"}
_AT_GOAL = {"zero_one": (1.0, 0.0), "binary": (0.0, -1.0), "sparse": (10.0, -0.1)}


def registered() -> list[str]:
    """Names that `make` accepts."""
    return list(_TASKS)


def make(
    identifier: str, num_envs: int, *, reward: Reward = "zero_one", max_episode_steps: int = 200, workers: int = 1
) -> Environment:
    """Build lanes of an Adroit hand task.

    Args:
        identifier: `"door"` (observation 39, action 28), `"hammer"` (46, 26), `"pen"` (45, 24) or `"relocate"` (39, 30).
        num_envs: number of lanes.
        reward: see the table above.
        max_episode_steps: decisions after which an episode is truncated, at least 1. The papers use 200, and 100 for
            the pen.
        workers: processes that step the lanes, this one included; see `gymnasium_envs.make`.

    Returns:
        An `Environment` that is not pure (see `gymnasium_envs.from_function`), with observations `float32[N, O]` and
        actions `float32[N, D]` in [-1, 1].

    Raises:
        ImportError: if gymnasium-robotics is not installed.
        ValueError: for an unknown task or reward, or a number out of range.
    """
    if identifier not in _TASKS:
        raise ValueError(f"unknown Adroit task {identifier!r}; known are: {', '.join(_TASKS)}.")
    if reward not in get_args(Reward):
        raise ValueError(f"unknown reward {reward!r} of Adroit; known are: {', '.join(get_args(Reward))}.")
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
    _robotics()

    def build() -> Any:
        return build_lane(identifier, reward, max_episode_steps)

    return from_function(build, num_envs, f"adroit/{identifier}", workers=workers)


def build_lane(identifier: str, reward: Reward, max_episode_steps: int = 200) -> Any:
    """One lane as a `gymnasium.Env`, for tools that want one, such as a recorder; arguments as in `make`."""
    gymnasium = _robotics()
    name = f"AdroitHand{_TASKS[identifier]}{'' if reward == 'dense' else 'Sparse'}-v1"
    env = gymnasium.make(name, max_episode_steps=max_episode_steps)
    if reward == "dense":
        return env

    class GoalReward(gymnasium.Wrapper):
        def step(self, action: Any) -> tuple[Any, ...]:
            observation, _, terminated, truncated, info = self.env.step(action)
            return observation, _AT_GOAL[reward][not info["success"]], terminated, truncated, info

    return GoalReward(env)


def succeeded(episode_return: Array, length: Array, *, reward: Reward = "zero_one") -> Array:
    """Whether an episode was at the goal for one step or more; its mean over episodes is the share of successes.

    Args:
        episode_return: `float32[...]`, undiscounted return of a whole episode, for example of `evaluate`.
        length: `int32[...]`, its number of decisions.
        reward: the one that the episode was played with.

    Returns:
        `bool[...]`; False where the return is NaN (an episode that did not finish).

    Raises:
        ValueError: for the dense reward, whose return does not tell.
    """
    if reward not in _AT_GOAL:
        raise ValueError(
            f"the return does not tell success under the reward {reward!r}; it does under {', '.join(_AT_GOAL)}."
        )
    goal, other = _AT_GOAL[reward]
    return jnp.asarray(episode_return) > other * jnp.asarray(length) + 0.5 * (goal - other)


def _robotics() -> Any:
    """Gymnasium with the Adroit ids registered."""
    try:
        import gymnasium

        # On import it prints, in every process, a warning about the dense reward that this module's docstring holds.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise ImportError(
            f'the Adroit tasks need gymnasium-robotics, which is not installed ({error}): pip install "jaxrl_off[adroit]".'
        ) from error
    if "AdroitHandDoorSparse-v1" not in gymnasium.registry:
        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium
