# SPDX-License-Identifier: Apache-2.0
"""Reads the names of a version's deletion files from its Lance manifest; lancedb has no call for it.

A manifest ends with the offset of its message (8 bytes), two version numbers (2 bytes each) and `LANC`. The message is
a protobuf after its length (4 bytes): `Manifest.fragments` is field 2, `DataFragment.id` 1 and `.deletion_file` 3,
`DeletionFile.file_type` 1, `.read_version` 2 and `.id` 3 (Lance's `protos/table.proto`).
"""

from collections.abc import Iterator

DELETIONS = "_deletions"
"""Folder of a table's deletion files."""

_MAGIC = b"LANC"
_FOOTER = 16

_SUFFIXES = ("arrow", "bin")
"""File suffix by file type: few deleted rows are an Arrow array, many a bitmap."""


def deletion_files(manifest: bytes) -> list[str]:
    """Return the names of a version's deletion files. Raises ValueError for a malformed manifest."""
    if len(manifest) < _FOOTER or not manifest.endswith(_MAGIC):
        raise ValueError("not a Lance manifest: its last bytes are not `LANC`")
    start = int.from_bytes(manifest[-_FOOTER : -_FOOTER + 8], "little")
    end = start + 4 + int.from_bytes(manifest[start : start + 4], "little")
    if end > len(manifest) - _FOOTER:
        raise ValueError("not a Lance manifest: its message does not end before its footer")
    names = []
    for field, fragment in _fields(manifest, start + 4, end):
        if field != 2:
            continue
        number, deletion = 0, None
        for part, value in _fields(manifest, *_span(fragment)):
            if part == 1:
                number = _number(value)
            elif part == 3:
                deletion = _span(value)
        if deletion is not None:
            numbers = {part: _number(value) for part, value in _fields(manifest, *deletion) if part <= 3}
            kind = numbers.get(1, 0)
            if kind >= len(_SUFFIXES):
                raise ValueError(f"not a Lance manifest: a deletion file of the unknown type {kind}")
            names.append(f"{number}-{numbers.get(2, 0)}-{numbers.get(3, 0)}.{_SUFFIXES[kind]}")
    return names


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Yield a message's fields: the field number, and its integer value or the span of its bytes."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"not a Lance manifest: a field of the unknown kind {kind}")
        if at + size > end:
            raise ValueError("not a Lance manifest: a field does not end before its message")
        yield tag >> 3, (at, at + size)
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("not a Lance manifest: a number does not end")
        byte = data[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
        shift += 7


def _number(value: int | tuple[int, int]) -> int:
    if not isinstance(value, int):
        raise ValueError("not a Lance manifest: bytes where a number is expected")
    return value


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("not a Lance manifest: a number where bytes are expected")
    return value
