"""What the contests of empirical likelihood on labelled data share: data sets, loggers, logs, learners, and who wins.

Data sets are those of "Empirical Likelihood for Contextual Bandits" (37 of its 40; `ds_<number>_<classes>.vw.gz` in a folder,
by default `shared/data/bandit_vw` beside the checkout), or four that scikit-learn ships. Rows are put in a random order (seed
45, as the authors), the first 10,000 are kept and split in three: a logging policy learns on the first part, and from there on
logs what it did without learning; a target policy begins as the logging one and learns from the log of the second part; the
third judges. All is repeated with other logged actions (60 times in the paper), from the same logging policy.

Where we differ from the authors, who ran Vowpal Wabbit: see `jaxrl_off.envs.labelled_bandit`; features are standardised.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machinery.jobs import digest, pairs
from benchmarks.machinery.papers import Claim
from benchmarks.machinery.verdicts import bootstrap_interval, verdict

SHARED = Path(__file__).parents[3] / "shared" / "data" / "bandit_vw"
SHIPPED = ("iris", "wine", "breast_cancer", "digits")
LOGGERS: dict[str, dict[str, Any]] = {
    "epsilon 0.05": dict(kind="epsilon_greedy", epsilon=0.05),
    "epsilon 0.1": dict(kind="epsilon_greedy", epsilon=0.1),
    "epsilon 0.25": dict(kind="epsilon_greedy", epsilon=0.25),
    "bag 10": dict(kind="bag", members=10),
    "bag 32": dict(kind="bag", members=32),
    "cover 10": dict(kind="cover", members=10),
    "cover 32": dict(kind="cover", members=32),
}
PASSES = 4
_LARGEST = 10_000
_ROWS, _COLUMNS = (1_600, _LARGEST), (8, 16, 48, 128)  # programs are compiled for these sizes


@dataclasses.dataclass(frozen=True)
class Contest:
    """One logger on data sets of one padded size, a job of `machinery.jobs.run_all`.

    Attributes:
        study: which contest.
        logger: key of `LOGGERS`.
        files: data sets: files, or names of `SHIPPED`.
        padded: rows, columns and labels.
        repetitions: of the log.
        settings: further ones of the study, as sorted pairs.
    """

    study: str
    logger: str
    files: tuple[str, ...]
    padded: tuple[int, int, int]
    repetitions: int
    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Content hash, the file name of the result."""
        return digest(dataclasses.asdict(self) | {"files": [Path(file).name for file in self.files]})

    @property
    def cost(self) -> float:
        """Numbers touched, to start the longest first."""
        rows, columns, labels = self.padded
        options = LOGGERS[self.logger]
        members = options.get("members", 1) * (labels if options["kind"] == "cover" else 1)
        return len(self.files) * rows * columns * members

    method = property(lambda self: self.logger)
    environment = property(lambda self: ", ".join(Path(file).name for file in self.files))


class DataSet(NamedTuple):
    """Rows in their final order, padded.

    Attributes:
        name: its own.
        features: `float32[rows, columns]`.
        labels: `int32[rows]`.
        num_labels: K.
        size: rows that are not padding.
    """

    name: str
    features: np.ndarray
    labels: np.ndarray
    num_labels: int
    size: int


class Log(NamedTuple):
    """Repetitions of what a logging policy did; `[n, R]`."""

    actions: Any
    rewards: Any
    propensities: Any


def contests(
    study: str, folder: Path, repetitions: int, chosen: Iterable[str], loggers: Iterable[str], **settings: Any
) -> list[Contest]:
    """Jobs of one logger and one padded size each.

    Args:
        study: label.
        folder: of data sets; those of scikit-learn if there is none.
        repetitions: of every log.
        chosen: stems of the files that are wanted; none for all.
        loggers: keys of `LOGGERS`.
        **settings: of the study.
    """
    chosen = set(chosen)
    files = [str(path) for path in sorted(folder.glob("ds_*.vw.gz")) if not chosen or path.name.split(".")[0] in chosen]
    groups: dict[tuple[int, int, int], list[str]] = {}
    for file in files or SHIPPED:
        features, _, num_labels = _read(file)
        rows = next(size for size in _ROWS if size >= min(len(features), _LARGEST))
        columns = next(size for size in (*_COLUMNS, features.shape[1]) if size >= features.shape[1])
        groups.setdefault((rows, columns, num_labels), []).append(file)
    return [
        Contest(study, logger, tuple(group), padded, repetitions, pairs(settings))
        for padded, group in groups.items()
        for logger in loggers
    ]


@functools.cache
def _read(file: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Features, labels and number of classes K, which is at least the number in the file's name, as in the authors' code."""
    if file in SHIPPED:
        import sklearn.datasets

        features, labels = getattr(sklearn.datasets, f"load_{file}")(return_X_y=True)
        return features, labels, int(labels.max()) + 1
    from jaxrl_off.data.vowpal_wabbit import read_labelled

    read = read_labelled(file, columns="order")
    return read.features, read.labels, max(read.num_labels, int(Path(file).name.split(".")[0].split("_")[2]))


def load(file: str, padded: tuple[int, int, int]) -> DataSet:
    """Read, standardise, put in order, cut and pad."""
    from jaxrl_off.envs.labelled_bandit import standardise

    features, labels, num_labels = _read(file)
    order = np.random.RandomState(45).permutation(len(labels))[:_LARGEST]
    features, labels = standardise(features)[order], labels[order]
    shape = padded[0] - len(labels), padded[1] - features.shape[1]
    return DataSet(
        Path(file).name.split(".")[0],
        np.pad(features, [(0, shape[0]), (0, shape[1])]),
        np.pad(labels, (0, shape[0])).astype(np.int32),
        num_labels,
        len(labels),
    )


class Programs(NamedTuple):
    """The compiled steps of a contest, for one logger and one padded size.

    Attributes:
        train: `(key, features, labels, size, passes) -> state` of a logging policy that learned on the first `size` rows.
        record: `(keys [R], state, features, labels) -> Log` of all rows.
        learn: `(keys [R], states, features, log, importances [n, R], start, stop) -> states` after one pass over some rows, of
            which those are learned from where the greedy action is the logged one.
        greedy: `(states, features) -> int32[R, n]`.
    """

    train: Callable[..., Any]
    record: Callable[..., Log]
    learn: Callable[..., Any]
    greedy: Callable[..., Any]


def programs_of(logger: Any) -> Programs:
    """Programs of a logging policy, and of a target policy of the same kind."""
    import jax
    import jax.numpy as jnp

    from jaxrl_off.envs.labelled_bandit import sample_decisions

    def train(key: Any, features: Any, labels: Any, size: Any, passes: Any) -> Any:
        def body(i: Any, state: Any) -> Any:
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, i))
            x = features[i % size]
            made = sample_decisions(act_key, logger.probabilities(state, x)[None], labels[i % size][None])
            return logger.update(learn_key, state, x, made.action[0], made.reward[0], made.propensity[0])

        return jax.lax.fori_loop(0, size * passes, body, logger.init(features.shape[1]))

    def record(keys: Any, state: Any, features: Any, labels: Any) -> Log:
        probabilities = jax.vmap(logger.probabilities, (None, 0))(state, features)

        def once(key: Any) -> Log:
            made = sample_decisions(key, probabilities, labels)
            return Log(made.action, made.reward, made.propensity)

        return jax.vmap(once, out_axes=1)(keys)

    def best(state: Any, x: Any) -> Any:
        return jnp.argmax(logger.probabilities(state, x))

    def learn(keys: Any, states: Any, features: Any, log: Log, importances: Any, start: Any, stop: Any) -> Any:
        def body(i: Any, states: Any) -> Any:
            def update(key: Any, state: Any, action: Any, reward: Any, importance: Any) -> Any:
                used = jnp.where(best(state, features[i]) == action, importance, 0.0)
                return logger.update(jax.random.fold_in(key, i), state, features[i], action, reward, 1.0 / used)

            return jax.vmap(update)(keys, states, log.actions[i], log.rewards[i], importances[i])

        return jax.lax.fori_loop(start, stop, body, states)

    def greedy(states: Any, features: Any) -> Any:
        return jax.lax.map(lambda state: jax.vmap(best, (None, 0))(state, features), states)

    return Programs(jax.jit(train), jax.jit(record), jax.jit(learn, donate_argnums=1), jax.jit(greedy))


def copies(state: Any, count: int) -> Any:
    """A state for every repetition."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), state)


def matched_weights(greedy: Any, actions: Any, propensities: Any, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """`float64[R, n]` twice: weights of the greedy policies, and what they are where they agree with the log."""
    full = np.minimum(1.0 / np.asarray(propensities, np.float64), largest)
    return np.where(np.asarray(greedy) == np.asarray(actions), full, 0.0), full


def margin(results: Iterable[dict[str, Any]], pair: str) -> tuple[float, float, float]:
    """Mean over data sets of wins less losses, as a share of logging policies; with an interval over data sets.

    Logging policies of one data set share its rows, so that data sets are what is resampled.
    """
    points: dict[str, list[float]] = {}
    for row in results:
        points.setdefault(row["data"], []).append({"win": 1.0, "loss": -1.0, "tie": 0.0}[row["pairs"][pair]["verdict"]])
    return bootstrap_interval(lambda x: float(x[0].mean()), [np.array([np.mean(x) for x in points.values()])])


def contest_claim(statement: str, paper: Iterable[str], results: list[dict[str, Any]], pair: str) -> Claim:
    """That a method wins more often than it loses.

    Args:
        statement: the claim.
        paper: the authors' `wins/ties/losses`, added up here; empty where there are none.
        results: of the contest.
        pair: key of their `pairs`.
    """
    totals = [sum(numbers) for numbers in zip(*(map(int, text.split("/")) for text in paper), strict=True)]
    theirs = f"{'/'.join(map(str, totals))} on 40 data sets, 7 logging policies" if totals else "not in the paper"
    value, low, high = margin(results, pair)
    counts = tally(row["pairs"][pair]["verdict"] for row in results)
    ours = f"{counts}; wins less losses {value:+.2f} [{low:+.2f}, {high:+.2f}] of a contest"
    return Claim(f"{statement} (wins/ties/losses)", theirs, ours, verdict(low, high, "greater"))


def compare(gains: np.ndarray) -> dict[str, float | str]:
    """Who wins, by the paper's rule: the mean of paired differences is 0 within two standard errors, or it is not."""
    mean, error = float(np.mean(gains)), float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
    margin = max(1e-8, 2.0 * error)
    return {
        "mean": mean,
        "standard_error": error,
        "verdict": "win" if mean > margin else "loss" if mean < -margin else "tie",
    }


def tally(verdicts: Iterable[str]) -> str:
    """`wins/ties/losses`."""
    verdicts = list(verdicts)
    return "/".join(str(verdicts.count(name)) for name in ("win", "tie", "loss"))
