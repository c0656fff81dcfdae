"""Writers of metrics: strict files, constant memory, and truncation that leaves what an uninterrupted run would have."""

import csv
import json
import math
import struct
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.training import metrics
from jaxrl_off.training.metrics import CsvWriter, JsonlWriter, MetricsWriters, plain_row, read_last_row


def row(i: int) -> dict:
    return {"steps": i * 10, "value": i / 3, "rare": math.nan if i % 2 else float(i)}


def write_rows(directory, numbers, **options) -> None:
    with MetricsWriters(directory, **options) as writers:
        for i in numbers:
            writers.write(row(i))


def test_plain_row_gives_shortest_float32_and_exact_others():
    plain = plain_row({"a": jnp.float32(0.1), "b": np.int32(3), "c": 0.1, "d": np.float64(1 / 3), "e": jnp.nan})
    assert plain["a"] == 0.1
    assert np.float32(plain["a"]) == np.float32(0.1)
    assert (plain["b"], type(plain["b"])) == (3, int)
    assert (plain["c"], plain["d"]) == (0.1, 1 / 3)
    assert math.isnan(plain["e"])


@pytest.mark.parametrize("value", [jnp.zeros(2), "text"])
def test_plain_row_refuses_what_is_no_scalar(value):
    with pytest.raises(ValueError, match="metric 'bad' must be a scalar"):
        plain_row({"bad": value})


def test_json_is_strict_and_csv_leaves_gaps(tmp_path):
    with MetricsWriters(tmp_path) as writers:
        writers.write({"steps": 1, "a": math.nan, "b": math.inf})
        writers.write({"b": 2.5, "steps": 2, "a": 0.25})

    def refuse(text):
        raise AssertionError(text)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [{"steps": 1, "a": None, "b": None}, {"steps": 2, "a": 0.25, "b": 2.5}]
    assert (tmp_path / "metrics.csv").read_text() == "steps,a,b\n1,,\n2,0.25,2.5\n"
    assert read_last_row(tmp_path) == {"steps": 2, "a": 0.25, "b": 2.5}


def test_csv_columns_are_fixed_by_the_first_row(tmp_path):
    writer = CsvWriter(tmp_path / "x.csv")
    writer.write({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="missing: b; not in the file: c"):
        writer.write({"a": 1, "c": 2})
    writer.close()
    writer = CsvWriter(tmp_path / "x.csv", keep_rows=1)
    with pytest.raises(ValueError, match="missing: b"):
        writer.write({"a": 1})
    writer.close()


@pytest.mark.parametrize("keep", [0, 1, 4, 7])
def test_resumed_files_are_byte_identical(tmp_path, keep):
    write_rows(tmp_path / "whole", range(1, 11))
    write_rows(tmp_path / "cut", range(1, 8))
    for name in ("metrics.jsonl", "metrics.csv"):
        with open(tmp_path / "cut" / name, "ab") as file:
            file.write(b'{"steps": 99, "val')  # a kill in the middle of a write
    write_rows(tmp_path / "cut", range(keep + 1, 11), keep_rows=keep)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_lost_rows_are_an_error(tmp_path):
    write_rows(tmp_path, range(1, 4))
    for writer, name in ((JsonlWriter, "metrics.jsonl"), (CsvWriter, "metrics.csv")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match="was changed or lost"):
            writer(tmp_path / name, keep_rows=4)
        assert (tmp_path / name).read_bytes() == before
        with pytest.raises(ValueError, match="holds 0 complete lines"):
            writer(tmp_path / "nothing", keep_rows=1)


def test_last_row_skips_a_torn_line(tmp_path):
    assert read_last_row(tmp_path) is None
    write_rows(tmp_path, range(1, 4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"steps": 9')
    assert read_last_row(tmp_path)["steps"] == 30


def test_rows_are_on_disk_at_once(tmp_path):
    with MetricsWriters(tmp_path) as writers:
        writers.write(row(2))
        assert read_last_row(tmp_path) == row(2)
        assert len(list(csv.reader((tmp_path / "metrics.csv").open()))) == 2


def test_memory_does_not_grow_with_rows(tmp_path):
    tracemalloc.start()
    try:
        with MetricsWriters(tmp_path, tensorboard=False) as writers:
            for i in range(200):
                writers.write(row(i))
            start = tracemalloc.get_traced_memory()[0]
            for i in range(200, 20_200):
                writers.write(row(i))
            held = tracemalloc.get_traced_memory()[0] - start
        size = (tmp_path / "metrics.jsonl").stat().st_size
        assert size > 800_000
        assert held < 20_000
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        MetricsWriters(tmp_path, keep_rows=20_000).close()
        assert read_last_row(tmp_path) == pytest.approx(row(19_999), nan_ok=True)
        assert tracemalloc.get_traced_memory()[1] - start < 100_000  # reads line by line
    finally:
        tracemalloc.stop()


def read_scalars(directory) -> dict:
    """Independent reading of event files: length, CRC, protobuf, CRC."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(directory.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_gets_finite_values_at_their_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    write_rows(tmp_path, range(1, 4), tensorboard=True)
    found = read_scalars(tmp_path / "tensorboard")
    assert found == {
        ("value", 10): pytest.approx(1 / 3),
        ("value", 20): pytest.approx(2 / 3),
        ("value", 30): pytest.approx(1.0),
        ("rare", 20): 2.0,
    }


def test_missing_tensorboardx_names_the_extra_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"jaxrl_off\[tensorboard\]"):
        MetricsWriters(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
    write_rows(tmp_path / "run", range(3))  # not asked for, not missed
    assert metrics.read_last_row(tmp_path / "run")["steps"] == 20
