"""Streams of chunks against the same estimators on all trajectories at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory import streaming
from jaxrl_off.estimators.trajectory.reward_processes.star import star
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.types import Trajectories

PLAIN = ("naive", "trajectory_is", "pdis", "wis", "cwpdis")
CORRECTED = ("doubly_robust", "weighted_doubly_robust")
COUNTS = np.random.default_rng(9).integers(0, 3, 50).astype(float)


def simulated(seed=0, n=50, horizon=6, scale=0.4, shift=0.0):
    """Trajectories of random lengths, ratios with zeros among them, a useless Q, and cells."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, horizon + 1, n)
    mask = np.arange(horizon) < lengths[:, None]
    log_ratio = random.normal(shift - 0.5 * scale**2, scale, (n, horizon))
    log_ratio[random.random((n, horizon)) < 0.03] = -np.inf
    ends = (np.arange(horizon) == lengths[:, None] - 1) & (random.random((n, 1)) < 0.7)
    rewards = random.normal(1.0, 1.0, (n, horizon))
    behaviour = np.where(mask, random.normal(-1.0, 0.1, (n, horizon)), np.nan)
    estimated = random.random(n) < 0.5
    data = Trajectories(None, None, rewards, behaviour, mask, ends, ends & False, None, estimated)
    columns = dict(
        target_log_prob=log_ratio + behaviour,
        q=random.normal(size=(n, horizon)),
        v=random.normal(size=(n, horizon)),
        states=random.integers(0, 4, (n, horizon)),
        final_states=random.integers(0, 4, n),
    )
    return data, columns


def run(stream, data, columns, names, sizes, **finish):
    """Chunks of given sizes, the horizon of each cut to its longest trajectory."""
    state, start = stream.init(), 0
    for size in sizes:
        rows = slice(start, start + size)
        piece = jax.tree.map(lambda x, rows=rows: x[rows], (data, {name: columns[name] for name in names}))
        longest = piece[0].mask.sum(axis=1).max()
        chunk, given = jax.tree.map(lambda x, t=longest: x[:, :t] if x.ndim > 1 else x, piece)
        state = stream.update(state, chunk, counts=COUNTS[rows] if len(data.mask) == 50 else None, **given)
        start += size
    assert start == len(data.mask)
    return stream.finish(state, **finish)


def agree(found, expected):
    for name in found._fields[:5]:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert set(found.diagnostics) == set(expected.diagnostics)
    for name, value in expected.diagnostics.items():
        np.testing.assert_allclose(found.diagnostics[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", [*PLAIN, *CORRECTED])
def test_streams_are_estimates_of_all_at_once(name):
    data, columns = simulated()
    options, asked = dict(discount=0.9, clip=3.0, window=4), dict(level=0.9, floor=40.0)
    if name == "naive":
        options = dict(discount=0.9)
    stream = streaming.streaming(name, horizon=6, size=20, **options)
    method = getattr(corrected if name in CORRECTED else weighted, name)
    names = ("target_log_prob", "q", "v")[: 3 if name in CORRECTED else name != "naive"]
    given = {"target_log_prob": columns["target_log_prob"]} | {word: columns[word] for word in names}
    if name == "pdis":
        asked |= dict(sides="lower", interval="normal")
    expected = method(data, **given, counts=COUNTS, **options, **asked)
    agree(run(stream, data, columns, names, (20, 7, 13, 10), **asked), expected)


@pytest.mark.parametrize("name", CORRECTED)
def test_streams_of_a_process_that_goes_on(name):
    data, columns = simulated()
    columns["final"] = np.random.default_rng(3).normal(size=50)
    names, options = ("target_log_prob", "q", "v", "final"), dict(discount=0.9, horizon_exit=False)
    stream = streaming.streaming(name, horizon=6, size=20, **options)
    expected = getattr(corrected, name)(data, **{x: columns[x] for x in names}, counts=COUNTS, level=0.9, **options)
    agree(run(stream, data, columns, names, (20, 20, 10), level=0.9), expected)
    with pytest.raises(ValueError, match="takes target_log_prob, q, v, final, got q, target_log_prob, v"):
        run(stream, data, columns, names[:3], (20, 20, 10))
    with pytest.raises(ValueError, match="wis can judge only returns within the horizon"):
        streaming.streaming("wis", horizon=6, size=20, horizon_exit=False)


@pytest.mark.parametrize(
    "options",
    [
        dict(window=2, clip=2.0, smoothing=3.0, discounted_counts=False),
        dict(window=None, normalisation="horvitz_thompson"),
        dict(window=3, termination="factored", horizon_exit=False, smoothing=1.0),
    ],
)
def test_star_streams_are_star(options):
    data, columns = simulated()
    stream = streaming.star_streaming(4, horizon=6, size=20, discount=0.9, **options)
    names = ("target_log_prob", "states", *(("final_states",) if "termination" in options else ()))
    given = {name: columns[name] for name in names}
    expected = star(data, num_states=4, counts=COUNTS, discount=0.9, level=0.9, **given, **options)
    agree(run(stream, data, columns, names, (20, 20, 10), level=0.9), expected)


@pytest.mark.parametrize("name", ["wis", "cwpdis"])
def test_a_long_horizon(name):
    """A thousand steps: weights from e^-1000 on, which no number holds; later chunks have all the weight."""
    data, columns = simulated(seed=3, n=30, horizon=1000, scale=0.5, shift=-1.0)
    data = data._replace(mask=np.ones_like(data.mask), behaviour_log_prob=np.full(data.mask.shape, -1.0))
    ratios = np.random.default_rng(4).normal(-1.0, 0.5, data.mask.shape)
    ratios[20:] += 0.5
    columns["target_log_prob"] = ratios - 1.0
    stream = streaming.streaming(name, horizon=1000, size=10, discount=0.99)
    found = run(stream, data, columns, ("target_log_prob",), (10, 10, 10), level=0.9)
    expected = getattr(weighted, name)(data, columns["target_log_prob"], discount=0.99, level=0.9)
    assert float(expected.diagnostics["largest_log_weight"]) < -400
    for field in found._fields[:5]:
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-8, err_msg=field)


def test_merged_states_and_one_program():
    data, columns = simulated()
    stream = streaming.streaming("cwpdis", horizon=6, size=20)
    halves = []
    for rows in (slice(0, 20), slice(20, 35), slice(35, 50)):
        chunk = jax.tree.map(lambda x, rows=rows: x[rows], data)
        halves.append(stream.update(stream.init(), chunk, target_log_prob=columns["target_log_prob"][rows]))
    joined = stream.finish(streaming.merge(streaming.merge(halves[0], halves[1]), halves[2]))
    expected = weighted.cwpdis(data, columns["target_log_prob"])
    np.testing.assert_allclose(joined[:2], expected[:2], rtol=1e-12)
    # nothing merged with something is that
    same = streaming.merge(stream.init(), halves[0])
    for one, other in zip(same, halves[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_under_jit():
    """A loop of one's own over chunks on the device."""
    data, columns = simulated(n=40)
    stream = streaming.streaming("wis", horizon=6, size=10, discount=0.9)

    def step(state, piece):
        chunk, log_prob = piece
        return stream.update(state, chunk, target_log_prob=log_prob), None

    with jax.enable_x64(True):
        pieces = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 10, *x.shape[1:]), (data, columns["target_log_prob"]))
        state, _ = jax.jit(lambda pieces: jax.lax.scan(step, stream.init(), pieces))(pieces)
    expected = weighted.wis(data, columns["target_log_prob"], discount=0.9)
    np.testing.assert_allclose(stream.finish(state)[:2], expected[:2], rtol=1e-12)


def few_of(data):
    return jax.tree.map(lambda x: x[:5], data)


def test_lists_are_columns():
    data, columns = simulated(n=5)
    stream = streaming.streaming("pdis", horizon=6, size=20)
    lists = dict(target_log_prob=columns["target_log_prob"].tolist(), counts=[1, 2, 0, 1, 1])
    found = stream.finish(stream.update(stream.init(), data._replace(rewards=data.rewards.tolist()), **lists))
    expected = weighted.pdis(data, columns["target_log_prob"], counts=np.array(lists["counts"]))
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-12)


def test_what_cannot_stream():
    data, columns = simulated()
    stream = streaming.streaming("pdis", horizon=6, size=20)
    log_prob = columns["target_log_prob"]
    for call, message in (
        (lambda: streaming.streaming("magic", horizon=6, size=20), "estimator must be one of naive"),
        (lambda: streaming.streaming("pdis", horizon=0, size=20), "at least 1"),
        (lambda: streaming.star_streaming(4, horizon=6, size=20, termination="both"), "termination must be one of"),
        (lambda: stream.update(stream.init(), data, target_log_prob=log_prob), "up to 20 of 6 are allowed"),
        (lambda: stream.update(stream.init(), data), "takes target_log_prob, got none"),
        (lambda: stream.update(stream.init(), data, target_log_prob=log_prob, q=log_prob), "got q, target_log_prob"),
        (lambda: stream.finish(stream.init()), "no trajectories have been added"),
        (
            lambda: stream.update(stream.init(), few_of(data), target_log_prob=log_prob[:5, :4]),
            r"target_log_prob has shape \(5, 4\); the chunk has 5 trajectories of 6 steps",
        ),
        (
            lambda: stream.update(stream.init(), few_of(data), target_log_prob=log_prob[:5], counts=np.ones(6)),
            r"counts has shape \(6,\)",
        ),
        (
            lambda: stream.update(
                stream.init(), few_of(data)._replace(mask=data.mask[:5, :3]), target_log_prob=log_prob[:5]
            ),
            r"mask has shape \(5, 3\)",
        ),
        (
            lambda: stream.update(stream.init(), data._replace(rewards=data.rewards[0]), target_log_prob=log_prob),
            r"rewards must be \[n, T\]",
        ),
        (lambda: stream.finish(stream.init(), interval="bca"), "others need all data at once"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    few = few_of(data._replace(rewards=data.rewards * np.nan))
    with pytest.raises(ValueError, match="Step 0 of trajectory 0"):
        stream.update(stream.init(), few, target_log_prob=log_prob[:5])
