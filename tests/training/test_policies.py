"""Policies in files: what is read back acts as the agent did, in JAX and in NumPy, without the environment."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents.normalisation import NormalisedState, add_samples
from jaxrl_off.training import load_policy, policies, save_policy

DISCRETE = envs.EnvironmentSpec("toy", (2, 2), "float32", envs.DiscreteSpace(3))
BOX = envs.EnvironmentSpec("arm", (3,), "float32", envs.ContinuousSpace((2,), (-1.0, 0.0), (3.0, 10.0)))
CASES = {
    "categorical": ("ppo", dict(sizes=(5, 4), activation="gelu"), DISCRETE),
    "normal": ("ppo_gae", dict(sizes=(4,), activation="swish", normalise_observations=True), BOX),
    "tanh_normal": ("sac", dict(policy_sizes=(4, 3), critic_sizes=(4,)), BOX),
    "tanh_mean_normal": ("sac", dict(policy_sizes=(4,), critic_sizes=(4,), policy="normal"), BOX),
    "npg": ("npg", dict(policy_sizes=(4,)), BOX),
}


def state_of(name):
    """An agent's state whose parameters are far from their first values, with moments of observations where there are any."""
    preset, fields, spec = CASES[name]
    config = agents.preset(preset, **fields)
    state = agents.make(config, spec, total_updates=1).init(jax.random.key(0))

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)

    if isinstance(state, NormalisedState):
        samples = 2.0 + 3.0 * jax.random.normal(jax.random.key(3), (50, *spec.observation_shape))
        moments = add_samples(state.observation, samples, jnp.ones(50, bool))
        return config, spec, state._replace(agent=jax.tree.map(moved, state.agent), observation=moments)
    if name == "npg":
        scaling = jax.tree.map(lambda leaf: leaf + 0.5, state.scaling)
        return config, spec, state._replace(policy=jax.tree.map(moved, state.policy), scaling=scaling)
    return config, spec, jax.tree.map(moved, state)


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_back_acts_as_the_agent(name, tmp_path):
    config, spec, state = state_of(name)
    policy = load_policy(save_policy(tmp_path / "new" / "policy.npz", config, spec, state))
    assert policy.spec == spec
    observation = 2.0 * jax.random.normal(jax.random.key(1), (7, *spec.observation_shape))
    expected = agents.make_policy(config, spec)(state, observation)
    found = policy.distribution(observation)
    assert type(found) is type(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    key = jax.random.key(2)
    agent = agents.make(config, spec, total_updates=1)
    core, first = agent.initial_core(7), jnp.zeros(7, bool)
    greedy = agent.act(state, key, observation, core, first, greedy=True).action
    np.testing.assert_allclose(policy(observation, greedy=True), greedy, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(policy.act_in_numpy(np.asarray(observation)), greedy, rtol=1e-4, atol=1e-4)
    one = policy(observation[0], key)  # no batch axis
    assert one.shape == greedy.shape[1:]
    sampled = jax.jit(policy)(observation, key)
    np.testing.assert_allclose(sampled, policy(observation, key), rtol=1e-5, atol=1e-5)
    many = np.broadcast_to(np.asarray(observation[:1]), (20_000, *spec.observation_shape))
    ours = policy.act_in_numpy(many, np.random.default_rng(0)).astype(float)
    theirs = np.asarray(policy(jnp.asarray(many), key), float)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=6 * theirs.std() / np.sqrt(20_000))


@pytest.fixture
def written(tmp_path):
    config, spec, state = state_of("tanh_normal")
    return save_policy(tmp_path / "policy.npz", config, spec, state)


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header"))) | changes
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


def test_the_header_is_strict_json_and_names_no_class(written):
    with np.load(written, allow_pickle=False) as file:
        header = json.loads(str(file["header"]), parse_constant=pytest.fail)
        assert set(file.files) == {"header", "w0", "b0", "w1", "b1", "head_w", "head_b", "log_std_w", "log_std_b"}
    assert (header["format"], header["version"], header["distribution"]) == ("jaxrl_off policy", 1, "tanh_normal")
    assert header["actions"] == {"shape": [2], "low": [-1.0, 0.0], "high": [3.0, 10.0]}


def test_a_newer_format_is_refused_and_a_later_field_is_not(written):
    rewrite(written, note="written later")
    load_policy(written)
    rewrite(written, version=2)
    with pytest.raises(ValueError, match=r"version 2 of the format, .* reads up to 1; update jaxrl_off"):
        load_policy(written)
    rewrite(written, version=1, hidden=3)
    with pytest.raises(ValueError, match="is damaged: KeyError: 'w2'"):
        load_policy(written)


def test_mistakes(tmp_path, written):
    config, spec, state = state_of("tanh_normal")
    with pytest.raises(FileExistsError, match="give another path, or overwrite=True"):
        save_policy(written, config, spec, state)
    save_policy(written, config, spec, state, overwrite=True)
    policy = load_policy(written)
    with pytest.raises(ValueError, match=r"shape \(5, 4\); \[\.\.\., 3\] is allowed"):
        policy(jnp.zeros((5, 4)), greedy=True)
    with pytest.raises(ValueError, match="need a key"):
        policy(jnp.zeros((5, 3)))
    np.savez(tmp_path / "other.npz", w0=np.zeros(2))
    with pytest.raises(ValueError, match="is not a policy that save_policy wrote"):
        load_policy(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing.npz")
    bad = state._replace(policy=jax.tree.map(lambda leaf: leaf * jnp.nan, state.policy))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        save_policy(tmp_path / "bad.npz", config, spec, bad)
    images = envs.EnvironmentSpec("images", (10, 10, 4), "bool", envs.DiscreteSpace(3))
    config = agents.preset("ppo", sizes=(4,))
    state = agents.make(config, images, total_updates=1).init(jax.random.key(0))
    with pytest.raises(ValueError, match="only policies of dense layers.*torso='minatar'.*keep the directory"):
        save_policy(tmp_path / "bad.npz", config, images, state)
    config = agents.preset("ppo", sizes=(4,))
    state = agents.make(config, BOX, total_updates=1).init(jax.random.key(0))
    own = state._replace(actor_params={"network": {"mine": state.actor_params["network"]}})
    with pytest.raises(ValueError, match="does not hold the network that its config describes.*of your own"):
        save_policy(tmp_path / "bad.npz", config, BOX, own)
    assert not (tmp_path / "bad.npz").exists()
    assert policies.VERSION == 1
