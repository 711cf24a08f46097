"""A full window of real text, with the queries of the segment that reads it: what every speed is measured on."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from benchmarks.growth import long_document
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.model import LongMem
from longmem.model_source import ModelSource
from longmem.search.base import AbstractChunkSearch, ChunkHits
from longmem.search.sketch import KeySketch
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, EncodedSegment, Segment

KEY = DocumentKey("benchmarks", "speed")


@dataclass(frozen=True)
class RealMemory:
    """The last segment of a text that is one segment longer than the window."""

    model: LongMem
    segment: Segment
    encoded: EncodedSegment
    view: MemoryView
    queries: Float32[Tensor, "tokens index_heads index_dim"]
    """What the segment's tokens search with."""


def real_memory(source: ModelSource, inputs: list[str]) -> RealMemory:
    """Encode as much text as the window holds; the language reference where no input is given."""
    model = source.open()
    config = model.config
    text = long_document(config.memory_tokens + config.segment_tokens, inputs, source).text
    sequence = model.tokenizer.sequence(text)[: config.memory_tokens + config.segment_tokens]
    window = WindowBuffer(config.memory_tokens, key_space=model.key_space)
    *past, last = cut_segments(KEY, sequence, config.segment_tokens)
    for segment in past:
        window.append(model.encode(segment).block)
    view = window.view(0, last.start_token)
    encoded = model.encode(last)
    listening = _Listening(model.search)
    model.search = listening
    model.score_segment(last, encoded.block.keys, encoded.taps, view)
    model.search = listening.engine
    assert listening.queries is not None, "a full window is searched"
    return RealMemory(model, last, encoded, view, listening.queries)


class _Listening(AbstractChunkSearch):
    """Passes searches on and keeps what was asked."""

    def __init__(self, engine: AbstractChunkSearch) -> None:
        self.engine = engine
        self.queries: Tensor | None = None

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float32[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
    ) -> ChunkHits:
        self.queries = queries
        return self.engine.search(queries, chunk_keys, num_slots, sketch)
