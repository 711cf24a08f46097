# SPDX-License-Identifier: Apache-2.0
"""Read access in a store's contract: all that readers and texts after a document need."""

from abc import ABC, abstractmethod

from longmem.types import DocumentKey, Fingerprint, KVBlock, SegmentInfo


class AbstractBlockSource(ABC):
    """Source of blocks by key and segment: a store, or its client on another machine."""

    @abstractmethod
    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        """Return the blocks of segments `[first_segment, last_segment)`, in order, verified against their checksums.

        Up to `ahead` further segments follow, as far as they are stored without a gap. Arrays are read-only. Raises
        MissingBlockError when a segment of the interval is not stored, and CorruptionError when stored bytes differ
        from the written ones.
        """


class AbstractDocumentSource(AbstractBlockSource):
    """Source that also lists the blocks of a document, and the fingerprint of their model."""

    @abstractmethod
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        """Return the catalogue entries of one document by segment index; empty for an unknown document."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint that the first block fixed; None while the store is empty."""
