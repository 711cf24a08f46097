# SPDX-License-Identifier: Apache-2.0
"""Executor that runs all stages in this process."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

import torch

from longmem.errors import LongMemError
from longmem.memory.context import windows_of
from longmem.memory.view import MemoryView
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

WARM_UP_TOKENS = 16
"""Enough for every kernel: few tokens take other ones (`longmem.backbone.fast.attention`)."""

T = TypeVar("T")


class InlineExecutor(AbstractExecutor):
    """Executor that runs everything in the caller's process: no Ray, equal results.

    With one worker, models run in the caller's thread. With more, each runs in a thread of its own, with a copy of the
    model that shares its weights. Puts have another thread, so that no model waits for the disk. Views of memories are
    made in the caller's thread, in the order of the tasks: a window that fills up drops its oldest block for each new
    one, and would be read again for a segment that comes late.

    Raises FingerprintError when the store was written by another model.
    """

    def __init__(
        self, model: LongMem, store: AbstractMemoryStore, *, workers: int = 1, window_bytes: int = MAX_WINDOW_BYTES
    ) -> None:
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
        self._workers = workers
        self._threads: Executor = _CallersThread()
        if workers > 1:
            # libraries choose their kernels at first use, which is not known to be safe in two threads at a time
            model.run_backbone(torch.zeros(1, min(WARM_UP_TOKENS, model.config.segment_tokens), dtype=torch.int32))
            self._threads = _threads(workers)
        self._idle = [model, *(model.with_shared_weights() for _ in range(workers - 1))]
        self._running: dict[Future[Completion | Answer], tuple[LongMem, Stage]] = {}
        """Model and stage of each task; a request takes a slot of `encode`."""
        self._steps: SimpleQueue[Callable[[], None]] = SimpleQueue()
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
        # a task for each worker is ready when it ends another; in the caller's thread, none begins meanwhile
        most = 1 if self._workers == 1 else 2 * self._workers
        running = sum(started == stage for _, started in self._running.values())
        return most - len(self._queues[stage]) - running - (len(self._requests) if stage == "encode" else 0)

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
        self._start_tasks()
        if self._idle:
            # no other task is runnable, so that none completes the batch
            self._start_putting()
        self._start_requests()
        return self._collect(timeout_s)

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

    def _start_tasks(self) -> None:
        """Start tasks as long as there are both tasks and idle workers."""
        for stage, queue in self._queues.items():
            while queue and self._idle:
                self._start(stage, self._task(stage, queue.popleft()))

    def _task(self, stage: Stage, segment: Segment) -> Callable[[LongMem], Completion]:
        start = perf_counter()
        past = self._past(segment) if stage == "score" or self._model.config.one_pass else None
        return partial(self._run, stage, segment, past, start)

    def _past(self, segment: Segment) -> "Future[MemoryView | None]":
        """Return the view of a segment's past, or the error of making it."""
        past: Future[MemoryView | None] = Future()
        try:
            past.set_result(self._windows.view(segment.key, segment.index))
        except LongMemError as error:
            past.set_exception(error)
        return past

    def _start_requests(self) -> None:
        while self._requests and self._idle:
            self._start("encode", partial(self._answer, *self._requests.popleft()))

    def _start(self, stage: Stage, task: Callable[[LongMem], Completion | Answer]) -> None:
        model = self._idle.pop()
        self._running[self._threads.submit(task, model)] = model, stage

    def _collect(self, timeout_s: float) -> list[Completion]:
        """Wait until a task, a request or a batch of puts has ended, and return the completions."""
        pending: list[Future[Any]] = [*self._running]
        if self._putting is not None:
            pending.append(self._putting)
        done = wait_for(pending, timeout_s, FIRST_COMPLETED).done
        while not self._steps.empty():
            self._steps.get()()
        completions = []
        for future in [future for future in self._running if future in done]:
            model, _ = self._running.pop(future)
            self._idle.append(model)
            ended = future.result()
            if isinstance(ended, Answer):
                self._answers.append(ended)
            else:
                completions.append(ended)
        if self._workers > 1:
            # at once: the caller has other work first
            self._start_tasks()
        self._trim_heap()
        return completions or self._written(timeout_s=0.0)

    def _run(
        self, stage: Stage, segment: Segment, past: "Future[MemoryView | None] | None", start: float, model: LongMem
    ) -> Completion:
        result: EncodeReceipt | SegmentScore | None = None
        error = None
        try:
            view = None if past is None else past.result()
            if stage == "encode":
                result = self._encode(model, segment, view)
            else:
                assert stage == "score", f"{stage} is not of a model"
                encoded = self._encoded[segment.key, segment.index]
                result = model.score_segment(
                    segment, encoded.block.keys, encoded.state, view, encoded.backbone_logprobs
                )
        except LongMemError as caught:
            error = caught
        return Completion(stage, segment, result, error, perf_counter() - start)

    def _encode(self, model: LongMem, segment: Segment, view: MemoryView | None) -> EncodeReceipt:
        encoded = model.encode_in_document(segment, lambda: view)
        # kept until it is scored; its block is kept as long as the store caches it
        block = replace(encoded.block, keys=in_pages(encoded.block.keys), values=in_pages(encoded.block.values))
        encoded = replace(encoded, block=block, state=in_pages(encoded.state))
        self._encoded[segment.key, segment.index] = encoded
        return EncodeReceipt(encoded.baseline, encoded.num_bytes)

    def _answer(self, number: int, request: Request, on_step: OnStep, model: LongMem) -> Answer:
        start = perf_counter()
        result, error = None, None
        try:
            result = request.answer_in_steps(model, self._windows, self._in_callers_thread(on_step))
        except LongMemError as caught:
            error = caught
        return Answer(number, result, error, perf_counter() - start)

    def _in_callers_thread(self, on_step: OnStep) -> OnStep:
        if self._workers == 1:
            return on_step
        return lambda step: self._steps.put(partial(on_step, step))

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
        self._threads.shutdown(cancel_futures=True)
        self._writer.shutdown()
        self._encoded.clear()
        self._store.close()


def _threads(count: int) -> Executor:
    """Return threads in which torch computes with as many threads as in the caller's.

    Set in each, because the first product of a thread takes all cores otherwise (torch 2.13,
    `findings/torch_first_product_of_a_thread_ignores_set_num_threads.sh`), and bits may depend on their number.
    """
    return ThreadPoolExecutor(count, "longmem-model", torch.set_num_threads, (torch.get_num_threads(),))


class _CallersThread(Executor):
    """Runs each task at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised where the result is taken
            done.set_exception(error)
        return done
