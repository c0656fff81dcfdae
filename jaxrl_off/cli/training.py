"""`jaxrl-off train` and `jaxrl-off evaluate`."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxrl_off.cli.collect import read_demonstrations
from jaxrl_off.cli.common import check_choice, check_environment, json_object, table

_SETTINGS = (
    "num_envs",
    "total_steps",
    "collect_length",
    "rollout_length",
    "batch_size",
    "reuse",
    "replay_capacity",
    "publish_interval",
    "burn_in",
    "log_points",
)


@dataclasses.dataclass
class Train:
    """Train an agent. All files go to one directory, from which `--resume` continues a run that was stopped.

    Options that are not given have the values of the preset or the regime.
    """

    directory: Path
    """Directory of the run; made if missing."""
    preset: str = "ppo_da"
    """Algorithm: see `jaxrl-off list presets`."""
    config: tuple[str, ...] = ()
    """Fields of the algorithm's configuration that differ from the preset, for example learning_rate=1e-3 core_size=128."""
    env: str = "Breakout-MinAtar"
    """Environment: see `jaxrl-off list environments`."""
    regime: str = "data_scarce"
    """How data are collected and reused: see `jaxrl-off list regimes`."""
    seed: int = 0
    """Random seed."""
    overwrite: bool = False
    """Remove the run that is in the directory, and start again."""
    resume: bool = False
    """Continue the run in the directory; the other options must be the same as before."""
    env_parameters: str = "{}"
    """Parameters of the environment as JSON, for example '{"protocol": "dapo"}'."""
    demonstrations: str | None = None
    """Demonstrations to learn from: an .npz file, or minari:ID."""
    trajectories: int | None = None
    """Use only this many demonstrated trajectories, the first ones."""
    repair_demonstrations: bool = False
    """Mark cut trajectories as truncated, and clip actions to the environment's box."""
    reference: str | None = None
    """Reference policy fitted to the demonstrations: see `jaxrl-off list references`."""
    reference_options: str = "{}"
    """Options of the reference policy as JSON, for example '{"kernel": "matern12"}'."""
    checkpoint_every: int = 5
    """Rows of metrics between checkpoints."""
    evaluate_every: int = 0
    """Rows of metrics between evaluations; 0 never evaluates."""
    evaluation_episodes: int = 32
    """Whole episodes in an evaluation."""
    tensorboard: bool = False
    """Also write event files for TensorBoard."""
    quiet: bool = False
    """Do not print progress."""

    num_envs: int | None = None
    """Lanes side by side."""
    total_steps: int | None = None
    """Samples to collect."""
    collect_length: int | None = None
    """Decisions per lane and iteration."""
    rollout_length: int | None = None
    """Decisions per roll-out."""
    batch_size: int | None = None
    """Samples per optimiser step."""
    reuse: float | None = None
    """How often a sample is used on average."""
    replay_capacity: int | None = None
    """Samples kept; 0 means fresh data only."""
    publish_interval: int | None = None
    """Updates between publications of the policy to the actors."""
    burn_in: int | None = None
    """Samples before the first update."""
    log_points: int | None = None
    """Rows of metrics."""


@dataclasses.dataclass
class Evaluate:
    """Play whole episodes with the agent of a run and report their mean return."""

    directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    episodes: int = 100
    """Whole episodes, played side by side."""
    greedy: bool = False
    """Take the most probable actions instead of sampled ones."""
    seed: int = 0
    """Random seed of the episodes."""
    max_steps: int = 27_000
    """Largest number of steps of an episode; longer episodes are reported as unfinished and not in the mean."""


def train(options: Train) -> int:
    """Run the command."""
    from jaxrl_off import agents, training

    given = {name: value for name, value in vars(options).items() if value is not None}
    check_choice("preset", options.preset, list(agents.PRESETS))
    check_environment(options.env)
    chosen = training.regime(options.regime, **{name: given[name] for name in _SETTINGS if name in given})
    config = agents.preset(options.preset, **_config_fields(agents.preset(options.preset), options.config))
    result = training.run(
        config,
        options.env,
        chosen.settings,
        options.directory,
        num_envs=chosen.num_envs,
        seed=options.seed,
        environment_parameters=json_object("--env-parameters", options.env_parameters),
        demonstrations=read_demonstrations(options.demonstrations, options.trajectories),
        repair_demonstrations=options.repair_demonstrations,
        reference=options.reference,
        reference_options=json_object("--reference-options", options.reference_options),
        preset_name=options.preset,
        checkpoint_every=options.checkpoint_every,
        evaluate_every=options.evaluate_every,
        evaluation_episodes=options.evaluation_episodes,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
    )
    names = ("steps", "episode_return", "evaluation_return", "kl_to_behaviour", "kl", "seconds")
    rows = [(name, f"{result.metrics[name]:.6g}") for name in names if name in result.metrics]
    table(f"{options.preset} on {options.env}: {result.directory}", ("last row", ""), rows)
    return 0


def _config_fields(config: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` as fields of `config`, each of the type that the field has there."""
    fields: dict[str, Any] = {}
    known = {field.name for field in dataclasses.fields(config)}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--config takes name=value, got {item!r}.")
        # an unknown name is told by `preset`
        now = getattr(config, name) if name in known else ""
        try:
            if isinstance(now, bool):
                fields[name] = {"true": True, "false": False}[text.lower()]
            elif now is None:  # separate_critic
                fields[name] = {"true": True, "false": False, "none": None}[text.lower()]
            elif isinstance(now, tuple):
                fields[name] = tuple(int(part) for part in text.split(",") if part)
            else:
                fields[name] = type(now)(text)
        except (ValueError, KeyError) as error:
            expected = {
                bool: "true or false",
                type(None): "true, false or none",
                tuple: "whole numbers with commas between",
            }
            kind = expected.get(type(now), {int: "a whole number", float: "a number"}.get(type(now), "text"))
            raise ValueError(f"{name} must be {kind}, got {text!r}.") from error
    return fields


def evaluate(options: Evaluate) -> int:
    """Run the command."""
    import jax

    from jaxrl_off import envs, training

    for name in ("episodes", "max_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    loaded = training.load_run(options.directory)
    described = loaded.description
    lanes = envs.make(described["environment"], options.episodes, **described["environment_parameters"])

    @jax.jit
    def play(state: Any, key: jax.Array) -> training.Evaluation:
        published = loaded.agent.publish(state)
        return training.evaluate(
            loaded.agent, published, lanes, key, greedy=options.greedy, max_steps=options.max_steps
        )

    try:
        numbers = training.summarise_evaluation(play(loaded.agent_state, jax.random.key(options.seed)))
    finally:
        lanes.close()
    mean, error = numbers["evaluation_return"], numbers["evaluation_standard_error"]
    rows = [
        ("return", "no episode finished" if math.isnan(mean) else f"{mean:.6g}"),
        ("standard error", f"{error:.3g}"),
        ("length", f"{numbers['evaluation_length']:.6g}"),
        ("episodes finished", str(numbers["evaluation_episodes"])),
        ("unfinished", str(numbers["evaluation_unfinished"])),
        ("actions", "greedy" if options.greedy else "sampled"),
        ("trained for", f"{loaded.steps:,} steps"),
    ]
    table(f"{described['environment']}: {options.directory}", ("evaluation", ""), rows)
    if numbers["evaluation_unfinished"]:
        print(
            f"jaxrl-off: {numbers['evaluation_unfinished']} of {options.episodes} episodes did not end within "
            f"{options.max_steps} steps and are not in the mean; raise --max-steps.",
            file=sys.stderr,
        )
    return 0
