"""The benchmark of intervals' coverage: its processes, what it counts, and its tables."""

import jax
import numpy as np
import pytest

from benchmarks.star import coverage as ope_coverage
from benchmarks.star.coverage import Case
from benchmarks.star.report import coverage_section


@pytest.fixture(scope="module")
def result():
    """A small case with two methods, one of which solves a model for every resample."""
    whole = ope_coverage.programs_of
    patch = pytest.MonkeyPatch()

    def fewer(*arguments):
        made = whole(*arguments)
        return {"naive": made["naive"], "model": (lambda d, t: {"student_t": made["WIS"][0](d, t)["student_t"]}, True)}

    patch.setattr(ope_coverage, "programs_of", fewer)
    yield ope_coverage.run_case(Case("graph", 2, 30, 200, 50, True))
    patch.undo()


def test_a_case(result):
    """Intervals of a short process cover; a fourth of the data sets go through what solves models."""
    assert set(result["methods"]["naive"]) == set(ope_coverage.ASYMPTOTIC)
    for kind, cell in result["methods"]["naive"].items():
        assert cell["intervals"] == 200
        assert 0.8 < cell["coverage"] < 0.97, kind
        assert cell["coverage"] + cell["above"] + cell["below"] == pytest.approx(1.0, abs=1e-4)
    assert result["methods"]["model"]["student_t"]["intervals"] == 50
    # 2 u - 1 a step, u the chance of the upper rail
    chances = dict(behaviour=0.5, target=0.7 * 0.75 + 0.3 * 0.25)
    for name, upper in chances.items():
        assert result["truth"][name] == pytest.approx((2 * upper - 1) * (1 + 0.98), rel=1e-12, abs=1e-12)


def test_the_random_process_has_the_value_of_its_roll_outs():
    chain = ope_coverage.chain_of("random", 20)
    policy = ope_coverage.policies_of(chain)["target"]
    data = chain.sampler()(jax.random.key(0), 20_000, policy)
    returns = np.asarray(data.rewards, np.float64) @ 0.98 ** np.arange(20)
    assert abs(returns.mean() - float(chain.value(policy))) < 4.0 * returns.std() / np.sqrt(20_000)
    assert 3.5 < np.asarray(data.mask).sum(axis=1).mean() < 4.5
    assert np.asarray(data.rewards).min() >= 0.0
    assert np.asarray(data.rewards).max() <= 1.0


def test_summaries_and_verdicts():
    lower, upper = np.array([0.0, 1.5, -2.0, 1.0]), np.array([2.0, 3.0, 0.5, np.inf])
    cell = ope_coverage.summary(lower, upper, 1.0)
    assert (cell["coverage"], cell["above"], cell["below"], cell["width"]) == (0.5, 0.25, 0.25, None)
    assert cell["standard_error"] == 0.25
    assert ope_coverage.verdict({"coverage": 0.86, "standard_error": 0.01, "intervals": 1000}) == "short"
    assert ope_coverage.verdict({"coverage": 0.86, "standard_error": 0.01, "intervals": 100}) == "holds"
    assert ope_coverage.verdict({"coverage": 1.0, "standard_error": 0.0, "intervals": 10}) == "holds"


def test_tables_and_section(result, tmp_path):
    content = dict(benchmark="ope_coverage", preset="quick", compute_seconds=60.0, results=[result, result | {"n": 60}])
    ((title, header, lines),) = ope_coverage.tables(content)
    assert title.startswith("graph, 2 steps, level 0.9")
    assert header == ["estimator", "interval", "n = 30", "n = 60"]
    assert [line[:2] for line in lines][-1] == ["model", "student_t"]
    assert all("±" in cell for line in lines for cell in line[2:])
    assert "short of the level" in coverage_section(content, tmp_path)


@pytest.mark.parametrize(("coverage", "told"), [(0.91, "holds"), (0.5, "fails")])
def test_claim_about_bounds(result, coverage, told):
    """Intervals that are asymptotic do not count."""
    cell = {"coverage": coverage, "standard_error": 0.01, "intervals": 1000}
    methods = {
        "PDIS": {"betting": cell, "student_t": cell | {"coverage": 0.1}},
        "EL": {"likelihood, finite_sample": cell},
    }
    (claim,) = ope_coverage.claims({"results": [result | {"methods": methods}]})
    assert claim.verdict == told
    assert claim.ours == f"{2 if told == 'holds' else 0} of 2 cells; least {coverage:.3f} ± 0.010"
    assert ope_coverage.claims({"results": [result]}) == []
