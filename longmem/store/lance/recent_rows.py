# SPDX-License-Identifier: Apache-2.0
"""Cache of the rows that this process wrote last, so that readers close behind the writer need no disk access.

Rows of a whole block that nothing changes share its memory: on Ray, the block then stays in the object store.
"""

from collections import OrderedDict
from threading import Lock

import pyarrow as pa

from longmem.stored_format import RECENT_BYTES


class RecentRows:
    """Payload rows by write id, at most `max_bytes`; the oldest write is evicted first.

    It holds written rows, even deleted ones: only the catalogue decides whether a block exists.
    """

    def __init__(self, max_bytes: int = RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[int, pa.Table] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def keep(self, write: int, rows: pa.Table) -> None:
        """Cache the rows of a write."""
        with self._lock:
            self._rows[write] = rows
            self._num_bytes += rows.nbytes
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._rows.popitem(last=False)[1].nbytes

    def of(self, writes: list[int]) -> dict[int, pa.Table]:
        """Return the cached rows of these writes."""
        with self._lock:
            return {write: self._rows[write] for write in writes if write in self._rows}

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._num_bytes = 0
