"""Policy files against a float64 loop of the formula."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.data.policy_files import load_policy, save_policy

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "nppac"


def arrays(sizes=(5, 4, 3, 2)):
    rng = np.random.default_rng(0)
    out = {"in_shift": rng.normal(size=sizes[0]), "in_scale": rng.uniform(0.5, 2, sizes[0])}
    out |= {"out_shift": rng.normal(size=sizes[-1]), "out_scale": rng.uniform(0.5, 2, sizes[-1])}
    out["log_std"] = rng.normal(size=sizes[-1])
    for layer, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        out |= {f"w{layer}": rng.normal(size=(after, before)), f"b{layer}": rng.normal(size=after)}
    return out


def by_hand(given, observation):
    x = (observation - given["in_shift"]) / (given["in_scale"] + 1e-8)
    depth = sum(key.startswith("w") for key in given)
    for layer in range(depth):
        x = given[f"w{layer}"] @ x + given[f"b{layer}"]
        if layer < depth - 1:
            x = np.tanh(x)
    return x * given["out_scale"] + given["out_shift"]


@pytest.mark.parametrize("sizes", [(5, 4, 3, 2), (5, 2), (3, 8, 4)])
def test_action_is_the_formula(tmp_path, sizes):
    given = arrays(sizes)
    np.savez(tmp_path / "policy.npz", **given)
    policy = load_policy(tmp_path / "policy.npz")
    observation = np.random.default_rng(1).normal(size=(2, 7, sizes[0]))
    expected = np.array([[by_hand(given, o) for o in row] for row in observation])
    actions = policy(jnp.asarray(observation, jnp.float32))
    assert actions.dtype == jnp.float32
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda p, o: p(o))(policy, observation), actions, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(policy(jnp.asarray(observation[0, 0])), expected[0, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(policy.noise_std, np.exp(given["log_std"]), rtol=1e-6)
    with pytest.raises(AssertionError, match="dimension"):
        policy(jnp.zeros(sizes[0] + 1))


def test_errors_say_what_is_wrong(tmp_path):
    path = tmp_path / "policy.npz"
    with pytest.raises(FileNotFoundError):
        load_policy(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="not an .npz of numbers"):
        load_policy(path)
    given = arrays()
    np.savez(path, **{key: value for key, value in given.items() if key not in ("b1", "log_std")})
    with pytest.raises(ValueError, match="lacks b1, log_std; it has b0, b2, in_scale"):
        load_policy(path)
    np.savez(path, **{key: value for key, value in given.items() if key != "w0"})
    with pytest.raises(ValueError, match="lacks w0"):
        load_policy(path)
    np.savez(path, **{**given, "w1": np.zeros((3, 9))})
    with pytest.raises(ValueError, match=r"w1 of .* has shape \(3, 9\); \(3, 4\)"):
        load_policy(path)
    np.savez(path, **{**given, "out_shift": np.zeros(3)})
    with pytest.raises(ValueError, match=r"out_shift of .* has shape \(3,\); \(2,\)"):
        load_policy(path)
    np.savez(path, **{**given, "b2": np.array([0.0, np.nan])})
    with pytest.raises(ValueError, match="b2 of .* holds NaN"):
        load_policy(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data is not on this machine")
@pytest.mark.parametrize(
    ("task", "sizes"), [("door", (39, 28)), ("hammer", (46, 26)), ("pen", (45, 24)), ("relocate", (39, 30))]
)
def test_published_experts(task, sizes):
    with np.load(SHARED / f"dapg_policy_{task}.npz") as file:
        given = {key: np.asarray(file[key], np.float64) for key in file.files}
    policy = load_policy(SHARED / f"dapg_policy_{task}.npz")
    observation = np.random.default_rng(2).normal(size=sizes[0])
    assert policy.noise_std.shape == (sizes[1],)
    np.testing.assert_allclose(policy(jnp.asarray(observation)), by_hand(given, observation), rtol=1e-3, atol=1e-3)


def test_a_policy_survives_a_file(tmp_path):
    np.savez(tmp_path / "policy.npz", **arrays())
    policy = load_policy(tmp_path / "policy.npz")
    again = load_policy(save_policy(policy, tmp_path / "folder" / "again.npz"))
    for a, b in zip(jax.tree.leaves(policy), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(FileExistsError, match="give another path"):
        save_policy(policy, tmp_path / "policy.npz")
    with pytest.raises(ValueError, match="ends in .npz"):
        save_policy(policy, tmp_path / "policy")
