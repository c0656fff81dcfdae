"""What all benchmarks share: jobs and their cache, verdicts, the command line, and rooms that register themselves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dapo import minatar
from benchmarks.deterministic import study
from benchmarks.machinery.command import main
from benchmarks.machinery.jobs import digest, pairs, rounded, run_all
from benchmarks.machinery.papers import papers
from benchmarks.machinery.results import _command, write_results
from benchmarks.machinery.verdicts import all_of, bootstrap_interval, verdict
from benchmarks.nppac.jobs import ExpertJob
from benchmarks.star import figure3


@dataclasses.dataclass(frozen=True)
class Square:
    number: int
    name = property(lambda self: digest(["square", self.number]))
    cost = property(lambda self: self.number)
    method = "square"
    environment = property(lambda self: str(self.number))


def test_finished_jobs_are_kept_and_a_failure_does_not_lose_the_others(tmp_path, capsys):
    called = []

    def runner(job):
        called.append(job.number)
        if job.number == 2:
            raise ValueError("no")
        return {"seconds": 1.0, "square": job.number**2}

    jobs = [Square(number) for number in (1, 2, 3, 3)]
    with pytest.raises(RuntimeError, match=r"1 of 3 jobs failed:\nsquare on 2: ValueError"):
        run_all(jobs, tmp_path, workers=0, title="squares", runner=runner)
    assert called == [3, 2, 1]  # the most costly first, duplicates once
    found = run_all([jobs[0], *jobs[2:]], tmp_path, workers=0, title="squares", runner=runner)
    assert [row["square"] for row in found] == [1, 9, 9]
    assert called == [3, 2, 1]
    assert "already in" in capsys.readouterr().out


def test_names_of_jobs_are_those_of_stored_results():
    """A job's name depends on its content alone: results that were cached before modules moved are found."""
    assert digest(["slopes", pairs({"b": 1, "a": (2, 3)})]) == digest(["slopes", [["a", [2, 3]], ["b", 1]]])
    assert digest({"x": 1}) == "613fe5aa65343dbb1b9a"
    quick = minatar.PRESETS["quick"]
    chosen = minatar.choose([], quick, "data-scarce")
    assert minatar.final_jobs(quick, chosen, "data-scarce")[0].name == "031197d07c6adbad7df3"
    assert study.cases_of(study.PRESETS["quick"])[0].name == "4ac9d996840527cbc75d"
    assert figure3.Case("cartpole", 50, 30, 0, False).name == "7f47a361c7a1bc1f7d9d"
    assert ExpertJob("Pendulum-v1", Path("any"), "{}", 12_000, (64, 64), 5, 1).name == "90d2107f5cf0be21adb1"


def test_verdicts():
    assert [verdict(*ends, "greater") for ends in ((0.1, 1), (-1, -0.1), (-1, 1))] == [
        "reproduced",
        "not reproduced",
        "undecided",
    ]
    assert verdict(0.1, 1.0, "less") == "not reproduced"
    assert [verdict(*ends, "equal") for ends in ((-0.05, 0.05), (-0.2, 0.05), (0.01, 0.05))] == [
        "reproduced",
        "undecided",
        "not reproduced",
    ]
    assert all_of(["reproduced", "undecided"]) == "undecided"
    assert all_of(["reproduced", "undecided", "not reproduced"]) == "not reproduced"
    assert all_of(["reproduced"] * 2) == "reproduced"
    assert all_of([]) == "undecided"


def test_bootstrap_interval_of_a_mean():
    samples = np.random.default_rng(0).normal(size=400)
    value, low, high = bootstrap_interval(lambda x: float(x[0].mean()), [samples])
    error = samples.std() / 20
    assert value == samples.mean()
    np.testing.assert_allclose([low, high], [value - 1.96 * error, value + 1.96 * error], atol=0.2 * error)


def test_numbers_in_files():
    assert [rounded(x) for x in (1.234567, float("nan"), float("inf"))] == [1.2346, None, None]


def test_one_main(tmp_path, capsys):
    """`run` gets what the command says, and tables are printed, square brackets and all."""

    def run(preset, *, workers, cache, output, data):
        assert (preset, workers, data) == ("cpu", 0, tmp_path)
        assert cache.parts == ("results", "cache", "shared")
        return write_results(output, "test", preset, {"n": 3}, [{"seconds": 1.5}, {"seconds": 2.0}], [7])

    def tables(content):
        return [("title [95 %]", ["column that is wide"], [[str(content["results"])]])]

    output = tmp_path / "found.json"
    given = ["--preset", "cpu", "--workers", "0", "--data", str(tmp_path), "--output", str(output)]
    shared = dict(description="what it does", cache="shared", folders={"data": None})
    main("test", {"quick": 1, "cpu": 2}, run, tables, arguments=given, **shared)
    content = json.loads(output.read_text())
    assert (content["benchmark"], content["preset"], content["compute_seconds"]) == ("test", "cpu", 3.5)
    printed = capsys.readouterr().out
    assert "title [95 %]" in printed
    assert "[7]" in printed
    with pytest.raises(SystemExit):
        main("test", {"quick": 1}, run, tables, arguments=["--preset", "gpu"], **shared)


def test_commands_in_files_name_no_place_of_the_machine():
    words = ["/some/where/benchmarks/star/suite.py", "--preset", "cpu", "--output", "/tmp/x", "--data", "/tmp"]
    assert _command(words) == "python -m benchmarks.star.suite --preset cpu"


def test_every_room_registers_itself():
    found = papers()
    assert list(found) == ["dapo", "deterministic", "empirical_likelihood", "nppac", "star"]
    for paper in found.values():
        assert {"quick", "cpu"} <= set(paper.presets)
        for runs in paper.presets.values():
            for main_of, preset in runs:
                with pytest.raises(SystemExit) as stopped:  # the preset is known, the option is not
                    main_of(["--preset", preset, "--no-such-option"])
                assert stopped.value.code == 2
    names = [section.benchmark for paper in found.values() for section in paper.sections]
    assert len(set(names)) == len(names)
