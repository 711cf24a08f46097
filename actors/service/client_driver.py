# SPDX-License-Identifier: Apache-2.0
"""Driver thread of a client: runs an executor for other threads. Each request is a future, and cancelling it cancels
the request's tasks.

    request ──► commands ──► scheduler ──► executor ──► completions ──► future
               (a queue)     (what, when)   (where)
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from actors.service.executor import AttachedExecutor
from actors.service.requests import TextRequest
from longmem.errors import ClusterError
from longmem.runtime.executor import Completion, EncodeReceipt, ExecutorEvent, Stage
from longmem.runtime.run_loop import RunLoop
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.types import DocumentKey, PutReceipt, Segment, SegmentScore

IDLE_S = 1.0
"""Seconds between health checks of the workers while there are no requests."""
BUSY_S = 0.02
"""Seconds that a new request may wait while the executor waits for its workers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentRequest:
    """Request to store a document, and to score it if `scored`. All segments have the same key."""

    segments: list[Segment]
    stored: set[int]
    """Indices of segments that the store holds already."""
    scored: bool

    @property
    def key(self) -> DocumentKey:
        return self.segments[0].key


@dataclass
class DocumentResult:
    """Results of a DocumentRequest by segment index."""

    receipts: dict[int, PutReceipt] = field(default_factory=dict)
    """Receipts of segments that were not stored before."""
    backbone_logprobs: dict[int, np.ndarray | None] = field(default_factory=dict)
    """Those of the backbone alone; None in one pass."""
    scores: dict[int, SegmentScore] = field(default_factory=dict)


@dataclass
class _Active:
    future: "Future[DocumentResult]"
    result: DocumentResult = field(default_factory=DocumentResult)
    error: Exception | None = None


class ClientDriver:
    """Scheduler loop in a thread. Calls `open_executor` there; `started` is its result or error."""

    def __init__(self, open_executor: Callable[[], AttachedExecutor], limits: Limits) -> None:
        self.started: Future[AttachedExecutor] = Future()
        self.in_flight = 0
        """Number of segments in flight (encoding, or encoded and not done) and of running text requests."""
        self._open_executor = open_executor
        self._limits = limits
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False
        self._failure: Exception | None = None
        self._active: dict[DocumentKey, _Active] = {}
        self._done: deque[DocumentKey] = deque()
        """Documents whose work has ended in this turn."""
        self._queued: dict[DocumentKey, deque[tuple[DocumentRequest, Future[DocumentResult]]]] = {}
        """Queued requests for a document with an active request."""
        self._texts: dict[int, Future[Any]] = {}
        self._waiting_texts: deque[tuple[TextRequest, Future[Any]]] = deque()
        self._thread = Thread(target=self._run, name="longmem-client", daemon=True)
        self._thread.start()

    def read(self, request: DocumentRequest) -> "Future[DocumentResult]":
        """Store (and score) a document. The future raises the error of the request."""
        future: Future[DocumentResult] = Future()
        future.add_done_callback(lambda done: self._commands.put(lambda: self._cancel(request.key, done)))
        self._commands.put(lambda: self._begin(request, future))
        return future

    def text(self, request: TextRequest) -> "Future[Any]":
        """Send a request to one worker. The future raises the error of the request."""
        future: Future[Any] = Future()
        self._commands.put(lambda: self._waiting_texts.append((request, future)))
        return future

    def close(self) -> None:
        """Cancel all work and close the executor. Waits for the thread, unless the executor is still being opened."""
        self._commands.put(self._end)
        if self.started.done():
            self._thread.join()

    def _end(self) -> None:
        self._closed = True

    def _run(self) -> None:
        try:
            executor = self._open_executor()
        except Exception as error:  # noqa: BLE001 - raised where `started` is waited for
            _resolve(self.started, error=error)
            return
        executor.after_quarantine = "the request is given up; the service and its other requests go on"
        self._executor = executor
        model = executor.describe()
        self._scheduler = SegmentScheduler(
            self._limits,
            model.segment_bytes,
            model.settings["segment_tokens"],
            model.settings["memory_tokens"],
            True,
            one_pass=model.settings["one_pass"],
        )
        self._loop = RunLoop(
            executor,
            self._scheduler,
            on_completed=self._complete,
            on_document_done=lambda key, _failed: self._done.append(key),
            on_event=_log_event,
            all_admitted=lambda: False,
            slots=self._slots,
        )
        _resolve(self.started, executor)
        while True:
            try:
                self._run_commands()
                if self._closed:
                    break
                if self._failure is None:
                    self._turn()
            except Exception as error:  # noqa: BLE001 - raised where the requests are waited for
                self._failure = error
            if self._failure is not None:
                self._fail_all(self._failure)
        self._fail_all(ClusterError("the client was closed while the request ran"))
        executor.close()

    @property
    def _busy(self) -> bool:
        return bool(self._active or self._texts or self._waiting_texts) and self._failure is None

    def _run_commands(self) -> None:
        try:
            if not self._busy:
                self._commands.get(timeout=IDLE_S)()
            while not self._closed:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _turn(self) -> None:
        # take pending liveness answers before deadlines are checked: none were taken while idle
        self._executor.turn(0)
        self._start_text()
        self._loop.submit()
        self._count()
        if self._busy:
            self._loop.wait(BUSY_S)
        self._loop.settle()
        answers = [(self._texts.pop(answer.number), answer) for answer in self._executor.answers()]
        # count before the futures resolve, because their callers may read it
        self._count()
        for future, answer in answers:
            _resolve(future, answer.result, answer.error)
        while self._done:
            self._finish(self._done.popleft())

    def _slots(self, stage: Stage) -> int:
        full = stage == "encode" and self._texts and self._held() >= self._limits.max_in_flight_segments
        return 0 if full else self._executor.slots(stage)

    def _held(self) -> int:
        return self._scheduler.num_in_flight + len(self._texts)

    def _count(self) -> None:
        self.in_flight = self._held()

    def _start_text(self) -> None:
        """Start at most one text request, so that texts and segments alternate."""
        while self._waiting_texts and self._waiting_texts[0][1].cancelled():
            self._waiting_texts.popleft()
        room = self._held() < self._limits.max_in_flight_segments and self._executor.slots("encode") > 0
        if self._waiting_texts and room:
            request, future = self._waiting_texts.popleft()
            self._texts[self._executor.ask(request)] = future

    def _begin(self, request: DocumentRequest, future: "Future[DocumentResult]") -> None:
        key = request.key
        if key in self._active:
            self._queued.setdefault(key, deque()).append((request, future))
        elif not future.cancelled():
            scored = set() if request.scored else {segment.index for segment in request.segments}
            active = _Active(future)
            if self._failure is None and self._scheduler.add_document(request.segments, scored, request.stored):
                self._active[key] = active
            else:
                _resolve(future, active.result, self._failure)

    def _cancel(self, key: DocumentKey, future: "Future[DocumentResult]") -> None:
        active = self._active.get(key)
        if active is not None and active.future is future and future.cancelled():
            self._loop.cancel(key)

    def _complete(self, completion: Completion) -> None:
        segment, result = completion.segment, completion.result
        active = self._active[segment.key]
        if completion.error is not None:
            active.error = active.error or completion.error
        elif isinstance(result, EncodeReceipt):
            active.result.backbone_logprobs[segment.index] = result.backbone_logprobs
        elif isinstance(result, PutReceipt):
            active.result.receipts[segment.index] = result
        elif isinstance(result, SegmentScore):
            active.result.scores[segment.index] = result

    def _finish(self, key: DocumentKey) -> None:
        active = self._active.pop(key)
        _resolve(active.future, active.result, active.error)
        for request, future in self._queued.pop(key, ()):
            self._begin(request, future)

    def _fail_all(self, error: Exception) -> None:
        later = [future for waiting in self._queued.values() for _, future in waiting]
        texts = [*self._texts.values(), *(future for _, future in self._waiting_texts)]
        for future in [*(active.future for active in self._active.values()), *later, *texts]:
            _resolve(future, error=error)
        self._active.clear()
        self._queued.clear()
        self._texts.clear()
        self._waiting_texts.clear()
        self._done.clear()


def _log_event(event: ExecutorEvent) -> None:
    logger.warning("%s", event.message)


def _resolve(future: "Future[Any]", result: Any = None, error: Exception | None = None) -> None:
    """Set the result or error of a future, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
