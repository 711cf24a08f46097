# SPDX-License-Identifier: Apache-2.0
"""Reads the documents of one file by format. Unreadable ones are yielded as UnreadableDocument."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from longmem.errors import DocumentError
from longmem.text import opening
from longmem.text.finding import InputFile
from longmem.text.json_lines import parse_json, parse_object
from longmem.text.opening import READ_ERRORS, TooLongError, numbered_lines, open_stream, read_whole
from longmem.text.rows import decoded, document_of
from longmem.text.unreadable import UnreadableDocument, unreadable
from longmem.types import Document
from longmem.wording import reason_of

EXPECTED = '{"text": ...}'
BATCH_ROWS = 16

Documents = Iterator[Document | UnreadableDocument]


def read_file(file: InputFile) -> Documents:
    """Yield the documents of one file. A file without documents yields one UnreadableDocument."""
    read = {"text": _read_text, "lines": _read_lines, "json": _read_json, "table": _read_table}[file.kind]
    found = False
    try:
        for document in read(file):
            found = True
            yield document
        if not found:
            yield unreadable(file.id, file.shown, f"{file.shown} is empty: expected at least one document")
    except TooLongError as error:
        yield unreadable(file.id, file.shown, f"cannot read {file.shown}: it has {error}")
    except READ_ERRORS as error:
        yield unreadable(file.id, file.shown, f"cannot read {file.shown}: {reason_of(error)}")
    except Exception as error:
        # a remote file system raises the errors of its client (botocore, aiohttp, …), which have no common base
        if file.filesystem is None:
            raise
        yield unreadable(file.id, file.shown, f"cannot read {file.shown}: {type(error).__name__}: {error}")


def _read_text(file: InputFile) -> Documents:
    limit = opening.MAX_TEXT_BYTES
    if file.filesystem is None and file.suffix == ".txt" and (size := Path(file.path).stat().st_size) > limit:
        raise TooLongError(f"{size:,} bytes, a document may have {limit:,}; split it")
    with open_stream(file.path, file.filesystem) as stream:
        yield decoded(file.id, file.shown, read_whole(stream, limit))


def _read_lines(file: InputFile) -> Documents:
    with open_stream(file.path, file.filesystem) as stream:
        for number, line in numbered_lines(stream):
            yield _from_line(file, number, line)


def _from_line(file: InputFile, number: int, line: bytes | None) -> Document | UnreadableDocument:
    name, source = f"{file.id}:{number}", f"{file.shown} line {number}"
    try:
        values = parse_object(line, source, expected=EXPECTED)
    except DocumentError as error:
        return unreadable(name, source, str(error))
    return document_of(name, source, values.get("text"), values.get("id"))


def _read_json(file: InputFile) -> Documents:
    """Yield documents of JSON lines if the first line is a complete object, so that files of any size are read by line.

    Otherwise the file is one JSON value over any number of lines: an object, or an array of objects.
    """
    with open_stream(file.path, file.filesystem) as stream:
        lines = numbered_lines(stream)
        first = next(lines, None)
        if first is None:
            return
        if _is_object(first[1]):
            for number, line in chain([first], lines):
                yield _from_line(file, number, line)
            return
    with open_stream(file.path, file.filesystem) as stream:
        data = read_whole(stream, opening.MAX_RECORD_BYTES)
    try:
        values = parse_json(data, file.shown, expected=f"{EXPECTED}, an array of them, or one on each line")
    except DocumentError as error:
        lines_of = [line for line in data.splitlines() if line.strip()]
        if not any(_is_object(line) for line in lines_of):
            yield unreadable(file.id, file.shown, str(error))
            return
        for number, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                yield _from_line(file, number, line)
        return
    for number, each in enumerate(values if isinstance(values, list) else [values], start=1):
        name, source = f"{file.id}:{number}", f"{file.shown} object {number}"
        if isinstance(each, dict):
            yield document_of(name, source, each.get("text"), each.get("id"))
        else:
            yield unreadable(name, source, f"{source} must be a JSON object, got {type(each).__name__}")


def _is_object(line: bytes | None) -> bool:
    if line is None or not line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(parse_json(line, ""), dict)
    except DocumentError:
        return False


def _read_table(file: InputFile) -> Documents:
    with open_stream(file.path, file.filesystem) as stream, pq.ParquetFile(stream) as table:
        names = table.schema_arrow.names
        for name in ("text", "id"):
            if (count := names.count(name)) > 1 or (count == 0 and name == "text"):
                held = f"it has {count}: {names}" if count else f"it has {names}"
                yield unreadable(file.id, file.shown, f"{file.shown} needs a column `{name}`, {held}")
                return
        columns = [name for name in ("text", "id") if name in names]
        first = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for row in range(batch.num_rows):
                yield _from_row(file, first + row, batch.slice(row, 1))
            first += batch.num_rows


def _from_row(file: InputFile, row: int, values: Any) -> Document | UnreadableDocument:
    """Return the document of one row; `values` is a batch of one row."""
    name, source = f"{file.id}:{row}", f"{file.shown} row {row}"
    if values.nbytes > opening.MAX_RECORD_BYTES:
        return unreadable(name, source, f"{source} has {values.nbytes:,} bytes, a row may have {_limit()}")
    try:
        (fields,) = values.to_pylist()
    except UnicodeDecodeError as error:
        return unreadable(name, source, f"{source} is not valid UTF-8: {error.reason} at byte {error.start}")
    return document_of(name, source, fields["text"], fields.get("id"))


def _limit() -> str:
    return f"{opening.MAX_RECORD_BYTES:,}"
