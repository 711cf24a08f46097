# SPDX-License-Identifier: Apache-2.0
"""Tasks that were lost with a worker process, until it is known which of them ran when it died."""

from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from actors.executor.tasks import Task
from actors.workers.base import WorkerInfo
from actors.workers.running import Ticket, last_ticket


@dataclass(frozen=True)
class Verdict:
    """A lost task, and if it is charged with the death of its worker."""

    task: Task
    error: ray.exceptions.RayError
    is_suspect: bool
    """True if it ran when the process died; where that is unknown, True if it was its job's only task there."""
    is_known: bool
    """True if the record of the process names the task that ran, of whichever job."""


@dataclass(frozen=True)
class _Lost:
    task: Task
    ticket: Ticket
    error: ray.exceptions.RayError
    was_alone: bool

    def judge(self, ran: Ticket | None) -> Verdict:
        is_suspect = self.was_alone if ran is None else self.ticket == ran
        return Verdict(self.task, self.error, is_suspect, ran is not None)


@dataclass
class _Death:
    process: WorkerInfo
    lost: list[_Lost] = field(default_factory=list)


class Suspects:
    """Lost tasks by the process that they were lost with. Reading its record takes a second; where its node is gone,
    until Ray sees that. The owner waits for `refs` and passes ready ones to `take`."""

    def __init__(self) -> None:
        self._deaths: dict[Any, _Death] = {}

    @property
    def refs(self) -> list[Any]:
        """References of the records that are being read."""
        return list(self._deaths)

    def lose(self, task: Task, error: ray.exceptions.RayError) -> None:
        """Keep a task, which its worker still holds, until the record of its process is read."""
        worker, process, ticket = task.worker, task.sent_to, task.ticket
        assert worker is not None, f"{task} was lost and never sent"
        assert process is not None, f"{task} was sent to no process"
        assert ticket is not None, f"{task} was sent without a ticket"
        lost = _Lost(task, ticket, error, was_alone=worker.crash_suspect is task)
        for death in self._deaths.values():
            if death.process is process:
                death.lost.append(lost)
                return
        self._deaths[last_ticket(process.pid, process.created_s, process.node_id)] = _Death(process, [lost])

    def take(self, ref: Any) -> list[Verdict]:
        """Return the verdicts of a ready reference; none if it is not one of `refs`."""
        death = self._deaths.pop(ref, None)
        if death is None:
            return []
        try:
            ran: Ticket | None = ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            # the node is gone, and the record with it
            ran = None
        return [lost.judge(ran) for lost in death.lost]

    def clear(self) -> None:
        """Discard all lost tasks."""
        self._deaths.clear()
