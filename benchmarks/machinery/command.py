"""The command line of a benchmark, and its tables on the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.machinery.jobs import default_workers

# title, header, rows
Table = tuple[str, list[str], list[list[str]]]


def main(
    name: str,
    presets: Mapping[str, Any],
    run: Callable[..., dict[str, Any]],
    tables: Callable[[dict[str, Any]], list[Table]],
    *,
    description: str | None,
    cache: str,
    folders: Mapping[str, Path | None] | None = None,
    resumable: bool = False,
    arguments: list[str] | None = None,
) -> None:
    """Read the command line, run a preset, print its tables.

    Args:
        name: of the benchmark; results go to `results/NAME_PRESET.json` unless the command names another file.
        presets: sizes by name.
        run: `(preset's name, *, workers, cache, output, **folders) -> content` runs a preset and writes the file.
        tables: tables of that content.
        description: docstring of the benchmark's module.
        cache: folder in `results/cache` for finished jobs; benchmarks that share jobs share it.
        folders: further options that name a folder, each with its default; passed on to `run`.
        resumable: whether `run` takes `only_finished`; the command then has a flag `--finished`.
        arguments: those of the command; None for this process's own.
    """
    parser = command_line(description, presets, cache)
    for folder, default in (folders or {}).items():
        text = f"folder of {folder}; default: {default or 'none: what ships with this repository is used'}"
        parser.add_argument(f"--{folder}", type=Path, default=default, metavar="DIR", help=text)
    if resumable:
        text = "run nothing: write the results of the jobs that are in the cache, and what is missing"
        parser.add_argument("--finished", action="store_true", help=text)
    options = parser.parse_args(arguments)
    output = options.output or Path(f"results/{name}_{options.preset}.json")
    places = {folder: getattr(options, folder) for folder in folders or {}}
    if resumable:
        places["only_finished"] = options.finished
    workers = default_workers(options.workers)
    content = run(options.preset, workers=workers, cache=options.cache, output=output, **places)
    for table in tables(content):
        print_rows(*table)
    print(f"written: {output}")


def command_line(description: str | None, presets: Iterable[str], cache: str) -> argparse.ArgumentParser:
    """What every benchmark of many jobs takes: `--preset`, `--workers`, `--cache` and `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(presets), default="quick", help="sizes; default: quick")
    workers = "processes; default: one a core on CPU, 0 (all in this process) on an accelerator"
    parser.add_argument("--workers", type=int, default=None, help=workers)
    cached = Path("results/cache") / cache
    parser.add_argument("--cache", type=Path, default=cached, help=f"folder of finished jobs; default: {cached}")
    parser.add_argument("--output", type=Path, default=None, help="file of the results")
    return parser


def print_rows(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on the terminal."""
    # as text, because rich takes square brackets for styles
    table = RichTable(title=Text(title))
    for column in header:
        table.add_column(Text(column), overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    Console(width=200).print(table)
