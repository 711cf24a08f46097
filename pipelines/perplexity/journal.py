# SPDX-License-Identifier: Apache-2.0
"""Journal of a perplexity job: one record per document, per scored segment and per evaluation window.

Records of segments stay on disk: of each, 8 bytes are kept in memory. A document of ten million tokens has 20,000.
"""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.job.journal import AbstractJournal
from pipelines.perplexity.records import DocumentRecord, Record, SegmentRecord, WindowRecord, decode, encode

_ABSENT = -1
"""Offset of a segment without a record."""


class Journal(AbstractJournal[Record]):
    """Journal of documents, segments and evaluation windows."""

    def __init__(self, path: Path) -> None:
        self.documents: dict[str, DocumentRecord] = {}
        self.windows: dict[str, dict[int, WindowRecord]] = {}
        self._offsets: dict[str, array[int]] = {}
        """Place in the file of the record of each segment, by document."""
        super().__init__(path)

    def is_scored(self, document: str) -> bool:
        """Return whether every segment of a document is scored."""
        record = self.documents.get(document)
        return record is not None and record.status == "scored"

    def scored_segments(self, document: str) -> list[int]:
        """Return the indices of a document's scored segments, in order."""
        last = self.documents[document].num_segments or 0
        offsets = self._offsets.get(document, array("q"))[:last]
        return [index for index, offset in enumerate(offsets) if offset != _ABSENT]

    def scored(self, document: str) -> list[SegmentRecord]:
        """Read the records of a document's scored segments, in order. Raises OutputError."""
        segments = self.scored_segments(document)
        offsets = [self._offsets[document][index] for index in segments]
        # the file holds names without secrets, which are not those by which the job knows its documents
        return [
            replace(record, document=document) for record in self._read(offsets) if isinstance(record, SegmentRecord)
        ]

    def windows_of(self, document: str) -> list[WindowRecord]:
        """Return the records of a document's evaluation windows, in order."""
        windows = self.windows.get(document, {})
        return [windows[index] for index in sorted(windows)]

    def _encode(self, record: Record) -> dict[str, Any]:
        return encode(record)

    def _decode(self, values: dict[str, Any]) -> Record:
        return decode(values)

    def _accept(self, record: Record) -> None:
        if isinstance(record, DocumentRecord):
            self.documents[record.document] = record
        elif isinstance(record, WindowRecord):
            self.windows.setdefault(record.document, {}).setdefault(record.window, record)
        else:
            offsets = self._offsets.setdefault(record.document, array("q"))
            offsets.extend([_ABSENT] * (record.segment + 1 - len(offsets)))
            # exactly once: a segment that was scored again after a lost acknowledgement has equal values
            if offsets[record.segment] == _ABSENT:
                offsets[record.segment] = self._offset
