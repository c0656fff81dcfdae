"""Summaries of the STAR benchmark on made-up results."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.star import figure3 as star_ope


def row(mse, failed=0):
    return {
        "mse": mse,
        "standard_error": 0.1,
        "bias": 1.0,
        "variance": None if mse is None else mse - 1.0,
        "failed": failed,
    }


CASE = {
    "domain": "cartpole",
    "n": 50,
    "repetitions": 3,
    "truth": 39.3,
    "seconds": 1.0,
    "methods": {
        "NAIVE": row(1.0),
        "WIS": row(30.0),
        "MB": row(None, 3),
        "CWPDIS": row(20.0),
        "STAR selected (SLOPE)": row(15.0),
        "|Z|=2 c=1": row(9.0),
        "|Z|=2 c=2": row(5.0, 1),
        "|Z|=4 c=1": row(7.0),
        "|Z|=4 c=2": row(None, 3),
        "|Z|=8 c=1": row(8.0),
    },
}


def test_the_grid_is_told_as_best_and_median():
    rows = star_ope.rows_of(CASE)
    # points that failed once are as bad as can be: 7, 8, 9, failed, failed
    assert (rows["STAR best"]["point"], rows["STAR best"]["mse"]) == ("|Z|=4 c=1", 7.0)
    assert (rows["STAR median"]["point"], rows["STAR median"]["mse"]) == ("|Z|=2 c=1", 9.0)
    assert not any(name.startswith("|Z|") for name in rows)


def test_baselines_are_neither_ours_nor_naive():
    assert star_ope.baselines(star_ope.rows_of(CASE)) == {"WIS": 30.0, "CWPDIS": 20.0}


def test_tables():
    (title, header, lines), (domain, _, methods) = star_ope.tables({"results": [CASE]})
    assert "Figure 3" in title
    assert dict(zip(header, lines[0], strict=True)) == {
        "case": "cartpole 50",
        "repetitions": "3",
        "STAR best": "7 ± 0.1 [76]",
        "STAR median": "9 [360]",
        "best baseline": "CWPDIS: 20 [WPDIS: 240]",
        "NAIVE": "1",
        "best point": "|Z|=4 c=1",
    }
    assert domain.startswith("cartpole")
    assert ["MB", "-"] in methods
    assert ["WIS", "30 (1; 29)"] in methods


def test_errors_of_a_method():
    found = star_ope.summary(np.array([1.0, 3.0, np.inf]), 1.0)
    assert {name: found[name] for name in ("mse", "bias", "variance", "failed")} == dict(
        mse=2.0, bias=1.0, variance=1.0, failed=1
    )
    assert found["standard_error"] == pytest.approx(2.0)
    assert star_ope.summary(np.array([np.nan, 1.0]), 1.0)["mse"] is None


def test_direct_methods_know_the_target_policy_of_their_cells():
    """In every cell of CartPole's tiles the target policy is one and the same."""
    from benchmarks.star.domains import cartpole
    from jaxrl_off.types import Trajectories

    observations = np.random.default_rng(0).normal(size=(1, 400, 4)).astype(np.float32)
    mask = np.ones((1, 400), bool)
    data = Trajectories(observations, mask * 0, mask * 1.0, mask * 0.0, mask, ~mask, ~mask, None)
    states, policy = star_ope.cells_of(data, cartpole(), [])
    expected = np.where(observations[0, :, 2:3] > 0, [0.1, 0.9], [0.9, 0.1])
    np.testing.assert_allclose(policy[states[0]], expected)


def test_the_readme_says_what_the_committed_results_say():
    root = Path(__file__).parents[3]
    content = json.loads((root / "benchmarks" / "results" / "star_ope_cpu.json").read_text())
    readme = (root / "README.md").read_text().replace("\\|", "|")
    _, _, lines = star_ope.tables(content)[0]
    assert len(lines) == 12
    for line in lines:
        assert " | ".join(line) in readme, line
