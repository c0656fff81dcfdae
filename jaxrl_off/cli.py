"""The command line: `jaxrl-off train | evaluate | list | reproduce`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

# jax is imported by the commands that need it, so that `--help` answers at once

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
    """Train an agent; everything it writes goes to a directory, and `--resume` goes on where it stopped.

    What is left at None comes from the preset or the regime.
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
    """Of everything random."""
    resume: bool = False
    """Go on with the run in the directory; the other options must be as they were."""
    env_parameters: str = "{}"
    """Parameters of the environment as JSON, for example '{"protocol": "dapo"}'."""
    checkpoint_every: int = 5
    """Rows of metrics between checkpoints."""
    evaluate_every: int = 0
    """Rows of metrics between evaluations; 0 never evaluates."""
    evaluation_episodes: int = 32
    """Whole episodes in an evaluation."""
    tensorboard: bool = False
    """Also write event files for TensorBoard."""
    quiet: bool = False
    """No progress."""

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
    """Play whole episodes with the agent of a run and report what they are worth."""

    directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    episodes: int = 100
    """Whole episodes, played side by side."""
    greedy: bool = False
    """The most probable actions instead of sampled ones."""
    seed: int = 0
    """Of the episodes."""
    max_steps: int = 27_000
    """Steps after which an episode is given up; such episodes are reported as unfinished."""


@dataclasses.dataclass
class List:
    """Say what there is to choose from."""

    what: tyro.conf.Positional[Literal["all", "presets", "environments", "regimes"]] = "all"
    """Which list."""


@dataclasses.dataclass
class Reproduce:
    """Run the scripts in `benchmarks/` of the source checkout that the current directory is in."""

    preset: Literal["quick", "cpu", "gpu", "paper"] = "quick"
    """How much: minutes on a laptop up to the papers' own sizes."""
    paper: str | None = None
    """Only this paper, for example dapo."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `jaxrl-off`.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        Exit code: 0, 2 for mistakes in what was asked (told in one message), 130 after Ctrl-C. `reproduce` hands on the
        code of its script.
    """
    commands = {"train": Train, "evaluate": Evaluate, "list": List, "reproduce": Reproduce}
    chosen = tyro.extras.subcommand_cli_from_dict(
        commands, args=arguments, prog="jaxrl-off", description="Learn from, and judge policies with, off-policy data."
    )
    handlers = {Train: _train, Evaluate: _evaluate, List: _list, Reproduce: _reproduce}
    try:
        return handlers[type(chosen)](chosen)
    except (ValueError, ImportError, ArithmeticError, OSError) as error:
        print(f"jaxrl-off: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"jaxrl-off: {interruption or 'stopped.'}", file=sys.stderr)
        return 130


def _train(options: Train) -> int:
    from jaxrl_off import agents, training

    given = {name: value for name, value in vars(options).items() if value is not None}
    _check_choice("preset", options.preset, list(agents.PRESETS))
    _check_environment(options.env)
    chosen = training.regime(options.regime, **{name: given[name] for name in _SETTINGS if name in given})
    config = agents.preset(options.preset, **_config_fields(agents.preset(options.preset), options.config))
    try:
        parameters = json.loads(options.env_parameters)
    except ValueError as error:
        raise ValueError(
            f"--env-parameters must be a JSON object, got {options.env_parameters!r} ({error})."
        ) from error
    if not isinstance(parameters, dict):
        raise ValueError(f"--env-parameters must be a JSON object, got {options.env_parameters!r}.")
    result = training.run(
        config,
        options.env,
        chosen.settings,
        options.directory,
        num_envs=chosen.num_envs,
        seed=options.seed,
        environment_parameters=parameters,
        preset_name=options.preset,
        checkpoint_every=options.checkpoint_every,
        evaluate_every=options.evaluate_every,
        evaluation_episodes=options.evaluation_episodes,
        resume=options.resume,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
    )
    names = ("steps", "episode_return", "evaluation_return", "kl_to_behaviour", "kl", "seconds")
    rows = [(name, f"{result.metrics[name]:.6g}") for name in names if name in result.metrics]
    _table(f"{options.preset} on {options.env}: {result.directory}", ("last row", ""), rows)
    return 0


def _config_fields(config: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` as fields of `config`, each of the type that the field has there."""
    fields = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--config takes name=value, got {item!r}.")
        now = getattr(config, name, "")  # an unknown name is told by `preset`
        try:
            if isinstance(now, bool):
                fields[name] = {"true": True, "false": False}[text.lower()]
            elif isinstance(now, tuple):
                fields[name] = tuple(int(part) for part in text.split(",") if part)
            else:
                fields[name] = type(now)(text)
        except (ValueError, KeyError) as error:
            expected = {bool: "true or false", tuple: "whole numbers with commas between"}
            kind = expected.get(type(now), {int: "a whole number", float: "a number"}.get(type(now), "text"))
            raise ValueError(f"{name} must be {kind}, got {text!r}.") from error
    return fields


def _evaluate(options: Evaluate) -> int:
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
    _table(f"{described['environment']}: {options.directory}", ("evaluation", ""), rows)
    if numbers["evaluation_unfinished"]:
        print(
            f"jaxrl-off: {numbers['evaluation_unfinished']} of {options.episodes} episodes did not end within "
            f"{options.max_steps} steps and are not in the mean; raise --max-steps.",
            file=sys.stderr,
        )
    return 0


def _list(options: List) -> int:
    everything = options.what == "all"
    if everything or options.what == "presets":
        from jaxrl_off.agents import FAMILIES

        for name, family in FAMILIES.items():
            rows = [
                (preset, ", ".join(f"{key}={value}" for key, value in fields.items()) or "the defaults")
                for preset, fields in family.presets.items()
            ]
            _table(f"presets: {name}", ("name", f"differs from {family.config.__name__}'s defaults in"), rows)
    if everything or options.what == "environments":
        from jaxrl_off.envs import families

        rows = []
        for family in families:
            try:
                rows.append((family, _names(family)))
            except ImportError as error:
                rows.append((family, str(error)))
        _table("environments", ("family", "names"), rows)
    if everything or options.what == "regimes":
        from jaxrl_off.training import REGIMES

        rows = []
        for name, regime in REGIMES.items():
            sizes = {"num_envs": regime.num_envs} | dataclasses.asdict(regime.settings)
            rows.append((name, "\n".join(f"{key}={value}" for key, value in sizes.items()), regime.source))
        _table("regimes", ("name", "sizes", "source"), rows)
    return 0


def _reproduce(options: Reproduce) -> int:
    here = Path.cwd()
    # a folder without __init__.py would lose against any installed package of its name
    files = ("benchmarks/__init__.py", "benchmarks/reproduce.py")
    roots = [folder for folder in (here, *here.parents) if all((folder / file).is_file() for file in files)]
    if not roots:
        raise ValueError(
            f"found no benchmarks/reproduce.py in {here} or above; benchmarks are scripts of the source checkout, "
            "not part of the installed package: clone the repository and call this from inside it."
        )
    command = [sys.executable, "-m", "benchmarks.reproduce", "--preset", options.preset]
    if options.paper is not None:
        command += ["--paper", options.paper]
    return subprocess.run(command, cwd=roots[0], check=False).returncode


def _names(family: str) -> str:
    """What `list environments` shows of a family."""
    names = _registered(family)
    if family == "gymnasium":  # most of more than a thousand are Atari under other names
        return f"gymnasium/ID for each of Gymnasium's {len(names)} ids, for example gymnasium/HalfCheetah-v5"
    prefix = "" if family == "gymnax" else f"{family}/"
    return ", ".join(prefix + name for name in names)


def _registered(family: str) -> list[str]:
    from jaxrl_off.envs import families

    return importlib.import_module(families[family]).registered()


def _check_environment(name: str) -> None:
    """Suggest close names over all families before anything is built."""
    from jaxrl_off.envs import families

    family, _, identifier = name.partition("/") if "/" in name else ("gymnax", "/", name)
    if family == "gymnasium":
        return  # takes more than its registry: ids without version, "module:id"
    if family in families and identifier in _registered(family):
        return
    known = []
    for other in families:
        try:
            known += [identifier if other == "gymnax" else f"{other}/{identifier}" for identifier in _registered(other)]
        except ImportError:
            continue
    _check_choice("environment", name, known)


def _check_choice(kind: str, given: str, known: list[str]) -> None:
    if given in known:
        return
    by_lower = {name.lower(): name for name in known}
    close = [by_lower[name] for name in difflib.get_close_matches(given.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"unknown {kind} {given!r}; {hint}`jaxrl-off list {kind}s` shows them all.")


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print(title)  # rich would break it at the table's width
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
