"""The executor's logic on pools of actors: who gets which task, and what happens to tasks whose worker is lost.

A task is *waiting* (no usable actor has room), *running*, or *parked* (its block was lost with a node, and is being
encoded again). Encoding and scoring are functions of their input, and a put is idempotent, so a repeated task changes
nothing. Every task is reported once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
import ray.exceptions

from actors.failures import translated
from actors.outcome import Outcome
from actors.policy import Patience
from actors.pool import Worker
from actors.supervision import Supervisor
from actors.workers import Workers
from longmem.errors import ClusterError, QuarantineError
from longmem.executor import STAGES, AbstractExecutor, Completion, ExecutorEvent, Stage
from longmem.types import DocumentKey, Segment, SegmentInfo

TICK_S = 1.0
"""How often silence and deadlines are looked at while nothing else happens."""

MAX_ENCODED_AGAIN = 10
"""A block that is lost this often is not lost by chance."""

WORKER_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
)

MAX_HOMES = 1000
"""Documents whose readers are remembered: forgetting one costs a window that is read twice."""

Place = tuple[DocumentKey, int]


@dataclass(eq=False)
class _Task:
    stage: Stage
    segment: Segment
    reported: bool = True
    """False for an encoding that the caller did not ask for, because a block was lost."""
    tries: int = 0
    """How often it ended its worker, or met a bug."""
    worker: Worker | None = None
    encoded: tuple[Any, Any] | None = None
    """References to block and taps, of an encoding that runs."""

    @property
    def place(self) -> Place:
        return self.segment.key, self.segment.index

    def __str__(self) -> str:
        return f"{self.stage} of {self.segment.key} segment {self.segment.index}"


class PooledExecutor(AbstractExecutor):
    """Runs tasks on `workers`, which somebody else has started and ends. Call `begin` before the first task."""

    def __init__(self, workers: Workers, patience: Patience, accept: Callable[[Stage, Any], None]) -> None:
        self._workers = workers
        self._pools = workers.by_stage()
        self._patience = patience
        self._supervisor = Supervisor(self._pools, patience, accept)
        self._waiting: dict[Stage, deque[_Task]] = {stage: deque() for stage in STAGES}
        self._running: dict[Any, _Task] = {}
        self._parked: dict[Place, list[_Task]] = {}
        self._encoded: dict[Place, tuple[Any, Any]] = {}
        self._encoded_again: dict[Place, int] = {}
        self._homes: dict[DocumentKey, list[Worker]] = {}
        """Readers that hold a window of the document, the first one to read it first."""
        self._completed: list[Completion] = []

    def slots(self, stage: Stage) -> int:
        return self._pools[stage].slots - len(self._waiting[stage])

    def submit(self, stage: Stage, segment: Segment) -> None:
        self._waiting[stage].append(_Task(stage, segment))
        self._send_waiting()

    def wait(self, timeout_s: float) -> list[Completion]:
        deadline_s = monotonic() + timeout_s
        while True:
            self._send_waiting()
            self._supervisor.check()
            if self._running or self._parked or any(self._waiting.values()):
                self.turn(0 if self._completed else max(0.0, deadline_s - monotonic()))
                if not self._completed and monotonic() < deadline_s:
                    continue
            completed, self._completed = self._completed, []
            return completed

    def turn(self, timeout_s: float) -> None:
        """Deal with what is ready, after waiting for at most `timeout_s`."""
        refs = [*self._running, *self._supervisor.refs]
        if not refs:
            return
        with translated("waiting for the workers"):
            ready, _ = ray.wait(refs, num_returns=1, timeout=min(timeout_s, TICK_S))
            if ready:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        failed: list[tuple[_Task, ray.exceptions.RayError]] = []
        for ref in [ref for ref in ready if ref in self._running]:
            task = self._running.pop(ref)
            try:
                outcome: Outcome = ray.get(ref)
            except ray.exceptions.RayError as error:
                failed.append((task, error))
            else:
                self._ended(task, outcome)
        # successes first, so that the first task left of a lost worker is the one that it had in its hands
        for task, failure in failed:
            self._failed(task, failure)
        for ref in ready:
            self._supervisor.take(ref)

    def events(self) -> list[ExecutorEvent]:
        events, self._supervisor.events = self._supervisor.events, []
        return events

    def release(self, segment: Segment) -> None:
        self._encoded.pop((segment.key, segment.index), None)
        self._encoded_again.pop((segment.key, segment.index), None)

    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._workers.stores.segments(key, self._patience.recover_s)

    def forget(self, key: DocumentKey) -> None:
        self._workers.stores.delete(key, self._patience.recover_s)
        for worker in self._homes.pop(key, []):
            # not waited for, because an actor keeps the order in which it is called
            worker.actor.forget.remote(key)

    def _send_waiting(self) -> None:
        for waiting in self._waiting.values():
            for task in list(waiting):
                worker = self._choose(task)
                if worker is not None:
                    waiting.remove(task)
                    self._send(task, worker)

    def _choose(self, task: _Task) -> Worker | None:
        """An encoder on the node of the document's reader, a reader that holds the document's window or is at least
        where its taps are: blocks, windows and taps then travel as little as possible."""
        homes = self._homes.get(task.segment.key, [])
        nodes = {worker.info.node_id for worker in homes if worker.info}

        def is_far(worker: Worker) -> bool:
            return worker.info is not None and worker.info.node_id not in nodes

        if task.stage == "put":
            shard = self._workers.stores.shard(task.segment.key)
            return shard if shard.info is not None else None
        if task.stage == "encode":
            return self._workers.encoders.choose(is_far)
        return self._workers.readers.choose(lambda worker: (worker not in homes, is_far(worker)))

    def _send(self, task: _Task, worker: Worker) -> None:
        actor, segment = worker.actor, task.segment
        if task.stage == "encode":
            outcome, *encoded = actor.encode.options(num_returns=3).remote(segment)
            task.encoded = encoded[0], encoded[1]
        elif task.stage == "put":
            outcome = actor.put.remote(self._encoded[task.place][0])
        else:
            outcome = actor.score.remote(segment, *self._encoded[task.place])
            homes = self._homes.setdefault(segment.key, [])
            if worker not in homes:
                homes.append(worker)
            if len(self._homes) > MAX_HOMES:
                del self._homes[next(iter(self._homes))]
        if not worker.tasks:
            worker.first_since_s = monotonic()
        worker.tasks.append(task)
        task.worker = worker
        self._running[outcome] = task

    def _ended(self, task: _Task, outcome: Outcome) -> None:
        self._leave(task)
        if task.encoded is not None and outcome.error is None:
            self._encoded[task.place] = task.encoded
        if task.reported:
            self._report(task, outcome)
        parked = self._parked.pop(task.place, []) if task.stage == "encode" else []
        for each in reversed(parked):
            if outcome.error is None:
                self._waiting[each.stage].appendleft(each)
            else:
                self._report(each, outcome)

    def _report(self, task: _Task, outcome: Outcome) -> None:
        completion = Completion(task.stage, task.segment, outcome.result, outcome.error, outcome.busy_s)
        self._completed.append(completion)

    def _failed(self, task: _Task, error: ray.exceptions.RayError) -> None:
        worker = task.worker
        assert worker is not None, f"{task} failed and was never sent"
        cause = getattr(error, "cause", None)
        if isinstance(error, ray.exceptions.ObjectLostError) or isinstance(cause, ray.exceptions.ObjectLostError):
            self._leave(task)
            self._encode_again(task)
        elif isinstance(error, WORKER_LOST):
            self._supervisor.lost(task.stage, worker, error)
            blame = worker.suspect is task
            self._leave(task)
            self._try_again(task, error, blame)
        elif isinstance(error, ray.exceptions.RayTaskError):
            self._leave(task)
            self._try_again(task, error, blame=True)
        else:
            raise ClusterError(f"{task}: {error}") from error

    def _leave(self, task: _Task) -> None:
        worker = task.worker
        assert worker is not None, f"{task} ended and was never sent"
        worker.tasks.remove(task)
        worker.first_since_s = monotonic()
        task.worker = None

    def _try_again(self, task: _Task, error: Exception, blame: bool) -> None:
        task.tries += blame
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if task.tries < self._patience.max_tries:
            if blame:
                self._say(
                    "retry", task, f"{task} is tried again ({task.tries} of {self._patience.max_tries}): {reason}"
                )
            self._waiting[task.stage].appendleft(task)
            return
        text = f"{task} failed {task.tries} times, the last time with: {reason}"
        self._say("quarantined", task, text)
        self._ended_in_quarantine(task, QuarantineError(f"{text}; the document is set aside, --resume tries it again"))

    def _ended_in_quarantine(self, task: _Task, error: QuarantineError) -> None:
        outcome = Outcome(None, error, 0.0)
        if task.reported:
            self._report(task, outcome)
        if task.stage == "encode":
            for each in self._parked.pop(task.place, []):
                self._report(each, outcome)

    def _encode_again(self, task: _Task) -> None:
        """The block or the taps are gone, with the node that held them."""
        parked = self._parked.setdefault(task.place, [])
        parked.append(task)
        if len(parked) > 1:
            return
        times = self._encoded_again[task.place] = self._encoded_again.get(task.place, 0) + 1
        if times > MAX_ENCODED_AGAIN:
            raise ClusterError(f"{task}: its block was lost {times} times; see `ray status` for nodes that fail")
        self._say("encoded again", task, f"{task}: its block was lost with a node and is encoded again")
        self._waiting["encode"].appendleft(_Task("encode", task.segment, reported=False))

    def _say(self, kind: Any, task: _Task, message: str) -> None:
        self._supervisor.events.append(ExecutorEvent(kind, message, "", task.stage, task.segment))
