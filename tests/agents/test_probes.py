"""Every preset learns the probes' known answers, and agents that are broken on purpose do not.

One agent learns all feed-forward probes at once: their lanes stand side by side, and a one-hot code in the observation says
which probe a lane belongs to. That is one program a preset instead of six.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import envs
from jaxrl_off.agents import make, preset
from jaxrl_off.agents.divergence_augmented import build_network
from jaxrl_off.agents.divergence_augmented_config import PRESETS
from jaxrl_off.envs.base import Environment
from jaxrl_off.training import LoopSettings, make_train

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # less time in the compiler
GAMMA = 0.5
LANES = 4
PROBES = {
    "constant_value": {},
    "observation_value": {},
    "discount": {},
    "truncation": {"steps": 2},
    "action": {},
    "observation_action": {},
}
# probe, its observation, V, best action or None
ANSWERS = [
    ("constant_value", 0.0, 1.0, None),
    ("observation_value", -1.0, -1.0, None),
    ("observation_value", 1.0, 1.0, None),
    ("discount", 0.0, GAMMA, None),
    ("discount", 1.0, 1.0, None),
    ("truncation", 0.0, 1.0 / (1.0 - GAMMA), None),
    ("action", 0.0, 1.0, 1),
    ("observation_action", -1.0, 1.0, 0),
    ("observation_action", 1.0, 1.0, 1),
]


def all_probes() -> Environment:
    """The probes side by side."""
    parts = [envs.make(f"probe/{name}", LANES, **parameters) for name, parameters in PROBES.items()]

    def mark(timesteps):
        def coded(index, observation):
            return jnp.concatenate([observation, jnp.tile(jax.nn.one_hot(index, len(parts)), (LANES, 1))], axis=1)

        timesteps = [
            t._replace(observation=coded(i, t.observation), final_observation=coded(i, t.final_observation))
            for i, t in enumerate(timesteps)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *timesteps)

    def reset(key):
        states, timesteps = zip(
            *(part.reset(k) for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True)), strict=True
        )
        return states, mark(timesteps)

    def step(key, states, action):
        keys = jax.random.split(key, len(parts))
        actions = jnp.split(action, len(parts))
        answers = [part.step(*inputs) for part, *inputs in zip(parts, keys, states, actions, strict=True)]
        states, timesteps = zip(*answers, strict=True)
        return states, mark(timesteps)

    spec = parts[0].spec._replace(name="test/probes", observation_shape=(1 + len(parts),))
    return Environment(spec, LANES * len(parts), reset, step)


def broken(batch, fault):
    """What an update would see under a fault; 0 is none."""
    swap = [
        batch,
        batch._replace(truncated=jnp.zeros_like(batch.truncated), terminated=batch.terminated | batch.truncated),
        batch._replace(observation=jnp.roll(batch.observation, 1, axis=1)),
        batch._replace(action=1 - batch.action),
        batch._replace(terminated=jnp.zeros_like(batch.terminated)),
        batch._replace(reward=jnp.zeros_like(batch.reward)),
        batch._replace(behaviour_log_prob=batch.behaviour_log_prob + 30.0),
    ]
    return jax.tree.map(lambda *leaves: jax.lax.select_n(fault, *leaves), *swap)


def make_broken(config_and_fault, spec, *, total_updates):
    config, fault = config_and_fault
    agent = make(config, spec, total_updates=total_updates)
    return agent._replace(update=lambda state, key, batch: agent.update(state, key, broken(batch, fault)))


SETTINGS = LoopSettings(
    total_steps=24 * 8 * 120,
    collect_length=8,
    rollout_length=4,
    batch_size=96,
    reuse=4.0,
    replay_capacity=24 * 8 * 2,
    log_points=1,
)


def configure(name, **overrides):
    return preset(name, sizes=(32,), gamma=GAMMA, learning_rate=0.01, max_grad_norm=10.0, **overrides)


@functools.cache
def trainer(make_agent, replay=True):
    settings = SETTINGS if replay else dataclasses.replace(SETTINGS, replay_capacity=0)
    return jax.jit(make_train(make_agent, all_probes(), settings), compiler_options=QUICK)


def failures(config, params):
    """Probes whose value is off by more than 0.15 or whose best action has a probability below 0.9."""
    network = build_network(config, all_probes().spec)
    names = list(PROBES)
    observation = np.array([[x, *np.eye(len(names))[names.index(name)]] for name, x, _, _ in ANSWERS])
    distribution, value, _ = network.apply(
        {"params": params["network"]}, jnp.asarray(observation)[None], (), jnp.zeros((1, len(ANSWERS)), bool)
    )
    probability = np.exp(distribution.log_probabilities[0])
    wrong = set()
    for i, (name, _, answer, action) in enumerate(ANSWERS):
        if not abs(float(value[0, i]) - answer) < 0.15 + 0.1 * (action is not None):
            wrong.add(f"{name}: V={float(value[0, i]):.2f}, not {answer}")
        if action is not None and not probability[i, action] > 0.9:
            wrong.add(f"{name}: probability {probability[i, action]:.2f} of action {action}")
    return wrong


# ppo_continuous is ppo_gae with normalised rewards, whose values have another unit: test_normalisation, test_learning
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("ppo_da", "ppo_continuous")])
def test_every_preset_finds_the_answers(name):
    """With a replay of two iterations, but for the members that are made for fresh data."""
    config = configure(name)
    replay = config.advantage != "gae" and name not in ("geppo", "vmpo")
    result = trainer(make, replay)(config, jax.random.key(0))
    assert float(result.metrics["nonfinite"].max()) == 0.0
    assert failures(config, result.state.agent.params) == set()


def test_a_broken_agent_does_not_pass():
    """The faults are switched by a traced number, so that the sound agent and the broken ones are one program."""
    expected = [
        set(),
        {"truncation"},
        {"observation_value", "observation_action"},
        {"action", "observation_action"},
        {"constant_value", "discount", "action", "observation_action"},
        {"constant_value", "observation_value", "discount", "truncation", "action", "observation_action"},
        {"action", "observation_action"},
    ]
    config = configure("ppo_da")
    for fault, probes in enumerate(expected):
        result = trainer(make_broken)((config, jnp.asarray(fault)), jax.random.key(0))
        wrong = {line.partition(":")[0] for line in failures(config, result.state.agent.params)}
        assert probes <= wrong if fault else not wrong, (fault, wrong)
    idle = config.replace(learning_rate=0.0)
    result = trainer(make_broken)((idle, jnp.asarray(0)), jax.random.key(0))
    wrong = {line.partition(":")[0] for line in failures(config, result.state.agent.params)}
    assert wrong == set(PROBES)
    wrong_gamma = config.replace(gamma=0.9)
    result = trainer(make_broken)((wrong_gamma, jnp.asarray(0)), jax.random.key(0))
    wrong = {line.partition(":")[0] for line in failures(config, result.state.agent.params)}
    assert wrong == {"discount", "truncation"}


def test_recurrent_memory():
    """The cue of the first step answered at the third; with the state reset at every step nothing can be known."""

    def forgetful(config_and_fault, spec, *, total_updates):
        config, fault = config_and_fault
        agent = make(config, spec, total_updates=total_updates)

        def act(state, key, observation, core, first, greedy=False):
            return agent.act(state, key, observation, core, first | fault, greedy)

        def process(state, chunk, rollout_length):
            return agent.process(state, chunk._replace(first=chunk.first | fault), rollout_length)

        return agent._replace(act=act, process=process)

    environment = envs.make("probe/memory", 16, steps=3)
    settings = LoopSettings(
        total_steps=16 * 8 * 80,
        collect_length=8,
        rollout_length=4,
        batch_size=64,
        reuse=4.0,
        replay_capacity=16 * 8 * 2,
        log_points=8,
    )
    train = jax.jit(make_train(forgetful, environment, settings), compiler_options=QUICK)
    config = preset("ppo_da", sizes=(8,), core_size=8, learning_rate=0.02, gamma=0.9, max_grad_norm=10.0)
    remembers = train((config, jnp.asarray(False)), jax.random.key(0)).metrics["episode_return"]
    forgets = train((config, jnp.asarray(True)), jax.random.key(0)).metrics["episode_return"]
    assert float(remembers[-1]) > 0.9
    assert np.abs(forgets).max() < 0.3
