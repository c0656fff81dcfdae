"""A process that computes intervals from bandit logs on command, with one library: ours, vw-estimators, or NumPy by hand.

Commands are JSON lines `{"command": "compile" | "run", "task": "KIND N", "seed": 0}`; answers `{"seconds": s, "cpu_seconds": s,
"lower": x, "upper": x}` of one call. Data are those of the reference's tables, without random numbers: `w = 5 frac(0.618..
i)^4`, `r = frac(0.414.. i)`; every weight is different. Kinds:

* `el N`: empirical likelihood's interval; `cr N`: Cressie-Read(-2)'s (ours, vw-estimators and NumPy's six sums).
* `many N`: 1,000 intervals of logs of N rows in one call (ours); `resized N`: an interval of N - 10 rows after one of N.
* `online N`: N data into the histogram, 10,000 at a time, and one interval (ours).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LARGEST, LEVEL, MANY, CHUNK = 5.0, 0.95, 1000, 10_000
Interval = tuple[float, float]


def data(count: int, skip: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights and rewards."""
    i = np.arange(1 + skip, count + 1 + skip)
    return LARGEST * np.modf(i * 0.6180339887498949)[0] ** 4, np.modf(i * 0.4142135623730951)[0]


def by_numpy(kind: str, weights: np.ndarray, rewards: np.ndarray) -> Interval:
    """The closed form of Cressie-Read(-2), for weights that are 1 on average or nearly so."""
    assert kind == "cr"
    from scipy.stats import f

    n, wr = float(len(weights)), weights * rewards
    sums = [float(x) for x in (weights.sum(), weights @ weights, wr.sum(), weights @ wr, wr @ wr)]
    added = LARGEST if sums[0] < n else 0.0
    a, b = (added + sums[0]) / (1 + n), (added**2 + sums[1]) / (1 + n)
    phi = (-(n + 1) * (a - 1) ** 2 / (b - a * a) - f.isf(1 - LEVEL, 1, n)) / (2 * (n + 1))
    ends = []
    for edge, sign in ((0.0, 1.0), (1.0, -1.0)):
        found = []
        for w in (0.0, LARGEST):
            extra = (w, w * w, w * edge, w * w * edge, (w * edge) ** 2)
            m, mm, mr, mmr, mmrr = ((x + total) / (1 + n) for x, total in zip(extra, sums, strict=True))
            spread, slope = mm - m * m, mmr - m * mr
            y, z = slope * slope / spread - (mmrr - mr * mr), phi + 0.5 * (1 - m) ** 2 / spread
            if y < 0 and z <= 0:
                found.append(sign * (mr + (1 - m) * slope / spread) - math.sqrt(2 * y * z))
        ends.append(min(1.0, max(0.0, sign * min(found))))
    return ends[0], ends[1]


def by_vw(kind: str, weights: np.ndarray, rewards: np.ndarray) -> Interval:
    """vw-estimators: data are fed one at a time."""
    assert kind == "cr"
    from estimators.bandits import cressieread

    interval = cressieread.Interval(wmin=0, wmax=LARGEST)
    for w, r in zip(weights.tolist(), rewards.tolist(), strict=True):
        interval.add_example(1.0, r, w)
    return tuple(interval.get(1 - LEVEL))


def ours(kind: str, count: int) -> Callable[[], Interval]:
    """A call that is timed."""
    import jax
    import jax.numpy as jnp

    from jaxrl_off.estimators import bandit

    options = dict(weight_range=(0.0, LARGEST), level=LEVEL)
    weights, rewards = data(count)

    def ends(estimate: Any) -> Interval:
        return float(estimate.lower), float(estimate.upper)

    if kind in ("el", "cr", "resized"):
        method = bandit.cressie_read if kind == "cr" else bandit.empirical_likelihood
        if kind == "resized":
            ends(method(weights, rewards, **options))
            weights, rewards = data(count - 10)
        return lambda: ends(method(weights, rewards, **options))
    if kind == "many":
        logs = [np.stack(column) for column in zip(*(data(count, skip=i * count) for i in range(MANY)), strict=True)]
        with jax.enable_x64(True):
            logs = [jnp.asarray(x) for x in logs]
            together = jax.jit(jax.vmap(lambda w, r: bandit.empirical_likelihood(w, r, **options)[2:4]))

        def run() -> Interval:
            with jax.enable_x64(True):
                lower, upper = together(*logs)
            return float(np.mean(lower)), float(np.mean(upper))

        return run

    def online() -> Interval:
        state = bandit.make_histogram((0.0, LARGEST), weight_buckets=50)
        for start in range(0, count, CHUNK):
            state = bandit.update_histogram(state, weights[start : start + CHUNK], rewards[start : start + CHUNK])
        grid = bandit.grid_of(state)
        return ends(bandit.empirical_likelihood(grid.weights, grid.rewards, counts=grid.counts, **options))

    assert kind == "online"
    return online


def call_of(library: str, task: str) -> Callable[[], Interval]:
    """What a task times."""
    kind, count = task.split()
    if library == "ours":
        return ours(kind, int(count))
    columns = data(int(count))
    method = {"vw": by_vw, "numpy": by_numpy}[library]
    return lambda: method(kind, *columns)


def main() -> None:
    """Answer commands until there are no more."""
    library, calls = sys.argv[1], {}
    for line in sys.stdin:
        asked = json.loads(line)
        task = asked["task"]
        if asked["command"] == "compile":
            calls[task] = call_of(library, task)
        started, processor = time.perf_counter(), time.process_time()
        lower, upper = calls[task]()
        answer = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - processor}
        print(json.dumps(answer | {"lower": lower, "upper": upper}), flush=True)


if __name__ == "__main__":
    main()
