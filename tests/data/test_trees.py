"""Trees of arrays on disk: bit for bit, whole or not at all, and nothing executed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off import references
from jaxrl_off.data.trees import load_tree, save_tree
from jaxrl_off.distributions import DiagonalNormal

OPTIONS = {
    "uniform": {},
    "gaussian_network": dict(steps=2, sizes=(4,)),
    "ensemble": dict(steps=2, sizes=(4,), members=2),
    "dropout": dict(steps=2, sizes=(4,)),
    "gp_icm": dict(steps=2),
    "gp_independent": dict(steps=2),
    "gp_sparse": dict(steps=2, inducing=4),
}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", references.REFERENCES)
def test_every_reference_survives(name, tmp_path, monkeypatch):
    monkeypatch.setattr(references.base, "_descend", lambda descent, *_, **__: descent)  # the start will do, uncompiled
    rows = jax.random.normal(jax.random.key(0), (12, 5))
    reference = references.make(name, **OPTIONS[name])
    params = reference.fit(jax.random.key(1), rows[:, :3], rows[:, 3:])
    same(params, load_tree(save_tree(params, tmp_path / "folder" / "pi_0.npz")))


def test_a_fitted_reference_gives_the_same_policy_when_read_back(tmp_path):
    rows = jax.random.normal(jax.random.key(0), (12, 5))
    reference = references.make("gaussian_network", **OPTIONS["gaussian_network"])
    params = reference.fit(jax.random.key(1), rows[:, :3], rows[:, 3:])
    read = load_tree(save_tree(params, tmp_path / "pi_0.npz"))
    same(params, read)
    same(reference.apply(params, rows[:, :3]), reference.apply(read, rows[:, :3]))


def test_nested_containers(tmp_path):
    tree = {"a": (1.5, [None, DiagonalNormal(jnp.zeros(2), jnp.ones((0, 3)))]), "b": jnp.array(True), "c": {}}
    read = load_tree(save_tree(tree, tmp_path / "x.npz"))
    assert type(read["a"][1][1]) is DiagonalNormal
    same(jax.tree.map(jnp.asarray, tree), read)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float16"])
def test_short_floats_come_back_bit_for_bit(name, tmp_path):
    dtype = jnp.dtype(name)
    bits = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}")  # every number of the type, NaNs included
    tree = {"all": jnp.asarray(bits.view(dtype)), "one": jnp.asarray(1.5, dtype), "other": jnp.ones(2)}
    read = load_tree(save_tree(tree, tmp_path / "x.npz"))
    assert read["all"].dtype == dtype
    np.testing.assert_array_equal(np.asarray(read["all"]).view(bits.dtype), bits)
    assert read["one"].shape == ()
    assert float(read["one"]) == 1.5
    same(tree["other"], read["other"])


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    path = save_tree((1.0,), tmp_path / "x.npz")
    with pytest.raises(FileExistsError, match="give another path"):
        save_tree((2.0,), path)
    assert float(load_tree(path)[0]) == 1.0
    with pytest.raises(TypeError, match="cannot store"):
        save_tree(("text",), tmp_path / "y.npz")
    with pytest.raises(TypeError, match="its module is not this library's"):
        save_tree(np.linalg.svd(np.eye(2, dtype=np.float32)), tmp_path / "y.npz")
    with pytest.raises(ValueError, match="ends in .npz"):
        save_tree((1.0,), tmp_path / "y")
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("structure", ['{"class": "os:system", "fields": [0]}', '{"set": [0]}', "nonsense", "7"])
def test_files_that_are_something_else(structure, tmp_path):
    path = tmp_path / "x.npz"
    with open(path, "wb") as file:
        np.savez(file, structure=np.array(structure), **{"0": np.zeros(1)})
    with pytest.raises(ValueError, match="is not a tree that this version of the library can read"):
        load_tree(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is not a tree"):
        load_tree(path)
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "none.npz")


def test_what_would_not_come_back_as_it_was_is_refused(tmp_path):
    for tree in ({"n": np.array([2**40])}, (np.zeros(2),), {1: jnp.zeros(1)}):
        with pytest.raises(TypeError, match="cannot store"):
            save_tree(tree, tmp_path / "x.npz")
    with open(tmp_path / "y.npz", "wb") as file:
        structure = '{"class": "jaxrl_off.data.trees:load_tree", "fields": [0]}'
        np.savez(file, structure=np.array(structure), **{"0": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="is no NamedTuple"):
        load_tree(tmp_path / "y.npz")
