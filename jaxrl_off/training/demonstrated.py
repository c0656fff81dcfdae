"""What a run learns from besides its environment: demonstrations, and a reference policy fitted to them once.

Both are kept in the run's directory (`demonstrations.npz` where the agent goes on using them, `reference.npz`), so that a run
that is resumed needs no other fit, and one that is read back not even the original file.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off import agents, references
from jaxrl_off.data.demonstrations import Demonstrations, check, load, save
from jaxrl_off.data.trees import load_tree, save_tree
from jaxrl_off.distributions import DiagonalNormal
from jaxrl_off.envs.base import EnvironmentSpec, to_canonical
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.progress import fitting, say

DEMONSTRATIONS_NAME = "demonstrations.npz"
REFERENCE_NAME = "reference.npz"
NAMES = (DEMONSTRATIONS_NAME, REFERENCE_NAME)


def describe(
    config: Any,
    demonstrations: Demonstrations | None,
    repair: bool,
    reference: str | None,
    options: dict[str, Any] | None,
) -> dict[str, Any]:
    """The part of a run's identity that says what it learns from; checks that it all fits together.

    Returns:
        `demonstrations` (SHA-256 of their arrays), `repair_demonstrations`, `reference` and `reference_options`, JSON-able;
        nothing for a run that learns from its environment alone.

    Raises:
        ValueError: if the config needs what is not given, or has no use for what is.
    """
    wants_reference, wants_demonstrations = agents.wants_reference(config), agents.wants_demonstrations(config)
    if wants_reference != (reference is not None):
        known = ", ".join(references.REFERENCES)
        raise ValueError(
            f"with_reference={wants_reference}, but reference={reference!r}: "
            + (
                f"name the reference policy that is fitted to the demonstrations, one of {known}."
                if wants_reference
                else "leave it out, or choose a preset with a reference policy, such as nppac."
            )
        )
    if reference is not None:
        references.make(reference, **(options or {}))
    elif options:
        raise ValueError(f"reference_options={options} without a reference; name one or leave them out.")
    needed = [
        why for why, is_so in (("to fit its reference", wants_reference), ("itself", wants_demonstrations)) if is_so
    ]
    if needed and demonstrations is None:
        raise ValueError(
            f"this agent needs demonstrations {' and '.join(needed)}; give demonstrations= (command line: --demonstrations "
            "FILE; `jaxrl-off collect` records some)."
        )
    if demonstrations is not None and not needed:
        raise ValueError(
            "this agent has no use for demonstrations; leave them out, set demonstration_fraction, pretrain_updates or "
            "offline_updates above 0, or choose a preset that learns from them, such as nppac or rlpd."
        )
    if demonstrations is None:
        return {}
    content = hashlib.sha256()
    for field in demonstrations:
        content.update(np.ascontiguousarray(field).tobytes())
    return {
        "demonstrations": content.hexdigest(),
        "repair_demonstrations": repair,
        "reference": reference,
        "reference_options": dict(options or {}),
    }


def checked(
    identity: dict[str, Any], spec: EnvironmentSpec, demonstrations: Demonstrations | None
) -> Demonstrations | None:
    """The demonstrations after `data.demonstrations.check`.

    Raises:
        ValueError: for demonstrations that do not suit the environment.
    """
    if demonstrations is not None:
        repair = identity["repair_demonstrations"]
        demonstrations, report = check(demonstrations, spec, repair=repair, clip_actions=repair)
        repairs = (
            f" ({report['marked_truncated']} marked as truncated, {report['clipped_actions']:.2%} of the action components "
            "clipped)"
        )
        say(f"{report['steps']:,} demonstrated steps of {report['episodes']} trajectories{repairs if repair else ''}.")
    return demonstrations


def stand_in(config: Any, identity: dict[str, Any], spec: EnvironmentSpec, demonstrations: Any) -> dict[str, Any]:
    """Further arguments of `agents.make` before anything is fitted, good enough to trace a run with."""
    parts: dict[str, Any] = {"demonstrations": demonstrations} if agents.wants_demonstrations(config) else {}
    if identity.get("reference") == "uniform":
        return parts | {"reference": references.uniform().apply, "reference_params": jnp.zeros(())}
    if agents.wants_reference(config):

        def apply(params: Any, observation: Any) -> DiagonalNormal:
            del params
            zeros = jnp.zeros((*observation.shape[:-1], len(spec.action_space.low)))
            return DiagonalNormal(zeros, zeros)

        parts["reference"] = apply
    return parts


def prepare(
    directory: Path,
    config: Any,
    identity: dict[str, Any],
    spec: EnvironmentSpec,
    demonstrations: Demonstrations | None,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Fit the reference, and keep it and the demonstrations in the directory; what is there already is not made again.

    Args:
        directory: of the run.
        config: of the agent.
        identity: of the run, with what `describe` returned.
        spec: of the environment.
        demonstrations: of `checked`.
        progress: whether to show the fit's.

    Returns:
        Further arguments of `agents.make`.
    """
    if agents.wants_demonstrations(config) and not (directory / DEMONSTRATIONS_NAME).exists():
        save(demonstrations, directory / DEMONSTRATIONS_NAME)
    if identity.get("reference") is not None and not (directory / REFERENCE_NAME).exists():
        reference = references.make(identity["reference"], **identity["reference_options"])
        # `loop.init` splits the seed's key, and evaluations fold 2^31 - 1 into it
        key = jax.random.fold_in(jax.random.key(identity["seed"]), 2**31 - 2)
        actions = to_canonical(spec.action_space, demonstrations.action.reshape(-1, *spec.action_space.shape))
        with fitting(f"fitting {identity['reference']}") if progress else nullcontext(None) as show:
            params = reference.fit(key, demonstrations.observation, actions, progress=show)
        save_tree(params, directory / REFERENCE_NAME)
    return kept(directory, config, identity)


def kept(directory: Path, config: Any, identity: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of `agents.make`, from what `prepare` kept in the directory.

    Raises:
        CheckpointError: if a file is missing or cannot be read.
    """
    parts: dict[str, Any] = {}
    try:
        if identity.get("reference") is not None:
            reference = references.make(identity["reference"], **identity["reference_options"])
            parts |= {"reference": reference.apply, "reference_params": load_tree(directory / REFERENCE_NAME)}
        if agents.wants_demonstrations(config):
            parts["demonstrations"] = load(directory / DEMONSTRATIONS_NAME)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"what the run in {directory} learned from cannot be read ({error}); restore {' and '.join(NAMES)} from a copy, "
            "or start the run again in a new directory."
        ) from error
    return parts
