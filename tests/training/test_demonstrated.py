"""Runs that learn from demonstrations: references fitted once and kept, exact resume, errors before anything is written."""

import contextlib
import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import agents, envs
from jaxrl_off.data.demonstrations import Demonstrations
from jaxrl_off.training import (
    CheckpointError,
    LoopSettings,
    collect,
    demonstrated,
    load_run,
    run,
)

SETTINGS = LoopSettings(
    total_steps=400, collect_length=25, rollout_length=1, batch_size=25, reuse=5.0, replay_capacity=400, burn_in=100,
    log_points=6,
)  # fmt: skip
SMALL = dict(policy_sizes=(8,), critic_sizes=(8,))
TOLD = io.StringIO()  # what `whole` printed
GP = dict(steps=5, fit_points=50, capacity=60)


@pytest.fixture(scope="module")
def demonstrations() -> Demonstrations:
    lanes = envs.make("Pendulum-v1", 2)

    def act(key, observation):
        return -jnp.clip(4.0 * observation[:, 1:2] + observation[:, 2:], -2.0, 2.0)

    return collect(act, lanes, jax.random.key(0), episodes=2)


def start(directory, preset="nppac", demonstrations=None, reference="gp_icm", options=GP, config=(), **others):
    config = agents.preset(preset, **SMALL, **dict(config))
    if preset in ("nppac", "abm", "awac"):
        config = config.replace(pretrain_updates=min(config.pretrain_updates, 20), offline_updates=0)
    others = dict(num_envs=2, checkpoint_every=1, progress=False) | others
    return run(
        config, "Pendulum-v1", SETTINGS, directory, demonstrations=demonstrations, reference=reference,
        reference_options=options, **others,
    )  # fmt: skip


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, demonstrations):
    """N-PPAC with demonstrations in its batches too, so that everything is there to be kept."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(TOLD):
        return start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.2}, progress=True)


def test_resume_is_exact_with_replay_process_and_demonstrations(whole, tmp_path, demonstrations, monkeypatch):
    directory = tmp_path / "cut"
    shutil.copytree(whole.directory, directory)
    numbered = sorted((directory / "checkpoints").iterdir())
    shutil.rmtree(numbered[-1])
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    (directory / "metrics.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    monkeypatch.setattr(demonstrated.references, "make", _no_second_fit(demonstrated.references.make))
    again = start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.2}, resume=True)
    same(whole.state, again.state)
    assert {k: v for k, v in whole.metrics.items() if k != "seconds"} == {
        k: v for k, v in again.metrics.items() if k != "seconds"
    }
    assert again.state.agent.reference.posterior.inputs.shape == (60, 3)
    assert again.state.replay.experience.reference.mean.shape == (1, 400, 1)


def _no_second_fit(make):
    def made(name, **options):
        def fit(*_, **__):
            raise AssertionError("fitted again")

        return make(name, **options)._replace(fit=fit)

    return made


def test_a_run_killed_while_fitting_goes_on(whole, tmp_path, demonstrations):
    """Only `config.json` is there: the fit is made again, with the same result."""
    directory = tmp_path / "killed"
    directory.mkdir()
    shutil.copy(whole.directory / "config.json", directory)
    again = start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.2}, resume=True)
    same(whole.state.agent, again.state.agent)


def test_a_run_is_read_back_without_its_file(whole):
    loaded = load_run(whole.directory)
    same(whole.state.agent, loaded.agent_state)
    described = json.loads((whole.directory / "config.json").read_text())
    assert described["reference"] == "gp_icm"
    assert described["reference_options"] == GP
    assert len(described["demonstrations"]) == 64
    (whole.directory / "reference.npz").rename(whole.directory / "elsewhere")
    try:
        with pytest.raises(CheckpointError, match="restore demonstrations.npz and reference.npz from a copy"):
            load_run(whole.directory)
    finally:
        (whole.directory / "elsewhere").rename(whole.directory / "reference.npz")


def test_other_demonstrations_are_another_run(whole, demonstrations):
    other = demonstrations._replace(reward=demonstrations.reward + 1.0)
    with pytest.raises(CheckpointError, match="demonstrations: stored"):
        start(whole.directory, demonstrations=other, config={"demonstration_fraction": 0.2}, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(preset="nppac", reference=None, options=None),
            "name the reference policy .* one of uniform, gaussian_network",
        ),
        (dict(preset="nppac"), "needs demonstrations to fit its reference and itself"),
        (dict(preset="rlpd", reference=None, options=None), "needs demonstrations itself"),
        (dict(preset="sac"), "with_reference=False, but reference='gp_icm': leave it out"),
        (dict(preset="sac", reference=None), "reference_options=.* without a reference"),
        (dict(preset="nppac", reference="gp"), "unknown reference 'gp'"),
        (dict(preset="nppac", options={"kernl": "rbf"}), "has no option 'kernl'"),
    ],
)
def test_what_does_not_fit_together_is_said_first(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_demonstrations_that_do_not_suit(tmp_path, demonstrations):
    with pytest.raises(ValueError, match="this agent has no use for demonstrations"):
        start(tmp_path / "run", "sac", demonstrations, reference=None, options=None)
    with pytest.raises(ValueError, match=r"of the action components lie outside the box"):
        start(tmp_path / "run", demonstrations=demonstrations._replace(action=2.0 * demonstrations.action))
    cut = demonstrations._replace(truncated=np.zeros_like(demonstrations.truncated))
    with pytest.raises(ValueError, match="2 of 2 trajectories are cut"):
        start(tmp_path / "run", demonstrations=cut)
    assert not (tmp_path / "run").exists()


def test_repair(tmp_path, demonstrations, capsys):
    cut = demonstrations._replace(truncated=np.zeros_like(demonstrations.truncated), action=2.0 * demonstrations.action)
    result = start(
        tmp_path / "run", "rlpd", cut, reference=None, options=None, repair_demonstrations=True,
        config=dict(critics=2, policy_period=1),
    )  # fmt: skip
    assert float(jnp.abs(result.state.agent.demonstrations.action).max()) <= 1.0
    assert "2 marked as truncated" in capsys.readouterr().err


def test_the_fit_tells_its_progress(whole):
    assert "fitting gp_icm  5/6  negative_log_likelihood" in TOLD.getvalue()


def test_dapg_runs_from_demonstrations(tmp_path, demonstrations):
    settings = LoopSettings(total_steps=800, collect_length=200, rollout_length=200, batch_size=400, reuse=1.0)
    config = agents.preset("dapg", cloning_epochs=1)
    result = run(
        config, "Pendulum-v1", settings, tmp_path / "run", num_envs=2, demonstrations=demonstrations, progress=False
    )
    assert result.metrics["nonfinite"] == 0
    same(result.state.agent, load_run(tmp_path / "run").agent_state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(settings=dict(rollout_length=5)), "set rollout_length=1, not 5"),
        (dict(preset="bm_mpo", reference="uniform", options=None), "a Uniform gives none"),
        (dict(config=dict(kl="analytic")), "needs policy and reference of one kind"),
    ],
)
def test_what_only_tracing_tells_is_said_before_the_fit(arguments, message, tmp_path, demonstrations, monkeypatch):
    changes = arguments.pop("settings", {})
    monkeypatch.setitem(globals(), "SETTINGS", dataclasses.replace(SETTINGS, **changes))
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "run", demonstrations=demonstrations, **arguments)
    assert not (tmp_path / "run").exists()


def test_a_refused_resume_changes_nothing(whole, tmp_path, demonstrations):
    """`config.json` is gone and the arguments are wrong: the checkpoint refuses, and the right ones still work."""
    directory = tmp_path / "copy"
    shutil.copytree(whole.directory, directory)
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match="belongs to another run"):
        start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.4}, resume=True)
    assert not (directory / "config.json").exists()
    again = start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.2}, resume=True)
    same(whole.state.agent, again.state.agent)
    assert (directory / "config.json").exists()
    shutil.rmtree(directory / "checkpoints")
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds demonstrations.npz and reference.npz of a run, but neither"):
        start(directory, demonstrations=demonstrations, config={"demonstration_fraction": 0.2}, resume=True)
