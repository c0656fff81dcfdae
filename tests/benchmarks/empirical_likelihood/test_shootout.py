"""The contests of empirical likelihood on labelled data: parts that decide who wins, on data that scikit-learn ships."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.empirical_likelihood import estimation as el_estimation
from benchmarks.empirical_likelihood import learning as el_learning
from benchmarks.empirical_likelihood import softmax as el_softmax
from benchmarks.empirical_likelihood.shootout import (
    LOGGERS,
    SHIPPED,
    compare,
    contest_claim,
    contests,
    copies,
    load,
    matched_weights,
    programs_of,
    tally,
)
from jaxrl_off.envs.labelled_bandit import make_logger
from jaxrl_off.estimators import bandit


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    jobs = contests("estimation", tmp_path_factory.mktemp("empty"), 3, (), ("epsilon 0.25",))
    assert sorted(file for job in jobs for file in job.files) == sorted(SHIPPED)
    padded = next(job.padded for job in jobs if "wine" in job.files)
    assert padded == (1600, 16, 3)
    return load("wine", padded)


def test_who_wins():
    gains = np.array([1.0, 2.0, 3.0])
    assert compare(gains)["mean"] == 2.0
    assert compare(gains)["standard_error"] == pytest.approx(1.0 / np.sqrt(3.0))
    sets = (gains, -gains, np.array([1.0, -2.0, 3.0]), np.full(3, 1e-9), np.full(3, 1e-7))
    assert [compare(x)["verdict"] for x in sets] == ["win", "loss", "tie", "tie", "win"]
    assert tally(["win", "tie", "win", "loss"]) == "2/1/1"


def test_claims_count_data_sets_not_contests():
    """Contests of one data set are no independent evidence: eight wins on one of two data sets decide nothing."""
    wins = [{"data": "a", "pairs": {"p": {"verdict": "win"}}}] * 8
    draws = [{"data": "b", "pairs": {"p": {"verdict": "tie"}}}] * 2
    claim = contest_claim("it wins", ("1/2/3", "4/5/6"), wins + draws, "p")
    assert claim.paper.startswith("5/7/9 on 40 data sets")
    assert claim.ours.startswith("8/2/0; wins less losses +0.50 [+0.00, +1.00]")
    assert claim.verdict == "undecided"
    assert contest_claim("it wins", (), wins, "p").verdict == "reproduced"


def test_rows_keep_their_labels(wine):
    from sklearn.datasets import load_wine

    features, labels = load_wine(return_X_y=True)
    assert wine.size == len(labels) == 178
    order = np.random.RandomState(45).permutation(len(labels))
    np.testing.assert_array_equal(wine.labels[:178], labels[order])
    column = features[order, 3]
    np.testing.assert_allclose(wine.features[:178, 3], (column - column.mean()) / column.std(), rtol=1e-5)
    assert not wine.features[178:].any()
    assert not wine.features[:, 13:].any()


def test_a_contest_step_by_step(wine):
    """The logging policy learns, logs what it says, and a target learns from those rows where it agrees with the log."""
    logger = make_logger(num_actions=3, learning_rate=0.5, **LOGGERS["epsilon 0.25"])
    programs = programs_of(logger)
    state = programs.train(jax.random.key(0), wine.features, wine.labels, 100, 3)
    assert int(state.rows) == 300
    keys = jax.random.split(jax.random.key(1), 200)
    log = programs.record(keys, state, wine.features, wine.labels)
    shares = np.mean(
        np.asarray(log.actions) == np.asarray(programs.greedy(copies(state, 1), wine.features))[0][:, None], 1
    )
    np.testing.assert_allclose(shares[:178].mean(), 1 - 0.25 * 2 / 3, atol=0.01)
    np.testing.assert_array_equal(log.rewards, log.actions == wine.labels[:, None])

    rare = np.asarray(log.propensities) < 0.5
    assert set(np.round(np.asarray(log.propensities)[rare], 6)) == {np.float32(0.083333)}
    nothing = programs.learn(keys, copies(state, 200), wine.features, log, jnp.zeros(log.actions.shape), 0, 178)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(nothing), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(before, after.shape), after)
    states = programs.learn(keys, copies(state, 200), wine.features, log, 1.0 / log.propensities, 100, 178)
    rows = np.asarray(states.rows) - 300
    assert 0 < rows.min() < rows.max() < 78
    accuracy = np.mean(np.asarray(programs.greedy(states, wine.features))[:, :178] == wine.labels[:178])
    assert accuracy > 0.9


def test_weights_are_those_of_the_greedy_policy():
    weights, full = matched_weights([[0, 1, 1]], [[0, 1, 0]], np.float32([[0.8, 0.1, 0.1]]), 9.5)
    np.testing.assert_allclose(weights, [[1.25, 9.5, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(full, [[1.25, 9.5, 9.5]], rtol=1e-6)


def test_estimates_of_a_contest():
    random = np.random.default_rng(0)
    weights = random.choice([0.0, 1.25, 5.0], size=(2, 300), p=[0.3, 0.6, 0.1])
    weights[1] = 0.0
    rewards = random.integers(0, 2, size=(2, 300)).astype(float)
    found = el_estimation.estimate(weights, rewards, 5.0)
    log = dict(weights=weights[0], rewards=rewards[0], weight_range=(0.0, 5.0))
    expected = bandit.empirical_likelihood(**log)
    snips = np.sum(weights[0] * rewards[0]) / np.sum(weights[0])
    low, high = (float(expected.diagnostics[name]) for name in ("value_low", "value_high"))
    assert found["EL (middle)"][0] == pytest.approx(float(expected.value))
    assert found["EL (paper's)"][0] == pytest.approx(snips * high + (1 - snips) * low)
    assert found["IPS"][0] == pytest.approx(min(np.mean(weights[0] * rewards[0]), 1.0))
    assert found["SNIPS"][0] == pytest.approx(snips)
    assert [found[name][1] for name in ("EMP", "IPS", "SNIPS", "EL (paper's)")] == [0.0, 0.0, 0.5, 0.5]


def test_factors_of_a_learning_pass():
    """Rows are weighed as if the policy agreed with the log, by the law of the rows where it does."""
    random = np.random.default_rng(1)
    actions, greedy = random.integers(0, 2, (2, 300, 1))
    rewards, propensities = random.integers(0, 2, (300, 1)), np.full((300, 1), 0.5, np.float32)
    propensities[:150] = 0.25
    log = actions, rewards, propensities
    found = el_learning.omega(greedy.T, log, slice(10, 290), 5.0, 0.95)
    full = 1.0 / propensities[10:290, 0].astype(float)
    weights = np.where((greedy == actions)[10:290, 0], full, 0.0)
    rewards = rewards[10:290, 0]
    expected = bandit.likelihood_weights(weights, rewards, weight_range=(0, 5), level=0.95, at=(full, rewards))
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)
    assert found[0][rewards == 1].max() < found[0][rewards == 0].max()
    # all weights seen are below 1: the law wants the largest one, of which the log has none
    log = np.zeros((300, 1), int), np.ones((300, 1)), np.where(np.arange(300) < 299, 0.9, 0.2)[:, None]
    greedy = np.where(np.arange(300) < 250, 0, 1)[None]
    assert el_learning.omega(greedy, log, slice(0, 300), 5.0, None)[0, -1] == 0.0


def test_a_contest_of_softmax_policies():
    """What a policy learns from a log that explores is what the other rows say, and it beats chance by far."""
    settings = dict(objectives=("likelihood",), steps=60, passes=1)
    jobs = contests("softmax", Path("nowhere"), 3, (), ("epsilon 0.25",), **settings)
    job = next(job for job in jobs if "wine" in job.files)
    (row,) = el_softmax.run_contest(dataclasses.replace(job, files=("wine",)))["results"]
    data = load("wine", job.padded)
    often = np.bincount(data.labels[70:178]).max() / 108
    assert all(often + 0.2 < x <= 1.0 for x in row["accuracy"].values())
    assert set(row["pairs"]) == {"likelihood"}
    difference = row["accuracy"]["likelihood"] - row["accuracy"]["IPS"]
    assert row["pairs"]["likelihood"]["mean"] == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize("study", [el_estimation, el_learning, el_softmax])
def test_the_readme_says_what_the_committed_results_say(study):
    root = Path(__file__).parents[3]
    content = json.loads((root / "benchmarks" / "results" / f"el_{study.__name__.split('.')[-1]}_cpu.json").read_text())
    _, _, lines = study.tables(content)[0]
    readme = (root / "README.md").read_text()
    for line in lines:
        assert " | ".join(line[1:]) in readme, line
