"""A process that trains one library's PPO with its own defaults and says how good the policies are.

`python quality_worker.py {ours,rejax,rejax_normalised}` answers one JSON line on stdout for each on stdin:
`{"command": "scores", "task": name, "seed": number of seeds}` -> `{"scores": [...], "seconds", "steps", "settings"}`. The score
of a seed is the mean return of the stochastic policy that training ends with, over 128 fresh episodes.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

STEPS = {"CartPole-v1": 200_000, "Acrobot-v1": 200_000, "Pendulum-v1": 300_000}
LONGEST = {"CartPole-v1": 500, "Acrobot-v1": 500, "Pendulum-v1": 200}  # steps of an episode
EPISODES = 128
# `key -> score`, the samples that it takes, and what was chosen
Task = tuple[Callable[[jax.Array], jax.Array], int, str]


def ours(name: str) -> Task:
    """The preset that the documentation names for the kind of actions, and the regime `ppo`, both untouched."""
    from jaxrl_off import agents, envs
    from jaxrl_off.training import evaluate, make_train, regime

    preset = "ppo_continuous" if name == "Pendulum-v1" else "ppo_gae"
    chosen = regime("ppo", total_steps=STEPS[name], log_points=10)
    environment = envs.make(name, chosen.num_envs)
    train = make_train(agents.make, environment, chosen.settings)
    config = agents.preset(preset)
    agent = agents.make(config, environment.spec, total_updates=1)
    judges = envs.make(name, EPISODES)

    def score(key: jax.Array) -> jax.Array:
        train_key, judge_key = jax.random.split(key)
        learner = train(config, train_key).state.agent
        return jnp.mean(evaluate(agent, learner, judges, judge_key, max_steps=LONGEST[name] + 1).episode_return)

    return score, STEPS[name], f"agents.preset({preset!r}), regime 'ppo'"


def rejax(name: str, normalised: bool = False) -> Task:
    """`PPO.create` with the environment and the number of steps alone, or what suits it better.

    That is both normalisations, and a discount of 0.9 on Pendulum.
    """
    from rejax import PPO
    from rejax.evaluate import evaluate

    switches: dict[str, Any] = dict(normalize_observations=True, normalize_rewards=True) if normalised else {}
    if normalised and name == "Pendulum-v1":
        switches["gamma"] = 0.9
    algorithm = PPO.create(
        env=name,
        total_timesteps=STEPS[name],
        eval_freq=STEPS[name],
        skip_initial_evaluation=True,
        **switches,
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: ())

    def score(key: jax.Array) -> jax.Array:
        train_key, judge_key = jax.random.split(key)
        act = algorithm.make_act(algorithm.train(train_key)[0])
        _, returns = evaluate(act, judge_key, algorithm.env, algorithm.env_params, EPISODES, LONGEST[name])
        return jnp.mean(returns)

    size = algorithm.num_envs * algorithm.num_steps
    words = (
        "PPO.create(env, total_timesteps" + "".join(f", {switch}={value}" for switch, value in switches.items()) + ")"
    )
    return score, -(-STEPS[name] // size) * size, words  # rejax rounds up to whole iterations


def serve(build: Callable[[str], Task]) -> None:
    """Answer commands until stdin closes. What a library prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        score, steps, settings = build(request["task"])
        keys = jax.random.split(jax.random.PRNGKey(0), request["seed"])
        scores = [float(x) for x in jax.jit(functools.partial(jax.lax.map, score))(keys)]
        answer = {"scores": scores, "seconds": time.perf_counter() - start, "steps": steps, "settings": settings}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    builders: dict[str, Callable[[str], Task]] = {
        "ours": ours,
        "rejax": rejax,
        "rejax_normalised": lambda name: rejax(name, normalised=True),
    }
    serve(builders[sys.argv[1]])
