"""What is known of live jobs, from an output folder or from a cluster, and how a terminal shows it."""

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actors.monitoring.job_status import JobSnapshot
from longmem.errors import OutputError
from longmem.stages import STAGES
from pipelines.command.console import printable
from pipelines.job.folder import JOB_FILE, LOCK_FILE, STATUS_FILE
from pipelines.job.format import clock as duration

SILENT_S = 30.0
"""A job writes every 2 s, unless one task of a job without workers takes longer."""


@dataclass(frozen=True)
class JobStatus:
    """A snapshot, how old it is, and whether a process holds the job's folder (None: asked over a cluster)."""

    snapshot: JobSnapshot
    age_s: float
    alive: bool | None

    @property
    def verdict(self) -> str:
        """One of: running, silent, killed, finished, failed, interrupted."""
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
    """The status of the job in an output folder. Raises OutputError when there is none."""
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


def _is_locked(folder: Path) -> bool:
    """Whether a process runs the job in this folder."""
    try:
        with (folder / LOCK_FILE).open() as file:
            # shared, and given back at once: two people may ask at the same time
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def render(jobs: list[JobStatus]) -> RenderableType:
    """A few lines for every job."""
    return Group(*(part for job in jobs for part in _parts(job)))


def _parts(job: JobStatus) -> list[RenderableType]:
    snapshot = job.snapshot
    parts: list[RenderableType] = [Text(_headline(job), style="bold"), Text(_units(snapshot))]
    if snapshot.unit == "documents" or any(stage.segments for stage in snapshot.stages.values()):
        parts += [_stages(snapshot), Text(_levels(snapshot))]
    return [*parts, *_ends(job)]


def _stages(snapshot: JobSnapshot) -> Table:
    """Return a table that fits 80 columns."""
    stages = Table(box=None, padding=(0, 1), header_style="dim")
    stages.add_column("stage")
    for title in ("tokens/s", "tokens", "segments", "busy", "queued", "retries", "stalls"):
        stages.add_column(title, justify="right")
    for stage in STAGES:
        of_stage = snapshot.stages[stage]
        stages.add_row(
            stage,
            f"{of_stage.tokens_per_s:,.0f}",
            f"{of_stage.tokens:,}",
            f"{of_stage.segments:,}",
            duration(of_stage.busy_s),
            f"{of_stage.queue_depth:,}",
            f"{of_stage.retries:,}",
            f"{of_stage.stalls:,}",
        )
    return stages


def _headline(job: JobStatus) -> str:
    snapshot = job.snapshot
    who = printable(f"{snapshot.name}: {job.verdict}, as of {job.age_s:,.0f} s ago")
    after = duration(snapshot.updated - snapshot.started)
    return f"{who}, after {after}\njob {snapshot.job}, process {snapshot.pid} on {printable(snapshot.host)}"


def _units(snapshot: JobSnapshot) -> str:
    total = "" if snapshot.units_total is None else f" of {snapshot.units_total:,}"
    parts = [f"{snapshot.kind}: {snapshot.unit} {snapshot.units_done:,}{total} done"]
    if snapshot.admitted_documents:
        parts.append(f"{snapshot.admitted_documents:,} begun, {snapshot.scored_documents:,} scored")
    if snapshot.failed_documents:
        parts.append(f"{snapshot.failed_documents:,} failed")
    if snapshot.eta_s is not None and snapshot.state == "running":
        parts.append(f"about {duration(snapshot.eta_s)} left")
    return ", ".join(parts)


def _levels(snapshot: JobSnapshot) -> str:
    parts = [
        f"readers are {snapshot.lag_segments:,} segments behind",
        f"{snapshot.in_flight_bytes / 1e6:,.0f} MB in flight",
        f"{snapshot.store_bytes / 1e6:,.0f} MB stored",
    ]
    if snapshot.gate_mean is not None:
        parts.append(f"gate {snapshot.gate_mean:.3f}")
    if snapshot.tokens_left and snapshot.state == "running":
        parts.append(f"{snapshot.tokens_left:,} tokens of open documents left")
    return " · ".join(parts)


def _ends(job: JobStatus) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"failed: {printable(each)}", style="red") for each in job.snapshot.recent_failures
    ]
    if job.verdict == "killed":
        parts.append(Text("Its process is gone. Continue with the same command and --resume.", style="yellow"))
    elif job.verdict == "silent":
        parts.append(Text("Its process lives and says nothing: it hangs, or one task takes long.", style="yellow"))
    return parts
