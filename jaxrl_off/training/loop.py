"""The training loop: from PPO's few epochs on fresh data, over a large, stale replay, to off-policy actor-critics.

An iteration collects `num_envs x collect_length` samples with the published policy, cuts them into roll-outs, and takes
`updates_per_iteration` optimiser steps: on minibatches of the fresh data without replacement (`replay_capacity=0`), or on
uniform samples of a replay. Every `publish_interval` updates the actors get the learner's parameters.

`make_train` gives a pure `train(config, key)` to jit, vmap and shard; `make_loop` gives the same steps one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_off.agents.base import Agent, Chunk
from jaxrl_off.data.replay import empty_replay, make_rollout_replay, minibatch_indices
from jaxrl_off.envs.base import Environment
from jaxrl_off.ops.keys import unrolled_keys
from jaxrl_off.training.settings import LoopSettings, Plan, plan
from jaxrl_off.types import Array, PyTree, Timestep

# Metrics whose largest value counts, over updates and iterations; of the others the mean.
LARGEST = ("staleness_max", "nonfinite")


class LoopState(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
        agent: the learner.
        environment: lanes.
        observation: `[N, ...]`, where they stand.
        first: `bool[N]`.
        core: recurrent state of the actors.
        replay: flashbax state, or `()`.
        key: consumed by the next iteration.
        iteration: `int32[]`.
    """

    agent: Any
    environment: PyTree
    observation: PyTree
    first: Array
    core: PyTree
    replay: PyTree
    key: Array
    iteration: Array


def without_environment(state: LoopState) -> LoopState:
    """What can be saved of a run whose environment lives outside JAX: all but lanes and where they stand (each `()`)."""
    return state._replace(environment=(), observation=(), first=(), core=())


class Loop(NamedTuple):
    """The pure pieces of a run.

    Attributes:
        plan: counts.
        init: `key -> LoopState`, burn-in included.
        iterate: `LoopState -> (LoopState, metrics)`, one iteration.
        log_interval: `LoopState -> (LoopState, metrics)`, `plan.iterations_per_log` iterations, metrics summarised.
    """

    plan: Plan
    init: Callable[[Array], LoopState]
    iterate: Callable[[LoopState], tuple[LoopState, dict[str, Array]]]
    log_interval: Callable[[LoopState], tuple[LoopState, dict[str, Array]]]


class TrainResult(NamedTuple):
    """What `train` returns.

    Attributes:
        state: the last `LoopState`; `state.agent.params` are the parameters.
        metrics: dict of `float32[log_points]`; see `summarise`.
    """

    state: LoopState
    metrics: dict[str, Array]


def make_loop(agent: Agent, environment: Environment, settings: LoopSettings, mesh: Mesh | None = None) -> Loop:
    """Build the loop of one run.

    Args:
        agent: pure functions.
        environment: `num_envs` lanes.
        settings: sizes.
        mesh: devices with an axis named `"data"`: lanes, replay and batches are split over it, parameters are kept on every
            device. The program, and up to rounding its result, is that of one device.

    Returns:
        A `Loop`.
    """
    counts = plan(settings, environment.num_envs)
    replay = None
    if settings.replay_capacity:
        replay = make_rollout_replay(settings.replay_capacity // settings.rollout_length, counts.rollouts_per_batch)
    split, keep, split_items = _placements(mesh, environment.num_envs, counts.rollouts_per_batch)

    def collect(state: LoopState) -> tuple[LoopState, Chunk]:
        key, act_key, step_key = jax.random.split(state.key, 3)
        act_keys = unrolled_keys(jax.random.split(act_key, settings.collect_length))
        step_keys = unrolled_keys(jax.random.split(step_key, settings.collect_length))

        def step(carry: Any, keys: Any) -> tuple[Any, Any]:
            env_state, observation, core, first = carry
            acted = agent.act(state.agent, keys[0], observation, core, first)
            env_state, timestep = environment.step(keys[1], env_state, acted.action)
            carry = (env_state, timestep.observation, acted.core, timestep.first)
            return carry, (observation, first, acted, timestep._replace(observation=None, first=None))

        carry = (state.environment, state.observation, state.core, state.first)
        carry, (observation, first, acted, timestep) = jax.lax.scan(step, carry, (act_keys, step_keys))
        env_state, last_observation, core, last_first = carry
        timestep: Timestep
        chunk = Chunk(
            observation=observation,
            first=first,
            acted=acted,
            initial_core=state.core,
            reward=timestep.reward,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            valid=timestep.valid,
            final_observation=timestep.final_observation,
            episode=timestep.episode,
            last_observation=last_observation,
            last_first=last_first,
        )
        state = state._replace(
            environment=split(env_state),
            observation=split(last_observation),
            first=last_first,
            core=split(core),
            key=key,
        )
        return state, chunk

    def gather(state: LoopState) -> tuple[LoopState, PyTree, dict[str, Array]]:
        """Collect a chunk, store its roll-outs."""
        state, chunk = collect(state)
        rollouts = agent.process(state.agent, chunk, settings.rollout_length)
        if replay is not None:
            state = state._replace(replay=split_items(replay.add(state.replay, rollouts)))
        if agent.observe is not None:
            learner, core = agent.observe(state.agent, chunk)
            state = state._replace(agent=keep(learner), core=split(core))
        episode = chunk.episode
        done = episode.done.astype(jnp.float32)
        statistics = {
            "episodes": jnp.sum(done),
            "episode_return_sum": jnp.sum(jnp.where(episode.done, episode.episode_return, 0.0)),
            "episode_length_sum": jnp.sum(done * episode.length),
            "reward_mean": jnp.mean(chunk.reward),
        }
        return state, rollouts, statistics

    def iterate(state: LoopState) -> tuple[LoopState, dict[str, Array]]:
        state, rollouts, statistics = gather(state)
        key, sample_key, update_key = jax.random.split(state.key, 3)
        if replay is None:
            sample_key = unrolled_keys(sample_key)
            minibatches = counts.rollouts_per_iteration // counts.rollouts_per_batch
            epochs = counts.updates_per_iteration // minibatches
            choices: Array = minibatch_indices(sample_key, counts.rollouts_per_iteration, minibatches, epochs)
        else:
            choices = jax.random.split(sample_key, counts.updates_per_iteration)

        def update(learner: Any, drawn: tuple[Array, Array]) -> tuple[Any, dict[str, Array]]:
            choice, agent_key = drawn
            if replay is None:
                batch = jax.tree.map(
                    lambda leaf: leaf.at[choice].get(mode="promise_in_bounds", unique_indices=True), rollouts
                )
            else:
                batch = replay.sample(state.replay, choice).experience
            learner, metrics = agent.update(learner, agent_key, split(batch))
            return keep(learner), metrics

        agent_keys = jax.random.split(update_key, counts.updates_per_iteration)
        learner, metrics = jax.lax.scan(update, state.agent, (choices, agent_keys))
        # an update that does not touch the policy reports NaN for what is the policy's
        metrics = {name: jnp.max(value) if name in LARGEST else jnp.nanmean(value) for name, value in metrics.items()}
        done_before = state.iteration * counts.updates_per_iteration // settings.publish_interval
        done_after = (state.iteration + 1) * counts.updates_per_iteration // settings.publish_interval
        published = agent.publish(learner)
        learner = jax.tree.map(lambda new, old: jnp.where(done_after > done_before, new, old), published, learner)
        state = state._replace(agent=learner, key=key, iteration=state.iteration + 1)
        return _strong(state), metrics | statistics

    def init(key: Array) -> LoopState:
        agent_key, environment_key, loop_key = jax.random.split(key, 3)
        env_state, timestep = environment.reset(environment_key)
        state = LoopState(
            agent=keep(agent.init(unrolled_keys(agent_key))),
            environment=split(env_state),
            observation=split(timestep.observation),
            first=timestep.first,
            core=split(agent.initial_core(environment.num_envs)),
            replay=(),
            key=loop_key,
            iteration=jnp.zeros((), jnp.int32),
        )
        if replay is not None:

            def one_chunk(state: LoopState) -> PyTree:
                return agent.process(state.agent, collect(state)[1], settings.rollout_length)

            empty = empty_replay(replay, jax.eval_shape(one_chunk, state))
            state = state._replace(replay=split_items(empty))
        if counts.burn_in_iterations:
            state, _ = jax.lax.scan(lambda s, _: (gather(s)[0], None), state, None, counts.burn_in_iterations)
        return _strong(state)

    def log_interval(state: LoopState) -> tuple[LoopState, dict[str, Array]]:
        state, metrics = jax.lax.scan(lambda s, _: iterate(s), state, None, counts.iterations_per_log)
        return state, summarise(metrics, state.iteration, counts)

    return Loop(counts, init, iterate, log_interval)


def summarise(metrics: dict[str, Array], iteration: Array, counts: Plan) -> dict[str, Array]:
    """One row from the metrics `[I]` of consecutive iterations.

    Means, but for: `episode_return` and `episode_length` (over the episodes that ended; NaN if none did), `episodes` (their
    number), `staleness_max` and `nonfinite` (largest), `steps` (samples so far), `updates`, `reuse` (samples used over
    samples collected, so far).
    """
    totals = {name: jnp.sum(value) for name, value in metrics.items()}
    row = {name: jnp.mean(value) for name, value in metrics.items()}
    episodes = totals["episodes"]
    for name in ("episode_return", "episode_length"):
        total = totals[f"{name}_sum"]
        row[name] = jnp.where(episodes > 0, total / jnp.maximum(episodes, 1.0), jnp.nan)
        del row[f"{name}_sum"]
    updates = (iteration * counts.updates_per_iteration).astype(jnp.float32)
    steps = (iteration + counts.burn_in_iterations).astype(jnp.float32) * counts.samples_per_iteration
    batch = counts.rollouts_per_batch * counts.samples_per_iteration / counts.rollouts_per_iteration
    return row | {
        **{name: jnp.max(metrics[name]) for name in LARGEST if name in metrics},
        "episodes": episodes,
        "steps": steps,
        "updates": updates,
        "reuse": updates * batch / steps,
    }


def make_train(
    make_agent: Callable[..., Agent],
    environment: Environment,
    settings: LoopSettings,
    mesh: Mesh | None = None,
) -> Callable[[Any, Array], TrainResult]:
    """A pure function that trains from start to end.

    Args:
        make_agent: `(config, spec, total_updates=...) -> Agent`, for example `jaxrl_off.agents.make`.
        environment: lanes; must be pure to be vmapped.
        settings: sizes.
        mesh: see `make_loop`.

    Returns:
        `train(config, key) -> TrainResult`. `jax.jit` it; `jax.vmap` it over stacked configs and keys (or use `sweep`).

    Example:
        >>> from jaxrl_off import agents, envs
        >>> settings = LoopSettings(total_steps=1024, collect_length=64, log_points=2)
        >>> train = make_train(agents.make, envs.make("CartPole-v1", num_envs=4), settings)
        >>> result = jax.jit(train)(agents.preset("ppo_gae"), jax.random.key(0))
        >>> result.metrics["steps"]
        Array([ 512., 1024.], dtype=float32)
    """
    counts = plan(settings, environment.num_envs)

    def train(config: Any, key: Array) -> TrainResult:
        agent = make_agent(config, environment.spec, total_updates=counts.total_updates)
        loop = make_loop(agent, environment, settings, mesh)
        state, metrics = jax.lax.scan(lambda s, _: loop.log_interval(s), loop.init(key), None, counts.log_points)
        return TrainResult(state, metrics)

    return train


def without_replay(result: Any) -> Any:
    """A `TrainResult` whose state holds no replay, which would be nearly all of its memory; anything else as it is."""
    return result._replace(state=result.state._replace(replay=())) if isinstance(result, TrainResult) else result


def sweep(
    train: Callable[[Any, Array], Any], configs: Any, keys: Array, *, keep: Callable[[Any], Any] = without_replay
) -> Any:
    """Train a grid in one program: `configs` (leaves `[G]`) against `keys` (`[G]`).

    On an accelerator this is `jax.vmap`; on CPU, and for environments outside JAX, whose steps have an order, the members run
    one after another (`jax.lax.map`). XLA's CPU backend runs batches of small convolutions and matrix products slower than one
    by one.

    Args:
        train: `(config, key) -> result`, of `make_train`.
        configs: of `stack_configs`.
        keys: `[G]`, for example `jax.random.split(jax.random.key(0), G)`.
        keep: what is kept of every member's result. By default all but the replay; `lambda result: result.metrics` for the
            curves alone, `lambda result: result` for everything.

    Returns:
        What `keep` returns, with a leading axis `[G]`.

    Raises:
        ValueError: if configs and keys do not have one leading axis of the same size.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((configs, keys))}
    if sizes != {jnp.shape(keys)[:1]} or sizes == {()}:
        raise ValueError(
            f"a sweep needs one config and one key a member, but leaves of configs and keys have leading axes "
            f"{sorted(sizes)}; stack configs by stack_configs([...]) and give as many keys, jax.random.split(key, count)."
        )

    def member(given: tuple[Any, Array]) -> Any:
        return keep(train(*given))

    if jax.default_backend() == "cpu":
        return jax.lax.map(member, (configs, keys))
    first = jax.tree.map(lambda leaf: leaf[0], (configs, keys))
    if jax.make_jaxpr(member)(first).effects:  # ordered callbacks, which vmap refuses
        return jax.lax.map(member, (configs, keys))
    return jax.vmap(member)((configs, keys))


def stack_configs(configs: list[Any]) -> Any:
    """Stack configs that share their static fields into one with leaves `[G]`, for `sweep`.

    Raises:
        ValueError: if there is none, or they differ in a static field (another program is needed for each).
    """
    structures = {jax.tree.structure(config) for config in configs}
    if not structures:
        raise ValueError("there is no config to stack; give a list of one or more.")
    if len(structures) != 1:
        raise ValueError(
            f"{len(configs)} configs fall into {len(structures)} groups with different static fields; sweep each apart."
        )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves]), *configs)


def _placements(mesh: Mesh | None, num_envs: int, batch: int) -> tuple[Callable[[Any], Any], ...]:
    """How to split lanes and batches over a mesh, to keep the learner on every device, and to split a replay's items."""
    if mesh is None:
        return (lambda tree: tree,) * 3
    size = mesh.shape["data"]
    if num_envs % size or batch % size:
        raise ValueError(
            f"num_envs={num_envs} and the {batch} roll-outs of a batch must be multiples of the {size} devices of the mesh."
        )

    def place(axes: tuple[str | None, ...]) -> Callable[[Any], Any]:
        def put(leaf: Array) -> Array:
            spec = PartitionSpec(*axes[: leaf.ndim]) if leaf.shape[:1] != () else PartitionSpec()
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

        return lambda tree: jax.tree.map(put, tree)

    # flashbax's arrays are [1, items, ...]
    return place(("data",)), place(()), place((None, "data"))


def _strong(tree: PyTree) -> PyTree:
    """Without weak types, which come and go between initialisation, interval and restore; each change costs a compile."""

    def convert(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(convert, tree)
