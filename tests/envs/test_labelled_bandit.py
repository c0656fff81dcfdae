"""Labelled data as a bandit: updates against float64 loops, propensities, learning, and estimates from the logs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.data.bandit_logs import from_arrays
from jaxrl_off.envs.labelled_bandit import (
    KINDS,
    greedy_policy,
    log_decisions,
    make_logger,
    sample_decisions,
    standardise,
    target_propensities,
    train_logger,
    true_value,
)

D, K = 4, 3


def blobs(n, seed=0, classes=K):
    """Classes with different means, in random order."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, D)) * 2
    labels = rng.integers(0, classes, n)
    return standardise(centres[labels] + rng.normal(size=(n, D))), labels.astype(np.int32)


def regress(w, g, x, target, importance, rate):
    """The documented update, in float64; changes w and g."""
    error = target - w @ x
    g += importance * (error * x) ** 2
    rates = np.divide(rate, np.sqrt(g), out=np.zeros_like(g), where=g > 0)
    length = np.sum(rates * x**2)
    if length > 0:
        w += rates * x * error * (1 - np.exp(-importance * length)) / length


@pytest.mark.parametrize("kind", ["epsilon_greedy", "softmax"])
def test_update_is_the_formula(kind):
    rng = np.random.default_rng(0)
    logger = make_logger(kind, K, learning_rate=0.3)
    state, update = logger.init(D), jax.jit(logger.update)
    weights, squares = np.zeros((K, D + 1)), np.zeros((K, D + 1))
    for _ in range(30):
        x, action, reward = rng.normal(size=D), int(rng.integers(K)), float(rng.integers(2))
        propensity = float(rng.uniform(0.05, 1))
        state = update(jax.random.key(0), state, jnp.asarray(x), action, reward, propensity)
        regress(weights[action], squares[action], np.append(x, 1.0), 1 - reward, 1 / propensity, 0.3)
    np.testing.assert_allclose(state.weights[0], weights, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(state.squares[0], squares, rtol=2e-4, atol=1e-5)
    assert int(state.rows) == 30


def test_cover_is_the_documented_algorithm():
    rng = np.random.default_rng(1)
    m, psi, rate = 3, 0.7, 0.2
    logger = make_logger("cover", K, members=m, psi=psi, learning_rate=rate)
    state, update, probabilities = logger.init(D), jax.jit(logger.update), jax.jit(logger.probabilities)
    weights, squares = np.zeros((m, K, D + 1)), np.zeros((m, K, D + 1))
    for t in range(1, 26):
        x, reward = rng.normal(size=D), float(rng.integers(2))
        one = np.append(x, 1.0)
        costs = weights @ one
        best = costs.argmin(1)
        shares = np.bincount(best, minlength=K) / m
        np.testing.assert_allclose(probabilities(state, jnp.asarray(x)), shares, atol=1e-6)
        action = int(rng.choice(K, p=shares))
        propensity = shares[action]
        first = np.clip(costs[0], 0, 1)
        explore = min(1 / K, 1 / np.sqrt(K * t))
        for i in range(1, m):
            for b in range(K):
                robust = first[b] + (b == action) * (1 - reward - first[b]) / propensity
                share = np.mean(best[:i] == b)
                bonus = psi * explore / (explore + (1 - K * explore) * share)
                regress(weights[i, b], squares[i, b], one, robust - bonus, 1.0, rate)
        regress(weights[0, action], squares[0, action], one, 1 - reward, 1 / propensity, rate)
        state = update(jax.random.key(t), state, jnp.asarray(x), action, reward, jnp.float32(propensity))
    np.testing.assert_allclose(state.weights, weights, rtol=1e-3, atol=1e-4)
    assert len(set(map(tuple, np.asarray(state.weights[:, :, 0]).tolist()))) == m


@pytest.mark.parametrize("kind", ["epsilon_greedy", "cover"])
def test_costs_of_all_actions_are_regressed(kind):
    """`costs="ips"`: the chosen action learns cost over propensity, others 0; later ones of a cover a bonus."""
    rng, m, psi, rate = np.random.default_rng(1), 3, 0.7, 0.2
    logger = make_logger(kind, K, members=m, psi=psi, learning_rate=rate, costs="ips")
    m = m if kind == "cover" else 1
    state, update = logger.init(D), jax.jit(logger.update)
    weights, squares = np.zeros((m, K, D + 1)), np.zeros((m, K, D + 1))
    for t in range(1, 26):
        x, reward = rng.normal(size=D), float(rng.integers(2))
        one, action, propensity = np.append(x, 1.0), int(rng.integers(K)), rng.uniform(0.2, 1.0)
        best, explore = (weights @ one).argmin(1), min(1 / K, 1 / np.sqrt(K * t))
        for i in range(m):
            for b in range(K):
                target = (b == action) * (1 - reward) / propensity
                if i:
                    target -= psi * explore / (explore + (1 - K * explore) * np.mean(best[:i] == b))
                regress(weights[i, b], squares[i, b], one, target, 1.0, rate)
        state = update(jax.random.key(t), state, jnp.asarray(x), action, reward, jnp.float32(propensity))
    np.testing.assert_allclose(state.weights, weights, rtol=1e-3, atol=1e-4)


def test_a_large_importance_reaches_the_cost_and_does_not_overshoot():
    logger = make_logger("epsilon_greedy", K)
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    predicted = []
    for propensity in (1.0, 0.1, 0.01, 1e-6):
        state = logger.update(jax.random.key(0), logger.init(D), x, 1, 0.0, propensity)
        predicted.append(float(state.weights[0, 1] @ jnp.append(x, 1.0)))
        assert not np.asarray(state.weights[0, [0, 2]]).any()
    assert predicted == sorted(predicted)
    assert 0 < predicted[0] < 0.6
    assert predicted[-1] == pytest.approx(1.0, abs=1e-5)
    # nothing to learn: the cost was foreseen
    state = logger.update(jax.random.key(0), logger.init(D), x, 1, 1.0, 0.5)
    assert not np.asarray(state.weights).any()


def test_members_of_a_bag_learn_a_poisson_number_of_times():
    logger = make_logger("bag", K, members=8)
    keys = jax.random.split(jax.random.key(3), 500)
    states = jax.jit(jax.vmap(lambda key: logger.update(key, logger.init(D), jnp.ones(D), 2, 0.0, 1.0)))(keys)
    costs = np.asarray(states.weights[..., 2, :].sum(-1))
    assert not np.asarray(states.weights[..., :2, :]).any()
    # as often as Poisson(1) is 0, 1 and 2, with four standard errors of 4000 draws
    values = np.unique(costs.round(5))
    for times, share in enumerate((0.36788, 0.36788, 0.18394)):
        found = np.mean(np.abs(costs - values[times]) < 1e-5)
        assert found == pytest.approx(share, abs=0.031)


@functools.cache
def learned(kind):
    """A logger of five classes, its state after two passes, and the decisions of the second."""
    features, labels = blobs(1500, classes=5)
    logger = make_logger(kind, 5, epsilon=0.1, temperature=4.0, members=7)

    @jax.jit
    def run(key):
        first, second = jax.random.split(key)
        state = train_logger(logger, first, features, labels)
        return log_decisions(logger, second, state, features, labels, learning=True)

    return logger, *run(jax.random.key(0)), labels


@pytest.mark.parametrize("kind", KINDS)
def test_propensities_are_those_of_the_policy_and_weights_stay_below_their_bound(kind):
    logger, state, made, labels = learned(kind)
    np.testing.assert_allclose(made.probabilities.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(made.propensity, np.asarray(made.probabilities)[np.arange(1500), made.action])
    np.testing.assert_array_equal(made.reward, np.asarray(made.action) == labels)
    inverse = 1.0 / np.asarray(made.propensity, np.float64)
    assert inverse.max() <= logger.weight_max
    expected = {"epsilon_greedy": 50, "softmax": 1 + 4 * np.exp(4.0), "bag": 7, "cover": 7}[kind]
    assert logger.weight_max == pytest.approx(expected, rel=2e-5)
    if kind != "softmax":
        assert inverse.max() == logger.weight_max  # attained, to the last digit
    probabilities, greedy = jax.jit(logger.probabilities), jax.jit(logger.greedy)
    for x in np.random.default_rng(4).normal(size=(20, D)).astype(np.float32):
        costs = np.asarray(state.weights) @ np.append(x, 1.0)
        best = costs.argmin(1)
        share = np.bincount(best, minlength=5) / len(best)
        assert int(greedy(state, x)) == (share.argmax() if kind == "bag" else best[0])
        if kind == "epsilon_greedy":
            share = 0.02 + 0.9 * share
        if kind == "softmax":
            share = np.exp(-4 * np.clip(costs[0], 0, 1))
        np.testing.assert_allclose(probabilities(state, x), share / share.sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_policies_learn_from_their_own_guesses(kind):
    logger, state, made, _ = learned(kind)
    assert int(state.rows) == 3000
    assert made.reward.mean() > 0.4
    held, truth = blobs(1000, seed=1, classes=5)
    value = jax.jit(lambda state: true_value(greedy_policy(logger, state, held), truth))
    # least squares on the labels themselves, which is as good as linear regressions get, has 0.79; guessing has 0.2
    assert value(state) > 0.65
    assert value(logger.init(D)) == pytest.approx(np.mean(truth == 0))  # nothing is tried, and all look as good


@pytest.mark.parametrize("num_actions", [2, 3, 7, 34, 56])
def test_weights_stay_below_their_bound_where_all_is_exploration(num_actions):
    logger = make_logger("epsilon_greedy", num_actions, epsilon=1.0)
    lowest = np.asarray(logger.probabilities(logger.init(D), jnp.ones(D)), np.float64).min()
    assert 1.0 / lowest <= logger.weight_max


@pytest.mark.parametrize("costs", ["importance", "ips"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_learned_where_the_propensity_is_infinite(kind, costs):
    logger = make_logger(kind, K, costs=costs)
    features, labels = blobs(60)
    state = train_logger(logger, jax.random.key(0), features, labels)
    row = (features[0], jnp.int32(1), jnp.float32(1.0), jnp.float32(jnp.inf))
    after = jax.jit(logger.update)(jax.random.key(1), state, *row)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_larger_bonus_makes_policies_of_a_cover_disagree():
    features, labels = blobs(400)

    def actions_in_play(psi):
        logger = make_logger("cover", K, psi=psi, members=6)
        run = jax.jit(lambda key: log_decisions(logger, key, logger.init(D), features, labels, learning=True))
        return float((run(jax.random.key(0))[1].probabilities[200:] > 0).sum(1).mean())

    few, many = actions_in_play(0.05), actions_in_play(1.0)
    assert few < 1.4
    assert many > few + 0.2


def test_importance_weighted_rewards_of_a_log_estimate_the_true_value():
    features, labels = blobs(400)
    logger = make_logger("epsilon_greedy", K, epsilon=0.5)
    state = jax.jit(lambda key: train_logger(logger, key, features[:60], labels[:60]))(jax.random.key(0))
    target = 0.7 * jax.nn.one_hot((labels + 1) % K, K) + 0.3 * jax.nn.one_hot(labels, K)
    assert true_value(target, labels) == pytest.approx(0.3)

    def estimate(key):
        same, made = log_decisions(logger, key, state, features, labels, learning=False)
        weights = target_propensities(made, target) / made.propensity
        return jnp.mean(weights), jnp.mean(weights * made.reward), same.weights

    weights, values, after = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(5), 1000))
    np.testing.assert_array_equal(after[0], state.weights)
    for found, truth in ((weights, 1.0), (values, 0.3)):
        assert abs(found.mean() - truth) < 4 * found.std() / 1000**0.5
        assert 0 < found.std() < 0.2


def test_rewards_seen_while_learning_move_later_propensities_only():
    features, labels = blobs(50)
    logger = make_logger("softmax", K, learning_rate=0.5)

    @jax.jit
    def run(truth):
        return log_decisions(logger, jax.random.key(2), logger.init(D), features, truth, learning=True)[1]

    one, other = run(labels), run(np.concatenate([labels[:20], (labels[20:] + 1) % K]))
    np.testing.assert_array_equal(one.probabilities[:21], other.probabilities[:21])
    assert not np.allclose(one.probabilities[30:], other.probabilities[30:])
    np.testing.assert_allclose(one.probabilities[0], 1 / K, rtol=1e-6)


def test_jit_and_vmap_are_the_function_itself():
    features, labels = blobs(40)
    logger = make_logger("bag", K, members=4)
    traces = []

    def run(key):
        traces.append(None)
        return log_decisions(logger, key, logger.init(D), features, labels, learning=True)

    keys = jax.random.split(jax.random.key(4), 3)
    compiled = jax.jit(run)
    loop = [compiled(key) for key in keys]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(run))(keys)
    for each in (together, jax.tree.map(lambda leaf: leaf[None], run(keys[0]))):
        for a, b in zip(
            jax.tree.leaves(each), jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *loop)), strict=True
        ):
            np.testing.assert_allclose(a, b[: len(a)], rtol=1e-4, atol=1e-5)
    assert not np.array_equal(loop[0][1].action, loop[1][1].action)


def test_passes_go_on_from_what_was_learned():
    features, labels = blobs(60)
    logger = make_logger("softmax", K, learning_rate=0.5)
    one, three = (
        jax.jit(lambda key, n=n: train_logger(logger, key, features, labels, passes=n))(jax.random.key(0))
        for n in (1, 3)
    )
    assert (int(one.rows), int(three.rows)) == (60, 180)
    assert np.asarray(three.squares).sum() > 1.2 * np.asarray(one.squares).sum()


def test_guesses_of_a_fixed_policy():
    labels = np.tile(np.arange(K, dtype=np.int32), 2000)
    probabilities = np.tile([[0.7, 0.3, 0.0]], (len(labels), 1))
    made = sample_decisions(jax.random.key(0), probabilities, labels)
    counts = np.bincount(made.action, minlength=K)
    assert counts[2] == 0
    assert counts[0] / len(labels) == pytest.approx(0.7, abs=0.024)
    assert true_value(probabilities, labels) == pytest.approx(1 / 3)
    np.testing.assert_allclose(target_propensities(made, probabilities), probabilities[0][made.action], rtol=1e-6)
    log, report = from_arrays(
        context=np.zeros((len(labels), 2)), num_actions=K, **{name: getattr(made, name) for name in made._fields[:3]}
    )
    assert (report.dropped, log.num_actions) == (0, K)
    np.testing.assert_array_equal(log.propensity, np.asarray(made.propensity, np.float64))
    with pytest.raises(AssertionError):
        sample_decisions(jax.random.key(0), probabilities[:-1], labels)


def test_standardised_features():
    raw = np.array([[1, 2e19, 5], [2, 1e19, 5], [6, 3e19, 5]])
    done = standardise(raw)
    assert done.dtype == np.float32
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(done.std(0), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(done[:, 1], np.array([0, -1, 1]) * 1.5**0.5, atol=1e-6)
    for bad in (np.array([[1.0, np.nan]]), np.ones(3), np.ones((0, 2))):
        with pytest.raises(ValueError, match="matrix of finite numbers"):
            standardise(bad)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("greedy", {}, "kind must be one of epsilon_greedy, softmax, bag, cover, got 'greedy'"),
        ("bag", {"num_actions": 1}, "num_actions must be at least 2"),
        ("epsilon_greedy", {"epsilon": 0.0}, r"epsilon must be in \(0, 1\]"),
        ("bag", {"members": 1}, "members must be at least 2"),
        ("cover", {"psi": -1.0}, "psi must be positive"),
        ("softmax", {"temperature": np.inf}, "temperature must be positive and finite"),
        ("softmax", {"temperature": 1000}, "temperature must be at most 86.64 with 3 actions, got 1000; propensities"),
    ],
)
def test_loggers_that_cannot_be_meant(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make_logger(kind, **({"num_actions": K} | options))
    with pytest.raises(ValueError, match="passes must be at least 1"):
        train_logger(make_logger("bag", K), jax.random.key(0), np.ones((2, D)), np.zeros(2, int), passes=0)
    with pytest.raises(AssertionError, match="rank"):
        train_logger(make_logger("bag", K), jax.random.key(0), np.ones(2), np.zeros(2, int))
    make_logger("bag", K, temperature=1000)  # which it does not use
    steep = make_logger("softmax", K, temperature=86.6)
    state = steep.init(1)._replace(weights=jnp.zeros((1, K, 2)).at[0, 0, 1].set(1.0))
    assert 0 < 1 / np.asarray(steep.probabilities(state, jnp.zeros(1)), np.float64).min() <= steep.weight_max < np.inf
