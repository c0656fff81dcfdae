"""Runs in a directory: exact resume, refusals before any work, divergence, interruption, full disks."""

import errno
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.envs.base import DiscreteSpace, EnvironmentSpec, LaneEnvironment, Transitioned, vectorise
from jaxrl_off.networks import ActorCritic
from jaxrl_off.training import (
    CheckpointError,
    LoopSettings,
    TrainingDiverged,
    TrainingInterrupted,
    load_run,
    policy_functions,
    run,
)
from jaxrl_off.training import checkpoints as checkpoints_module
from jaxrl_off.training import driver as driver_module
from jaxrl_off.training.metrics import MetricsWriters, read_last_row

run_module = importlib.import_module("jaxrl_off.training.run")  # the package's attribute `run` is the function

CONFIG = agents.preset("ppo_da", sizes=(8,))
SETTINGS = LoopSettings(
    total_steps=64 * 17,
    collect_length=16,
    rollout_length=4,
    batch_size=32,
    reuse=2.0,
    replay_capacity=256,
    publish_interval=3,
    burn_in=64,
    log_points=8,
)


def train(directory, settings=SETTINGS, environment="CartPole-v1", config=CONFIG, **options):
    options = {"num_envs": 4, "seed": 1, "progress": False, "checkpoint_every": 2} | options
    return run(config, environment, settings, directory, **options)


def bits(tree) -> list:
    raw = [
        jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [np.asarray(leaf).tobytes() for leaf in raw]


def metrics_text(directory) -> list:
    """Both files without the wall-clock column, which is the last."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    lines += (directory / "metrics.csv").read_text().splitlines()
    assert all('"seconds"' in line for line in lines[: len(lines) // 2])
    return [line.rsplit(",", 1)[0] for line in lines]


def forbid_work(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(run_module, "make_loop", refuse)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """These tests run few programs many times; keep them on disk. The processes of the kill test compile their own."""
    from jax.experimental.compilation_cache import compilation_cache

    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, with evaluations."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    return train(directory, evaluate_every=3, evaluation_episodes=4)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.directory, tmp_path / "run")


def test_rows_and_files(finished):
    directory = finished.directory
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [64 + 128 * i for i in range(1, 9)]
    assert [row["updates"] for row in rows] == [8 * i for i in range(1, 9)]
    assert [row["evaluation_episodes"] for row in rows] == [None, None, 4, None, None, 4, None, 4]
    assert all(a["seconds"] < b["seconds"] for a, b in zip(rows, rows[1:], strict=False))
    assert finished.metrics == read_last_row(directory)
    assert int(finished.state.agent.updates) == 64
    assert checkpoints_module.steps(directory) == [6, 8]
    described = json.loads((directory / "config.json").read_text())
    assert described["config"]["sizes"] == [8]
    assert described["settings"]["replay_capacity"] == 256
    assert described["jax"] == jax.__version__


def test_a_run_is_make_train(finished):
    """Same steps from the same key, so the same data in the replay, and parameters up to the compiler's rounding."""
    from jaxrl_off.training import make_train

    result = make_train(agents.make, envs.make("CartPole-v1", 4), SETTINGS)
    result = jax.jit(lambda key: result(CONFIG, key))(jax.random.key(1))
    for a, b in zip(jax.tree.leaves(result.state.agent), jax.tree.leaves(finished.state.agent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_finished_run_is_returned_and_computes_nothing(finished, copy, monkeypatch, capsys):
    monkeypatch.setattr(driver_module, "MetricsWriters", None)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    result = train(copy, evaluate_every=3, evaluation_episodes=4, resume=True)
    assert "is finished" in capsys.readouterr().err
    assert bits(result.state) == bits(finished.state)
    assert result.metrics == pytest.approx(finished.metrics, abs=0, rel=0, nan_ok=True)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_occupied_directory_is_refused_before_any_work(copy, monkeypatch):
    forbid_work(monkeypatch)
    with pytest.raises(FileExistsError, match="already holds a run .*resume=True.*another directory"):
        train(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileExistsError, match="metrics.jsonl"):
        train(copy)
    with pytest.raises(FileExistsError, match="is a file"):
        train(copy / "metrics.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": CONFIG.replace(learning_rate=2e-3)}, "config.learning_rate: stored 0.001, given 0.002"),
        (
            {"settings": LoopSettings(**(vars(SETTINGS) | {"total_steps": 64 * 25}))},
            "settings.total_steps: stored 1088",
        ),
        ({"seed": 2}, "seed: stored 1, given 2"),
        ({"environment": "Acrobot-v1"}, "environment: stored 'CartPole-v1', given 'Acrobot-v1'"),
        ({"evaluate_every": 0}, "evaluate_every: stored 3, given 0"),
    ],
)
def test_resume_with_other_arguments_lists_them(copy, change, message, monkeypatch):
    forbid_work(monkeypatch)
    with pytest.raises(CheckpointError, match=message) as error:
        train(copy, resume=True, **({"evaluate_every": 3, "evaluation_episodes": 4} | change))
    assert str(error.value).count("stored") == 1 + ("what is stored" in str(error.value))


def test_another_version_of_the_library_is_loaded_and_not_resumed(finished, copy, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "library_version", lambda: "99.0")
    with pytest.raises(CheckpointError, match="version: stored '.*', given '99.0'"):
        train(copy, evaluate_every=3, evaluation_episodes=4, resume=True)
    assert bits(load_run(copy).agent_state) == bits(finished.state.agent)


def test_a_field_that_this_version_lacks_is_named(copy):
    described = json.loads((copy / "config.json").read_text())
    described["config"]["momentum"] = 0.9
    (copy / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="has no field momentum; load the run with the version that wrote it"):
        load_run(copy)


def test_gaussian_policies_of_version_0_1_act_as_they_did(tmp_path):
    """They acted in the environment's own units; today's act in [-1, 1], which is mapped to the box [-2, 2]."""
    settings = LoopSettings(total_steps=128, collect_length=32, batch_size=64, reuse=1.0, log_points=1)
    config = agents.preset("ppo_gae", sizes=(8,))
    result = run(config, "Pendulum-v1", settings, tmp_path, num_envs=2, progress=False)
    described = json.loads((tmp_path / "config.json").read_text())
    manifest_path = next((tmp_path / "checkpoints").glob("*/manifest.json"))
    manifest = json.loads(manifest_path.read_text())
    described["version"] = manifest["identity"]["version"] = "0.1.0"
    (tmp_path / "config.json").write_text(json.dumps(described))
    manifest_path.write_text(json.dumps(manifest))
    loaded = load_run(tmp_path)
    observation = jax.random.normal(jax.random.key(0), (5, 3))
    raw = agents.make_policy(config, loaded.spec)(result.state.agent, observation)
    policy = policy_functions(config, loaded.spec, loaded.agent_state)
    torque = jnp.linspace(-1.5, 1.5, 5)[:, None]
    np.testing.assert_allclose(policy.log_prob(observation, torque), raw.log_prob(torque), rtol=1e-5)


def test_files_are_strict_json(tmp_path):
    settings = LoopSettings(
        total_steps=48, collect_length=16, batch_size=16, reuse=1.0, replay_capacity=64, burn_in=16, log_points=1
    )
    config = agents.preset("sac", policy_sizes=(4,), critic_sizes=(4,))
    run(config, "Pendulum-v1", settings, tmp_path, num_envs=1, progress=False)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    paths = [tmp_path / "config.json", *tmp_path.glob("checkpoints/*/manifest.json")]
    assert len(paths) == 2
    for path in paths:
        json.loads(path.read_text(), parse_constant=refuse)
    assert load_run(tmp_path).config.kl_clip == np.inf
    described, manifest = (json.loads(path.read_text()) for path in paths)  # version 0.1 had a field that is gone
    described["config"]["alpha_final"] = manifest["identity"]["config"]["alpha_final"] = 0.01
    for path, content in zip(paths, (described, manifest), strict=True):
        path.write_text(json.dumps(content))
    assert load_run(tmp_path).config.alpha == 1.0


@pytest.fixture
def lanes():
    return envs.make("CartPole-v1", 4)


def test_objects_in_place_of_names(finished, lanes, tmp_path):
    """An environment, or what makes one: the same run as by name; loading it asks for the object again."""
    options = dict(num_envs=None, evaluate_every=3, evaluation_episodes=4)
    result = train(tmp_path / "object", environment=lanes, **options)
    assert bits(result.state) == bits(finished.state)
    with pytest.raises(ValueError, match="was given its environment as an object; give it again as environment="):
        load_run(tmp_path / "object")
    assert bits(load_run(tmp_path / "object", environment=lanes).agent_state) == bits(finished.state.agent)
    with pytest.raises(ValueError, match="evaluation_episodes=5 needs as many lanes.*or give a factory"):
        train(tmp_path / "other", environment=lanes, **(options | dict(evaluation_episodes=5)))
    assert not (tmp_path / "other").exists()
    with pytest.raises(TypeError, match="must be a name, an Environment or a factory"):
        train(tmp_path / "other", environment=7)


def test_a_network_of_ones_own(lanes, tmp_path):
    network = ActorCritic((), 2, "mlp", (5,), separate_critic=True)
    settings = LoopSettings(total_steps=128, collect_length=16, batch_size=64, reuse=1.0, log_points=2)
    result = train(tmp_path, settings, environment=lambda n: envs.make("CartPole-v1", n), network=network)
    kernel = result.state.agent.params["network"]["actor_torso"]["MLP_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (4, 5)
    loaded = load_run(tmp_path, environment=lambda n: envs.make("CartPole-v1", n), network=network)
    assert bits(loaded.agent_state) == bits(result.state.agent)


def test_a_callback_sees_rows_and_stops_the_run(finished, tmp_path):
    seen = []

    def callback(row, learner):
        seen.append((row["steps"], int(learner.updates)))
        return len(seen) == 3

    options = dict(evaluate_every=3, evaluation_episodes=4)
    stopped = train(tmp_path, callback=callback, **options)
    assert seen == [(64 + 128 * i, 8 * i) for i in (1, 2, 3)]
    assert stopped.metrics["steps"] == seen[-1][0]
    whole = train(tmp_path, resume=True, **options)
    assert bits(whole.state) == bits(finished.state)


def test_overwrite_removes_the_earlier_run_alone(copy):
    (copy / "notes.txt").write_text("mine")
    settings = LoopSettings(total_steps=128, collect_length=16, batch_size=64, reuse=1.0, log_points=2)
    with pytest.raises(ValueError, match="exclude each other"):
        train(copy, settings, overwrite=True, resume=True)
    with pytest.raises(ValueError, match="unknown gymnax environment"):
        train(copy, settings, overwrite=True, environment="CartPoleX")
    assert checkpoints_module.steps(copy) == [6, 8]  # a mistake removes nothing
    result = train(copy, settings, overwrite=True)
    assert result.metrics["steps"] == 128
    assert checkpoints_module.steps(copy) == [2]
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 2
    assert (copy / "notes.txt").read_text() == "mine"


def test_unreadable_description_is_an_error(copy):
    (copy / "config.json").write_text('{"config": ')
    with pytest.raises(CheckpointError, match="config.json cannot be read.*delete it"):
        train(copy, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number of at least 1, got 0"),
        ({"evaluation_episodes": 0}, "evaluation_episodes must be a whole number of at least 1"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"num_envs": None}, "num_envs is missing"),
        ({"settings": LoopSettings(total_steps=1088, batch_size=30, rollout_length=4)}, "batch_size=30 must be a mult"),
        ({"environment": "CartPoleX"}, "unknown gymnax environment 'CartPoleX'"),
        ({"config": "ppoo"}, "unknown preset 'ppoo'"),
        ({"config": CONFIG.replace(learning_rate=jnp.ones(3))}, r"learning_rate has shape \(3,\)"),
        ({"environment_parameters": {"a": {1}}}, "must be JSON-able"),
    ],
)
def test_bad_arguments_leave_no_directory(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_truncated_checkpoint_falls_back_and_ends_with_the_same_bits(finished, copy, capsys):
    for path in (copy / "checkpoints" / "00000008" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match="skipped damaged checkpoints .*back to step 6"):
        result = train(copy, evaluate_every=3, evaluation_episodes=4, resume=True)
    assert "resuming" in capsys.readouterr().err
    assert bits(result.state) == bits(finished.state)
    assert metrics_text(copy) == metrics_text(finished.directory)
    assert checkpoints_module.steps(copy) == [6, 8]


def test_load_run_gives_the_trained_agent(finished):
    loaded = load_run(finished.directory)
    assert bits(loaded.agent_state) == bits(finished.state.agent)
    assert loaded.steps == 1088
    assert loaded.description["environment"] == "CartPole-v1"


def test_load_run_without_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        load_run(tmp_path)


def test_interruption_saves_and_resume_is_exact(finished, tmp_path, monkeypatch, capsys):
    """Ctrl-C in row 3, which no checkpoint was due for; meanwhile all else is as in an uninterrupted run."""
    options = {"evaluate_every": 3, "evaluation_episodes": 4}
    write = MetricsWriters.write

    def press(self, row):
        write(self, row)
        if row["updates"] == 24:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MetricsWriters, "write", press)
    with pytest.raises(TrainingInterrupted, match="stopped after 448 steps.*--resume"):
        train(tmp_path / "run", **options)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    assert "press Ctrl-C again" in capsys.readouterr().err
    assert checkpoints_module.steps(tmp_path / "run") == [2, 3]

    # rows of a process that went on and died before its next checkpoint are dropped
    for name in ("metrics.jsonl", "metrics.csv"):
        with open(tmp_path / "run" / name, "a") as file:
            file.write("a row too many\nand a half")
    result = train(tmp_path / "run", resume=True, **options)
    assert bits(result.state) == bits(finished.state)
    assert metrics_text(tmp_path / "run") == metrics_text(finished.directory)


def test_resume_without_a_checkpoint_starts_from_scratch(finished, tmp_path, capsys):
    directory = tmp_path / "run"
    directory.mkdir()
    shutil.copy(finished.directory / "config.json", directory)
    (directory / "metrics.jsonl").write_text("torn")
    result = train(directory, evaluate_every=3, evaluation_episodes=4, resume=True)
    assert "starting from scratch" in capsys.readouterr().err
    assert bits(result.state) == bits(finished.state)
    assert metrics_text(directory) == metrics_text(finished.directory)


def poisoned(after: int, num_envs: int):
    """A never-ending lane whose rewards are NaN after so many decisions."""
    spec = EnvironmentSpec("poisoned", (1,), "float32", DiscreteSpace(2))

    def step(key, state, action):
        reward = jnp.where(state >= after, jnp.nan, 1.0)
        return Transitioned(jnp.ones(1), state + 1, reward, jnp.zeros((), bool), jnp.zeros((), bool))

    return vectorise(LaneEnvironment(spec, lambda key: (jnp.ones(1), jnp.zeros((), jnp.int32)), step), num_envs)


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    # burn-in takes 16 decisions a lane, a row 32: decision 100 falls into row 3
    monkeypatch.setattr(envs, "make", lambda name, num_envs, **_: poisoned(100, num_envs))
    with pytest.raises(
        TrainingDiverged, match="between 320 steps and 448 steps.*after 320 steps is kept.*learning_rate"
    ) as e:
        train(tmp_path, environment="poisoned", checkpoint_every=1)
    assert "reward_mean of that row: nan" in str(e.value)
    assert checkpoints_module.steps(tmp_path) == [1, 2]
    for leaf in jax.tree.leaves(load_run(tmp_path).agent_state):
        assert jnp.isfinite(leaf).all()
    assert read_last_row(tmp_path)["nonfinite"] > 0


def test_divergence_at_once_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "make", lambda name, num_envs, **_: poisoned(0, num_envs))
    with pytest.raises(TrainingDiverged, match="between 64 steps and 192 steps.*none was saved before"):
        train(tmp_path, environment="poisoned", checkpoint_every=1)
    assert checkpoints_module.steps(tmp_path) == []


def test_full_disk_stops_with_the_last_checkpoint_kept(finished, tmp_path, monkeypatch):
    save, saves = orbax.checkpoint.StandardCheckpointer.save, []

    def fill(self, *args, **kwargs):
        saves.append(1)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, *args, **kwargs)

    options = {"evaluate_every": 3, "evaluation_episodes": 4}
    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", fill)
    with pytest.raises(CheckpointError, match="step 4 .*the disk is full; the checkpoint of step 2 is kept"):
        train(tmp_path, **options)
    monkeypatch.undo()
    result = train(tmp_path, resume=True, **options)
    assert bits(result.state) == bits(finished.state)
    assert metrics_text(tmp_path) == metrics_text(finished.directory)


def test_environments_outside_jax_start_new_episodes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    write = MetricsWriters.write

    def press(self, row):
        write(self, row)
        if row["updates"] == 24:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsWriters, "write", press)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, environment="gymnasium/CartPole-v1")
    monkeypatch.undo()
    interrupted = load_run(tmp_path).agent_state
    assert int(interrupted.updates) == 24
    capsys.readouterr()
    result = train(tmp_path, environment="gymnasium/CartPole-v1", resume=True)
    assert "new episodes start" in capsys.readouterr().err
    assert int(result.state.agent.updates) == 64
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8
    assert not math.isnan(result.metrics["episode_return"])
    again = train(tmp_path, environment="gymnasium/CartPole-v1", resume=True)
    assert (again.state.environment, again.state.observation) == ((), ())
    assert bits(again.state.agent) == bits(result.state.agent)


def test_lines_of_progress(tmp_path, capsys):
    train(tmp_path, LoopSettings(total_steps=256, collect_length=32, log_points=2), progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("CartPole-v1  128 of 256 steps  return ")
    assert all(word in lines[1] for word in ("KL", "steps/s", "0 s left"))


CHILD = """
import sys
from jaxrl_off import agents
from jaxrl_off.training import LoopSettings, run
settings = LoopSettings(**eval(sys.argv[2]))
run(agents.preset("ppo_da", sizes=(8,)), "CartPole-v1", settings, sys.argv[1], num_envs=4, seed=1, checkpoint_every=1,
    resume=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    """SIGKILL, twice, somewhere between the first new checkpoint and the end; many hit orbax in a save."""
    settings = LoopSettings(**(vars(SETTINGS) | {"total_steps": 64 * 121, "log_points": 120}))
    whole = train(tmp_path / "whole", settings, checkpoint_every=60)
    directory = tmp_path / "killed"
    kills = []
    for _ in range(2):
        before = checkpoints_module.steps(directory)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory), repr(vars(settings))])
        deadline = time.monotonic() + 240
        while checkpoints_module.steps(directory) == before and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 2.0))
        assert child.poll() is None, "the run ended before it was killed; make it longer"
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills.append(checkpoints_module.steps(directory)[-1])
    assert 0 < kills[0] < kills[1] < 120, kills
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="skipped damaged")  # a kill damages nothing
        result = train(directory, settings, checkpoint_every=60, resume=True)
    assert bits(result.state) == bits(whole.state)
    assert metrics_text(directory) == metrics_text(tmp_path / "whole")
    assert not list((directory / "checkpoints").glob(".unfinished-*"))
