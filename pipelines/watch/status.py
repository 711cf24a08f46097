# SPDX-License-Identifier: Apache-2.0
"""Status of live jobs, from an output folder or a cluster, and its terminal output."""

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actors.monitoring.job_status import JobSnapshot
from longmem.errors import OutputError
from longmem.stages import STAGES
from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.job.folder import JOB_FILE, LOCK_FILE, STATUS_FILE
from pipelines.job.format import h_mm_ss, megabytes

SILENT_S = 30.0
"""Age in seconds of a snapshot above which a job counts as silent.

A job writes every 2 s, unless one task of a job without workers takes longer.
"""


@dataclass(frozen=True)
class JobStatus:
    """Snapshot of a job, its age in seconds, and whether a process locks its folder (None for a cluster's answer)."""

    snapshot: JobSnapshot
    age_s: float
    alive: bool | None

    @property
    def verdict(self) -> str:
        """State of the job: running, silent, killed, finished, failed or interrupted."""
        if self.snapshot.state != "running":
            return self.snapshot.state
        if self.alive is False:
            return "killed"
        return "silent" if self.age_s > SILENT_S else "running"

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "age_s": self.age_s, "alive": self.alive, **self.snapshot.to_json()}


def status_of(snapshot: JobSnapshot, alive: bool | None, now: Callable[[], float] = time.time) -> JobStatus:
    return JobStatus(snapshot, max(0.0, now() - snapshot.updated), alive)


def read_status(folder: Path, now: Callable[[], float] = time.time) -> JobStatus:
    """Return the status of the job in an output folder. Raises OutputError if there is none."""
    try:
        text = (folder / STATUS_FILE).read_text(encoding="utf-8")
    except OSError as error:
        reason = (
            "its job has not begun, or was written by an earlier version of longmem"
            if (folder / JOB_FILE).exists()
            else "it is not the output folder of a job; name one with --out"
        )
        raise OutputError(f"cannot read {folder / STATUS_FILE} ({error.strerror}): {reason}") from error
    try:
        values = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise OutputError(f"{folder / STATUS_FILE} is damaged: {error}; the job replaces it while it runs") from error
    return status_of(JobSnapshot.from_json(values), _is_locked(folder), now)


def unfinished(folder: Path) -> str:
    """Return why a folder holds no summary of a finished job, and what to do. Raises OutputError for a damaged
    status."""
    if not (folder / JOB_FILE).exists():
        return f"{folder} is not the output folder of a job: it holds no {JOB_FILE}; name the --out folder of one"
    status = read_status(folder)
    snapshot, place = status.snapshot, quote(str(folder))
    total = "" if snapshot.units_total is None else f" of {snapshot.units_total:,}"
    progress = f"{status.verdict}, {snapshot.unit} {snapshot.units_done:,}{total} done"
    advice = f"continue it with: longmem resume {place}"
    if status.verdict in ("running", "silent"):
        advice = f"wait until it ends; it is shown by: longmem status --out {place}"
    return f"{folder} holds a job that is not finished ({progress}); {advice}"


def _is_locked(folder: Path) -> bool:
    """Return whether a process runs the job in this folder."""
    try:
        with (folder / LOCK_FILE).open() as file:
            # shared and released at once: two status commands may run at the same time
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def render(jobs: list[JobStatus]) -> RenderableType:
    """Return a few lines per job."""
    return Group(*(part for job in jobs for part in _parts(job)))


def _parts(job: JobStatus) -> list[RenderableType]:
    snapshot = job.snapshot
    parts: list[RenderableType] = [Text(_headline(job), style="bold"), Text(_units(snapshot))]
    if snapshot.detail and snapshot.state == "running":
        parts.append(Text(printable(snapshot.detail)))
    if snapshot.kind == "perplexity" or any(stage.segments for stage in snapshot.stages.values()):
        parts += [_stages(snapshot), Text(_levels(snapshot))]
    return [*parts, *_ends(job)]


def _stages(snapshot: JobSnapshot) -> Table:
    """Return a table of stages that fits 80 columns. Of jobs that score no segments, it has those that did work."""
    stages = Table(box=None, padding=(0, 1), header_style="dim")
    stages.add_column("stage")
    for title in ("tokens/s", "tokens", "segments", "busy", "queued", "retries", "stalls"):
        stages.add_column(title, justify="right")
    for stage in STAGES:
        figures = snapshot.stages[stage]
        if snapshot.kind != "perplexity" and not figures.segments:
            continue
        stages.add_row(
            stage,
            f"{figures.tokens_per_s:,.0f}",
            f"{figures.tokens:,}",
            f"{figures.segments:,}",
            h_mm_ss(figures.busy_s),
            f"{figures.queue_depth:,}",
            f"{figures.retries:,}",
            f"{figures.stalls:,}",
        )
    return stages


def _headline(job: JobStatus) -> str:
    snapshot = job.snapshot
    who = printable(f"{snapshot.name}: {job.verdict}, as of {job.age_s:,.0f} s ago")
    after = h_mm_ss(snapshot.updated - snapshot.started)
    return f"{who}, after {after}\njob {snapshot.job}, process {snapshot.pid} on {printable(snapshot.host)}"


def _units(snapshot: JobSnapshot) -> str:
    total = "" if snapshot.units_total is None else f" of {snapshot.units_total:,}"
    parts = [f"{snapshot.kind}: {snapshot.unit} {snapshot.units_done:,}{total} done"]
    if snapshot.admitted_documents:
        parts.append(f"{snapshot.admitted_documents:,} begun, {snapshot.scored_documents:,} scored")
    if snapshot.failed_documents:
        parts.append(f"{snapshot.failed_documents:,} failed")
    if snapshot.eta_s is not None and snapshot.state == "running":
        parts.append(f"about {h_mm_ss(snapshot.eta_s)} left")
    return ", ".join(parts)


def _levels(snapshot: JobSnapshot) -> str:
    parts = [
        f"readers are {counted(snapshot.lag_segments, 'segment')} behind",
        f"{megabytes(snapshot.in_flight_bytes)} in flight",
        f"{megabytes(snapshot.store_bytes)} stored",
    ]
    if snapshot.gate_mean is not None:
        parts.append(f"gate {snapshot.gate_mean:.3f}")
    if snapshot.tokens_left and snapshot.state == "running":
        parts.append(f"{counted(snapshot.tokens_left, 'token')} of open documents left")
    return " · ".join(parts)


def _ends(job: JobStatus) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"failed: {printable(failure)}", style="red") for failure in job.snapshot.recent_failures
    ]
    if job.verdict == "killed":
        parts.append(Text("Its process is gone. Continue with: longmem resume FOLDER", style="yellow"))
    elif job.verdict == "silent":
        parts.append(Text("Its process is alive but silent: it hangs, or one task takes long.", style="yellow"))
    return parts
