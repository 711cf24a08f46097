"""The memory of a context that is read at several lengths: what lies before a short local context.

    length 1,536    ·    ·    ·    ·   ┌ rest ┬── segment ──┬── segment ──┐
    length   600    ·    ·    ·    ·    ·    ·    ·   ┌rest┬── segment ──┤ local context, target
                    oldest                                                newest

Segments are counted from the newest token backwards, so that every length has the same whole segments and each is
encoded once. Only the oldest, short one differs: it is encoded for its length alone, because in a whole segment its
tokens would have seen what lies before the length that was asked for.
"""

import numpy as np
from jaxtyping import Int32

from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.model import LongMem
from longmem.types import DocumentKey, KVBlock, Segment


class ContextMemory:
    """Views of the newest tokens before a local context; positions are those in `tokens`."""

    def __init__(self, model: LongMem, tokens: Int32[np.ndarray, " tokens"]) -> None:
        self._model = model
        self._tokens = tokens
        self._whole: list[KVBlock] = []
        """Whole segments encoded so far, newest first."""

    def view(self, num_tokens: int) -> MemoryView | None:
        """The newest `num_tokens`, or as many as there are and the model's `memory_tokens` allow; None for none.

        Raises NumericError.
        """
        config, end = self._model.config, len(self._tokens)
        num_tokens = min(num_tokens, end, config.memory_tokens)
        if num_tokens == 0:
            return None
        num_whole, rest = divmod(num_tokens, config.segment_tokens)
        while len(self._whole) < num_whole:
            newest = end - len(self._whole) * config.segment_tokens
            self._whole.append(self._encode(newest - config.segment_tokens, newest))
        buffer = WindowBuffer(num_tokens, self._model.backbone.device, self._model.key_space)
        if rest:
            buffer.append(self._encode(end - num_tokens, end - num_tokens + rest))
        for block in reversed(self._whole[:num_whole]):
            buffer.append(block)
        return buffer.view(end - num_tokens, end)

    def _encode(self, start: int, end: int) -> KVBlock:
        tokens = self._tokens[start:end]
        return self._model.encode(Segment(DocumentKey("", ""), 0, start, tokens, tokens[1:])).block
