"""What the benchmark of deterministic policies computes: truths, slopes, errors and tables."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.deterministic import names
from benchmarks.deterministic import report as deterministic_report
from benchmarks.deterministic import study as deterministic_dr
from benchmarks.deterministic.process import Process, simulate, truth

# theta, H, V, dV, V_h, dV_h with h = 0.2 and noise 0.03: the closed forms, computed by other code
TRUTHS = [
    (1.0, 50, -0.0441, 0.0, -2.0041, 0.0),
    (1.2, 5, -0.0037109376, -0.0011393280, -0.1686414976, -0.0517761280),
    (1.5, 10, -0.0104000015, -0.0117333984, -0.4726222916, -0.5332177734),
]


@pytest.mark.parametrize(("gain", "horizon", "value", "slope", "smoothed", "its_slope"), TRUTHS)
def test_truths(gain, horizon, value, slope, smoothed, its_slope):
    process = Process(horizon, gain)
    np.testing.assert_allclose(truth(process), (value, slope), atol=6e-11)
    np.testing.assert_allclose(truth(process, 0.2), (smoothed, its_slope), atol=6e-11)


def test_simulated_trajectories_have_the_truth_of_their_own_policy():
    """Logged actions are those of a policy smoothed by their deviation."""
    process = Process(6, 0.7, noise=0.3, deviation=0.5, behaviour=0.7)
    with jax.enable_x64(True):
        returns = np.asarray(simulate(jax.random.key(0), 20_000, process).rewards).sum(axis=1)
    assert abs(returns.mean() - truth(process, 0.5)[0]) < 4 * returns.std() / len(returns) ** 0.5


def test_slope_of_a_known_rate():
    sizes = (100, 200, 400, 800)
    random = np.random.default_rng(0)
    errors = [n**-0.8 * random.chisquare(1, 100) for n in sizes]
    found = deterministic_dr.slope_of(sizes, errors)
    assert found["lower"] < -0.8 < found["upper"]
    assert found["upper"] - found["lower"] < 0.6
    exact = deterministic_dr.slope_of(sizes, [np.full(5, n**-0.5) for n in sizes])
    assert exact["slope"] == exact["lower"] == exact["upper"] == pytest.approx(-0.5)
    assert deterministic_dr.slope_of(sizes, [np.full(5, np.nan)] * 4)["slope"] is None


def test_expected_slopes():
    assert names.expected_slope("marginal_doubly_robust", 50, gradient=False) == -4 / 5
    assert names.expected_slope("marginal_doubly_robust", 50, gradient=True) == -4 / 7
    assert names.expected_slope("cumulative_doubly_robust", 10, gradient=False) == -4 / 14
    assert names.expected_slope("cumulative_importance_sampling", 10, gradient=True) == -4 / 16


def test_errors():
    found = deterministic_dr.errors_of(np.array([1.0, 3.0]), 1.0)
    assert (found["mse"], found["bias"], found["failed"]) == (2.0, 1.0, 0)
    assert found["standard_error"] == pytest.approx(2.0)
    assert deterministic_dr.errors_of(np.array([1.0, np.nan]), 1.0)["mse"] is None


def test_tables_of_a_small_case():
    case = deterministic_dr.Case(
        "slopes", (("form", "mixed"), ("horizon", 2), ("repetitions", 4), ("sizes", (20, 40))), 1.0
    )
    result = json.loads(json.dumps(deterministic_dr.run_case(case)))
    assert set(result["errors"]) == {f"{kind} {name}" for kind in ("value", "gradient") for name in names.MARGINAL}
    (title, header, lines), (other, _, _) = deterministic_report.tables({"results": [result]})
    assert title.startswith("value")
    assert other.startswith("gradient")
    assert header == ["estimator", "form", "H = 2"]
    assert [line[0] for line in lines] == ["marginal IS", "direct method", "marginal DR"]
    assert all("rate -0.80" in line[2] for line in lines)


def test_every_part_of_the_preset_has_a_runner_and_a_table():
    parts = {case.part for case in deterministic_dr.cases_of(deterministic_dr.PRESETS["cpu"])}
    assert parts == set(deterministic_dr.RUNNERS) == set(deterministic_report.TABLES)


def test_committed_results_show_the_rate_of_marginal_estimators():
    path = Path(deterministic_dr.__file__).parents[1] / "results" / "deterministic_dr_cpu.json"
    content = json.loads(path.read_text())
    for case in content["results"]:
        if case["part"] == "slopes" and case["form"] == "soft":
            assert case["slopes"]["value marginal_doubly_robust"]["slope"] < -0.65
            assert case["slopes"]["value cumulative_doubly_robust"]["slope"] > -0.65
    assert deterministic_report.tables(content)
