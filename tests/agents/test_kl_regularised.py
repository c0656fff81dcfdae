"""The KL-regularised actor-critic: closed forms, golden numbers of the specification, and losses worked out by hand."""

import dataclasses
import doctest
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import envs, references
from jaxrl_off.agents import kl_regularised, kl_regularised_config
from jaxrl_off.agents.kl_regularised import make
from jaxrl_off.agents.kl_regularised_config import PRESETS, KLRegularisedConfig, preset
from jaxrl_off.agents.kl_regularised_losses import kl_to_reference, temperature
from jaxrl_off.distributions import DiagonalNormal, TanhNormal
from jaxrl_off.envs.base import continuous_space, from_canonical, to_canonical
from jaxrl_off.networks import CriticEnsemble, GaussianPolicy
from jaxrl_off.training import LoopSettings, make_loop, make_train, stack_configs, sweep
from jaxrl_off.types import Transition

SPEC = envs.make("Pendulum-v1", 1).spec
SMALL = dict(policy_sizes=(8,), critic_sizes=(8,), pretrain_updates=0)


# Configs are arguments: those that differ in their reals alone share a program.


@functools.partial(jax.jit, static_argnames=("total_updates", "reference"))
def started(config, key, reference_params=(), demonstrations=None, *, reference=None, total_updates=10):
    """The initial state of an agent of `config`."""
    parts = dict(reference=reference, reference_params=reference_params, demonstrations=demonstrations)
    return make(config, SPEC, total_updates=total_updates, **parts).init(key)


@functools.partial(jax.jit, static_argnames=("total_updates", "reference"))
def updated(config, state, key, batch, demonstrations=None, *, reference=None, total_updates=10):
    """One update of an agent of `config`."""
    parts = dict(reference=reference, demonstrations=demonstrations)
    return make(config, SPEC, total_updates=total_updates, **parts).update(state, key, batch)


def batch_of(seed=0, size=6, std=0.3):
    """Made-up transitions of Pendulum with a Gaussian reference."""
    keys = jax.random.split(jax.random.key(seed), 7)
    moments = [
        DiagonalNormal(0.5 * jax.random.normal(k, (size, 1)), jnp.full((size, 1), np.log(std))) for k in keys[:2]
    ]
    return Transition(
        observation=jax.random.normal(keys[2], (size, 3)),
        action=jax.random.uniform(keys[3], (size, 1), minval=-1.0),
        reward=jax.random.normal(keys[4], (size,)),
        terminated=jnp.arange(size) % 3 == 0,
        next_observation=jax.random.normal(keys[5], (size, 3)),
        reference=moments[0],
        next_reference=moments[1],
    )


def reference(params, observation):
    """A linear reference for tests."""
    mean = 0.2 * jnp.sum(observation, axis=-1, keepdims=True)
    return DiagonalNormal(mean, jnp.full_like(mean, params))


# The divergence --------------------------------------------------------------------------------------------------------

SCALAR = {
    1.0: (1.2544379124341003, 0.5, -4.8),
    0.3: (1.5165762192192758, 5.555555555555555, -2.7777777777777777),
    0.1: (13.306852819440053, 50.0, 15.0),
    0.03: (158.71399112622527, 555.5555555555555, 217.2222222222222),
    0.01: (1446.504267726446, 5000.0, 1995.0),
    0.003: (16106.411406033234, 55555.55555555556, 22217.22222222222),
    0.001: (144994.2016826335, 500000.0, 199995.0),
}
SAMPLED = {
    1.0: (1.8234478155304994, 1.1291951004978973, -0.9322482939701262),
    0.1: (4.914164260071356, 27.762940675251357, 0.6657764405150814),
    0.01: (541.9417329205676, 2691.137498150598, 160.46824898903586),
    0.001: (54472.6545231766, 269028.5932456852, 16140.715594741112),
}


@pytest.mark.parametrize("std", SCALAR)
def test_analytic_kl_and_its_gradients(std):
    """nppac.md section 7: mu = 0.5, sigma = 0.2 against N(0, std)."""
    with jax.enable_x64(True):

        def kl(mean, scale):
            pi = DiagonalNormal(mean[None], jnp.log(scale)[None])
            return pi.kl(DiagonalNormal(jnp.zeros(1), jnp.log(jnp.array([std]))))

        arguments = (jnp.array(0.5), jnp.array(0.2))
        value, slopes = jax.value_and_grad(kl, (0, 1))(*arguments)
        np.testing.assert_allclose([value, *slopes], SCALAR[std], rtol=1e-11)


def test_the_gradient_explodes_with_the_inverse_square():
    with jax.enable_x64(True):
        stds = jnp.array(sorted(SCALAR))
        slope = jax.vmap(
            lambda s: jax.grad(
                lambda m: DiagonalNormal(m, jnp.zeros(1)).kl(DiagonalNormal(jnp.zeros(1), jnp.log(s)[None]))
            )(jnp.array([0.5]))[0]
        )(stds)
        exponents = jnp.diff(jnp.log(slope)) / jnp.diff(jnp.log(stds))
        np.testing.assert_allclose(exponents, -2.0, atol=1e-6)


@pytest.mark.parametrize("std", SAMPLED)
def test_sampled_kl_of_a_squashed_policy(std):
    """mu = 0.4, sigma = 0.2, noise 0.3 against N(0.1, std); the golden numbers have 1e-6 inside the logarithm."""
    with jax.enable_x64(True):

        def delta(mean, log_std):
            pi = TanhNormal(mean[None], log_std[None])
            x = mean + jnp.exp(log_std) * 0.3
            log_prob = pi._log_prob_of(x[None])
            prior = DiagonalNormal(jnp.array([0.1]), jnp.log(jnp.array([std])))
            return log_prob - prior.log_prob(jnp.tanh(x)[None])

        value, slopes = jax.value_and_grad(delta, (0, 1))(jnp.array(0.4), jnp.log(0.2))
        np.testing.assert_allclose([value, *slopes], SAMPLED[std], rtol=3e-6)


@pytest.mark.parametrize("kind", [DiagonalNormal, TanhNormal])
def test_sampled_kl_estimates_the_analytic_one(kind):
    """40,000 samples, five standard errors; both distributions squashed or both not."""
    pi = kind(jnp.array([[0.3, -0.2]]), jnp.log(jnp.array([[0.4, 0.3]])))
    prior = kind(jnp.array([[0.1, 0.1]]), jnp.log(jnp.array([[0.6, 0.2]])))
    config = preset("nppac", kl_samples=40_000)
    estimate, *_ = kl_to_reference(config, jax.random.key(0), pi, prior)
    exact = pi.kl(prior)
    actions = jax.vmap(pi.sample)(jax.random.split(jax.random.key(1), 2000))
    spread = np.std(np.asarray(pi.log_prob(actions) - prior.log_prob(actions)), axis=0)
    assert abs(float(estimate[0] - exact[0])) < 5 * spread[0] / 200
    analytic, *_ = kl_to_reference(preset("nppac", kl="analytic"), jax.random.key(0), pi, prior)
    np.testing.assert_allclose(analytic, exact)


def test_no_penalty_at_the_reference():
    """pi = pi_0: the analytic KL and its gradient are 0, the sampled KL is 0 for every sample."""

    def kl(mean, how):
        pi = DiagonalNormal(mean, jnp.full_like(mean, -1.0))
        prior = DiagonalNormal(jnp.array([[0.2, -0.1]]), jnp.full((1, 2), -1.0))
        return jnp.sum(kl_to_reference(preset("nppac", kl=how), jax.random.key(0), pi, prior)[0])

    value, slope = jax.value_and_grad(kl)(jnp.array([[0.2, -0.1]]), "analytic")
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    assert float(kl(jnp.array([[0.2, -0.1]]), "sampled")) == 0.0


def test_analytic_kl_needs_one_kind():
    pi, prior = TanhNormal(jnp.zeros((1, 1)), jnp.zeros((1, 1))), DiagonalNormal(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    with pytest.raises(ValueError, match="TanhNormal and DiagonalNormal"):
        kl_to_reference(preset("nppac", kl="analytic"), jax.random.key(0), pi, prior)
    with pytest.raises(ValueError, match="set with_reference=True or kl='sampled'"):
        preset("sac", kl="analytic")


def test_reference_and_config_go_together():
    with pytest.raises(ValueError, match=r"with_reference=True and a reference missing.*set with_reference=False"):
        make(preset("nppac"), SPEC, total_updates=1)
    with pytest.raises(ValueError, match="with_reference=False and a reference given"):
        make(preset("sac"), SPEC, total_updates=1, reference=reference)


def test_guard_rails():
    pi = DiagonalNormal(jnp.array([[0.5], [0.0]]), jnp.log(jnp.full((2, 1), 0.2)))
    prior = DiagonalNormal(jnp.zeros((2, 1)), jnp.log(jnp.full((2, 1), 0.01)))
    plain = dict(kl="analytic", policy="normal")
    kl, _, raw, _ = kl_to_reference(preset("nppac", **plain, kl_clip=300.0), jax.random.key(0), pi, prior)
    np.testing.assert_allclose(raw[0], 1446.504267726446, rtol=1e-5)
    np.testing.assert_allclose(kl, [300.0, raw[1]])
    kl, *_ = kl_to_reference(preset("nppac", **plain, reference_std_floor=0.1), jax.random.key(0), pi, prior)
    np.testing.assert_allclose(kl[0], 13.306852819440053, rtol=1e-6)


# One update, by hand ---------------------------------------------------------------------------------------------------


def quiet(config):
    """The state of an agent whose policy has standard deviation exp(-20): its samples are its means."""
    state = started(config, jax.random.key(5), reference=reference)
    policy = jax.tree.map(lambda x: x, state.policy)
    policy["log_std"] = {"kernel": jnp.zeros_like(policy["log_std"]["kernel"]), "bias": jnp.full(1, -20.0)}
    policy["mean"] = {"kernel": 10.0 * policy["mean"]["kernel"] * 50, "bias": policy["mean"]["bias"]}
    other = jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), state.critic)
    return state._replace(policy=policy, target_critic=other)


def by_hand(config, state, batch):
    """Target, critic loss and policy loss of a quiet agent in float64 NumPy; the KL in closed form."""
    policy = GaussianPolicy(1, config.policy_sizes, squash=False)
    critic = CriticEnsemble(config.critics, config.critic_sizes, config.critic_layer_norm)

    def mean_of(observation):
        return np.asarray(policy.apply({"params": state.policy}, observation).mean, np.float64)

    def kl_of(mean, prior):
        s, s0, m0 = np.exp(-20.0), np.exp(np.asarray(prior.log_std, np.float64)), np.asarray(prior.mean, np.float64)
        return np.sum(np.log(s0 / s) + (s**2 + (mean - m0) ** 2) / (2 * s0**2) - 0.5, axis=-1)

    now, after = mean_of(batch.observation), mean_of(batch.next_observation)
    q_after = np.asarray(
        critic.apply({"params": state.target_critic}, batch.next_observation, jnp.float32(after)), np.float64
    )
    kl_after = kl_of(after, batch.next_reference) if config.value_penalty else 0.0
    alive = 1.0 - np.asarray(batch.terminated, np.float64)
    target = config.reward_scale * np.asarray(batch.reward, np.float64)
    target = target + config.gamma * alive * (q_after.min(axis=0) - config.alpha * kl_after)
    q = np.asarray(critic.apply({"params": state.critic}, batch.observation, batch.action), np.float64)
    q_pi = np.asarray(critic.apply({"params": state.critic}, batch.observation, jnp.float32(now)), np.float64)
    best = q_pi.min(axis=0) if config.actor_value == "min" else q_pi.mean(axis=0)
    policy_loss = np.mean(config.alpha * kl_of(now, batch.reference) - best)
    return target, np.sum(np.mean((q - target) ** 2, axis=1)), policy_loss


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(value_penalty=False),
        dict(actor_value="mean", critics=3),
        dict(critic_layer_norm=True),
        dict(gamma=0.9, alpha=0.7, reward_scale=3.0),
    ],
)
def test_losses_by_hand(changes):
    config = preset("nppac", policy="normal", kl="analytic", **SMALL, **changes)
    state = quiet(config)
    batch = batch_of()
    _, metrics = updated(config, state, jax.random.key(1), batch, reference=reference)
    target, critic_loss, policy_loss = by_hand(config, state, batch)
    np.testing.assert_allclose(metrics["target"], target.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], critic_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], policy_loss, rtol=1e-4)


def test_one_step_of_adam_and_the_slow_copy():
    """Adam's first step is the learning rate times the gradient's sign; the slow copy moves by tau."""
    config = preset(
        "nppac", policy="normal", kl="analytic", learning_rate=1e-3, critic_learning_rate=2e-3, tau=0.1, **SMALL
    )
    state = quiet(config)
    new, _ = updated(config, state, jax.random.key(1), batch_of(), reference=reference)
    steps = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), new.critic, state.critic))
    assert max(step.max() for step in steps) == pytest.approx(2e-3, rel=1e-3)
    moved = jax.tree.leaves(
        jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.policy["mean"], state.policy["mean"])
    )
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)
    for got, slow, critic in zip(
        *map(jax.tree.leaves, (new.target_critic, state.target_critic, new.critic)), strict=True
    ):
        np.testing.assert_allclose(got, 0.9 * slow + 0.1 * critic, rtol=1e-5, atol=1e-7)
    assert int(new.updates) == 1


def test_the_policy_follows_its_gradient():
    """Finite differences of the policy loss, along the step that was taken, in a quiet agent: it must fall."""
    config = preset("nppac", policy="normal", kl="analytic", learning_rate=1e-3, **SMALL)
    state = quiet(config)
    batch = batch_of()
    new, before = updated(config, state, jax.random.key(1), batch, reference=reference)
    _, after = updated(config, state._replace(policy=new.policy), jax.random.key(1), batch, reference=reference)
    assert after["policy_loss"] < before["policy_loss"]


def test_a_uniform_reference_is_sac():
    """A reference with log density 0 gives the parameters of SAC, bit for bit; another constant shifts targets only."""

    class Flat(DiagonalNormal):
        def log_prob(self, action):
            return jnp.zeros(action.shape[:-1])

    config = preset("sac", **SMALL)
    batch = batch_of()
    key, state = jax.random.key(3), started(config, jax.random.key(3))
    expected, rows = updated(config, state, key, batch._replace(reference=(), next_reference=()))
    flat = preset("sac", with_reference=True, **SMALL)
    constant = batch._replace(reference=Flat(*batch.reference), next_reference=Flat(*batch.next_reference))
    given, _ = jax.jit(make(flat, SPEC, total_updates=10, reference=lambda params, observation: ()).update)(
        state, key, constant
    )
    for a, b in zip(jax.tree.leaves(expected.policy), jax.tree.leaves(given.policy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    for a, b in zip(jax.tree.leaves(expected.critic), jax.tree.leaves(given.critic), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    np.testing.assert_allclose(rows["kl"], -rows["entropy"])


def test_the_uniform_reference_of_the_library_is_sac():
    uniform = references.uniform()
    params = uniform.fit(jax.random.key(0), np.zeros((4, 3)) + np.arange(4)[:, None], np.zeros((4, 1)))
    key, batch = jax.random.key(3), batch_of()
    sac = preset("sac", **SMALL)
    other = preset("sac", with_reference=True, **SMALL)
    expected, _ = updated(sac, started(sac, key), key, batch._replace(reference=(), next_reference=()))
    moments = (uniform.apply(params, batch.observation), uniform.apply(params, batch.next_observation))
    state = started(other, key, params, reference=uniform.apply)
    batch = batch._replace(reference=moments[0], next_reference=moments[1])
    given, _ = updated(other, state, key, batch, reference=uniform.apply)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given._replace(reference=())), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_nppac_with_a_gaussian_process_in_the_loop():
    """Moments of the process are stored with every transition; near the demonstrations they are surer than far away."""
    environment = envs.make("Pendulum-v1", 2)
    rng = np.random.default_rng(0)
    angle = rng.uniform(-0.3, 0.3, 40)
    observations = np.stack([np.cos(angle), np.sin(angle), rng.normal(0, 0.1, 40)], axis=1)
    process = references.gp_icm(steps=60)
    params = process.fit(jax.random.key(0), observations, -np.sin(angle)[:, None])
    config = preset("nppac", **SMALL)
    state, rows = stored_by_the_loop(environment, config, reference=process.apply, reference_params=params)
    std = np.exp(rows.reference.log_std[:, 0])
    near = rows.observation[:, 0] > 0.9
    assert std[~near].mean() > 3 * process_std(process, params, observations)
    np.testing.assert_allclose(rows.reference.mean, process.apply(params, rows.observation).mean, atol=1e-3)
    assert np.isfinite(state.agent.log_alpha)


def process_std(process, params, observations):
    return float(np.exp(process.apply(params, jnp.float32(observations)).log_std).mean())


# Temperature -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "direction"), [(-1e3, -1.0), (1e3, 1.0)])
def test_entropy_dual(target, direction):
    """More entropy than asked for lowers alpha, less raises it; Adam's first step is the learning rate."""
    config = preset("sac", target_entropy=target, alpha_learning_rate=0.01, alpha=0.5, **SMALL)
    batch = batch_of()._replace(reference=(), next_reference=())
    new, metrics = updated(config, started(config, jax.random.key(0)), jax.random.key(1), batch)
    np.testing.assert_allclose(new.log_alpha - np.log(0.5), direction * 0.01, rtol=1e-3)
    np.testing.assert_allclose(metrics["alpha"], 0.5, rtol=1e-6)


@pytest.mark.parametrize(("budget", "direction"), [(1e6, -1.0), (0.0, 1.0)])
def test_kl_dual(budget, direction):
    config = preset("nppac", temperature="kl", kl_budget=budget, alpha_learning_rate=0.01, **SMALL)
    state = started(config, jax.random.key(0), jnp.log(0.05), reference=reference)
    new, _ = updated(config, state, jax.random.key(1), batch_of(std=0.05), reference=reference)
    np.testing.assert_allclose(new.log_alpha - state.log_alpha, direction * 0.01, rtol=1e-3)


def test_alpha_is_the_configs_or_the_duals():
    log_alpha = jnp.log(0.7)
    np.testing.assert_allclose(temperature(preset("nppac", alpha=0.1), log_alpha), 0.1, rtol=1e-6)
    np.testing.assert_allclose(temperature(preset("sac", alpha=0.1), log_alpha), 0.7, rtol=1e-6)


# RLPD's parts ----------------------------------------------------------------------------------------------------------


def demonstrations_of(size=50):
    rows = batch_of(9, size)
    return rows._replace(action=2.0 * rows.action, reward=jnp.full(size, 100.0))


def test_policy_waits_for_its_period():
    config = preset("sac", policy_period=3, **SMALL)
    states, rows = [started(config, jax.random.key(0))], []
    batch = batch_of()._replace(reference=(), next_reference=())
    for i in range(6):
        state, row = updated(config, states[-1], jax.random.key(i), batch)
        states.append(state)
        rows.append(row)
    same = [
        all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x.policy), jax.tree.leaves(y.policy), strict=True))
        for x, y in itertools.pairwise(states)
    ]
    assert same == [True, True, False, True, True, False]
    assert [bool(np.isnan(row["policy_loss"])) for row in rows] == same
    assert all(row["nonfinite"] == 0 and np.isfinite(row["critic_loss"]) for row in rows)


def test_target_takes_the_minimum_of_a_random_subset():
    """Critics whose slow copies differ by constants: two of five give ten possible minima, all of them seen."""
    config = preset("nppac", policy="normal", kl="analytic", critics=5, target_critics=2, gamma=1.0, alpha=0.0, **SMALL)
    state = quiet(config)
    offsets = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])
    slow = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state.target_critic)
    last = slow["Vmap_Critic_0"]["Dense_0"] if "Vmap_Critic_0" in slow else None
    leaves, tree = jax.tree_util.tree_flatten_with_path(slow)
    assert last is not None
    slow = jax.tree.unflatten(
        tree,
        [leaf + offsets[:, None] if leaf.shape == (5, 1) else leaf for _, leaf in leaves],
    )
    state = state._replace(target_critic=slow)
    batch = batch_of()._replace(reward=jnp.zeros(6), terminated=jnp.zeros(6, bool))
    targets = np.array(
        [float(updated(config, state, jax.random.key(i), batch, reference=reference)[1]["target"]) for i in range(60)]
    )
    seen = np.unique(np.round(targets - targets.min()).astype(int), return_counts=True)
    assert seen[0].tolist() == [0, 1, 2, 3]  # the fourth offset is never the smaller of two
    np.testing.assert_allclose(seen[1] / 60, [0.4, 0.3, 0.2, 0.1], atol=0.2)


def test_demonstrations_are_mixed_in():
    """A quarter of the batch comes from demonstrations with a reward of 100, in canonical actions."""
    config = preset("sac", demonstration_fraction=0.25, gamma=0.0, **SMALL)
    demonstrations = demonstrations_of()
    state = started(config, jax.random.key(0), demonstrations=demonstrations)
    np.testing.assert_allclose(state.demonstrations.action, demonstrations.action / 2.0, rtol=1e-6)
    batch = batch_of(size=40)._replace(reference=(), next_reference=(), reward=jnp.zeros(40))
    _, metrics = updated(config, state, jax.random.key(1), batch, demonstrations)
    np.testing.assert_allclose(metrics["target"], 25.0, rtol=1e-5)


def test_demonstrations_and_their_share_go_together():
    with pytest.raises(ValueError, match=r"demonstration_fraction=0.5.* demonstrations missing"):
        make(preset("rlpd"), SPEC, total_updates=1)
    with pytest.raises(ValueError, match=r"demonstration_fraction=0.0.* demonstrations given"):
        make(preset("sac"), SPEC, total_updates=1, demonstrations=demonstrations_of())


# In the loop -----------------------------------------------------------------------------------------------------------

LOOP = LoopSettings(
    total_steps=600,
    collect_length=25,
    rollout_length=1,
    batch_size=25,
    reuse=1.0,
    replay_capacity=600,
    burn_in=200,
    log_points=2,
)


def stored_by_the_loop(environment, config, settings=LOOP, **parts):
    agent = make(config, environment.spec, total_updates=10, **parts)
    loop = make_loop(agent, environment, settings)
    state = jax.jit(loop.init)(jax.random.key(0))
    for _ in range(3):
        state, _ = jax.jit(loop.iterate)(state)
    count = int(state.replay.current_index)
    return state, jax.tree.map(
        lambda leaf: np.asarray(leaf[0, :count] if leaf.shape[0] == 1 else leaf[:count]), state.replay.experience
    )


@pytest.mark.parametrize("lanes", [1, 3])
def test_stored_moments_are_those_of_the_observations(lanes):
    """Across truncations too: an episode of 10 steps ends within every chunk."""
    environment = envs.make("Pendulum-v1", lanes, max_steps_in_episode=10)
    settings = dataclasses.replace(
        LOOP, total_steps=600 * lanes, batch_size=25 * lanes, burn_in=50 * lanes, replay_capacity=600 * lanes
    )
    _, rows = stored_by_the_loop(
        environment, preset("nppac", **SMALL), settings, reference=reference, reference_params=-1.0
    )
    assert len(rows.reward) == (2 + 3) * 25 * lanes
    np.testing.assert_allclose(rows.reference.mean, reference(-1.0, rows.observation).mean, rtol=1e-5)
    np.testing.assert_allclose(rows.next_reference.mean, reference(-1.0, rows.next_observation).mean, rtol=1e-5)
    # stored steps are steps: lane-wise, the successor is the next observation but where an episode was cut
    successor, following = rows.next_observation[:-lanes], rows.observation[lanes:]
    joined = np.all(successor == following, axis=-1)
    assert 0.85 < joined.mean() < 0.95
    assert not rows.terminated.any()


def test_actions_before_and_after_the_first_update():
    environment = envs.make("Pendulum-v1", 2)
    _, rows = stored_by_the_loop(environment, preset("sac", **SMALL))
    before, after = rows.action[:200], rows.action[200 + 50 :]
    assert before.min() < -0.9
    assert before.max() > 0.9
    assert np.abs(np.mean(before)) < 0.2
    assert abs(np.mean(np.abs(before)) - 0.5) < 0.1
    assert np.all(np.abs(after) <= 1.0)


def test_rollouts_are_single_transitions():
    environment = envs.make("Pendulum-v1", 1)
    agent = make(preset("sac", **SMALL), environment.spec, total_updates=1)
    with pytest.raises(ValueError, match="set rollout_length=1, not 5"):
        make_loop(agent, environment, dataclasses.replace(LOOP, rollout_length=5, batch_size=25)).init(
            jax.random.key(0)
        )


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="CartPole-v1 has observations"):
        make(preset("sac"), envs.make("CartPole-v1", 1).spec, total_updates=1)


def test_a_sweep_equals_single_runs():
    environment = envs.make("Pendulum-v1", 2)
    train = make_train(make, environment, dataclasses.replace(LOOP, total_steps=300, burn_in=100))
    configs = [preset("sac", learning_rate=rate, **SMALL) for rate in (1e-3, 1e-2)]
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(lambda c, k: sweep(train, c, k).metrics)(stack_configs(configs), keys)
    for i in range(2):
        alone = jax.jit(train)(configs[i], keys[i]).metrics
        for name in ("policy_loss", "critic_loss", "alpha", "reward_mean"):
            np.testing.assert_allclose(together[name][i], alone[name], rtol=2e-4, err_msg=name)


@pytest.mark.slow
def test_sac_learns_pendulum():
    """A random policy earns about -1200, a good one about -150."""
    environment = envs.make("Pendulum-v1", 4)
    settings = LoopSettings(
        total_steps=16_000, collect_length=16, rollout_length=1, batch_size=128, reuse=64.0, replay_capacity=16_000,
        burn_in=1000, log_points=8,
    )  # fmt: skip
    config = preset("sac", policy_sizes=(64, 64), critic_sizes=(64, 64), learning_rate=1e-3, critic_learning_rate=1e-3)
    result = jax.jit(make_train(make, environment, settings))(config, jax.random.key(0))
    assert result.metrics["episode_return"][-1] > -250
    assert not result.metrics["nonfinite"].any()


# Configuration and spaces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_finite_updates(name):
    config = preset(name, **(SMALL | dict(policy_period=1)))
    config = dataclasses.replace(config, offline_updates=min(config.offline_updates, 2))
    given = reference if config.with_reference else None
    demonstrations = demonstrations_of() if config.with_demonstrations else None
    state = started(config, jax.random.key(0), -1.0 if given else (), demonstrations, reference=given)
    batch = batch_of() if config.with_reference else batch_of()._replace(reference=(), next_reference=())
    for i in range(3):
        state, metrics = updated(config, state, jax.random.key(i), batch, demonstrations, reference=given)
        assert all(np.isfinite(value) for value in metrics.values())
    assert ("kl_gradient_p99" in metrics) == (config.with_reference or config.prior != "frozen")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(policy="beta"), "policy='beta' is not known; choose one of tanh_normal, normal"),
        (dict(alpha=-1.0), r"alpha=-1.0 is not allowed"),
        (dict(target_critics=3), r"target_critics must be a number in \[0, 2\]"),
        (dict(demonstration_fraction=1.5), "demonstration_fraction=1.5 is not allowed"),
        (dict(temperature="entropy", alpha=0.0), "alpha must be positive"),
        (dict(learning_rte=1.0), "unknown field learning_rte; .*Did you mean 'learning_rate'"),
    ],
)
def test_configs_that_are_invalid(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("nppac", **changes)


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'sca'; choose one of sac"):
        preset("sca")
    assert preset("nppac", pretrain_updates=0) == KLRegularisedConfig()


def test_canonical_actions():
    space = continuous_space(np.array([[-2.0, 0.0], [1.0, -1.0]]), np.array([[2.0, 10.0], [3.0, 1.0]]))
    corners = jnp.array([[-1.0] * 4, [1.0] * 4, [0.0] * 4])
    mapped = from_canonical(space, corners)
    np.testing.assert_allclose(mapped[0], [[-2.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(mapped[1], [[2.0, 10.0], [3.0, 1.0]])
    np.testing.assert_allclose(mapped[2], [[0.0, 5.0], [2.0, 0.0]])
    np.testing.assert_allclose(to_canonical(space, mapped), corners, atol=1e-6)


def test_doctests():
    for module in (kl_regularised, kl_regularised_config):
        assert doctest.testmod(module).failed == 0
