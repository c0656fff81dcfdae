"""`jaxrl-off estimate bandit`, end to end and in process."""

import csv
import json
import sys

import numpy as np
import pytest

from jaxrl_off import cli
from jaxrl_off.estimators import bandit

NAMES = "action,reward,propensity,target_propensity"
COLUMNS = ["action", "reward", "propensity", "target_propensity", "region", "q", "v"]


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def run(path, *arguments):
    """Of the command, with a new output file, its JSON."""
    output = path.with_name(f"{path.stem}-{len(list(path.parent.iterdir()))}.json")
    assert cli.main(["estimate", "bandit", str(path), *arguments, "--output", str(output)]) == 0
    return json.loads(output.read_text(), parse_constant=refuse_constant)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    random = np.random.default_rng(0)
    behaviour, target = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.3, 0.6])
    action = random.choice(3, size=600, p=behaviour)
    reward = (random.uniform(size=600) < np.array([0.2, 0.5, 0.7])[action]).astype(int)
    region = np.tile(["north", "south"], 300)
    path = tmp_path_factory.mktemp("bandit") / "log.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            (a, r, behaviour[a], target[a], where, 0.5, 0.45)
            for a, r, where in zip(action, reward, region, strict=True)
        )
    return path, action, reward, target[action] / behaviour[action], region


def test_numbers_are_those_of_the_library(log, tmp_path, capsys):
    path, _, reward, weights, region = log
    output = tmp_path / "sub" / "out.json"
    arguments = ["estimate", "bandit", str(path), "--estimators", "el,dr", "--by", "region", "--level", "0.9"]
    arguments += ["--predicted", "q", "--predicted-target", "v", "--output", str(output)]
    assert cli.main(arguments) == 0
    content = json.loads(output.read_text())
    rows = content.pop("rows")
    assert [(row["slice"], row["estimator"]) for row in rows] == [
        (place, name) for place in ("all", "region=north", "region=south") for name in ("el", "dr")
    ]
    expected = {"log": "log.csv", "target": "column", "level": 0.9, "by": "region", "interval": "student_t"}
    expected |= {"calibration": "f", "reward_range": [0.0, 1.0], "weight_max": pytest.approx(10.0), "num_actions": 3}
    expected |= {"dropped_rows": 0, "dropped_for": {}, "predicted": "q", "predicted_target": "v", "on_bad": "error"}
    assert {name: content[name] for name in expected} == expected
    assert not content.keys() & {"output", "kind"}
    here = region == "south"
    expected = bandit.empirical_likelihood(weights[here], reward[here], weight_range=(0.0, 10.0), level=0.9)
    for key in ("value", "lower", "upper", "standard_error", "effective_sample_size"):
        assert rows[4][key] == pytest.approx(float(getattr(expected, key)), rel=1e-9)
    assert rows[1]["value"] == pytest.approx(np.mean(0.45 + weights * (reward - 0.5)), rel=1e-9)
    assert output.with_suffix(".png").stat().st_size > 1000
    assert {path.name for path in output.parent.iterdir()} == {"out.json", "out.png"}
    printed = capsys.readouterr().out
    assert "90% intervals" in printed
    assert "south" in printed
    assert "set --weight-max if you know the true bound" in printed
    # a second time nothing is overwritten
    assert cli.main(arguments) == 2
    assert "are not overwritten" in capsys.readouterr().err


def test_policies_that_are_named(log, tmp_path, capsys):
    path, action, reward, _, _ = log
    found = {}
    for target in ("logged", "uniform", "always:2"):
        output = tmp_path / f"{target[:5]}.json"
        assert (
            cli.main(
                ["estimate", "bandit", str(path), "--estimators", "ips", "--target", target, "--output", str(output)]
            )
            == 0
        )
        found[target] = json.loads(output.read_text())["rows"][0]["value"]
    behaviour = np.array([0.6, 0.3, 0.1])[action]
    assert found["logged"] == pytest.approx(reward.mean(), rel=1e-9)
    assert found["uniform"] == pytest.approx(np.mean(reward / 3 / behaviour), rel=1e-9)
    assert found["always:2"] == pytest.approx(np.mean(reward * (action == 2) / behaviour), rel=1e-9)


@pytest.mark.parametrize("name", ["log.vw", "log.VW"])
def test_vowpal_wabbit_logs(tmp_path, name):
    path = tmp_path / name
    path.write_text("1:0:0.5 | a:1\n2:1:0.25 | a:0.5\n1:1:0.5 | a:3e38 b:2 c:3e38\n2:0:0.25 | a:0\n")
    arguments = ["--target", "uniform", "--estimators", "ips"]
    # rewards are 1 - cost: 1, 0, 0, 1, and weights 1, 2, 1, 2
    assert run(path, *arguments)["rows"][0]["value"] == pytest.approx(3 / 4)
    shifted = run(path, *arguments, "--reward-offset", "2", "--reward-range", "0", "3", "--num-actions", "4")
    assert shifted["rows"][0]["value"] == pytest.approx((1 + 1 + 0.5 + 2) / 4)
    assert (shifted["reward_offset"], shifted["num_actions"]) == (2.0, 4)


def test_actions_that_were_never_logged(log, tmp_path, capsys):
    path, _, reward, _, _ = log
    arguments = ["estimate", "bandit", str(path), "--estimators", "ips"]
    assert cli.main([*arguments, "--target", "uniform"]) == 0
    assert "Assuming 3 actions" in capsys.readouterr().out
    assert cli.main([*arguments, "--target", "always:3"]) == 2
    assert "--num-actions says how many" in capsys.readouterr().err
    for target in ("always:3", "uniform"):
        assert cli.main([*arguments, "--target", target, "--num-actions", "4"]) == 0
        assert "Set --num-actions" not in capsys.readouterr().out
    assert cli.main([*arguments, "--num-actions", "2"]) == 2
    assert "action must be an integer in [0, 2)" in capsys.readouterr().err


def test_slices_do_not_replace_one_another(tmp_path):
    path = tmp_path / "log.csv"
    values = ["all", "1", "01", "1.0", "$\\frac{$", ""]  # none is parsed, neither as a number nor as a formula
    path.write_text(NAMES + ",where\n" + "".join(f"0,1,0.5,0.5,{value}\n0,0,0.5,0.5,{value}\n" for value in values))
    rows = run(path, "--estimators", "ips", "--by", "where")["rows"]
    assert {row["slice"]: row["diagnostics"]["rows"] for row in rows} == {
        "all": 12,
        **{f"where={value}": 2 for value in values},
    }


def test_slices_by_missing_values(tmp_path, capsys):
    columns = {"action": np.zeros(4), "reward": np.ones(4), "propensity": np.ones(4), "target_propensity": np.ones(4)}
    np.savez(tmp_path / "log.npz", **columns, where=[1, np.nan, 1, np.nan], wide=np.ones((4, 2)))
    rows = run(tmp_path / "log.npz", "--estimators", "ips", "--by", "where")["rows"]
    assert [(row["slice"], row["diagnostics"]["rows"]) for row in rows] == [
        ("all", 4),
        ("where=1.0", 2),
        ("where=nan", 2),
    ]
    assert cli.main(["estimate", "bandit", str(tmp_path / "log.npz"), "--by", "wide"]) == 2
    assert "has shape (4, 2)" in capsys.readouterr().err


def test_predictions_that_are_missing(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text(NAMES + ",v\n0,1,0.5,0.5,0.25\n0,1,0.5,0.5,NA\n0,1,0.5,0.5,\n0,1,0.5,0.5,nan\n0,1,1,1,0.75\n")
    arguments = ["--estimators", "dm", "--predicted-target", "v"]
    assert cli.main(["estimate", "bandit", str(path), *arguments]) == 2
    assert "has 'NA' as v" in capsys.readouterr().err
    found = run(path, *arguments, "--on-bad", "drop")
    assert found["rows"][0]["value"] == 0.5
    assert (found["dropped_rows"], found["dropped_for"]) == (3, {"malformed line": 2, "column v": 1})
    assert cli.main(["estimate", "bandit", str(path), *arguments, "--by", "v"]) == 2
    assert "slices need another one" in capsys.readouterr().err


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(NAMES + "\n0,1,0.5,0.5\n")
    found = run(path, "--estimators", "ips", "--weight-max", "inf", "--level", "0.999")
    assert found["weight_max"] is None
    row = found["rows"][0]
    assert row["value"] == 1.0
    assert row["standard_error"] is None  # of one row, infinite


def test_a_plot_that_cannot_be_drawn_leaves_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "log.csv"
    path.write_text(NAMES + "\n0,1,0.5,0.5\n0,0,0.5,0.5\n")
    output = tmp_path / "sub" / "out.json"
    arguments = ["estimate", "bandit", str(path), "--estimators", "ips", "--output", str(output)]

    def fail(*_, **__):
        raise ValueError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", fail)
        assert cli.main(arguments) == 2
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert cli.main(arguments) == 2
    assert 'pip install "jaxrl_off[bench]"' in capsys.readouterr().err
    assert not output.parent.exists()
    # nor does one that cannot be moved to where it belongs
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        assert cli.main(arguments) == 2
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimators", "el,magic"], "unknown estimators magic; choose from el"),
        (["--estimators", "dr"], "dr needs --predicted and --predicted-target"),
        (["--by", "colour"], "has no columns colour; it has action"),
        (["--target", "always:7"], "an action in [0, 3)"),
        (["--target", "greedy"], "--target must be"),
        (["--output", "out.txt"], "must end in .json"),
        (["--level", "95"], "level must be between 0 and 1"),
        (["--weight-max", "2"], "weights must be finite and in [0, 2]"),
        (["--weight-max", "0"], "weight_range must be numbers, of which the second may be infinite, with low < high"),
        (["--reward-range", "0", "0.5"], "reward must be in [0, 0.5], the range that was given; line"),
    ],
)
def test_mistakes_are_told(log, arguments, message, capsys):
    assert cli.main(["estimate", "bandit", str(log[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_rows_are_named_or_dropped(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text("action,reward,propensity,target_propensity\n0,1,0.5,0.5\n1,0,0,0.5\n1,0,0.5,0.5\n")
    assert cli.main(["estimate", "bandit", str(path), "--estimators", "ips"]) == 2
    assert "line 3" in capsys.readouterr().err
    assert cli.main(["estimate", "bandit", str(path), "--estimators", "ips", "--on-bad", "drop"]) == 0
    assert "1 rows were dropped (propensity: 1)." in capsys.readouterr().out
    path.write_text(path.read_text() + "1,7,0.5,0.5\n")
    assert cli.main(["estimate", "bandit", str(path), "--estimators", "ips", "--on-bad", "drop"]) == 2
    assert "line 5" in capsys.readouterr().err


def test_levels_are_printed_as_they_are(log, capsys):
    assert cli.main(["estimate", "bandit", str(log[0]), "--estimators", "ips", "--level", "0.999"]) == 0
    assert "99.9% intervals" in capsys.readouterr().out


def test_help_names_all_intervals(capsys):
    from jaxrl_off.estimators.bandit.terms import ASYMPTOTIC, BOUNDED

    with pytest.raises(SystemExit):
        cli.main(["estimate", "bandit", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ASYMPTOTIC + BOUNDED)


def test_bounded_intervals_are_for_what_the_help_says(log, capsys):
    arguments = ["estimate", "bandit", str(log[0]), "--interval", "clopper_pearson", "--predicted", "q"]
    arguments += ["--predicted-target", "v", "--estimators"]
    assert cli.main([*arguments, "ips,dm,dr"]) == 0
    for name in ("snips", "sndr"):
        assert cli.main([*arguments, name]) == 2
