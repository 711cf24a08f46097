# SPDX-License-Identifier: Apache-2.0
"""Journal of a perplexity job: one record per document, per scored segment and per evaluation window."""

from pathlib import Path
from typing import Any

from pipelines.job.journal import AbstractJournal
from pipelines.perplexity.records import DocumentRecord, Record, SegmentRecord, WindowRecord, decode, encode


class Journal(AbstractJournal[Record]):
    """Journal of documents, segments and evaluation windows."""

    def __init__(self, path: Path) -> None:
        self.documents: dict[str, DocumentRecord] = {}
        self.segments: dict[tuple[str, int], SegmentRecord] = {}
        self.windows: dict[str, dict[int, WindowRecord]] = {}
        super().__init__(path)

    def scored(self, document: str) -> list[SegmentRecord]:
        """Return the records of a document's scored segments, in order."""
        last = self.documents[document].num_segments or 0
        return [self.segments[document, index] for index in range(last) if (document, index) in self.segments]

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
            # exactly once: a segment that was scored again after a lost acknowledgement has equal values
            self.segments.setdefault((record.document, record.segment), record)
