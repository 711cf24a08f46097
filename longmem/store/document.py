"""One document's memory, as users hold it: `store.document("moby-dick")`."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longmem.types import DocumentKey, SegmentInfo

if TYPE_CHECKING:
    from longmem.store.base import AbstractMemoryStore


@dataclass(frozen=True)
class DocumentMemory:
    """A name in a store. It holds no data of its own: every property asks the store."""

    store: "AbstractMemoryStore"
    key: DocumentKey
    read_only: bool = False
    """True for a text that *follows* the document: it reads the document and adds nothing to it."""

    @property
    def segments(self) -> list[SegmentInfo]:
        """Catalogue entries of what is stored, by segment index."""
        return self.store.segments(self.key)

    @property
    def num_tokens(self) -> int:
        return sum(info.num_tokens for info in self.segments)

    def as_read_only(self) -> "DocumentMemory":
        """The same memory, to score or generate a text that comes after it."""
        return replace(self, read_only=True)

    def fork(self, name: str) -> "DocumentMemory":
        """A second document in the same namespace that starts with the same blocks (nothing is copied)."""
        target = DocumentKey(self.key.namespace, name)
        self.store.fork(self.key, target)
        return DocumentMemory(self.store, target)

    def delete(self) -> int:
        """Forget the document; returns the number of blocks removed."""
        return self.store.delete(self.key)

    def trim(self, first_segment: int) -> int:
        """Forget the segments below `first_segment`; returns the number of blocks removed."""
        return self.store.trim(self.key, first_segment)
