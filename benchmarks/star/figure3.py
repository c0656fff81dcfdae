"""STAR against its baselines: the twelve cases of the paper's Figure 3, mean squared errors by size of the data.

`python -m benchmarks.star.figures --preset quick|cpu [--workers N] [--output FILE]`

Every case (a domain of `domains`, a number of trajectories) is drawn anew for each repetition, and estimated by all
methods. STAR is run on a grid of abstractions (random centroids, drawn once a domain as the authors do) and windows of 1 to 5;
*best* and *median* of the grid are found with the truth in hand, as in the paper, *selected* are not. Direct methods are
tabular, on cells of their own (CartPole: tiles that respect where the target policy changes; Asterix: the finest abstraction
of the grid; sepsis: its states), where the paper's are networks; NAIVE, the mean return of the behaviour policy, is in every
table.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import digest, rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results
from benchmarks.machinery.verdicts import all_of, verdict

WINDOWS = (1, 2, 3, 4, 5)
CELLS = {"cartpole": (2, 4, 8, 16, 32, 64, 128), "sepsis": (2, 4, 8, 16, 32), "asterix": (2, 4, 8, 16, 32)}
# mean squared errors read off Figure 3 by pixel: STAR best, STAR median, best of the baselines (its name)
PAPER = {
    "cartpole": {
        50: (76, 360, 240, "WPDIS"),
        500: (18, 110, 63, "MAGIC-MB"),
        1000: (20, 100, 45, "MAGIC-MB"),
        10000: (17, 80, 20, "MAGIC-MB"),
    },
    "sepsis": {
        50: (0.0044, 0.012, 0.016, "WIS"),
        100: (0.0022, 0.0069, 0.012, "WIS"),
        500: (0.00051, 0.0014, 0.004, "WIS"),
        5000: (7.5e-5, 2.2e-4, 0.0035, "WIS"),
    },
    "asterix": {
        50: (13, 270, 25, "MAGIC-QReg"),
        500: (1.1, 13, 30, "MAGIC-QReg"),
        1000: (0.65, 10, 29, "MAGIC-QReg"),
        10000: (0.1, 0.75, 9.5, "FQE"),
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(repetitions={50: 30, 500: 10}, domains=("cartpole", "sepsis"), resamples=0, direct=False),
    "cpu": dict(
        repetitions={50: 200, 100: 200, 500: 200, 1000: 200, 5000: 20, 10000: 20},
        domains=("cartpole", "sepsis", "asterix"),
        resamples=50,
        direct=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A case of the figure, a job of `machinery.jobs.run_all`.

    Attributes:
        domain: key of `domains.DOMAINS`.
        size: trajectories.
        repetitions: data sets.
        resamples: of the rules that select, or 0 for no selection.
        direct: whether direct and doubly robust methods take part.
    """

    domain: str
    size: int
    repetitions: int
    resamples: int
    direct: bool

    name = property(lambda self: digest(dataclasses.asdict(self)))
    cost = property(lambda self: self.size * self.repetitions)
    method = property(lambda self: f"n = {self.size}")
    environment = property(lambda self: self.domain)


def run_case(case: Case) -> dict[str, Any]:
    """All repetitions of a case; summaries of every method's errors."""
    import jax

    from benchmarks.star.domains import DOMAINS

    domain, started = DOMAINS[case.domain](), time.perf_counter()
    abstractions = abstractions_of(case.domain)
    found: dict[str, list[float]] = {}
    for number in range(case.repetitions):
        key = jax.random.fold_in(jax.random.key(case.size), number)
        trajectories = jax.device_get(domain.sample(key, case.size, domain.behaviour))
        target = np.asarray(domain.target_log_prob(trajectories), np.float64)
        cells = np.stack([np.asarray(phi(trajectories.observations)) for phi in abstractions])
        estimates = importance_sampling(trajectories, target, domain)
        if case.direct:
            estimates |= direct_methods(trajectories, target, domain, cells[-1])
        estimates |= grids(trajectories, target, domain, cells)
        if case.resamples and case.size <= 1000:
            estimates |= selections(trajectories, target, domain, cells, case.resamples)
        for name, value in estimates.items():
            found.setdefault(name, []).append(float(value))
    return {
        "domain": case.domain,
        "n": case.size,
        "repetitions": case.repetitions,
        "truth": domain.truth.value,
        "seconds": round(time.perf_counter() - started, 1),
        "methods": {name: summary(np.array(values), domain.truth.value) for name, values in found.items()},
    }


def summary(values: np.ndarray, truth: float) -> dict[str, Any]:
    """Mean squared error with its standard error, bias and variance; how many values were not finite, and left out."""
    from jaxrl_off.estimators import metrics

    finite = np.isfinite(values)
    if finite.sum() < 2:
        return {"mse": None, "standard_error": None, "bias": None, "variance": None, "failed": int((~finite).sum())}
    error = metrics.mean_squared_error(values[finite], truth)
    numbers = dict(mse=error.mean, standard_error=error.standard_error, bias=error.bias, variance=error.variance)
    return {name: rounded(float(x)) for name, x in numbers.items()} | {"failed": int((~finite).sum())}


def abstractions_of(domain: str) -> list[Any]:
    """The grid's, drawn once: uniform centroids, or normal ones of one-hot states."""
    import jax

    from jaxrl_off.estimators.trajectory.reward_processes import abstractions

    dimension = {"cartpole": 4, "asterix": 400, "sepsis": 716}[domain]
    law = "normal" if domain == "sepsis" else "uniform"
    made = [abstractions.random_centroids(jax.random.key(cells), cells, dimension, law=law) for cells in CELLS[domain]]
    if domain != "sepsis":
        return made
    # the cells of one-hot states, as a table
    return [_looked_up(np.asarray(phi(np.eye(dimension)[None]))[0], phi.num_states) for phi in made]


def _looked_up(table: np.ndarray, num_states: int) -> Any:
    from jaxrl_off.estimators.trajectory.reward_processes.abstractions import Abstraction

    return Abstraction(lambda states: table[np.asarray(states)], num_states)


def importance_sampling(trajectories: Any, target: np.ndarray, domain: Any) -> dict[str, Any]:
    """NAIVE and the estimators without a model."""
    from jaxrl_off.estimators.trajectory.weights import importance as weighted

    methods = {
        "NAIVE": weighted.naive,
        "IS": weighted.trajectory_is,
        "PDIS": weighted.pdis,
        "WIS": weighted.wis,
        "CWPDIS": weighted.cwpdis,
    }
    return {name: method(trajectories, target, discount=domain.discount).value for name, method in methods.items()}


def direct_methods(trajectories: Any, target: np.ndarray, domain: Any, finest: np.ndarray) -> dict[str, Any]:
    """Tabular direct methods on cells, and what corrects them."""
    from jaxrl_off.estimators.trajectory.values import tabular
    from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
    from jaxrl_off.estimators.trajectory.weights.magic import magic

    states, policy = cells_of(trajectories, domain, finest)
    data = trajectories._replace(observations=states, final_observation=None)
    discount = dict(discount=domain.discount)
    tables = {"MB": tabular.tabular_q(data, policy, **discount)}
    # least squares over all 17,900 pairs of states and actions are left out for sepsis, as in the paper
    if domain.name != "sepsis":
        tables |= {
            "QReg": tabular.q_regression(data, policy, **discount),
            "MRDR": tabular.mrdr(data, policy, np.full(policy.shape, 1.0 / policy.shape[1]), **discount),
        }
    found = {}
    for name, table in tables.items():
        values = tabular.values_on(data, table, policy)
        found[name] = corrected.direct_method(data, values.v).value
        for label, method in (
            ("DR", corrected.doubly_robust),
            ("WDR", corrected.weighted_doubly_robust),
            ("MAGIC", magic),
        ):
            options = discount | ({"resamples": 50} if label == "MAGIC" else {})
            found[f"{label}-{name}"] = method(data, target, values.q, values.v, **options).value
    return found


def cells_of(trajectories: Any, domain: Any, finest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of direct methods, of Asterix those of the finest abstraction, and the target policy on them, `[S, A]`."""
    from jaxrl_off.estimators.trajectory.reward_processes.abstractions import tiles

    if domain.name == "sepsis":
        return trajectories.observations, np.exp(np.asarray(domain.target(np.arange(716)), np.float64))
    if domain.name == "asterix":
        row = np.exp(np.asarray(domain.target(np.zeros(400)), np.float64))
        return finest, np.tile(row / row.sum(), (CELLS["asterix"][-1], 1))
    bins, low, high = (3, 3, 6, 4), (-2.4, -2.0, -0.21, -2.0), (2.4, 2.0, 0.21, 2.0)
    phi = tiles(low, high, bins)
    # the angle's tiles meet at 0, where the target policy changes
    angle = np.unravel_index(np.arange(phi.num_states), bins)[2] >= bins[2] // 2
    return np.asarray(phi(trajectories.observations)), np.where(angle[:, None], [0.1, 0.9], [0.9, 0.1])


def grids(trajectories: Any, target: np.ndarray, domain: Any, cells: np.ndarray) -> dict[str, Any]:
    """STAR on the grid, with the cells of each abstraction, `[Z, n, T]`."""
    from jaxrl_off.estimators.trajectory.reward_processes.star import star_values

    sizes = CELLS[domain.name]
    values = np.asarray(star_values(trajectories, target, cells, max(sizes), WINDOWS, discount=domain.discount))
    return {f"|Z|={size} c={window}": values[i, j] for i, size in enumerate(sizes) for j, window in enumerate(WINDOWS)}


def selections(trajectories: Any, target: np.ndarray, domain: Any, cells: np.ndarray, resamples: int) -> dict[str, Any]:
    """STAR as rules choose it that do not know the truth; candidates with the full product are there as references."""
    from jaxrl_off.estimators.trajectory.reward_processes import selection as star_selection

    windows, most = (*WINDOWS, None), max(CELLS[domain.name])
    options = dict(resamples=resamples, discount=domain.discount)
    candidates = star_selection.star_candidates(trajectories, target, cells, most, windows, **options)
    rules = {
        "STAR selected (SLOPE)": lambda: star_selection.select_by_slope(candidates),
        "STAR selected (error)": lambda: star_selection.select_by_error(candidates, len(windows) * len(cells) - 1),
        "STAR mixture (OPERA)": lambda: star_selection.opera(candidates),
    }
    found = {}
    for name, rule in rules.items():
        try:
            found[name] = rule().value
        except ValueError:  # no candidate, or not the reference, is finite on all resamples
            found[name] = np.nan
    return found


def rows_of(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Methods of a case, with the best and the median point for STAR's grid; failed points count as infinitely bad."""
    methods = {name: row for name, row in case["methods"].items() if not name.startswith("|Z|")}
    grid = {name: row for name, row in case["methods"].items() if name.startswith("|Z|")}
    order = sorted(
        grid, key=lambda name: np.inf if grid[name]["mse"] is None or grid[name]["failed"] else grid[name]["mse"]
    )
    chosen = {"STAR best": order[0], "STAR median": order[len(order) // 2]}
    return methods | {name: grid[point] | {"point": point} for name, point in chosen.items()}


def baselines(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Mean squared errors of the paper's kind of baselines: neither STAR nor NAIVE, which the figure has not."""
    return {
        name: row["mse"]
        for name, row in rows.items()
        if not name.startswith(("STAR", "NAIVE")) and row["mse"] is not None
    }


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: the claim case by case beside the figure's values, and all methods of every domain."""

    def number(row: dict[str, Any] | None) -> str:
        return "-" if row is None or row["mse"] is None else f"{row['mse']:.3g}"

    claim, made = [], []
    for case in content["results"]:
        rows = rows_of(case)
        others = baselines(rows)
        name = min(others, key=others.get)
        best, median = rows["STAR best"], rows["STAR median"]
        paper = PAPER[case["domain"]][case["n"]]
        claim.append(
            [
                f"{case['domain']} {case['n']:,}",
                str(case["repetitions"]),
                f"{number(best)} ± {best['standard_error']:.1g} [{paper[0]:g}]",
                f"{number(median)} [{paper[1]:g}]",
                f"{name}: {others[name]:.3g} [{paper[3]}: {paper[2]:g}]",
                number(rows["NAIVE"]),
                best["point"],
            ]
        )
    header = ["case", "repetitions", "STAR best", "STAR median", "best baseline", "NAIVE", "best point"]
    made.append(("mean squared errors [read off the paper's Figure 3]", header, claim))
    for domain in dict.fromkeys(case["domain"] for case in content["results"]):
        cases = [case for case in content["results"] if case["domain"] == domain]
        rows = [rows_of(case) for case in cases]
        lines = []
        for name in dict.fromkeys(name for row in rows for name in row):
            cells = [row.get(name) for row in rows]
            parts = [
                number(cell)
                if cell is None or cell["mse"] is None
                else f"{number(cell)} ({cell['bias']:.2g}; {cell['variance']:.2g})"
                for cell in cells
            ]
            lines.append([name, *parts])
        header = ["method", *(f"n = {case['n']:,}" for case in cases)]
        made.append((f"{domain}: mean squared error (bias; variance), truth {cases[0]['truth']:.6g}", header, lines))
    return made


def claims(content: dict[str, Any]) -> list[Claim]:
    """The best point of STAR's grid, and its median, against every baseline, case by case."""
    made = []
    for which, place, theirs in (
        ("STAR best", 0, "12 of 12 cases (Fig. 3)"),
        ("STAR median", 1, "7 of 12 cases (Fig. 3)"),
    ):
        ahead, decided, parts = 0, 0, []
        for case in content["results"]:
            rows = rows_of(case)
            others = baselines(rows)
            rival, ours = rows[min(others, key=others.get)], rows[which]
            gain = rival["mse"] - (np.inf if ours["mse"] is None else ours["mse"])
            error = 1.96 * np.hypot(rival["standard_error"], ours["standard_error"] or 0.0)
            ahead, decided = ahead + (gain > 0), decided + (gain > error)
            paper = PAPER[case["domain"]][case["n"]]
            if paper[place] < paper[2]:
                # a case counts against the claim only beyond the error
                parts.append("reproduced" if gain > 0 else verdict(gain - error, gain + error, "greater"))
        name = {"STAR best": "the best point", "STAR median": "the median"}[which]
        ours = f"{ahead} of {len(content['results'])} cases ({decided} by more than the error)"
        made.append(Claim(f"{name} of STAR's grid has a lower error than every baseline", theirs, ours, all_of(parts)))
    return made


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    repetitions = preset["repetitions"]
    jobs = [
        Case(domain, size, repetitions[size], preset["resamples"], preset["direct"])
        for domain in preset["domains"]
        for size in PAPER[domain]
        if size in repetitions
    ]
    found = run_all(jobs, cache, workers=workers, title="STAR", runner=run_case)
    return write_results(output, "star_ope", preset_name, preset, found, found)


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main("star_ope", PRESETS, run, tables, description=__doc__, cache="star", arguments=arguments)


if __name__ == "__main__":
    main()
