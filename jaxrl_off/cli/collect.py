"""`jaxrl-off collect`: demonstrations from a trained agent or a policy file; and how the other commands read them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxrl_off.cli.common import check_environment, json_object, table

if TYPE_CHECKING:
    from jaxrl_off.data.demonstrations import Demonstrations


@dataclasses.dataclass
class Collect:
    """Record demonstrations from the agent of a run, or from a policy file, in whole episodes.

    The output is an .npz file, or a Minari data set for `minari:NAME-v0`; existing files are not overwritten. With
    `--kind trajectories` the agent's sampled actions are recorded with their log-probabilities, for `estimate trajectories`.
    """

    output: tyro.conf.Positional[str]
    """Output: a path that ends in .npz, or minari:NAME-v0."""
    kind: Literal["demonstrations", "trajectories"] = "demonstrations"
    """What is recorded."""
    run: Path | None = None
    """Directory of the run whose agent acts."""
    policy: Path | None = None
    """Policy file (.npz) that acts instead of a run; needs --env."""
    env: str | None = None
    """Environment: see `jaxrl-off list environments`; by default that of the run."""
    env_parameters: str | None = None
    """Parameters of the environment as JSON; by default those of the run."""
    episodes: int = 25
    """Whole episodes to record."""
    num_envs: int = 5
    """Lanes side by side."""
    greedy: bool = False
    """Take the most probable actions instead of sampled ones; a policy file acts without its noise."""
    min_return: float | None = None
    """Keep only episodes that earn at least this much, and record until there are enough."""
    max_steps: int = 27_000
    """Largest number of steps of each lane; recording fails if it needs more."""
    horizon: int = 1000
    """Largest number of steps of a trajectory (with --kind trajectories); longer episodes are cut."""
    seed: int = 0
    """Random seed of the episodes."""


def collect(options: Collect) -> int:
    """Run the command."""
    import jax

    from jaxrl_off import envs, training
    from jaxrl_off.data.demonstrations import episode_returns, save
    from jaxrl_off.data.minari_files import check_new_id, to_minari
    from jaxrl_off.data.policy_files import load_policy

    if (options.run is None) == (options.policy is None):
        raise ValueError("give either --run DIRECTORY or --policy FILE.")
    if options.kind == "trajectories" and (options.run is None or options.greedy or options.min_return is not None):
        raise ValueError(
            "--kind trajectories records the sampled actions of a run, all of them: give --run, and neither --policy, --greedy "
            "nor --min-return."
        )
    dataset = _minari_name(options.output)
    if dataset is not None and options.kind == "trajectories":
        raise ValueError(f"trajectories are written to .npz files, got {options.output!r}.")
    if dataset is None and not options.output.endswith(".npz"):
        raise ValueError(f"the output must end in .npz or be minari:NAME-v0, got {options.output!r}.")
    if dataset is None and Path(options.output).exists():
        raise ValueError(f"{options.output} exists and is not overwritten; give another name.")
    if dataset is not None:
        check_new_id(dataset)
    if options.episodes < 1 or options.num_envs < 1:
        raise ValueError(
            f"--episodes and --num-envs must be at least 1, got {options.episodes} and {options.num_envs}."
        )
    if options.kind == "trajectories":
        return _collect_trajectories(options)
    name, parameters = options.env, {}
    if options.run is not None:
        loaded = training.load_run(options.run)
        acting = training.policy_of(loaded.agent, loaded.agent.publish(loaded.agent_state), greedy=options.greedy)
        name = name or loaded.description["environment"]
        parameters = loaded.description["environment_parameters"]
    else:
        acting = training.policy_of_file(load_policy(options.policy), noise=0.0 if options.greedy else 1.0)
    if name is None:
        raise ValueError("a policy file does not say where it acts: give --env.")
    check_environment(name)
    if options.env_parameters is not None:
        parameters = json_object("--env-parameters", options.env_parameters)
    lanes = envs.make(name, min(options.num_envs, options.episodes), **parameters)
    least = options.min_return
    try:
        demonstrations = training.collect(
            acting,
            lanes,
            jax.random.key(options.seed),
            episodes=options.episodes,
            max_steps=options.max_steps,
            keep=None if least is None else lambda episode_return, length: episode_return >= least,
        )
    finally:
        lanes.close()
    if dataset is None:
        save(demonstrations, options.output)
    else:
        source = f"the run {options.run}" if options.run is not None else f"the policy file {options.policy}"
        actions = "greedy" if options.greedy else "sampled"
        to_minari(demonstrations, dataset, lanes.spec, description=f"{name}, {actions} actions of {source}")
    returns = episode_returns(demonstrations)
    rows = [
        ("episodes", str(len(returns))),
        ("steps", f"{len(demonstrations.episode):,}"),
        ("return, mean", f"{returns.mean():.6g}"),
        ("return, least and most", f"{returns.min():.6g} to {returns.max():.6g}"),
    ]
    table(f"{name}: {options.output}", ("recorded", ""), rows)
    return 0


def _collect_trajectories(options: Collect) -> int:
    import jax
    import numpy as np

    from jaxrl_off import envs, training
    from jaxrl_off.data.trajectories import save

    loaded = training.load_run(options.run)
    policy = training.policy_functions(loaded.config, loaded.spec, loaded.agent.publish(loaded.agent_state))
    name, parameters = options.env or loaded.description["environment"], loaded.description["environment_parameters"]
    check_environment(name)
    if options.env_parameters is not None:
        parameters = json_object("--env-parameters", options.env_parameters)
    lanes = envs.make(name, min(options.num_envs, options.episodes), **parameters)
    sizes = dict(episodes=options.episodes, horizon=options.horizon)
    try:
        recorded = training.roll_out(policy.act, lanes, jax.random.key(options.seed), **sizes)
    finally:
        lanes.close()
    save(recorded, options.output)
    returns = np.asarray(recorded.rewards).sum(axis=1)
    rows = [
        ("trajectories", str(len(returns))),
        ("steps", f"{int(np.asarray(recorded.mask).sum()):,}"),
        ("return, mean", f"{returns.mean():.6g}"),
        ("return, least and most", f"{returns.min():.6g} to {returns.max():.6g}"),
    ]
    table(f"{name}: {options.output}", ("recorded", ""), rows)
    return 0


def read_demonstrations(source: str | None, trajectories: int | None) -> Demonstrations | None:
    """Demonstrations as options name them, the first so many trajectories of them.

    Args:
        source: a path of `data.demonstrations.load`, or `minari:ID`.
        trajectories: how many; None for all.
    """
    if source is None:
        if trajectories is not None:
            raise ValueError("--trajectories goes with --demonstrations.")
        return None
    from jaxrl_off.data.demonstrations import load, subset
    from jaxrl_off.data.minari_files import from_minari

    dataset = _minari_name(source)
    demonstrations: Any = load(source) if dataset is None else from_minari(dataset)
    return demonstrations if trajectories is None else subset(demonstrations, number=trajectories)


def _minari_name(text: str) -> str | None:
    match = re.fullmatch(r"minari:(.+)", text)
    return match[1] if match else None
