# SPDX-License-Identifier: Apache-2.0
"""LongMem over one document, with optional changes to the views of its segments: the only place that calls the
model."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from longmem.memory.context import LocalMemory, text_key
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.text.segments import cut_segments
from longmem.types import Segment

ReadingChange = Callable[[Segment, MemoryView | None], MemoryView | None]
"""Function that replaces a segment's view of its own past."""


class LongMemBaseline(AbstractBaseline):
    """LongMem as a baseline row: its memory is the document's past and is dropped with the document."""

    def __init__(self, model: LongMem, name: str) -> None:
        self.name = name
        self._model = model

    @property
    def description(self) -> str:
        config = self._model.config
        memory = f"memory of {config.memory_tokens:,} tokens, layer {self._model.sidenet.memory_layer}"
        trained = f"trained for {config.trained_steps:,} steps" if self._model.trained else "not trained"
        return f"SideNet {trained}; {memory if config.memory_tokens else 'no memory'}"

    def logprobs(self, sequence: Sequence) -> LogProbs:
        return score_readings(self._model, sequence, {self.name: own_memory})[self.name]


def score_readings(model: LongMem, sequence: Sequence, readings: Mapping[str, ReadingChange]) -> dict[str, LogProbs]:
    """Return log-probabilities of a document's targets under each change of the views; segments are encoded once."""
    past = LocalMemory(model)
    scores: dict[str, list[LogProbs]] = {name: [] for name in readings}
    for segment in cut_segments(text_key(None), sequence, model.config.segment_tokens):
        encoded = model.encode(segment)
        view = past.view(segment.index)
        for name, change in readings.items():
            read, alone = change(segment, view), encoded.backbone_logprobs
            score = model.score_segment(segment, encoded.block.keys, encoded.state, read, alone)
            scores[name].append(score.logprobs)
        past.accept(encoded.block)
    return {name: np.concatenate(parts) for name, parts in scores.items()}


def own_memory(_segment: Segment, view: MemoryView | None) -> MemoryView | None:
    """Return the document's past unchanged."""
    return view


def no_memory(_segment: Segment, _view: MemoryView | None) -> None:
    """Return no view: only the SideNet's local attention remains."""


def shuffled_values(segment: Segment, view: MemoryView | None) -> MemoryView | None:
    """Return the document's own keys, each with the value and the token of another place.

    Search finds unchanged places; the values read there are unrelated to them.
    """
    if view is None:
        return None
    slots = torch.arange(view.tokens.shape[1], device=view.lengths.device)
    real = (slots < view.lengths[:, None]).flatten().nonzero().squeeze(1)
    permutation = torch.randperm(len(real), generator=torch.Generator().manual_seed(segment.index)).to(real.device)
    order = torch.arange(view.tokens.numel(), device=real.device)
    order[real] = real[permutation]
    values = view.values.flatten(1, 2)[:, order].reshape(view.values.shape)
    tokens = view.tokens.flatten()[order].reshape(view.tokens.shape)
    return replace(view, values=values, tokens=tokens)


class OtherBook:
    """Change that replaces the view by another document's past of equal length, or all of it where that is shorter."""

    def __init__(self, model: LongMem, sequence: Sequence) -> None:
        self._model = model
        self._past = LocalMemory(model)
        segments = cut_segments(text_key(None), sequence, model.config.segment_tokens)
        self._segments = [segment for segment in segments if segment.num_tokens == model.config.segment_tokens]
        self._num_read = 0

    def __call__(self, segment: Segment, _view: MemoryView | None) -> MemoryView | None:
        wanted = min(segment.index, len(self._segments))
        for other in self._segments[self._num_read : wanted]:
            self._past.accept(self._model.encode(other).block)
        self._num_read = max(self._num_read, wanted)
        view = self._past.view(wanted)
        return None if view is None else replace(view, end_token=segment.start_token)
