"""The output folder of a job, which is also its checkpoint: who may use it, and what is put into it at the end.

job.json           what decides the results: inputs, model, settings. A job is resumed only with the same ones
job.lock           held by the process that runs the job
journal.jsonl      results as they came
status.json        how far the job is, every 2 s
log.jsonl          what happened to it
slices.json        what each process did that worked on it
memory.lance/      the memory store, unless another one was named
summary.json  documents.parquet  segments.parquet  tokens.parquet  report.html
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
from pipelines.command.interrupts import tidying
from pipelines.job.output import PART, write_json, write_table

JOB_FILE = "job.json"
LOCK_FILE = "job.lock"
STATUS_FILE = "status.json"
ADDED_SETTINGS = {"special_tokens": "parse"}
"""Settings that a job of an earlier version does not name, and what it did: such a job can be resumed."""


class FinishedSummary(dict[str, Any]):
    """The results of a job that had finished before: a `--resume` of it does nothing."""


class JobFolder:
    """Takes a folder for a new job, or for a resumed one, and keeps other processes out until it is closed. While it
    is open, an interruption is a KeyboardInterrupt, so that what writes into it ends in order.

    Raises OutputError when the folder belongs to something else, is in use, or cannot be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._held = ExitStack()
        try:
            path.mkdir(parents=True, exist_ok=True)
            # what a failed write has left (.…part) belongs to nobody
            names = sorted(each.name for each in path.iterdir())
            others = [name for name in names if name != LOCK_FILE and not name.endswith(PART)]
            # not "w": a finished job's folder stays as it is, times included
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
        """What the job to be resumed is; None for a new one."""
        return self._read_job()[1] if (self.path / JOB_FILE).exists() else None

    def claim(self, identity: dict[str, Any], asked: dict[str, Any] | None = None) -> str:
        """Write what this job is, or check that it is the one to be resumed; returns the job's own id.

        Secrets are no part of an identity: with another key to the same bucket it is the same job. `asked` is what the
        command asked for, as far as it is known before a model is loaded (see `finished`).

        Raises OutputError with the differences.
        """
        if not (self.path / JOB_FILE).exists():
            job_id = secrets.token_hex(8)
            job = {"id": job_id, "identity": identity}
            self.write_json(JOB_FILE, job if asked is None else {**job, "asked": asked})
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

    def finished(self, results: str, asked: dict[str, Any] | None = None) -> FinishedSummary | None:
        """Return what the results file of a finished job holds, or None where there is something left to do: no such
        file, or documents that failed, which a resumed job tries again.

        Call it with `asked` before a model is loaded: None also where the job was begun by another command, which may
        be the same job nonetheless. Call it without after `claim`, which has compared everything.
        """
        if asked is not None and (not (self.path / JOB_FILE).exists() or self._read_job()[2] != _as_stored(asked)):
            return None
        try:
            summary = FinishedSummary(json.loads((self.path / results).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # absent, or not ours: the job writes it again
            return None
        return None if summary.get("counts", {}).get("failed_documents") else summary

    def _read_job(self) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
        """Id, identity, and what the command had asked for."""
        path = self.path / JOB_FILE
        try:
            job = json.loads(path.read_text(encoding="utf-8"))
            # a job of an earlier version may hold secrets
            return str(job["id"]), _as_stored(dict(job["identity"])), job.get("asked")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot read {path}: {error}; begin a new job in another folder") from error

    def has_results_in(self, name: str) -> bool:
        """Return whether an earlier run has left something in the file, such as a journal."""
        path = self.path / name
        return path.exists() and path.stat().st_size > 0

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all. Raises OutputError."""
        write_json(self.path / name, values)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file whole or not at all; the same rows give the same bytes. Raises OutputError."""
        write_table(self.path / name, table)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Values as job.json holds them: without secrets, and as JSON gives them back."""
    stored: dict[str, Any] = json.loads(json.dumps(redacted_values(values)))
    return stored


def _differing(first: object, second: object) -> tuple[object, object]:
    """Return both values; of two dictionaries only the entries that differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first, second
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return {name: first.get(name) for name in names}, {name: second.get(name) for name in names}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
