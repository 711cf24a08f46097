"""`longmem status`: how far live jobs are."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from longmem.errors import ConfigError
from pipelines.command.command_line import exit_codes
from pipelines.command.console import open_console, say_json
from pipelines.command.interrupts import tidying
from pipelines.command.option_types import path_option, text_option

if TYPE_CHECKING:
    from pipelines.watch.status import JobStatus

WATCH_S = 2.0

NO_CLUSTER = "No Ray cluster runs here. A job of --address none is seen through its folder: longmem status --out DIR"
NO_JOBS = "No job runs on this cluster."


def status(
    out: Annotated[
        Path | None, path_option(help="Output folder of a job, running or not.", show_default="the running cluster")
    ] = None,
    address: Annotated[
        str | None, text_option(help="Cluster whose jobs to show.", show_default="auto: the one that runs here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of jobs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 s until Ctrl-C.")] = False,
) -> None:
    """Documents, tokens per second, lag, time left and failures of live jobs.

    **Example:** `longmem status --out runs/moby --watch`
    """
    console = open_console(stderr=True)
    with exit_codes(console, out or Path()):
        from pipelines.watch.status import read_status, status_of

        if out is not None and address is not None:
            raise ConfigError("--out reads a folder and --address asks a cluster; give one of them")
        if as_json and watch:
            raise ConfigError("--json prints once and --watch never ends; give one of them")
        if out is not None:
            folder = out

            def ask() -> list["JobStatus"]:
                return [read_status(folder)]

            _show(ask, NO_JOBS, as_json, watch)
            return
        from actors.monitoring.live_jobs import LiveJobs

        with LiveJobs(address or "auto", lambda text: console.print(escape(text), soft_wrap=True)) as live:

            def ask() -> list["JobStatus"]:
                return [status_of(each, alive=None) for each in live.snapshots()]

            _show(ask, NO_JOBS if live.connected else NO_CLUSTER, as_json, watch and live.connected)


def _show(ask: Callable[[], list["JobStatus"]], nothing: str, as_json: bool, watch: bool) -> None:
    from pipelines.watch.status import render

    jobs = ask()
    console = open_console()
    if as_json:
        say_json([each.to_json() for each in jobs], indent=2)
        return
    if not watch:
        console.print(render(jobs) if jobs else Text(nothing))
        return
    try:
        with tidying(), Live(console=console, auto_refresh=False) as display:
            while True:
                display.update(render(jobs) if jobs else Text(nothing), refresh=True)
                time.sleep(WATCH_S)
                jobs = ask()
    except KeyboardInterrupt:
        return
