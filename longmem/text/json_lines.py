# SPDX-License-Identifier: Apache-2.0
"""Reader of JSON lines for documents, in-context examples and suffix examples.

Any line may begin with a byte order mark, because files with one may be concatenated. Blank lines are skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longmem.errors import DocumentError
from longmem.text import opening
from longmem.text.opening import READ_ERRORS, TooLongError, numbered_lines, open_stream, read_whole
from longmem.wording import reason_of


class SpelledNumber(str):
    """A number with its spelling in a JSON file: `1.50` stays `1.50`."""

    __slots__ = ()


def parse_json(data: bytes, where: str, *, spelled_numbers: bool = False, expected: str = "JSON") -> Any:
    """Return the value of a JSON text. With `spelled_numbers` numbers are SpelledNumber; NaN and Infinity are floats.

    Raises DocumentError that names `where`, including for an object with a duplicate name, which would lose a value.
    """
    kind = SpelledNumber if spelled_numbers else None
    try:
        return json.loads(data.decode("utf-8-sig"), parse_int=kind, parse_float=kind, object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{where} is not valid UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not valid JSON: {error}; expected {expected}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these names and values. Raises ValueError for a duplicate name."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice!r:.40} twice")
    return values


def parse_object(data: bytes | None, where: str, *, spelled_numbers: bool = False, expected: str) -> dict[str, Any]:
    """Return the object of one line of `numbered_lines`.

    Raises DocumentError for a line that is too long, not UTF-8, not JSON, or JSON that is not an object.
    """
    if data is None:
        raise DocumentError(
            f"{where} has more than {opening.MAX_RECORD_BYTES:,} bytes, the most that is read as one line"
        )
    values = parse_json(data, where, spelled_numbers=spelled_numbers, expected=expected)
    if not isinstance(values, dict):
        shown = data.decode("utf-8-sig").strip()[:40]
        raise DocumentError(f"{where} must be a JSON object, got {type(values).__name__}: {shown}")
    return values


def read_objects(
    path: Path, *, spelled_numbers: bool = False, expected: str
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield line number, location text and values of every object in a file of JSON lines, compressed or not.

    Raises DocumentError for the first line that is not an object, and for a file that cannot be read.
    """
    try:
        with open_stream(str(path)) as stream:
            for number, line in numbered_lines(stream):
                where = f"{path} line {number}"
                yield number, where, parse_object(line, where, spelled_numbers=spelled_numbers, expected=expected)
    except READ_ERRORS as error:
        raise DocumentError(f"cannot read {path}: {reason_of(error)}") from error


def read_json_file(path: Path, *, spelled_numbers: bool = False, expected: str) -> Any:
    """Return the value of a .json file, compressed or not. Raises DocumentError."""
    try:
        with open_stream(str(path)) as stream:
            data = read_whole(stream, opening.MAX_RECORD_BYTES)
    except TooLongError as error:
        raise DocumentError(f"{path} has {error}") from error
    except READ_ERRORS as error:
        raise DocumentError(f"cannot read {path}: {reason_of(error)}") from error
    return parse_json(data, str(path), spelled_numbers=spelled_numbers, expected=expected)
