"""Tuning with equal budgets, jobs of one seed, and result files of unfinished runs."""

import dataclasses
import json

import pytest

from benchmarks.dapo import minatar
from benchmarks.machinery.jobs import merged, split


@pytest.fixture
def small(monkeypatch):
    """A preset of two methods and two seeds whose jobs are written to the cache by hand."""
    preset = minatar.Preset(
        games=("Breakout", "Freeway"),
        methods={"data-scarce": ("PPO", "PPO+DA")},
        steps=20_000,
        seeds=2,
        rates=(1e-4, 1e-3, 1e-2),
        second=minatar.LONG_SECOND,
        tuning_games=("Breakout",),
        tuning_seeds=1,
        tuning_steps=10_000,
        members_per_job=1,
    )
    monkeypatch.setitem(minatar.PRESETS, "small", preset)
    return preset


def finish(job, cache, score):
    """Write what `run_job` would."""
    run = {"reals": dict(job.members[0][0]), "seed": job.members[0][1]}
    curves = {name: [1.0] * 5 for name in ("steps", "half_squared_log_ratio", "staleness_mean")}
    result = {
        "method": job.method, **dict(job.cell), "compile_seconds": 1.0, "run_seconds": 2.0,
        "runs": [run | {"curves": curves | {"episode_return": [score] * 5}}],
    }  # fmt: skip
    cache.mkdir(exist_ok=True)
    (cache / f"{job.name}.json").write_text(json.dumps(result))


def test_every_method_of_a_preset_has_the_same_number_of_settings():
    for preset in minatar.PRESETS.values():
        for methods in preset.methods.values():
            sizes = {m: sum(len(preset.grid(m, rate)) for rate in preset.rates) for m in methods}
            assert set(sizes.values()) == {12}


def test_long_tunes_the_clip_of_no_method():
    long = minatar.PRESETS["long"]
    assert {name for m in long.methods["data-scarce"] for s in long.grid(m, 1e-3) for name in s} == {
        "learning_rate", "entropy_coefficient", "divergence_coefficient"
    }  # fmt: skip


def test_jobs_split_into_members_keep_all_of_them(small):
    job = minatar.tuning_jobs(small, "data-scarce")[0]
    pieces = split(job, 1)
    assert [piece.members for piece in pieces] == [(member,) for member in job.members]
    assert split(job, 0) == [job]
    assert len({piece.name for piece in pieces}) == 3


def test_results_of_single_runs_are_merged_by_cell():
    cell = {"method": "PPO", "game": "Breakout"}
    pieces = [cell | {"runs": [{"seed": s}], "compile_seconds": 1.0, "run_seconds": 2.0} for s in (0, 1)]
    other = {"method": "PPO", "game": "Freeway", "runs": [{"seed": 0}], "compile_seconds": 0.5, "run_seconds": 1.0}
    together = cell | {"runs": [{"seed": 0}, {"seed": 1}], "compile_seconds": 2.0, "run_seconds": 4.0}
    assert merged([pieces[0], other, pieces[1]]) == [together, other]
    assert pieces[0]["runs"] == [{"seed": 0}]


def test_results_can_be_written_at_any_time(small, tmp_path):
    """Without all of the tuning nothing is chosen; then the games that are done are in the tables, the others are missing."""
    cache, output = tmp_path / "cache", tmp_path / "results.json"
    tuning = [piece for job in minatar.tuning_jobs(small, "data-scarce") for piece in split(job, 1)]
    for job in tuning[:-1]:
        finish(job, cache, 1.0 + (dict(job.members[0][0])["learning_rate"] == 1e-3))
    written = minatar.run("small", workers=1, cache=cache, output=output, only_finished=True)
    assert written["missing"] == {"tuning, data-scarce": "1 of 18 jobs"}
    assert written["chosen"] == {}
    assert minatar.tables(written) == []

    finish(tuning[-1], cache, 9.0)  # PPO+DA at the highest rate and coefficient
    written = minatar.run("small", workers=1, cache=cache, output=output, only_finished=True)
    chosen = written["chosen"]["data-scarce"]
    assert chosen["PPO"]["learning_rate"] == 1e-3
    assert chosen["PPO+DA"] == {"learning_rate": 1e-2, "divergence_coefficient": 1.0}
    assert written["on_edge"]["data-scarce"] == {"PPO+DA": ["divergence_coefficient", "learning_rate"]}
    assert written["missing"] == {"final runs, data-scarce": "8 of 8 jobs"}

    final = minatar.final_jobs(small, chosen, "data-scarce")
    for job in final:
        for i, piece in enumerate(split(job, 1)):
            if dict(job.cell)["game"] == "Breakout":
                finish(piece, cache, 10.0 + i + (job.method == "PPO+DA"))
    written = minatar.run("small", workers=1, cache=cache, output=output, only_finished=True)
    assert written["missing"] == {"final runs, data-scarce": "4 of 8 jobs"}
    (title, header, lines), claims = minatar.tables(written)
    assert header[:3] == ["method", "Breakout", "IQM [95 %]"]
    assert lines[0][:2] == ["PPO", "10.50 ± 0.50"]
    assert "largest or smallest value tried: divergence_coefficient, learning_rate" in lines[1][-1]
    assert claims[2][0][0].startswith("data-scarce: PPO+DA beats PPO")
    assert claims[2][0][2].startswith("+0.095")
    assert claims[2][0][3] == "undecided"  # two seeds
    assert json.loads(output.read_text()) == json.loads(json.dumps(written))


def test_publication_of_every_update_leaves_the_names_of_earlier_jobs():
    preset = dataclasses.replace(minatar.PRESETS["long"], map_publish=(1,), map_capacity=(32768,))
    assert all("publish_interval" not in dict(job.settings) for job in minatar.map_jobs(preset))
    stale = dataclasses.replace(preset, map_publish=(100,))
    assert all(dict(job.settings)["publish_interval"] == 100 for job in minatar.map_jobs(stale))
