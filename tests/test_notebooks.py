"""Notebooks run from top to bottom, at the smallest sizes that show what they say, and show right values.

They run in this process, cell by cell, in a name space of their own. The cell with the tag `parameters` holds all sizes; a test
puts smaller ones in their place after it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = ("dapo", "deterministic_policies", "empirical_likelihood", "nppac", "off_policy_evaluation")


def run(name, **sizes):
    """Run a notebook; returns its name space. `sizes` replace those of its parameters."""
    space = {"__name__": name}
    for number, cell in enumerate(json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines(keepends=True)
        source = "".join(line for line in lines if not line.startswith("%"))
        exec(compile(source, f"{name}.ipynb, cell {number}", "exec"), space)  # noqa: S102
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(sizes) <= set(space), f"{name}.ipynb has no parameters {set(sizes) - set(space)}"
            space |= sizes
    return space


@pytest.fixture(autouse=True)
def _without_a_screen(monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_all_notebooks_are_run_here_and_valid():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
    nbformat = pytest.importorskip("nbformat")
    for name in NOTEBOOKS:
        nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
