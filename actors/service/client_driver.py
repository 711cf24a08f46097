"""A thread that drives an executor on behalf of other threads: each request is a future, and cancelling it drops the
request's work.

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
"""How often the executor looks after its workers while there is nothing to do."""
BUSY_S = 0.02
"""How long a new request may wait while the executor waits for its workers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentRequest:
    """A document to be stored, and scored too if asked. Its segments all have one key."""

    segments: list[Segment]
    stored: set[int]
    """Segments that the store holds already."""
    scored: bool

    @property
    def key(self) -> DocumentKey:
        return self.segments[0].key


@dataclass
class DocumentResult:
    """What came of it, by segment."""

    receipts: dict[int, PutReceipt] = field(default_factory=dict)
    """Of segments that were not stored before."""
    backbone_logprobs: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, SegmentScore] = field(default_factory=dict)


@dataclass
class _Active:
    future: "Future[DocumentResult]"
    result: DocumentResult = field(default_factory=DocumentResult)
    error: Exception | None = None


class ClientDriver:
    """`open_executor` is called in the thread; `started` says when it is done, or why it failed."""

    def __init__(self, open_executor: Callable[[], AttachedExecutor], limits: Limits) -> None:
        self.started: Future[AttachedExecutor] = Future()
        self.in_flight = 0
        """Segments that are encoded, or being encoded, and not done; and text requests that run."""
        self._open_executor = open_executor
        self._limits = limits
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False
        self._failure: Exception | None = None
        self._active: dict[DocumentKey, _Active] = {}
        self._done: deque[DocumentKey] = deque()
        """Documents whose work has ended in this turn."""
        self._later: dict[DocumentKey, deque[tuple[DocumentRequest, Future[DocumentResult]]]] = {}
        """Requests for a document that is being read already."""
        self._texts: dict[int, Future[Any]] = {}
        self._waiting_texts: deque[tuple[TextRequest, Future[Any]]] = deque()
        self._thread = Thread(target=self._run, name="longmem-client", daemon=True)
        self._thread.start()

    def read(self, reading: DocumentRequest) -> "Future[DocumentResult]":
        """Store (and score) a document; the future raises the error that ended it."""
        future: Future[DocumentResult] = Future()
        future.add_done_callback(lambda done: self._commands.put(lambda: self._drop(reading.key, done)))
        self._commands.put(lambda: self._begin(reading, future))
        return future

    def text(self, request: TextRequest) -> "Future[Any]":
        """Have a request answered as a whole; the future raises the error that ended it."""
        future: Future[Any] = Future()
        self._commands.put(lambda: self._waiting_texts.append((request, future)))
        return future

    def close(self) -> None:
        """Drop all work and let go of the executor; waits for that, unless the executor is still being opened."""
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
            self._limits, model.segment_bytes, model.settings["segment_tokens"], model.settings["memory_tokens"], True
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
                self._obey()
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

    def _obey(self) -> None:
        try:
            if not self._busy:
                self._commands.get(timeout=IDLE_S)()
            while not self._closed:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _turn(self) -> None:
        # before deadlines are checked: health answers of the workers were not taken while there was nothing to do
        self._executor.turn(0)
        self._start_text()
        self._loop.submit()
        self._count()
        if self._busy:
            self._loop.wait(BUSY_S)
        self._loop.settle()
        answers = [(self._texts.pop(answer.number), answer) for answer in self._executor.answers()]
        # futures are resolved when the count is right, because their callers may look at it
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
        """One at a time, so that texts and segments take turns."""
        while self._waiting_texts and self._waiting_texts[0][1].cancelled():
            self._waiting_texts.popleft()
        room = self._held() < self._limits.max_in_flight_segments and self._executor.slots("encode") > 0
        if self._waiting_texts and room:
            request, future = self._waiting_texts.popleft()
            self._texts[self._executor.ask(request)] = future

    def _begin(self, reading: DocumentRequest, future: "Future[DocumentResult]") -> None:
        key = reading.key
        if key in self._active:
            self._later.setdefault(key, deque()).append((reading, future))
        elif not future.cancelled():
            scored = set() if reading.scored else {segment.index for segment in reading.segments}
            active = _Active(future)
            if self._failure is None and self._scheduler.add_document(reading.segments, scored, reading.stored):
                self._active[key] = active
            else:
                _resolve(future, active.result, self._failure)

    def _drop(self, key: DocumentKey, future: "Future[DocumentResult]") -> None:
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
        for reading, future in self._later.pop(key, ()):
            self._begin(reading, future)

    def _fail_all(self, error: Exception) -> None:
        later = [future for waiting in self._later.values() for _, future in waiting]
        texts = [*self._texts.values(), *(future for _, future in self._waiting_texts)]
        for future in [*(active.future for active in self._active.values()), *later, *texts]:
            _resolve(future, error=error)
        self._active.clear()
        self._later.clear()
        self._texts.clear()
        self._waiting_texts.clear()
        self._done.clear()


def _log_event(event: ExecutorEvent) -> None:
    logger.warning("%s", event.message)


def _resolve(future: "Future[Any]", result: Any = None, error: Exception | None = None) -> None:
    """End a future, unless whoever waited for it has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
