"""Bandit logs: what is read from each layout, what is refused, what is dropped, and what the errors say."""

import gzip
import sys
import types

import numpy as np
import pytest

from jaxrl_off.data.bandit_logs import check, from_arrays, from_obp, read_open_bandit, read_table

NAN = float("nan")


def columns(n=6, **changes):
    given = {
        "context": np.arange(2.0 * n).reshape(n, 2),
        "action": np.arange(n) % 3,
        "reward": np.linspace(-1, 1, n),
        "propensity": np.linspace(0.25, 1, n),
        "target_propensity": np.linspace(0, 1, n),
    }
    return given | changes


def changed(name, row, value):
    column = np.array(columns()[name], float)
    column[row] = value
    return columns(**{name: column})


def assert_logs_equal(left, right):
    for name in ("context", "action", "reward", "propensity", "target_propensity"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert left.num_actions == right.num_actions


def test_log_of_arrays():
    words = np.array(["a", "bb", "c", "d", "e", "f"])
    log, report = from_arrays(**columns(), columns={"word": words, "vector": np.ones((6, 2))})
    for name, column in columns().items():
        np.testing.assert_array_equal(getattr(log, name), column)
    dtypes = [str(x.dtype) for x in log[:5]]
    assert dtypes == ["float64", "int32", "float64", "float64", "float64"]
    assert (log.num_actions, report) == (3, (6, 0, {}))
    assert log.columns["word"].tolist() == words.tolist()
    least, _ = from_arrays(action=[True, False], reward=[1, NAN], propensity=[1, 0.5], num_actions=7)
    assert (least.context.shape, least.target_propensity, least.num_actions) == ((2, 0), None, 7)
    np.testing.assert_array_equal(least.reward, [1, NAN])
    single, _ = from_arrays(**columns(context=np.ones(6, np.float32)))
    assert (single.context.shape, single.context.dtype) == ((6, 1), np.float32)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("propensity", 0.0, r"propensity must be in \(0, 1\]; row 2 has 0.0"),
        ("propensity", 1.01, r"propensity must be in \(0, 1\]; row 2 has 1.01"),
        ("propensity", NAN, r"propensity must be in \(0, 1\]; row 2 has nan"),
        ("target_propensity", -0.1, r"target_propensity must be in \[0, 1\]; row 2 has -0.1"),
        ("target_propensity", NAN, r"target_propensity must be in \[0, 1\]; row 2 has nan"),
        ("action", -1, r"action must be an integer in \[0, 3\); row 2 has -1.0"),
        ("action", 3, r"action must be an integer in \[0, 3\); row 2 has 3.0"),
        ("action", 0.5, r"action must be an integer in \[0, 3\); row 2 has 0.5"),
        ("action", NAN, r"action must be an integer in \[0, 3\); row 2 has nan"),
        ("reward", np.inf, "reward must be finite or NaN; row 2 has inf"),
        ("context", NAN, r"context must be finite; row 2 has \[nan nan\]"),
    ],
)
def test_values_that_are_not_allowed_are_named_or_dropped(name, value, allowed):
    given = changed(name, 2, value)
    with pytest.raises(
        ValueError, match=rf"{allowed}, and 1 of 6 rows are so\. .*; on_bad='drop' leaves such rows out"
    ):
        from_arrays(**given, num_actions=3)
    log, report = from_arrays(**given, num_actions=3, columns={"row": np.arange(6)}, on_bad="drop")
    assert report == (5, 1, {name: 1})
    assert log.columns["row"].tolist() == [0, 1, 3, 4, 5]
    for field in columns():
        np.testing.assert_array_equal(getattr(log, field), np.delete(columns()[field], 2, 0))


def test_a_row_that_is_wrong_twice_is_dropped_once():
    given = changed("propensity", [1, 4], 0.0) | {"reward": [0, np.inf, 0, 0, 0, -np.inf]}
    log, report = from_arrays(**given, on_bad="drop")
    assert report == (3, 3, {"reward": 2, "propensity": 2})
    np.testing.assert_array_equal(log.action, [0, 2, 0])
    again, second = check(log)
    assert_logs_equal(log, again)
    assert second == (3, 0, {})
    with pytest.raises(ValueError, match="no row of 6 is left: propensity is wrong in 6"):
        from_arrays(**columns(propensity=np.zeros(6)), on_bad="drop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.ones(5)}, r"reward has shape \(5,\); there are 6 actions"),
        ({"propensity": np.ones((6, 1))}, r"propensity has shape \(6, 1\)"),
        ({"target_propensity": np.ones((6, 3))}, r"target_propensity has shape \(6, 3\)"),
        ({"context": np.ones((6, 2, 2))}, r"context has shape \(6, 2, 2\)"),
        ({"context": np.ones((5, 2))}, r"context has shape \(5, 2\)"),
        ({"columns": {"slot": [1, 2]}}, r"slot has shape \(2,\)"),
        ({"action": np.zeros((6, 1))}, r"action must be int\[n\] with one row or more, got shape \(6, 1\)"),
        ({"action": 0}, r"got shape \(\)"),
        ({"reward": list("abcdef")}, "reward must be an array of numbers, and cannot be made one: .*'a'"),
        ({"num_actions": 2.5}, "num_actions must be an integer, got 2.5"),
        ({"num_actions": 0}, r"num_actions must be in \[1, 2\^31\), got 0"),
        ({"action": np.full(6, 3e9)}, r"num_actions must be in .* got 3000000001. Number actions from 0"),
        ({"on_bad": "ignore"}, "on_bad must be 'error' or 'drop', got 'ignore'"),
    ],
)
def test_arrays_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(**columns(**changes))


def obp(**changes):
    given = {"n_rounds": 4, "n_actions": 3, "context": np.eye(4), "action_context": np.eye(3)}
    given |= {"action": np.array([2, 0, 1, 2]), "reward": np.array([1, 0, 0, 1]), "pscore": np.full(4, 0.5)}
    given |= {"position": np.array([1, 0, 0, 1]), "pi_b": None, "expected_reward": np.ones((4, 3))}
    return given | changes


def test_open_bandit_pipeline():
    action_dist = np.random.default_rng(0).dirichlet(np.ones(3), (4, 2)).transpose(0, 2, 1)
    log, report = from_obp(obp(), action_dist)
    np.testing.assert_array_equal(log.context, np.eye(4))
    np.testing.assert_array_equal(log.action, [2, 0, 1, 2])
    np.testing.assert_array_equal(log.propensity, np.full(4, 0.5))
    expected = [action_dist[0, 2, 1], action_dist[1, 0, 0], action_dist[2, 1, 0], action_dist[3, 2, 1]]
    np.testing.assert_array_equal(log.target_propensity, expected)
    assert list(log.columns) == ["position"]
    np.testing.assert_array_equal(log.columns["position"], [1, 0, 0, 1])
    assert (log.num_actions, report.rows) == (3, 4)
    first, _ = from_obp(obp(position=None, context=None), action_dist)
    np.testing.assert_array_equal(first.target_propensity, action_dist[range(4), [2, 0, 1, 2], 0])
    assert (first.columns, first.context.shape) == ({}, (4, 0))
    assert from_obp(obp())[0].target_propensity is None
    dropped, report = from_obp(obp(action=np.array([2, 7, 1, 2])), action_dist, on_bad="drop")
    np.testing.assert_array_equal(dropped.target_propensity, np.array(expected)[[0, 2, 3]])
    assert report.reasons == {"action": 1}


@pytest.mark.parametrize(
    ("feedback", "action_dist", "message"),
    [
        (obp(pscore=None), None, "feedback lacks pscore; it has n_rounds, n_actions"),
        ({"action": [0]}, None, "feedback lacks reward, pscore, n_actions; it has action"),
        ((obp(), obp()), None, "must be a dictionary, got tuple; of a time series split"),
        (obp(), np.ones((4, 3)), r"action_dist has shape \(4, 3\); with 4 rows and 3 actions, \(4, 3, len_list\)"),
        (obp(), np.ones((4, 2, 1)), r"action_dist has shape \(4, 2, 1\)"),
        (obp(), np.ones((4, 3, 1)), r"position must hold 4 integers in \[0, 1\), .* from 0 to 1"),
        (obp(reward=np.ones(3)), None, r"reward has shape \(3,\)"),
    ],
)
def test_dictionaries_that_are_none_of_the_pipeline(feedback, action_dist, message):
    with pytest.raises(ValueError, match=message):
        from_obp(feedback, action_dist)


TABLE = (
    "\ufeffx,a, r,p,q,site,slot\r\n0.5,1,1.5,0.25,0,north,3\r\n"
    '-2,0,,1,1,"south, by",1\r\n\r\n3e1,2,0,.5,0.5,north,2\r\n'
)
NAMES = {"action": "a", "reward": "r", "propensity": "p", "target_propensity": "q", "context": ["x"]}


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.TXT"])
def test_delimited_text(tmp_path, name):
    log, report = read_table(write(tmp_path / name, TABLE), **NAMES, columns=["site", "slot", "x"])
    np.testing.assert_array_equal(log.context, [[0.5], [-2], [30]])
    np.testing.assert_array_equal(log.action, [1, 0, 2])
    np.testing.assert_array_equal(log.reward, [1.5, NAN, 0])
    np.testing.assert_array_equal(log.propensity, [0.25, 1, 0.5])
    np.testing.assert_array_equal(log.target_propensity, [0, 1, 0.5])
    assert log.columns["site"].tolist() == ["north", "south, by", "north"]
    assert log.columns["slot"].tolist() == [3, 1, 2]
    assert log.columns["slot"].dtype.kind == "i"
    assert log.columns["x"].tolist() == [0.5, -2, 30]
    assert (log.num_actions, report) == (3, (3, 0, {}))


def test_defaults_and_other_delimiters(tmp_path):
    path = write(tmp_path / "log.tsv", "propensity\taction\treward\n0.5\t0\tnan\n0.25\t3\t2\n")
    log, _ = read_table(path, delimiter="\t")
    assert_logs_equal(log, from_arrays(action=[0, 3], reward=[NAN, 2], propensity=[0.5, 0.25])[0])
    assert read_table(path, delimiter="\t", num_actions=9)[0].num_actions == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3", "has 3 cells, and there are 7 names; 2 lines are malformed"),
        ("1,1,1,1,1,north,3,4", "has 8 cells"),
        ("1,1,one,1,1,north,3", "has 'one' as r; 2 lines"),
        ("1,,1,1,1,north,3", "has '' as a; 2 lines"),
        (",1,1,1,1,north,3", "has '' as x; 2 lines"),
        ("1,1,1,0.5%,1,north,3", "has '0.5%' as p; 2 lines"),
    ],
)
def test_malformed_lines_are_named_or_dropped_and_counted(tmp_path, line, message):
    path = write(tmp_path / "log.csv", TABLE + line + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"line 6 of \S*log.csv {message}.*on_bad='drop'"):
        read_table(path, **NAMES)
    log, report = read_table(path, **NAMES, on_bad="drop")
    assert report == (3, 2, {"malformed line": 2})
    assert_logs_equal(log, read_table(write(tmp_path / "good.csv", TABLE), **NAMES)[0])


def test_values_that_are_not_allowed_are_named_by_their_lines(tmp_path):
    path = write(tmp_path / "log.csv", TABLE + "1,1\n1,1,1,1,1,north,3\n1,2,inf,0,1,north,3\n")
    with pytest.raises(ValueError, match="line 6 of .* has 2 cells"):
        read_table(path, **NAMES)
    log, report = read_table(path, **NAMES, on_bad="drop")
    assert report == (4, 2, {"malformed line": 1, "reward": 1, "propensity": 1})
    np.testing.assert_array_equal(log.context[:, 0], [0.5, -2, 30, 1])
    write(path, TABLE + "1,1,1,1,1,north,3\n1,2,1,0,1,north,3\n")
    with pytest.raises(
        ValueError, match=r"propensity must be in \(0, 1\]; line 7 of \S*log.csv has 0.0, and 1 of 5 rows"
    ):
        read_table(path, **NAMES)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.csv")
    path = write(tmp_path / "log.csv", TABLE)
    with pytest.raises(
        ValueError, match="log.csv has no columns action, reward, propensity; it has x, a, r, p, q, site, slot"
    ):
        read_table(path)
    with pytest.raises(ValueError, match=r"lists of names, got 'x' and \(\)"):
        read_table(path, context="x")
    with pytest.raises(ValueError, match="has no columns action, reward, propensity; it has none"):
        read_table(write(tmp_path / "empty.csv", ""))
    with pytest.raises(ValueError, match="with one row or more"):
        read_table(write(tmp_path / "names.csv", "action,reward,propensity\n"))
    with pytest.raises(ValueError, match="twice.csv has several columns action"):
        read_table(write(tmp_path / "twice.csv", "action,reward,propensity,action\n0,1,1,1\n"))
    with pytest.raises(ValueError, match="line 2 of .*quote.csv cannot be parsed"):
        read_table(write(tmp_path / "quote.csv", 'action,reward,propensity\n0,"1,1\n'))
    with pytest.raises(ValueError, match="log.json is of no known kind; it must end in .csv"):
        read_table(write(tmp_path / "log.json", "{}"))
    (tmp_path / "plain.csv.gz").write_text(TABLE)
    with pytest.raises(ValueError, match="plain.csv.gz is not gzipped UTF-8 text"):
        read_table(tmp_path / "plain.csv.gz")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(TABLE.encode() * 50)[:-20])
    with pytest.raises(ValueError, match="cut.csv.gz is not gzipped UTF-8 text"):
        read_table(tmp_path / "cut.csv.gz", **NAMES)


def test_numpy_archives(tmp_path):
    given = columns()
    np.savez(tmp_path / "log.npz", **given, site=np.array(list("aabbcc")), extra=np.arange(6))
    log, report = read_table(
        tmp_path / "log.npz", target_propensity="target_propensity", context=["extra", "context"], columns=["site"]
    )
    expected, _ = from_arrays(**given | {"context": np.column_stack([np.arange(6), given["context"]])})
    assert_logs_equal(log, expected)
    assert log.columns["site"].tolist() == list("aabbcc")
    assert report == (6, 0, {})
    with pytest.raises(ValueError, match="log.npz has no columns clicks; it has context, action, reward"):
        read_table(tmp_path / "log.npz", reward="clicks")
    np.savez(tmp_path / "bad.npz", **changed("propensity", 3, 2.0))
    with pytest.raises(ValueError, match=r"propensity must be in \(0, 1\]; row 3 of \S*bad.npz has 2.0"):
        read_table(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", action=np.array([{}]))
    for name in ("objects.npz", "text.npz"):
        (tmp_path / "text.npz").write_text("hello")
        with pytest.raises(ValueError, match=f"{name} is not an .npz of numbers and text"):
            read_table(tmp_path / name)


def test_parquet(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1, 0], "r": [None, 2.5], "p": [0.5, 0.25], "site": ["x", "y"], "f": [1, 2]})
    frame.to_parquet(tmp_path / "log.parquet")
    log, _ = read_table(
        tmp_path / "log.parquet", action="a", reward="r", propensity="p", context=["f"], columns=["site"]
    )
    assert_logs_equal(log, from_arrays(action=[1, 0], reward=[NAN, 2.5], propensity=[0.5, 0.25], context=[1.0, 2.0])[0])
    assert log.columns["site"].tolist() == ["x", "y"]
    with pytest.raises(
        ValueError, match="log.parquet has no columns action, reward, propensity; it has a, r, p, site, f"
    ):
        read_table(tmp_path / "log.parquet")


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_parquet_without_its_packages(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install pandas pyarrow"):
        read_table(tmp_path / "log.parquet")


OPEN_BANDIT = """,timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,\
user-item_affinity_0,user-item_affinity_1,user-item_affinity_2
0,2019-11-24 00:00:14.2+00:00,1,3,0,0.0125,81ce,2d03,0.0,0.5,0.0
1,2019-11-24 00:00:15.5+00:00,0,1,1,0.25,4f27,2d03,1.0,0.0,2.0
2,2019-11-24 00:00:16.0+00:00,1,2,0,0.5,9d1f,0a11,0.0,0.0,0.0
"""


def test_open_bandit_dataset(tmp_path):
    path = write(tmp_path / "all.csv.gz", OPEN_BANDIT)
    log, report = read_open_bandit(path)
    # 4f27, 81ce, 9d1f; 0a11, 2d03
    one_hot = [[0, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(log.context, one_hot)
    assert log.context.dtype == np.float32
    np.testing.assert_array_equal(log.action, [1, 0, 1])
    np.testing.assert_array_equal(log.reward, [0, 1, 0])
    np.testing.assert_array_equal(log.propensity, [0.0125, 0.25, 0.5])
    assert log.columns["position"].tolist() == [3, 1, 2]
    assert log.columns["timestamp"][1] == "2019-11-24 00:00:15.5+00:00"
    assert (log.num_actions, log.target_propensity, report) == (3, None, (3, 0, {}))
    more, _ = read_open_bandit(path, affinities=True)
    np.testing.assert_array_equal(more.context, np.hstack([one_hot, [[0, 0.5, 0], [1, 0, 2], [0, 0, 0]]]))


def test_open_bandit_dataset_with_bad_lines(tmp_path):
    lines = OPEN_BANDIT.splitlines()
    cut = [",".join(line.split(",")[:8]) for line in lines]
    path = write(tmp_path / "all.csv", "\n".join(cut))
    assert read_open_bandit(path)[0].num_actions == 2  # of the largest item
    write(path, "\n".join([*lines, lines[1].replace("0.0125", "0"), "4,now"]))
    with pytest.raises(ValueError, match="line 6 of .* has 2 cells, and there are 11 names"):
        read_open_bandit(path)
    log, report = read_open_bandit(path, on_bad="drop")
    assert report == (3, 2, {"malformed line": 1, "propensity": 1})
    assert log.columns["position"].tolist() == [3, 1, 2]
    write(path, TABLE)
    with pytest.raises(ValueError, match="has no columns item_id, click, propensity_score, position, timestamp"):
        read_open_bandit(path)
