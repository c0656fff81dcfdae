"""Clones of the Adroit experts, so that the benchmarks run where the experts' own weights are not at hand.

`python -m benchmarks.nppac.clone_experts --experts DIR` records 100 episodes of each expert in `DIR`
(`dapg_policy_*.npz`, with its exploration noise), fits a tanh network of two layers of 64 to its actions by least squares,
and writes `benchmarks/nppac/experts/TASK.npz` with the residual standard deviation as its noise. Existing files are kept.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.nppac.adroit import HERE, HORIZONS, SHARED
from jaxrl_off import envs
from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.data.policy_files import FilePolicy, load_policy, save_policy
from jaxrl_off.training import collect, policy_of_file


def clone(demonstrations: Demonstrations, key: jax.Array, *, size: int = 64, steps: int = 30_000) -> FilePolicy:
    """Least squares with Adam, learning rate 1e-3 falling to 0, minibatches of 256."""
    observations, actions = (jnp.asarray(x) for x in (demonstrations.observation, demonstrations.action))
    sizes = (observations.shape[1], size, size, actions.shape[1])
    init_key, batch_key = jax.random.split(key)
    layers = tuple(
        (jax.random.normal(k, (after, before)) / np.sqrt(before), jnp.zeros(after))
        for k, before, after in zip(jax.random.split(init_key, 3), sizes, sizes[1:], strict=False)
    )
    policy = FilePolicy(
        layers=layers,
        in_shift=observations.mean(axis=0),
        in_scale=jnp.maximum(observations.std(axis=0), 1e-3),
        out_shift=actions.mean(axis=0),
        out_scale=actions.std(axis=0),
        noise_std=jnp.ones(actions.shape[1]),
    )
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    def loss(layers: Any, rows: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(policy._replace(layers=layers)(observations[rows]) - actions[rows]))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        layers, state = carry
        rows = jax.random.randint(key, (256,), 0, len(actions))
        updates, state = optimiser.update(jax.grad(loss)(layers, rows), state)
        return (optax.apply_updates(layers, updates), state), None

    run = jax.jit(functools.partial(jax.lax.scan, step))
    (layers, _), _ = run((layers, optimiser.init(layers)), jax.random.split(batch_key, steps))
    policy = policy._replace(layers=layers)
    return policy._replace(noise_std=(actions - policy(observations)).std(axis=0))


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=Path, default=SHARED)
    options = parser.parse_args(arguments)
    for task, horizon in HORIZONS.items():
        path = HERE / "experts" / f"{task}.npz"
        if path.exists():
            print(f"{path.name} is there already.")
            continue
        lanes = envs.make(f"adroit/{task}", 10, max_episode_steps=horizon)
        expert = load_policy(options.experts / f"dapg_policy_{task}.npz")
        recorded = collect(policy_of_file(expert), lanes, jax.random.key(0), episodes=100)
        policy = clone(recorded, jax.random.key(1))
        save_policy(policy, path)
        judged = collect(policy_of_file(policy), lanes, jax.random.key(2), episodes=20)
        lanes.close()
        shares = [
            np.mean([demos.reward[demos.episode == i].any() for i in range(episodes)])
            for demos, episodes in ((recorded, 100), (judged, 20))
        ]
        print(f"{task}: expert succeeds in {shares[0]:.0%} of 100 episodes, its clone in {shares[1]:.0%} of 20.")


if __name__ == "__main__":
    main()
