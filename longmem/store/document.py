"""Handle of one document's memory: `store.document("moby-dick")`."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longmem.types import DocumentKey, SegmentInfo

if TYPE_CHECKING:
    from longmem.store.base import AbstractMemoryStore


@dataclass(frozen=True)
class DocumentMemory:
    """A document of a store. It holds no data: every property queries the store."""

    store: "AbstractMemoryStore"
    key: DocumentKey
    read_only: bool = False
    """True if a scored text *follows* the document: the document is read, and nothing is added to it."""

    @property
    def segments(self) -> list[SegmentInfo]:
        """Catalogue entries of the stored segments, by segment index."""
        return self.store.segments(self.key)

    @property
    def num_tokens(self) -> int:
        """Number of stored tokens."""
        return sum(info.num_tokens for info in self.segments)

    def as_read_only(self) -> "DocumentMemory":
        """Return a read-only handle, to score or generate a text that follows the document."""
        return replace(self, read_only=True)

    def fork(self, name: str) -> "DocumentMemory":
        """Create a document in the same namespace with the same blocks, without copying them, and return it."""
        target = DocumentKey(self.key.namespace, name)
        self.store.fork(self.key, target)
        return DocumentMemory(self.store, target)

    def delete(self) -> int:
        """Delete the document, and return the number of removed blocks."""
        return self.store.delete(self.key)

    def trim(self, first_segment: int) -> int:
        """Delete the segments below `first_segment`, and return the number of removed blocks."""
        return self.store.trim(self.key, first_segment)
