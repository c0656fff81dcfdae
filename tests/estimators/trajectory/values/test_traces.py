from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import traces
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.ops.returns import vtrace
from jaxrl_off.types import Trajectories

STATES, ACTIONS, N, HORIZON, DISCOUNT = 3, 2, 60, 5, 0.9
TARGET = np.array([[0.3, 0.7], [0.8, 0.2], [0.5, 0.5]])
BEHAVIOUR = np.array([[0.6, 0.4], [0.5, 0.5], [0.25, 0.75]])
TABLE = np.array([[1.0, 0.2], [1.0, -1.0], [1.0, 0.5]])
ALL = (*traces.ACTION_TRACES, *traces.STATE_TRACES)


def one_hot(state):
    return jax.nn.one_hot(state, STATES)


def poor(state):
    """Features that cannot have the value."""
    return jnp.asarray(TABLE)[state]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, HORIZON + 1, size=N)
    mask = np.arange(HORIZON) < lengths[:, None]
    last = np.arange(HORIZON) == lengths[:, None] - 1
    states = rng.integers(STATES, size=mask.shape)
    actions = (rng.uniform(size=mask.shape) < BEHAVIOUR[states, 1]).astype(int)
    kind = rng.integers(3, size=(N, 1))
    log_prob = np.log(BEHAVIOUR[states, actions])
    rewards = rng.normal(states + actions, 1.0)
    return Trajectories(
        states, actions, rewards, log_prob, mask, last & (kind == 0), last & (kind == 1), rng.integers(STATES, size=N)
    )


@pytest.fixture(scope="module")
def target(data):
    return target_actions(data, TARGET)


def coefficient(trace, ratio, probability):
    return dict(
        retrace=min(1.0, ratio),
        tree_backup=probability,
        q_lambda=1.0,
        importance_sampling=ratio,
        vtrace=min(1.0, ratio),
        td=ratio,
    )[trace]


@pytest.mark.parametrize("horizon_exit", [True, False])
@pytest.mark.parametrize("trace", traces.ACTION_TRACES)
def test_the_operator_written_out_moves_no_fixed_point(data, target, trace, horizon_exit):
    """`sum x_t ((R Q)(s_t, a_t) - Q(s_t, a_t)) = 0` with sums over all later steps, as in the paper."""
    options = dict(trace=trace, lambda_=0.7, features=poor, discount=DISCOUNT, horizon_exit=horizon_exit)
    theta = np.asarray(traces.fit_traces(data, target, ridge=0.0, **options).parameters).reshape(ACTIONS, 2)
    q_table = TABLE @ theta.T
    v_table = (TARGET * q_table).sum(axis=1)
    residual, scale = np.zeros((ACTIONS, 2)), 0.0
    for i in range(N):
        length = int(data.mask[i].sum())
        s, a, r = (np.asarray(x[i, :length]) for x in (data.observations, data.actions, data.rewards))
        after = v_table[np.append(s[1:], data.final_observation[i])]
        if data.terminated[i].any() or horizon_exit:
            after[-1] = 0.0
        delta = r + DISCOUNT * after - q_table[s, a]
        ratio, probability = TARGET[s, a] / BEHAVIOUR[s, a], TARGET[s, a]
        for t in range(length):
            change, product = 0.0, 1.0
            for k in range(t, length):
                product *= 1.0 if k == t else 0.7 * coefficient(trace, ratio[k], probability[k])
                change += DISCOUNT ** (k - t) * product * delta[k]
            residual[a[t]] += TABLE[s[t]] * change
            scale += abs(change)
    assert np.abs(residual).max() < 1e-9 * scale


@pytest.mark.parametrize("trace", traces.STATE_TRACES)
def test_state_values_are_those_that_vtrace_leaves(data, target, trace):
    """Regression of the targets of `ops.returns.vtrace` on features gives what they were made from."""
    options = dict(trace=trace, lambda_=0.7, features=poor, discount=DISCOUNT)
    fit = traces.fit_traces(data, target, ridge=0.0, **options)
    ratio = TARGET[data.observations, data.actions] / BEHAVIOUR[data.observations, data.actions]
    bound = 1.0 if trace == "vtrace" else np.inf
    with jax.enable_x64(True):
        v = jnp.asarray(fit.values.v)
        # the end of a row is an exit; padding adds nothing, as its ratios are 0
        goes_on = jnp.concatenate([jnp.asarray(data.mask[:, 1:]), jnp.zeros((N, 1), bool)], axis=1)
        following = jnp.concatenate([v[:, 1:], jnp.zeros((N, 1))], axis=1)
        columns = (v, following, jnp.asarray(data.rewards), jnp.asarray(np.where(data.mask, ratio, 0.0)), ~goes_on)

        def targets(v, following, rewards, ratios, ends):
            no = jnp.zeros(HORIZON, bool)
            bounds = dict(rho_bar=bound, c_bar=bound, lambda_=0.7)
            return vtrace(v, following, rewards, ratios, ends, no, DISCOUNT, **bounds).value_targets

        moved = jax.vmap(targets)(*columns) - v
    x = np.where(data.mask[..., None], TABLE[data.observations], 0.0)
    residual = np.einsum("ntk,nt->k", x, np.where(data.mask, moved, 0.0))
    assert np.abs(residual).max() < 1e-9 * np.abs(np.asarray(moved)).sum()


@pytest.mark.parametrize("trace", traces.ACTION_TRACES)
def test_without_traces_it_is_fitted_q_evaluation(data, target, trace):
    options = dict(features=poor, discount=DISCOUNT)
    found = traces.fit_traces(data, target, trace=trace, lambda_=0.0, **options)
    wanted = linear_q.fit_linear_q(data, target, **options)
    np.testing.assert_allclose(found.parameters, wanted.parameters, rtol=1e-9)


def returns_of(data):
    ahead = np.zeros((N, HORIZON + 1))
    for t in reversed(range(HORIZON)):
        ahead[:, t] = np.where(data.mask[:, t], data.rewards[:, t] + DISCOUNT * ahead[:, t + 1], 0.0)
    return ahead[:, :-1]


@pytest.mark.parametrize("trace", traces.STATE_TRACES)
def test_on_policy_with_full_traces_it_is_every_visit_monte_carlo(data, trace):
    target = target_actions(data, BEHAVIOUR)
    found = traces.fit_traces(data, target, trace=trace, lambda_=1.0, features=poor, discount=DISCOUNT, ridge=0.0)
    wanted = np.linalg.lstsq(TABLE[data.observations[data.mask]], returns_of(data)[data.mask], rcond=None)[0]
    np.testing.assert_allclose(found.parameters, wanted, rtol=1e-9)


@pytest.mark.parametrize("trace", traces.ACTION_TRACES)
def test_of_a_deterministic_policy_that_acted_it_is_every_visit_monte_carlo(data, trace):
    """Where the target does what was done, also expectations over its actions are what was seen."""
    probability = np.zeros((N, HORIZON + 1, ACTIONS))
    probability[:, :-1] = np.eye(ACTIONS)[data.actions]
    probability[:, -1, 0] = 1.0
    probability[np.arange(N), data.mask.sum(1)] = [1.0, 0.0]
    acted = data._replace(behaviour_log_prob=np.zeros((N, HORIZON)))
    target = target_actions(acted, probability)
    found = traces.fit_traces(acted, target, trace=trace, lambda_=1.0, features=poor, discount=DISCOUNT, ridge=0.0)
    for a in range(ACTIONS):
        shown = data.mask & (data.actions == a)
        wanted = np.linalg.lstsq(TABLE[data.observations[shown]], returns_of(data)[shown], rcond=None)[0]
        np.testing.assert_allclose(np.asarray(found.parameters).reshape(ACTIONS, 2)[a], wanted, rtol=1e-8)


def test_td_with_full_traces_and_one_feature_is_importance_sampling(data):
    """One state, rows of one step: `sum rho (r - theta) = 0`, the weighted mean."""
    first = Trajectories(*(None if x is None else x[:, :1] if np.ndim(x) > 1 else x for x in data))
    target = target_actions(first, TARGET)
    found = traces.trace_evaluation(
        first, target, trace="td", features=lambda s: jnp.ones(1), discount=DISCOUNT, ridge=0.0
    )
    log_prob = np.log(TARGET)[first.observations, first.actions]
    wanted = weighted.cwpdis(first, log_prob, discount=DISCOUNT)
    np.testing.assert_allclose(found.value, wanted.value, rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, wanted.standard_error, rtol=1e-6)


def test_values_feed_the_corrected_estimators(data, target):
    log_prob = np.log(TARGET)[data.observations, data.actions]
    for trace in ("retrace", "td"):
        values = traces.fit_traces(data, target, trace=trace, features=one_hot, discount=DISCOUNT).values
        found = corrected.weighted_doubly_robust(data, log_prob, values.q, values.v, discount=DISCOUNT)
        assert np.isfinite(found.value)
        direct = corrected.direct_method(data, values.v)
        whole = traces.trace_evaluation(data, target, trace=trace, features=one_hot, discount=DISCOUNT)
        np.testing.assert_allclose(direct.value, whole.value, rtol=1e-9)
        assert whole.standard_error > direct.standard_error


def test_continuous_actions(data):
    rng = np.random.default_rng(1)
    changed = data._replace(
        observations=rng.normal(size=(N, HORIZON, 2)),
        actions=rng.normal(size=(N, HORIZON, 1)),
        final_observation=rng.normal(size=(N, 2)),
    )
    target = target_actions(changed, lambda key, s: s[:, :1], samples=1, key=jax.random.key(0))
    log_prob = np.asarray(data.behaviour_log_prob) + 0.1 * rng.normal(size=(N, HORIZON))
    settings = dict(target_log_prob=log_prob, discount=0.5)
    for trace in ("retrace", "vtrace"):
        assert np.isfinite(traces.trace_evaluation(changed, target, trace=trace, **settings).value)
    with pytest.raises(ValueError, match="discrete actions"):
        traces.fit_traces(changed, target, trace="tree_backup", discount=0.5)
    with pytest.raises(ValueError, match="target_log_prob"):
        traces.fit_traces(changed, target, discount=0.5)


@pytest.mark.parametrize(
    ("options", "message"), [(dict(trace="sarsa"), "trace must be"), (dict(lambda_=1.5), "lambda_ must be")]
)
def test_what_is_refused(data, target, options, message):
    with pytest.raises(ValueError, match=message):
        traces.trace_evaluation(data, target, **options)


def test_behaviour_probabilities_are_needed_by_those_with_ratios_alone(data, target):
    without = data._replace(behaviour_log_prob=None)
    with pytest.raises(ValueError, match="behaviour_log_prob"):
        traces.fit_traces(without, target)
    assert np.isfinite(traces.fit_traces(without, target, trace="tree_backup", features=one_hot).parameters).all()


@pytest.mark.parametrize("trace", ["importance_sampling", "td"])
def test_products_of_a_thousand_ratios_do_not_overflow(trace):
    """Ratios of 4 over 1,000 steps, `4^1000` beyond every number: the solution is that of the last steps, and finite."""
    n, horizon = 6, 1000
    rng = np.random.default_rng(0)
    yes = np.ones((n, horizon), bool)
    last = yes & (np.arange(horizon) == horizon - 1)
    actions = np.zeros((n, horizon), int)
    rewards = rng.normal(1.0, 0.1, size=(n, horizon))
    log_prob = np.full((n, horizon), np.log(0.25))
    data = Trajectories(np.zeros((n, horizon), int), actions, rewards, log_prob, yes, last, ~yes, None)
    target = target_actions(data, [[1.0, 0.0]])
    found = traces.trace_evaluation(
        data, target, trace=trace, lambda_=1.0, features=lambda s: jnp.ones(1), discount=0.9, ridge=0.0
    )
    assert np.isfinite(float(found.value))
    assert 0.0 < float(found.value) < 11.0
    assert np.isfinite(float(found.standard_error))


def test_scaled_eligibilities_are_eligibilities(data, monkeypatch):
    """With a bound that is reached they are what they are, times one number."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        features, coefficient = rng.normal(size=(4, 6, 3)), rng.uniform(0.0, 5.0, size=(4, 6))
        given = jnp.asarray(features), jnp.asarray(coefficient)
        plain = np.asarray(traces._eligibility(*given))
        monkeypatch.setattr(traces, "_LARGEST", 1.0)
        scaled = np.asarray(traces._eligibility(*given))
    wanted = np.zeros((4, 6, 3))
    for t in range(6):
        wanted[:, t] = features[:, t] + (coefficient[:, t, None] * wanted[:, t - 1] if t else 0.0)
    np.testing.assert_allclose(plain, wanted, rtol=1e-12)
    factor = scaled[0, 0, 0] / plain[0, 0, 0]
    assert 0.0 < factor < 1.0
    np.testing.assert_allclose(scaled, factor * plain, rtol=1e-10)
