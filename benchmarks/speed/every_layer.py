# SPDX-License-Identifier: Apache-2.0
"""Reading at every layer: cost of a segment's reading pass, against plain transformers with a KV cache of its length.

The plain forward is the floor: it reads the same segment behind a cache that is ready. Assembling that cache from the
memory (choice, gather, rotation) and the copies come on top. Both plain rows attend as plain transformers does, with
torch's own function. Encoding, and one window of the published evaluation
(8,192 tokens, of which 512 are scored), are timed in the same turns.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.scoring.evaluation_window import cut_windows
from longmem.scoring.window_scores import score_window
from longmem.sidenet.block_choice import tokens_to_read
from longmem.sidenet.cache_reader import CacheReader
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

STRIDE = 512


@contextmanager
def torch_attention(model: LongMem) -> Iterator[None]:
    """Let the backbone attend as in plain transformers."""
    backbone = model.backbone.model
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


def every_layer(model: LongMem, text: str, num_segments: int, window: int, repeats: int) -> SpeedTable:
    """Time the last of `num_segments` segments of a text; the text must have as many, and `window` tokens."""
    reader = model.sidenet
    assert isinstance(reader, CacheReader), "the model reads one layer: memory_layers must be all"
    size = model.config.segment_tokens
    sequence = model.tokenizer.sequence(text)
    segments = cut_segments(DocumentKey("", ""), sequence, size)[:num_segments]
    assert len(segments[-1].tokens) == size, f"the text has fewer than {num_segments} whole segments"
    memory = LocalMemory(model)
    for segment in segments[:-1]:
        memory.accept(model.encode(segment).block)
    segment, view = segments[-1], memory.view(num_segments - 1)
    assert view is not None, "the text is longer than one segment"
    encoded = model.encode(segment)
    tokens, targets = torch.from_numpy(segment.tokens.copy())[None], torch.from_numpy(segment.targets.copy())
    places = tokens_to_read(view, model.config)
    ready = reader.assembled(view)

    def plain() -> None:
        with torch_attention(model):
            hidden = model.backbone.run(tokens, copy.deepcopy(ready))
        model.backbone.target_logprobs(hidden[0], targets)

    def published_window() -> None:
        with torch_attention(model):
            score_window(model, evaluated, "text")

    def scored(copies: bool) -> None:
        head = reader.copy_head
        try:
            reader.copy_head = head if copies else None
            model.score_segment(segment, encoded.block.keys, encoded.state, view)
        finally:
            reader.copy_head = head

    evaluated = list(cut_windows(sequence[: window + STRIDE + 1], window, STRIDE))[-1]
    cases: dict[str, Callable[[], object]] = {
        "plain transformers, cache of the same length ready": plain,
        "reading at every layer": lambda: scored(copies=False),
        "reading at every layer, and copies": lambda: scored(copies=True),
        "encoding": lambda: model.encode(segment),
        f"one window of {window:,}, {STRIDE} tokens scored": published_window,
    }
    with torch.no_grad():
        timings = take_turns(cases, repeats)
    read = 0 if places is None else len(places)
    scored_tokens = [size, size, size, size, STRIDE]
    lines = [
        BenchmarkRow(name, timing, {"ms per scored token": f"{1000 * timing.median_s / count:.2f}"})
        for (name, timing), count in zip(timings.items(), scored_tokens, strict=True)
    ]
    own = timings["reading at every layer, and copies"].median_s + timings["encoding"].median_s
    published = timings[f"one window of {window:,}, {STRIDE} tokens scored"].median_s / STRIDE * size
    title = f"{model.backbone.name}: segment of {size:,} tokens behind {read:,} memory tokens, all layers"
    settings = {
        "threads": torch.get_num_threads(),
        "dtype": str(model.backbone.dtype),
        "encoding_and_reading_of_published": own / published,
    }
    return SpeedTable(title, lines, settings)
