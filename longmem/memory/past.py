"""Where a text's segments read from and write to, for `score` and `generate` in one process."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch

from longmem.config import LongMemConfig
from longmem.errors import ConflictError
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.memory.window_cache import READ_SEGMENTS, WindowCache
from longmem.store.document import DocumentMemory
from longmem.types import DocumentKey, KVBlock, Segment


class AbstractPast(ABC):
    """The memory before a segment, and what happens to the segment's own block afterwards."""

    offset: int = 0
    """Position in the memory of the text's first token."""

    @abstractmethod
    def view(self, segment: int) -> MemoryView | None:
        """What segment `segment` of the text may read."""

    @abstractmethod
    def accept(self, block: KVBlock) -> None:
        """Take the block of the next segment."""


class OwnPast(AbstractPast):
    """The text *is* the document: its segments are written to the document's memory and read back from it."""

    def __init__(
        self, memory: DocumentMemory, config: LongMemConfig, key_space: KeySpace, device: torch.device
    ) -> None:
        self._memory = memory
        self._cache = WindowCache(
            memory.store, config.segment_tokens, config.memory_tokens, device=device, key_space=key_space
        )

    def view(self, segment: int) -> MemoryView | None:
        return self._cache.view(self._memory.key, segment)

    def accept(self, block: KVBlock) -> None:
        self._memory.store.put(block)


class ContinuedPast(AbstractPast):
    """The text comes after a document that is only read; the text's own segments stay in this process."""

    def __init__(
        self, memory: DocumentMemory | None, config: LongMemConfig, key_space: KeySpace, device: torch.device
    ) -> None:
        self._memory_tokens = config.memory_tokens
        self._segment_tokens = config.segment_tokens
        self._buffer = WindowBuffer(config.memory_tokens, device, key_space)
        if memory is not None and config.memory_tokens:
            infos = memory.segments
            self.offset = infos[-1].end_token if infos else 0
            start = max(0, self.offset - config.memory_tokens) // config.segment_tokens
            end = infos[-1].segment + 1 if infos else 0
            for first in range(start, end, READ_SEGMENTS):
                for block in memory.store.read(memory.key, first, min(first + READ_SEGMENTS, end)):
                    self._buffer.append(block)

    def view(self, segment: int) -> MemoryView | None:
        end = self.offset + segment * self._segment_tokens
        start = max(self._buffer.start_token or 0, end - self._memory_tokens)
        return self._buffer.view(start, end) if start < end else None

    def accept(self, block: KVBlock) -> None:
        if self._memory_tokens:
            self._buffer.append(replace(block, start_token=self.offset + block.start_token))


class FixedPast(AbstractPast):
    """One view for a text that stays inside one segment."""

    def __init__(self, view: MemoryView | None) -> None:
        self._view = view

    def view(self, segment: int) -> MemoryView | None:
        assert segment == 0, f"segment {segment} of a text that should end in its first one"
        return self._view

    def accept(self, block: KVBlock) -> None:
        raise AssertionError(f"{block.key}: a text that should end in its first segment has filled it")


def check_own(memory: DocumentMemory, segments: list[Segment]) -> None:
    """Raises ConflictError when the document's memory is longer than the text that claims to be that document."""
    stored = memory.segments
    if stored and (stored[-1].end_token > segments[-1].end_token):
        raise ConflictError(
            f"{memory.key} already holds {stored[-1].end_token} tokens, the text has {segments[-1].end_token}: it is "
            "another text; use another document name, or memory.as_read_only() to score a text that follows it"
        )


def text_key(memory: DocumentMemory | None) -> DocumentKey:
    return memory.key if memory is not None else DocumentKey("", "")
