# SPDX-License-Identifier: Apache-2.0
"""Executor on pools of actors: sends tasks to workers and retries tasks of lost workers.

A task is *waiting* (no usable actor has a free slot), *running*, *lost* (its worker died, and the record of the task
that ran is being read), or *parked* (its block was lost with a node, and is being encoded again). Encoding and scoring
are functions of their input, and a put is idempotent, so a retry changes no result. Every task is reported once.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import Any

import ray
import ray.exceptions

from actors.capacity import Room, not_started
from actors.cluster import Connection
from actors.errors import failure_of, translated
from actors.executor.health import Supervisor
from actors.executor.lost_segments import LostSegments
from actors.executor.model_check import ModelCheck
from actors.executor.prepare_policy import PreparePolicy
from actors.executor.remote_tokenizer import RemoteTokenizer
from actors.executor.routing import Router
from actors.executor.suspects import Suspects
from actors.executor.tasks import Encoded, RequestTask, SegmentId, SegmentTask, Task
from actors.executor.timeouts import Timeouts
from actors.executor.write_batcher import PutBatch, WriteBatcher
from actors.result import TaskResult
from actors.workers.base import WorkerInfo
from actors.workers.pools import PoolWorker
from actors.workers.running import Ticket
from actors.workers.start import Workers
from longmem.errors import ClusterError, QuarantineError
from longmem.model.source import ModelDescription
from longmem.runtime.executor import STAGES, AbstractExecutor, Answer, Completion, ExecutorEvent, Stage
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, ignore_step
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import DocumentKey, Segment, SegmentInfo

TICK_S = 1.0
"""Seconds between checks of liveness and deadlines while no task ends."""

LATE_S = 10.0
"""Seconds that an elastic job waits for its remaining workers once it could begin."""


class PooledExecutor(AbstractExecutor):
    """Runs tasks on `workers`, which the caller starts and ends. Call `begin` before the first task."""

    after_quarantine = "the document is set aside, --resume tries it again"
    """End of the error message for a task that exceeded its retries."""

    def __init__(
        self,
        workers: Workers,
        timeouts: Timeouts,
        clock: Callable[[], float] = monotonic,
        connection: Connection | None = None,
    ) -> None:
        """`connection` is checked for the loss of the cluster; None if the caller does so."""
        self._workers = workers
        self._connection = connection
        self._pools = workers.by_stage()
        self._router = Router(workers)
        self._prepare_policy = PreparePolicy(workers)
        self._model_check = ModelCheck()
        self._write_batcher = WriteBatcher(self._router, clock, self._model_check)
        self._timeouts = timeouts
        self._clock = clock
        self._job = token_hex(8)
        self._numbers = count(1)
        self._supervisor = Supervisor(self._pools, timeouts, self._model_check, self._job, clock)
        self._suspects = Suspects()
        self._waiting: dict[Stage, deque[Task]] = {stage: deque() for stage in STAGES}
        self._running: dict[Any, Task] = {}
        self._encoded: dict[SegmentId, Encoded] = {}
        self._lost = LostSegments()
        self._completed: list[Completion] = []
        self._num_requests = 0
        self._answers: list[Answer] = []

    def begin(self, elastic: bool, room: Room | None = None) -> None:
        """Wait until all workers are ready; if `elastic`, until each stage has one and LATE_S have passed.

        `room` reports the wait. Raises the error of a worker that cannot be used, and ClusterError when workers do not
        start within `no_worker_s`.
        """
        begun_s = self._clock()
        could_begin_s: float | None = None
        while num_missing := self._supervisor.num_starting:
            self.turn(TICK_S)
            if room is not None:
                room.waiting(num_missing)
            can_begin = elastic and all(pool.can_accept_tasks for pool in self._pools.values())
            if not can_begin and self._clock() - begun_s > self._timeouts.no_worker_s:
                raise not_started(room, self._workers, num_missing, self._timeouts.no_worker_s)
            with self._explaining():
                self._supervisor.check()
            if can_begin:
                could_begin_s = could_begin_s or self._clock()
                if self._clock() - could_begin_s > LATE_S:
                    break
        self._supervisor.begin()

    def _explaining(self) -> AbstractContextManager[None]:
        """Return a context that replaces errors of calls by LostClusterError when the cluster is lost."""
        return nullcontext() if self._connection is None else self._connection.watch.explaining()

    def describe(self) -> ModelDescription:
        return self._model_check.describe()

    def tokenizer(self) -> AbstractTokenizer:
        deaths = self._timeouts.max_tries + 1
        return RemoteTokenizer(self._workers.encoders, self.describe(), self._explaining, deaths)

    def slots(self, stage: Stage) -> int:
        if stage not in self._pools:
            return 0
        if stage == "put":
            sent = sum(len(task.members) for task in self._running.values() if isinstance(task, PutBatch))
            return self._write_batcher.slots(len(self._pools[stage].usable)) - sent - len(self._waiting[stage])
        return self._pools[stage].slots - len(self._waiting[stage])

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self._prepare_policy.set_backlog(unscored_segments, unsubmitted_segments)

    def submit(self, stage: Stage, segment: Segment) -> None:
        self._waiting[stage].append(SegmentTask(stage, segment))
        self._send_waiting()

    def ask(self, request: Request, on_step: OnStep = ignore_step) -> int:
        self._num_requests += 1
        self._waiting["encode"].append(RequestTask("encode", self._num_requests, request, on_step))
        self._send_waiting()
        return self._num_requests

    def answers(self) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def wait(self, timeout_s: float) -> list[Completion]:
        deadline_s = self._clock() + timeout_s
        while True:
            with self._explaining():
                self._send_waiting()
                self._supervisor.check()
            # starting workers count: a caller that cannot submit for lack of a worker waits for it
            tasks = self._running or self._suspects.refs or self._lost or any(self._waiting.values())
            busy = tasks or self._supervisor.num_starting
            ended = self._completed or self._answers
            left_s = min(deadline_s - self._clock(), self._write_batcher.wait_s)
            self.turn(max(0.0, left_s) if busy and not ended else 0.0)
            if self._completed or self._answers or not busy or self._clock() >= deadline_s:
                completed, self._completed = self._completed, []
                return completed

    def turn(self, timeout_s: float, also: Any = None) -> None:
        """Handle ended tasks, after waiting for at most `timeout_s` or until `also` is ready. Raises ClusterError when
        the cluster is lost."""
        with self._explaining():
            self._turn(timeout_s, also)

    def _turn(self, timeout_s: float, also: Any) -> None:
        refs = [*self._running, *self._supervisor.refs, *self._suspects.refs, *([] if also is None else [also])]
        if not refs:
            return
        with translated("waiting for the workers"):
            ready, _ = ray.wait(refs, num_returns=1, timeout=min(timeout_s, TICK_S))
            if ready:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        failed: list[tuple[Task, ray.exceptions.RayError]] = []
        for ref in [ref for ref in ready if ref in self._running]:
            task = self._running.pop(ref)
            try:
                outcome: TaskResult = ray.get(ref)
            except ray.exceptions.RayError as error:
                failed.append((task, error))
            else:
                self._handle_result(task, outcome)
        # successes first: only lost tasks then remain among which the crash suspect is searched
        for task, failure in failed:
            self._handle_failure(task, failure)
        for ref in ready:
            self._supervisor.take(ref)
            for verdict in self._suspects.take(ref):
                self._try_again(verdict.task, verdict.error, verdict.is_suspect, verdict.is_known)

    def events(self) -> list[ExecutorEvent]:
        events, self._supervisor.events = self._supervisor.events, []
        return events

    def release(self, segment: Segment) -> None:
        self._encoded.pop((segment.key, segment.index), None)
        self._lost.release((segment.key, segment.index))

    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        shard = self._workers.stores.shard(key)
        infos: list[SegmentInfo] = self._answer(shard.actor.segments.remote(key), f"listing {key}")
        return infos

    def trim(self, key: DocumentKey, first_segment: int) -> None:
        shard = self._workers.stores.shard(key)
        self._answer(shard.actor.trim.remote(key, first_segment), f"trimming {key}")

    def delete(self, key: DocumentKey) -> None:
        shard = self._workers.stores.shard(key)
        self._answer(shard.actor.delete.remote(key), f"deleting {key}")
        for worker in self._router.evict(key):
            # no wait: an actor runs calls in the order in which they were sent
            worker.actor.evict.remote(key)

    def close(self) -> None:
        """Discard all work. Workers finish tasks that were sent, and their results are ignored."""
        for waiting in self._waiting.values():
            waiting.clear()
        self._running.clear()
        self._suspects.clear()
        self._lost.clear()
        self._encoded.clear()

    def _answer(self, ref: Any, doing: str) -> Any:
        """Return the answer of a call that Ray retries. Checks workers meanwhile, or a hanging store would never be
        killed. Raises ClusterError after `no_worker_s`."""
        deadline_s = self._clock() + self._timeouts.no_worker_s
        with self._explaining(), translated(doing):
            while not ray.wait([ref], timeout=0)[0]:
                if self._clock() > deadline_s:
                    raise ClusterError(f"{doing}: no answer for {self._timeouts.no_worker_s:g} s; see `ray status`")
                self._supervisor.check()
                self.turn(TICK_S, also=ref)
            return ray.get(ref)

    def _send_waiting(self) -> None:
        for store, group in self._write_batcher.take(self._waiting["put"], self._puts_may_wait):
            self._send(group, store)
        for stage in ("encode", "score"):
            waiting = self._waiting[stage]
            for task in list(waiting):
                if isinstance(task, SegmentTask):
                    made_on = self._encoded[task.segment_id].node_id if task.segment_id in self._encoded else None
                    worker = self._router.choose(task.stage, task.segment.key, made_on, task.exclusive)
                else:
                    worker = self._workers.encoders.choose(exclusive=task.exclusive)
                if worker is not None:
                    waiting.remove(task)
                    self._send(task, worker)
                elif task.exclusive:
                    # tasks behind it wait, or they would keep every worker busy
                    break

    @property
    def _puts_may_wait(self) -> bool:
        """True if further puts will follow, and no reader will soon wait for the present ones."""
        if self._prepare_policy.unscored_segments == 0:
            return bool(self._waiting["encode"]) or any(worker.tasks for worker in self._workers.encoders.workers)
        readers = self._workers.readers.workers
        return len(self._waiting["score"]) + sum(len(worker.tasks) for worker in readers) > len(readers)

    def _send(self, task: Task, worker: PoolWorker) -> None:
        assert worker.info is not None, f"{task} is sent to {worker.name}, which has no process"
        task.ticket = ticket = Ticket(self._job, next(self._numbers), self._timeouts.task_s)
        if isinstance(task, PutBatch):
            for member in task.members:
                member.encoded = self._encoded[member.segment_id]
            outcome = worker.actor.put.remote(ticket, *(self._encoded[each.segment_id].block for each in task.members))
        elif isinstance(task, SegmentTask):
            outcome = self._send_segment(task, ticket, worker, worker.info)
        else:
            assert isinstance(task, RequestTask), f"{task} is neither of segments nor a request"
            outcome = worker.actor.answer.remote(ticket, task.request)
        if not worker.tasks:
            worker.first_since_s = self._clock()
        worker.tasks.append(task)
        worker.exclusive = task.exclusive
        task.worker, task.sent_to = worker, worker.info
        self._running[outcome] = task

    def _send_segment(self, task: SegmentTask, ticket: Ticket, worker: PoolWorker, info: WorkerInfo) -> Any:
        """Send one stage of a segment; return the reference of its result."""
        actor, segment = worker.actor, task.segment
        self._router.sent(task.stage, worker, segment.key)
        if task.stage == "encode":
            prepare = self._prepare_policy.encodes(worker)
            outcome, block, state = actor.encode.options(num_returns=3).remote(ticket, segment, prepare)
            task.encoded = Encoded(block, state, info.node_id)
            return outcome
        task.encoded = self._encoded[task.segment_id]
        self._prepare_policy.scores(worker)
        return actor.score.remote(ticket, segment, task.encoded.block, task.encoded.state)

    def _handle_result(self, task: Task, outcome: TaskResult) -> None:
        worker = self._detach(task)
        if isinstance(task, PutBatch):
            self._write_batcher.ended(worker, outcome.busy_s)
            for member, member_result in zip(task.members, task.outcomes(outcome), strict=True):
                self._report(member, member_result)
            return
        self._report(task, outcome)
        if not isinstance(task, SegmentTask) or task.stage != "encode":
            return
        if outcome.error is None:
            assert task.encoded is not None, f"{task} ended and was never sent"
            self._encoded[task.segment_id] = task.encoded
        for each in reversed(self._lost.unpark(task.segment_id)):
            if outcome.error is None:
                self._waiting[each.stage].appendleft(each)
            else:
                self._report(each, outcome)

    def _report(self, task: Task, outcome: TaskResult) -> None:
        if isinstance(task, RequestTask):
            self._answers.append(Answer(task.number, outcome.result, outcome.error, outcome.busy_s))
        elif isinstance(task, SegmentTask) and task.reported:
            completion = Completion(task.stage, task.segment, outcome.result, outcome.error, outcome.busy_s)
            self._completed.append(completion)

    def _handle_failure(self, task: Task, error: ray.exceptions.RayError) -> None:
        worker = task.worker
        assert worker is not None, f"{task} failed and was never sent"
        failure = failure_of(error)
        if failure is None:
            raise ClusterError(f"{task}: {error}") from error
        if failure == "lost worker":
            # ignore failures of an earlier process of this actor: the restarted one is healthy
            if worker.info is task.sent_to:
                self._supervisor.lost(task.stage, worker, error)
            self._suspects.lose(task, error)
        self._detach(task)
        if failure == "bug" or (failure == "lost objects" and isinstance(task, PutBatch) and len(task.members) > 1):
            self._try_again(task, error, is_suspect=True)
        elif failure == "lost objects":
            self._handle_lost_objects(task.members[0] if isinstance(task, PutBatch) else task, error)

    def _try_again(self, task: Task, error: Exception, is_suspect: bool, is_known: bool = True) -> None:
        """Retry a failed task, or the members of a failed batch. `is_known` is False if its worker died and there is no
        record of the task that ran: it is then retried without other tasks."""
        if isinstance(task, PutBatch):
            if len(task.members) > 1:
                # ambiguous: retry each member exclusively to find the one that fails
                for member in reversed(task.members):
                    member.exclusive |= is_suspect or not is_known
                    self._waiting["put"].appendleft(member)
                return
            (task,) = task.members
        task.exclusive |= not is_known
        self._retry(task, error, is_suspect)

    def _detach(self, task: Task) -> PoolWorker:
        """Take an ended task from its worker, and return the worker."""
        worker = task.worker
        assert worker is not None, f"{task} ended and was never sent"
        worker.tasks.remove(task)
        worker.exclusive = False
        worker.first_since_s = self._clock()
        task.worker = task.sent_to = None
        return worker

    def _retry(self, task: Task, error: Exception, is_suspect: bool) -> None:
        """Queue a failed task again, or quarantine it; only failures that it is suspected of count as tries."""
        task.tries += is_suspect
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if task.tries < self._timeouts.max_tries:
            if is_suspect:
                count = f"{task.tries} of {self._timeouts.max_tries}"
                self._emit("retry", task, f"{task} is tried again ({count}): {reason}")
            self._waiting[task.stage].appendleft(task)
            return
        text = f"{task} failed {task.tries} times, the last time with: {reason}"
        self._emit("quarantined", task, text)
        outcome = TaskResult(None, QuarantineError(f"{text}; {self.after_quarantine}"), 0.0)
        self._report(task, outcome)
        if isinstance(task, SegmentTask) and task.stage == "encode":
            for each in self._lost.unpark(task.segment_id):
                self._report(each, outcome)

    def _handle_lost_objects(self, task: Task, error: ray.exceptions.RayError) -> None:
        """Encode a segment again whose objects were lost with a node; retry a request whose objects were lost."""
        if not isinstance(task, SegmentTask):
            self._retry(task, error, is_suspect=False)
            return
        if task.encoded is not self._encoded.get(task.segment_id) and task.stage != "encode":
            # another task noticed the loss first, and the objects have been made again since
            self._waiting[task.stage].appendleft(task)
            return
        if not self._lost.park(task):
            return
        self._emit("encoded again", task, f"{task}: its block was lost with a node and is encoded again")
        self._waiting["encode"].appendleft(SegmentTask("encode", task.segment, reported=False))

    def _emit(self, kind: Any, task: Task, message: str) -> None:
        segment = task.segment if isinstance(task, SegmentTask) else None
        self._supervisor.events.append(ExecutorEvent(kind, message, "", task.stage, segment))
