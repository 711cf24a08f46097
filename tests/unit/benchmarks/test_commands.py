# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: invalid arguments give one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from click import Command, Context
from typer.testing import CliRunner

from benchmarks import __main__ as main
from benchmarks.speed import commands as speed_commands

ROOT = Path(__file__).parents[3]


def test_an_error_is_a_line_not_a_traceback() -> None:
    command = [sys.executable, "-m", "benchmarks", "jobs", "--only", "nothing like it"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --only 'nothing like it': expected a part of one of these names: in process")
    assert "Traceback" not in done.stderr


def test_an_unknown_shape_is_told_before_minutes_of_a_known_one() -> None:
    shapes = ["--shape", "gpt2-medium", "--shape", "gpt9"]
    done = CliRunner().invoke(main.app, ["gpu", "--device", "cpu", *shapes])
    assert done.exit_code == 2
    assert "gpt9" in done.stderr


def test_growth_comes_last_because_its_verdict_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def failing() -> None:
        ran.append("growth")
        raise typer.Exit(1)

    monkeypatch.setattr(main, "growth", failing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    others = [each for each in speed_commands.app.registered_commands if each.callback is not speed_commands.gpu]
    for number, command in enumerate(others):
        monkeypatch.setattr(command, "callback", lambda number=number: ran.append(str(number)))
    with pytest.raises(typer.Exit):
        main.everything(Context(Command("benchmarks")))
    assert ran == [*map(str, range(len(others))), "growth"]
