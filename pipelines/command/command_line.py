# SPDX-License-Identifier: Apache-2.0
"""Shared parts of all commands: exit codes, errors that end a command, and values of options.

Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
import typer.core
from rich.console import Console
from rich.markup import escape

from longmem.backbone.model_names import check_source
from longmem.errors import ConfigError, LongMemError
from longmem.system.heap import limit_heaps
from longmem.system.imports import uncollected
from longmem.system.redaction import know_secrets, redacted
from pipelines.command.console import open_console, printable
from pipelines.command.interrupts import EXIT_INTERRUPTED, is_interrupted, say_interrupted
from pipelines.command.option_types import EmptyValueError, OptionValueError

EXIT_FAILED_DOCUMENTS = 1
EXIT_BAD_INPUT = 2

Number = TypeVar("Number", int, float)

_USAGE_ERROR: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The root of the command line's own errors, which some versions of typer bring along and others take from click."""


class exit_codes:  # noqa: N801 - reads as a statement: `with exit_codes(...)`
    """Turns what ends a command into a sentence for the user and an exit code; bugs keep their traceback."""

    def __init__(self, console: Console, out: Path | None = None) -> None:
        """`out`: folder of a job that can be continued after an interruption."""
        self._console = console
        self._out = out

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) or (error is not None and is_interrupted()):
            _say_interrupted(self._console, _how_to_go_on(self._out))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if isinstance(error, LongMemError):
            _say_error(self._console, error)
            raise typer.Exit(EXIT_BAD_INPUT) from None


class LongMemGroup(typer.core.TyperGroup):
    """The root of the command line: what ends the parsing of options ends like what ends a command."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **settings: Any) -> Any:
        know_secrets(args)
        with _parsing():
            return super().make_context(info_name, args, parent, **settings)

    def invoke(self, *arguments: Any, **settings: Any) -> Any:
        with _parsing():
            return super().invoke(*arguments, **settings)


@contextmanager
def _parsing() -> Iterator[None]:
    console = open_console(stderr=True)
    try:
        with exit_codes(console):
            yield
    except OptionValueError as error:
        # in one line, like every other error
        advice = f": {_instead_of_nothing(error.param)}" if isinstance(error, EmptyValueError) else ""
        _say_error(console, ConfigError(f"{_shown_name(error.param)} {error.message}{advice}"))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except _USAGE_ERROR as error:
        # typer shows the message in a frame of its own, whose lines end in the middle of a URI
        error.message = redacted(error.message)
        raise


def _shown_name(parameter: Any) -> str:
    """Return the name that the user knows an option or argument by."""
    if parameter is None:
        return "an option"
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name).removesuffix("...")


def _instead_of_nothing(parameter: Any) -> str:
    """Return what to give in the place of empty text."""
    if parameter is None or parameter.required:
        return "give a value"
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    return f"give a value, or leave it out (default: {shown})" if shown else "give a value, or leave it out"


def _say_error(console: Console, error: LongMemError) -> None:
    # names of files and what they hold are foreign text, which may tell a terminal what to do
    lines = map(printable, str(error).splitlines())
    console.print(f"[bold red]error:[/] {escape(chr(10).join(lines))}", soft_wrap=True)


def _how_to_go_on(out: Path | None) -> str:
    """Return how to continue the job in a folder; nothing for a command without one, or before its job has begun."""
    if out is None:
        return ""
    # loads pyarrow, which a job has done by now
    from pipelines.job.folder import JOB_FILE, LOG_FILE

    # what `longmem resume` needs: the identity of the job, and its command
    if not all((out / name).exists() for name in (JOB_FILE, LOG_FILE)):
        return "The job had not begun, so there is nothing to continue: give the command again."
    return f"What was done is kept. Continue with: longmem resume {shlex.quote(str(out))}"


def _say_interrupted(console: Console, more: str) -> None:
    say_interrupted(lambda line: console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True), more)


def show_summary(summary: Mapping[str, Any], out: Path, as_json: bool, show: Callable[[Console], None]) -> None:
    """Print the result of a job on standard output: its summary as JSON, or what `show` prints.

    A job that had finished before its command began is one line instead, which goes to standard error next to JSON.
    """
    from pipelines.job.folder import FinishedSummary

    if isinstance(summary, FinishedSummary):
        line = escape(f"{out}: the job has finished before; nothing was changed")
        open_console(stderr=as_json).print(line, soft_wrap=True)
    elif not as_json:
        show(open_console())
    if as_json:
        text = json.dumps(summary, indent=2)
        open_console().print(text, soft_wrap=True, markup=False, highlight=False)


def command_text() -> str:
    """Return the command as it was given, without secrets."""
    return shlex.join(["longmem", *map(redacted, sys.argv[1:])])


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_or_hub(model: str) -> str:
    """A local folder or file as an absolute path, because workers have other working directories; else the name."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def local_inputs(inputs: list[str]) -> tuple[str, ...]:
    """Return local inputs as absolute paths, because workers have other working directories; URIs as they are."""
    from longmem.text.finding import is_local

    return tuple(str(Path(each).absolute()) if is_local(each) else each for each in inputs)


def check_inputs(*inputs: str) -> None:
    """Raise ConfigError for an input on this machine that does not exist.

    A job finds that out too, but only after the imports that it needs, which take seconds. URIs are left to the job.
    """
    absent = [name for name in inputs if "://" not in name and "::" not in name and not os.path.lexists(name)]
    if absent:
        from longmem.text.finding import find_files

        find_files(absent)


def check_model(model: str | None) -> None:
    """Raise CheckpointError or ConfigError for a model that is not there; None is the default one.

    Loading it finds that out too, but only after the imports that it needs, which take seconds. Hub ids are left to it.
    """
    if model is not None:
        check_source(local_or_hub(model))


@contextmanager
def loading(console: Console) -> Iterator[None]:
    """Print the first line of a command that works with a model, for the block of its imports, which take seconds."""
    console.print("starting: loading libraries", soft_wrap=True)
    # before any library has threads with heaps
    limit_heaps()
    with uncollected():
        yield


def check_device(device: str) -> None:
    """Raises ConfigError for a device that torch does not have."""
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; install a CUDA build of torch, or use --device cpu")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` options; values are numbers, true or false where they look like it, else words."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise ConfigError(f"--set needs NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def parse_numbers(text: str, kind: Callable[[str], Number], rule: str) -> tuple[Number, ...]:
    """Return numbers with commas between them. Raise ConfigError with `rule` and the text for anything else."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{rule} got {text!r}") from None
