"""What the N-PPAC benchmarks share: methods, jobs of one task and method, demonstrations and fitted references kept on disk.

A job trains one method on one task for all its members (overrides of reals, seed) and evaluates the greedy policy at every
log point. Demonstrations and fitted references lie beside the results in the cache, named by what they were made from.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machinery.jobs import digest, pairs, rounded

CURVES = (
    "steps",
    "episode_return",
    "kl",
    "value",
    "kl_share_of_target",
    "reference_std_p01",
    "reference_std_p50",
    "kl_gradient_p50",
    "kl_gradient_p99",
    "critic_gradient_norm",
)


# What the committed results were made with, where the library's presets have since got other defaults; by preset. Not part of
# a job's name, as all jobs of a preset have it.
PINNED: dict[str, dict[str, Any]] = {}


def config_of(preset: str, static: dict[str, Any], reals: dict[str, float] | None = None) -> Any:
    """The agent's configuration: a preset, with the settings of these benchmarks."""
    from jaxrl_off import agents

    return agents.preset(preset, **(PINNED.get(preset, {}) | static | (reals or {})))


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        preset: key of `agents.PRESETS`.
        static: overrides that select the variant.
        reference: name and options of its reference policy, or None.
        tuned: the reals that are tuned together, and the values tried; as many for every method.
        updates_per_step: gradient updates per sample collected.
    """

    preset: str
    static: dict[str, Any]
    reference: tuple[str, dict[str, Any]] | None
    tuned: tuple[tuple[str, ...], tuple[float, ...]]
    updates_per_step: int = 1


def methods(
    *, policy: str, kernel: str, sizes: tuple[int, ...], pretrain: int, fit: dict[str, Any], wide: bool = False
) -> dict[str, Method]:
    """All methods, with one network size.

    Methods keep what makes them themselves: BRAC-v is not pre-trained and samples its KL four times, RLPD's policy is squashed,
    AWAC's and the clone's are not. RLPD is cut to 4 critics and 4 updates a step, from 10 and 20.

    Args:
        policy: `normal` (hand) or `tanh_normal`, of all others.
        kernel: of the Gaussian process.
        sizes: hidden layers of all networks.
        pretrain: updates of pre-training, and of offline learning where a method has that instead.
        fit: `{"gp": options, "network": options}` for fitting references.
        wide: tune over six values instead of four.
    """
    networks = dict(policy_sizes=sizes, critic_sizes=sizes)
    kl = dict(policy=policy, kl="analytic" if policy == "normal" else "sampled", pretrain_updates=pretrain, **networks)
    alphas = (("alpha",), (0.01, 0.05, 0.2, 1.0) + ((3.0, 10.0) if wide else ()))
    awac = (("alpha",), (0.03, 0.1, 1.0 / 3.0, 1.0) + ((3.0, 10.0) if wide else ()))
    middle = (1e-4, 3e-4, 1e-3, 3e-3)
    rates = (("learning_rate", "critic_learning_rate"), (3e-5, *middle, 1e-2) if wide else middle)
    network = fit["network"]

    def nppac(reference: str, **options: Any) -> Method:
        return Method("nppac", kl, (reference, options), alphas)

    return {
        "N-PPAC (GP)": nppac("gp_icm", kernel=kernel, **fit["gp"]),
        "N-PPAC (network)": nppac("gaussian_network", **network),
        "N-PPAC (network, entropy bonus)": nppac("gaussian_network", entropy_bonus=0.5, **network),
        "N-PPAC (network, sd of 0.2)": nppac("gaussian_network", fixed_std=0.2, **network),
        "N-PPAC (ensemble)": nppac("ensemble", **network),
        "N-PPAC (dropout)": nppac("dropout", **network),
        "BRAC-v": Method("brac_v", dict(policy=policy, **networks), ("gaussian_network", network), alphas),
        "AWAC": Method("awac", dict(offline_updates=pretrain, **networks), None, awac),
        "SAC": Method("sac", dict(policy=policy, **networks), None, rates),
        "SAC from demonstrations": Method("sacfd", dict(policy=policy, **networks), None, rates),
        "RLPD (4 updates a step)": Method("rlpd", dict(critics=4, policy_period=4, **networks), None, rates, 4),
        "BC": Method("bc", dict(networks, pretrain_updates=2 * pretrain), None, rates),
    }


@dataclasses.dataclass(frozen=True)
class CachedJob:
    """A job whose results, and whatever else it makes, lie in `cache`.

    Attributes:
        environment: for `envs.make`.
        cache: folder.
    """

    environment: str
    cache: Path

    @property
    def name(self) -> str:
        """Content hash, the file name of the result."""
        content = dataclasses.asdict(self)
        del content["cache"]
        return digest(content)


@dataclasses.dataclass(frozen=True)
class NppacJob(CachedJob):
    """One task and method.

    Attributes:
        parameters: for `envs.make`.
        method: label.
        preset, static, reference: see `Method`; all as JSON.
        demonstrations: file, relative to the cache, that holds them; its name tells what it was made from.
        settings: `LoopSettings` fields.
        num_envs: lanes.
        evaluation_episodes: greedy episodes at every log point.
        evaluation_max_steps: of each.
        members: pairs (overrides of reals as sorted pairs, seed).
        cell: further labels of the result.
    """

    parameters: str
    method: str
    preset: str
    static: str
    reference: str
    demonstrations: str
    settings: tuple[tuple[str, Any], ...]
    num_envs: int
    evaluation_episodes: int
    evaluation_max_steps: int
    members: tuple[tuple[tuple[tuple[str, float], ...], int], ...]
    cell: tuple[tuple[str, Any], ...]

    @property
    def cost(self) -> float:
        """Samples trained on, to start the longest first."""
        settings = dict(self.settings)
        return settings["total_steps"] * (1.0 + settings["reuse"]) * len(self.members)


def make_job(
    environment: str,
    method_name: str,
    method: Method,
    *,
    demonstrations: Path,
    loop: dict[str, Any],
    members: Iterable[tuple[dict[str, float], int]],
    parameters: dict[str, Any] | None = None,
    evaluation: tuple[int, int],
    **cell: Any,
) -> NppacJob:
    """A job of four lanes.

    Args:
        environment: for `envs.make`.
        method_name: label.
        method: what is trained.
        demonstrations: file in the cache.
        loop: `total_steps`, `batch_size` and `log_points`.
        members: pairs (overrides of reals, seed).
        parameters: for `envs.make`.
        evaluation: greedy episodes at every log point, and the most steps of each.
        **cell: further labels of the result.
    """
    num_envs = 4
    steps, batch = loop["total_steps"], loop["batch_size"]
    settings = {
        "collect_length": 100 // num_envs,
        "rollout_length": 1,
        "reuse": float(method.updates_per_step * batch),
        "replay_capacity": -(-steps // 100) * 100,
        "burn_in": 1000,
        **loop,
    }
    return NppacJob(
        environment=environment,
        parameters=json.dumps(parameters or {}, sort_keys=True),
        method=method_name,
        preset=method.preset,
        static=json.dumps(method.static, sort_keys=True),
        reference=json.dumps(method.reference, sort_keys=True),
        demonstrations=demonstrations.name,
        settings=pairs(settings),
        num_envs=num_envs,
        evaluation_episodes=evaluation[0],
        evaluation_max_steps=evaluation[1],
        members=tuple((pairs(reals), seed) for reals, seed in members),
        cell=pairs(cell),
        cache=demonstrations.parent,
    )


def fitted_reference(
    reference: tuple[str, dict[str, Any]], demonstrations: Path, space: Any, seed: int
) -> tuple[Any, Any]:
    """`(apply, params)` of a reference fitted to a file of demonstrations, from the cache where it was fitted before.

    Args:
        reference: name and options.
        demonstrations: the file.
        space: of the actions.
        seed: of the fit.
    """
    import jax

    from jaxrl_off import references
    from jaxrl_off.data.demonstrations import load
    from jaxrl_off.data.trees import load_tree, save_tree
    from jaxrl_off.envs.base import to_canonical

    name, options = reference
    made = references.make(name, **options)
    path = demonstrations.with_name(f"{demonstrations.stem}-{name}-{digest([reference, seed])}.npz")
    if not path.exists():
        demos = load(demonstrations)
        params = made.fit(jax.random.key(seed), demos.observation, to_canonical(space, demos.action))
        try:
            save_tree(params, path)
        except FileExistsError:  # another worker was faster; both fits are the same
            pass
    return made.apply, load_tree(path)


def run_nppac_job(job: NppacJob) -> dict[str, Any]:
    """Train and evaluate all members; returns labels, curves and times, JSON-ready."""
    import jax
    import numpy as np

    from jaxrl_off import agents, envs
    from jaxrl_off.data.demonstrations import load
    from jaxrl_off.training import LoopSettings, evaluate, make_loop, plan

    demonstrations_path = job.cache / job.demonstrations
    parameters, reference = json.loads(job.parameters), json.loads(job.reference)
    static = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(job.static).items()}
    settings = LoopSettings(**dict(job.settings))
    lanes = envs.make(job.environment, job.num_envs, **parameters)
    judges = envs.make(job.environment, job.evaluation_episodes, **parameters)
    total_updates = plan(settings, job.num_envs).total_updates

    started = time.perf_counter()
    config = config_of(job.preset, static)
    parts: dict[str, Any] = {}
    fitted: dict[int, Any] = {seed: () for _, seed in job.members}
    if reference is not None:
        for seed in fitted:
            parts["reference"], fitted[seed] = fitted_reference(
                tuple(reference), demonstrations_path, lanes.spec.action_space, seed
            )
    if agents.wants_demonstrations(config):
        parts["demonstrations"] = load(demonstrations_path)
    agent_of = functools.partial(agents.make, spec=lanes.spec, total_updates=total_updates, **parts)
    ready = time.perf_counter()

    # config and fitted reference are arguments, so that members share one program
    @jax.jit
    def init(config: Any, reference_params: Any, key: Any) -> Any:
        return make_loop(agent_of(config, reference_params=reference_params), lanes, settings).init(key)

    @jax.jit
    def interval(config: Any, state: Any) -> Any:
        return make_loop(agent_of(config), lanes, settings).log_interval(state)

    @jax.jit
    def judge(config: Any, agent_state: Any, key: Any) -> Any:
        agent = agent_of(config)
        state = agent.publish(agent_state)
        return evaluate(agent, state, judges, key, greedy=True, max_steps=job.evaluation_max_steps)

    runs = []
    for reals, seed in job.members:
        key = jax.random.key(seed)
        member = config_of(job.preset, static, dict(reals))
        member = jax.tree.map(lambda leaf: np.float32(leaf), member)
        state = init(member, fitted[seed], key)
        curves: dict[str, list[Any]] = {name: [] for name in ("evaluation_steps", "evaluation", *CURVES)}
        nonfinite = 0.0
        for number in range(plan(settings, job.num_envs).log_points + 1):
            if number:
                state, metrics = interval(member, state)
                nonfinite += float(metrics["nonfinite"])
                for name in CURVES:
                    curves[name].append(rounded(float(metrics.get(name, np.nan))))
            result = judge(member, state.agent, jax.random.fold_in(key, 1000 + number))
            curves["evaluation_steps"].append(curves["steps"][-1] if number else 0)
            curves["evaluation"].append([rounded(float(x)) for x in result.episode_return])
        runs.append({"reals": dict(reals), "seed": seed, "nonfinite": nonfinite, "curves": curves})
    finished = time.perf_counter()
    lanes.close()
    judges.close()
    return {
        "environment": job.environment,
        "parameters": parameters,
        "method": job.method,
        "preset": job.preset,
        "static": json.loads(job.static),
        "reference": reference,
        "settings": dict(job.settings),
        "num_envs": job.num_envs,
        **dict(job.cell),
        "fit_seconds": round(ready - started, 2),
        "run_seconds": round(finished - ready, 2),
        "runs": runs,
    }


@dataclasses.dataclass(frozen=True)
class ExpertJob(CachedJob):
    """An expert of our own: SAC on the task's dense reward, and demonstrations of it with its exploration noise.

    Attributes:
        parameters: for `envs.make`.
        steps: samples that it is trained on, an update for each.
        sizes: of its networks.
        episodes: demonstrated.
        every: keep every so-many-th step of them.
    """

    parameters: str
    steps: int
    sizes: tuple[int, ...]
    episodes: int
    every: int

    @property
    def cost(self) -> float:
        """Samples, to start the longest first."""
        return float(self.steps)

    @property
    def method(self) -> str:
        """Label of failures."""
        return "the expert (SAC)"

    @property
    def demonstrations(self) -> Path:
        """The file that it writes."""
        return self.cache / f"demonstrations-{self.name}.npz"


def run_expert_job(job: ExpertJob) -> dict[str, Any]:
    """Train the expert, write its demonstrations, and say what they earn."""
    import jax

    from jaxrl_off import agents, envs
    from jaxrl_off.data.demonstrations import episode_returns, save, subsample
    from jaxrl_off.envs.base import from_canonical
    from jaxrl_off.training import LoopSettings, collect, make_train, policy_of

    lanes = envs.make(job.environment, 4, **json.loads(job.parameters))
    settings = LoopSettings(
        total_steps=job.steps,
        collect_length=25,
        rollout_length=1,
        batch_size=128,
        reuse=128.0,
        replay_capacity=job.steps,
        burn_in=1000,
        log_points=10,
    )
    rates = dict(learning_rate=1e-3, critic_learning_rate=1e-3)
    config = config_of("sac", dict(policy_sizes=job.sizes, critic_sizes=job.sizes), rates)
    started = time.perf_counter()
    result = jax.jit(make_train(agents.make, lanes, settings))(config, jax.random.key(7))
    agent = agents.make(config, lanes.spec, total_updates=1)
    act = policy_of(agent, agent.publish(result.state.agent), greedy=False)
    demonstrations = collect(act, lanes, jax.random.key(8), episodes=job.episodes)
    space = lanes.spec.action_space

    def at_random(key: Any, observation: Any) -> Any:
        shape = (len(observation), len(space.low))
        return from_canonical(space, jax.random.uniform(key, shape, minval=-1.0))

    random = collect(at_random, lanes, jax.random.key(9), episodes=20)
    lanes.close()
    returns = episode_returns(demonstrations)
    save(subsample(demonstrations, job.every), job.demonstrations, overwrite=True)
    return {
        "environment": job.environment,
        "steps": job.steps,
        "episodes": job.episodes,
        "every": job.every,
        "demonstrated_steps": len(demonstrations.episode) // job.every,
        "returns": [rounded(float(x)) for x in returns],
        "random_returns": [rounded(float(x)) for x in episode_returns(random)],
        "training_returns": [rounded(float(x)) for x in result.metrics["episode_return"]],
        "seconds": round(time.perf_counter() - started, 1),
    }
