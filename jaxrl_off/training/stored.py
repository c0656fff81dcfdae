"""What a run's directory tells of it: the trained agent read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off import agents
from jaxrl_off.agents.base import Agent
from jaxrl_off.envs.base import ContinuousSpace, Environment, EnvironmentSpec
from jaxrl_off.training import checkpoints, demonstrated
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.driver import CONFIG_NAME, LABELS, read_description
from jaxrl_off.training.environments import lanes_of
from jaxrl_off.training.loop import make_loop, without_environment
from jaxrl_off.training.settings import LoopSettings, plan


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


def load_run(
    directory: str | Path,
    *,
    environment: Environment | Callable[[int], Environment] | None = None,
    network: Any = None,
) -> LoadedRun:
    """Read back the agent of a run, finished or not, of this version of the library or an earlier one.

    Args:
        directory: of the run.
        environment: that of the run, if it was given as an object; None if it was given by name.
        network: that of the run, if it was given one.

    Returns:
        A `LoadedRun`, with the newest good checkpoint's parameters.

    Raises:
        CheckpointError: if there is no run, no good checkpoint, or what is stored has another structure than this version of
            the library builds.
        ValueError: if the run needs an object that is not given.
    """
    directory = Path(directory)
    description = read_description(directory)
    if description is None:
        raise CheckpointError(
            f"{directory} holds no run ({CONFIG_NAME} is missing); give the directory of a training run."
        )
    for name, given, stored in (
        ("environment", environment, description.get("environment_object")),
        ("network", network, description.get("network")),
    ):
        if (given is None) != (stored is None):
            raise ValueError(
                f"the run in {directory} was {'not ' if stored is None else ''}given its {name} as an object; "
                f"{'leave ' + name + ' out' if stored is None else 'give it again as ' + name + '='}."
            )
    identity = {name: value for name, value in description.items() if name not in LABELS}
    config = config_of(description["family"], description["config"])
    settings = LoopSettings(**description["settings"])
    lanes = lanes_of(
        description["environment"] if environment is None else environment,
        description["num_envs"],
        description.get("environment_parameters"),
    )
    collecting = lanes.open(lanes.num_envs)
    try:
        counts = plan(settings, collecting.num_envs)
        parts = demonstrated.kept(directory, config, identity) | ({} if network is None else {"network": network})
        agent = agents.make(config, collecting.spec, total_updates=counts.total_updates, **parts)
        like = jax.eval_shape(make_loop(agent, collecting, settings).init, jax.random.key(0))
        like = like if collecting.pure else without_environment(like)
        restored = checkpoints.restore(directory, like, identity)
    finally:
        lanes.close(collecting)
    state = _of_today(restored.state.agent, description, collecting.spec)
    return LoadedRun(agent, config, collecting.spec, state, description, counts.samples_after(restored.step))


# fields of version 0.1 that only settings of other fields made use of, which are refused where they are given
_DROPPED = {"kl_regularised": ("alpha_final",)}


def config_of(family: str, fields: dict[str, Any]) -> Any:
    """The configuration that a description's JSON stands for; fields that it does not name have today's defaults.

    Raises:
        CheckpointError: for a family or a field that this version does not have, or a field that is a function.
    """
    if family not in agents.FAMILIES:
        raise CheckpointError(f"unknown family {family!r}; known are {', '.join(agents.FAMILIES)}. Register it first.")
    kind = agents.FAMILIES[family].config
    fields = {name: value for name, value in fields.items() if name not in _DROPPED.get(family, ())}
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise CheckpointError(
            f"{kind.__name__} of this version has no field {', '.join(unknown)}; load the run with the version that wrote it."
        )

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        if isinstance(value, str) and isinstance(known[name].default, float):
            return float(value)  # "Infinity", which JSON has no number for
        return value

    return kind(**{name: plain(name, value) for name, value in fields.items()})


def _of_today(state: Any, description: dict[str, Any], spec: EnvironmentSpec) -> Any:
    """The learner of a run of version 0.1, whose Gaussian policies of the PPO family acted in the environment's own units.

    Policies act in [-1, 1]^D since, which is mapped to the box: `mean -> (mean - middle) / half`, `std -> std / half`.
    """
    old = description.get("version", "").startswith("0.1.") and description["family"] == "divergence_augmented"
    if not old or not isinstance(spec.action_space, ContinuousSpace):
        return state
    low, high = np.asarray(spec.action_space.low), np.asarray(spec.action_space.high)
    middle, half = jnp.asarray((low + high) / 2.0, jnp.float32), jnp.asarray((high - low) / 2.0, jnp.float32)

    def changed(params: Any) -> Any:
        head = params["network"]["policy_head"]
        head = head | {"kernel": head["kernel"] / half, "bias": (head["bias"] - middle) / half}
        network = params["network"] | {"policy_head": head, "log_std": params["network"]["log_std"] - jnp.log(half)}
        return params | {"network": network}

    return state._replace(params=changed(state.params), actor_params=changed(state.actor_params))
