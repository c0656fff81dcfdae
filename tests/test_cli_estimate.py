"""`jaxrl-off estimate bandit`, end to end and in process."""

import csv
import json

import numpy as np
import pytest

from jaxrl_off import cli
from jaxrl_off.estimators import bandit

COLUMNS = ["action", "reward", "propensity", "target_propensity", "region", "q", "v"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    random = np.random.default_rng(0)
    behaviour, target = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.3, 0.6])
    action = random.choice(3, size=600, p=behaviour)
    reward = (random.uniform(size=600) < np.array([0.2, 0.5, 0.7])[action]).astype(int)
    region = random.choice(["north", "south"], size=600)
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
    rows = json.loads(output.read_text())["rows"]
    assert [(row["slice"], row["estimator"]) for row in rows] == [
        (place, name) for place in ("all", "north", "south") for name in ("el", "dr")
    ]
    here = region == "south"
    expected = bandit.empirical_likelihood(weights[here], reward[here], weight_range=(0.0, 10.0), level=0.9)
    for key in ("value", "lower", "upper", "standard_error", "effective_sample_size"):
        assert rows[4][key] == pytest.approx(float(getattr(expected, key)), rel=1e-9)
    assert rows[1]["value"] == pytest.approx(np.mean(0.45 + weights * (reward - 0.5)), rel=1e-9)
    assert output.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "south" in printed
    assert "--weight-max says better" in printed
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


def test_vowpal_wabbit_logs(tmp_path, capsys):
    path = tmp_path / "log.vw"
    path.write_text("1:0:0.5 | a:1\n2:1:0.25 | a:0.5\n1:1:0.5 | a:2\n2:0:0.25 | a:0\n")
    output = tmp_path / "out.json"
    assert (
        cli.main(
            ["estimate", "bandit", str(path), "--target", "uniform", "--estimators", "ips", "--output", str(output)]
        )
        == 0
    )
    # rewards are 1 - cost: 1, 0, 0, 1, and weights 1, 2, 1, 2
    assert json.loads(output.read_text())["rows"][0]["value"] == pytest.approx(3 / 4)


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
        (["--reward-range", "0", "0.5"], "rewards must be finite and in [0, 0.5]"),
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
    assert "1 rows were dropped" in capsys.readouterr().out
