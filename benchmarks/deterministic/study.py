"""Kernelised doubly robust values and gradients of deterministic policies: the experiments of Kallus and Uehara (2020).

`python -m benchmarks.deterministic.study --preset quick|cpu [--workers N] [--output FILE]`

Settings are those of the authors' code; neither their figures nor numbers were at hand, so that what is found stands beside
truths in closed form and rates that were derived. All nuisances are fitted and cross-fitted, which theirs are not. Parts:

* slopes: of the mean squared error against n, for values and gradients, with the bandwidth of each estimator's own best rate
  (state noise 0.5, so that rewards cannot be known from states and actions);
* gradients: their `gradient.py`, errors of all gradients at the best policy;
* robustness: their `gradient2.py`, with noise in the nuisances, or with nuisances that are wrong;
* forms: their `gradient3.py` and `gradient4.py`, where to smooth;
* learning: their `all.py`, policies learned on each objective, and intervals on other data;
* control: Pendulum and MuJoCo's inverted pendulum, see `control`.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machinery
from benchmarks.deterministic.names import CUMULATIVE, MARGINAL
from benchmarks.deterministic.report import tables
from benchmarks.machinery.jobs import digest, pairs, rounded, run_all
from benchmarks.machinery.results import write_results
from benchmarks.machinery.verdicts import bootstrap_interval

PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(
        horizons=(5, 20),
        sizes=(250, 1000),
        repetitions=30,
        gradients=(200,),
        robustness=dict(count=800, horizon=10, repetitions=20),
        forms=((800, 10, 0.08),),
        learning=dict(count=400, horizon=10, repetitions=4),
        objectives=("marginal_doubly_robust", "marginal_importance_sampling"),
        control=(),
    ),
    "cpu": dict(
        horizons=(5, 10, 20, 50),
        sizes=(250, 750, 2250),
        repetitions=100,
        gradients=(200, 800),
        robustness=dict(count=1600, horizon=50, repetitions=50),
        forms=((800, 30, 0.05), (1600, 10, 0.08)),
        learning=dict(count=800, horizon=50, repetitions=8),
        objectives=(*CUMULATIVE, *MARGINAL, "deterministic_policy_gradient"),
        control=(("Pendulum", 4000), ("InvertedPendulum", 4000)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A job of `machinery.jobs.run_all`.

    Attributes:
        part: key of `RUNNERS`.
        settings: of that function, as sorted pairs.
        cost: rows and repetitions, to begin with the longest.
    """

    part: str
    settings: tuple[tuple[str, Any], ...]
    cost: float

    name = property(lambda self: digest([self.part, self.settings]))
    method = property(lambda self: str(dict(self.settings)))
    environment = property(lambda self: self.part)


def run_case(case: Case) -> dict[str, Any]:
    """The result of a case, with its labels."""
    started = time.perf_counter()
    found = RUNNERS[case.part](**dict(case.settings))
    return {"part": case.part, **dict(case.settings), "seconds": round(time.perf_counter() - started, 1), **found}


def repeated(function: Any, seed: int, repetitions: int, rows: int, *arguments: Any) -> dict[str, np.ndarray]:
    """`function(key, *arguments)` for many keys, as many at once as memory and caches like."""
    import jax

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), repetitions)
        together = max(1, min(repetitions, 50_000 // rows))
        program = _program(function, together)
        return jax.tree.map(np.asarray, program(keys, *arguments))


_PROGRAMS: dict[Any, Any] = {}


def _program(function: Any, together: int) -> Any:
    import jax

    if (function, together) not in _PROGRAMS:
        _PROGRAMS[function, together] = jax.jit(
            lambda keys, *given: jax.lax.map(lambda key: function(key, *given), keys, batch_size=together)
        )
    return _PROGRAMS[function, together]


def estimates(data: Any, process: Any, smoothing: Any, nuisances: Any, methods: tuple[str, ...]) -> dict[str, Any]:
    """Values and gradients by "value METHOD" and "gradient METHOD"."""
    from benchmarks.deterministic.process import log_density, policy
    from jaxrl_off.estimators import deterministic as det

    def density(observations: Any, actions: Any) -> Any:
        return log_density(process, observations, actions)

    options = dict(behaviour_at_target=density if smoothing.form == "point" else None)
    found = {}
    for method in methods:
        given = method, data, policy, process.gain, smoothing, nuisances
        if det.METHODS[method].valued:
            found[f"value {method}"] = det.evaluate(*given, **options).value
        found[f"gradient {method}"] = det.gradient(*given, **options).value
    return found


def fitted(data: Any, process: Any, smoothing: Any) -> Any:
    """Nuisances with derivatives."""
    from benchmarks.deterministic.process import log_density, policy
    from jaxrl_off.estimators import deterministic as det

    density = None
    if smoothing.form == "point":

        def density(observations: Any, actions: Any) -> Any:
            return log_density(process, observations, actions)

    return det.fit_nuisances(data, policy, process.gain, smoothing, gradient=True, behaviour_at_target=density)


def errors_of(values: np.ndarray, true: float) -> dict[str, Any]:
    """Mean squared error with its standard error, bias and its standard error, deviation."""
    squares, count = (values - true) ** 2, len(values)
    found = dict(
        mse=squares.mean(),
        standard_error=squares.std(ddof=1) / count**0.5,
        bias=values.mean() - true,
        deviation=values.std(ddof=1),
    )
    return {name: rounded(float(x)) for name, x in found.items()} | {"failed": int((~np.isfinite(values)).sum())}


def slope_of(sizes: tuple[int, ...], errors: list[np.ndarray]) -> dict[str, float | None]:
    """Slope of log mean squared error against log n by least squares, with a bootstrap interval over repetitions."""
    x = np.log(sizes) - np.mean(np.log(sizes))

    def slope(samples: list[np.ndarray]) -> float:
        return float(x @ np.log([sample.mean() for sample in samples]) / (x @ x))

    if not all(np.isfinite(sample).all() for sample in errors):
        return {"slope": None, "lower": None, "upper": None}
    value, low, high = bootstrap_interval(slope, errors)
    return {"slope": rounded(value), "lower": rounded(low), "upper": rounded(high)}


def slopes(horizon: int, form: str, sizes: tuple[int, ...], repetitions: int) -> dict[str, Any]:
    """Errors by n, and their slopes, at the bandwidth of each estimator's rate."""
    from benchmarks.deterministic.process import Process, simulate, truth
    from jaxrl_off.estimators import deterministic as det

    process = Process(horizon, 1.2, noise=0.5)
    true = dict(zip(("value", "gradient"), truth(process), strict=True))
    # cumulative estimators are the same in both forms but for v
    methods = MARGINAL + (CUMULATIVE if form == "soft" else ())
    errors: dict[str, list[np.ndarray]] = {}
    for count in sizes:

        def one(key: Any, width: Any, count: int = count) -> dict[str, Any]:
            data, smoothing = simulate(key, count, process), det.Smoothing(width, form=form, scale=1.0)
            return estimates(data, process, smoothing, fitted(data, process, smoothing), methods)

        found = {}
        for method in methods:
            for kind in true:
                width = det.rate_bandwidth(count, method=method, horizon=horizon, gradient=kind == "gradient")
                if width not in found:
                    found[width] = repeated(one, count, repetitions, count * horizon, width)
                values = found[width][f"{kind} {method}"]
                errors.setdefault(f"{kind} {method}", []).append((values - true[kind]) ** 2)
    return {
        "truth": true,
        "errors": {name: [rounded(float(x.mean())) for x in found] for name, found in errors.items()},
        "slopes": {name: slope_of(sizes, found) for name, found in errors.items()},
    }


def gradients(count: int, repetitions: int) -> dict[str, Any]:
    """Gradients at the best policy, where the truth is 0."""
    from benchmarks.deterministic.process import Process, policy, simulate, truth
    from jaxrl_off.estimators import deterministic as det

    process, width = Process(10, 1.0), (12.0 / count) ** 0.2
    smoothing = det.Smoothing(width, form="soft", scale=1.0)

    def one(key: Any) -> dict[str, Any]:
        data = simulate(key, count, process)
        nuisances = fitted(data, process, smoothing)
        found = estimates(data, process, smoothing, nuisances, tuple(det.METHODS))
        slope = det.fit_action_gradient(data, policy, process.gain, smoothing)
        plug_in = det.deterministic_policy_gradient(data, policy, process.gain, slope, nuisances).value
        return found | {"gradient deterministic_policy_gradient": plug_in}

    found, true = repeated(one, count, repetitions, count * 10), truth(process, width)[1]
    return {
        "width": rounded(width),
        "methods": {
            name.removeprefix("gradient "): errors_of(values, true)
            for name, values in found.items()
            if name.startswith("gradient")
        },
    }


def robustness(count: int, horizon: int, repetitions: int) -> dict[str, Any]:
    """Values and gradients where nuisances are noisy or wrong, against truths of the smoothed policy."""
    import jax

    from benchmarks.deterministic.process import Process, simulate, truth
    from jaxrl_off.estimators import deterministic as det

    # not the authors' gain of 1, where the gradient is 0, nor their h of 0.2 and no noise: states would have nearly the law of
    # the behaviour policy, so that w = 1 would be right, and q would be found exactly
    process, width = Process(horizon, 1.3, deviation=0.2), 0.14
    smoothing = det.Smoothing(width, form="soft", scale=1.0)
    columns = ("q", "v", "q_gradient", "v_gradient")

    def one(key: Any) -> dict[str, Any]:
        data_key, *keys = jax.random.split(key, 6)
        data = simulate(data_key, count, process)
        fit = fitted(data, process, smoothing)

        def noisy(name: str, key: Any) -> Any:
            column = getattr(fit, name)
            return column + jax.random.normal(key, column.shape)

        factor = jax.random.exponential(keys[-1], fit.ratio.shape)  # with mean 1, and never below 0
        changed = {name: noisy(name, key) for name, key in zip(columns, keys[:4], strict=True)}
        noisy_ratio = dict(ratio=factor * fit.ratio, ratio_gradient=factor[..., None] * fit.ratio_gradient)
        wrong = {name: 0.5 * getattr(fit, name) for name in columns}
        wrong_ratio = dict(ratio=fit.ratio * 0.0 + 1.0, ratio_gradient=fit.ratio_gradient * 0.0)
        cases = {
            "as fitted": {},
            "q noisy": changed,
            "w noisy": noisy_ratio,
            "both noisy": changed | noisy_ratio,
            "q halved": wrong,
            "w = 1": wrong_ratio,
            "both wrong": wrong | wrong_ratio,
        }
        return {
            case: estimates(data, process, smoothing, fit._replace(**other), MARGINAL) for case, other in cases.items()
        }

    found, true = repeated(one, count, repetitions, count * horizon), truth(process, width)
    true = dict(zip(("value", "gradient"), true, strict=True))
    return {
        "truth": true,
        "cases": {
            case: {name: errors_of(values, true[name.split()[0]]) for name, values in methods.items()}
            for case, methods in found.items()
        },
    }


def forms(count: int, horizon: int, noise: float, repetitions: int) -> dict[str, Any]:
    """Gradients and values by the form of smoothing, against truths of the policy itself."""
    from benchmarks.deterministic.process import Process, simulate, truth
    from jaxrl_off.estimators import deterministic as det

    process = Process(horizon, 1.0, noise=noise, deviation=0.3)
    true = dict(zip(("value", "gradient"), truth(process), strict=True))
    found = {}
    for form in ("soft", "point", "mixed"):
        smoothing = det.Smoothing(0.05, form=form, scale=1.0)

        def one(key: Any, smoothing: Any = smoothing) -> dict[str, Any]:
            data = simulate(key, count, process)
            fit = fitted(data, process, smoothing)
            return estimates(data, process, smoothing, fit, (*CUMULATIVE, *MARGINAL))

        values = repeated(one, count, repetitions, count * horizon)
        found[form] = {name: errors_of(x, true[name.split()[0]]) for name, x in values.items()}
    return {"truth": true, "forms": found}


def learning(count: int, horizon: int, objective: str, repetitions: int) -> dict[str, Any]:
    """Policies learned from gains of 1 to 1.2, how far from the best they are, and whether intervals on other data hold."""
    import jax

    from benchmarks.deterministic.process import Process, policy, simulate, truth
    from jaxrl_off.estimators import deterministic as det

    process = Process(horizon, 1.0)
    soft = det.Smoothing((3.0 / count) ** 0.2, form="soft", scale=1.0)
    mixed = det.Smoothing(det.rate_bandwidth(count, undersmooth=True), scale=1.0)

    def one(key: Any) -> dict[str, Any]:
        start_key, key, other = jax.random.split(key, 3)
        start = 1.0 + 0.2 * jax.random.uniform(start_key)
        options = dict(objective=objective, steps=70, learning_rate=0.02)
        learned = det.learn(simulate(key, count, process), policy, start, soft, **options)
        gain, kept = learned.parameters, simulate(other, count, process)
        fit = det.fit_nuisances(kept, policy, gain, mixed)
        judged = det.evaluate("marginal_doubly_robust", kept, policy, gain, mixed, fit, level=0.95)
        return {"start": start, "path": learned.path, "gain": gain, "lower": judged.lower, "upper": judged.upper}

    found = repeated(one, count, repetitions, count * horizon)
    best = truth(process)[0]
    value = np.array([truth(process, gain=gain)[0] for gain in found["gain"]])
    start = np.array([truth(process, gain=gain)[0] for gain in found["start"]])
    distance = np.abs(found["gain"] - 1.0)
    return {
        "distance": rounded(float(distance.mean())),
        "distance_error": rounded(float(distance.std(ddof=1) / repetitions**0.5)),
        "regret": rounded(float(np.mean(best - value))),
        "regret_error": rounded(float(np.std(best - value, ddof=1) / repetitions**0.5)),
        "start_distance": rounded(float(np.mean(np.abs(found["start"] - 1.0)))),
        "start_regret": rounded(float(np.mean(best - start))),
        "coverage": float(np.mean((found["lower"] <= value) & (value <= found["upper"]))),
        "half_width": rounded(float(np.mean(found["upper"] - found["lower"]) / 2.0)),
        "curve": [rounded(float(x)) for x in np.abs(found["path"] - 1.0).mean(axis=0)],
    }


def control(task: str, count: int) -> dict[str, Any]:
    """A controller learned from the log of a noisy one, see `control`."""
    from benchmarks.deterministic.control import control as learned

    return learned(task, count)


RUNNERS = {
    "slopes": slopes,
    "gradients": gradients,
    "robustness": robustness,
    "forms": forms,
    "learning": learning,
    "control": control,
}


def cases_of(preset: dict[str, Any]) -> list[Case]:
    """All jobs of a preset."""
    made, repetitions = [], preset["repetitions"]

    def add(part: str, cost: float, **settings: Any) -> None:
        made.append(Case(part, pairs(settings), cost))

    for horizon in preset["horizons"]:
        for form in ("soft", "mixed"):
            cost = sum(preset["sizes"]) * horizon * repetitions
            add("slopes", cost, horizon=horizon, form=form, sizes=preset["sizes"], repetitions=repetitions)
    for count in preset["gradients"]:
        add("gradients", count * 10 * repetitions, count=count, repetitions=repetitions)
    add("robustness", 1e6, **preset["robustness"])
    for count, horizon, noise in preset["forms"]:
        reps = min(60, repetitions)
        add("forms", count * horizon * reps, count=count, horizon=horizon, noise=noise, repetitions=reps)
    for objective in preset["objectives"]:
        add("learning", 1e7, objective=objective, **preset["learning"])
    for task, count in preset["control"]:
        add("control", 1e6, task=task, count=count)
    return made


def run(preset_name: str, *, workers: int, cache: Path, output: Path) -> dict[str, Any]:
    """Run a preset and write its JSON; returns what was written."""
    preset = PRESETS[preset_name]
    found = run_all(cases_of(preset), cache, workers=workers, title="deterministic policies", runner=run_case)
    return write_results(output, "deterministic_dr", preset_name, preset, found, found)


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module."""
    machinery.main(
        "deterministic_dr", PRESETS, run, tables, description=__doc__, cache="deterministic", arguments=arguments
    )


if __name__ == "__main__":
    main()
