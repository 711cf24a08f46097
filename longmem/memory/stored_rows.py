# SPDX-License-Identifier: Apache-2.0
"""Stored keys or values of one block, of which few rows are read: in a tensor, or in a temporary file.

A window of 65,536 tokens of all layers has 1.4 GiB, and a segment reads a twentieth of it. In a file it takes no memory
of this process: only cache pages, which the system writes back and drops as it needs. The file has no name and vanishes
with the process.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from weakref import finalize

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from longmem.errors import StoreError
from longmem.types import KVArray


class AbstractRows(ABC):
    """Immutable rows [stored_heads, width] of one block."""

    row_shape: tuple[int, ...]
    dtype: torch.dtype
    """Type as stored; uint16 has the bits of bfloat16."""
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows, in memory or on disk."""
        return len(self) * prod(self.row_shape) * self.dtype.itemsize

    @abstractmethod
    def part(self, first: int, last: int) -> "AbstractRows":
        """Return the rows `[first, last)` without a copy."""

    @abstractmethod
    def take(self, index: Int64[Tensor, " read"], out: Shaped[Tensor, "read stored_heads width"]) -> None:
        """Copy rows to `out`. Raises StoreError for a file that cannot be read."""


class TensorRows(AbstractRows):
    """Rows in the memory of a device."""

    def __init__(self, rows: Shaped[Tensor, "rows stored_heads width"]) -> None:
        self._rows = rows
        self.row_shape, self.dtype, self.device = tuple(rows.shape[1:]), rows.dtype, rows.device

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, first: int, last: int) -> "TensorRows":
        return TensorRows(self._rows[first:last])

    def take(self, index: Int64[Tensor, " read"], out: Shaped[Tensor, "read stored_heads width"]) -> None:
        torch.index_select(self._rows, 0, index, out=out)


class FileRows(AbstractRows):
    """Rows in a temporary file, which is open as long as one of them is referred to."""

    device = torch.device("cpu")

    def __init__(self, space: "_Space", row_shape: tuple[int, ...], dtype: torch.dtype, first: int, last: int) -> None:
        self._space, self._first, self._last = space, first, last
        self.row_shape, self.dtype = row_shape, dtype
        self._row_bytes = prod(row_shape) * dtype.itemsize

    def __len__(self) -> int:
        return self._last - self._first

    def part(self, first: int, last: int) -> "FileRows":
        return FileRows(self._space, self.row_shape, self.dtype, self._first + first, self._first + last)

    def take(self, index: Int64[Tensor, " read"], out: Shaped[Tensor, "read stored_heads width"]) -> None:
        rows, places = out.numpy().reshape(len(index), -1).view(np.uint8), index.numpy() + self._first
        # consecutive rows are one read: chosen blocks have 64
        borders = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        for begin, end in pairwise(borders):
            if begin < end:
                self._space.read(int(places[begin]) * self._row_bytes, rows[begin:end].reshape(-1))


class RowFile:
    """Temporary file of the blocks of one window.

    The space of a block is used again once neither the window nor a view refers to it.
    """

    def __init__(self) -> None:
        """Raises StoreError where temporary files cannot be written."""
        with _explained(), tempfile.TemporaryFile(prefix="longmem-") as file:
            self.descriptor = os.dup(file.fileno())
        finalize(self, os.close, self.descriptor)
        self._end = 0
        self._free: dict[int, list[int]] = {}
        """Offsets of free space, by its bytes."""

    def add(self, stored: KVArray) -> FileRows:
        """Write stored keys or values. Raises StoreError."""
        rows = np.ascontiguousarray(stored)
        content = rows.reshape(-1).view(np.uint8).data
        free = self._free.setdefault(len(content), [])
        offset = free.pop() if free else self._end
        self._end = max(self._end, offset + len(content))
        space = _Space(self, offset)
        finalize(space, free.append, offset)
        with _explained():
            written = 0
            while written < len(content):
                written += os.pwrite(self.descriptor, content[written:], offset + written)
        dtype = torch.from_numpy(np.empty(0, dtype=rows.dtype)).dtype
        return FileRows(space, rows.shape[1:], dtype, 0, len(rows))


class _Space:
    """Space of one block in a file."""

    def __init__(self, file: RowFile, offset: int) -> None:
        self._file, self._offset = file, offset

    def read(self, offset: int, out: Shaped[np.ndarray, " bytes"]) -> None:
        """Fill `out` from an offset within the block on. Raises StoreError."""
        done = 0
        with _explained():
            while done < len(out):
                found = os.preadv(self._file.descriptor, [out[done:].data], self._offset + offset + done)
                assert found, "the file is shorter than what was written to it"
                done += found


@contextmanager
def _explained() -> Iterator[None]:
    """Translate errors of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"a memory of all layers keeps its window in a temporary file in {tempfile.gettempdir()}, which failed: "
            f"{error}; free some space, set TMPDIR to a folder on a disk, or lower --memory-tokens"
        ) from error
