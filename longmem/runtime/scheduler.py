# SPDX-License-Identifier: Apache-2.0
"""Segment scheduler: decides which stage of which segment may start. The whole concurrency logic, without I/O or clock.

Life of one segment:

    waiting ──encode──► encoded ──put──► stored ┐
                           └──score (once every segment of its window is stored)──► scored ┘──► done

A segment is encoded when there is credit for the bytes it will hold; the credit returns when it is done. Segments of
one document are encoded and scored in ascending order of readiness, by as many workers as are available. A score waits
only for earlier segments of its own document, so deadlock is impossible. The order in which tasks finish does not
change any result.

For a model of one pass, encoding reads the memory: it waits as a score does, and documents are what runs in parallel.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from longmem.errors import ConflictError
from longmem.memory.sliding_window import SlidingWindow
from longmem.runtime.executor import STAGES, Stage
from longmem.types import DocumentKey, Segment, SegmentInfo

ENOUGH_BYTES = 2**28
"""Bytes in flight to which the number of segments is reduced by default."""


@dataclass(frozen=True)
class Limits:
    """Limits on encoded segments that are not done yet; reaching one pauses encoding until the readers catch up."""

    max_in_flight_segments: int
    max_in_flight_bytes: int

    def for_segments_of(self, segment_bytes: int, least: int) -> "Limits":
        """Return limits with fewer segments where these are large: what ENOUGH_BYTES hold, but `least`.

        Many segments in flight hide the latency of small tasks. A few large ones keep all workers busy, and each
        occupies further memory.
        """
        enough = max(least, ENOUGH_BYTES // segment_bytes)
        return replace(self, max_in_flight_segments=min(self.max_in_flight_segments, enough))


@dataclass
class _DocumentState:
    segments: list[Segment]
    to_score: set[int]
    """Segments not scored yet."""
    stored: bytearray
    """1 for each stored segment, else 0. Unlike a set of them it does not grow."""
    to_encode: deque[int]
    running: set[tuple[Stage, int]] = field(default_factory=set)
    encoded: set[int] = field(default_factory=set)
    """Segments encoded in this run and still held by the executor."""
    score_queue: deque[int] = field(default_factory=deque)
    put_queue: deque[int] = field(default_factory=deque)
    lowest: int = 0
    """Lower bound of `to_score`: every segment below it is scored."""
    failed: bool = False


class SegmentScheduler:
    """Scheduler of all admitted documents: selects the next tasks, which the caller runs and reports back."""

    def __init__(
        self,
        limits: Limits,
        segment_bytes: int,
        segment_tokens: int,
        memory_tokens: int,
        write: bool,
        keep: bool = True,
        one_pass: bool = False,
    ) -> None:
        """Start without documents.

        Args:
            write: True if blocks are put at all (a job without memory that keeps none writes nothing).
            keep: True if the whole memory is kept; else only blocks that a segment still to be scored may read are put.
            one_pass: True if a segment is encoded behind the memory that it reads, so that its past must be stored.
        """
        self._limits = limits
        self._segment_bytes = segment_bytes
        self._window = SlidingWindow(memory_tokens, segment_tokens)
        self._write = write
        self._keep = keep
        self._one_pass = one_pass
        self._documents: dict[DocumentKey, _DocumentState] = {}

    def add_document(self, segments: list[Segment], scored: set[int], stored: set[int]) -> bool:
        """Admit a document; some segments may be scored or stored already (a resumed job, a kept memory).

        Returns False when the document has no work left.
        """
        key = segments[0].key
        assert key not in self._documents, f"{key} was admitted twice"
        to_score = {segment.index for segment in segments} - scored
        to_store = {segment.index for segment in segments} - stored if self._write else set()
        if not self._keep:
            first = self._window.segments_before(min(to_score)).start if to_score else len(segments)
            to_store = {index for index in to_store if index >= first}
        wanted = to_score | to_store
        if self._one_pass:
            wanted |= self._unstored_past(wanted, stored)
        if not wanted:
            return False
        to_encode = deque(sorted(wanted))
        is_stored = bytearray(index in stored for index in range(len(segments)))
        self._documents[key] = _DocumentState(segments, to_score, is_stored, to_encode)
        return True

    def _unstored_past(self, wanted: set[int], stored: set[int]) -> set[int]:
        """Return the segments that must be encoded and stored before those of `wanted` can be encoded."""
        past: set[int] = set()
        for index in range(max(wanted, default=0), 0, -1):
            if index in wanted or index in past:
                past |= set(self._window.segments_before(index)) - stored
        return past

    def first_needed(self, key: DocumentKey) -> int:
        """Return the lowest segment that a segment of this admitted document still to be scored may read, or in one
        pass one still to be stored."""
        document = self._documents[key]
        while document.lowest < len(document.segments) and document.lowest not in document.to_score:
            document.lowest += 1
        reading = [document.lowest]
        if self._one_pass:
            # what is encoded and not stored can be lost, and is then encoded again
            reading += [index for index in document.encoded if not document.stored[index]]
            reading += [index for stage, index in document.running if stage == "encode"]
            reading += [document.to_encode[0]] if document.to_encode else []
        return self._window.segments_before(min(reading)).start

    @property
    def num_in_flight(self) -> int:
        """Number of segments that hold, or are about to hold, encoded data."""
        return sum(
            len(document.encoded) + sum(stage == "encode" for stage, _ in document.running)
            for document in self._documents.values()
        )

    @property
    def in_flight_bytes(self) -> int:
        return self.num_in_flight * self._segment_bytes

    @property
    def lag_segments(self) -> int:
        """Number of segments that are encoded and not scored yet: the backlog of the readers."""
        return sum(len(document.encoded & document.to_score) for document in self._documents.values())

    @property
    def num_waiting(self) -> int:
        """Number of segments of admitted documents whose encoding has not begun."""
        return sum(len(document.to_encode) for document in self._documents.values())

    @property
    def num_encodable(self) -> int:
        """Number of segments that could be encoded side by side: those that wait, in one pass one of each document."""
        if not self._one_pass:
            return self.num_waiting
        return sum(bool(document.to_encode) for document in self._documents.values())

    @property
    def active(self) -> list[DocumentKey]:
        return list(self._documents)

    def queue_depth(self, stage: Stage) -> int:
        """Return the number of tasks of a stage that are running or could run."""
        waiting = {
            "encode": self.num_waiting,
            "put": sum(len(document.put_queue) for document in self._documents.values()),
            "score": sum(len(document.score_queue) for document in self._documents.values()),
        }
        running = sum(running == stage for document in self._documents.values() for running, _ in document.running)
        return waiting[stage] + running

    def start(self, slots: Callable[[Stage], int]) -> Iterator[tuple[Stage, Segment]]:
        """Take tasks that may start now, up to `slots(stage)` of the executor; later stages first."""
        for stage in reversed(STAGES):
            for document in self._documents.values():
                while slots(stage) > 0 and (index := self._next(stage, document)) is not None:
                    document.running.add((stage, index))
                    yield stage, document.segments[index]

    def _next(self, stage: Stage, document: _DocumentState) -> int | None:
        if document.failed:
            return None
        if stage == "encode":
            if not document.to_encode or not self._has_credit():
                return None
            if self._one_pass and not self._past_is_stored(document, document.to_encode[0]):
                return None
            return document.to_encode.popleft()
        if stage == "put":
            return document.put_queue.popleft() if document.put_queue else None
        for index in document.score_queue:
            if self._past_is_stored(document, index):
                document.score_queue.remove(index)
                return index
        return None

    def _past_is_stored(self, document: _DocumentState, segment: int) -> bool:
        past = self._window.segments_before(segment)
        return all(document.stored[past.start : past.stop])

    def _has_credit(self) -> bool:
        held = self.num_in_flight
        # one segment may always run: a limit below one segment's size would otherwise block the job
        return held == 0 or (
            held < self._limits.max_in_flight_segments
            and (held + 1) * self._segment_bytes <= self._limits.max_in_flight_bytes
        )

    def finish(self, stage: Stage, segment: Segment) -> list[Segment]:
        """Report that a task succeeded; returns segments whose encoded data are no longer needed."""
        document = self._documents[segment.key]
        document.running.remove((stage, segment.index))
        if stage == "encode":
            document.encoded.add(segment.index)
            if not document.failed:
                if self._write and not document.stored[segment.index]:
                    document.put_queue.append(segment.index)
                if segment.index in document.to_score:
                    document.score_queue.append(segment.index)
        elif stage == "put":
            document.stored[segment.index] = 1
        else:
            document.to_score.remove(segment.index)
        return self._released(document)

    def fail(self, stage: Stage, segment: Segment) -> list[Segment]:
        """Report that a task failed: no further task of its document is started."""
        self._documents[segment.key].running.remove((stage, segment.index))
        return self.cancel(segment.key)

    def cancel(self, key: DocumentKey) -> list[Segment]:
        """Stop starting tasks of a document and mark it failed; its running tasks must still be reported."""
        document = self._documents[key]
        document.failed = True
        document.to_encode.clear()
        document.put_queue.clear()
        document.score_queue.clear()
        return self._released(document)

    def _released(self, document: _DocumentState) -> list[Segment]:
        waiting = {*document.put_queue, *document.score_queue, *(index for _, index in document.running)}
        done = [document.segments[index] for index in sorted(document.encoded - waiting)]
        document.encoded &= waiting
        return done

    def remove_finished(self) -> list[tuple[DocumentKey, bool]]:
        """Remove documents without running or waiting tasks and return them as (key, failed)."""
        done = [
            (key, document.failed)
            for key, document in self._documents.items()
            if not (document.to_encode or document.running or document.put_queue or document.score_queue)
        ]
        for key, _ in done:
            del self._documents[key]
        return done


def stored_segments(infos: list[SegmentInfo], segments: list[Segment]) -> set[int]:
    """Return the indices of segments that the store already holds, from a kept memory or an interrupted job.

    Raises ConflictError when the stored document of this name has a different text.
    """
    for info in infos:
        if info.segment >= len(segments) or info.tokens_checksum != segments[info.segment].tokens_checksum():
            raise ConflictError(
                f"the store already holds another text as {info.key}: segment {info.segment} has other tokens; use "
                "another document name, namespace or store, or delete that document"
            )
    return {info.segment for info in infos}
