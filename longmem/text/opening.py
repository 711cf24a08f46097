"""Opening an input file as bytes: regular files only, decompressed by suffix, never more than the limits in memory.

Decompression is by streams, so that a compressed file of any size needs the memory of one document.
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
"""Anything binary with `read` and `readline`: Python's files, gzip's, and those of fsspec share no base class."""

MAX_TEXT_BYTES = 2**30
"""Longest text file, decompressed: a longer one is refused, because a document is read whole."""
MAX_RECORD_BYTES = 2**28
"""Longest line of JSON, row of a table, or JSON array: parsing takes several times its bytes."""
BLOCK_BYTES = 2**20

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""Errors of reading a damaged or vanished file (damage inside gzip, bz2 and zstd is an OSError or EOFError)."""


def _open_zstd(raw: Any) -> Stream:
    """Return a stream over all frames of a zstd file; a cut frame is an OSError."""
    return BufferedReader(pa.input_stream(raw, compression="zstd"))


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Function that opens a compressed file, by the last part of its name. Several members or frames are joined."""


class TooLongError(Exception):
    """A file or line is longer than a limit; the message says which, and the limit."""


def compression_of(name: str) -> str:
    """Return the part of a file's name that says how it is compressed, or nothing."""
    return next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")


@contextmanager
def open_stream(path: str, filesystem: Any = None) -> Iterator[Stream]:
    """Open a file's decompressed bytes; `filesystem` is fsspec's, None for a local path.

    Raises READ_ERRORS, here and while it is read.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(_open_regular(path) if filesystem is None else filesystem.open(path, "rb"))
        compression = compression_of(path)
        yield stack.enter_context(COMPRESSIONS[compression](raw)) if compression else raw


def irregular_kind(mode: int) -> str | None:
    """Return what a file is that has no bytes of its own to read, None for a regular file."""
    kinds = {
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "folder",
    }
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "special file")


def _open_regular(path: str) -> Stream:
    """Open a local file that is a regular one: opening a FIFO would wait for its writer."""
    _require_regular(path, Path(path).stat().st_mode)
    # it may have become a FIFO since: O_NONBLOCK opens that at once, and means nothing for a regular file
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        stream.close()
        raise
    return stream


def _require_regular(path: str, mode: int) -> None:
    if (kind := irregular_kind(mode)) is not None:
        raise OSError(f"{path} is a {kind}, expected a regular file")


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
    """Yield lines with their numbers from 1, without those that are blank; None for one beyond MAX_RECORD_BYTES.

    A line ends with LF, CR LF, or a lone CR, which cannot stand inside JSON's strings. U+2028 and U+0085 end none.
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
