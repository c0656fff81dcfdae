"""brax lanes against brax's raw environment, and the two ways to reset."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.envs import brax_envs, make, vectorise

pytest.importorskip("brax")
pytestmark = pytest.mark.filterwarnings("ignore:Brax System:UserWarning")

NAME, LANES, STEPS = "inverted_pendulum", 4, 40


def run(env, key, steps=STEPS, scale=0.5):
    """A random run; the pole falls within a few steps, and not at the same time in all lanes."""

    def body(state, step_key):
        action = scale * jax.random.normal(jax.random.fold_in(step_key, 1), (env.num_envs, 1))
        state, timestep = env.step(step_key, state, action)
        return state, (timestep, action)

    @jax.jit
    def all_steps(key):
        reset_key, step_key = jax.random.split(key)
        state, first = env.reset(reset_key)
        return first, jax.lax.scan(body, state, jax.random.split(step_key, steps))[1]

    first, (out, actions) = jax.tree.map(np.asarray, all_steps(key))
    return first, out, actions


@pytest.fixture(scope="module")
def lane():
    from brax import envs

    return brax_envs.lane_environment(envs.get_environment(NAME, backend="spring"), f"brax/{NAME}", 12)


@pytest.fixture(scope="module")
def lazy_run(lane):
    return run(vectorise(lane, LANES, cheap_reset=False), jax.random.key(0))


def test_make_describes_the_environment():
    env = make(f"brax/{NAME}", 3)
    assert env.pure
    assert env.spec.name == f"brax/{NAME}"
    assert env.spec.observation_shape == (4,)
    assert env.spec.action_space.shape == (1,)
    assert (env.spec.action_space.low, env.spec.action_space.high) == ((-1.0,), (1.0,))
    assert {"ant", "halfcheetah", "hopper", "walker2d"} <= set(brax_envs.registered())


def test_lazy_reset_equals_eager(lane, lazy_run):
    eager = run(vectorise(lane, LANES), jax.random.key(0))
    assert lazy_run[1].episode.done.any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eager, lazy_run)


def test_run_equals_a_hand_loop_over_brax(lane, lazy_run):
    from brax import envs

    raw = envs.get_environment(NAME, backend="spring")
    raw_reset, raw_step = jax.jit(raw.reset), jax.jit(raw.step)
    first, out, actions = lazy_run
    reset_key, step_key = jax.random.split(jax.random.key(0))
    i = 1
    simulation = raw_reset(jax.random.split(reset_key, LANES)[i])
    np.testing.assert_allclose(first.observation[i], simulation.obs, rtol=1e-5, atol=1e-6)
    total, length = 0.0, 0
    for t, key in enumerate(jax.random.split(step_key, STEPS)):
        simulation = raw_step(simulation, jnp.clip(actions[t, i], -1, 1))
        total, length = total + float(simulation.reward), length + 1
        np.testing.assert_allclose(out.final_observation[t, i], simulation.obs, rtol=1e-3, atol=1e-4)
        assert out.terminated[t, i] == bool(simulation.done)
        assert out.truncated[t, i] == (length == 12 and not simulation.done)
        assert out.episode.done[t, i] == out.first[t, i] == bool(simulation.done or length == 12)
        if out.episode.done[t, i]:
            np.testing.assert_allclose(out.episode.episode_return[t, i], total, rtol=1e-4)
            assert out.episode.length[t, i] == length
            simulation = raw_reset(jax.random.split(key, (LANES, 2))[i, 1])
            np.testing.assert_allclose(out.observation[t, i], simulation.obs, rtol=1e-5, atol=1e-6)
            total, length = 0.0, 0
    assert out.episode.done[:, i].sum() >= 2


def test_both_ends_occur_apart_and_starts_differ(lazy_run):
    _, out, _ = lazy_run
    assert out.truncated.any()
    assert out.terminated.any()
    assert not (out.terminated & out.truncated).any()
    assert (out.episode.length[out.truncated] == 12).all()
    done = out.episode.done
    starts = out.observation[done]
    assert len(np.unique(starts[:, 0])) == len(starts)
    assert (np.abs(starts) <= 0.011).all()  # brax starts within 0.01 of upright
    assert (np.abs(out.final_observation[done]).max(-1) > 0.05).all()


def test_actions_are_clipped(lane):
    env = vectorise(lane, 1, cheap_reset=False)
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    _, outside = step(jax.random.key(1), state, jnp.full((1, 1), 50.0))
    _, edge = step(jax.random.key(1), state, jnp.full((1, 1), 1.0))
    _, inside = step(jax.random.key(1), state, jnp.full((1, 1), 0.2))
    np.testing.assert_array_equal(outside.observation, edge.observation)
    assert not np.array_equal(edge.observation, inside.observation)


@pytest.mark.slow
def test_metrics_of_another_type_than_at_reset_pass_through_a_scan():
    # hopper writes Python floats into the metrics of the state it is given.
    env = make("brax/hopper", 2, episode_length=5)

    @jax.jit
    def scan(key):
        state, _ = env.reset(key)
        return jax.lax.scan(lambda s, k: env.step(k, s, jnp.zeros((2, 3))), state, jax.random.split(key, 6))[1]

    out = scan(jax.random.key(0))
    assert out.truncated[4].all()
    assert np.isfinite(out.observation).all()


def test_errors_say_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match="unknown brax environment 'cheetah'. Did you mean 'halfcheetah'.*: ant, "):
        make("brax/cheetah", 1)
    with pytest.raises(ValueError, match="unknown brax backend 'bullet'; known are: generalized"):
        make(f"brax/{NAME}", 1, backend="bullet")
    with pytest.raises(ValueError, match="episode_length must be at least 1, got 0"):
        make(f"brax/{NAME}", 1, episode_length=0)
    with pytest.raises(ValueError, match="does not take {'gravity': 3}"):
        make("brax/reacher", 1, gravity=3)
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[brax\]"'):
        make(f"brax/{NAME}", 1)
