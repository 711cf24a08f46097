# SPDX-License-Identifier: Apache-2.0
"""Assignment of documents to rows, and each row's progress: a function of seed, row and count alone.

    row 0    doc a: s0 s1 s2 … | doc e: s0 s1 …        documents in the seed's order, assigned round-robin;
    row 1    doc b: s0 s1 … | doc f: s0 s1 s2 …        each row reads its documents whole and in order,
    …                                                  and starts each with an empty memory

So a row's past is always in its memory, which shuffled windows or consecutive rows of one stream would not guarantee.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int32

from longmem.errors import DocumentError
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment

TRAINING_NAMESPACE = "training"

Sequences = Sequence[Callable[[], Int32[np.ndarray, " tokens"]]]
"""Documents, each read and tokenised when a row reaches it."""


@dataclass(frozen=True)
class RowPosition:
    """Progress of a row, sufficient to resume after a kill."""

    taken: int
    """Number of documents that this row has begun, over all epochs."""
    segment: int
    """Number of segments read of the current document."""


class RowStream:
    """Endless stream of full segments of one row's documents.

    A document's short last segment is left out, so that the rows of a step can be computed together. A document without
    a full segment is skipped. Raises DocumentError when no document of an epoch has a full segment.
    """

    def __init__(self, documents: Sequences, row: int, rows: int, segment_tokens: int, seed: int) -> None:
        self._documents = documents
        self._row, self._rows = row, rows
        self._segment_tokens = segment_tokens
        self._seed = seed
        self._position = RowPosition(taken=0, segment=0)
        self._segments: list[Segment] = []

    @property
    def position(self) -> RowPosition:
        return self._position

    def state(self) -> dict[str, int]:
        return asdict(self._position)

    def restore(self, state: dict[str, int]) -> list[Segment]:
        """Move to a saved position and return the current document's segments before it."""
        self._position = RowPosition(**state)
        if not self._position.taken:
            return []
        self._segments = self._cut(self._position.taken - 1)
        return self._segments[: self._position.segment]

    def next(self) -> Segment:
        """Return the row's next segment; one of index 0 begins another document."""
        skipped = 0
        while self._position.segment == len(self._segments):
            # after this many draws every document of an epoch has been tried, whichever row takes it
            if skipped > self._rows * len(self._documents):
                raise DocumentError(
                    f"no training document has {self._segment_tokens + 1} tokens, a full segment and its last target; "
                    "give longer documents or a smaller segment_tokens"
                )
            self._segments = self._cut(self._position.taken)
            self._position = RowPosition(self._position.taken + 1, 0)
            skipped += 1
        segment = self._segments[self._position.segment]
        self._position = RowPosition(self._position.taken, self._position.segment + 1)
        return segment

    def _cut(self, count: int) -> list[Segment]:
        """Return the full segments of the row's document number `count`."""
        epoch, place = divmod(self._row + count * self._rows, len(self._documents))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._documents))
        sequence = self._documents[order[place]]()
        key = DocumentKey(TRAINING_NAMESPACE, f"{self._row}-{count}")
        return [
            segment
            for segment in cut_segments(key, sequence, self._segment_tokens)
            if len(segment.targets) == self._segment_tokens
        ]
