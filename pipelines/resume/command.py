# SPDX-License-Identifier: Apache-2.0
"""`longmem resume`: the command that began a job, read from its log and carried out again with `--resume`.

`log.jsonl` has the command and the folder in which it was given. Secrets are not in it: their arguments are asked for
on a terminal. Elsewhere the command is printed, to be completed.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError, OutputError
from longmem.system.redaction import HIDDEN, redacted
from pipelines.command.console import printable
from pipelines.command.fields import REQUIRED, flag_field, path_argument_field
from pipelines.command.spec import CommandSpec, command
from pipelines.job.folder import JOB_FILE, LOG_FILE
from pipelines.registry import JOBS
from pipelines.watch.status import unfinished

BEGINNINGS = ("job_started", "job_resumed")
"""Events whose message is the command of the job."""


@dataclass(frozen=True, kw_only=True)
class ResumeSpec(CommandSpec):
    """Continue an interrupted job, with the inputs and options that it began with; nothing is retyped.

    **Example:** `longmem resume runs/moby`
    """

    out: Path = path_argument_field(REQUIRED, "Output folder of the job.", "OUT")
    as_json: bool = flag_field("Print the summary as JSON, instead of a table.", names=("--json",))

    def run(self, console: Console) -> None:
        begun = read_command(self.out)
        arguments = self._arguments(begun, console)
        console.print(f"continuing: {escape(shlex.join(['longmem', *map(redacted, arguments)]))}", soft_wrap=True)
        if begun.folder is not None:
            _enter(begun.folder)
        # the job's own log and summary show the command that it continues
        sys.argv[1:] = arguments
        from pipelines.app import app

        app(arguments, prog_name="longmem", obj=self.begun_s)

    def _arguments(self, begun: "BegunCommand", console: Console) -> list[str]:
        """Return the arguments of the command that continues the job, in which each added option is once."""
        flags = ["--resume", "--json"] if self.as_json else ["--resume"]
        place = begun.arguments.index("--") if "--" in begun.arguments else len(begun.arguments)
        kept = _without(begun.arguments[:place], flags)
        complete = [*kept, *flags, "--out", str(self.out.absolute()), *begun.arguments[place:]]
        hidden = [index for index, argument in enumerate(complete) if HIDDEN in argument]
        if hidden and not sys.stdin.isatty():
            raise ConfigError(
                f"the command of {self.out} holds secrets, which are not stored (they are {HIDDEN} here); complete "
                f"them and run: {shlex.join(['longmem', *complete])}"
            )
        for index in hidden:
            complete[index] = _ask(complete[index], console)
        return complete


@dataclass(frozen=True)
class BegunCommand:
    """Command of a job as its log has it."""

    arguments: list[str]
    """Arguments after `longmem`, without secrets."""
    folder: Path | None
    """Working directory, to which relative paths refer; None in the log of an earlier version."""


def read_command(out: Path) -> BegunCommand:
    """Return the newest command of the job in a folder.

    Raises OutputError for a folder without a job or a readable log, and ConfigError for a job that no command began.
    """
    if not (out / JOB_FILE).exists():
        raise OutputError(unfinished(out))
    found = list(_beginnings(out / LOG_FILE))
    message = str(found[-1]["message"]) if found else ""
    try:
        words = shlex.split(message)
    except ValueError:
        words = []
    if len(words) < 2 or words[0] != "longmem" or words[1] not in JOBS:
        raise ConfigError(
            f"{out / LOG_FILE} names no command to continue"
            + (f", but {printable(message)!r}" if message else "")
            + "; a job that was begun in Python is continued there, with resume=True"
        )
    folder = found[-1].get("folder")
    return BegunCommand(words[1:], Path(folder) if folder else None)


def _beginnings(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OutputError(
            f"cannot read {path} ({error.strerror}), which has the command of the job; continue it with that command "
            "and --resume"
        ) from error
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            # the last line of a process that was killed while it wrote
            continue
        if event.get("event") in BEGINNINGS:
            yield event


def _without(arguments: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Yield the arguments without these flags, and without --out and its value."""
    given = iter(arguments)
    for argument in given:
        if argument == "--out":
            next(given, None)
        elif argument not in flags and not argument.startswith("--out="):
            yield argument


def _enter(folder: Path) -> None:
    """Make relative paths of the command mean what they meant. Raises OutputError."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise OutputError(
            f"the job began in {folder}, to which its paths are relative: {error.strerror}; make that folder available"
        ) from error


def _ask(argument: str, console: Console) -> str:
    """Return an argument with its secret, typed by the user without an echo."""
    while True:
        typed = str(typer.prompt(f"{argument} (with its secret, not shown)", hide_input=True, err=True))
        if redacted(typed) == argument:
            return typed
        console.print(f"expected {escape(argument)} with something in the place of {HIDDEN}", soft_wrap=True)


resume = command(ResumeSpec)
