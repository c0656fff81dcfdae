"""Bregman divergences and their multi-step traces against golden numbers, explicit sums, enumeration and identities."""

import doctest
import itertools
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

from jaxrl_off.ops import divergence
from jaxrl_off.ops.divergence import DIVERGENCES, bregman_divergence, divergence_terms, multi_step_divergence
from jaxrl_off.ops.importance import importance_ratio
from jaxrl_off.ops.returns import vtrace

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "dapo.json").read_text())
ROLLOUT = GOLDEN["rollout"]
ROUNDING = 6e-11  # the golden numbers have ten decimals
FAST = settings(max_examples=40, deadline=None, derandomize=True, database=None)
EXACT = {"rtol": 1e-10, "atol": 1e-9}
FORMS = {
    "k1_c0.5": {"c_bar": 0.5},
    "k1_c1": {"c_bar": 1.0},
    "k1_c0": {"c_bar": 0.0},
    "k0_c0.5": {"c_bar": 0.5, "product_start": 0},
    "k0_c0": {"c_bar": 0.0, "product_start": 0},
    "released_c0.5": {"c_bar": 0.5, "released_code": True},
}
SWITCHES = [{"product_start": 1}, {"product_start": 0}, {"released_code": True}]

jit_trace = jax.jit(multi_step_divergence, static_argnames=("product_start", "released_code"))
jit_vtrace = jax.jit(vtrace)
jit_terms = jax.jit(divergence_terms, static_argnums=0)
jit_bregman = jax.jit(jax.value_and_grad(bregman_divergence, argnums=1), static_argnums=0)


class Trajectory(NamedTuple):
    terms: np.ndarray
    ratios: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def reference_trace(trajectory, gamma, rho_bar, c_bar, product_start):
    """The paper's sum, term by term, up to the end of the trace that step i belongs to."""
    terms, ratios, terminated, truncated = trajectory
    result = []
    for i in range(len(terms)):
        total, j = terms[i], 0
        while not (terminated[i + j] or truncated[i + j]) and i + j + 1 < len(terms):
            j += 1
            product = np.prod([min(c_bar, ratios[i + k]) for k in range(product_start, j)])
            total += gamma**j * product * min(rho_bar, ratios[i + j]) * terms[i + j]
        result.append(total)
    return np.array(result)


def reference_released(trajectory, gamma, rho_bar, c_bar):
    """The released `truncIS`, line by line, with the mask it should have had."""
    terms, ratios, terminated, truncated = trajectory
    result = np.array(terms)
    carry = min(rho_bar, ratios[-1]) * terms[-1]
    for index in range(len(terms) - 1, 0, -1):
        g = 0.0 if terminated[index - 1] or truncated[index - 1] else gamma
        result[index - 1] = terms[index - 1] + g * carry
        carry = min(rho_bar, ratios[index - 1]) * terms[index] + g * min(c_bar, ratios[index - 1]) * carry
    return result


@st.composite
def trajectories(draw, ends=(0, 0, 1, 2, 3), lengths=(1, 9)):
    """Random trajectories; `ends` codes nothing, terminated (1), truncated (2) or both (3) at any step."""
    length = draw(st.sampled_from(lengths))
    kinds = np.array(draw(st.lists(st.sampled_from(ends), min_size=length, max_size=length)))
    terms = draw(hnp.arrays(np.float64, length, elements=st.floats(-3.0, 3.0, allow_subnormal=False)))
    ratios = draw(hnp.arrays(np.float64, length, elements=st.floats(0.0, 4.0)))
    return Trajectory(terms, ratios, (kinds == 1) | (kinds == 3), kinds >= 2)


unit = st.floats(0.0, 1.0)
bars = st.one_of(st.floats(0.0, 3.0), st.just(np.inf))


def random_trajectory(seed, length=9, dtype=np.float32, ends=True):
    rng = np.random.default_rng(seed)
    kinds = rng.choice([0, 0, 0, 1, 2], length) if ends else np.zeros(length)
    log_ratios = rng.normal(size=length)
    floats = (log_ratios, np.exp(log_ratios))
    return Trajectory(*(jnp.asarray(x, dtype) for x in floats), jnp.asarray(kinds == 1), jnp.asarray(kinds == 2))


# Golden numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
def test_multi_step_divergence_golden(case, form):
    expected = ROLLOUT["cases"][case]
    ratios = np.array(ROLLOUT["ratios"])
    with jax.enable_x64(True):
        terms = divergence_terms("kl", jnp.log(ratios), jnp.zeros(4))
        np.testing.assert_allclose(terms, ROLLOUT["terms"], rtol=0, atol=ROUNDING)
        got = multi_step_divergence(
            terms, ratios, np.array(expected["terminated"]), np.zeros(4, bool), ROLLOUT["gamma"], **FORMS[form]
        )
        assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, expected["divergence"][form], rtol=0, atol=ROUNDING)


def test_defaults_are_the_papers():
    case = ROLLOUT["cases"]["no_done"]
    got = multi_step_divergence(
        jnp.log(jnp.array(ROLLOUT["ratios"])), jnp.array(ROLLOUT["ratios"]), *jnp.zeros((2, 4), bool), ROLLOUT["gamma"]
    )
    np.testing.assert_allclose(got, case["divergence"]["k1_c0.5"], rtol=1e-6)


@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
def test_golden_losses_follow_from_our_quantities(case):
    """Loss rows of the golden table (for the agents' tests) from V-trace and divergence, in NumPy."""
    expected, loss = ROLLOUT["cases"][case], ROLLOUT["loss"]
    ratios, values = np.array(ROLLOUT["ratios"]), np.array(ROLLOUT["values"])
    terminated, truncated = np.array(expected["terminated"]), np.zeros(4, bool)
    next_values = np.append(values[1:], ROLLOUT["bootstrap_value"])
    with jax.enable_x64(True):
        targets = vtrace(
            values, next_values, np.array(ROLLOUT["rewards"]), ratios, terminated, truncated, ROLLOUT["gamma"]
        )
        targets = jax.tree.map(np.asarray, targets)
        terms = divergence_terms("kl", jnp.log(ratios), jnp.zeros(4))
        trace = multi_step_divergence(
            terms,
            ratios,
            terminated,
            truncated,
            ROLLOUT["gamma"],
            c_bar=loss["divergence_c_bar"],
            product_start=loss["product_start"],
        )
        trace = np.asarray(trace)

    def clipped(advantages):
        epsilon = loss["clip_epsilon"]
        return np.maximum(-advantages * ratios, -advantages * np.clip(ratios, 1 - epsilon, 1 + epsilon))

    raw = targets.advantages
    normalised = raw / (np.sqrt(np.mean(raw**2)) + 1e-4)
    augmented = clipped(normalised - loss["inverse_eta"] * trace)
    weights = np.minimum(ratios, loss["value_ratio_cap"])
    for name, got in {
        "ppo_da_elements": augmented,
        "ppo_da_mean": augmented.mean(),
        "ppo_elements": clipped(normalised),
        "ppo_mean": clipped(normalised).mean(),
        "ppo_da_unnormalised_mean": clipped(raw - loss["inverse_eta"] * trace).mean(),
        "value_loss": 0.5 * np.mean(weights * (values - targets.value_targets) ** 2),
    }.items():
        np.testing.assert_allclose(got, expected[name], rtol=0, atol=ROUNDING, err_msg=name)


# Agreement with explicit sums ---------------------------------------------------------------------------------------


@FAST
@given(trajectories(), unit, bars, bars)
def test_multi_step_divergence_agrees_with_numpy(trajectory, gamma, rho_bar, c_bar):
    with jax.enable_x64(True):
        for switches in SWITCHES:
            got = np.asarray(jit_trace(*trajectory, gamma, rho_bar=rho_bar, c_bar=c_bar, **switches))
            if switches.get("released_code"):
                expected = reference_released(trajectory, gamma, rho_bar, c_bar)
            else:
                expected = reference_trace(trajectory, gamma, rho_bar, c_bar, **switches)
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-8, err_msg=str(switches))


def enumerate_estimator(rho_bar, c_bar):
    """Expectation of D_0 over all behaviour trajectories from the start, one vmapped call over the lot."""
    enumeration, tabular = GOLDEN["enumeration"], GOLDEN["tabular"]
    transitions, behaviour = np.array(tabular["transitions"]), np.array(tabular["behaviour"])
    log_pi, log_behaviour = np.log(enumeration["policy"]), np.log(behaviour)
    steps = enumeration["steps"]
    paths, probabilities = [], []
    for tail in itertools.product(itertools.product(range(2), range(2)), repeat=steps - 1):
        path = [(enumeration["start_state"], enumeration["start_action"]), *tail]
        probability = 1.0
        for (state, action), (following, next_action) in itertools.pairwise(path):
            probability *= transitions[state, action, following] * behaviour[following, next_action]
        paths.append(path)
        probabilities.append(probability)
    states, actions = np.moveaxis(np.array(paths), -1, 0)
    np.testing.assert_allclose(np.sum(probabilities), 1.0)
    with jax.enable_x64(True):
        p, q = jnp.asarray(log_pi[states, actions]), jnp.asarray(log_behaviour[states, actions])
        no = jnp.zeros(states.shape, bool)
        traces = jax.vmap(
            lambda f, ratio, a, b: multi_step_divergence(f, ratio, a, b, tabular["gamma"], rho_bar=rho_bar, c_bar=c_bar)
        )(divergence_terms("kl", p, q), importance_ratio(p, q), no, no)
        return float(np.dot(probabilities, traces[:, 0]))


def exact_q_of_f():
    """Q^pi(f) at the start by backward induction."""
    enumeration, tabular = GOLDEN["enumeration"], GOLDEN["tabular"]
    pi, transitions = np.array(enumeration["policy"]), np.array(tabular["transitions"])
    terms = np.log(pi / np.array(tabular["behaviour"]))
    q = np.zeros((2, 2))
    for _ in range(enumeration["steps"]):
        q = terms + tabular["gamma"] * transitions @ np.sum(pi * q, axis=1)
    return q[enumeration["start_state"], enumeration["start_action"]]


@pytest.mark.parametrize(
    ("name", "rho_bar", "c_bar"),
    [("infinite_bars", np.inf, np.inf), ("rho_bar_1_c_bar_1", 1.0, 1.0), ("rho_bar_1_c_bar_0.5", 1.0, 0.5)],
)
def test_expectation_by_enumeration_golden(name, rho_bar, c_bar):
    got = enumerate_estimator(rho_bar, c_bar)
    np.testing.assert_allclose(got, GOLDEN["enumeration"][name], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(exact_q_of_f(), GOLDEN["enumeration"]["exact"], rtol=0, atol=ROUNDING)
    if rho_bar == np.inf:
        np.testing.assert_allclose(got, exact_q_of_f(), rtol=1e-13)
    else:
        assert got < exact_q_of_f()


# Identities ---------------------------------------------------------------------------------------------------------


@FAST
@given(trajectories(), unit, bars)
def test_special_cases_in_which_the_trace_is_short(trajectory, gamma, rho_bar):
    terms, ratios, terminated, truncated = trajectory
    following = np.append(np.minimum(rho_bar, ratios) * terms, 0.0)[1:]
    alive = ~(terminated | truncated)
    with jax.enable_x64(True):
        one_step = jit_trace(*trajectory, gamma, rho_bar=rho_bar, c_bar=0.0, product_start=0)
        np.testing.assert_array_equal(one_step, terms)
        two_step = jit_trace(*trajectory, gamma, rho_bar=rho_bar, c_bar=0.0, product_start=1)
        np.testing.assert_allclose(two_step, terms + gamma * alive * following, **EXACT)
        for switches in SWITCHES:
            np.testing.assert_array_equal(jit_trace(*trajectory, 0.0, rho_bar=rho_bar, c_bar=1.0, **switches), terms)


@FAST
@given(trajectories(), unit, bars, bars)
def test_k1_form_is_vtrace_with_zero_values(trajectory, gamma, rho_bar, c_bar):
    # An end of either kind cuts the sum, and with zero values there is nothing to bootstrap from.
    terms, ratios, terminated, truncated = trajectory
    zero = np.zeros_like(terms)
    with jax.enable_x64(True):
        trace = jit_trace(*trajectory, gamma, rho_bar=rho_bar, c_bar=c_bar)
        other = jit_vtrace(zero, zero, terms, ratios, terminated, truncated, gamma, rho_bar=rho_bar, c_bar=c_bar)
        np.testing.assert_allclose(trace, other.action_values, **EXACT)


@jax.jit
def reward_forms(trajectory, rewards, values, next_values, gamma, bar, eta):
    """The advantage augmented by the divergence, and that of the augmented reward."""
    terms, ratios, terminated, truncated = trajectory
    bars = {"rho_bar": 1.0, "c_bar": bar}
    separate = vtrace(values, next_values, rewards, ratios, terminated, truncated, gamma, **bars).advantages
    separate -= multi_step_divergence(*trajectory, gamma, **bars) / eta
    rewards = rewards - terms / eta
    return separate, vtrace(values, next_values, rewards, ratios, terminated, truncated, gamma, **bars).advantages


@FAST
@given(trajectories(), unit, unit, st.floats(0.1, 10.0), st.integers(0, 2**31))
def test_divergence_is_a_reward(trajectory, gamma, bar, eta, seed):
    """V-trace is linear in the reward: A(r) - D / eta = A(r - f / eta) with equal bars and the k=1 form."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, len(trajectory.terms)))
    with jax.enable_x64(True):
        separate, joint = reward_forms(trajectory, rewards, values, next_values, gamma, bar, eta)
        np.testing.assert_allclose(separate, joint, rtol=1e-10, atol=1e-8)


@FAST
@given(hnp.arrays(np.float64, 5, elements=st.floats(-20.0, 0.0)), unit)
def test_fresh_data_have_no_divergence(log_prob, gamma):
    no = np.zeros(5, bool)
    with jax.enable_x64(True):
        for name in ("kl", "reverse_kl", "hellinger", "inf"):
            terms = divergence_terms(name, jnp.asarray(log_prob), jnp.asarray(log_prob))
            np.testing.assert_array_equal(terms, np.zeros(5))
            for switches in SWITCHES:
                trace = jit_trace(terms, importance_ratio(log_prob, log_prob), no, no, gamma, **switches)
                np.testing.assert_array_equal(trace, np.zeros(5))


def test_both_printed_forms_agree_when_every_c_is_one():
    with jax.enable_x64(True):
        trajectory = random_trajectory(0, dtype=np.float64)
        trajectory = trajectory._replace(ratios=1.0 + trajectory.ratios)
        one, zero = (jit_trace(*trajectory, 0.9, c_bar=1.0, product_start=k) for k in (1, 0))
        np.testing.assert_allclose(one, zero, **EXACT)
        one, zero = (jit_trace(*trajectory, 0.9, c_bar=0.5, product_start=k) for k in (1, 0))
        assert np.abs(one - zero).max() > 1e-2


@FAST
@given(trajectories(ends=(0,), lengths=(5,)), trajectories(ends=(0,), lengths=(4,)), st.booleans(), unit)
def test_concatenated_episodes_equal_separate_ones(first, second, terminates, gamma):
    (first.terminated if terminates else first.truncated)[-1] = True
    both = Trajectory(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    with jax.enable_x64(True):
        for product_start in (0, 1):
            joint, one, two = (jit_trace(*t, gamma, product_start=product_start) for t in (both, first, second))
            np.testing.assert_allclose(joint, np.concatenate([one, two]), **EXACT)


def test_termination_and_truncation_both_cut_the_sum():
    base, end, no = random_trajectory(1, ends=False), jnp.arange(9) == 3, jnp.zeros(9, bool)
    changed = base._replace(terms=jnp.where(jnp.arange(9) > 3, 5.0, base.terms))
    for kinds in ((end, no), (no, end), (end, end)):
        for product_start in (0, 1):
            before, after = (
                jit_trace(t.terms, t.ratios, *kinds, 0.9, product_start=product_start) for t in (base, changed)
            )
            np.testing.assert_array_equal(before[:4], after[:4])
    before, after = (jit_trace(t.terms, t.ratios, no, no, 0.9) for t in (base, changed))
    assert np.abs(before[3] - after[3]) > 1e-2


# Terms --------------------------------------------------------------------------------------------------------------

# Divergences of positive measures, whose derivative in pi is f; `entropy` is that of the policy up to a constant.
MEASURES = {
    "kl": (lambda p, q: p * jnp.log(p / q) - p + q, 0.0),
    "reverse_kl": (lambda p, q: q * jnp.log(q / p) - q + p, 0.0),
    "hellinger": (lambda p, q: jnp.square(jnp.sqrt(p) - jnp.sqrt(q)), 0.0),
    "inf": (lambda p, q: -2 * jnp.sqrt(p) + 2 * jnp.sqrt(q) + (p - q) / jnp.sqrt(q), 0.0),
    "entropy": (lambda p, q: p * jnp.log(p), 1.0),
}


def test_there_are_exactly_the_documented_divergences():
    assert set(DIVERGENCES) == set(MEASURES)
    for name in DIVERGENCES:
        assert f"`{name}`" in divergence_terms.__doc__


@pytest.mark.parametrize("name", MEASURES)
@FAST
@given(
    p=hnp.arrays(np.float64, 4, elements=st.floats(0.15, 1.0)),
    q=hnp.arrays(np.float64, 4, elements=st.floats(0.15, 1.0)),
)
def test_terms_are_the_derivative_of_their_divergence(name, p, q):
    measure, constant = MEASURES[name]
    with jax.enable_x64(True):
        gradient = jax.grad(lambda p: jnp.sum(measure(p, q)))(p)
        terms = jit_terms(name, np.log(p), np.log(q))
        np.testing.assert_allclose(terms, gradient - constant, **EXACT)


@pytest.mark.parametrize(
    ("name", "p", "q", "expected"),
    [
        ("kl", -1.0, -3.5, 2.5),
        ("kl", -40.0, -0.5, -39.5),
        ("reverse_kl", -1.0, -3.5, 1 - np.exp(-2.5)),
        ("reverse_kl", -20.0, -0.5, 1 - np.exp(3.0)),
        ("reverse_kl", -0.5, -20.0, 1 - np.exp(-3.0)),
        ("hellinger", -1.0, -3.5, 1 - np.exp(-1.25)),
        ("hellinger", -20.0, -0.5, 1 - np.exp(3.0)),
        ("hellinger", -0.5, -20.0, 1 - np.exp(-3.0)),
        ("inf", -1.0, -3.5, np.exp(1.75) - np.exp(0.5)),
        ("inf", -20.0, -1.0, np.exp(0.5) - np.exp(3.0)),
        ("inf", -1.0, -20.0, np.exp(3.0) - np.exp(0.5)),
        ("entropy", -1.0, -3.5, -1.0),
        ("entropy", -20.0, 0.0, -20.0),
    ],
)
def test_terms_and_their_clipped_exponents(name, p, q, expected):
    got = divergence_terms(name, jnp.array([p]), jnp.array([q]))
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_terms_have_no_gradient_and_any_shape(name):
    p, q = -jnp.ones((2, 3)), -2 * jnp.ones((2, 3))
    assert divergence_terms(name, p, q).shape == (2, 3)
    for gradient in jax.grad(lambda p, q: jnp.sum(divergence_terms(name, p, q) ** 2), argnums=(0, 1))(p, q):
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("name", ["reverse_kl", "hellinger", "inf"])
def test_terms_with_exponents_are_finite_at_the_edges(name):
    extremes = jnp.array([-jnp.inf, -1e4, 0.0])
    assert np.isfinite(divergence_terms(name, extremes, -jnp.ones(3))).all()
    assert np.isfinite(divergence_terms(name, -jnp.ones(3), extremes)).all()


# Bregman divergences ------------------------------------------------------------------------------------------------

positive = hnp.arrays(np.float64, 4, elements=st.floats(0.01, 5.0))
GENERATORS = {
    "negative entropy": (
        lambda z: jnp.sum(z * jnp.log(z) - z),
        lambda x, y: np.sum(x * np.log(x / y) - x + y),  # generalised KL(x || y)
    ),
    "square": (lambda z: 0.5 * jnp.sum(z**2), lambda x, y: 0.5 * np.sum((x - y) ** 2)),
    "Burg": (lambda z: -jnp.sum(jnp.log(z)), lambda x, y: np.sum(x / y - np.log(x / y) - 1)),  # Itakura-Saito
}


@pytest.mark.parametrize("name", GENERATORS)
@FAST
@given(x=positive, y=positive)
def test_bregman_divergence_agrees_with_its_closed_form(name, x, y):
    generator, closed_form = GENERATORS[name]
    with jax.enable_x64(True):
        got, gradient = jit_bregman(generator, x, y)
        np.testing.assert_allclose(got, closed_form(x, y), rtol=1e-9, atol=1e-10)
        assert got >= -1e-10
        assert abs(jit_bregman(generator, x, x)[0]) < 1e-12
        # Its gradient in the first argument is the difference of the generators' gradients: the f of the paper.
        np.testing.assert_allclose(gradient, jax.grad(generator)(x) - jax.grad(generator)(y), **EXACT)


def test_bregman_divergence_of_distributions_is_kl():
    rng = np.random.default_rng(0)
    x, y = rng.dirichlet(np.ones(6), size=2).reshape(2, 2, 3)
    with jax.enable_x64(True):
        got = bregman_divergence(GENERATORS["negative entropy"][0], jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(got, np.sum(x * np.log(x / y)), rtol=1e-12)


# Transformations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", SWITCHES)
def test_multi_step_divergence_stops_the_gradients(switches):
    trajectory = random_trajectory(2)

    def total(terms, ratios):
        trace = jit_trace(terms, ratios, trajectory.terminated, trajectory.truncated, 0.9, **switches)
        return jnp.sum(trace**2)

    for gradient in jax.grad(total, argnums=(0, 1))(trajectory.terms, trajectory.ratios):
        np.testing.assert_array_equal(gradient, np.zeros(9))


def test_jit_equals_no_jit_vmap_equals_loop_and_compiles_once():
    traces = []

    def function(trajectory, gamma, rho_bar, c_bar):
        traces.append(None)
        f = divergence_terms("kl", trajectory.terms, jnp.zeros_like(trajectory.terms))
        return [
            multi_step_divergence(f, *trajectory[1:], gamma, rho_bar=rho_bar, c_bar=c_bar, **switches)
            for switches in SWITCHES
        ]

    lanes = [random_trajectory(seed) for seed in range(3)]
    reals = [jnp.array(x, jnp.float32) for x in ((0.9, 0.5, 0.0), (1.0, 2.0, 0.5), (0.5, 1.0, 3.0))]
    looped = [function(lane, *(x[i] for x in reals)) for i, lane in enumerate(lanes)]
    batched = jax.vmap(function)(jax.tree.map(lambda *x: jnp.stack(x), *lanes), *reals)
    compiled = jax.jit(function)
    traces.clear()
    for i, lane in enumerate(lanes):
        for one, other, jitted in zip(looped[i], batched, compiled(lane, *(x[i] for x in reals)), strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(one, jitted, rtol=1e-5, atol=1e-6)
            assert jitted.dtype == jnp.float32
    assert len(traces) == 1


def test_extreme_ratios_stay_finite():
    log_ratios = np.where(np.arange(9) % 3 == 0, 10.0, -10.0).astype(np.float32)
    no = np.zeros(9, bool)
    for switches in SWITCHES:
        for ratios in (np.exp(log_ratios), np.zeros(9, np.float32)):
            # An infinite bar must not turn zero ratios into NaN.
            for bar in (1.0, np.inf):
                trace = jit_trace(log_ratios, ratios, no, no, 0.5, rho_bar=bar, c_bar=bar, **switches)
                assert np.isfinite(trace).all()


# Errors -------------------------------------------------------------------------------------------------------------


def test_an_unknown_divergence_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"'renyi'.*kl.*reverse_kl.*hellinger.*inf.*entropy"):
        divergence_terms("renyi", jnp.zeros(2), jnp.zeros(2))


@pytest.mark.parametrize(
    "switches", [{"product_start": 2}, {"product_start": -1}, {"product_start": 0, "released_code": True}]
)
def test_impossible_forms_are_refused(switches):
    with pytest.raises(ValueError, match=rf"product_start must be 0 or 1.*got {switches['product_start']}"):
        multi_step_divergence(*random_trajectory(0), 0.9, **switches)


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError, match="shape"):
        divergence_terms("kl", jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(AssertionError, match="shape"):
        bregman_divergence(jnp.sum, jnp.zeros(2), jnp.zeros(3))
    trajectory = random_trajectory(0)
    with pytest.raises(AssertionError, match="shape"):
        multi_step_divergence(*trajectory._replace(ratios=jnp.zeros(8)), 0.9)
    with pytest.raises(AssertionError, match="rank"):
        multi_step_divergence(*jax.tree.map(lambda x: x[None], trajectory), 0.9)


def test_examples_in_the_docstrings():
    assert doctest.testmod(divergence).failed == 0
