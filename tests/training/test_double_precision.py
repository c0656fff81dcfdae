"""The SAC and NPG families train under JAX's 64-bit mode, and its parameters stay in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents import ActOutput
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.envs.base import from_canonical
from jaxrl_off.training import LoopSettings, make_train
from jaxrl_off.types import Transition

ON_POLICY = LoopSettings(total_steps=64, collect_length=8, rollout_length=4, batch_size=16, reuse=1.0, log_points=2)
OFF_POLICY = LoopSettings(
    total_steps=64, collect_length=8, rollout_length=1, batch_size=8, reuse=1.0, replay_capacity=64, burn_in=16, log_points=2
)  # fmt: skip


def reference(params, observation):
    mean = 0.2 * jnp.sum(observation, axis=-1, keepdims=True)
    return DiagonalNormal(mean, jnp.full_like(mean, params))


def demonstrations():
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    return Transition(rows, rows[:, :1], rows[:, 0], np.zeros(20, bool), rows, (), ())


def parts_of(config):
    parts = dict(reference=reference, reference_params=np.float32(-1.0)) if agents.wants_reference(config) else {}
    return parts | (dict(demonstrations=demonstrations()) if agents.wants_demonstrations(config) else {})


def small(name):
    config = agents.preset(name)
    if agents.family_of(config) == "dapg":
        return config.replace(policy_sizes=(4,), value_sizes=(4,))
    steps = {field: min(getattr(config, field), 2) for field in ("pretrain_updates", "offline_updates")}
    return config.replace(policy_sizes=(4,), critic_sizes=(4,), **steps)


@pytest.mark.parametrize("name", ["npg", "dapg", "sac", "rlpd", "nppac", "abm"])  # others: agents/test_x64
def test_programs_keep_their_types(name):
    """Tracing is enough: what a loop carries must have the same types before and after."""
    config = small(name)
    off_policy = agents.family_of(config) == "kl_regularised"
    with jax.enable_x64(True):
        environment = envs.make("Pendulum-v1", 4)

        def make(config, spec, *, total_updates):
            return agents.make(config, spec, total_updates=total_updates, **parts_of(config))

        train = make_train(make, environment, OFF_POLICY if off_policy else ON_POLICY)
        result = jax.eval_shape(train, config, jax.random.key(0))
        state = jax.eval_shape(make(config, environment.spec, total_updates=8).init, jax.random.key(0))
    learners = (result.state.agent, state)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(learners) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert dtypes == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["sac", "npg"])
def test_actions_and_their_probabilities_do_not_depend_on_the_mode(name):
    config, spec = small(name), envs.make("Pendulum-v1", 4).spec
    observation = jnp.linspace(-1.0, 1.0, 12, dtype=jnp.float32).reshape(4, 3)
    agent = agents.make(config, spec, total_updates=8)
    state = jax.jit(agent.init)(jax.random.key(0))
    greedy = []
    for double in (False, True):
        with jax.enable_x64(double):
            acted: ActOutput = agent.act(state, jax.random.key(1), observation, (), None, greedy=True)
            greedy.append((acted.action, acted.log_prob))
    np.testing.assert_allclose(greedy[0][0], greedy[1][0], rtol=1e-5)
    np.testing.assert_allclose(greedy[0][1], greedy[1][1], rtol=1e-5)
    mode = agent.policy(state, observation).mode()
    np.testing.assert_allclose(greedy[0][0], from_canonical(spec.action_space, mode), rtol=1e-6)
