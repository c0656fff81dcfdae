"""The configuration of the natural policy gradient and its presets: NPG, and DAPG with demonstrations."""

from __future__ import annotations

import math
from typing import Any

import flax.struct

from jaxrl_off.agents.normalisation import refuse_normalised_demonstrations
from jaxrl_off.pytrees import POSITIVE, build, check_ranges, static


@flax.struct.dataclass
class DapgConfig:
    """Natural policy gradient with or without demonstrations.

    Defaults are those of the authors' configuration file for the hand tasks. Switches and sizes are static; the reals are
    pytree leaves and may be swept.

    Attributes:
        with_demonstrations: whether the policy is cloned from demonstrations and its gradient augmented by them. With
            `demonstration_weight=0` it is cloned only.
        policy_sizes: widths of the policy's hidden layers, tanh.
        value_sizes: of the value function's, ReLU.
        cg_iterations: of the conjugate gradients that stand for F^-1.
        value_epochs: passes over the batch in which the value function is fitted.
        value_batch: samples in each of their minibatches.
        cloning_epochs: passes over the demonstrations in which the first policy is cloned; 0 only takes over their scale.
        cloning_batch: demonstrated actions in each of their minibatches.
        normalise_observations: whether observations are standardised by running moments, which are part of the learner's
            state. Not with demonstrations, which standardise them by their own.
        normalise_rewards: whether rewards are divided by the running standard deviation of their discounted sum. Not with
            demonstrations.
        step_size: delta, twice the KL that a step is to go.
        damping: multiple of the identity that is added to F.
        demonstration_weight: lambda_0.
        demonstration_decay: lambda_1; k counts updates.
        gamma: discount.
        lambda_: of the advantages (GAE).
        min_log_std: floor of the policy's log standard deviation, in actions of [-1, 1].
        learning_rate: of the value function (Adam).
        cloning_learning_rate: of cloning (Adam).
        max_grad_norm: guard rail, off at infinity: global-norm clip of the gradients that Adam gets.
    """

    with_demonstrations: bool = static(True)
    policy_sizes: tuple[int, ...] = static((32, 32))
    value_sizes: tuple[int, ...] = static((128, 128))
    cg_iterations: int = static(10)
    value_epochs: int = static(2)
    value_batch: int = static(64)
    cloning_epochs: int = static(5)
    cloning_batch: int = static(32)
    normalise_observations: bool = static(False)
    normalise_rewards: bool = static(False)
    step_size: float = 0.05
    damping: float = 1e-4
    demonstration_weight: float = 1e-2
    demonstration_decay: float = 0.95
    gamma: float = 0.995
    lambda_: float = 0.97
    min_log_std: float = -3.0
    learning_rate: float = 1e-3
    cloning_learning_rate: float = 1e-3
    max_grad_norm: float = math.inf


PRESETS: dict[str, dict[str, Any]] = {"npg": dict(with_demonstrations=False), "dapg": dict()}


def preset(name: str, **overrides: Any) -> DapgConfig:
    """A named member of the family.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `DapgConfig` that differ from the preset.

    Returns:
        A checked config.

    Raises:
        ValueError: for an unknown preset or field, or a number outside its range.

    Example:
        >>> preset("npg", step_size=0.1).with_demonstrations
        False
    """
    config = build(DapgConfig, PRESETS, name, overrides)
    check(config)
    return config


def check(config: DapgConfig) -> None:
    """Raise an error if a number of the config is invalid. Numbers that are arrays or tracers are not checked.

    Raises:
        ValueError: naming the field, what was given and what is allowed.
    """
    infinity = math.inf
    ranges = {
        "cg_iterations": (1, infinity),
        "value_epochs": (1, infinity),
        "value_batch": (1, infinity),
        "cloning_epochs": (0, infinity),
        "cloning_batch": (1, infinity),
        "step_size": POSITIVE,
        "damping": (0.0, infinity),
        "demonstration_weight": (0.0, infinity),
        "demonstration_decay": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "lambda_": (0.0, 1.0),
        "min_log_std": (-infinity, infinity),
        "learning_rate": (0.0, infinity),
        "cloning_learning_rate": (0.0, infinity),
        "max_grad_norm": POSITIVE,
    }
    check_ranges(config, ranges)
    refuse_normalised_demonstrations(config)
