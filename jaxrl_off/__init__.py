"""Learn from, and judge policies with, data that some other policy generated: pure functions that JAX compiles.

Modules are imported when they are first used, so that `import jaxrl_off` costs little more than `import jax`, and every
public module is reachable as an attribute: `jaxrl_off.estimators.bandit.ips`, `jaxrl_off.ops.returns.vtrace`.

| module | what is in it |
|---|---|
| `types` | the data that flows: timesteps, rollouts, trajectories, bandit logs, estimates |
| `ops` | mathematics on arrays: importance weights, returns, divergences, surrogates, intervals, Gaussian processes |
| `distributions`, `networks` | distributions of actions, flax modules |
| `envs` | environments behind one interface |
| `data` | replay, readers and writers of logged data |
| `references` | reference (behaviour) policies |
| `agents` | algorithms that learn |
| `estimators` | the value of a policy from data of another one: `bandit`, `trajectory`, `deterministic` |
| `training` | loops, evaluation, runs with files |
| `cli` | the command `jaxrl-off` |
| `pytrees` | fields and checks that all configurations share |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand

if TYPE_CHECKING:
    from jaxrl_off import (
        agents,
        cli,
        data,
        distributions,
        envs,
        estimators,
        networks,
        ops,
        pytrees,
        references,
        training,
        types,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "agents",
    "cli",
    "data",
    "distributions",
    "envs",
    "estimators",
    "networks",
    "ops",
    "pytrees",
    "references",
    "training",
    "types",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
