"""Coverage and width of every interval of estimators on trajectories, on processes whose values are exact.

`python -m benchmarks.star.coverage --preset quick|cpu [--workers N] [--output FILE]`

Two processes: *graph*, two rails of a fixed number of steps, the longer the heavier the weights' tails; and *random*, drawn
once with five states, rewards in [0, 1], and an end after four steps in the mean. Data sets are drawn anew for each repetition,
and all of a case go through one compiled program. Stated are the share of intervals that hold the truth, with its Monte Carlo
standard error, on which side the others miss it, and the mean width. `naive` is held against the behaviour policy's value, all
others against the target's. DR and WDR have the Q of the counted model of the same data; STAR has every state a cell, and full
products. Ranges of high-confidence bounds are those that follow from the rewards and the policies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import digest, rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results

LEVEL = 0.9
CHANCES = {"behaviour": 0.5, "target": 0.7}  # of action 0
ASYMPTOTIC = ("student_t", "bootstrap", "bca")
BOUNDED = ("hoeffding", "empirical_bernstein", "betting", "anderson")
BATCH = 20  # data sets at a time
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(cases=(("graph", 5), ("random", 20)), sizes=(50,), repetitions=200, resamples=50, models=False),
    "cpu": dict(
        cases=(("graph", 5), ("graph", 20), ("random", 20)),
        sizes=(25, 100, 400),
        repetitions=1000,
        resamples=200,
        models=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A job of `machinery.jobs.run_all`.

    Attributes:
        domain: "graph" or "random".
        horizon: T.
        size: trajectories of a data set.
        repetitions: data sets; a fourth of them where a model is solved for every resample.
        resamples: of the bootstrap.
        models: whether methods that solve a model take part.
    """

    domain: str
    horizon: int
    size: int
    repetitions: int
    resamples: int
    models: bool

    name = property(lambda self: digest(dataclasses.asdict(self)))
    cost = property(lambda self: self.size * self.repetitions * self.horizon)
    method = property(lambda self: f"n = {self.size}")
    environment = property(lambda self: f"{self.domain}, {self.horizon} steps")


def chain_of(domain: str, horizon: int) -> Any:
    """The process, a `Chain`."""
    from jaxrl_off.envs.chain import Chain, graph
    from jaxrl_off.envs.tabular import TabularMDP

    if domain == "graph":
        return graph(horizon)
    random = np.random.default_rng(1)
    transition = np.zeros((6, 2, 6))
    transition[:5, :, :5] = 0.75 * random.dirichlet(np.full(5, 0.5), size=(5, 2))
    transition[:5, :, 5], transition[5, :, 5] = 0.25, 1.0
    reward = np.vstack([random.random((5, 2)), np.zeros((1, 2))])
    initial = np.append(random.dirichlet(np.ones(5)), 0.0)
    return Chain(TabularMDP(transition, reward, initial, np.float64(0.98)), np.arange(6) == 5, None, horizon)


def policies_of(chain: Any) -> dict[str, np.ndarray]:
    """Behaviour and target policy, `[S, 2]`, alike in all states."""
    states = len(chain.terminal)
    return {name: np.tile([chance, 1.0 - chance], (states, 1)) for name, chance in CHANCES.items()}


def programs_of(chain: Any, domain: str, resamples: int) -> dict[str, tuple[Callable[..., Any], bool]]:
    """By method, `trajectories, log pi_e -> {interval: (lower, upper)}` of one data set, and whether it solves a model."""
    from jaxrl_off.estimators.trajectory.reward_processes.star import star
    from jaxrl_off.estimators.trajectory.values import tabular
    from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
    from jaxrl_off.estimators.trajectory.weights import importance as weighted

    discount, target = float(chain.mdp.discount), policies_of(chain)["target"]
    reward_range = (-1.0, 1.0) if domain == "graph" else (0.0, 1.0)
    steps = discount ** np.arange(chain.horizon)
    return_range = tuple(float(end * steps.sum()) for end in reward_range)
    largest = max(CHANCES["target"], 1.0 - CHANCES["target"]) / 0.5
    weight_max = largest ** np.arange(1, chain.horizon + 1)
    shared = dict(discount=discount, level=LEVEL, resamples=resamples)

    def all_of(method: Callable[..., Any], intervals: tuple[str, ...], **known: Any) -> Callable[..., Any]:
        def bounds(data: Any, log_prob: Any) -> dict[str, Any]:
            made = {
                kind: method(data, log_prob, interval=kind, **shared, **(known if kind in BOUNDED else {}))
                for kind in intervals
            }
            return {kind: (found.lower, found.upper) for kind, found in made.items()}

        return bounds

    def by_model(method: Callable[..., Any]) -> Callable[..., Any]:
        def estimate(data: Any, log_prob: Any, **options: Any) -> Any:
            table = tabular.tabular_q(data, target, discount=discount)
            values = tabular.values_on(data, table, target)
            return method(data, log_prob, values.q, values.v, **options)

        return estimate

    def likelihood(data: Any, log_prob: Any) -> dict[str, Any]:
        known = dict(return_range=return_range, weight_max=float(weight_max[-1]), discount=discount, level=LEVEL)
        made = {
            kind: weighted.empirical_likelihood(data, log_prob, calibration=kind, **known)
            for kind in ("f", "finite_sample")
        }
        return {f"likelihood, {kind}": (found.lower, found.upper) for kind, found in made.items()}

    def abstract(data: Any, log_prob: Any, **options: Any) -> Any:
        return star(data, log_prob, data.observations, len(chain.terminal), **options)

    def model(data: Any, log_prob: Any, **options: Any) -> Any:
        del log_prob
        return tabular.model_based(data, target, **options)

    every = (*ASYMPTOTIC, *BOUNDED)
    returns = dict(return_range=return_range, weight_max=weight_max)
    return {
        "naive": (all_of(weighted.naive, ASYMPTOTIC), False),
        "IS": (all_of(weighted.trajectory_is, every, **returns), False),
        "PDIS": (all_of(weighted.pdis, every, reward_range=reward_range, weight_max=weight_max), False),
        "WIS": (all_of(weighted.wis, ASYMPTOTIC), False),
        "CWPDIS": (all_of(weighted.cwpdis, ASYMPTOTIC), False),
        "EL": (likelihood, False),
        "DR": (all_of(by_model(corrected.doubly_robust), ASYMPTOTIC), False),
        "WDR": (all_of(by_model(corrected.weighted_doubly_robust), ASYMPTOTIC), False),
        "STAR": (all_of(abstract, ASYMPTOTIC), True),
        "model": (all_of(model, ASYMPTOTIC), True),
    }


def run_case(case: Case) -> dict[str, Any]:
    """All data sets of a case; coverage by method and interval."""
    import jax
    import jax.numpy as jnp

    started = time.perf_counter()
    chain = chain_of(case.domain, case.horizon)
    policies = policies_of(chain)
    truth = {name: float(chain.value(policy)) for name, policy in policies.items()}
    keys = jax.random.split(jax.random.key(case.size + case.horizon), case.repetitions)
    sample = chain.sampler()
    data = jax.vmap(lambda key: sample(key, case.size, policies["behaviour"]))(keys)
    log_prob = np.log(policies["target"])[np.asarray(data.observations), np.asarray(data.actions)]
    found = {}
    with jax.enable_x64(True):
        data, log_prob = jax.tree.map(jnp.asarray, (data, log_prob))
        # the exact probabilities, not their float32
        data = data._replace(behaviour_log_prob=jnp.full_like(log_prob, np.log(0.5)))
        for name, (program, solves) in programs_of(chain, case.domain, case.resamples).items():
            if solves and not case.models:
                continue
            count = max(case.repetitions // 4, 1) if solves else case.repetitions
            given = jax.tree.map(lambda x, count=count: x[:count], (data, log_prob))
            mapped = jax.jit(lambda x, program=program: jax.lax.map(lambda y: program(*y), x, batch_size=BATCH))
            value = truth["behaviour" if name == "naive" else "target"]
            found[name] = {kind: summary(*map(np.asarray, ends), value) for kind, ends in mapped(given).items()}
    return {
        "domain": case.domain,
        "horizon": case.horizon,
        "n": case.size,
        "repetitions": case.repetitions,
        "truth": truth,
        "seconds": round(time.perf_counter() - started, 1),
        "methods": found,
    }


def summary(lower: np.ndarray, upper: np.ndarray, truth: float) -> dict[str, Any]:
    """Coverage and its standard error, the shares of intervals that lie above and below the truth, and the mean width."""
    above, below = np.mean(lower > truth + 1e-9), np.mean(upper < truth - 1e-9)  # bounds are exact but for rounding
    covered = 1.0 - above - below
    return {
        "coverage": rounded(covered),
        "standard_error": rounded(np.sqrt(covered * (1.0 - covered) / len(lower))),
        "above": rounded(above),
        "below": rounded(below),
        "width": rounded(np.mean(upper - lower)),
        "intervals": len(lower),
    }


def verdict(cell: dict[str, Any]) -> str:
    """`holds` where coverage is not below the level by more than two standard errors, else `short`."""
    error = max(cell["standard_error"], np.sqrt(LEVEL * (1.0 - LEVEL) / cell["intervals"]))
    return "holds" if cell["coverage"] >= LEVEL - 2.0 * error else "short"


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows, for each process and number of steps: coverage ± its error / width, by n."""
    made = []
    for domain, horizon in dict.fromkeys((row["domain"], row["horizon"]) for row in content["results"]):
        cases = [row for row in content["results"] if (row["domain"], row["horizon"]) == (domain, horizon)]
        lines = []
        for method, intervals in cases[0]["methods"].items():
            for kind in intervals:
                cells = [case["methods"][method][kind] for case in cases]
                lines.append([method, kind, *(_shown(cell) for cell in cells)])
        title = f"{domain}, {horizon} steps, level {LEVEL:g}: coverage ± Monte Carlo error / mean width; * short of the level"
        made.append((title, ["estimator", "interval", *(f"n = {case['n']:,}" for case in cases)], lines))
    return made


def _shown(cell: dict[str, Any]) -> str:
    width = "infinite" if cell["width"] is None else f"{cell['width']:.3g}"
    mark = "*" if verdict(cell) == "short" else ""
    return f"{cell['coverage']:.3f}{mark} ± {cell['standard_error']:.3f} / {width}"


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    rest = {name: preset[name] for name in ("repetitions", "resamples", "models")}
    jobs = [Case(domain, horizon, size, **rest) for domain, horizon in preset["cases"] for size in preset["sizes"]]
    found = run_all(jobs, cache, workers=workers, title="coverage", runner=run_case)
    return write_results(output, "ope_coverage", preset_name, preset, found, found)


def claims(content: dict[str, Any]) -> list[Claim]:
    """That intervals that should cover at every n do."""
    cells = [
        cell
        for case in content["results"]
        for method in case["methods"].values()
        for kind, cell in method.items()
        if kind in (*BOUNDED, "likelihood, finite_sample")
    ]
    if not cells:
        return []
    least = min(cells, key=lambda cell: cell["coverage"])
    short = sum(verdict(cell) == "short" for cell in cells)
    return [
        Claim(
            f"bounds that hold at every n cover with at least {LEVEL:.0%}",
            "not in the paper; what the bounds promise",
            f"{len(cells) - short} of {len(cells)} cells; least {least['coverage']:.3f} ± {least['standard_error']:.3f}",
            "fails" if short else "holds",
        )
    ]


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main("ope_coverage", PRESETS, run, tables, description=__doc__, cache="ope_coverage", arguments=arguments)


if __name__ == "__main__":
    main()
