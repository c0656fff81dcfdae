"""Short learning runs at a level that a broken agent does not reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.training import LoopSettings, make_train, regime, stack_configs, sweep

pytestmark = [pytest.mark.slow, pytest.mark.optimised]


@pytest.mark.parametrize(
    ("preset", "name", "steps", "bar", "start"),
    [
        ("ppo_gae", "CartPole-v1", 200_000, 450.0, 120.0),
        ("ppo_gae", "Acrobot-v1", 200_000, -100.0, -200.0),
        ("ppo_continuous", "Pendulum-v1", 300_000, -252.0, -900.0),
    ],
)
def test_presets_learn_as_they_are_shipped(preset, name, steps, bar, start):
    """No setting but the number of steps; the bar of Pendulum is the best that rejax reached with its normalisation."""
    chosen = regime("ppo", total_steps=steps, log_points=20)
    train = make_train(agents.make, envs.make(name, chosen.num_envs), chosen.settings)
    metrics = jax.jit(lambda key: train(agents.preset(preset), key).metrics)(jax.random.key(0))
    assert float(jnp.mean(metrics["episode_return"][-2:])) > bar
    assert float(metrics["episode_return"][0]) < start  # it had to be learned


def test_divergence_augmentation_balances_the_pole():
    """V-trace and the divergence over roll-outs of 16 fresh steps."""
    env = envs.make("CartPole-v1", 8)
    settings = LoopSettings(
        total_steps=200_000, collect_length=64, rollout_length=16, batch_size=128, reuse=4.0, log_points=20
    )
    train = make_train(agents.make, env, settings)
    config = agents.preset("ppo_da")
    metrics = jax.jit(lambda c, k: train(c, k).metrics)(config, jax.random.key(0))
    assert float(jnp.mean(metrics["episode_return"][-2:])) > 400.0
    assert float(metrics["episode_return"][0]) < 120.0


@pytest.mark.long
def test_divergence_holds_the_policy_near_its_data_while_it_learns():
    """Scarce data on MinAtar: all learn Breakout (a random policy gets about 0.5), and 1/eta lowers the KL."""
    env = envs.make("Breakout-MinAtar", 16)
    settings = LoopSettings(
        total_steps=41_000,
        collect_length=32,
        rollout_length=32,
        batch_size=512,
        reuse=8,
        replay_capacity=16_384,
        burn_in=1024,
        log_points=8,
    )
    train = make_train(agents.make, env, settings)
    last = {}
    for name in ("ppo_da", "dapo"):
        # Without the divergence these are PPO and plain importance sampling.
        configs = [agents.preset(name, divergence_coefficient=c, learning_rate=3e-3) for c in (0.0, 0.5)]
        keys = jnp.stack([jax.random.key(1)] * 2)
        metrics = jax.jit(lambda c, k: sweep(train, c, k).metrics)(stack_configs(configs), keys)
        last[name] = {
            k: np.asarray(metrics[k][:, -3:].mean(axis=1)) for k in ("episode_return", "half_squared_log_ratio")
        }
        assert np.all(np.asarray(metrics["nonfinite"]) == 0)
    for name in last:
        assert np.all(last[name]["episode_return"] > 1.5), last
    without, with_it = last["ppo_da"]["half_squared_log_ratio"]
    assert with_it < without, last
    without, with_it = last["dapo"]["half_squared_log_ratio"]
    assert with_it < 0.5 * without, last
