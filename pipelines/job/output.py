# SPDX-License-Identifier: Apache-2.0
"""Redacted output files: the only module that writes into output folders.

Every string is redacted (`longmem.system.redaction`), except fields that quote an input. Files are written atomically.
Append-only files have one line per event and lose at most the line that is being written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import OutputError
from longmem.system.redaction import DATA_FIELDS, redacted, redacted_values
from longmem.wording import reason_of

AGAIN = "repair that and run again with --resume"
PART = ".part"
"""Suffix of an incomplete file."""


def write_json(path: Path, values: Mapping[str, Any], *, advice: str = AGAIN) -> None:
    """Write a JSON file atomically. Raises OutputError, whose message ends with `advice`."""
    text = json.dumps(redacted_values(values), indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), advice=advice)


def write_text(path: Path, text: str, *, advice: str = AGAIN) -> None:
    """Write a text file atomically. Raises OutputError."""
    # a name can hold an unpaired surrogate, which UTF-8 cannot encode
    write_bytes(path, redacted(text).encode("utf-8", "replace"), advice=advice)


def write_bytes(path: Path, data: bytes, *, advice: str = AGAIN) -> None:
    """Write a binary file, such as a picture, atomically and without redaction. Raises OutputError."""
    temporary = path.with_name(f".{path.name}{PART}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; {advice}") from error


def write_table(path: Path, table: pa.Table, group_rows: int | None = None) -> None:
    """Write a parquet file atomically, in row groups of `group_rows` (by default about a million); equal rows give
    equal bytes. Raises OutputError."""
    temporary = path.with_name(f".{path.name}{PART}")
    try:
        pq.write_table(_redacted_table(table), temporary, row_group_size=group_rows, compression="zstd")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}; then run again with --resume") from error


def _redacted_table(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name not in DATA_FIELDS:
            texts = [None if text is None else redacted(text) for text in table.column(index).to_pylist()]
            table = table.set_column(index, field, pa.array(texts, field.type))
    return table


class GrowingFile:
    """Unbuffered append-only file: a killed process keeps every line that was written.

    Raises OutputError if the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot open {path}: {error.strerror}") from error

    def cut(self, length: int) -> None:
        """Truncate the file to its first `length` bytes."""
        try:
            self._file.truncate(length)
        except OSError as error:
            raise OutputError(f"cannot open {self._path}: {error.strerror}") from error

    def add(self, line: bytes) -> None:
        """Append whole lines. They must come from `encoded`, or hold numbers only."""
        left = memoryview(line)
        try:
            # a write may be short
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; {AGAIN}") from error

    def close(self) -> None:
        self._file.close()


def encoded(values: Mapping[str, Any], *, compact: bool = False) -> bytes:
    """Return redacted values as one line of JSON, without the newline."""
    return json.dumps(redacted_values(values), separators=(",", ":") if compact else None, allow_nan=False).encode()
