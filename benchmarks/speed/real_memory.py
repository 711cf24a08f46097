# SPDX-License-Identifier: Apache-2.0
"""Full window of real text, with the queries of the segment that reads it: the input of every speed benchmark."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from benchmarks.growth import long_document
from benchmarks.speed.shapes import Shape
from longmem.backbone.small import save_small_backbone
from longmem.config import Dtype
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.text.language_reference import language_reference
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, EncodedSegment, KVBlock, Segment

KEY = DocumentKey("benchmarks", "speed")

ENCODED_SEGMENTS = 4
"""Number of encoded segments that fill the window of the larger shape."""


@dataclass(frozen=True)
class RealMemory:
    """Last segment of a text that is one segment longer than the window."""

    model: LongMem
    segment: Segment
    encoded: EncodedSegment
    view: MemoryView
    queries: Float32[Tensor, "tokens index_heads index_dim"]
    """Search queries of the segment's tokens."""

    @property
    def on_cpu(self) -> bool:
        return self.model.backbone.device.type == "cpu"


def real_memory(source: ModelSource, inputs: list[str]) -> RealMemory:
    """Encode as much text as the window holds; the language reference where no input is given."""
    model = source.open()
    config = model.config
    text = long_document(config.memory_tokens + config.segment_tokens, inputs, source).text
    sequence = model.tokenizer.sequence(text)[: config.memory_tokens + config.segment_tokens]
    *past, last = cut_segments(KEY, sequence, config.segment_tokens)
    return _read(model, (model.encode(segment).block for segment in past), last)


def random_memory(shape: Shape, device: str = "cpu", dtype: Dtype = "float32", **settings: Any) -> RealMemory:
    """Return a full window at a shape, with random weights: its outputs are meaningless, its times are valid.

    Encoding a whole window would take minutes, so it repeats the blocks of a few segments, each time with noise of half
    their magnitude. Chunks are of four tokens, as in the paper. `settings` are fields of LongMemConfig.
    """
    with TemporaryDirectory(prefix="longmem-speed-") as folder:
        save_small_backbone(Path(folder), shape.family, **shape.sizes)
        model = LongMem.from_backbone(folder, dtype=dtype, device=device, chunk_tokens=4, **settings)
    config = model.config
    num_segments = config.memory_tokens // config.segment_tokens
    sequence = model.tokenizer.sequence(language_reference().text)[: config.memory_tokens + config.segment_tokens]
    *past, last = cut_segments(KEY, sequence, config.segment_tokens)
    encoded = [model.encode(segment).block for segment in past[:ENCODED_SEGMENTS]]

    def blocks() -> Iterator[KVBlock]:
        random = np.random.default_rng(0)
        for index in range(num_segments):
            like = encoded[index % ENCODED_SEGMENTS]
            keys, values = (
                (array + 0.5 * array.std() * random.standard_normal(array.shape)).astype(array.dtype)
                for array in (like.keys.astype(np.float32), like.values.astype(np.float32))
            )
            stored = like.keys.dtype
            yield replace(
                like,
                segment=index,
                start_token=index * config.segment_tokens,
                keys=keys.astype(stored),
                values=values.astype(stored),
            )

    return _read(model, blocks(), last)


def _read(model: LongMem, past: Iterable[KVBlock], last: Segment) -> RealMemory:
    window = WindowBuffer(model.config.memory_tokens, model.backbone.device, model.key_space)
    for block in past:
        window.append(block)
    view = window.view(0, last.start_token)
    encoded = model.encode(last)
    listening = Listening(model.search)
    model.search = listening
    model.score_segment(last, encoded.block.keys, encoded.state, view)
    model.search = listening.engine
    assert listening.queries is not None, "a full window is searched"
    return RealMemory(model, last, encoded, view, listening.queries)


class Listening(AbstractChunkSearch):
    """Search that delegates and records the last arguments and results."""

    def __init__(self, engine: AbstractChunkSearch) -> None:
        self.engine = engine
        self.gather = engine.gather
        self.queries: Tensor | None = None
        self.hits: ChunkHits | None = None
        self.arguments: tuple[Any, ...] = ()

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,
    ) -> ChunkHits:
        self.queries, self.arguments = queries, (queries, chunk_keys, num_slots, sketch, cells)
        self.hits = self.engine.search(queries, chunk_keys, num_slots, sketch, cells)
        return self.hits
