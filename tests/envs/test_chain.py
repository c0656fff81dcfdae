"""Small finite processes: structure, values in closed form, and trajectories that agree with them."""

import jax
import numpy as np
import pytest

from jaxrl_off.data.trajectories import check
from jaxrl_off.envs import chain
from jaxrl_off.envs.finite import absorbing_value, finite_horizon_value, sampler, softened, uniform_policy
from jaxrl_off.envs.tabular import TabularMDP

MADE = {
    "graph": chain.graph(4),
    "sparse graph": chain.graph(3, sparse_reward=True, discount=1.0),
    "toy mountain car": chain.toy_mountain_car(left=2, right=3),
    "random start": chain.toy_mountain_car(left=2, right=3, random_start=True),
    "mountain car": chain.mountain_car(positions=6, speeds=5, points=4),
}


@pytest.mark.parametrize("name", MADE)
def test_processes_are_processes(name):
    made = MADE[name]
    mdp = made.mdp
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1.0, rtol=1e-12)
    assert (mdp.transition >= 0).all()
    np.testing.assert_allclose(mdp.initial.sum(), 1.0, rtol=1e-12)
    assert not mdp.initial[made.terminal].any()
    # terminal states stay what they are, and yield nothing
    ends = np.flatnonzero(made.terminal)
    assert (mdp.transition[ends, :, ends] == 1.0).all()
    assert not mdp.reward[ends].any()


@pytest.mark.parametrize("sparse", [True, False])
def test_graph_has_its_value_in_closed_form(sparse):
    made = chain.graph(5, slippage=0.25, sparse_reward=sparse, discount=0.9)
    policy = np.broadcast_to([0.7, 0.3], (11, 2))
    upper = 0.7 * 0.75 + 0.3 * 0.25
    weights = 0.9 ** np.arange(5)
    expected = (2 * upper - 1) * (weights[-1] if sparse else weights.sum())
    np.testing.assert_allclose(made.value(policy), expected, rtol=1e-12)
    # all ends are at the horizon
    np.testing.assert_allclose(absorbing_value(made.mdp, policy, made.terminal), expected, rtol=1e-12)


def test_toy_mountain_car_by_hand():
    # straight on, from the middle: right + 1 steps
    straight = np.broadcast_to([0.0, 1.0], (22, 2))
    np.testing.assert_allclose(chain.toy_mountain_car(discount=1.0).value(straight), -11.0, rtol=1e-12)
    np.testing.assert_allclose(chain.toy_mountain_car(7, discount=1.0).value(straight), -7.0, rtol=1e-12)
    # a fair walk, reflected at the left: (m + 1)^2 + (m + 1) - left (left + 1) steps for m = left + right
    fair = chain.toy_mountain_car(discount=1.0)
    expected = -(21 * 22 - 10 * 11)
    np.testing.assert_allclose(absorbing_value(fair.mdp, uniform_policy(22, 2), fair.terminal), expected, rtol=1e-9)
    np.testing.assert_allclose(
        chain.toy_mountain_car(1, left=1, right=0, random_start=True).mdp.initial, [0.5, 0.5, 0.0]
    )


def test_mountain_car_moves_as_the_car():
    # without a push, speed changes by what gravity does
    made = chain.mountain_car(positions=34, speeds=27, repeat=1, points=8)
    state = int((0.21 + 1.2) / 1.7 * 34) * 27 + 13
    successor = made.mdp.transition[state, 1]
    speed = successor @ np.append((np.tile(np.arange(27), 34) + 0.5) / 27 * 0.14 - 0.07, 0.0)
    np.testing.assert_allclose(speed, -0.0025 * np.cos(3 * 0.225), atol=3e-4)
    # pushing along with the speed climbs; pushing right from rest does not
    rows = np.arange(34 * 27 + 1) % 27
    along = np.eye(3)[np.where(rows >= 13, 2, 0)]
    right = np.broadcast_to(np.eye(3)[2], (34 * 27 + 1, 3))
    climbed = float(made._replace(horizon=400).value(along))
    stuck = float(made._replace(horizon=400).value(right))
    assert climbed > stuck + 10.0


def test_trajectories_have_the_exact_value():
    made = chain.graph(4, discount=0.9)
    policy = np.stack([np.linspace(0.1, 0.9, 9), 1.0 - np.linspace(0.1, 0.9, 9)], axis=1)
    draw = made.sampler()
    data, report = check(draw(jax.random.key(0), 4000, policy), require=["observations", "final_observation"])
    assert report.rows == 4000
    assert data.mask.all()
    assert data.terminated[:, -1].all()
    np.testing.assert_array_equal((data.observations + 1) // 2, np.broadcast_to(np.arange(4), (4000, 4)))
    np.testing.assert_allclose(np.exp(data.behaviour_log_prob), policy[data.observations, data.actions], rtol=1e-6)
    after = np.concatenate([data.observations[:, 1:], data.final_observation[:, None]], axis=1)
    np.testing.assert_array_equal(data.rewards, made.arrival_reward[after])
    returns = data.rewards @ 0.9 ** np.arange(4)
    assert abs(returns.mean() - float(made.value(policy))) < 4 * returns.std() / np.sqrt(4000)
    slipped = (after % 2 == 1) != (data.actions == 0)
    assert abs(slipped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 16_000)
    # vmap is a loop
    keys = jax.random.split(jax.random.key(1), 2)
    together = jax.vmap(lambda key: draw(key, 4000, policy))(keys)
    np.testing.assert_array_equal(together.observations[1], draw(keys[1], 4000, policy).observations)


def test_sampler_stops_and_never_draws_the_impossible():
    transition = np.zeros((3, 2, 3))
    transition[0, 0] = [0.5, 0.0, 0.5]
    transition[0, 1, 1] = transition[1:, :, 2] = 1.0
    mdp = TabularMDP(
        transition, np.array([[1.0, 2.0], [3.0, 3.0], [9.0, 9.0]]), np.array([1.0, 0.0, 0.0]), np.float64(1.0)
    )
    data = sampler(mdp, 3, terminal=[False, False, True])(jax.random.key(0), 2000, np.array([[1.0, 0.0]] * 3))
    data, _ = check(data)
    assert not (data.observations == 1).any()
    assert not data.actions.any()
    lengths = data.mask.sum(axis=1)
    np.testing.assert_array_equal(data.rewards, data.mask)
    for length, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        assert abs((lengths == length).mean() - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    # half of those at the horizon go on
    np.testing.assert_array_equal(data.final_observation == 2, data.terminated.any(axis=1))
    assert abs(data.terminated.any(axis=1).mean() - 0.875) < 0.03
    with pytest.raises(ValueError, match=r"may begin in terminal states \[0\]"):
        sampler(mdp, 3, terminal=[True, False, True])
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        sampler(mdp, 0, terminal=[False, False, True])
    with pytest.raises(ValueError, match=r"policy has shape \(2, 2\)"):
        sampler(mdp, 3, terminal=[False, False, True])(jax.random.key(0), 2, np.ones((2, 2)))


def test_values_are_those_of_a_loop_and_float64():
    made = MADE["mountain car"]
    policy = softened(np.random.default_rng(0).dirichlet(np.ones(3), len(made.terminal)), 0.5)
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, rtol=1e-12)
    value, distribution = 0.0, made.mdp.initial
    for step in range(40):
        value += 0.99**step * distribution @ (policy * made.mdp.reward).sum(axis=1)
        distribution = np.einsum("s,sa,sat->t", distribution, policy, made.mdp.transition)
    found = finite_horizon_value(made.mdp, policy, 40)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, value, rtol=1e-12)
    assert float(finite_horizon_value(made.mdp, policy, 0)) == 0.0
    # the longer the horizon, the nearer to none
    endless = absorbing_value(made.mdp, policy, made.terminal)
    np.testing.assert_allclose(finite_horizon_value(made.mdp, policy, 5000), endless, rtol=1e-9)


def test_softened():
    policy = np.array([[0.64, 0.36, 0.0]])
    np.testing.assert_allclose(softened(policy, 2.0), [[0.8 / 1.4, 0.6 / 1.4, 0.0]], rtol=1e-12)
    np.testing.assert_allclose(softened(policy, 1.0), policy, rtol=1e-12)
    with pytest.raises(ValueError, match="temperature must be positive"):
        softened(policy, 0.0)


def test_what_cannot_be():
    for call, message in (
        (lambda: chain.graph(0), "horizon must be at least 1"),
        (lambda: chain.graph(2, slippage=1.5), "slippage must be in"),
        (lambda: chain.graph(2, discount=1.5), "discount must be in"),
        (lambda: chain.toy_mountain_car(left=-1), "left and right"),
        (lambda: chain.mountain_car(speeds=0), "speeds must be at least 1"),
        (lambda: MADE["graph"].value(np.ones((2, 2))), "do not fit together"),
        (lambda: finite_horizon_value(MADE["graph"].mdp, np.ones((9, 2)), -1), "horizon must not be negative"),
        (lambda: absorbing_value(MADE["graph"].mdp, np.ones((9, 2)), [True]), "terminal has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
