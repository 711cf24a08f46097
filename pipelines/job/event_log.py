# SPDX-License-Identifier: Apache-2.0
"""Event log of a job: `log.jsonl`, one JSON object per line, for `jq` and log collectors.

    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "event": "worker_retry", "job": "3f…", "document": "moby",
     "segment": 17, "stage": "score", "message": "…"}

Fields without a value are omitted. A resumed job appends to the same file. All text is ASCII-escaped, so a document's
name can neither end a line nor send control characters to a terminal.
"""

import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import longmem
from longmem.errors import LongMemError
from longmem.model.source import ModelDescription
from longmem.runtime.executor import Completion, ExecutorEvent
from longmem.wording import counted
from pipelines.job.observer import JobObserver
from pipelines.job.output import GrowingFile, encoded

Level = Literal["info", "warning", "error"]

_LIBRARIES = ("torch", "transformers", "ray", "lancedb")


class EventLog(JobObserver):
    """Observer that appends events to a job's log, unbuffered. Raises OutputError if the file cannot be written."""

    def __init__(self, path: Path, job_id: str) -> None:
        self._job_id = job_id
        self._file = GrowingFile(path)

    def event(self, event: str, message: str, level: Level = "info", **fields: Any) -> None:
        """Write one line; fields that are None are omitted."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: Mapping[str, Any] = {
            "time": now,
            "level": level,
            "event": event,
            "job": self._job_id,
            **{name: value for name, value in fields.items() if value is not None},
            "message": message,
        }
        self._file.add(encoded(line) + b"\n")

    def started(self, command: str, resumed: bool) -> None:
        """Log the start or the resumption of the job, with its working directory and library versions."""
        versions = {"longmem": longmem.__version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in _LIBRARIES}
        self.event("job_resumed" if resumed else "job_started", command, folder=str(Path.cwd()), versions=versions)

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        self.event("document_admitted", _to_score(num_tokens, num_segments), document=document)

    def task_ended(self, completion: Completion) -> None:
        if completion.error is not None:
            self.event(
                "task_failed",
                str(completion.error),
                "error",
                document=completion.segment.key.document,
                segment=completion.segment.index,
                stage=completion.stage,
            )

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:  # noqa: ARG002
        if error is None:
            self.event("document_scored", "every segment is scored", document=document)
        else:
            self.scored_document_failed(document, error)

    def scored_document_failed(self, document: str, error: LongMemError) -> None:
        self.event("document_failed", str(error), "error", document=document)

    def worker_event(self, event: ExecutorEvent) -> None:
        segment = event.segment
        self.event(
            f"worker_{event.kind.replace(' ', '_')}",
            event.message,
            "info" if event.kind == "back" else "warning",
            document=None if segment is None else segment.key.document,
            segment=None if segment is None else segment.index,
            stage=event.stage,
            worker=event.worker or None,
        )

    def close(self) -> None:
        self._file.close()


class EventNotes(JobObserver):
    """Observer that prints the events of a job through `tell`, without those that the progress display prints."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def started(self, job_id: str, command: str, model: ModelDescription | None) -> None:
        """Print what is run, and with which model and settings."""
        self._tell(f"job {job_id}: {command}")
        if model is not None:
            settings = ", ".join(f"{name}={value}" for name, value in model.settings.items())
            self._tell(f"model: {model.name}, {model.num_parameters:,} parameters, {settings}")
        versions = {"longmem": longmem.__version__, **{name: version(name) for name in _LIBRARIES}}
        self._tell("versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        self._tell(f"{document}: {_to_score(num_tokens, num_segments)}")

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        if segment_bytes:
            self._tell(f"{document}: {counted(len(segment_bytes), 'segment')} found in the store")

    def trimmed(self, document: str, first_segment: int) -> None:
        self._tell(f"{document}: segments before {first_segment:,} are removed from the store")

    def task_ended(self, completion: Completion) -> None:
        key = completion.segment.key.document
        outcome = f"failed: {completion.error}" if completion.error is not None else f"{completion.busy_s:.3f} s"
        self._tell(f"{key}: segment {completion.segment.index:,} {completion.stage} {outcome}")

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        if error is None:
            self._tell(f"{document}: every segment is scored{', its memory is kept' if kept else ''}")

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        self._tell(f"{unit}: {'an unknown number' if total is None else f'{total:,}'}, of which {done:,} are done")


def _to_score(num_tokens: int, num_segments: int) -> str:
    return f"{counted(num_segments, 'segment')}, {counted(num_tokens, 'token')} to be scored"
