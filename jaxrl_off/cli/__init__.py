"""The command line: `jaxrl-off train | evaluate | collect | estimate | list | reproduce`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from jaxrl_off.cli.collect import Collect, collect
from jaxrl_off.cli.common import in_flags
from jaxrl_off.cli.estimate import EstimateBandit, estimate_bandit
from jaxrl_off.cli.estimate_trajectories import EstimateTrajectories, estimate_trajectories
from jaxrl_off.cli.listing import List, Reproduce, list_choices, reproduce
from jaxrl_off.cli.training import Evaluate, Train, evaluate, train

__all__ = ["main"]

# jax is imported by the commands that need it, so that `--help` answers at once


@dataclasses.dataclass
class Estimate:
    """Estimate the value of a policy from logged data: single decisions (bandit), or trajectories."""

    data: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[EstimateBandit, tyro.conf.subcommand("bandit")]
            | Annotated[EstimateTrajectories, tyro.conf.subcommand("trajectories")]
        ]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `jaxrl-off`.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        Exit code: 0, 2 if what was asked for is invalid (one message says why), 130 after Ctrl-C. `reproduce` hands on the
        code of its script.
    """
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "evaluate": Evaluate,
        "collect": Collect,
        "estimate": Estimate,
        "list": List,
        "reproduce": Reproduce,
    }
    chosen = tyro.extras.subcommand_cli_from_dict(
        commands, args=arguments, prog="jaxrl-off", description="Off-policy learning and evaluation."
    )
    handlers: dict[type, Callable[[Any], int]] = {
        Train: train,
        Evaluate: evaluate,
        Collect: collect,
        EstimateBandit: estimate_bandit,
        EstimateTrajectories: estimate_trajectories,
        List: list_choices,
        Reproduce: reproduce,
    }
    chosen = chosen.data if isinstance(chosen, Estimate) else chosen
    try:
        return handlers[type(chosen)](chosen)
    except (ValueError, ImportError, ArithmeticError, OSError) as error:
        print(f"jaxrl-off: {in_flags(str(error), chosen)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"jaxrl-off: {interruption or 'stopped.'}", file=sys.stderr)
        return 130
