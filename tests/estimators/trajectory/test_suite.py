"""`suite.evaluate` gives what each estimator gives by itself, and says what is missing."""

import inspect
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory import suite
from jaxrl_off.estimators.trajectory.columns import target_policy
from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
from jaxrl_off.estimators.trajectory.reward_processes import star
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import tabular, traces
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.types import Trajectories

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "star.json").read_text())
PROBABILITY = np.array(GOLDEN["policy_e"])
OPTIONS = dict(discount=0.9, level=0.9)


@pytest.fixture(scope="module")
def data():
    """Trajectories of the golden file, with everything that estimators may need."""
    mask = np.array(GOLDEN["valid"], bool)
    states, actions, done = np.array(GOLDEN["s"]), np.array(GOLDEN["a"]), np.array(GOLDEN["done"], bool) & mask
    target = np.log(PROBABILITY[states, actions])
    logged = Trajectories(
        states, actions, np.array(GOLDEN["r"]), target - np.log(GOLDEN["rho"]), mask, done, done & False, None
    )
    values = tabular.values_on(logged, GOLDEN["Q_for_DR"], PROBABILITY)
    given = dict(q=np.asarray(values.q), v=np.asarray(values.v), marginal_ratio=np.ones(mask.shape))
    given |= dict(target=target_policy.target_actions(logged, PROBABILITY), features=one_hot)
    given |= dict(states=states, num_states=3, target_policy=PROBABILITY, return_range=(-1.0, 9.0), weight_max=100.0)
    return logged, target, given


def one_hot(state):
    return jax.nn.one_hot(state, 3)


def by_hand(logged, target, given):
    """Every estimator by its own function."""
    q, v, table = given["q"], given["v"], given["target_policy"]
    occupancy = dict(mwl="minimax_weight", dual_dice="dual_dice", gen_dice="gen_dice", best_dice="best_dice")
    likelihood = {name: given[name] for name in ("return_range", "weight_max")}
    return {
        "naive": weighted.naive(logged, **OPTIONS),
        "is": weighted.trajectory_is(logged, target, window=2, **OPTIONS),
        "pdis": weighted.pdis(logged, target, window=2, **OPTIONS),
        "wis": weighted.wis(logged, target, window=2, **OPTIONS),
        "cwpdis": weighted.cwpdis(logged, target, window=2, **OPTIONS),
        "el": weighted.empirical_likelihood(logged, target, **likelihood, **OPTIONS),
        "dm": corrected.direct_method(logged, v, **OPTIONS),
        "dr": corrected.doubly_robust(logged, target, q, v, window=2, **OPTIONS),
        "wdr": corrected.weighted_doubly_robust(logged, target, q, v, window=2, **OPTIONS),
        "magic": corrected.magic(logged, target, q, v, window=2, lengths=3, **OPTIONS),
        "drl": corrected.double_reinforcement_learning(logged, given["marginal_ratio"], q, v, **OPTIONS),
        "fqe": linear_q.linear_q_evaluation(logged, given["target"], features=one_hot, **OPTIONS),
        "retrace": traces.trace_evaluation(
            logged, given["target"], features=one_hot, target_log_prob=target, **OPTIONS
        ),
        "star": star.star(logged, target, given["states"], 3, window=2, **OPTIONS),
        "model": tabular.model_based(logged, table, **OPTIONS),
        "mis": tabular_occupancy.marginalised_is(logged, table, target_log_prob=target, **OPTIONS),
        **{name: getattr(tabular_occupancy, f)(logged, table, **OPTIONS) for name, f in occupancy.items()},
    }


def test_each_is_its_own_function(data):
    logged, target, given = data
    found = suite.evaluate(logged, target, estimators=list(suite.ESTIMATORS), window=2, lengths=3, **given, **OPTIONS)
    expected = by_hand(logged, target, given)
    assert list(found) == list(suite.ESTIMATORS) == list(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    golden = dict(naive="NAIVE", dm="DM")
    for name, label in golden.items():
        assert float(found[name].value) == pytest.approx(GOLDEN["estimates"][label], rel=1e-12)


def test_what_it_says_that_functions_take_they_take():
    """A keyword that a function names, or hands on, is in the table; and nothing in it is refused."""
    for name, method in suite.ESTIMATORS.items():
        parameters = inspect.signature(method.function).parameters
        explicit = {word for word, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        taken = {*method.needs, *method.options}
        taken |= {"method", "target_log_prob", "behaviour_probability"} if name == "fqe" else set()  # of other fits
        left = explicit - taken - {"trajectories"} - ({"target_log_prob"} if name == "naive" else set())
        assert not left, (name, left)
        if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            assert taken <= explicit
        required = {
            word for word, p in parameters.items() if p.default is p.empty and word in explicit - {"trajectories"}
        }
        assert required <= set(method.needs)
    assert {word for m in suite.ESTIMATORS.values() for word in m.needs} == set(suite._HINTS)


def test_under_jit_and_with_resamples(data):
    logged, target, _ = data
    names = ("naive", "pdis", "wis")

    def ends(target):
        found = suite.evaluate(logged, target, estimators=names, level=0.8, interval="bootstrap", resamples=50, seed=3)
        return {name: (estimate.lower, estimate.upper) for name, estimate in found.items()}

    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_allclose, jax.jit(ends)(target), ends(target))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(estimators=["wis", "sorcery"]), "names from naive.*; got sorcery"),
        (dict(estimators=[]), "got \\[\\]"),
        (dict(estimators="wis"), "got 'wis'"),
        (dict(estimators=["dr"]), "dr needs q .*and v "),
        (dict(estimators=["mwl"], target_policy=PROBABILITY), "mwl needs discount"),
        (dict(estimators=["el"], weight_max=3.0), "el needs return_range"),
        (dict(estimators=["wis"], spells=1), "unknown keywords spells"),
        (dict(estimators=["star"], states=None, num_states=3), "star needs states"),
    ],
)
def test_what_cannot_be_meant(data, words, message):
    logged, target, _ = data
    with pytest.raises(ValueError, match=message):
        suite.evaluate(logged, target, **words)


def test_without_log_probabilities(data):
    logged, _, given = data
    assert float(suite.evaluate(logged, estimators=["naive"])["naive"].value) > 0
    with pytest.raises(ValueError, match="wis needs target_log_prob"):
        suite.evaluate(logged, estimators=["wis"])
