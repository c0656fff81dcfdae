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
    expected |= {"calibration": "f", "reward_range": [0.0, 1.0], "weight_max": pytest.approx(10.0), "num_actions": None}
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
    assert cli.main([*arguments, "--target", "uniform", "--num-actions", "2"]) == 2
    assert "has 3 different actions, and --num-actions is 2; give at least 3" in capsys.readouterr().err


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
        (
            ["--target", "always:7"],
            "always:ACTION with a number in [0, 3); --num-actions says how many actions there are, got",
        ),
        (
            ["--interval", "betting"],
            "--interval betting is for ips, dm and dr, whose terms have a known range, and not for snips",
        ),
        (["--interval", "bca", "--estimators", "el"], "el have intervals of their own; leave --interval bca out"),
        (["--interval", "bettin"], "interval must be one of normal"),
        (["--ordered"], "--ordered is for --interval betting, the only one that depends on the order"),
        (["--calibration", "chi2", "--estimators", "ips"], "--calibration is for el, which is not among --estimators"),
        (["--first-action", "0"], "--first-action is for Vowpal Wabbit logs (.vw, .dat), and"),
        (["--target", "greedy"], "--target must be"),
        (["--output", "out.txt"], "must end in .json"),
        (["--level", "95"], "level must be between 0 and 1"),
        (
            ["--weight-max", "2"],
            "and 65 rows are outside it. Weights are pi(a|x) / h(a|x); give the range they can have as --weight-max",
        ),
        (["--weight-max", "0"], "--weight-max must be above 1, the mean of importance weights, got 0"),
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


def test_logs_as_they_come(tmp_path, capsys):
    """Semicolons, truth values, names of actions, actions that nothing looks at, rewards that are missing."""
    path = tmp_path / "log.csv"
    path.write_text(
        "item;reward;propensity;target_propensity\npear;True;0.5;0.25\napple;False;0.5;0.75\npear;;0.5;0.25\n"
    )
    arguments = ["--estimators", "ips", "--action", "item"]
    assert cli.main(["estimate", "bandit", str(path), *arguments]) == 2
    assert "has ';' between its cells, and was read as if it were ','; give --delimiter ';'." in capsys.readouterr().err
    arguments += ["--delimiter", ";"]
    assert cli.main(["estimate", "bandit", str(path), *arguments]) == 2
    assert (
        "1 of 3 rewards are missing. --on-bad drop leaves these rows out, which is right if" in capsys.readouterr().err
    )
    arguments += ["--on-bad", "drop"]
    found = run(path, *arguments)
    assert found["rows"][0]["value"] == pytest.approx(0.25)
    assert (found["dropped_rows"], found["dropped_for"]) == (1, {"reward missing": 1})
    assert run(path, *arguments, "--target", "always:pear")["rows"][0]["value"] == pytest.approx(1.0)
    assert run(path, *arguments, "--target", "uniform")["num_actions"] == 2
    assert run(path, *arguments, "--target", "uniform", "--num-actions", "4")["rows"][0]["value"] == pytest.approx(0.25)
    capsys.readouterr()
    assert cli.main(["estimate", "bandit", str(path), *arguments, "--target", "always:paer"]) == 2
    message = "always:ACTION with one of the logged ones: apple, pear, got 'always:paer'. Did you mean 'pear'?"
    assert message in capsys.readouterr().err
    path.write_text("action,reward,propensity\n1000000000000,1,0.5\n,0,0.5\n")
    assert run(path, "--target", "logged", "--estimators", "ips")["rows"][0]["value"] == 0.5


def test_messages_name_flags(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text("action,reward,propensity,target_propensity\n0,2,1.5,0.5\n0,2,0.5,0.5\n")
    assert cli.main(["estimate", "bandit", str(path)]) == 2
    told = capsys.readouterr().err
    assert "propensity must be in (0, 1]; line 2 of" in told
    assert "--on-bad drop leaves such rows out" in told
    assert "on_bad" not in told
    log = tmp_path / "log.vw"
    log.write_text("0:1:0.5 |\n")
    assert cli.main(["estimate", "bandit", str(log), "--target", "logged"]) == 2
    assert "If they are counted from 0, give --first-action 0; --on-bad drop" in capsys.readouterr().err
    assert run(log, "--target", "always:0", "--first-action", "0", "--estimators", "ips")["rows"][0]["value"] == 0.0
    log.write_text("2:0:0.5 |\n1:1:0.5 |\n")
    assert run(log, "--target", "always:2", "--estimators", "ips")["rows"][0]["value"] == 1.0


def test_order_of_rows_and_betting(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text(NAMES + "\n" + "0,0,1,1\n" * 50 + "0,1,1,1\n" * 50)
    arguments = ["--estimators", "ips", "--interval", "betting"]
    found = {
        name: run(path, *arguments, *more)["rows"][0]
        for name, more in (
            ("drawn", ()),
            ("seed", ("--seed", "1")),
            ("again", ("--seed", "1")),
            ("ordered", ("--ordered",)),
        )
    }
    expected = bandit.ips(
        np.ones(100), np.repeat([0.0, 1.0], 50), weight_range=(0, 1 + 1e-9), level=0.95, interval="betting", seed=1
    )
    assert found["seed"]["lower"] == pytest.approx(float(expected.lower), rel=1e-9)
    assert found["seed"]["lower"] == found["again"]["lower"] != found["drawn"]["lower"]
    assert all(row["lower"] <= 0.5 <= row["upper"] for row in found.values())
    assert found["ordered"]["lower"] not in (found["seed"]["lower"], found["drawn"]["lower"])


def test_tables_of_80_columns_break_no_numbers(monkeypatch, capsys):
    from jaxrl_off.cli import common

    monkeypatch.setenv("COLUMNS", "80")
    columns = ("slice", "estimator", "value", "lower", "upper", "rows", "effective", "mean\nweight")
    numbers = ("cressie_read", "-0.012346", "-0.012345", "0.0012345", "1,000,000", "1,000,000", "1.000")
    common.table("title", columns, [("campaign=a long name of a slice", *numbers)], texts=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(all(number in line for number in numbers) for line in lines)
