"""Every estimator of off-policy values on every domain: how accurate, how honest, how good at ranking policies, how fast.

`python -m benchmarks.star.suite --preset quick|cpu [--workers N] [--output FILE]`

A case is a domain of `suite_domains` and a number of trajectories. In every repetition the behaviour policy acts anew, and all
estimators judge several policies by the same data, with 95 % intervals (Student t, of the estimator's own linearisation).
Reported are the relative squared error, mean over policies; how often intervals hold the truth, and how wide they are; and over
policies Spearman's rank correlation, regret@1 (of the spread of values), SharpeRatio@3, and errors of the decision to take what
seems better than the policy that acted (type I: taken, but worse). NAIVE, the mean return of that policy, takes part.

* Tabular methods work on states, or on the tiles and cells of the domain. Action values that something corrects are fitted to
  the other half of the data; `FQE` to all, with the fit in its error. In tables `FQE` is the counted model, and LSTD-Q.
  Intervals of `QReg` know nothing of the error that the fit has; those of `MAGIC` are WDR's, stretched to hold its value.
* `MRDR` is the doubly robust estimator with the values of least variance; `DRL` has marginal ratios by step, means of the
  products of ratios of those who are in a state then, as in MIS.
* STAR is run on a grid of abstractions and windows. Its *best* and *median* points are found with the truth in hand, *selected*
  is what `star_selection.select_by_error` chooses, with an interval that does not know of the choice.
* "quadratic": action values and ratios that are linear in products of two of what is observed, instead of tables. What DR, WDR
  and MAGIC correct is fitted "by steps", backwards from the horizon; DICE and `FQE, quadratic` are fixed points.
* DualDICE and BestDICE take memory of pairs by pairs, and are left out where there are more than 2,000; so is Retrace in
  tables, which has features for every step, where there are more than 100.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import machinery
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import digest, rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results
from benchmarks.machinery.verdicts import all_of, verdict
from benchmarks.star.methods import LEVEL, Function, Inputs, methods_of

if TYPE_CHECKING:
    from benchmarks.star.suite_domains import Domain
    from jaxrl_off.types import Array, Estimate

WINDOWS = (1, 2, 5, None)
QUICK = ("NAIVE", "PDIS", "WIS", "CWPDIS", "FQE", "WDR", "MIS")
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(repetitions={"graph": 20}, sizes=(100,), resamples=0, methods=QUICK),
    "cpu": dict(
        # one estimate of sepsis takes as long as a hundred of the others
        repetitions=dict(graph=30, random=30, mountain_car=30, sepsis=10, cartpole=30, asterix=30, pendulum=30),
        sizes=(200,),
        resamples=20,
        methods=None,
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, a job of `machinery.jobs.run_all`.

    Attributes:
        domain: key of `suite_domains.DOMAINS`.
        size: trajectories.
        repetitions: data sets.
        resamples: of the rule that selects among STAR's grid, or 0 for none.
        methods: names of those that take part, or None for all.
    """

    domain: str
    size: int
    repetitions: int
    resamples: int
    methods: tuple[str, ...] | None

    name = property(lambda self: digest(dataclasses.asdict(self)))
    cost = property(lambda self: self.size * self.repetitions)
    method = property(lambda self: f"n = {self.size}")
    environment = property(lambda self: self.domain)


def run_case(case: Case) -> dict[str, Any]:
    """Run all repetitions of a case; returns the summary of every method."""
    import jax

    from benchmarks.star.suite_domains import DOMAINS

    started = time.perf_counter()
    domain = DOMAINS[case.domain]()
    inputs = inputs_of(domain, case)
    functions = {name: f for name, f in methods_of(domain).items() if case.methods is None or name in case.methods}
    with jax.enable_x64(True):
        found = {name: evaluated(function, inputs) for name, function in functions.items()}
        points, grid = star_of(domain, inputs, case.resamples)
    rows = {name: summary(*columns, domain) for name, columns in (found | grid).items()}
    return {
        "domain": case.domain,
        "n": case.size,
        "repetitions": case.repetitions,
        "truth": [rounded(x) for x in domain.truth],
        "truth_error": [rounded(x) for x in domain.truth_error],
        "behaviour_value": rounded(domain.behaviour_value),
        "discount": domain.discount,
        "seconds": round(time.perf_counter() - started, 1),
        "star": points,
        "methods": rows,
    }


def inputs_of(domain: Domain, case: Case) -> Inputs:
    """Data sets `[R, ...]`; of policies `[R, K, ...]`, or `[K, ...]` where they are tables."""
    import jax

    parts = []
    for number in range(case.repetitions):
        key = jax.random.fold_in(jax.random.key(case.size), number)
        drawn = jax.device_get(domain.sample(key, case.size))
        cells = np.stack([np.asarray(phi(drawn.observations)) for phi in domain.abstractions])
        final, final_cells = None, None
        if not domain.horizon_exit:
            final = drawn.final_observation
            final_cells = np.stack([np.asarray(phi(final)) for phi in domain.abstractions])
        data = drawn._replace(observations=None, final_observation=final)
        if domain.states is not None:
            data = data._replace(observations=np.asarray(domain.states(drawn)))
        target, observed = None, None
        if domain.targets is not None:
            target, observed = jax.device_get(domain.targets(drawn)), drawn
        log_prob = np.asarray(domain.log_prob(drawn), np.float64)
        parts.append((data, log_prob, target, observed, cells, final_cells))
    data, log_prob, target, observed, *cells = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    return Inputs(data, log_prob, domain.tables, target, observed, domain.behaviour_table, *cells)


def evaluated(function: Function, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Values and ends of intervals, `[R, K]` each, and seconds an estimate takes once it is compiled."""
    import jax

    each_policy = Inputs(None, 0, 0, 0, None, None, None, None)

    def of_policy(one: Inputs) -> tuple[Array, Array, Array]:
        found = function(one)
        return found.value, found.lower, found.upper

    def of_data_set(drawn: Inputs) -> tuple[Array, Array, Array]:
        one = drawn._replace(policy=inputs.policy, behaviour=inputs.behaviour)
        return jax.vmap(of_policy, in_axes=(each_policy,))(one)

    program = jax.jit(lambda drawn: jax.lax.map(of_data_set, drawn))
    drawn = jax.tree.map(jax.numpy.asarray, inputs._replace(policy=None, behaviour=None))
    program = program.lower(drawn).compile()
    started = time.perf_counter()
    found = jax.block_until_ready(program(drawn))
    seconds = (time.perf_counter() - started) / found[0].size
    return *(np.asarray(x) for x in found), seconds


def star_of(domain: Domain, inputs: Inputs, resamples: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Labels of the best and the median point of STAR's grid, and what `evaluated` returns for them and the selected one."""
    from jaxrl_off.estimators.trajectory.reward_processes import selection as star_selection
    from jaxrl_off.estimators.trajectory.reward_processes import star
    from jaxrl_off.types import Estimate

    sizes = [phi.num_states for phi in domain.abstractions]
    most, options = max(sizes), dict(discount=domain.discount, horizon_exit=domain.horizon_exit)

    def point(index: int) -> Function:
        place, window = index // len(WINDOWS), WINDOWS[index % len(WINDOWS)]

        def estimate(x: Inputs) -> Estimate:
            final = None if x.final_cells is None else x.final_cells[place]
            settings = dict(window=window, final_states=final, level=LEVEL)
            return star.star(x.data, x.target_log_prob, x.cells[place], sizes[place], **settings, **options)

        return estimate

    def grid(x: Inputs) -> Estimate:
        given = (x.data, x.target_log_prob, x.cells, most, WINDOWS)
        values = star.star_values(*given, final_states=x.final_cells, **options).ravel()
        return Estimate(values, values, values, values, values, {})

    def selected(x: Inputs) -> Estimate:
        given = (x.data, x.target_log_prob, x.cells, most, WINDOWS)
        candidates = star_selection.star_candidates(*given, final_states=x.final_cells, resamples=resamples, **options)
        # the finest abstraction with all ratios has the least bias
        chosen = star_selection.select_by_error(candidates, len(candidates.values) - 1, level=LEVEL)
        return Estimate(chosen.value, chosen.standard_error, chosen.lower, chosen.upper, chosen.value, {})

    values = evaluated(grid, inputs)[0]
    errors = np.square((values - domain.truth[:, None]) / domain.truth[:, None]).mean(axis=(0, 1))
    order = np.argsort(np.where(np.isfinite(errors), errors, np.inf), kind="stable")
    chosen = {"STAR best": int(order[0]), "STAR median": int(order[len(order) // 2])}
    labels = {
        name: f"|Z| = {sizes[index // len(WINDOWS)]}, window {WINDOWS[index % len(WINDOWS)] or 'all'}"
        for name, index in chosen.items()
    }
    found = {name: evaluated(point(index), inputs) for name, index in chosen.items()}
    if resamples:
        found["STAR selected"] = evaluated(selected, inputs)
    return labels, found


def summary(
    values: np.ndarray, lower: np.ndarray, upper: np.ndarray, seconds: float, domain: Domain
) -> dict[str, float | None]:
    """What `[R, K]` estimates with intervals tell; None where there is no number. Those that are not finite are left out."""
    from jaxrl_off.estimators import metrics

    truth, fine = domain.truth, np.isfinite(values).all(axis=1)
    if fine.sum() < 2:
        return {"failed": int((~fine).sum()), "seconds": rounded(seconds)}
    values, lower, upper = values[fine], lower[fine], upper[fine]
    error = metrics.mean_squared_error(values, truth)
    relative = np.square((values - truth) / truth).mean(axis=1)
    covered, _, width = metrics.coverage(lower, upper, truth)
    every = np.broadcast_to(truth, values.shape)
    wrong, missed = metrics.decision_errors(values, every, domain.behaviour_value)
    sharpe = metrics.sharpe_ratio(values, every, domain.behaviour_value, k=3)
    numbers = {
        "mse": error.mean.mean(),
        "relative_mse": relative.mean(),
        "standard_error": relative.std(ddof=1) / np.sqrt(len(relative)),
        "bias": np.mean(error.bias / np.abs(truth)),
        "coverage": covered.mean(),
        "width": np.mean(width / np.abs(truth)),
        "rank_correlation": np.mean(metrics.rank_correlation(values, every)),
        "regret": np.mean(metrics.regret(values, every)),
        "sharpe_ratio": np.mean(sharpe[np.isfinite(sharpe)]) if np.isfinite(sharpe).any() else np.nan,
        "type_1": np.mean(wrong),
        "type_2": np.mean(missed),
        "seconds": seconds,
    }
    return {name: rounded(float(x)) for name, x in numbers.items()} | {"failed": int((~fine).sum())}


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: accuracy, intervals, rankings, decisions and time, domains side by side."""
    cases = content["results"]
    names = list(dict.fromkeys(name for case in cases for name in case["methods"]))
    header = ["method", *(f"{case['domain']} {case['n']:,}" for case in cases)]

    def number(row: dict[str, Any], key: str, scale: float = 1.0, form: str = ".3g") -> str:
        return "-" if row.get(key) is None else f"{scale * row[key]:{form}}"

    def rows_of(cell: Callable[[dict[str, Any]], str]) -> list[list[str]]:
        rows = [[case["methods"].get(name) for case in cases] for name in names]
        return [
            [name, *("-" if row is None else cell(row) for row in found)]
            for name, found in zip(names, rows, strict=True)
        ]

    made = [
        (
            "relative mean squared error (mean relative bias)",
            lambda row: f"{number(row, 'relative_mse')} ({number(row, 'bias', form='+.2g')})",
        ),
        (
            "share of 95 % intervals that hold the truth, % (relative width)",
            lambda row: f"{number(row, 'coverage', 100, '.0f')} ({number(row, 'width', form='.2g')})",
        ),
        (
            "rank correlation; regret@1, of the spread; SharpeRatio@3",
            lambda row: "; ".join(
                number(row, key, form=".2g") for key in ("rank_correlation", "regret", "sharpe_ratio")
            ),
        ),
        (
            "errors of taking what seems better than the policy that acted: type I; type II, %",
            lambda row: "; ".join(number(row, key, 100, ".0f") for key in ("type_1", "type_2")),
        ),
        ("milliseconds an estimate with its interval takes, compiled", lambda row: number(row, "seconds", 1e3)),
    ]
    found = [(title, header, rows_of(cell)) for title, cell in made]
    points = [
        [name, *(case["star"].get(name, "-") for case in cases)]
        for name in dict.fromkeys(n for c in cases for n in c["star"])
    ]
    return [*found, ("which points of STAR's grid the best and the median are", header, points)]


def claims(content: dict[str, Any]) -> list[Claim]:
    """The best point of STAR's grid against importance sampling, domain by domain."""
    ahead, parts, rivals = 0, [], ("PDIS", "WIS", "CWPDIS")
    for case in content["results"]:
        rows = {name: row for name, row in case["methods"].items() if row.get("relative_mse") is not None}
        known = [rows[name] for name in rivals if name in rows]
        if "STAR best" in rows and known:
            ours, rival = rows["STAR best"], min(known, key=lambda row: row["relative_mse"])
            gain = rival["relative_mse"] - ours["relative_mse"]
            error = 1.96 * np.hypot(rival["standard_error"], ours["standard_error"])
            ahead += gain > 0
            parts.append("reproduced" if gain > 0 else verdict(gain - error, gain + error, "greater"))
    statement = "on seven other domains, the best point of STAR's grid has a lower error than importance sampling"
    return [Claim(statement, "12 of 12 cases on its three domains (Fig. 3)", f"{ahead} of {len(parts)}", all_of(parts))]


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    settings = (preset["resamples"], preset["methods"])
    jobs = [
        Case(domain, size, repetitions, *settings)
        for domain, repetitions in preset["repetitions"].items()
        for size in preset["sizes"]
    ]
    found = run_all(jobs, cache, workers=workers, title="off-policy evaluation", runner=run_case)
    return write_results(output, "ope_suite", preset_name, preset, found, found)


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main("ope_suite", PRESETS, run, tables, description=__doc__, cache="ope_suite", arguments=arguments)


if __name__ == "__main__":
    main()
