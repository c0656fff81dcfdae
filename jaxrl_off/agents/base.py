"""What an algorithm is: a small value of pure functions, as optax's `GradientTransformation` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl_off.envs.base import ContinuousSpace, EnvironmentSpec
from jaxrl_off.types import Array, EpisodeStatistics, PyTree


class ActOutput(NamedTuple):
    """What acting leaves behind, computed in float32 at act time; leading axis `[N]`.

    Attributes:
        action: `int32[N]` or `float32[N, A]`.
        log_prob: `float32[N]`, log pi_t(a|s); of the canonical action (the box mapped to [-1, 1]^D) where actions are
            continuous.
        value: `float32[N]`, V_t(s), or None where the agent prefers to evaluate a whole chunk at once in `process`.
        parameters: distribution parameters of pi_t(.|s), or `()` if no loss needs them.
        core: recurrent state after the step, `[N, ...]`, or `()`.
    """

    action: Array
    log_prob: Array
    value: Array | None
    parameters: PyTree
    core: PyTree


class Chunk(NamedTuple):
    """Consecutive steps of all lanes as collected, time-major `[L, N, ...]`; see `Timestep` and `ActOutput` for the fields.

    Attributes:
        observation: what was acted on.
        first: `bool[L, N]`, whether that observation started a trace.
        acted: what acting left behind.
        initial_core: recurrent state before the first step, `[N, ...]`, or `()`.
        reward, terminated, truncated, valid, final_observation: of the transition made.
        episode: statistics of episodes that ended.
        last_observation: `[N, ...]`, the observation after the last step (of the next episode, if one began).
        last_first: `bool[N]`, whether it starts a trace.
    """

    observation: PyTree
    first: Array
    acted: ActOutput
    initial_core: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    valid: Array
    final_observation: PyTree
    episode: EpisodeStatistics
    last_observation: PyTree
    last_first: Array


class Agent(NamedTuple):
    """A learner, on-policy with reuse or off-policy.

    Attributes:
        init: `key -> state`, fresh parameters and optimiser state.
        initial_core: `num_envs -> core`, recurrent state `[N, ...]` before the first step, or `()`.
        act: `(state, key, observation[N], core, first[N], greedy=False) -> ActOutput`, with the *published* parameters.
        process: `(state, chunk, rollout_length) -> batch[R]`, cuts a chunk of `L` steps and `N` lanes into
            `R = N L / rollout_length` roll-outs with everything a learner wants to know from behaviour time: a `Rollout`, a
            `Transition`, or a record of the family's own.
        update: `(state, key, batch[B]) -> (state, metrics)`, one optimiser step; `metrics` is a dict of `float32[]`.
        publish: `state -> state`, hands the learner's parameters to the actors.
        policy: `(state, observation[N, ...]) -> distribution [N]`, the stochastic policy that acts with the published
            parameters; over canonical actions (the box mapped to [-1, 1]^D) where actions are continuous. None for
            recurrent policies.
        observe: `(state, chunk) -> (state, core)`, called once for every chunk after `process`: statistics that the learner
            keeps of its data, and what actors carry on with (`chunk.acted.core` of the last step, as a rule). None for neither.
    """

    init: Callable[[Array], Any]
    initial_core: Callable[[int], PyTree]
    act: Callable[..., ActOutput]
    process: Callable[[Any, Chunk, int], Any]
    update: Callable[[Any, Array, Any], tuple[Any, dict[str, Array]]]
    publish: Callable[[Any], Any]
    policy: Callable[[Any, PyTree], Any] | None = None
    observe: Callable[[Any, Chunk], tuple[Any, PyTree]] | None = None


def stepped(params: PyTree, steps: PyTree, rate: Array | float) -> PyTree:
    """`params - rate steps`, in the types of `params` also where JAX's default is float64."""
    return jax.tree.map(lambda p, step: (p - rate * step).astype(p.dtype), params, steps)


def check_total_updates(total_updates: int) -> None:
    """Refuse a number of updates below 1, with a ValueError."""
    if total_updates < 1:
        raise ValueError(f"total_updates must be at least 1, got {total_updates}.")


def continuous_space(spec: EnvironmentSpec) -> ContinuousSpace:
    """The action space, for families that need continuous actions and observations of one vector.

    Raises:
        ValueError: for other environments.
    """
    space = spec.action_space
    if not isinstance(space, ContinuousSpace) or len(spec.observation_shape) != 1:
        raise ValueError(
            f"{spec.name} has observations {spec.observation_shape} and actions {space}; this family needs one vector of "
            "observations and continuous actions."
        )
    return space
