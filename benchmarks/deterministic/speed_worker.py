"""A process that judges deterministic policies on command, with one library: ours or obp.

Commands are JSON lines `{"command": "compile" | "run", "task": "KIND N H", "seed": 0}`; answers `{"seconds": s,
"cpu_seconds": s, "value": x}` of one call and, where there is an interval, `lower` and `upper`. Kinds:

* `all`: nuisances of N trajectories of H steps by cross-fitted sieves, with derivatives, and from them all values with their
  standard errors and all gradients with theirs (ours).
* `is`, `sn`, `dr`: one kernelised estimator of a bandit, H = 1, and its interval by 1,000 resamples. In obp's doubly robust
  estimator one prediction stands for the logged and for the target action; ours is given the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WIDTH, LEVEL, RESAMPLES = 0.2, 0.95, 1000
Answer = dict[str, float]


def bandit(count: int) -> dict[str, np.ndarray]:
    """Columns of decisions."""
    random = np.random.default_rng(0)
    state = random.normal(size=count)
    action = 0.5 * state + random.normal(size=count)
    density = np.exp(-0.5 * (action - 0.5 * state) ** 2) / np.sqrt(2.0 * np.pi)
    reward = 1.0 - (action - state) ** 2 + 0.5 * random.normal(size=count)
    return {"state": state, "action": action, "density": density, "reward": reward, "predicted": 0.8 + 0.1 * state}


def process(count: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """States and actions of the scalar linear system of `deterministic_process`."""
    random = np.random.default_rng(0)
    states, actions = np.zeros((count, horizon)), np.zeros((count, horizon))
    for t in range(horizon):
        actions[:, t] = 0.8 * states[:, t] + random.normal(size=count)
        if t + 1 < horizon:
            states[:, t + 1] = actions[:, t] - states[:, t] + 0.03 * random.normal(size=count)
    return states, actions


def gained(gain: Any, observations: Any) -> Any:
    """The policy."""
    return gain * observations


def ours(kind: str, count: int, horizon: int) -> Callable[[], Answer]:
    """A call that is timed."""
    import jax

    from jaxrl_off.estimators import deterministic as det
    from jaxrl_off.types import Trajectories

    def logged(states: Any, actions: Any, rewards: Any, log_density: Any) -> Trajectories:
        mask = np.ones(rewards.shape, bool)
        return Trajectories(states[..., None], actions[..., None], rewards, log_density, mask, ~mask, ~mask, None)

    if kind == "all":
        states, actions = process(count, horizon)
        log_density = -0.5 * (actions - 0.8 * states) ** 2 - 0.5 * np.log(2.0 * np.pi)
        data, smoothing = (
            logged(states, actions, -(states**2), log_density),
            det.Smoothing(WIDTH, form="soft", scale=1.0),
        )

        def together() -> Answer:
            fit = det.fit_nuisances(data, gained, 1.2, smoothing, gradient=True)
            found = [det.gradient(method, data, gained, 1.2, smoothing, fit) for method in det.METHODS]
            valued = [name for name, method in det.METHODS.items() if method.valued]
            found += [det.evaluate(method, data, gained, 1.2, smoothing, fit, level=LEVEL) for method in valued]
            return {"value": float(jax.block_until_ready(found)[-1].value)}

        return together
    columns = {name: column[:, None] for name, column in bandit(count).items()}
    data = logged(columns["state"], columns["action"], columns["reward"], np.log(columns["density"]))
    method = "cumulative_doubly_robust" if kind == "dr" else "cumulative_importance_sampling"
    nuisances = det.Nuisances(q=columns["predicted"], v=columns["predicted"]) if kind == "dr" else None
    settings = dict(self_normalised=kind == "sn", level=LEVEL, interval="bootstrap", resamples=RESAMPLES)

    def interval() -> Answer:
        found = det.evaluate(method, data, gained, 1.0, det.Smoothing(WIDTH, scale=1.0), nuisances, **settings)
        return {name: float(getattr(found, name)) for name in ("value", "lower", "upper")}

    return interval


def obp(kind: str, count: int, horizon: int) -> Callable[[], Answer]:
    """A call of obp that is timed."""
    from obp import ope

    columns = bandit(count)
    estimator = {
        "is": ope.KernelizedInverseProbabilityWeighting,
        "sn": ope.KernelizedSelfNormalizedInverseProbabilityWeighting,
        "dr": ope.KernelizedDoublyRobust,
    }[kind](kernel="gaussian", bandwidth=WIDTH)
    given = dict(
        reward=columns["reward"],
        action_by_behavior_policy=columns["action"],
        pscore=columns["density"],
        action_by_evaluation_policy=columns["state"],
    )
    if kind == "dr":
        given["estimated_rewards_by_reg_model"] = columns["predicted"]

    def interval() -> Answer:
        value = estimator.estimate_policy_value(**given)
        ends = estimator.estimate_interval(**given, alpha=1.0 - LEVEL, n_bootstrap_samples=RESAMPLES, random_state=0)
        lower, upper = (next(v for k, v in ends.items() if side in k) for side in ("lower", "upper"))
        return {"value": float(value), "lower": float(lower), "upper": float(upper)}

    return interval


def main() -> None:
    """Answer commands until there are no more."""
    library, calls = sys.argv[1], {}
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        task = asked["task"]
        if asked["command"] == "compile":
            kind, *sizes = task.split()
            calls[task] = {"ours": ours, "obp": obp}[library](kind, *map(int, sizes))
        started, processor = time.perf_counter(), time.process_time()
        answer = calls[task]()
        times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - processor}
        print(json.dumps(times | answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
