"""A process that compiles and runs one library's PPO on command, so that libraries in different environments take turns.

`python worker.py {ours,ours_all_metrics,rejax,purejaxrl} [checkout]` answers one JSON line on stdout for each on stdin:
`{"command": "compile" | "run" | "score", "task": name, "seed": int}` ->
`{"seconds", "cpu_seconds"}` (wall clock, and processor time of this process over all its threads) or `{"score"}`.
`compile` starts from empty caches; `run` is a whole training run of the program compiled last; `score` judges the last run
and is never timed.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(
        steps=499_712, num_envs=4, minibatches=4, activation="tanh", learning_rate=2.5e-4, entropy=0.01, goal=450.0
    ),
    "Breakout-MinAtar": dict(
        steps=303_104, num_envs=64, minibatches=8, activation="relu", learning_rate=5e-3, entropy=0.01, goal=8.0
    ),
}
LENGTH, EPOCHS, SIZES = 128, 4, (64, 64)

# What a library gives: `train(key) -> result` to compile, and `score(result) -> mean return` at the end of training.
Program = tuple[Callable[[jax.Array], Any], Callable[[Any], jax.Array]]


def ours(name: str, task: dict[str, Any], all_metrics: bool = False) -> Program:
    """`ppo_gae` of this package; returns parameters and episode returns, or everything `train` reports."""
    from jaxrl_off import agents, envs
    from jaxrl_off.training import LoopSettings, make_train

    config = agents.preset(
        "ppo_gae",
        learning_rate=task["learning_rate"],
        entropy_coefficient=task["entropy"],
        separate_critic=True,
        torso="mlp",
        sizes=SIZES,
        activation=task["activation"],
    )
    settings = LoopSettings(
        total_steps=task["steps"],
        collect_length=LENGTH,
        batch_size=task["num_envs"] * LENGTH // task["minibatches"],
        reuse=EPOCHS,
        log_points=10,
    )
    train = make_train(agents.make, envs.make(name, task["num_envs"]), settings)

    def program(key: jax.Array) -> Any:
        result = train(config, key)
        if all_metrics:
            return result.state, result.metrics
        return result.state.agent.params, {"episode_return": result.metrics["episode_return"]}

    return program, lambda result: result[1]["episode_return"][-1]


def rejax(name: str, task: dict[str, Any]) -> Program:
    """rejax's PPO without its evaluations; the score is a stochastic evaluation of the final policy."""
    from rejax import PPO
    from rejax.evaluate import evaluate

    algorithm = PPO.create(
        env=name,
        agent_kwargs=dict(activation=task["activation"], hidden_layer_sizes=SIZES),
        num_envs=task["num_envs"],
        num_steps=LENGTH,
        num_epochs=EPOCHS,
        num_minibatches=task["minibatches"],
        learning_rate=task["learning_rate"],
        max_grad_norm=0.5,
        ent_coef=task["entropy"],
        gamma=0.99,
        total_timesteps=task["steps"],
        eval_freq=task["steps"],
        skip_initial_evaluation=True,
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: ())

    def score(result: Any) -> jax.Array:
        act = algorithm.make_act(result[0])
        _, returns = evaluate(act, jax.random.PRNGKey(0), algorithm.env, algorithm.env_params, 128, 1000)
        return jnp.mean(returns)

    return algorithm.train, score


def purejaxrl(name: str, task: dict[str, Any]) -> Program:
    """PureJaxRL's `ppo.py`, unmodified; its wrappers import two packages that PPO on gymnax never calls."""
    stubs = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix")
    sys.modules.update({stub: types.ModuleType(stub) for stub in stubs})
    sys.modules["brax"].envs = sys.modules["brax.envs"]
    training = sys.modules["brax.envs.wrappers.training"]
    training.EpisodeWrapper = training.AutoResetWrapper = object
    sys.path.insert(0, sys.argv[2])
    import ppo

    train = ppo.make_train(
        dict(
            LR=task["learning_rate"],
            NUM_ENVS=task["num_envs"],
            NUM_STEPS=LENGTH,
            TOTAL_TIMESTEPS=task["steps"],
            UPDATE_EPOCHS=EPOCHS,
            NUM_MINIBATCHES=task["minibatches"],
            GAMMA=0.99,
            GAE_LAMBDA=0.95,
            CLIP_EPS=0.2,
            ENT_COEF=task["entropy"],
            VF_COEF=0.5,
            MAX_GRAD_NORM=0.5,
            ACTIVATION=task["activation"],
            ENV_NAME=name,
            ANNEAL_LR=True,
        )
    )

    def program(key: jax.Array) -> Any:
        out = train(key)
        return out["runner_state"][0].params, out["metrics"]

    def score(result: Any) -> jax.Array:
        returns, ended = (
            result[1][field][-len(result[1]["timestep"]) // 10 :]
            for field in ("returned_episode_returns", "returned_episode")
        )
        return jnp.sum(returns * ended) / jnp.sum(ended)

    return program, score


def serve(build: Callable[..., Program]) -> None:
    """Answer commands until stdin closes. What a library prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    compiled: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name, command = request["task"], request["command"]
        key = jax.random.PRNGKey(request.get("seed", 0))
        start, cpu_start = time.perf_counter(), time.process_time()
        if command == "score":
            answer = {"score": float(compiled[name][1](results[name]))}
        else:
            if command == "compile":
                jax.clear_caches()
                program, score = build(name, TASKS[name])
                compiled[name] = jax.jit(program).lower(key).compile(), score
            else:
                results[name] = jax.block_until_ready(compiled[name][0](key))
            answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    builders: dict[str, Callable[..., Program]] = {
        "ours": ours,
        "ours_all_metrics": lambda name, task: ours(name, task, all_metrics=True),
        "rejax": rejax,
        "purejaxrl": purejaxrl,
    }
    serve(builders[sys.argv[1]])
