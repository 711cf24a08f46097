# SPDX-License-Identifier: Apache-2.0
"""Observer interface of a running job: display, log, status file and metrics implement it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from longmem.errors import LongMemError
from longmem.runtime.steps import Step
from longmem.stages import Stage

if TYPE_CHECKING:
    from longmem.runtime.executor import Completion, ExecutorEvent


class JobObserver:
    """Receiver of a job's events. Calls come from the job's thread: an observer needs no lock and must not block.

    Every method does nothing by default.
    """

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        """Handle the start of a document; `num_tokens` and `num_segments` are still to be scored."""

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        """Handle segments of a document that the store already holds; `segment_bytes` maps segment to bytes."""

    def trimmed(self, document: str, first_segment: int) -> None:
        """Handle the removal of a document's segments below `first_segment` from the store."""

    def task_ended(self, completion: "Completion") -> None:
        """Handle a completed task, with its result or error."""

    def detail(self, text: str) -> None:
        """Receive the newest figures of a training, such as its loss, for the display."""

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        """Handle the end of a document: scored, or failed with `error`. `kept` means that its blocks stay stored."""

    def scored_document_failed(self, document: str, error: LongMemError) -> None:
        """Handle the failure of a document that has ended as scored before, in a later part of the job."""

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        """Receive the unit of work, the total (None while unknown) and the units that earlier runs have done."""

    def advanced(self, count: int = 1) -> None:
        """Add `count` finished units; documents are counted by `document_ended`."""

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        """Receive queue depths, bytes in flight and reader lag, several times a second."""

    def turned(self) -> None:
        """Called several times a second by a job of requests, which has no levels to report."""

    def stepped(self, request: str, step: Step) -> None:
        """Handle a step inside a running request: its work of one kind so far."""

    def request_ended(self, request: str) -> None:
        """Handle the end of a request, whose steps count no more: its units are those of `advanced`."""

    def worker_event(self, event: "ExecutorEvent") -> None:
        """Handle a worker event after which the job continues: a retry, a stall, a loss."""


class Observers(JobObserver):
    """Composite observer that forwards every call to several observers, in order."""

    def __init__(self, observers: Sequence[JobObserver]) -> None:
        self._observers = tuple(observers)

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        for observer in self._observers:
            observer.admitted(document, num_tokens, num_segments)

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        for observer in self._observers:
            observer.found_stored(document, segment_bytes)

    def trimmed(self, document: str, first_segment: int) -> None:
        for observer in self._observers:
            observer.trimmed(document, first_segment)

    def task_ended(self, completion: "Completion") -> None:
        for observer in self._observers:
            observer.task_ended(completion)

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        for observer in self._observers:
            observer.document_ended(document, error, kept)

    def scored_document_failed(self, document: str, error: LongMemError) -> None:
        for observer in self._observers:
            observer.scored_document_failed(document, error)

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        for observer in self._observers:
            observer.planned(unit, total, done)

    def advanced(self, count: int = 1) -> None:
        for observer in self._observers:
            observer.advanced(count)

    def detail(self, text: str) -> None:
        for observer in self._observers:
            observer.detail(text)

    def stepped(self, request: str, step: Step) -> None:
        for observer in self._observers:
            observer.stepped(request, step)

    def request_ended(self, request: str) -> None:
        for observer in self._observers:
            observer.request_ended(request)

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        for observer in self._observers:
            observer.levels(queue_depths, in_flight_bytes, lag_segments)

    def worker_event(self, event: "ExecutorEvent") -> None:
        for observer in self._observers:
            observer.worker_event(event)

    def turned(self) -> None:
        for observer in self._observers:
            observer.turned()
