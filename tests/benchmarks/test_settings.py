"""Benchmarks of a paper keep the settings of their committed results, whatever defaults the library comes to have."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.dapo import atari, minatar
from benchmarks.dapo.jobs import config_of as dapo_config
from benchmarks.nppac.jobs import config_of as nppac_config
from benchmarks.nppac.jobs import methods

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "benchmark_configs.json").read_text())

# fields that came after the golden file was written, with the values that change nothing on these benchmarks
NEUTRAL = {"normalise_observations": False, "normalise_rewards": False, "initial_log_std": 0.0}


def configs():
    """The configuration of every method of every benchmark that trains agents, by the names of the golden file."""
    for name, (preset, static, _, _) in minatar.METHODS.items():
        yield f"dapo minatar: {name}", dapo_config(preset, static, {})
    for size, settings in atari.PRESETS.items():
        for name in settings.methods:
            yield f"dapo atari {size}: {name}", dapo_config(atari.METHODS[name], settings.agent, {})
    for kind, policy in (("adroit", "normal"), ("locomotion", "tanh_normal")):
        rows = methods(policy=policy, kernel="rbf", sizes=(64, 64), pretrain=5000, fit={"gp": {}, "network": {}})
        for name, method in rows.items():
            yield f"nppac {kind}: {name}", nppac_config(method.preset, method.static)
    networks = dict(policy_sizes=(64, 64), critic_sizes=(64, 64))
    yield "nppac expert", nppac_config("sac", networks, dict(learning_rate=1e-3, critic_learning_rate=1e-3))
    yield "nppac pathology", nppac_config("nppac", networks | dict(pretrain_updates=2_000))


def plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("name", "config"), [pytest.param(*pair, id=pair[0]) for pair in configs()])
def test_settings_are_those_of_the_committed_results(name, config):
    """No recorded field may differ; a field that came later has to be named in `NEUTRAL`, or pinned by the benchmark."""
    found = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    recorded = {field: value for field, value in GOLDEN[name].items() if field in found}
    assert len(recorded) > 20
    assert {field: found[field] for field in recorded} == recorded
    later = {field: value for field, value in found.items() if field not in recorded}
    assert later == {field: NEUTRAL[field] for field in later if field in NEUTRAL}
