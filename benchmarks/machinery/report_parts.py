"""Pieces that the sections of the report are made of."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any


def table(header: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; cells that are already markup are tuples of one string."""

    def cell(value: Any) -> str:
        return value[0] if isinstance(value, tuple) else html.escape(str(value))

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{head}</tr>{lines}</table></div>"


def figure(drawing: Any, path: Path) -> str:
    """Save a matplotlib figure as PNG and return it as an inline image."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(drawing)
    path.write_bytes(buffer.getvalue())
    return f"<img alt='{path.stem}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


# modules that have moved since results were committed with the old name in their command
MOVED = {
    "dapo_minatar": "dapo.minatar",
    "dapo_atari": "dapo.atari",
    "throughput": "dapo.speed",
    "nppac_pathology": "nppac.pathology",
    "nppac_adroit": "nppac.adroit",
    "nppac_locomotion": "nppac.locomotion",
    "throughput_kl": "nppac.speed",
    "el_intervals": "empirical_likelihood.intervals",
    "el_estimation": "empirical_likelihood.estimation",
    "el_learning": "empirical_likelihood.learning",
    "el_softmax": "empirical_likelihood.softmax",
    "el_speed": "empirical_likelihood.speed",
    "star_ope": "star.figure3",
    "ope_coverage": "star.coverage",
    "ope_suite": "star.suite",
    "ope_speed": "star.speed",
    "fqe_speed": "star.fqe_speed",
    "deterministic_dr": "deterministic.study",
    "deterministic_speed": "deterministic.speed",
}


def command_today(command: str) -> str:
    """The command of a result file, with the name that its module has now."""
    words = command.split(" ")
    for place, word in enumerate(words):
        room, _, name = word.partition(".")
        if room == "benchmarks" and name in MOVED:
            words[place] = f"benchmarks.{MOVED[name]}"
    return " ".join(words)


def where(content: dict[str, Any]) -> str:
    """Hardware, versions, command and date of a result file."""
    p = content["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in p["versions"].items())
    spent = f"; {content['compute_seconds'] / 60:.0f} process-minutes" if "compute_seconds" in content else ""
    return (
        f"<p class='where'><code>{html.escape(command_today(p['command']))}</code><br>{p['date']}; {html.escape(p['device'])}, "
        f"{html.escape(p['processor'])}, {p['cores']} cores; Python {p['python']}, {versions}{spent}</p>"
    )


def pyplot() -> Any:
    """Matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def verdict_cell(verdict: str) -> tuple[str]:
    """A verdict in its colour, as a cell of `table`."""
    return (f"<span class='{verdict.split()[0]}'>{html.escape(verdict)}</span>",)


def tables_part(note: str, tables: list[tuple[str, list[str], list[list[str]]]]) -> str:
    """A paragraph, and tables with title, header and rows as benchmarks print them."""
    parts = [f"<p>{note}</p>"]
    for heading, header, lines in tables:
        parts += [f"<h4>{html.escape(heading)}</h4>", table(header, lines)]
    return "".join(parts)


def speed_part(content: dict[str, Any], plots: Path) -> str:
    """The table of a benchmark of speed."""
    del plots
    return table(content["header"], content["rows"])
