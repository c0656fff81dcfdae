"""Linear occupancy ratios: tables as a special case, LSTD-Q in a NumPy loop, and what a signed basis must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions, target_actions
from jaxrl_off.estimators.trajectory.occupancy import linear, tabular
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Trajectories

STATES, ACTIONS, GAMMA, ROWS, HORIZON = 4, 3, 0.8, 40, 6
METHODS = ("minimax_weight", "dual_dice", "gen_dice")


def drawn(random, chances):
    return (random.random(len(chances))[:, None] > np.cumsum(chances, axis=1)[:, :-1]).sum(axis=1)


def simulated(seed=0, sparse=False):
    """Rows that end in the last state or after six steps, NaN in the padding; with two pairs never seen if sparse."""
    random = np.random.default_rng(0)
    transition = random.dirichlet(np.ones(STATES), (STATES, ACTIONS))
    behaviour, target = random.dirichlet(np.full(ACTIONS, 3.0), STATES), random.dirichlet(np.ones(ACTIONS), STATES)
    if sparse:
        behaviour[1, 2] = behaviour[0, 0] = 0.0
        behaviour /= behaviour.sum(axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    state, alive, columns = random.integers(0, STATES - 1, ROWS), np.ones(ROWS, bool), []
    for _ in range(HORIZON):
        action = drawn(random, behaviour[state])
        reward = np.where(alive, state - 0.5 * action + random.normal(size=ROWS), np.nan)
        following = drawn(random, transition[state, action])
        end = alive & (following == STATES - 1)
        columns.append((np.where(alive, state, 0), np.where(alive, action, 9), reward, alive, end))
        state, alive = np.where(alive, following, state), alive & ~end
    states, actions, rewards, mask, end = (np.stack(x, axis=1) for x in zip(*columns, strict=True))
    return Trajectories(states, actions, rewards, None, mask, end, end & False, state), target


def one_hot(state):
    return jax.nn.one_hot(state, STATES)


def polynomial(state, action):
    """Signed, of two columns that are one, and without full rank in pairs."""
    s, a = state.astype(jnp.float64), action[..., 0].astype(jnp.float64)
    return jnp.stack([jnp.ones_like(s), s, a - 1.0, s * a, s**2, s, jnp.sin(3.0 * s + a)], axis=-1)


def as_numbers(data, table):
    """Actions 0, 1, 2 as numbers, with their probabilities as weights of candidates."""
    weights = target_actions(data, table).weights
    candidates = np.broadcast_to(np.arange(ACTIONS)[:, None] + 0.0, (*weights.shape, 1))
    return data._replace(actions=np.where(data.mask, data.actions, 0)[..., None] + 0.0), TargetActions(
        candidates, weights
    )


def loop_moments(data, target, counts, horizon_exit=True):
    """M, b, n, E phi r and the steps' features, one step after the other."""
    size = 7
    flow, norm, reward = np.zeros((size, size)), np.zeros(size), np.zeros(size)
    total, start = 0.0, np.zeros(size)
    with jax.enable_x64(True):
        state, action = (x.ravel() for x in jnp.meshgrid(jnp.arange(STATES), jnp.arange(ACTIONS), indexing="ij"))
        grid = polynomial(state, action[:, None])
    table = np.asarray(grid).reshape(STATES, ACTIONS, size)
    mean = np.einsum("sa,sad->sd", target, table)
    for i in range(ROWS):
        start += counts[i] * mean[data.observations[i, 0]]
        for t in range(HORIZON):
            if not data.mask[i, t]:
                continue
            phi, last = table[data.observations[i, t], data.actions[i, t]], t + 1 == data.mask[i].sum()
            following = np.zeros(size)
            if not last:
                following = mean[data.observations[i, t + 1]]
            elif not horizon_exit and not data.terminated[i, t]:
                following, last = mean[data.final_observation[i]], False
            flow += counts[i] * np.outer(phi, phi - GAMMA * following)
            norm += counts[i] * phi * (1 + GAMMA / (1 - GAMMA) * last)
            reward += counts[i] * phi * data.rewards[i, t]
            total += counts[i]
    return flow / total, (1 - GAMMA) * start / np.sum(counts), norm / total, reward / total, table


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_one_hot_features_are_tables(name, sparse):
    """Value, standard error, bound, diagnostics and ratio, also with counts and where pairs are unseen."""
    data, table = simulated(sparse=sparse)
    target = target_actions(data, table)
    for horizon_exit in (True, False):
        options = dict(
            discount=GAMMA, counts=np.random.default_rng(1).integers(0, 3, ROWS) + 0.0, horizon_exit=horizon_exit
        )
        found = getattr(linear, name)(data, target, one_hot, level=0.9, **options)
        expected = getattr(tabular, name)(data, table, level=0.9, **options)
        for field in ("value", "standard_error", "lower", "upper", "effective_sample_size"):
            np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-9)
        for key in ("mean_ratio", "normalisation", "negative_ratio", "flow_residual", "mean_weight"):
            np.testing.assert_allclose(found.diagnostics[key], expected.diagnostics[key], atol=1e-9)
        if name == "dual_dice":
            zeta = np.asarray(tabular.density_ratio(data, table, method=name, **options))
            ratio = np.asarray(linear.density_ratio(data, target, one_hot, method=name, **options).ratio)
            zeta = zeta[data.observations, np.where(data.mask, data.actions, 0)] / float(
                expected.diagnostics["normalisation"]
            )
            shown = data.mask & (options["counts"] > 0)[:, None]
            np.testing.assert_allclose(ratio[shown], np.asarray(zeta)[shown], atol=1e-8)
    seen = len(
        {
            (s, a)
            for s, a, c, m in zip(
                *map(
                    np.ravel,
                    np.broadcast_arrays(data.observations, data.actions, options["counts"][:, None], data.mask),
                ),
                strict=True,
            )
            if m and c > 0
        }
    )
    assert float(found.diagnostics["rank"]) == seen


@pytest.mark.parametrize("horizon_exit", [True, False])
def test_signed_features_against_a_loop(horizon_exit):
    """minimax_weight is LSTD-Q, dual_dice divides it by the norm, gen_dice is least squares with the norm as a row."""
    data, table = simulated(seed=3)
    numbers, target = as_numbers(data, table)
    counts = np.random.default_rng(2).integers(0, 3, ROWS) + 0.0
    flow, start, norm, reward, features = loop_moments(data, table, counts, horizon_exit)
    kept = [0, 1, 2, 3, 4, 6]
    flow, start, norm, reward = flow[np.ix_(kept, kept)], start[kept], norm[kept], reward[kept]
    # linear in the features, of which columns 1 and 5 are one
    lstd = start @ np.linalg.solve(flow, reward) / (1 - GAMMA)
    exact = np.linalg.solve(flow.T, start)
    visits = np.zeros((STATES, ACTIONS))
    np.add.at(visits, (data.observations[data.mask], data.actions[data.mask]), np.repeat(counts, data.mask.sum(axis=1)))
    gram = np.einsum("sa,sad,sae->de", visits / visits.sum(), features[..., kept], features[..., kept])
    root = np.linalg.inv(np.linalg.cholesky(gram))
    heavy = np.vstack([root @ flow.T, 1e5 * norm])
    normed = np.linalg.lstsq(heavy, np.append(root @ start, 1e5), rcond=None)[0]
    expected = dict(
        minimax_weight=lstd,
        dual_dice=lstd / (norm @ exact),
        gen_dice=reward @ normed / (1 - GAMMA),
    )
    options = dict(discount=GAMMA, counts=counts, horizon_exit=horizon_exit)
    for name in METHODS:
        found = getattr(linear, name)(numbers, target, polynomial, **options)
        assert float(found.value) == pytest.approx(expected[name], rel=1e-7)
        assert float(found.diagnostics["rank"]) == 6.0
        assert float(found.diagnostics["normalisation"]) == pytest.approx(1.0, rel=1e-9)  # by the constant


def test_standard_error_is_the_jackknife_and_programs_are_batched():
    (data, target), copies = as_numbers(*simulated(seed=4)), 1e4
    with jax.enable_x64(True):
        one = jax.tree.map(jnp.asarray, data)
        values = jax.jit(jax.vmap(lambda c: linear.gen_dice(one, target, polynomial, discount=GAMMA, counts=c).value))
        many = np.asarray(values(np.concatenate([np.ones((1, ROWS)), copies - np.eye(ROWS)])))
    found = linear.gen_dice(data, target, polynomial, discount=GAMMA)
    assert float(found.value) == pytest.approx(many[0], rel=1e-10)
    influence = (many[0] - many[1:]) * copies * ROWS
    expected = np.sqrt(np.sum((influence - influence.mean()) ** 2) / (ROWS * (ROWS - 1)))
    assert float(found.standard_error) == pytest.approx(expected, rel=1e-3)


def test_marginal_ratio_in_double_reinforcement_learning():
    """With q = 0 it is the value; with the Q of a table E v(s_0) + E_D[zeta (r + gamma v' - q)] / (1 - gamma)."""
    data, table = simulated(seed=5)
    target = target_actions(data, table)
    found = linear.density_ratio(data, target, one_hot, discount=GAMMA)
    zero = np.zeros(data.mask.shape)
    value = float(linear.minimax_weight(data, target, one_hot, discount=GAMMA).value)
    corrected_value = corrected.double_reinforcement_learning(data, found.marginal_ratio, zero, zero, discount=GAMMA)
    assert float(corrected_value.value) == pytest.approx(value, rel=1e-10)
    q_table = np.random.default_rng(0).normal(size=(STATES, ACTIONS))
    q = np.where(data.mask, q_table[data.observations, np.where(data.mask, data.actions, 0)], 0.0)
    v = np.where(data.mask, np.sum(table * q_table, axis=1)[data.observations], 0.0)
    following = np.pad(v[:, 1:], [(0, 0), (0, 1)])
    errors = np.where(data.mask, np.nan_to_num(data.rewards) + GAMMA * following - q, 0.0)
    expected = v[:, 0].mean() + np.sum(np.asarray(found.ratio) * errors) / data.mask.sum() / (1 - GAMMA)
    made = corrected.double_reinforcement_learning(data, found.marginal_ratio, q, v, discount=GAMMA)
    assert float(made.value) == pytest.approx(expected, rel=1e-10)
    # any Q will do, as this ratio solves the flow equations of all pairs
    assert float(made.value) == pytest.approx(value, rel=1e-9)
    # a fit to some predicts for all
    numbers, target = as_numbers(data, table)
    crossed = corrected.cross_fitted(
        lambda counts: linear.density_ratio(numbers, target, polynomial, discount=GAMMA, counts=counts), np.ones(ROWS)
    )
    assert np.array_equal(np.asarray(crossed.ratio) != 0, data.mask)


def test_what_cannot_be_meant():
    data, table = simulated()
    target = target_actions(data, table)
    with pytest.raises(ValueError, match="no normalised occupancy"):
        linear.minimax_weight(data, target, one_hot, discount=1.0)
    with pytest.raises(ValueError, match="a vector is needed"):
        linear.dual_dice(data, target, lambda s: s, discount=GAMMA)
    with pytest.raises(ValueError, match="features must be finite"):
        linear.dual_dice(data, target, lambda s: one_hot(s) / (0.0 * s), discount=GAMMA)
    with pytest.raises(ValueError, match="method must be one of"):
        linear.density_ratio(data, target, one_hot, discount=GAMMA, method="best_dice")
    several = target._replace(weights=jnp.stack([target.weights, target.weights]))
    with pytest.raises(ValueError, match="one policy"):
        linear.dual_dice(data, several, one_hot, discount=GAMMA)


def test_units_of_features_do_not_matter():
    """A feature in millionths is told apart from the others as it is in ones."""
    data, table = simulated(seed=6)
    numbers, target = as_numbers(data, table)
    units = jnp.asarray([1.0, 1e-7, 1.0, 1e5, 1.0, 1.0, 1e-6])
    options = dict(discount=GAMMA)
    for name in ("minimax_weight", "gen_dice"):
        one = getattr(linear, name)(numbers, target, polynomial, **options)
        other = getattr(linear, name)(numbers, target, lambda s, a: units * polynomial(s, a), **options)
        assert float(other.diagnostics["rank"]) == float(one.diagnostics["rank"]) == 6.0
        assert float(other.value) == pytest.approx(float(one.value), rel=1e-6)


def test_steps_that_nobody_knows_the_end_of_are_left_out_whoever_counts():
    """Without `final_observation` a row that goes on loses its last step, in a fit to it and in a prediction for it."""
    data, table = simulated(seed=7)
    data = data._replace(final_observation=None)
    target = target_actions(data, table)
    counts = np.where(np.arange(ROWS) < 20, 1.0, 0.0)
    ratio = np.asarray(
        linear.density_ratio(data, target, one_hot, discount=GAMMA, counts=counts, horizon_exit=False).ratio
    )
    goes_on = np.pad(data.mask[:, 1:], [(0, 0), (0, 1)])
    assert np.array_equal(ratio != 0, data.mask & (goes_on | data.terminated))


def test_a_discount_of_0():
    """The value is the mean reward of first steps under the target; there are no marginal ratios of later ones."""
    data, table = simulated(seed=8)
    target = target_actions(data, table)
    found = linear.minimax_weight(data, target, one_hot, discount=0.0)
    shown = data.mask
    pairs = (data.observations * ACTIONS + np.where(shown, data.actions, 0))[shown]
    means = np.bincount(pairs, data.rewards[shown], minlength=STATES * ACTIONS) / np.maximum(
        np.bincount(pairs, minlength=STATES * ACTIONS), 1
    )
    expected = np.mean(np.sum(table * means.reshape(STATES, ACTIONS), axis=1)[data.observations[:, 0]])
    assert float(found.value) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="gamma\\^t is 0 after 1 of 6 steps"):
        linear.density_ratio(data, target, one_hot, discount=0.0)
