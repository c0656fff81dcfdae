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
from jaxrl_off.estimators.trajectory.weights import importance
from jaxrl_off.estimators.trajectory.weights.magic import magic
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
    given |= dict(target=target_policy.target_actions(logged, PROBABILITY))
    given |= dict(states=states, num_states=3, target_policy=PROBABILITY)
    return logged, target, given


LIKELIHOOD = dict(return_range=(-1.0, 9.0), weight_max=100.0)


def one_hot(state):
    return jax.nn.one_hot(state, 3)


def by_hand(logged, target, given):
    """Every estimator by its own function."""
    q, v, table = given["q"], given["v"], given["target_policy"]
    occupancy = dict(mwl="minimax_weight", dual_dice="dual_dice", gen_dice="gen_dice", best_dice="best_dice")
    return {
        "naive": importance.naive(logged, **OPTIONS),
        "is": importance.trajectory_is(logged, target, **OPTIONS),
        "pdis": importance.pdis(logged, target, **OPTIONS),
        "wis": importance.wis(logged, target, **OPTIONS),
        "cwpdis": importance.cwpdis(logged, target, window=1, **OPTIONS),
        "el": importance.empirical_likelihood(logged, target, **LIKELIHOOD, **OPTIONS),
        "dm": corrected.direct_method(logged, v, level=0.9),
        "dr": corrected.doubly_robust(logged, target, q, v, **OPTIONS),
        "wdr": corrected.weighted_doubly_robust(logged, target, q, v, **(OPTIONS | dict(level=0.8))),
        "magic": magic(logged, target, q, v, lengths=3, **OPTIONS),
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
    own = dict(star=dict(window=2), cwpdis=dict(window=1), magic=dict(lengths=3), el=LIKELIHOOD, wdr=dict(level=0.8))
    own |= dict(fqe=dict(features=one_hot), retrace=dict(features=one_hot))
    found = suite.evaluate(logged, target, estimators=list(suite.ESTIMATORS), options=own, **given, **OPTIONS)
    expected = by_hand(logged, target, given)
    assert list(found) == list(suite.ESTIMATORS) == list(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    golden = dict(naive="NAIVE", dm="DM")
    for name, label in golden.items():
        assert float(found[name].value) == pytest.approx(GOLDEN["estimates"][label], rel=1e-12)


def test_what_it_says_that_functions_take_they_take():
    """Everything that a function names is in the table; and nothing in it is refused."""
    for name, method in suite.ESTIMATORS.items():
        parameters = inspect.signature(method.function).parameters
        taken = {*method.needs, *method.shared, *method.options}
        others = {"method", "target_log_prob", "behaviour_probability"} if name == "fqe" else set()  # of other fits
        others |= {"target_log_prob"} if name == "naive" else set()
        assert set(parameters) - {"trajectories"} == taken | others, name
        required = {word for word, p in parameters.items() if p.default is p.empty} - {"trajectories", "discount"}
        assert required == {*method.needs, *method.required}, name
    wanted = {word for method in suite.ESTIMATORS.values() for word in (*method.needs, *method.required)}
    assert wanted == set(suite._HINTS)


def test_an_option_of_one_estimator_changes_no_other(data):
    """The defect: a window for STAR became a window for WIS, whose value it changes."""
    logged, target, given = data
    alone = suite.evaluate(logged, target, estimators=["wis"], discount=0.9)["wis"].value
    cells = dict(states=given["states"], num_states=3, discount=0.9)
    found = suite.evaluate(logged, target, estimators=["wis", "star"], options={"star": {"window": 1}}, **cells)
    assert float(found["wis"].value) == float(alone)
    assert float(found["star"].value) == float(
        star.star(logged, target, given["states"], 3, discount=0.9, window=1).value
    )
    with pytest.raises(TypeError, match="evaluate has no option 'window'.*options"):
        suite.evaluate(logged, target, estimators=["wis"], window=1)


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
        (dict(estimators=["wis", "wiss"]), "names from naive.*; got wiss. Did you mean 'wis'"),
        (dict(estimators=[]), "got \\[\\]"),
        (dict(estimators="wis"), "got 'wis'"),
        (dict(estimators=["dr"]), "dr needs q .*and v "),
        (dict(estimators=["mwl"], target_policy=PROBABILITY), "discount must be in"),
        (dict(estimators=["el"], options=dict(el=dict(weight_max=3.0))), "el needs options=.*with return_range"),
        (
            dict(estimators=["wis"], options=dict(wis=dict(windows=1))),
            "wis has no option 'windows'. Did you mean 'window'",
        ),
        (dict(estimators=["wis"], options=dict(wis=dict(discount=0.5))), "wis has no option 'discount'"),
        (dict(estimators=["wis"], options=dict(pdis=dict(window=1))), "'pdis', which is not among"),
        (dict(estimators=["dr", "wis"], q=1, v=1, horizon_exit=False), "wis can judge only returns within the horizon"),
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
