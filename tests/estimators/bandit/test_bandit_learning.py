"""Learning from logged decisions: every objective on a small task, and what reweighting is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import bandit
from jaxrl_off.estimators.bandit.learning import OBJECTIVES

ACTIONS, EPSILON = 3, 0.3
RANGE = (0.0, ACTIONS / EPSILON)


@pytest.fixture(scope="module")
def task():
    """The best action is that of the largest of three features; the log is of a policy that is right in half the contexts."""
    random = np.random.default_rng(0)
    features = random.normal(size=(1200, ACTIONS)).astype(np.float32)
    best = features.argmax(axis=1)
    logger = np.where(random.uniform(size=1200) < 0.5, best, random.integers(0, ACTIONS, size=1200))
    probabilities = np.full((1200, ACTIONS), EPSILON / ACTIONS)
    probabilities[np.arange(1200), logger] += 1 - EPSILON
    actions = np.array([random.choice(ACTIONS, p=p) for p in probabilities])
    rewards = (random.uniform(size=1200) < np.where(actions == best, 0.9, 0.1)).astype(float)
    return features, best, actions, rewards, probabilities[np.arange(1200), actions]


def learned(task, objective, **options):
    features, _, actions, rewards, propensities = (x[:600] for x in task)
    if objective == "doubly_robust":
        options["predictions"] = bandit.cross_fitted(features, actions, rewards, ACTIONS)
    return bandit.learn(
        jax.random.key(0),
        features,
        actions,
        rewards,
        propensities,
        ACTIONS,
        objective=objective,
        weight_range=RANGE,
        passes=150 if objective == "lower_bound" else 60,
        learning_rate=0.03,
        **options,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_what_the_logger_does_not_know(task, objective):
    features, best = task[0][600:], task[1][600:]
    found = learned(task, objective)
    right = float(np.mean(np.asarray(found.policy.greedy(features)) == best))
    # the logger is right in two thirds of the contexts, a constant policy in one third
    assert right > 0.85
    objective_curve = np.asarray(found.objective)
    assert np.isfinite(objective_curve).all()
    assert objective_curve[-5:].mean() > objective_curve[:5].mean() + 0.1
    probabilities = np.asarray(found.policy.probabilities(features))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_hidden_layers_learn_what_a_linear_policy_cannot():
    random = np.random.default_rng(1)
    features = random.choice([-1.0, 1.0], size=(1500, 2))
    best = (features[:, 0] * features[:, 1] > 0).astype(int)
    actions = random.integers(0, 2, size=1500)
    rewards = (actions == best).astype(float)
    propensities = np.full(1500, 0.5)
    right = {}
    for hidden in ((), (16,)):
        found = bandit.learn(
            jax.random.key(3), features, actions, rewards, propensities, 2, objective="ips", hidden=hidden, passes=40
        )
        right[hidden] = float(np.mean(np.asarray(found.policy.greedy(features)) == best))
    assert right[16,] > 0.99
    assert right[()] < 0.9


def test_the_pessimistic_law_weighs_rewards_down():
    """omega of the lower bound falls with the reward at one weight, adds up to the law, and is the bound's own gradient."""
    random = np.random.default_rng(2)
    weights = np.tile([0.0, 0.5, 2.0], 100)
    rewards = np.repeat([0.0, 1.0, 1.0], 100)
    random.shuffle(rewards)
    log = dict(weights=weights, rewards=rewards, weight_range=(0.0, 4.0))
    omega = np.asarray(bandit.likelihood_weights(**log, level=0.95))
    neutral = np.asarray(bandit.likelihood_weights(**log))
    assert omega.shape == neutral.shape == (300,)
    for weight in (0.5, 2.0):
        here = weights == weight
        assert omega[here & (rewards == 1)].max() < omega[here & (rewards == 0)].min()
        assert np.ptp(neutral[here]) < 1e-12
    lower = float(bandit.empirical_likelihood(weights, rewards, weight_range=(0.0, 4.0), level=0.95).lower)
    assert np.mean(omega * weights * rewards) == pytest.approx(lower, abs=1e-9)
    with jax.enable_x64(True):
        slope = jax.grad(
            lambda r: bandit.empirical_likelihood(jnp.asarray(weights), r, weight_range=(0.0, 4.0), level=0.95).lower
        )(jnp.asarray(rewards))
    np.testing.assert_allclose(slope, omega * weights / 300, atol=1e-9)
    value = float(bandit.empirical_likelihood(**log).value)
    assert np.mean(neutral * weights * rewards) == pytest.approx(value, abs=1e-9)
    # of one weight and reward, whether or not the log has it: 1 / omega is linear in w, and in r
    asked = (np.array([0.5, 1.0, 2.0, 2.0, 2.0]), np.array([0.0, 0.0, 0.0, 0.5, 1.0]))
    inverse = 1.0 / np.asarray(bandit.likelihood_weights(**log, level=0.95, at=asked))
    np.testing.assert_allclose(
        1.0 / inverse[[0, 2, 4]], [omega[(weights == w) & (rewards == r)][0] for w, r in ((0.5, 0), (2, 0), (2, 1))]
    )
    assert inverse[1] == pytest.approx(inverse[0] + (inverse[2] - inverse[0]) / 3)
    assert inverse[3] == pytest.approx((inverse[2] + inverse[4]) / 2)


def test_the_law_that_attains_a_trivial_bound_is_the_best_one():
    log = dict(weights=[0.5, 1.5, 1.0], rewards=[0.0, 0.0, 0.0], weight_range=(0.0, 4.0))
    np.testing.assert_array_equal(bandit.likelihood_weights(**log, level=0.95), bandit.likelihood_weights(**log))


def test_vmap_over_keys_is_the_loop(task):
    features, _, actions, rewards, propensities = (x[:200] for x in task)
    keys = jax.random.split(jax.random.key(5), 2)

    def run(key):
        return bandit.learn(
            key, features, actions, rewards, propensities, ACTIONS, weight_range=RANGE, passes=3, batch_size=64
        ).policy.logits(features[:4])

    np.testing.assert_allclose(jax.vmap(run)(keys)[1], run(keys[1]), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(objective="best"), "objective must be one of"),
        (dict(objective="lower_bound", weight_range=None), "needs weight_range"),
        (dict(objective="doubly_robust"), "predictions belong to"),
        (dict(propensities=[0.5, 0.0]), "propensities must be in"),
        (dict(actions=[0, 5]), "actions must be in"),
        (dict(rewards=[0.0, 2.0]), "rewards must be in"),
        (dict(features=[[1.0], [np.nan]]), "features must be finite"),
        (dict(propensities=[0.5]), "do not fit together"),
        (dict(passes=0), "passes must be at least 1"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = dict(features=[[1.0], [2.0]], actions=[0, 1], rewards=[0.0, 1.0], propensities=[0.5, 0.5], objective="ips")
    with pytest.raises(ValueError, match=message):
        bandit.learn(jax.random.key(0), num_actions=2, **(good | change))
