# SPDX-License-Identifier: Apache-2.0
"""Run of an in-context-learning job: write memories, then answer items.

memories ─► scheduler ─► encode, put        (once each; stored segments are reused)
grid points ─► batches of items ─► requests ─► journal
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from longmem.runtime.executor import AbstractExecutor, Completion
from longmem.runtime.requests import Request
from longmem.runtime.run_loop import RunLoop
from longmem.runtime.scheduler import SegmentScheduler, stored_segments
from longmem.stages import STAGES
from longmem.types import DocumentKey, SegmentInfo
from longmem.wording import counted
from pipelines.command.interrupts import undivided
from pipelines.icl.records import BatchRecord, IclJournal
from pipelines.icl.requests import WholeReading, request_for, results_of
from pipelines.icl.task_data import GridPoint, Memory, PreparedTask, Prompt
from pipelines.job.ask import WAIT_S, ask_all
from pipelines.job.observer import JobObserver
from pipelines.job.work_slices import Slices


@dataclass
class WriteTotals:
    """Work of this run to store all memories."""

    tokens_encoded: int = 0
    tokens_found: int = 0
    """Tokens of demonstrations that the store already held."""
    segments_encoded: int = 0
    segments_found: int = 0
    demonstrations: int = 0
    """Demonstrations of all required memories."""
    encode_s: float = 0.0
    put_s: float = 0.0
    wall_s: float = 0.0


@dataclass
class Asked:
    """Items that were answered in this run."""

    items: int = 0
    left_out: int = 0
    """Left-out demonstrations that were answered, to calibrate."""
    wall_s: float = 0.0


@dataclass(frozen=True)
class OpenPoint:
    """A grid point with items that the journal does not hold."""

    task: PreparedTask
    last: SegmentInfo | None
    """The last block of its memory; None without memory."""
    memory: Memory | None
    whole: WholeReading | None
    """Options of reading whole demonstrations; None where a search finds tokens."""

    @property
    def num_left_out(self) -> int:
        """Demonstrations to calibrate with."""
        return 0 if self.whole is None or self.memory is None else self.whole.num_left_out


@dataclass(frozen=True)
class Batch:
    """Items of one grid point that are answered in one request."""

    point: GridPoint
    prompts: list[Prompt]
    left_out: bool


@dataclass
class IclRun:
    """Run that raises the first error of a task: a missing memory or batch would leave a hole in the grid."""

    executor: AbstractExecutor
    journal: IclJournal
    tell: Callable[[str], None]
    observer: JobObserver
    slices: Slices | None = None
    """Work record, written every few seconds."""
    written: WriteTotals = field(default_factory=WriteTotals)
    asked: Asked = field(default_factory=Asked)

    def write(self, memories: Iterable[Memory], scheduler: SegmentScheduler) -> dict[DocumentKey, SegmentInfo]:
        """Store all memories and return the last block of each."""
        start = perf_counter()
        needed = {memory.key: memory for memory in memories}
        for key, memory in needed.items():
            stored = stored_segments(self.executor.stored(key), memory.segments)
            found = sum(segment.num_tokens for segment in memory.segments if segment.index in stored)
            self.written.demonstrations += memory.num_demonstrations
            self.written.tokens_found += found
            self.written.segments_found += len(stored)
            scheduler.add_document(memory.segments, {segment.index for segment in memory.segments}, stored)
        loop = RunLoop(
            self.executor,
            scheduler,
            on_completed=self._take,
            on_document_done=lambda key, _failed: self._tell_stored(needed[key]),
            on_event=self.observer.worker_event,
            all_admitted=lambda: True,
        )
        while scheduler.active:
            loop.turn(WAIT_S)
            self.observer.levels(
                {stage: scheduler.queue_depth(stage) for stage in STAGES},
                scheduler.in_flight_bytes,
                scheduler.lag_segments,
            )
            self.written.wall_s = perf_counter() - start
            self._record()
        return {key: self.executor.stored(key)[-1] for key in needed}

    def _take(self, completion: Completion) -> None:
        self.observer.task_ended(completion)
        if completion.error is not None:
            raise completion.error
        if completion.stage == "encode":
            self.written.tokens_encoded += completion.segment.num_tokens
            self.written.segments_encoded += 1
            self.written.encode_s += completion.busy_s
        else:
            self.written.put_s += completion.busy_s

    def _tell_stored(self, memory: Memory) -> None:
        tokens = sum(segment.num_tokens for segment in memory.segments)
        demonstrations = counted(memory.num_demonstrations, "demonstration")
        self.tell(f"{memory.name}: {demonstrations}, {counted(tokens, 'token')} in memory")

    def ask(self, points: Mapping[GridPoint, OpenPoint], batch_items: int) -> None:
        """Answer every item of every grid point that the journal does not hold."""
        start = perf_counter()

        def answered(batch: Batch, result: Any, busy_s: float) -> None:
            point = points[batch.point]
            results = results_of(point.task, batch.prompts, result, point.memory, batch.left_out)
            with undivided():
                self.journal.add(BatchRecord(batch.point, results, busy_s, batch.left_out))
                if batch.left_out:
                    self.asked.left_out += len(results)
                else:
                    self.asked.items += len(results)
            self.observer.advanced(len(results))

        def turned() -> None:
            self.asked.wall_s = perf_counter() - start
            self._record()

        # lazy: all prompts together would be as large as the text of all grid points
        requests = ((batch, _request(points[batch.point], batch)) for batch in self._batches(points, batch_items))
        ask_all(self.executor, requests, self.observer, answered, turned)

    def work(self) -> dict[str, Any]:
        """Return the additive work of this run; segments found in the store were counted by the run that wrote them."""
        written = asdict(self.written)
        for name in ("tokens_found", "segments_found", "demonstrations"):
            del written[name]
        return {"written": written, "asked": asdict(self.asked)}

    def _record(self) -> None:
        if self.slices is not None and self.slices.is_due:
            self.slices.record(self.work())

    def _batches(self, points: Mapping[GridPoint, OpenPoint], batch_items: int) -> Iterator[Batch]:
        """Yield batches of items that the journal does not hold, by grid point; those left out first."""
        for point, opened in points.items():
            known = self.journal.left_out.get(point, {})
            if number := opened.num_left_out:
                yield from _parts(point, opened.task.left_out(point, number), known, batch_items, left_out=True)
            done = self.journal.results.get(point, {})
            if len(done) < len(opened.task.items):
                yield from _parts(point, opened.task.prompts(point), done, batch_items, left_out=False)


def _request(point: OpenPoint, batch: Batch) -> Request:
    return request_for(point.task, batch.prompts, point.last, point.whole, point.memory, batch.left_out)


def _parts(
    point: GridPoint, prompts: list[Prompt], done: Container[int], batch_items: int, *, left_out: bool
) -> Iterator[Batch]:
    left = [prompt for prompt in prompts if prompt.index not in done]
    for first in range(0, len(left), batch_items):
        yield Batch(point, left[first : first + batch_items], left_out)
