# SPDX-License-Identifier: Apache-2.0
"""Publication of a live job: `status.json`, `log.jsonl`, and on a cluster its monitor actor.

Everything is published in the job's thread, so a job that hangs stops updating its status.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from actors.monitoring.job_status import State
from longmem.errors import LostClusterError, OutputError
from longmem.runtime.executor import Completion, Stage
from longmem.runtime.steps import Step
from pipelines.job.event_log import EventLog, Level
from pipelines.job.folder import LOG_FILE, STATUS_FILE, JobFolder
from pipelines.job.observer import Observers
from pipelines.job.state import JobState

if TYPE_CHECKING:
    from actors.monitoring.monitor_actor import MonitorLine

STATUS_S = 2.0


class JobReporter(Observers):
    """Context manager around the work of a job; the last status gives the outcome. Raises OutputError."""

    def __init__(
        self,
        folder: JobFolder,
        job_id: str,
        kind: str,
        *,
        on_cluster: bool,
        store_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the log and write the first status; `on_cluster` starts the monitor on the cluster."""
        # before the log, whose file would stay open if the monitor cannot be started
        self._line = _open_line(job_id, folder.path.name) if on_cluster else None
        self.state = JobState(job_id, kind, folder.path, store_limit_bytes=store_limit_bytes, clock=clock)
        self.log = EventLog(folder.path / LOG_FILE, job_id)
        super().__init__([self.state, self.log])
        self._folder = folder
        self._clock = clock
        self._last_status = clock()
        self._ended_early = False
        self._publish("running")

    def task_ended(self, completion: Completion) -> None:
        super().task_ended(completion)
        if self._line is not None and completion.error is None:
            self._line.task(completion.stage, completion.busy_s)

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:
        super().levels(queue_depths, in_flight_bytes, lag_segments)
        self._publish_if_due()

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        super().planned(unit, total, done)
        self._publish("running")

    def advanced(self, count: int = 1) -> None:
        super().advanced(count)
        self._publish_if_due()

    def stepped(self, request: str, step: Step) -> None:
        super().stepped(request, step)
        self._publish_if_due()

    def turned(self) -> None:
        super().turned()
        self._publish_if_due()

    def stopped_early(self) -> None:
        """Record that a time limit ends this run before the job is done."""
        self._ended_early = True

    def _publish_if_due(self) -> None:
        if self._line is not None and self._line.is_due:
            self._line.push(self.state.snapshot("running"))
        if self._clock() - self._last_status >= STATUS_S:
            self._publish("running")

    def _publish(self, state: State) -> None:
        self._folder.write_json(STATUS_FILE, self.state.snapshot(state).to_json())
        self._last_status = self._clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state: State = "interrupted" if self._ended_early else "finished"
        if error is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            done = "out of time" if self._ended_early else "done"
            levels: dict[State, Level] = {"failed": "error", "interrupted": "warning"}
            message = done if error is None else str(error) or state
            self.log.event(f"job_{state}", message, levels.get(state, "info"))
            self._publish(state)
        except OutputError as unwritten:
            if error is None:
                raise
            # keep the error that ended the job: it is often the cause of this one
            error.add_note(str(unwritten))
        finally:
            self.log.close()
            if self._line is not None and isinstance(error, LostClusterError):
                self._line.abandon()
            elif self._line is not None:
                self._line.close(self.state.snapshot(state))


def _open_line(job_id: str, name: str) -> "MonitorLine":
    # lazy import: only a job on a cluster loads Ray
    from actors.monitoring.monitor_actor import MonitorLine

    return MonitorLine(job_id, name)
