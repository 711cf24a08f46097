# SPDX-License-Identifier: Apache-2.0
"""Hot tier of a reader: windows of the documents it is reading, filled from the store as they are needed."""

from collections import OrderedDict
from contextlib import suppress
from threading import RLock

import torch

from longmem.errors import CorruptionError
from longmem.memory.key_transform import KeySpace
from longmem.memory.sliding_window import SlidingWindow
from longmem.memory.view import MemoryView
from longmem.memory.window import RAW_KEYS, WindowBuffer
from longmem.store.source import AbstractBlockSource
from longmem.system.heap import trim_heap
from longmem.types import DocumentKey, KVBlock, SegmentInfo

READ_SEGMENTS = 8
"""Blocks fetched from the store at a time, so that catching up with a long past never holds it twice; large ones are
fewer (`blocks_at_once`). Close behind the writer it is as many as are there: asking the store costs more than a small
block does."""

MAX_WINDOW_BYTES = 2**30
"""Bytes of all windows together, where nothing else is said."""


class WindowCache:
    """Views for segments of any document, in any order; ascending order within a document is the fast one.

    A buffer may hold segments that no reader has reached yet; a view never does. Beyond `max_bytes` the least recently
    used documents are evicted; the one being read always stays. Threads take turns.
    """

    def __init__(
        self,
        source: AbstractBlockSource,
        segment_tokens: int,
        memory_tokens: int,
        max_bytes: int = MAX_WINDOW_BYTES,
        device: torch.device | str = "cpu",
        key_space: KeySpace = RAW_KEYS,
        read_segments: int = READ_SEGMENTS,
    ) -> None:
        """Start empty; `read_segments` blocks are fetched at a time."""
        self.source = source
        self._read_segments = read_segments
        self._window = SlidingWindow(memory_tokens, segment_tokens)
        self._max_bytes = max_bytes
        self._device = device
        self._key_space = key_space
        self._buffers: OrderedDict[DocumentKey, WindowBuffer] = OrderedDict()
        self._last_checksums: dict[DocumentKey, str] = {}
        """Checksum of the last block of documents that were read as a whole."""
        self._whole: dict[DocumentKey, MemoryView] = {}
        """Views of those documents, which keep what readers derived from them."""
        self._lock = RLock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all windows, in memory and in files, with the room that they have for more."""
        return sum(buffer.num_bytes for buffer in self._buffers.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all windows in their files."""
        return sum(buffer.file_bytes for buffer in self._buffers.values())

    def evict(self, key: DocumentKey) -> None:
        """Drop a document's window, because the store no longer holds the document or will hold another one."""
        with self._lock:
            self._buffers.pop(key, None)
            self._whole.pop(key, None)
            self._last_checksums.pop(key, None)

    def view(self, key: DocumentKey, segment: int) -> MemoryView | None:
        """Return exactly the tokens in `[start - memory_tokens, start)` of the segment's document; None for none.

        Raises MissingBlockError when the store lacks one of those blocks, CorruptionError when one is damaged.
        """
        positions = self._window.before_segment(segment)
        if not positions:
            return None
        start, end = positions.start, positions.stop
        with self._lock:
            buffer = self._buffers.get(key)
            behind = buffer is not None and buffer.end_token is not None and buffer.end_token < end
            if buffer is None or not (buffer.covers(start, end) or (behind and buffer.covers(start, start))):
                buffer = self._buffer()
            missing = range(start if buffer.end_token is None else buffer.end_token, end)
            self._fill(key, buffer, self._window.segments(missing))
            return buffer.view(start, end)

    def whole(self, last: SegmentInfo | None) -> MemoryView | None:
        """Return the newest `memory_tokens` positions of the document that ends with this block; None for none.

        Meant for texts that come after the document. It must have ended: later blocks are not seen. A document that was
        deleted and written again since it was read is fetched again. The view is the same object until the window is
        evicted. Raises as `view` does.
        """
        positions = self._window.before(0 if last is None else last.end_token)
        if last is None or not positions:
            return None
        key = last.key
        with self._lock:
            if self._last_checksums.get(key) != last.checksum:
                self.evict(key)
            buffer = self._buffers.get(key)
            if buffer is None or not buffer.covers(positions.start, positions.stop):
                buffer = self._buffer()
                self._fill(key, buffer, self._window.segments(positions), ahead=False)
            self._buffers.move_to_end(key)
            if key not in self._whole:
                self._whole[key] = buffer.view(positions.start, positions.stop)
            self._last_checksums[key] = last.checksum
            return self._whole[key]

    def _buffer(self) -> WindowBuffer:
        # blocks that are read ahead must not end the window of the segment that they are read for
        retained = self._window.memory_tokens + (self._read_segments - 1) * self._window.segment_tokens
        return WindowBuffer(retained, self._device, self._key_space)

    def _fill(self, key: DocumentKey, buffer: WindowBuffer, segments: range, ahead: bool = True) -> None:
        # out of the cache while it grows: a failed read must not leave a half-filled window behind
        self._buffers.pop(key, None)
        self._whole.pop(key, None)
        for first in range(segments.start, segments.stop, self._read_segments):
            stop = min(first + self._read_segments, segments.stop)
            for block in self._read(key, first, stop, first + self._read_segments - stop if ahead else 0):
                buffer.append(block)
        if segments and self._read_segments < READ_SEGMENTS:
            # what reading large blocks took from the heap: 0.1 GiB in pieces, for 5 ms
            trim_heap()
        self._buffers[key] = buffer
        while self.num_bytes > self._max_bytes and len(self._buffers) > 1:
            evicted, _ = self._buffers.popitem(last=False)
            self._whole.pop(evicted, None)

    def _read(self, key: DocumentKey, first: int, stop: int, ahead: int) -> list[KVBlock]:
        if ahead:
            # a damaged block may be one that was read ahead: reading the wanted blocks alone tells
            with suppress(CorruptionError):
                return self.source.read(key, first, stop, ahead=ahead)
        return self.source.read(key, first, stop)
