"""What a running job tells whoever wants to know: the display, the log, the status file, the metrics."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from longmem.errors import LongMemError
from longmem.stages import Stage

if TYPE_CHECKING:
    from longmem.runtime.executor import Completion, ExecutorEvent


class JobObserver:
    """Called in the job's own thread, so an observer needs no lock and must not wait. Every call may be ignored."""

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        """A document is begun; `num_tokens` and `num_segments` are still to be scored."""

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        """The store already holds these segments of a document, in bytes."""

    def trimmed(self, document: str, first_segment: int) -> None:
        """The store no longer holds a document's segments below this one."""

    def task_ended(self, completion: "Completion") -> None:
        """A task gave a result or an error."""

    def detail(self, text: str) -> None:
        """Take the newest figures of a training, such as its loss, for the display."""

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        """A document is scored, or given up because of `error`; `kept`: its blocks stay in the store."""

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        """Take the job's unit of work, how many it has (None while unknown), and how many earlier runs have done."""

    def advanced(self, count: int = 1) -> None:
        """Take that so many units more are done; documents are counted by `document_ended`."""

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        """Called several times a second: how full everything is now."""

    def worker_event(self, event: "ExecutorEvent") -> None:
        """Something happened to a worker, and the job goes on: a retry, a stall, a loss."""


class Observers(JobObserver):
    """Passes every call on to several observers, in order."""

    def __init__(self, observers: Sequence[JobObserver]) -> None:
        self._observers = tuple(observers)

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:
        for each in self._observers:
            each.admitted(document, num_tokens, num_segments)

    def found_stored(self, document: str, segment_bytes: Mapping[int, int]) -> None:
        for each in self._observers:
            each.found_stored(document, segment_bytes)

    def trimmed(self, document: str, first_segment: int) -> None:
        for each in self._observers:
            each.trimmed(document, first_segment)

    def task_ended(self, completion: "Completion") -> None:
        for each in self._observers:
            each.task_ended(completion)

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:
        for each in self._observers:
            each.document_ended(document, error, kept)

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        for each in self._observers:
            each.planned(unit, total, done)

    def advanced(self, count: int = 1) -> None:
        for each in self._observers:
            each.advanced(count)

    def detail(self, text: str) -> None:
        for each in self._observers:
            each.detail(text)

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        for each in self._observers:
            each.levels(queue_depths, in_flight_bytes, lag_segments)

    def worker_event(self, event: "ExecutorEvent") -> None:
        for each in self._observers:
            each.worker_event(event)
