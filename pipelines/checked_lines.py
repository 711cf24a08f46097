"""A file of JSON values, one per line, that grows and survives the death of its process.

Each line is `<xxh3-64 of the JSON> <JSON>`. A process that dies while it writes leaves at most one torn line at the
end, which is cut off at the next start; a bad line anywhere else is damage.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from longmem.errors import OutputError


class CheckedLines:
    """Opens (or begins) a file and hands every value that it holds to `accept`.

    Raises OutputError when it cannot be read or written, is damaged before its last line, or holds what `accept` does
    not take (KeyError, TypeError or ValueError).
    """

    def __init__(self, path: Path, accept: Callable[[Any], None]) -> None:
        self._path = path
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = self._load(data, accept)
            self._file = path.open("ab", buffering=0)
            if whole < len(data):
                self._file.truncate(whole)
        except OSError as error:
            raise OutputError(f"cannot open {path}: {error.strerror}") from error

    def add(self, values: Any) -> None:
        """Append one value; when this returns it survives the death of the process."""
        text = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
        try:
            line = memoryview(f"{xxhash.xxh3_64_hexdigest(text)} ".encode() + text + b"\n")
            # unbuffered, so that nothing is left to be written when the file is closed; a write may be short
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; repair that and run again with --resume"
            ) from error

    def close(self) -> None:
        self._file.close()

    def _load(self, data: bytes, accept: Callable[[Any], None]) -> int:
        """Take every value; returns the length of the whole lines."""
        position = 0
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            end = position + len(line)
            digest, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or digest.decode("ascii", "replace") != xxhash.xxh3_64_hexdigest(text):
                if end == len(data):
                    break
                raise OutputError(
                    f"{self._path} line {number} is damaged (its checksum does not match); restore the folder from a "
                    "copy or begin a new job in another folder"
                )
            try:
                accept(json.loads(text))
            except (KeyError, TypeError, ValueError) as error:
                raise OutputError(
                    f"{self._path} line {number} was written by another version of longmem ({error}); finish the job "
                    "with that version or begin a new one"
                ) from error
            position = end
        return position
