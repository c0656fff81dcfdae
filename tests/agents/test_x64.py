"""Under `JAX_ENABLE_X64=1` members of the family keep their types from one update to the next, and learn in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents.divergence_augmented_config import PRESETS
from jaxrl_off.training import LoopSettings, make_loop

SETTINGS = LoopSettings(total_steps=64, collect_length=8, rollout_length=4, batch_size=8, reuse=1.0, log_points=1)


@pytest.mark.parametrize("name", [*PRESETS, "recurrent"])
def test_an_iteration_keeps_its_types(name):
    """Tracing is enough: a loop whose carry changes its type is refused while it is traced."""
    with jax.enable_x64(True):
        env = envs.make("Pendulum-v1", 2)
        config = agents.preset("ppo_da", core_size=4) if name == "recurrent" else agents.preset(name)
        agent = agents.make(config.replace(sizes=(4,)), env.spec, total_updates=10)
        loop = make_loop(agent, env, SETTINGS)
        before = jax.eval_shape(loop.init, jax.random.key(0))
        after, _ = jax.eval_shape(loop.iterate, before)
    for state in (before, after):
        double = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.agent)
            if leaf.dtype == jnp.float64
        ]
        assert double == []
    assert jax.tree.map(lambda leaf: leaf.dtype, before.agent) == jax.tree.map(lambda leaf: leaf.dtype, after.agent)
