"""The memory of a context that is read at several lengths: what lies before a short local context.

    length 1,536    ·    ·    ·    ·   ┌ rest ┬── segment ──┬── segment ──┐
    length   600    ·    ·    ·    ·    ·    ·    ·   ┌rest┬── segment ──┤ local context, target
                    oldest                                                newest

Segments are counted from the newest token backwards, so that every length has the same whole segments and each is
encoded once. Only the oldest, short one differs: it is encoded for its length alone, because in a whole segment its
tokens would have seen what lies before the length that was asked for.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.memory.window_cache import READ_SEGMENTS
from longmem.model.forward import SegmentModel
from longmem.store.document import DocumentMemory
from longmem.types import DocumentKey, KVBlock, Segment


class ContextMemory:
    """Views of the newest tokens before a local context, and of a document that is read before them."""

    def __init__(
        self, model: SegmentModel, tokens: Int32[np.ndarray, " tokens"], before: Sequence[KVBlock] = ()
    ) -> None:
        """`before`: blocks of a stored document (see `read_blocks`); the context's positions go on after them."""
        self._model = model
        self._tokens = tokens
        self._before = before
        self._offset = before[-1].end_token if before else 0
        self._whole: list[KVBlock] = []
        """Whole segments encoded so far, newest first."""

    def view(self, num_tokens: int) -> MemoryView | None:
        """The newest `num_tokens`, or as many as there are, and before them the document: no more than the model's
        `memory_tokens` in all. None for none. Raises NumericError.
        """
        config, end = self._model.config, self._offset + len(self._tokens)
        num_tokens = min(num_tokens, len(self._tokens), config.memory_tokens)
        assert not self._before or num_tokens in (len(self._tokens), config.memory_tokens), "a gap after the document"
        start = max(0, end - config.memory_tokens) if self._before else end - num_tokens
        if start == end:
            return None
        num_whole, rest = divmod(num_tokens, config.segment_tokens)
        while len(self._whole) < num_whole:
            newest = len(self._tokens) - len(self._whole) * config.segment_tokens
            self._whole.append(self._encode(newest - config.segment_tokens, newest))
        buffer = WindowBuffer(config.memory_tokens, self._model.backbone.device, self._model.key_space)
        first = len(self._tokens) - num_tokens
        own = [self._encode(first, first + rest)] if rest else []
        for block in (*self._before, *own, *reversed(self._whole[:num_whole])):
            if block.end_token > start:
                buffer.append(block)
        return buffer.view(max(start, buffer.start_token or 0), end)

    def _encode(self, start: int, end: int) -> KVBlock:
        tokens = self._tokens[start:end]
        return self._model.encode(Segment(DocumentKey("", ""), 0, self._offset + start, tokens, tokens[1:])).block


def read_blocks(memory: DocumentMemory, memory_tokens: int) -> list[KVBlock]:
    """The newest blocks of a stored document, as many as hold `memory_tokens` positions; none for an empty document.

    Raises MissingBlockError, CorruptionError.
    """
    infos = memory.segments
    infos = [each for each in infos if each.end_token > infos[-1].end_token - memory_tokens]
    blocks: list[KVBlock] = []
    for first in range(0, len(infos), READ_SEGMENTS):
        part = infos[first : first + READ_SEGMENTS]
        blocks += memory.store.read(memory.key, part[0].segment, part[-1].segment + 1)
    return blocks
