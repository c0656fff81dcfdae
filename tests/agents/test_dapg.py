"""Natural policy gradient with demonstrations: dense linear algebra by hand, cloning, advantages, and known answers."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl_off import agents, envs
from jaxrl_off.agents import ActOutput, Chunk
from jaxrl_off.agents.dapg import make
from jaxrl_off.agents.dapg_config import DapgConfig, preset
from jaxrl_off.agents.dapg_updates import Samples
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.envs.base import (
    EnvironmentSpec,
    LaneEnvironment,
    Transitioned,
    continuous_space,
    from_canonical,
    to_canonical,
    vectorise,
)
from jaxrl_off.ops.natural_gradient import fisher_product, natural_direction
from jaxrl_off.training import LoopSettings, make_train, regime, stack_configs

SPACE = continuous_space([-2.0, 0.0], [2.0, 10.0])
SPEC = EnvironmentSpec("test", (3,), "float32", SPACE)
SMALL = dict(policy_sizes=(4,), value_sizes=(8,))
# less time in the compiler
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
)


def demonstrations_of(count=50, noise=0.0):
    """A linear expert, in the environment's units: actions of [-2, 2] x [0, 10]."""
    rng = np.random.default_rng(0)
    observation = rng.normal([5.0, 0.0, -1.0], [1.0, 0.1, 3.0], (count, 3))
    standard = (observation - [5.0, 0.0, -1.0]) / [1.0, 0.1, 3.0]
    canonical = 0.2 * standard @ np.array([[1.0, -0.5], [0.5, 1.0], [-1.0, 0.3]]) + [0.1, -0.2]
    canonical += noise * rng.normal(size=canonical.shape)
    return SimpleNamespace(observation=observation, action=canonical * [2.0, 5.0] + [0.0, 5.0])


def built(config):
    demonstrations = demonstrations_of() if config.with_demonstrations else None
    return make(config, SPEC, total_updates=10, demonstrations=demonstrations)


@quick
def started(config, key):
    return built(config).init(key)


@quick
def updated(config, state, key, batch):
    return built(config).update(state, key, batch)


@functools.cache
def agent_of(name, **changes):
    """An agent that is compiled; those whose configs differ in their reals alone share programs."""
    config = preset(name, **SMALL, **changes)
    agent = built(config)
    return agent._replace(
        init=functools.partial(started, config),
        act=quick(agent.act, static_argnames="greedy"),
        process=quick(agent.process, static_argnums=2),
        update=functools.partial(updated, config),
    )


def policy(params, scaling, observation):
    """One tanh layer written out; mean and log standard deviation."""
    x = (observation - scaling.observation_mean) / scaling.observation_std
    hidden, head = params["MLP_0"]["Dense_0"], params["Dense_0"]
    mean = jnp.tanh(x @ hidden["kernel"] + hidden["bias"]) @ head["kernel"] + head["bias"]
    return scaling.action_mean + scaling.action_std * mean, params["log_std"]


def log_prob(params, scaling, observation, action):
    mean, log_std = policy(params, scaling, observation)
    z = (action - mean) / jnp.exp(log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi), axis=-1)


@quick
def samples_of(state, off_policy=0.0):
    """Actions of the policy (or of another one), with made-up advantages and returns."""
    count = (2, 12)
    keys = jax.random.split(jax.random.key(7), 3)
    standard = jax.random.normal(keys[0], (*count, 3), jnp.float32)
    observation = state.scaling.observation_mean + state.scaling.observation_std * standard
    mean, log_std = policy(state.policy, state.scaling, observation)
    action = mean + jnp.exp(log_std) * jax.random.normal(keys[1], mean.shape)
    behaviour = log_prob(state.policy, state.scaling, observation, action)
    noise = jax.random.normal(keys[2], (3, *count))
    return Samples(observation, action, behaviour + off_policy * noise[0], 2.0 * noise[1] + 1.0, 3.0 * noise[2])


def doubled(tree):
    """In double precision, but for counters."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def varied(state):
    """Off the initial weights, where much is zero."""
    flat, unravel = ravel_pytree(state.policy)
    return state._replace(policy=unravel(flat + 0.3 * jax.random.normal(jax.random.key(3), flat.shape)))


def dense_fisher(state, observation):
    """`mean_n J_n' diag(1 / sigma^2) J_n` of the mean's Jacobian J, and 2 for every log standard deviation."""
    flat, unravel = ravel_pytree(state.policy)
    jacobian = jax.jacobian(lambda p: policy(unravel(p), state.scaling, observation)[0])(flat)
    inverse_variance = jnp.exp(-2.0 * state.policy["log_std"])
    spread = jax.jacobian(lambda p: unravel(p)["log_std"])(flat)
    return jnp.einsum("ndp,d,ndq->pq", jacobian, inverse_variance, jacobian) / len(observation) + 2 * spread.T @ spread


@functools.partial(quick, static_argnums=0)
def by_hand(config, state, samples):
    """Gradient, natural gradient and new parameters by dense matrices; `[P]` each."""
    flat, unravel = ravel_pytree(state.policy)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    count = len(rows.advantage)

    def score(observation, action):
        return jax.jacobian(lambda p: log_prob(unravel(p), state.scaling, observation, action))(flat)

    advantage = (rows.advantage - rows.advantage.mean()) / (rows.advantage.std() + 1e-6)
    now = log_prob(state.policy, state.scaling, rows.observation, rows.action)
    ratio = jnp.exp(now - rows.behaviour_log_prob)
    gradient = score(rows.observation, rows.action).T @ (ratio * advantage) / count
    if config.with_demonstrations:
        weight = config.demonstration_weight * config.demonstration_decay**state.updates
        gradient += weight * score(*state.demonstrations).sum(axis=0) / count
    fisher = dense_fisher(state, rows.observation) + config.damping * jnp.eye(len(flat))
    direction = jnp.linalg.solve(fisher, gradient)
    return gradient, direction, flat + jnp.sqrt(config.step_size / (gradient @ direction)) * direction


# The natural gradient --------------------------------------------------------------------------------------------------


def kl_from(state, observation):
    before = DiagonalNormal(*policy(state.policy, state.scaling, observation))
    return lambda params: jnp.mean(before.kl(DiagonalNormal(*policy(params, state.scaling, observation))))


def test_the_fisher_product_is_the_dense_one():
    """Against the Hessian of the KL, the closed form, and 100,000 scores: their second moment is the Fisher information."""
    with jax.enable_x64(True):
        state = doubled(varied(agent_of("npg").init(jax.random.key(0))))
        observation = jax.random.normal(jax.random.key(1), (5, 3))
        divergence = kl_from(state, observation)
        flat, unravel = ravel_pytree(state.policy)

        @quick
        def products(vectors):
            product = fisher_product(divergence, state.policy, 0.01)
            return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(vectors)

        rows = products(jnp.eye(len(flat)))
        damping = 0.01 * jnp.eye(len(flat))
        hessian = quick(jax.hessian(lambda p: divergence(unravel(p))))(flat)
        fisher = quick(dense_fisher)(state, observation)
        np.testing.assert_allclose(rows, hessian + damping, atol=1e-10)
        np.testing.assert_allclose(rows, fisher + damping, atol=1e-10)

        @quick
        @jax.vmap
        def scores_of(noise):
            mean, log_std = policy(state.policy, state.scaling, observation)
            action = mean + jnp.exp(log_std) * noise
            return jax.jacobian(lambda p: log_prob(unravel(p), state.scaling, observation, action))(flat)

        scores = scores_of(jax.random.normal(jax.random.key(2), (20_000, 5, 2))).reshape(-1, len(flat))
        np.testing.assert_allclose(scores.T @ scores / len(scores), fisher, atol=0.05)


def test_conjugate_gradients_solve_the_dense_system():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, right = root @ root.T, rng.normal(size=6)

    def by_loop(iterations):
        """Hestenes and Stiefel."""
        damped = matrix + 0.1 * np.eye(6)
        x, residual, search = np.zeros(6), right.copy(), right.copy()
        for _ in range(iterations):
            image = damped @ search
            length = residual @ residual / (search @ image)
            x, new = x + length * search, residual - length * image
            search, residual = new + (new @ new) / (residual @ residual) * search, new
        return x

    with jax.enable_x64(True):
        half = jnp.asarray(matrix)
        gradient = {"a": jnp.asarray(right[:2]), "b": jnp.asarray(right[2:])}
        zero = jax.tree.map(jnp.zeros_like, gradient)

        def divergence(params):
            x = jnp.concatenate([params["a"], params["b"]])
            return 0.5 * x @ half @ x

        for iterations in (1, 3, 20):
            found = natural_direction(divergence, zero, gradient, 0.1, iterations)
            found = np.concatenate([found["a"], found["b"]])
            expected = by_loop(iterations) if iterations < 6 else np.linalg.solve(matrix + 0.1 * np.eye(6), right)
            np.testing.assert_allclose(found, expected, rtol=1e-7)
            # so that one product tells the step's length however few the iterations
            np.testing.assert_allclose(right @ found, found @ (matrix @ found + 0.1 * found), rtol=1e-8)


@pytest.mark.parametrize("name", ["npg", "dapg"])
def test_one_update_by_dense_matrices(name):
    """On fresh samples, and on samples of another policy."""
    changes = dict(cg_iterations=200, damping=0.01, demonstration_weight=0.3, demonstration_decay=0.5)
    config, agent = preset(name, **changes), agent_of(name, **changes)
    with jax.enable_x64(True):
        state = doubled(varied(agent.init(jax.random.key(0))))._replace(updates=jnp.int32(2))
        for off_policy in (0.0, 0.2):
            samples = doubled(samples_of(state, off_policy))
            gradient, direction, expected = by_hand(config, state, samples)
            new, metrics = agent.update(state, jax.random.key(1), samples)
            before, after = (ravel_pytree(x.policy)[0] for x in (state, new))
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)
            assert np.abs(after - before).max() > 1e-2
            assert int(new.updates) == 3
            length = np.sqrt(config.step_size / (gradient @ direction))
            entropy = 1.0 + np.log(2 * np.pi) + new.policy["log_std"].sum()
            kl = kl_from(state, samples.observation.reshape(-1, 3))(new.policy)
            np.testing.assert_allclose(metrics["step_length"], length, rtol=1e-6)
            np.testing.assert_allclose(metrics["policy_gradient_norm"], np.linalg.norm(gradient), rtol=1e-6)
            np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-6)
            np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-6)


@pytest.mark.parametrize("iterations", [2, 50])
def test_a_step_goes_half_its_size_in_kl(iterations):
    """To second order, with any number of iterations; damping takes its share."""
    agent = agent_of("npg", step_size=1e-6, damping=0.01, cg_iterations=iterations)
    with jax.enable_x64(True):
        state = doubled(varied(agent.init(jax.random.key(0))))
        new, metrics = agent.update(state, jax.random.key(1), doubled(samples_of(state)))
        moved = ravel_pytree(new.policy)[0] - ravel_pytree(state.policy)[0]
        expected = 0.5 * (1e-6 - 0.01 * moved @ moved)
        assert expected > 0.4e-6
        assert float(metrics["kl"]) == pytest.approx(float(expected), rel=0.005)
        assert metrics["surrogate_improvement"] > 0


def test_standardised_advantages_have_no_unit():
    """Shifted and scaled advantages give the same step."""
    agent = agent_of("npg", damping=0.1)
    state = varied(agent.init(jax.random.key(0)))
    samples = samples_of(state)
    other = samples._replace(advantage=30.0 * samples.advantage - 7.0)
    new, same = (agent.update(state, jax.random.key(1), x)[0] for x in (samples, other))
    np.testing.assert_allclose(ravel_pytree(new.policy)[0], ravel_pytree(same.policy)[0], rtol=1e-3, atol=1e-5)


def test_the_floor_of_the_standard_deviation():
    agent = agent_of("dapg", min_log_std=0.25)
    state = agent.init(jax.random.key(0))
    np.testing.assert_array_equal(state.policy["log_std"], 0.25)
    for i in range(3):
        state, _ = agent.update(state, jax.random.key(i), samples_of(state))
        assert np.min(state.policy["log_std"]) >= 0.25


# Demonstrations --------------------------------------------------------------------------------------------------------


def test_without_advantages_only_demonstrations_move_the_policy():
    npg, dapg = agent_of("npg"), agent_of("dapg", cg_iterations=200, step_size=1e-4)
    still = npg.init(jax.random.key(0))
    samples = samples_of(still)._replace(advantage=jnp.full((2, 12), 3.0))
    new, metrics = npg.update(still, jax.random.key(1), samples)
    np.testing.assert_array_equal(ravel_pytree(new.policy)[0], ravel_pytree(still.policy)[0])
    assert float(metrics["kl"]) == 0.0

    with jax.enable_x64(True):
        state = doubled(varied(dapg.init(jax.random.key(0))))
        samples = doubled(samples_of(state))._replace(advantage=jnp.full((2, 12), 3.0))
        flat, unravel = ravel_pytree(state.policy)
        likelihood = quick(
            jax.value_and_grad(lambda p: log_prob(unravel(p), state.scaling, *state.demonstrations).sum())
        )
        before, gradient = likelihood(flat)
        fisher = quick(dense_fisher)(state, samples.observation.reshape(-1, 3)) + 1e-4 * jnp.eye(len(flat))
        direction = np.linalg.solve(fisher, gradient)
        direction *= np.sqrt(1e-4 / (gradient @ direction))  # the weight cancels
        new, _ = dapg.update(state, jax.random.key(1), samples)
        np.testing.assert_allclose(ravel_pytree(new.policy)[0] - flat, direction, rtol=1e-4, atol=1e-8)
        assert likelihood(ravel_pytree(new.policy)[0])[0] > before


def test_the_weight_of_demonstrations_decays():
    agent = agent_of("dapg", demonstration_weight=0.2, demonstration_decay=0.9)
    state = agent.init(jax.random.key(0))
    weights = []
    for i in range(4):
        state, metrics = agent.update(state, jax.random.key(i), samples_of(state))
        weights.append(float(metrics["demonstration_weight"]))
    np.testing.assert_allclose(weights, 0.2 * 0.9 ** np.arange(4), rtol=1e-6)
    npg = agent_of("npg")
    state = npg.init(jax.random.key(0))
    assert float(npg.update(state, jax.random.key(0), samples_of(state))[1]["demonstration_weight"]) == 0.0


def test_cloning_finds_a_linear_expert():
    """Held-out error in canonical units; the expert's own spread is about 0.3."""
    demonstrations, held_out = demonstrations_of(2000, noise=0.05), demonstrations_of(2100)
    errors = []
    for epochs in (0, 5, 30):
        config = preset("dapg", cloning_epochs=epochs, cloning_learning_rate=3e-3, value_sizes=(8,))
        agent = make(config, SPEC, total_updates=1, demonstrations=demonstrations)
        state = quick(agent.init)(jax.random.key(0))
        acted = agent.act(state, jax.random.key(1), jnp.asarray(held_out.observation[2000:]), (), None, greedy=True)
        difference = to_canonical(SPACE, acted.action) - to_canonical(SPACE, jnp.asarray(held_out.action[2000:]))
        errors.append(float(jnp.sqrt(jnp.mean(difference**2))))
        # only the mean is cloned
        canonical = np.asarray(to_canonical(SPACE, jnp.asarray(demonstrations.action)))
        np.testing.assert_allclose(jnp.exp(state.policy["log_std"]), canonical.std(axis=0), rtol=1e-4)
    assert errors[0] > 0.24
    assert errors[1] < 0.05
    assert errors[2] < 0.02


def test_units_are_those_of_the_demonstrations():
    demonstrations = demonstrations_of()
    demonstrations.observation[:, 1] = 0.1  # does not vary
    agent = make(preset("dapg", **SMALL), SPEC, total_updates=1, demonstrations=demonstrations)
    state = quick(agent.init)(jax.random.key(0))
    expected = demonstrations.observation.std(axis=0)
    np.testing.assert_allclose(state.scaling.observation_std, np.where(expected > 1e-6, expected, 1.0), rtol=1e-4)
    np.testing.assert_allclose(state.scaling.observation_mean, demonstrations.observation.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(from_canonical(SPACE, state.demonstrations[1]), demonstrations.action, rtol=1e-5)
    matrix = SPEC._replace(action_space=continuous_space([[-2.0, 0.0]], [[2.0, 10.0]]))
    other = make(preset("dapg", **SMALL), matrix, total_updates=1, demonstrations=demonstrations)
    np.testing.assert_array_equal(quick(other.init)(jax.random.key(0)).demonstrations[1], state.demonstrations[1])
    plain = agent_of("npg").init(jax.random.key(0))
    assert plain.demonstrations == ()
    np.testing.assert_array_equal(ravel_pytree(plain.scaling)[0], [0, 0, 0, 1, 1, 1, 0, 0, 1, 1])


# Acting, advantages and the value function -----------------------------------------------------------------------------


def test_actions_are_the_environments():
    agent = agent_of("npg")
    state = varied(agent.init(jax.random.key(0)))
    observation = jnp.tile(jnp.array([[0.3, -1.0, 2.0]]), (20_000, 1))
    acted = agent.act(state, jax.random.key(1), observation, (), None)
    mean, log_std = policy(state.policy, state.scaling, observation)
    canonical = to_canonical(SPACE, acted.action)
    np.testing.assert_allclose(canonical.mean(axis=0), mean[0], atol=0.05)
    np.testing.assert_allclose(canonical.std(axis=0), np.exp(log_std), rtol=0.05)
    np.testing.assert_allclose(acted.log_prob, log_prob(state.policy, state.scaling, observation, canonical), atol=1e-4)
    greedy = agent.act(state, jax.random.key(1), observation[:1], (), None, greedy=True)
    np.testing.assert_allclose(greedy.action, from_canonical(SPACE, mean[:1]), rtol=1e-5)


def value_of(params, observation):
    hidden, head = params["layers_0"]["Dense_0"], params["layers_1"]
    return (np.maximum(observation @ hidden["kernel"] + hidden["bias"], 0.0) @ head["kernel"] + head["bias"])[..., 0]


def test_advantages_and_returns_by_hand():
    """Lane 0 terminates at step 1, lane 1 is truncated at step 2; what follows is another episode."""
    length, lanes, gamma, lambda_ = 6, 2, 0.9, 0.8
    agent = agent_of("npg", gamma=gamma, lambda_=lambda_)
    state = agent.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    observation = rng.normal(size=(length + 1, lanes, 3)).astype(np.float32)
    final = observation[1:].copy()
    ends = np.zeros((2, length, lanes), bool)
    ends[0, 1, 0] = ends[1, 2, 1] = True
    final[ends.any(axis=0)] = rng.normal(size=(2, 3))
    reward = rng.normal(size=(length, lanes)).astype(np.float32)
    canonical = jnp.asarray(rng.normal(size=(length, lanes, 2)), jnp.float32)
    behaviour = jnp.arange(length * lanes, dtype=jnp.float32).reshape(length, lanes)
    chunk = Chunk(
        observation=jnp.asarray(observation[:-1]),
        first=None,
        acted=ActOutput(from_canonical(SPACE, canonical), behaviour, None, (), ()),
        initial_core=(),
        reward=jnp.asarray(reward),
        terminated=jnp.asarray(ends[0]),
        truncated=jnp.asarray(ends[1]),
        valid=None,
        final_observation=jnp.asarray(final),
        episode=None,
        last_observation=jnp.asarray(observation[-1]),
        last_first=None,
    )
    samples = agent.process(state, chunk, 3)
    assert samples.advantage.shape == (4, 3)

    value = functools.partial(value_of, state.value)
    advantage, returns = np.zeros((length, lanes)), np.zeros((length, lanes))
    for lane in range(lanes):
        following, total = 0.0, value(final[-1, lane])
        for t in reversed(range(length)):
            goes_on, cut = not ends[0, t, lane], ends[:, t, lane].any()
            total = reward[t, lane] + gamma * goes_on * (value(final[t, lane]) if cut else total)
            delta = reward[t, lane] + gamma * goes_on * value(final[t, lane]) - value(observation[t, lane])
            following = delta + gamma * lambda_ * (not cut) * following
            advantage[t, lane], returns[t, lane] = following, total

    def lane_major(x):
        return np.swapaxes(x, 0, 1).reshape(4, 3, *np.shape(x)[2:])

    np.testing.assert_allclose(samples.advantage, lane_major(advantage), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(samples.value_target, lane_major(returns), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(samples.action, lane_major(canonical), atol=1e-5)
    np.testing.assert_array_equal(samples.observation, lane_major(observation[:-1]))
    np.testing.assert_array_equal(samples.behaviour_log_prob, lane_major(behaviour))


def test_the_value_function_fits_the_returns():
    """One pass in one minibatch is one step of Adam, which is the learning rate; many passes fit, and leave the policy be."""
    once = agent_of("npg", value_epochs=1, value_batch=24, learning_rate=1e-2)
    state = once.init(jax.random.key(0))
    samples = samples_of(state)
    new, metrics = once.update(state, jax.random.key(1), samples)
    error = value_of(state.value, samples.observation) - samples.value_target
    np.testing.assert_allclose(metrics["value_loss"], np.mean(error**2), rtol=1e-5)
    moved = np.abs(ravel_pytree(new.value)[0] - ravel_pytree(state.value)[0])
    assert moved.max() == pytest.approx(1e-2, rel=1e-3)
    many = agent_of("npg", value_epochs=400, value_batch=7, learning_rate=1e-2)  # three minibatches of 24 samples
    later, fitted = many.update(state, jax.random.key(1), samples)
    assert float(later.value_optimiser[1].count) == 3 * 400
    assert float(fitted["value_loss"]) < 0.6 * float(metrics["value_loss"])
    for a, b in zip(jax.tree.leaves(new.policy), jax.tree.leaves(later.policy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    guarded, _ = agent_of("npg", max_grad_norm=1e-30).update(state, jax.random.key(1), samples)
    np.testing.assert_allclose(ravel_pytree(guarded.value)[0], ravel_pytree(state.value)[0], atol=1e-20)


@pytest.mark.parametrize("field", ["advantage", "value_target"])
def test_what_is_not_finite_is_reported(field):
    agent = agent_of("npg")
    state = agent.init(jax.random.key(0))
    samples = samples_of(state)
    assert float(agent.update(state, jax.random.key(1), samples)[1]["nonfinite"]) == 0.0
    bad = samples._replace(**{field: getattr(samples, field).at[0, 0].set(jnp.nan)})
    assert float(agent.update(state, jax.random.key(1), bad)[1]["nonfinite"]) == 1.0


# Learning --------------------------------------------------------------------------------------------------------------

FAULTS = ("none", "sign of the advantages", "observations of other lanes", "no advantages")


def make_broken(config_and_fault, spec, *, total_updates):
    config, fault = config_and_fault
    agent = make(config, spec, total_updates=total_updates)

    def update(state, key, batch):
        seen = [
            batch,
            batch._replace(advantage=-batch.advantage),
            batch._replace(observation=jnp.roll(batch.observation, 1, axis=0)),
            batch._replace(advantage=jnp.zeros_like(batch.advantage)),
        ]
        return agent.update(state, key, jax.tree.map(lambda *leaves: jax.lax.select_n(fault, *leaves), *seen))

    return agent._replace(update=update)


def test_the_probe_is_solved_and_not_by_broken_agents():
    """a = s / 2 is worth 0, less the variance of exploration (at its floor 0.0025); the best blind policy -1/4."""
    environment = envs.make("probe/observation_action", 16, continuous=True)
    settings = LoopSettings(
        total_steps=16 * 16 * 40, collect_length=16, rollout_length=4, batch_size=256, reuse=1.0, log_points=8
    )
    train = quick(make_train(make_broken, environment, settings))
    config = preset("npg", policy_sizes=(16,), value_sizes=(16,))
    for fault, name in enumerate(FAULTS):
        metrics = train((config, jnp.asarray(fault)), jax.random.key(0)).metrics
        final = float(metrics["episode_return"][-1])
        assert final > -0.02 if name == "none" else final < -0.2, (name, final)
        assert not metrics["nonfinite"].any()
    assert train._cache_size() == 1  # no compilation for other numbers


def needle(dimensions):
    """One step; 1 for an action of which every component is within 0.2 of 0.6 + 0.2 s, s = -1 or 1, else 0."""
    spec = EnvironmentSpec("test/needle", (1,), "float32", continuous_space([-1.0] * dimensions, [1.0] * dimensions))

    def reset(key):
        cue = jax.random.rademacher(key, (1,), jnp.float32)
        return cue, cue

    def step(key, cue, action):
        del key
        hit = jnp.all(jnp.abs(action - 0.6 - 0.2 * cue) < 0.2)
        return Transitioned(cue, cue, hit.astype(jnp.float32), jnp.array(True), jnp.array(False))

    return LaneEnvironment(spec, reset, step)


def test_demonstrations_lead_to_what_exploration_does_not_find():
    """Around the expert's mean, the spread of all its actions is worth 0.63^8 = 0.025; a policy of N(0, 1) less than 1e-6."""
    environment = vectorise(needle(8), 16)
    rng = np.random.default_rng(0)
    cue = rng.choice([-1.0, 1.0], (400, 1))
    demonstrations = SimpleNamespace(observation=cue, action=0.6 + 0.2 * cue + 0.1 * rng.normal(size=(400, 8)))
    settings = LoopSettings(
        total_steps=16 * 32 * 40, collect_length=32, rollout_length=32, batch_size=512, reuse=1.0, log_points=40
    )
    rewards = {}
    for name in ("npg", "dapg"):
        parts = dict(demonstrations=demonstrations) if name == "dapg" else {}
        train = quick(make_train(functools.partial(make, **parts), environment, settings))
        rewards[name] = np.asarray(train(preset(name, value_sizes=(16,)), jax.random.key(0)).metrics["reward_mean"])
    assert rewards["npg"].max() < 0.01
    assert rewards["dapg"][0] < 0.1
    assert rewards["dapg"][-1] > 0.9


@pytest.mark.slow
def test_npg_learns_pendulum():
    """A random policy earns about -1200, a good one about -150."""
    chosen = regime("npg", total_steps=96_000, log_points=6)
    train = jax.jit(make_train(agents.make, envs.make("Pendulum-v1", chosen.num_envs), chosen.settings))
    metrics = train(agents.preset("npg", gamma=0.97, lambda_=0.95, value_epochs=5), jax.random.key(0)).metrics
    assert metrics["episode_return"][-1] > -300
    assert not metrics["nonfinite"].any()


def test_reals_are_swept():
    """Two configs in one vmapped update give what each gives alone."""
    state = agent_of("dapg").init(jax.random.key(0))
    samples = samples_of(state)

    def update(config):
        agent = make(config, SPEC, total_updates=1, demonstrations=demonstrations_of())
        new, metrics = agent.update(state, jax.random.key(1), samples)
        return ravel_pytree((new.policy, new.value))[0], metrics["kl"]

    configs = [preset("dapg", **SMALL, step_size=size, learning_rate=10 * size) for size in (1e-3, 1e-2)]
    together = quick(jax.vmap(update))(stack_configs(configs))
    for i, config in enumerate(configs):
        for a, b in zip(together, quick(update)(config), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)


# Refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(gamma=1.5), r"gamma=1.5 is not allowed: gamma must be a number in \[0, 1\]"),
        (dict(demonstration_decay=-0.1), "demonstration_decay=-0.1 is not allowed"),
        (dict(step_size=-1.0), "step_size=-1.0 is not allowed"),
        (dict(damping=float("nan")), "damping=nan is not allowed"),
        (dict(cg_iterations=0), "cg_iterations=0 is not allowed"),
        (dict(value_epochs=0), "value_epochs=0 is not allowed"),
        (dict(step_sze=1.0), "unknown field step_sze; .*step_size"),
    ],
)
def test_configs_that_are_invalid(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("dapg", **changes)


def test_environments_and_demonstrations_that_do_not_fit():
    demonstrations = demonstrations_of()
    with pytest.raises(ValueError, match="unknown preset 'dapgg'; choose one of npg, dapg"):
        preset("dapgg")
    with pytest.raises(ValueError, match="needs one vector of observations and continuous actions"):
        make(preset("npg"), envs.make("CartPole-v1", 1).spec, total_updates=1)
    with pytest.raises(ValueError, match="total_updates must be at least 1, got 0"):
        make(preset("npg"), SPEC, total_updates=0)
    with pytest.raises(ValueError, match=r"with_demonstrations=True and demonstrations missing .*npg"):
        make(preset("dapg"), SPEC, total_updates=1)
    with pytest.raises(ValueError, match="with_demonstrations=False and demonstrations given"):
        make(preset("npg"), SPEC, total_updates=1, demonstrations=demonstrations)
    for changes in (dict(action=demonstrations.action[:, :1]), dict(observation=demonstrations.observation[:-1])):
        odd = SimpleNamespace(**(vars(demonstrations) | changes))
        with pytest.raises(ValueError, match="of the demonstrations have shapes .* of 3 and 2 numbers"):
            make(preset("dapg"), SPEC, total_updates=1, demonstrations=odd)


def test_the_family_is_registered():
    config = agents.preset("dapg")
    assert (config, agents.family_of(config)) == (DapgConfig(), "dapg")
    agent = agents.make(config, SPEC, total_updates=1, demonstrations=demonstrations_of())
    assert agent.initial_core(3) == ()
