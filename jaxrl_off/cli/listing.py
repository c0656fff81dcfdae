"""`jaxrl-off list` and `jaxrl-off reproduce`."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal

import tyro

from jaxrl_off.cli import common
from jaxrl_off.cli.common import table


@dataclasses.dataclass
class List:
    """List presets, environments, reference policies or regimes."""

    what: tyro.conf.Positional[Literal["all", "presets", "environments", "references", "regimes"]] = "all"
    """What to list."""


@dataclasses.dataclass
class Reproduce:
    """Run the scripts in `benchmarks/` of the source checkout that the current directory is in."""

    preset: Literal["quick", "cpu", "gpu", "paper"] = "quick"
    """How much: minutes on a laptop up to the papers' own sizes."""
    paper: str | None = None
    """Only this paper, for example dapo."""


def list_choices(options: List) -> int:
    """Run the command."""
    everything = options.what == "all"
    if everything or options.what == "presets":
        from jaxrl_off.agents import FAMILIES

        for name, family in FAMILIES.items():
            rows = [
                (preset, ", ".join(f"{key}={value}" for key, value in fields.items()) or "the defaults")
                for preset, fields in family.presets.items()
            ]
            table(f"presets: {name}", ("name", f"differs from {family.config.__name__}'s defaults in"), rows)
    if everything or options.what == "environments":
        from jaxrl_off.envs import families

        rows = []
        for family in families:
            try:
                rows.append((family, _names(family)))
            except ImportError as error:
                rows.append((family, str(error)))
        table("environments", ("family", "names"), rows)
    if everything or options.what == "references":
        from jaxrl_off.references import REFERENCES

        rows = [
            (
                name,
                ", ".join(
                    f"{option.name}={option.default!r}" for option in inspect.signature(make).parameters.values()
                ),
            )
            for name, make in REFERENCES.items()
        ]
        table("references", ("name", "options"), rows)
    if everything or options.what == "regimes":
        from jaxrl_off.training import REGIMES

        rows = []
        for name, regime in REGIMES.items():
            sizes = {"num_envs": regime.num_envs} | dataclasses.asdict(regime.settings)
            rows.append((name, "\n".join(f"{key}={value}" for key, value in sizes.items()), regime.source))
        table("regimes", ("name", "sizes", "source"), rows)
    return 0


def reproduce(options: Reproduce) -> int:
    """Run the command."""
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
    names = common.registered(family)
    if family == "gymnasium":  # most of more than a thousand are Atari under other names
        return f"gymnasium/ID for each of Gymnasium's {len(names)} ids, for example gymnasium/HalfCheetah-v5"
    prefix = "" if family == "gymnax" else f"{family}/"
    return ", ".join(prefix + name for name in names)
