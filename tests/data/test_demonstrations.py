"""Demonstrations: readers, round trips, every error and every repair."""

import os
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_off.data import demonstrations as demos_of
from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.data.minari_files import from_minari, to_minari
from jaxrl_off.envs import ContinuousSpace, DiscreteSpace, EnvironmentSpec

LENGTHS = (4, 1, 3)
SPEC = EnvironmentSpec("toy", (2,), "float32", ContinuousSpace((1,), (-1.0,), (1.0,)))
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "nppac"


def episodes(lengths=LENGTHS, ends="truncations", extra=1):
    """Episode e at time t observes (e, t), acts t / 10 and earns t + 1."""
    out = []
    for e, T in enumerate(lengths):
        times = np.arange(T + extra)
        end = np.arange(T) == T - 1
        out.append(
            {
                "observations": np.stack([np.full(T + extra, e), times], 1).astype(float),
                "actions": np.arange(T)[:, None] / 10,
                "rewards": np.arange(T) + 1.0,
                "terminations": end if ends == "terminations" else np.zeros(T, bool),
                "truncations": end if ends == "truncations" else np.zeros(T, bool),
            }
        )
    return out


def flat(parts, successors):
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "observations"}
    joined["observations"] = np.concatenate([part["observations"][: len(part["actions"])] for part in parts])
    joined["terminals"], joined["timeouts"] = joined.pop("terminations"), joined.pop("truncations")
    if successors:
        joined["next_observations"] = np.concatenate([part["observations"][1:] for part in parts])
    return joined


def assert_equal(left, right):
    for name in Demonstrations._fields:
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def good(**changes):
    return demos_of.from_episodes(episodes())._replace(**changes)


def test_successor_at_the_end_is_the_final_observation_not_the_next_first():
    demos = demos_of.from_episodes(episodes())
    np.testing.assert_array_equal(demos.episode, [0, 0, 0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(demos.observation, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1), (2, 2)])
    np.testing.assert_array_equal(demos.next_observation, demos.observation + [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), [3, 4, 7])
    assert not demos.terminated.any()
    np.testing.assert_allclose(demos.action[:, 0], [0.0, 0.1, 0.2, 0.3, 0.0, 0.0, 0.1, 0.2])
    np.testing.assert_array_equal(demos_of.episode_returns(demos), [10, 1, 6])
    dtypes = [str(field.dtype) for field in demos]
    assert dtypes == ["float32", "float32", "float32", "bool", "bool", "float32", "int32"]


def test_unknown_successor_of_a_truncated_end_drops_that_step_and_says_so():
    with pytest.warns(UserWarning, match="last step of 3 of 3 trajectories was dropped"):
        demos = demos_of.from_episodes(episodes(extra=0))
    np.testing.assert_array_equal(demos.episode, [0, 0, 0, 1, 1])  # the episode of one step is gone
    np.testing.assert_array_equal(demos.observation[:, 0], [0, 0, 0, 2, 2])
    np.testing.assert_array_equal(demos.next_observation, demos.observation + [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(demos.truncated), [2, 4])


def test_unknown_successor_of_a_terminated_end_does_not_matter():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demos = demos_of.from_episodes(episodes(extra=0, ends="terminations"))
    assert len(demos.reward) == 8
    np.testing.assert_array_equal(np.flatnonzero(demos.terminated), [3, 4, 7])
    np.testing.assert_array_equal(demos.next_observation[3], (0, 3))
    np.testing.assert_array_equal(demos.next_observation[2], (0, 3))


def test_a_cut_episode_stays_cut_when_its_last_step_is_dropped():
    with pytest.warns(UserWarning, match="dropped"):
        demos = demos_of.from_episodes(episodes((4,), ends="nowhere", extra=0))
    assert not demos.truncated.any()


def test_terminated_wins_over_truncated():
    part = episodes((3,))
    part[0]["terminations"][-1] = True
    demos = demos_of.from_episodes(part)
    assert demos.terminated[-1]
    assert not demos.truncated[-1]


@pytest.mark.parametrize("ends", ["truncations", "terminations"])
def test_flat_arrays_with_successors_equal_episodes(ends):
    parts = episodes(ends=ends)
    assert_equal(demos_of.from_arrays(flat(parts, True)), demos_of.from_episodes(parts))


def test_flat_arrays_without_successors_do_not_leak_into_the_next_episode():
    with pytest.warns(UserWarning, match="dropped"):
        left = demos_of.from_arrays(flat(episodes(), False))
    with pytest.warns(UserWarning, match="dropped"):
        right = demos_of.from_episodes(episodes(extra=0))
    assert_equal(left, right)
    terminated = demos_of.from_arrays(flat(episodes(ends="terminations"), False))
    assert_equal(terminated, demos_of.from_episodes(episodes(ends="terminations", extra=0)))


def test_flat_arrays_after_the_last_end_are_a_cut_trajectory():
    arrays = flat(episodes(), True)
    arrays["timeouts"][-1] = False
    demos = demos_of.from_arrays(arrays)
    np.testing.assert_array_equal(demos.episode, good().episode)
    assert not demos.truncated[-1]


def test_save_and_load_round_trip(tmp_path):
    path = demos_of.save(good(), tmp_path / "new" / "demos.npz")
    assert_equal(demos_of.load(path), good())
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        demos_of.save(good(reward=np.zeros(8, np.float32)), path)
    assert path.read_bytes() == before
    demos_of.save(good(reward=np.zeros(8, np.float32)), path, overwrite=True)
    assert not demos_of.load(path).reward.any()
    with pytest.raises(ValueError, match="ends in .npz"):
        demos_of.save(good(), tmp_path / "demos.h5")
    assert os.listdir(path.parent) == ["demos.npz"]


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = demos_of.save(good(), tmp_path / "demos.npz")

    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        demos_of.save(good(), path, overwrite=True)
    assert os.listdir(tmp_path) == ["demos.npz"]
    assert_equal(demos_of.load(path), good())


def test_load_flat_and_compact_layouts(tmp_path):
    parts = episodes()
    np.savez(tmp_path / "flat.npz", **flat(parts, True))
    assert_equal(demos_of.load(tmp_path / "flat.npz"), good())
    without = flat(parts, True)
    without.pop("rewards")
    np.savez(tmp_path / "flat.npz", **without)
    assert_equal(demos_of.load(tmp_path / "flat.npz", reward=2.0), good(reward=np.full(8, 2.0, np.float32)))

    arrays = flat(parts, False)
    compact = {"obs": arrays["observations"], "act": arrays["actions"], "lens": np.array(LENGTHS)}
    np.savez(tmp_path / "compact.npz", **compact)
    with pytest.raises(ValueError, match=r"has no rewards \(rew\); it has act, lens, obs. reward=0.0"):
        demos_of.load(tmp_path / "compact.npz")
    with pytest.warns(UserWarning, match="dropped"):
        demos = demos_of.load(tmp_path / "compact.npz", reward=0.0)
    assert not demos.reward.any()
    np.savez(tmp_path / "compact.npz", rew=arrays["rewards"], **compact)
    with pytest.warns(UserWarning, match="dropped"):
        demos = demos_of.load(tmp_path / "compact.npz")
    with pytest.warns(UserWarning, match="dropped"):
        assert_equal(demos, demos_of.from_episodes(episodes(extra=0)))
    for lens, message in (((4, 4, 1), "sums to 9, but act has 8"), ((8.0,), "positive integers"), ((8, 0), "positive")):
        np.savez(tmp_path / "compact.npz", **{**compact, "lens": np.array(lens)})
        with pytest.raises(ValueError, match=message):
            demos_of.load(tmp_path / "compact.npz", reward=0.0)


def test_load_says_what_is_missing_and_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        demos_of.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not an .npz of numbers"):
        demos_of.load(tmp_path / "text.npz")
    np.savez(tmp_path / "code.npz", observations=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="not an .npz of numbers"):
        demos_of.load(tmp_path / "code.npz")
    np.savez(tmp_path / "odd.npz", observations=np.zeros((3, 2)), actions=np.zeros((3, 1)), weird=np.zeros(1))
    with pytest.raises(ValueError, match="lacks rewards, terminals, timeouts; it has actions, observations, weird"):
        demos_of.load(tmp_path / "odd.npz")


def test_errors_of_the_constructors():
    part = episodes()
    part[1].pop("rewards")
    with pytest.raises(ValueError, match="episode 1 lacks rewards; it has actions, observations, "):
        demos_of.from_episodes(part)
    with pytest.raises(ValueError, match="no transition in 0 episodes"):
        demos_of.from_episodes([])
    with pytest.raises(ValueError, match="no transition in 1 episodes"):
        demos_of.from_episodes(episodes((1,), extra=0))
    with pytest.raises(ValueError, match="6 observations for 4 actions; 5 .* or 4 are allowed"):
        demos_of.from_episodes(episodes(extra=2))
    part = episodes()
    part[2]["rewards"] = part[2]["rewards"][:, None]
    with pytest.raises(ValueError, match=r"rewards of episode 2 has shape \(3, 1\); \(3,\)"):
        demos_of.from_episodes(part)
    part = episodes()
    part[0]["observations"] = part[0]["observations"][:, None]
    with pytest.raises(ValueError, match="observations of episode 0 .*Flatten"):
        demos_of.from_episodes(part)
    part = episodes()
    part[0]["observations"] = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"observations of the episodes differ in size: \[2, 3\]"):
        demos_of.from_episodes(part)
    arrays = flat(episodes(), True)
    with pytest.raises(ValueError, match=r"next_observations of the data has shape \(7, 2\)"):
        demos_of.from_arrays({**arrays, "next_observations": arrays["next_observations"][1:]})
    with pytest.raises(ValueError, match=r"terminals of the data has shape \(7,\); \(8,\)"):
        demos_of.from_arrays({**arrays, "terminals": arrays["terminals"][1:]})


def test_check_passes_what_is_good_and_reports_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demos, report = demos_of.check(good(), SPEC)
    assert_equal(demos, good())
    assert report == {
        "episodes": 3,
        "steps": 8,
        "marked_truncated": 0,
        "clipped_actions": 0.0,
        "constant_observation_dimensions": [],
    }


@pytest.mark.parametrize("field", ["observation", "action", "reward", "next_observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_refuses_what_is_not_finite(field, value):
    bad = getattr(good(), field).copy()
    bad[5:7] = value
    with pytest.raises(
        ValueError, match=rf"^{field} holds NaN or infinity in 2 of 8 steps, first in step 5.*trajectories 2"
    ):
        demos_of.check(good(**{field: bad}))


def test_check_cut_trajectories_and_their_repair():
    truncated = good().truncated.copy()
    truncated[[4, 7]] = False
    cut = good(truncated=truncated)
    with pytest.raises(ValueError, match="2 of 3 trajectories are cut: 1, 2.*repair=True"):
        demos_of.check(cut)
    demos, report = demos_of.check(cut, repair=True)
    assert report["marked_truncated"] == 2
    assert_equal(demos, good())
    assert not cut.truncated[7]  # what was given is left as it was


def test_check_actions_and_their_repair():
    action = good().action.copy()
    action[0], action[1] = 1.5, -3.0
    with pytest.raises(
        ValueError, match=r"25.00% of the action components.*from -3 to 1.5; allowed is \[-1, 1\].*clip"
    ):
        demos_of.check(good(action=action))
    demos, report = demos_of.check(good(action=action), clip_actions=True)
    assert report["clipped_actions"] == 0.25
    np.testing.assert_array_equal(demos.action[:2, 0], [1.0, -1.0])
    np.testing.assert_array_equal(demos.action[2:], action[2:])
    assert action[0] == 1.5
    wide = SPEC._replace(action_space=ContinuousSpace((1,), (-3.0,), (2.0,)))
    _, report = demos_of.check(good(action=action), wide)
    assert report["clipped_actions"] == 0.0
    with pytest.raises(ValueError, match=r"allowed is \[0, 1\]"):
        demos_of.check(good(action=action), SPEC._replace(action_space=ContinuousSpace((1,), (0.0,), (1.0,))))


def test_check_names_constant_dimensions():
    observation = good().observation.copy()
    observation[:, 0] = 7.0
    with pytest.warns(UserWarning, match=r"dimensions \[0\] do not vary"):
        _, report = demos_of.check(good(observation=observation))
    assert report["constant_observation_dimensions"] == [0]


def test_check_refuses_what_does_not_fit():
    truncated = good().truncated.copy()
    truncated[1] = True
    with pytest.raises(
        ValueError, match="1 steps are .* not the last of their trajectory, first step 1 of trajectory 0"
    ):
        demos_of.check(good(truncated=truncated), repair=True)
    with pytest.raises(ValueError, match=r"reward has shape \(7,\)"):
        demos_of.check(good(reward=np.zeros(7, np.float32)))
    with pytest.raises(ValueError, match=r"next_observation has shape \(8, 3\)"):
        demos_of.check(good(next_observation=np.zeros((8, 3), np.float32)))
    with pytest.raises(ValueError, match=r"action has shape \(8,\).*\[N, size\]"):
        demos_of.check(good(action=np.zeros(8, np.float32)))
    for wrong in ([1, 1, 1, 1, 2, 3, 3, 3], [0, 0, 0, 0, 2, 3, 3, 3], [0, 0, 0, 0, 1, 0, 0, 0]):
        with pytest.raises(ValueError, match="episode must count trajectories from 0"):
            demos_of.check(good(episode=np.array(wrong, np.int32)))
    with pytest.raises(ValueError, match="at least one step"):
        demos_of.check(Demonstrations(*(field[:0] for field in good())))
    with pytest.raises(ValueError, match=r"\(\(2,\), \(1,\)\); toy has \(\(3,\), \(1,\)\)"):
        demos_of.check(good(), SPEC._replace(observation_shape=(3,)))
    with pytest.raises(ValueError, match="continuous actions; toy has DiscreteSpace"):
        demos_of.check(good(), SPEC._replace(action_space=DiscreteSpace(2)))


def test_subset_picks_whole_trajectories():
    demos = demos_of.subset(good(), episodes=[2, 0])
    np.testing.assert_array_equal(demos.observation[:, 0], [2, 2, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(demos.episode, [0, 0, 0, 1, 1, 1, 1])
    assert demos.episode.dtype == np.int32
    demos_of.check(demos, SPEC)
    assert_equal(demos_of.subset(good(), number=2), demos_of.subset(good(), episodes=[0, 1]))
    assert_equal(demos_of.subset(good(), every=2), demos_of.subset(good(), episodes=[0, 2]))
    assert_equal(demos_of.subset(good(), number=3, key=jax.random.key(0)), good())
    many = demos_of.from_episodes(episodes((3,) * 20))
    picks = [demos_of.subset(many, number=8, key=jax.random.key(seed)).observation[::3, 0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(picks[0], picks[1])
    assert not np.array_equal(picks[0], picks[2])
    assert len(np.unique(picks[0])) == 8
    assert not np.array_equal(picks[0], np.arange(8))


def test_subset_errors():
    for wrong in ({}, {"number": 1, "every": 2}):
        with pytest.raises(ValueError, match="exactly one of episodes, number and every"):
            demos_of.subset(good(), **wrong)
    for wrong in ([], [3], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"distinct indices in 0 \.\. 2"):
            demos_of.subset(good(), episodes=wrong)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=rf"number must be in 1 \.\. 3.*got {wrong}"):
            demos_of.subset(good(), number=wrong)
    with pytest.raises(ValueError, match="every must be at least 1"):
        demos_of.subset(good(), every=0)
    with pytest.raises(ValueError, match="key goes with number"):
        demos_of.subset(good(), every=2, key=jax.random.key(0))


def test_subsample_keeps_firsts_lasts_and_true_transitions():
    demos = demos_of.subsample(good(), 3)
    np.testing.assert_array_equal(demos.observation, [(0, 0), (0, 3), (1, 0), (2, 0), (2, 2)])
    np.testing.assert_array_equal(demos.next_observation, demos.observation + [0, 1])
    np.testing.assert_array_equal(demos.episode, [0, 0, 1, 2, 2])
    demos_of.check(demos, SPEC)
    assert_equal(demos_of.subsample(good(), 1), good())
    np.testing.assert_array_equal(demos_of.subsample(good(), 2).observation[:3], [(0, 0), (0, 2), (0, 3)])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        demos_of.subsample(good(), 0)


@pytest.fixture
def minari(tmp_path, monkeypatch):
    module = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


@pytest.mark.parametrize("ends", ["truncations", "terminations"])
def test_minari_round_trip(minari, ends):
    demos = demos_of.from_episodes(episodes(ends=ends))
    dataset = to_minari(demos, "toy/made-v0", SPEC, algorithm_name="by hand", author="us", description="three")
    assert dataset.total_episodes == 3
    assert dataset.total_steps == 8
    assert dataset.action_space.shape == (1,)
    assert_equal(from_minari("toy/made-v0"), demos)
    assert_equal(from_minari(dataset), demos)
    assert dataset.storage.metadata["algorithm_name"] == "by hand"
    longer = dataset.filter_episodes(lambda episode: len(episode) > 1)
    assert_equal(from_minari(longer), demos_of.subset(demos, episodes=[0, 2]))
    with pytest.raises(FileExistsError, match="toy/made-v0.*another name or version"):
        to_minari(demos, "toy/made-v0", SPEC)
    assert_equal(from_minari("toy/made-v0"), demos)


def test_minari_stores_the_environment(minari):
    pytest.importorskip("gymnasium")
    demos = demos_of.from_episodes(episodes())
    demos = demos._replace(
        observation=np.pad(demos.observation, ((0, 0), (0, 1))),
        next_observation=np.pad(demos.next_observation, ((0, 0), (0, 1))),
    )
    spec = EnvironmentSpec("gymnasium/Pendulum-v1", (3,), "float32", ContinuousSpace((1,), (-2.0,), (2.0,)))
    dataset = to_minari(demos, "pendulum/made-v0", spec, environment_id="Pendulum-v1")
    assert dataset.recover_environment().spec.id == "Pendulum-v1"
    np.testing.assert_array_equal(dataset.action_space.high, [2.0])


def test_minari_errors(minari, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="no Minari data set 'toy/none-v0'.*there are: none.*MINARI_DATASETS_PATH"
    ):
        from_minari("toy/none-v0")
    with pytest.raises(ValueError, match="ends in its version"):
        to_minari(good(), "toy/made", SPEC)
    with pytest.raises(ValueError, match="step 0: Minari stores a trajectory as one chain"):
        to_minari(demos_of.subsample(good(), 2), "toy/made-v0", SPEC)
    with pytest.raises(ValueError, match="trajectories are cut"):
        to_minari(good(truncated=np.zeros(8, bool)), "toy/made-v0", SPEC)

    def fails(path, *arguments, **options):
        raise RuntimeError("half-way")

    with monkeypatch.context() as patch:
        patch.setattr(minari.dataset.minari_storage.MinariStorage, "update_metadata", fails)
        with pytest.raises(RuntimeError, match="half-way"):
            to_minari(good(), "toy/made-v0", SPEC)
    to_minari(good(), "toy/made-v0", SPEC)  # nothing was left in the way


def test_missing_minari_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrl_off\[minari\]"'):
        from_minari("toy/made-v0")


@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data is not on this machine")
def test_published_demonstrations():
    with pytest.warns(UserWarning, match="last step of 25 of 25"):
        door = demos_of.load(SHARED / "door_human_demos.npz", reward=0.0)
    with pytest.raises(ValueError, match=r"5\.\d+% of the action components.*from -1\.27875 to 1\.36619"):
        demos_of.check(door)
    door, report = demos_of.check(door, clip_actions=True)
    assert report["episodes"] == 25
    assert report["steps"] == 6729 - 25
    assert np.abs(door.action).max() == 1.0
    with pytest.warns(UserWarning, match="last step of 25 of 25"):
        pen = demos_of.load(SHARED / "pen2_sparse_demos.npz")
    _, report = demos_of.check(pen)
    returns = demos_of.episode_returns(pen)
    assert report["steps"] == 4975 - 25
    assert set(np.unique(pen.reward)) == {-1.0, 0.0}
    assert (returns == -198).sum() >= 8  # no success: -1 at each of the 198 steps that are left
