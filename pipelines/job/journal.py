# SPDX-License-Identifier: Apache-2.0
"""Journal of a job: an append-only file of results, so that a killed job loses no finished result.

One record per line, `<xxh3-64 of the JSON> <JSON>`. A process that dies during a write leaves at most one torn line at
the end, which is truncated at the next start. A bad line anywhere else is damage.
"""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import xxhash

from longmem.errors import OutputError
from longmem.types import PLACES
from pipelines.job.output import GrowingFile, encoded

JOURNAL = "journal.jsonl"
"""Name of the journal in the folder of a job."""

Dtype = type[np.int32 | np.float32 | np.uint8]

COLUMNS: dict[str, tuple[Dtype, int]] = {
    "targets": (np.int32, 1),
    "logprobs_longmem": (np.float32, 1),
    "logprobs_backbone": (np.float32, 1),
    "logprobs_memory": (np.float32, 1),
    "logprobs_no_memory": (np.float32, 1),
    "copy_share": (np.float32, 1),
    "uncopied": (np.float32, 1),
    "copied": (np.float32, 1),
    "places": (np.int32, PLACES),
    "weights": (np.float32, PLACES),
    "runs": (np.uint8, PLACES),
    "blocks": (np.int32, 2),
    "starts": (np.int32, 1),
    "lengths": (np.int32, 1),
}
"""Type and width of arrays that a journal holds as bytes."""

R = TypeVar("R")


class AbstractJournal(ABC, Generic[R]):
    """Journal of records that loads existing records when it is opened.

    Raises OutputError if it cannot be read or written, or is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        """Place in the file, in bytes, of the record that `_accept` gets."""
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = self._load(data)
        except OSError as error:
            raise OutputError(f"cannot open {path}: {error.strerror}") from error
        self._num_bytes = whole
        self._file = GrowingFile(path)
        if whole < len(data):
            self._file.cut(whole)

    @abstractmethod
    def _encode(self, record: R) -> dict[str, Any]:
        """Return a record as JSON values."""

    @abstractmethod
    def _decode(self, values: dict[str, Any]) -> R:
        """Return the record that `_encode` was given. Raises KeyError, TypeError or ValueError for other values."""

    @abstractmethod
    def _accept(self, record: R) -> None:
        """Store a record that was read or added."""

    def add(self, record: R) -> None:
        """Append one record. Once this returns, the record survives the death of the process."""
        text = encoded(self._encode(record), compact=True)
        line = f"{xxhash.xxh3_64_hexdigest(text)} ".encode() + text + b"\n"
        self._file.add(line)
        self._offset, self._num_bytes = self._num_bytes, self._num_bytes + len(line)
        self._accept(record)

    def _read(self, offsets: Iterable[int]) -> Iterator[R]:
        """Yield the records at these places of the file. Raises OutputError for a damaged one."""
        try:
            with self._path.open("rb") as file:
                for offset in offsets:
                    file.seek(offset)
                    text = _text_of(file.readline())
                    if text is None:
                        raise _damaged(self._path, f"byte {offset:,}")
                    yield self._decode(json.loads(text))
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, data: bytes) -> int:
        """Load all records and return the number of bytes of complete lines."""
        position = 0
        for number, (end, text) in enumerate(_lines(self._path, data), start=1):
            self._offset = position
            try:
                self._accept(self._decode(json.loads(text)))
            except (KeyError, TypeError, ValueError) as error:
                raise OutputError(
                    f"{self._path} line {number} was written by another version of longmem ({error}); finish the job "
                    "with that version or begin a new one"
                ) from error
            position = end
        return position


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the JSON text of each record of a journal, which is not changed.

    Raises OutputError if it cannot be read, or is damaged before its last line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    for _, text in _lines(path, data):
        yield text


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the end of each complete line, in bytes, and its JSON text. Raises OutputError for damage."""
    position = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        position += len(line)
        text = _text_of(line)
        if text is None:
            if position == len(data):
                return
            raise _damaged(path, f"line {number}")
        yield position, text


def _text_of(line: bytes) -> bytes | None:
    """Return the JSON of a line; None for one that is torn or damaged."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    whole = line.endswith(b"\n") and digest.decode("ascii", "replace") == xxhash.xxh3_64_hexdigest(text)
    return text if whole else None


def _damaged(path: Path, where: str) -> OutputError:
    return OutputError(
        f"{path} {where} is damaged (its checksum does not match); restore the folder from a copy or begin a new job "
        "in another folder"
    )


def packed(part: object) -> dict[str, Any]:
    """Return a dataclass of arrays, texts and numbers as JSON values."""
    fields: dict[str, Any] = {}
    for name, value in vars(part).items():
        if isinstance(value, np.ndarray):
            fields[name] = text_of(value)
        else:
            fields[name] = value if value is None or isinstance(value, str | int) else packed(value)
    return fields


def unpacked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `packed` was given, those of inner dataclasses as dictionaries."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name in COLUMNS and value is not None:
            dtype, width = COLUMNS[name]
            array = array_of(value, dtype)
            fields[name] = array if width == 1 else array.reshape(-1, width)
        else:
            fields[name] = unpacked(value) if isinstance(value, dict) else value
    return fields


def text_of(array: np.ndarray) -> str:
    """Return the bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(array).data).decode("ascii")


def array_of(text: str, dtype: Dtype) -> np.ndarray:
    """Return the array that `text_of` was given."""
    return np.frombuffer(base64.b64decode(text), dtype=dtype)
