# SPDX-License-Identifier: Apache-2.0
"""Memories of synthetic tests, built in this process: a long filler with a few replaced tokens, and packed examples.

Segments are encoded independently of each other, so two shortcuts are exact. Equal segments are encoded once. A needle
placed in a filler requires encoding only the segments that hold it. Cells of an approximate search are the exception: a
needle is assigned to the nearest existing cell, and the cell means stay those of the filler.
"""

from collections.abc import Callable, Iterator, Sequence
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
"""Tensors of a view that a needle changes, in addition to the sketch."""

OnEncoded = Callable[[int, int], None]
"""Receiver of the segments that are encoded, and of those to be encoded."""


def ignore_encoded(_done: int, _total: int) -> None:
    """Do nothing."""


Tokens = Int32[np.ndarray, " _"]
"""Token ids; any two arrays may differ in length."""


def tokens_of(tokenizer: Tokenizer, text: str) -> Tokens:
    """Return the tokens of a piece of text, without the start token of a document."""
    return tokenizer.tokens(text)


def start_of(tokenizer: Tokenizer) -> Tokens:
    """Return the tokens that every document begins with: the start token, or none."""
    return np.asarray([] if tokenizer.start_token is None else [tokenizer.start_token], dtype=np.int32)


@torch.no_grad()
def encode(model: LongMem, index: int, tokens: Tokens) -> KVBlock:
    """Return the block of segment `index`. Raises NumericError."""
    segment = Segment(KEY, index, index * model.config.segment_tokens, tokens, tokens[:0])
    output = model.run_backbone(torch.from_numpy(tokens.astype(np.int64))[None])
    return model.block(segment, output.keys[0], output.values[0])


class FillerMemory:
    """Memory of one long text. Not thread-safe."""

    def __init__(self, model: LongMem, text: str, num_tokens: int, on_encoded: OnEncoded = ignore_encoded) -> None:
        """Encode `text`, repeated up to `num_tokens`; every repeat begins at a segment boundary.

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
        indices = range(len(self.tokens) // size)
        num_different = len({self._segment(index).tobytes() for index in indices})
        encoded: dict[bytes, KVBlock] = {}
        on_encoded(0, num_different)
        for index in indices:
            tokens = self._segment(index)
            block = encoded.get(tokens.tobytes())
            if block is None:
                block = encoded[tokens.tobytes()] = encode(model, index, tokens)
                on_encoded(len(encoded), num_different)
            self._buffer.append(replace(block, segment=index, start_token=index * size))

    @contextmanager
    def with_needle(self, needle: Tokens, position: int, num_tokens: int) -> Iterator[MemoryView]:
        """Yield the first `num_tokens` of the memory, with the needle in place of the tokens at `position`.

        The view is valid inside the `with` block only.
        """
        end = position + len(needle)
        assert 0 <= position < end <= num_tokens <= len(self.tokens), f"[{position}, {end}) in {num_tokens} tokens"
        size = self._model.config.segment_tokens
        first, last = position // size, -(-end // size)
        before = self.tokens[position:end].copy()
        self.tokens[position:end] = needle
        changed = WindowBuffer((last - first) * size, self._model.backbone.device, self._model.key_space)
        for index in range(first, last):
            changed.append(encode(self._model, index, self._segment(index)))
        # before anything is written: the cells built here must be those of the filler
        # repeats are indexed anew: the window's index has taken the tokens of the filler, or of an earlier needle
        view = replace(self._buffer.view(0, num_tokens), growing_repeats=None)
        ours = self._buffer.view(first * size, last * size)
        theirs = changed.view(first * size, last * size)
        written = {name: (getattr(ours, name), getattr(theirs, name)) for name in PARTS}
        if ours.sketch is not None:
            # otherwise the bounds of the replaced tokens would hide the needle from the search
            written["sketch"] = ours.sketch.rows, ours.sketch.basis.place_keys(theirs.chunk_keys)
        if view.cells is not None:
            begin = int(torch.searchsorted(view.starts, first * size))
            view = replace(view, cells=view.cells.with_keys(begin, theirs.chunk_keys))
        for name in ("layer_keys", "layer_values"):
            held, new = getattr(view, name), getattr(theirs, name)
            if held is not None:
                rows = new.rows(0, min(len(new), len(held) - first * size))
                view = replace(view, **{name: held.replaced(first * size, rows)})
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


def packed_memory(model: LongMem, segments: Sequence[Tokens], on_encoded: OnEncoded = ignore_encoded) -> MemoryView:
    """Return the memory of packed segments; each may be shorter than the model's. Raises NumericError."""
    blocks = []
    on_encoded(0, len(segments))
    for index, tokens in enumerate(segments):
        blocks.append(encode(model, index, tokens))
        on_encoded(len(blocks), len(segments))
    buffer = WindowBuffer(blocks[-1].end_token, model.backbone.device, model.key_space)
    for block in blocks:
        buffer.append(block)
    return buffer.view(0, blocks[-1].end_token)
