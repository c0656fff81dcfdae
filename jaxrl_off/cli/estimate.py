"""`jaxrl-off estimate bandit LOG`: what a policy is worth by logged decisions, as table, JSON and plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxrl_off.cli.common import table
from jaxrl_off.cli.results import check_output, write_results

if TYPE_CHECKING:
    import numpy as np

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
_LIKELIHOODS, _RATIOS = ("el", "cressie_read", "emp"), ("snips", "sndr")


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
    """Who is judged: column (its probabilities are in --target-propensity), uniform, logged, or always:ACTION with an action as
    it stands in the log."""
    action: str = "action"
    """Column of actions: numbers from 0, names or ids. Only uniform and always:ACTION look at it."""
    num_actions: int | None = None
    """For uniform: how many actions there are. By default, the largest logged number and one, or the number of names."""
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
    delimiter: str | None = None
    """Character between the cells of a text file; by default a tab in .tsv, else a comma."""
    reward_offset: float = 1.0
    """r = offset - cost, of Vowpal Wabbit logs."""
    first_action: int = 1
    """Number of the first action in a Vowpal Wabbit log."""
    interval: str = "student_t"
    """Interval of estimators without one of their own: student_t, normal, bootstrap, bca;
    of ips, dm and dr also hoeffding, empirical_bernstein, clopper_pearson, betting."""
    seed: int = 0
    """Seed of the bootstrap, and of the order in which betting reads the rows."""
    ordered: bool = False
    """For betting: read the rows as they stand, because their order is time. Otherwise their order is drawn by --seed."""
    calibration: str = "f"
    """Calibration of the intervals of el: f, chi2 or finite_sample."""
    on_bad: Literal["error", "drop"] = "error"
    """What to do with rows that have invalid values or no reward."""
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
    _check_settings(options, names)
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
        content |= {"num_actions": log.num_actions if _looks_at_actions(options) else options.num_actions}
        content |= {"dropped_rows": report.dropped, "dropped_for": report.reasons}
        write_results(options.output, content, rows, level=options.level)
    return 0


def _check_settings(options: EstimateBandit, names: list[str]) -> None:
    """Refuse, before anything is read, settings that are not valid, or that nothing would use."""
    from jaxrl_off.estimators.bandit.terms import ASYMPTOTIC, BOUNDED, settings_of
    from jaxrl_off.estimators.common import check_range

    settings_of(options.level, "two", options.interval, 1, options.seed, None, options.ordered)
    check_range("reward_range", options.reward_range)
    if options.weight_max is not None and not options.weight_max > 1:
        raise ValueError(
            f"--weight-max must be above 1, the mean of importance weights, got {options.weight_max:g}. It is the largest "
            "weight that is possible: 1 / the smallest propensity."
        )
    others = [name for name in names if name not in _LIKELIHOODS]
    if options.interval != "student_t" and not others:
        raise ValueError(f"{', '.join(names)} have intervals of their own; leave --interval {options.interval} out.")
    ratios = [name for name in others if name in _RATIOS]
    if options.interval in BOUNDED and ratios:
        raise ValueError(
            f"--interval {options.interval} is for ips, dm and dr, whose terms have a known range, and not for "
            f"{', '.join(ratios)}. Leave {'them' if len(ratios) > 1 else 'it'} out of --estimators, or use --interval "
            f"{', '.join(ASYMPTOTIC)}."
        )
    if options.calibration != "f" and "el" not in names:
        raise ValueError("--calibration is for el, which is not among --estimators; leave it out.")
    vowpal_wabbit = _is_vowpal_wabbit(options)
    for name, default, for_it in (("delimiter", None, False), ("reward_offset", 1.0, True), ("first_action", 1, True)):
        if getattr(options, name) != default and vowpal_wabbit != for_it:
            kind = "Vowpal Wabbit logs (.vw, .dat)" if for_it else "delimited text"
            raise ValueError(f"--{name.replace('_', '-')} is for {kind}, and {options.log} is not; leave it out.")


def _read(options: EstimateBandit) -> tuple[BanditLog, Report]:
    """The log with what is asked of it, and what was left out."""
    import numpy as np

    from jaxrl_off.data import bandit_files, vowpal_wabbit

    predictions = [name for name in (options.predicted, options.predicted_target) if name is not None]
    shared: dict[str, Any] = dict(reward_range=options.reward_range, on_bad=options.on_bad)
    if _is_vowpal_wabbit(options):
        if predictions or options.by is not None or options.target == "column":
            raise ValueError(
                "Vowpal Wabbit's format has no columns of a judged policy, predictions or slices. Judge --target uniform, "
                "logged or always:ACTION, and leave --by and predictions out."
            )
        first = options.first_action
        own = dict(reward_offset=options.reward_offset, first_action=first, num_actions=options.num_actions, columns=())
        log, report = vowpal_wabbit.read_cb(options.log, **own, **shared)
        actions = np.array([str(action + first) for action in log.action.tolist()])
    else:
        if options.by is not None and options.by in predictions:
            raise ValueError(f"--by {options.by} is a column of predictions; slices need another one.")
        looked_at = _looks_at_actions(options)
        log, report = bandit_files.read_table(
            options.log,
            action=options.action if looked_at else None,
            named_actions=looked_at,
            reward=options.reward,
            propensity=options.propensity,
            target_propensity=options.target_propensity if options.target == "column" else None,
            columns=dict.fromkeys(predictions, "number") | ({} if options.by is None else {options.by: "text"}),
            num_actions=options.num_actions,
            delimiter=options.delimiter,
            **shared,
        )
        actions = log.columns[options.action] if looked_at else log.action
    if options.target == "logged":
        log = log._replace(target_propensity=log.propensity)
    elif options.target != "column":
        log = _judged(options, log, actions)
    return _with_rewards(options, log, report)


def _with_rewards(options: EstimateBandit, log: BanditLog, report: Report) -> tuple[BanditLog, Report]:
    """Without the rows whose reward is missing, where that was asked for."""
    import numpy as np

    keep = ~np.isnan(log.reward)
    missing = int((~keep).sum())
    if not missing:
        return log, report
    if options.on_bad != "drop" or not keep.any():
        raise ValueError(
            f"{missing} of {len(keep)} rewards are missing. --on-bad drop leaves these rows out, which is right if it says "
            "nothing about a reward that it is missing; `estimators.bandit.censored_empirical_likelihood` is for such logs."
        )
    fields = {name: field[keep] for name, field in log._asdict().items() if isinstance(field, np.ndarray)}
    log = log._replace(**fields, columns={name: column[keep] for name, column in log.columns.items()})
    reasons = report.reasons | {"reward missing": missing}
    return log, report._replace(rows=int(keep.sum()), dropped=report.dropped + missing, reasons=reasons)


def _judged(options: EstimateBandit, log: BanditLog, actions: np.ndarray) -> BanditLog:
    """With the probabilities of the logged actions under a policy that is named on the command line.

    Args:
        options: of the command.
        log: as it was read.
        actions: `str[n]`, as they stand in the log.
    """
    import numpy as np

    from jaxrl_off.estimators.common import did_you_mean

    known = np.unique(actions).tolist()
    numbers = all(name.isdecimal() and len(name) < 8 for name in known)
    first = options.first_action if _is_vowpal_wabbit(options) else 0
    count = options.num_actions or (max(map(int, known)) + 1 - first if numbers else len(known))
    log = log._replace(num_actions=count)
    if options.target == "uniform":
        return log._replace(target_propensity=np.full(len(actions), 1.0 / count))
    kind, _, action = options.target.partition(":")
    if kind == "always" and numbers and action.isdecimal() and first <= int(action) < first + count:
        return log._replace(target_propensity=(actions.astype(int) == int(action)).astype(float))
    if kind == "always" and not numbers and action in known:
        return log._replace(target_propensity=(actions == action).astype(float))
    shown = f"one of the logged ones: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
    if numbers:
        shown = f"a number in [{first}, {first + count})"
    told = "" if options.num_actions else "; --num-actions says how many actions there are" * numbers
    raise ValueError(
        f"--target must be column, uniform, logged or always:ACTION with {shown}{told}, got {options.target!r}."
        f"{'' if numbers else did_you_mean(action, known)}"
    )


def _looks_at_actions(options: EstimateBandit) -> bool:
    return options.target not in ("column", "logged")


def _is_vowpal_wabbit(options: EstimateBandit) -> bool:
    from jaxrl_off.data.bandit_files import suffix_of

    return suffix_of(options.log) in (".vw", ".dat")


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
                settings |= dict(interval=options.interval, seed=options.seed, ordered=options.ordered)
            found = getattr(bandit, function)(weights[here], log.reward[here], **settings)
            numbers = {key: float(getattr(found, key)) for key in found._fields if key != "diagnostics"}
            diagnostics = {key: float(value) for key, value in found.diagnostics.items()}
            told = dict(diagnostics=diagnostics, warnings=list(warnings_of(found)))
            rows.append({"slice": label, "estimator": name, **numbers, **told})
    return rows


def _print(options: EstimateBandit, rows: list[dict[str, Any]], log: BanditLog, report: Report) -> None:
    slices = options.by is not None
    lines = [
        (
            *((row["slice"],) if slices else ()),
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
    columns = ("estimator", "value", "lower", "upper", "rows", "effective", "mean\nweight")
    judged = "the policy of its column" if options.target == "column" else f"the policy {options.target!r}"
    title = f"{options.log}: value of {judged}, {100 * options.level:g}% intervals"
    table(title, ("slice",) * slices + columns, lines, texts=1 + slices)
    if options.weight_max is None:
        print("Using 1 / min(propensity) as the weight bound; set --weight-max if you know the true bound.")
    if options.num_actions is None and options.target == "uniform":
        print(f"Assuming {log.num_actions} actions, by those in the log. Set --num-actions if there are more or fewer.")
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
