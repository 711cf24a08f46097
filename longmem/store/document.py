# SPDX-License-Identifier: Apache-2.0
"""Read-only handle of one document's memory; `longmem.store.base` adds the writing methods."""

from dataclasses import dataclass, replace

from longmem.display import facts_html
from longmem.store.source import AbstractDocumentSource
from longmem.types import DocumentKey, SegmentInfo
from longmem.wording import counted


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        # without a query, because a message may show a document of a closed store
        return f"{type(self).__name__}({str(self.key)!r} in {self.store!r}{', read-only' if self.read_only else ''})"

    def _repr_html_(self) -> str:
        """Return a table of what is stored. Raises StoreError for a closed store."""
        segments = self.segments
        facts = {
            "store": repr(self.store),
            "stored": f"{counted(len(segments), 'segment')}, {counted(self.num_tokens, 'token')}",
            "bytes": f"{sum(info.num_bytes for info in segments):,}",
            "a scored text": "follows the document; nothing is written" if self.read_only else "is the document",
        }
        if segments:
            facts["positions"] = f"{segments[0].start_token:,} to {segments[-1].end_token:,}"
        return facts_html(f"Memory of {self.key}", facts)

    def as_read_only(self) -> "DocumentMemory":
        """Return a read-only handle, to score or generate a text that follows the document."""
        return replace(self, read_only=True)
