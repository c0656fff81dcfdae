"""The benchmark of all estimators: its domains, what it tells of made-up estimates, and one small case."""

import jax
import numpy as np
import pytest

from benchmarks.star import methods as ope_methods
from benchmarks.star import suite as ope_suite
from benchmarks.star import suite_domains as ope_domains
from jaxrl_off.estimators.trajectory.weights import importance as weighted


@pytest.fixture(scope="module")
def small():
    domain = ope_domains.graph()
    return domain, ope_suite.inputs_of(domain, ope_suite.Case("graph", 30, 3, 0, None))


def test_graph_has_the_values_that_one_can_work_out(small):
    domain, inputs = small
    upper = np.array([0.1, 0.3, 0.6, 0.75, 0.9])
    upper = 0.75 * upper + 0.25 * (1.0 - upper)
    np.testing.assert_allclose(domain.truth, (2.0 * upper - 1.0) * np.sum(0.98 ** np.arange(16)), rtol=1e-10)
    assert inputs.data.rewards.shape == (3, 30, 16)
    assert inputs.target_log_prob.shape == (3, 5, 30, 16)
    actions = inputs.data.actions[:, None]
    probability = np.where(
        actions == 0, domain.tables[None, :, 0, 0, None, None], domain.tables[None, :, 0, 1, None, None]
    )
    np.testing.assert_allclose(np.exp(inputs.target_log_prob), probability, rtol=1e-10)
    # data sets differ
    assert (inputs.data.actions[0] != inputs.data.actions[1]).any()


@pytest.mark.parametrize("name", ["random", "mountain_car"])
def test_behaviour_is_worth_what_is_said(name):
    domain = ope_domains.DOMAINS[name]()
    data = jax.device_get(domain.sample(jax.random.key(0), 2000))
    returns = np.where(data.mask, data.rewards, 0.0) @ domain.discount ** np.arange(data.mask.shape[1])
    assert abs(returns.mean() - domain.behaviour_value) < 4.0 * returns.std() / np.sqrt(2000)
    np.testing.assert_allclose(domain.tables.sum(axis=2), 1.0)
    logged = np.log(domain.behaviour_table[data.observations, data.actions])
    np.testing.assert_allclose(data.behaviour_log_prob[data.mask], logged[data.mask], rtol=1e-5)
    # truths are apart, so that there is something to rank
    assert np.ptp(domain.truth) > 0.1 * abs(domain.behaviour_value)


def test_cartpole_policies_are_one_in_every_tile():
    """What tabular methods are told of policies, and log-probabilities, are those of the functions that were measured."""
    domain = ope_domains.cartpole()
    data = jax.device_get(domain.sample(jax.random.key(1), 50))
    states = np.asarray(domain.states(data))
    expected = np.log(domain.tables[:, states, data.actions])
    np.testing.assert_allclose(domain.log_prob(data)[:, data.mask], expected[:, data.mask], rtol=1e-5)


def test_every_policy_on_every_data_set(small):
    domain, inputs = small
    found = ope_methods.methods_of(domain)["WIS"]
    with jax.enable_x64(True):
        values, lower, upper, seconds = ope_suite.evaluated(found, inputs)
    assert values.shape == (3, 5)
    assert seconds > 0
    for repetition, policy in ((0, 0), (2, 3)):
        one = jax.tree.map(lambda x, r=repetition: x[r], inputs.data)
        log_prob = inputs.target_log_prob[repetition, policy]
        expected = weighted.wis(one, log_prob, discount=domain.discount, level=ope_methods.LEVEL)
        place = repetition, policy
        np.testing.assert_allclose(
            (values[place], lower[place], upper[place]), (expected.value, expected.lower, expected.upper), rtol=1e-9
        )


def test_marginal_ratios_are_means_over_who_is_there(small):
    domain, inputs = small
    data, counts = jax.tree.map(lambda x: x[0], inputs.data), np.arange(30) % 3.0
    one = inputs._replace(data=data, target_log_prob=inputs.target_log_prob[0, 4], policy=domain.tables[4])
    log_prob = one.target_log_prob.copy()
    log_prob[3, 5] = -np.inf  # what the target never does
    with jax.enable_x64(True):
        found = np.asarray(ope_methods.marginal_ratio(one._replace(target_log_prob=log_prob), counts))
    ratio = np.exp(log_prob - data.behaviour_log_prob)
    weights = np.concatenate([np.ones((30, 1)), np.cumprod(ratio, axis=1)[:, :-1]], axis=1)
    for i, t in ((0, 0), (4, 3), (3, 5), (11, 15)):
        there = (data.observations[:, t] == data.observations[i, t]) * counts
        expected = ratio[i, t] * (there @ weights[:, t]) / there.sum()
        assert found[i, t] == pytest.approx(expected, rel=1e-6)


def test_summary_of_estimates(small):
    domain, _ = small
    truth = domain.truth
    exact = np.stack([truth, truth, np.full(5, np.nan)])
    row = ope_suite.summary(exact, exact - 1.0, exact + 1.0, 0.01, domain)
    assert row["failed"] == 1
    assert (row["mse"], row["coverage"], row["rank_correlation"], row["regret"]) == (0.0, 1.0, 1.0, 0.0)
    assert (row["type_1"], row["type_2"]) == (0.0, 0.0)
    wrong = -exact[:2]
    row = ope_suite.summary(wrong, wrong, wrong, 0.01, domain)
    assert row["relative_mse"] == pytest.approx(4.0)
    assert (row["bias"], row["coverage"], row["rank_correlation"], row["regret"]) == (
        pytest.approx(np.mean(-2.0 * np.sign(truth)), rel=1e-4),
        0.0,
        -1.0,
        1.0,
    )
    assert (row["type_1"], row["type_2"]) == (1.0, 1.0)
    assert ope_suite.summary(np.full((3, 5), np.nan), exact, exact, 0.01, domain) == {"failed": 3, "seconds": 0.01}


def test_a_small_case_and_its_tables():
    case = ope_suite.run_case(ope_suite.Case("graph", 40, 4, 0, ("NAIVE", "WIS", "FQE")))
    assert list(case["methods"]) == ["NAIVE", "WIS", "FQE", "STAR best", "STAR median"]
    rows = case["methods"]
    assert rows["STAR best"]["relative_mse"] <= rows["STAR median"]["relative_mse"]
    assert rows["FQE"]["relative_mse"] < rows["NAIVE"]["relative_mse"]
    assert rows["NAIVE"]["rank_correlation"] is None
    found = ope_suite.tables({"results": [case]})
    assert all(len(line) == len(header) == 2 for _, header, lines in found for line in lines)
    assert found[0][2][0][0] == "NAIVE"
    assert found[-1][2][0][1].startswith("|Z| = ")
