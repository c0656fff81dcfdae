"""Bandit logs of arrays: what is refused, what is dropped, and what the errors say."""

import numpy as np
import pytest

from jaxrl_off.data.bandit_logs import Origin, as_numbers, check, from_arrays, from_obp, numbered

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
    with pytest.raises(
        ValueError, match="the log has no row that can be used: 6 were read, propensity is wrong in 6, and 0 lines"
    ):
        from_arrays(**columns(propensity=np.zeros(6)), on_bad="drop")


def test_names_and_ids_are_numbered():
    action, names = numbered([10**12, 7, 10**12])
    assert (action.tolist(), names) == ([0, 1, 0], ("1000000000000", "7"))
    action, names = numbered(np.array(["b", "a", "b"]), ["c", "b", "a"])
    assert (action.tolist(), names) == ([1, 2, 1], ("c", "b", "a"))
    assert numbered([30, 10], [10, 20, 30]) == (pytest.approx([2, 0]), ("10", "20", "30"))
    log, _ = from_arrays(action=action, reward=[1, 0, 1], propensity=[0.5] * 3, num_actions=len(names))
    assert (log.action.tolist(), log.num_actions) == ([1, 2, 1], 3)
    with pytest.raises(ValueError, match="actions hold d, which are not among the names c, b. Add them"):
        numbered(["b", "d"], ["c", "b"])
    for missing in (None, NAN, ""):
        with pytest.raises(ValueError, match="a name or an id in every row, got none in row 1"):
            numbered(np.array(["b", missing], object))


def test_columns_of_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0, 1, 0], "r": [1.0, 0.0, 1.0], "p": [0.5, 0.5, 0.5], "x": ["u", "v", "u"]})
    given = dict(action=frame.a, reward=frame.r, propensity=frame.p)
    log, _ = from_arrays(**given, context=frame[["r", "p"]], columns=frame[["x"]])
    assert (log.context.shape, {name: list(x) for name, x in log.columns.items()}) == ((3, 2), {"x": ["u", "v", "u"]})
    for reward in (pandas.array([0, None, 1], dtype="Int64"), pandas.Series([0, pandas.NA, 1], dtype=object)):
        np.testing.assert_array_equal(from_arrays(**given | {"reward": reward})[0].reward, [0, NAN, 1])
    with pytest.raises(ValueError, match=r"propensity must be in \(0, 1\]; row 1 has nan"):
        from_arrays(**given | {"propensity": pandas.array([0.5, None, 1], dtype="Float64")})
    with pytest.raises(ValueError, match=r"one column, got shape \(3, 1\)\. Of a data frame pass a column"):
        from_arrays(**given | {"action": frame[["a"]]})
    with pytest.raises(ValueError, match="context must be numbers, and holds text such as 'u'"):
        from_arrays(**given, context=frame)
    assert numbered(pandas.Categorical(["x", "y", "x"]))[1] == ("x", "y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.ones(5)}, r"reward has shape \(5,\); there are 6 actions"),
        ({"propensity": np.ones((6, 1))}, r"propensity has shape \(6, 1\)"),
        ({"target_propensity": np.ones((6, 3))}, r"target_propensity has shape \(6, 3\)"),
        ({"context": np.ones((6, 2, 2))}, r"context has shape \(6, 2, 2\)"),
        ({"context": np.ones((5, 2))}, r"context has shape \(5, 2\)"),
        ({"columns": {"slot": [1, 2]}}, r"slot has shape \(2,\)"),
        ({"action": np.zeros((6, 1))}, r"action must be int\[n\], one column, got shape \(6, 1\)"),
        ({"action": 0}, r"got shape \(\)"),
        (
            {"propensity": None},
            r"propensity is None, and is needed: h\(a\|x\), .* estimate it first, for example with a class",
        ),
        ({"action": None}, "action is None, and is needed: which action was taken"),
        ({"reward": None}, "reward is None, and is needed: what came of the action; NaN where"),
        ({"reward": list("123456")}, "reward must be numbers, and holds text such as '1'. Convert it to numbers"),
        ({"reward": ["True", "False"] * 3}, "text such as 'True'. Make truth values of it: `column == 'True'`"),
        (
            {"action": list("abcabc")},
            "action must be numbers, .*'a'. `bandit_logs.numbered` numbers actions that are names",
        ),
        (
            {"context": [[1], [2, 3], [4], [5], [6], [7]]},
            "context must be an array, and its rows have different lengths",
        ),
        (
            {"columns": {"slot": [[1], [2, 3], 4, 5, 6, 7]}},
            "slot must be an array, and its rows have different lengths",
        ),
        ({"columns": [1, 2]}, "columns must be a dictionary of columns by name, or a data frame, got list"),
        (
            {"action": [1, 2, 3] * 2, "num_actions": 3},
            "row 2 has 3.0, .* The actions seem to be counted from 1; take 1 off",
        ),
        (
            {"action": [2**31 - 2] + [0] * 5},
            "the largest action is 2147483646, .*Number ids with `bandit_logs.numbered`",
        ),
        ({"num_actions": 2.5}, r"num_actions must be an integer in \[1, 2\^31\), got 2.5. Number actions from 0"),
        ({"num_actions": 0}, r"num_actions must be an integer in \[1, 2\^31\), got 0"),
        ({"action": np.full(6, 3e9)}, r"an integer in \[0, 2147483647\); row 0 has 3000000000.0, and 6 of 6 rows"),
        ({"on_bad": "ignore"}, "on_bad must be 'error' or 'drop', got 'ignore'"),
    ],
)
def test_arrays_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(**columns(**changes))


def test_actions_are_counted_over_rows_that_are_kept():
    given = columns(action=[0, 1, 4_000_000_000, 1e300, 1, 7], propensity=[1, 1, 1, 1, 1, 0])
    log, report = from_arrays(**given, on_bad="drop")
    assert (log.num_actions, log.action.tolist()) == (2, [0, 1, 1])
    assert report == (3, 3, {"action": 2, "propensity": 1})
    log, _ = from_arrays(**columns(action=[2**31 - 2] + [0] * 5), num_actions=2**31 - 1)
    assert (log.num_actions, log.action[0]) == (2**31 - 1, 2**31 - 2)


def test_origin_is_named_and_its_malformed_lines_are_counted():
    log, _ = from_arrays(**columns())
    origin = Origin("a.log", [2, 3, 5, 7, 8, 9], 4)
    assert check(log, origin=origin)[1] == (6, 4, {"malformed line": 4})
    with pytest.raises(ValueError, match=r"propensity must be .*; line 5 of a.log has 2.0"):
        check(log._replace(propensity=changed("propensity", 2, 2.0)["propensity"]), origin=origin)
    with pytest.raises(ValueError, match=r"reward of a.log has shape \(5,\)"):
        check(log._replace(reward=np.ones(5)), origin=origin)
    with pytest.raises(ValueError, match="reward of a.log must be numbers, and holds text"):
        check(log._replace(reward=list("abcdef")), origin=origin)
    with pytest.raises(ValueError, match="a.log has no row that can be used: 0 were read, and 4 lines are malformed"):
        check(log._replace(context=np.ones((0, 2)), **dict.fromkeys(log._fields[1:5], np.ones(0))), origin=origin)


def test_rewards_outside_their_range_are_an_error_always():
    log, _ = from_arrays(**columns(reward=[0, NAN, 1, 5, 0, 7], propensity=[1, 1, 0.5, 1, 1, 1]))
    message = r"reward must be in \[0, 1\], the range that was given; line 13 of a.log has 5.0, and 2 of 6 rows are so"
    for on_bad in ("error", "drop"):
        with pytest.raises(ValueError, match=message):
            check(log, on_bad=on_bad, reward_range=(0.0, 1.0), origin=Origin("a.log", range(10, 16)))
    assert check(log, reward_range=(0.0, 7.0))[1].rows == 6
    # but for rows that are dropped anyway
    impossible = log._replace(propensity=[1, 1, 1, 0, 1, 0])
    assert check(impossible, on_bad="drop", reward_range=(0.0, 1.0))[1] == (4, 2, {"propensity": 2})


def test_further_columns_that_must_be_finite():
    log, _ = from_arrays(**columns(), columns={"q": [0, 1, NAN, 0.5, np.inf, 0], "context": np.ones(6)})
    assert check(log)[1].rows == 6
    with pytest.raises(
        ValueError, match="column q must be finite; row 2 has nan, and 2 of 6 rows are so. Correct the log"
    ):
        check(log, finite=["q"])
    kept, report = check(log, finite=["q", "context"], on_bad="drop")
    assert report == (4, 2, {"column q": 2})
    assert kept.columns["q"].tolist() == [0, 1, 0.5, 0]


@pytest.mark.parametrize(
    "values", [[1j, 2], np.array(["2020-01-01"], "datetime64[D]"), np.array([3], "timedelta64[s]"), ["1", None], [b"1"]]
)
def test_what_is_no_number(values):
    with pytest.raises(ValueError, match="ratio must be (an array of real )?numbers, and (cannot be made|holds text)"):
        as_numbers(values, "ratio")


def test_what_is_a_number():
    found = as_numbers(np.array([None, True, 2**70], object), "ratio")
    np.testing.assert_array_equal(found, [NAN, 1, 2.0**70])
    assert as_numbers(np.ones(2, np.float32), "ratio").dtype == np.float64
    assert as_numbers(np.ones(2, np.float32), "ratio", keep_floats=True).dtype == np.float32


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
        (
            obp(),
            np.ones((4, 3, 1)),
            r"position must hold integers in \[0, 1\), .* row 0 has 1, and 2 of 4 rows .* take 1",
        ),
        (obp(position=[0, NAN, 1, 0]), np.ones((4, 3, 2)), r"position must hold .*; row 1 has nan, and 1 of 4 rows"),
        (obp(position=[0]), np.ones((4, 3, 2)), r"position has shape \(1,\); there are 4 actions"),
        (obp(n_actions=3.7), np.ones((4, 3, 1)), r"n_actions must be an integer in \[1, 2\^31\), got 3.7"),
        (obp(n_actions="three"), None, "n_actions must be an integer in .* got 'three'"),
        (obp(context=[[1], [1, 2], [1], [1]]), None, "context must be an array, and its rows have different"),
        (obp(reward=np.ones(3)), None, r"reward has shape \(3,\)"),
    ],
)
def test_dictionaries_that_are_none_of_the_pipeline(feedback, action_dist, message):
    with pytest.raises(ValueError, match=message):
        from_obp(feedback, action_dist)
