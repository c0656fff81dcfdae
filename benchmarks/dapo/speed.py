"""Speed against peers, and of the pieces that decide it.

`python -m benchmarks.dapo.speed [--quick] [--output FILE] [--purejaxrl DIR] [--peer-python PYTHON]`

1. PPO on CartPole-v1 and Breakout-MinAtar against rejax (and PureJaxRL, where a checkout is named): same networks, batches and
   epochs, no evaluation, compilation apart. Each library lives in a process of its own; whole training runs take turns, so
   that other load on the machine strikes all alike, and every ratio is of two neighbouring runs. Processor time is recorded
   beside wall clock: on a busy machine it is the steadier of the two.
2. Eight seeds in one program: `sweep` against `vmap` of `lax` convolutions.
3. Samples a second of one learner, against this machine's float32 matrix product.
4. Atari, where ale-py is installed: acting in our loop against the bare emulator with the network's forward pass.

The first run makes `.venv-peers` with rejax, the last gymnax it runs on (0.0.9) and our jax.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.dapo.speed_worker import EPOCHS, SIZES, TASKS
from benchmarks.machinery.results import provenance
from benchmarks.machinery.turns import ROOT, Worker, peer_python, publish, speed_command, spread, summary
from jaxrl_off import agents, envs, networks
from jaxrl_off.envs.base import observation_size
from jaxrl_off.training import LoopSettings, make_loop, make_train, stack_configs, sweep

REJAX = ((f"jax=={jax.__version__}", "gymnax==0.0.9", "rejax==0.1.3", "distrax"),)
WORKER = Path(__file__).with_name("speed_worker.py")
BARS = {"CartPole-v1": 1.2, "Breakout-MinAtar": 1.1, "sweep": 4.0, "acting": 0.9}


def alternate(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each program in turn, after one untimed call of each."""
    for program in programs.values():
        jax.block_until_ready(program())
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product_rate(size: int = 1024, repeats: int = 20) -> float:
    """Best GFLOP/s of a float32 matrix product on this machine now."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2e-9 * size**3 / min(alternate({"product": lambda: product(x)}, repeats)["product"])


def ppo_flops_per_step(task: str) -> float:
    """Floating-point operations an environment step costs: acting, and forward and backward in every epoch.

    Multiplications and additions of the matrix products of separate actor and critic; the observation needs no gradient.
    """
    spec = envs.make(task, 1).spec
    inputs = observation_size(spec)
    hidden = sum(a * b for a, b in zip(SIZES[:-1], SIZES[1:], strict=True))
    forward = 2 * (2 * (inputs * SIZES[0] + hidden) + SIZES[-1] * (spec.action_space.num_actions + 1))
    backward = 2 * forward - 2 * 2 * inputs * SIZES[0]
    return forward + EPOCHS * (forward + backward)


def against_peers(task: str, workers: list[Worker], repeats: int, peak: float) -> dict[str, Any]:
    """One task, all libraries in turn; the first worker is ours."""
    record: dict[str, Any] = {worker.library: {"runs": [], "scores": []} for worker in workers}
    for worker in workers:
        worker.ask("compile", task)  # imports and the backend's start are not counted
        worker.ask("run", task)
        record[worker.library]["compilations"] = []
    for seed in range(repeats):
        for worker in workers:
            record[worker.library]["compilations"].append(worker.ask("compile", task))
            record[worker.library]["runs"].append(worker.ask("run", task, seed))
            record[worker.library]["scores"].append(worker.ask("score", task)["score"])
    steps, flops = TASKS[task]["steps"], ppo_flops_per_step(task)
    for entry in record.values():
        rates = [steps / run["seconds"] for run in entry["runs"]]
        entry["steps_per_second"] = summary(rates)
        entry["gflops"] = flops * statistics.median(rates) * 1e-9
        entry["fraction_of_matrix_product"] = entry["gflops"] / peak
        for what, clock in itertools.product(("runs", "compilations"), ("seconds", "cpu_seconds")):
            pairs = zip(record[workers[0].library][what], entry[what], strict=True)
            entry[f"{what}_ours_faster_by_{clock}"] = summary([theirs[clock] / ours[clock] for ours, theirs in pairs])
        entry["learned"] = statistics.median(entry["scores"]) >= TASKS[task]["goal"]
    return {"task": task, "flops_per_step": flops, "libraries": record}


def seeds_in_one_program(repeats: int, seeds: int = 8, iterations: int = 2) -> dict[str, Any]:
    """`sweep` against `vmap` of convolutions for several seeds of the convolutional MinAtar agent."""
    lanes, length = 16, 32
    settings = LoopSettings(
        total_steps=lanes * length * iterations,
        collect_length=length,
        rollout_length=length,
        batch_size=512,
        reuse=8,
        replay_capacity=16384,
        log_points=1,
    )
    train = make_train(agents.make, envs.make("Breakout-MinAtar", lanes), settings)
    configs = stack_configs([agents.preset("ppo_da")] * seeds)
    keys = jax.random.split(jax.random.key(0), seeds)
    ours = jax.jit(lambda keys: sweep(train, configs, keys).metrics).lower(keys).compile()
    with mock.patch.object(networks, "Convolution", functools.partial(networks.Convolution, form="lax")):
        plain = jax.jit(lambda keys: jax.vmap(train)(configs, keys).metrics).lower(keys).compile()
    seconds = alternate({"sweep": lambda: ours(keys), "vmap": lambda: plain(keys)}, repeats)
    ratios = [b / a for a, b in zip(seconds["sweep"], seconds["vmap"], strict=True)]
    rate = seeds * settings.total_steps / statistics.median(seconds["sweep"])
    return {"seeds": seeds, "seconds": seconds, "ratio": summary(ratios), "steps_per_second": rate}


def learner(image: str, repeats: int, peak: float, batch_size: int = 1024, rollout_length: int = 32) -> dict[str, Any]:
    """Samples a second of `agent.update` (PPO+DA) on a fixed batch."""
    shape, dtype = {"minatar": ((10, 10, 4), "bool"), "nature": ((84, 84, 4), "uint8")}[image]
    spec = envs.EnvironmentSpec(image, shape, dtype, envs.DiscreteSpace(6))
    agent = agents.make(agents.preset("ppo_da", torso=image), spec, total_updates=1000)
    state = agent.init(jax.random.key(0))
    rollouts, keys = batch_size // rollout_length, jax.random.split(jax.random.key(1), 3)
    batch = _batch(spec, agent, rollouts, rollout_length, keys)
    update = jax.jit(lambda state, batch: agent.update(state, keys[0], batch)).lower(state, batch).compile()
    seconds = alternate({"update": lambda: update(state, batch)}, repeats)["update"]
    costs = update.cost_analysis()
    flops = float((costs[0] if isinstance(costs, list) else costs)["flops"]) / batch_size
    rate = batch_size / statistics.median(seconds)
    return {
        "network": image,
        "seconds": seconds,
        "samples_per_second": rate,
        "flops_per_sample": flops,
        "gflops": rate * flops * 1e-9,
        "fraction_of_matrix_product": rate * flops * 1e-9 / peak,
    }


def _batch(spec: Any, agent: Any, rollouts: int, length: int, keys: jax.Array) -> Any:
    """Roll-outs `[R, T]` of made-up numbers with the shapes that the agent stores."""
    from jaxrl_off.types import Rollout

    shape = (rollouts, length)
    bits = jax.random.bits(keys[0], (*shape, *spec.observation_shape), "uint8")
    numbers, false = jax.random.normal(keys[1], shape), jnp.zeros(shape, bool)
    return Rollout(
        observation=bits if spec.observation_dtype == "uint8" else bits > 200,
        action=jax.random.randint(keys[2], shape, 0, spec.action_space.num_actions),
        reward=numbers,
        terminated=false,
        truncated=false,
        valid=~false,
        first=false,
        behaviour_log_prob=-1.8 + 0.01 * numbers,
        behaviour_value=numbers,
        final_value=jnp.zeros(shape),
        behaviour_parameters=(),
        advantage=numbers,
        lambda_return=numbers,
        tail_value=numbers[:, -1],
        core_state=agent.initial_core(rollouts),
        policy_version=jnp.zeros(rollouts, jnp.int32),
    )


def acting_on_atari(repeats: int, lanes: int = 16, length: int = 64) -> dict[str, Any]:
    """Decisions a second in our collecting loop, learner left out, against emulator and forward pass alone."""
    import ale_py

    environment = envs.make("ale/breakout", lanes)
    agent = agents.make(agents.preset("ppo_da"), environment.spec, total_updates=1)
    idle = agent._replace(update=lambda learner, key, batch: (learner, {"used": batch.tail_value[0]}))
    settings = LoopSettings(
        total_steps=lanes * length, collect_length=length, rollout_length=length, batch_size=lanes * length, reuse=1
    )
    loop = make_loop(idle, environment, settings)
    state = [jax.jit(loop.init)(jax.random.key(0))]
    iterate = jax.jit(lambda state: loop.iterate(state)[0])

    vector = ale_py.vector_env.AtariVectorEnv(
        "breakout", lanes, num_threads=min(lanes, provenance()["cores"]), use_fire_reset=False, reward_clipping=False
    )
    handle, reset, step = vector.xla()
    handle, (frames, _) = reset(handle, jnp.arange(lanes, dtype=jnp.int32))
    bare = [(handle, frames)]

    @jax.jit
    def bare_steps(carry: Any, learner: Any, key: jax.Array) -> Any:
        def one(carry: Any, key: jax.Array) -> tuple[Any, None]:
            handle, frames = carry
            observation = jnp.transpose(frames, (0, 2, 3, 1))
            action = agent.act(learner, key, observation, (), jnp.zeros(lanes, bool)).action
            handle, (frames, *_) = step(handle, action)
            return (handle, frames), None

        return jax.lax.scan(one, carry, jax.random.split(key, length))[0]

    def run_ours() -> Any:
        state[0] = iterate(state[0])
        return state[0].iteration

    def run_bare() -> Any:
        bare[0] = bare_steps(bare[0], state[0].agent, jax.random.key(0))
        return bare[0]

    seconds = alternate({"ours": run_ours, "bare": run_bare}, repeats)
    environment.close()
    vector.close()
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    rates = {name: lanes * length / statistics.median(values) for name, values in seconds.items()}
    return {"lanes": lanes, "seconds": seconds, "decisions_per_second": rates, "ratio": summary(ratios)}


def rows_of(content: dict[str, Any]) -> list[list[str]]:
    """The table of the report: what, ours, the other, ratio, bar."""
    rows = []
    for entry in content["tasks"]:
        libraries = entry["libraries"]
        ours = libraries["ours"]
        for name, theirs in libraries.items():
            if name == "ours":
                continue
            rows.append(
                [
                    f"PPO {entry['task']}, steps/s, against {name}",
                    f"{ours['steps_per_second']['median']:,.0f}",
                    f"{theirs['steps_per_second']['median']:,.0f}",
                    f"{spread(theirs['runs_ours_faster_by_seconds'])}; "
                    f"processor time {spread(theirs['runs_ours_faster_by_cpu_seconds'])}",
                    f"{BARS[entry['task']]}" if not name.startswith("ours") else "",
                ]
            )
            compile_times = [statistics.median(c["seconds"] for c in e["compilations"]) for e in (ours, theirs)]
            rows.append(
                [
                    f"compile {entry['task']}, s, against {name}",
                    *(f"{seconds:.1f}" for seconds in compile_times),
                    spread(theirs["compilations_ours_faster_by_seconds"]),
                    "1.0" if not name.startswith("ours") else "",
                ]
            )
    if "sweep" in content:
        sweep_ = content["sweep"]
        slow = [f"{statistics.median(sweep_['seconds'][name]):.2f} s" for name in ("sweep", "vmap")]
        rows.append([f"{sweep_['seeds']} seeds: sweep, vmap", *slow, spread(sweep_["ratio"]), f"{BARS['sweep']}"])
    for entry in content.get("learners", ()):
        rate, fraction = f"{entry['samples_per_second']:,.0f}", f"{100 * entry['fraction_of_matrix_product']:.0f} %"
        rows.append([f"learner, {entry['network']}, samples/s", rate, "", f"{fraction} of the matrix product", ""])
    if "acting" in content:
        acting = content["acting"]
        rates = [f"{acting['decisions_per_second'][name]:,.0f}" for name in ("ours", "bare")]
        rows.append(["acting, ALE Breakout, decisions/s", *rates, spread(acting["ratio"]), f"{BARS['acting']}"])
    return rows


def main() -> None:
    """Command line; see the module."""
    parser = speed_command(__doc__, "throughput", "two repeats of everything instead of seven")
    parser.add_argument("--purejaxrl", type=Path, help="folder with PureJaxRL's ppo.py and wrappers.py")
    parser.add_argument("--peer-python", type=Path, help="a Python that has rejax; default: make .venv-peers")
    options = parser.parse_args()
    repeats = 2 if options.quick else 7

    python = options.peer_python or peer_python(ROOT / ".venv-peers", REJAX)
    peak = matrix_product_rate()
    content: dict[str, Any] = {
        "benchmark": "throughput",
        "provenance": provenance(),
        "matrix_product_gflops": peak,
        "repeats": repeats,
        "tasks": [],
    }
    content["header"] = ["what", "ours", "the other", "ours faster by: median (range)", "bar"]
    workers = [Worker(sys.executable, "ours", script=WORKER), Worker(python, "rejax", script=WORKER)]
    if options.purejaxrl:
        workers.append(Worker(python, "purejaxrl", str(options.purejaxrl.resolve()), script=WORKER))
    workers.append(Worker(sys.executable, "ours_all_metrics", script=WORKER))
    for task in TASKS:
        print(f"{task}: {repeats} rounds of {', '.join(worker.library for worker in workers)} ...", flush=True)
        content["tasks"].append(against_peers(task, workers, repeats, peak))
    for worker in workers:
        worker.close()
    print("seeds in one program, learners, acting ...", flush=True)
    content["sweep"] = seeds_in_one_program(repeats)
    content["learners"] = [learner(image, repeats, peak) for image in ("minatar", "nature")]
    if importlib.util.find_spec("ale_py"):
        content["acting"] = acting_on_atari(repeats)
    content["rows"] = rows_of(content)
    publish(content, options.output)


if __name__ == "__main__":
    main()
