# SPDX-License-Identifier: Apache-2.0
"""Memory of one text: its segments read it, and their own blocks join it. `SlidingWindow` computes the positions.

StoredMemory    the text is a stored document: its blocks are written to the store and read back from it
LocalMemory     the blocks stay in this process; a stored document may lie in front of them
FixedMemory     one view, for a text inside one segment
ContextMemory   one context, read at several lengths
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from longmem.errors import ConflictError
from longmem.memory.sliding_window import SlidingWindow
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.memory.window_cache import MAX_WINDOW_BYTES, READ_SEGMENTS, WindowCache
from longmem.model.forward import SegmentModel
from longmem.store.base import WritableDocument
from longmem.store.document import DocumentMemory
from longmem.store.source import AbstractBlockSource
from longmem.stored_format import blocks_at_once
from longmem.types import DocumentKey, KVBlock, Segment


class SegmentMemory(ABC):
    """Memory in front of each segment of one text. Segments are read in order, and their blocks accepted in order."""

    offset: int = 0
    """Position in the memory of the text's first token."""

    @abstractmethod
    def view(self, segment: int) -> MemoryView | None:
        """Return what segment `segment` of the text may read; None where that is nothing.

        Raises MissingBlockError, CorruptionError.
        """

    @abstractmethod
    def accept(self, block: KVBlock) -> None:
        """Take the block of the next segment."""


class StoredMemory(SegmentMemory):
    """Memory of a text that *is* the document: its segments are written to the store and read back from it."""

    def __init__(self, model: SegmentModel, memory: WritableDocument) -> None:
        self._memory = memory
        self._cache = windows_of(model, memory.store)

    def view(self, segment: int) -> MemoryView | None:
        return self._cache.view(self._memory.key, segment)

    def accept(self, block: KVBlock) -> None:
        self._memory.store.put(block)


class LocalMemory(SegmentMemory):
    """Memory in this process, gone with this object; a stored document may lie in front, which is only read."""

    def __init__(self, model: SegmentModel, document: DocumentMemory | None = None) -> None:
        """Read what may be read of the document. Raises MissingBlockError, CorruptionError."""
        self._model = model
        self._window = SlidingWindow.of(model.config)
        self._buffer = WindowBuffer(model.config.memory_tokens, model.backbone.device, model.key_space)
        if document is not None and model.config.memory_tokens and (infos := document.segments):
            self.offset = infos[-1].end_token
            for block in _read(document, self._window.segments(self._window.before(self.offset))):
                self.append(block)

    def view(self, segment: int) -> MemoryView | None:
        return self.view_before(self.offset + segment * self._model.config.segment_tokens)

    def view_before(self, end: int, oldest: int = 0) -> MemoryView | None:
        """Return what a reader at position `end` may read from `oldest` on, as far as it is held."""
        positions = self._window.before(end, max(oldest, self._buffer.start_token or 0))
        return self._buffer.view(positions.start, positions.stop) if positions else None

    def accept(self, block: KVBlock) -> None:
        if self._model.config.memory_tokens:
            self.append(replace(block, start_token=self.offset + block.start_token) if self.offset else block)

    def append(self, block: KVBlock) -> None:
        """Take a block that has its place in the memory already."""
        self._buffer.append(block)

    def extend(self, segment: Segment, keys: Tensor, values: Tensor) -> None:
        """Take keys and values [tokens, kv_heads, head_dim] of the next segment, rounded as a store rounds them.

        A model without memory keeps nothing. Raises NumericError.
        """
        if self._model.config.memory_tokens:
            self.accept(self._model.block(segment, keys, values))


class FixedMemory(SegmentMemory):
    """Single view, for a text that stays inside one segment."""

    def __init__(self, view: MemoryView | None) -> None:
        self._view = view

    def view(self, segment: int) -> MemoryView | None:
        assert segment == 0, f"segment {segment} of a text that should end in its first one"
        return self._view

    def accept(self, block: KVBlock) -> None:
        raise AssertionError(f"{block.key}: a text that should end in its first segment has filled it")


class ContextMemory:
    """Views of the newest tokens before a local context, and of a document that is read before them.

        length 1,536    ·    ·    ·    ·   ┌ rest ┬── segment ──┬── segment ──┐
        length   600    ·    ·    ·    ·    ·    ·    ·   ┌rest┬── segment ──┤ local context, target
                        oldest                                                newest

    Segments are counted from the newest token backwards, so that every length has the same whole segments and each is
    encoded once. Only the oldest, short one differs: it is encoded for its length alone, because in a whole segment its
    tokens would have seen what lies before the length that was asked for.
    """

    def __init__(
        self, model: SegmentModel, tokens: Int32[np.ndarray, " tokens"], before: Sequence[KVBlock] = ()
    ) -> None:
        """`before`: blocks of a stored document (see `read_blocks`); the context's positions go on after them."""
        self._model = model
        self._window = SlidingWindow.of(model.config)
        self._tokens = tokens
        self._before = before
        self._offset = before[-1].end_token if before else 0
        self._whole: list[KVBlock] = []
        """Whole segments encoded so far, newest first."""

    def view(self, num_tokens: int) -> MemoryView | None:
        """Return the newest `num_tokens`, or as many as there are, and before them the document; None for none.

        They are no more than the model's `memory_tokens` in all. Raises NumericError.
        """
        size, end = self._window.segment_tokens, self._offset + len(self._tokens)
        longest = len(self._window.before(len(self._tokens)))
        num_tokens = min(num_tokens, longest)
        assert not self._before or num_tokens == longest, "a gap after the document"
        positions = self._window.before(end, oldest=0 if self._before else end - num_tokens)
        if not positions:
            return None
        num_whole, rest = divmod(num_tokens, size)
        while len(self._whole) < num_whole:
            newest = len(self._tokens) - len(self._whole) * size
            self._whole.append(self._encode(newest - size, newest))
        first = len(self._tokens) - num_tokens
        own = [self._encode(first, first + rest)] if rest else []
        memory = LocalMemory(self._model)
        for block in (*self._before, *own, *reversed(self._whole[:num_whole])):
            if block.end_token > positions.start:
                memory.append(block)
        return memory.view_before(end, positions.start)

    def _encode(self, start: int, end: int) -> KVBlock:
        tokens = self._tokens[start:end]
        return self._model.encode(Segment(DocumentKey("", ""), 0, self._offset + start, tokens, tokens[:0])).block


def windows_of(model: SegmentModel, source: AbstractBlockSource, max_bytes: int = MAX_WINDOW_BYTES) -> WindowCache:
    """Return an empty cache of windows in the form in which a model reads them."""
    config = model.config
    return WindowCache(
        source,
        config.segment_tokens,
        config.memory_tokens,
        max_bytes,
        model.backbone.device,
        model.key_space,
        blocks_at_once(model.fingerprint.block_bytes, READ_SEGMENTS),
    )


def read_blocks(memory: DocumentMemory, window: SlidingWindow) -> list[KVBlock]:
    """Return the newest blocks of a stored document that a text after it may read; none for an empty document.

    Raises MissingBlockError, CorruptionError.
    """
    infos = memory.segments
    positions = window.before(infos[-1].end_token if infos else 0)
    held = [info.segment for info in infos if info.end_token > positions.start]
    return list(_read(memory, range(held[0], held[-1] + 1))) if held else []


def _read(memory: DocumentMemory, segments: range) -> Iterator[KVBlock]:
    """Fetch a few blocks at a time, so that they are not held twice while they are copied into a window."""
    fingerprint = memory.store.fingerprint()
    assert fingerprint is not None, f"{memory.key} has blocks"
    step = blocks_at_once(fingerprint.block_bytes, READ_SEGMENTS)
    for first in range(segments.start, segments.stop, step):
        yield from memory.store.read(memory.key, first, min(first + step, segments.stop))


def check_own(memory: DocumentMemory, segments: list[Segment]) -> None:
    """Raise ConflictError when the document's memory is longer than the text that claims to be that document."""
    stored = memory.segments
    if stored and (stored[-1].end_token > segments[-1].end_token):
        raise ConflictError(
            f"{memory.key} already holds {stored[-1].end_token} tokens, the text has {segments[-1].end_token}: it is "
            "another text; use another document name, or memory.as_read_only() to score a text that follows it"
        )


def text_key(memory: DocumentMemory | None) -> DocumentKey:
    """Return the name under which a text's segments are cut: that of its document, if it has one."""
    return memory.key if memory is not None else DocumentKey("", "")
