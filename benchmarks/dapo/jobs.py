"""Training jobs of the MinAtar benchmark: one compiled program for all members of a cell."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from benchmarks.machinery.jobs import digest, rounded

# The paper's one network for policy and value, whatever the library's presets take by default. Not part of a job's name, as all
# jobs have it.
PINNED: dict[str, Any] = {"separate_critic": False}
CURVES = (
    "steps",
    "episode_return",
    "half_squared_log_ratio",
    "kl_to_behaviour",
    "clip_fraction",
    "effective_sample_size",
    "divergence",
    "entropy",
    "staleness_mean",
    "staleness_max",
    "reuse",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One compiled program.

    Attributes:
        environment: name for `envs.make`.
        num_envs: lanes.
        method: label in the tables.
        preset: key of `agents.PRESETS`.
        static: static overrides of the preset, as sorted pairs.
        settings: `LoopSettings` fields, as sorted pairs.
        members: pairs (overrides of reals as sorted pairs, seed).
        cell: further labels of the result (regime, stage, ...), as sorted pairs.
    """

    environment: str
    num_envs: int
    method: str
    preset: str
    static: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, Any], ...]
    members: tuple[tuple[tuple[tuple[str, float], ...], int], ...]
    cell: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Content hash, the file name of the result."""
        return digest(dataclasses.asdict(self))

    @property
    def cost(self) -> float:
        """Trained and collected samples, to start the longest first."""
        s = dict(self.settings)
        return s["total_steps"] * (1.0 + 2.0 * s["reuse"]) * len(self.members)


def config_of(preset: str, static: dict[str, Any], reals: dict[str, float]) -> Any:
    """The agent's configuration: a preset, with the paper's settings where the library's own defaults differ."""
    from jaxrl_off import agents

    return agents.preset(preset, **(PINNED | static | reals))


def run_job(job: Job) -> dict[str, Any]:
    """Train all members of a job; returns labels, curves and times, JSON-ready."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl_off import agents, envs
    from jaxrl_off.training import LoopSettings, make_train, stack_configs, sweep

    environment = envs.make(job.environment, job.num_envs)
    configs = [config_of(job.preset, dict(job.static), dict(reals)) for reals, _ in job.members]
    keys = jnp.stack([jax.random.key(seed) for _, seed in job.members])
    train = make_train(agents.make, environment, LoopSettings(**dict(job.settings)))

    def curves(config: Any, key: Any) -> dict[str, Any]:
        metrics = train(config, key).metrics
        return {name: metrics[name] for name in CURVES}

    started = time.perf_counter()
    program = jax.jit(lambda c, k: sweep(curves, c, k)).lower(stack_configs(configs), keys).compile()
    compiled = time.perf_counter()
    results = jax.block_until_ready(program(stack_configs(configs), keys))
    finished = time.perf_counter()
    arrays = {name: np.asarray(value, np.float64) for name, value in results.items()}
    runs = [
        {
            "reals": dict(reals),
            "seed": seed,
            "curves": {name: [rounded(x) for x in value[i]] for name, value in arrays.items()},
        }
        for i, (reals, seed) in enumerate(job.members)
    ]
    return {
        "environment": job.environment,
        "method": job.method,
        "preset": job.preset,
        "static": dict(job.static),
        "settings": dict(job.settings),
        "num_envs": job.num_envs,
        **dict(job.cell),
        "compile_seconds": round(compiled - started, 2),
        "run_seconds": round(finished - compiled, 2),
        "device": jax.devices()[0].device_kind,
        "runs": runs,
    }
