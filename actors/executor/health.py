# SPDX-License-Identifier: Apache-2.0
"""Health of the workers: liveness checks, events for lost and stalled workers, and kills of workers that hang.

starting ──ready──► usable ──lost (its calls fail, or its next process answers)──► starting, restarted by Ray
                       └─────unresponsive for `kill_s`, or one task for `task_s`: killed, then lost
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray.exceptions

from actors.executor.timeouts import Timeouts
from actors.result import TaskResult
from actors.workers.base import WorkerInfo, kill_process
from actors.workers.pools import ActorPool, PoolWorker
from actors.workers.running import Alive, Ticket
from longmem.errors import ClusterError, LongMemError
from longmem.runtime.executor import EventKind, ExecutorEvent, Stage

PING_EVERY_S = 5.0
"""Seconds between liveness checks."""

AWAY_S = 5.0
"""Seconds between two checks above which this process is assumed to have been suspended."""

ORPHAN_S = 60.0
"""Seconds beyond its deadline after which a task of another job is ended, because that job has ended itself."""


@dataclass
class _Ping:
    worker: PoolWorker
    process: WorkerInfo | None
    """Process that was asked."""
    sent_s: float
    reported: bool = False


class Supervisor:
    """Liveness checks of all workers of the pools.

    The owner waits for `refs` together with its own references, passes ready ones to `take`, and calls `check`
    regularly. `accept` is called with a worker's WorkerInfo.result before its first use, and raises to reject it. `job`
    distinguishes the owner's tasks from those of other jobs on the same workers.
    """

    def __init__(
        self,
        pools: dict[Stage, ActorPool],
        timeouts: Timeouts,
        accept: Callable[[Stage, Any], None],
        job: str,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._pools = pools
        self._timeouts = timeouts
        self._accept = accept
        self._job = job
        self._clock = clock
        self._starting: dict[Any, tuple[Stage, PoolWorker]] = {}
        self._pings: dict[Any, _Ping] = {}
        self._kills: set[Any] = set()
        self._last_pinged_s = self._last_checked_s = clock()
        self._no_worker_since_s: dict[Stage, float] = {}
        self._begun = False
        self.events: list[ExecutorEvent] = []
        for stage, pool in pools.items():
            for worker in pool.workers:
                self._await(stage, worker)

    @property
    def refs(self) -> list[Any]:
        """References of pending calls, to be waited for."""
        return [*self._starting, *self._pings, *self._kills]

    @property
    def num_starting(self) -> int:
        """Number of workers that start or restart."""
        return len(self._starting)

    def begin(self) -> None:
        """Report restarted workers as events from now on, and leave out rejected ones instead of raising."""
        self._begun = True

    def take(self, ref: Any) -> bool:
        """Handle a ready reference. Return False if it is not one of `refs`."""
        if ref in self._starting:
            self._started(*self._starting.pop(ref), ref)
        elif ref in self._pings:
            self._ping_ended(self._pings.pop(ref), ref)
        elif ref in self._kills:
            self._kills.remove(ref)
            # if the node is gone, so is the process: its calls fail
            with suppress(ray.exceptions.RayError):
                ray.get(ref)
        else:
            return False
        return True

    def lost(self, stage: Stage, worker: PoolWorker, error: Exception) -> None:
        """Record that the process of a worker is gone, because a call to it failed, and await its restart."""
        if worker.info is None:
            return
        # tasks that were sent to an earlier process may not have failed yet
        in_flight = [task for task in worker.tasks if task.sent_to is worker.info]
        worker.crash_suspect = in_flight[0] if in_flight and len(in_flight) == 1 else None
        worker.info, worker.killed, worker.running = None, False, None
        self._emit("lost", stage, worker, f"{worker.name} was lost and starts again ({_first_line(error)})")
        self._await(stage, worker)

    def check(self) -> None:
        """Send liveness checks, report stalls and kill. Raises ClusterError when a stage had no worker for too long."""
        now = self._clock()
        self._shift_deadlines(now - self._last_checked_s)
        self._last_checked_s = now
        for ping in self._pings.values():
            self._check_ping(ping, now)
        for stage, pool in self._pools.items():
            self._check_has_worker(stage, pool, now)
        if now - self._last_pinged_s >= self._ping_every_s:
            self._last_pinged_s = now
            pinged = {id(ping.process) for ping in self._pings.values()}
            for pool in self._pools.values():
                for worker in pool.usable:
                    if id(worker.info) not in pinged:
                        self._pings[worker.actor.alive.remote()] = _Ping(worker, worker.info, now)

    @property
    def _ping_every_s(self) -> float:
        return min(PING_EVERY_S, self._timeouts.unresponsive_s / 2, self._timeouts.task_s / 2)

    def _shift_deadlines(self, away_s: float) -> None:
        """If this process was suspended for `away_s`, shift all deadlines by it."""
        if away_s < max(AWAY_S, self._ping_every_s):
            return
        for ping in self._pings.values():
            ping.sent_s += away_s
        for pool in self._pools.values():
            for worker in pool.workers:
                worker.first_since_s += away_s
                worker.running_since_s += away_s
        for stage in self._no_worker_since_s:
            self._no_worker_since_s[stage] += away_s

    def _await(self, stage: Stage, worker: PoolWorker) -> None:
        self._starting[worker.actor.ready.remote()] = stage, worker

    def _started(self, stage: Stage, worker: PoolWorker, ref: Any) -> None:
        try:
            outcome: TaskResult = ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            worker.gone = True
            self._emit("lost", stage, worker, f"{worker.name} ended for good ({_first_line(error)})")
            if self._pools[stage].ended:
                raise ClusterError(f"no worker for {stage} is left: {_first_line(error)}") from error
            return
        try:
            if outcome.error is not None:
                raise outcome.error
            self._accept(stage, outcome.result.result)
        except LongMemError as error:
            worker.gone = True
            if not self._begun or self._pools[stage].ended:
                raise
            self._emit("lost", stage, worker, f"{worker.name} cannot be used: {error}")
            return
        worker.info = outcome.result
        worker.first_since_s = self._clock()
        if self._begun:
            self._emit("back", stage, worker, f"{worker.name} is ready (process {worker.info.pid})")

    def _ping_ended(self, ping: _Ping, ref: Any) -> None:
        worker = ping.worker
        stage = self._stage_of(worker)
        try:
            answer: Alive = ray.get(ref)
        except ray.exceptions.RayError as error:
            if worker.info is ping.process:
                self.lost(stage, worker, error)
            return
        process, running = worker.info, answer.running
        if process is None or process is not ping.process:
            return
        if (answer.pid, answer.created_s) != (process.pid, process.created_s):
            # Ray delivers a check to the next process of an actor, and perhaps no call is left whose failure would tell
            # of the loss
            if running is not None and running.job == self._job:
                # it would not be made ready before that task ends, and the task has no deadline until then
                self._kills.add(kill_process(WorkerInfo(answer.pid, answer.created_s, answer.node_id, None)))
            self.lost(stage, worker, ClusterError(f"process {process.pid} has ended, process {answer.pid} answers"))
            return
        if running is not None and running.step is not None:
            for task in worker.tasks:
                if task.ticket == running:
                    task.stepped(running.step)
        self._check_deadline(stage, worker, running, ping.sent_s)
        if ping.reported:
            unresponsive_s = self._clock() - ping.sent_s
            self._emit("back", stage, worker, f"{worker.name} answers again, after {unresponsive_s:.0f} s")

    def _check_deadline(self, stage: Stage, worker: PoolWorker, running: Ticket | None, asked_s: float) -> None:
        """Kill a worker whose task is overdue; `running` is what it answered to a check sent at `asked_s`.

        A task that waits behind that of another job is not overdue, and another job ends its own. An answer may be
        handled long after it was given, so it is evidence of what ran at `asked_s` and not of what runs now.
        """
        now = self._clock()
        if running != worker.running:
            worker.running, worker.running_since_s = running, now
        if not worker.tasks:
            return
        if running is None:
            # a call without a deadline, such as the deletion of a document
            if asked_s - worker.first_since_s > self._timeouts.task_s:
                self._kill(stage, worker, f"did not begin a task within {self._timeouts.task_s:g} s")
            return
        worker.first_since_s = now
        late_s = asked_s - worker.running_since_s - running.deadline_s
        if running.job == self._job and late_s > 0:
            self._kill(stage, worker, f"worked on one task for more than {running.deadline_s:g} s")
        elif late_s > ORPHAN_S:
            self._kill(stage, worker, f"is {late_s:.0f} s late with a task of another job")

    def _check_ping(self, ping: _Ping, now: float) -> None:
        worker, unresponsive_s = ping.worker, now - ping.sent_s
        if worker.info is None or worker.info is not ping.process:
            return
        stage = self._stage_of(worker)
        if unresponsive_s > self._timeouts.unresponsive_s and not ping.reported:
            ping.reported = True
            where = f"process {worker.info.pid} on node {worker.info.node_id[:8]}"
            self._emit("stalled", stage, worker, f"{worker.name} ({where}) has not answered for {unresponsive_s:.0f} s")
        if unresponsive_s > self._timeouts.kill_s:
            self._kill(stage, worker, f"did not answer for {unresponsive_s:.0f} s")

    def _kill(self, stage: Stage, worker: PoolWorker, why: str) -> None:
        assert worker.info is not None, f"{worker.name} has no process to kill"
        if worker.killed:
            return
        worker.killed = True
        self._emit("killed", stage, worker, f"{worker.name} {why}: killed, it starts again")
        self._kills.add(kill_process(worker.info))

    def _check_has_worker(self, stage: Stage, pool: ActorPool, now: float) -> None:
        if pool.can_accept_tasks:
            self._no_worker_since_s.pop(stage, None)
            return
        since_s = self._no_worker_since_s.setdefault(stage, now)
        if now - since_s > self._timeouts.no_worker_s:
            raise ClusterError(
                f"no worker for {stage} for {self._timeouts.no_worker_s:g} s: the cluster has lost the nodes that they "
                "need, or has no room; see `ray status`, then continue with --resume"
            )

    def _stage_of(self, worker: PoolWorker) -> Stage:
        return next(stage for stage, pool in self._pools.items() if worker in pool.workers)

    def _emit(self, kind: EventKind, stage: Stage, worker: PoolWorker, message: str) -> None:
        self.events.append(ExecutorEvent(kind, message, worker.name, stage))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
