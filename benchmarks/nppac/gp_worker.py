"""A process that runs the steps of a Gaussian-process reference on command; protocol of `sac_worker`.

It is a process of its own because the number of threads of LAPACK (`OPENBLAS_NUM_THREADS`) is set from outside. Tasks, with N
points of 17 observation and 6 action dimensions:

* `gradient N`: of the marginal likelihood, one step of the 300 that a fit takes, in float64 at fixed hyperparameters.
* `condition N`: the posterior, in float64 at fixed hyperparameters.
* `query N`: `QUERIES` times the moments at `QUERY_SIZE` points, in float32; hyperparameters after 20 steps.
* `fit N`: all of a default fit, from cold; its score is the seconds of its conditioning, compilation included.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.nppac.sac_worker import (
    ACTIONS,
    NOTHING,
    OBSERVATIONS,
    Clocks,
    Program,
    continuing,
    demonstrations,
    serve,
)
from jaxrl_off import references
from jaxrl_off.ops import gaussian_process as gp
from jaxrl_off.ops.kernels import rbf

QUERIES, QUERY_SIZE = 10, 256


def program_of(task: str) -> Program:
    """Build a task."""
    kind, count = task.split()
    data = demonstrations(int(count))
    return {"query": querying, "fit": fitting}[kind](*data) if kind in ("query", "fit") else step_of(kind, *data)


def querying(observations: np.ndarray, actions: np.ndarray) -> Program:
    """`query N`."""
    reference = references.gp_icm(steps=20, fit_points=200)
    fitted = reference.fit(jax.random.key(0), observations, actions)
    queries = jax.random.normal(jax.random.key(1), (QUERIES, QUERY_SIZE, OBSERVATIONS))

    def query(state: Any, key: jax.Array, fixed: Any) -> Any:
        del key
        return state, jax.lax.map(lambda observation: reference.apply(fixed, observation), state)

    return continuing(query, queries, fitted)


def fitting(observations: np.ndarray, actions: np.ndarray) -> Program:
    """`fit N`."""
    reference = references.gp_icm()

    def fit(key: jax.Array) -> float:
        times: list[float] = []
        reference.fit(key, observations, actions, progress=lambda *_: times.append(time.perf_counter()))
        return times[-1] - times[-2]

    return Program(lambda: NOTHING, fit, lambda conditioning: conditioning)


def step_of(kind: str, observations: np.ndarray, actions: np.ndarray) -> Program:
    """`gradient N` and `condition N`."""
    function = {"gradient": jax.grad(gp.multitask_log_likelihood, 1), "condition": gp.multitask_posterior}[kind]
    held: dict[str, Any] = {}
    with jax.enable_x64(True):
        parameters = gp.MultitaskParameters(
            lengthscale=jnp.full(OBSERVATIONS, 2.0),
            mean=jnp.zeros(ACTIONS),
            factor=jnp.linspace(-1.0, 1.0, ACTIONS)[:, None],
            diagonal=jnp.full(ACTIONS, 0.1),
            noise=jnp.full(ACTIONS, 0.01),
        )
        arguments = (parameters, jnp.asarray(observations), jnp.asarray(actions))

    def build() -> Clocks:
        with jax.enable_x64(True):
            held["program"] = jax.jit(function, static_argnums=0).lower(rbf, *arguments).compile()
        return NOTHING

    return Program(build, lambda key: held["program"](*arguments))


if __name__ == "__main__":
    serve(program_of)
