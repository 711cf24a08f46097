"""The hot tier of a reader: windows of the documents it is reading, filled from the store as they are needed."""

from collections import OrderedDict
from contextlib import suppress

import torch

from longmem.errors import CorruptionError
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.memory.window import RAW_KEYS, WindowBuffer
from longmem.store.base import AbstractBlockSource
from longmem.types import DocumentKey, KVBlock, SegmentInfo

READ_SEGMENTS = 8
"""Blocks fetched from the store at a time, so that catching up with a long past never holds it twice. Close behind the
writer it is as many as are there: asking the store costs more than a block does."""


class WindowCache:
    """Views for segments of any document, in any order; ascending order within a document is the fast one.

    A buffer may hold segments that nobody reads yet; a view never does. Least recently used documents are dropped
    beyond `max_bytes`; the one being read always stays.
    """

    def __init__(
        self,
        source: AbstractBlockSource,
        segment_tokens: int,
        memory_tokens: int,
        max_bytes: int = 2**30,
        device: torch.device | str = "cpu",
        key_space: KeySpace = RAW_KEYS,
    ) -> None:
        self._source = source
        self._segment_tokens = segment_tokens
        self._memory_tokens = memory_tokens
        self._max_bytes = max_bytes
        self._device = device
        self._key_space = key_space
        self._buffers: OrderedDict[DocumentKey, WindowBuffer] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._buffers.values())

    def evict(self, key: DocumentKey) -> None:
        """Drop a document's window, because the store no longer holds the document or will hold another one."""
        self._buffers.pop(key, None)

    def view(self, key: DocumentKey, segment: int) -> MemoryView | None:
        """Exactly the tokens in `[start - memory_tokens, start)` of the segment's document; None when there are none.

        Raises MissingBlockError when the store lacks one of those blocks, CorruptionError when one is damaged.
        """
        end = segment * self._segment_tokens
        start = max(0, end - self._memory_tokens)
        if start == end:
            return None
        buffer = self._buffers.get(key)
        behind = buffer is not None and buffer.end_token is not None and buffer.end_token < end
        if buffer is None or not (buffer.covers(start, end) or (behind and buffer.covers(start, start))):
            buffer = self._buffer()
        next_segment = (start if buffer.end_token is None else buffer.end_token) // self._segment_tokens
        self._fill(key, buffer, range(next_segment, segment))
        return buffer.view(start, end)

    def whole(self, key: DocumentKey, infos: list[SegmentInfo]) -> MemoryView | None:
        """All of a stored document, for a text that comes after it: the newest `memory_tokens` positions at most; None
        when there are none. `infos` are its catalogue entries; the document must have ended, later blocks are not seen.

        Raises as `view` does.
        """
        end = infos[-1].end_token if infos else 0
        start = max(0, end - self._memory_tokens)
        if start == end:
            return None
        buffer = self._buffers.get(key)
        if buffer is None or not buffer.covers(start, end):
            buffer = self._buffer()
            self._fill(key, buffer, range(start // self._segment_tokens, infos[-1].segment + 1), ahead=False)
        self._buffers.move_to_end(key)
        return buffer.view(start, end)

    def _buffer(self) -> WindowBuffer:
        retained = self._memory_tokens + READ_SEGMENTS * self._segment_tokens
        return WindowBuffer(retained, self._device, self._key_space)

    def _fill(self, key: DocumentKey, buffer: WindowBuffer, segments: range, ahead: bool = True) -> None:
        # out of the cache while it grows: a failed read must not leave a half-filled window behind
        self._buffers.pop(key, None)
        for first in range(segments.start, segments.stop, READ_SEGMENTS):
            stop = min(first + READ_SEGMENTS, segments.stop)
            for block in self._read(key, first, stop, first + READ_SEGMENTS - stop if ahead else 0):
                buffer.append(block)
        self._buffers[key] = buffer
        while self.num_bytes > self._max_bytes and len(self._buffers) > 1:
            self._buffers.popitem(last=False)

    def _read(self, key: DocumentKey, first: int, stop: int, ahead: int) -> list[KVBlock]:
        if ahead:
            # damage to a block that nobody has asked for is not theirs: the blocks alone tell whose it is
            with suppress(CorruptionError):
                return self._source.read(key, first, stop, ahead=ahead)
        return self._source.read(key, first, stop)
