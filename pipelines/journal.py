"""The journal of a job: every result, appended as it comes, so that a killed job loses nothing that it had scored."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.checked_lines import CheckedLines
from pipelines.records import DocumentRecord, Record, SegmentRecord, decode, encode


class Journal:
    """Opens (or begins) a journal and reads back what it holds. Raises OutputError as `CheckedLines` does."""

    def __init__(self, path: Path) -> None:
        self.documents: dict[str, DocumentRecord] = {}
        self.segments: dict[tuple[str, int], SegmentRecord] = {}
        self._lines = CheckedLines(path, self._load)

    def add(self, record: Record) -> None:
        """Append one record; when this returns it survives the death of the process."""
        self._lines.add(encode(record))
        self._accept(record)

    def scored(self, document: str) -> list[SegmentRecord]:
        """Records of a document's scored segments, in order."""
        last = self.documents[document].num_segments or 0
        return [self.segments[document, index] for index in range(last) if (document, index) in self.segments]

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, values: Any) -> None:
        self._accept(decode(values))

    def _accept(self, record: Record) -> None:
        if isinstance(record, DocumentRecord):
            self.documents[record.document] = record
        else:
            # exactly once: a segment that was scored again after a lost acknowledgement has the same values
            self.segments.setdefault((record.document, record.segment), record)
