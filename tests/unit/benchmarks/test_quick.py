# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks quick`: commands exist as they are written, and a failure is told without ending the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import __main__ as main
from benchmarks import quick
from benchmarks.quick import STEPS, QuickStep
from pipelines.app import app as longmem_app


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_is_a_command_with_its_options(step: QuickStep, tmp_path: Path) -> None:
    root: Any = typer.main.get_command(longmem_app if step.of_longmem else main.app)
    context = root.make_context("root", [], resilient_parsing=True)
    name, *words = quick.command_of(step, ["one.txt", "two.txt"], str(tmp_path), tmp_path)
    command = root.get_command(context, name)
    # click parses and converts all words, and refuses what it does not know
    parsed = command.make_context(name, words, parent=context)
    assert any(str(value).startswith(str(tmp_path)) for key, value in parsed.params.items() if "out" in key)


def test_a_step_that_fails_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        QuickStep("jobs", "nothing", ("jobs", "--only", "nothing like it", "--out", "OUT")),
        QuickStep("absent", "nothing", ("jobs",), missing=lambda: "this machine has none"),
        QuickStep("shots", "nothing", ("demonstrations", "sst2", "--data", "ICL")),
        QuickStep("version", "the version", ("--version",), of_longmem=True),
    )
    monkeypatch.setattr(quick, "STEPS", steps)
    # `longmem --version` takes no --out
    monkeypatch.setattr(quick, "command_of", lambda step, *_given: list(step.command))
    done = CliRunner().invoke(main.app, ["quick", "--out", str(tmp_path / "quick")])
    assert done.exit_code == 1
    figures = json.loads((tmp_path / "quick" / "quick.json").read_text(encoding="utf-8"))
    assert [(step["name"], step["outcome"]) for step in figures["steps"]] == [
        ("jobs", "failed"),
        ("absent", "not run"),
        ("shots", "not run"),
        ("version", "passed"),
    ]
    assert figures["steps"][0]["reason"].startswith("error: --only 'nothing like it'")
    assert "| absent | nothing |  |  | not run: this machine has none |" in done.stdout
    assert "longmem --version" in (tmp_path / "quick" / "version.log").read_text(encoding="utf-8")


def interrupted() -> str | None:
    raise KeyboardInterrupt


def test_an_interruption_keeps_the_steps_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [QuickStep(name, "nothing", ("jobs",), missing=lambda: "none here") for name in ("first", "second")]
    steps += [QuickStep("third", "nothing", ("jobs",), missing=interrupted)]
    monkeypatch.setattr(quick, "STEPS", steps)
    done = CliRunner().invoke(main.app, ["quick", "--out", str(tmp_path)])
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == f"interrupted; kept: {tmp_path / 'quick.json'} (2 of 3 steps)"
    figures = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in figures["steps"]] == ["first", "second"]
    assert "cpu" in figures["environment"]
    assert "| second | nothing |" in (tmp_path / "quick.md").read_text(encoding="utf-8")
    monkeypatch.setattr(quick, "STEPS", steps[2:])
    done = CliRunner().invoke(main.app, ["quick", "--out", str(tmp_path / "other")])
    assert done.stderr.splitlines()[-1] == "interrupted; no part had ended, so nothing was kept"
    assert not (tmp_path / "other" / "quick.json").exists()


def test_an_unknown_step_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["quick", "--only", "no such step", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "no such step" in done.stderr
