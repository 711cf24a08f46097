# SPDX-License-Identifier: Apache-2.0
"""Start-up of the command line: commands are imported when they are used, and short ones load no heavy library."""

import gc
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from longmem.store.config import MemoryStore
from longmem.system.imports import uncollected
from pipelines.app import COMMANDS, app
from pipelines.command.command_line import loading
from pipelines.command.lazy import LazyCommand, LazyGroup, LoadedOnUse
from pipelines.registry import JOBS
from tests.blocks import make_block

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "transformers", "lancedb", "faiss", "pandas", "matplotlib")

IN_ONE_PROCESS = f"""
import contextlib, io, json, sys
from pipelines.app import app
seen = []
for command in json.loads(sys.argv[1]):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            app(command, prog_name="longmem")
        except SystemExit as ended:
            code = ended.code
    seen.append([code, shown.getvalue(), [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(seen))
"""


def run_in_one_process(commands: list[list[str]], path: str) -> list[tuple[int, str, list[str]]]:
    """Run commands one after the other; return exit code, output, and heavy modules loaded so far after each."""
    ended = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return [(code or 0, shown, heavy) for code, shown, heavy in json.loads(ended.stdout)]


def test_short_commands_load_no_heavy_library(tmp_path: Path) -> None:
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        store.put(make_block())
    missing = str(tmp_path / "missing")
    expected = {
        ("--version",): (0, "longmem 0."),
        ("--help",): (0, "perplexity"),
        ("memory", "--help"): (0, "verify"),
        ("perplexity", "--help"): (0, "--memory-tokens"),
        ("status", "--out", missing): (2, "is not the output folder of a job"),
        ("perplexity", missing): (2, "input not found"),
        ("plan", missing): (2, "input not found"),
        ("train", "--data", missing, "--out", str(tmp_path / "out")): (2, "input not found"),
        ("memory", "ls", "--store", missing): (2, "there is no such folder"),
        ("memory", "ls", "--store", str(Path(__file__))): (2, "is a file; a memory store is a folder"),
        ("resume", missing): (2, "it holds no job.json"),
        ("compare", missing, str(tmp_path)): (2, "it holds no job.json"),
        ("generate", "--prompt", "a", "--memory-file", missing): (2, "input not found"),
        ("doctor", "--model", "gpt2", "--text", missing): (2, "input not found"),
    }
    listing = ("memory", "ls", "--store", str(tmp_path / "memory.lance"))
    *light, last = run_in_one_process([list(command) for command in (*expected, listing)], str(ROOT))
    for (command, (code, text)), (ended, shown, heavy) in zip(expected.items(), light, strict=True):
        assert (ended, heavy) == (code, []), (command, shown)
        assert text in shown, command
    # lancedb itself loads pandas
    assert (last[0], set(last[2]) - {"pandas"}) == (0, {"lancedb"}), last[1]
    assert "moby-dick" in last[1]
    assert not (tmp_path / "out").exists()


def test_a_misspelt_model_is_told_before_a_heavy_library_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Call me Ishmael.")
    book, out = str(tmp_path / "book.txt"), ("--out", str(tmp_path / "out"))
    commands = [
        ["perplexity", book, "--model", "smollm2-135", *out],
        ["icl", "sst2", "--model", "smollm2-135", *out],
        ["suffix", "examples.jsonl", "--model", "smollm2-135", *out],
        ["probe", "--model", "smollm2-135", *out],
        ["train", "--data", book, "--model", "smollm2-135", *out],
        ["fit", "--data", book, "--model", "smollm2-135", *out],
        ["plan", book, "--model", "smollm2-135"],
        ["doctor", "--model", "smollm2-135"],
        ["generate", "--prompt", "Call me", "--model", "smollm2-135"],
        ["service", "up", "--model", "smollm2-135"],
    ]
    absent = [
        (["doctor", "--model", str(tmp_path / "absent.gguf")], "model file not found"),
        (["doctor", "--model", str(tmp_path / "absent")], "model folder not found"),
    ]
    said = [*zip(commands, ["no model smollm2-135: did you mean smollm2-135m?"] * len(commands), strict=True), *absent]
    seen = run_in_one_process([command for command, _ in said], str(ROOT))
    for (command, text), (code, shown, heavy) in zip(said, seen, strict=True):
        assert (code, heavy) == (2, []), (command, shown)
        assert text in shown, command
    assert not (tmp_path / "out").exists()
    named = {name for name in COMMANDS if "--model" in options_of(name)}
    assert named == {command[0] for command in commands if command[0] != "service"}


def test_a_job_says_that_it_starts_before_torch_is_loaded(tmp_path: Path) -> None:
    """Planted: a torch whose import ends the command."""
    (tmp_path / "torch.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "book.txt").write_text("Call me Ishmael.")
    (tmp_path / "examples.jsonl").write_text("{}\n")
    book, out = str(tmp_path / "book.txt"), ["--out", str(tmp_path / "out")]
    commands = [
        ["perplexity", book, "--address", "none", *out],
        ["icl", "sst2", *out],
        ["suffix", str(tmp_path / "examples.jsonl"), *out],
        ["probe", *out],
        ["train", "--data", book, *out],
        ["fit", "--data", book, *out],
        ["pretrain", "--size", "8m", "--data", book, *out],
        ["plan", book],
    ]
    assert {command[0] for command in commands} == {*JOBS, "plan"}
    for command in commands:
        [(code, shown, heavy)] = run_in_one_process([command], f"{tmp_path}{os.pathsep}{ROOT}")
        assert (code, shown) == (7, "starting: loading libraries\n"), (command, shown)
        assert not {"lancedb", "matplotlib", "ray"} & set(heavy), command


BEFORE_A_SCORE = f"""
import json, sys
from pipelines.job.executors import start_executor
from pipelines.registry import JOBS, job_class
for name in JOBS:
    job_class(name)
from longmem.model.source import REFERENCE_MODEL, ModelSource
from longmem.store.config import StoreSettings
with start_executor(ModelSource(str(REFERENCE_MODEL), search="torch"), StoreSettings(sys.argv[1]), None, 1):
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def test_a_job_in_one_process_loads_no_charts_ray_or_store_before_its_first_score(tmp_path: Path) -> None:
    """LanceDB, with pandas, is loaded at the first put of a new store, in a thread next to the model."""
    ended = subprocess.run(
        [sys.executable, "-c", BEFORE_A_SCORE, str(tmp_path / "memory.lance")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(ended.stdout) == ["torch", "transformers"]


def test_nothing_is_frozen_where_nothing_is_imported() -> None:
    frozen = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
    assert gc.get_freeze_count() == frozen
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled(), "the caller had turned it off"
    finally:
        gc.enable()


BEFORE_WORKERS = f"""
import json, sys
import actors.executor.ray_executor
from actors.config import ClusterShape
from pipelines.job.executors import start_executor
from pipelines.perplexity.spec import PerplexitySpec
from rich.console import Console

def connect(*_):
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
    raise SystemExit
actors.executor.ray_executor.connect = connect
job = PerplexitySpec(address="local").job(Console())
start_executor(job.model, job.store_settings, job.cluster, 1)
"""


def test_a_job_on_ray_starts_its_workers_before_it_loads_torch(tmp_path: Path) -> None:
    """The driver has imported only Ray when it starts its workers."""
    ended = subprocess.run(
        [sys.executable, "-c", BEFORE_WORKERS],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(ended.stdout) == ["ray"], ended.stdout


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_again_after_the_imports(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with suppress(ImportError), loading(Console(file=StringIO())):
            assert not gc.isenabled()
            monkeypatch.setitem(sys.modules, "planted", ModuleType("planted"))
            if fails:
                raise ImportError("planted")
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def options_of(name: str) -> set[str]:
    """Return the options of a command of the table, not of commands below it."""
    return {option for parameter in COMMANDS[name].load(name).params for option in parameter.opts}


def test_a_heavy_import_would_be_seen(tmp_path: Path) -> None:
    """Planted: an empty module called torch, which every start of the interpreter imports."""
    (tmp_path / "torch.py").touch()
    (tmp_path / "sitecustomize.py").write_text("import torch\n")
    [(code, _, heavy)] = run_in_one_process([["--version"]], f"{tmp_path}{os.pathsep}{ROOT}")
    assert (code, heavy) == (0, ["torch"])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_listed_help_is_the_first_paragraph_of_the_command(name: str) -> None:
    command = COMMANDS[name].load(name)
    assert COMMANDS[name].help == " ".join(command.help.split("\n\n")[0].split())
    assert command.name == name


def test_a_list_of_commands_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyCommand, "load", lambda *_: pytest.fail("a command was imported"))
    root: Any = typer.main.get_command(app)
    assert list(root.commands) == list(COMMANDS)
    assert "probe" in root.commands
    assert len(root.commands) == len(COMMANDS)
    assert "Find" not in root.commands
    result = CliRunner().invoke(app, ["perplexit"], prog_name="longmem")
    assert (result.exit_code, "Did you mean 'perplexity'" in result.output) == (2, True)


def test_an_error_within_the_import_of_a_command_is_not_an_unknown_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_command.py").write_text("{}['planted']\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Planted(LazyGroup):
        table: ClassVar = {"planted": LazyCommand("planted_command:run", "Raise a KeyError when it is imported.")}

    planted = typer.Typer(cls=Planted, add_completion=False)
    planted.callback()(lambda: None)
    result = CliRunner().invoke(planted, ["planted"])
    assert isinstance(result.exception, KeyError)
    assert "planted" in CliRunner().invoke(planted, ["--help"]).output


def test_a_command_is_loaded_once_and_more_come_after_the_table() -> None:
    loaded = LoadedOnUse({"status": COMMANDS["status"]}, {"fail": object()})
    assert list(loaded) == list(loaded.placeholders()) == ["status", "fail"]
    assert loaded["status"] is loaded.get("status")
    assert loaded.get("stats") is None


COMPLETE = """
import os, sys
# what bash sets for each press of the Tab key
os.environ["_LONGMEM_COMPLETE"] = "complete_bash"
os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = sys.argv[1], sys.argv[2]
sys.argv[1:] = []
from pipelines.cli import main
try:
    main()
finally:
    print([name for name in %r if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("longmem per", 1, ["perplexity"]),
        ("longmem memory v", 2, ["verify"]),
        ("longmem compare --j", 2, ["--json"]),
        ("longmem perplexity --search fa", 3, ["faiss"]),
    ],
)
def test_a_shell_completes_without_a_heavy_library(words: str, index: int, expected: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMPLETE % (HEAVY,), words, str(index)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.stdout.splitlines() == [*expected, "[]"], ended.stderr


def test_a_list_of_commands_to_complete_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyCommand, "load", lambda *_: pytest.fail("a command was imported"))
    root: Any = typer.main.get_command(app)
    context = root.make_context("longmem", [], resilient_parsing=True)
    assert [item.value for item in root.shell_complete(context, "")] == list(COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_is_installed_for_bash(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "longmem"
    if not script.exists():
        pytest.skip("longmem is not installed in this environment")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    # Typer takes the shell from the processes above it; `true` keeps bash from being replaced by the command.
    typed = f"{shlex.quote(str(script))} --install-completion && true"
    subprocess.run(["bash", "--norc", "-c", typed], env=environment, timeout=120, check=True, capture_output=True)
    press_tab = (
        f"source {tmp_path}/.bashrc; PATH={script.parent}:$PATH; COMP_WORDS=(longmem perplexity --memory-t); "
        'COMP_CWORD=2; _longmem_completion longmem; echo "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(
        ["bash", "--norc", "-c", press_tab], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert shown.stdout == "--memory-tokens\n"
