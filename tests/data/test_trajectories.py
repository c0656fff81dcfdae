"""Trajectories from episodes, arrays, demonstrations and files; what `check` refuses; behaviour policies cloned."""

import sys

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxrl_off.data import demonstrations
from jaxrl_off.data.trajectories import (
    check,
    chunks,
    concatenate,
    from_demonstrations,
    from_episodes,
    from_flat,
    load,
    read_hdf5,
    save,
)
from jaxrl_off.estimators.trajectory.behaviour import clone_behaviour
from jaxrl_off.estimators.trajectory.weights.importance import naive, wis
from jaxrl_off.types import Trajectories

LENGTHS, TERMINATES = (3, 1, 4), (True, True, False)


def episodes(*, successors=True, discrete=True, seed=0):
    draw = np.random.default_rng(seed)
    made = []
    for length, terminates in zip(LENGTHS, TERMINATES, strict=True):
        end = np.arange(length) == length - 1
        made.append(
            {
                "observations": draw.normal(size=(length + 1, 2)).astype(np.float32)[: length + successors],
                "actions": draw.integers(0, 3, length) if discrete else draw.normal(size=(length, 2)),
                "rewards": draw.normal(size=length),
                "behaviour_log_prob": -draw.random(length),
                "terminations": end & terminates,
                "truncations": end,
                "infos": {},
            }
        )
    return made


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("discrete", [True, False])
def test_episodes_are_padded(discrete):
    made = episodes(discrete=discrete)
    data = from_episodes(made)
    assert data.rewards.shape == (3, 4)
    assert data.mask.sum(axis=1).tolist() == list(LENGTHS)
    assert data.actions.dtype == (np.int32 if discrete else np.float64)
    assert data.observations.dtype == np.float32
    for row, episode in enumerate(made):
        steps = LENGTHS[row]
        for name in ("actions", "rewards", "behaviour_log_prob"):
            np.testing.assert_array_equal(getattr(data, name)[row, :steps], episode[name])
            assert not getattr(data, name)[row, steps:].any()
        np.testing.assert_array_equal(data.observations[row, :steps], episode["observations"][:-1])
        np.testing.assert_array_equal(data.final_observation[row], episode["observations"][-1])
    # the truncation of an episode that terminated is not one
    assert data.terminated.sum(axis=1).tolist() == [1, 1, 0]
    assert data.truncated.sum(axis=1).tolist() == [0, 0, 1]
    _, report = check(data, require=["behaviour_log_prob", "actions"])
    assert report == (3, 0, {})
    returns = [episode["rewards"].sum() for episode in made]
    np.testing.assert_allclose(naive(data).value, np.mean(returns), rtol=1e-12)


def test_successors_that_are_not_known():
    made = episodes(successors=False)
    assert from_episodes(made).final_observation is None
    # of two that terminated nobody asks
    assert from_episodes(made[:2]).final_observation.shape == (2, 2)
    assert from_episodes(made).mask.sum() == sum(LENGTHS)


def test_integer_states_and_one_dimensional_actions():
    end = dict(terminations=[False, True], truncations=[False, False])
    data = from_episodes([dict(observations=[3, 1, 2], actions=[0, 1], rewards=[0, 1], **end)])
    assert data.observations.dtype == np.int32
    assert data.observations.tolist() == [[3, 1]]
    assert data.final_observation.tolist() == [2]
    assert data.behaviour_log_prob is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rewards=np.zeros(2)), r"rewards of episode 0 are float64\[2\]; numbers of shape \[3\]"),
        (dict(observations=np.zeros((5, 2))), r"observations \(5, 2\) and actions \(3,\)"),
        (dict(actions=np.zeros(3)), "all episodes must have one type"),
        (dict(actions=None), "episode 0 lacks actions"),
        (dict(behaviour_log_prob=None), "episode 0 lacks behaviour_log_prob"),
        (dict(observations=np.zeros((4, 5), np.float32)), r"observations of episode 1 are float32\[1, 2\]"),
        (dict(actions=[], observations=np.zeros((1, 2))), "at least one"),
        (dict(actions=[2**40, 0, 0]), "int32 cannot hold"),
    ],
)
def test_episodes_that_do_not_fit(change, message):
    made = episodes()
    made[0] |= change
    with pytest.raises(ValueError, match=message):
        from_episodes(made)
    with pytest.raises(ValueError, match="no episodes"):
        from_episodes([])
    with pytest.raises(ValueError, match="one integer a step or"):
        from_episodes([episodes()[0] | dict(actions=np.zeros(3))])


def flat(*, successors):
    made = episodes()
    joined = {key: np.concatenate([e[key] for e in made]) for key in ("actions", "rewards", "behaviour_log_prob")}
    joined["observations"] = np.concatenate([e["observations"][:-1] for e in made])
    joined["terminals"] = np.concatenate([e["terminations"] for e in made])
    joined["timeouts"] = np.concatenate([e["truncations"] & ~e["terminations"] for e in made])
    if successors:
        joined["next_observations"] = np.concatenate([e["observations"][1:] for e in made])
    return joined


def test_flat_arrays_are_the_same_trajectories():
    same(from_flat(flat(successors=True)), from_episodes(episodes()))
    same(from_flat(flat(successors=False)), from_episodes(episodes(successors=False)))


def test_steps_after_the_last_end_are_a_cut_trajectory():
    arrays = flat(successors=True)
    arrays["timeouts"][-1] = False
    same(from_flat(arrays), from_episodes(episodes()))


def test_flat_arrays_that_do_not_fit():
    arrays = flat(successors=True)
    with pytest.raises(ValueError, match="the data lacks timeouts"):
        from_flat({name: array for name, array in arrays.items() if name != "timeouts"})
    with pytest.raises(ValueError, match=r"rewards of the data are float64\[7\]"):
        from_flat(arrays | {"rewards": arrays["rewards"][:7]})
    numbered = arrays | {"observations": np.arange(8), "next_observations": np.append(np.arange(1, 8), 2**40)}
    with pytest.raises(
        ValueError, match="observations are int32, and what followed the last steps is not: 1099511627776"
    ):
        from_flat(numbered)
    with pytest.raises(ValueError, match=r"is not: 7\.5"):
        from_flat(numbered | {"next_observations": np.append(np.arange(1.0, 8.0), 7.5)})
    with pytest.raises(ValueError, match="next_observations have steps of"):
        from_flat(arrays | {"next_observations": np.zeros((8, 3))})


def test_hdf5(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path, arrays = tmp_path / "data.hdf5", flat(successors=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file["infos/action_log_probs" if name == "behaviour_log_prob" else name] = array
    same(read_hdf5(path, behaviour_log_prob="infos/action_log_probs"), from_episodes(episodes()))
    assert read_hdf5(path).behaviour_log_prob is None
    with pytest.raises(ValueError, match="has no logp; it has actions, infos"):
        read_hdf5(path, behaviour_log_prob="logp")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_hdf5(tmp_path / "other.hdf5")
    (tmp_path / "text.hdf5").write_text("text")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_hdf5(tmp_path / "text.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install .jaxrl_off\[minari\]"):
        read_hdf5(path)


def test_demonstrations_and_minari(tmp_path, monkeypatch):
    made = episodes(discrete=False)
    demos = demonstrations.from_episodes(made)
    log_prob = np.concatenate([e["behaviour_log_prob"] for e in made])
    data, expected = from_demonstrations(demos, log_prob), from_episodes(made)
    assert jax.tree.structure(data) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(data), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    with pytest.raises(ValueError, match="behaviour_log_prob of the demonstrations"):
        from_demonstrations(demos, log_prob[1:])

    pytest.importorskip("minari")
    from jaxrl_off.data.minari_files import from_minari, to_minari
    from jaxrl_off.envs import ContinuousSpace, EnvironmentSpec

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spec = EnvironmentSpec("made-up", (2,), "float32", ContinuousSpace((2,), (-9.0, -9.0), (9.0, 9.0)))
    to_minari(demos, "made-up-v0", spec)
    same(from_demonstrations(from_minari("made-up-v0")), from_demonstrations(demos))


def bad(**changes):
    data = from_episodes(episodes())
    for name, (place, value) in changes.items():
        field = getattr(data, name).copy()
        field[place] = value
        data = data._replace(**{name: field})
    return data


@pytest.mark.parametrize(
    ("field", "place", "value", "row", "step"),
    [
        ("rewards", (2, 1), np.nan, 2, 1),
        ("rewards", (0, 2), np.inf, 0, 2),
        ("observations", (2, 3, 1), np.nan, 2, 3),
        ("actions", (0, 1), -1, 0, 1),
        ("behaviour_log_prob", (2, 0), -np.inf, 2, 0),
        ("behaviour_log_prob", (2, 0), 0.5, 2, 0),
        ("mask", (2, 1), False, 2, 2),
        ("mask", (1, 0), False, 1, 0),
        ("terminated", (2, 1), True, 2, 1),
        ("truncated", (2, 2), True, 2, 2),
        ("truncated", (1, 0), True, 1, 0),
        ("final_observation", (2, 0), np.nan, 2, 3),
    ],
)
def test_check_names_and_drops(field, place, value, row, step):
    data = bad(**{field: (place, value)})
    with pytest.raises(ValueError, match=f"^{field} must be .* step {step} of trajectory {row} has .*1 of 3"):
        check(data)
    kept, report = check(data, on_bad="drop")
    assert report == (2, 1, {field: 1})
    whole = from_episodes(episodes())
    same(kept, jax.tree.map(lambda x: np.delete(x, row, axis=0), whole))


def test_check_leaves_padding_alone_and_what_follows_a_termination():
    data = bad(rewards=((1, 2), np.nan), truncated=((1, 3), True), final_observation=((0, 0), np.nan))
    assert check(data)[1].dropped == 0
    densities = from_episodes(episodes(discrete=False))
    densities.behaviour_log_prob[0, 0] = 3.0
    assert check(densities)[1].dropped == 0


def test_check_of_structure():
    data = from_episodes(episodes())
    for change, message in (
        (dict(mask=data.mask.astype(float)), r"mask is float64\[3, 4\]; bool\[3, 4\] is allowed"),
        (dict(rewards=data.rewards[0]), r"rewards must be \[n, T\]"),
        (dict(terminated=None), "lack terminated"),
        (dict(actions=data.actions[:2]), r"actions are int32\[2, 4\]"),
        (dict(observations=data.observations[:, :2]), "observations have shapes"),
        (dict(final_observation=data.observations), "must lack the axis of T"),
        (dict(behaviour_log_prob=data.actions), "behaviour_log_prob is int32"),
    ):
        with pytest.raises(ValueError, match=message):
            check(data._replace(**change))
    with pytest.raises(ValueError, match="clone_behaviour"):
        check(data._replace(behaviour_log_prob=None), require=["behaviour_log_prob"])
    with pytest.raises(ValueError, match="have no reward;"):
        check(data, require=["reward"])
    with pytest.raises(ValueError, match="on_bad must be"):
        check(data, on_bad="ignore")
    with pytest.raises(ValueError, match="none of 3 trajectories is valid: rewards is wrong in 3"):
        check(bad(rewards=((slice(None), 0), np.nan)), on_bad="drop")


def test_chunks_and_concatenate():
    data = from_episodes(episodes())
    pieces = list(chunks(data, 2))
    assert [len(piece.rewards) for piece in pieces] == [2, 1]
    same(concatenate(pieces), data)
    # rows of one horizon join those of another
    short = from_episodes(episodes()[:2])
    assert short.rewards.shape == (2, 3)
    same(concatenate([short, pieces[1]]), data)
    with pytest.raises(ValueError, match="behaviour_log_prob of part 1 is None"):
        concatenate([data, data._replace(behaviour_log_prob=None)])
    with pytest.raises(ValueError, match="actions of part 1 is float64"):
        concatenate([data, from_episodes(episodes(discrete=False))])
    with pytest.raises(ValueError, match="size must be at least 1"):
        chunks(data, 0)
    with pytest.raises(ValueError, match="nothing to concatenate"):
        concatenate([])


def test_observations_that_are_a_tree():
    data = from_episodes(episodes())
    tree = data._replace(
        observations={"a": data.observations, "b": data.actions},
        final_observation={"a": data.final_observation, "b": np.zeros(3, np.int32)},
    )
    same(concatenate(list(chunks(tree, 1))), tree)
    assert check(tree)[1].rows == 3
    tree.observations["a"][0, 0] = np.nan
    with pytest.raises(ValueError, match="observations must be finite; step 0 of trajectory 0"):
        check(tree)


def test_save_and_load(tmp_path):
    data, path = from_episodes(episodes(successors=False)), tmp_path / "folder" / "data.npz"
    assert save(data, path) == path
    same(load(path), data)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(data, path)
    save(data._replace(behaviour_log_prob=None), path, overwrite=True)
    assert load(path).behaviour_log_prob is None
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        save(data, tmp_path / "data.txt")
    with pytest.raises(ValueError, match="only single arrays"):
        save(data._replace(observations={"a": data.observations}), tmp_path / "tree.npz")
    np.savez(tmp_path / "less.npz", rewards=data.rewards)
    with pytest.raises(ValueError, match="lacks mask, terminated, truncated"):
        load(tmp_path / "less.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="not an .npz"):
        load(tmp_path / "text.npz")


def test_tabular_clone_counts():
    draw = np.random.default_rng(1)
    states, actions = draw.integers(0, 3, (200, 5)) * 7, draw.integers(0, 2, (200, 5))
    actions[states == 7] = 1
    mask = np.arange(5) < draw.integers(1, 6, (200, 1))
    off = np.zeros_like(mask)
    data = Trajectories(states, actions, np.ones((200, 5)), None, mask, off, off, None)
    for smoothing in (0.0, 2.0):
        cloned, report = clone_behaviour(data, num_actions=2, smoothing=smoothing)
        expected = np.zeros((200, 5))
        for i, t in np.argwhere(mask):
            here = mask & (states == states[i, t])
            taken = (here & (actions == actions[i, t])).sum()
            expected[i, t] = np.log((taken + smoothing) / (here.sum() + 2 * smoothing))
        np.testing.assert_allclose(cloned.behaviour_log_prob, expected, atol=1e-12)
        assert cloned.behaviour_estimated.all()
        assert (report.steps, report.parameters) == (mask.sum(), 3)
        np.testing.assert_allclose(report.mean_log_prob, expected[mask].mean())
        np.testing.assert_allclose(report.smallest_probability, np.exp(expected[mask].min()))
        assert "not logged but estimated" in report.note
    # a target that is the clone needs no correction
    log_prob = cloned.behaviour_log_prob
    np.testing.assert_allclose(wis(cloned, log_prob).value, naive(cloned).value, rtol=1e-12)


def test_estimated_behaviour_is_said(tmp_path):
    """The flag of the clone goes through files, chunks and joins into the diagnostics of what uses the probabilities."""
    made = episodes()
    data = from_episodes([e | dict(observations=np.arange(len(e["observations"]))) for e in made])
    cloned, _ = clone_behaviour(data, num_actions=3)
    joined = concatenate([*chunks(cloned, 2), data])
    assert joined.behaviour_estimated.tolist() == [True] * 3 + [False] * 3
    same(load(save(joined, tmp_path / "joined.npz")), joined)
    assert check(joined)[0].behaviour_estimated is not None
    target = np.zeros(joined.rewards.shape)
    assert float(wis(joined, target).diagnostics["behaviour_estimated"]) == 0.5
    assert float(wis(cloned, target[:3]).diagnostics["behaviour_estimated"]) == 1.0
    assert float(wis(data, target[:3]).diagnostics["behaviour_estimated"]) == 0.0
    assert float(naive(cloned).diagnostics["behaviour_estimated"]) == 0.0
    with pytest.raises(ValueError, match=r"behaviour_estimated is bool\[2\]; bool\[3\]"):
        check(cloned._replace(behaviour_estimated=np.ones(2, bool)))


def test_logistic_clone_is_that_of_scikit_learn():
    draw = np.random.default_rng(2)
    observations = draw.normal(size=(150, 4, 3)) * [1.0, 5.0, 0.0] + [0.0, 3.0, 1.0]
    logits = observations @ draw.normal(size=(3, 3))
    actions = np.argmax(logits + draw.gumbel(size=logits.shape), axis=-1)
    mask = np.arange(4) < draw.integers(1, 5, (150, 1))
    observations[~mask] = np.nan
    off = np.zeros_like(mask)
    data = Trajectories(observations, actions, np.ones((150, 4)), None, mask, off, off, None)
    cloned, report = clone_behaviour(data, num_actions=3, kind="logistic", penalty=1e-2)
    x, a = observations[mask], actions[mask]
    x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    peer = LogisticRegression(C=1.0 / (1e-2 * len(a)), tol=1e-10, max_iter=10_000).fit(x, a)
    expected = np.log(peer.predict_proba(x)[np.arange(len(a)), a])
    np.testing.assert_allclose(cloned.behaviour_log_prob[mask], expected, atol=1e-6)
    assert report.gradient_norm < 1e-7
    assert report.parameters == 2 * 4
    assert not cloned.behaviour_log_prob[~mask].any()


def test_clones_that_cannot_be():
    data = from_episodes(episodes())
    with pytest.raises(ValueError, match="counts need states"):
        clone_behaviour(data, num_actions=3)
    with pytest.raises(ValueError, match="actions have shape"):
        clone_behaviour(from_episodes(episodes(discrete=False)), num_actions=3, kind="logistic")
    with pytest.raises(ValueError, match=r"in \[0, 2\) is needed"):
        clone_behaviour(data, num_actions=2, kind="logistic")
    with pytest.raises(ValueError, match="kind must be one of"):
        clone_behaviour(data, num_actions=3, kind="network")
    with pytest.raises(ValueError, match="penalty positive"):
        clone_behaviour(data, num_actions=3, kind="logistic", penalty=0.0)
    tree = data._replace(observations={"a": data.observations}, final_observation=None)
    with pytest.raises(ValueError, match="a single array is needed"):
        clone_behaviour(tree, num_actions=3, kind="logistic")
    with pytest.raises(ValueError, match="lack observations"):
        clone_behaviour(data._replace(observations=None, final_observation=None), num_actions=3)


def table(order=None):
    """Three episodes of 3, 1 and 2 steps, the second one terminated, as a flat table in a given order of rows."""
    columns = dict(
        episode=np.array([5, 5, 5, 2, 9, 9]),
        step=np.array([0, 1, 2, 0, 0, 1]),
        observations=np.array([[0.0], [1.0], [2.0], [10.0], [20.0], [21.0]]),
        next_observations=np.array([[1.0], [2.0], [3.0], [11.0], [21.0], [22.0]]),
        actions=np.array([0, 1, 0, 1, 0, 1]),
        rewards=np.arange(6.0),
        terminals=np.array([False, False, False, True, False, False]),
        timeouts=np.array([False, False, True, False, False, True]),
    )
    return columns if order is None else {name: column[order] for name, column in columns.items()}


def test_a_flat_table_in_any_order_is_sorted_by_episode_and_step():
    """The defect: rows out of order became other episodes, and nobody was told."""
    expected = from_flat(table())
    assert expected.rewards.tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [4.0, 5.0, 0.0]]
    assert expected.truncated.sum(axis=1).tolist() == [1, 0, 1]
    shuffled = table(np.array([4, 2, 0, 3, 5, 1]))  # episode 9 comes first now
    found = from_flat(shuffled)
    assert found.rewards.tolist() == [[4.0, 5.0, 0.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(lambda x: x[[2, 0, 1]], expected))
    del shuffled["timeouts"]
    jax.tree.map(np.testing.assert_array_equal, from_flat(shuffled), found)
    unnamed = {name: column for name, column in table().items() if name not in ("episode", "step")}
    jax.tree.map(np.testing.assert_array_equal, from_flat(unnamed), expected)


@pytest.mark.parametrize(
    ("left_out", "order", "change", "message"),
    [
        (["step"], [0, 3, 1, 2, 4, 5], {}, "episode 5 are in several places"),
        (["episode"], [1, 0, 2, 3, 4, 5], {}, "row 0 has step 1 where 0 follows"),
        (["episode", "step"], [0, 2, 1, 3, 4, 5], {}, "next_observations of row 0 are not the observations of row 1"),
        ([], [0, 2, 3, 4, 5], {}, "episode 5 has step 2 where 1 is needed"),
        ([], [1, 2, 3, 4, 5], {}, "episode 5 has step 1 where 0 is needed"),
        ([], [0, 1, 2, 3, 4, 5], dict(terminals=np.ones(6, bool)), "episode 5 goes on after a terminal"),
        (["timeouts", "episode"], [0, 1, 2, 3, 4, 5], {}, "lacks timeouts"),
    ],
)
def test_tables_out_of_order_are_refused(left_out, order, change, message):
    columns = {name: column for name, column in table(np.array(order)).items() if name not in left_out} | change
    with pytest.raises(ValueError, match=message):
        from_flat(columns)


def test_other_files_are_no_trajectories(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not an .npz file; `load` reads what `save` wrote"):
        load(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "y.npz")
