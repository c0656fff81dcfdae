"""Notebooks run from top to bottom, at the smallest sizes that show what they say, and show right values.

They run in this process, cell by cell, in a name space of their own. The cell with the tag `parameters` holds all sizes; a test
puts smaller ones in their place after it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.suite import ESTIMATORS

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = ("dapo", "deterministic_policies", "empirical_likelihood", "nppac", "off_policy_evaluation")


def run(name, **sizes):
    """Run a notebook; returns its name space. `sizes` replace its parameters, which are kept under `SHIPPED`."""
    space = {"__name__": name}
    for number, cell in enumerate(json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines(keepends=True)
        source = "".join(line for line in lines if not line.startswith("%"))
        exec(compile(source, f"{name}.ipynb, cell {number}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(sizes) <= set(space), f"{name}.ipynb has no parameters {set(sizes) - set(space)}"
            space |= sizes | {"SHIPPED": {size: space[size] for size in sizes}}
    return space


@pytest.fixture(autouse=True)
def _without_a_screen():
    matplotlib = pytest.importorskip("matplotlib")

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_all_notebooks_are_run_here_and_valid():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
    nbformat = pytest.importorskip("nbformat")
    for name in NOTEBOOKS:
        nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


def holds(estimate, truth, slack=0.0):
    """Whether an interval holds the truth, and says something."""
    lower, upper = float(estimate.lower), float(estimate.upper)
    return lower - slack <= truth <= upper + slack and lower < upper


def test_dapo():
    space = run("dapo", STEPS=4096, COEFFICIENTS=[0.0, 2.0], SEEDS=[0], POINTS=4, BURN_IN=512)
    np.testing.assert_allclose(space["D"], [0.4391, -0.5646, 0.0625, -0.2231], atol=1e-4)
    np.testing.assert_allclose(space["A"], [1.5401, 0.3113, 1.9570, 3.1], atol=1e-4)
    without, strong = np.asarray(space["metrics"]["half_squared_log_ratio"]).mean(axis=1)
    assert 0 < strong < without


def test_deterministic_policies():
    space = run("deterministic_policies", HORIZON=5, COUNT=800, STEPS=40)
    assert holds(space["estimates"]["marginal_doubly_robust"], space["truth"](1.5))
    assert abs(space["theta"] - 1.0) < 0.25  # from 1.5
    assert float(space["e"].lower) <= space["truth"](space["theta"])


def test_empirical_likelihood():
    space = run("empirical_likelihood", PASSES=30)
    assert holds(space["estimates"]["empirical likelihood"], space["truth"])
    assert holds(space["estimates"]["the same, finite sample"], space["truth"])
    assert 0.0 < float(space["gain"].lower) < space["truth"] - space["rewards"].mean()  # deploy, rightly


def test_nppac():
    """The network's standard deviation falls off the data, the process's rises."""
    loop = dict(SIZES=(16, 16), EXPERT_STEPS=1000, EPISODES=3, STEPS=600, POINTS=2, BATCH=32, BURN_IN=200, PRETRAIN=100)
    process = dict(fit_points=100, steps=50, capacity=100)
    space = run("nppac", TRAINED=("GP",), NETWORK_STEPS=2000, PROCESS=process, **loop)
    far = {name: float(c.std[-1] / c.std[0]) for name, c in space["calibration"].items()}
    assert far["network"] < 0.5
    assert far["GP"] > 1.02
    assert 0.0 < space["largest"]["GP"] < 100.0


def test_off_policy_evaluation():
    sizes = dict(HORIZON=50, EPISODES=200, STEPS=8192, TRUTH_EPISODES=400, RESAMPLES=20)
    few = dict(CELLS=(4, 16), WINDOWS=(1, None), NAMES=("naive", "wis", "wdr"), OPTIONS={})
    space = run("off_policy_evaluation", **few, **sizes)
    for name in ("wis", "wdr"):
        assert holds(space["estimates"][name], space["truth"], 2.0 * space["error"])
    assert holds(space["mixture"], space["truth"], 2.0 * space["error"])
    # the old policy's mean return is a fact of the log
    returns = np.where(space["log"].mask, space["log"].rewards, 0.0).sum(axis=1)
    assert float(space["estimates"]["naive"].value) == pytest.approx(returns.mean())
    assert set(space["SHIPPED"]["NAMES"]) <= set(ESTIMATORS)
