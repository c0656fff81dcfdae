"""One self-contained HTML page from the result files: fresh ones in `results/`, committed ones in `benchmarks/results/`.

`python -m benchmarks.report` writes `results/report.html`, and the plots as PNG in `results/plots/`. The page opens with one
table of all claims of all papers, a column for every preset of which there are results; contents stand on the left.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machinery.papers import Claim, Paper, Section, papers
from benchmarks.machinery.report_parts import table, verdict_cell, where

COMMITTED = Path(__file__).parent / "results"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; color: #1c2430;
  display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; box-sizing: border-box; padding: 1.5rem 1rem;
  background: #f2f5f8; font-size: 13px; line-height: 1.35; }
nav a { display: block; padding: .15rem 0; color: #1f4e8c; text-decoration: none; } nav b { display: block; margin-top: .9rem; }
main { padding: 1rem 2rem 4rem; } h2 { margin-top: 3rem; border-top: 2px solid #d9dee5; padding-top: 1rem; }
h3 { margin-top: 2.5rem; } h4 { margin-bottom: .3rem; }
.presets { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } .presets > div { flex: 1 1 30rem; min-width: 0; }
.preset { display: inline-block; background: #1f4e8c; color: #fff; border-radius: 3px; padding: 0 .5rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: 13.5px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d9dee5; text-align: left; vertical-align: top; }
th { background: #f2f5f8; } img { max-width: 100%; } code { background: #f2f5f8; padding: 0 .2rem; }
.reproduced, .better, .holds { color: #11734b; font-weight: 600; } .not, .worse, .fails { color: #b3261e; font-weight: 600; }
.undecided { color: #7a5c00; }
.where { color: #5a6675; font-size: 13px; }
"""


class Result(NamedTuple):
    """A result file.

    Attributes:
        column: its preset; of a committed file beside a fresh one of the same preset, `PRESET, committed`.
        content: of the file.
    """

    column: str
    content: dict[str, Any]


def read_results(results: Path) -> dict[str, list[Result]]:
    """Result files by benchmark, fresh ones first."""
    found: dict[str, list[Result]] = {}
    for folder in (results, COMMITTED):
        for path in sorted(folder.glob("*.json")):
            content = json.loads(path.read_text())
            mine = found.setdefault(content["benchmark"], [])
            column = content.get("preset", "measured")
            taken = column in {result.column for result in mine}
            mine.append(Result(f"{column}, committed" if taken else column, content))
    return found


def write_report(results: Path) -> Path:
    """Build the page from all result files; returns its path."""
    plots = results / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    found, rooms = read_results(results), list(papers().values())
    body = ["<h1>jaxrl_off: results</h1>", claims_part(rooms, found)]
    contents = ["<a href='#claims'><b>All claims</b></a>"]
    for paper in rooms:
        sections = [section for section in paper.sections if section.benchmark in found]
        if sections:
            body.append(f"<h2 id='{paper.name}'>{html.escape(paper.title)}</h2>")
            contents.append(f"<b><a href='#{paper.name}'>{html.escape(paper.title.split(' (')[0])}</a></b>")
        for section in sections:
            body.append(_section(section, found[section.benchmark], plots))
            contents.append(f"<a href='#{section.benchmark}'>{html.escape(section.title)}</a>")
    head = f"<meta charset='utf-8'><title>jaxrl_off: results</title><style>{STYLE}</style>"
    page = f"<nav>{''.join(contents)}</nav><main>{''.join(body)}</main>"
    path = results / "report.html"
    path.write_text(f"<!doctype html><html lang='en'><head>{head}</head><body>{page}</body></html>")
    return path


def _section(section: Section, found: list[Result], plots: Path) -> str:
    """A heading, and what each preset found, side by side."""
    columns = [
        f"<div><p><span class='preset'>{html.escape(result.column)}</span></p>{where(result.content)}"
        f"{section.html(result.content, plots)}</div>"
        for result in found
    ]
    heading = f"<h3 id='{section.benchmark}'>{html.escape(section.title)}</h3>"
    return f"{heading}<div class='presets'>{''.join(columns)}</div>"


def claims_part(rooms: list[Paper], found: dict[str, list[Result]]) -> str:
    """The table of all claims, and what its verdicts mean."""
    order = ("quick", "smoke", "cpu", "long", "gpu", "paper")
    rows: list[tuple[Paper, Section, str, str, dict[str, Claim]]] = []
    columns: set[str] = set()
    for paper in rooms:
        for section in paper.sections:
            by_statement: dict[str, dict[str, Claim]] = {}
            for result in found.get(section.benchmark, ()):
                for claim in section.claims(result.content):
                    by_statement.setdefault(claim.statement, {})[result.column] = claim
                    columns.add(result.column)
            rows += [
                (paper, section, statement, next(iter(claims.values())).paper, claims)
                for statement, claims in by_statement.items()
            ]
    shown = sorted(columns, key=lambda column: (order.index(column.split(",")[0]), column))
    lines = []
    for paper, section, statement, theirs, claims in rows:
        cells = []
        for column in shown:
            claim = claims.get(column)
            text = "-" if claim is None else f"{verdict_cell(claim.verdict)[0]}<br>{html.escape(claim.ours)}"
            cells.append((text,))
        link = (f"<a href='#{section.benchmark}'>{html.escape(section.title)}</a>",)
        lines.append([paper.name.replace("_", " "), statement, theirs, *cells, link])
    counts = _counts(rows, shown)
    note = (
        "<p><i>Reproduced</i> and <i>not reproduced</i> mean that an interval (95 %, or the rule that stands in the section) "
        "excludes the opposite; <i>undecided</i> that the data do not tell, or fewer than five seeds; <i>holds</i> and "
        "<i>fails</i> belong to criteria of our own where the paper has no number.</p>"
    )
    header = ["paper", "claim", "the paper's number", *(f"ours: {column}" for column in shown), "section"]
    return f"<h2 id='claims'>All claims</h2>{note}{counts}{table(header, lines)}"


def _counts(rows: list[tuple[Paper, Section, str, str, dict[str, Claim]]], columns: list[str]) -> str:
    """How many claims have which verdict, by preset."""
    lines = []
    for column in columns:
        verdicts = [claims[column].verdict for *_, claims in rows if column in claims]
        shown = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))
        lines.append(f"<li><b>{html.escape(column)}</b>: {shown}</li>")
    return f"<ul>{''.join(lines)}</ul>"


def main() -> None:
    """Command line; see the module."""
    print(write_report(Path("results")))


if __name__ == "__main__":
    main()
