"""Checkpoints: what is saved comes back bit by bit; damage and foreign runs are noticed, never loaded."""

import errno
import json
import os
import random
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from jaxrl_off.training import checkpoints
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.loop import LoopState, without_environment

IDENTITY = {
    "version": "1",
    "environment": "E",
    "config": {"learning_rate": 1e-3, "sizes": (8, 8)},
    "settings": {"n": 1},
}


def make_state(seed: int) -> LoopState:
    """One leaf of every kind that a run has, and some that it may get."""
    random_key = jax.random.key(seed)
    return LoopState(
        agent={"w": jax.random.normal(random_key, (37, 5)), "half": jnp.full(3, seed + 0.5, jnp.bfloat16)},
        environment=(jax.random.split(random_key, 4), jnp.arange(4, dtype=jnp.int32) + seed),
        observation=jax.random.randint(random_key, (4, 6, 6), 0, 255).astype(jnp.uint8),
        first=jnp.array([True, False, True, seed % 2 == 0]),
        core=(jnp.zeros((4, 0)), ()),
        replay={"position": jnp.array(seed, jnp.int32)},
        key=jax.random.key(seed + 1, impl="rbg"),
        iteration=jnp.array(seed, jnp.int32),
    )


def bits(tree) -> list:
    leaves = []
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaves.append((str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()))
        else:
            leaves.append((str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()))
    return [jax.tree.structure(tree), *leaves]


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        checkpoints.save(directory, step, make_state(step), IDENTITY)
    return directory


@pytest.fixture
def two(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def structure():
    return jax.eval_shape(lambda: make_state(0))


def test_round_trip_is_exact_and_uses_no_memory_of_numpy(saved):
    step, state = checkpoints.restore(saved, structure(), IDENTITY)
    assert step == 2
    assert bits(state) == bits(make_state(2))
    # donation must be possible
    jax.jit(lambda s: jax.tree.map(lambda leaf: leaf, s), donate_argnums=0)(state)
    assert state.agent["w"].is_deleted()


def test_keeps_the_last_two_and_leaves_no_temporary_files(tmp_path):
    for step in (1, 3, 7, 12):
        checkpoints.save(tmp_path, step, make_state(step), IDENTITY)
    assert checkpoints.steps(tmp_path) == [7, 12]
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["00000007", "00000012"]


def test_manifest_tells_what_is_in_it(saved):
    manifest = json.loads((saved / "checkpoints" / "00000002" / "manifest.json").read_text())
    assert manifest["identity"]["config"]["learning_rate"] == 1e-3
    by_path = {leaf["path"]: leaf for leaf in manifest["leaves"]}
    assert by_path[".agent['w']"]["shape"] == [37, 5]
    assert by_path[".agent['w']"]["dtype"] == "float32"


def test_each_truncated_file_is_noticed(saved, tmp_path):
    """Cutting any file yields the exact newest state (a file nobody needs) or the exact older one with a warning."""
    fell_back = 0
    count = len(files_of(saved / "checkpoints" / "00000002"))
    for i in range(count):
        directory = shutil.copytree(saved, tmp_path / str(i))
        path = files_of(directory / "checkpoints" / "00000002")[i]
        os.truncate(path, path.stat().st_size // 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, state = checkpoints.restore(directory, structure(), IDENTITY)
        told = any("damaged" in str(w.message) for w in caught)
        assert told == (step == 1), path
        assert bits(state) == bits(make_state(step)), path
        fell_back += step == 1
    assert fell_back >= 3  # manifest, array data, orbax's own index


def test_each_missing_file_is_noticed(saved, tmp_path):
    for i in range(len(files_of(saved / "checkpoints" / "00000002"))):
        directory = shutil.copytree(saved, tmp_path / str(i))
        files_of(directory / "checkpoints" / "00000002")[i].unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step, state = checkpoints.restore(directory, structure(), IDENTITY)
        assert bits(state) == bits(make_state(step))


def test_flipped_bits_never_pass(saved, tmp_path):
    generator = random.Random(0)
    for i in range(25):
        directory = shutil.copytree(saved, tmp_path / str(i))
        path = generator.choice(files_of(directory / "checkpoints" / "00000002" / "state"))
        content = bytearray(path.read_bytes())
        if not content:
            continue
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step, state = checkpoints.restore(directory, structure(), IDENTITY)
        assert bits(state) == bits(make_state(step)), path


def test_all_damaged_is_an_error_that_names_them(two):
    for step in (1, 2):
        (two / "checkpoints" / f"0000000{step}" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read: .*00000002.*00000001.*new directory"):
        checkpoints.restore(two, structure(), IDENTITY)


def test_saving_after_falling_back_removes_the_damaged_one(two):
    (two / "checkpoints" / "00000002" / "manifest.json").write_text("{")
    checkpoints.save(two, 1, make_state(1), IDENTITY)
    assert checkpoints.steps(two) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "version: stored '1', given '2'"),
        ({"environment": "F"}, "environment: stored 'E', given 'F'"),
        ({"config": {"learning_rate": 2e-3, "sizes": (8, 8)}}, "config.learning_rate: stored 0.001, given 0.002"),
        ({"settings": {"n": 1, "m": 2}}, r"settings.m: stored '\(absent\)', given 2"),
    ],
)
def test_foreign_checkpoints_are_refused_by_field(saved, change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(saved, structure(), IDENTITY | change)
    assert "another directory" in str(error.value)


def test_other_structure_is_refused(saved):
    like = structure()
    like = like._replace(agent=like.agent | {"w": jax.ShapeDtypeStruct((37, 6), jnp.float32)})
    with pytest.raises(CheckpointError, match=r"another structure.*\['w'\] float32\[37, 5\].*float32\[37, 6\]"):
        checkpoints.restore(saved, like, IDENTITY)


@pytest.mark.parametrize("name", ["", "missing"])
def test_empty_folder_is_an_error(tmp_path, name):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.restore(tmp_path / name, structure(), IDENTITY)


def test_impure_environments_save_no_lanes(tmp_path):
    checkpoints.save(tmp_path, 1, without_environment(make_state(1)), IDENTITY)
    manifest = json.loads((tmp_path / "checkpoints" / "00000001" / "manifest.json").read_text())
    assert {leaf["path"].split("[")[0].split("'")[0] for leaf in manifest["leaves"]} == {
        ".agent",
        ".replay",
        ".key",
        ".iteration",
    }
    state = checkpoints.restore(tmp_path, without_environment(structure()), IDENTITY).state
    assert (state.environment, state.observation, state.first, state.core) == ((), (), (), ())
    assert bits(state.agent) == bits(make_state(1).agent)


def test_full_disk_is_noticed_before_writing(two, monkeypatch):
    usage = shutil.disk_usage(two)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="needs up to .* free; the checkpoint of step 2 is kept. Free space"):
        checkpoints.save(two, 3, make_state(3), IDENTITY)
    assert checkpoints.steps(two) == [1, 2]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (RuntimeError("RESOURCE_EXHAUSTED: write: No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "writing failed .*Permission denied"),
    ],
)
def test_failed_writes_keep_the_last_good_one(two, monkeypatch, error, text):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", fail)
    with pytest.raises(CheckpointError, match=f"{text}.*step 2 is kept"):
        checkpoints.save(two, 3, make_state(3), IDENTITY)
    monkeypatch.undo()
    assert checkpoints.steps(two) == [1, 2]
    assert bits(checkpoints.restore(two, structure(), IDENTITY).state) == bits(make_state(2))


def test_death_before_the_rename_leaves_nothing_that_counts(two, monkeypatch):
    class Died(BaseException):
        pass

    def die(*args):
        raise Died

    monkeypatch.setattr(os, "rename", die)
    with pytest.raises(Died):
        checkpoints.save(two, 3, make_state(3), IDENTITY)
    monkeypatch.undo()
    assert checkpoints.steps(two) == [1, 2]
    checkpoints.save(two, 3, make_state(3), IDENTITY)
    assert sorted(entry.name for entry in (two / "checkpoints").iterdir()) == ["00000002", "00000003"]
