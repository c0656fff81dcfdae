"""The loop against a plain NumPy one: what is collected, cut, stored, sampled, published and counted.

Two tools. `clockwork` is an environment whose observations count decisions, so that every stored sample says where it comes
from. `bookkeeper` is an agent without a network that writes down what the loop hands it.
"""

import dataclasses
import doctest
import importlib
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.agents import Agent, preset
from jaxrl_off.agents.base import ActOutput
from jaxrl_off.agents.divergence_augmented import build_network
from jaxrl_off.data.replay import minibatch_indices
from jaxrl_off.envs.base import DiscreteSpace, Environment, EnvironmentSpec, fresh_timestep
from jaxrl_off.training import LoopSettings, make_loop, make_train, plan, stack_configs, sweep
from jaxrl_off.training.loop import without_replay
from jaxrl_off.types import EpisodeStatistics, Rollout, Timestep

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # less time in the compiler


# Plan -----------------------------------------------------------------------------------------------------------------

SIZES = LoopSettings(total_steps=10_000, collect_length=32, rollout_length=8, batch_size=64, reuse=2.0, log_points=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(total_steps=0), "total_steps must be at least 1, got 0"),
        (dict(collect_length=0), "collect_length must be at least 1"),
        (dict(rollout_length=-1), "rollout_length must be at least 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(publish_interval=0), "publish_interval must be at least 1"),
        (dict(log_points=0), "log_points must be at least 1"),
        (dict(burn_in=-1), "burn_in must be at least 0"),
        (dict(collect_length=30), "collect_length=30 must be a multiple of rollout_length=8"),
        (dict(batch_size=60), "batch_size=60 must be a multiple of rollout_length=8"),
        (dict(reuse=1.3, replay_capacity=1024), r"makes 2.600 updates.*nearest reuse that fits is 1.5"),
        (dict(reuse=0.1, replay_capacity=1024), r"makes 0.200 updates.*nearest reuse that fits is 0.5"),
        (dict(reuse=0.0, replay_capacity=1024), "reuse must be a number above 0, got 0.0"),
        (dict(total_steps=1000.5), "total_steps must be a whole number, got 1000.5"),
        (dict(batch_size="64"), "batch_size must be a whole number, got '64'"),
        (dict(reuse=1.5), "without a replay.* whole number of epochs"),
        (dict(batch_size=48, reuse=3.0), "must divide num_envs x collect_length"),
        (dict(burn_in=64), "burn_in needs a replay"),
        (dict(replay_capacity=100), "replay_capacity=100 must be a multiple of rollout_length=8"),
        (dict(replay_capacity=64), r"one iteration \(128 samples\)"),
        (dict(replay_capacity=128, batch_size=256), r"one batch \(256\)"),
        (dict(replay_capacity=-128), "replay_capacity=-128"),
        (dict(total_steps=127), "total_steps=127 is less than one iteration of 128 samples after 0 of burn-in"),
        (dict(total_steps=255, burn_in=100, replay_capacity=256), "after 1 of burn-in"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(dataclasses.replace(SIZES, **changes), 4)


def test_lanes_are_needed():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        plan(SIZES, 0)


def test_the_suggested_reuse_fits():
    for reuse in (1.5, 0.5):
        plan(dataclasses.replace(SIZES, reuse=reuse, replay_capacity=1024), 4)


def test_counts():
    counts = plan(dataclasses.replace(SIZES, replay_capacity=1024, burn_in=300), 4)
    assert counts.samples_per_iteration == 128
    assert counts.rollouts_per_iteration == 16
    assert counts.rollouts_per_batch == 8
    assert counts.updates_per_iteration == 4  # 2 x 128 / 64
    assert counts.burn_in_iterations == 3  # 300 samples need three iterations
    assert (counts.log_points, counts.iterations_per_log) == (10, 7)
    assert counts.iterations == 70  # of 10000 // 128 - 3 = 75
    assert counts.total_updates == 280


@pytest.mark.parametrize("iterations", [1, 2, 49, 50, 51, 97, 99, 100, 149, 390, 974, 1001])
@pytest.mark.parametrize("log_points", [1, 20, 50])
def test_hardly_a_sample_is_lost_to_logging(iterations, log_points):
    """97 iterations in 50 rows must not become 50 iterations."""
    counts = plan(dataclasses.replace(SIZES, total_steps=iterations * 128 + 5, log_points=log_points), 4)
    assert counts.iterations == counts.log_points * counts.iterations_per_log
    assert iterations - counts.iterations < counts.iterations_per_log
    assert min(log_points, iterations) <= counts.log_points <= 2 * log_points


# Tools ----------------------------------------------------------------------------------------------------------------


def reward_at(clock, lane, action):
    return np.float32(0.1) * ((clock * 7 + lane * 3) % 11) - action


def ends_at(clock, lane):
    """Schedule of the clockwork: terminated, truncated, valid. A fake step follows a truncation in lane 0."""
    terminated = (clock + lane) % 7 == 3
    truncated = ((clock + 2 * lane) % 5 == 1) & ~terminated
    fake = (clock > 0) & (lane == 0) & ((clock - 1) % 5 == 1) & ((clock - 1) % 7 != 3)
    return terminated & ~fake, truncated & ~fake, ~fake


def clockwork(num_envs=3, nan_at=None) -> Environment:
    """Observation (clock / 10, lane), final observation (clock / 10 + 0.05, lane); ends as `ends_at` says."""
    lanes = jnp.arange(num_envs)

    def observe(clock, shift=0.0):
        return jnp.stack([clock / 10.0 + shift, lanes.astype(jnp.float32)], axis=1)

    def reset(key):
        clock = jnp.zeros(num_envs, jnp.int32)
        return clock, fresh_timestep(observe(clock), num_envs)

    def step(key, clock, action):
        terminated, truncated, valid = ends_at(clock, lanes)
        reward = reward_at(clock, lanes, action).astype(jnp.float32)
        if nan_at is not None:
            reward = jnp.where(clock == nan_at, jnp.nan, reward)
        done = terminated | truncated
        after = clock + 1
        timestep = Timestep(
            observation=observe(after),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=observe(after, 0.05),
            first=done | ~valid,
            valid=valid,
            episode=EpisodeStatistics(done, clock.astype(jnp.float32), after),
        )
        return after, timestep

    spec = EnvironmentSpec("test/clockwork", (2,), "float32", DiscreteSpace(2))
    return Environment(spec, num_envs, reset, step)


class Book(NamedTuple):
    params: Any
    actor_params: Any
    updates: Any
    published_at: Any
    seen: Any


def bookkeeper(config, spec, *, total_updates, horizon=200, lanes=3) -> Agent:
    """Parameters are the number of updates; `seen[clock, lane]` counts how often a sample came up in an update."""
    zero = jnp.zeros((), jnp.int32)

    def init(key):
        return Book(zero, zero, zero, zero, jnp.zeros((horizon, lanes), jnp.int32))

    def act(state, key, observation, core, first, greedy=False):
        n = observation.shape[0]
        action = jax.random.randint(key, (n,), 0, 2)
        return ActOutput(action, jnp.zeros(n) + state.actor_params, jnp.zeros(n), (), ())

    def process(state, chunk, rollout_length):
        length, n = chunk.reward.shape

        def cut(leaf):
            leaf = leaf.reshape(length // rollout_length, rollout_length, n, *leaf.shape[2:])
            return jnp.moveaxis(leaf, 2, 1).reshape(-1, rollout_length, *leaf.shape[3:])

        zeros = jnp.zeros_like(chunk.reward)
        steps = Rollout(
            chunk.observation, chunk.acted.action, chunk.reward, chunk.terminated, chunk.truncated, chunk.valid,
            chunk.first, chunk.acted.log_prob, zeros, zeros, (), zeros, zeros, zeros, (),
            jnp.zeros((length, n), jnp.int32) + state.published_at,
        )  # fmt: skip
        rollouts = jax.tree.map(cut, steps)
        return rollouts._replace(tail_value=rollouts.tail_value[:, -1], policy_version=rollouts.policy_version[:, 0])

    def update(state, key, batch):
        clock = jnp.round(batch.observation[..., 0] * 10).astype(jnp.int32)
        seen = state.seen.at[clock, batch.observation[..., 1].astype(jnp.int32)].add(1)
        age = (state.updates - batch.policy_version).astype(jnp.float32)
        metrics = {
            "staleness_mean": jnp.mean(age),
            "staleness_max": jnp.max(age),
            "nonfinite": jnp.zeros(()),
            "version": jnp.mean(batch.behaviour_log_prob),
        }
        return state._replace(params=state.params + 1, updates=state.updates + 1, seen=seen), metrics

    def publish(state):
        return state._replace(actor_params=state.params, published_at=state.updates)

    return Agent(init, lambda n: (), act, process, update, publish)


def run(settings, iterations, make_agent=bookkeeper, config=None, environment=None, seed=0):
    """States and metrics after 0, 1, 2, ... iterations."""
    environment = environment or clockwork()
    counts = plan(settings, environment.num_envs)
    agent = make_agent(config, environment.spec, total_updates=counts.total_updates)
    loop = make_loop(agent, environment, settings)
    state = jax.jit(loop.init, compiler_options=QUICK)(jax.random.key(seed))
    iterate = jax.jit(loop.iterate, compiler_options=QUICK)
    states, rows = [state], []
    for _ in range(iterations):
        state, metrics = iterate(state)
        states.append(state)
        rows.append(jax.tree.map(float, metrics))
    return states, rows


def stored(state):
    """Roll-outs in the replay, oldest or not, without the empty places."""
    experience = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), state.replay.experience)
    if bool(state.replay.is_full):
        return experience
    filled = int(state.replay.current_index)
    return jax.tree.map(lambda leaf: leaf[:filled], experience)


def origin(rollouts):
    """(clock, lane) of the first step of each."""
    return [(round(float(o[0, 0]) * 10), int(o[0, 1])) for o in rollouts.observation]


# Collecting and cutting -----------------------------------------------------------------------------------------------


def follow(config, params, length, lanes):
    """Step by step what a run of `length` decisions with fixed parameters sees, and what its network says."""
    spec = clockwork(lanes).spec
    network = build_network(config, spec)

    @jax.jit
    def evaluate(observation, core, first):
        distribution, value, cores = network.apply({"params": params}, observation[None], core, first[None])
        return jax.tree.map(lambda leaf: leaf[0], (distribution.log_probabilities, value, cores))

    core, first = network.initial_core(lanes), np.ones(lanes, bool)
    lane = np.arange(lanes)
    steps = []
    for clock in range(length + 1):
        observation = np.stack([np.full(lanes, clock / 10.0), lane], axis=1).astype(np.float32)
        log_probabilities, value, after = evaluate(observation, core, first)
        terminated, truncated, valid = ends_at(np.full(lanes, clock), lane)
        final_observation = observation + np.float32([[0.15, 0.0]])
        _, final_value, _ = evaluate(final_observation, after, np.zeros(lanes, bool))
        steps.append(
            dict(
                observation=observation,
                first=first,
                core=jax.tree.map(np.asarray, core),
                log_probabilities=np.asarray(log_probabilities),
                value=np.asarray(value),
                terminated=terminated,
                truncated=truncated,
                valid=valid,
                final_value=np.where(truncated, final_value, 0.0),
            )
        )
        core, first = after, terminated | truncated | ~valid
    return steps


def lambda_return(steps, rewards, start, stop, lane, gamma, lambda_):
    """TD(lambda) returns of `start .. stop - 1`, where the chunk ends; forwards, by the definition of the mixture."""
    result = {}
    for t in range(start, stop):
        total, weight, discount = 0.0, 1.0, 1.0
        for k in range(t, stop):
            step = steps[k]
            total += weight * discount * rewards[k, lane]
            if step["terminated"][lane]:
                break
            following = step["final_value"][lane] if step["truncated"][lane] else steps[k + 1]["value"][lane]
            if step["truncated"][lane] or k + 1 == stop:
                total += weight * discount * gamma * following
                break
            total += weight * discount * gamma * (1 - lambda_) * following
            weight, discount = weight * lambda_, discount * gamma
        result[t] = total
    return result


@pytest.mark.parametrize(
    ("rollout_length", "fields"),
    [(4, dict(core_size=4)), (1, dict(separate_critic=True)), (12, dict(penalty="kl"))],
    ids=["recurrent", "separate_critic", "whole_chunk"],
)
def test_rollouts_equal_a_numpy_loop(rollout_length, fields):
    """Two chunks of twelve decisions, with ends, a truncation in the middle of roll-outs and fake steps."""
    chunk, lanes, gamma, lambda_ = 12, 3, 0.9, 0.8
    config = preset("ppo_da", sizes=(8,), learning_rate=0.0, gamma=gamma, lambda_=lambda_, **fields)
    settings = LoopSettings(
        total_steps=2 * chunk * lanes,
        collect_length=chunk,
        rollout_length=rollout_length,
        batch_size=12,
        reuse=1.0,
        replay_capacity=2 * chunk * lanes,
        log_points=1,
    )
    states, _ = run(settings, 2, agents.make, config)
    rollouts = stored(states[-1])
    index = {where: i for i, where in enumerate(origin(rollouts))}
    starts = [(t, lane) for t in range(0, 2 * chunk, rollout_length) for lane in range(lanes)]
    assert sorted(index) == starts
    action = np.zeros((2 * chunk, lanes), int)
    for (start, lane), i in index.items():
        action[start : start + rollout_length, lane] = rollouts.action[i]
    assert 0 < action.mean() < 1

    steps = follow(config, states[0].agent.params["network"], 2 * chunk, lanes)
    assert any(step["truncated"].any() for step in steps)
    assert not all(step["valid"].all() for step in steps)
    rewards = np.array([reward_at(t, np.arange(lanes), action[t]) for t in range(2 * chunk)])
    returns = [
        lambda_return(steps, rewards, 0, chunk, lane, gamma, lambda_)
        | lambda_return(steps, rewards, chunk, 2 * chunk, lane, gamma, lambda_)
        for lane in range(lanes)
    ]
    for (start, lane), i in index.items():
        piece = jax.tree.map(lambda leaf, i=i: leaf[i], rollouts)
        for k in range(rollout_length):
            t, step = start + k, steps[start + k]
            close = dict(rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(piece.observation[k], step["observation"][lane], rtol=1e-6)
            for flag in ("first", "terminated", "truncated", "valid"):
                assert getattr(piece, flag)[k] == step[flag][lane], (flag, t, lane)
            np.testing.assert_allclose(piece.reward[k], rewards[t, lane], **close)
            log_prob = step["log_probabilities"][lane, action[t, lane]]
            np.testing.assert_allclose(piece.behaviour_log_prob[k], log_prob, **close)
            np.testing.assert_allclose(piece.behaviour_value[k], step["value"][lane], **close)
            np.testing.assert_allclose(piece.final_value[k], step["final_value"][lane], **close)
            np.testing.assert_allclose(piece.lambda_return[k], returns[lane][t], **close)
            np.testing.assert_allclose(piece.advantage[k], returns[lane][t] - step["value"][lane], **close)
            if config.penalty != "none":
                np.testing.assert_allclose(
                    jax.nn.log_softmax(piece.behaviour_parameters.logits[k]), step["log_probabilities"][lane], **close
                )
        last = start + rollout_length - 1
        if not (steps[last]["terminated"][lane] or steps[last]["truncated"][lane]):
            tail = steps[last + 1]["value"][lane]
            if (last + 1) % chunk:
                tail = lambda_ * returns[lane][last + 1] + (1 - lambda_) * tail
            np.testing.assert_allclose(piece.tail_value, tail, **close)
        if config.core_size:
            # at the start of a trace the stored state may be anything: `first` resets it
            for mine, theirs in zip(piece.core_state, steps[start]["core"], strict=True):
                np.testing.assert_allclose(mine, theirs[lane], **close)
        assert piece.policy_version == (0 if start < chunk else states[1].agent.published_at)


def test_the_learner_sees_the_actors_recurrent_states():
    """On data of the current policy the unrolled network gives back every stored log-probability, across resets."""
    settings = LoopSettings(total_steps=72, collect_length=12, rollout_length=4, batch_size=36, reuse=1.0, log_points=1)
    config = preset("ppo_da", sizes=(8,), core_size=4, learning_rate=0.0)
    _, rows = run(settings, 2, agents.make, config)
    for row in rows:
        assert abs(row["half_squared_log_ratio"]) < 1e-10
        np.testing.assert_allclose(row["effective_sample_size"], 1.0, rtol=1e-5)


# Storing, sampling, publishing ----------------------------------------------------------------------------------------

SMALL = LoopSettings(
    total_steps=3 * 8 * 10,
    collect_length=8,
    rollout_length=4,
    batch_size=12,
    reuse=1.5,
    replay_capacity=72,
    publish_interval=4,
    log_points=10,
)


def test_the_replay_holds_the_last_samples():
    """72 samples are three iterations of 24; 60 are two and a half."""
    states, _ = run(SMALL, 5)
    for i, state in enumerate(states):
        expected = [(t, lane) for t in range(max(0, i - 3) * 8, i * 8, 4) for lane in range(3)]
        assert sorted(origin(stored(state))) == expected
    states, _ = run(dataclasses.replace(SMALL, replay_capacity=60), 5)
    held = origin(stored(states[-1]))
    assert len(held) == len(set(held)) == 15
    assert set(held) >= {(t, lane) for t in range(24, 40, 4) for lane in range(3)}
    assert all(t >= 16 for t, _ in held)


def test_only_stored_samples_come_up():
    """Never a place that nothing was written to, never a sample that was overwritten, sooner or later all."""
    states, _ = run(dataclasses.replace(SMALL, reuse=8.0), 6)
    for i in range(1, 7):
        before, after = np.asarray(states[i - 1].agent.seen), np.asarray(states[i].agent.seen)
        drawn = after - before
        assert drawn.sum() == 8 * 24
        assert np.all(drawn[: max(0, i - 3) * 8] == 0)
        assert np.all(drawn[i * 8 :] == 0)
        rollouts = drawn.reshape(-1, 4, 3)
        assert np.all(rollouts == rollouts[:, :1])  # whole roll-outs
    assert np.all(np.asarray(states[-1].agent.seen)[:40] > 0)


def test_without_a_replay_every_sample_comes_up_once_an_epoch():
    settings = dataclasses.replace(SMALL, replay_capacity=0, reuse=3.0)
    states, rows = run(settings, 3)
    for i, state in enumerate(states):
        seen = np.asarray(state.agent.seen)
        assert np.all(seen[: i * 8] == 3)
        assert np.all(seen[i * 8 :] == 0)
    assert states[-1].replay == ()
    assert int(states[-1].agent.updates) == 3 * 3 * 24 // 12


def test_minibatches_come_in_a_new_order_every_epoch():
    """24 roll-outs: no epoch like another, none sorted, every roll-out once."""
    order = np.asarray(minibatch_indices(jax.random.key(0), 24, 4, 3))
    assert order.shape == (12, 6)
    epochs = order.reshape(3, 24)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(24))
        assert epoch.tolist() != list(range(24))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_minibatches_are_uniform():
    """Chi-square of how often each of 70 roll-outs falls in each of 7 minibatches, over 20,000 epochs."""
    epochs = 20_000
    order = np.asarray(minibatch_indices(jax.random.key(1), 70, 7, epochs)).reshape(epochs, 7, 10)
    counts = np.array([np.bincount(order[:, i].ravel(), minlength=70) for i in range(7)])
    statistic = np.sum((counts - epochs / 7) ** 2 / (epochs / 7))
    assert abs(statistic - 420) < 5 * 29  # 69 x 6 degrees of freedom, scaled by 70/69
    where = np.empty((epochs, 70), int)
    np.put_along_axis(where, order.reshape(epochs, 70), np.repeat(np.arange(7), 10)[None], axis=1)
    neighbours = np.mean(where[:, :-1] == where[:, 1:])
    assert abs(neighbours - 9 / 69) < 0.002


def test_large_minibatches_hold_everything_once():
    """At 3 x 2^17 roll-outs the random bits tie often; the order is a permutation all the same, and halves are random."""
    count = 3 * 2**17
    order = np.asarray(minibatch_indices(jax.random.key(2), count, 2, 1))
    assert np.array_equal(np.sort(order.ravel()), np.arange(count))
    low = np.mean(order[0] < count // 2)
    assert abs(low - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_actors_change_at_publications_only():
    """Three updates an iteration, publication every four: after iterations 2, 3, 4, 6, 7, 8, ..., counted by hand."""
    states, rows = run(SMALL, 10)
    published, expected = 0, []
    for i in range(10):
        version = np.asarray(stored(states[i + 1]).behaviour_log_prob)
        newest = [k for k, (t, _) in enumerate(origin(stored(states[i + 1]))) if t >= i * 8]
        assert np.all(version[newest] == published), i
        if 3 * (i + 1) // 4 > 3 * i // 4:
            published = 3 * (i + 1)
        expected.append(published)
        agent = states[i + 1].agent
        assert (int(agent.actor_params), int(agent.published_at)) == (published, published)
        assert int(agent.params) == int(agent.updates) == 3 * (i + 1)
    assert expected == [0, 6, 9, 12, 12, 18, 21, 24, 24, 30]


def test_learner_and_actor_are_apart_between_publications():
    config = preset("ppo", sizes=(8,))
    settings = dataclasses.replace(SMALL, replay_capacity=0, reuse=2.0, publish_interval=12)  # 4 updates an iteration
    states, rows = run(settings, 7, agents.make, config)
    first = [state.agent for state in states]

    def equal(a, b):
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    for i in range(1, 8):
        assert not equal(first[i].params, first[i - 1].params)
        if i in (3, 6):
            assert equal(first[i].actor_params, first[i].params)
        else:
            assert equal(first[i].actor_params, first[i - 1].actor_params)
    # ages of fresh data: 4 i .. 4 i + 3 updates after the last publication at 0, 12 or 24
    for i, row in enumerate(rows):
        ages = np.arange(4 * i, 4 * i + 4) - 12 * (i // 3)
        assert row["staleness_mean"] == ages.mean()
        assert row["staleness_max"] == ages.max()


def test_the_published_parameters_act():
    """The learner moves far in every iteration, and what is stored stays that of the parameters published at the start."""
    config = preset("ppo_da", sizes=(8,), learning_rate=0.1)
    settings = dataclasses.replace(SMALL, replay_capacity=24, publish_interval=100)
    states, _ = run(settings, 3, agents.make, config)
    network = build_network(config, clockwork().spec)
    rollouts = stored(states[-1])
    for params, same in ((states[0].agent.params, True), (states[2].agent.params, False)):
        distribution, value, _ = network.apply({"params": params["network"]}, rollouts.observation, (), rollouts.first)
        log_prob = distribution.log_prob(rollouts.action)
        assert np.allclose(log_prob, rollouts.behaviour_log_prob, atol=1e-5) == same
        assert np.allclose(value, rollouts.behaviour_value, atol=1e-5) == same


def test_staleness_of_a_replay():
    """With one publication an iteration and the replay of one iteration, ages are 0, 1, 2."""
    settings = dataclasses.replace(SMALL, replay_capacity=24, publish_interval=1)
    _, rows = run(settings, 3)
    for row in rows:
        assert (row["staleness_mean"], row["staleness_max"]) == (1.0, 2.0)


def test_burn_in_is_collected_and_not_learned_from():
    settings = dataclasses.replace(SMALL, burn_in=25, total_steps=24 * 6)
    states, rows = run(settings, 2)
    assert int(states[0].agent.updates) == 0
    assert len(origin(stored(states[0]))) == 12  # two iterations
    assert int(states[0].iteration) == 0
    seen = np.asarray(states[1].agent.seen)
    assert (seen[:24].sum(), seen.sum()) == (36, 36)


# Rows of metrics ------------------------------------------------------------------------------------------------------


def test_rows_add_up():
    """Steps, updates, reuse and the statistics of episodes over intervals of two iterations and a burn-in of two."""
    settings = dataclasses.replace(SMALL, burn_in=48, total_steps=24 * 8, log_points=3)
    environment = clockwork()
    train = jax.jit(make_train(bookkeeper, environment, settings), compiler_options=QUICK)
    result = train(None, jax.random.key(0))
    rows = jax.tree.map(np.asarray, result.metrics)
    assert rows["steps"].tolist() == [96.0, 144.0, 192.0]
    assert rows["updates"].tolist() == [6.0, 12.0, 18.0]
    np.testing.assert_allclose(rows["reuse"], [72 / 96, 144 / 144, 216 / 192], rtol=1e-6)
    assert int(result.state.iteration) == 6
    clocks, lanes = np.meshgrid(np.arange(64), np.arange(3), indexing="ij")
    terminated, truncated, _ = ends_at(clocks, lanes)
    done = terminated | truncated
    for row in range(3):
        part = slice(16 + 16 * row, 32 + 16 * row)
        assert rows["episodes"][row] == done[part].sum()
        np.testing.assert_allclose(rows["episode_return"][row], clocks[part][done[part]].mean(), rtol=1e-6)
        np.testing.assert_allclose(rows["episode_length"][row], clocks[part][done[part]].mean() + 1, rtol=1e-6)
    assert set(rows) >= {"staleness_max", "staleness_mean", "nonfinite", "reward_mean"}
    assert not {"episode_return_sum", "episode_length_sum"} & set(rows)


def test_an_interval_without_an_end_has_no_return():
    environment = envs.make("probe/truncation", 2, steps=50)
    settings = LoopSettings(total_steps=64, collect_length=8, batch_size=16, reuse=1.0, log_points=4)

    def make_agent(config, spec, *, total_updates):
        def update(state, key, batch):
            return state, {"staleness_max": jnp.zeros(()), "nonfinite": jnp.zeros(())}

        return bookkeeper(config, spec, total_updates=total_updates)._replace(update=update)

    rows = jax.jit(make_train(make_agent, environment, settings), compiler_options=QUICK)(None, jax.random.key(0))
    assert np.isnan(rows.metrics["episode_return"]).all()
    assert rows.metrics["episodes"].tolist() == [0.0] * 4


def test_a_nan_reward_surfaces():
    """In the interval in which it is learned from, and in all that follow."""
    settings = dataclasses.replace(SMALL, replay_capacity=0, reuse=2.0, publish_interval=1, log_points=5)
    settings = dataclasses.replace(settings, total_steps=24 * 5)
    for preset_name in ("ppo_da", "vmpo"):
        config = preset(preset_name, sizes=(8,))
        train = jax.jit(make_train(agents.make, clockwork(nan_at=19), settings), compiler_options=QUICK)
        rows = train(config, jax.random.key(0)).metrics
        assert rows["nonfinite"].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


# Purity ---------------------------------------------------------------------------------------------------------------

TINY = LoopSettings(
    total_steps=4 * 8 * 6,
    collect_length=8,
    rollout_length=4,
    batch_size=16,
    reuse=2.0,
    replay_capacity=64,
    publish_interval=2,
    log_points=3,
)


def assert_close(left, right, rtol):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


def bits(tree):
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf).tobytes()
        for leaf in jax.tree.leaves(tree)
    ]


def test_a_loop_driven_by_hand_compiles_once():
    """The state that `init` gives has the types of the state that an interval gives, weak types included."""
    environment = envs.make("CartPole-v1", 2)
    settings = LoopSettings(
        total_steps=64, collect_length=8, batch_size=16, reuse=1.0, replay_capacity=16, log_points=4
    )
    loop = make_loop(
        agents.make(preset("ppo_da", sizes=(4,)), environment.spec, total_updates=4), environment, settings
    )
    first = jax.eval_shape(loop.init, jax.random.key(0))
    second, _ = jax.eval_shape(loop.iterate, first)
    assert [leaf.weak_type for leaf in jax.tree.leaves(first)] == [leaf.weak_type for leaf in jax.tree.leaves(second)]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(first))


def test_training_is_a_pure_function_compiled_once():
    """Same key, same bits; another key or other reals, another result from the same program; all members alike."""
    traces = []

    def make_agent(config, spec, *, total_updates):
        traces.append(config)
        return agents.make(config, spec, total_updates=total_updates)

    environment = envs.make("CartPole-v1", 4)
    train = make_train(make_agent, environment, TINY)
    jitted = jax.jit(train, compiler_options=QUICK)
    configs = [
        preset("ppo_da", sizes=(8,), learning_rate=rate, divergence_coefficient=d)
        for rate, d in [(1e-3, 0.5), (1e-2, 0.0), (3e-3, 2.0)]
    ]
    keys = jax.random.split(jax.random.key(1), 3)
    singles = [jitted(config, key) for config, key in zip(configs, keys, strict=True)]
    assert len(traces) == 1
    assert bits(jitted(configs[0], keys[0])) == bits(singles[0])
    assert len(traces) == 1
    assert bits(jitted(configs[0], keys[1])) != bits(singles[0])
    assert bits(jitted(configs[1], keys[0])) != bits(singles[0])
    assert len(traces) == 1

    stacked = stack_configs(configs)
    everything = jax.tree.map(
        lambda *leaves: None if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key) else np.stack(leaves), *singles
    )
    swept = jax.jit(sweep, static_argnums=0, compiler_options=QUICK)(train, stacked, keys)
    assert swept.state.replay == ()
    vmapped = jax.jit(jax.vmap(train), compiler_options=QUICK)(stacked, keys)
    for grid, expected in ((swept, without_replay(everything)), (vmapped, everything)):
        got = jax.tree.map(lambda leaf: None if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, grid)
        assert_close(got, expected, rtol=1e-4)


def test_a_sweep_keeps_what_is_asked_for(monkeypatch):
    """On an accelerator, too, where members are batched but for those whose steps call back in order."""
    configs, keys = jnp.arange(3.0), jax.random.split(jax.random.key(0), 3)
    seen = []

    def calls_back(config, key):
        def note(value):
            seen.append(float(value))
            return np.float32(2.0 * value)

        return {
            "double": jax.experimental.io_callback(note, jax.ShapeDtypeStruct((), jnp.float32), config, ordered=True)
        }

    def plain(config, key):
        return {"double": 2.0 * config, "other": jnp.zeros(1000)}

    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        for train in (plain, calls_back):
            doubled = sweep(train, configs, keys, keep=lambda result: result["double"])
            np.testing.assert_array_equal(doubled, [0.0, 2.0, 4.0])
    assert seen == [0.0, 1.0, 2.0] * 2
    with pytest.raises(ValueError, match=r"one config and one key a member.*stack_configs"):
        sweep(plain, preset("ppo"), keys)
    with pytest.raises(ValueError, match=r"leading axes \[\(2,\), \(3,\)\]"):
        sweep(plain, configs[:2], keys)
    with pytest.raises(ValueError, match="no config to stack"):
        stack_configs([])


def test_configs_of_different_programs_do_not_stack():
    with pytest.raises(ValueError, match="3 configs fall into 2 groups"):
        stack_configs([preset("ppo"), preset("ppo_da"), preset("ppo", learning_rate=1.0)])
    stacked = stack_configs([preset("ppo", gamma=0.9), preset("ppo", gamma=0.8)])
    np.testing.assert_allclose(stacked.gamma, [0.9, 0.8])
    assert stacked.weight == "clip"


@pytest.mark.parametrize(("name", "fields"), [("ppo_gae", {}), ("ppo_da", dict(core_size=4))])
def test_what_a_fake_step_holds_does_not_matter(name, fields):
    """Every fourth step is fake, after an end: any reward and observation there leave the parameters as they are."""

    def environment(reward, value):
        lanes = 4

        def observe(clock):
            seen = jnp.where(clock % 4 == 3, value, (clock % 4).astype(jnp.float32))
            return jnp.tile(jnp.stack([seen, 1.0]), (lanes, 1))

        def reset(key):
            clock = jnp.zeros((), jnp.int32)
            return clock, fresh_timestep(observe(clock), lanes)

        def step(key, clock, action):
            fake, ends, kind = clock % 4 == 3, clock % 4 == 2, clock % 8 == 2
            flags = {"terminated": ends & kind, "truncated": ends & ~kind, "first": ends | fake, "valid": ~fake}
            after = observe(clock + 1)
            timestep = Timestep(
                observation=after,
                reward=jnp.where(fake, reward, action.astype(jnp.float32)),
                final_observation=jnp.where(ends, jnp.full((lanes, 2), 5.0), after),
                episode=EpisodeStatistics(jnp.full(lanes, ends), jnp.zeros(lanes), jnp.zeros(lanes, jnp.int32)),
                **{name: jnp.full(lanes, flag) for name, flag in flags.items()},
            )
            return clock + 1, timestep

        return Environment(EnvironmentSpec("test/fake", (2,), "float32", DiscreteSpace(2)), lanes, reset, step)

    def trained(reward, value):
        train = make_train(agents.make, environment(reward, value), dataclasses.replace(TINY, log_points=1))
        return train(preset(name, sizes=(8,), learning_rate=0.01, **fields), jax.random.key(0))

    trained = jax.jit(trained, compiler_options=QUICK)
    plain, odd = trained(0.0, 0.0), trained(1e4, -30.0)
    assert_close(plain.state.agent.params, odd.state.agent.params, rtol=1e-6)
    assert_close(plain.state.agent.optimiser, odd.state.agent.optimiser, rtol=1e-6)
    for metric in ("loss", "value_loss", "entropy", "gradient_norm", "effective_sample_size", "divergence", "value"):
        np.testing.assert_allclose(plain.metrics[metric], odd.metrics[metric], rtol=1e-6, atol=1e-8)
    assert not np.array_equal(plain.state.replay.experience.reward, odd.state.replay.experience.reward)


@pytest.mark.slow
def test_docstring_example():
    assert doctest.testmod(importlib.import_module("jaxrl_off.training.loop")).failed == 0
