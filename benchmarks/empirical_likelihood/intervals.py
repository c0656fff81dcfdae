"""Coverage and width of intervals for a policy's value: Figure 1 of "Empirical Likelihood for Contextual Bandits".

`python -m benchmarks.empirical_likelihood.intervals --preset quick|cpu [--workers N] [--output FILE]`

Data are those of the paper: weights of 0, 2 and 1,000 with `E[w^2] = 100`, rewards of 0 or 1, a true value drawn uniformly, and
the chance of a reward at each weight drawn uniformly among those that give it. Then the same with n = 100,000 and larger
`E[w^2]`, up to the largest weight, where asymptotic intervals cover too rarely. Stated are the share of repetitions whose
interval holds the truth, with its Monte Carlo standard error, and the mean width.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks import machinery
from benchmarks.machinery.command import Table
from benchmarks.machinery.jobs import digest, rounded, run_all
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.results import write_results

LARGEST = 1000.0
SUPPORT = np.array([0.0, 2.0, LARGEST])
LEVEL = 0.95
SIZES = (10, 113, 696, 1275, 2336, 4282, 7848, 14385, 26367, 48330, 88587, 162378, 297636, 545560, 1_000_000)
SQUARES = (100, 200, 300, 400, 500, 599, 699, 799, 899, 999)
SWEEP_SIZE = 100_000
# the paper's notebook: coverage and width of empirical likelihood, Gaussian, binomial and Cressie-Read(-2), by SIZES
PAPER = {
    "EL": (
        (0.9964, 0.7722), (0.9936, 0.3478), (0.9946, 0.2010), (0.9926, 0.1721), (0.9931, 0.1485), (0.9891, 0.1292),
        (0.9806, 0.1112), (0.9703, 0.0938), (0.9635, 0.0767), (0.9492, 0.0604), (0.9480, 0.0468), (0.9453, 0.0360),
        (0.9462, 0.0272), (0.9486, 0.0201), (0.9472, 0.0151),
    ),
    "Gaussian": (
        (0.7265, 0.5845), (0.7936, 0.2614), (0.5542, 0.1376), (0.4518, 0.1334), (0.3905, 0.1431), (0.3916, 0.1594),
        (0.4471, 0.1587), (0.5726, 0.1502), (0.7157, 0.1282), (0.7995, 0.1042), (0.8556, 0.0807), (0.8932, 0.0611),
        (0.9147, 0.0463), (0.9318, 0.0344), (0.9402, 0.0258),
    ),
    "Clopper-Pearson": (
        (0.9998, 0.9998), (0.9985, 0.9986), (0.9999, 0.9957), (0.9996, 0.9855), (0.9995, 0.9548), (0.9992, 0.8947),
        (0.9996, 0.7574), (0.9991, 0.6028), (0.9992, 0.4618), (0.9995, 0.3531), (0.9994, 0.2640), (0.9985, 0.1978),
        (0.9993, 0.1487), (0.9988, 0.1098), (0.9989, 0.0817),
    ),
    "Cressie-Read(-2)": (
        (0.9979, 0.9306), (0.9929, 0.4238), (0.9960, 0.2437), (0.9966, 0.2327), (0.9983, 0.2287), (0.9975, 0.2121),
        (0.9988, 0.1902), (0.9983, 0.1597), (0.9993, 0.1221), (0.9930, 0.0883), (0.9805, 0.0626), (0.9730, 0.0440),
        (0.9663, 0.0318), (0.9650, 0.0228), (0.9617, 0.0177),
    ),
}  # fmt: skip
PAPER_REPETITIONS = 10_000
WIDER = ("Cressie-Read(-2)", "Clopper-Pearson")
PAPER_SWEEP = {
    "EL": (
        (0.97, 0.0467), (0.96, 0.0647), (0.99, 0.0814), (0.95, 0.0863), (0.97, 0.1022), (0.96, 0.1067), (0.93, 0.1062),
        (0.94, 0.1222), (0.91, 0.1343), (0.91, 0.1569),
    )
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(repetitions=500, sizes=SIZES[::2], squares=(100, 999), resamples=200),
    "cpu": dict(repetitions=10_000, sizes=SIZES, squares=SQUARES, resamples=1000),
}


def probabilities_of(square: float) -> np.ndarray:
    """The law of the weights 0, 2, 1,000 with a mean of 1 and a given mean square."""
    last = (square - 2.0) / (LARGEST * (LARGEST - 2.0))
    middle = (1.0 - LARGEST * last) / 2.0
    return np.array([1.0 - middle - last, middle, last])


def sample(random: np.random.Generator, repetitions: int, size: int, square: float) -> tuple[np.ndarray, np.ndarray]:
    """True values `[R]` and logs as counts `[R, 6]`: the three weights without a reward, then with one."""
    law = probabilities_of(square)
    value = random.uniform(size=repetitions)
    middle, last = (SUPPORT * law)[1:]
    low, high = np.maximum(0.0, (value - last) / middle), np.minimum(1.0, value / middle)
    chance = low + (high - low) * random.uniform(size=repetitions)
    chances = np.stack([np.zeros(repetitions), chance, np.clip((value - middle * chance) / last, 0.0, 1.0)], axis=1)
    counts = random.multinomial(size, law, size=repetitions)
    ones = random.binomial(counts, chances)
    return value, np.concatenate([counts - ones, ones], axis=1).astype(float)


def programs() -> dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Methods, each `counts [R, 6] -> lower [R], upper [R]`; they compile once, whatever n is."""
    import jax
    import jax.numpy as jnp

    from jaxrl_off.estimators import bandit

    weights, rewards = np.tile(SUPPORT, 2), np.repeat([0.0, 1.0], 3)

    def both(method: Any, **options: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        options |= dict(weight_range=(0.0, LARGEST), level=LEVEL)

        @jax.jit
        @jax.vmap
        def bounds(counts: Any) -> Any:
            estimate = method(jnp.asarray(weights), jnp.asarray(rewards), counts=counts, **options)
            return estimate.lower, estimate.upper

        def run(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with jax.enable_x64(True):
                lower, upper = bounds(jnp.asarray(counts))
                return np.asarray(lower), np.asarray(upper)

        return run

    return {
        "EL": both(bandit.empirical_likelihood),
        "EL, finite sample": both(bandit.empirical_likelihood, calibration="finite_sample"),
        "Cressie-Read(-2)": both(bandit.cressie_read),
        "Gaussian": both(bandit.ips, interval="normal"),
        "Clopper-Pearson": both(bandit.ips, interval="clopper_pearson"),
        "empirical Bernstein": both(bandit.ips, interval="empirical_bernstein"),
    }


def bootstrap(counts: np.ndarray, resamples: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of inverse propensity scores; resampling counts is resampling rows."""
    total = counts.sum(axis=1)
    gains = np.tile(SUPPORT, 2) * np.repeat([0.0, 1.0], 3)
    draws = [random.multinomial(int(total[0]), counts / total[:, None]) @ gains for _ in range(resamples)]
    ends = np.quantile(np.stack(draws) / total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return tuple(np.clip(ends, 0.0, 1.0))


def cells(bounds: dict[str, tuple[np.ndarray, np.ndarray]], value: np.ndarray) -> dict[str, dict[str, float]]:
    """Coverage, its standard error, and width by method."""
    rows = {}
    for name, (lower, upper) in bounds.items():
        # bounds are exact but for rounding
        covered = np.mean((lower <= value + 1e-9) & (value <= upper + 1e-9))
        rows[name] = {
            "coverage": rounded(covered),
            "standard_error": rounded(np.sqrt(covered * (1 - covered) / len(value))),
            "width": rounded(np.mean(upper - lower)),
        }
    return rows


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The job of a preset: all of its cells, which share one stream of random numbers.

    Attributes:
        repetitions: data sets of a cell.
        sizes: n of the cells with E[w^2] = 100.
        squares: E[w^2] of the cells with n = 100,000.
        resamples: of the bootstrap.
    """

    repetitions: int
    sizes: tuple[int, ...]
    squares: tuple[int, ...]
    resamples: int

    name = property(lambda self: digest(["el_intervals", dataclasses.asdict(self)]))
    cost = property(lambda self: self.repetitions)
    method = property(lambda self: f"{self.repetitions} repetitions")
    environment = property(lambda self: "weights of 0, 2 and 1,000")


def run_cells(job: Coverage) -> dict[str, Any]:
    """Coverage and width of every method in every cell."""
    started = time.perf_counter()
    random = np.random.default_rng(45)
    methods, results = programs(), []
    for size, square in [(n, 100) for n in job.sizes] + [(SWEEP_SIZE, square) for square in job.squares]:
        value, counts = sample(random, job.repetitions, size, square)
        bounds = {name: program(counts) for name, program in methods.items()}
        bounds["bootstrap (percentile)"] = bootstrap(counts, job.resamples, random)
        results.append({"n": size, "square": square, "cells": cells(bounds, value)})
    return {"seconds": round(time.perf_counter() - started, 1), "results": results}


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    found = run_all([Coverage(**preset)], cache, workers=min(workers, 1), title="intervals", runner=run_cells)
    return write_results(output, "el_intervals", preset_name, preset, found, found[0]["results"])


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows: by n, and by the mean square of the weights; coverage / width, the paper's in brackets."""
    made = []
    for title, column, paper, places in (
        ("E[w^2] = 100", "n", PAPER, SIZES),
        (f"n = {SWEEP_SIZE:,}", "square", PAPER_SWEEP, SQUARES),
    ):
        rows = [row for row in content["results"] if (row["n"] == SWEEP_SIZE) == (column == "square")]
        lines = []
        for row in rows:
            line = [f"{row[column]:,}"]
            for name, cell in row["cells"].items():
                text = f"{cell['coverage']:.4f} ± {cell['standard_error']:.4f} / {cell['width']:.4f}"
                if name in paper:
                    text += " [{:.4f} / {:.4f}]".format(*paper[name][places.index(row[column])])
                line.append(text)
            lines.append(line)
        label = "n" if column == "n" else "E[w^2]"
        made.append((f"coverage / width [the paper's], {title}", [label, *rows[0]["cells"]], lines))
    return made


def claims(content: dict[str, Any]) -> list[Claim]:
    """Coverage and width of empirical likelihood beside the authors' numbers, and what normal intervals do."""
    rows = {row["n"]: row["cells"] for row in content["results"] if row["n"] != SWEEP_SIZE}
    places = {n: place for place, n in enumerate(SIZES) if n in rows}
    coverage = np.array([rows[n]["EL"]["coverage"] for n in places])
    theirs = np.array([PAPER["EL"][place][0] for place in places.values()])
    repetitions = content["sizes"]["repetitions"]
    error = np.sqrt(theirs * (1.0 - theirs) * (1.0 / repetitions + 1.0 / PAPER_REPETITIONS))
    # the largest of k normal numbers is below this in 95 of 100 cases
    apart, limit = np.max(np.abs(coverage - theirs) / error), norm.ppf(0.5 + 0.5 * 0.95 ** (1.0 / len(coverage)))
    widths = {name: np.array([row[name]["width"] for row in rows.values()]) for name in ("EL", *WIDER)}
    narrower = all((widths["EL"] < widths[name]).all() for name in WIDER)
    gaussian = {n: row["Gaussian"] for n, row in rows.items()}
    least = min(gaussian, key=lambda n: gaussian[n]["coverage"])
    short = gaussian[least]["coverage"] + 2.0 * gaussian[least]["standard_error"] < 0.9 * LEVEL
    most = max(rows)
    return [
        Claim(
            "95 % intervals of empirical likelihood cover as often as the authors', at every n",
            "0.945 to 0.996 for n from 10 to 1,000,000 (Fig. 1)",
            f"{coverage.min():.3f} to {coverage.max():.3f} for n from {min(rows):,} to {most:,}; largest difference "
            f"{apart:.1f} standard errors (limit {limit:.1f})",
            "reproduced" if apart < limit else "not reproduced",
        ),
        Claim(
            "they are narrower than Cressie-Read's and Clopper-Pearson's, at every n",
            "0.0151 against 0.0177 and 0.0817 at n = 1,000,000 (Fig. 1)",
            "{:.4f} against {:.4f} and {:.4f} at n = {:,}".format(
                *(rows[most][name]["width"] for name in ("EL", *WIDER)), most
            ),
            "reproduced" if narrower else "not reproduced",
        ),
        Claim(
            "normal intervals cover far too rarely while n is small",
            "down to 0.391, at n = 2,336 (Fig. 1)",
            f"down to {gaussian[least]['coverage']:.3f} ± {gaussian[least]['standard_error']:.3f}, at n = {least:,}",
            "reproduced" if short else "not reproduced",
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main("el_intervals", PRESETS, run, tables, description=__doc__, cache="el", arguments=arguments)


if __name__ == "__main__":
    main()
