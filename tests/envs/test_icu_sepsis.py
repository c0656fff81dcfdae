"""ICU-Sepsis: exact values of known policies, and trajectories that agree with them."""

import importlib.util
import sys

import jax
import numpy as np
import pytest

from jaxrl_off.data.trajectories import check
from jaxrl_off.envs import finite, icu_sepsis
from jaxrl_off.envs.finite import absorbing_value, finite_horizon_value
from jaxrl_off.envs.icu_sepsis import DEATH, END, SURVIVAL

installed = importlib.util.find_spec("icu_sepsis") is not None
needs_data = pytest.mark.skipif(not installed, reason="icu-sepsis is not installed (pip install --no-deps icu-sepsis)")


@pytest.fixture(scope="module")
def sepsis():
    return icu_sepsis.load()


def test_absent_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .jaxrl_off\[ope\]"):
        icu_sepsis.load()


@needs_data
def test_the_process(sepsis):
    mdp = sepsis.mdp
    assert mdp.transition.dtype == mdp.reward.dtype == mdp.initial.dtype == np.float64
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1.0, atol=1e-14)
    assert np.flatnonzero(sepsis.terminal).tolist() == [DEATH, SURVIVAL, END]
    assert (mdp.transition[sepsis.terminal][:, :, END] == 1.0).all()
    np.testing.assert_allclose(mdp.reward, mdp.transition @ sepsis.arrival_reward, rtol=1e-12)
    assert (mdp.initial > 0).sum() == 712
    np.testing.assert_allclose(sepsis.expert.sum(axis=1), 1.0, rtol=1e-12)
    soft = finite.softened(sepsis.expert, 2.0)
    np.testing.assert_array_equal(soft > 0, sepsis.expert > 0)
    alive = (sepsis.expert > 0) & ~sepsis.terminal[:, None]
    np.testing.assert_allclose((sepsis.expert[alive] / soft[alive]).max(), 2.317, atol=1e-3)
    np.testing.assert_allclose(sepsis.expert[alive].min(), 0.00104, atol=1e-5)
    assert sepsis.features.shape == (716, 47)
    # only the data were read
    assert "icu_sepsis" not in sys.modules


@needs_data
@pytest.mark.parametrize(
    ("temperature", "endless", "stopped", "length"),
    [
        (None, 0.7800709046, 0.7800707028, 9.4622960),
        (1.0, 0.7818448903, 0.7818447574, 9.2379497),
        (2.0, 0.7810007916, 0.7810006254, 9.3563224),
    ],
)
def test_known_values(sepsis, temperature, endless, stopped, length):
    # what is known is rounded to ten and to seven digits
    uniform = finite.uniform_policy(716, 25)
    policy = uniform if temperature is None else finite.softened(sepsis.expert, temperature)
    assert abs(float(absorbing_value(sepsis.mdp, policy, sepsis.terminal)) - endless) < 1e-10
    assert abs(float(finite_horizon_value(sepsis.mdp, policy, 150)) - stopped) < 1e-10
    steps = sepsis.mdp._replace(reward=np.ones((716, 25)))
    assert abs(float(absorbing_value(steps, policy, sepsis.terminal)) - length) < 1e-7


@needs_data
@pytest.mark.parametrize(("discount", "value"), [(0.99, 0.7221580395), (0.9, 0.4419671714)])
def test_known_discounted_values(sepsis, discount, value):
    mdp = sepsis.mdp._replace(discount=np.float64(discount))
    assert abs(float(absorbing_value(mdp, sepsis.expert, sepsis.terminal)) - value) < 1e-10


@needs_data
def test_trajectories(sepsis):
    draw = finite.sampler(sepsis.mdp, 150, terminal=sepsis.terminal, arrival_reward=sepsis.arrival_reward)
    soft = finite.softened(sepsis.expert, 2.0)
    data, _ = check(draw(jax.random.key(0), 5000, soft), require=["behaviour_log_prob", "final_observation"])
    np.testing.assert_allclose(np.exp(data.behaviour_log_prob), soft[data.observations, data.actions], rtol=1e-5)
    survived = data.final_observation == SURVIVAL
    np.testing.assert_array_equal(data.rewards.sum(axis=1), survived)
    np.testing.assert_array_equal(data.terminated.any(axis=1), np.isin(data.final_observation, [SURVIVAL, DEATH]))
    assert not sepsis.terminal[data.observations[data.mask]].any()
    value = float(finite_horizon_value(sepsis.mdp, soft, 150))
    assert abs(survived.mean() - value) < 4 * np.sqrt(value * (1 - value) / 5000)
    lengths = data.mask.sum(axis=1)
    assert abs(lengths.mean() - 9.3563) < 4 * lengths.std() / np.sqrt(5000)
    # no transition that the process does not have
    after = np.concatenate([data.observations[:, 1:], np.full((5000, 1), END)], axis=1)
    goes_on = data.mask & np.pad(data.mask[:, 1:], [(0, 0), (0, 1)])
    taken = sepsis.mdp.transition[data.observations[goes_on], data.actions[goes_on], after[goes_on]]
    assert (taken > 0).all()
