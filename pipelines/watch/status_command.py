# SPDX-License-Identifier: Apache-2.0
"""`longmem status`: how far live jobs are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from longmem.errors import ConfigError
from pipelines.command.console import open_console, say_json
from pipelines.command.fields import flag_field, path_field, text_field
from pipelines.command.interrupts import tidying
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    from pipelines.watch.status import JobStatus

WATCH_S = 2.0

NO_CLUSTER = "No Ray cluster runs here. A job of --address none is seen through its folder: longmem status --out DIR"
NO_JOBS = "No job runs on this cluster."


@dataclass(frozen=True, kw_only=True)
class StatusSpec(CommandSpec):
    """Documents, tokens per second, lag, time left and failures of live jobs.

    **Example:** `longmem status --out runs/moby --watch`
    """

    out: Path | None = path_field(None, "Output folder of a job, running or not.", shown="the running cluster")
    address: str | None = text_field(None, "Cluster whose jobs to show.", shown="auto: the one that runs here")
    as_json: bool = flag_field("Print JSON, a list of jobs.", names=("--json",))
    watch: bool = flag_field("Show it again every 2 s until Ctrl-C.")

    def run(self, console: Console) -> None:
        from pipelines.watch.status import read_status, status_of

        if self.out is not None and self.address is not None:
            raise ConfigError("--out reads a folder and --address asks a cluster; give one of them")
        if self.as_json and self.watch:
            raise ConfigError("--json prints once and --watch never ends; give one of them")
        if self.out is not None:
            folder = self.out
            _show(lambda: [read_status(folder)], NO_JOBS, self.as_json, self.watch)
            return
        from actors.monitoring.live_jobs import LiveJobs

        with LiveJobs(self.address or "auto", lambda text: console.print(escape(text), soft_wrap=True)) as live:
            nothing = NO_JOBS if live.connected else NO_CLUSTER
            watched = self.watch and live.connected
            _show(lambda: [status_of(job, alive=None) for job in live.snapshots()], nothing, self.as_json, watched)


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


status = command(StatusSpec)
