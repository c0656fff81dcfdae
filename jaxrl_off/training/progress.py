"""What a run shows of itself, and how it listens for Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxrl_off.training.metrics import Row


def say(message: str) -> None:
    """A line for the user, on standard error."""
    print(f"jaxrl_off: {message}", file=sys.stderr, flush=True)


class Interruption:
    """Turns the first Ctrl-C into a wish and the second into `KeyboardInterrupt`.

    An exception in the middle of a log interval would lose the state, whose buffers the interval has been given.
    Outside the main thread, which gets no signals, nothing changes.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        """Not yet pressed."""
        self.asked = False

    def __enter__(self) -> Interruption:
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt("stopped at once; resuming goes on from the last checkpoint.")
        self.asked = True
        say(
            "stopping after this log interval; press Ctrl-C again to stop at once and lose what came since the last "
            "one."
        )


@contextmanager
def display(
    rows: int, start: int, label: str, size: Callable[[int], int], unit: str, describe: Callable[[Row], str]
) -> Iterator[Callable[[int, Row], None]]:
    """Progress of a run: a bar on a terminal, otherwise a line per row.

    Args:
        rows: of the whole run.
        start: rows that are done.
        label: in front, for example the environment's name.
        size: `number -> int`, how much is done after a row.
        unit: of `size`.
        describe: `row -> str`.

    Returns:
        A context manager that gives `show(number, row)`, to be called with every row of metrics.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    begun = previous = time.perf_counter()

    def text(number: int, row: Row) -> str:
        nonlocal previous
        now = time.perf_counter()
        rate = (size(number) - size(number - 1)) / (now - previous)
        previous = now
        return f"{describe(row)}  {rate:,.0f} {unit}/s"

    if not Console().is_terminal:

        def print_line(number: int, row: Row) -> None:
            shown = text(number, row)
            left = (previous - begun) / (number - start) * (rows - number)
            print(f"{label}  {size(number):,} of {size(rows):,} {unit}  {shown}  {left:,.0f} s left", flush=True)

        yield print_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(label, total=rows, completed=start, text="compiling")
        yield lambda number, row: bar.update(task, completed=number, text=text(number, row))


@contextmanager
def fitting(label: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Progress of a fit: a bar on a terminal, otherwise a line for every tenth; gives the `progress` of `Reference.fit`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    def describe(metrics: dict[str, float]) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())

    if not Console().is_terminal:
        tenths = 0

        def print_line(step: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal tenths
            if 10 * step // total > tenths:
                tenths = 10 * step // total
                print(f"{label}  {step:,}/{total:,}  {describe(metrics)}", flush=True)

        yield print_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(label, total=None, text="compiling")
        yield lambda step, total, metrics: bar.update(task, completed=step, total=total, text=describe(metrics))
