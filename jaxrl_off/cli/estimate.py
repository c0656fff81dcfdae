"""`jaxrl-off estimate bandit LOG`: what a policy is worth by logged decisions, as table, JSON and plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxrl_off.cli.common import table
from jaxrl_off.cli.results import check_output, write_results

if TYPE_CHECKING:
    from jaxrl_off.data.bandit_logs import Report
    from jaxrl_off.types import BanditLog

# name on the command line -> function of `estimators.bandit`, and the columns of predictions that it needs
ESTIMATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "el": ("empirical_likelihood", ()),
    "cressie_read": ("cressie_read", ()),
    "emp": ("emp", ()),
    "ips": ("ips", ()),
    "snips": ("snips", ()),
    "dm": ("direct_method", ("predicted_target",)),
    "dr": ("doubly_robust", ("predicted", "predicted_target")),
    "sndr": ("self_normalised_doubly_robust", ("predicted", "predicted_target")),
}
_LIKELIHOODS = ("el", "cressie_read", "emp")


@dataclasses.dataclass
class EstimateBandit:
    """Judge a policy by logged decisions of one step each, that another one made."""

    log: tyro.conf.Positional[Path]
    """The log: .csv, .tsv or .txt (also .gz), .parquet, .npz; .vw or .dat (also .gz) is Vowpal Wabbit's cb format."""
    estimators: str = "el,snips,ips"
    """Names with commas between them: el, cressie_read, emp, ips, snips, dm, dr, sndr."""
    level: float = 0.95
    """Confidence level of the intervals."""
    by: str | None = None
    """Column whose values, as text, divide the log into slices that are judged one by one."""
    target: str = "column"
    """Who is judged: column (its probabilities are in --target-propensity), uniform, logged, or always:ACTION."""
    action: str = "action"
    """Column of actions, counted from 0."""
    num_actions: int | None = None
    """How many actions there are; by default the largest in the log and one. Policy uniform needs it."""
    reward: str = "reward"
    """Column of rewards."""
    propensity: str = "propensity"
    """Column of the probabilities with which logged actions were taken."""
    target_propensity: str = "target_propensity"
    """Column of the judged policy's probabilities of the logged actions."""
    predicted: str | None = None
    """Column of predicted rewards of the logged actions, for dr and sndr."""
    predicted_target: str | None = None
    """Column of their mean under the judged policy, for dm, dr and sndr."""
    weight_max: float | None = None
    """The largest weight that is possible; by default 1 / the smallest propensity in the log."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """What rewards can be."""
    reward_offset: float = 1.0
    """r = offset - cost, of Vowpal Wabbit logs."""
    interval: str = "student_t"
    """Interval of estimators without one of their own: student_t, normal, bootstrap, bca;
    of ips, dm and dr also hoeffding, empirical_bernstein, clopper_pearson, betting."""
    calibration: str = "f"
    """Calibration of the intervals of el: f, chi2 or finite_sample."""
    on_bad: Literal["error", "drop"] = "error"
    """What to do with rows that have invalid values."""
    output: Path | None = None
    """Write the numbers to this JSON file, and a plot beside it; nothing is overwritten."""


def estimate_bandit(options: EstimateBandit) -> int:
    """Run the command."""
    names = [name.strip() for name in options.estimators.split(",") if name.strip()]
    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        raise ValueError(f"unknown estimators {', '.join(unknown) or '(none)'}; choose from {', '.join(ESTIMATORS)}.")
    given = {"predicted": options.predicted, "predicted_target": options.predicted_target}
    for name in names:
        missing = [column for column in ESTIMATORS[name][1] if given[column] is None]
        if missing:
            flags = " and ".join(f"--{column.replace('_', '-')}" for column in missing)
            raise ValueError(f"{name} needs {flags}: predicted rewards, which `estimators.bandit.cross_fitted` makes.")
    if options.output is not None:
        check_output(options.output)
    log, report = _read(options)
    # some weight must be above 1
    largest = options.weight_max
    if largest is None:
        largest = max(1.0 / float(log.propensity.min()), 1.0 + 1e-9)
    rows = _rows(options, names, log, largest)
    _print(options, rows, log, report)
    if options.output is not None:
        content = dataclasses.asdict(options) | {"log": options.log.name, "weight_max": largest}
        content |= {"num_actions": log.num_actions, "dropped_rows": report.dropped, "dropped_for": report.reasons}
        write_results(options.output, content, rows, level=options.level)
    return 0


def _read(options: EstimateBandit) -> tuple[BanditLog, Report]:
    """The log with what is asked of it, and what was left out."""
    import numpy as np

    from jaxrl_off.data import bandit_files, vowpal_wabbit

    predictions = [name for name in (options.predicted, options.predicted_target) if name is not None]
    shared: dict[str, Any] = dict(
        num_actions=options.num_actions, reward_range=options.reward_range, on_bad=options.on_bad
    )
    if bandit_files.suffix_of(options.log) in (".vw", ".dat"):
        if predictions or options.by is not None or options.target == "column":
            raise ValueError("Vowpal Wabbit's format has no columns; judge --target uniform, logged or always:ACTION.")
        log, report = vowpal_wabbit.read_cb(options.log, reward_offset=options.reward_offset, columns=(), **shared)
    else:
        if options.by is not None and options.by in predictions:
            raise ValueError(f"--by {options.by} is a column of predictions; slices need another one.")
        log, report = bandit_files.read_table(
            options.log,
            action=options.action,
            reward=options.reward,
            propensity=options.propensity,
            target_propensity=options.target_propensity if options.target == "column" else None,
            columns=dict.fromkeys(predictions, "number") | ({} if options.by is None else {options.by: "text"}),
            **shared,
        )
    if np.isnan(log.reward).any():
        count = int(np.isnan(log.reward).sum())
        raise ValueError(
            f"{count} rewards are missing; `estimators.bandit.censored_empirical_likelihood` is for such logs."
        )
    if options.target != "column":
        log = log._replace(target_propensity=_propensities(options.target, log))
    return log, report


def _propensities(target: str, log: BanditLog) -> Any:
    """Probabilities of the logged actions under a policy that is named on the command line."""
    import numpy as np

    if target == "uniform":
        return np.full(len(log.action), 1.0 / log.num_actions)
    if target == "logged":
        return log.propensity
    kind, _, action = target.partition(":")
    if kind == "always" and action.isdecimal() and int(action) < log.num_actions:
        return (log.action == int(action)).astype(float)
    raise ValueError(
        f"--target must be column, uniform, logged or always:ACTION with an action in [0, {log.num_actions}), got "
        f"{target!r}. --num-actions says how many there are."
    )


def _rows(options: EstimateBandit, names: list[str], log: BanditLog, largest: float) -> list[dict[str, Any]]:
    """Numbers of every slice and estimator."""
    import numpy as np

    from jaxrl_off.estimators import bandit
    from jaxrl_off.estimators.warnings import warnings_of

    weights = log.target_propensity / log.propensity
    slices = [("all", np.ones(len(weights), bool))]
    if options.by is not None:
        column = log.columns[options.by]
        slices += [(f"{options.by}={value}", column == value) for value in np.unique(column)]
    rows = []
    for label, here in slices:
        for name in names:
            function, columns = ESTIMATORS[name]
            settings: dict[str, Any] = dict(
                weight_range=(0.0, largest), reward_range=options.reward_range, level=options.level
            )
            settings |= {column: log.columns[getattr(options, column)][here] for column in columns}
            if name == "el":
                settings["calibration"] = options.calibration
            if name not in _LIKELIHOODS:
                settings["interval"] = options.interval
            found = getattr(bandit, function)(weights[here], log.reward[here], **settings)
            numbers = {key: float(getattr(found, key)) for key in found._fields if key != "diagnostics"}
            diagnostics = {key: float(value) for key, value in found.diagnostics.items()}
            told = dict(diagnostics=diagnostics, warnings=list(warnings_of(found)))
            rows.append({"slice": label, "estimator": name, **numbers, **told})
    return rows


def _print(options: EstimateBandit, rows: list[dict[str, Any]], log: BanditLog, report: Report) -> None:
    lines = [
        (
            row["slice"],
            row["estimator"],
            f"{row['value']:.5g}",
            f"{row['lower']:.5g}",
            f"{row['upper']:.5g}",
            f"{row['diagnostics']['rows']:,.0f}",
            f"{row['effective_sample_size']:,.0f}",
            f"{row['diagnostics']['mean_weight']:.3f}",
        )
        for row in rows
    ]
    columns = ("slice", "estimator", "value", "lower", "upper", "rows", "effective", "mean weight")
    judged = "the policy of its column" if options.target == "column" else f"the policy {options.target!r}"
    table(f"{options.log}: value of {judged}, {100 * options.level:g}% intervals", columns, lines)
    if options.weight_max is None:
        print("Using 1 / min(propensity) as the weight bound; set --weight-max if you know the true bound.")
    if options.num_actions is None and options.target == "uniform":
        print(f"Assuming {log.num_actions} actions (largest logged action + 1). Set --num-actions if there are more.")
    if report.dropped:
        reasons = ", ".join(f"{name}: {count}" for name, count in report.reasons.items())
        print(f"{report.dropped} rows were dropped ({reasons}).")
    for sentence, where in _by_sentence(rows).items():
        print(f"{', '.join(where)}: {sentence}")


def _by_sentence(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Each warning once, with the estimates that it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for sentence in row["warnings"]:
            label = row["estimator"] if row["slice"] == "all" else f"{row['estimator']} ({row['slice']})"
            found.setdefault(sentence, []).append(label)
    return found
