"""Trained policies in files that outlive versions of the library, and that need neither the environment nor the run.

A file is an `.npz`: a `header` of strict JSON with the version of the format, and the arrays of dense layers. Only numbers
are read from it, no code. Resuming a run needs its directory; acting needs this file alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off import agents
from jaxrl_off.agents.layers import PolicyLayers
from jaxrl_off.data.files import new_npz, write_npz
from jaxrl_off.distributions import Categorical, DiagonalNormal, TanhNormal
from jaxrl_off.envs.base import ContinuousSpace, DiscreteSpace, EnvironmentSpec, from_canonical
from jaxrl_off.networks import ACTIVATIONS
from jaxrl_off.types import Array

FORMAT = "jaxrl_off policy"
VERSION = 1
_DISTRIBUTIONS = ("categorical", "normal", "tanh_mean_normal", "tanh_normal")


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed as an object, so that `jax.jit(policy)` works
class SavedPolicy:
    """A policy read from a file; `policy(observation, key, greedy)` is a pure function.

    Attributes:
        layers: the network.
        spec: of the environment that it was trained in.
    """

    layers: PolicyLayers
    spec: EnvironmentSpec

    def distribution(self, observation: Array) -> Categorical | DiagonalNormal | TanhNormal:
        """The distribution of actions, over canonical ones (the box mapped to [-1, 1]^D) where they are continuous.

        Args:
            observation: `[*B, *O]`.

        Returns:
            Distribution with batch shape `[*B]`.
        """
        head, log_std = self._forward(jnp.asarray(observation), jnp)
        if log_std is None:
            return Categorical(head)
        kind = TanhNormal if self.layers.distribution == "tanh_normal" else DiagonalNormal
        return kind(head, log_std)

    def __call__(self, observation: Array, key: Array | None = None, greedy: bool = False) -> Array:
        """Act, in the environment's units.

        Args:
            observation: `[*B, *O]`.
            key: of the sample; not needed by greedy actions.
            greedy: the most probable action instead of a sampled one.

        Returns:
            `int32[*B]`, or `float32[*B, *A]`, which the environment clips to its box.

        Raises:
            ValueError: if observations have another shape, or a sample is wanted without a key.
        """
        distribution = self.distribution(observation)
        if greedy:
            action = distribution.mode()
        elif key is None:
            raise ValueError("sampled actions need a key; give one, or greedy=True.")
        else:
            action = distribution.sample(key)
        space = self.spec.action_space
        return from_canonical(space, action) if isinstance(space, ContinuousSpace) else action

    def act_in_numpy(self, observation: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """The same policy in NumPy, for machines and processes without an accelerator or a compiler.

        Args:
            observation: `[*B, *O]`.
            generator: of the sample; None for the most probable action.

        Returns:
            As `__call__`.
        """
        head, log_std = self._forward(np.asarray(observation), np)
        if log_std is None:
            if generator is not None:
                head = head + generator.gumbel(size=head.shape)
            return np.argmax(head, axis=-1).astype(np.int32)
        action = head if generator is None else head + np.exp(log_std) * generator.standard_normal(head.shape)
        action = np.tanh(action) if self.layers.distribution == "tanh_normal" else action
        space = self.spec.action_space
        assert isinstance(space, ContinuousSpace)
        low, high = (np.asarray(bound, np.float32) for bound in (space.low, space.high))
        scaled = low + 0.5 * (action + 1.0) * (high - low)
        return scaled.reshape(*action.shape[:-1], *space.shape).astype(np.float32)

    def _forward(self, observation: Any, xp: ModuleType) -> tuple[Any, Any]:
        """Logits and None, or mean and log standard deviation, `[*B, D]`, in NumPy or in jax.numpy."""
        own, layers = self.spec.observation_shape, self.layers
        leading = observation.shape[: observation.ndim - len(own)]
        if observation.shape != (*leading, *own):
            raise ValueError(
                f"observations have shape {observation.shape}; [..., {', '.join(map(str, own))}] is allowed."
            )
        scale = 255.0 if observation.dtype == np.uint8 and layers.shift is None else 1.0
        x = xp.asarray(observation, xp.float32).reshape(*leading, -1) / scale
        if layers.shift is not None:
            limit = math.inf if layers.limit is None else layers.limit
            x = xp.clip((x - layers.shift) / layers.scale, -limit, limit)
        for weights, bias in layers.hidden:
            x = _activation(layers.activation, xp)(x @ weights + bias)
        head = x @ layers.head[0] + layers.head[1]
        if layers.log_std is None:
            return head, None
        head = xp.tanh(head) if layers.distribution == "tanh_mean_normal" else head
        if isinstance(layers.log_std, tuple):
            return head, xp.clip(x @ layers.log_std[0] + layers.log_std[1], *layers.log_std_range)
        return head, xp.broadcast_to(layers.log_std, head.shape)


def save_policy(
    path: str | Path, config: Any, spec: EnvironmentSpec, agent_state: Any, *, overwrite: bool = False
) -> Path:
    """Write the published policy of a trained agent, with its observation normalisation.

    Before anything is written, the layers are compared with the agent's own policy at random observations.

    Args:
        path: ends in `.npz`; its folder is made if need be.
        config: of the agent, of any family: `load_run(directory).config`.
        spec: of its environment: `load_run(directory).spec`.
        agent_state: of the agent: `load_run(directory).agent_state`.
        overwrite: whether a file of that name is replaced.

    Returns:
        The path written.

    Raises:
        FileExistsError: if there is such a file and `overwrite` was not given.
        ValueError: for a path of another kind, parameters that are not finite, or a policy that is not made of dense layers.

    Example:
        >>> import os, tempfile
        >>> from jaxrl_off import envs
        >>> spec, config = envs.make("CartPole-v1", 1).spec, agents.preset("ppo", sizes=(4,))
        >>> state = agents.make(config, spec, total_updates=1).init(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     policy = load_policy(save_policy(os.path.join(folder, "cartpole.npz"), config, spec, state))
        >>> policy(jnp.zeros((3, 4)), greedy=True).shape
        (3,)
    """
    path = new_npz(path, "a policy is written", overwrite=overwrite, otherwise="overwrite=True")
    layers = jax.tree.map(
        lambda x: np.asarray(x, np.float32) if hasattr(x, "dtype") else x,
        agents.policy_layers(config, spec, agent_state),
    )
    saved = SavedPolicy(layers, spec)
    _compare(saved, agents.make_policy(config, spec), agent_state)
    arrays = {f"{letter}{i}": x for i, pair in enumerate(layers.hidden) for letter, x in zip("wb", pair, strict=True)}
    arrays |= {"head_w": layers.head[0], "head_b": layers.head[1]}
    if isinstance(layers.log_std, tuple):
        arrays |= {"log_std_w": layers.log_std[0], "log_std_b": layers.log_std[1]}
    elif layers.log_std is not None:
        arrays["log_std"] = layers.log_std
    if layers.shift is not None:
        arrays |= {"shift": layers.shift, "scale": layers.scale}
    space = spec.action_space
    actions = (
        {"shape": space.shape, "low": space.low, "high": space.high}
        if isinstance(space, ContinuousSpace)
        else {"num_actions": space.num_actions}
    )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "environment": spec.name,
        "observation_shape": spec.observation_shape,
        "observation_dtype": spec.observation_dtype,
        "actions": actions,
        "hidden": len(layers.hidden),
        "activation": layers.activation,
        "distribution": layers.distribution,
        "log_std_range": layers.log_std_range,
        "limit": layers.limit,
    }
    return write_npz(path, {"header": np.array(json.dumps(header, allow_nan=False)), **arrays})


def load_policy(path: str | Path) -> SavedPolicy:
    """Read what `save_policy` wrote, with this version of the library or an earlier one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, or its format is newer than this version of the library.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: np.asarray(file[name], np.float32) for name in file.files if name != "header"}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a policy that save_policy wrote ({type(error).__name__}: {error}). Networks of DAPG's experts are "
            "read by jaxrl_off.data.policy_files.load_policy."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a policy that save_policy wrote; its header is {header!r}.")
    if header["version"] > VERSION:
        raise ValueError(
            f"{path} has version {header['version']} of the format, and this version of jaxrl_off reads up to {VERSION}; "
            "update jaxrl_off."
        )
    try:
        return _built(header, arrays)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _built(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> SavedPolicy:
    if header["distribution"] not in _DISTRIBUTIONS or header["activation"] not in ACTIVATIONS:
        raise KeyError(f"{header['distribution']} and {header['activation']}")
    actions = header["actions"]
    if "num_actions" in actions:
        space: Any = DiscreteSpace(actions["num_actions"])
    else:
        space = ContinuousSpace(tuple(actions["shape"]), tuple(actions["low"]), tuple(actions["high"]))
    log_std: Any = arrays.get("log_std")
    if "log_std_w" in arrays:
        log_std = (arrays["log_std_w"], arrays["log_std_b"])
    layers = PolicyLayers(
        hidden=tuple((arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(header["hidden"])),
        activation=header["activation"],
        head=(arrays["head_w"], arrays["head_b"]),
        distribution=header["distribution"],
        log_std=log_std,
        log_std_range=None if header["log_std_range"] is None else tuple(header["log_std_range"]),
        shift=arrays.get("shift"),
        scale=arrays.get("scale"),
        limit=header["limit"],
    )
    shape = tuple(header["observation_shape"])
    return SavedPolicy(layers, EnvironmentSpec(header["environment"], shape, header["observation_dtype"], space))


def _activation(name: str, xp: ModuleType) -> Any:
    """An activation of `networks`, in NumPy or in JAX."""
    if xp is jnp:
        return ACTIVATIONS[name]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))

    return {
        "relu": lambda x: np.maximum(x, 0.0),
        "tanh": np.tanh,
        "swish": lambda x: x / (1.0 + np.exp(-x)),
        "gelu": gelu,
    }[name]


def _compare(saved: SavedPolicy, policy: Any, agent_state: Any) -> None:
    """Refuse to write a policy that is not finite, or not that of the agent."""
    spec = saved.spec
    if any(not np.all(np.isfinite(x)) for x in jax.tree.leaves(saved.layers) if isinstance(x, np.ndarray)):
        raise ValueError(
            "parameters of the policy hold NaN or infinity; training has diverged, and nothing is written."
        )
    draws = np.random.default_rng(0).normal(size=(16, *spec.observation_shape))
    observation = jnp.asarray(draws if np.issubdtype(spec.observation_dtype, np.floating) else 3 * abs(draws)).astype(
        spec.observation_dtype
    )
    for ours, theirs in zip(saved.distribution(observation), policy(agent_state, observation), strict=True):
        if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
            raise ValueError(
                "the policy of this agent is not the one that its config describes, for example because it was given a network "
                "of your own; such policies cannot be written to a file. Keep the directory of the run."
            )
