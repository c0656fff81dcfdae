"""Atari against the emulator stepped by hand: traces, games, fake decisions, returns."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import DiscreteSpace, atari, make

ale_py = pytest.importorskip("ale_py")
vector_env = pytest.importorskip("ale_py.vector_env")

LANES = 2


def run(env, key, actions):
    """One compiled scan over given actions `[T, N]`; pictures are kept of lane 0 only, lives come along."""

    @jax.jit
    def all_steps(key):
        def body(state, action):
            state, timestep = env.step(key, state, action)
            small = timestep._replace(
                observation=timestep.observation[0], final_observation=timestep.final_observation[0]
            )
            return state, (small, state.lives)

        state, first = env.reset(key)
        return first, jax.lax.scan(body, state, actions)[1]

    first, (out, lives) = jax.tree.map(np.asarray, all_steps(key))
    return first, out, lives


def random_actions(env, steps, seed=0):
    return jax.random.randint(jax.random.key(seed), (steps, env.num_envs), 0, env.spec.action_space.num_actions)


def by_hand(game, key, actions, **settings):
    """The same seeds and actions through ale-py's NumPy interface, raw rewards, whole games."""
    lanes = actions.shape[1]
    vector = vector_env.AtariVectorEnv(game, lanes, num_threads=1, reward_clipping=False, **settings)
    seeds = np.asarray(jax.random.randint(key, (lanes,), 0, jnp.iinfo(jnp.int32).max, jnp.int32))
    observation, info = vector.reset(seed=seeds)
    first = observation.copy(), info["lives"].copy()
    rows = []
    for action in np.asarray(actions):
        observation, reward, terminated, truncated, info = vector.step(action)
        rows.append([x.copy() for x in (observation[0], reward, terminated, truncated, info["lives"])])
    return first, [np.stack(column) for column in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def nature():
    """Breakout, two lanes: about two games each."""
    env = make("ale/breakout", LANES, protocol="nature", num_threads=1)
    actions = random_actions(env, 450)
    return env, actions, run(env, jax.random.key(0), actions)


def test_spec_and_presets(nature):
    env, _, (first, out, _) = nature
    assert not env.pure
    assert env.spec.name == "ale/breakout"
    assert env.spec.action_space == DiscreteSpace(4)
    assert env.spec.observation_shape == (84, 84, 4)
    assert first.observation.shape == (LANES, 84, 84, 4)
    assert first.observation.dtype == out.observation.dtype == np.uint8
    machado = make("ale/breakout", 1, protocol="machado")
    assert machado.spec.action_space == DiscreteSpace(18)
    assert make("ale/breakout", 1, protocol="dapo", stack=1).spec.observation_shape == (84, 84, 1)
    assert atari.PROTOCOLS["dapo"].max_frames == 400_000
    assert atari.PROTOCOLS["machado"].sticky == 0.25


def test_run_equals_the_emulator_stepped_by_hand(nature):
    _, actions, (first, out, lives) = nature
    (seen, first_lives), (pictures, reward, over, cut, hand_lives) = by_hand(
        "breakout", jax.random.key(0), actions, use_fire_reset=False
    )
    np.testing.assert_array_equal(first.observation, seen.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(out.observation, pictures.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(out.final_observation, out.observation)
    np.testing.assert_array_equal(out.reward, np.sign(reward))
    np.testing.assert_array_equal(lives, hand_lives)
    np.testing.assert_array_equal(out.episode.done, over | cut)
    before = np.concatenate([first_lives[None], hand_lives[:-1]])
    lost = (hand_lives < before) & (hand_lives > 0)
    assert lost.sum() >= 8
    np.testing.assert_array_equal(out.terminated, over | lost)
    assert not out.truncated.any()


def test_lost_life_ends_the_trace_but_not_the_episode(nature):
    _, _, (_, out, lives) = nature
    life = out.terminated & ~out.episode.done
    assert life.sum() >= 8
    assert (lives[life] > 0).all()
    assert out.first[life].all()
    assert out.valid[life].all()
    followed = life[:-1] & (lives[:-1] > 0)
    assert out.valid[1:][followed].all()  # the game simply goes on: no fake decision here


def test_reset_decision_is_masked_and_statistics_start_again(nature):
    _, _, (_, out, lives) = nature
    over = out.episode.done
    assert over.sum() >= 2
    np.testing.assert_array_equal(out.valid[1:], ~over[:-1])
    fake = ~out.valid
    assert not (out.terminated | out.truncated | out.episode.done)[fake].any()
    assert (out.reward[fake] == 0).all()
    assert out.first[fake].all()
    assert (lives[fake] == 5).all()
    assert (out.episode.length[fake] == 0).all()
    assert (out.episode.episode_return[fake] == 0).all()
    np.testing.assert_array_equal(out.first, out.terminated | out.truncated | fake)


def test_ignored_action_of_the_reset_decision(nature):
    env, actions, (_, out, _) = nature
    changed = jnp.where(out.valid, actions, (actions + 1) % 4)
    assert (changed != actions).any()
    _, again, _ = run(env, jax.random.key(0), changed)
    np.testing.assert_array_equal(out.observation, again.observation)


def test_returns_are_unclipped_whole_games():
    env = make("ale/space_invaders", LANES, num_threads=1)
    actions = random_actions(env, 400)
    _, out, _ = run(env, jax.random.key(1), actions)
    _, (_, reward, over, _, _) = by_hand("space_invaders", jax.random.key(1), actions, use_fire_reset=False)
    assert set(np.unique(out.reward)) == {0.0, 1.0}
    assert reward.max() >= 5
    games = 0
    for lane in range(LANES):
        total, length = 0, 0
        for t in range(len(actions)):
            total += reward[t, lane]
            length += out.valid[t, lane]
            if over[t, lane]:
                assert out.episode.episode_return[t, lane] == total > 30
                assert out.episode.length[t, lane] == length
                total, length, games = 0, 0, games + 1
    assert games >= 1
    raw = make("ale/space_invaders", LANES, num_threads=1, reward_clipping=False)
    _, unclipped, _ = run(raw, jax.random.key(1), actions)
    np.testing.assert_array_equal(unclipped.reward, reward)
    np.testing.assert_array_equal(unclipped.episode.episode_return, out.episode.episode_return)


def test_game_without_lives_ends_where_the_emulator_says():
    env = make("ale/pong", 1, num_threads=1)
    actions = jnp.zeros((900, 1), jnp.int32)  # a paddle that stands still loses 0:21
    _, out, lives = run(env, jax.random.key(0), actions)
    assert (lives == 0).all()
    assert out.terminated.sum() == out.episode.done.sum() == 1
    assert out.episode.episode_return[out.episode.done] == pytest.approx(-21)
    assert out.reward[out.terminated] == -1


def test_frame_cap_truncates_and_resets():
    env = make("ale/breakout", 1, protocol="machado", num_threads=1, max_frames=40)
    _, out, _ = run(env, jax.random.key(0), jnp.zeros((24, 1), jnp.int32))
    np.testing.assert_array_equal(np.flatnonzero(out.truncated[:, 0]), [9, 20])
    np.testing.assert_array_equal(np.flatnonzero(~out.valid[:, 0]), [10, 21])
    np.testing.assert_array_equal(out.episode.done, out.truncated)
    np.testing.assert_array_equal(out.episode.length[out.truncated], [10, 10])
    assert not out.terminated.any()


def test_life_lost_in_the_decision_of_the_cap_ends_the_episode_too():
    settings = {"protocol": "nature", "num_threads": 1, "noop_max": 0}
    env = make("ale/breakout", 1, **settings)
    actions = random_actions(env, 60)
    _, out, _ = run(env, jax.random.key(0), actions)
    lost = int(np.flatnonzero(out.terminated[:, 0])[0])
    capped = make("ale/breakout", 1, **settings, max_frames=4 * (lost + 1))
    _, out, _ = run(capped, jax.random.key(0), actions)
    assert out.terminated[lost, 0]
    assert not out.truncated[lost, 0]
    assert out.episode.done[lost, 0]
    assert not out.valid[lost + 1, 0]


def test_dapo_presses_fire_where_a_life_starts():
    env = make("ale/breakout", 1, protocol="dapo", num_threads=1)
    actions = jnp.zeros((150, 1), jnp.int32)  # never presses a button itself
    _, out, _ = run(env, jax.random.key(0), actions)
    life = out.terminated & ~out.episode.done
    assert life.sum() >= 4  # the ball is served again and again, and lost
    np.testing.assert_array_equal(out.valid[1:], ~(out.terminated | out.truncated)[:-1])
    fire = ~out.valid
    assert not out.terminated[fire].any()
    assert out.first[fire].all()
    done = out.episode.done[:, 0]
    assert out.episode.length[done, 0][0] == out.valid[: np.flatnonzero(done)[0] + 1].sum()
    # Without it the game hangs after the first lost life.
    _, hung, lives = run(make("ale/breakout", 1, num_threads=1), jax.random.key(0), actions)
    assert not hung.episode.done.any()
    assert lives.min() >= 4


def test_no_reward_limit_ends_the_trace_and_leaves_the_game():
    env = make("ale/breakout", 1, protocol="dapo", num_threads=1, life_loss=False, no_reward_limit=7)
    _, out, lives = run(env, jax.random.key(3), jnp.zeros((12, 1), jnp.int32))
    # More than 7 decisions without reward: the eighth ends the trace; then FIRE; then it counts anew.
    np.testing.assert_array_equal(np.flatnonzero(out.terminated[:, 0]), [7])
    np.testing.assert_array_equal(np.flatnonzero(~out.valid[:, 0]), [8])
    assert out.first[7:9].all()
    assert not out.episode.done.any()
    assert (lives == 5).all()


def test_same_key_same_run_other_key_another_and_instances_do_not_meet(nature):
    env, actions, (_, out, _) = nature
    other = make("ale/breakout", LANES, protocol="machado", num_threads=2)
    steps = 60
    run_of = {}
    for key in (0, 1):
        run_of[key] = run(other, jax.random.key(key), actions[:steps])[1]
    again = run(other, jax.random.key(0), actions[:steps])[1]
    jax.tree.map(np.testing.assert_array_equal, run_of[0], again)
    assert not np.array_equal(run_of[0].observation, run_of[1].observation)  # sticky actions are seeded too
    # Stepping two environments in turn gives what each gives alone.
    state, _ = env.reset(jax.random.key(0))
    other_state, _ = other.reset(jax.random.key(0))
    for t in range(30):
        state, timestep = env.step(jax.random.key(9), state, actions[t])
        other_state, other_timestep = other.step(jax.random.key(9), other_state, actions[t])
        np.testing.assert_array_equal(timestep.observation[0], out.observation[t])
        np.testing.assert_array_equal(other_timestep.observation[0], again.observation[t])


def test_lanes_start_differently(nature):
    _, _, (first, _, _) = nature
    env = make("ale/space_invaders", 4, num_threads=1)
    pictures = np.asarray(env.reset(jax.random.key(0))[1].observation)
    assert len({picture.tobytes() for picture in pictures}) > 1
    assert (first.observation[..., :3] == 0).all()  # the stack is filled with black, the newest frame is the last
    assert first.observation[..., 3].any()


def test_paper_games_are_known():
    assert len(set(atari.PAPER_GAMES)) == 58
    assert set(atari.PAPER_GAMES) <= set(atari.registered())


def test_errors_say_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match="unknown Atari game 'MsPacman'; did you mean ms_pacman.* games are known"):
        make("ale/MsPacman", 1)
    with pytest.raises(ValueError, match="unknown Atari game 'qqqq'; [0-9]+ games are known"):
        make("ale/qqqq", 1)
    with pytest.raises(ValueError, match="unknown Atari protocol 'rainbow'; known are: nature, machado, dapo"):
        make("ale/pong", 1, protocol="rainbow")
    with pytest.raises(ValueError, match="no parameter stack_num; the parameters are: sticky, .*stack"):
        make("ale/pong", 1, stack_num=1)
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make("ale/pong", 0)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[atari\]"'):
        make("ale/pong", 1)
