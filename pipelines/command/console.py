# SPDX-License-Identifier: Apache-2.0
"""Redacted terminal output: the only module that writes to a terminal.

Text is redacted before lines are wrapped, because a URI that is cut in two is no longer recognised. It is redacted
again where it leaves the process, which covers output of other libraries, warnings and tracebacks.
"""

import json
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from longmem.system.redaction import redacted, redacted_values

Detail = Literal["quiet", "normal", "verbose"]
"""Amount of text besides result and errors: none, messages and progress, or every event too."""


class RedactingConsole(Console):
    """Console that redacts every text that it lays out, including tables and progress bars."""

    verbose = False
    """True where a job prints each of its events, too."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return super().render(_hidden(renderable), options)


def open_console(*, stderr: bool = False, detail: Detail = "normal") -> Console:
    """Return a console for results, or with `stderr` for errors, messages and progress; a quiet one prints nothing."""
    console = RedactingConsole(stderr=stderr, quiet=detail == "quiet")
    console.verbose = detail == "verbose"
    return console


def is_verbose(console: Console) -> bool:
    """Return whether a job prints each of its events on this console."""
    return isinstance(console, RedactingConsole) and console.verbose


def printable(text: str) -> str:
    """Return foreign text on one line, with U+FFFD for every non-printable (control) character."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def say(text: str) -> None:
    """Print one redacted text on stdout."""
    typer.echo(redacted(text))


def say_piece(text: str) -> None:
    """Write a piece of foreign text on stdout at once, without a newline; control characters become U+FFFD."""
    typer.echo(redacted("".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)), nl=False)
    sys.stdout.flush()


def say_json(values: Any, *, indent: int | None = None) -> None:
    """Print redacted values on stdout as JSON."""
    typer.echo(json.dumps(redacted_values(values), indent=indent))


def guard_streams() -> None:
    """Redact everything that this process writes to stdout and stderr from now on, including tracebacks."""
    sys.stdout = _RedactingStream(sys.stdout)
    sys.stderr = _RedactingStream(sys.stderr)
    sys.excepthook = _print_exception


class _RedactingStream:
    """Text stream whose `write` redacts; all other attributes are those of the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # one write: the interpreter's own pieces could split a secret
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))


def _hidden(renderable: RenderableType) -> RenderableType:
    if isinstance(renderable, str):
        return redacted(renderable)
    if isinstance(renderable, Text) and (hidden := redacted(renderable.plain)) != renderable.plain:
        return Text(
            hidden,
            style=renderable.style,
            justify=renderable.justify,
            overflow=renderable.overflow,
            no_wrap=renderable.no_wrap,
            end=renderable.end,
        )
    return renderable
