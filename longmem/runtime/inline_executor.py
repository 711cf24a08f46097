# SPDX-License-Identifier: Apache-2.0
"""Executor that runs all stages in this process."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from time import perf_counter

from longmem.errors import LongMemError
from longmem.memory.context import windows_of
from longmem.memory.window_cache import MAX_WINDOW_BYTES
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, describe
from longmem.runtime.executor import PUT_SEGMENTS, AbstractExecutor, Answer, Completion, EncodeReceipt
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, ignore_step
from longmem.stages import Stage
from longmem.store.base import AbstractMemoryStore, check_fingerprint, put_each
from longmem.stored_format import blocks_at_once
from longmem.system.allocator import in_pages
from longmem.system.heap import PeriodicTrim
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import DocumentKey, EncodedSegment, Segment, SegmentInfo, SegmentScore


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
        self._trim_heap = PeriodicTrim()

    def describe(self) -> ModelDescription:
        return describe(self._model)

    def tokenizer(self) -> AbstractTokenizer:
        return self._model.tokenizer

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
                completion = self._run(stage, queue.popleft())
                self._trim_heap()
                return [completion]
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
