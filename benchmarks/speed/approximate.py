# SPDX-License-Identifier: Apache-2.0
"""Approximate search in a long memory of real text: time saved, chunks missed, and the effect on perplexity.

The memory is filled once. Then the next segments of the text are scored with every engine, each after the previous one
was added. So a memory of millions of tokens costs one pass. Searches of the last segment are timed: its view does not
begin or end at a stretch boundary, which is the typical case.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import exp
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.growth import long_document
from benchmarks.speed.faiss_indexes import KINDS, FaissIndexSearch
from benchmarks.speed.real_memory import KEY, Listening
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing, take_turns
from longmem.errors import ConfigError
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.retrieval import create_search
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.faiss_search import make_cells
from longmem.retrieval.ivf_index import STRETCHES
from longmem.retrieval.ivf_search import IvfSearch
from longmem.text.segments import cut_segments
from longmem.types import Segment

EXACT = "exact (search=native)"
ALMOST = 1e-6
"""Tolerance, as a share of the norms, below the worst exact score: equal texts have equal scores."""


@dataclass
class FoundShare:
    """Results of one engine."""

    recalls: list[float] = field(default_factory=list)
    nats: list[np.ndarray] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return exp(float(np.concatenate(self.nats).mean()))


def approximate(
    source: ModelSource,
    inputs: list[str],
    num_tokens: int,
    probes: list[int],
    scored_segments: int,
    repeats: int,
    *,
    with_faiss: bool = False,
) -> SpeedTable:
    """Time searches of one segment in a memory of `num_tokens`; measure recall and perplexity over `scored_segments`.

    `source` must open with `search="ivf"`, so that its views include cells. `with_faiss` adds FAISS's own indexes.
    Raises ConfigError for these where the model does not search one token at a time for all heads.
    """
    model = source.open()
    reading = model.config.retrieval, model.config.chunk_tokens
    if with_faiss and reading != ("joint", 1):
        raise ConfigError(
            f"--faiss needs retrieval=joint and chunk_tokens=1, this model has {reading[0]} and {reading[1]}"
        )
    size = model.config.segment_tokens
    text = long_document(num_tokens + scored_segments * size, inputs, source).text
    sequence = model.tokenizer.sequence(text)[: num_tokens + scored_segments * size]
    segments = cut_segments(KEY, sequence, size)
    window = WindowBuffer(num_tokens + scored_segments * size, key_space=model.key_space)
    for segment in segments[:-scored_segments]:
        window.append(model.encode(segment).block)
    engines: dict[str, AbstractChunkSearch] = {EXACT: create_search("native")}
    engines |= {f"ivf, {count} cells": IvfSearch(count) for count in probes}
    indexes = {name: FaissIndexSearch(kind) for name, kind in KINDS.items()} if with_faiss else {}
    engines |= indexes
    found = {name: FoundShare() for name in engines}
    arguments: tuple[Any, ...] = ()
    for segment, view in _reading(model, window, segments[-scored_segments:], num_tokens):
        for index in indexes.values():
            index.follow(view)
        arguments = _score(model, segment, view, engines, found)
    timings = take_turns({name: partial(engine.search, *arguments) for name, engine in engines.items()}, repeats)
    exact = found[EXACT].perplexity
    lines = [
        BenchmarkRow(
            name,
            timings[name],
            {
                "recall": f"{np.mean(share.recalls):.4f}",
                "perplexity": f"{share.perplexity:.3f}",
                "change": f"{share.perplexity / exact - 1:+.3%}",
            }
            | ({"built in (CPU s)": f"{indexes[name].building_s:,.0f}"} if name in indexes else {}),
        )
        for name, share in found.items()
    ]
    lines += [BenchmarkRow(f"clustering, for each {size} tokens", _clustering(arguments[1], size, num_tokens))]
    title = f"{size} queries in {num_tokens:,} tokens of real text, top {model.config.num_slots}"
    return SpeedTable(title, lines, {"threads": torch.get_num_threads(), "scored_segments": scored_segments})


def _reading(
    model: LongMem, window: WindowBuffer, segments: list[Segment], num_tokens: int
) -> Iterator[tuple[Segment, MemoryView]]:
    """Yield each segment with the memory before it, then add it."""
    for segment in segments:
        yield segment, window.view(max(0, segment.start_token - num_tokens), segment.start_token)
        window.append(model.encode(segment).block)


def _score(
    model: LongMem,
    segment: Segment,
    view: MemoryView,
    engines: Mapping[str, AbstractChunkSearch],
    found: Mapping[str, FoundShare],
) -> tuple[Any, ...]:
    """Score with every engine and return the search arguments of each."""
    encoded = model.encode(segment)
    own, best = model.search, None
    arguments: tuple[Any, ...] = ()
    for name, engine in engines.items():
        model.search = listening = Listening(engine)
        score = model.score_segment(segment, encoded.block.keys, encoded.state, view)
        assert listening.hits is not None, "a memory that is not empty is searched"
        best, arguments = best or listening.hits, listening.arguments
        found[name].nats.append(-score.logprobs)
        found[name].recalls.append(_recall(listening.hits, best, *arguments[:2]))
    model.search = own
    return arguments


def _recall(hits: ChunkHits, best: ChunkHits, queries: Tensor, chunk_keys: Tensor) -> float:
    slack = ALMOST * queries.norm(dim=2)[..., None] * chunk_keys.float().norm(dim=2).max()
    return float((hits.scores >= best.scores[..., -1:] - slack).double().mean())


def _clustering(chunk_keys: Tensor, segment_tokens: int, memory_tokens: int) -> Timing:
    """Time a segment's share of the clustering of every scale that fits into the memory, done once per reader."""
    wall_s, cpu_s = [], []
    for _ in range(2):
        wall, cpu = 0.0, 0.0
        for length in (stretch for stretch in STRETCHES if stretch <= memory_tokens):
            keys = chunk_keys[:, : chunk_keys.shape[1] * length // memory_tokens]
            begun = perf_counter(), process_time()
            make_cells(keys)
            share = segment_tokens / length
            wall, cpu = wall + share * (perf_counter() - begun[0]), cpu + share * (process_time() - begun[1])
        wall_s.append(wall)
        cpu_s.append(cpu)
    return Timing(tuple(wall_s), tuple(cpu_s))
