# SPDX-License-Identifier: Apache-2.0
"""Tutorials as programs: their blocks are executed in order, in one folder, and their output is compared.

A console block has commands after `$ `, and lines that their output must have; numbers and spaces may differ, because
they depend on the processor. A Python block shares its names with those before it. A block after the comment
`<!-- not executed: reason -->` is shown only.
"""

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/tutorials"

BLOCK = re.compile(r"^(<!-- not executed: .+? -->\n)?^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:[^\\\n]|\\\n|\\.)*)", re.MULTILINE)
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?")
SHELL = set("|<>&;$`")
"""Signs that only a shell understands."""


@dataclass(frozen=True)
class Step:
    """Python code, or one command with the lines that its output must have."""

    code: str
    expected: tuple[str, ...] = ()
    is_command: bool = False


def steps_of(markdown: str) -> Iterator[Step]:
    """Yield the steps of a tutorial in order."""
    for skipped, language, body in BLOCK.findall(markdown):
        if skipped:
            continue
        if language == "python":
            yield Step(body)
            continue
        starts = [*COMMAND.finditer(body)]
        assert starts, f"a console block without a command: {body}"
        for found, following in zip(starts, [*starts[1:], None], strict=True):
            output = body[found.end() : following.start() if following else None]
            lines = tuple(line for line in output.splitlines() if line.strip())
            yield Step(found[1].replace("\\\n", " "), lines, is_command=True)


def without_numbers(line: str) -> str:
    """Return a line with one sign for each number, and single spaces."""
    return " ".join(NUMBER.sub("#", line).split())


def follow(name: str, folder: Path, skipped: Collection[str] = ()) -> None:
    """Execute a tutorial in `folder`, which is the working directory, without the commands that are `skipped`.

    Raises AssertionError for a step that fails, and for output that is absent.
    """
    names: dict[str, Any] = {}
    for step in steps_of((FOLDER / name).read_text(encoding="utf-8")):
        if not step.is_command:
            exec(compile(step.code, name, "exec"), names)
        elif step.code not in skipped:
            output = _run(step.code, folder)
            printed = {without_numbers(line) for line in output.splitlines()}
            absent = [line for line in map(without_numbers, step.expected) if not any(line in each for each in printed)]
            assert not absent, f"{name}: $ {step.code}\nprinted no line {absent}, but:\n{output}"


def _run(command: str, folder: Path) -> str:
    """Return what a command prints. One of `longmem` runs in this process, which has imported what takes seconds."""
    words = [word.strip("'\"") for word in re.findall(r"\"[^\"]*\"|'[^']*'|\S+", command)]
    if words[0] == "longmem" and not SHELL & set(command):
        result = CliRunner(env={"COLUMNS": "120"}).invoke(app, words[1:], prog_name="longmem")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        code, output = result.exit_code, result.output
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        code, output = ran.returncode, ran.stdout + ran.stderr
    assert code == 0, f"$ {command}\nended with {code}:\n{output}"
    return output
