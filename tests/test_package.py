"""What holds for the package as a whole: documentation, direction of imports, examples that run, a light import."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxrl_off"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
# Imports run from a higher number to a lower or equal one (DESIGN: types -> ops -> ... -> training -> cli).
LEVELS = {
    "_lazy": 0,
    "types": 0,
    "pytrees": 0,
    "ops": 1,
    "distributions": 2,
    "networks": 2,
    "envs": 2,
    "data": 2,
    "references": 3,
    "agents": 4,
    "estimators": 4,
    "llm": 4,
    "training": 5,
    "cli": 6,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
    """`(module, names)` of every import of ours, at any depth of the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("jaxrl_off", "benchmarks"):
            found.append((node.module, [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found += [(a.name, []) for a in node.names if a.name.split(".")[0] in ("jaxrl_off", "benchmarks")]
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_order_of_the_design(path):
    name = module_name(path)
    if name == "jaxrl_off":
        return
    own = LEVELS[name.split(".")[1]]
    for module, names in imports_of(path):
        assert not module.startswith("benchmarks"), f"{name} imports {module}: benchmarks stand above the package"
        targets = [module] if module != "jaxrl_off" else [f"jaxrl_off.{n}" for n in names if n in LEVELS]
        for target in targets:
            assert LEVELS[target.split(".")[1]] <= own, f"{name} (level {own}) imports {target} against the order"
        if module != name:
            private = [n for n in names if n.startswith("_") and not n.startswith("__")]
            assert not private, f"{name} imports private {private} of {module}"


def test_imports_close_no_circle():
    known = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        targets = set()
        for module, names in imports_of(path):
            targets |= {f"{module}.{n}" for n in names if f"{module}.{n}" in known} or {module}
        graph[module_name(path)] = targets & known - {module_name(path)}
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import circle: {' -> '.join((*trail[trail.index(node) :], node))}"
        if node not in done:
            for target in graph[node]:
                visit(target, (*trail, node))
            done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_public_name_has_a_docstring(path):
    module = importlib.import_module(module_name(path))
    assert module.__doc__, f"{module.__name__} has no docstring"
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert (thing.__doc__ or "").strip(), f"{module.__name__}.{name} has no docstring"
            # What NamedTuple and dataclass make up themselves is no docstring.
            assert not re.match(rf"{name}\(.*\)$", thing.__doc__.strip(), re.DOTALL), f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if (
                    inspect.isfunction(function)
                    and not method.startswith("_")
                    and function.__module__ == module.__name__
                ):
                    assert function.__doc__, f"{module.__name__}.{name}.{method} has no docstring"


@pytest.mark.parametrize("path", [p for p in MODULES if ">>> " in p.read_text()], ids=module_name)
def test_examples_in_docstrings_run(path):
    result = doctest.testmod(importlib.import_module(module_name(path)), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_example_of_the_readme_runs():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks, "the README has no Python example"
    for block in blocks:
        scope: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["returns"].shape[0] == 4
    assert float(scope["returns"][:, -1].min()) > 300.0  # of 500; a random policy keeps the pole up for about 20 steps


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", readme)) | {"reproduce", "test"}:
        assert f"\n{target}:" in makefile, f"the README names make {target}, which the Makefile does not have"


def test_import_is_light():
    """`import jaxrl_off` brings in nothing heavy: not even jax's users flax, gymnax, orbax, rich."""
    code = "import sys, jaxrl_off; print(' '.join(m for m in ('flax', 'gymnax', 'orbax', 'rich', 'brax') if m in sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == ""


def test_types_are_declared():
    """Type checkers read the annotations of an installed package only where this file is part of it (PEP 561)."""
    assert (PACKAGE / "py.typed").is_file()


def attribute(name: str) -> object:
    thing = importlib.import_module("jaxrl_off")
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


PUBLIC = [name for name in map(module_name, MODULES) if not re.search(r"\._", name)]
# Functions that a package exports under the name of the module they live in; the module is reached by an import statement.
SHADOWED = {
    "jaxrl_off.cli.collect",
    "jaxrl_off.cli.estimate_trajectories",
    "jaxrl_off.estimators.bandit.cressie_read",
    "jaxrl_off.references.ensemble",
    "jaxrl_off.references.uniform",
    "jaxrl_off.training.run",
}


@pytest.mark.parametrize("package", [module_name(p) for p in MODULES if p.stem == "__init__"])
def test_every_public_name_is_listed_and_resolves(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert dir(module) == sorted(module.__all__) or package == "jaxrl_off.cli"
    if package != "jaxrl_off.cli":  # a program: its functions take the command line
        below = {name.removeprefix(f"{package}.") for name in PUBLIC if name.startswith(f"{package}.")}
        missing = {name for name in below if "." not in name} - set(module.__all__)
        assert not missing, f"{package}.__all__ lacks its modules {sorted(missing)}"


def test_every_public_module_is_reachable_by_attribute_alone():
    """In a fresh process, so that no import statement of another module has bound what is asked for."""
    code = f"""
import types, jaxrl_off
for name in {PUBLIC!r}:
    thing = jaxrl_off
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    if isinstance(thing, types.ModuleType):
        assert thing.__name__ == name
    else:
        print(name)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(output.split()) == SHADOWED


def test_functions_win_over_modules_of_the_same_name():
    for name in SHADOWED:
        module = importlib.import_module(name)
        assert attribute(name) is getattr(module, name.rsplit(".", 1)[1]), name
    star = importlib.import_module("jaxrl_off.estimators.trajectory.reward_processes.star")
    assert attribute("jaxrl_off.estimators.trajectory.star") is star.star
    assert attribute("jaxrl_off.estimators.trajectory.reward_processes.star") is star


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "jaxrl_off.estimator",
            "module 'jaxrl_off' has no attribute 'estimator'. Did you mean 'estimators'\\? It has: .*agents",
        ),
        ("jaxrl_off.ops.return", "module 'jaxrl_off.ops' has no attribute 'return'. Did you mean 'returns'"),
        ("jaxrl_off.estimators.trajectory.stars", "Did you mean 'star'\\?"),
        ("jaxrl_off.zzz", "has no attribute 'zzz'. It has: "),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(asked, message):
    with pytest.raises(AttributeError, match=message):
        attribute(asked)
