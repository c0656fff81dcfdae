"""The command line, end to end and in process: exit codes, what is printed, what is written."""

import json
import sys

import pytest

from jaxrl_off import cli
from jaxrl_off.agents import PRESETS
from jaxrl_off.cli import common
from jaxrl_off.cli.collect import read_demonstrations
from jaxrl_off.data.demonstrations import episode_returns, load
from jaxrl_off.references import REFERENCES
from jaxrl_off.training import REGIMES, plan

TINY = (
    "--env probe/action --preset ppo --regime data_rich --num-envs 4 --total-steps 3136 --collect-length 16 "
    "--rollout-length 4 --batch-size 32 --reuse 2 --replay-capacity 1024 --burn-in 64 --log-points 3 "
    "--config learning_rate=0.02 lambda_=0.8 --evaluation-episodes 8 --evaluate-every 2"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", "--directory", str(directory), *TINY]) == 0
    return directory


def test_train_writes_what_was_asked_for(trained):
    described = json.loads((trained / "config.json").read_text())
    assert described["preset"] == "ppo"
    assert described["environment"] == "probe/action"
    assert described["num_envs"] == 4
    assert described["config"]["learning_rate"] == 0.02
    assert described["config"]["lambda_"] == 0.8
    assert described["config"]["divergence"] == "none"
    sizes = {"total_steps": 3136, "collect_length": 16, "rollout_length": 4, "batch_size": 32, "reuse": 2.0}
    sizes |= {"replay_capacity": 1024, "burn_in": 64, "log_points": 3, "publish_interval": 1}
    assert described["settings"] == sizes
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["evaluation_episodes"] for row in rows] == [None, 8, 8]


def test_evaluate_plays_the_trained_agent(trained, capsys):
    """The probe pays 1 for the right action and -1 for the wrong one; an untrained greedy agent may be worth either."""
    assert cli.main(["evaluate", str(trained), "--episodes", "20", "--greedy"]) == 0
    printed = capsys.readouterr().out
    cells = dict(
        [cell.strip() for cell in line.strip("│ \n").split("│")] for line in printed.splitlines() if "│" in line
    )
    assert cells["return"] == "1"
    assert cells["episodes finished"] == "20"
    assert cells["unfinished"] == "0"
    assert cells["actions"] == "greedy"
    assert cells["trained for"] == "3,136 steps"


def test_evaluate_tells_unfinished_episodes(trained, tmp_path, capsys, monkeypatch):
    # two-step episodes, given up after one
    described = json.loads((trained / "config.json").read_text())
    directory = tmp_path / "run"
    assert cli.main(["train", "--directory", str(directory), *TINY, "--env", "probe/discount", "--quiet"]) == 0
    assert described["environment"] != "probe/discount"
    capsys.readouterr()
    assert cli.main(["evaluate", str(directory), "--episodes", "5", "--max-steps", "1"]) == 0
    captured = capsys.readouterr()
    assert "no episode finished" in captured.out
    assert "5 of 5 episodes did not end within 1 steps" in captured.err


def test_train_again_needs_resume(trained, capsys):
    command = ["train", "--directory", str(trained), *TINY]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "already holds a run" in error
    assert "--resume" in error
    assert "Traceback" not in error
    assert cli.main([*command, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "is finished" in captured.err
    assert "3136" in captured.out
    assert cli.main([*command, "--resume", "--config", "learning_rate=0.02", "lambda_=0.8", "gamma=0.9"]) == 2
    assert "config.gamma: stored 0.99, given 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preset", "ppo_dda"], ["unknown preset 'ppo_dda'", "ppo_da", "list presets"]),
        (["--env", "breakout-minatr"], ["unknown environment", "Breakout-MinAtar", "list environments"]),
        (["--env", "probe/acton"], ["unknown environment", "probe/action"]),
        (["--env", "nowhere/x"], ["unknown environment 'nowhere/x'"]),
        (["--regime", "data_scarse"], ["unknown regime", "data_scarce"]),
        (["--regime", "ppo", "--batch-size", "100"], ["no whole number"]),
        (["--config", "learning_rate=-1"], ["learning_rate=-1.0 is not allowed", "a number in [0, inf]"]),
        (["--config", "learning_rat=1"], ["unknown field learning_rat", "Did you mean 'learning_rate'?"]),
        (["--config", "learning_rate"], ["--config takes name=value, got 'learning_rate'"]),
        (["--config", "core_size=1.5"], ["core_size must be a whole number, got '1.5'"]),
        (["--config", "separate_critic=maybe"], ["separate_critic must be true, false or none"]),
        (["--config", "replace=3"], ["unknown field replace"]),
        (["--config", "sizes=a"], ["sizes must be whole numbers with commas between"]),
        (["--preset", "nppac", "--env", "Pendulum-v1", "--regime", "off_policy"], ["name the reference policy"]),
        (["--env-parameters", "{"], ["must be a JSON object"]),
        (["--env-parameters", "[1]"], ["must be a JSON object"]),
        (["--env", "probe/action", "--env-parameters", '{"x": 1}'], ["has no parameter x"]),
    ],
)
def test_mistakes_get_one_message_and_no_directory(tmp_path, capsys, arguments, parts):
    directory = tmp_path / "run"
    command = ["train", "--directory", str(directory), "--env", "CartPole-v1", "--total-steps", "100000", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert "Traceback" not in error
    assert not directory.exists()


@pytest.mark.parametrize("arguments", [["train"], ["fly"], ["list", "nothing"], ["train", "--seed", "x"]])
def test_unknown_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


def test_help_can_be_read(capsys):
    for arguments in ([], ["train"], ["collect"], ["estimate"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, "--help"])
        assert stop.value.code == 0
    help_text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Union" not in help_text
    assert "Estimate the value of a policy from logged data: single decisions (bandit), or trajectories." in help_text


OFF_POLICY = (
    "--env Pendulum-v1 --regime off_policy --num-envs 2 --total-steps 400 --collect-length 25 --batch-size 25 --reuse 5 "
    "--replay-capacity 400 --burn-in 100 --log-points 2 --quiet --config policy_sizes=8 critic_sizes=8 pretrain_updates=9"
).split()


def test_from_a_trained_agent_over_its_demonstrations_to_another(tmp_path, capsys):
    """Train, collect from the run, and learn from what was collected, all by commands."""
    expert, recorded = tmp_path / "expert", tmp_path / "demos.npz"
    command = ["train", "--directory", str(expert), "--preset", "sac", *OFF_POLICY[:-1], "pretrain_updates=0"]
    assert cli.main(command) == 0
    collect = ["collect", str(recorded), "--run", str(expert), "--episodes", "3", "--num-envs", "2"]
    assert cli.main(collect) == 0
    assert "steps" in capsys.readouterr().out
    demonstrations = load(recorded)
    assert len(episode_returns(demonstrations)) == 3
    assert cli.main(collect) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err

    other = tmp_path / "nppac"
    command = ["train", "--directory", str(other), "--preset", "nppac", *OFF_POLICY, "--demonstrations", str(recorded)]
    assert cli.main([*command, "--reference", "gp_icm", "--reference-options", '{"step": 3}']) == 2
    assert "has no option 'step'" in capsys.readouterr().err
    assert not other.exists()
    command += ["--trajectories", "1", "--reference", "gp_icm", "--reference-options", '{"steps": 3}']
    assert cli.main(command) == 0
    assert json.loads((other / "config.json").read_text())["reference"] == "gp_icm"
    assert cli.main(["evaluate", str(other), "--episodes", "2"]) == 0


def test_collect_keeps_good_episodes_and_writes_minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    expert = tmp_path / "expert"
    command = ["train", "--directory", str(expert), "--preset", "sac", *OFF_POLICY[:-1], "pretrain_updates=0"]
    assert cli.main(command) == 0
    collect = ["collect", "minari:pendulum/sac-v0", "--run", str(expert), "--episodes", "2"]
    assert cli.main([*collect, "--min-return", "-1000"]) == 0
    read = read_demonstrations("minari:pendulum/sac-v0", 1)
    assert len(episode_returns(read)) == 1
    assert episode_returns(read)[0] >= -1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.npz"], "give either --run DIRECTORY or --policy FILE"),
        (["x.npz", "--policy", "none.npz"], "none.npz"),
        (["x.txt", "--policy", "none.npz"], "must end in .npz or be minari:NAME-v0"),
    ],
)
def test_collect_mistakes(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_without_a_run(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "0"]) == 2
    assert "--episodes must be at least 1" in capsys.readouterr().err


def test_missing_packages_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert cli.main(["train", "--directory", str(tmp_path / "run"), *TINY, "--tensorboard"]) == 2
    assert "jaxrl_off[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ctrl_c_exits_with_130(tmp_path, capsys, monkeypatch):
    from jaxrl_off import training

    def stop(*args, **kwargs):
        raise training.TrainingInterrupted("stopped; resume with --resume.")

    monkeypatch.setattr(training, "run", stop)
    assert cli.main(["train", "--directory", str(tmp_path), *TINY]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "names", "absent"),
    [
        ("presets", list(PRESETS), "paper_data_rich"),
        ("regimes", list(REGIMES), "ppo_da_one_step"),
        ("references", list(REFERENCES), "paper_data_rich"),
        ("environments", ["Breakout-MinAtar", "CartPole-v1", "probe/discount", "tabular/random"], "paper_data_rich"),
    ],
)
def test_list(what, names, absent, capsys):
    assert cli.main(["list", what]) == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(names) <= set(words)
    assert absent not in words


def test_list_survives_missing_packages(capsys, monkeypatch):
    real = common.registered

    def registered(family):
        if family == "ale":
            raise ImportError("ale-py is not installed")
        return real(family)

    monkeypatch.setattr(common, "registered", registered)
    assert cli.main(["list", "environments"]) == 0
    assert "ale-py is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", REGIMES)
def test_regimes_fit_together(name):
    regime = REGIMES[name]
    counts = plan(regime.settings, regime.num_envs)
    updates = counts.total_updates * regime.settings.batch_size
    samples = counts.iterations * counts.samples_per_iteration
    assert updates / samples == pytest.approx(regime.settings.reuse)


def test_paper_regimes_have_the_papers_totals():
    """60M samples generated and 400M trained on (section 5.1); 16384 stored an actor; the same updates at 64 actors."""
    scarce, rich = REGIMES["paper_data_scarce"], REGIMES["paper_data_rich"]
    counts = plan(scarce.settings, scarce.num_envs)
    assert counts.total_updates * 1024 == pytest.approx(400e6, rel=0.06)
    assert counts.iterations * counts.samples_per_iteration == pytest.approx(60e6, rel=0.02)
    for regime in (scarce, rich):
        assert regime.settings.replay_capacity == regime.num_envs * 16_384
    assert plan(rich.settings, rich.num_envs).total_updates == pytest.approx(counts.total_updates, rel=0.01)


def test_reproduce_runs_the_script_of_the_checkout(tmp_path, capsys, monkeypatch):
    inside = tmp_path / "checkout" / "docs"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert cli.main(["reproduce"]) == 2
    assert "found no benchmarks/reproduce.py" in capsys.readouterr().err
    script = tmp_path / "checkout" / "benchmarks" / "reproduce.py"
    script.parent.mkdir()
    script.touch()
    assert cli.main(["reproduce"]) == 2  # without its own __init__.py, `-m` might find another folder of this name
    (script.parent / "__init__.py").touch()
    script.write_text("import sys, pathlib\npathlib.Path('said').write_text(' '.join(sys.argv[1:]))\nsys.exit(3)\n")
    assert cli.main(["reproduce", "--preset", "cpu", "--paper", "dapo"]) == 3
    assert (tmp_path / "checkout" / "said").read_text() == "--preset cpu --paper dapo"
    assert cli.main(["reproduce"]) == 3
    assert (tmp_path / "checkout" / "said").read_text() == "--preset quick"


def test_training_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys, jaxrl_off.training as t; "
        "print([m for m in ('orbax.checkpoint', 'rich.progress', 'tyro', 'tensorboardX') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
