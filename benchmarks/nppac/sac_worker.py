"""A process that runs one library's part of `benchmarks.nppac.speed` on command, so that libraries take turns.

`python sac_worker.py {ours,rejax,sbx}` answers one JSON line on stdout for each on stdin, as `worker.py` does:
`{"command": "compile" | "run" | "score", "task": name, "seed": int}` -> `{"seconds", "cpu_seconds"}` or `{"score"}`.

Tasks; sizes and rates below are common to all:

* `updates`: `UPDATES` updates, batches drawn from a full replay of made-up transitions. A run goes on from the last.
* `learner`: the same on batches drawn beforehand. `one_a_call` (sbx): the same as `updates` with a call for each.
* `nppac_updates`, `nppac_learner` (ours): N-PPAC, the moments of its reference in the replay.
* `training`: a whole run on Pendulum-v1.
* `loop`: `LOOP["steps"]` steps on HalfCheetah-v5 and as many updates, in four lanes of 32 steps, then 128 updates;
  `step_loop`: one lane, an update after each step; `nppac_loop` (ours): as `loop`, with a Gaussian process to ask.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OBSERVATIONS, ACTIONS, WIDTHS, CRITICS = 17, 6, (256, 256), 2  # as HalfCheetah
BATCH, CAPACITY, UPDATES = 256, 100_000, 300
RATE, TAU, GAMMA = 3e-4, 0.005, 0.99
PENDULUM: dict[str, Any] = dict(steps=10_000, fill=1_000, widths=(64, 64), rate=1e-3, goal=-300.0)
LOOP: dict[str, Any] = dict(environment="HalfCheetah-v5", steps=512, reference_points=2_000)

Clocks = np.ndarray  # seconds on the wall, and of the processor in all threads
NOTHING = np.zeros(2)


def clocks() -> Clocks:
    """The time now."""
    return np.array([time.perf_counter(), time.process_time()])


class Program(NamedTuple):
    """What a library gives for a task.

    Attributes:
        compile: from empty caches; returns what to leave out of the time it took.
        run: `key -> result`, once compiled.
        score: of the last result.
    """

    compile: Callable[[], Clocks]
    run: Callable[[jax.Array], Any]
    score: Callable[[Any], float] = lambda result: float("nan")


def transitions(count: int) -> dict[str, np.ndarray]:
    """Made-up transitions, the same in all libraries."""
    rng = np.random.default_rng(0)
    return {
        "observation": rng.standard_normal((count, OBSERVATIONS), np.float32),
        "action": rng.uniform(-1.0, 1.0, (count, ACTIONS)).astype(np.float32),
        "reward": rng.standard_normal(count, np.float32),
        "terminated": rng.uniform(size=count) < 0.01,
        "next_observation": rng.standard_normal((count, OBSERVATIONS), np.float32),
    }


def demonstrations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up demonstrations: observations around a surface of six dimensions, actions smooth but for noise."""
    rng = np.random.default_rng(2)
    latent = rng.standard_normal((count, 6))
    observations = np.tanh(latent @ rng.standard_normal((6, OBSERVATIONS))) + 0.05 * rng.standard_normal((count, 1))
    actions = np.tanh(0.5 * latent @ rng.standard_normal((6, ACTIONS))) + 0.1 * rng.standard_normal((count, ACTIONS))
    return observations, np.clip(actions, -1.0, 1.0)


def stacked_batches(data: Any) -> Any:
    """The first `UPDATES` batches of arrays `[N, ...]`, as `[UPDATES, BATCH, ...]`."""
    return jax.tree.map(lambda x: x[: UPDATES * BATCH].reshape(UPDATES, BATCH, *x.shape[1:]), data)


def continuing(step: Callable[[Any, jax.Array, Any], Any], state: Any, fixed: Any) -> Program:
    """A jitted `(state, key, fixed) -> (state, reported)` that is run again and again; `fixed` is not copied."""
    held: dict[str, Any] = {"state": jax.tree.map(jnp.copy, state)}

    def build() -> Clocks:
        held["program"] = jax.jit(step, donate_argnums=0).lower(held["state"], jax.random.PRNGKey(0), fixed).compile()
        return NOTHING

    def run(key: jax.Array) -> Any:
        held["state"], reported = held["program"](held["state"], key, fixed)
        return held["state"], reported

    return Program(build, run)


def whole(train: Callable[[jax.Array], Any], score: Callable[[Any], Any]) -> Program:
    """A jitted training run."""
    held: dict[str, Any] = {}

    def build() -> Clocks:
        held["program"] = jax.jit(train).lower(jax.random.PRNGKey(0)).compile()
        return NOTHING

    return Program(build, lambda key: held["program"](key), jax.jit(score))


def ours(task: str) -> Program:
    """`sac` and `nppac` of this package, all metrics kept, as its loop does."""
    from jaxrl_off import agents, envs
    from jaxrl_off.data.replay import empty_replay, make_rollout_replay
    from jaxrl_off.distributions import DiagonalNormal
    from jaxrl_off.ops.keys import unrolled_keys
    from jaxrl_off.types import Transition

    if task == "training":
        return _our_training()
    if task.endswith("loop"):
        return _our_loop(task)
    with_reference, drawn_before = task.startswith("nppac"), task.endswith("learner")
    rng, moments = np.random.default_rng(1), {"reference": (), "next_reference": ()}
    if with_reference:
        means, log_stds = rng.uniform(-0.5, 0.5, (2, CAPACITY, ACTIONS)), rng.normal(-1.0, 0.3, (2, CAPACITY, ACTIONS))
        pairs = [DiagonalNormal(*pair) for pair in zip(means.astype("f"), log_stds.astype("f"), strict=True)]
        moments = dict(zip(moments, pairs, strict=True))
    data = jax.tree.map(jnp.asarray, Transition(**transitions(CAPACITY), **moments))
    space = envs.base.continuous_space([-1.0] * ACTIONS, [1.0] * ACTIONS)
    spec = envs.EnvironmentSpec("made up", (OBSERVATIONS,), "float32", space)
    parts: dict[str, Any] = {}
    if with_reference:
        parts = dict(reference=lambda params, observation: params, reference_params=())  # never asked in an update
    agent = agents.make(_our_config(with_reference), spec, total_updates=10**6, **parts)
    replay = make_rollout_replay(CAPACITY, BATCH)
    fixed = stacked_batches(data) if drawn_before else replay.add(empty_replay(replay, data), data)

    def step(state: Any, key: jax.Array, fixed: Any) -> Any:
        sample_key, agent_key = jax.random.split(jax.random.wrap_key_data(key))
        choices = jax.random.split(unrolled_keys(sample_key), UPDATES)

        def update(state: Any, drawn: Any) -> Any:
            choice, agent_key, batch = drawn
            batch = batch if drawn_before else replay.sample(fixed, choice).experience
            return agent.update(state, agent_key, batch)

        drawn = (choices, jax.random.split(agent_key, UPDATES), fixed if drawn_before else None)
        state, metrics = jax.lax.scan(update, state, drawn)
        return state, jax.tree.map(jnp.nanmean, metrics)

    return continuing(step, agent.init(jax.random.key(0)), fixed)


def _our_config(with_reference: bool) -> Any:
    from jaxrl_off import agents

    return agents.preset("nppac", pretrain_updates=0) if with_reference else agents.preset("sac")


def _our_training() -> Program:
    from jaxrl_off import agents, envs
    from jaxrl_off.training import LoopSettings, evaluate, make_train

    rates = dict.fromkeys(("learning_rate", "critic_learning_rate", "alpha_learning_rate"), PENDULUM["rate"])
    sizes = dict.fromkeys(("policy_sizes", "critic_sizes"), PENDULUM["widths"])
    config = agents.preset("sac", initial_actions="policy", **rates, **sizes)
    settings = LoopSettings(
        total_steps=PENDULUM["steps"],
        collect_length=1,
        batch_size=BATCH,
        reuse=float(BATCH),
        replay_capacity=PENDULUM["steps"],
        burn_in=PENDULUM["fill"],
        log_points=10,
    )
    train = make_train(agents.make, envs.make("Pendulum-v1", 1), settings)
    lanes = envs.make("Pendulum-v1", 128)
    judge = agents.make(config, lanes.spec, total_updates=1)

    def program(key: jax.Array) -> Any:
        result = train(config, key)
        return result.state.agent, result.metrics

    def score(result: Any) -> jax.Array:
        return jnp.mean(evaluate(judge, result[0], lanes, jax.random.key(0), max_steps=201).episode_return)

    return whole(program, score)


def schedule_of(task: str) -> tuple[int, int]:
    """Lanes, and steps of each between updates, of a loop."""
    return (1, 1) if task == "step_loop" else (4, 32)


def _our_loop(task: str) -> Program:
    from jaxrl_off import agents, envs, references
    from jaxrl_off.training import make_loop, regime

    (lanes, length), with_reference = schedule_of(task), task == "nppac_loop"
    sizes = dict(num_envs=lanes, collect_length=length, replay_capacity=CAPACITY, burn_in=BATCH)
    settings = regime("off_policy", **sizes).settings
    environment = envs.make(f"gymnasium/{LOOP['environment']}", lanes)
    parts: dict[str, Any] = {}
    if with_reference:
        reference = references.gp_icm(steps=20, fit_points=200)
        fitted = reference.fit(jax.random.key(0), *demonstrations(LOOP["reference_points"]))
        parts = dict(reference=reference.apply, reference_params=fitted)
    agent = agents.make(_our_config(with_reference), environment.spec, total_updates=10**6, **parts)
    loop = make_loop(agent, environment, settings)
    iterations = LOOP["steps"] // (lanes * length)

    def step(state: Any, key: jax.Array, fixed: Any) -> Any:
        del key, fixed  # the loop carries its own
        return jax.lax.scan(lambda state, _: loop.iterate(state), state, None, iterations)

    return continuing(step, jax.jit(loop.init)(jax.random.key(0)), ())


def rejax(task: str) -> Program:
    """rejax's SAC: its buffer, update and target update, in its order and loop, without its environment steps."""
    from gymnax.environments import spaces
    from rejax import SAC
    from rejax.buffers import Minibatch
    from rejax.evaluate import evaluate

    common = dict(num_envs=1, batch_size=BATCH, gamma=GAMMA, polyak=1.0 - TAU, num_critics=CRITICS)
    if task == "training":
        algorithm = SAC.create(
            env="Pendulum-v1",
            hidden_layer_sizes=PENDULUM["widths"],
            learning_rate=PENDULUM["rate"],
            buffer_size=PENDULUM["steps"],
            fill_buffer=PENDULUM["fill"],
            total_timesteps=PENDULUM["steps"],
            eval_freq=PENDULUM["steps"],
            skip_initial_evaluation=True,
            **common,
        )
        algorithm = algorithm.replace(eval_callback=lambda *_: ())

        def score(result: Any) -> jax.Array:
            act = algorithm.make_act(result)
            _, returns = evaluate(act, jax.random.PRNGKey(0), algorithm.env, algorithm.env_params, 128, 200)
            return jnp.mean(returns)

        return whole(lambda key: algorithm.train(key)[0], score)

    class MadeUp:
        """An environment with nothing but its spaces."""

        default_params = ()

        def observation_space(self, params: Any) -> Any:
            return spaces.Box(-jnp.inf, jnp.inf, (OBSERVATIONS,))

        def action_space(self, params: Any) -> Any:
            return spaces.Box(-1.0, 1.0, (ACTIONS,))

        def reset(self, key: jax.Array, params: Any) -> Any:
            return jnp.zeros(OBSERVATIONS), ()

        def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
            raise NotImplementedError

    algorithm = SAC.create(env=MadeUp(), hidden_layer_sizes=WIDTHS, learning_rate=RATE, buffer_size=CAPACITY, **common)
    state = algorithm.init_state(jax.random.PRNGKey(0))
    made_up = transitions(CAPACITY)
    names = dict(obs="observation", action="action", reward="reward", done="terminated", next_obs="next_observation")
    data = Minibatch(**{name: jnp.asarray(made_up[source]) for name, source in names.items()})
    fixed = stacked_batches(data) if task == "learner" else state.replay_buffer.extend(data)
    state = state.replace(replay_buffer=None)

    def step(state: Any, key: jax.Array, fixed: Any) -> Any:
        def update(i: jax.Array, state: Any) -> Any:
            rng, sample_key = jax.random.split(state.rng)
            state = state.replace(rng=rng)
            batch = jax.tree.map(lambda x: x[i], fixed) if task == "learner" else fixed.sample(BATCH, sample_key)
            state = algorithm.update(state, batch)
            target = algorithm.maybe_update_target_params(state.critic_ts.params, state.critic_target_params, i + 1, i)
            return state.replace(critic_target_params=target)

        return jax.lax.fori_loop(0, UPDATES, update, state.replace(rng=key)), ()

    return continuing(step, state, fixed)


def sbx(task: str) -> Program:
    """sbx's SAC: its `train` on its replay buffer, or its `learn`. Compiling cannot be had apart: it is the first call less
    the second."""
    import gymnasium
    from sbx import SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    class MadeUp(gymnasium.Env):
        """An environment with nothing but its spaces."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    environment, schedule = MadeUp(), {}
    if task.endswith("loop"):
        lanes, length = schedule_of(task)
        environment = make_vec_env(LOOP["environment"], lanes)
        schedule = dict(train_freq=(length, "step"), gradient_steps=-1, learning_starts=BATCH)
    model = SAC(
        "MlpPolicy",
        environment,
        learning_rate=RATE,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        tau=TAU,
        gamma=GAMMA,
        policy_kwargs=dict(net_arch=list(WIDTHS), n_critics=CRITICS),
        seed=0,
        **schedule,
    )
    model.set_logger(Logger(None, []))
    data = transitions(CAPACITY)
    if task in ("updates", "one_a_call"):
        buffer = model.replay_buffer
        buffer.observations[:, 0], buffer.next_observations[:, 0] = data["observation"], data["next_observation"]
        buffer.actions[:, 0], buffer.rewards[:, 0] = data["action"], data["reward"]
        buffer.dones[:, 0], buffer.full = data["terminated"], True

    def run(key: jax.Array) -> Any:
        if task == "learner":
            _sbx_learner(model, data, key)
        elif task.endswith("loop"):
            model.learn(LOOP["steps"], reset_num_timesteps=False)
        else:
            calls, each = (UPDATES, 1) if task == "one_a_call" else (1, UPDATES)
            for _ in range(calls):
                model.train(gradient_steps=each, batch_size=BATCH)
        return model.policy.actor_state.params, model.policy.qf_state.target_params

    def build() -> Clocks:
        jax.block_until_ready(run(jax.random.PRNGKey(0)))
        start = clocks()
        jax.block_until_ready(run(jax.random.PRNGKey(1)))
        return 2.0 * (clocks() - start)

    return Program(build, run)


def _sbx_learner(model: Any, data: dict[str, np.ndarray], key: jax.Array) -> None:
    """The compiled part of `model.train`."""
    from sbx.common.type_aliases import ReplayBufferSamplesNp

    names = ("observation", "action", "next_observation", "terminated", "reward")
    columns = [data[name][: UPDATES * BATCH].astype(np.float32) for name in names]
    drawn = ReplayBufferSamplesNp(*columns, np.full(UPDATES * BATCH, GAMMA, np.float32))
    policy = model.policy
    states = (policy.qf_state, policy.actor_state, model.ent_coef_state)
    states = model._train(model.tau, model.target_entropy, UPDATES, drawn, 1, 0, *states, key)
    policy.qf_state, policy.actor_state, model.ent_coef_state = states[:3]


def serve(build: Callable[[str], Program]) -> None:
    """Answer commands until stdin closes. What a library prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    program_of = functools.cache(build)
    results: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name, command, program = request["task"], request["command"], program_of(request["task"])
        key, left_out = jax.random.PRNGKey(request.get("seed", 0)), NOTHING
        if command == "compile":
            jax.clear_caches()
        start = clocks()
        if command == "score":
            answer = {"score": float(program.score(results[name]))}
        else:
            if command == "compile":
                left_out = program.compile()
            else:
                results[name] = jax.block_until_ready(program.run(key))
            answer = dict(zip(("seconds", "cpu_seconds"), (clocks() - start - left_out).tolist(), strict=True))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve({"ours": ours, "rejax": rejax, "sbx": sbx}[sys.argv[1]])
