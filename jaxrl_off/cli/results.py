"""Estimates of a command as a JSON file with a plot beside it, written whole or not at all."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any


def check_output(output: Path) -> None:
    """Refuse, before anything is computed, what could not be written.

    Raises:
        ValueError: if the name does not end in .json.
        FileExistsError: if it, or the plot beside it, is there.
        ImportError: if there is nothing to draw with.
    """
    if output.suffix != ".json":
        raise ValueError(f"the output must end in .json, got {output}.")
    taken = [str(path) for path in (output, output.with_suffix(".png")) if path.exists()]
    if taken:
        raise FileExistsError(f"{' and '.join(taken)} exist and are not overwritten; give another name.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--output draws a plot, for which matplotlib is not installed ({error}): "
            'pip install "jaxrl_off[bench]", or leave --output out.'
        ) from error


def write_results(output: Path, content: dict[str, Any], rows: list[dict[str, Any]], *, level: float) -> None:
    """Write estimates and a plot of them.

    Args:
        output: checked by `check_output`.
        content: what the numbers depend on; an `output` among it is left out.
        rows: dictionaries with `slice`, `estimator`, `value`, `lower`, `upper` and others.
        level: of the intervals.
    """
    content = {name: value for name, value in content.items() if name != "output"} | {"rows": rows}
    picture = output.with_suffix(".png")
    text = json.dumps(_jsonable(content), indent=1, allow_nan=False)
    _write({output: text.encode(), picture: _plot(rows, level)})
    print(f"written: {output} and {picture}")


def _plot(rows: list[dict[str, Any]], level: float) -> bytes:
    """Estimates with their intervals, slices below one another, as PNG."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["estimator"] for row in rows))
    labels = list(dict.fromkeys(row["slice"] for row in rows))
    figure = Figure(figsize=(8.0, 1.2 + 0.3 * len(rows)))
    axis = figure.subplots()
    for row in rows:
        height = -labels.index(row["slice"]) - 0.7 * (names.index(row["estimator"]) + 0.5) / len(names)
        colour = f"C{names.index(row['estimator'])}"
        axis.plot([row["lower"], row["upper"]], [height, height], color=colour, linewidth=2.0)
        axis.plot(
            row["value"], height, "o", color=colour, label=row["estimator"] if row["slice"] == labels[0] else None
        )
    # a dollar sign in the log begins no formula
    axis.set_yticks([-i - 0.35 for i in range(len(labels))], labels, parse_math=False)
    axis.set_xlabel(f"value, {100 * level:g}% interval")
    axis.legend()
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def _jsonable(value: Any) -> Any:
    """The same for JSON, which has neither infinity nor NaN: these become null."""
    if isinstance(value, dict):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(files: dict[Path, bytes]) -> None:
    """Write files of one folder whole, or none of them."""
    temporary = {path: path.with_name(f".{path.name}.unfinished-{os.getpid()}") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path, unfinished in temporary.items():
            os.replace(unfinished, path)
    finally:
        for unfinished in temporary.values():
            unfinished.unlink(missing_ok=True)
