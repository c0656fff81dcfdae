"""Systems without a fixed point, and the recursion that needs none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import traces
from jaxrl_off.estimators.trajectory.values.linear_systems import bound_of, spectral_radius
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Trajectories

GAMMA = 0.9


@pytest.mark.parametrize("kind", ["symmetric", "rotation", "nilpotent", "zero", "large"])
def test_radius_is_that_of_the_eigenvalues(kind):
    rng = np.random.default_rng(0)
    matrix = {
        "symmetric": lambda: (lambda x: x + x.T)(rng.normal(size=(6, 6))),
        "rotation": lambda: 0.95 * np.array([[0.6, -0.8], [0.8, 0.6]]),
        "nilpotent": lambda: np.triu(rng.normal(size=(5, 5)), 1),
        "zero": lambda: np.zeros((3, 3)),
        "large": lambda: 1e100 * rng.normal(size=(30, 30)),
    }[kind]()
    with jax.enable_x64(True):
        found = float(spectral_radius(jnp.asarray(matrix)))
    np.testing.assert_allclose(
        found, np.abs(np.linalg.eigvals(matrix)).max(), rtol=1e-3, atol=1e-2 * (kind == "nilpotent")
    )


def expanding(copies):
    """Steps from 0 to 1, and as many times from 1 to 1, each with reward 1; the feature doubles on the way from 0 to 1.

    With twice as many of the second `A = sum x (x - gamma x')` is exactly 0 (Tsitsiklis and Van Roy 1996).
    """
    states = np.array([0] + [1] * copies)[:, None]
    yes = np.ones(states.shape, bool)
    return Trajectories(states, states * 0, yes + 0.0, None, yes, ~yes, ~yes, np.ones(len(states), int))


def doubling(state):
    return (1.0 + state)[None]


def test_a_system_that_is_singular_has_a_solution_with_a_lower_discount():
    data = expanding(2)
    target = target_actions(data, np.ones((2, 1)))
    options = dict(features=doubling, ridge=0.0, discount=GAMMA, horizon_exit=False)
    fit = linear_q.fit_linear_q(data, target, **options)
    # G = 9, C = 9, b = 5, of which C is taken for 0.95 of it
    np.testing.assert_allclose(fit.parameters, [5.0 / 0.45], rtol=2e-2)
    found = linear_q.linear_q_evaluation(data, target, level=0.9, **options)
    assert float(found.diagnostics["finite"]) == 1.0
    assert float(found.diagnostics["spectral_radius"]) == pytest.approx(1.0, rel=1e-3)
    assert float(found.diagnostics["settled"]) == 0.0
    assert np.isfinite([found.value, found.standard_error, found.lower, found.upper]).all()
    traced = traces.trace_evaluation(data, target, trace="q_lambda", **options)
    np.testing.assert_allclose(traced.value, found.value, rtol=1e-9)


def test_a_radius_within_the_bound_is_left():
    data = expanding(9)
    target = target_actions(data, np.ones((2, 1)))
    options = dict(features=doubling, ridge=0.0, discount=GAMMA, horizon_exit=False)
    system = 1.0 - 2.0 * GAMMA + 9.0 * 4.0 * (1.0 - GAMMA)
    # radius 0.9 (2 + 36) / 37, beyond gamma, but not 0.95
    found = linear_q.fit_linear_q(data, target, **options)
    np.testing.assert_allclose(found.parameters, [19.0 / system], rtol=1e-9)
    stay = data._replace(observations=np.ones_like(data.observations))
    found = linear_q.linear_q_evaluation(stay, target, **options)
    np.testing.assert_allclose(found.value, 10.0, rtol=1e-9)
    assert float(found.diagnostics["settled"]) == 1.0


def test_bounds():
    with jax.enable_x64(True):
        assert float(bound_of(jnp.asarray(0.9), (3, 50), False)[0]) == pytest.approx(0.95)
        assert float(bound_of(jnp.asarray(1.0), (3, 50), True)[0]) == pytest.approx(0.99)


@pytest.fixture(scope="module")
def played():
    """Rows of up to 6 steps with two numbers for states, and where they end."""
    rng = np.random.default_rng(1)
    n, horizon = 50, 6
    mask = np.arange(horizon) < rng.integers(1, horizon + 1, n)[:, None]
    last = mask & ~np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    states = rng.normal(size=(n, horizon, 2))
    actions = rng.integers(2, size=(n, horizon))
    rewards = np.where(mask, states[..., 0] + actions + rng.normal(size=(n, horizon)), np.nan)
    terminated = last & (rng.uniform(size=(n, 1)) < 0.5)
    half = np.full((n, horizon), np.log(0.5))
    data = Trajectories(states, actions, rewards, half, mask, terminated, last & ~terminated, rng.normal(size=(n, 2)))

    def policy(observation):
        return jax.nn.log_softmax(jnp.stack([observation[:, 0], observation[:, 1]], axis=-1))

    return data, target_actions(data, policy)


@pytest.mark.parametrize("horizon_exit", [True, False])
def test_backward_is_rounds_of_regression(played, horizon_exit):
    """By NumPy's least squares, one round after the other, on targets made of the last round's values."""
    data, target = played
    weights = np.asarray(target.weights)
    options = dict(discount=GAMMA, horizon_exit=horizon_exit, ridge=0.0, features=lambda s: jnp.append(s, 1.0))
    fit = linear_q.fit_linear_q(data, target, method="backward", **options)
    n, horizon = data.mask.shape
    states = np.concatenate([data.observations, np.zeros((n, 1, 2))], axis=1)
    lengths = data.mask.sum(axis=1)
    states[np.arange(n), lengths] = data.final_observation
    x = np.concatenate([states, np.ones((n, horizon + 1, 1))], axis=-1)
    ends = data.mask & ~np.pad(data.mask[:, 1:], [(0, 0), (0, 1)]) if horizon_exit else data.terminated
    theta, found = np.zeros((2, 3)), [np.zeros((2, 3))]
    for _ in range(horizon):
        v = np.einsum("nta,ntf,af->nt", weights, x, theta)
        goal = data.rewards + GAMMA * np.where(ends, 0.0, v[:, 1:])
        theta = np.stack(
            [np.linalg.lstsq(x[:, :-1][chosen], goal[chosen], rcond=None)[0]
             for chosen in (data.mask & (data.actions == a) for a in range(2))]
        )  # fmt: skip
        found.append(theta)
    np.testing.assert_allclose(np.asarray(fit.parameters).reshape(horizon + 1, 2, 3), found, atol=1e-8)
    for t in range(horizon):
        v = np.einsum("na,nf,af->n", weights[:, t], x[:, t], found[horizon - t])
        np.testing.assert_allclose(np.asarray(fit.values.v)[:, t], np.where(data.mask[:, t], v, 0.0), atol=1e-8)
    left = horizon - lengths
    v = np.einsum("na,nf,naf->n", weights[np.arange(n), lengths], x[np.arange(n), lengths], np.stack(found)[left])
    np.testing.assert_allclose(fit.values.final, np.where(data.terminated.any(axis=1), 0.0, v), atol=1e-8)
    whole = linear_q.linear_q_evaluation(data, target, method="backward", **options)
    np.testing.assert_allclose(whole.value, np.mean(np.asarray(fit.values.v)[:, 0]), rtol=1e-9)
    direct = corrected.direct_method(data, fit.values.v)
    assert whole.standard_error > direct.standard_error


def test_many_rounds_come_to_the_fixed_point(played):
    """Padded to 200 steps nothing is left of where the rounds began."""
    data, target = played
    wide = [(0, 0), (0, 194)]
    longer = Trajectories(
        np.pad(data.observations, [*wide, (0, 0)]), *(np.pad(x, wide) for x in data[1:7]), data.final_observation
    )
    weights = np.pad(np.asarray(target.weights), [*wide, (0, 0)])
    options = dict(discount=GAMMA, features="linear")
    found = linear_q.fit_linear_q(longer, target._replace(weights=weights), method="backward", **options)
    wanted = linear_q.fit_linear_q(data, target, **options)
    np.testing.assert_allclose(found.parameters[-1], wanted.parameters, rtol=1e-6)


def test_where_rows_end_in_exits_rounds_take_the_place_of_a_fixed_point_that_is_none():
    """The feature of what was done is 1, of what the target does 2: G = 1 and C = 2 * 3 / 4, whose fixed point is -2."""
    yes = np.ones((5, 4), bool)
    data = Trajectories(np.zeros((5, 4, 1)), np.zeros((5, 4, 1)), yes + 0.0, None, yes, ~yes, ~yes, None)
    target = TargetActions(np.ones((5, 5, 1, 1)), np.ones((5, 5, 1)) * (np.arange(5) < 4)[:, None])
    options = dict(features=lambda s, a: 1.0 + a, ridge=0.0)
    rounds = 1.0 + 1.5 + 1.5**2 + 1.5**3
    np.testing.assert_allclose(linear_q.fit_linear_q(data, target, **options).parameters, [rounds])
    found = linear_q.linear_q_evaluation(data, target, **options)
    np.testing.assert_allclose(found.value, 2.0 * rounds)
    assert float(found.diagnostics["settled"]) == 0.0
    backward = linear_q.fit_linear_q(data, target, method="backward", **options)
    np.testing.assert_allclose(backward.parameters[:, 0], [0.0, 1.0, 2.5, 4.75, rounds])
    np.testing.assert_allclose(backward.values.v[0], 2.0 * np.array([rounds, 4.75, 2.5, 1.0]))
    # growth is bounded: a radius of 6 * 3 / 4 is taken for 10^(1 / 4)
    steep = linear_q.fit_linear_q(data, target, features=lambda s, a: 1.0 + 5.0 * a, ridge=0.0)
    np.testing.assert_allclose(steep.parameters, [sum(10.0 ** (k / 4) for k in range(4))], rtol=2e-3)
