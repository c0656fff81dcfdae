"""Tabular estimators on trajectories, against golden numbers, loops in NumPy, and dynamic programming."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jaxrl_off.envs.tabular import TabularMDP, random_mdp, state_action_values, state_values
from jaxrl_off.estimators.trajectory.occupancy import tabular as ratios
from jaxrl_off.estimators.trajectory.statistics import run
from jaxrl_off.estimators.trajectory.values import tabular
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.types import Trajectories

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "star.json").read_text())
DICE = ("minimax_weight", "dual_dice", "gen_dice", "best_dice")
STATES, ACTIONS, GAMMA = 4, 3, 0.8
METHODS = {"model_based": tabular.model_based, "marginalised_is": ratios.marginalised_is}
METHODS |= {name: getattr(ratios, name) for name in DICE}


def golden():
    """Trajectories and policies of the golden file; padding is made worthless."""
    mask, done = np.array(GOLDEN["valid"], bool), np.array(GOLDEN["done"], bool)
    states, actions = np.array(GOLDEN["s"]), np.array(GOLDEN["a"])
    behaviour, target = np.array(GOLDEN["policy_b"]), np.array(GOLDEN["policy_e"])
    hole = np.where(mask, 0.0, np.nan)
    logged = np.log(behaviour[states, actions]) + hole
    final = np.array(GOLDEN["next_s"])[:, -1]
    states, actions = np.where(mask, states, 99), np.where(mask, actions, -7)
    data = Trajectories(states, actions, np.array(GOLDEN["r"]) + hole, logged, mask, done & mask, done & False, final)
    return data, target, behaviour


def process(seed=0):
    """A Markov decision process whose last state is terminal, and a behaviour and a target policy."""
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        mdp = jax.tree.map(np.array, random_mdp(jax.random.key(seed), STATES, ACTIONS, GAMMA))
    mdp.transition[-1], mdp.reward[-1] = np.eye(STATES)[-1], 0.0
    start = np.append(np.full(STATES - 1, 1.0 / (STATES - 1)), 0.0)
    behaviour = random.dirichlet(np.full(ACTIONS, 3.0), STATES)
    target = 0.5 * behaviour + 0.5 * random.dirichlet(np.ones(ACTIONS), STATES)
    return mdp._replace(initial=start), behaviour, target


def drawn(random, chances):
    return (random.random(chances.shape[:-1])[..., None] > np.cumsum(chances, axis=-1)[..., :-1]).sum(-1)


def simulated(seed=0, shape=(40,), horizon=6, behaviour=None, noise=0.5):
    """Trajectories that terminate on entering the last state, with worthless padding; and the policies."""
    mdp, given, target = process()
    behaviour = given if behaviour is None else behaviour
    random = np.random.default_rng(seed)
    state = drawn(random, np.broadcast_to(mdp.initial, (*shape, STATES)))
    alive, columns = np.ones(shape, bool), []
    for _ in range(horizon):
        action = drawn(random, behaviour[state])
        following = drawn(random, mdp.transition[state, action])
        reward = mdp.reward[state, action] + noise * random.normal(size=shape)
        end = alive & (following == STATES - 1)
        hole = np.where(alive, 0.0, np.nan)
        logged = np.log(behaviour[state, action])
        columns.append(
            (np.where(alive, state, -1), np.where(alive, action, 99), reward + hole, logged + hole, alive, end)
        )
        state, alive = np.where(alive, following, state), alive & ~end
    columns = [np.stack(column, axis=-1) for column in zip(*columns, strict=True)]
    final = np.where(alive, state, -5)  # of no use where the row has terminated
    return Trajectories(*columns, columns[-1] & False, final), behaviour, target


def sparse(seed=3, **options):
    """The same where the behaviour policy lacks two actions that the target takes."""
    behaviour = process()[1].copy()
    behaviour[1, 2] = behaviour[0, 0] = 0.0
    return simulated(seed, behaviour=behaviour / behaviour.sum(axis=1, keepdims=True), **options)


def transitions(data, counts, horizon_exit=True):
    """`(i, t, s, a, r, s' or None, count)`, one by one."""
    n, horizon = data.rewards.shape
    for i in range(n):
        for t in range(horizon):
            if not data.mask[i, t] or counts[i] == 0:
                continue
            following = None
            if t + 1 < horizon and data.mask[i, t + 1]:
                following = data.observations[i, t + 1]
            elif not data.terminated[i, t] and not horizon_exit:
                if data.final_observation is None:
                    continue
                following = data.final_observation[i]
            yield i, t, data.observations[i, t], data.actions[i, t], data.rewards[i, t], following, counts[i]


def loop_tables(data, counts, horizon_exit=True):
    """N(s, a), mean rewards, P(s'|s, a) and eta."""
    shape = (STATES, ACTIONS)
    visits, rewards, model, start = np.zeros(shape), np.zeros(shape), np.zeros((*shape, STATES)), np.zeros(STATES)
    for _, _, s, a, r, following, count in transitions(data, counts, horizon_exit):
        visits[s, a] += count
        rewards[s, a] += count * r
        if following is not None:
            model[s, a, following] += count
    for i, count in enumerate(counts):
        start[data.observations[i, 0]] += count / counts.sum() if count else 0.0
    safe = np.where(visits > 0, visits, 1.0)
    return visits, rewards / safe, model / safe[..., None], start


def loop_model(data, target, gamma, counts, average=False, horizon_exit=True):
    """Value and Q by a system in pairs, of which the package solves none."""
    visits, rewards, model, start = loop_tables(data, counts, horizon_exit)
    seen = visits > 0
    policy = target.copy()
    if average:
        policy = np.where(seen, target, 0.0)
        policy = np.divide(policy, policy.sum(1, keepdims=True), where=policy.sum(1, keepdims=True) > 0, out=0 * policy)
    size = STATES * ACTIONS
    system = np.eye(size) - gamma * np.einsum("kt,tb->ktb", model.reshape(size, -1), policy).reshape(size, size)
    q = np.linalg.solve(system, rewards.reshape(-1)).reshape(STATES, ACTIONS)
    v = np.sum(policy * q, axis=1)
    return start @ v, np.where(seen, q, v[:, None] if average else 0.0)


def loop_marginalised(data, target, gamma, counts):
    _, _, _, marginal = loop_tables(data, counts)
    value = 0.0
    for t in range(data.rewards.shape[1]):
        visits, flow, rewards = np.zeros(STATES), np.zeros((STATES, STATES)), np.zeros(STATES)
        for i, step, s, a, r, following, count in transitions(data, counts):
            if step != t:
                continue
            ratio = target[s, a] / np.exp(data.behaviour_log_prob[i, t])
            visits[s] += count
            rewards[s] += count * ratio * r
            if following is not None:
                flow[s, following] += count * ratio
        visits = np.where(visits > 0, visits, 1.0)
        value += gamma**t * marginal @ (rewards / visits)
        marginal = marginal @ (flow / visits[:, None])
    return value


def loop_dice(data, target, gamma, counts, method, horizon_exit=True):
    """Value, x and residuals, by least squares with and without signs, the norm as an equation of great weight."""
    visits, rewards, model, start = loop_tables(data, counts, horizon_exit)
    size, seen = STATES * ACTIONS, visits.reshape(-1) > 0
    share = visits.reshape(-1) / visits.sum()
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for s in range(STATES):
        for a in range(ACTIONS):
            row = s * ACTIONS + a
            right[row] = (1 - gamma) * start[s] * target[s, a]
            matrix[row] -= gamma * target[s, a] * model.reshape(size, STATES)[:, s]
            matrix[row, row] += 1.0
    multiplicity = 1.0 + gamma / (1 - gamma) * (1.0 - model.reshape(size, STATES).sum(1))
    x, denominator = np.zeros(size), 1.0
    if method == "minimax_weight":
        x[seen] = np.linalg.solve(matrix[np.ix_(seen, seen)], right[seen])
    elif method == "dual_dice":
        x[seen] = np.linalg.lstsq(matrix[:, seen], right, rcond=None)[0]
        denominator = multiplicity @ x
    else:
        rows = seen if method == "gen_dice" else np.ones(size, bool)
        root = np.sqrt(1 / share[rows]) if method == "gen_dice" else np.ones(size)
        heavy = 1e5
        whole = np.vstack([(root[:, None] * matrix[rows])[:, seen], heavy * multiplicity[seen]])
        x[seen] = nnls(whole, np.append(root * right[rows], heavy), maxiter=1000)[0]
    return x @ rewards.reshape(-1) / (1 - gamma) / denominator, x, right - matrix @ x


def loop_of(name, data, target, counts, **options):
    if name == "model_based":
        return loop_model(data, target, GAMMA, counts, average=True, **options)[0]
    if name == "marginalised_is":
        return loop_marginalised(data, target, GAMMA, counts)
    return loop_dice(data, target, GAMMA, counts, name, **options)[0]


def loop_returns(data, target, behaviour, gamma):
    """w_{t-1}, rho_t, R_t for every step that was made."""
    n, horizon = data.rewards.shape
    for i in range(n):
        steps = [t for t in range(horizon) if data.mask[i, t]]
        rho = [target[data.observations[i, t], data.actions[i, t]] for t in steps]
        rho = [p / behaviour[data.observations[i, t], data.actions[i, t]] for p, t in zip(rho, steps, strict=True)]
        for t in steps:
            ahead = sum(gamma ** (k - t) * np.prod(rho[t + 1 : k + 1]) * data.rewards[i, k] for k in steps[t:])
            yield i, t, data.observations[i, t], data.actions[i, t], np.prod(rho[:t]), rho[t], ahead


def test_golden_numbers():
    """Model based, fitted Q and all of DICE are the same number, which STAR's file has four times."""
    data, target, _ = golden()

    def all_of_them(data):
        values = {
            name: METHODS[name](data, target, discount=0.9).value for name in METHODS if name != "marginalised_is"
        }
        zeta = {name: ratios.density_ratio(data, target, discount=0.9, method=name) for name in DICE}
        return values, zeta, tabular.tabular_q(data, target, discount=0.9)

    with jax.enable_x64(True):
        values, zeta, q = jax.tree.map(np.asarray, jax.jit(all_of_them)(jax.tree.map(jnp.asarray, data)))
    start = np.bincount(data.observations[:, 0], minlength=3) / 5
    values["tabular_q"] = np.sum(start[:, None] * target * q)
    for golden_name in ("MB_tabular", "FQE_tabular", "MWL/DICE_tabular rho_pi"):
        for value in values.values():
            assert float(value) == pytest.approx(GOLDEN["estimates"][golden_name], rel=1e-12)
    for found in zeta.values():
        np.testing.assert_allclose(found, GOLDEN["dice_weights"], rtol=1e-12)
    found = tabular.model_based(data, target, discount=0.9)
    assert float(found.value) == pytest.approx(GOLDEN["estimates"]["MB_tabular"], rel=1e-12)
    assert float(found.diagnostics["unsupported_mass"]) == 0.0


@pytest.mark.parametrize("name", [name for name in METHODS if name != "minimax_weight"])  # gen_dice begins with it
def test_values_and_standard_errors_under_counts(name):
    """One program for many multiplicities: a loop's values, the jackknife's limit, and the bootstrap's spread."""
    f, n, resamples = METHODS[name], 40, 400
    random, copies = np.random.default_rng(1), 1e4
    some = random.integers(0, 3, (3, n)).astype(float)
    without = copies - np.eye(n)
    drawn = random.multinomial(n, np.full(n, 1 / n), resamples).astype(float)
    data, _, target = simulated()
    thin, _, _ = sparse()

    with jax.enable_x64(True):
        many = jax.jit(jax.vmap(lambda d, c: f(d, target, discount=GAMMA, counts=c).value, in_axes=(None, 0)))
        one = jax.tree.map(jnp.asarray, data)
        values = np.asarray(many(one, np.concatenate([some, np.ones((1, n)), without, drawn])))
        rough = np.asarray(
            many(jax.tree.map(jnp.asarray, thin), np.concatenate([some, np.ones((1, n)), without, drawn]))
        )
    expected = [loop_of(name, data, target, counts) for counts in (*some, np.ones(n))]
    np.testing.assert_allclose(values[:4], expected, rtol=1e-9)
    expected = [loop_of(name, thin, target, counts) for counts in (*some, np.ones(n))]
    np.testing.assert_allclose(rough[:4], expected, rtol=1e-7)
    found = f(data, target, discount=GAMMA)
    assert float(found.value) == pytest.approx(values[3], rel=1e-12)
    influence = (values[3] - values[4 : 4 + n]) * copies * n
    error = float(found.standard_error)
    assert error == pytest.approx(np.sqrt(np.sum((influence - influence.mean()) ** 2) / (n * (n - 1))), rel=1e-3)
    assert error == pytest.approx(np.std(values[4 + n :]), rel=0.25)
    assert np.isfinite(rough).all()
    thin_error = float(f(thin, target, discount=GAMMA).standard_error)
    influence = (rough[3] - rough[4 : 4 + n]) * copies * n
    assert thin_error == pytest.approx(np.sqrt(np.sum((influence - influence.mean()) ** 2) / (n * (n - 1))), rel=1e-3)


@pytest.mark.parametrize("final", [True, False])
def test_rows_that_do_not_end(final):
    """With `horizon_exit=False` the model goes on from the final observation, or does without the last step."""
    data, _, target = simulated(seed=5)
    data = data if final else data._replace(final_observation=None)
    ones, options = np.ones(40), dict(discount=GAMMA, horizon_exit=False)
    value, q = loop_model(data, target, GAMMA, ones, horizon_exit=False)
    assert float(tabular.model_based(data, target, **options).value) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(tabular.tabular_q(data, target, **options), q, rtol=1e-12)
    for name in DICE:
        expected = loop_dice(data, target, GAMMA, ones, name, horizon_exit=False)[0]
        found = float(getattr(ratios, name)(data, target, **options).value)
        # but for a terminal state as a final observation nothing is unseen
        assert found == pytest.approx(expected, rel=1e-8)
        assert found == pytest.approx(value, rel=1e-8)
    assert abs(loop_model(data, target, GAMMA, ones)[0] - value) > 0.01
    # a cut is one, whichever flag says so
    truncated = data.mask & ~np.pad(data.mask[:, 1:], [(0, 0), (0, 1)]) & ~data.terminated
    marked = tabular.model_based(data._replace(truncated=truncated), target, **options)
    assert float(marked.value) == pytest.approx(value, rel=1e-12)


def test_unseen_pairs():
    data, behaviour, target = sparse()
    ones, options = np.ones(40), dict(discount=GAMMA)
    visits, *_ = loop_tables(data, ones)
    assert ((visits == 0) & (target > 0)).sum() >= 2
    for unseen in tabular.UNSEEN:
        value, q = loop_model(data, target, GAMMA, ones, average=unseen == "average")
        found = tabular.model_based(data, target, unseen=unseen, **options)
        assert float(found.value) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(tabular.tabular_q(data, target, unseen=unseen, **options), q, rtol=1e-11)
        share = float(found.diagnostics["unsupported_mass"])
        # what is lost is the difference between x and the whole flow
        _, x, residual = loop_dice(data, target, GAMMA, ones, "minimax_weight")
        lost = residual[visits.reshape(-1) == 0].sum()
        assert share == pytest.approx(lost / (lost + x.sum()), rel=1e-10)
    for name in DICE:
        _, x, residual = loop_dice(data, target, GAMMA, ones, name)
        found = getattr(ratios, name)(data, target, **options).diagnostics
        assert float(found["flow_residual"]) == pytest.approx(np.abs(residual).sum(), rel=1e-6)
        assert float(found["mean_ratio"]) == pytest.approx(x.sum(), rel=1e-6)
        assert float(found["negative_ratio"]) == pytest.approx(np.maximum(-x, 0).sum(), abs=1e-9)
        zeta = np.asarray(ratios.density_ratio(data, target, method=name, **options))
        np.testing.assert_allclose(
            zeta.reshape(-1), np.divide(x, visits.reshape(-1), where=x != 0, out=0 * x) * visits.sum(), atol=1e-6
        )
        assert float(found.get("unsettled", 0.0)) == 0.0
        if name in ("gen_dice", "best_dice"):
            assert float(found["normalisation"]) == pytest.approx(1.0, rel=1e-12)


def test_dual_dice_is_the_closed_form_of_dice_rl():
    """nu = (B D^-1 B^T + 1e-8)^-1 (1 - gamma) mu_0 pi, zeta = D^-1 B^T nu, in counts; also where pairs are unseen."""
    for data, _, target in (simulated(), sparse()):
        visits, _, model, start = loop_tables(data, np.ones(40))
        size, count = STATES * ACTIONS, visits.reshape(-1)
        residuals = np.diag(count)
        for k in range(size):
            residuals[:, k] -= GAMMA * count[k] * (model.reshape(size, STATES)[k][:, None] * target).reshape(-1)
        residuals = residuals / np.sqrt(1e-8 + count)
        right = (1 - GAMMA) * count.sum() * (start[:, None] * target).reshape(-1)
        nu = np.linalg.solve(residuals @ residuals.T + 1e-8 * np.eye(size), right)
        zeta = (nu @ residuals / np.sqrt(1e-8 + count)).reshape(STATES, ACTIONS)
        found = ratios.density_ratio(data, target, discount=GAMMA, method="dual_dice")
        np.testing.assert_allclose(np.where(visits > 0, zeta, 0.0), found, atol=1e-5)


def test_signs_and_norm():
    """Against non-negative least squares on data that lack half of the pairs; at 0.99 some ratios are held at 0."""
    held, gamma = 0, 0.99
    for seed in range(40):
        random = np.random.default_rng(100 + seed)
        behaviour = np.where(random.random((STATES, ACTIONS)) < 0.35, random.random((STATES, ACTIONS)) + 0.05, 0.0)
        behaviour[np.arange(STATES), random.integers(0, ACTIONS, STATES)] += 0.5
        behaviour /= behaviour.sum(axis=1, keepdims=True)
        data, _, target = simulated(seed, behaviour=behaviour)
        for name in ("gen_dice", "best_dice"):
            expected, x, _ = loop_dice(data, target, gamma, np.ones(40), name)
            visits = loop_tables(data, np.ones(40))[0].reshape(-1)
            held += int(np.sum((x == 0) & (visits > 0) & (target.reshape(-1) > 1e-6)))
            found = getattr(ratios, name)(data, target, discount=gamma)
            assert float(found.diagnostics.get("unsettled", 0.0)) == 0.0
            assert float(found.diagnostics["negative_ratio"]) == 0.0
            assert float(found.value) == pytest.approx(expected, rel=1e-5)
    assert held > 0


def test_q_regression_and_mrdr_are_weighted_least_squares():
    data, behaviour, target = simulated()
    weights, total = np.zeros((STATES, ACTIONS)), np.zeros((STATES, ACTIONS))
    hessian, linear = np.zeros((STATES, ACTIONS, ACTIONS)), np.zeros((STATES, ACTIONS))
    for _, t, s, a, before, rho, ahead in loop_returns(data, target, behaviour, GAMMA):
        weights[s, a] += GAMMA**t * before * rho
        total[s, a] += GAMMA**t * before * rho * ahead
        k = GAMMA ** (2 * t) * before**2 * rho
        omega = np.diag(1 / behaviour[s]) - 1.0
        hessian[s] += k * np.diag(target[s]) @ omega @ np.diag(target[s])
        linear[s] += k * np.diag(target[s]) @ omega[:, a] * ahead
    fine = weights > 0
    found = np.asarray(tabular.q_regression(data, target, discount=GAMMA))
    np.testing.assert_allclose(found[fine], (total / np.where(fine, weights, 1.0))[fine], rtol=1e-10)
    assert np.all(found[~fine] == 0.0)

    found = np.asarray(tabular.mrdr(data, target, behaviour, discount=GAMMA))
    np.testing.assert_allclose(np.einsum("sab,sb->sa", hessian, found), linear, atol=1e-9 * np.abs(linear).max())
    # other minimisers have c pi_b / pi_e more, and the same doubly robust value
    other = found + np.arange(STATES)[:, None] * behaviour / target
    np.testing.assert_allclose(np.einsum("sab,sb->sa", hessian, other), linear, atol=1e-9 * np.abs(linear).max())
    states, actions = np.where(data.mask, data.observations, 0), np.where(data.mask, data.actions, 0)
    log_prob = np.log(target[states, actions])
    one, two = (tabular.values_on(data, q, target) for q in (found, other))
    made = [corrected.doubly_robust(data, log_prob, x.q, x.v, discount=GAMMA).value for x in (one, two)]
    assert float(made[0]) == pytest.approx(float(made[1]), rel=1e-11)


def test_zero_ratios_and_long_products_leave_no_nan():
    """A target that never does what was done first has ratios of 0; and products of 400 ratios are beyond 1e300."""
    data, behaviour, target = simulated()
    target = target.copy()
    target[0] = [0.0, 0.0, 1.0]
    for q in (tabular.q_regression(data, target), tabular.mrdr(data, target, behaviour)):
        assert np.isfinite(np.asarray(q)).all()
    assert np.all(np.asarray(tabular.mrdr(data, target, behaviour))[0, :2] == 0.0)
    found = ratios.marginalised_is(data, target, discount=GAMMA)
    assert float(found.value) == pytest.approx(loop_marginalised(data, target, GAMMA, np.ones(40)), rel=1e-10)
    ones = np.ones((2, 400), bool)
    long = Trajectories(
        np.zeros((2, 400), int), np.array([[0], [1]]) + 0 * ones, ones + 0.0, None, ones, ~ones, ~ones, None
    )
    policies = [[0.99, 0.01]], [[0.01, 0.99]]
    for q in (
        tabular.mrdr(long, *policies, discount=0.9),
        tabular.q_regression(
            long._replace(behaviour_log_prob=np.log([[0.01], [0.99]]) + 0.0 * ones), policies[0], discount=0.9
        ),
    ):
        assert np.isfinite(np.asarray(q)).all()


def test_marginalised_is_by_log_probabilities():
    """Of the table's policy they are what the table gives; of another one, what a loop gives, for continuous actions, too."""
    data, _, target = simulated()
    states, actions = np.where(data.mask, data.observations, 0), np.where(data.mask, data.actions, 0)
    options = dict(discount=GAMMA, level=0.9)
    expected = ratios.marginalised_is(data, target, **options)
    logged = np.where(data.mask, np.log(target[states, actions]), np.nan)
    found = ratios.marginalised_is(data, np.full((STATES, 1), 1.0), target_log_prob=logged, **options)
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-12)
    steps = np.random.default_rng(0).normal(size=data.mask.shape)
    ratio = np.where(data.mask, np.exp(steps), 0.0)
    marginal, value, masses, weight = np.bincount(states[:, 0], minlength=STATES) / 40, 0.0, [], np.zeros(40)
    for t in range(6):
        here = np.eye(STATES)[states[:, t]] * data.mask[:, [t]]
        visits = np.maximum(here.sum(0), 1.0)
        rewards = np.where(data.mask[:, t], data.rewards[:, t], 0.0)
        masses.append(marginal.sum())
        weight += (marginal / visits)[states[:, t]] * ratio[:, t]
        value += GAMMA**t * marginal @ ((rewards * ratio[:, t]) @ here / visits)
        if t < 5:
            following = np.eye(STATES)[states[:, t + 1]] * data.mask[:, [t + 1]]
            marginal = marginal @ ((ratio[:, [t]] * here).T @ following / visits[:, None])
    free = data._replace(actions=np.zeros((40, 6, 2)))
    found = ratios.marginalised_is(free, target, target_log_prob=data.behaviour_log_prob + steps, discount=GAMMA)
    assert float(found.value) == pytest.approx(value, rel=1e-12)
    assert float(found.diagnostics["largest_mass"]) == pytest.approx(max(masses), rel=1e-12)
    assert max(masses) > 1.01
    assert float(found.effective_sample_size) == pytest.approx(weight.sum() ** 2 / np.sum(weight**2), rel=1e-12)


def test_values_on():
    data, _, target = simulated()
    table = np.random.default_rng(0).normal(size=(STATES, ACTIONS))
    found = tabular.values_on(data, table, target)
    v = np.sum(table * target, axis=1)
    for i in range(40):
        for t in range(6):
            made = data.mask[i, t]
            s, a = (data.observations[i, t], data.actions[i, t]) if made else (0, 0)
            assert float(found.q[i, t]) == (table[s, a] if made else 0.0)
            assert float(found.v[i, t]) == pytest.approx(v[s] if made else 0.0, rel=1e-14)
        ended = data.terminated[i].any()
        assert float(found.final[i]) == pytest.approx(0.0 if ended else v[data.final_observation[i]], rel=1e-14)
    assert tabular.values_on(data._replace(final_observation=None), table, target).final is None


def test_model_is_monte_carlo_where_there_is_nothing_to_weight():
    """One state, one action: the model's value is the sum over a geometric length, which the mean return also is."""
    mask = np.arange(5) < np.array([[2], [5], [1]])
    ends = np.arange(5) == mask.sum(axis=1, keepdims=True) - 1
    data = Trajectories(0 * mask, 0 * mask, mask + 0.0, 0.0 * mask, mask, ends, ends & False, None)
    found = tabular.model_based(data, [[1.0]], level=0.9)
    assert float(found.value) == pytest.approx(8 / 3, rel=1e-14)
    assert float(found.diagnostics["model_length"]) == pytest.approx(8 / 3, rel=1e-14)
    # nothing ends: no value without a discount
    never = data._replace(terminated=ends & False, final_observation=np.zeros(3, int))
    forever = tabular.model_based(never, [[1.0]], horizon_exit=False, level=0.9)
    assert np.isnan(float(forever.value))
    assert (float(forever.lower), float(forever.diagnostics["finite"])) == (-np.inf, 0.0)
    # nor where rounding keeps a singular matrix from being exactly so
    walk = np.random.default_rng(0).integers(0, 3, (20, 5))
    rows = np.ones((20, 5), bool)
    wandering = Trajectories(walk, 0 * walk, rows + 0.0, None, rows, ~rows, ~rows, walk[:, 0])
    lost = tabular.model_based(wandering, np.ones((3, 1)), horizon_exit=False)
    assert np.isnan(float(lost.value))
    assert np.isinf(float(lost.standard_error))
    with pytest.raises(ValueError, match="from state 0 the target never gets to an exit"):
        tabular.tabular_q(never, [[1.0]], horizon_exit=False)
    with pytest.raises(ValueError, match="discount below 1"):
        tabular.tabular_q(wandering, np.ones((3, 1)), horizon_exit=False)
    discounted = tabular.model_based(never, [[1.0]], horizon_exit=False, discount=0.5, level=0.9)
    assert float(discounted.value) == pytest.approx(2.0, rel=1e-14)


def truths(horizon):
    """Values and Q of the target, within the horizon and for ever."""
    mdp, _, target = process()
    with jax.enable_x64(True):
        exact = TabularMDP(*(jnp.asarray(x, jnp.float64) for x in mdp))
        forever = float(mdp.initial @ np.asarray(state_values(exact, jnp.asarray(target))))
        q = np.asarray(state_action_values(exact, jnp.asarray(target)))
    marginal, within = mdp.initial, 0.0
    for t in range(horizon):
        within += GAMMA**t * marginal @ np.sum(target * mdp.reward, axis=1)
        marginal = np.einsum("s,sa,sat->t", marginal, target, mdp.transition)
    return forever, within, q


@pytest.mark.parametrize("name", ["model_based", "marginalised_is"])
def test_consistency_standard_error_and_coverage(name):
    """200 sets of 300 trajectories of 6 steps against dynamic programming.

    The mean is within four standard errors of the truth, and a bias of a tenth of a standard deviation; and farther
    from the value that the other horizon has.
    """
    forever, within, _ = truths(6)
    truth = within if name == "marginalised_is" else forever
    options = dict(discount=GAMMA, level=0.9) | ({} if name == "marginalised_is" else dict(horizon_exit=False))
    data, _, target = simulated(7, (200, 300))
    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(lambda d: METHODS[name](d, target, **options)))
        found = jax.tree.map(np.asarray, together(jax.tree.map(jnp.asarray, data)))
    spread = np.std(found.value)
    slack = (4 / np.sqrt(200) + 0.1) * spread
    other = forever if name == "marginalised_is" else within
    assert abs(np.mean(found.value) - truth) < slack < abs(np.mean(found.value) - other)
    assert np.mean(found.standard_error) == pytest.approx(spread, rel=0.2)
    covered = np.mean((found.lower <= truth) & (truth <= found.upper))
    assert 0.82 < covered < 0.97


def test_fitted_tables_are_consistent():
    """Against exact Q, from 20 sets of 1,000 trajectories, few of them cut: four standard errors, and 0.02 for that."""
    _, _, q = truths(1)
    data, behaviour, target = simulated(11, (20, 1000), horizon=25, noise=0.1)
    assert np.mean(data.mask[..., -1] & ~data.terminated[..., -1]) < 0.03
    with jax.enable_x64(True):
        one = jax.tree.map(jnp.asarray, data)
        for f in (
            lambda d: tabular.tabular_q(d, target, discount=GAMMA),
            lambda d: tabular.q_regression(d, target, discount=GAMMA),
            lambda d: tabular.mrdr(d, target, behaviour, discount=GAMMA),
        ):
            found = np.asarray(jax.jit(jax.vmap(f))(one))[:, :-1]
            error = np.std(found, axis=0) / np.sqrt(20)
            assert np.max(error) < 0.25
            np.testing.assert_array_less(np.abs(found.mean(axis=0) - q[:-1]), 4 * error + 0.02)


def test_rows_without_counts_are_not_looked_at():
    """The padding of rows is worthless in all tests; here are rows that are padding."""
    data, behaviour, target = simulated()
    counts = np.where(np.arange(40) < 35, 1.0, 0.0)
    garbage = jax.tree.map(lambda x: np.where(counts.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, np.nan), data)
    garbage = garbage._replace(mask=data.mask, terminated=data.terminated, truncated=data.truncated)
    for horizon_exit in (True, False):
        found = tabular.model_based(garbage, target, discount=GAMMA, counts=counts, horizon_exit=horizon_exit)
        expected = loop_model(data, target, GAMMA, counts, horizon_exit=horizon_exit)[0]
        assert float(found.value) == pytest.approx(expected, rel=1e-12)
    expected = tabular.model_based(data, target, discount=GAMMA, counts=counts, horizon_exit=False)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-9)
    np.testing.assert_allclose(found.effective_sample_size, expected.effective_sample_size, rtol=1e-9)
    expected = tabular.mrdr(data, target, behaviour, discount=GAMMA, counts=counts)
    found = tabular.mrdr(garbage, target, behaviour, discount=GAMMA, counts=counts)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_weights_say_how_many_trajectories_count():
    data, _, target = simulated()
    visits, *_ = loop_tables(data, np.ones(40))
    zeta = np.asarray(ratios.density_ratio(data, target, discount=GAMMA)) + 0 * visits
    weight = [
        sum(zeta[data.observations[i, t], data.actions[i, t]] for t in range(6) if data.mask[i, t]) for i in range(40)
    ]
    expected = np.sum(weight) ** 2 / np.sum(np.square(weight))
    assert (visits[:-1] > 0).all()
    for f in (tabular.model_based, ratios.minimax_weight, ratios.gen_dice):
        assert float(f(data, target, discount=GAMMA).effective_sample_size) == pytest.approx(expected, rel=1e-9)


def test_second_call_does_not_recompile_and_bootstrap_is_of_trajectories():
    data, _, target = simulated()
    again, *_ = simulated(seed=9)
    options = dict(level=0.9, interval="bootstrap", resamples=400)
    found = ratios.minimax_weight(data, target, discount=GAMMA, **options)
    error = float(found.standard_error)
    assert float(found.lower) < float(found.value) < float(found.upper)
    assert float(found.upper - found.lower) == pytest.approx(2 * 1.645 * error, rel=0.35)
    tabular.tabular_q(data, target, discount=GAMMA)
    sizes = run._cache_size(), tabular._q_table._cache_size()
    ratios.minimax_weight(again, target[::-1], discount=0.7, **options)
    tabular.tabular_q(again, target[::-1], discount=0.7)
    assert (run._cache_size(), tabular._q_table._cache_size()) == sizes


def test_gradient_in_rewards_and_policy():
    """d value / d reward is the weight; d value / d policy agrees with differences; no NaN where nothing was seen."""
    data, _, target = sparse()
    target = target.copy()
    target[2] = [0.0, 0.3, 0.7]
    with jax.enable_x64(True):

        def marginalised(rewards, policy):
            return ratios.marginalised_is(data._replace(rewards=rewards), policy, discount=GAMMA).value

        def modelled(rewards, policy):
            return tabular.model_based(data._replace(rewards=rewards), policy, discount=GAMMA).value

        rewards = jnp.asarray(np.where(data.mask, data.rewards, 0.0))
        shift = np.zeros((STATES, ACTIONS))
        shift[1] = [1e-6, -1e-6, 0.0]
        for f in (marginalised, modelled):
            both = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
            value, (slope, slope_policy) = both(rewards, jnp.asarray(target))
            assert np.isfinite(np.asarray(slope)).all()
            assert np.isfinite(np.asarray(slope_policy)).all()
            assert float(jnp.sum(slope * rewards)) == pytest.approx(float(value), rel=1e-10)
            difference = float(both(rewards, target + shift)[0]) - float(both(rewards, target - shift)[0])
            assert difference / 2e-6 == pytest.approx(float(slope_policy[1, 0] - slope_policy[1, 1]), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "policy", "options", "message"),
    [
        (dict(observations=None), None, {}, "no observations"),
        (dict(actions=None), None, {}, "no actions"),
        (dict(observations=np.zeros((40, 6, 2))), None, {}, "observations has shape"),
        (dict(observations=np.full((40, 6), 4)), None, {}, "from 0 to 3"),
        (dict(actions=np.full((40, 6), -1)), None, {}, "actions must be integers"),
        (dict(actions=np.full((40, 6), 0.5)), None, {}, "actions must be integers"),
        (dict(final_observation=np.full(40, 9)), None, dict(horizon_exit=False), "final_observation must be"),
        (dict(terminated=np.ones((40, 6), bool)), None, {}, "goes on after"),
        ({}, np.ones((4, 3)), {}, "distribution in every row"),
        ({}, np.ones(3), {}, r"table \[S, A\]"),
        ({}, np.full((4, 2), np.nan), {}, "distribution in every row"),
        ({}, None, dict(discount=1.0), "no normalised occupancy"),
        ({}, None, dict(discount=-0.1), "discount must be in"),
        ({}, None, dict(level=2.0), "level must be"),
        ({}, None, dict(counts=np.ones(3)), "there are 40"),
    ],
)
def test_what_cannot_be_meant(change, policy, options, message):
    data, _, target = simulated()
    with pytest.raises(ValueError, match=message):
        ratios.gen_dice(data._replace(**change), target if policy is None else policy, **(dict(discount=0.5) | options))


def test_what_else_cannot_be_meant():
    data, behaviour, target = simulated()
    with pytest.raises(ValueError, match="unseen must be one of average, zero"):
        tabular.model_based(data, target, unseen="self_loop")
    with pytest.raises(ValueError, match="method must be one of"):
        ratios.density_ratio(data, target, discount=0.5, method="star")
    with pytest.raises(ValueError, match="behaviour_policy has shape"):
        tabular.mrdr(data, target, behaviour[:, :2] / behaviour[:, :2].sum(1, keepdims=True))
    with pytest.raises(ValueError, match="q_table has shape"):
        tabular.values_on(data, target[:2], target)
    with pytest.raises(ValueError, match="cannot have probability 0"):
        tabular.mrdr(data, target, np.eye(3)[[0, 0, 0, 0]])
    with pytest.raises(ValueError, match="no behaviour_log_prob"):
        ratios.marginalised_is(data._replace(behaviour_log_prob=None), target)
    with pytest.raises(ValueError, match="enable_x64"):
        jax.jit(lambda r: tabular.model_based(data._replace(rewards=r), target).value)(
            np.where(data.mask, data.rewards, 0.0)
        )
