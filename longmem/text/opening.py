# SPDX-License-Identifier: Apache-2.0
"""Opens input files as bytes: regular files only, decompressed by suffix, with limits on the bytes in memory.

Decompression is streamed, so that a compressed file of any size needs the memory of one document.
"""

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

Stream = Any
"""Binary file with `read` and `readline`: the files of Python, gzip and fsspec share no base class."""

MAX_TEXT_BYTES = 2**30
"""Maximum bytes of a decompressed text file, because a document is read completely."""
MAX_RECORD_BYTES = 2**28
"""Maximum bytes of a JSON line, a table row or a JSON array: parsing needs several times as many."""
BLOCK_BYTES = 2**20

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""Errors of reading a damaged or vanished file (damage inside gzip, bz2 and zstd is an OSError or EOFError)."""


def _open_zstd(raw: Any) -> Stream:
    """Return a stream over all frames of a zstd file. A truncated frame raises OSError."""
    return BufferedReader(pa.input_stream(raw, compression="zstd"))


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Function that opens a compressed file, by suffix. Several members or frames are concatenated."""


class TooLongError(Exception):
    """A file or line exceeds a limit, which the message names."""


def compression_of(name: str) -> str:
    """Return the compression suffix of a file name, or an empty string."""
    return next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")


@contextmanager
def open_stream(path: str, filesystem: Any = None) -> Iterator[Stream]:
    """Open a file's decompressed bytes; `filesystem` is one of fsspec, or None for a local path.

    Raises READ_ERRORS when opened and when read.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(_open_regular(path) if filesystem is None else filesystem.open(path, "rb"))
        compression = compression_of(path)
        yield stack.enter_context(COMPRESSIONS[compression](raw)) if compression else raw


def irregular_kind(mode: int) -> str | None:
    """Return the kind of a file that is not regular, or None for a regular one."""
    kinds = {
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "folder",
    }
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "special file")


def _open_regular(path: str) -> Stream:
    """Open a regular local file. Raises OSError for others: opening a FIFO would block until it has a writer."""
    _require_regular(Path(path).stat().st_mode)
    # it may have become a FIFO since: O_NONBLOCK opens a FIFO at once, and has no effect on a regular file
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    try:
        _require_regular(os.fstat(descriptor).st_mode)
    except OSError:
        stream.close()
        raise
    return stream


def _require_regular(mode: int) -> None:
    if (kind := irregular_kind(mode)) is not None:
        raise OSError(f"it is a {kind}, expected a regular file")


def read_whole(stream: Stream, limit: int) -> bytes:
    """Return all bytes of a stream, read in blocks. Raises TooLongError beyond `limit` bytes."""
    blocks: list[bytes] = []
    left = limit
    while block := stream.read(min(BLOCK_BYTES, left + 1)):
        left -= len(block)
        if left < 0:
            raise TooLongError(f"more than {limit:,} bytes, the most that is read as one document; split it")
        blocks.append(block)
    return b"".join(blocks)


def numbered_lines(stream: Stream) -> Iterator[tuple[int, bytes | None]]:
    """Yield lines that are not blank, with their numbers from 1. A line beyond MAX_RECORD_BYTES is yielded as None.

    A line ends with LF, CR LF, or a lone CR, which JSON strings cannot contain. U+2028 and U+0085 do not end lines.
    """
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            _skip_line(stream)
            yield number, None
            continue
        parts = [part for part in line.strip().split(b"\r") if part.strip()]
        for index, part in enumerate(parts):
            yield number + index, part
        number += max(0, len(parts) - 1)


def _skip_line(stream: Stream) -> None:
    while (rest := stream.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass
