# SPDX-License-Identifier: Apache-2.0
"""Finished runs as a comparison reads them: their folders, what differs between them, and why some are refused."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError, OutputError
from longmem.wording import reason_of
from pipelines.job.folder import JOB_FILE
from pipelines.watch.status import unfinished

COMPARABLE = ("perplexity", "icl")
SUMMARY_FILE = "summary.json"

_HASHED = {"backbone": "backbone weights", "tokenizer": "tokenizer", "sidenet": "SideNet weights"}
"""Entries of a fingerprint that are hashes, and their names in the list of differences."""


@dataclass(frozen=True)
class FinishedRun:
    """Folder of a finished job."""

    name: str
    """Shortest end of the path that no other run of the comparison has."""
    folder: Path
    kind: str
    identity: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def tokenizer(self) -> str:
        """Hash of the tokenizer."""
        return str(self.summary["model"]["fingerprint"]["tokenizer"])

    def table(self, name: str, columns: Sequence[str], texts: Sequence[str] = ()) -> pa.Table:
        """Return columns of a parquet table; `texts` are read as dictionaries. Raises OutputError."""
        with self._reading(name) as path:
            return pq.read_table(path, columns=list(columns), read_dictionary=list(texts))

    def columns(self, name: str) -> list[str]:
        """Return the names of a table's columns. Raises OutputError."""
        with self._reading(name) as path:
            return list(pq.read_schema(path).names)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.folder / f"{name}.parquet"
        try:
            yield path
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot read {path}: {reason_of(error)}; remove {SUMMARY_FILE} and write the tables anew with: "
                f"longmem resume {quote(str(self.folder))}"
            ) from error

    def has_table(self, name: str) -> bool:
        return (self.folder / f"{name}.parquet").exists()


@dataclass(frozen=True)
class DifferingProperty:
    """Property that is not the same in all runs, with its value in each."""

    name: str
    values: list[Any]


def open_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs in these folders, whose first is the baseline.

    Raises ConfigError and OutputError where they are fewer than two, unfinished, of several kinds, or of a kind that
    has no comparison.
    """
    if len(folders) < 2:
        raise ConfigError(f"compare needs at least two runs, got {len(folders)}: name the folders of finished jobs")
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise ConfigError(f"{folders[index]} is given twice; name different runs")
    runs = [_open(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]
    first = runs[0]
    for run in runs[1:]:
        if run.kind != first.kind:
            raise ConfigError(
                f"{run.folder} is a job of kind {run.kind}, and {first.folder} of kind {first.kind}: they have no "
                "figure in common; compare runs of one kind"
            )
    if first.kind not in COMPARABLE:
        raise ConfigError(
            f"{first.folder} is a job of kind {first.kind}; expected one of {', '.join(COMPARABLE)}, which are the "
            "kinds that can be compared"
        )
    return runs


def _open(folder: Path, name: str) -> FinishedRun:
    path = folder / JOB_FILE
    try:
        identity = dict(json.loads(path.read_text(encoding="utf-8"))["identity"])
        kind = str(identity["job"])
    except FileNotFoundError as error:
        raise OutputError(unfinished(folder)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"cannot read {path}: {reason_of(error)}; restore it from a copy") from error
    if kind not in COMPARABLE:
        return FinishedRun(name, folder, kind, identity, {})
    try:
        summary = dict(json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")))
        run = FinishedRun(name, folder, kind, identity, summary)
        _described(run)
    except FileNotFoundError as error:
        raise OutputError(unfinished(folder)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"cannot read {folder / SUMMARY_FILE}: {type(error).__name__}: {error}; remove it and write it anew with: "
            f"longmem resume {quote(str(folder))}"
        ) from error
    return run


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest different ends of different paths."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [str(Path(*folder.parts[-length:])) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError(f"different paths have equal parts: {folders}")


def differences(runs: Sequence[FinishedRun]) -> list[DifferingProperty]:
    """Return the model, settings, versions and place of work that are not the same in all runs, in this order."""
    described = [_described(run) for run in runs]
    names = list(dict.fromkeys(name for each in described for name in each))
    found = [DifferingProperty(name, [each.get(name) for each in described]) for name in names]
    return [each for each in found if any(value != each.values[0] for value in each.values[1:])]


def _described(run: FinishedRun) -> dict[str, Any]:
    summary = run.summary
    model, weights = summary["model"], summary["model"]["fingerprint"]
    identity = {
        name: value
        for name, value in run.identity.items()
        if name not in ("job", "inputs", "tasks", "model", "settings", "keep_tokens") and not isinstance(value, dict)
    }
    return {
        "model": model["name"],
        **{name: str(weights[key])[:8] for key, name in _HASHED.items()},
        "dtype": weights["compute_dtype"],
        **summary["settings"],
        **identity,
        **(summary.get("grid", {}).get("whole") or {}),
        "longmem": summary["longmem_version"],
        **summary["versions"],
        **{name: summary["executor"].get(name) for name in ("address", "threads", "workers", "encoders", "readers")},
    }
