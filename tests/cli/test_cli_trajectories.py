"""`jaxrl-off collect --kind trajectories` and `estimate trajectories`, on one short run that is judged by its own data."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_off import cli, training
from jaxrl_off.data import trajectories
from jaxrl_off.estimators.trajectory.behaviour import clone_behaviour
from jaxrl_off.estimators.trajectory.columns import target_policy
from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
from jaxrl_off.estimators.trajectory.reward_processes import abstractions
from jaxrl_off.estimators.trajectory.reward_processes.star import star
from jaxrl_off.estimators.trajectory.values import linear as linear_q
from jaxrl_off.estimators.trajectory.values import tabular, traces
from jaxrl_off.estimators.trajectory.weights import doubly_robust
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.types import Trajectories

command = importlib.import_module("jaxrl_off.cli.estimate_trajectories")  # the package has the function of that name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    run, data = folder / "run", folder / "data.npz"
    arguments = ["--env", "CartPole-v1", "--total-steps", "2048", "--directory", str(run)]
    assert cli.main(["train", "--preset", "ppo", *arguments]) == 0
    sizes = ["--episodes", "30", "--num-envs", "10", "--horizon", "40"]
    assert cli.main(["collect", str(data), "--kind", "trajectories", "--run", str(run), *sizes]) == 0
    jax.config.update(
        "jax_disable_most_optimizations", True
    )  # each program runs once, and compiles for longer than that
    yield folder, run, data
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_policy_judged_by_its_own_data(recorded, capsys):
    """All ratios are 1, so that every estimate is the mean return."""
    folder, run, data = recorded
    output = folder / "own.json"
    names = "naive,is,pdis,wis,cwpdis,el,mis,star"
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
    assert "unreliable" not in shown
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
    target = target_policy.target_actions(read, policy.log_prob, num_actions=2)
    expected = linear_q.linear_q_evaluation(read, target, level=0.95)
    assert rows["fqe"]["value"] == pytest.approx(float(expected.value), rel=1e-9)
    assert rows["fqe"]["upper"] == pytest.approx(float(expected.upper), rel=1e-9)


def test_traces_marginal_ratios_and_occupancies(recorded, capsys):
    """With the arguments that the command says, they are the library's; marginal ratios of 1 give the mean return."""
    folder, run, data = recorded
    output = folder / "marginal.json"
    names = "naive,retrace,mis,dice,model"
    arguments = ["--policy", str(run), "--estimators", names, "--cells", "6", "--discount", "0.9", "--q", "quadratic"]
    assert cli.main(["estimate", "trajectories", str(data), *arguments, "--output", str(output)]) == 0
    rows = {row["estimator"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == names.split(",")
    read = trajectories.load(data)
    returns = np.sum(read.rewards * read.mask * 0.9 ** np.arange(40), axis=1)
    for name in ("naive", "mis"):
        assert rows[name]["value"] == pytest.approx(returns.mean(), rel=1e-4)
    policy = training.policy_functions(*parts_of(run))
    target = target_policy.target_actions(read, policy.log_prob, num_actions=2)
    options = dict(discount=0.9, level=0.95)
    expected = {"retrace": traces.trace_evaluation(read, target, features="quadratic", **options)}
    phi = abstractions.k_means(
        jax.random.split(jax.random.key(0), 3)[1], read.observations, 6, mask=read.mask, standardise=True
    )
    cells, chances = np.asarray(phi(read.observations)), np.asarray(target.weights)[:, :-1]
    table = np.stack([chances[read.mask & (cells == cell)].mean(axis=0) for cell in range(6)])
    table /= table.sum(axis=1, keepdims=True)
    counted = read._replace(observations=cells, final_observation=None)
    expected["dice"] = tabular_occupancy.gen_dice(counted, table, **options)
    expected["model"] = tabular.model_based(counted, table, **options)
    for name, estimate in expected.items():
        for field in ("value", "lower", "upper"):
            assert rows[name][field] == pytest.approx(float(getattr(estimate, field)), rel=1e-5), name
    assert rows["dice"]["value"] == pytest.approx(rows["model"]["value"], rel=1e-2)
    # no number is taken from an earlier run
    output.unlink()
    assert cli.main(["estimate", "trajectories", str(data), *arguments, "--output", str(output)]) == 2
    assert "marginal.png" in capsys.readouterr().err


def test_a_process_that_goes_on_where_trajectories_were_cut(recorded, capsys):
    """One quantity in the fit, in what corrects it and in the reward process; the table says which."""
    folder, run, data = recorded
    output = folder / "goes_on.json"
    arguments = ["--policy", str(run), "--estimators", "fqe,dr,star", "--cells", "6", "--discount", "0.9"]
    arguments += ["--no-horizon-exit", "--output", str(output)]
    assert cli.main(["estimate", "trajectories", str(data), *arguments]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the process goes on where trajectories were cut" in shown
    rows = {row["estimator"]: row for row in json.loads(output.read_text())["rows"]}
    read, policy = trajectories.load(data), training.policy_functions(*parts_of(run))
    cut = 1.0 - (read.terminated & read.mask).any(axis=1).mean()
    assert cut > 0.0
    for row in rows.values():
        assert (row["diagnostics"]["horizon_exit"], row["diagnostics"]["cut_share"]) == (0.0, pytest.approx(cut))
    target = target_policy.target_actions(read, policy.log_prob, num_actions=2)
    log_prob = np.asarray(policy.log_prob(read.observations, read.actions))
    options = dict(discount=0.9, horizon_exit=False)
    values = doubly_robust.cross_fitted(
        lambda counts: linear_q.fit_linear_q(read, target, counts=counts, **options).values, np.ones(30)
    )
    key = jax.random.split(jax.random.key(0), 3)[1]
    phi = abstractions.k_means(key, read.observations, 6, mask=read.mask, standardise=True)
    cells, last = np.asarray(phi(read.observations)), np.asarray(phi(read.final_observation[:, None]))[:, 0]
    expected = {
        "fqe": linear_q.linear_q_evaluation(read, target, level=0.95, **options),
        "dr": doubly_robust.doubly_robust(
            read, log_prob, values.q, values.v, final=values.final, level=0.95, **options
        ),
        "star": star(read, log_prob, cells, 6, window=2, final_states=last, level=0.95, **options),
    }
    for name, estimate in expected.items():
        for field in ("value", "lower", "upper"):
            assert rows[name][field] == pytest.approx(float(getattr(estimate, field)), rel=1e-5), name
    # rewards are 1, so that the value is near 10 where the policy seldom falls; up to the cut it is less
    assert rows["dr"]["value"] > np.mean(np.sum(read.rewards * read.mask * 0.9 ** np.arange(40), axis=1))


def test_occupancies_of_continuous_actions_are_linear():
    """Through the functions of the command, as no run with continuous actions is short."""
    random = np.random.default_rng(0)
    mask, end = np.ones((20, 5), bool), np.arange(5) == 4 + np.zeros((20, 1))
    observations, actions = random.normal(size=(20, 5, 2)), random.normal(size=(20, 5, 1))
    logged = -0.5 * actions[..., 0] ** 2
    read = Trajectories(observations, actions, random.random((20, 5)), logged, mask, end, ~mask, observations[:, 0])
    policy = training.PolicyFunctions(
        act=lambda key, seen: (jax.random.normal(key, (len(seen), 1)), np.zeros(len(seen))),
        log_prob=lambda seen, action: -0.5 * action[..., 0] ** 2,
    )
    options = command.EstimateTrajectories(Path("x"), Path("y"), discount=0.9, cells=4, q="quadratic")
    names = ["naive", "dice", "mis", "retrace"]
    found = command._estimates(options, names, read, policy, None)
    mean = float(found["naive"].value)
    assert float(found["mis"].value) == pytest.approx(mean, rel=1e-9)
    assert "rank" in found["dice"].diagnostics
    assert float(found["dice"].value) == pytest.approx(mean, rel=0.3)
    assert float(found["retrace"].value) == pytest.approx(mean, rel=0.3)
    with pytest.raises(ValueError, match="model is for discrete actions"):
        command._estimates(options, ["model"], read, policy, None)
    with pytest.raises(ValueError, match="dice of continuous actions is linear"):
        command._estimates(dataclasses.replace(options, q="mlp"), ["dice"], read, policy, None)


def test_integer_states_are_cells():
    options = command.EstimateTrajectories(Path("x"), Path("y"), cells=2)
    mask = np.array([[True, True, False], [True, True, True]])
    states = np.array([[5, 0, 99], [3, 1, 4]])
    read = Trajectories(states, None, np.ones((2, 3)), None, mask, ~mask, ~mask, None)
    cells, number, final = command._cells(options, read, jax.random.key(0))
    assert final is None
    assert number == 6
    np.testing.assert_array_equal(cells, [[5, 0, 0], [3, 1, 4]])
    _, number, _ = command._cells(options, read._replace(observations=states + 0.5), jax.random.key(0))
    assert number == 2


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
    assert "wis: Few trajectories carry the weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "sorcery"], "choose from naive"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "el"], "--return-range"),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--clone-behaviour", "logistic"], "leave it out"),
        (
            ["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "sorcery"],
            "retrace, model, mis, dice",
        ),
        (["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", ","], "(none)"),
        (
            ["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "dice"],
            "dice needs a --discount below 1",
        ),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN", "--level", "95"], "level must be between 0 and 1"),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN", "--discount", "2"], "--discount must be in [0, 1]"),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN", "--interval", "exact"], "interval must be one of"),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN", "--folds", "1"], "--folds must be at least 2"),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN", "--cells", "0"], "--cells must be at least 1"),
        (["estimate", "trajectories", "NOWHERE", "--policy", "RUN"], "--kind trajectories --run RUN` records one"),
        (
            ["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "retrace", "--q", "mlp"],
            "retrace is available in closed form only",
        ),
        (["estimate", "trajectories", "DATA", "--policy", "NOWHERE"], "holds no run"),
        (["estimate", "trajectories", "CSV", "--policy", "RUN"], "does not end in .npz"),
        (
            ["estimate", "trajectories", "DATA", "--policy", "RUN", "--no-horizon-exit"],
            "naive, wis, cwpdis can judge only",
        ),
        (
            ["estimate", "trajectories", "DATA", "--policy", "RUN", "--estimators", "fqe", "--window", "2"],
            "leave it out",
        ),
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
    (folder / "table.csv").write_text("episode,step,reward\n0,0,1.0\n")
    places = {"CSV": folder / "table.csv", "DATA": data, "RUN": run, "WIDE": wide, "NOWHERE": folder / "nowhere"}
    assert cli.main([str(places.get(word, word)) for word in arguments]) == 2
    assert message in capsys.readouterr().err
