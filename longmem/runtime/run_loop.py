# SPDX-License-Identifier: Apache-2.0
"""The loop that drives a scheduler and an executor, for jobs, in-context tasks and clients of a service.

    submit   scheduler ──► tasks that may start now ──► executor
    wait     executor ──► completions ──► scheduler, on_completed ──► release what needs no further stage
    settle   events ──► on_event,  documents without work left ──► on_document_done

The owner decides what is admitted and when to stop, and does its own bookkeeping in the callbacks. An exception that a
callback raises ends the turn, and with it the run: the scheduler is not used after it.
"""

from collections.abc import Callable

from longmem.runtime.executor import AbstractExecutor, Completion, ExecutorEvent
from longmem.runtime.scheduler import SegmentScheduler
from longmem.stages import Stage
from longmem.types import DocumentKey, Segment


class RunLoop:
    """Turns of one scheduler and one executor. Not thread-safe."""

    def __init__(
        self,
        executor: AbstractExecutor,
        scheduler: SegmentScheduler,
        *,
        on_completed: Callable[[Completion], None],
        on_document_done: Callable[[DocumentKey, bool], None],
        on_event: Callable[[ExecutorEvent], None],
        all_admitted: Callable[[], bool],
        on_released: Callable[[Segment], None] = lambda _segment: None,
        slots: Callable[[Stage], int] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            on_completed: Takes each result or error, once the scheduler knows of it and before data are released.
            on_document_done: Takes the key of a document of which nothing runs or waits, and whether it failed.
            on_event: Takes what an operator should know of.
            all_admitted: Tells whether no more documents will be added. The executor balances its work by it.
            on_released: Takes each segment whose encoded data are dropped.
            slots: Limits how many tasks of a stage are submitted; by default those of the executor.
        """
        self._executor = executor
        self._scheduler = scheduler
        self._on_completed = on_completed
        self._on_document_done = on_document_done
        self._on_event = on_event
        self._all_admitted = all_admitted
        self._on_released = on_released
        self._slots = slots or executor.slots

    def turn(self, timeout_s: float) -> None:
        """Start what may start, wait for at most `timeout_s`, and report what came of it. Raises ClusterError."""
        self.submit()
        self.wait(timeout_s)
        self.settle()

    def submit(self) -> None:
        """Submit every task that may start now."""
        for stage, segment in self._scheduler.start(self._slots):
            unsubmitted_segments = self._scheduler.num_waiting if self._all_admitted() else None
            self._executor.set_backlog(self._scheduler.lag_segments, unsubmitted_segments)
            self._executor.submit(stage, segment)

    def wait(self, timeout_s: float) -> None:
        """Wait for completions and report them. Raises ClusterError."""
        for completion in self._executor.wait(timeout_s):
            ended = self._scheduler.finish if completion.error is None else self._scheduler.fail
            released = ended(completion.stage, completion.segment)
            self._on_completed(completion)
            self._release(released)

    def settle(self) -> None:
        """Report events of the executor, then documents that are done."""
        for event in self._executor.events():
            self._on_event(event)
        for key, failed in self._scheduler.remove_finished():
            self._on_document_done(key, failed)

    def cancel(self, key: DocumentKey) -> None:
        """Start nothing more of a document; it is done, as failed, once its running tasks have ended."""
        self._release(self._scheduler.cancel(key))

    def _release(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._executor.release(segment)
            self._on_released(segment)
