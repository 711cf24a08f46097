# SPDX-License-Identifier: Apache-2.0
"""Every option of every command refuses invalid values: one sentence with its name, before any work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from longmem.errors import ConfigError
from pipelines.app import app
from pipelines.command.command_line import num_cores
from pipelines.command.option_types import OptionValueError, real_parser
from pipelines.job.executors import THREADS_FOR_EACH_CORE, use_threads

BAD_NUMBERS = ("-1", "nan", "inf", "-inf", str(10**30), "1e400", "seven", "", "1_0", "\uff11", "\u0663", "0x10")
BAD_TEXTS = ("", "  ", "\0")
BAD_PATHS = (*BAD_TEXTS, "s3://bucket/folder")

LEGAL = {
    ("train", "--gate-start", "-1"),
    ("train", "--scale-start", "-1"),
}
"""Options that may be negative: a logit and a factor."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from commands(each, (*path, name))
    else:
        yield path, command


ROOT = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))


def kind_of(parameter: Any) -> str:
    """Return whole, real, text or path, by the declared parser of the option; else flag or choice."""
    if getattr(parameter, "is_flag", False):
        return "flag"
    info = parameter.type_descriptor.parameter_info
    if info.parser is None:
        return "choice" if parameter.type_descriptor.is_choice else "none"
    name: str = info.parser.__qualname__
    return {"whole_parser.<locals>.parse": "whole", "real_parser.<locals>.parse": "real"}.get(
        name, name.removeprefix("parse_")
    )


def is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


OPTIONS = [(path, parameter) for path, command in COMMANDS.items() for parameter in command.params]
BAD = {"whole": BAD_NUMBERS, "real": BAD_NUMBERS, "text": BAD_TEXTS, "path": BAD_PATHS, "choice": ("",)}


def test_every_option_has_a_kind() -> None:
    assert [(path, each.name) for path, each in OPTIONS if kind_of(each) not in (*BAD, "flag")] == []
    assert len(OPTIONS) > 150


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_option_with_a_value_it_cannot_have_is_refused(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setenv("COLUMNS", "200")
    parameters = COMMANDS[path].params
    for parameter in parameters:
        # other required parameters of the command; arguments in their order
        options = [
            part
            for each in parameters
            if each.required and is_option(each) and each is not parameter
            for part in (each.opts[0], "1")
        ]
        for value in BAD.get(kind_of(parameter), ()):
            if (*path, parameter.opts[0], value) in LEGAL:
                continue
            given = [f"{parameter.opts[0]}={value}"] if is_option(parameter) else []
            arguments = [value if each is parameter else "1" for each in parameters if not is_option(each)]
            case = [*path, *options, *given, "--", *arguments]
            with pytest.raises(SystemExit) as ended:
                ROOT.main(case, prog_name="longmem")
            shown = capsys.readouterr()
            assert (ended.value.code, shown.out) == (2, ""), case
            assert "Traceback" not in shown.err
            name = parameter.opts[0] if is_option(parameter) else parameter.metavar or parameter.name
            assert name.lower().split(".")[0] in shown.err.lower(), (case, shown.err)
            if kind_of(parameter) != "choice":
                assert shown.err.count("\n") == 1, "one sentence"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", ["1025", "100000"])
def test_absurd_threads_are_refused(threads: str) -> None:
    result = CliRunner().invoke(app, ["perplexity", "--threads", threads], prog_name="longmem")
    assert (result.exit_code, result.stderr) == (2, f"error: --threads must be at most 1,024, got {threads}\n")


def test_an_error_with_foreign_text_reaches_the_terminal_without_control_characters(tmp_path: Path) -> None:
    (tmp_path / "\x1b]0;title\x07\x1b[31mred.xyz").touch()
    options = ["--address", "none", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["perplexity", str(tmp_path), *options], prog_name="longmem")
    assert result.exit_code == 2
    assert "\ufffd]0;title\ufffd\ufffd[31mred.xyz" in result.stderr
    assert "\x1b" not in result.stderr


def test_a_float_option_without_the_check_would_be_seen() -> None:
    """Check the test itself: typer's own float accepts NaN."""
    planted = typer.Typer()

    @planted.command()
    def run(share: float = 1.0) -> None:
        assert share != share

    [(_, command)] = commands(typer.main.get_command(planted))
    assert CliRunner().invoke(planted, ["--share", "nan"]).exit_code == 0
    assert [kind_of(each) for each in command.params if each.name == "share"] == ["none"]


def test_a_kind_of_option_parses_what_is_given_as_text_only() -> None:
    parse = real_parser(least=0, most=1)
    assert parse("0.5") == 0.5
    assert parse(0.25) == 0.25, "a default"
    with pytest.raises(OptionValueError, match="at most 1"):
        parse("2")


def test_threads_beyond_what_the_cores_can_do_are_refused_in_one_process() -> None:
    with pytest.raises(ConfigError, match=f"--threads must be at most .* on {num_cores()} cores"):
        use_threads(THREADS_FOR_EACH_CORE * num_cores() + 1)
