"""The same `train` on a mesh of eight (simulated) devices gives what one device gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.training import LoopSettings, make_loop

PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh
from jaxrl_off import agents, envs
from jaxrl_off.training import LoopSettings, make_train

env = envs.make("CartPole-v1", 16)
mesh = Mesh(np.array(jax.devices()), ("data",))
settings = LoopSettings(**json.loads(sys.argv[1]))
config = agents.preset("ppo_da", sizes=(8,))
out = {"devices": len(jax.devices())}
for name, where in (("one", None), ("mesh", mesh)):
    program = jax.jit(make_train(agents.make, env, settings, where)).lower(config, jax.random.key(0)).compile()
    result = program(config, jax.random.key(0))
    out[name] = {
        "params": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(result.state.agent.params)],
        "loss": np.asarray(result.metrics["loss"]).tolist(),
        "return": np.asarray(result.metrics["episode_return"]).tolist(),
        "all_reduce": program.as_text().count("all-reduce"),
    }
print(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("replay_capacity", [0, pytest.param(1024, marks=pytest.mark.long)])  # LOOK has a replay, too
def test_eight_devices_give_the_result_of_one(replay_capacity):
    settings = dict(
        total_steps=16 * 16 * 4,
        collect_length=16,
        rollout_length=8 if replay_capacity else 1,
        batch_size=128,
        reuse=2,
        replay_capacity=replay_capacity,
        log_points=2,
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["devices"] == 8
    # The gradient is really summed over devices, and only there.
    assert out["one"]["all_reduce"] == 0 < out["mesh"]["all_reduce"]
    for one, mesh in zip(out["one"]["params"], out["mesh"]["params"], strict=True):
        np.testing.assert_allclose(one, mesh, atol=1e-6)
    np.testing.assert_allclose(out["one"]["loss"], out["mesh"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(out["one"]["return"], out["mesh"]["return"], rtol=1e-6)


LOOK = """
import json
import jax, numpy as np
from jax.sharding import Mesh
from jaxrl_off import agents, envs
from jaxrl_off.training import LoopSettings, make_train

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
settings = LoopSettings(
    total_steps=768, collect_length=8, rollout_length=4, batch_size=64, reuse=2.0, replay_capacity=256, burn_in=128,
    publish_interval=3, log_points=3,
)
config = agents.preset("mdpo", sizes=(16,), core_size=16)
env = envs.make("CartPole-v1", 16)
mesh = Mesh(np.array(jax.devices()), ("data",))
seen = {}

def look(what, leaf):
    def note(sharding):
        seen[what] = [sharding.num_devices, sharding.shard_shape(leaf.shape)[0], leaf.shape[0]]
    jax.debug.inspect_array_sharding(leaf, callback=note)

def watched(config, spec, *, total_updates):
    agent = agents.make(config, spec, total_updates=total_updates)
    def update(state, key, batch):
        look("batch", batch.observation)
        look("params", state.params["network"]["policy_head"]["kernel"])
        return agent.update(state, key, batch)
    return agent._replace(update=update)

def numbers(result):
    parts = (result.state.agent.params, result.state.agent.actor_params, result.metrics)
    return [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(parts)]

def places(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return [[leaf.sharding.num_devices, leaf.sharding.is_fully_replicated] for leaf in leaves]

one = jax.jit(make_train(agents.make, env, settings), compiler_options=QUICK)(config, jax.random.key(0))
many = jax.jit(make_train(watched, env, settings, mesh), compiler_options=QUICK)(config, jax.random.key(0))
print(json.dumps({
    "one": numbers(one), "many": numbers(many), "seen": seen, "learner": places(many.state.agent.params),
    "lanes": places((many.state.environment, many.state.observation, many.state.core)),
    "replay": places(many.state.replay.experience),
}))
"""


@pytest.mark.slow
def test_lanes_batches_and_replay_are_split_and_the_learner_is_not():
    """A recurrent member with a replay: every device holds an eighth of all but the parameters."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["seen"] == {"batch": [8, 2, 16], "params": [8, 16, 16]}
    for what, replicated in (("lanes", False), ("replay", False), ("learner", True)):
        assert out[what], what
        assert all(place == [8, replicated] for place in out[what]), what
    for one, many in zip(out["one"], out["many"], strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)


def test_lanes_that_cannot_be_split_are_refused():
    class EightDevices:
        shape = {"data": 8}

    env = envs.make("CartPole-v1", 12)
    agent = agents.make(agents.preset("ppo"), env.spec, total_updates=1)
    settings = LoopSettings(total_steps=1536, collect_length=128, batch_size=128, reuse=1)
    with pytest.raises(ValueError, match="num_envs=12 .* multiples of the 8 devices"):
        make_loop(agent, env, settings, EightDevices())
