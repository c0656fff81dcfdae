"""Chunks read from files against the whole read at once, and estimates from them."""

import jax
import numpy as np
import pytest

from jaxrl_off.data import trajectory_streams
from jaxrl_off.data.trajectories import chunks, concatenate, from_episodes, from_flat, read_hdf5, save
from jaxrl_off.data.trajectory_streams import iterate_episodes, iterate_flat, iterate_hdf5, iterate_npz
from jaxrl_off.estimators.trajectory.streaming import streaming
from jaxrl_off.estimators.trajectory.weights import importance as weighted

LENGTHS = (3, 1, 4, 2, 5, 1, 1)


def episodes(*, discrete=True):
    random = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        end = np.arange(length) == length - 1
        yield {
            "observations": random.normal(size=(length + 1, 2)).astype(np.float32),
            "actions": random.integers(0, 3, length) if discrete else random.normal(size=(length, 2)),
            "rewards": random.normal(size=length),
            "behaviour_log_prob": -random.random(length),
            "terminations": end & (number % 2 == 0),
            "truncations": end & (number % 2 == 1),
        }


def flat():
    made = list(episodes())
    joined = {key: np.concatenate([e[key] for e in made]) for key in ("actions", "rewards", "behaviour_log_prob")}
    joined["observations"] = np.concatenate([e["observations"][:-1] for e in made])
    joined["next_observations"] = np.concatenate([e["observations"][1:] for e in made])
    return joined | {
        "terminals": np.concatenate([e["terminations"] for e in made]),
        "timeouts": np.concatenate([e["truncations"] for e in made]),
    }


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [1, 3, 7, 9])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_chunks_are_the_whole_cut_up(size, block, monkeypatch, tmp_path):
    monkeypatch.setattr(trajectory_streams, "_BLOCK", block)
    whole = from_episodes(list(episodes()))
    for source in (iterate_flat(flat(), size), iterate_episodes(episodes(), size)):
        found = list(source)
        assert [len(chunk.rewards) for chunk in found] == [min(size, 7 - start) for start in range(0, 7, size)]
        assert all(chunk.mask.any(axis=0).all() for chunk in found)
        same(concatenate(found), whole)
    path = save(whole, tmp_path / "data.npz")
    for found, expected in zip(iterate_npz(path, size), chunks(whole, size), strict=True):
        same(found, expected)


def test_steps_after_the_last_end():
    arrays = flat()
    arrays["timeouts"][-1] = arrays["terminals"][-1] = False
    found = list(iterate_flat(arrays, 3))
    same(concatenate(found), from_flat(arrays))
    assert found[-1].truncated[0, 0]


def test_hdf5_into_a_stream(tmp_path):
    """The estimate of a file that is never read as a whole is that of the file."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in flat().items():
            file["infos/action_log_probs" if name == "behaviour_log_prob" else name] = array
    options = dict(behaviour_log_prob="infos/action_log_probs")
    whole = read_hdf5(path, **options)
    same(concatenate(list(iterate_hdf5(path, 2, **options))), whole)
    stream = streaming("wis", horizon=5, size=3, discount=0.9)
    state = stream.init()
    for chunk in iterate_hdf5(path, 3, **options):
        state = stream.update(state, chunk, target_log_prob=np.where(chunk.actions == 0, -0.1, -1.0))
    found = stream.finish(state, level=0.9)
    expected = weighted.wis(whole, np.where(whole.actions == 0, -0.1, -1.0), discount=0.9, level=0.9)
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-12)


def test_minari(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from jaxrl_off.data import demonstrations
    from jaxrl_off.data.minari_files import to_minari
    from jaxrl_off.envs import ContinuousSpace, EnvironmentSpec

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = list(episodes(discrete=False))
    spec = EnvironmentSpec("made-up", (2,), "float32", ContinuousSpace((2,), (-9.0, -9.0), (9.0, 9.0)))
    to_minari(demonstrations.from_episodes(made), "made-up-v0", spec)
    source = (vars(episode) for episode in minari.load_dataset("made-up-v0").iterate_episodes())
    found = list(iterate_episodes(source, 3))
    assert [len(chunk.rewards) for chunk in found] == [3, 3, 1]
    np.testing.assert_allclose(concatenate(found).rewards, from_episodes(made).rewards, rtol=1e-6)


def test_files_that_cannot_be_read(tmp_path):
    whole = from_episodes(list(episodes()))
    path = save(whole, tmp_path / "data.npz")
    for source in (iterate_npz(path, 0), iterate_flat(flat(), 0), iterate_episodes(episodes(), 0)):
        with pytest.raises(ValueError, match="size must be at least 1"):
            next(source)
    for name in ("rewards", "timeouts"):
        with pytest.raises(ValueError, match=f"the data lacks {name}"):
            next(iterate_flat({key: array for key, array in flat().items() if key != name}, 2))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="not an .npz"):
        next(iterate_npz(tmp_path / "text.npz", 2))
    np.savez(tmp_path / "less.npz", rewards=whole.rewards)
    with pytest.raises(ValueError, match="lacks mask, terminated, truncated"):
        next(iterate_npz(tmp_path / "less.npz", 2))
    np.savez(tmp_path / "turned.npz", **whole._asdict() | {"rewards": np.asfortranarray(whole.rewards)})
    with pytest.raises(ValueError, match="rows of numbers"):
        next(iterate_npz(tmp_path / "turned.npz", 2))
    with pytest.raises(FileNotFoundError):
        next(iterate_npz(tmp_path / "none.npz", 2))


def test_a_stream_of_episodes_is_in_order(monkeypatch):
    """Episodes end where their number changes; one that comes back is refused, in whatever block that is."""
    columns = dict(
        episode=np.array([5, 5, 5, 2, 9, 9]),
        observations=np.arange(6.0)[:, None],
        actions=np.zeros(6, int),
        rewards=np.arange(6.0),
        terminals=np.zeros(6, bool),
    )
    for block in (2, 3, 100):
        monkeypatch.setattr(trajectory_streams, "_BLOCK", block)
        found = [chunk.rewards.tolist() for chunk in trajectory_streams.iterate_flat(columns, 2)]
        assert found == [[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], [[4.0, 5.0]]]
        back = columns | dict(episode=np.array([5, 5, 2, 2, 9, 5]))
        with pytest.raises(ValueError, match="in several places"):
            list(trajectory_streams.iterate_flat(back, 2))
