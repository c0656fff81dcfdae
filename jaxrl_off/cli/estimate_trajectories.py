"""`jaxrl-off estimate trajectories DATA`: what the policy of a run is worth by trajectories of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
_WITHIN = (*_WEIGHTED, "mis")  # which judge only returns within the horizon
_WINDOWED = ("is", "pdis", "wis", "cwpdis", "dr", "wdr", "magic", "star")
_MEMBERS = 10  # networks, each with its own resample, of whose values fqe takes the deviation


@dataclasses.dataclass
class EstimateTrajectories:
    """Estimate the value of the policy of a run from whole trajectories that another policy generated.

    `jaxrl-off collect DATA.npz --kind trajectories --run RUN` records such trajectories.
    """

    data: tyro.conf.Positional[Path]
    """File of trajectories: .npz as `collect` writes it, or .hdf5 in D4RL's layout."""
    policy: Path
    """Directory of the run whose policy is judged; its actions are sampled, not greedy."""
    estimators: str = "naive,wis,cwpdis,wdr,fqe,star"
    """Names, separated by commas. naive: the value of the policy that acted. is, pdis, wis, cwpdis: importance sampling.
    el: empirical likelihood over trajectories. fqe: a fitted Q. retrace: a Q fitted with truncated ratios. dm, dr, wdr,
    magic: with a Q that is fitted to other trajectories. model: a table of cells, for discrete actions. mis: marginalised
    importance sampling, of cells. dice: the ratio of discounted visits (GenDICE in closed form), of cells, or linear for
    continuous actions; for discounts below 1. star: an abstract reward process."""
    level: float = 0.95
    """Confidence level."""
    discount: float = 1.0
    """Discount factor gamma, in [0, 1]."""
    horizon_exit: bool = True
    """What is estimated where a trajectory was cut before it terminated: returns up to the cut, or, with --no-horizon-exit,
    those of a process that goes on, bootstrapped from a fitted value. The latter is for fqe, retrace, dm, dr, wdr, magic,
    model, dice and star."""
    interval: str = "student_t"
    """student_t, normal, bootstrap or bca; all asymptotic. el has its own."""
    resamples: int = 1000
    """Number of bootstrap resamples."""
    window: int | None = None
    """For is, pdis, wis, cwpdis, dr, wdr, magic and star: weights are products of this many most recent ratios. By default
    of all ratios, and of 2 in star."""
    clip: float | None = None
    """For the same estimators: largest ratio of a step."""
    cells: int = 32
    """For star, model, mis and dice: number of cells, by k-means on standardised observations. Integer observations are
    cells themselves."""
    q: Literal["linear", "quadratic", "mlp"] = "linear"
    """Form of the Q of fqe, dm, dr, wdr and magic: linear in observations, or in products of two of them, or a network. The
    first two are also for retrace, and for dice of continuous actions."""
    folds: int = 2
    """For dm, dr, wdr and magic: number of parts of the data; each part gets a Q fitted to the other parts."""
    updates: int = 5000
    """Gradient steps of each network; fqe fits ten networks, for its interval."""
    action_samples: int = 10
    """For a Q of continuous actions: how many actions of the policy are drawn in every state."""
    return_range: tuple[float, float] | None = None
    """For el: least and greatest possible discounted return."""
    weight_max: float | None = None
    """For el: the largest possible product of all ratios; by default unbounded."""
    clone_behaviour: Literal["tabular", "logistic"] | None = None
    """Estimate behaviour probabilities that were not logged: by counts of integer observations, or by logistic regression.
    For discrete actions."""
    behaviour_log_prob: str | None = None
    """Name of the data set of log-probabilities in an .hdf5 file."""
    seed: int = 0
    """Seed of the bootstrap, of k-means, and of what is fitted or drawn at random."""
    output: Path | None = None
    """Write the numbers to this JSON file, and a plot next to it; existing files are not overwritten."""


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
    """Refuse invalid options before anything is read or fitted."""
    from jaxrl_off.estimators.common import did_you_mean
    from jaxrl_off.estimators.trajectory.statistics import settings_of

    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        hint = did_you_mean(unknown[0], ESTIMATORS) if unknown else ""
        raise ValueError(
            f"unknown estimators {', '.join(unknown) or '(none)'}; choose from {', '.join(ESTIMATORS)}.{hint}"
        )
    settings_of(level=options.level, interval=options.interval, resamples=options.resamples)
    if not 0.0 <= options.discount <= 1.0:
        raise ValueError(f"--discount must be in [0, 1], got {options.discount}.")
    within = [name for name in names if name in _WITHIN]
    if within and not options.horizon_exit:
        raise ValueError(
            f"{', '.join(within)} can judge only returns within the horizon. With --no-horizon-exit choose --estimators from "
            f"{', '.join(name for name in ESTIMATORS if name not in _WITHIN)}."
        )
    for option in ("window", "clip"):
        if getattr(options, option) is not None and not any(name in _WINDOWED for name in names):
            raise ValueError(
                f"--{option} is for {', '.join(_WINDOWED)}, none of which is among --estimators; leave it out."
            )
    if "el" in names and options.return_range is None:
        raise ValueError("el needs --return-range LOW HIGH, the least and the greatest possible discounted return.")
    if "dice" in names and options.discount == 1.0:
        raise ValueError(
            "dice needs a --discount below 1, as undiscounted visits have no shares. Pass one, or use mis or model."
        )
    if "retrace" in names and options.q == "mlp":
        raise ValueError("retrace is available in closed form only: use --q linear or quadratic, or leave retrace out.")
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
    if options.data.suffix.lower() not in (".npz", ".hdf5", ".h5"):
        raise ValueError(
            f"{options.data} does not end in .npz (written by `jaxrl-off collect --kind trajectories` or "
            "`data.trajectories.save`) or .hdf5 (D4RL's layout). Convert a table of steps, such as a .csv file, with "
            "`data.trajectories.from_flat`, which takes episode and step columns, and `save` it as .npz."
        )
    if options.data.suffix.lower() in (".hdf5", ".h5"):
        read = trajectories.read_hdf5(options.data, behaviour_log_prob=options.behaviour_log_prob)
    elif options.behaviour_log_prob is not None:
        raise ValueError(
            "--behaviour-log-prob names a data set of an .hdf5 file; an .npz file has its own behaviour_log_prob. Leave it out."
        )
    else:
        read = trajectories.load(options.data)
    return trajectories.check(read, require=["observations", "actions"])[0]


def _policy(options: EstimateTrajectories, trajectories: Trajectories) -> tuple[PolicyFunctions, int | None]:
    """The policy of the run, and the number of actions, None if they are continuous."""
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
    """Trajectories with behaviour probabilities, where these are needed; and a note if they were estimated."""
    needing = [name for name in names if name not in _WITHOUT_RATIOS]
    if trajectories.behaviour_log_prob is not None:
        if options.clone_behaviour is not None:
            raise ValueError(
                f"{options.data} has behaviour probabilities, which --clone-behaviour would replace by estimates; leave it out."
            )
        return trajectories, None
    if options.clone_behaviour is None or not needing:
        if needing:
            raise ValueError(
                f"{options.data} has no behaviour probabilities, which {', '.join(needing)} need. Name their data set with "
                "--behaviour-log-prob (.hdf5), estimate them with --clone-behaviour tabular or logistic, or use only "
                f"estimators that need none: {', '.join(_WITHOUT_RATIOS)}."
            )
        return trajectories, None
    if num_actions is None:
        raise ValueError("--clone-behaviour is for discrete actions; use fqe, which needs no behaviour probabilities.")
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
    continuing = settings | dict(horizon_exit=options.horizon_exit)
    own: dict[str, Any] = {name: dict(window=options.window, clip=options.clip) for name in _WINDOWED}
    own["star"]["window"] = 2 if options.window is None else options.window
    own["el"] = dict(return_range=options.return_range)
    own["el"]["weight_max"] = np.inf if options.weight_max is None else options.weight_max
    own["retrace"] = dict(features=options.q)
    given: dict[str, Any] = {}
    fit_key, cell_key, draw_key = jax.random.split(jax.random.key(options.seed), 3)
    found, target = {}, None
    if any(name in _WITH_TARGET for name in names):
        target = _target(options, trajectories, policy, num_actions, draw_key)
    if any(name in _WITH_Q for name in names):
        values = _cross_fitted(options, trajectories, target, fit_key)
        given |= dict(q=values.q, v=values.v, final=None if options.horizon_exit else values.final)
    if "fqe" in names:
        found["fqe"] = _fqe(options, trajectories, target, fit_key, continuing)
    if "retrace" in names:
        given |= dict(target=target)
    if any(name in _WITH_CELLS for name in names):
        cells = _cells(options, trajectories, cell_key)
        for name in ("model", "mis", "dice"):
            if name in names:
                words = settings if name == "mis" else continuing
                found[name] = _by_cells(name, options, trajectories, cells, target, log_prob, words)
        final_states = None if options.horizon_exit else cells.final
        given |= dict(states=cells.states, num_states=cells.number, final_states=final_states)
    rest = [name for name in names if name not in found]
    if rest:
        own = {name: words for name, words in own.items() if name in rest}
        found |= suite.evaluate(trajectories, log_prob, estimators=rest, options=own, **given, **continuing)
    return found


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
        shared = dict(discount=options.discount, counts=counts, horizon_exit=options.horizon_exit)
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


class _Cells(NamedTuple):
    """Cells of observations `int32[n, T]`, how many there are, and `int32[n]` of what followed the last steps, if known."""

    states: Any
    number: int
    final: Any


def _cells(options: EstimateTrajectories, trajectories: Trajectories, key: Array) -> _Cells:
    """The cell of every observation."""
    import numpy as np

    from jaxrl_off.estimators.trajectory.reward_processes import abstractions

    observations, mask = trajectories.observations, trajectories.mask
    cut = ~(trajectories.terminated & mask).any(axis=1)
    final = trajectories.final_observation
    if observations.shape == mask.shape and observations.dtype.kind in "iu" and observations[mask].min() >= 0:
        last = None if final is None else np.where(cut, final, 0).astype(np.int32)
        number = max(int(observations[mask].max()), 0 if last is None else int(last.max())) + 1
        return _Cells(np.where(mask, observations, 0).astype(np.int32), number, last)
    phi = abstractions.k_means(key, observations, options.cells, mask=mask, standardise=True)
    last = None if final is None else np.asarray(phi(final[:, None]))[:, 0]
    return _Cells(np.asarray(phi(observations)), phi.num_states, last)


def _by_cells(
    name: str,
    options: EstimateTrajectories,
    trajectories: Trajectories,
    cells: _Cells,
    target: TargetActions | None,
    log_prob: Any,
    settings: dict[str, Any],
) -> Estimate:
    """model, mis and dice with cells for states; the policy of a cell is its average over the steps there."""
    import numpy as np

    from jaxrl_off.estimators.trajectory.occupancy import linear as linear_occupancy
    from jaxrl_off.estimators.trajectory.occupancy import tabular as tabular_occupancy
    from jaxrl_off.estimators.trajectory.values import tabular

    states, num_states = cells.states, cells.number
    data = trajectories._replace(observations=states, final_observation=cells.final)
    if name == "mis":
        sizes = np.ones((num_states, 1))  # ratios are those of log-probabilities, in which the policy is as it is
        return tabular_occupancy.marginalised_is(data, sizes, target_log_prob=log_prob, **settings)
    if target.actions is not None:
        if name == "model":
            raise ValueError("model is for discrete actions; use fqe, mis or star.")
        if options.q == "mlp":
            raise ValueError("dice of continuous actions is linear: use --q linear or quadratic, or leave dice out.")
        return linear_occupancy.gen_dice(trajectories, target, options.q, **settings)
    mask, weights = trajectories.mask, np.asarray(target.weights)[:, :-1]
    policy = np.full((num_states, weights.shape[-1]), 1e-12)  # cells without steps: nobody asks for them
    np.add.at(policy, states[mask], weights[mask])
    policy /= policy.sum(axis=1, keepdims=True)
    return (tabular.model_based if name == "model" else tabular_occupancy.gen_dice)(data, policy, **settings)


def _row(name: str, found: Estimate) -> dict[str, Any]:
    from jaxrl_off.estimators.warnings import warnings_of

    numbers = {key: float(getattr(found, key)) for key in found._fields if key != "diagnostics"}
    diagnostics = {key: float(value) for key, value in found.diagnostics.items()}
    told = dict(diagnostics=diagnostics, warnings=list(warnings_of(found)))
    return {"slice": "all", "estimator": name, **numbers, **told}


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
    quantity = (
        "returns within the horizon" if options.horizon_exit else "the process goes on where trajectories were cut"
    )
    heading = (
        f"{options.data}: value of the policy of {options.policy} ({quantity}), {100 * options.level:g}% intervals"
    )
    table(heading, columns, lines)
    if note is not None:
        print(f"{note} The intervals do not account for this estimate.")
    said: dict[str, list[str]] = {}
    for row in rows:
        for sentence in row["warnings"]:
            said.setdefault(sentence, []).append(row["estimator"])
    for sentence, names in said.items():
        print(f"{', '.join(names)}: {sentence}")
