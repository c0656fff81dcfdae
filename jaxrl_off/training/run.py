"""A whole training run in a directory: metrics, progress, evaluation, checkpoints and exact resume.

The steps are those of `make_train`, taken one log interval at a time. For JAX environments a run that was killed and
resumed ends with the same bits, in parameters and metrics (wall-clock columns apart), as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off import agents, envs
from jaxrl_off.agents.base import Agent
from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.envs.base import Environment
from jaxrl_off.training import checkpoints, demonstrated
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.evaluation import COLUMNS as EVALUATION_COLUMNS
from jaxrl_off.training.evaluation import evaluate, summarise_evaluation
from jaxrl_off.training.loop import Loop, LoopState, make_loop
from jaxrl_off.training.metrics import (
    CSV_NAME,
    JSONL_NAME,
    MetricsWriters,
    Row,
    plain_row,
    read_last_row,
    require_tensorboardx,
)
from jaxrl_off.training.progress import Interruption, display, samples_after, say
from jaxrl_off.training.settings import LoopSettings, Plan, plan
from jaxrl_off.training.stored import CONFIG_NAME, LABELS, read_description, write_description
from jaxrl_off.types import Array, PyTree


class TrainingDiverged(ArithmeticError):
    """Loss or parameters stopped being finite; the message says where and what to try."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after saving a checkpoint; the message says how to resume."""


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
    environment_name: str,
    settings: LoopSettings,
    directory: str | Path,
    *,
    num_envs: int,
    seed: int = 0,
    environment_parameters: dict[str, Any] | None = None,
    demonstrations: Demonstrations | None = None,
    repair_demonstrations: bool = False,
    reference: str | None = None,
    reference_options: dict[str, Any] | None = None,
    preset_name: str | None = None,
    checkpoint_every: int = 5,
    evaluate_every: int = 0,
    evaluation_episodes: int = 32,
    evaluation_max_steps: int = 27_000,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> RunResult:
    """Train an agent, keeping everything in a directory.

    Files: `config.json` (written first), `reference.npz` and `demonstrations.npz` (where there are such; see
    `training.demonstrated`), `metrics.jsonl` and `metrics.csv` (a row per log interval: `summarise`'s columns, `seconds`
    since the start with interruptions left out, and `summarise_evaluation`'s if asked for), `checkpoints/`, and
    `tensorboard/` if asked for. Ctrl-C finishes the log interval, saves a checkpoint and raises; twice stops at once.

    Args:
        preset_or_config: a key of `agents.PRESETS`, or a config with plain numbers.
        environment_name: for `envs.make`.
        settings: sizes of the loop.
        directory: of the run; made if missing.
        num_envs: lanes.
        seed: of everything random; up to rounding, the run is that of `make_train` with `jax.random.key(seed)`.
        environment_parameters: for `envs.make`; must be JSON-able.
        demonstrations: for agents that learn from them or have a reference policy; refused if `data.demonstrations.check`
            refuses them.
        repair_demonstrations: repair what it can repair instead: mark cut trajectories as truncated, clip actions.
        reference: key of `references.REFERENCES`, for agents with a reference policy. It is fitted to the demonstrations
            before anything else (not again on a resume) and kept in `reference.npz`.
        reference_options: of its constructor; must be JSON-able.
        preset_name: a label for `config.json` where a config is given.
        checkpoint_every: log intervals between checkpoints; the end always gets one. The last two are kept.
        evaluate_every: log intervals between evaluations of the learner's newest parameters (actions are sampled); the
            end gets one too. 0 never evaluates.
        evaluation_episodes: whole episodes in an evaluation, played side by side.
        evaluation_max_steps: steps after which they are given up as unfinished.
        resume: go on with the run in `directory`, which must have been started with the same arguments; without a
            checkpoint there it starts from scratch; a finished run is read back.
        progress: a progress bar on a terminal, otherwise a line per row.
        tensorboard: also write TensorBoard's event files.

    Returns:
        A `RunResult`.

    Raises:
        FileExistsError: if the directory holds a run and `resume` is False.
        ValueError: for arguments that cannot be meant.
        CheckpointError: if the directory holds a run with other arguments, no checkpoint in it can be read, or one
            cannot be written.
        TrainingDiverged: if loss or parameters stop being finite. Checkpoints hold finite states only.
        TrainingInterrupted: after Ctrl-C.
        ImportError: if an optional package is missing.
    """
    directory = Path(directory)
    config, preset_name = _plain_config(preset_or_config, preset_name)
    for name, value, low in (
        ("num_envs", num_envs, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("evaluate_every", evaluate_every, 0),
        ("evaluation_episodes", evaluation_episodes, 1),
        ("evaluation_max_steps", evaluation_max_steps, 1),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}.")
    counts = plan(settings, num_envs)
    identity = {
        "library": "jaxrl_off",
        "version": checkpoints.library_version(),
        "environment": environment_name,
        "environment_parameters": dict(environment_parameters or {}),
        "num_envs": num_envs,
        "seed": seed,
        "family": agents.family_of(config),
        "config": dataclasses.asdict(config),
        "settings": dataclasses.asdict(settings),
        **demonstrated.describe(config, demonstrations, repair_demonstrations, reference, reference_options),
        "evaluate_every": evaluate_every,
        "evaluation_episodes": evaluation_episodes,
        "evaluation_max_steps": evaluation_max_steps,
    }
    text = _to_json(identity | {"preset": preset_name, "jax": jax.__version__, "backend": jax.default_backend()})
    if tensorboard:
        require_tensorboardx()
    _check_directory(directory, identity, resume)

    environment = envs.make(environment_name, num_envs, **identity["environment_parameters"])
    evaluator = None
    try:
        demonstrations = demonstrated.checked(identity, environment.spec, demonstrations)
        if not resume:
            parts = demonstrated.stand_in(config, identity, environment.spec, demonstrations)
            rehearsal = make_loop(
                agents.make(config, environment.spec, total_updates=counts.total_updates, **parts),
                environment,
                settings,
            )
            # tells what does not fit together before anything is written or fitted
            jax.eval_shape(lambda key: rehearsal.iterate(rehearsal.init(key)), jax.random.key(seed))
        if not checkpoints.steps(directory):  # otherwise the newest one must first be found to be of this run
            write_description(directory, text)
        parts = demonstrated.prepare(directory, config, identity, environment.spec, demonstrations, progress=progress)
        agent = agents.make(config, environment.spec, total_updates=counts.total_updates, **parts)
        loop = make_loop(agent, environment, settings)
        start, state = _begin(directory, loop, agent, environment, identity, resume)
        write_description(directory, text)
        if start == counts.log_points:
            say(f"the run in {directory} is finished; returning what it stored.")
            return RunResult(state, read_last_row(directory) or {}, directory)
        if evaluate_every:
            evaluator = _Evaluator(agent, identity)
        with MetricsWriters(directory, keep_rows=start, tensorboard=tensorboard) as writers:
            shown = display(counts, start, environment_name) if progress else nullcontext(lambda number, row: None)
            before = read_last_row(directory) if start else None
            with Interruption() as interruption, shown as show:
                clock = time.perf_counter() - (before["seconds"] if before else 0.0)
                if state is None:
                    before_first = getattr(config, "pretrain_updates", 0) + getattr(config, "offline_updates", 0)
                    if before_first and progress:
                        say(f"{before_first:,} updates on demonstrations before the first sample ...")
                    state = jax.jit(loop.init)(jax.random.key(seed))
                log_interval = jax.jit(loop.log_interval, donate_argnums=0)
                for number in range(start + 1, counts.log_points + 1):
                    last = number == counts.log_points
                    state, metrics = log_interval(state)
                    row = _row(metrics, number, counts)
                    if evaluator:
                        row |= evaluator(state.agent, number, seed, last or number % evaluate_every == 0)
                    row["seconds"] = round(time.perf_counter() - clock, 3)
                    writers.write(row)
                    show(number, row)
                    if row["nonfinite"] > 0 or not bool(_all_finite(state.agent)):
                        raise TrainingDiverged(_divergence_advice(directory, number, counts, row, config))
                    if last or interruption.asked or number % checkpoint_every == 0:
                        checkpoints.save(directory, number, state, identity, pure=environment.pure)
                    if interruption.asked and not last:
                        raise TrainingInterrupted(
                            f"stopped after {row['steps']} steps; the checkpoint is in {directory}. To go on, start "
                            "the same run with resume=True (command line: the same command with --resume)."
                        )
        return RunResult(state, row, directory)
    finally:
        environment.close()
        if evaluator:
            evaluator.environment.close()


class _Evaluator:
    """Compiled evaluation of a run on lanes of its own."""

    def __init__(self, agent: Agent, identity: dict[str, Any]):
        lanes = envs.make(
            identity["environment"], identity["evaluation_episodes"], **identity["environment_parameters"]
        )
        self.environment = lanes
        steps = identity["evaluation_max_steps"]
        self._evaluate = jax.jit(lambda state, key: evaluate(agent, agent.publish(state), lanes, key, max_steps=steps))

    def __call__(self, agent_state: Any, number: int, seed: int, due: bool) -> Row:
        """Columns of this row: numbers if an evaluation is due, NaN otherwise."""
        if not due:
            return dict.fromkeys(EVALUATION_COLUMNS, math.nan)
        # `loop.init` splits the seed's key too, and no split into few makes this branch
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), number)
        return summarise_evaluation(self._evaluate(agent_state, key))


def _begin(
    directory: Path, loop: Loop, agent: Agent, environment: Environment, identity: dict[str, Any], resume: bool
) -> tuple[int, LoopState | None]:
    """Log intervals that are done, and the state to go on from (None: from scratch)."""
    if not resume:
        return 0, None
    if not checkpoints.steps(directory):
        say(f"no checkpoint in {directory}; starting from scratch.")
        return 0, None
    like = jax.eval_shape(loop.init, jax.random.key(identity["seed"]))
    step, state = checkpoints.restore(directory, like, identity, pure=environment.pure)
    if step == loop.plan.log_points:
        return step, state
    say(f"resuming {directory} after {samples_after(step, loop.plan)} steps.")
    if environment.pure:
        return step, state
    say(
        f"{identity['environment']} lives outside JAX and cannot be saved: new episodes start, and the run is not "
        "exact."
    )
    key, reset_key = jax.random.split(state.key)
    env_state, timestep = jax.jit(environment.reset)(reset_key)
    core = jax.jit(lambda: agent.initial_core(environment.num_envs))()
    return step, state._replace(
        environment=env_state, observation=timestep.observation, first=timestep.first, core=core, key=key
    )


def _check_directory(directory: Path, identity: dict[str, Any], resume: bool) -> None:
    """Refuse to touch another run."""
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give a directory.")
    names = (CONFIG_NAME, JSONL_NAME, CSV_NAME, checkpoints.FOLDER, *demonstrated.NAMES)
    taken = [name for name in names if (directory / name).exists()]
    if not resume:
        if taken:
            raise FileExistsError(
                f"{directory} already holds a run ({', '.join(taken)}). Resume it with resume=True (command line: "
                "--resume), or give another directory."
            )
        return
    description = read_description(directory)
    if description is None and not checkpoints.steps(directory):
        kept = [name for name in demonstrated.NAMES if (directory / name).exists()]
        if kept:
            raise CheckpointError(
                f"{directory} holds {' and '.join(kept)} of a run, but neither its {CONFIG_NAME} nor a checkpoint; give "
                "another directory, or remove them."
            )
    if description is not None:
        stored = {name: value for name, value in description.items() if name not in LABELS}
        checkpoints.check_identity(stored, identity, directory / CONFIG_NAME)
        if description.get("jax") != jax.__version__:
            say(f"the run began with jax {description.get('jax')}, this is {jax.__version__}: bits may differ.")


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
    row["steps"] = samples_after(number, counts)
    row["updates"] = number * counts.iterations_per_log * counts.updates_per_iteration
    return row


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _divergence_advice(directory: Path, number: int, counts: Plan, row: Row, config: Any) -> str:
    kept = checkpoints.steps(directory)
    last = f"the checkpoint after {samples_after(kept[-1], counts)} steps is kept" if kept else "none was saved before"
    return (
        f"training diverged: loss or parameters stopped being finite between {samples_after(number - 1, counts)} and "
        f"{row['steps']} steps (row {number} of {directory / JSONL_NAME}); {last}. Try a lower learning_rate (it was "
        f"{config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g}), less reuse, and see whether the "
        f"environment's rewards are finite (reward_mean of that row: {row['reward_mean']:g})."
    )


def _to_json(description: dict[str, Any]) -> str:
    try:
        return json.dumps(description, indent=2)
    except TypeError as error:
        raise ValueError(
            f"environment_parameters and reference_options must be JSON-able (numbers, strings, lists): {error}"
        ) from error
