# SPDX-License-Identifier: Apache-2.0
"""Log-probability of token sequences that follow a context of any length.

    memory (the document, then the context segment by segment)      item
    ───────────────────────────────────────────────────────────┤ context ├ target ┤
                                                                └─ one segment ────┘

The end of the context shares a segment with the targets, as far as it fits; the earlier part is memory. With memory,
the segment begins at a multiple of 1/16 of its size, so that answers of almost equal length share memory and context.
Targets longer than a segment are scored in pieces, each with all preceding tokens as its context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from longmem.errors import DocumentError
from longmem.memory.context import ContextMemory
from longmem.memory.view import MemoryView
from longmem.model.forward import SegmentModel
from longmem.scoring.batch import BATCH_TOKENS, Item, ItemScore, score_items
from longmem.types import KVBlock

MAX_VIEWS, MAX_SHORT = 16, 512
"""Pieces that are prepared together: at most `MAX_VIEWS` that may have own memories, or `MAX_SHORT` that share one."""

STARTS_PER_SEGMENT = 16
"""Places of a context per segment where a local context may begin. More cost less of it, and are shared by fewer."""


@dataclass(frozen=True)
class Continuation:
    """Context tokens to read, followed by target tokens to score."""

    name: str
    context: Int32[np.ndarray, " context"]
    targets: Int32[np.ndarray, " targets"]


@dataclass(frozen=True)
class ContinuationScore:
    """Score of all targets of a continuation together."""

    logprob: float
    greedy: bool
    """True if every target is the most probable token of the vocabulary."""


@dataclass(frozen=True)
class _Piece:
    request: int
    before: Int32[np.ndarray, " before"]
    """Tokens that do not fit into the segment."""
    item: Item


class ContinuationScorer:
    """Scorer of continuations in batches, with memory or under the backbone alone (which reads one segment)."""

    def __init__(
        self, model: SegmentModel, *, memory: bool, document: Sequence[KVBlock] = (), batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """Open a scorer.

        Args:
            document: blocks that every continuation reads before its own context.
            memory: False to leave out all context that does not fit into a segment.
        """
        self._model = model
        self._memory = memory
        self._document = document
        self._batch_tokens = batch_tokens
        self._last: tuple[bytes, MemoryView | None] | None = None

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, ContinuationScore]]:
        """Yield (index, score) of each continuation as it is done; the order of the requests changes no score.

        Raises DocumentError for a continuation without context or targets, NumericError.
        """
        pieces = [
            piece for index, continuation in enumerate(continuations) for piece in self._pieces(index, continuation)
        ]
        left = np.bincount([piece.request for piece in pieces], minlength=len(continuations))
        done: dict[int, list[ItemScore]] = {}
        for group in self._groups(pieces):
            views = [self._view(piece.before) for piece in group]
            scores = score_items(self._model, [piece.item for piece in group], views, self._batch_tokens)
            for piece, score in zip(group, scores, strict=True):
                parts = done.setdefault(piece.request, [])
                parts.append(score)
                if len(parts) == left[piece.request]:
                    yield piece.request, self._total(done.pop(piece.request))

    def _pieces(self, index: int, request: Continuation) -> Iterator[_Piece]:
        size = self._model.config.segment_tokens
        if not len(request.context) or not len(request.targets):
            raise DocumentError(
                f"{request.name}: expected at least one token of context and one to score, got {len(request.context)} "
                f"and {len(request.targets)}; check the task's texts for empty ones"
            )
        tokens = np.concatenate([request.context, request.targets])
        for first in range(len(request.context), len(tokens), size):
            end = min(first + size, len(tokens))
            start = max(0, end - 1 - size)
            if self._memory:
                step = max(1, size // STARTS_PER_SEGMENT)
                # where targets almost fill a segment, a step of context is kept, or what fits
                start = min(-(-start // step) * step, max(start, first - step))
            yield _Piece(
                index, tokens[:start], Item(request.name, tokens[start:end], first - start, continues=start > 0)
            )

    def _groups(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        """Group short pieces, which share one view; group pieces with own memories a few at a time, equal ones
        together."""
        short = [piece for piece in pieces if not self._memory or not len(piece.before)]
        long = [piece for piece in pieces if self._memory and len(piece.before)]
        for some, size in (
            (sorted(short, key=lambda piece: piece.item.num_read), MAX_SHORT),
            (sorted(long, key=lambda piece: piece.before.tobytes()), MAX_VIEWS),
        ):
            for first in range(0, len(some), size):
                yield some[first : first + size]

    def _view(self, before: Int32[np.ndarray, " before"]) -> MemoryView | None:
        if not self._memory:
            return None
        if self._last is None or self._last[0] != before.tobytes():
            context = ContextMemory(self._model, before, self._document)
            self._last = before.tobytes(), context.view(len(before))
        return self._last[1]

    def _total(self, parts: list[ItemScore]) -> ContinuationScore:
        scores = [part.longmem if self._memory else part.backbone for part in parts]
        return ContinuationScore(
            logprob=float(sum(score.total for score in scores)),
            greedy=all(bool(score.greedy.all()) for score in scores),
        )
