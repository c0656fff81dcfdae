"""Returns, advantages and V-trace against golden numbers, explicit sums in NumPy, rlax and their identities."""

import doctest
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl_off.ops import returns
from jaxrl_off.ops.returns import (
    backward_recursion,
    discounted_returns,
    generalised_advantages,
    lambda_returns,
    successor_values,
    vtrace,
)

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "dapo.json").read_text())["rollout"]
ROUNDING = 6e-11  # the golden numbers have ten decimals
FAST = settings(max_examples=40, deadline=None, derandomize=True, database=None)
EXACT = {"rtol": 1e-10, "atol": 1e-9}

jit_lambda = jax.jit(lambda_returns)
jit_discounted = jax.jit(discounted_returns)
jit_gae = jax.jit(generalised_advantages)
jit_vtrace = jax.jit(vtrace)
jit_recursion = jax.jit(backward_recursion)
jit_successor = jax.jit(successor_values)


class Trajectory(NamedTuple):
    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    ratios: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def piece(self, start: int, stop: int) -> "Trajectory":
        return Trajectory(*(field[start:stop] for field in self))


def reference_successors(values, bootstrap_value, truncated, final_values):
    following = [*values[1:], bootstrap_value]
    return np.array([f if cut else v for v, cut, f in zip(following, truncated, final_values, strict=True)])


def reference_end(t, trajectory):
    """Index of the last step of the trace that step t belongs to."""
    length = len(trajectory.rewards)
    return next((k for k in range(t, length) if trajectory.terminated[k] or trajectory.truncated[k]), length - 1)


def reference_lambda_returns(trajectory, gamma, lambda_):
    """Forward view: (1 - lambda) sum_n lambda^(n-1) G^(n), the last n-step return taking the rest of the weight."""
    result = []
    for t in range(len(trajectory.rewards)):
        end = reference_end(t, trajectory)
        horizon = end - t + 1
        total = 0.0
        for n in range(1, horizon + 1):
            n_step = sum(gamma**k * trajectory.rewards[t + k] for k in range(n))
            if not trajectory.terminated[t + n - 1]:
                n_step += gamma**n * trajectory.next_values[t + n - 1]
            weight = lambda_ ** (n - 1) * (1.0 if n == horizon else 1.0 - lambda_)
            total += weight * n_step
        result.append(total)
    return np.array(result)


def reference_deltas(trajectory, gamma):
    alive = [0.0 if ended else 1.0 for ended in trajectory.terminated]
    return [
        r + gamma * on * nv - v
        for r, on, nv, v in zip(trajectory.rewards, alive, trajectory.next_values, trajectory.values, strict=True)
    ]


def reference_gae(trajectory, gamma, lambda_):
    deltas = reference_deltas(trajectory, gamma)
    return np.array(
        [
            sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, reference_end(t, trajectory) + 1))
            for t in range(len(deltas))
        ]
    )


def reference_vtrace(trajectory, gamma, rho_bar, c_bar, lambda_):
    """IMPALA's definition: v_t = V_t + sum_k gamma^(k-t) (prod_i c_i) rho_k delta_k."""
    deltas = reference_deltas(trajectory, gamma)
    targets = []
    for t in range(len(deltas)):
        total, trace = trajectory.values[t], 1.0
        for k in range(t, reference_end(t, trajectory) + 1):
            total += gamma ** (k - t) * trace * min(rho_bar, trajectory.ratios[k]) * deltas[k]
            trace *= lambda_ * min(c_bar, trajectory.ratios[k])
        targets.append(total)
    action_values = []
    for t, reward in enumerate(trajectory.rewards):
        inside = t < reference_end(t, trajectory)
        following = targets[t + 1] if inside else (0.0 if trajectory.terminated[t] else trajectory.next_values[t])
        action_values.append(reward + gamma * following)
    return np.array(targets), np.array(action_values), np.array(action_values) - trajectory.values


@st.composite
def trajectories(draw, ends=(0, 0, 1, 2, 3), lengths=(1, 9)):
    """Random trajectories; `ends` codes nothing, terminated (1), truncated (2) or both (3) at any step."""
    length = draw(st.sampled_from(lengths))
    numbers = hnp.arrays(np.float64, length, elements=st.floats(-5.0, 5.0))
    kinds = np.array(draw(st.lists(st.sampled_from(ends), min_size=length, max_size=length)))
    values, final_values = draw(numbers), draw(numbers)
    next_values = reference_successors(values, draw(st.floats(-5.0, 5.0)), kinds >= 2, final_values)
    ratios = draw(hnp.arrays(np.float64, length, elements=st.floats(0.0, 4.0)))
    return Trajectory(draw(numbers), values, next_values, ratios, (kinds == 1) | (kinds == 3), kinds >= 2)


unit = st.floats(0.0, 1.0)
bars = st.one_of(st.floats(0.0, 3.0), st.just(np.inf))


def ours_lambda(t, gamma, lambda_):
    return jit_lambda(t.rewards, t.next_values, t.terminated, t.truncated, gamma, lambda_)


def ours_gae(t, gamma, lambda_):
    return jit_gae(t.rewards, t.values, t.next_values, t.terminated, t.truncated, gamma, lambda_)


def ours_vtrace(t, gamma, **options):
    return jit_vtrace(t.values, t.next_values, t.rewards, t.ratios, t.terminated, t.truncated, gamma, **options)


def random_trajectory(seed, length=9, dtype=np.float32):
    rng = np.random.default_rng(seed)
    kinds = rng.choice([0, 0, 0, 1, 2], length)
    values = rng.normal(size=length)
    next_values = reference_successors(values, rng.normal(), kinds == 2, rng.normal(size=length))
    floats = (rng.normal(size=length), values, next_values, np.exp(rng.normal(size=length)))
    return Trajectory(*(jnp.asarray(x, dtype) for x in floats), jnp.asarray(kinds == 1), jnp.asarray(kinds == 2))


# Golden numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
def test_vtrace_golden(case):
    expected = GOLDEN["cases"][case]
    terminated = np.array(expected["terminated"])
    truncated = np.zeros(4, bool)
    values = np.array(GOLDEN["values"])
    with jax.enable_x64(True):
        next_values = successor_values(jnp.asarray(values), GOLDEN["bootstrap_value"], truncated, jnp.zeros(4))
        got = vtrace(
            values,
            next_values,
            np.array(GOLDEN["rewards"]),
            np.array(GOLDEN["ratios"]),
            terminated,
            truncated,
            GOLDEN["gamma"],
            rho_bar=GOLDEN["rho_bar"],
            c_bar=GOLDEN["c_bar"],
        )
        assert got.advantages.dtype == jnp.float64
    for name in ("value_targets", "action_values", "advantages"):
        np.testing.assert_allclose(getattr(got, name), expected[name], rtol=0, atol=1e-14, err_msg=name)
    advantages = np.asarray(got.advantages)
    normalised = advantages / (np.sqrt(np.mean(advantages**2)) + 1e-4)
    np.testing.assert_allclose(normalised, expected["normalised_advantages"], rtol=0, atol=ROUNDING)


def test_td_lambda_tail_golden():
    tail = GOLDEN["td_lambda_tail"]
    rewards, values = np.array(GOLDEN["rewards"]), np.array(GOLDEN["values"])
    no = np.zeros(4, bool)
    with jax.enable_x64(True):
        # A finished episode: what follows the last step is worthless, whatever its value is said to be.
        next_values = np.array([*values[1:], 99.0])
        last = np.array([False, False, False, True])
        finished = lambda_returns(rewards, next_values, last, no, GOLDEN["gamma"], tail["lambda"])
        # The released code's q = V(s) at the last step of an unfinished chunk is a bootstrap one step earlier.
        shorter = lambda_returns(rewards[:3], values[1:], no[:3], no[:3], GOLDEN["gamma"], tail["lambda"])
    np.testing.assert_allclose(finished, tail["finished"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(shorter, tail["unfinished_released_rule"][:3], rtol=0, atol=1e-14)


# Agreement with explicit sums ---------------------------------------------------------------------------------------


@FAST
@given(trajectories(), unit, unit)
def test_lambda_returns_and_gae_agree_with_numpy(trajectory, gamma, lambda_):
    with jax.enable_x64(True):
        got = np.asarray(ours_lambda(trajectory, gamma, lambda_))
        advantages = np.asarray(ours_gae(trajectory, gamma, lambda_))
        monte_carlo = np.asarray(
            jit_discounted(
                trajectory.rewards, trajectory.next_values, trajectory.terminated, trajectory.truncated, gamma
            )
        )
    np.testing.assert_allclose(got, reference_lambda_returns(trajectory, gamma, lambda_), **EXACT)
    np.testing.assert_allclose(advantages, reference_gae(trajectory, gamma, lambda_), **EXACT)
    np.testing.assert_allclose(monte_carlo, reference_lambda_returns(trajectory, gamma, 1.0), **EXACT)
    np.testing.assert_allclose(advantages + trajectory.values, got, **EXACT)


@FAST
@given(trajectories(), unit, bars, bars, unit)
def test_vtrace_agrees_with_numpy(trajectory, gamma, rho_bar, c_bar, lambda_):
    with jax.enable_x64(True):
        got = ours_vtrace(trajectory, gamma, rho_bar=rho_bar, c_bar=c_bar, lambda_=lambda_)
        got = jax.tree.map(np.asarray, got)
    expected = reference_vtrace(trajectory, gamma, rho_bar, c_bar, lambda_)
    for name, one, other in zip(got._fields, got, expected, strict=True):
        np.testing.assert_allclose(one, other, err_msg=name, rtol=1e-9, atol=1e-8)


@FAST
@given(trajectories(), st.floats(-5.0, 5.0))
def test_successor_values_agree_with_numpy(trajectory, bootstrap_value):
    final_values = trajectory.rewards  # any numbers
    with jax.enable_x64(True):
        got = jit_successor(trajectory.values, bootstrap_value, trajectory.truncated, final_values)
        got = np.asarray(got)
    expected = reference_successors(trajectory.values, bootstrap_value, trajectory.truncated, final_values)
    np.testing.assert_array_equal(got, expected)


@FAST
@given(
    hnp.arrays(np.float64, 7, elements=st.floats(-3.0, 3.0)),
    hnp.arrays(np.float64, 7, elements=st.floats(-1.0, 1.0)),
    st.floats(-3.0, 3.0),
)
def test_backward_recursion_solves_its_equation(offsets, factors, last):
    with jax.enable_x64(True):
        got = np.asarray(jit_recursion(offsets, factors, last))
    np.testing.assert_allclose(got, offsets + factors * np.append(got[1:], last), **EXACT)


# Episodes -----------------------------------------------------------------------------------------------------------


@FAST
@given(trajectories(ends=(0,), lengths=(5,)), trajectories(ends=(0,), lengths=(4,)), st.booleans(), unit, unit)
def test_concatenated_episodes_equal_separate_ones(first, second, terminates, gamma, lambda_):
    (first.terminated if terminates else first.truncated)[-1] = True
    both = Trajectory(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    with jax.enable_x64(True):
        for function in (
            lambda t: (ours_lambda(t, gamma, lambda_),),
            lambda t: (ours_gae(t, gamma, lambda_),),
            lambda t: ours_vtrace(t, gamma, rho_bar=1.5, c_bar=0.9, lambda_=lambda_),
        ):
            for joint, one, two in zip(function(both), function(first), function(second), strict=True):
                np.testing.assert_allclose(joint, np.concatenate([one, two]), **EXACT)


def everything(trajectory, gamma=0.9, lambda_=0.8):
    return [
        ours_lambda(trajectory, gamma, lambda_),
        ours_gae(trajectory, gamma, lambda_),
        *ours_vtrace(trajectory, gamma),
    ]


def test_bootstrap_through_truncation_but_not_through_termination():
    """What is said of the successor of step 3 reaches steps 0..3 if it is truncated and none if it is terminated."""
    base = random_trajectory(0)._replace(ratios=jnp.full(9, 0.7))
    end = jnp.arange(9) == 3
    for terminates in (True, False):
        kinds = (end, end & False) if terminates else (end & False, end)
        trajectory = base._replace(terminated=kinds[0], truncated=kinds[1])
        changed = trajectory._replace(next_values=base.next_values + 10.0 * end)
        for before, after in zip(everything(trajectory), everything(changed), strict=True):
            difference = np.abs(np.asarray(after) - np.asarray(before))
            np.testing.assert_array_equal(difference[4:], 0.0)
            if terminates:
                np.testing.assert_array_equal(difference, 0.0)
            else:
                assert difference[3] > 1.0


def test_nothing_flows_back_across_an_end():
    base = random_trajectory(1)
    end = jnp.arange(9) == 3
    for kinds in ((end, end & False), (end & False, end), (end, end)):
        trajectory = base._replace(terminated=kinds[0], truncated=kinds[1])
        changed = trajectory._replace(
            rewards=jnp.where(jnp.arange(9) > 3, 7.0, base.rewards),
            ratios=jnp.where(jnp.arange(9) > 3, 0.1, base.ratios),
        )
        for before, after in zip(everything(trajectory), everything(changed), strict=True):
            np.testing.assert_array_equal(before[:4], after[:4])


# Identities ---------------------------------------------------------------------------------------------------------


@FAST
@given(trajectories(), unit, unit)
def test_on_policy_vtrace_is_the_td_lambda_return(trajectory, gamma, lambda_):
    fresh = trajectory._replace(ratios=np.ones_like(trajectory.ratios))
    with jax.enable_x64(True):
        targets = ours_vtrace(fresh, gamma, lambda_=lambda_).value_targets
        n_step = ours_vtrace(fresh, gamma)
        np.testing.assert_allclose(targets, ours_lambda(fresh, gamma, lambda_), **EXACT)
        np.testing.assert_allclose(n_step.value_targets, ours_lambda(fresh, gamma, 1.0), **EXACT)
        # On-policy actor-critic: the advantage is the Monte Carlo one.
        np.testing.assert_allclose(n_step.advantages, ours_gae(fresh, gamma, 1.0), **EXACT)


@FAST
@given(trajectories(), unit, st.floats(-3.0, 3.0))
def test_vtrace_is_linear_in_rewards_and_values(trajectory, gamma, scale):
    """(r, V) -> v is linear for fixed ratios, so rewards can be split off: A(r + k f, V) = A(r, V) + k A(f, 0)."""
    zero = np.zeros_like(trajectory.values)
    extra = trajectory._replace(rewards=np.log(trajectory.ratios + 0.1), values=zero, next_values=zero)
    total = trajectory._replace(rewards=trajectory.rewards + scale * extra.rewards)
    with jax.enable_x64(True):
        for name in ("value_targets", "action_values", "advantages"):
            parts = getattr(ours_vtrace(trajectory, gamma), name) + scale * getattr(ours_vtrace(extra, gamma), name)
            np.testing.assert_allclose(getattr(ours_vtrace(total, gamma), name), parts, **EXACT)


def test_limits_of_the_parameters():
    with jax.enable_x64(True):
        trajectory = random_trajectory(2, dtype=np.float64)
        alive = 1.0 - trajectory.terminated
        one_step = trajectory.rewards + 0.9 * alive * trajectory.next_values
        np.testing.assert_allclose(ours_lambda(trajectory, 0.9, 0.0), one_step, **EXACT)
        np.testing.assert_allclose(ours_gae(trajectory, 0.9, 0.0), one_step - trajectory.values, **EXACT)
        np.testing.assert_allclose(ours_lambda(trajectory, 0.0, 0.7), trajectory.rewards, **EXACT)
        np.testing.assert_allclose(ours_gae(trajectory, 0.0, 0.7), trajectory.rewards - trajectory.values, **EXACT)
        np.testing.assert_allclose(ours_vtrace(trajectory, 0.0).action_values, trajectory.rewards, **EXACT)
        # rho = 0 leaves the values alone; c = 0 is a single corrected temporal difference, and so is lambda = 0.
        np.testing.assert_allclose(ours_vtrace(trajectory, 0.9, rho_bar=0.0).value_targets, trajectory.values, **EXACT)
        single = trajectory.values + np.minimum(1.0, trajectory.ratios) * (one_step - trajectory.values)
        np.testing.assert_allclose(ours_vtrace(trajectory, 0.9, c_bar=0.0).value_targets, single, **EXACT)
        np.testing.assert_allclose(ours_vtrace(trajectory, 0.9, lambda_=0.0).value_targets, single, **EXACT)


def test_rho_bar_and_c_bar_are_separate():
    with jax.enable_x64(True):
        trajectory = random_trajectory(3, dtype=np.float64)._replace(terminated=jnp.zeros(9, bool))
        by_default = ours_vtrace(trajectory, 0.9)
        np.testing.assert_array_equal(by_default.value_targets, ours_vtrace(trajectory, 0.9, rho_bar=1.0, c_bar=1.0)[0])
        for options in ({"rho_bar": 2.0}, {"c_bar": 0.3}):
            got = ours_vtrace(trajectory, 0.9, **options)
            expected = reference_vtrace(trajectory, 0.9, **{"rho_bar": 1.0, "c_bar": 1.0, "lambda_": 1.0} | options)
            np.testing.assert_allclose(got.value_targets, expected[0], **EXACT)
            assert np.abs(got.value_targets - by_default.value_targets).max() > 1e-3


# rlax ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rlax():
    return pytest.importorskip("rlax")


def test_vtrace_agrees_with_rlax(rlax):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gamma, rho_bar, lambda_ = rng.uniform(0.5, 1.0), rng.uniform(0.5, 2.0), rng.uniform(0.0, 1.0)
        with jax.enable_x64(True):
            trajectory = random_trajectory(seed, dtype=np.float64)
            discount = gamma * (1.0 - trajectory.terminated)
            # rlax has no truncation; its per-step lambda cuts the trace there.
            cut = lambda_ * (1.0 - trajectory.truncated)
            theirs = rlax.vtrace_td_error_and_advantage(
                trajectory.values,
                trajectory.next_values,
                trajectory.rewards,
                discount,
                trajectory.ratios,
                lambda_=cut,
                clip_rho_threshold=rho_bar,
            )
            ours = ours_vtrace(trajectory, gamma, rho_bar=rho_bar, lambda_=lambda_)
            np.testing.assert_allclose(ours.value_targets - trajectory.values, theirs.errors, **EXACT)

            # Without truncation, and with lambda 1 (there is no lambda in our Q), Q and the advantage agree as well.
            values = trajectory.values
            plain = trajectory._replace(
                truncated=jnp.zeros(9, bool), next_values=jnp.append(values[1:], trajectory.next_values[-1])
            )
            theirs = rlax.vtrace_td_error_and_advantage(
                plain.values, plain.next_values, plain.rewards, discount, plain.ratios, clip_rho_threshold=rho_bar
            )
            ours = ours_vtrace(plain, gamma, rho_bar=rho_bar)
            np.testing.assert_allclose(ours.value_targets - plain.values, theirs.errors, **EXACT)
            np.testing.assert_allclose(ours.action_values, theirs.q_estimate, **EXACT)
            weighted = jnp.minimum(1.0, plain.ratios) * ours.advantages
            np.testing.assert_allclose(weighted, theirs.pg_advantage, **EXACT)


def test_gae_and_lambda_returns_agree_with_rlax(rlax):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gamma, lambda_ = rng.uniform(0.5, 1.0), rng.uniform(0.0, 1.0)
        with jax.enable_x64(True):
            trajectory = random_trajectory(seed, dtype=np.float64)
            values = jnp.append(trajectory.values, rng.normal())
            plain = trajectory._replace(truncated=jnp.zeros(9, bool), next_values=values[1:])
            discount = gamma * (1.0 - plain.terminated)
            theirs = rlax.truncated_generalized_advantage_estimation(plain.rewards, discount, lambda_, values)
            np.testing.assert_allclose(ours_gae(plain, gamma, lambda_), theirs, **EXACT)
            theirs = rlax.lambda_returns(plain.rewards, discount, plain.next_values, lambda_)
            np.testing.assert_allclose(ours_lambda(plain, gamma, lambda_), theirs, **EXACT)


# Transformations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", range(3))
def test_vtrace_stops_every_gradient(output):
    trajectory = random_trajectory(4)

    def total(values, next_values, ratios):
        changed = trajectory._replace(values=values, next_values=next_values, ratios=ratios)
        return jnp.sum(ours_vtrace(changed, 0.9)[output] ** 2)

    gradients = jax.grad(total, argnums=(0, 1, 2))(trajectory.values, trajectory.next_values, trajectory.ratios)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(9))


def test_vtrace_is_constant_in_the_rewards_too():
    """A reward may depend on parameters (an augmented one does); `VTrace` promises constants."""
    trajectory = random_trajectory(4)

    def total(rewards):
        return sum(jnp.sum(leaf) for leaf in ours_vtrace(trajectory._replace(rewards=rewards), 0.9))

    np.testing.assert_array_equal(jax.grad(total)(trajectory.rewards), np.zeros(9))


def test_lambda_returns_are_differentiable_in_the_rewards():
    trajectory = random_trajectory(5)
    trajectory = trajectory._replace(terminated=jnp.zeros(9, bool), truncated=jnp.zeros(9, bool))
    gradient = jax.grad(lambda r: ours_lambda(trajectory._replace(rewards=r), 0.9, 0.8)[2])(trajectory.rewards)
    np.testing.assert_allclose(gradient[2:], 0.72 ** np.arange(7), rtol=1e-5)
    np.testing.assert_array_equal(gradient[:2], [0.0, 0.0])


def test_jit_equals_no_jit_vmap_equals_loop_and_compiles_once():
    traces = []

    def function(trajectory, gamma, lambda_, rho_bar, c_bar):
        traces.append(None)
        rewards, values, next_values, ratios, terminated, truncated = trajectory
        return (
            lambda_returns(rewards, next_values, terminated, truncated, gamma, lambda_),
            generalised_advantages(rewards, values, next_values, terminated, truncated, gamma, lambda_),
            vtrace(values, next_values, rewards, ratios, terminated, truncated, gamma, rho_bar=rho_bar, c_bar=c_bar),
            successor_values(values, rewards[0], truncated, ratios),
        )

    lanes = [random_trajectory(seed) for seed in range(3)]
    # Tunable reals are traced and may differ from lane to lane: a sweep is one program.
    reals = [jnp.array(x, jnp.float32) for x in ((0.9, 0.5, 0.0), (1.0, 0.3, 0.9), (1.0, 2.0, 0.5), (0.5, 1.0, 3.0))]
    looped = [function(lane, *(x[i] for x in reals)) for i, lane in enumerate(lanes)]
    batched = jax.vmap(function)(jax.tree.map(lambda *x: jnp.stack(x), *lanes), *reals)
    compiled = jax.jit(function)
    traces.clear()
    for i, lane in enumerate(lanes):
        jitted = compiled(lane, *(x[i] for x in reals))
        for one, other, third in zip(*map(jax.tree.leaves, (looped[i], batched, jitted)), strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(one, third, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_results_keep_the_type_of_the_rewards():
    trajectory = random_trajectory(6)
    gamma = jnp.float32(0.9)
    assert ours_lambda(trajectory, gamma, 0.9).dtype == jnp.float32
    assert ours_gae(trajectory, gamma, 0.9).dtype == jnp.float32
    assert {leaf.dtype for leaf in ours_vtrace(trajectory, gamma)} == {jnp.dtype("float32")}


def test_extreme_ratios_stay_finite():
    trajectory = random_trajectory(7)
    ratios = jnp.exp(jnp.where(jnp.arange(9) % 2 == 0, 10.0, -10.0))
    for options in ({}, {"rho_bar": jnp.inf}, {"rho_bar": 0.0, "c_bar": 0.0}):
        for leaf in ours_vtrace(trajectory._replace(ratios=ratios), 1.0, **options):
            assert np.isfinite(leaf).all()
    for leaf in ours_vtrace(trajectory._replace(ratios=jnp.zeros(9)), 1.0, rho_bar=jnp.inf, c_bar=jnp.inf):
        assert np.isfinite(leaf).all()


def test_long_trajectory_in_float32_is_close_to_float64():
    rng = np.random.default_rng(8)
    rewards, next_values = rng.normal(size=(2, 3000))
    no = np.zeros(3000, bool)
    single = lambda_returns(
        jnp.asarray(rewards, jnp.float32), jnp.asarray(next_values, jnp.float32), no, no, 0.99, 0.95
    )
    with jax.enable_x64(True):
        double = lambda_returns(jnp.asarray(rewards), jnp.asarray(next_values), no, no, 0.99, 0.95)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def test_wrong_shapes_are_refused():
    three, four, no = jnp.zeros(3), jnp.zeros(4), jnp.zeros(3, bool)
    with pytest.raises(AssertionError, match="shape"):
        lambda_returns(three, four, no, no, 0.9, 0.9)
    with pytest.raises(AssertionError, match="shape"):
        discounted_returns(three, three, no, jnp.zeros(4, bool), 0.9)
    with pytest.raises(AssertionError, match="shape"):
        generalised_advantages(three, four, three, no, no, 0.9, 0.9)
    with pytest.raises(AssertionError, match="shape"):
        vtrace(three, three, three, four, no, no, 0.9)
    with pytest.raises(AssertionError, match="shape"):
        successor_values(three, 0.0, no, four)
    with pytest.raises(AssertionError, match="shape"):
        backward_recursion(three, four)
    matrix, no_matrix = jnp.zeros((2, 3)), jnp.zeros((2, 3), bool)
    with pytest.raises(AssertionError, match="rank"):
        lambda_returns(matrix, matrix, no_matrix, no_matrix, 0.9, 0.9)
    with pytest.raises(AssertionError, match="rank"):
        generalised_advantages(matrix, matrix, matrix, no_matrix, no_matrix, 0.9, 0.9)
    with pytest.raises(AssertionError, match="rank"):
        vtrace(matrix, matrix, matrix, matrix, no_matrix, no_matrix, 0.9)


def test_examples_in_the_docstrings():
    assert doctest.testmod(returns).failed == 0
