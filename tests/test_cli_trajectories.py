"""`jaxrl-off collect --kind trajectories` and `estimate trajectories`, on one short run that is judged by its own data."""

import json

import numpy as np
import pytest

from jaxrl_off import cli, training
from jaxrl_off.data import trajectories
from jaxrl_off.data.behaviour import clone_behaviour
from jaxrl_off.estimators.trajectory import linear_q, transitions, weighted


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    run, data = folder / "run", folder / "data.npz"
    arguments = ["--env", "CartPole-v1", "--total-steps", "2048", "--directory", str(run)]
    assert cli.main(["train", "--preset", "ppo", *arguments]) == 0
    sizes = ["--episodes", "30", "--num-envs", "10", "--horizon", "40"]
    assert cli.main(["collect", str(data), "--kind", "trajectories", "--run", str(run), *sizes]) == 0
    return folder, run, data


def test_a_policy_judged_by_its_own_data(recorded, capsys):
    """All ratios are 1, so that every estimate is the mean return."""
    folder, run, data = recorded
    output = folder / "own.json"
    names = "naive,is,pdis,wis,cwpdis,el,star"
    arguments = ["--return-range", "0", "40"]
    arguments += ["--policy", str(run), "--estimators", names, "--level", "0.9", "--output", str(output)]
    assert cli.main(["estimate", "trajectories", str(data), *arguments]) == 0
    read = trajectories.load(data)
    assert read.mask.shape == (30, 40)
    mean = np.sum(read.rewards * read.mask, axis=1).mean()
    content = json.loads(output.read_text())
    assert [row["estimator"] for row in content["rows"]] == names.split(",")
    for row in content["rows"]:
        assert row["value"] == pytest.approx(mean, rel=1e-4)
        assert row["diagnostics"]["mean_weight"] == pytest.approx(1.0, abs=1e-4)
        assert row["lower"] < mean < row["upper"]
    assert (content["level"], content["data"], content["policy"], content["cells"]) == (0.9, "data.npz", "run", 32)
    assert output.with_suffix(".png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "90% intervals" in shown
    assert "do not rely" not in shown
    assert cli.main(["estimate", "trajectories", str(data), *arguments]) == 2
    assert "not overwritten" in capsys.readouterr().err


def test_fitted_values_and_a_model(recorded):
    """What is fitted to the policy's own data has about the mean return; corrections make it the mean return."""
    folder, run, data = recorded
    output = folder / "fitted.json"
    names = "naive,fqe,dm,dr,wdr,magic,model"
    arguments = ["--policy", str(run), "--estimators", names, "--cells", "8", "--output", str(output)]
    assert cli.main(["estimate", "trajectories", str(data), *arguments]) == 0
    rows = {row["estimator"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == names.split(",")
    mean = rows["naive"]["value"]
    for name, row in rows.items():
        assert row["value"] == pytest.approx(mean, rel=1e-4 if name in ("naive",) else 0.3), name
        assert row["lower"] < row["value"] < row["upper"]
    # every Q leaves the mean return as it was on average over folds, with other noise
    assert abs(rows["dr"]["value"] - mean) < 4.0 * rows["dr"]["standard_error"]
    read = trajectories.load(data)
    policy = training.policy_functions(*parts_of(run))
    target = transitions.target_actions(read, policy.log_prob, num_actions=2)
    expected = linear_q.linear_q_evaluation(read, target, level=0.95)
    assert rows["fqe"]["value"] == pytest.approx(float(expected.value), rel=1e-9)
    assert rows["fqe"]["upper"] == pytest.approx(float(expected.upper), rel=1e-9)


def parts_of(run):
    loaded = training.load_run(run)
    return loaded.config, loaded.spec, loaded.agent.publish(loaded.agent_state)


def test_a_network_for_q(recorded):
    folder, run, data = recorded
    output = folder / "network.json"
    arguments = ["--q", "mlp", "--updates", "20", "--estimators", "fqe,dm", "--policy", str(run)]
    assert cli.main(["estimate", "trajectories", str(data), *arguments, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert all(np.isfinite([row["lower"], row["upper"]]).all() for row in rows)
    assert rows[0]["diagnostics"]["member_deviation"] > 0


def test_behaviour_that_was_not_logged(recorded, capsys):
    """Probabilities are estimated where this is asked for, and table and file say so."""
    folder, run, data = recorded
    read = trajectories.load(data)
    unlogged, output = folder / "unlogged.npz", folder / "cloned.json"
    trajectories.save(read._replace(behaviour_log_prob=None), unlogged)
    arguments = ["estimate", "trajectories", str(unlogged), "--policy", str(run), "--estimators"]
    assert cli.main([*arguments, "naive,wis"]) == 2
    assert "--clone-behaviour" in capsys.readouterr().err
    assert cli.main([*arguments, "naive,wis", "--clone-behaviour", "tabular"]) == 2
    assert "logistic" in capsys.readouterr().err
    assert cli.main([*arguments, "naive,wis", "--clone-behaviour", "logistic", "--output", str(output)]) == 0
    assert "was not logged but estimated" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert "multinomial logistic regression" in content["behaviour"]
    expected, report = clone_behaviour(read, num_actions=2, kind="logistic")
    assert content["behaviour"] == report.note
    target = np.where(read.mask, read.behaviour_log_prob, 0.0)
    assert content["rows"][1]["value"] == pytest.approx(float(weighted.wis(expected, target).value), rel=1e-3)
    assert content["rows"][1]["diagnostics"]["behaviour_estimated"] == 1.0
    assert cli.main([*arguments, "naive,fqe"]) == 0


def test_data_of_another_policy(recorded):
    """Behaviour probabilities that were lower: the numbers are those of the library, and too few trajectories are told."""
    folder, run, data = recorded
    read = trajectories.load(data)
    random = np.random.default_rng(0)
    changed = np.where(read.mask, read.behaviour_log_prob - random.exponential(1.0, read.mask.shape), 0.0)
    trajectories.save(read._replace(behaviour_log_prob=changed), folder / "other.npz")
    output = folder / "other.json"
    arguments = [
        "--estimators",
        "cwpdis",
        "--window",
        "3",
        "--discount",
        "0.9",
        "--interval",
        "bootstrap",
        "--seed",
        "2",
    ]
    arguments += ["--policy", str(run), "--output", str(output)]
    assert cli.main(["estimate", "trajectories", str(folder / "other.npz"), *arguments]) == 0
    row = json.loads(output.read_text())["rows"][0]
    settings = dict(window=3, discount=0.9, level=0.95, interval="bootstrap", seed=2)
    other = read._replace(behaviour_log_prob=changed)
    expected = weighted.cwpdis(other, np.where(read.mask, read.behaviour_log_prob, 0.0), **settings)
    for name in ("value", "lower", "upper", "standard_error"):
        assert row[name] == pytest.approx(float(getattr(expected, name)), rel=1e-3)


def test_few_effective_trajectories_are_told(recorded, capsys):
    folder, run, data = recorded
    read = trajectories.load(data)
    one = np.where(np.arange(30)[:, None] == 3, -40.0, -0.1) + 0.0 * read.rewards
    trajectories.save(read._replace(behaviour_log_prob=np.where(read.mask, one, 0.0)), folder / "few.npz")
    assert (
        cli.main(["estimate", "trajectories", str(folder / "few.npz"), "--policy", str(run), "--estimators", "wis"])
        == 0
    )
    assert "Fewer than 10 effective trajectories in wis" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "sorcery"], "choose from naive"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "el"], "--return-range"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--clone-behaviour", "logistic"], "leave --clone"),
        (["estimate", "trajectories", "DATA", "--policy", "NOWHERE"], "holds no run"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--behaviour-log-prob", "x"], "hdf5"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--output", "x.txt"], "must end in .json"),
        (["estimate", "trajectories", "WIDE", "--policy", "RUN"], "same environment"),
        (["collect", "x.npz", "--kind", "trajectories", "--run", "RUN", "--greedy"], "sampled actions of a run"),
        (["collect", "minari:x-v0", "--kind", "trajectories", "--run", "RUN"], ".npz files"),
        (["collect", "DATA", "--kind", "trajectories", "--run", "RUN"], "not overwritten"),
    ],
)
def test_what_cannot_be_done(recorded, capsys, arguments, message):
    folder, run, data = recorded
    wide = folder / "wide.npz"
    if not wide.exists():
        read = trajectories.load(data)
        doubled = dict(observations=np.concatenate([read.observations] * 2, axis=-1), final_observation=None)
        trajectories.save(read._replace(**doubled), wide)
    places = {"DATA": data, "RUN": run, "WIDE": wide, "NOWHERE": folder / "nowhere"}
    assert cli.main([str(places.get(word, word)) for word in arguments]) == 2
    assert message in capsys.readouterr().err
