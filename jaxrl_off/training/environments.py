"""Where a run's lanes come from: a name, a factory, or an environment that was made already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrl_off import envs
from jaxrl_off.envs.base import Environment


class Lanes(NamedTuple):
    """Lanes of one environment, as many as are asked for.

    Attributes:
        num_envs: lanes that collect.
        identity: what a run's description says of the environment; JSON-able.
        open: `num_envs -> Environment`.
        close: of what `open` gave; a no-op for an environment that belongs to the caller.
    """

    num_envs: int
    identity: dict[str, Any]
    open: Callable[[int], Environment]
    close: Callable[[Environment], None]


def lanes_of(
    environment: str | Environment | Callable[[int], Environment],
    num_envs: int | None,
    parameters: dict[str, Any] | None,
) -> Lanes:
    """Lanes from a name, a factory or an object.

    Args:
        environment: a name for `envs.make`, a factory `num_envs -> Environment`, or an `Environment`.
        num_envs: lanes that collect; None for those of an `Environment`.
        parameters: for `envs.make`.

    Raises:
        ValueError: for a missing or other number of lanes, or parameters without a name.
        TypeError: for anything else.
    """
    if num_envs is not None and (isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1):
        raise ValueError(f"num_envs must be at least 1, got {num_envs!r}.")
    if isinstance(environment, Environment):
        _refuse_parameters(parameters)
        if num_envs not in (None, environment.num_envs):
            raise ValueError(
                f"num_envs={num_envs}, but the environment has {environment.num_envs} lanes; leave num_envs out, or give a "
                "factory num_envs -> Environment."
            )

        def same(count: int) -> Environment:
            if count != environment.num_envs:
                raise ValueError(
                    f"evaluation_episodes={count} needs as many lanes, and an Environment with {environment.num_envs} was "
                    f"given. Set evaluation_episodes={environment.num_envs}, or give a factory num_envs -> Environment."
                )
            return environment

        identity = {"environment": environment.spec.name, "environment_object": "Environment"}
        return Lanes(environment.num_envs, identity, same, lambda lanes: None)
    if num_envs is None:
        raise ValueError("num_envs is missing: give the number of lanes.")
    if isinstance(environment, str):
        parameters = dict(parameters or {})
        identity = {"environment": environment, "environment_parameters": parameters}
        return Lanes(num_envs, identity, lambda count: envs.make(environment, count, **parameters), _close)
    if callable(environment):
        _refuse_parameters(parameters)
        name = getattr(environment, "__qualname__", type(environment).__name__)
        identity = {"environment": name, "environment_object": "factory"}
        return Lanes(num_envs, identity, environment, _close)
    raise TypeError(
        f"environment must be a name, an Environment or a factory num_envs -> Environment, got {type(environment).__name__}."
    )


def _close(lanes: Environment) -> None:
    lanes.close()


def _refuse_parameters(parameters: dict[str, Any] | None) -> None:
    if parameters:
        raise ValueError(
            f"environment_parameters={parameters} are for environments that are made by name; set them where you make yours."
        )
