"""Requests that one worker with the whole model answers at once: it reads stored documents and writes nothing."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from longmem.memory.view import MemoryView
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, ItemScore, score_items
from longmem.scoring.generate import complete
from longmem.store.base import AbstractBlockSource
from longmem.types import DocumentKey, SegmentInfo


class Memories:
    """Stored documents as one worker reads them: a document's blocks are fetched once, for all requests."""

    def __init__(self, source: AbstractBlockSource, windows: WindowCache) -> None:
        self.source = source
        self._windows = windows
        self._checksums: dict[DocumentKey, str] = {}

    def whole(self, last: SegmentInfo | None) -> MemoryView | None:
        """All of the document that ends with this block, its newest `memory_tokens` positions at most.

        Raises MissingBlockError when the store lacks a block, CorruptionError when one is damaged.
        """
        if last is None:
            return None
        if self._checksums.get(last.key) != last.checksum:
            # deleted and written again since it was read
            self._windows.evict(last.key)
        view = self._windows.whole(last.key, [last])
        self._checksums[last.key] = last.checksum
        return view


class Request(ABC):
    """Travels to a worker; `str` says what it is, for messages."""

    @abstractmethod
    def answer(self, model: LongMem, memories: Memories) -> Any:
        """Raises LongMemError for what the user can fix."""


@dataclass(frozen=True)
class ItemsRequest(Request):
    """Score items that all follow the same memory."""

    memory: SegmentInfo | None
    """The last block of the document that is read; None for no memory."""
    items: tuple[Item, ...]

    def answer(self, model: LongMem, memories: Memories) -> list[ItemScore]:
        """Raises what `score_items` and `Memories.whole` raise."""
        return score_items(model, self.items, [memories.whole(self.memory)] * len(self.items))

    def __str__(self) -> str:
        return f"scores of {len(self.items)} items after {self.memory.key if self.memory else 'nothing'}"


@dataclass(frozen=True)
class CompletionsRequest(Request):
    """Continue prompts that all follow the same memory, each within one segment, with the most probable tokens."""

    memory: SegmentInfo | None
    prompts: tuple[Int32[np.ndarray, "..."], ...]
    max_new_tokens: int
    until: str
    """Text at which a continuation ends."""

    def answer(self, model: LongMem, memories: Memories) -> list[str]:
        """Raises what `complete` and `Memories.whole` raise."""
        view = memories.whole(self.memory)
        return [complete(model, prompt, view, self.max_new_tokens, self.until) for prompt in self.prompts]

    def __str__(self) -> str:
        return f"{len(self.prompts)} completions after {self.memory.key if self.memory else 'nothing'}"
