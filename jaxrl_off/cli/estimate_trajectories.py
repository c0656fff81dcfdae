"""`jaxrl-off estimate trajectories DATA`: what the policy of a run is worth by trajectories of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxrl_off.cli.common import table
from jaxrl_off.cli.results import check_output, write_results

if TYPE_CHECKING:
    from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
    from jaxrl_off.estimators.trajectory.columns.transitions import ActionValues
    from jaxrl_off.training import PolicyFunctions
    from jaxrl_off.types import Array, Estimate, Trajectories

# names of `estimators.trajectory.suite`, and dice
_WEIGHTED, _WITH_Q = ("naive", "is", "pdis", "wis", "cwpdis", "el"), ("dm", "dr", "wdr", "magic")
ESTIMATORS = (*_WEIGHTED, *_WITH_Q, "fqe", "retrace", "model", "mis", "dice", "star")
_WITHOUT_RATIOS = ("naive", "dm", "fqe", "model", "dice")
_WITH_TARGET, _WITH_CELLS = (*_WITH_Q, "fqe", "retrace", "model", "dice"), ("model", "mis", "dice", "star")
_MEMBERS = 10  # networks, each with its own resample, of whose values fqe takes the deviation


@dataclasses.dataclass
class EstimateTrajectories:
    """Judge the policy of a run by whole trajectories of another one.

    `jaxrl-off collect DATA.npz --kind trajectories --run RUN` records such trajectories.
    """

    data: tyro.conf.Positional[Path]
    """Trajectories: .npz of `collect`, or .hdf5 in D4RL's layout."""
    policy: Path
    """Directory of the run whose policy is judged, with sampled actions."""
    estimators: str = "naive,wis,cwpdis,wdr,fqe,star"
    """Names with commas between them. naive: the value of the policy that acted. is, pdis, wis, cwpdis: importance sampling.
    el: empirical likelihood over trajectories. fqe: a fitted Q. retrace: a Q fitted with truncated ratios. dm, dr, wdr,
    magic: with a Q that is fitted to other trajectories. model: a table of cells, for discrete actions. mis: marginalised
    importance sampling, of cells. dice: the ratio of discounted visits (GenDICE in closed form), of cells, or linear for
    continuous actions; for discounts below 1. star: an abstract reward process."""
    level: float = 0.95
    """Of confidence."""
    discount: float = 1.0
    """gamma."""
    interval: str = "student_t"
    """student_t, normal, bootstrap or bca; all asymptotic. el has its own."""
    resamples: int = 1000
    """Of the bootstrap."""
    window: int | None = None
    """Weights are products of that many most recent ratios; by default of all, but in star, where it is 2."""
    clip: float | None = None
    """Largest ratio of a step."""
    cells: int = 32
    """Of star, model, mis and dice: k-means on standardised observations; integer states are cells as they are."""
    q: Literal["linear", "quadratic", "mlp"] = "linear"
    """What the Q of fqe, dm, dr, wdr and magic is: linear in observations, or in products of two of them, or a network; the
    first two for retrace, and for dice of continuous actions."""
    folds: int = 2
    """Of dm, dr, wdr and magic: parts of the data, each with the Q of the others."""
    updates: int = 5000
    """Gradient steps of each network; fqe has ten, for its interval."""
    action_samples: int = 10
    """Actions of the policy drawn in every state, for a Q of continuous actions."""
    return_range: tuple[float, float] | None = None
    """Of el: what discounted returns can be."""
    weight_max: float | None = None
    """Of el: the largest product of all ratios that is possible; by default without a bound."""
    clone_behaviour: Literal["tabular", "logistic"] | None = None
    """Estimate probabilities that were not logged from the data: counts of integer states, or regression; discrete actions."""
    behaviour_log_prob: str | None = None
    """Data set of log-probabilities in an .hdf5 file."""
    seed: int = 0
    """Of the bootstrap, of k-means, and of what is fitted or drawn at random."""
    output: Path | None = None
    """Write the numbers to this JSON file, and a plot beside it; nothing is overwritten."""


def estimate_trajectories(options: EstimateTrajectories) -> int:
    """Run the command."""
    names = list(dict.fromkeys(name.strip() for name in options.estimators.split(",") if name.strip()))
    _check(options, names)
    trajectories = _read(options)
    policy, num_actions = _policy(options, trajectories)
    trajectories, note = _with_behaviour(options, names, trajectories, num_actions)
    found = _estimates(options, names, trajectories, policy, num_actions)
    rows = [_row(name, found[name]) for name in names]
    _print(options, rows, note)
    if options.output is not None:
        content = dataclasses.asdict(options) | {"data": options.data.name, "policy": options.policy.name}
        content["behaviour"] = note or "logged"
        write_results(options.output, content, rows, level=options.level)
    return 0


def _check(options: EstimateTrajectories, names: list[str]) -> None:
    """Refuse what cannot be meant before anything is read or fitted."""
    from jaxrl_off.estimators.trajectory.statistics import settings_of

    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        raise ValueError(f"unknown estimators {', '.join(unknown) or '(none)'}; choose from {', '.join(ESTIMATORS)}.")
    settings_of(level=options.level, interval=options.interval, resamples=options.resamples)
    if not 0.0 <= options.discount <= 1.0:
        raise ValueError(f"--discount must be in [0, 1], got {options.discount}.")
    if "el" in names and options.return_range is None:
        raise ValueError("el needs --return-range LOW HIGH, what discounted returns can be.")
    if "dice" in names and options.discount == 1.0:
        raise ValueError(
            "dice needs --discount below 1: visits have no share otherwise. Take mis or model, or give one."
        )
    if "retrace" in names and options.q == "mlp":
        raise ValueError("retrace has a closed form alone: take --q linear or quadratic for it, or leave it out.")
    for name, least in (("folds", 2), ("cells", 1), ("updates", 1), ("action_samples", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}.")
    if options.output is not None:
        check_output(options.output)


def _read(options: EstimateTrajectories) -> Trajectories:
    from jaxrl_off.data import trajectories

    if not options.data.is_file():
        raise FileNotFoundError(
            f"there is no file {options.data}; `jaxrl-off collect {options.data} --kind trajectories --run RUN` records one."
        )
    if options.data.suffix.lower() in (".hdf5", ".h5"):
        read = trajectories.read_hdf5(options.data, behaviour_log_prob=options.behaviour_log_prob)
    elif options.behaviour_log_prob is not None:
        raise ValueError("--behaviour-log-prob names a data set of an .hdf5 file; an .npz file has its own.")
    else:
        read = trajectories.load(options.data)
    return trajectories.check(read, require=["observations", "actions"])[0]


def _policy(options: EstimateTrajectories, trajectories: Trajectories) -> tuple[PolicyFunctions, int | None]:
    """The policy of the run, and how many actions there are, or None for continuous ones."""
    from jaxrl_off import training
    from jaxrl_off.envs import DiscreteSpace

    run = training.load_run(options.policy)
    policy = training.policy_functions(run.config, run.spec, run.agent.publish(run.agent_state))
    shape = trajectories.observations.shape[2:]
    if shape != run.spec.observation_shape:
        raise ValueError(
            f"observations of {options.data} have shape {shape}, those of the run {options.policy} "
            f"{run.spec.observation_shape}; judge a policy of the same environment."
        )
    space = run.spec.action_space
    return policy, space.num_actions if isinstance(space, DiscreteSpace) else None


def _with_behaviour(
    options: EstimateTrajectories, names: list[str], trajectories: Trajectories, num_actions: int | None
) -> tuple[Trajectories, str | None]:
    """Trajectories with the probabilities of who acted, where these are needed; and a note if they were estimated."""
    needing = [name for name in names if name not in _WITHOUT_RATIOS]
    if trajectories.behaviour_log_prob is not None:
        if options.clone_behaviour is not None:
            raise ValueError(
                f"{options.data} has the probabilities of who acted; leave --clone-behaviour out, which estimates them."
            )
        return trajectories, None
    if options.clone_behaviour is None or not needing:
        if needing:
            raise ValueError(
                f"{options.data} has no probabilities of who acted, which {', '.join(needing)} need: name them by "
                "--behaviour-log-prob (.hdf5), estimate them by --clone-behaviour tabular or logistic, or take only of "
                f"{', '.join(_WITHOUT_RATIOS)}."
            )
        return trajectories, None
    if num_actions is None:
        raise ValueError("--clone-behaviour is for discrete actions; take fqe, which does without probabilities.")
    from jaxrl_off.estimators.trajectory.behaviour import clone_behaviour

    cloned, report = clone_behaviour(trajectories, num_actions=num_actions, kind=options.clone_behaviour)
    return cloned, report.note


def _estimates(
    options: EstimateTrajectories,
    names: list[str],
    trajectories: Trajectories,
    policy: PolicyFunctions,
    num_actions: int | None,
) -> dict[str, Estimate]:
    """Estimates by name."""
    import jax
    import numpy as np

    from jaxrl_off.estimators.trajectory import suite

    log_prob = None
    if trajectories.behaviour_log_prob is not None:
        log_prob = np.asarray(policy.log_prob(trajectories.observations, trajectories.actions))
    settings: dict[str, Any] = dict(discount=options.discount, level=options.level)
    settings |= dict(interval=options.interval, resamples=options.resamples, seed=options.seed)
    given: dict[str, Any] = dict(clip=options.clip, return_range=options.return_range)
    given["weight_max"] = np.inf if options.weight_max is None else options.weight_max
    fit_key, cell_key, draw_key = jax.random.split(jax.random.key(options.seed), 3)
    found, target = {}, None
    if any(name in _WITH_TARGET for name in names):
        target = _target(options, trajectories, policy, num_actions, draw_key)
    if any(name in _WITH_Q for name in names):
        values = _cross_fitted(options, trajectories, target, fit_key)
        given |= dict(q=values.q, v=values.v)
    if "fqe" in names:
        found["fqe"] = _fqe(options, trajectories, target, fit_key, settings)
    if "retrace" in names:
        words = dict(target=target, features=options.q, **settings)
        found |= suite.evaluate(trajectories, log_prob, estimators=["retrace"], **words)
    if any(name in _WITH_CELLS for name in names):
        states, num_states = _cells(options, trajectories, cell_key)
        for name in ("model", "mis", "dice"):
            if name in names:
                found[name] = _by_cells(name, options, trajectories, states, num_states, target, log_prob, settings)
        if "star" in names:
            words = given | dict(states=states, num_states=num_states)
            words["window"] = 2 if options.window is None else options.window
            found |= suite.evaluate(trajectories, log_prob, estimators=["star"], **words, **settings)
    given["window"] = options.window
    rest = [name for name in names if name not in found]
    return found | (suite.evaluate(trajectories, log_prob, estimators=rest, **given, **settings) if rest else {})


def _target(
    options: EstimateTrajectories,
    trajectories: Trajectories,
    policy: PolicyFunctions,
    num_actions: int | None,
    key: Array,
) -> TargetActions:
    """What the policy would do in every state."""
    from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions

    if num_actions is None:
        return target_actions(trajectories, policy.act, samples=options.action_samples, key=key)
    return target_actions(trajectories, policy.log_prob, num_actions=num_actions)


def _cross_fitted(
    options: EstimateTrajectories, trajectories: Trajectories, target: TargetActions, key: Array
) -> ActionValues:
    """Values of every trajectory from a Q that was fitted to others."""
    import numpy as np

    from jaxrl_off.estimators.trajectory.values import linear as linear_q
    from jaxrl_off.estimators.trajectory.values import network as fitted_q
    from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected

    def fit(counts: Any) -> ActionValues:
        shared = dict(discount=options.discount, counts=counts)
        if options.q != "mlp":
            return linear_q.fit_linear_q(trajectories, target, features=options.q, **shared).values
        return fitted_q.fit_network_q(trajectories, target, key, _network(options), **shared).values

    return corrected.cross_fitted(fit, np.ones(len(trajectories.rewards)), folds=options.folds, seed=options.seed)


def _fqe(
    options: EstimateTrajectories,
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    settings: dict[str, Any],
) -> Estimate:
    """A Q fitted to all trajectories, with the error that the fit has."""
    from jaxrl_off.estimators.trajectory.values import linear as linear_q
    from jaxrl_off.estimators.trajectory.values import network as fitted_q

    if options.q != "mlp":
        return linear_q.linear_q_evaluation(trajectories, target, features=options.q, **settings)
    config = _network(options, members=_MEMBERS, bootstrap=True)
    return fitted_q.fitted_q_evaluation(trajectories, target, key, config, **settings)


def _network(options: EstimateTrajectories, **settings: Any) -> Any:
    from jaxrl_off.estimators.trajectory.values.network import FittedQConfig

    return FittedQConfig(sizes=(64, 64), updates=options.updates, **settings)


def _cells(options: EstimateTrajectories, trajectories: Trajectories, key: Array) -> tuple[Any, int]:
    """The cell of every observation, and how many there are."""
    import numpy as np

    from jaxrl_off.estimators.trajectory.reward_processes import abstractions

    observations, mask = trajectories.observations, trajectories.mask
    if observations.shape == mask.shape and observations.dtype.kind in "iu" and observations[mask].min() >= 0:
        return np.where(mask, observations, 0).astype(np.int32), int(observations[mask].max()) + 1
    phi = abstractions.k_means(key, observations, options.cells, mask=mask, standardise=True)
    return np.asarray(phi(observations)), phi.num_states


def _by_cells(
    name: str,
    options: EstimateTrajectories,
    trajectories: Trajectories,
    states: Any,
    num_states: int,
    target: TargetActions | None,
    log_prob: Any,
    settings: dict[str, Any],
) -> Estimate:
    """model, mis and dice with cells for states, in each of which the policy is what it is on average over the steps there."""
    import numpy as np

    from jaxrl_off.estimators.trajectory.occupancy import linear as linear_occupancy
    from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
    from jaxrl_off.estimators.trajectory.values import tabular

    data = trajectories._replace(observations=states, final_observation=None)
    if name == "mis":
        sizes = np.ones((num_states, 1))  # ratios are those of log-probabilities, in which the policy is as it is
        return tabular_occupancy.marginalised_is(data, sizes, target_log_prob=log_prob, **settings)
    if target.actions is not None:
        if name == "model":
            raise ValueError("model is for discrete actions; take fqe, mis or star.")
        if options.q == "mlp":
            raise ValueError("dice of continuous actions is linear: take --q linear or quadratic, or leave it out.")
        return linear_occupancy.gen_dice(trajectories, target, options.q, **settings)
    mask, weights = trajectories.mask, np.asarray(target.weights)[:, :-1]
    policy = np.full((num_states, weights.shape[-1]), 1e-12)  # cells without steps: nobody asks for them
    np.add.at(policy, states[mask], weights[mask])
    policy /= policy.sum(axis=1, keepdims=True)
    return (tabular.model_based if name == "model" else tabular_occupancy.gen_dice)(data, policy, **settings)


def _row(name: str, found: Estimate) -> dict[str, Any]:
    numbers = {key: float(getattr(found, key)) for key in found._fields if key != "diagnostics"}
    diagnostics = {key: float(value) for key, value in found.diagnostics.items()}
    return {"slice": "all", "estimator": name, **numbers, "diagnostics": diagnostics}


def _print(options: EstimateTrajectories, rows: list[dict[str, Any]], note: str | None) -> None:
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
    columns = ("estimator", "value", "lower", "upper", "logged", "effective", "mean weight")
    table(
        f"{options.data}: value of the policy of {options.policy}, {100 * options.level:g}% intervals", columns, lines
    )
    if note is not None:
        print(f"{note} Intervals take no notice of that.")
    without = [row["estimator"] for row in rows if row["diagnostics"].get("finite") == 0.0]
    if without:
        print(
            f"There is no value of {', '.join(without)}: weights are all 0, or the process that was fitted never ends. Log "
            "more, give a --discount below 1, or take fewer --cells."
        )
    few = [row["estimator"] for row in rows if row["effective_sample_size"] < 10]
    if few:
        print(
            f"Fewer than 10 effective trajectories in {', '.join(few)}: do not rely on their numbers. Log more, shorten the "
            "horizon, or take --window."
        )
