# SPDX-License-Identifier: Apache-2.0
"""Options of the C library's heaps. Without glibc, all functions do nothing."""

import ctypes
from collections.abc import Callable
from functools import cache
from time import monotonic

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc's `mallopt`."""

NUM_HEAPS = 2
"""One for the main thread, one for all others."""

RETURNED_BYTES = 2**20
"""Size from which freed memory is returned at once. By default it grows with each freed buffer, up to 64 MiB a heap."""

KEPT_BYTES = 2**29
"""Freed bytes that a process that computes may keep; more than the intermediate results of a segment need."""

LARGEST_IN_HEAP_BYTES = 2**25
"""Largest M_MMAP_THRESHOLD that glibc accepts, in bytes."""

TRIM_S = 10.0
"""Seconds between two trims of a long job. One takes 20 ms where 3 GiB of addresses hold 0.6 GiB of free pages, during
which other threads wait for the heap; pages that are used again cost a fault each."""


def trim_heap() -> None:
    """Return free pages of the C library's heaps to the system.

    The free end of a thread's heap stays (glibc 2.36): see `limit_heaps`.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeriodicTrim:
    """Trims the heap at most once in `TRIM_S` seconds, for jobs of hours.

    Tokenising a long text leaves a heap of gigabytes, nearly all free and returned. Later allocations spread over it
    and leave pages behind that are resident and free: measured, 13 KiB a segment.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self) -> None:
        """Trim if it is due."""
        if (now := self._clock()) - self._last >= TRIM_S:
            trim_heap()
            self._last = now


def limit_heaps() -> None:
    """Let threads that start from now on share the heaps that there are, at least two.

    Each thread of Lance otherwise has a heap of its own, of which up to 64 MiB stay after large buffers: measured, 0.4
    GiB after 60 blocks of all layers, and rising. Writing and reading small blocks cost the same. Call it early: once a
    process has more than eight heaps, glibc has settled their limit (8 a core) and ignores another.
    """
    _set_options({M_ARENA_MAX: NUM_HEAPS})


def return_freed_memory() -> None:
    """Make the C library return large buffers to the system at once, and most free ends of heaps.

    For processes without a model, whatever threads they have already. Costs a page fault for each 4 KiB of a large
    buffer.
    """
    _set_options({M_TRIM_THRESHOLD: RETURNED_BYTES, M_MMAP_THRESHOLD: RETURNED_BYTES})


def keep_freed_memory() -> None:
    """Make the C library reuse freed memory instead of returning it to the system.

    For processes that compute. Heaps are otherwise trimmed after large tensors, most of all those of threads, in which
    Ray runs tasks: measured in a reader, 40,000 page faults per second and 12% of the time.
    """
    _set_options({M_TRIM_THRESHOLD: KEPT_BYTES, M_MMAP_THRESHOLD: LARGEST_IN_HEAP_BYTES})


def _set_options(options: dict[int, int]) -> None:
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


@cache
def _c_library() -> ctypes.CDLL:
    """Return the C library, as one object: each has types of its own, which only a garbage collection frees."""
    return ctypes.CDLL(None)
