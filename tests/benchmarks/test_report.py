"""The report: one table of all claims, from committed results and made-up ones."""

import json
import re

import pytest

from benchmarks import report
from benchmarks.dapo.claims import claims as dapo_claims
from benchmarks.machinery import verdicts
from benchmarks.machinery.papers import papers
from benchmarks.machinery.report_parts import command_today


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The claims of the committed results, beside those of a fresh quick and a fresh cpu run; few resamples are enough here."""
    patch = pytest.MonkeyPatch()
    patch.setattr(verdicts, "RESAMPLES", 50)
    results = tmp_path_factory.mktemp("results")
    content = json.loads((report.COMMITTED / "el_intervals_cpu.json").read_text())
    for preset in ("quick", "cpu"):
        (results / f"el_intervals_{preset}.json").write_text(json.dumps(content | {"preset": preset}))
    found = report.read_results(results)
    yield found, report.claims_part(list(papers().values()), found)
    patch.undo()


def test_presets_stand_side_by_side(page):
    found, html = page
    assert [result.column for result in found["el_intervals"]] == ["cpu", "quick", "cpu, committed"]
    header = re.search(r"<tr>(<th>.*?)</tr>", html).group(1)
    names = re.findall(r"<th>(.*?)</th>", header)
    assert names == [
        "paper",
        "claim",
        "the paper&#x27;s number",
        "ours: quick",
        "ours: cpu",
        "ours: cpu, committed",
        "section",
    ]


def test_claims_are_those_of_the_committed_results(page):
    """Numbers of ours come from the files, one row a claim, with a link to a section that there is."""
    _, html = page
    rows = re.findall(r"<tr>(<td>.*?)</tr>", html)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert len({(row[0], row[1]) for row in cells}) == len(cells) > 40
    assert {row[0] for row in cells} == {name.replace("_", " ") for name in papers()}
    links = {link for row in cells for link in re.findall(r"href='#(.*?)'", row[-1])}
    assert links <= {section.benchmark for paper in papers().values() for section in paper.sections}
    by_claim = {row[1]: row for row in cells}
    covers = by_claim["95 % intervals of empirical likelihood cover as often as the authors&#x27;, at every n"]
    assert covers[2].startswith("0.945 to 0.996")
    assert all("reproduced" in cell and "0.941 to 0.998" in cell for cell in covers[3:6])
    best = by_claim["the best point of STAR&#x27;s grid has a lower error than every baseline"]
    assert best[3] == best[5] == "-"
    assert "12 of 12 cases" in best[4]
    assert "4 of 12 cases" in by_claim["the median of STAR&#x27;s grid has a lower error than every baseline"][4]
    assert "not reproduced" in by_claim["data-scarce: PPO+DA beats PPO (relative return)"][4]
    assert "147/68/44" in next(row[4] for claim, row in by_claim.items() if "better than IPS" in claim)


def test_every_committed_file_has_a_section_and_a_command_that_there_is():
    known = {section.benchmark for paper in papers().values() for section in paper.sections}
    for path in report.COMMITTED.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["benchmark"] in known, path.name
        module = command_today(content["provenance"]["command"]).split(" ")[2]
        assert (report.COMMITTED.parents[1] / f"{module.replace('.', '/')}.py").exists(), module


def test_a_page_of_one_section(tmp_path, monkeypatch):
    content = json.loads((report.COMMITTED / "el_speed.json").read_text())
    (tmp_path / "el_speed.json").write_text(json.dumps(content))
    monkeypatch.setattr(report, "COMMITTED", tmp_path / "none")
    text = report.write_report(tmp_path).read_text()
    assert "<a href='#el_speed'>" in text
    assert "<h3 id='el_speed'>" in text
    assert "python -m benchmarks.empirical_likelihood.speed" in text
    assert "star_ope" not in text


def test_two_seeds_decide_nothing(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 20)
    content = json.loads((report.COMMITTED / "dapo_minatar_cpu.json").read_text())
    assert {claim.verdict for claim in dapo_claims(content)} == {"reproduced", "not reproduced", "undecided"}
    few = [result | {"runs": result["runs"][:2]} for result in content["final"]]
    assert {claim.verdict for claim in dapo_claims(content | {"final": few})} == {"undecided"}
