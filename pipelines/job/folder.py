# SPDX-License-Identifier: Apache-2.0
"""Output folder of a job, which is also its checkpoint.

job.json           identity: inputs, model and settings that decide the results; a resumed job must have the same
job.lock           locked by the process that runs the job
journal.jsonl      results, in order of completion
status.json        progress, written every 2 s
log.jsonl          events
slices.json        work of each process that ran the job
memory.lance/      the memory store, unless another one was named
summary.json  documents.parquet  segments.parquet  report.html
tokens.parquet  readings.parquet  passages.parquet       with --tokens (of other jobs than perplexity: their tables.py)
"""

import fcntl
import json
import secrets
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from longmem.errors import OutputError
from longmem.system.redaction import redacted_values
from longmem.wording import reason_of
from pipelines.command.interrupts import tidying
from pipelines.job.output import PART, write_json, write_table

JOB_FILE = "job.json"
LOCK_FILE = "job.lock"
STATUS_FILE = "status.json"
LOG_FILE = "log.jsonl"
ADDED_SETTINGS = {"special_tokens": "parse"}
"""Default values of settings that jobs of earlier versions do not record, so that they can be resumed."""


class FinishedSummary(dict[str, Any]):
    """Results of a job that had finished before; `--resume` changes nothing."""


class JobFolder:
    """Exclusive access to the folder of a new or resumed job until it is closed.

    While it is open, an interruption raises KeyboardInterrupt, so that writers end in order. Raises OutputError if the
    folder holds something else, is in use, or cannot be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._held = ExitStack()
        try:
            path.mkdir(parents=True, exist_ok=True)
            # leftovers of a failed write (.…part) do not count
            names = sorted(entry.name for entry in path.iterdir())
            others = [name for name in names if name != LOCK_FILE and not name.endswith(PART)]
            # not "w": a finished job's folder must keep its modification times
            self._lock = (path / LOCK_FILE).open("a")
        except OSError as error:
            raise OutputError(f"cannot use output folder {path}: {error.strerror}; choose another --out") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise OutputError(
                f"another process is running the job in {path}; wait for it or choose another --out"
            ) from error
        if others and not resume:
            self.close()
            whose = "another job" if JOB_FILE in others else f"other files ({', '.join(others[:3])})"
            raise OutputError(f"{path} holds {whose}; choose another --out, or continue that job with --resume")
        if others and JOB_FILE not in others:
            self.close()
            raise OutputError(f"cannot resume in {path}: it holds no job.json, but {', '.join(others[:3])}")
        self._held.enter_context(tidying())

    def stored_identity(self) -> dict[str, Any] | None:
        """Return the identity of the job to be resumed; None for a new job."""
        return self._read_job()[1] if (self.path / JOB_FILE).exists() else None

    def claim(self, identity: dict[str, Any], requested: dict[str, Any] | None = None) -> str:
        """Write the identity of a new job, or compare it with the stored one; return the job's id.

        Secrets are not part of an identity: another key to the same bucket gives the same job. `requested` is the part
        of the identity that is known before a model is loaded (see `finished`).

        Raises OutputError with the differences.
        """
        if not (self.path / JOB_FILE).exists():
            job_id = secrets.token_hex(8)
            job = {"id": job_id, "identity": identity}
            self.write_json(JOB_FILE, job if requested is None else {**job, "asked": requested})
            return job_id
        job_id, stored, _ = self._read_job()
        offered = _as_stored(identity)
        for name, value in ADDED_SETTINGS.items():
            if name in offered.get("settings", ()):
                stored.get("settings", {}).setdefault(name, value)
        if names := sorted(name for name in {*stored, *offered} if stored.get(name) != offered.get(name)):
            both = [(name, *_differing(stored.get(name), offered.get(name))) for name in names]
            pairs = [f"{name}: {_short(theirs)} != {_short(ours)}" for name, theirs, ours in both]
            raise OutputError(
                f"{self.path} holds another job (its job.json != this command): {'; '.join(pairs)}; "
                "resume with the same inputs and settings, or choose another --out"
            )
        return job_id

    def finished(self, results: str, requested: dict[str, Any] | None = None) -> FinishedSummary | None:
        """Return the results file of a finished job, or None if work is left.

        Work is left if there is no such file, or if documents failed, which a resumed job retries. Call it with
        `requested` before a model is loaded: it then also returns None if another command began the job, whose identity
        may still be equal. Call it without `requested` after `claim`, which has compared the whole identity.
        """
        if requested is not None and (
            not (self.path / JOB_FILE).exists() or self._read_job()[2] != _as_stored(requested)
        ):
            return None
        try:
            summary = FinishedSummary(json.loads((self.path / results).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # absent or damaged: the job writes it again
            return None
        return None if summary.get("counts", {}).get("failed_documents") else summary

    def _read_job(self) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
        """Return id, identity and request of the stored job."""
        path = self.path / JOB_FILE
        try:
            job = json.loads(path.read_text(encoding="utf-8"))
            # jobs of earlier versions may hold secrets
            return str(job["id"]), _as_stored(dict(job["identity"])), job.get("asked")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot read {path}: {reason_of(error)}; begin a new job in another folder") from error

    def has_results_in(self, name: str) -> bool:
        """Return whether a file of an earlier run, such as a journal, exists and is not empty."""
        path = self.path / name
        return path.exists() and path.stat().st_size > 0

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file atomically. Raises OutputError."""
        write_json(self.path / name, values)

    def write_table(self, name: str, table: pa.Table, group_rows: int | None = None) -> None:
        """Write a parquet file atomically, in row groups of `group_rows`; equal rows give equal bytes.

        Raises OutputError.
        """
        write_table(self.path / name, table, group_rows)

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as job.json holds them: redacted, and converted to JSON and back."""
    stored: dict[str, Any] = json.loads(json.dumps(redacted_values(values)))
    return stored


def _differing(first: object, second: object) -> tuple[object, object]:
    """Return both values; for two dictionaries only the entries that differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first, second
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return {name: first.get(name) for name in names}, {name: second.get(name) for name in names}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
