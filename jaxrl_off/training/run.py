"""A whole training run with an environment in a directory: metrics, progress, evaluation, checkpoints and exact resume.

The steps are those of `make_train`, taken one log interval at a time by the generic driver (`training.driver`). For JAX
environments a run that was killed and resumed ends with the same bits, in parameters and metrics (wall-clock columns apart), as
one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off import agents
from jaxrl_off.agents.base import Agent
from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.envs.base import Environment
from jaxrl_off.training import checkpoints, demonstrated
from jaxrl_off.training.driver import (
    Callback,
    Work,
    claim,
    clear,
    description_text,
    drive,
    write_description,
)
from jaxrl_off.training.environments import lanes_of
from jaxrl_off.training.evaluation import COLUMNS as EVALUATION_COLUMNS
from jaxrl_off.training.evaluation import evaluate, summarise_evaluation
from jaxrl_off.training.loop import Loop, LoopState, make_loop, without_environment
from jaxrl_off.training.metrics import Row, plain_row, require_tensorboardx
from jaxrl_off.training.progress import say
from jaxrl_off.training.settings import LoopSettings, Plan, plan
from jaxrl_off.types import Array


class RunResult(NamedTuple):
    """What `run` returns.

    Attributes:
        state: the last `LoopState`; `state.agent.params` are the parameters. If a finished run of an impure environment
            was only read back, its `environment`, `observation`, `first` and `core` are `()`.
        metrics: the last row of the metrics.
        directory: where everything lies.
    """

    state: LoopState
    metrics: Row
    directory: Path


def run(
    preset_or_config: Any,
    environment: str | Environment | Callable[[int], Environment],
    settings: LoopSettings,
    directory: str | Path,
    *,
    num_envs: int | None = None,
    seed: int = 0,
    environment_parameters: dict[str, Any] | None = None,
    network: Any = None,
    demonstrations: Demonstrations | None = None,
    repair_demonstrations: bool = False,
    reference: str | None = None,
    reference_options: dict[str, Any] | None = None,
    preset_name: str | None = None,
    checkpoint_every: int = 5,
    evaluate_every: int = 0,
    evaluation_episodes: int = 32,
    evaluation_max_steps: int = 27_000,
    evaluation_greedy: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    callback: Callback | None = None,
) -> RunResult:
    """Train an agent, keeping everything in a directory.

    Files: `config.json` (written first), `reference.npz` and `demonstrations.npz` (where there are such; see
    `training.demonstrated`), `metrics.jsonl` and `metrics.csv` (a row per log interval: `summarise`'s columns, `seconds`
    since the start with interruptions left out, and `summarise_evaluation`'s if asked for), `checkpoints/`, and
    `tensorboard/` if asked for. Ctrl-C finishes the log interval, saves a checkpoint and raises; twice stops at once.

    Args:
        preset_or_config: a key of `agents.PRESETS`, or a config with plain numbers.
        environment: a name for `envs.make`; or a factory `num_envs -> Environment`; or an `Environment` itself, whose lanes
            also play the evaluations, so that it must be pure for these. A run with an object is resumed and loaded by giving
            the object again.
        settings: sizes of the loop.
        directory: of the run; made if missing.
        num_envs: lanes; None for those of an `Environment` that is given.
        seed: of everything random; up to rounding, the run is that of `make_train` with `jax.random.key(seed)`.
        environment_parameters: for `envs.make`; must be JSON-able.
        network: a flax module with the contract of `networks.ActorCritic`, in place of the one that a config of the
            divergence-augmented family asks for.
        demonstrations: for agents that learn from them or have a reference policy; refused if `data.demonstrations.check`
            refuses them.
        repair_demonstrations: repair what it can repair instead: mark cut trajectories as truncated, clip actions.
        reference: key of `references.REFERENCES`, for agents with a reference policy. It is fitted to the demonstrations
            before anything else (not again on a resume) and kept in `reference.npz`.
        reference_options: of its constructor; must be JSON-able.
        preset_name: a label for `config.json` where a config is given.
        checkpoint_every: log intervals between checkpoints; the end always gets one. The last two are kept.
        evaluate_every: log intervals between evaluations of the learner's newest parameters; the end gets one too. 0 never
            evaluates.
        evaluation_episodes: whole episodes in an evaluation, played side by side.
        evaluation_max_steps: steps after which they are given up as unfinished.
        evaluation_greedy: whether evaluations take the most probable actions instead of sampled ones.
        resume: go on with the run in `directory`, which must have been started with the same arguments; without a
            checkpoint there it starts from scratch; a finished run is read back.
        overwrite: remove the run that is in `directory`, if there is one, and start again.
        progress: a progress bar on a terminal, otherwise a line per row.
        tensorboard: also write TensorBoard's event files.
        callback: `(row, agent_state) -> stop?`, called after every row with the row of metrics and the learner's state, for
            other loggers, frames, early stopping. Where it returns True, a checkpoint is saved and the run ends there; it can
            be resumed.

    Returns:
        A `RunResult`.

    Raises:
        FileExistsError: if the directory holds a run, and it is neither to be resumed nor overwritten.
        ValueError: for invalid arguments.
        CheckpointError: if the directory holds a run with other arguments, no checkpoint in it can be read, or one
            cannot be written.
        TrainingDiverged: if loss or parameters stop being finite. Checkpoints hold finite states only.
        TrainingInterrupted: after Ctrl-C.
        ImportError: if an optional package is missing.
    """
    directory = Path(directory)
    config, preset_name = _plain_config(preset_or_config, preset_name)
    for name, value, low in (
        ("checkpoint_every", checkpoint_every, 1),
        ("evaluate_every", evaluate_every, 0),
        ("evaluation_episodes", evaluation_episodes, 1),
        ("evaluation_max_steps", evaluation_max_steps, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}.")
    lanes = lanes_of(environment, num_envs, environment_parameters)
    counts = plan(settings, lanes.num_envs)
    identity = {
        "library": "jaxrl_off",
        "version": checkpoints.library_version(),
        **lanes.identity,
        "num_envs": lanes.num_envs,
        "seed": seed,
        "family": agents.family_of(config),
        "config": _described(config),
        **({} if network is None else {"network": str(network)}),
        "settings": dataclasses.asdict(settings),
        **demonstrated.describe(config, demonstrations, repair_demonstrations, reference, reference_options),
        "evaluate_every": evaluate_every,
        "evaluation_episodes": evaluation_episodes,
        "evaluation_max_steps": evaluation_max_steps,
        **({"evaluation_greedy": True} if evaluation_greedy else {}),
    }
    text = description_text(
        identity | {"preset": preset_name, "jax": jax.__version__, "backend": jax.default_backend()}
    )
    if tensorboard:
        require_tensorboardx()
    claim(directory, identity, demonstrated.NAMES, resume=resume, overwrite=overwrite)

    collecting = lanes.open(lanes.num_envs)
    evaluating = None
    try:
        if evaluate_every:
            evaluating = lanes.open(evaluation_episodes)
            if evaluating is collecting and not collecting.pure:
                raise ValueError(
                    "evaluation needs lanes of its own, and the Environment that was given lives outside JAX; give a factory "
                    "num_envs -> Environment, or evaluate_every=0."
                )
        demonstrations = demonstrated.checked(identity, collecting.spec, demonstrations)
        parts = {} if network is None else {"network": network}

        def loop_with(further: dict[str, Any]) -> tuple[Agent, Loop]:
            agent = agents.make(config, collecting.spec, total_updates=counts.total_updates, **parts, **further)
            return agent, make_loop(agent, collecting, settings)

        if not resume:
            # what does not fit together is told before anything is written, removed or fitted
            _, rehearsal = loop_with(demonstrated.stand_in(config, identity, collecting.spec, demonstrations))
            jax.eval_shape(lambda key: rehearsal.iterate(rehearsal.init(key)), jax.random.key(seed))
        if overwrite:
            clear(directory, demonstrated.NAMES)
        if not checkpoints.steps(directory):  # otherwise the newest one must first be found to be of this run
            write_description(directory, text)
        agent, loop = loop_with(
            demonstrated.prepare(directory, config, identity, collecting.spec, demonstrations, progress=progress)
        )
        evaluator = None
        if evaluating is not None:
            evaluator = _Evaluator(agent, evaluating, identity, evaluation_greedy)
        updates_first = getattr(config, "pretrain_updates", 0) + getattr(config, "offline_updates", 0)
        work = _work(loop, agent, collecting, identity, evaluator, config, updates_first if progress else 0)
        driven = drive(
            work,
            directory,
            identity,
            label=collecting.spec.name,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
            tensorboard=tensorboard,
            callback=callback,
        )
        write_description(directory, text)
        return RunResult(driven.state, driven.row, directory)
    finally:
        lanes.close(collecting)
        if evaluating is not None:
            lanes.close(evaluating)


def _work(
    loop: Loop,
    agent: Agent,
    environment: Environment,
    identity: dict[str, Any],
    evaluator: _Evaluator | None,
    config: Any,
    updates_first: int,
) -> Work:
    """A training loop as work for the driver."""
    counts, seed = loop.plan, identity["seed"]
    log_interval = jax.jit(loop.log_interval, donate_argnums=0)

    def begin() -> LoopState:
        if updates_first:
            say(f"{updates_first:,} updates on demonstrations before the first sample ...")
        return jax.jit(loop.init)(jax.random.key(seed))

    def advance(state: LoopState, number: int) -> tuple[LoopState, Row]:
        state, metrics = log_interval(state)
        row = _row(metrics, number, counts)
        if evaluator:
            due = number == counts.log_points or number % identity["evaluate_every"] == 0
            row |= evaluator(state.agent, number, seed, due)
        return state, row

    def revived(state: LoopState) -> LoopState:
        if environment.pure:
            return state
        say(
            f"{environment.spec.name} lives outside JAX and cannot be saved: new episodes start, and the run is not exact."
        )
        key, reset_key = jax.random.split(state.key)
        env_state, timestep = jax.jit(environment.reset)(reset_key)
        core = jax.jit(lambda: agent.initial_core(environment.num_envs))()
        return state._replace(
            environment=env_state, observation=timestep.observation, first=timestep.first, core=core, key=key
        )

    def describe(row: Row) -> str:
        text = f"return {row['episode_return']:.4g}"
        kl = next((name for name in ("kl_to_behaviour", "kl") if name in row), None)
        if kl is not None:
            text += f"  KL {row[kl]:.2g}"
        if not math.isnan(row.get("evaluation_return", math.nan)):
            text += f"  evaluation {row['evaluation_return']:.4g}"
        return text

    def advice(row: Row) -> str:
        return (
            f"Try a lower learning_rate (it was {config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g}), less "
            f"reuse, and see whether the environment's observations and rewards are finite (reward_mean of that row: "
            f"{row['reward_mean']:g}) and small; normalise_observations and normalise_rewards scale them."
        )

    return Work(
        rows=counts.log_points,
        begin=begin,
        like=lambda: jax.eval_shape(loop.init, jax.random.key(seed)),
        advance=advance,
        learner=lambda state: state.agent,
        saved=lambda state: state if environment.pure else without_environment(state),
        revived=revived,
        size=counts.samples_after,
        unit="steps",
        describe=describe,
        diverged=lambda row: row["nonfinite"] > 0,
        advice=advice,
    )


class _Evaluator:
    """Compiled evaluation of a run on lanes of its own."""

    def __init__(self, agent: Agent, lanes: Environment, identity: dict[str, Any], greedy: bool):
        steps = identity["evaluation_max_steps"]
        self._evaluate = jax.jit(
            lambda state, key: evaluate(agent, agent.publish(state), lanes, key, greedy=greedy, max_steps=steps)
        )

    def __call__(self, agent_state: Any, number: int, seed: int, due: bool) -> Row:
        """Columns of this row: numbers if an evaluation is due, NaN otherwise."""
        if not due:
            return dict.fromkeys(EVALUATION_COLUMNS, math.nan)
        # `loop.init` splits the seed's key too, and no split into few makes this branch
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), number)
        return summarise_evaluation(self._evaluate(agent_state, key))


def _described(config: Any) -> dict[str, Any]:
    """Fields of a config for `config.json`; functions by name."""
    fields = dataclasses.asdict(config)
    return {
        name: f"{value.__module__}.{value.__qualname__}" if callable(value) else value for name, value in fields.items()
    }


def _plain_config(given: Any, name: str | None) -> tuple[Any, str | None]:
    """A checked config whose reals are Python floats, and its label."""
    if isinstance(given, str):
        return agents.preset(given), given if name is None else name
    agents.check(given)
    values = {}
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.metadata.get("pytree_node", True):
            if jnp.ndim(value):
                raise ValueError(
                    f"{field.name} has shape {jnp.shape(value)}; run takes one config. Use sweep for many."
                )
            value = float(value)
        values[field.name] = value
    return type(given)(**values), name


def _row(metrics: dict[str, Array], number: int, counts: Plan) -> Row:
    row = plain_row(jax.device_get(metrics))
    # whole numbers: float32 counts samples exactly only up to 2^24
    row["steps"] = counts.samples_after(number)
    row["updates"] = number * counts.iterations_per_log * counts.updates_per_iteration
    return row
