"""A process that evaluates policies from trajectories on command, with one library: ours or SCOPE-RL.

Commands are JSON lines `{"command": "compile" | "run", "task": "KIND N T", "seed": 0}`; answers `{"seconds": s,
"cpu_seconds": s, "value": x}` of one call and, where there is an interval, `lower` and `upper`. N trajectories have T steps
each, two actions, and a target policy that differs from the behaviour policy by a few per cent. Kinds:

* `together`: all ten estimators of importance sampling and doubly robust kind, 1,000 resamples each, in one call (ours).
* `pdis`, `dr`, `wis`, `cwpdis`: one estimator and its interval by 1,000 resamples, as the library ships it.
* `again-wis`, `again-cwpdis`: the same with the estimator computed anew for every resample. For SCOPE-RL, whose own interval
  keeps the sums of weights of the whole data, that is its `estimate_policy_value` on resampled data, ten times, and the
  time for a thousand.
* `grid`: STAR for seven abstractions and five windows on 200 data sets of N trajectories at once (ours).
* `memory`: bytes that the compiled program of `together` (but for `el`, whose solver is apart) takes beside its data (ours).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DISCOUNT, LEVEL, RESAMPLES, FEW, SETS = 0.99, 0.95, 1000, 10, 200
CELLS, WINDOWS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 3, 4, 5)
TOGETHER = ("naive", "is", "pdis", "wis", "cwpdis", "el", "dm", "dr", "wdr", "magic")
Answer = dict[str, float]


def data(count: int, horizon: int, sets: int = 0) -> dict[str, np.ndarray]:
    """Flat columns by step: action, reward, probabilities of both actions under both policies, Q of both actions."""
    random = np.random.default_rng(0)
    shape = (sets, count, horizon) if sets else (count, horizon)
    behaviour = 0.3 + 0.4 * random.random(shape)
    target = behaviour + 0.02 * (random.random(shape) - 0.5)
    actions = (random.random(shape) < behaviour).astype(int)
    rewards = actions + random.random(shape)
    q = np.stack([0.5 + random.random(shape), 1.5 + random.random(shape)], axis=-1)
    return {
        "actions": actions,
        "rewards": rewards,
        "behaviour": np.stack([1.0 - behaviour, behaviour], axis=-1),
        "target": np.stack([1.0 - target, target], axis=-1),
        "q": q,
        "cells": random.integers(0, max(CELLS), shape),
    }


def ours(kind: str, count: int, horizon: int) -> Callable[[], Answer]:
    """A call that is timed."""
    import jax

    from jaxrl_off.estimators.trajectory import suite
    from jaxrl_off.estimators.trajectory.reward_processes import star
    from jaxrl_off.types import Trajectories

    columns = data(count, horizon, SETS if kind == "grid" else 0)
    chosen = {
        name: np.take_along_axis(columns[name], columns["actions"][..., None], axis=-1)[..., 0]
        for name in ("behaviour", "target", "q")
    }
    mask, target = np.ones(chosen["q"].shape, bool), np.log(chosen["target"])
    logged = Trajectories(
        None, columns["actions"], columns["rewards"], np.log(chosen["behaviour"]), mask, ~mask, ~mask, None
    )
    if kind == "grid":
        states = np.stack([columns["cells"] % cells for cells in CELLS], axis=1).astype(np.int32)

        def values(logged: Trajectories, target: Any, states: Any) -> Any:
            return star.star_values(logged, target, states, max(CELLS), WINDOWS, discount=DISCOUNT)

        with jax.enable_x64(True):
            together = jax.jit(jax.vmap(values))
            arguments = jax.tree.map(jax.numpy.asarray, (logged, target, states))

        def grid() -> Answer:
            with jax.enable_x64(True):
                return {"value": float(jax.block_until_ready(together(*arguments)).mean())}

        return grid
    names = TOGETHER if kind in ("together", "memory") else (kind.removeprefix("again-"),)
    given = dict(q=chosen["q"], v=np.sum(columns["target"] * columns["q"], axis=-1))
    likelihood = dict(return_range=(0.0, 2.0 / (1.0 - DISCOUNT)), weight_max=np.inf)
    if "el" in names:
        given |= dict(options={"el": likelihood})
    settings = dict(discount=DISCOUNT, level=LEVEL, interval="bootstrap", resamples=RESAMPLES)
    if kind == "memory":
        names = tuple(name for name in names if name != "el")

        def compiled() -> Answer:
            with jax.enable_x64(True):
                program = jax.jit(lambda *a: suite.evaluate(*a[:2], estimators=names, q=a[2], v=a[3], **settings))
                sizes = program.lower(logged, target, given["q"], given["v"]).compile().memory_analysis()
            return {"value": float(sizes.temp_size_in_bytes)}

        return compiled

    def estimates() -> Answer:
        found = jax.block_until_ready(suite.evaluate(logged, target, estimators=names, **given, **settings))
        last = found[names[-1]]
        return {name: float(getattr(last, name)) for name in ("value", "lower", "upper")}

    return estimates


def scope(kind: str, count: int, horizon: int) -> Callable[[], Answer]:
    """A call of SCOPE-RL that is timed."""
    from scope_rl.ope.discrete import DoublyRobust, PerDecisionImportanceSampling, SelfNormalizedPDIS, SelfNormalizedTIS

    columns = data(count, horizon)
    estimator = {
        "pdis": PerDecisionImportanceSampling,
        "dr": DoublyRobust,
        "wis": SelfNormalizedTIS,
        "cwpdis": SelfNormalizedPDIS,
    }[kind.removeprefix("again-")]()

    def arguments(rows: Any) -> dict[str, Any]:
        picked = {name: column[rows] for name, column in columns.items()}
        behaviour = np.take_along_axis(picked["behaviour"], picked["actions"][..., None], axis=-1)
        flat = dict(
            step_per_trajectory=horizon,
            action=picked["actions"].reshape(-1),
            reward=picked["rewards"].reshape(-1),
            pscore=behaviour.reshape(-1),
            evaluation_policy_action_dist=picked["target"].reshape(-1, 2),
            state_action_value_prediction=picked["q"].reshape(-1, 2),
            gamma=DISCOUNT,
        )
        return flat if kind == "dr" else {k: v for k, v in flat.items() if k != "state_action_value_prediction"}

    whole = arguments(slice(None))
    value = float(estimator.estimate_policy_value(**whole))
    settings = dict(alpha=1.0 - LEVEL, ci="bootstrap", n_bootstrap_samples=RESAMPLES, random_state=0)

    def interval() -> Answer:
        ends = estimator.estimate_interval(**whole, **settings)
        lower, upper = (next(v for k, v in ends.items() if side in k) for side in ("lower", "upper"))
        return {"value": value, "lower": float(lower), "upper": float(upper)}

    random = np.random.default_rng(0)

    def anew() -> Answer:
        found = [estimator.estimate_policy_value(**arguments(random.integers(0, count, count))) for _ in range(FEW)]
        return {"value": value, "spread": float(np.std(found))}

    return anew if kind.startswith("again-") else interval


def main() -> None:
    """Answer commands until there are no more."""
    library, calls = sys.argv[1], {}
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        task = asked["task"]
        started, processor = time.perf_counter(), time.process_time()
        if asked["command"] == "compile":
            kind, *sizes = task.split()
            calls[task] = {"ours": ours, "scope": scope}[library](kind, *map(int, sizes))
            started, processor = time.perf_counter(), time.process_time()
        answer = calls[task]()
        factor = RESAMPLES / FEW if library == "scope" and task.startswith("again-") else 1.0
        times = {
            "seconds": factor * (time.perf_counter() - started),
            "cpu_seconds": factor * (time.process_time() - processor),
        }
        print(json.dumps(times | answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
