# SPDX-License-Identifier: Apache-2.0
"""One folder per library and one direction of imports, with proof that each rule can be broken."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("longmem", "actors", "pipelines")
MAX_LINES = 400

ROOMS = {
    "ray": ("actors/",),
    "lancedb": ("longmem/store/lance/connection.py",),
    "obstore": ("longmem/store/object_files.py",),
    "lm_eval": ("longmem/evaluation/",),
    "faiss": ("longmem/retrieval/faiss_search.py",),
    "gguf": ("longmem/backbone/gguf.py",),
    "peft": ("longmem/backbone/adapter.py",),
    "datasets": ("longmem/text/dataset_rows.py",),
    "mlflow": ("pipelines/tracking/mlflow_tracker.py",),
    "wandb": ("pipelines/tracking/wandb_tracker.py",),
    "transformers": ("longmem/backbone/", "longmem/sidenet/"),
}

MODULES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str) -> Iterator[str]:
    """Yield the top-level packages that a module imports anywhere: at its head, in a function, or by a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(argument, ast.Constant):
                yield str(argument.value).split(".")[0]


# --- rooms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_its_room_only(library: str) -> None:
    importers = {name for name in MODULES if library in imported((ROOT / name).read_text(encoding="utf-8"))}
    assert importers, f"nothing imports {library}: has its room moved?"
    assert {name for name in importers if not name.startswith(ROOMS[library])} == set()


@pytest.mark.parametrize(
    "line",
    [
        "import ray",
        "import os, ray.util",
        "from ray import util",
        "from ray.util.state import list_actors",
        "def f():\n    import ray",
        "if TYPE_CHECKING:\n    from ray.actor import ActorHandle",
        "importlib.import_module('ray.util')",
        "__import__('ray')",
    ],
)
def test_the_scan_sees_every_way_to_import(line: str) -> None:
    assert "ray" in imported(line)


@pytest.mark.parametrize(
    "line", ["import arrayfire", "from actors import ray", "x = 'import ray'", "from .ray import y"]
)
def test_the_scan_sees_nothing_else(line: str) -> None:
    assert "ray" not in imported(line)


IMPORTS = """
import json, sys
heavy, seen = ("ray", "lancedb", "faiss"), {}
def look(step):
    seen[step] = [name for name in (*heavy, "torch", "transformers") if name in sys.modules]
import longmem
look("longmem")
from longmem import MemoryStore
with MemoryStore.open("memory://") as store:
    look("memory store")
import longmem.model.longmem
look("longmem.model.longmem")
import longmem.runtime.executor
look("longmem.runtime.executor")
from longmem import LongMem, LongMemConfig, Sampling, TextScores
assert LongMem is longmem.model.longmem.LongMem
assert set(longmem.__all__) <= set(dir(longmem))
for name in longmem.__all__:
    getattr(longmem, name)
look("all names")
import actors.config, pipelines.perplexity.job
look("pipelines.perplexity.job")
print(json.dumps(seen))
"""


def test_importing_longmem_loads_no_ray_lancedb_or_faiss(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    seen = json.loads(found.stdout.splitlines()[-1])
    assert {step: [name for name in names if name in ("ray", "lancedb", "faiss")] for step, names in seen.items()} == {
        step: [] for step in seen
    }
    assert seen["longmem"] == []
    assert "torch" in seen["longmem.model.longmem"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import longmem

    with pytest.raises(AttributeError, match="no attribute 'LongMen'"):
        longmem.LongMen  # noqa: B018


# --- the linters enforce the rules, and can fail ----------------------------------------------------------------


def run_tool(module_and_arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(module_and_arguments, capture_output=True, text=True, cwd=folder, timeout=120)


def lint_imports(folder: Path) -> tuple[dict[str, bool], str]:
    """Return whether each contract is kept, and the printed output."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports', '--no-cache']; "
    result = run_tool([sys.executable, "-c", code + "lint_imports_command()"], folder)
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)(?: \(.*\))?$", result.stdout, re.MULTILINE)
    kept = {name: verdict == "KEPT" for name, verdict in verdicts}
    assert kept, result.stdout + result.stderr
    assert (result.returncode == 0) == all(kept.values()), result.stdout
    return kept, result.stdout


def contracts() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return [each["name"] for each in tomllib.load(file)["tool"]["importlinter"]["contracts"]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources that a test may break and must restore."""
    folder = tmp_path_factory.mktemp("tree")
    for package in (*PACKAGES, "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "reference_model", "results")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@contextmanager
def added(tree: Path, violations: list[tuple[str, str]]) -> Iterator[list[str]]:
    """Add modules with one forbidden import each to the tree, yield their names, and remove them."""
    names = []
    try:
        for number, (folder, line) in enumerate(violations):
            names.append(f"{folder}/scratch_{number}.py")
            (tree / names[-1]).write_text(f'"""Scratch."""\n\n{line}\n')
        yield names
    finally:
        for name in names:
            (tree / name).unlink()


def test_the_arrows_point_one_way() -> None:
    assert lint_imports(ROOT)[0] == dict.fromkeys(contracts(), True)


VIOLATIONS = {
    "arrows point one way": [
        ("longmem", "import actors.config"),
        ("longmem", "import pipelines.job.prefetch"),
        ("longmem/text", "def f():\n    import benchmarks"),
        ("actors", "from pipelines import job"),
        ("pipelines", "import benchmarks"),
    ],
    "ray lives in actors": [
        ("longmem/memory", "import ray"),
        ("pipelines", "from ray.util import state"),
    ],
    "lancedb lives in longmem.store.lance.connection": [
        ("longmem/memory", "import lancedb"),
        ("actors", "import lancedb"),
        ("pipelines", "import lancedb"),
    ],
    "obstore lives in longmem.store.object_files": [
        ("longmem/memory", "import obstore"),
        ("pipelines", "from obstore.store import from_url"),
    ],
    "lm_eval lives in longmem.evaluation": [
        ("longmem", "import lm_eval"),
        ("longmem/memory", "from lm_eval.api.model import LM"),
        ("pipelines", "def f():\n    import lm_eval"),
    ],
    "faiss lives in longmem.retrieval.faiss_search": [
        ("longmem/retrieval", "import faiss"),
        ("actors", "def f():\n    import faiss"),
    ],
    "gguf lives in longmem.backbone.gguf": [
        ("longmem", "import gguf"),
        ("longmem/backbone", "def f():\n    from gguf import GGUFReader"),
        ("pipelines", "import gguf"),
    ],
    "peft lives in longmem.backbone.adapter": [
        ("longmem", "import peft"),
        ("longmem/memory", "def f():\n    from peft import PeftModel"),
        ("pipelines", "import peft"),
    ],
    "datasets lives in longmem.text.dataset_rows": [
        ("longmem/text", "import datasets"),
        ("longmem/memory", "def f():\n    from datasets import load_dataset"),
        ("pipelines", "import datasets"),
    ],
    "experiment trackers live in pipelines.tracking": [
        ("longmem", "import wandb"),
        ("pipelines", "def f():\n    import mlflow"),
        ("pipelines/tracking", "from mlflow.entities import Metric"),
    ],
    "transformers lives in longmem.backbone and longmem.sidenet": [
        ("longmem", "from transformers import AutoModel"),
        ("longmem/memory", "import transformers"),
        ("pipelines", "import transformers"),
    ],
}


def test_every_contract_has_a_test_that_breaks_it() -> None:
    assert sorted(contracts()) == sorted(VIOLATIONS)


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_contract_can_be_broken(tree: Path, contract: str) -> None:
    with added(tree, VIOLATIONS[contract]) as names:
        kept, printed = lint_imports(tree)
    assert kept == {name: name != contract for name in contracts()}
    for name in names:
        assert f"{name.removesuffix('.py').replace('/', '.')} -> " in printed


def ruff(folder: Path) -> list[tuple[str, str]]:
    """Return (path, code) of every banned import."""
    arguments = ["check", "--select", "TID251", "--no-cache", "--output-format", "json", *PACKAGES]
    result = run_tool([sys.executable, "-m", "ruff", *arguments], folder)
    found = json.loads(result.stdout)
    assert (result.returncode == 0) == (not found), result.stderr
    return [(Path(each["filename"]).relative_to(folder).as_posix(), each["code"]) for each in found]


def test_no_banned_import_is_in_the_tree(tree: Path) -> None:
    assert ruff(tree) == []


def test_ruff_sees_every_banned_import(tree: Path) -> None:
    """Check folders that are not a room: rooms are exempt from the whole rule, and covered by the contracts above."""
    rooms = ("actors", "longmem/backbone", "longmem/evaluation", "longmem/sidenet")
    banned = [each for name in VIOLATIONS if name != "arrows point one way" for each in VIOLATIONS[name]]
    violations = [(folder, line) for folder, line in banned if folder not in rooms]
    assert {"ray", "lancedb", "faiss", "transformers"} <= {name for _, line in violations for name in imported(line)}
    with added(tree, violations) as names:
        assert sorted(ruff(tree)) == sorted((name, "TID251") for name in names)


def test_banned_import_is_silenced_nowhere() -> None:
    assert [name for name in MODULES if "TID251" in (ROOT / name).read_text(encoding="utf-8")] == []


# --- small, documented files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_long(package: str) -> None:
    lengths = {
        name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in MODULES if name.startswith(package)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    """Check every module except an `__init__.py` without content."""
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in MODULES}
    assert [
        name for name, source in sources.items() if source.strip() and not ast.get_docstring(ast.parse(source))
    ] == []


# --- one module prints, one module writes: redaction there covers all output -------------------------------------

PRINTERS = ("pipelines/command/console.py",)
WRITERS = ("pipelines/job/output.py",)
LOCK = "pipelines/job/folder.py"
"""Module that opens the job's lock and writes nothing into it."""


def printed_and_written(source: str) -> tuple[set[str], set[str]]:
    """Return calls that print without `command.console`, and calls that write files without `job.output`."""
    printed, written = set(), set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if called in ("print", "Console", "rich.print", "rich.console.Console", "RedactingConsole") or name in (
            "echo",
            "secho",
            "RichHandler",
        ):
            printed.add(called)
        if called.startswith(("sys.stdout.write", "sys.stderr.write")):
            printed.add(called)
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        texts = [each.value for each in modes if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if name == "open" and any(re.fullmatch("[rwaxbt+]+", text) and set(text) & set("wax+") for text in texts):
            written.add(called)
        if name in ("write_text", "write_bytes", "to_csv", "dump", "tofile") and "." in called:
            written.add(called)
        if name == "write_table" and called.startswith(("pq.", "parquet.", "pyarrow.")):
            written.add(called)
    return printed, written


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Console(stderr=True).print(1)", 0),
        ("print(uri)", 0),
        ("typer.echo(uri)", 0),
        ("sys.stderr.write(uri)", 0),
        ("path.write_text(uri)", 1),
        ("path.open('ab', buffering=0)", 1),
        ("open(path, mode='w')", 1),
        ("pq.write_table(table, path)", 1),
        ("json.dump(values, file)", 1),
    ],
)
def test_the_scan_sees_what_prints_and_writes(line: str, kind: int) -> None:
    assert printed_and_written(line)[kind]


@pytest.mark.parametrize("line", ["console.print(1)", "path.open('rb')", "path.open()", "write_json(path, {})"])
def test_the_scan_sees_no_other_calls(line: str) -> None:
    assert printed_and_written(line) == (set(), set())


def test_pipelines_print_and_write_in_one_place_each() -> None:
    found = {
        name: printed_and_written((ROOT / name).read_text(encoding="utf-8"))
        for name in MODULES
        if name.startswith("pipelines/")
    }
    assert {name: calls for name, (calls, _) in found.items() if calls and name not in PRINTERS} == {}
    writers = {name: calls for name, (_, calls) in found.items() if calls and name not in WRITERS}
    assert writers == {LOCK: {"(path / LOCK_FILE).open"}}
