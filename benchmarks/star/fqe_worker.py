"""A process that runs one library's part of `benchmarks.star.fqe_speed` on command, so that libraries take turns.

`python fqe_worker.py {ours,d3rlpy}` answers one JSON line on stdout for each on stdin, as `worker.py` does:
`{"command": "compile" | "run", "task": name, "seed": int}` -> `{"seconds", "cpu_seconds", "updates"}`; `compile` is a
first call.

Tasks are gradient updates of fitted Q-evaluation on the same made-up episodes, with the same network, batch and target
updates: `discrete` and `continuous` by the whole public call of each library, and `discrete_update` and `continuous_update`
(d3rlpy) on one batch that was drawn before, by `FQE.update`. Our call, `fit_network_q`, also checks the data and evaluates
the networks in all states; theirs, `FQE.fit`, draws its batches from its replay buffer.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

EPISODES, LENGTH, OBSERVATIONS, ACTIONS = 100, 500, 17, 6  # sizes of HalfCheetah
WIDTHS, BATCH, RATE, PERIOD, GAMMA = (256, 256), 256, 1e-3, 100, 0.99
UPDATES = {"ours": 2000, "d3rlpy": 100}  # of a run, a multiple of PERIOD


def episodes(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Made-up observations `[n, T, O]`, actions and rewards, the same in all libraries."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((EPISODES, LENGTH, OBSERVATIONS)).astype(np.float32)
    if kind == "discrete":
        actions: np.ndarray = rng.integers(ACTIONS, size=(EPISODES, LENGTH))
    else:
        actions = rng.uniform(-1.0, 1.0, (EPISODES, LENGTH, ACTIONS)).astype(np.float32)
    return observations, actions, rng.standard_normal((EPISODES, LENGTH)).astype(np.float32)


def ours(task: str) -> Callable[[int, int], None]:
    """`(updates, seed) -> None`."""
    import jax
    import jax.numpy as jnp

    from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
    from jaxrl_off.estimators.trajectory.values import network as fitted_q
    from jaxrl_off.types import Trajectories

    observations, actions, rewards = episodes(task)
    mask = np.ones(rewards.shape, bool)
    last = np.arange(LENGTH) == np.full((EPISODES, 1), LENGTH - 1)
    data = Trajectories(observations, actions, rewards, None, mask, last, last & False, None)
    # what the policy would do is known beforehand; d3rlpy asks its policy's network at every update
    weights = np.full((EPISODES, LENGTH + 1, ACTIONS if task == "discrete" else 1), 1.0)
    candidates = np.tanh(np.concatenate([observations, observations[:, -1:]], axis=1))[..., None, :ACTIONS]
    target = TargetActions(None if task == "discrete" else jnp.asarray(candidates), weights / weights.shape[-1])

    def run(updates: int, seed: int) -> None:
        config = fitted_q.FittedQConfig(
            WIDTHS, updates=updates, batch_size=BATCH, target_period=PERIOD, learning_rate=RATE, target_rate=1.0
        )
        fit = fitted_q.fit_network_q(data, target, jax.random.key(seed), config, discount=GAMMA)
        jax.block_until_ready(fit)

    return run


def d3rlpy(task: str) -> Callable[[int, int], None]:
    """`(updates, seed) -> None`."""
    import d3rlpy as library
    from d3rlpy.models.encoders import VectorEncoderFactory

    kind, _, alone = task.partition("_")
    observations, actions, rewards = episodes(kind)
    terminals = np.zeros(rewards.shape, np.float32)
    terminals[:, -1] = 1.0
    flat = [x.reshape(-1, *x.shape[2:]) for x in (observations, actions, rewards, terminals)]
    dataset = library.dataset.MDPDataset(*flat)
    encoder = VectorEncoderFactory(list(WIDTHS))
    config = library.ope.FQEConfig(
        learning_rate=RATE, encoder_factory=encoder, batch_size=BATCH, gamma=GAMMA, target_update_interval=PERIOD
    )
    # the cheapest policies it has: behaviour cloning, untrained
    if kind == "discrete":
        policy = library.algos.DiscreteBCConfig(encoder_factory=VectorEncoderFactory([1])).create()
        evaluation = library.ope.DiscreteFQE
    else:
        policy = library.algos.BCConfig(encoder_factory=VectorEncoderFactory([1])).create()
        evaluation = library.ope.FQE
    policy.build_with_dataset(dataset)
    fqe = evaluation(algo=policy, config=config)
    fqe.build_with_dataset(dataset)
    batch = dataset.sample_transition_batch(BATCH)

    def run(updates: int, seed: int) -> None:
        np.random.seed(seed)
        if alone:
            for _ in range(updates):
                fqe.update(batch)
            return
        steps = dict(n_steps=updates, n_steps_per_epoch=updates)
        fqe.fit(dataset, **steps, logger_adapter=library.logging.NoopAdapterFactory(), show_progress=False)

    return run


LIBRARIES: dict[str, Callable[[str], Callable[[int, int], None]]] = {"ours": ours, "d3rlpy": d3rlpy}


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the wall, and of the processor in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def main() -> None:
    """Answer commands until stdin ends."""
    library = sys.argv[1]
    answers, sys.stdout = sys.stdout, sys.stderr
    runner = functools.cache(LIBRARIES[library])
    updates = UPDATES[library]
    for line in sys.stdin:
        given = json.loads(line)
        run = runner(given["task"])
        answer = timed(functools.partial(run, updates, given["seed"]))
        print(json.dumps(answer | {"updates": updates}), file=answers, flush=True)


if __name__ == "__main__":
    main()
