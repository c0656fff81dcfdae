"""What a room registers: how its paper is run, and what the report says of it.

A room is a folder of `benchmarks` with a module `paper` in it, whose `PAPER` is a `Paper`. `benchmarks.reproduce` and
`benchmarks.report` find rooms by looking for such modules; a new room needs no other registration.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Content = dict[str, Any]


class Claim(NamedTuple):
    """A row of the table that opens the report.

    Attributes:
        statement: what is claimed; the same words at every preset, which makes presets one row.
        paper: the paper's number, or why there is none.
        ours: our number with its uncertainty.
        verdict: `reproduced`, `not reproduced` or `undecided`; `holds` or `fails` for criteria of our own.
    """

    statement: str
    paper: str
    ours: str
    verdict: str


def no_claims(content: Content) -> list[Claim]:
    """Of a section that compares nothing with the paper."""
    del content
    return []


class Section(NamedTuple):
    """A section of the report, one for each benchmark.

    Attributes:
        benchmark: name of the benchmark in its result files.
        title: heading.
        html: `(content of a file, folder for plots) -> HTML` without a heading.
        claims: claims that the file bears on.
    """

    benchmark: str
    title: str
    html: Callable[[Content, Path], str]
    claims: Callable[[Content], list[Claim]] = no_claims


class Paper(NamedTuple):
    """A paper and its benchmarks.

    Attributes:
        name: of its room, and of `--paper`.
        title: title, authors and year.
        year: papers are run and reported in the order of their years.
        presets: by name, the `main` of each benchmark that belongs to it, and the preset of its own that is run.
        sections: of the report, in order.
    """

    name: str
    title: str
    year: int
    presets: Mapping[str, tuple[tuple[Callable[[list[str]], None], str], ...]]
    sections: tuple[Section, ...]


def papers() -> dict[str, Paper]:
    """All papers by name."""
    rooms = sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/paper.py"))
    found = [importlib.import_module(f"benchmarks.{room}.paper").PAPER for room in rooms]
    return {paper.name: paper for paper in sorted(found, key=lambda paper: paper.year)}
