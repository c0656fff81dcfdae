"""Trajectories recorded in an environment, values of policies by Monte Carlo, and policies out of agents' parameters.

A policy that acts is `(key, observation [N, ...]) -> (action [N, ...], log_prob [N])`, pure; see `policy_functions`.
Every lane plays one episode from a reset, its first: an estimate from whichever episodes end first would favour short
ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off import agents
from jaxrl_off.envs.base import ContinuousSpace, Environment, EnvironmentSpec, from_canonical, to_canonical
from jaxrl_off.types import Array, Trajectories

Policy = Callable[[Array, Array], tuple[Array, Array]]


class PolicyFunctions(NamedTuple):
    """A policy as two pure functions, in the environment's units.

    Attributes:
        act: `(key, observation [N, ...]) -> (action, log_prob [N])`, for `roll_out`.
        log_prob: `(observation [..., *O], action) -> float32[...]`, with `int32[...]` or `float32[..., *A]` actions and
            any leading axes, such as the `[n, T]` of trajectories: the `target_log_prob` of estimators.
    """

    act: Policy
    log_prob: Callable[[Array, Array], Array]


def roll_out(policy: Policy, environment: Environment, key: Array, *, episodes: int, horizon: int) -> Trajectories:
    """Record the first steps of new episodes.

    Args:
        policy: who acts; a pure function. Its log-probabilities are recorded with its actions, which are not clipped to
            the environment's box (that is done by the environment), so that the two belong together.
        environment: `N` lanes, pure or not. It is reset here, and not closed. Where a trace ends before its episode (a
            life lost, if so configured) the trajectory ends there.
        key: consumed.
        episodes: how many. They are played N at a time, so that a multiple of N wastes nothing.
        horizon: T, the most steps of each. An episode that is still under way then is neither terminated nor truncated.

    Returns:
        Trajectories of `episodes` rows with the environment's observations, float32 rewards and log-probabilities.
        `final_observation` is what followed the last step, before any reset. Where the environment is pure, this function
        can be jitted, and vmapped over keys. It is compiled once for the same policy, environment and sizes (the last few
        programs are kept), so pass the same function again rather than a new lambda.

    Raises:
        ValueError: if a number is below 1, or the policy does not give an action and a log-probability a lane.

    Example:
        >>> from jaxrl_off import envs
        >>> half = jnp.log(jnp.full(5, 0.5))
        >>> coin = lambda key, observation: (jax.random.bernoulli(key, shape=(5,)).astype(int), half)
        >>> data = roll_out(coin, envs.make("CartPole-v1", 5), jax.random.key(0), episodes=10, horizon=7)
        >>> data.observations.shape, int(data.mask.sum()), float(data.rewards.sum())
        ((10, 7, 4), 70, 70.0)
    """

    return _in_batches(_recorded, policy, environment, key, episodes, horizon)


def monte_carlo_value(
    policy: Policy, environment: Environment, key: Array, *, episodes: int, horizon: int, discount: float = 1.0
) -> tuple[float | Array, float | Array]:
    """Mean discounted return of the first steps of new episodes, without storing them.

    Args:
        policy: as in `roll_out`.
        environment: as there; memory is that of its lanes, and of one number an episode.
        key: consumed.
        episodes: how many, at least 2.
        horizon: T; rewards after it do not count.
        discount: gamma, in [0, 1].

    Returns:
        The mean, and its standard error. Returns are added up in float32, and averaged in float64. Inside `jax.jit` or
        `jax.vmap` both are arrays `float32[]`, averaged in float32. Compiled once, as `roll_out` is, for all discounts.

    Raises:
        ValueError: as `roll_out`, for fewer than two episodes and a discount outside [0, 1].
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}.")
    if episodes < 2:
        raise ValueError(f"a standard error needs at least 2 episodes, got {episodes}.")

    factors = jnp.asarray(discount ** np.arange(horizon, dtype=np.float64), jnp.float32)
    returns = _in_batches(_returns, policy, environment, key, episodes, horizon, factors)
    if isinstance(returns, jax.core.Tracer):
        return jnp.mean(returns), jnp.std(returns, ddof=1) / math.sqrt(episodes)
    returns = np.asarray(returns, np.float64)
    return float(returns.mean()), float(returns.std(ddof=1) / math.sqrt(episodes))


def policy_functions(config: Any, spec: EnvironmentSpec, agent_state: Any) -> PolicyFunctions:
    """The published stochastic policy of an agent, to act with and to ask for log-probabilities.

    Args:
        config: the agent's own, of any family.
        spec: of the environment it was made for.
        agent_state: of that agent; pass `agent.publish(agent_state)` for the newest parameters of the PPO family.

    Returns:
        `PolicyFunctions`. Densities of continuous actions are per unit of the environment's actions; where a squashed
        action is within 1e-6 of its bounds, `log_prob` cannot tell what was squashed, and `act` can. Samples of a policy that
        is not squashed may lie outside the box; the environment clips them, and their densities are those of the samples. A
        policy of the SAC family is the network's from the first, also where the agent would still act uniformly at random.

    Raises:
        ValueError: for a recurrent policy, or the state of an agent of another family.
        TypeError: if `config` is no configuration of an agent.
    """
    policy = agents.make_policy(config, spec)

    def distribution(observation: Array) -> Any:
        return policy(agent_state, observation)

    try:
        jax.eval_shape(distribution, spec.zero_observation(1))
    except AttributeError as error:
        raise ValueError(
            f"a {type(agent_state).__name__} is not the state of an agent of {type(config).__name__} ({error}); give the state "
            "of an agent that was made of this config."
        ) from error
    return _functions(distribution, spec)


def _functions(distribution: Callable[[Array], Any], spec: EnvironmentSpec) -> PolicyFunctions:
    """Functions of `observation [N, *O] -> distribution [N]`, whose actions are canonical where they are continuous."""
    box = spec.action_space if isinstance(spec.action_space, ContinuousSpace) else None
    # density of canonical actions over that of the environment's
    log_volume = 0.0 if box is None else float(np.sum(np.log((np.asarray(box.high) - np.asarray(box.low)) / 2.0)))

    def act(key: Array, observation: Array) -> tuple[Array, Array]:
        found = distribution(observation)
        if box is None:
            action = found.sample(key)
            return action, found.log_prob(action)
        action, log_prob = found.sample_and_log_prob(key)
        return from_canonical(box, action), log_prob - log_volume

    def log_prob(observation: Array, action: Array) -> Array:
        observation, action = jnp.asarray(observation), jnp.asarray(action)
        leading = observation.shape[: observation.ndim - len(spec.observation_shape)]
        own = spec.action_space.shape if isinstance(spec.action_space, ContinuousSpace) else ()
        if observation.shape != (*leading, *spec.observation_shape) or action.shape != (*leading, *own):
            raise ValueError(
                f"observations {observation.shape} and actions {action.shape} do not fit together; with "
                f"observations of {spec.observation_shape} and actions of {own}, one leading shape is allowed."
            )
        size = math.prod(leading)
        flat, action = observation.reshape(size, *spec.observation_shape), action.reshape(size, *([-1] if own else []))
        action = action if box is None else to_canonical(box, action)
        return (distribution(flat).log_prob(action) - log_volume).reshape(leading)

    return PolicyFunctions(act, log_prob)


def _recorded(policy: Policy, environment: Environment, horizon: int, key: Array) -> Trajectories:
    """The first episode of every lane."""
    reset_key, loop_key = jax.random.split(key)
    env_state, timestep = environment.reset(reset_key)

    def step(carry: Any, key: Array) -> tuple[Any, tuple[Array, ...]]:
        env_state, observation, final, alive = carry
        act_key, step_key = jax.random.split(key)
        action, log_prob = policy(act_key, observation)
        env_state, timestep = environment.step(step_key, env_state, action)
        reward = jnp.where(alive, timestep.reward, 0.0)
        terminated, truncated = timestep.terminated & alive, timestep.truncated & alive
        final = jax.tree.map(lambda new, old: _where(alive, new, old), timestep.final_observation, final)
        record = (observation, action, reward, log_prob, alive, terminated, truncated)
        return (env_state, timestep.observation, final, alive & ~terminated & ~truncated), record

    start = (env_state, timestep.observation, timestep.observation, jnp.ones(environment.num_envs, bool))
    (_, _, final, _), records = jax.lax.scan(step, start, jax.random.split(loop_key, horizon))
    return Trajectories(*jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), records), final)


def _returns(policy: Policy, environment: Environment, horizon: int, key: Array, factors: Array) -> Array:
    """`sum_t factors[t] reward_t` of the first episode of every lane, `float32[N]`."""
    reset_key, loop_key = jax.random.split(key)
    env_state, timestep = environment.reset(reset_key)

    def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, None]:
        env_state, observation, earned, alive = carry
        key, factor = inputs
        act_key, step_key = jax.random.split(key)
        action, _ = policy(act_key, observation)
        env_state, timestep = environment.step(step_key, env_state, action)
        earned = earned + jnp.where(alive, factor * timestep.reward, 0.0)
        alive = alive & ~timestep.terminated & ~timestep.truncated
        return (env_state, timestep.observation, earned, alive), None

    lanes = environment.num_envs
    start = (env_state, timestep.observation, jnp.zeros(lanes, jnp.float32), jnp.ones(lanes, bool))
    return jax.lax.scan(step, start, (jax.random.split(loop_key, horizon), factors))[0][2]


def _in_batches(
    play: Callable[..., Any],
    policy: Policy,
    environment: Environment,
    key: Array,
    episodes: int,
    horizon: int,
    *inputs: Array,
) -> Any:
    """What `play(policy, environment, horizon, key, *inputs)` gives for all lanes, repeated and cut to `episodes` rows."""
    for name, value in (("episodes", episodes), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    try:
        hash((policy, environment))
        program = _program
    except TypeError:  # for example a callable dataclass of arrays: it works, but is compiled at every call
        program = _program.__wrapped__
    if isinstance(key, jax.core.Tracer):
        # the caller compiles; keeping the program would keep the caller's tracers
        return _program.__wrapped__(play, policy, environment, episodes, horizon, False)(key, *inputs)
    return program(play, policy, environment, episodes, horizon, True)(key, *inputs)


@functools.lru_cache(maxsize=8)
def _program(
    play: Callable[..., Any], policy: Policy, environment: Environment, episodes: int, horizon: int, compiled: bool
) -> Callable[..., Any]:
    """`(key, *inputs) -> play` of as many batches of lanes as `episodes` need, after a check of what the policy gives."""
    lanes = environment.num_envs
    given = jax.eval_shape(policy, jax.random.key(0), environment.spec.zero_observation(lanes))
    shapes = [getattr(x, "shape", None) for x in given] if isinstance(given, tuple) else []
    if len(shapes) != 2 or shapes[0][:1] != (lanes,) or shapes[1] != (lanes,):
        raise ValueError(
            f"the policy gives shapes {shapes or jax.tree.map(jnp.shape, given)}; (action [{lanes}, ...], "
            f"log_prob [{lanes}]) is allowed. Write act(key, observation) that returns both."
        )
    batches = -(-episodes // lanes)

    def run(key: Array, *inputs: Array) -> Any:
        keys = jax.random.split(key, batches)
        parts = jax.lax.map(lambda key: play(policy, environment, horizon, key, *inputs), keys)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:episodes], parts)

    return jax.jit(run) if compiled else run


def _where(mask: Array, one: Array, other: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (one.ndim - 1)), one, other)
