"""The theory behind the divergence on tabular problems, exactly: fixed points, mirror descent, eq. 10, Prop. 1.

Equation numbers are those of Wang et al., "Divergence-Augmented Policy Optimization", NeurIPS 2019. Policies are
softmax tables, expectations are sums, and every f is computed by the package.
"""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.distributions import Categorical
from jaxrl_off.ops.divergence import bregman_divergence, divergence_terms, multi_step_divergence
from jaxrl_off.ops.importance import importance_ratio

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "dapo.json").read_text())["tabular"]
ROUNDING = 6e-11  # the golden numbers have ten decimals


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# Exact quantities of a tabular MDP: transitions [S, A, S], start [S], policy [S, A] ---------------------------------


@jax.jit
def state_distribution(policy, transitions, start, gamma):
    """Normalised discounted state distribution, d = (1 - gamma) d0 + gamma P_pi^T d."""
    chain = jnp.einsum("sa,sat->st", policy, transitions)
    return (1 - gamma) * jnp.linalg.solve(jnp.eye(len(start)) - gamma * chain.T, start)


@jax.jit
def action_values(policy, rewards, transitions, gamma):
    """Q^pi(rewards), un-normalised."""
    chain = jnp.einsum("sa,sat->st", policy, transitions)
    values = jnp.linalg.solve(jnp.eye(len(chain)) - gamma * chain, jnp.sum(policy * rewards, axis=1))
    return rewards + gamma * transitions @ values


def measure(policy, transitions, start, gamma):
    """mu_pi(s, a) = d_pi(s) pi(a|s)."""
    return state_distribution(policy, transitions, start, gamma)[:, None] * policy


def random_problem(seed, states=4, actions=3):
    rng = np.random.default_rng(seed)
    return {
        "transitions": jnp.asarray(rng.dirichlet(np.full(states, rng.uniform(0.1, 1.0)), size=(states, actions))),
        "start": jnp.asarray(rng.dirichlet(np.ones(states))),
        "rewards": jnp.asarray(rng.normal(size=(states, actions))),
        "logits": jnp.asarray(rng.normal(size=(states, actions)) * rng.uniform(0.1, 2.0)),
        "behaviour_logits": jnp.asarray(rng.normal(size=(states, actions))),
        "gamma": jnp.asarray(rng.uniform(0.3, 0.97)),
    }


def stacked(problems):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


@jax.jit
def objective(logits, behaviour, rewards, transitions, start, gamma, tau):
    """(1 - gamma) E_pi sum gamma^t (r - tau log(pi / pi_t)), by definition and without the package's f."""
    policy = jax.nn.softmax(logits)
    augmented = rewards - tau * (jnp.log(policy) - jnp.log(behaviour))
    return jnp.sum(measure(policy, transitions, start, gamma) * augmented)


@jax.jit
def dapo_gradient(logits, behaviour, rewards, transitions, start, gamma, tau, state_weights=None):
    """Exact eq. 13 (times 1 / eta = tau, to be ascended): E [ grad log pi (A - tau D) ] with f from the package."""

    def surrogate(logits):
        log_policy = Categorical(logits).log_probabilities
        policy = jnp.exp(jax.lax.stop_gradient(log_policy))
        terms = divergence_terms("kl", log_policy, jnp.log(behaviour))
        augmented = action_values(policy, rewards - tau * terms, transitions, gamma)
        advantages = augmented - jnp.sum(policy * augmented, axis=1, keepdims=True)
        weights = state_distribution(policy, transitions, start, gamma) if state_weights is None else state_weights
        # pi_t ratio = pi, and the gradient of the ratio is ratio * grad log pi.
        ratio = importance_ratio(log_policy, jnp.log(behaviour), log_clip=jnp.inf)
        return jnp.sum(weights[:, None] * behaviour * ratio * advantages)

    return jax.grad(surrogate)(logits)


# Fixed point of the divergence-augmented objective ------------------------------------------------------------------


@jax.jit
def soft_policy(tau, gamma, transitions, rewards, behaviour):
    """Iterate V = tau log sum_a pi_t exp(Q / tau), Q = r + gamma P V to convergence."""

    def step(_, values):
        q = rewards + gamma * transitions @ values
        return tau * jax.nn.logsumexp(q / tau, axis=1, b=behaviour)

    values = jax.lax.fori_loop(0, 600, step, jnp.zeros(len(rewards)))
    q = rewards + gamma * transitions @ values
    return values, q, behaviour * jnp.exp((q - values[:, None]) / tau)


def golden_problem():
    arrays = {name: jnp.array(GOLDEN[name]) for name in ("transitions", "rewards", "behaviour", "start")}
    return arrays | {"gamma": GOLDEN["gamma"], "tau": GOLDEN["tau"]}


def test_soft_bellman_fixed_point_golden():
    problem = golden_problem()
    start = problem.pop("start")
    values, q, policy = soft_policy(**problem)
    d = state_distribution(policy, problem["transitions"], start, GOLDEN["gamma"])
    kl = jnp.dot(d, Categorical(jnp.log(policy)).kl(Categorical(jnp.log(problem["behaviour"]))))
    reward = jnp.sum(d[:, None] * policy * problem["rewards"])
    for name, got in {
        "values": values,
        "action_values": q,
        "policy": policy,
        "state_distribution": d,
        "expected_reward": reward,
        "conditional_kl": kl,
        "objective": reward - GOLDEN["tau"] * kl,
    }.items():
        np.testing.assert_allclose(got, GOLDEN[name], rtol=0, atol=ROUNDING, err_msg=name)


def test_the_dapo_gradient_vanishes_at_the_fixed_point_and_only_there():
    problem = golden_problem()
    start = problem.pop("start")
    policy = soft_policy(**problem)[2]
    logits = jnp.log(policy)
    gradient = dapo_gradient(logits, start=start, **problem)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    # Already Q_aug - V_aug is zero, state by state and action by action.
    terms = divergence_terms("kl", logits, jnp.log(problem["behaviour"]))
    augmented = action_values(
        policy, problem["rewards"] - GOLDEN["tau"] * terms, problem["transitions"], problem["gamma"]
    )
    np.testing.assert_allclose(augmented - jnp.sum(policy * augmented, axis=1, keepdims=True), 0.0, atol=1e-12)
    for elsewhere in (jnp.log(problem["behaviour"]), logits + jnp.array([[0.1, 0.0], [0.0, 0.0]])):
        assert jnp.abs(dapo_gradient(elsewhere, start=start, **problem)).max() > 1e-3


def test_the_dapo_gradient_is_the_gradient_of_the_augmented_objective():
    """Dropping nothing (exact d_pi), eq. 13 is grad of J - tau D: the derivative of f itself contributes nothing."""
    for seed in range(5):
        problem = random_problem(seed)
        logits, behaviour = problem.pop("logits"), jax.nn.softmax(problem.pop("behaviour_logits"))
        exact = jax.jit(jax.grad(objective))(logits, behaviour, tau=0.7, **problem)
        np.testing.assert_allclose(dapo_gradient(logits, behaviour, tau=0.7, **problem), exact, atol=1e-12)


def test_ascending_the_exact_gradient_reaches_the_fixed_point():
    problem = golden_problem()
    objectives = []

    @jax.jit
    def step(logits):
        """Half a step of policy iteration, logits += A / tau / 2: eq. 13 with the state-action weights divided out."""
        policy = jax.nn.softmax(logits)
        gradient = dapo_gradient(logits, **problem)
        weights = measure(policy, problem["transitions"], problem["start"], problem["gamma"])
        return logits + gradient / weights, objective(logits, **problem)

    logits = jnp.log(problem["behaviour"])
    for _ in range(60):
        logits, value = step(logits)
        objectives.append(float(value))
    assert (np.diff(objectives) > -1e-12).all()
    np.testing.assert_allclose(objectives[-1], GOLDEN["objective"], atol=1e-9)
    np.testing.assert_allclose(jax.nn.softmax(logits), GOLDEN["policy"], atol=1e-6)


# Bandit: one mirror-descent step ------------------------------------------------------------------------------------


@jax.jit
def bandit_gradient(logits, behaviour_log_prob, rewards, eta):
    """Eq. 13 as an expectation over the behaviour policy's actions, each a trajectory of one step."""

    def loss(logits):
        log_prob = jax.nn.log_softmax(logits)
        ratio = importance_ratio(log_prob, behaviour_log_prob)
        terms = divergence_terms("kl", log_prob, behaviour_log_prob)
        yes, no = jnp.ones((len(rewards), 1), bool), jnp.zeros((len(rewards), 1), bool)
        trace = jax.vmap(partial(multi_step_divergence, gamma=0.9))(terms[:, None], ratio[:, None], yes, no)[:, 0]
        advantages = rewards - jnp.dot(jax.lax.stop_gradient(jnp.exp(log_prob)), rewards)
        return jnp.sum(jnp.exp(behaviour_log_prob) * ratio * (trace - eta * advantages))

    return jax.grad(loss)(logits)


@pytest.mark.parametrize("eta", [0.1, 1.0, 2.0])
def test_bandit_fixed_point_is_the_exponentiated_gradient_step(eta):
    rng = np.random.default_rng(0)
    behaviour = jnp.asarray(np.log(rng.dirichlet(np.ones(5))))
    rewards = jnp.asarray(rng.normal(size=5))
    fixed_point = behaviour + eta * rewards  # pi proportional to pi_t exp(eta r)
    np.testing.assert_allclose(bandit_gradient(fixed_point, behaviour, rewards, eta), 0.0, atol=1e-13)
    assert jnp.abs(bandit_gradient(behaviour, behaviour, rewards, eta)).max() > 1e-2
    assert jnp.abs(bandit_gradient(behaviour + 0.5 * eta * rewards, behaviour, rewards, eta)).max() > 5e-3
    # It is the minimiser of D_F(pi, pi_t) - eta <r, pi>, the mirror-descent step itself (eq. 7).
    policy = jax.nn.softmax(fixed_point)
    gradient = jax.grad(
        lambda pi: bregman_divergence(negative_entropy, pi, jnp.exp(behaviour)) - eta * jnp.dot(rewards, pi)
    )(policy)
    np.testing.assert_allclose(gradient - gradient.mean(), 0.0, atol=1e-12)


# Divergences on state-action distributions --------------------------------------------------------------------------


def negative_entropy(mu):
    """F = sum mu log mu - mu, whose Bregman divergence is KL."""
    return jnp.sum(mu * jnp.log(mu) - mu)


def conditional_negative_entropy(mu):
    """F = sum mu log( mu / sum_b mu ), the generator of the paper's section 5."""
    return jnp.sum(mu * jnp.log(mu / jnp.sum(mu, axis=1, keepdims=True)))


def both_measures(seed):
    problem = random_problem(seed)
    logits, behaviour_logits = problem.pop("logits"), problem.pop("behaviour_logits")
    problem.pop("rewards")
    return problem, logits, behaviour_logits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("generator", [negative_entropy, conditional_negative_entropy])
def test_gradient_of_the_bregman_divergence_is_the_policy_gradient_of_f(generator, seed):
    """Eq. 10: grad D_F(mu_pi, mu_t) = sum d_pi Q^pi(f) grad pi, f = grad F(mu_pi) - grad F(mu_t)."""
    problem, logits, behaviour_logits = both_measures(seed)
    of_policy = partial(measure, **problem)
    reference = of_policy(jax.nn.softmax(behaviour_logits))
    by_autodiff = jax.jit(jax.grad(lambda x: bregman_divergence(generator, of_policy(jax.nn.softmax(x)), reference)))(
        logits
    )

    policy = jax.nn.softmax(logits)
    f = jax.grad(generator)(of_policy(policy)) - jax.grad(generator)(reference)
    d = state_distribution(policy, **problem)
    q = action_values(policy, f, problem["transitions"], problem["gamma"])
    by_theorem = jax.grad(lambda x: jnp.sum(d[:, None] * q * jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(by_autodiff, by_theorem, rtol=1e-9, atol=1e-12)
    assert jnp.abs(by_autodiff).max() > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_conditional_entropy_generates_the_conditional_kl_and_our_terms(seed):
    problem, logits, behaviour_logits = both_measures(seed)
    policy, behaviour = Categorical(logits), Categorical(behaviour_logits)
    mu, reference = (measure(jnp.exp(pi.log_probabilities), **problem) for pi in (policy, behaviour))
    d = state_distribution(jnp.exp(policy.log_probabilities), **problem)
    got = bregman_divergence(conditional_negative_entropy, mu, reference)
    np.testing.assert_allclose(got, jnp.dot(d, policy.kl(behaviour)), rtol=1e-10)
    f = jax.grad(conditional_negative_entropy)(mu) - jax.grad(conditional_negative_entropy)(reference)
    terms = divergence_terms("kl", policy.log_probabilities, behaviour.log_probabilities)
    np.testing.assert_allclose(terms, f, rtol=1e-9, atol=1e-12)
    # And the unconditional one is the KL between the state-action distributions.
    got = bregman_divergence(negative_entropy, mu, reference)
    np.testing.assert_allclose(got, jnp.sum(mu * jnp.log(mu / reference)), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_one_step_divergence_misses_the_states(seed):
    """With the state distribution held fixed (the usual penalty) only d Q(f) with gamma = 0 is left of eq. 10."""
    problem, logits, behaviour_logits = both_measures(seed)
    policy, behaviour = jax.nn.softmax(logits), Categorical(behaviour_logits)
    d = state_distribution(policy, **problem)
    fixed = jax.grad(lambda x: jnp.dot(d, Categorical(x).kl(behaviour)))(logits)
    terms = divergence_terms("kl", jnp.log(policy), behaviour.log_probabilities)
    one_step = jax.grad(lambda x: jnp.sum(d[:, None] * terms * jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(fixed, one_step, rtol=1e-9, atol=1e-12)
    full = dapo_gradient(logits, jax.nn.softmax(behaviour_logits), jnp.zeros_like(logits), tau=-1.0, **problem)
    assert jnp.abs(full - fixed).max() > 1e-3


# Proposition 1 ------------------------------------------------------------------------------------------------------


def proposition(problem, tau=0.5):
    """Both sides of the proposition and of its key step."""
    logits, behaviour = problem.pop("logits"), jax.nn.softmax(problem.pop("behaviour_logits"))
    gamma, transitions, start = problem["gamma"], problem["transitions"], problem["start"]
    policy = jax.nn.softmax(logits)
    d, d_behaviour = (state_distribution(pi, transitions, start, gamma) for pi in (policy, behaviour))
    kl = jnp.dot(d, Categorical(logits).kl(Categorical(jnp.log(behaviour))))
    key_step = (jnp.abs(d - d_behaviour).sum(), gamma / (1 - gamma) * jnp.sqrt(2 * kl))

    exact = dapo_gradient(logits, behaviour, tau=tau, **problem)
    approximate = dapo_gradient(logits, behaviour, tau=tau, state_weights=d_behaviour, **problem)
    score = jax.jacobian(jax.nn.log_softmax)(logits).reshape(*logits.shape, -1)  # [S, A, parameters]
    zeta_1 = jnp.max(jnp.sum(policy * jnp.linalg.norm(score, axis=-1), axis=1))
    terms = divergence_terms("kl", jnp.log(policy), jnp.log(behaviour))
    augmented = action_values(policy, problem["rewards"] - tau * terms, transitions, gamma)
    zeta_2 = jnp.max(jnp.abs(augmented - jnp.sum(policy * augmented, axis=1, keepdims=True)))
    bias = jnp.sum(jnp.square(exact - approximate))
    return key_step, (bias, 2 * jnp.square(gamma / (1 - gamma) * zeta_1 * zeta_2) * kl)


def test_proposition_1_holds_on_random_problems():
    (distance, distance_bound), (bias, bias_bound) = jax.jit(jax.vmap(proposition))(
        stacked([random_problem(seed) for seed in range(300)])
    )
    assert (distance <= distance_bound * (1 + 1e-9)).all()
    assert (bias <= bias_bound * (1 + 1e-9)).all()
    # Neither side is trivial, and the bound is not vacuous on these problems.
    assert (distance > 1e-6).all()
    assert (bias > 1e-12).all()
    assert (distance / distance_bound).max() > 0.02


def test_proposition_1_is_tight_at_the_behaviour_policy():
    """Both sides vanish for pi = pi_t, whatever the rewards: the first update on fresh data has no state bias."""
    problem = random_problem(0)
    problem["logits"] = problem["behaviour_logits"]
    for left, right in jax.jit(proposition)(problem):
        np.testing.assert_allclose(left, 0.0, atol=1e-12)
        np.testing.assert_allclose(right, 0.0, atol=1e-6)
