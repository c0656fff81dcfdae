"""Vowpal Wabbit's text: what lines mean, which are refused, and at what speed they are read."""

import gzip
import time

import numpy as np
import pytest

from jaxrl_off.data.vowpal_wabbit import read_cb, read_labelled


def write(path, *lines, end="\n"):
    text = end.join(lines) + end
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "wt", newline="") as file:
            file.write(text)
    else:
        path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["iris.vw", "iris.vw.gz", "iris.VW.GZ"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dense_sparse_unordered_and_empty_examples(tmp_path, name, end):
    path = write(
        tmp_path / name, "3 | 0:6.400000 1:2.8 3:2.2", "1 | 3:-1e-1 0:.5 ", "2 | ", "", "2 |", "1 | 2:4 2:3", end=end
    )
    data = read_labelled(path)
    np.testing.assert_array_equal(data.labels, [2, 0, 1, 1, 0])
    expected = [[6.4, 2.8, 0, 2.2], [0.5, 0, 0, -0.1], [0] * 4, [0] * 4, [0, 0, 7, 0]]
    np.testing.assert_array_equal(data.features, np.array(expected, np.float32))
    assert data.labels.dtype == np.int32
    assert data.features.dtype == np.float32
    assert (data.num_labels, data.names, data.report) == (3, ("0", "1", "2", "3"), (5, 0, {}))


def test_a_whole_file_equals_a_loop_over_its_tokens_and_is_read_within_a_second(tmp_path):
    rng = np.random.default_rng(0)
    n, d = 10_000, 40
    values = np.round(rng.normal(size=(n, d)) * 10.0 ** rng.integers(-3, 6, d), 6)
    shown = rng.random((n, d)) < 0.8
    labels = rng.integers(1, 8, n)
    lines = [
        f"{label} | " + " ".join(f"{j}:{x:f}" for j, x in enumerate(row) if mask[j])
        for label, row, mask in zip(labels, values, shown, strict=True)
    ]
    path = write(tmp_path / "large.vw.gz", *lines)
    start = time.process_time()
    data = read_labelled(path)
    assert time.process_time() - start < 2.0
    np.testing.assert_array_equal(data.labels, labels - 1)
    np.testing.assert_allclose(data.features, np.where(shown, values, 0.0), rtol=1e-6)
    # and without the fast path, which a namespace shuts off
    named = write(tmp_path / "named.vw", *[line.replace("| ", "|f ") for line in lines[:500]])
    np.testing.assert_array_equal(read_labelled(named).features, data.features[:500])


def test_namespaces_scales_tags_and_words(tmp_path):
    path = write(
        tmp_path / "words.vw",
        "1 'first|user:2 age:30 vip |item price:1.5 city:paris",
        "2 tagged|item price city:rome |user age:.5",
        "1 | bare:4 bare",
    )
    data = read_labelled(path, columns="order")
    assert data.names == ("user^age", "user^vip", "item^price", "item^city:paris", "item^city:rome", "bare")
    np.testing.assert_array_equal(data.features, [[60, 2, 1.5, 1, 0, 0], [0.5, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 5]])
    np.testing.assert_array_equal(data.labels, [0, 1, 0])
    later = write(tmp_path / "later.vw", "1 |item price:7 unheard:3 |user vip:2")
    again = read_labelled(later, columns=data.names)
    assert again.names == data.names
    np.testing.assert_array_equal(again.features, [[0, 2, 7, 0, 0, 0]])
    hashed = read_labelled(path, columns=64)
    assert (hashed.features.shape, hashed.names) == ((3, 64), ())
    np.testing.assert_array_equal(hashed.features.sum(1), data.features.sum(1))
    assert read_labelled(later, columns=64).features[0].max() == 7
    column = int(np.argmax(read_labelled(later, columns=64).features[0]))
    assert hashed.features[0, column] == 1.5  # the same name, the same column, in another file
    np.testing.assert_array_equal(read_labelled(path, columns=np.int64(64)).features, hashed.features)
    none = read_labelled(path, columns=())
    assert (none.features.shape, none.names, none.labels.tolist()) == ((3, 0), (), [0, 1, 0])
    with pytest.raises(ValueError, match=r"line 1 of .*words.vw is malformed: the feature 'age'.* columns='order'"):
        read_labelled(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0:1 1:2", "no | between label and features"),
        ("x | 0:1", r"'x' before the |, where a label, an integer from first_label=1, must stand"),
        ("1.5 | 0:1", "'1.5' before the |"),
        ("0 | 0:1", "'0' before the |"),
        ("1 0.3 | 0:1", r"'1 0.3' before the .* \(neither importance weights nor several actions in a line are read\)"),
        (
            "1| 0:1",
            r"'1' before the |, where a label, an integer from first_label=1, must stand, with a space after it",
        ),
        ("'1 | 0:1", '"\'1" before the |'),
        ("1_0 | 0:1", "'1_0' before the |"),
        ("\u0661 | 0:1", "'\u0661' before the |"),
        ("9" * 400 + " | 0:1", "'9{400}' before the |"),
        ("1 | 0:1_0", "the value '1_0', which is no finite number"),
        (" | 0:1", "'' before the |"),
        ("1 | 0:1 1:2:3", "the value '2:3', which is no finite number"),
        ("1 | 0:1 1:", "the value '', which is no finite number"),
        ("1 | 0:1 1:--2", "the value '--2'"),
        ("1 | 0:nan", "the value 'nan'"),
        ("1 | 0:1 -1:2", "the feature '-1', which is no index"),
        ("1 | :2", "the feature ':2', which has no name"),
        ("1 | 0:1e39", "a value beyond float32"),
    ],
)
def test_malformed_lines_are_named_or_dropped_and_counted(tmp_path, line, message):
    path = write(tmp_path / "bad.vw", "1 | 0:1", "", line, "2 | 0:2", line)
    with pytest.raises(
        ValueError, match=rf"line 3 of \S*bad.vw is malformed: .*{message.replace('|', '[|]')}.*"
    ) as error:
        read_labelled(path)
    assert "2 lines are so" in str(error.value)
    data = read_labelled(path, on_bad="drop")
    assert data.report == (2, 2, {"malformed line": 2})
    np.testing.assert_array_equal(data.labels, [0, 1])
    np.testing.assert_array_equal(data.features[:, 0], [1, 2])


def test_a_dropped_line_leaves_no_columns(tmp_path):
    path = write(tmp_path / "bad.vw", "1 | a:1", "1 | new:2 b:--", "2 | b:3")
    assert read_labelled(path, columns="order", on_bad="drop").names == ("a", "b")


def test_what_is_no_file_of_examples(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_labelled(tmp_path / "none.vw")
    path = write(tmp_path / "text.vw", "hello")
    with pytest.raises(ValueError, match="has no examples, and 1 malformed lines"):
        read_labelled(path, on_bad="drop")
    (tmp_path / "text.vw.gz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="text.vw.gz is not gzipped UTF-8 text"):
        read_labelled(tmp_path / "text.vw.gz")
    path.write_bytes(b"1 | \xff:1\n")
    with pytest.raises(ValueError, match="text.vw is not UTF-8 text"):
        read_labelled(path)
    write(path, "1 |a 0:1 |b 0:2")
    with pytest.raises(ValueError, match="indices in several namespaces, 'a', 'b'; columns='order'"):
        read_labelled(path)
    np.testing.assert_array_equal(read_labelled(path, columns="order").features, [[1, 2]])
    write(path, "1 |a 0:1", "2 |", "1 | ")  # an example without features is of no namespace
    np.testing.assert_array_equal(read_labelled(path).features, [[1], [0], [0]])
    write(path, "2 |", "1 | ")
    assert read_labelled(path).features.shape == (2, 0)
    write(path, "1 | 999999999:1", "1 | 0:1")
    with pytest.raises(ValueError, match="2 x 1000000000 numbers, more than .* columns=1024 hashes them"):
        read_labelled(path)
    assert read_labelled(path, columns=16).features.shape == (2, 16)


@pytest.mark.parametrize("columns", ["names", 0, True, np.int64(0), None, 1.5, ["a", 3], ["a", "a"]])
def test_columns_that_cannot_be_meant(tmp_path, columns):
    path = write(tmp_path / "fine.vw", "1 | 0:1")
    with pytest.raises(ValueError, match="columns must be"):
        read_labelled(path, columns=columns)
    with pytest.raises(ValueError, match="on_bad must be"):
        read_labelled(path, on_bad="ignore")


def test_logged_decisions(tmp_path):
    path = write(
        tmp_path / "log.vw.gz",
        "1:2:0.4 | 0:1 2:3",
        "3:0.5:0.2 'tag| 1:1",
        "4:1.25:1 | 0:2",
        "2:-1:0.25 |",
        "3:0:.7 | 2:1",
    )
    log, report = read_cb(path)
    np.testing.assert_array_equal(log.action, [0, 2, 3, 1, 2])
    np.testing.assert_array_equal(log.reward, [-2, -0.5, -1.25, 1, 0])
    np.testing.assert_array_equal(log.propensity, [0.4, 0.2, 1, 0.25, 0.7])
    np.testing.assert_array_equal(log.context, [[1, 0, 3], [0, 1, 0], [2, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert (log.num_actions, log.target_propensity, report) == (4, None, (5, 0, {}))
    assert log.action.dtype == np.int32
    other, _ = read_cb(path, reward_offset=1.0, first_action=0, num_actions=9)
    np.testing.assert_array_equal(other.action, log.action + 1)
    np.testing.assert_array_equal(other.reward, log.reward + 1)
    assert other.num_actions == 9


def test_decisions_that_are_refused_or_dropped(tmp_path):
    path = write(
        tmp_path / "log.vw",
        "1:2:0.4 | 0:1",
        "1:0.5 | 0:1",
        "2:1:0.5 | 0:2",
        "2:1:0 | 0:3",
        "1:0:1.5 | 0:3",
        "0:1:0.5 | 0:3",
    )
    with pytest.raises(ValueError, match=r"line 2 of \S*log.vw is malformed: '1:0.5' .* action:cost:probability"):
        read_cb(path)
    log, report = read_cb(path, on_bad="drop")
    assert report == (2, 4, {"malformed line": 1, "action": 1, "propensity": 2})
    np.testing.assert_array_equal(log.context[:, 0], [1, 2])
    rest = write(tmp_path / "rest.vw", "1:2:0.4 | 0:1", "", "2:1:0 | 0:3")
    with pytest.raises(
        ValueError, match=r"propensity must be in \(0, 1\]; line 3 of \S*rest.vw has 0.0, and 1 of 2 rows"
    ):
        read_cb(rest)
    with pytest.raises(ValueError, match=r"action must be an integer in \[0, 1\); line 3 of"):
        read_cb(rest, num_actions=1)
    large = write(
        tmp_path / "large.vw",
        "2:0:1 |",
        f"{2**31}:0:1 |",
        f"{'9' * 400}:0:1 |",
        "9:0:0 |",
        "1:0:1 2:0:0.5 |",
        "1:1_0:1 |",
    )
    log, report = read_cb(large, on_bad="drop")
    assert (log.num_actions, report) == (2, (1, 5, {"malformed line": 3, "action": 1, "propensity": 1}))
    with pytest.raises(ValueError, match="line 3 of .* decision, .* must stand"):
        read_cb(large)
    with pytest.raises(ValueError, match=r"reward must be in \[0, 1\], .*; line 1 of \S*rest.vw has -2.0"):
        read_cb(write(tmp_path / "rest.vw", "1:2:0.4 | 0:1"), reward_range=(0.0, 1.0))
    censored, _ = read_cb(write(tmp_path / "nan.vw", "1:nan:0.4 | 0:1"))
    assert np.isnan(censored.reward).all()
    nothing = write(tmp_path / "nothing.vw", "shared | a:1", "| b:1")
    with pytest.raises(ValueError, match="has no examples"):
        read_cb(nothing, columns="order", on_bad="drop")


def test_actions_from_0_are_told_which_option_they_need(tmp_path):
    path = write(tmp_path / "zero.vw", "1:1:0.5 | 0:1", "0:1:0.5 | 0:1")
    with pytest.raises(ValueError, match=r"line 2 of \S*zero.vw has the action 0, .* from 1\. .* give first_action=0"):
        read_cb(path)
    assert read_cb(path, first_action=0)[0].action.tolist() == [1, 0]
    assert read_cb(path, on_bad="drop")[1].reasons == {"action": 1}
