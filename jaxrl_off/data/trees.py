"""Nested containers of arrays in one `.npz` file: fitted reference policies, and whatever else is computed once and kept.

Only names and arrays are stored, no code: containers are dictionaries, tuples, lists, None and this library's own NamedTuples.
"""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.data.files import new_npz, write_npz
from jaxrl_off.types import PyTree

_STRUCTURE = "structure"
_OURS = "jaxrl_off."


def save_tree(tree: PyTree, path: str | Path) -> Path:
    """Write a tree that `load_tree` reads back bit for bit; whole or not at all.

    Args:
        tree: of arrays or numbers.
        path: ends in `.npz`; its folder is made if need be.

    Returns:
        The path written.

    Raises:
        FileExistsError: if there is such a file; nothing is overwritten.
        TypeError: for a container that is not one of those above, or a leaf that is no array of numbers.
        ValueError: if the path does not end in `.npz`.
    """
    path = new_npz(path, "a tree is written")
    arrays: list[np.ndarray] = []
    structure = json.dumps(_describe(tree, arrays))
    return write_npz(path, {_STRUCTURE: np.array(structure), **{str(i): array for i, array in enumerate(arrays)}})


def load_tree(path: str | Path) -> PyTree:
    """Read what `save_tree` wrote; leaves are JAX arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, or was written by a version of the library with other containers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _build(json.loads(str(file[_STRUCTURE])), file)
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, AttributeError, TypeError, ImportError) as error:
        raise ValueError(
            f"{path} is not a tree that this version of the library can read ({type(error).__name__}: {error})."
        ) from error


def _describe(node: Any, arrays: list[np.ndarray]) -> Any:
    """The structure in JSON's types, with leaves as numbers of `arrays`, which grows."""
    if node is None:
        return None
    if isinstance(node, dict):
        if not all(isinstance(name, str) for name in node):
            raise TypeError(f"cannot store a dictionary with the keys {list(node)[:5]}; only text is taken.")
        return {"dict": {name: _describe(child, arrays) for name, child in node.items()}}
    if isinstance(node, (tuple, list)):
        kind = type(node)
        children = [_describe(child, arrays) for child in node]
        if kind in (tuple, list):
            return {kind.__name__: children}
        if not (hasattr(kind, "_fields") and kind.__module__.startswith(_OURS)):
            raise TypeError(f"cannot store a {kind.__module__}.{kind.__qualname__}; its module is not this library's.")
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": children}
    array = np.asarray(jnp.asarray(node) if isinstance(node, (bool, int, float)) else jax.device_get(node))
    if array.dtype.kind == "V" and jnp.issubdtype(
        array.dtype, jnp.floating
    ):  # bfloat16, float8: .npz has only their bits
        arrays.append(array.view(f"u{array.dtype.itemsize}"))
        return {"bits": len(arrays) - 1, "dtype": array.dtype.name}
    if array.dtype.kind not in "biuf" or array.dtype != jax.dtypes.canonicalize_dtype(array.dtype):
        raise TypeError(
            f"cannot store a {type(node).__name__} of type {array.dtype}; only arrays of numbers that JAX holds as they are "
            "(32 bits, unless x64 is on) are taken."
        )
    arrays.append(array)
    return len(arrays) - 1


def _build(node: Any, arrays: Any) -> PyTree:
    if node is None:
        return None
    if isinstance(node, int):
        return jnp.asarray(arrays[str(node)])
    if "dict" in node:
        return {name: _build(child, arrays) for name, child in node["dict"].items()}
    if "bits" in node:
        dtype = jnp.dtype(node["dtype"])
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"it stores bits of {dtype}, which is no type of floating-point numbers")
        return jnp.asarray(arrays[str(node["bits"])].view(dtype))
    if "class" not in node:
        ((kind, children),) = node.items()
        return {"tuple": tuple, "list": list}[kind](_build(child, arrays) for child in children)
    module, _, name = node["class"].partition(":")
    if not module.startswith(_OURS):
        raise ValueError(f"it names {node['class']}, which is not this library's")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
        raise ValueError(f"{node['class']} is no NamedTuple")
    return kind(*(_build(child, arrays) for child in node["fields"]))
