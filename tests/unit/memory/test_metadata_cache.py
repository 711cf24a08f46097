# SPDX-License-Identifier: Apache-2.0
"""Check that the heap of a writer does not grow with the number of its commits."""

import ctypes
from pathlib import Path

import pytest

from longmem.store.lance import connection
from longmem.store.lance.recent_rows import RecentRows
from longmem.store.lance.store import LanceMemoryStore
from tests.blocks import make_block

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later"),
]

WARM, COMMITS = 64, 160


class MallInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> int:
    """Return the bytes that the C library has given out, in all its heaps."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)


def growth_per_commit(folder: Path, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(connection, "METADATA_CACHE_BYTES", cache_bytes)
    connection.shared_session.cache_clear()
    try:
        with LanceMemoryStore(str(folder)) as store:
            # a cache of its own, with a limit of its own
            monkeypatch.setattr(store, "_recent", RecentRows(max_bytes=0))
            sizes = []
            for segment in range(COMMITS):
                store.put(make_block(segment=segment))
                sizes.append(heap_bytes())
    finally:
        connection.shared_session.cache_clear()
    # the least of each turn of 32 commits, because a compaction ends each
    return (min(sizes[-32:]) - min(sizes[WARM : WARM + 32])) / (COMMITS - WARM - 32)


def test_the_heap_grows_by_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare our cache, which is soon full, with one that is never full, which shows that growth would be seen."""
    bounded = growth_per_commit(tmp_path / "ours.lance", connection.METADATA_CACHE_BYTES, monkeypatch)
    growing = growth_per_commit(tmp_path / "large.lance", 2**30, monkeypatch)
    assert growing > 64 * 2**10
    assert bounded < 8 * 2**10
