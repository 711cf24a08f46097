"""What this process has written last, so that readers close behind the writer need no disk."""

from collections import OrderedDict
from threading import Lock

import pyarrow as pa

RECENT_BYTES = 32 * 2**20
"""64 segments of 512 tokens with 4 heads of 64 in float16."""


class RecentRows:
    """Payload rows by the write that made them, at most `max_bytes`; the oldest write goes first.

    It says what was written, never whether it is still there: only the catalogue knows that.
    """

    def __init__(self, max_bytes: int = RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[int, pa.Table] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def keep(self, write: int, rows: pa.Table) -> None:
        with self._lock:
            self._rows[write] = rows
            self._num_bytes += rows.nbytes
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._rows.popitem(last=False)[1].nbytes

    def of(self, writes: list[int]) -> dict[int, pa.Table]:
        """Rows of those writes that are still held."""
        with self._lock:
            return {write: self._rows[write] for write in writes if write in self._rows}

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._num_bytes = 0
