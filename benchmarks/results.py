# SPDX-License-Identifier: Apache-2.0
"""Result files: written whole after each part of a benchmark, so that an interruption loses only the running part."""

import json
from pathlib import Path
from typing import Any

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from benchmarks.environment import environment
from pipelines.command.interrupts import EXIT_INTERRUPTED
from pipelines.job.output import write_bytes

KEPT: dict[Path, str] = {}
"""Result files that this process has written, with how much each holds, such as `3 of 16 steps`."""
ADVICE = "repair that and run the benchmark again"


def write_results(path: Path, figures: dict[str, Any], part: str, table: str | None = None) -> None:
    """Write figures with their environment as JSON to `path`, and the table as .md next to it; each file atomically.

    `part` is how much of the benchmark they hold. Raises OutputError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), **figures}, indent=2)
    write_bytes(path, f"{text}\n".encode(), advice=ADVICE)
    if table is not None:
        write_bytes(path.with_suffix(".md"), table.encode(), advice=ADVICE)
    KEPT[path] = part


class KeepingGroup(TyperGroup):
    """Commands that say what was kept when they are interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        KEPT.clear()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = ", ".join(f"{path} ({part})" for path, part in KEPT.items())
            said = f"interrupted; kept: {kept}" if kept else "interrupted; no part had ended, so nothing was kept"
            Console(stderr=True).print(said, markup=False, soft_wrap=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
