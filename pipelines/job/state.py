# SPDX-License-Identifier: Apache-2.0
"""Counters of a running job and snapshots of its progress."""

import os
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from actors.monitoring.job_status import JobSnapshot, StageSnapshot, State
from longmem.errors import CorruptionError, LongMemError
from longmem.runtime.executor import STAGES, Completion, EncodeReceipt, EventKind, ExecutorEvent, Stage
from longmem.runtime.steps import Step
from longmem.system.redaction import redacted
from longmem.types import PutReceipt, SegmentScore
from pipelines.job.observer import JobObserver
from pipelines.job.progress import WorkDone
from pipelines.job.throughput import TokenRate

RECENT_SEGMENTS = 64
"""Number of latest segments over which gate and copy share are averaged: the trend of a job, not its history."""
RECENT_FAILURES = 10

_COUNTED: dict[EventKind, str] = {
    "retry": "retries",
    "encoded again": "retries",
    "stalled": "stalls",
    # a killed worker is reported as lost next
    "lost": "lost_workers",
}


class JobState(JobObserver):
    """Observer that counts a job's events. `clock` is monotonic and measures durations; `now` gives the time of day."""

    def __init__(
        self,
        job_id: str,
        kind: str,
        out: Path,
        *,
        store_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._job_id = job_id
        self._kind = kind
        self._out = out.absolute()
        self._store_limit_bytes = store_limit_bytes
        self._clock = clock
        self._now = now
        self._begun = clock()
        self._started = now()
        self._stages: dict[Stage, StageSnapshot] = {stage: StageSnapshot() for stage in STAGES}
        self._rates = {stage: TokenRate(clock) for stage in STAGES}
        self._documents: Counter[str] = Counter()
        self._work = WorkDone()
        self._detail = ""
        self._stored: dict[str, array[int]] = {}
        """Bytes of each stored segment, by document."""
        self._stored_bytes = 0
        self._counts: Counter[str] = Counter()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT_SEGMENTS)
        self._failures: deque[str] = deque(maxlen=RECENT_FAILURES)
        self._queue_depths: Mapping[Stage, int] = {}
        self._in_flight_bytes = 0
        self._lag_segments = 0

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:  # noqa: ARG002
        self._documents["admitted"] += 1
        self._work.admit(document, num_tokens)

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        for segment, num_bytes in segment_bytes.items():
            self._keep(document, segment, num_bytes)

    def trimmed(self, document: str, first_segment: int) -> None:
        segments = self._stored.get(document, array("q"))
        removed = segments[:first_segment]
        self._stored_bytes -= sum(removed)
        segments[:first_segment] = array("q", bytes(removed.itemsize * len(removed)))

    def task_ended(self, completion: Completion) -> None:
        stage, segment, result = completion.stage, completion.segment, completion.result
        if completion.error is not None:
            self._stages[stage] = replace(self._stages[stage], failed_tasks=self._stages[stage].failed_tasks + 1)
            return
        num_bytes = 0
        if isinstance(result, EncodeReceipt):
            num_bytes = result.num_bytes
        elif isinstance(result, PutReceipt):
            num_bytes = result.num_bytes
            self._counts["duplicate_puts"] += result.duplicate
            self._keep(segment.key.document, segment.index, num_bytes)
        elif isinstance(result, SegmentScore):
            self._work.score(segment.key.document, len(segment.targets))
            if result.retrieval.memory_tokens:
                self._recent.append((result.retrieval.gate_mean, result.retrieval.copy_mean))
        before = self._stages[stage]
        self._stages[stage] = replace(
            before,
            segments=before.segments + 1,
            tokens=before.tokens + segment.num_tokens,
            num_bytes=before.num_bytes + num_bytes,
            busy_s=before.busy_s + completion.busy_s,
        )
        self._rates[stage].add(segment.num_tokens)

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        self._documents["scored" if error is None else "failed"] += 1
        self._work.end(document)
        segments = self._stored.pop(document, array("q"))
        if not kept:
            self._stored_bytes -= sum(segments)
        if error is not None:
            self._note_failure(document, error)

    def scored_document_failed(self, document: str, error: LongMemError) -> None:
        self._documents["scored"] -= 1
        self._documents["failed"] += 1
        self._note_failure(document, error)

    def _note_failure(self, document: str, error: LongMemError) -> None:
        self._counts["checksum_failures"] += isinstance(error, CorruptionError)
        self._failures.append(redacted(f"{document}: {error}"))

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        self._work.plan(unit, total, done, self._clock() - self._begun)

    def advanced(self, count: int = 1) -> None:
        self._work.done += count

    def detail(self, text: str) -> None:
        self._detail = redacted(text)

    def stepped(self, request: str, step: Step) -> None:
        self._work.step(request, step, self._clock() - self._begun)

    def request_ended(self, request: str) -> None:
        self._work.end_request(request)

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        self._queue_depths = queue_depths
        self._in_flight_bytes = in_flight_bytes
        self._lag_segments = lag_segments

    def worker_event(self, event: ExecutorEvent) -> None:
        if event.kind == "encoded again":
            self._counts[event.kind] += 1
        if event.stage is not None and (counted := _COUNTED.get(event.kind)) is not None:
            stage = self._stages[event.stage]
            self._stages[event.stage] = replace(stage, **{counted: getattr(stage, counted) + 1})

    def _keep(self, document: str, segment: int, num_bytes: int) -> None:
        segments = self._stored.setdefault(document, array("q"))
        segments.extend([0] * (segment + 1 - len(segments)))
        self._stored_bytes += num_bytes - segments[segment]
        segments[segment] = num_bytes

    def snapshot(self, state: State) -> JobSnapshot:
        """Return the progress of the job now."""
        work = self._work
        elapsed_s = self._clock() - self._begun
        gates, copies = ([means[i] for means in self._recent] for i in (0, 1))
        return JobSnapshot(
            job=self._job_id,
            name=self._out.name,
            out=str(self._out),
            state=state,
            started=self._started,
            updated=self._now(),
            pid=os.getpid(),
            host=socket.gethostname(),
            total_documents=work.total if work.unit == "documents" else None,
            admitted_documents=self._documents["admitted"],
            scored_documents=self._documents["scored"],
            failed_documents=self._documents["failed"],
            stages={
                stage: replace(
                    counted,
                    tokens_per_s=self._rates[stage].per_second(),
                    queue_depth=self._queue_depths.get(stage, 0),
                )
                for stage, counted in self._stages.items()
            },
            in_flight_bytes=self._in_flight_bytes,
            lag_segments=self._lag_segments,
            tokens_left=work.tokens_left,
            eta_s=self._seconds_left(elapsed_s),
            checksum_failures=self._counts["checksum_failures"],
            duplicate_puts=self._counts["duplicate_puts"],
            blocks_encoded_again=self._counts["encoded again"],
            gate_mean=sum(gates) / len(gates) if gates else None,
            copy_mean=sum(copies) / len(copies) if copies else None,
            store_bytes=self._stored_bytes,
            store_limit_bytes=self._store_limit_bytes,
            recent_failures=tuple(self._failures),
            kind=self._kind,
            unit=work.unit,
            units_done=work.done,
            units_total=work.total,
            detail=self._detail or work.inside,
        )

    def _seconds_left(self, elapsed_s: float) -> float | None:
        """Return the time left at the average pace of this run: of the whole job if known, else of open documents."""
        if (seconds := self._work.seconds_left(elapsed_s)) is not None:
            return seconds
        scored_tokens = self._stages["score"].tokens
        return self._work.tokens_left * elapsed_s / scored_tokens if scored_tokens else None
