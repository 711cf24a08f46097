"""One document's memory, as readers hold it; `longmem.store.base` adds what changes it."""

from dataclasses import dataclass, replace

from longmem.store.source import AbstractDocumentSource
from longmem.types import DocumentKey, SegmentInfo


@dataclass(frozen=True)
class DocumentMemory:
    """A document's name in a store. It holds no data of its own: every property asks the store.

    This class only reads. `store.document("moby-dick")` gives a `WritableDocument`.
    """

    store: AbstractDocumentSource
    key: DocumentKey
    read_only: bool = True
    """True for a text that *follows* the document: it reads the document and adds nothing to it."""

    @property
    def segments(self) -> list[SegmentInfo]:
        """Catalogue entries of what is stored, by segment index."""
        return self.store.segments(self.key)

    @property
    def num_tokens(self) -> int:
        """Tokens of all stored segments."""
        return sum(info.num_tokens for info in self.segments)

    def as_read_only(self) -> "DocumentMemory":
        """Return the same memory, to score or generate a text that comes after it."""
        return replace(self, read_only=True)
