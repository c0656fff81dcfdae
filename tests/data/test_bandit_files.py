"""Bandit logs from files: what is read from each format, what is refused, what is dropped, and what the errors say."""

import gzip
import sys

import numpy as np
import pytest

from jaxrl_off.data.bandit_files import read_open_bandit, read_table
from jaxrl_off.data.bandit_logs import from_arrays
from jaxrl_off.data.files import parse_number, suffix_of

NAN = float("nan")


def assert_logs_equal(left, right):
    for name in ("context", "action", "reward", "propensity", "target_propensity"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert left.num_actions == right.num_actions


TABLE = (
    "\ufeffx,a, r,p,q,site,slot\r\n0.5,1,1.5,0.25,0,north,3\r\n"
    '-2,0,,1,1,"south, by",1\r\n\r\n3e1,2,0,.5,0.5,north,2\r\n'
)
NAMES = {"action": "a", "reward": "r", "propensity": "p", "target_propensity": "q", "context": ["x"]}


def write(path, text):
    if path.suffix.lower() == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.TXT", "log.csv.GZ"])
def test_delimited_text(tmp_path, name):
    kinds = {"site": "any", "slot": "any", "x": "number"}
    log, report = read_table(write(tmp_path / name, TABLE), **NAMES, columns=kinds)
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
    text = "propensity\taction\treward\n0.5\t0\tnan\n0.25\t3\t2\n"
    expected, _ = from_arrays(action=[0, 3], reward=[NAN, 2], propensity=[0.5, 0.25])
    for name in ("log.tsv", "log.TSV.gz"):
        assert_logs_equal(read_table(write(tmp_path / name, text))[0], expected)
    path = write(tmp_path / "log.txt", text)
    assert read_table(path, delimiter="\t", num_actions=9)[0].num_actions == 9
    assert_logs_equal(read_table(write(tmp_path / "log.tsv", text.replace("\t", ";")), delimiter=";")[0], expected)
    for delimiter in ("::", "", "\n", '"'):
        with pytest.raises(ValueError, match="delimiter must be one character, no quote and no end of line, got"):
            read_table(path, delimiter=delimiter)


def test_names_say_what_a_file_is():
    names = ["log.csv", "a.b/LOG.v2.CSV.GZ", "log.npz", "log", ".gz", "log.gz"]
    assert [suffix_of(name) for name in names] == [".csv", ".csv", ".npz", "", "", ".gz"]


def test_numbers_are_ascii_without_underscores():
    assert [parse_number(text) for text in ("1", " -2e3", ".5", "inf")] == [1, -2000, 0.5, np.inf]
    for text in ("1_0", "\u0661", "\uff11", "", "one"):
        with pytest.raises(ValueError, match="could not convert"):
            parse_number(text)


ROWS = "action,reward,propensity,c\n"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["3", "-1", "0"], [3, -1, 0]),
        (["0.5", "1e-05", "nan"], [0.5, 1e-5, NAN]),
        (["01", "1", "1e0"], None),
        (["01234", "10001", "98765"], None),  # of places, in which the first digit matters
        (["0.50", "0.5", "1.0"], None),
        (["12345678901234567890", "12345678901234567891", "1"], None),
        (["1_0", "10", "1"], None),
        (["\u0661", "2", "3"], None),
        (["", "2", "3"], None),
    ],
)
def test_further_columns_lose_nothing(tmp_path, cells, expected):
    # the last two rows are dropped, by the reader and by what is allowed, and do not matter
    rows = [f"0,0,1,{cell}\n" for cell in cells] + ["0,x,1,word\n", "0,0,2,word\n"]
    path = write(tmp_path / "log.csv", ROWS + "".join(rows))
    found = read_table(path, columns=["c"], on_bad="drop")[0].columns["c"]
    np.testing.assert_array_equal(found, cells if expected is None else expected)
    assert found.dtype.kind == ("U" if expected is None else np.array(expected).dtype.kind)
    as_text = read_table(path, columns={"c": "text"}, on_bad="drop")[0].columns["c"]
    assert as_text.tolist() == cells


def test_columns_of_numbers(tmp_path):
    path = write(tmp_path / "log.csv", ROWS + "0,0,1,5\n0,0,1,NA\n0,0,1,\n0,0,1,nan\n0,0,1,1_0\n0,0,1,1e3\n")
    with pytest.raises(ValueError, match=r"line 3 of \S*log.csv has 'NA' as c; 3 lines are malformed"):
        read_table(path, columns={"c": "number"})
    log, report = read_table(path, columns={"c": "number"}, on_bad="drop")
    assert log.columns["c"].tolist() == [5, 1000]
    assert report == (2, 4, {"malformed line": 3, "column c": 1})
    with pytest.raises(ValueError, match="the column c must be one of any, number, text, got 'int'"):
        read_table(path, columns={"c": "int"})
    for cell in ("1_0", "\u0661"):  # Python reads both
        other = write(tmp_path / "other.csv", ROWS + f"0,0,1,5\n0,{cell},1,5\n")
        with pytest.raises(ValueError, match=rf"line 3 of \S*other.csv has '{cell}' as reward"):
            read_table(other)
    # one column for two purposes
    log, _ = read_table(path, columns={"action": "text"})
    assert log.columns["action"].tolist() == ["0"] * 6
    assert log.action.tolist() == [0] * 6


def test_actions_are_counted_over_rows_that_are_kept(tmp_path):
    path = write(tmp_path / "log.csv", ROWS + "1,0,1,\n4000000000,0,1,\n1e300,0,1,\n9,0,0,\n")
    log, report = read_table(path, on_bad="drop")
    assert (log.num_actions, report) == (2, (1, 3, {"action": 2, "propensity": 1}))
    with pytest.raises(ValueError, match=r"action must be an integer in \[0, 2147483647\); line 3 of"):
        read_table(path)


def test_reward_ranges_name_the_line_of_the_file(tmp_path):
    path = write(tmp_path / "log.csv", ROWS + "0,0,2,\n\n0,1,1,\n0,5,1,\n")
    with pytest.raises(ValueError, match=r"reward must be in \[0, 1\], .*; line 5 of \S*log.csv has 5.0, and 1 of 3"):
        read_table(path, reward_range=(0, 1), on_bad="drop")


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
    with pytest.raises(ValueError, match="names.csv has no row that can be used: 0 were read, and 0 lines are malf"):
        read_table(write(tmp_path / "names.csv", "action,reward,propensity\n"))
    all_bad = write(tmp_path / "bad.csv", "action,reward,propensity\n0,1\n1,x,1\n0,1,7\n")
    with pytest.raises(
        ValueError, match="bad.csv has no row .*: 1 were read, propensity is wrong in 1, and 2 lines are malformed"
    ):
        read_table(all_bad, on_bad="drop")
    with pytest.raises(ValueError, match="twice.csv has several columns action"):
        read_table(write(tmp_path / "twice.csv", "action,reward,propensity,action\n0,1,1,1\n"))
    quote = write(tmp_path / "quote.csv", 'action,reward,propensity\n0,1,1\n0,"1,1\n0,1,1\n')
    for on_bad in ("error", "drop"):
        with pytest.raises(
            ValueError, match="line 4 of .*quote.csv, in a record that begins on line 3, cannot be pars"
        ):
            read_table(quote, on_bad=on_bad)
    cells = write(tmp_path / "cells.csv", 'action,reward,propensity\n0,1,1\n0,"1\n1",1\n')
    with pytest.raises(ValueError, match="line 3 of .*cells.csv has '1.n1' as reward"):
        read_table(cells)
    with pytest.raises(ValueError, match="log.json is of no known kind; it must end in .csv"):
        read_table(write(tmp_path / "log.json", "{}"))
    (tmp_path / "plain.csv.gz").write_text(TABLE)
    with pytest.raises(ValueError, match="plain.csv.gz is not gzipped UTF-8 text"):
        read_table(tmp_path / "plain.csv.gz")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(TABLE.encode() * 50)[:-20])
    with pytest.raises(ValueError, match="cut.csv.gz is not gzipped UTF-8 text"):
        read_table(tmp_path / "cut.csv.gz", **NAMES)


def archive(path, **changes):
    given = {"context": np.arange(12.0).reshape(6, 2), "action": np.arange(6) % 3, "reward": np.linspace(-1, 1, 6)}
    given |= {"propensity": np.linspace(0.25, 1, 6), "target_propensity": np.linspace(0, 1, 6)} | changes
    np.savez(path, **given)
    return path, given


def test_numpy_archives(tmp_path):
    extra = {"site": np.array(list("aabbcc")), "extra": np.arange(6)}
    path, given = archive(tmp_path / "log.npz", **extra)
    log, report = read_table(
        path, target_propensity="target_propensity", context=["extra", "context"], columns=["site"]
    )
    given["context"] = np.column_stack([given.pop("extra"), given["context"]])
    expected, _ = from_arrays(**{name: column for name, column in given.items() if name != "site"})
    assert_logs_equal(log, expected)
    assert log.columns["site"].tolist() == list("aabbcc")
    assert report == (6, 0, {})
    with pytest.raises(ValueError, match="log.npz has no columns clicks; it has context, action, reward"):
        read_table(path, reward="clicks")
    bad, _ = archive(tmp_path / "bad.npz", propensity=np.array([1, 1, 1, 2.0, 1, 1]))
    with pytest.raises(ValueError, match=r"propensity must be in \(0, 1\]; row 3 of \S*bad.npz has 2.0"):
        read_table(bad)


def test_columns_of_archives(tmp_path):
    kinds = {"where": "text", "q": "number", "wide": "any"}
    columns = {"where": np.array([1, NAN, 2, 2, 1, 1]), "q": np.array([1, NAN, 2, 3, 4, 5]), "wide": np.eye(6)}
    path, _ = archive(tmp_path / "log.npz", **columns, word=np.array(list("123456")))
    with pytest.raises(ValueError, match=r"column q must be finite; row 1 of \S*log.npz has nan"):
        read_table(path, columns=kinds)
    log, report = read_table(path, columns=kinds | {"word": "any"}, on_bad="drop")
    assert report == (5, 1, {"column q": 1})
    assert log.columns["word"].tolist() == list("13456")  # an archive says itself what is text
    assert log.columns["wide"].shape == (5, 6)
    assert read_table(path, columns={"where": "text"})[0].columns["where"].tolist() == [
        *("1.0", "nan", "2.0", "2.0", "1.0", "1.0")
    ]
    for kind in ("text", "number"):
        with pytest.raises(ValueError, match=r"wide of \S*log.npz has shape \(6, 6\), and action \(6,\); \[n\] with"):
            read_table(path, columns={"wide": kind})
    with pytest.raises(ValueError, match=r"word of \S*log.npz must be numbers, and holds text such as"):
        read_table(path, context=["word"])
    for changes in ({"clicks": np.ones(5)}, {"clicks": np.ones(())}, {"clicks": np.ones((6, 1))}):
        path, _ = archive(tmp_path / "other.npz", **changes)
        with pytest.raises(ValueError, match=r"clicks of \S*other.npz has shape \(.*\), and action \(6,\)"):
            read_table(path, reward="clicks")


def test_files_that_are_no_archives(tmp_path):
    np.savez(tmp_path / "objects.npz", action=np.array([{}]))
    (tmp_path / "text.npz").write_text("hello")
    np.savez_compressed(tmp_path / "deflated.npz", action=np.arange(5000) * 7 % 100)
    content = bytearray((tmp_path / "deflated.npz").read_bytes())
    content[200:400] = bytes([255]) * 200
    (tmp_path / "deflated.npz").write_bytes(content)
    for name in ("objects.npz", "text.npz", "deflated.npz"):
        with pytest.raises(ValueError, match=f"{name} is not an .npz of numbers and text"):
            read_table(tmp_path / name)


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "log.parquet"
    columns = {
        "a": [1, 0, 1],
        "r": [None, True, False],
        "p": [0.5, 0.25, 1.0],
        "f": [1, 2, None],
        "w": ["x", None, "x"],
    }
    table = pyarrow.table(columns | {"id": [2**60 + 1, None, 2**60 + 2], "list": [[1], [2], [3]]})
    table = table.append_column("code", table["w"].dictionary_encode())
    table = table.append_column("coded", pyarrow.array([0.5, None, 1.0]).dictionary_encode())
    # as pandas writes its own nullable booleans
    table = table.replace_schema_metadata({"pandas": '{"columns": [{"name": "r", "pandas_type": "bool"}]}'})
    parquet.write_table(table, path)
    names = {"action": "a", "reward": "r", "propensity": "p"}
    log, _ = read_table(path, **names, columns={"w": "any", "id": "text", "code": "text"})
    assert_logs_equal(log, from_arrays(action=[1, 0, 1], reward=[NAN, 1, 0], propensity=[0.5, 0.25, 1])[0])
    assert log.columns["w"].tolist() == ["x", None, "x"]
    assert log.columns["id"].tolist() == [str(2**60 + 1), "", str(2**60 + 2)]  # floats would not tell them apart
    assert log.columns["code"].tolist() == ["x", "", "x"]
    np.testing.assert_array_equal(read_table(path, **names | {"reward": "coded"})[0].reward, [0.5, NAN, 1])
    dropped, report = read_table(path, **names, context=["f"], on_bad="drop")
    assert (dropped.context.tolist(), report.reasons) == ([[1], [2]], {"context": 1})
    with pytest.raises(ValueError, match=r"column f must be finite; row 2 of \S*log.parquet has nan"):
        read_table(path, **names, columns={"f": "number"})
    with pytest.raises(ValueError, match="log.parquet has no columns action, reward, propensity; it has a, r, p, f, w"):
        read_table(path)
    for changes in ({"reward": "w"}, {"context": ["list"]}):
        name = changes.get("reward", "list")
        with pytest.raises(ValueError, match=rf"{name} of \S*log.parquet must be (an array of real )?numbers"):
            read_table(path, **names | changes)
    with pytest.raises(ValueError, match=r"list of \S*log.parquet cannot be read as text"):
        read_table(path, **names, columns={"list": "text"})
    for content in (b"hello", path.read_bytes()[:-20]):
        (tmp_path / "other.pq").write_bytes(content)
        with pytest.raises(ValueError, match="other.pq cannot be read as Parquet"):
            read_table(tmp_path / "other.pq")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.pq")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'need pyarrow, .*pip install "jaxrl_off\[parquet\]"'):
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


def test_another_delimiter_is_named(tmp_path):
    text = '"action";"reward";"propensity"\n0;1;0.5\n1;0;0.5\n'
    for name, between in (("log.csv", ","), ("log.tsv", "\t")):
        path = write(tmp_path / name, text)
        message = rf"log.\w+ has ';' between its cells, and was read as if it were {between!r}; give delimiter=';'"
        with pytest.raises(ValueError, match=message.replace("\\t", r"\\t")):
            read_table(path)
        assert read_table(path, delimiter=";")[0].reward.tolist() == [1, 0]
    path = write(tmp_path / "comma.csv", text.replace("0.5", "0,5"))
    with pytest.raises(
        ValueError, match=r"line 2 of \S*comma.csv has '0,5' as propensity .numbers are written with a dec"
    ):
        read_table(path, delimiter=";")


def test_rewards_may_be_truth_values(tmp_path):
    path = write(tmp_path / "log.csv", "action,reward,propensity\n0,True,0.5\n1,False,0.5\n1,true,0.5\n1, ,0.5\n")
    np.testing.assert_array_equal(read_table(path)[0].reward, [1, 0, 1, NAN])
    with pytest.raises(ValueError, match="line 2 of .* has 'True' as reward"):
        read_table(path, propensity="reward", reward="propensity")


def test_actions_that_are_names_or_ids(tmp_path):
    rows = "item,reward,propensity\n{},1,0.5\n {} ,0,0.5\n{},1,0.5\n"
    path = write(tmp_path / "log.csv", rows.format("pear", "apple", "pear"))
    with pytest.raises(ValueError, match=r"line 2 of \S*log.csv has 'pear' as item"):
        read_table(path, action="item")
    log, report = read_table(path, action="item", named_actions=True)
    assert (log.action.tolist(), log.num_actions, report.dropped) == ([1, 0, 1], 2, 0)
    assert log.columns["item"].tolist() == ["pear", "apple", "pear"]
    assert read_table(path, action="item", named_actions=True, num_actions=5)[0].num_actions == 5
    with pytest.raises(ValueError, match="item of .* has 2 different actions, and num_actions is 1; give at least 2"):
        read_table(path, action="item", named_actions=True, num_actions=1)
    path = write(tmp_path / "ids.csv", rows.format(10**12, "7.0", ""))
    with pytest.raises(ValueError, match="line 4 of .* has nan, and 1 of 3 rows are so"):
        read_table(path, action="item", named_actions=True)
    log, report = read_table(path, action="item", named_actions=True, on_bad="drop")
    assert (log.action.tolist(), log.columns["item"].tolist()) == ([0, 1], ["1000000000000", "7"])
    assert (log.num_actions, report) == (2, (2, 1, {"action": 1}))
    # where nothing looks at actions, the column need not be there
    log, _ = read_table(path, action=None)
    assert (log.action.tolist(), log.num_actions) == ([0, 0, 0], 1)
    with pytest.raises(ValueError, match="named_actions=True needs the column of actions"):
        read_table(path, action=None, named_actions=True)
