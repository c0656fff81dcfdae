"""Policies stored as arrays in an `.npz` file: the expert networks of DAPG, and any small tanh network like them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_off.data.files import new_npz, write_npz
from jaxrl_off.types import Array

_SHIFTS = ("in_shift", "in_scale", "out_shift", "out_scale", "log_std")


class FilePolicy(NamedTuple):
    """A Gaussian policy with a tanh network as its mean; a pytree, so it passes through `jit` and `vmap`.

    Attributes:
        layers: `((W [H, O], b [H]), ..., (W [A, H], b [A]))`, tanh between them.
        in_shift: `float32[O]`.
        in_scale: `float32[O]`.
        out_shift: `float32[A]`.
        out_scale: `float32[A]`.
        noise_std: `float32[A]`, standard deviation of the noise that the expert explored with, exp(log_std).
    """

    layers: tuple[tuple[Array, Array], ...]
    in_shift: Array
    in_scale: Array
    out_shift: Array
    out_scale: Array
    noise_std: Array

    def __call__(self, observation: Array) -> Array:
        """The mean action, a = out_scale (W_n tanh(... tanh(W_0 (o - in_shift) / (in_scale + 1e-8) + b_0)) + b_n) + out_shift.

        Args:
            observation: `float32[..., O]`.

        Returns:
            `float32[..., A]`, not clipped: environments clip it to their box, and so must who stores it. An action with
            the expert's noise is `policy(o) + policy.noise_std * jax.random.normal(key, shape)`.
        """
        chex.assert_axis_dimension(observation, -1, self.in_shift.shape[0])
        hidden = (jnp.asarray(observation, jnp.float32) - self.in_shift) / (self.in_scale + 1e-8)
        for depth, (weight, bias) in enumerate(self.layers):
            hidden = (jnp.tanh(hidden) if depth else hidden) @ weight.T + bias
        return hidden * self.out_scale + self.out_shift


def load_policy(path: str | Path) -> FilePolicy:
    """Read a policy file.

    Args:
        path: an `.npz` with `w0 [H, O]`, `b0 [H]`, `w1`, `b1`, ... (one layer or more), `in_shift [O]`, `in_scale [O]`,
            `out_shift [A]`, `out_scale [A]` and `log_std [A]`. No code in it is executed.

    Returns:
        The policy, in float32; call it with observations.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an `.npz`, keys are missing, shapes do not fit together or values are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key], np.float32) for key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz of numbers ({error}).") from error
    depth = sum(re.fullmatch(r"w\d+", key) is not None for key in arrays)
    wanted = [f"{letter}{layer}" for layer in range(max(depth, 1)) for letter in "wb"] + list(_SHIFTS)
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise ValueError(
            f"the policy file {path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}. "
            "Layers are w0, b0, w1, b1, ... without a gap."
        )
    size = arrays["in_shift"].shape[0] if arrays["in_shift"].ndim == 1 else 0
    shapes = {"in_shift": (size,), "in_scale": (size,)}
    for layer in range(depth):
        rows = arrays[f"w{layer}"].shape[0] if arrays[f"w{layer}"].ndim else 0
        shapes |= {f"w{layer}": (rows, size), f"b{layer}": (rows,)}
        size = rows
    shapes |= dict.fromkeys(("out_shift", "out_scale", "log_std"), (size,))
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(
                f"{key} of the policy file {path} has shape {arrays[key].shape}; {shape} would fit the rest."
            )
        if not np.all(np.isfinite(arrays[key])):
            raise ValueError(f"{key} of the policy file {path} holds NaN or infinity.")
    values = {key: jnp.asarray(value) for key, value in arrays.items()}
    return FilePolicy(
        layers=tuple((values[f"w{layer}"], values[f"b{layer}"]) for layer in range(depth)),
        noise_std=jnp.exp(values["log_std"]),
        **{key: values[key] for key in _SHIFTS if key != "log_std"},
    )


def save_policy(policy: FilePolicy, path: str | Path) -> Path:
    """Write a policy file that `load_policy` reads back; whole or not at all.

    Raises:
        FileExistsError: if there is such a file; nothing is overwritten.
        ValueError: if the path does not end in `.npz`.
    """
    path = new_npz(path, "a policy is written")
    arrays = {f"{letter}{i}": x for i, layer in enumerate(policy.layers) for letter, x in zip("wb", layer, strict=True)}
    arrays |= {key: getattr(policy, key) for key in _SHIFTS if key != "log_std"}
    arrays["log_std"] = jnp.log(policy.noise_std)
    return write_npz(path, {key: np.asarray(value, np.float32) for key, value in arrays.items()})
