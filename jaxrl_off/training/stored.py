"""What a run's directory tells of it: its description in `config.json`, and the trained agent read back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl_off import agents, envs
from jaxrl_off.agents.base import Agent
from jaxrl_off.envs.base import EnvironmentSpec
from jaxrl_off.training import checkpoints, demonstrated
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.loop import make_loop
from jaxrl_off.training.progress import samples_after
from jaxrl_off.training.settings import LoopSettings, plan

CONFIG_NAME = "config.json"
LABELS = ("preset", "jax", "backend")


class LoadedRun(NamedTuple):
    """A trained agent read back from a run's directory.

    Attributes:
        agent: as the run built it.
        config: of the agent.
        spec: of its environment.
        agent_state: of the newest good checkpoint.
        description: the run's `config.json`.
        steps: samples behind the state.
    """

    agent: Agent
    config: Any
    spec: EnvironmentSpec
    agent_state: Any
    description: dict[str, Any]
    steps: int


def load_run(directory: str | Path) -> LoadedRun:
    """Read back the agent of a run, finished or not.

    Args:
        directory: of the run.

    Returns:
        A `LoadedRun`, with the newest good checkpoint's parameters.

    Raises:
        CheckpointError: if there is no run, no good checkpoint, or it was written by another version of the library.
    """
    directory = Path(directory)
    description = read_description(directory)
    if description is None:
        raise CheckpointError(
            f"{directory} holds no run ({CONFIG_NAME} is missing); give the directory of a training run."
        )
    identity = {name: value for name, value in description.items() if name not in LABELS}
    checkpoints.check_identity(identity, identity | {"version": checkpoints.library_version()}, directory)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description["config"].items()}
    config = agents.FAMILIES[description["family"]].config(**fields)
    settings = LoopSettings(**description["settings"])
    environment = envs.make(
        description["environment"], description["num_envs"], **description["environment_parameters"]
    )
    try:
        counts = plan(settings, environment.num_envs)
        parts = demonstrated.kept(directory, config, identity)
        agent = agents.make(config, environment.spec, total_updates=counts.total_updates, **parts)
        like = jax.eval_shape(make_loop(agent, environment, settings).init, jax.random.key(0))
        restored = checkpoints.restore(directory, like, identity, pure=environment.pure)
    finally:
        environment.close()
    return LoadedRun(
        agent, config, environment.spec, restored.state.agent, description, samples_after(restored.step, counts)
    )


def read_description(directory: Path) -> dict[str, Any] | None:
    """Content of `config.json`, or None where there is none.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path = directory / CONFIG_NAME
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        description["family"], description["config"], description["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete it and resume with the "
            "arguments the run was started with."
        ) from error
    return description


def write_description(directory: Path, text: str) -> None:
    """Write `config.json`, whole, where there is none yet; the directory is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG_NAME
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
