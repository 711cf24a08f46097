# SPDX-License-Identifier: Apache-2.0
"""Executor protocol that runs stages: in this process (here), or on a cluster (`actors.executor.ray_executor`).

A segment passes three stages. `encode` does the work that needs no memory (in one pass it reads the memory, too), `put`
writes the block, `score` reads the memory. Encoded data never pass through the caller: the executor holds them, by
segment, until `release`. The caller receives only receipts: log-probabilities and statistics, a few kilobytes per
segment.

A request is answered as a whole by one worker that holds the whole model. It writes nothing.
"""

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from time import perf_counter
from types import TracebackType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from longmem.errors import LongMemError
from longmem.memory.context import windows_of
from longmem.memory.window_cache import MAX_WINDOW_BYTES
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, describe
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, ignore_step
from longmem.stages import STAGES, Stage
from longmem.store.base import AbstractMemoryStore, check_fingerprint, put_each
from longmem.stored_format import blocks_at_once
from longmem.system.allocator import in_pages
from longmem.types import DocumentKey, EncodedSegment, PutReceipt, Segment, SegmentInfo, SegmentScore

__all__ = [
    "STAGES",
    "AbstractExecutor",
    "Answer",
    "Completion",
    "EncodeReceipt",
    "EventKind",
    "ExecutorEvent",
    "InlineExecutor",
    "Stage",
]


@dataclass(frozen=True)
class EncodeReceipt:
    """Summary of an encoded segment for the caller."""

    backbone_logprobs: Float32[np.ndarray, " targets"] | None
    """Those of the backbone alone; None in one pass, where it reads the memory."""
    num_bytes: int


@dataclass(frozen=True)
class Completion:
    """One finished task: a result, or the error that ended it."""

    stage: Stage
    segment: Segment
    result: EncodeReceipt | PutReceipt | SegmentScore | None
    error: LongMemError | None
    busy_s: float
    """Seconds of computation in a worker, without queueing."""


@dataclass(frozen=True)
class Answer:
    """Outcome of the request that `ask` numbered: a result, or the error that ended it."""

    number: int
    result: Any
    error: LongMemError | None
    busy_s: float


EventKind = Literal["lost", "back", "retry", "stalled", "killed", "encoded again", "quarantined"]


@dataclass(frozen=True)
class ExecutorEvent:
    """Event of interest to an operator that changes no result."""

    kind: EventKind
    message: str
    worker: str = ""
    stage: Stage | None = None
    segment: Segment | None = None


class AbstractExecutor(ABC):
    """Executor of tasks, at most `slots(stage)` ahead. Completions come in any order, each task exactly once."""

    @abstractmethod
    def describe(self) -> ModelDescription:
        """Return the description of the model that the workers hold."""

    @abstractmethod
    def slots(self, stage: Stage) -> int:
        """Return how many more tasks of a stage may be submitted now without queueing ahead of demand."""

    @abstractmethod
    def submit(self, stage: Stage, segment: Segment) -> None:
        """Start a task. `put` and `score` require that the segment's `encode` has completed; `score` also requires that
        its past is stored, and so does `encode` of a model of one pass."""

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:  # noqa: B027 - unused in one process
        """Give the executor the current backlog, used only for load balancing; does not affect results.

        Args:
            unscored_segments: segments that are encoded and not scored yet.
            unsubmitted_segments: upper bound of segments still to be submitted for encoding, or None if unknown.
        """

    @abstractmethod
    def ask(self, request: Request, on_step: OnStep = ignore_step) -> int:
        """Start a request in a slot of stage `encode` and return its number. Documents that it reads must be stored.

        `on_step` is called during `wait`, with steps of the running request; on a cluster not with every one.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Completion]:
        """Return completions: at least one unless a request was answered, nothing is running or the timeout has passed.

        The error of one task is in its completion. An error of the executor itself (ClusterError) is raised.
        """

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Return the requests that ended since the last call, in any order, each exactly once."""

    def events(self) -> list[ExecutorEvent]:
        """Return the worker events since the last call."""
        return []

    @abstractmethod
    def release(self, segment: Segment) -> None:
        """Free the block and all other data of a segment that needs no further stage."""

    @abstractmethod
    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        """Return the segments of a document that the store already holds."""

    @abstractmethod
    def trim(self, key: DocumentKey, first_segment: int) -> None:
        """Remove a document's segments below `first_segment` from the store. No segment still to be scored may read
        them."""

    @abstractmethod
    def delete(self, key: DocumentKey) -> None:
        """Delete a document from the store."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. Tasks in flight are lost, stored blocks are kept."""

    def __enter__(self) -> "AbstractExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


PUT_SEGMENTS = 8
"""Segments per put, fewer when no other task is runnable or blocks are large (`blocks_at_once`). A commit costs the
same for all of them, and each waits in memory for the later ones. With 1, 4, 8 and 16 a segment costs 25, 9, 4.5 and
4 ms of CPU, written and read."""


class InlineExecutor(AbstractExecutor):
    """Executor that runs everything in the caller's process: no Ray, equal results.

    Models run in the caller's thread, puts in a thread of their own, so that no model waits for the disk. Raises
    FingerprintError when the store was written by another model.
    """

    def __init__(self, model: LongMem, store: AbstractMemoryStore, *, window_bytes: int = MAX_WINDOW_BYTES) -> None:
        check_fingerprint(store.fingerprint(), model.fingerprint)
        self._model = model
        self._store = store
        self._windows = windows_of(model, store, window_bytes)
        # in one pass, the next segment of a document waits for the block
        most = 1 if model.config.one_pass else PUT_SEGMENTS
        self._put_segments = blocks_at_once(model.fingerprint.block_bytes, most)
        # late stages first: they free the data that early stages hold
        self._queues: dict[Stage, deque[Segment]] = {"score": deque(), "encode": deque()}
        self._requests: deque[tuple[int, Request, OnStep]] = deque()
        self._num_requests = 0
        self._answers: list[Answer] = []
        self._encoded: dict[tuple[DocumentKey, int], EncodedSegment] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="longmem-put")
        self._to_put: list[Segment] = []
        self._being_put: list[Segment] = []
        self._putting: Future[list[Completion]] | None = None

    def describe(self) -> ModelDescription:
        return describe(self._model)

    def slots(self, stage: Stage) -> int:
        if stage == "put":
            return self._put_segments - len(self._to_put) - len(self._being_put)
        return 1 - len(self._queues[stage]) - (len(self._requests) if stage == "encode" else 0)

    def submit(self, stage: Stage, segment: Segment) -> None:
        if stage == "put":
            self._to_put.append(segment)
        else:
            self._queues[stage].append(segment)

    def ask(self, request: Request, on_step: OnStep = ignore_step) -> int:
        self._num_requests += 1
        self._requests.append((self._num_requests, request, on_step))
        return self._num_requests

    def wait(self, timeout_s: float) -> list[Completion]:
        if written := self._written(timeout_s=0.0):
            return written
        if len(self._to_put) >= self._put_segments:
            self._start_putting()
        for stage, queue in self._queues.items():
            if queue:
                return [self._run(stage, queue.popleft())]
        self._start_putting()
        if self._requests:
            self._answer(*self._requests.popleft())
            return []
        return self._written(timeout_s)

    def _start_putting(self) -> None:
        if self._to_put and self._putting is None:
            self._being_put, self._to_put = self._to_put, []
            self._putting = self._writer.submit(self._put, self._being_put)

    def _written(self, timeout_s: float) -> list[Completion]:
        """Wait for puts and return those that have ended."""
        putting = self._putting
        if putting is None or not wait_for([putting], timeout_s).done:
            return []
        self._putting, self._being_put = None, []
        return putting.result()

    def _put(self, segments: list[Segment]) -> list[Completion]:
        start = perf_counter()
        results = put_each(self._store, [self._encoded[segment.key, segment.index].block for segment in segments])
        busy_s = (perf_counter() - start) / len(segments)
        return [
            Completion("put", segment, None, result, busy_s)
            if isinstance(result, LongMemError)
            else Completion("put", segment, result, None, busy_s)
            for segment, result in zip(segments, results, strict=True)
        ]

    def answers(self) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def _answer(self, number: int, request: Request, on_step: OnStep) -> None:
        start = perf_counter()
        result, error = None, None
        try:
            result = request.answer_in_steps(self._model, self._windows, on_step)
        except LongMemError as caught:
            error = caught
        self._answers.append(Answer(number, result, error, perf_counter() - start))

    def _run(self, stage: Stage, segment: Segment) -> Completion:
        start = perf_counter()
        result: EncodeReceipt | SegmentScore | None = None
        error = None
        try:
            if stage == "encode":
                result = self._encode(segment)
            else:
                assert stage == "score", f"{stage} is not of a model"
                encoded = self._encoded[segment.key, segment.index]
                view = self._windows.view(segment.key, segment.index)
                result = self._model.score_segment(
                    segment, encoded.block.keys, encoded.state, view, encoded.backbone_logprobs
                )
        except LongMemError as caught:
            error = caught
        return Completion(stage, segment, result, error, perf_counter() - start)

    def _encode(self, segment: Segment) -> EncodeReceipt:
        encoded = self._model.encode_in_document(segment, lambda: self._windows.view(segment.key, segment.index))
        # kept until it is scored; its block is kept as long as the store caches it
        block = replace(encoded.block, keys=in_pages(encoded.block.keys), values=in_pages(encoded.block.values))
        encoded = replace(encoded, block=block, state=in_pages(encoded.state))
        self._encoded[segment.key, segment.index] = encoded
        return EncodeReceipt(encoded.baseline, encoded.num_bytes)

    def release(self, segment: Segment) -> None:
        self._encoded.pop((segment.key, segment.index), None)

    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._store.segments(key)

    def trim(self, key: DocumentKey, first_segment: int) -> None:
        self._store.trim(key, first_segment)

    def delete(self, key: DocumentKey) -> None:
        self._store.delete(key)
        self._windows.evict(key)

    def close(self) -> None:
        self._writer.shutdown()
        self._encoded.clear()
        self._store.close()
