from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.common import float64
from jaxrl_off.estimators.trajectory.columns import tables as tabular_steps
from jaxrl_off.estimators.trajectory.columns import transitions as tr
from jaxrl_off.estimators.trajectory.columns.target_policy import one_policy, target_actions
from jaxrl_off.types import Trajectories

LENGTHS = np.array([3, 1, 4, 2])
ENDS = ("terminated", "truncated", "horizon", "truncated")
POLICY = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])


def made(final=True, garbage=True):
    rng = np.random.default_rng(0)
    n, horizon = len(LENGTHS), 4
    mask = np.arange(horizon) < LENGTHS[:, None]
    last = np.arange(horizon) == LENGTHS[:, None] - 1
    states = np.where(mask, rng.integers(3, size=mask.shape), 99 if garbage else 0)
    actions = np.where(mask, rng.integers(2, size=mask.shape), -5 if garbage else 0)
    rewards = np.where(mask, rng.normal(size=mask.shape), np.nan if garbage else 0.0)
    terminated, truncated = (
        last & np.array([e == kind for e in ENDS])[:, None] for kind in ("terminated", "truncated")
    )
    after = rng.integers(3, size=n)
    return Trajectories(states, actions, rewards, None, mask, terminated, truncated, after if final else None)


def vectors(data):
    """The same with observations that are vectors; NaN in the padding and after termination."""
    table = np.random.default_rng(1).normal(3.0, 2.0, size=(3, 2))
    observations = np.where(data.mask[..., None], table[data.observations % 3], np.nan)
    final = table[data.final_observation]
    final[0] = np.nan
    return data._replace(observations=observations, final_observation=final), table


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("horizon_exit", [True, False])
def test_ends_of_rows_mean_what_they_mean_for_tables(final, horizon_exit):
    data = made(final)
    options = dict(discount=0.9, counts=[1.0, 2.0, 1.0, 0.0], horizon_exit=horizon_exit)
    with float64(data):
        found = tr.transitions_of(data, target_actions(data, POLICY), **options)
        wanted = tabular_steps.tabular_steps_of(data, POLICY, **options)
    np.testing.assert_array_equal(found.used, wanted.used)
    np.testing.assert_array_equal(found.continues, wanted.continues)
    shown = np.asarray(wanted.steps.mask)
    np.testing.assert_array_equal(np.where(shown, found.observations[:, :-1], 0), np.where(shown, wanted.states, 0))
    follows = np.asarray(wanted.continues) > 0
    np.testing.assert_array_equal(
        np.where(follows, found.observations[:, 1:], 0), np.where(follows, wanted.successors, 0)
    )
    np.testing.assert_array_equal(
        np.where(follows[..., None], found.target.weights[:, 1:], 0),
        np.where(follows[..., None], POLICY[np.asarray(wanted.successors)], 0),
    )


def test_what_is_not_known_is_neutral():
    data, _ = vectors(made())
    target = target_actions(made(), POLICY)
    with float64(data):
        found = tr.transitions_of(data, target)
        flat = tr.flattened(found, jnp.float64)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found, flat)))
    assert flat.observation.shape == (LENGTHS.sum(), 2)
    np.testing.assert_array_equal(flat.row, np.repeat(np.arange(4), LENGTHS))
    np.testing.assert_array_equal(flat.step, np.concatenate([np.arange(length) for length in LENGTHS]))
    np.testing.assert_array_equal(target.weights[0, 3], 0.0)  # terminated
    np.testing.assert_allclose(target.weights[1, 1], POLICY[made().final_observation[1]])


def test_every_form_of_policy_gives_the_same():
    data = made()
    log_policy = jnp.log(POLICY)
    wanted = np.asarray(target_actions(data, POLICY).weights)
    all_actions = target_actions(data, lambda s: log_policy[s]).weights
    one_action = target_actions(data, lambda s, a: log_policy[s, a], num_actions=2).weights
    given = np.concatenate(
        [np.where(data.mask[..., None], POLICY[data.observations % 3], 0), np.zeros((4, 1, 2))], axis=1
    )
    given[np.arange(4), LENGTHS] = POLICY[data.final_observation]
    array = target_actions(data, given).weights
    for found in (all_actions, one_action, array):
        np.testing.assert_allclose(found, wanted, atol=1e-15)
    without = np.asarray(target_actions(data._replace(final_observation=None), given[:, :-1]).weights)
    np.testing.assert_allclose(without[:, :-1], wanted[:, :-1] * data.mask[..., None])
    assert not without[:, -1].any()


def test_float32_probabilities_are_made_to_sum_to_one():
    data = made()
    found = target_actions(data, lambda s: jnp.log(jnp.full((len(s), 3), 1 / 3, jnp.float32)))
    np.testing.assert_allclose(np.asarray(found.weights).sum(-1)[:, 0], 1.0, atol=1e-15)


def test_samples_of_continuous_policies():
    data, table = vectors(made())

    def act(key, observation):
        action = observation[:, :1] + jax.random.normal(key, (len(observation), 1))
        return action, jnp.zeros(len(observation))

    found = target_actions(data, act, samples=500, key=jax.random.key(0))
    assert found.actions.shape == (4, 5, 500, 1)
    actions, weights = np.asarray(found.actions), np.asarray(found.weights)
    np.testing.assert_allclose(actions[2, :4, :, 0].mean(-1), table[made().observations[2], 0], atol=0.2)
    np.testing.assert_allclose(weights[2].sum(-1), 1.0)
    assert not weights[0, 3:].any()


def test_standardisation_counts_trajectories():
    data, _ = vectors(made())
    counts = np.array([2.0, 0.0, 1.0, 1.0])
    target = target_actions(made(), POLICY)
    with float64(data):
        found = tr.transitions_of(data, target, counts=counts)
        scale = tr.standardisation_of(found)
        moved = tr.standardised(found, scale)
    rows = np.concatenate([data.observations[i][data.mask[i]] for i in (0, 0, 2, 3)])
    np.testing.assert_allclose(scale.observation_mean, rows.mean(axis=0))
    np.testing.assert_allclose(scale.observation_deviation, rows.std(axis=0))
    np.testing.assert_allclose(moved.observations[2, 0], (data.observations[2, 0] - rows.mean(0)) / rows.std(0))
    assert scale.action_mean is None


def test_constants_are_not_blown_up():
    data, _ = vectors(made())
    data = data._replace(observations=np.full_like(data.observations, 0.1), final_observation=np.full((4, 2), 0.1))
    with float64(data):
        scale = tr.standardisation_of(tr.transitions_of(data, target_actions(made(), POLICY)))
    np.testing.assert_array_equal(scale.observation_deviation, 1.0)


def test_several_policies_have_a_leading_axis():
    data = made()
    targets = [target_actions(data, policy) for policy in (POLICY, POLICY[:, ::-1])]
    both = jax.tree.map(lambda *x: jnp.stack(x), *targets)
    with float64(data):
        flat = tr.flattened(tr.transitions_of(data, both), jnp.float64)
        one = tr.flattened(tr.transitions_of(data, targets[1]), jnp.float64)
    np.testing.assert_array_equal(flat.next_target.weights[1], one.next_target.weights)


def test_under_jit_as_without():
    data = made(garbage=False)

    def flat(data):
        return tr.flattened(tr.transitions_of(data, target_actions(data, POLICY)), jnp.float64)

    with jax.enable_x64(True):
        one, other = flat(data), jax.jit(flat)(jax.tree.map(jnp.asarray, data))
    shown = np.asarray(data.mask).reshape(-1)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, np.asarray(b)[shown])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(observations=None), "observations must be one array"),
        (dict(actions=None), "no actions"),
        (dict(actions=np.full((4, 4), 2)), "integers from 0 to 1"),
        (dict(terminated=np.ones((4, 4), bool)), "goes on after step 0"),
    ],
)
def test_what_is_refused(change, message):
    data, target = made(), target_actions(made(), POLICY)
    with float64(data), pytest.raises(ValueError, match=message):
        tr.transitions_of(data._replace(**change), target)


def test_observations_that_are_not_finite_are_refused_where_they_count():
    data, _ = vectors(made())
    data.observations[2, 1, 0] = np.inf
    target = target_actions(made(), POLICY)
    with float64(data):
        with pytest.raises(ValueError, match="step 1 of trajectory 2"):
            tr.transitions_of(data, target)
        found = tr.transitions_of(data, target, counts=[1.0, 1.0, 0.0, 1.0])
    assert np.isfinite(found.observations).all()


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (np.log(POLICY + 1e-9), {}, "not be negative"),
        (POLICY * 0.9, {}, "sum to 1"),
        (np.ones((4, 3, 2)) / 2, {}, r"\[n, T \+ 1, A\]"),
        (lambda s: jnp.zeros(len(s)), {}, r"log_prob \[N, A\]"),
        (lambda s: jnp.zeros(len(s)), dict(samples=2), "a key"),
    ],
)
def test_policies_that_are_refused(policy, options, message):
    with pytest.raises(ValueError, match=message):
        target_actions(made(), policy, **options)


def test_data_that_leave_nothing_to_learn_from_are_refused():
    """Single steps that do not end, and nobody knows what they led to."""
    one = np.ones((3, 1), bool)
    data = Trajectories(np.zeros((3, 1), int), np.zeros((3, 1), int), np.ones((3, 1)), None, one, ~one, ~one, None)
    target = target_actions(data, POLICY)
    with float64(data):
        assert float(tr.transitions_of(data, target).used.sum()) == 3.0
        with pytest.raises(ValueError, match="no step to learn from"):
            tr.transitions_of(data, target, horizon_exit=False)


def test_steps_are_usable_whether_they_count_or_not():
    data = made(final=False)
    target = target_actions(data, POLICY)
    with float64(data):
        found = tr.transitions_of(data, target, counts=[1.0, 0.0, 1.0, 0.0], horizon_exit=False)
    assert np.array_equal(np.asarray(found.usable).sum(axis=1), [3, 0, 3, 1])
    assert np.array_equal(np.asarray(found.used).sum(axis=1), [3, 0, 3, 0])


def test_one_policy_is_one():
    data = made()
    target = target_actions(data, POLICY)
    assert one_policy(target) is target
    with pytest.raises(ValueError, match="one policy"):
        one_policy(target._replace(weights=jnp.stack([target.weights, target.weights])))
