"""One quantity in all estimators where trajectories were cut: returns within the horizon, or of a process that goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.occupancy import tabular as occupancy
from jaxrl_off.estimators.trajectory.values import tabular
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance
from jaxrl_off.estimators.trajectory.weights.magic import magic
from jaxrl_off.types import Trajectories

GAMMA, HORIZON, ROWS = 0.9, 5, 12
CORRECTED = (corrected.doubly_robust, corrected.weighted_doubly_robust, magic)


def endless():
    """One state, a reward of 1 forever, rows truncated at T = 5; the target is the behaviour policy."""
    shape = (ROWS, HORIZON)
    none = np.zeros(shape, bool)
    cut = none | (np.arange(HORIZON) == HORIZON - 1)
    zero = np.zeros(shape, np.int32)
    return Trajectories(zero, zero, np.ones(shape), np.zeros(shape), ~none, none, cut, np.zeros(ROWS, np.int32))


def ragged(seed=0):
    """Rows of many lengths, some terminated, some cut; ratios, and any q, v and final."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, HORIZON + 1, ROWS)
    mask = np.arange(HORIZON) < lengths[:, None]
    last, cut = np.arange(HORIZON) == lengths[:, None] - 1, random.random(ROWS) < 0.6
    cut[:2] = (True, False)
    draw = random.normal
    data = Trajectories(
        None,
        None,
        draw(size=mask.shape),
        np.zeros(mask.shape),
        mask,
        last & ~cut[:, None],
        last & cut[:, None],
        np.zeros(ROWS),
    )
    return data, draw(0.0, 0.4, mask.shape), draw(size=mask.shape), draw(size=mask.shape), draw(size=ROWS), cut


def test_exact_q_of_an_endless_task_gives_its_value_everywhere():
    data, ones = endless(), np.ones((ROWS, HORIZON))
    exact = dict(q=10.0 * ones, v=10.0 * ones)
    policy = np.ones((1, 1))
    options = dict(discount=GAMMA, horizon_exit=False)
    values = tabular.values_on(data, tabular.tabular_q(data, policy, **options), policy)
    np.testing.assert_allclose(values.final, 10.0, rtol=1e-9)
    found = {f.__name__: f(data, 0 * ones, **exact, final=values.final, level=0.9, **options) for f in CORRECTED}
    found["drl"] = corrected.double_reinforcement_learning(
        data, ones, **exact, final=values.final, level=0.9, **options
    )
    found["model"] = tabular.model_based(data, policy, level=0.9, **options)
    found["dice"] = occupancy.gen_dice(data, policy, level=0.9, **options)
    found["direct"] = corrected.direct_method(data, exact["v"], horizon_exit=False, level=0.9)
    # nobody knows what the last step led to: it is left out, and the value stays
    found["unknown"] = corrected.doubly_robust(data, 0 * ones, **exact, level=0.9, **options)
    for name, estimate in found.items():
        np.testing.assert_allclose([estimate.value, estimate.lower, estimate.upper], 10.0, rtol=1e-9, err_msg=name)
        assert (float(estimate.diagnostics["horizon_exit"]), float(estimate.diagnostics["cut_share"])) == (0.0, 1.0)


def test_returns_within_the_horizon_are_one_value_everywhere():
    data, ones = endless(), np.ones((ROWS, HORIZON))
    truth = (1 - GAMMA**HORIZON) / (1 - GAMMA)  # 4.0951
    exact = (1 - GAMMA ** (HORIZON - np.arange(HORIZON))) / (1 - GAMMA) + 0 * ones
    for f in CORRECTED:
        for q in (exact, 0 * ones):
            found = f(data, 0 * ones, q, q, discount=GAMMA)
            assert float(found.value) == pytest.approx(truth, rel=1e-12)
            assert (float(found.diagnostics["horizon_exit"]), float(found.diagnostics["cut_share"])) == (1.0, 1.0)
    for f in (importance.naive, importance.pdis, importance.wis, importance.cwpdis):
        assert float(f(data, 0 * ones, discount=GAMMA).value) == pytest.approx(truth, rel=1e-12)
    mis = occupancy.marginalised_is(data, np.ones((1, 1)), discount=GAMMA)
    assert (float(mis.value), float(mis.diagnostics["horizon_exit"])) == (pytest.approx(truth), 1.0)


def test_a_q_of_the_other_quantity_shows_in_the_correction():
    """The defect: Q of the endless task, judged within the horizon. The value is right, and what is wrong with Q is said."""
    data, ones = endless(), np.ones((ROWS, HORIZON))
    for f in CORRECTED:
        found = f(data, 0 * ones, 10 * ones, 10 * ones, discount=GAMMA)
        assert float(found.diagnostics["correction"]) == pytest.approx(4.0951 - 10.0, rel=1e-4)
        assert float(found.diagnostics["correction_z"]) == -np.inf
        with pytest.raises(ValueError, match="Pass horizon_exit=False"):
            f(data, 0 * ones, 10 * ones, 10 * ones, final=np.full(ROWS, 10.0), discount=GAMMA)


@pytest.mark.parametrize("given", [True, False])
def test_estimates_are_those_of_a_loop(given):
    data, log_ratio, q, v, final, cut = ragged()
    counts = np.random.default_rng(1).integers(0, 3, ROWS).astype(float)
    terms, weighted = np.zeros((ROWS, HORIZON + 1)), np.ones((ROWS, HORIZON + 1))
    ahead = np.zeros((ROWS, HORIZON + 1))
    for i in range(ROWS):
        length, weight = data.mask[i].sum(), 1.0
        for t in range(HORIZON + 1):
            before = weight
            if t < length:
                weight *= np.exp(log_ratio[i, t])
                ahead[i, t] = v[i, t]
                terms[i, t] = data.rewards[i, t] - q[i, t]
                if cut[i] and t == length - 1 and not given:
                    terms[i, t] = 0.0
            elif t == length and cut[i] and given:
                ahead[i, t] = final[i]
            weighted[i, t] = weight
            assert before > 0
    gamma, c = GAMMA ** np.arange(HORIZON + 1), counts[:, None]
    previous = np.concatenate([np.ones((ROWS, 1)), weighted[:, :-1]], axis=1)
    u, u_before = (c * x / np.sum(c * x, axis=0) for x in (weighted, previous))
    expected = {
        "doubly_robust": np.sum(c * gamma * (weighted * terms + previous * ahead)) / counts.sum(),
        "weighted_doubly_robust": np.sum(gamma * (u * terms + u_before * ahead)),
    }
    options = dict(discount=GAMMA, counts=counts, horizon_exit=False, final=final if given else None)
    found = {f.__name__: f(data, log_ratio, q, v, **options) for f in CORRECTED[:2]}
    for name, value in expected.items():
        assert float(found[name].value) == pytest.approx(value, rel=1e-12)
        assert float(found[name].diagnostics["cut_share"]) == pytest.approx(counts @ cut / counts.sum())
        direct = counts @ v[:, 0] / counts.sum()
        assert float(found[name].diagnostics["correction"]) == pytest.approx(value - direct, rel=1e-9)
    # MAGIC mixes from the direct method to the corrected one, both of this quantity
    ends = sorted([direct, expected["weighted_doubly_robust"]])
    two = magic(data, log_ratio, q, v, lengths=2, **options)
    share = float(two.diagnostics["direct_share"])
    assert float(two.value) == pytest.approx(share * direct + (1 - share) * expected["weighted_doubly_robust"])
    assert ends[0] <= float(two.value) <= ends[1]
    # marginal ratios in the place of products
    ratio = np.where(data.mask, weighted[:, :HORIZON], np.nan)
    drl = corrected.double_reinforcement_learning(data, ratio, q, v, **options)
    assert float(drl.value) == pytest.approx(expected["doubly_robust"], rel=1e-12)


def test_on_policy_any_q_bootstraps_the_whole_return():
    """With ratios of 1 the sum telescopes: rewards and gamma^L v_L are left, whatever Q is."""
    data, _, q, _, final, cut = ragged()
    zero = np.zeros_like(q)
    rewards = np.where(data.mask, data.rewards, 0.0) @ GAMMA ** np.arange(HORIZON)
    expected = np.mean(rewards + cut * GAMMA ** data.mask.sum(axis=1) * final)
    found = corrected.doubly_robust(data, zero, q, q, final=final, horizon_exit=False, discount=GAMMA)
    assert float(found.value) == pytest.approx(expected, rel=1e-12)


def test_bounded_intervals_hold_the_bootstrapped_value():
    data, ones = endless(), np.ones((ROWS, HORIZON))
    options = dict(discount=GAMMA, level=0.9, interval="hoeffding", value_range=(0.0, 10.0), weight_max=1.0)
    exact = dict(q=10 * ones, v=10 * ones, final=np.full(ROWS, 10.0), horizon_exit=False)
    found = corrected.doubly_robust(data, 0 * ones, **exact, **options)
    assert float(found.lower) < 10.0 == float(found.value) == float(found.upper)
    with pytest.raises(ValueError, match="value_range is what can be"):
        corrected.doubly_robust(data, 0 * ones, **(exact | dict(final=np.full(ROWS, 20.0))), **options)


def test_under_jit():
    data, log_ratio, q, v, final, _ = ragged()
    options = dict(discount=GAMMA, horizon_exit=False)
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (data, log_ratio, q, v, final))
        found = jax.jit(lambda *a: corrected.weighted_doubly_robust(*a[:4], final=a[4], **options).value)(*arguments)
    expected = corrected.weighted_doubly_robust(data, log_ratio, q, v, final=final, **options).value
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("final", "message"), [(np.ones(3), "one value for each"), (np.full(ROWS, np.nan), "final must be finite")]
)
def test_invalid_final_values(final, message):
    data, log_ratio, q, v, _, _ = ragged()
    with pytest.raises(ValueError, match=message):
        corrected.doubly_robust(data, log_ratio, q, v, final=final, horizon_exit=False)
