"""Memories of synthetic tests, made in this process: a long filler in which a few tokens change, and packed examples.

Segments are encoded independently of each other, so two short ways are exact: equal segments are encoded once, and
where a needle is put into a filler only the segments that hold it are encoded again. Cells of an approximate search are
the exception: a needle moves to the nearest one, and what they are alike in stays the filler's.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int32

from longmem.backbone.tokenizer import Tokenizer
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.model.longmem import LongMem
from longmem.types import DocumentKey, KVBlock, Segment

KEY = DocumentKey("synthetic", "memory")
PARTS = ("chunk_keys", "keys", "values", "tokens", "starts", "lengths")
"""What of a view a needle changes, beside the sketch."""

Tokens = Int32[np.ndarray, " _"]
"""Token ids; any two may differ in length."""


def tokens_of(tokenizer: Tokenizer, text: str) -> Tokens:
    """Return the tokens of a piece of text, without the start token of a document."""
    return tokenizer.tokens(text)


def start_of(tokenizer: Tokenizer) -> Tokens:
    """What every document begins with: the start token, or nothing."""
    return np.asarray([] if tokenizer.start_token is None else [tokenizer.start_token], dtype=np.int32)


@torch.no_grad()
def encode(model: LongMem, index: int, tokens: Tokens) -> KVBlock:
    """The block of segment `index`. Raises NumericError."""
    segment = Segment(KEY, index, index * model.config.segment_tokens, tokens, tokens[1:])
    output = model.run_backbone(torch.from_numpy(tokens.astype(np.int64))[None])
    return model.block(segment, output.keys[0], output.values[0])


class FillerMemory:
    """The memory of one long text. Not thread-safe."""

    def __init__(self, model: LongMem, text: str, num_tokens: int) -> None:
        """`text` is repeated until there are `num_tokens`, the repeats beginning with a segment.

        Raises DocumentError for a text without tokens, NumericError.
        """
        self._model = model
        size = model.config.segment_tokens
        filler = tokens_of(model.tokenizer, text)
        while len(filler) < size:
            filler = np.concatenate([filler, filler])
        filler = filler[: len(filler) // size * size]
        repeats = -(-num_tokens // len(filler))
        self.tokens: Tokens = np.tile(filler, repeats)[: -(-num_tokens // size) * size]
        start = start_of(model.tokenizer)
        self.tokens[: len(start)] = start
        self._buffer = WindowBuffer(len(self.tokens), model.backbone.device, model.key_space)
        encoded: dict[bytes, KVBlock] = {}
        for index in range(len(self.tokens) // size):
            tokens = self._segment(index)
            block = encoded.get(tokens.tobytes()) or encode(model, index, tokens)
            encoded[tokens.tobytes()] = block
            self._buffer.append(replace(block, segment=index, start_token=index * size))

    @contextmanager
    def with_needle(self, needle: Tokens, position: int, num_tokens: int) -> Iterator[MemoryView]:
        """The first `num_tokens` of the memory with the needle in place of what stands at `position`; the view is
        valid inside the `with` only."""
        end = position + len(needle)
        assert 0 <= position < end <= num_tokens <= len(self.tokens), f"[{position}, {end}) in {num_tokens} tokens"
        size = self._model.config.segment_tokens
        first, last = position // size, -(-end // size)
        before = self.tokens[position:end].copy()
        self.tokens[position:end] = needle
        changed = WindowBuffer((last - first) * size, self._model.backbone.device, self._model.key_space)
        for index in range(first, last):
            changed.append(encode(self._model, index, self._segment(index)))
        # before anything is written: cells that it makes are those of the filler
        view = self._buffer.view(0, num_tokens)
        ours = self._buffer.view(first * size, last * size)
        theirs = changed.view(first * size, last * size)
        written = {name: (getattr(ours, name), getattr(theirs, name)) for name in PARTS}
        if ours.sketch is not None:
            # or bounds of what stood here before would hide the needle from the search
            written["sketch"] = ours.sketch.rows, ours.sketch.basis.place_keys(theirs.chunk_keys)
        if view.cells is not None:
            begin = int(torch.searchsorted(view.starts, first * size))
            view = replace(view, cells=view.cells.with_keys(begin, theirs.chunk_keys))
        kept = {name: part.clone() for name, (part, _) in written.items()}
        try:
            for part, new in written.values():
                part.copy_(new)
            yield view
        finally:
            for name, (part, _) in written.items():
                part.copy_(kept[name])
            self.tokens[position:end] = before

    def _segment(self, index: int) -> Tokens:
        size = self._model.config.segment_tokens
        return self.tokens[index * size : (index + 1) * size].copy()


def packed_memory(model: LongMem, segments: Iterable[Tokens]) -> MemoryView:
    """The memory of packed segments; each may be shorter than the model's. Raises NumericError."""
    blocks = [encode(model, index, tokens) for index, tokens in enumerate(segments)]
    buffer = WindowBuffer(blocks[-1].end_token, model.backbone.device, model.key_space)
    for block in blocks:
        buffer.append(block)
    return buffer.view(0, blocks[-1].end_token)
