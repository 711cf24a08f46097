# SPDX-License-Identifier: Apache-2.0
"""Run of a perplexity job: read documents, write their memory, score them with it, and record every result.

feed ─► admit ─► scheduler ─► executor ─► journal ─► tables, summary, report
        (text)   (what, when)  (where)    (as it comes)   (at the end)
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from longmem.errors import (
    ClusterError,
    ConflictError,
    CorruptionError,
    LongMemError,
    MissingBlockError,
    StoreError,
)
from longmem.runtime.executor import STAGES, AbstractExecutor, Completion, EncodeReceipt, Stage
from longmem.runtime.run_loop import RunLoop
from longmem.runtime.scheduler import SegmentScheduler, stored_segments
from longmem.text.documents import UnreadableDocument
from longmem.text.segments import Passage
from longmem.types import DocumentKey, Segment, SegmentScore
from pipelines.command.interrupts import undivided
from pipelines.job.observer import JobObserver
from pipelines.job.prefetch import DocumentFeed, Prepared
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, score_record, start_record
from pipelines.perplexity.windows import WindowTotals, changed_since

WAIT_S = 0.2
"""Longest wait for a completion, in seconds; display and Ctrl-C are checked between waits."""

STARVED_S = 0.02
"""Longest wait while encoders lack a document that is being prepared."""


@dataclass
class StageTotals:
    """Work totals of one stage."""

    segments: int = 0
    tokens: int = 0
    busy_s: float = 0.0


@dataclass
class RunTotals:
    """Work totals of a run, for the summary; results are in the journal."""

    stages: dict[Stage, StageTotals] = field(default_factory=lambda: {stage: StageTotals() for stage in STAGES})
    wall_s: float = 0.0
    window: WindowTotals | None = None
    """Work of the baseline in overlapping windows; None without it."""

    def work(self) -> dict[str, Any]:
        """Return the additive work of this run."""
        values = asdict(self)
        return values if self.window is not None else {name: values[name] for name in ("stages", "wall_s")}


class PerplexityRun:
    """Run that scores every document of a feed.

    An error of one document fails that document only. An error that would affect every document (a full disk, a store
    of another model, a lost cluster) is raised; finished results stay in the journal.
    """

    def __init__(
        self,
        executor: AbstractExecutor,
        scheduler: SegmentScheduler,
        journal: Journal,
        observer: JobObserver,
        *,
        keep_memory: bool,
        keep_tokens: bool,
        num_unscored_tokens: int,
        admit_below: int,
        trim_every: int | None = None,
        totals: RunTotals | None = None,
        record: Callable[[RunTotals], None] = lambda _totals: None,
    ) -> None:
        """Prepare a run.

        `admit_below`: a document is admitted while fewer segments than this could be encoded side by side.

        `trim_every`: number of unneeded blocks at which they are removed; None keeps them until the document is done.

        `totals` receives the work of the run; by default a new one.

        `record` is called after each iteration, several times a second, with the totals so far.
        """
        self._executor = executor
        self._scheduler = scheduler
        self._journal = journal
        self._observer = observer
        self._keep_memory = keep_memory
        self._keep_tokens = keep_tokens
        self._num_unscored_tokens = num_unscored_tokens
        self._admit_below = admit_below
        self._trim_every = trim_every
        self._record = record
        self._trimmed: dict[DocumentKey, int] = {}
        self._backbone_logprobs: dict[tuple[DocumentKey, int], np.ndarray | None] = {}
        self._passages: dict[DocumentKey, list[Passage]] = {}
        self._errors: dict[DocumentKey, LongMemError] = {}
        self.totals = totals or RunTotals()

    def run(self, feed: DocumentFeed) -> None:
        """Score until the feed has ended and every admitted document is scored or failed."""
        loop = RunLoop(
            self._executor,
            self._scheduler,
            on_completed=self._complete,
            on_document_done=self._finish,
            on_event=self._observer.worker_event,
            all_admitted=lambda: feed.has_ended,
            on_released=self._released,
        )
        start = perf_counter()
        more = True
        while more or self._scheduler.active:
            while more and self._scheduler.num_encodable < self._admit_below:
                try:
                    # a worker may prepare it: workers are checked, and results taken, meanwhile
                    prepared = feed.next(0.0 if self._scheduler.active else WAIT_S)
                except TimeoutError:
                    break
                more = prepared is not None
                if prepared is not None:
                    self._admit(prepared)
            # a document that is prepared meanwhile does not end the wait
            starved = more and self._scheduler.num_encodable < self._admit_below
            loop.turn(STARVED_S if starved else WAIT_S)
            self._observer.levels(
                {stage: self._scheduler.queue_depth(stage) for stage in STAGES},
                self._scheduler.in_flight_bytes,
                self._scheduler.lag_segments,
            )
            self.totals.wall_s = perf_counter() - start
            self._record(self.totals)

    def _admit(self, prepared: Prepared) -> None:
        document = prepared.document
        known = self._journal.documents.get(document.id)
        if isinstance(document, UnreadableDocument):
            failed = DocumentRecord(document=document.id, order=prepared.order, source=document.source, status="failed")
            self._observer.admitted(document.id, 0, 0)
            self._record_failure(known or failed, document.error)
            return
        if known is not None and known.text_digest not in (None, document.digest):
            # keep the record with the old digest, or the next attempt would mistake the new text for the old one
            self._observer.admitted(document.id, 0, 0)
            self._record_failure(known, changed_since(document.source))
            return
        if not prepared.segments:
            assert known is not None, f"{document.id}: neither cut into segments nor done before"
            self._observer.admitted(document.id, 0, 0)
            self._observer.document_ended(document.id, None, self._keep_memory)
            return
        record = start_record(document, prepared.order, prepared.segments, self._num_unscored_tokens)
        self._journal.add(record)
        key = prepared.segments[0].key
        scored = set(self._journal.scored_segments(document.id))
        left = [segment for segment in prepared.segments if segment.index not in scored]
        self._observer.admitted(document.id, sum(len(segment.targets) for segment in left), len(left))
        try:
            infos = self._executor.stored(key)
            stored = stored_segments(infos, prepared.segments)
        except ConflictError as error:
            self._record_failure(record, ConflictError(f"{document.source}: {error}"))
            return
        except LongMemError as error:
            self._raise_if_fatal(error)
            self._record_failure(record, error)
            return
        self._observer.found_stored(document.id, {info.segment: info.num_bytes for info in infos})
        if prepared.passages is not None:
            self._passages[key] = prepared.passages
        if not self._scheduler.add_document(prepared.segments, scored, stored):
            self._finish(key, failed=False)

    def _complete(self, completion: Completion) -> None:
        stage, segment = completion.stage, completion.segment
        if completion.error is not None:
            self._observer.task_ended(completion)
            self._raise_if_fatal(completion.error)
            self._errors.setdefault(segment.key, completion.error)
            return
        with undivided():
            self._take(completion)
            totals = self.totals.stages[stage]
            totals.segments += 1
            totals.tokens += segment.num_tokens
            totals.busy_s += completion.busy_s
        self._observer.task_ended(completion)
        if stage == "score" and self._trim_every is not None:
            self._trim(segment.key, self._trim_every)

    def _released(self, segment: Segment) -> None:
        self._backbone_logprobs.pop((segment.key, segment.index), None)

    def _trim(self, key: DocumentKey, every: int) -> None:
        first = self._scheduler.first_needed(key)
        if first - self._trimmed.get(key, 0) >= every:
            self._executor.trim(key, first)
            self._observer.trimmed(key.document, first)
            self._trimmed[key] = first

    def _take(self, completion: Completion) -> None:
        segment, result = completion.segment, completion.result
        if isinstance(result, EncodeReceipt):
            self._backbone_logprobs[segment.key, segment.index] = result.backbone_logprobs
        elif isinstance(result, SegmentScore):
            backbone = self._backbone_logprobs[segment.key, segment.index]
            passage = self._passages[segment.key][segment.index] if self._keep_tokens else None
            self._journal.add(score_record(segment, result, backbone, passage))

    def _finish(self, key: DocumentKey, failed: bool) -> None:
        self._trimmed.pop(key, None)
        self._passages.pop(key, None)
        record = self._journal.documents[key.document]
        if failed:
            self._record_failure(record, self._errors.pop(key))
        else:
            found = len(self._journal.scored_segments(key.document))
            assert found == record.num_segments, f"{key}: {found} of {record.num_segments} segments were scored"
            self._journal.add(DocumentRecord(**{**vars(record), "status": "scored"}))
            self._observer.document_ended(key.document, None, self._keep_memory)
        if not self._keep_memory:
            self._executor.delete(key)

    def _record_failure(self, record: DocumentRecord, error: LongMemError) -> None:
        self._journal.add(DocumentRecord(**{**vars(record), "status": "failed", "error": str(error)}))
        self._observer.document_ended(record.document, error, self._keep_memory)

    def _raise_if_fatal(self, error: LongMemError) -> None:
        """Raise an error that is no fault of the document: the others would meet it too."""
        if isinstance(error, ClusterError):
            raise error
        if isinstance(error, StoreError) and not isinstance(error, ConflictError | MissingBlockError | CorruptionError):
            raise error
