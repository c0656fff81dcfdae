"""Speed of the KL-regularised actor-critic against peers, and of the Gaussian process behind N-PPAC.

`python -m benchmarks.nppac.speed [--quick] [--output FILE]`

1. Gradient updates of SAC, two critics and a policy of 2 x 256 ReLU units, batches of 256, 17 observations and 6 actions, Adam
   3e-4, learned temperature, tau 0.005, the policy and the targets moved at every update: ours, sbx's and rejax's, with batches
   drawn from a full replay of 100,000 transitions, each in its own way (`updates`), and on batches drawn before (`learner`).
   GFLOP/s count the matrix products that such an update cannot do without, and are compared with this machine's float32
   matrix product. One whole training on Pendulum-v1 against rejax, with scores.
2. N-PPAC's updates (the moments of pi_0 stored in the replay, a sampled KL, fixed temperature) against SAC's.
3. The Gaussian process: a query of 256 points, the steps of a fit with and without threads in LAPACK, one whole fit.
4. The whole loop on HalfCheetah-v5 through Gymnasium, one update a step: SAC against sbx, in two schedules, and N-PPAC.

Libraries live in processes of their own and take turns; ratios are of runs of one round. Processor time, over all threads of a
process, stands beside wall clock. Where the libraries do not do the same work:

* rejax draws without replacement, by sorting random numbers for its whole buffer; ours and sbx's with replacement.
* sbx draws in NumPy, all batches of a call at once; `one a call` is what its `learn` does by default.
* ours reports twelve metrics of every update (eighteen with a reference), sbx four of the last, rejax none.
* ours moves the policy by the critics of before the update, as rejax does (policy first); sbx by those of after it.
* losses of rejax and sbx are half of ours, which Adam does not see; rejax's temperature loss is in alpha, not log alpha;
  initial weights are each library's own.
* on Pendulum rejax runs on gymnax 0.0.9, which cannot tell a time limit from an end and does not bootstrap there.

The first run makes `.venv-peers` (see `benchmarks.dapo.speed`) and `.venv-sbx` with sbx and the torch it needs for import.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks.dapo.speed import REJAX, matrix_product_rate
from benchmarks.machinery.results import provenance
from benchmarks.machinery.turns import (
    CLOCKS,
    ROOT,
    Record,
    Worker,
    peer_python,
    publish,
    ratios,
    speed_command,
    spread,
    summary,
    take_turns,
    times,
)
from benchmarks.nppac.gp_worker import QUERIES, QUERY_SIZE
from benchmarks.nppac.sac_worker import ACTIONS, BATCH, CRITICS, LOOP, OBSERVATIONS, PENDULUM, UPDATES, WIDTHS

PEERS = Path(__file__).parent
# sbx only imports torch. Its default build is large; a build for CPU alone is enough.
SBX = ((f"jax=={jax.__version__}", "gymnasium[mujoco]", "sbx-rl==0.28.0"),)
REPORTED = ("rejax", "gymnax", "sbx-rl", "stable-baselines3", "torch")
BARS = {"sbx": "2.0", "rejax": "1.0", "nppac": "costs at most 1.1 times", "query": "at most 60 ms"}


def flops_per_update() -> int:
    """Floating-point operations of the matrix products of one SAC update.

    Forward: the policy at s' and s; every critic at (s', a'), (s, a) and (s, a_pi). Backward: weights and hidden layers of
    critics and policy, and through the critics to a_pi.
    """

    def products(inputs: int, outputs: int) -> tuple[int, int]:
        sizes = (inputs, *WIDTHS, outputs)
        layers = [a * b for a, b in itertools.pairwise(sizes)]
        return sum(layers), sum(layers[1:])

    policy, policy_hidden = products(OBSERVATIONS, 2 * ACTIONS)
    critic, critic_hidden = products(OBSERVATIONS + ACTIONS, 1)
    forward = 2 * policy + 3 * CRITICS * critic
    backward = policy + policy_hidden + CRITICS * (critic + critic_hidden)
    to_action = CRITICS * (critic_hidden + ACTIONS * WIDTHS[0])
    return 2 * BATCH * (forward + backward + to_action)


def ratio(record: Record, above: str, below: str, what: str = "runs") -> str:
    """`median (range)` of the ratios of a round, by wall clock and by processor time."""
    by_clock = []
    for clock in CLOCKS:
        by_clock.append(spread(summary(ratios(record, above, below, what, clock))))
    return f"{by_clock[0]}; processor time {by_clock[1]}"


def rate(record: Record, name: str, count: int) -> float:
    """`count` over the median seconds of a run."""
    return count / statistics.median(times(record, name))


def versus(record: Record, label: str, count: int, ours: str, theirs: str, bar: str = "") -> list[str]:
    """A row of the table that compares rates."""
    rates = [f"{rate(record, name, count):,.0f}" for name in (ours, theirs)]
    return [label, *rates, ratio(record, theirs, ours), bar]


def update_rows(record: Record, peak: float) -> list[list[str]]:
    """Rows of parts 1 and 2."""
    rows = []
    for kind, how in (("updates", "drawn from a replay"), ("learner", "drawn before")):
        for peer in ("sbx", "rejax"):
            label = f"SAC, updates/s, batches {how}, against {peer}"
            rows.append(versus(record, label, UPDATES, f"ours {kind}", f"{peer} {kind}", BARS[peer]))
        rates = {
            name: rate(record, f"{name} {kind}", UPDATES) * flops_per_update() * 1e-9
            for name in ("ours", "sbx", "rejax")
        }
        shares = ", ".join(f"{name} {100 * value / peak:.0f} %" for name, value in rates.items())
        others = ", ".join(f"{name} {rates[name]:.0f}" for name in ("sbx", "rejax"))
        rows.append(
            [f"SAC, GFLOP/s, batches {how}", f"{rates['ours']:.0f}", others, f"of the matrix product: {shares}", ""]
        )
        pair = (f"ours nppac_{kind}", f"ours {kind}")
        rates_ = [f"{rate(record, name, UPDATES):,.0f}" for name in pair]
        costs = f"costs {ratio(record, *pair)}"
        rows.append([f"N-PPAC, updates/s, batches {how}, against our SAC", *rates_, costs, BARS["nppac"]])
    label = "SAC, updates/s, against sbx with one update a call"
    rows.append(versus(record, label, UPDATES, "ours updates", "sbx one_a_call", BARS["sbx"]))
    for peer in ("sbx", "rejax"):
        names = ("ours updates", f"{peer} updates")
        seconds = [f"{statistics.median(times(record, name, 'compilations')):.1f}" for name in names]
        rows.append([f"compile, s, against {peer}", *seconds, ratio(record, *reversed(names), "compilations"), ""])
    return rows


def training_rows(record: Record) -> list[list[str]]:
    """Rows of the whole training on Pendulum-v1."""
    names = ("ours training", "rejax training")
    scores = [f"{statistics.median(record[name]['scores']):.0f}" for name in names]
    learned = all(min(record[name]["scores"]) >= PENDULUM["goal"] for name in names)
    verdict = f"{'all' if learned else 'not all'} runs above {PENDULUM['goal']:.0f}"
    return [
        versus(record, "SAC on Pendulum-v1, steps/s, against rejax", PENDULUM["steps"], *names, BARS["rejax"]),
        ["SAC on Pendulum-v1, mean return after training", *scores, verdict, ""],
    ]


def train_whole(workers: list[Worker], repeats: int) -> Record:
    """Whole runs on Pendulum-v1 in turn, each judged."""
    record: Record = {f"{worker.library} training": {"runs": [], "scores": []} for worker in workers}
    for worker in workers:
        worker.ask("compile", "training")
    for seed in range(repeats):
        for worker, entry in zip(workers, record.values(), strict=True):
            entry["runs"].append(worker.ask("run", "training", seed))
            entry["scores"].append(worker.ask("score", "training")["score"])
    return record


def gaussian_process(repeats: int, points: dict[str, int]) -> dict[str, Any]:
    """Part 3; the whole fit runs with one thread in LAPACK."""
    environments = {"one thread": {"OPENBLAS_NUM_THREADS": "1"}, "all threads": None}
    workers = {
        name: Worker(sys.executable, name, script=PEERS / "gp_worker.py", environment=environment)
        for name, environment in environments.items()
    }
    steps = [f"gradient {points['gradient']}", f"condition {points['condition']}"]
    record = take_turns([(worker, task) for task in steps for worker in workers.values()], repeats)
    one, fit = workers["one thread"], f"fit {points['fit']}"
    record |= take_turns([(one, f"query {points['query']}")], repeats)
    one.ask("compile", fit)
    whole = one.ask("run", fit) | {"conditioning_seconds": one.ask("score", fit)["score"]}
    for worker in workers.values():
        worker.close()
    return {"points": points, "record": record, "fit": whole}


def gaussian_process_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows of part 3."""
    record, points, whole = result["record"], result["points"], result["fit"]
    rows = []
    for task, label in (("gradient", "a step of the hyperparameters"), ("condition", "conditioning")):
        names = [f"{threads} {task} {points[task]}" for threads in ("one thread", "all threads")]
        seconds = [f"{statistics.median(times(record, name)):.2f}" for name in names]
        label = f"exact fit, {label}, {points[task]:,} points, s: one LAPACK thread, all"
        rows.append([label, *seconds, ratio(record, *reversed(names)), ""])
    milliseconds = summary([1e3 * s / QUERIES for s in times(record, f"one thread query {points['query']}")])
    label = f"query of {QUERY_SIZE} points, process of {points['query']:,}, ms"
    rows.append([label, spread(milliseconds, 1), "", "", BARS["query"] if points["query"] == 4000 else ""])
    rest = whole["seconds"] - whole["conditioning_seconds"]
    parts = f"hyperparameters {rest:.0f} s, conditioning {whole['conditioning_seconds']:.0f} s; compilation included"
    rows.append([f"exact fit, {points['fit']:,} points, s", f"{whole['seconds']:.0f}", "", parts, ""])
    return rows


def loop_rows(record: Record) -> list[list[str]]:
    """Rows of part 4."""
    steps, where = LOOP["steps"], f"on {LOOP['environment']}, steps/s,"
    many, one = "4 lanes of 32 steps, then 128 updates", "one lane, an update after each step"
    return [
        versus(record, f"SAC {where} {many}, against sbx", steps, "ours loop", "sbx loop"),
        versus(record, f"SAC {where} {one}, against sbx", steps, "ours step_loop", "sbx step_loop", BARS["sbx"]),
        versus(record, f"N-PPAC {where} {many}, against our SAC", steps, "ours nppac_loop", "ours loop"),
    ]


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of the packages of `REPORTED` in a peer's environment."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    out = subprocess.run([str(python), "-c", code, *REPORTED], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def main() -> None:
    """Command line; see the module."""
    options = speed_command(
        __doc__, "throughput_kl", "two repeats instead of seven, and smaller processes"
    ).parse_args()
    repeats, few = (2, 2) if options.quick else (7, 4)
    points = dict(gradient=1000, condition=2000, query=4000, fit=5000)
    if options.quick:
        points = dict.fromkeys(points, 1000)

    pythons = {
        "ours": Path(sys.executable),
        "rejax": peer_python(ROOT / ".venv-peers", REJAX),
        "sbx": peer_python(ROOT / ".venv-sbx", SBX),
    }
    source = provenance()
    for peer in ("rejax", "sbx"):
        for name, found in peer_versions(pythons[peer]).items():
            source["versions"][f"{name} ({peer}'s)" if name in source["versions"] else name] = found
    peak = matrix_product_rate()
    ours, rejax, sbx = (Worker(python, name, script=PEERS / "sac_worker.py") for name, python in pythons.items())

    def turns(*programs: str) -> list[tuple[Worker, str]]:
        by_name = {worker.library: worker for worker in (ours, rejax, sbx)}
        return [(by_name[library], task) for library, task in (words.split() for words in programs)]

    print(f"updates: {repeats} rounds of ours, sbx, rejax ...", flush=True)
    updates = take_turns(
        turns("sbx updates", "ours updates", "rejax updates", "ours nppac_updates", "sbx one_a_call"),
        repeats,
        compilations=1 if options.quick else 2,
    )
    print("learners ...", flush=True)
    learners = take_turns(turns("sbx learner", "ours learner", "rejax learner", "ours nppac_learner"), repeats)
    print("whole training runs ...", flush=True)
    training = train_whole([ours, rejax], few)
    print("loops ...", flush=True)
    loops = turns("ours loop", "sbx loop", "ours nppac_loop", "ours step_loop", "sbx step_loop")
    loop = take_turns(loops, few)
    for worker in (ours, rejax, sbx):
        worker.close()
    print("the Gaussian process ...", flush=True)
    process = gaussian_process(few, points)
    content = {
        "benchmark": "throughput_kl",
        "provenance": source,
        "matrix_product_gflops": peak,
        "flops_per_update": flops_per_update(),
        "updates_per_run": UPDATES,
        "updates": updates | learners,
        "training": training,
        "loop": loop,
        "gaussian_process": process,
        "header": ["what", "ours", "the other", "ours faster by: median (range)", "bar"],
        "rows": [
            *update_rows(updates | learners, peak),
            *training_rows(training),
            *gaussian_process_rows(process),
            *loop_rows(loop),
        ],
    }
    publish(content, options.output)


if __name__ == "__main__":
    main()
