"""Scores, choices and verdicts of the N-PPAC benchmarks on made-up results."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.nppac import adroit
from benchmarks.nppac.claims import (
    choose,
    claims,
    comparisons,
    curve_of,
    iqm,
    scores_of,
    summarise,
    table_of,
    tables,
    verdicts,
)
from benchmarks.nppac.jobs import methods
from benchmarks.nppac.report import learning_section
from benchmarks.nppac.study import run_study


def a_run(successes, setting=(), gradient=2.0, seed=0):
    """A run with so many successes of 4 at each log point, the start first."""
    return {
        "reals": dict(setting),
        "seed": seed,
        "nonfinite": 0.0,
        "curves": {
            "evaluation": [[1.0] * n + [0.0] * (4 - n) for n in successes],
            "evaluation_steps": list(range(len(successes))),
            "kl_gradient_p99": [gradient, 0.5 * gradient],
            "kl_gradient_p50": [gradient, gradient],
            "reference_std_p01": [0.2, 0.1],
        },
    }


def content_of(good, bad):
    """Two methods on two tasks, three seeds each."""
    names = ("N-PPAC (GP)", "SAC")
    final = [
        {"method": name, "task": task, "runs": [a_run(points, seed=s) for s, points in enumerate(runs)]}
        for task in ("door", "pen")
        for name, runs in zip(names, (good, bad), strict=True)
    ]
    return {"final": final, "sizes": {"methods": names}, "chosen": dict.fromkeys(names, {"alpha": 0.1})}


def test_scores():
    run = a_run([1, 2, 4, 0])
    np.testing.assert_allclose(curve_of(run), [0.25, 0.5, 1.0, 0.0])
    assert scores_of(run) == {"start": 0.25, "area": 0.5, "final": 0.5}
    run["curves"]["evaluation"] = [[-100.0, None], [-50.0, 0.0], [100.0], [None]]
    np.testing.assert_allclose(curve_of(run, [-100.0, 100.0]), [0.0, 0.375, 1.0, 0.0])


def test_interquartile_mean():
    values = np.random.default_rng(0).normal(size=40)
    assert iqm([values[:15], values[15:]]) == pytest.approx(stats.trim_mean(values, 0.25))


def test_the_best_setting_is_chosen_over_tasks_and_seeds():
    tuning = [
        {
            "method": "SAC",
            "task": task,
            "runs": [
                a_run(points, {"learning_rate": rate}.items(), seed=s) for rate, points in by_rate for s in (0, 1)
            ],
        }
        for task, by_rate in (("door", [(1e-3, [0, 4]), (3e-3, [0, 3])]), ("pen", [(1e-3, [0, 0]), (3e-3, [0, 2])]))
    ]
    assert choose(tuning, ("SAC", "BC")) == {"SAC": {"learning_rate": 3e-3}, "BC": {}}


def test_summary_and_claims():
    content = content_of([[4, 4, 4], [4, 4, 4], [4, 3, 4]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    ours, other = summarise(content)
    assert ours["final"][0] == pytest.approx((0.875 + 3.0) / 4.0)
    assert ours["kl_gradient_p99"] == 2.0
    assert ours["reference_std_p01"] == 0.1
    mean, error = other["area_by_task"]["door"]
    assert mean == pytest.approx(0.125 / 3)
    assert error == pytest.approx(np.std([0, 0.125, 0], ddof=1) / np.sqrt(3))
    (row,) = comparisons(content)
    assert row["other"] == "SAC"
    assert row["final"][0] == pytest.approx((1 + 1 + 0.875) / 3 - 0.125 / 3)
    assert row["final_verdict"] == "undecided"  # three seeds are not enough
    many = [[[4, 4, 4]] * 5, [[0, 1, 0]] * 5]
    assert comparisons(content_of(*many))[0]["area_verdict"] == "better"
    assert comparisons(content_of(*many[::-1]))[0]["area_verdict"] == "worse"
    (row,) = comparisons(content_of([[0, 0], [0, 1], [0, 4]], [[0, 0], [0, 4], [0, 1]]))
    assert row["area_verdict"] == "undecided"
    header, lines = table_of(content)
    assert all(len(line) == len(header) for line in lines)


def test_verdicts_of_the_pathology():
    def calibration(method, far):
        return {"environment": "circle", "method": method, "seeds": [{"std": [0.05, 0.05 * x]} for x in far]}

    def gradients(method, size):
        return {"method": method, "runs": [a_run([0], gradient=size) for _ in range(2)]}

    content = {
        "calibration": [
            calibration("network", [0.01, 0.02]),
            calibration("GP", [4.0, 2.0]),
            calibration("dropout", [1.0]),
        ],
        "sweep": [gradients(f"sigma_0 = {std:g}", 3.0 * std**-2.0) for std in (1.0, 0.1, 0.01)],
        "fitted": [gradients("network", 500.0), gradients("GP", 5.0)],
    }
    assert [row["verdict"] for row in verdicts(content)] == ["holds", "undecided", "holds", "holds"]
    assert "exponent -2.00" in verdicts(content)[2]["ours"]
    assert "100 times" in verdicts(content)[3]["ours"]


def test_a_study_that_has_not_run_says_what_is_missing(tmp_path):
    """Six values for each method; nothing is chosen, claimed or drawn before all of it is done."""
    study = adroit.PRESETS["long"]
    demonstrations = {task: tmp_path / f"{task}.npz" for task in study.tasks}
    table = methods(policy="normal", kernel="rbf", sizes=(4,), pretrain=0, fit={"gp": {}, "network": {}}, wide=True)
    assert {len(table[name].tuned[1]) for name in study.methods} == {6}
    results = run_study(
        study,
        lambda task, name: table[name],
        lambda task: {"environment": task, "parameters": {}, "horizon": 10},
        demonstrations,
        workers=1,
        cache=tmp_path,
        only_finished=True,
    )
    assert results["missing"] == {"tuning": "216 of 216 jobs"}
    assert results["chosen"] == {}
    content = {"benchmark": "nppac_adroit", "preset": "long"} | results
    assert claims(content) == []
    assert tables(content) == []
    assert "216 of 216" in learning_section(content, tmp_path)
