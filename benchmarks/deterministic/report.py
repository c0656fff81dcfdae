"""Tables, plots and the section of the report for deterministic policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.deterministic.names import CUMULATIVE, SHORT, expected_slope
from benchmarks.machinery.command import Table
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.report_parts import figure, pyplot, tables_part
from benchmarks.machinery.verdicts import ENOUGH, all_of, verdict


def tables(content: dict[str, Any]) -> list[Table]:
    """Title, header and rows of every part."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for case in content["results"]:
        parts.setdefault(case["part"], []).append(case)
    made = []
    for part, of in TABLES.items():
        if part in parts:
            made += of(parts[part])
    return made


def _number(row: dict[str, Any] | None) -> str:
    return "-" if row is None or row["mse"] is None else f"{row['mse']:.3g} ± {row['standard_error']:.1g}"


def _biased(row: dict[str, Any]) -> str:
    return "-" if row["bias"] is None else f"{row['bias']:+.3g} ({row['deviation']:.2g})"


def _slopes(cases: list[dict[str, Any]]) -> list[Table]:
    made = []
    for kind in ("value", "gradient"):
        lines = []
        for form in ("soft", "mixed"):
            chosen = [case for case in cases if case["form"] == form]
            for name in chosen[0]["slopes"] if chosen else ():
                if not name.startswith(kind):
                    continue
                method = name.removeprefix(f"{kind} ")
                cells = []
                for case in chosen:
                    found, rate = (
                        case["slopes"][name],
                        expected_slope(method, case["horizon"], gradient=kind == "gradient"),
                    )
                    shown = "-"
                    if found["slope"] is not None:
                        shown = f"{found['slope']:.2f} [{found['lower']:.2f}, {found['upper']:.2f}]"
                    cells.append(f"{shown}, rate {rate:.2f}")
                lines.append([SHORT[method], form, *cells])
        sizes = ", ".join(f"{n:,}" for n in cases[0]["sizes"])
        horizons = dict.fromkeys(case["horizon"] for case in cases)
        title = f"{kind}: slope of log MSE over log n, n = {sizes} [95 % bootstrap interval], beside the derived rate"
        made.append((title, ["estimator", "form", *(f"H = {horizon}" for horizon in horizons)], lines))
    return made


def _gradients(cases: list[dict[str, Any]]) -> list[Table]:
    methods = cases[0]["methods"]
    lines = [[SHORT[name], *(_number(case["methods"][name]) for case in cases)] for name in SHORT if name in methods]
    title = f"gradient at the best policy, H = 10, truth 0: mean squared error, {cases[0]['repetitions']} repetitions"
    return [(title, ["estimator", *(f"n = {case['count']:,}, h = {case['width']:.3f}" for case in cases)], lines)]


def _robustness(cases: list[dict[str, Any]]) -> list[Table]:
    made = []
    for case in cases:
        names = list(next(iter(case["cases"].values())))
        for kind in ("value", "gradient"):
            chosen = [name for name in names if name.startswith(kind)]
            lines = [[label, *(_biased(rows[name]) for name in chosen)] for label, rows in case["cases"].items()]
            title = (
                f"double robustness, {kind} of the smoothed policy: bias (deviation), n = {case['count']:,}, "
                f"H = {case['horizon']}, truth {case['truth'][kind]:.4g}, {case['repetitions']} repetitions"
            )
            header = ["nuisances", *(SHORT[name.removeprefix(f"{kind} ")] for name in chosen)]
            made.append((title, header, lines))
    return made


def _forms(cases: list[dict[str, Any]]) -> list[Table]:
    made = []
    for case in cases:
        names = list(next(iter(case["forms"].values())))
        lines = []
        for name in names:
            kind, method = name.split()
            lines.append([SHORT[method], kind, *(_number(rows[name]) for rows in case["forms"].values())])
        title = (
            f"where to smooth, h = 0.05: mean squared error, n = {case['count']:,}, H = {case['horizon']}, truths "
            f"{case['truth']['value']:.4g} and 0, {case['repetitions']} repetitions"
        )
        made.append((title, ["estimator", "of", *case["forms"]], lines))
    return made


def _learning(cases: list[dict[str, Any]]) -> list[Table]:
    first = cases[0]
    lines = [
        [
            SHORT[case["objective"]],
            f"{case['distance']:.4f} ± {case['distance_error']:.1g}",
            f"{case['regret']:.2g} ± {case['regret_error']:.1g}",
            f"{case['coverage']:.0%} (± {case['half_width']:.2g})",
        ]
        for case in cases
    ]
    title = (
        f"policies learned, n = {first['count']:,}, H = {first['horizon']}, {first['repetitions']} repetitions: from a "
        f"distance of {first['start_distance']:.3f} and a regret of {first['start_regret']:.2g}"
    )
    return [(title, ["objective", "|theta - 1|", "regret", "held-out 95 % intervals that hold (half width)"], lines)]


def _control(cases: list[dict[str, Any]]) -> list[Table]:
    made = []
    for case in cases:
        lines = [
            [
                row["policy"],
                f"{row['value']:.1f} [{row['lower']:.1f}, {row['upper']:.1f}]",
                f"{row['effective']:.2g}",
                f"{row['truth']:.1f} ± {row['truth_error']:.1g}",
            ]
            for row in case["rows"]
        ]
        header = ["policy", "held-out estimate [95 %]", "smallest effective sample size", "true value"]
        made.append((case["title"], header, lines))
    return made


TABLES = {
    "slopes": _slopes,
    "gradients": _gradients,
    "robustness": _robustness,
    "forms": _forms,
    "learning": _learning,
    "control": _control,
}


def deterministic_section(content: dict[str, Any], plots: Path) -> str:
    """All tables, and errors over n and learning curves as plots."""
    note = (
        "No table or figure of the paper was at hand: results stand beside truths in closed form and rates that were "
        "derived. Cumulative estimators have the bandwidth of their own rate, which hides variance behind bias."
    )
    drawing = figure(_curves(content), plots / f"deterministic_dr_{content['preset']}.png")
    return tables_part(note, tables(content)) + drawing


def claims(content: dict[str, Any]) -> list[Claim]:
    """Rates that do not depend on the horizon, double robustness, and policies that were learned."""
    found: list[Claim] = []
    cases = [case for case in content["results"] if case["part"] == "slopes" and case["form"] == "soft"]
    for kind, method, statement in (
        ("value", "marginal_doubly_robust", "the rate of marginal DR values does not depend on the horizon"),
        ("gradient", "marginal_doubly_robust", "the rate of marginal DR gradients does not depend on the horizon"),
        ("value", "cumulative_doubly_robust", "the rate of cumulative DR values falls with the horizon"),
    ):
        rates = [expected_slope(method, case["horizon"], gradient=kind == "gradient") for case in cases]
        rows = [case["slopes"][f"{kind} {method}"] for case in cases]
        if not rows or any(row["slope"] is None for row in rows):
            continue
        near = [
            verdict(row["lower"] - rate, row["upper"] - rate, "equal", 0.15)
            for row, rate in zip(rows, rates, strict=True)
        ]
        shown = ", ".join(f"{row['slope']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]" for row in rows)
        horizons = ", ".join(str(case["horizon"]) for case in cases)
        independent = "independent of the horizon (abstract); " if method.startswith("marginal") else ""
        theirs = f"{independent}derived exponent {_span(rates)}"
        found.append(Claim(statement, theirs, f"{shown} for H = {horizons}", all_of(near)))
    for case in content["results"]:
        if case["part"] == "robustness":
            bias = {name: row["value marginal_doubly_robust"]["bias"] for name, row in case["cases"].items()}
            wrong = ("q halved", "w = 1")
            if all(bias[name] is not None for name in (*wrong, "both wrong")):
                small = max(abs(bias[name]) for name in wrong) < 0.1 * abs(bias["both wrong"])
                shown = ", ".join(f"{bias[name]:+.2g} ({name})" for name in (*wrong, "both wrong"))
                statement = "with either q or w wrong, the bias of marginal DR is below a tenth of that with both wrong"
                theirs = "double robustness (abstract); the factor is ours"
                found.append(Claim(statement, theirs, f"bias {shown}", "reproduced" if small else "not reproduced"))
    learned = {case["objective"]: case for case in content["results"] if case["part"] == "learning"}
    ours = learned.get("marginal_doubly_robust")
    for other in ("marginal_importance_sampling", "cumulative_doubly_robust"):
        if ours and other in learned:
            theirs = learned[other]
            gain = theirs["regret"] - ours["regret"]
            error = 1.96 * (theirs["regret_error"] ** 2 + ours["regret_error"] ** 2) ** 0.5
            found.append(
                Claim(
                    f"policies learned on marginal DR have a lower regret than on {SHORT[other]}",
                    "the authors' experiment; no number was at hand",
                    f"{ours['regret']:.2g} ± {ours['regret_error']:.1g} against "
                    f"{theirs['regret']:.2g} ± {theirs['regret_error']:.1g}",
                    verdict(gain - error, gain + error, "greater") if ours["repetitions"] >= ENOUGH else "undecided",
                )
            )
    return found


def _span(rates: list[float]) -> str:
    """One number, or the first and the last."""
    return f"{rates[0]:.2f}" if rates[0] == rates[-1] else "-4 / (H + 4)"


def _curves(content: dict[str, Any]) -> Any:
    plt = pyplot()
    found = [case for case in content["results"] if case["part"] == "slopes"]
    horizons = list(dict.fromkeys(case["horizon"] for case in found))
    drawing, axes = plt.subplots(3, len(horizons), figsize=(4.2 * len(horizons), 10), squeeze=False)
    for row, kind in enumerate(("value", "gradient")):
        for column, horizon in enumerate(horizons):
            axis = axes[row][column]
            cases = [case for case in found if case["horizon"] == horizon]
            for case in cases:
                for i, method in enumerate(SHORT):
                    errors = case["errors"].get(f"{kind} {method}")
                    if errors and (case["form"] == "soft" or method not in CUMULATIVE):
                        style = "o-" if case["form"] == "soft" else "s--"
                        axis.plot(case["sizes"], errors, f"C{i}{style}", label=f"{SHORT[method]}, {case['form']}")
            sizes = cases[0]["sizes"]
            start = cases[0]["errors"][f"{kind} marginal_doubly_robust"][0]
            rate = expected_slope("marginal_doubly_robust", horizon, gradient=kind == "gradient")
            axis.plot(sizes, [start * (n / sizes[0]) ** rate for n in sizes], "k:", label="marginal rate")
            axis.set(title=f"{kind}, H = {horizon}", xscale="log", yscale="log", xlabel="trajectories")
    axes[0][0].set_ylabel("mean squared error")
    for case in content["results"]:
        if case["part"] == "learning":
            axes[2][0].plot(case["curve"], label=SHORT[case["objective"]])
    axes[2][0].set(title="policies learned", xlabel="step", ylabel="mean |theta - 1|")
    axes[2][0].legend()
    for axis in axes[2][1:]:
        axis.axis("off")
    drawing.tight_layout()
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return drawing
