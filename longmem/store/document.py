# SPDX-License-Identifier: Apache-2.0
"""Read-only handle of one document's memory; `longmem.store.base` adds the writing methods."""

from dataclasses import dataclass, replace

from longmem.store.source import AbstractDocumentSource
from longmem.types import DocumentKey, SegmentInfo


@dataclass(frozen=True)
class DocumentMemory:
    """A document of a store. It holds no data: every property queries the store.

    This class only reads. `store.document("moby-dick")` gives a `WritableDocument`.
    """

    store: AbstractDocumentSource
    key: DocumentKey
    read_only: bool = True
    """True if a scored text *follows* the document: the document is read, and nothing is added to it."""

    @property
    def segments(self) -> list[SegmentInfo]:
        """Catalogue entries of the stored segments, by segment index."""
        return self.store.segments(self.key)

    @property
    def num_tokens(self) -> int:
        """Tokens of all stored segments."""
        return sum(info.num_tokens for info in self.segments)

    def as_read_only(self) -> "DocumentMemory":
        """Return a read-only handle, to score or generate a text that follows the document."""
        return replace(self, read_only=True)
