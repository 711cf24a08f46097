"""The protocol that runs stages: in this process (here), or on a cluster (`actors.executor.ray_executor`).

A segment passes three stages. `encode` does all that needs no memory, `put` writes the block, `score` reads the
memory. What is encoded never passes through the caller: the executor holds it, by segment, until `release`. Only
receipts come back: log-probabilities and statistics, a few kilobytes per segment.

A request is answered as a whole by one worker that holds the whole model, and writes nothing.
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
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, describe
from longmem.runtime.requests import Memories, Request
from longmem.stages import STAGES, Stage
from longmem.store.base import AbstractMemoryStore, check_fingerprint, put_each
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
    """What the caller learns of an encoded segment."""

    backbone_logprobs: Float32[np.ndarray, " targets"]
    num_bytes: int


@dataclass(frozen=True)
class Completion:
    """One finished task: a result, or the error that ended it."""

    stage: Stage
    segment: Segment
    result: EncodeReceipt | PutReceipt | SegmentScore | None
    error: LongMemError | None
    busy_s: float
    """Seconds that a worker computed, without queueing."""


@dataclass(frozen=True)
class Answer:
    """The end of a request, by the number that `ask` gave it: a result, or the error that ended it."""

    number: int
    result: Any
    error: LongMemError | None
    busy_s: float


EventKind = Literal["lost", "back", "retry", "stalled", "killed", "encoded again", "quarantined"]


@dataclass(frozen=True)
class ExecutorEvent:
    """Something that an operator should know of, and that changes no result."""

    kind: EventKind
    message: str
    worker: str = ""
    stage: Stage | None = None
    segment: Segment | None = None


class AbstractExecutor(ABC):
    """Runs tasks at most `slots(stage)` ahead; completions come in any order, each task exactly once."""

    @abstractmethod
    def describe(self) -> ModelDescription:
        """The model that the workers hold."""

    @abstractmethod
    def slots(self, stage: Stage) -> int:
        """How many more tasks of a stage may be submitted now without queueing where no worker needs them yet."""

    @abstractmethod
    def submit(self, stage: Stage, segment: Segment) -> None:
        """Start a task. `put` and `score` need the segment's `encode` to have completed, and `score` its past to
        have been stored."""

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:  # noqa: B027 - in one process it is of no use
        """Give the executor the current backlog, which is used for load balancing only and changes no result.

        `unscored_segments` are encoded and not scored. `unsubmitted_segments` is an upper bound of the segments still
        to be submitted for encoding, or None if it is unknown.
        """

    @abstractmethod
    def ask(self, request: Request) -> int:
        """Start a request, in a slot of stage `encode`; returns its number. Documents that it reads must be stored."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Completion]:
        """Completions, at least one unless a request was answered, nothing is running or the time is over. Errors of
        one task are in its completion; an error of the executor itself (ClusterError) is raised."""

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Requests that ended since the last call, in any order, each exactly once."""

    def events(self) -> list[ExecutorEvent]:
        """What happened to workers since the last call."""
        return []

    @abstractmethod
    def release(self, segment: Segment) -> None:
        """Drop the block and all else of a segment that needs no further stage."""

    @abstractmethod
    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        """What the store already holds of a document."""

    @abstractmethod
    def trim(self, key: DocumentKey, first_segment: int) -> None:
        """Remove a document's segments below `first_segment` from the store: no segment that is still to be scored
        may read them."""

    @abstractmethod
    def delete(self, key: DocumentKey) -> None:
        """Delete a document from the store."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. Work in flight is lost, what was stored is not."""

    def __enter__(self) -> "AbstractExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


PUT_SEGMENTS = 8
"""Segments that are put at a time, fewer where there is nothing else to do: a commit costs the same for all of them,
and each waits for the later ones in memory. With 1, 4, 8 and 16 a segment costs 25, 9, 4.5 and 4 ms of CPU, written and
read."""


class InlineExecutor(AbstractExecutor):
    """Everything in the caller's process: no Ray, the same numbers. Models run in the caller's thread, puts in one of
    their own, so that no model waits for the disk.

    Raises FingerprintError when the store was written by another model.
    """

    def __init__(self, model: LongMem, store: AbstractMemoryStore, *, window_bytes: int = 2**30) -> None:
        check_fingerprint(store.fingerprint(), model.fingerprint)
        self._model = model
        self._store = store
        self._windows = WindowCache(
            store,
            model.config.segment_tokens,
            model.config.memory_tokens,
            window_bytes,
            model.backbone.device,
            model.key_space,
        )
        self._memories = Memories(store, self._windows)
        # late stages first: they free what early stages fill
        self._queues: dict[Stage, deque[Segment]] = {"score": deque(), "encode": deque()}
        self._requests: deque[tuple[int, Request]] = deque()
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
            return PUT_SEGMENTS - len(self._to_put) - len(self._being_put)
        return 1 - len(self._queues[stage]) - (len(self._requests) if stage == "encode" else 0)

    def submit(self, stage: Stage, segment: Segment) -> None:
        if stage == "put":
            self._to_put.append(segment)
        else:
            self._queues[stage].append(segment)

    def ask(self, request: Request) -> int:
        self._num_requests += 1
        self._requests.append((self._num_requests, request))
        return self._num_requests

    def wait(self, timeout_s: float) -> list[Completion]:
        if written := self._written(timeout_s=0.0):
            return written
        if len(self._to_put) >= PUT_SEGMENTS:
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
        """Puts that have ended, after waiting for them."""
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

    def _answer(self, number: int, request: Request) -> None:
        start = perf_counter()
        result, error = None, None
        try:
            result = request.answer(self._model, self._memories)
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
                result = self._model.score_segment(segment, encoded.block.keys, encoded.state, view)
        except LongMemError as caught:
            error = caught
        return Completion(stage, segment, result, error, perf_counter() - start)

    def _encode(self, segment: Segment) -> EncodeReceipt:
        encoded = self._model.encode(segment)
        # it stays until it is scored, and its block for as long as a store keeps it at hand
        block = replace(encoded.block, keys=in_pages(encoded.block.keys), values=in_pages(encoded.block.values))
        encoded = replace(encoded, block=block, state=in_pages(encoded.state))
        self._encoded[segment.key, segment.index] = encoded
        return EncodeReceipt(encoded.backbone_logprobs, encoded.num_bytes)

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
