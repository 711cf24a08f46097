# SPDX-License-Identifier: Apache-2.0
"""Baseline of a perplexity job: the backbone alone in overlapping windows, one request per window.

scored documents ─► windows ─► requests ─► encoders ─► journal ─► nats per segment
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from time import perf_counter

import numpy as np

from longmem.errors import ConflictError, LongMemError
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import WindowRequest
from longmem.scoring.evaluation_window import EvaluationWindow, cut_windows, num_windows
from longmem.types import Document
from pipelines.command.interrupts import undivided
from pipelines.job.ask import WAIT_S, ask_all
from pipelines.job.observer import JobObserver
from pipelines.job.prefetch import DocumentFeed, Prepared
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, WindowRecord, window_record


@dataclass(frozen=True)
class WindowShape:
    """Length and distance of evaluation windows in tokens."""

    window: int
    stride: int

    def count(self, record: DocumentRecord) -> int:
        """Return the number of windows of a document that was read."""
        return num_windows(record.num_tokens or 0, self.window, self.stride)


@dataclass
class WindowTotals:
    """Work totals of the baseline in one run."""

    windows: int = 0
    tokens: int = 0
    """Number of tokens read, those of the context included."""
    busy_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True)
class WindowResults:
    """Results of the baseline over the scored documents."""

    shape: WindowShape
    num_windows: int
    nats: Mapping[tuple[str, int], float]
    """Summed negative log-probabilities of the targets of each segment, by document and segment."""
    logprobs: Mapping[str, np.ndarray]
    """Log-probabilities of all targets of each document; empty unless tokens are kept."""


class WindowRun:
    """Run that scores every window of the scored documents that the journal does not hold.

    An error of one window fails its document only.
    """

    def __init__(
        self,
        executor: AbstractExecutor,
        journal: Journal,
        observer: JobObserver,
        shape: WindowShape,
        totals: WindowTotals,
        *,
        segment_tokens: int,
        keep_tokens: bool,
        record: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a run, which adds its work to `totals` and calls `record` several times a second."""
        self._executor = executor
        self._journal = journal
        self._observer = observer
        self._shape = shape
        self._totals = totals
        self._segment_tokens = segment_tokens
        self._keep_tokens = keep_tokens
        self._record = record

    def needs_work(self, document: Document) -> bool:
        """Return whether a document is scored and lacks a window."""
        record = self._journal.documents.get(document.id)
        return record is not None and self._lacks_windows(record)

    def run(self, feed: DocumentFeed) -> None:
        """Score until every window is in the journal or its document has failed."""
        scored = [record for record in self._journal.documents.values() if record.status == "scored"]
        total = sum(self._shape.count(record) for record in scored)
        done = sum(len(self._journal.windows.get(record.document, ())) for record in scored)
        self._observer.planned("windows", total, done)
        start = perf_counter()

        def turned() -> None:
            self._totals.wall_s = perf_counter() - start
            self._record()

        ask_all(self._executor, self._requests(feed), self._observer, self._take, turned, self._fail_window)
        for record in scored:
            if self._lacks_windows(self._journal.documents[record.document]):
                self._fail(record, changed_since(record.source))

    def _lacks_windows(self, record: DocumentRecord) -> bool:
        found = len(self._journal.windows.get(record.document, ()))
        return record.status == "scored" and found < self._shape.count(record)

    def _requests(self, feed: DocumentFeed) -> Iterator[tuple[tuple[str, EvaluationWindow], WindowRequest]]:
        while (prepared := self._next(feed)) is not None:
            document = prepared.document
            # a document that can no longer be read, or is another text, gets no windows and fails at the end
            if not prepared.segments or not isinstance(document, Document):
                continue
            if document.digest != self._journal.documents[document.id].text_digest:
                continue
            sequence = np.concatenate([segment.tokens for segment in prepared.segments])
            for window in cut_windows(sequence, self._shape.window, self._shape.stride):
                if self._journal.documents[document.id].status != "scored":
                    break
                if window.index not in self._journal.windows.get(document.id, ()):
                    yield (document.id, window), WindowRequest(document.id, window)

    def _next(self, feed: DocumentFeed) -> Prepared | None:
        while True:
            try:
                return feed.next(WAIT_S)
            except TimeoutError:
                # a worker may prepare it: workers are checked meanwhile. Answers stay with the executor
                self._executor.wait(0.0)

    def _take(self, tag: tuple[str, EvaluationWindow], logprobs: np.ndarray, busy_s: float) -> None:
        document, window = tag
        record = window_record(document, window, logprobs, self._segment_tokens, self._keep_tokens)
        with undivided():
            self._journal.add(record)
            self._totals.windows += 1
            self._totals.tokens += len(window.tokens)
            self._totals.busy_s += busy_s
        self._observer.advanced()

    def _fail_window(self, tag: tuple[str, EvaluationWindow], error: LongMemError) -> None:
        record = self._journal.documents[tag[0]]
        # the first error stays: later windows of the document may have been sent before it was known
        if record.status == "scored":
            self._fail(record, error)

    def _fail(self, record: DocumentRecord, error: LongMemError) -> None:
        self._journal.add(DocumentRecord(**{**vars(record), "status": "failed", "error": str(error)}))
        self._observer.scored_document_failed(record.document, error)


def changed_since(source: str) -> ConflictError:
    """Return the error of a document whose text is another one than when the job began."""
    return ConflictError(
        f"{source} has changed since the job began: its text is another one; restore it, or begin a "
        "new job in another folder"
    )


def collect_windows(journal: Journal, scored: Sequence[DocumentRecord], shape: WindowShape) -> WindowResults:
    """Return the results of all windows of the scored documents; they do not depend on the order of the journal."""
    nats: dict[tuple[str, int], float] = {}
    logprobs: dict[str, np.ndarray] = {}
    count = 0
    for record in scored:
        windows = journal.windows_of(record.document)
        assert len(windows) == shape.count(record), f"{record.document}: {len(windows)} windows were scored"
        nats |= {(record.document, segment): total for segment, total in _nats_of_segments(windows).items()}
        kept = [each.logprobs for each in windows if each.logprobs is not None]
        if kept:
            logprobs[record.document] = np.concatenate(kept)
        count += len(windows)
    return WindowResults(shape, count, nats, logprobs)


def _nats_of_segments(windows: Sequence[WindowRecord]) -> dict[int, float]:
    parts: dict[int, list[float]] = defaultdict(list)
    for window in windows:
        for offset, part in enumerate(window.nll):
            parts[window.segment + offset].append(part)
    return {segment: fsum(found) for segment, found in parts.items()}
