# SPDX-License-Identifier: Apache-2.0
"""No circle between modules: not at import time, not under TYPE_CHECKING, not by an import inside a function.

Modules in a circle can only be understood, moved and tested together. An import inside a function is allowed where it
saves start-up time, and counts here as every other one. A module's own packages, which Python runs before it, do not.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("longmem", "actors", "pipelines", "benchmarks")


def sources() -> dict[str, str]:
    """Return the source of each module by its name; a package is named like its folder."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: path.read_text(encoding="utf-8") for path, name in names.items()}


def imports_of(source: str, modules: Mapping[str, object]) -> set[str]:
    """Return those of `modules` that a source imports anywhere. `from package import module` imports the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Call) and isinstance(named := next(iter(node.args), None), ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            found |= {str(named.value)} if called in {"import_module", "__import__"} else set()
    return found & set(modules)


def circles(modules: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield circles of imports, each from its alphabetically first module on; none twice, and none if there is none."""
    imports = {name: imports_of(source, modules) - {name} for name, source in modules.items()}
    while imports:
        # a module that imports nothing that is left is in no circle
        free = {name for name, imported in imports.items() if not imported & imports.keys()}
        imports = {name: imported & imports.keys() for name, imported in imports.items() if name not in free}
        if free or not imports:
            continue
        way = [min(imports)]
        while (following := min(imports[way[-1]])) not in way:
            way.append(following)
        circle = way[way.index(following) :]
        first = circle.index(min(circle))
        yield circle[first:] + circle[:first]
        imports[circle[0]].discard(circle[1])


def test_no_modules_import_one_another() -> None:
    assert [" -> ".join([*circle, circle[0]]) for circle in circles(sources())] == []


@pytest.mark.parametrize(
    "line",
    [
        "import longmem.model.longmem",
        "from longmem.model import longmem",
        "from longmem.model.longmem import LongMem",
        "def f():\n    from longmem.model.longmem import LongMem",
        "if TYPE_CHECKING:\n    from longmem.model.longmem import LongMem",
        "importlib.import_module('longmem.model.longmem')",
    ],
)
def test_a_planted_circle_is_found(line: str) -> None:
    modules = sources()
    modules["longmem.scoring.text"] += f"\n{line}\n"
    assert ["longmem.model.longmem", "longmem.scoring.text"] in list(circles(modules))


def test_a_longer_circle_is_found() -> None:
    modules = {"a": "import b", "b": "from c import x", "c": "import d, a", "d": "", "e": "import a"}
    assert list(circles(modules)) == [["a", "b", "c"]]


def test_two_circles_are_found() -> None:
    modules = {"a": "import b", "b": "import a, c", "c": "import d", "d": "import c"}
    assert list(circles(modules)) == [["a", "b"], ["c", "d"]]


def test_a_shared_import_is_no_circle() -> None:
    assert list(circles({"a": "import b, c", "b": "import c", "c": "import json", "c.d": "from c import e"})) == []
