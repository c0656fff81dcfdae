"""Presets, what `preset` refuses, and that every member updates on every kind of environment and network."""

import dataclasses
import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents import Chunk, DivergenceAugmentedConfig, make, preset
from jaxrl_off.agents import divergence_augmented as agent_module
from jaxrl_off.agents import divergence_augmented_config as config_module
from jaxrl_off.agents.divergence_augmented_config import PRESETS
from jaxrl_off.ops import surrogates
from jaxrl_off.types import EpisodeStatistics

REALS = [f.name for f in dataclasses.fields(DivergenceAugmentedConfig) if isinstance(f.default, float)]
SWITCHES = [f.name for f in dataclasses.fields(DivergenceAugmentedConfig) if not isinstance(f.default, float)]
LENGTH, LANES = 4, 2
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # less time in the compiler


# Refusals -------------------------------------------------------------------------------------------------------------


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'pppo'; choose one of ppo, .*vmpo"):
        preset("pppo")


def test_an_unknown_field_lists_the_fields():
    with pytest.raises(ValueError, match=r"unknown field learningrate, clip; .*learning_rate.*clip_epsilon"):
        preset("ppo", learningrate=1.0, clip=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "weight",
        "advantage",
        "advantage_normalisation",
        "divergence",
        "divergence_steps",
        "penalty",
        "penalty_schedule",
        "value_loss",
        "optimiser",
        "torso",
        "activation",
    ],
)
def test_an_unknown_choice_names_the_field_and_the_choices(name):
    default = getattr(DivergenceAugmentedConfig(), name)
    with pytest.raises(ValueError, match=rf"{name}='nonsense' is not known; choose one of .*{default}"):
        preset("ppo_da", **{name: "nonsense"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-3),
        ("gamma", 1.01),
        ("gamma", -0.1),
        ("lambda_", 1.5),
        ("trace_lambda", -1.0),
        ("clip_epsilon", 1.2),
        ("clip_epsilon", -0.2),
        ("max_grad_norm", -1.0),
        ("gamma", float("nan")),
        ("max_grad_norm", 0.0),
        ("entropy_coefficient", -0.01),
        ("entropy_coefficient", float("nan")),
        ("divergence_coefficient", -1.0),
        ("adam_epsilon", -1.0),
        ("rho_bar_value", -1.0),
        ("core_size", -3),
        ("product_start", 7),
        ("learning_rate", None),
    ],
)
def test_a_number_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value} is not allowed: {name} must be a number"):
        preset("ppo_da", **{name: value})


def test_text_is_no_number():
    with pytest.raises(
        ValueError, match=r"learning_rate='3e-4' is not allowed: learning_rate must be a number in \[0, inf\]"
    ):
        preset("ppo_da", learning_rate="3e-4")


def test_weights_and_divergences_of_ones_own():
    """A function in place of a name gives the same loss as the name that it computes."""
    named = preset("ppo", weight="truncate", divergence="kl", sizes=(4,))
    own = preset(
        "ppo",
        weight=lambda r, log_prob, a: surrogates.truncate(r, log_prob, a, 1.0),
        divergence=lambda p, q: p - q,
        sizes=(4,),
    )
    spec = envs.make("CartPole-v1", 2).spec
    losses = [act_and_update(config, spec, random_chunk(spec))[3] for config in (named, own)]
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], rtol=1e-6)
    assert abs(float(losses[0]["policy_loss"][0])) > 1e-3


def test_combinations_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="penalty='none' has none"):
        preset("ppo_da", penalty_schedule="adaptive")
    with pytest.raises(ValueError, match="released_code=True follows section 5"):
        preset("ppo_da", released_code=True, product_start=0)
    with pytest.raises(ValueError, match="separate_critic needs a feed-forward network"):
        preset("ppo", separate_critic=True, core_size=8)
    with pytest.raises(ValueError, match="learned"):
        preset("vmpo", penalty_schedule="constant")


def test_make_refuses_what_preset_would():
    spec = envs.make("probe/action", 1).spec
    with pytest.raises(ValueError, match="gamma"):
        make(DivergenceAugmentedConfig(gamma=2.0), spec, total_updates=1)
    with pytest.raises(ValueError, match="total_updates must be at least 1, got 0"):
        make(preset("ppo"), spec, total_updates=0)


# The pytree -----------------------------------------------------------------------------------------------------------


def test_reals_are_leaves_and_switches_static():
    config = preset("ppo_da")
    names = {path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(config)}
    assert names == set(REALS)
    assert {"learning_rate", "gamma", "lambda_", "clip_epsilon", "divergence_coefficient", "c_bar_divergence"} <= names
    assert {"weight", "divergence", "product_start", "sizes", "core_size", "released_code"} <= set(SWITCHES)
    for name in REALS:  # same program
        changed = config.replace(**{name: 0.123})
        assert jax.tree.structure(changed) == jax.tree.structure(config), name
        assert jax.tree.leaves(changed) != jax.tree.leaves(config), name
    other = dict(weight="identity", divergence="none", product_start=0, sizes=(8,), core_size=4, released_code=True)
    for name, value in other.items():  # another program
        assert jax.tree.structure(config.replace(**{name: value})) != jax.tree.structure(config), name


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("ppo_da").gamma = 0.5


def test_numbers_under_a_transformation_are_not_checked():
    """`preset` and `check` see tracers when a sweep traces them."""

    def traced(gamma):
        return preset("ppo_da", gamma=gamma).gamma * 2.0

    np.testing.assert_allclose(jax.vmap(traced)(jnp.array([0.5, 0.9])), [1.0, 1.8])


def test_defaults_are_the_papers():
    """Table 1 and section 5.1 of Wang et al. (2019); the last four from the authors' code."""
    table = dict(
        gamma=0.99,
        lambda_=0.9,
        c_bar_divergence=0.5,
        rho_bar_divergence=1.0,
        c_bar_value=1.0,
        rho_bar_value=1.0,
        clip_epsilon=0.2,
        divergence_coefficient=0.5,
        value_coefficient=0.5,
        entropy_coefficient=0.0,
        learning_rate=1e-3,
        final_learning_rate_fraction=0.0,
        weight="clip",
        divergence="kl",
        divergence_steps="multi",
        advantage="vtrace",
        trace_lambda=1.0,
        adam_epsilon=1e-5,
        max_grad_norm=0.5,
        value_weight_cap=3.0,
        advantage_normalisation="rms",
    )
    config = preset("ppo_da")
    assert {name: getattr(config, name) for name in table} == table
    assert preset("ppo_entropy").divergence_coefficient == 0.1


def test_presets_are_what_their_names_say():
    """The switches that make a member, from the papers of the others."""
    fields = {
        "ppo": dict(weight="clip", divergence="none", advantage="vtrace"),
        "ppo_gae": dict(weight="clip", divergence="none", advantage="gae", lambda_=0.95),
        "ppo_continuous": dict(weight="clip", advantage="gae", normalise_observations=True, normalise_rewards=True),
        "ppo_entropy": dict(weight="clip", divergence="entropy", divergence_steps="multi"),
        "ppo_da_one_step": dict(weight="clip", divergence="kl", divergence_steps="one"),
        "dapo": dict(weight="identity", divergence="kl", divergence_steps="multi"),
        "importance_weighted": dict(weight="identity", divergence="none"),
        "vtrace": dict(weight="truncate", weight_cap=1.0, divergence="none", advantage_normalisation="none"),
        "acer": dict(weight="acer", weight_cap=1.0, divergence="none"),
        "acer_da": dict(weight="acer", divergence="kl"),
        "mdpo": dict(weight="identity", penalty="kl", penalty_schedule="mirror_descent", advantage="gae"),
        "trpo_penalty": dict(weight="identity", penalty="reverse_kl"),
        "p3o": dict(
            weight="effective_sample_size",
            penalty="reverse_kl",
            penalty_schedule="one_minus_effective_sample_size",
            advantage="gae_current",
        ),
        "geppo": dict(weight="centred_clip", adapt_learning_rate=True, lambda_=0.97, trace_lambda=0.97),
        "vmpo": dict(weight="exponential", penalty="reverse_kl", penalty_schedule="learned"),
    }
    assert set(fields) | {"ppo_da"} == set(PRESETS)
    for name, expected in fields.items():
        config = preset(name)
        assert {field: getattr(config, field) for field in expected} == expected, name


def test_docstring_examples():
    for module in (config_module, agent_module):
        assert doctest.testmod(module).failed == 0
    assert agents.make is make


# Every member, environment and network --------------------------------------------------------------------------------


def random_chunk(spec):
    """Four steps of two lanes without the actor's part, with a truncation and a fake step."""
    observation_key, final_key, reward_key = jax.random.split(jax.random.key(0), 3)
    observation = jax.random.normal(observation_key, (LENGTH + 1, LANES, *spec.observation_shape))
    truncated = jnp.zeros((LENGTH, LANES), bool).at[1, 0].set(True)
    first = jnp.zeros((LENGTH + 1, LANES), bool).at[0].set(True).at[2:4, 0].set(True)
    reward = jax.random.normal(reward_key, (LENGTH, LANES))
    return Chunk(
        observation=observation[:-1],
        first=first[:-1],
        acted=None,
        initial_core=None,
        reward=reward,
        terminated=jnp.zeros_like(truncated),
        truncated=truncated,
        valid=jnp.ones_like(truncated).at[2, 0].set(False),
        final_observation=jax.random.normal(final_key, (LENGTH, LANES, *spec.observation_shape)),
        episode=EpisodeStatistics(truncated, reward, jnp.ones((LENGTH, LANES), jnp.int32)),
        last_observation=observation[-1],
        last_first=first[-1],
    )


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def act_and_update(config, spec, chunk):
    """Act on the chunk's observations, cut it into roll-outs and take two optimiser steps."""
    agent = make(config, spec, total_updates=10)
    before = agent.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), LENGTH)

    def act(core, step):
        acted = agent.act(before, step[0], step[1], core, step[2])
        return acted.core, acted

    core = agent.initial_core(LANES)
    _, acted = jax.lax.scan(act, core, (keys, chunk.observation, chunk.first))
    batch = agent.process(before, chunk._replace(acted=acted, initial_core=core), 2)

    def update(state, key):
        state, metrics = agent.update(state, key, batch)
        return state, (state, metrics)

    _, (states, metrics) = jax.lax.scan(update, before, keys[:2])
    return batch, before, states, metrics


def grid():
    """Discrete and feed-forward is every preset's probe test; the rest of the grid is long only in the compiler."""
    for name in PRESETS:
        for environment in ("Pendulum-v1", "CartPole-v1"):
            for core_size in (0, 8):
                quick = environment == "Pendulum-v1" and (core_size == 0 or name in ("ppo_da", "geppo", "vmpo"))
                kind = "recurrent" if core_size else "feed_forward"
                marks = () if quick else pytest.mark.long
                yield pytest.param(name, environment, core_size, id=f"{name}-{environment}-{kind}", marks=marks)


@pytest.mark.parametrize(("name", "environment", "core_size"), grid())
def test_every_preset_updates(name, environment, core_size):
    spec = envs.make(environment, LANES).spec
    config = preset(name, sizes=(8,), core_size=core_size)
    batch, before, states, metrics = act_and_update(config, spec, random_chunk(spec))
    if config.normalise_observations:
        before, states = before.agent, states.agent
    assert batch.reward.shape == (LANES * LENGTH // 2, 2)
    assert batch.action.dtype == (jnp.int32 if environment == "CartPole-v1" else jnp.float32)
    assert {"loss", "gradient_norm", "staleness_max", "nonfinite"} <= set(metrics)
    for numbers in metrics.values():
        assert numbers.shape == (2,)
        assert np.all(np.isfinite(numbers))
    for leaf in jax.tree.leaves(states.params):
        assert np.all(np.isfinite(leaf))
    assert float(metrics["gradient_norm"][0]) > 0.0
    assert states.updates.tolist() == [1, 2]
    # the data are the published policy's own: nothing has diverged before the first step, something has after it
    assert abs(float(metrics["kl_to_behaviour"][0])) < 1e-6
    np.testing.assert_allclose(metrics["effective_sample_size"][0], 1.0, rtol=1e-5)
    assert float(metrics["kl_to_behaviour"][1]) > 0.0
    moved = jax.tree.map(lambda new, old: np.any(new[1] != old), states.params["network"], before.params["network"])
    still = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf}
    assert not still


def test_a_separate_critic_shares_nothing():
    """The gradient of the policy loss stays out of the critic's torso, and that of the value loss out of the actor's."""
    spec = envs.make("CartPole-v1", LANES).spec
    config = preset("ppo_gae", sizes=(8,), separate_critic=True, value_coefficient=0.0)
    batch, before, states, _ = act_and_update(config, spec, random_chunk(spec))

    def moved(states):
        return {
            part
            for part, old in before.params["network"].items()
            for new, leaf in zip(jax.tree.leaves(states.params["network"][part]), jax.tree.leaves(old), strict=True)
            if np.any(new[0] != leaf)
        }

    assert moved(states) == {"actor_torso", "policy_head"}
    # Adam would move by a whole step whatever the scale, so the policy's gradient is taken away exactly
    silent = random_chunk(spec)._replace(valid=jnp.zeros((LENGTH, LANES), bool))
    _, _, states, _ = act_and_update(config, spec, silent)
    assert moved(states) == set()
    _, _, states, _ = act_and_update(config.replace(value_coefficient=0.5), spec, random_chunk(spec))
    assert moved(states) == {"actor_torso", "policy_head", "critic_torso", "value_head"}

    # behaviour values, computed for a whole chunk at once, are those of the critic on each observation
    network = agent_module.build_network(config, spec)
    first = jnp.zeros(batch.reward.shape, bool)
    _, value, _ = network.apply({"params": before.params["network"]}, batch.observation, (), first)
    np.testing.assert_allclose(batch.behaviour_value, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "torso", "sizes"),
    [
        ((4,), "float32", "mlp", (64, 64)),
        ((3, 4), "float32", "mlp", (64, 64)),
        ((10, 10, 4), "bool", "minatar", (128,)),
        ((84, 84, 1), "uint8", "nature", (512,)),
    ],
)
def test_the_network_fits_the_observation(shape, dtype, torso, sizes):
    spec = envs.EnvironmentSpec("test", shape, dtype, envs.DiscreteSpace(3))
    network = agent_module.build_network(preset("ppo"), spec)
    assert (network.torso, tuple(network.sizes)) == (torso, sizes)
    if len(shape) == 3:
        assert agent_module.build_network(preset("ppo", torso="impala"), spec).torso == "impala"
    assert tuple(agent_module.build_network(preset("ppo", sizes=(7, 5)), spec).sizes) == (7, 5)


@pytest.mark.parametrize(
    ("shape", "torso", "message"),
    [
        ((4, 84, 84), "auto", r"look like \(channels, height, width\).*channels last, to \(84, 84, 4\)"),
        ((2, 8, 8), "auto", r"look like \(channels, height, width\).*channels last, to \(8, 8, 2\)"),
        ((3, 64, 96), "impala", r"look like \(channels, height, width\).*channels last, to \(64, 96, 3\)"),
        ((10, 10, 4), "nature", "too small for torso='nature', which needs a height and a width of at least 36"),
        ((4,), "minatar", r"reads images of shape \(height, width, channels\), and observations have shape \(4,\)"),
    ],
)
def test_images_that_a_torso_would_misread_are_refused(shape, torso, message):
    spec = envs.EnvironmentSpec("test", shape, "float32", envs.DiscreteSpace(3))
    with pytest.raises(ValueError, match=message):
        make(preset("ppo", torso=torso), spec, total_updates=1)
    assert agent_module.build_network(preset("ppo", torso="mlp"), spec).torso == "mlp"
