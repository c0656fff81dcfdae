"""`jaxrl-off estimate trajectory DATA`: what the policy of a run is worth by trajectories of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from jaxrl_off.cli.common import table
from jaxrl_off.cli.results import check_output, write_results

if TYPE_CHECKING:
    from jaxrl_off.types import Trajectories

# name on the command line -> function of `estimators.trajectory`
ESTIMATORS = {
    "naive": "naive",
    "is": "trajectory_is",
    "pdis": "pdis",
    "wis": "wis",
    "cwpdis": "cwpdis",
    "star": "star",
}


@dataclasses.dataclass
class EstimateTrajectory:
    """Judge the policy of a run by whole trajectories of another one.

    `jaxrl-off collect DATA.npz --kind trajectories --run RUN` records such trajectories.
    """

    data: tyro.conf.Positional[Path]
    """Trajectories: .npz of `collect`, or .hdf5 in D4RL's layout."""
    policy: Path
    """Directory of the run whose policy is judged, with sampled actions."""
    estimators: str = "naive,pdis,wis,cwpdis,star"
    """Names with commas between them: naive (the value of the policy that acted), is, pdis, wis, cwpdis, star."""
    level: float = 0.95
    """Of confidence."""
    discount: float = 1.0
    """gamma."""
    interval: str = "student_t"
    """student_t, normal, bootstrap or bca; all asymptotic."""
    resamples: int = 1000
    """Of the bootstrap."""
    window: int | None = None
    """Weights are products of that many most recent ratios; by default of all, but in star, where it is 2."""
    clip: float | None = None
    """Largest ratio of a step."""
    cells: int = 32
    """Of star: k-means on standardised observations."""
    behaviour_log_prob: str | None = None
    """Data set of log-probabilities in an .hdf5 file."""
    seed: int = 0
    """Of the bootstrap and of k-means."""
    output: Path | None = None
    """Write the numbers to this JSON file, and a plot beside it; nothing is overwritten."""


def estimate_trajectory(options: EstimateTrajectory) -> int:
    """Run the command."""
    names = [name.strip() for name in options.estimators.split(",") if name.strip()]
    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        raise ValueError(f"unknown estimators {', '.join(unknown) or '(none)'}; choose from {', '.join(ESTIMATORS)}.")
    if options.output is not None:
        check_output(options.output)
    trajectories = _read(options)
    rows = _rows(options, names, trajectories)
    _print(options, rows)
    if options.output is not None:
        content = dataclasses.asdict(options) | {"data": options.data.name, "policy": options.policy.name}
        write_results(options.output, content, rows, level=options.level)
    return 0


def _read(options: EstimateTrajectory) -> Trajectories:
    from jaxrl_off.data import trajectories

    if options.data.suffix.lower() in (".hdf5", ".h5"):
        read = trajectories.read_hdf5(options.data, behaviour_log_prob=options.behaviour_log_prob)
    elif options.behaviour_log_prob is not None:
        raise ValueError("--behaviour-log-prob names a data set of an .hdf5 file; an .npz file has its own.")
    else:
        read = trajectories.load(options.data)
    return trajectories.check(read, require=["observations", "actions"])[0]


def _rows(options: EstimateTrajectory, names: list[str], trajectories: Trajectories) -> list[dict[str, Any]]:
    """Numbers of every estimator."""
    import jax
    import numpy as np

    from jaxrl_off import training
    from jaxrl_off.estimators.trajectory import abstractions, star, weighted

    run = training.load_run(options.policy)
    policy = training.policy_functions(run.config, run.spec, run.agent.publish(run.agent_state))
    shape = trajectories.observations.shape[2:]
    if shape != run.spec.observation_shape:
        raise ValueError(
            f"observations of {options.data} have shape {shape}, those of the run {options.policy} "
            f"{run.spec.observation_shape}; judge a policy of the same environment."
        )
    target = np.asarray(policy.log_prob(trajectories.observations, trajectories.actions))
    shared: dict[str, Any] = dict(discount=options.discount, level=options.level)
    shared |= dict(interval=options.interval, resamples=options.resamples, seed=options.seed)
    rows = []
    for name in names:
        weights = {} if name == "naive" else {"window": options.window, "clip": options.clip}
        if name == "star":
            key, mask = jax.random.key(options.seed), trajectories.mask
            phi = abstractions.k_means(key, trajectories.observations, options.cells, mask=mask, standardise=True)
            weights["window"] = 2 if options.window is None else options.window
            states = phi(trajectories.observations)
            found = star.star(trajectories, target, states, phi.num_states, **weights, **shared)
        else:
            found = getattr(weighted, ESTIMATORS[name])(trajectories, target, **weights, **shared)
        numbers = {key: float(getattr(found, key)) for key in found._fields if key != "diagnostics"}
        diagnostics = {key: float(value) for key, value in found.diagnostics.items()}
        rows.append({"slice": "all", "estimator": name, **numbers, "diagnostics": diagnostics})
    return rows


def _print(options: EstimateTrajectory, rows: list[dict[str, Any]]) -> None:
    lines = [
        (
            row["estimator"],
            f"{row['value']:.5g}",
            f"{row['lower']:.5g}",
            f"{row['upper']:.5g}",
            f"{row['diagnostics']['rows']:,.0f}",
            f"{row['effective_sample_size']:,.1f}",
            f"{row['diagnostics']['mean_weight']:.3g}",
        )
        for row in rows
    ]
    columns = ("estimator", "value", "lower", "upper", "trajectories", "effective", "mean weight")
    table(
        f"{options.data}: value of the policy of {options.policy}, {100 * options.level:g}% intervals", columns, lines
    )
    few = [row["estimator"] for row in rows if row["diagnostics"]["below_floor"]]
    if few:
        print(
            f"Fewer than 10 effective trajectories in {', '.join(few)}: do not rely on their numbers. Log more, shorten the "
            "horizon, or take --window."
        )
