# SPDX-License-Identifier: Apache-2.0
"""Several workers in one process: they compute at a time, share weights, and change no result."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from longmem.errors import ConfigError
from longmem.memory.context import windows_of
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.retrieval.repeats import GrowingRepeats, RepeatIndex
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, Step
from longmem.store.in_memory import InMemoryStore
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, EncodedSegment, Segment

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money. "
PATIENCE_S = 30.0
KEY = DocumentKey("default", "workers")


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model("llama")


def cut(model: LongMem, text: str) -> list[Segment]:
    return cut_segments(KEY, model.tokenizer.sequence(text), model.config.segment_tokens)


def wait_for_all(executor: InlineExecutor, count: int) -> list[Any]:
    """Return `count` completions."""
    found: list[Any] = []
    while len(found) < count:
        found += executor.wait(PATIENCE_S)
    return found


def test_a_model_with_shared_weights_has_its_own_modules_and_gives_the_same_bits(model: LongMem) -> None:
    other = model.with_shared_weights()

    def modules(of: LongMem) -> set[int]:
        return {id(module) for part in (of.backbone.model, of.sidenet) for module in part.modules()}

    def addresses(of: LongMem) -> list[int]:
        tensors = chain(of.backbone.model.parameters(), of.sidenet.parameters(), of.sidenet.buffers())
        return [tensor.data_ptr() for tensor in tensors]

    assert not modules(model) & modules(other)
    assert addresses(model) == addresses(other)
    assert other.search is not model.search
    assert other.fingerprint == model.fingerprint
    segment = cut(model, TEXT)[0]
    mine, theirs = model.encode(segment), other.encode(segment)
    assert np.array_equal(mine.block.keys, theirs.block.keys)
    assert np.array_equal(mine.state, theirs.state)


def test_two_workers_compute_at_a_time(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    encode = LongMem.encode_in_document

    def waiting(of: LongMem, *arguments: Any) -> EncodedSegment:
        together.wait(PATIENCE_S)  # raises BrokenBarrierError where the other one does not come
        return encode(of, *arguments)

    monkeypatch.setattr(LongMem, "encode_in_document", waiting)
    segments = cut(model, 4 * TEXT)[:4]
    with InlineExecutor(model, InMemoryStore(), workers=2) as executor:
        assert executor.slots("encode") == 4
        for segment in segments:
            executor.submit("encode", segment)
        assert executor.slots("encode") == 0
        completions = wait_for_all(executor, 4)
    assert {each.segment.index for each in completions} == {0, 1, 2, 3}
    assert [each.error for each in completions] == 4 * [None]


def test_what_a_worker_raises_reaches_the_caller(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_model: LongMem, segment: Segment, *_arguments: Any) -> EncodedSegment:
        raise ConfigError("told") if segment.index else RuntimeError("a bug")

    monkeypatch.setattr(LongMem, "encode_in_document", failing)
    bug, told = cut(model, 4 * TEXT)[:2]
    with InlineExecutor(model, InMemoryStore(), workers=2) as executor:
        executor.submit("encode", told)
        (completion,) = executor.wait(PATIENCE_S)
        assert isinstance(completion.error, ConfigError)
        executor.submit("encode", bug)
        with pytest.raises(RuntimeError, match="a bug"):
            executor.wait(PATIENCE_S)


@dataclass(frozen=True)
class Meeting(Request):
    """Request that two workers answer at a time, in one step."""

    together: threading.Barrier

    def answer(self, _model: LongMem, _windows: WindowCache) -> str:
        raise AssertionError("in steps")

    def answer_in_steps(self, _model: LongMem, _windows: WindowCache, on_step: OnStep) -> str:
        self.together.wait(PATIENCE_S)
        on_step(Step("meetings", "held", 1, 1))
        return threading.current_thread().name


def test_two_workers_answer_requests_and_steps_come_in_the_callers_thread(model: LongMem) -> None:
    request, stepped_in = Meeting(threading.Barrier(2)), []
    with InlineExecutor(model, InMemoryStore(), workers=2) as executor:
        numbers = [executor.ask(request, lambda _step: stepped_in.append(threading.current_thread())) for _ in range(2)]
        answers = []
        while len(answers) < 2:
            executor.wait(PATIENCE_S)
            answers += executor.answers()
        executor.wait(0.0)
    assert {answer.number for answer in answers} == set(numbers)
    assert len({answer.result for answer in answers}) == 2
    assert stepped_in == 2 * [threading.main_thread()]


def test_workers_use_as_many_threads_as_the_caller_from_their_first_product_on() -> None:
    """torch 2.13 takes all cores for the first product of a thread.

    `findings/torch_first_product_of_a_thread_ignores_set_num_threads.sh` has the behaviour without longmem.
    """
    program = """
import os, torch
from longmem.runtime.inline_executor import _threads

torch.set_num_threads(1)
left = torch.ones(512, 512)
torch.mm(left, left)

def started():
    before = len(os.listdir("/proc/self/task"))
    torch.mm(left, left)
    return len(os.listdir("/proc/self/task")) - before

print(_threads(1).submit(started).result())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env={"OMP_NUM_THREADS": "4"}
    )
    assert done.stdout == "0\n"


def test_threads_that_ask_one_cache_of_windows_get_what_one_thread_gets(model: LongMem) -> None:
    store = InMemoryStore()
    segments = cut(model, 30 * TEXT)
    for segment in segments:
        store.put(model.encode(segment).block)
    expected = [windows_of(model, store).view(KEY, index) for index in range(len(segments))]
    for order in (1, -1):
        cache, found = windows_of(model, store), {}

        def ask(first: int, order: int = order, cache: WindowCache = cache, found: dict[int, Any] = found) -> None:
            for index in range(first, len(segments), 4)[::order]:
                found[index] = cache.view(KEY, index)

        in_threads(ask, 4)
        for index, view in enumerate(expected):
            assert (view is None) == (found[index] is None)
            if view is not None:
                assert torch.equal(found[index].keys, view.keys)
                assert torch.equal(found[index].starts, view.starts)


def test_threads_that_ask_for_a_whole_document_at_a_time_read_it_once(
    model: LongMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = InMemoryStore()
    for segment in cut(model, 8 * TEXT):
        store.put(model.encode(segment).block)
    last, read, found = store.segments(KEY)[-1], store.read, []
    asked: list[int] = []

    def slowly(key: DocumentKey, first: int, stop: int, **options: Any) -> Any:
        asked.extend(range(first, stop))
        time.sleep(0.01)
        return read(key, first, stop, **options)

    monkeypatch.setattr(store, "read", slowly)
    cache = windows_of(model, store)
    in_threads(lambda _number: found.append(cache.whole(last)), 4)
    assert len({id(view) for view in found}) == 1
    assert len(asked) == len(set(asked)) > 1


def test_threads_that_grow_one_index_of_repeats_find_what_one_thread_finds() -> None:
    text = torch.from_numpy(np.random.default_rng(0).integers(0, 6, 4_096))
    growing, found = GrowingRepeats(), {}

    def ask(first: int) -> None:
        for end in range(128 * (first + 1), len(text), 128 * 4):
            found[end] = growing.index(text[:end], 0).find(text[end : end + 32], 32, 2)

    in_threads(ask, 4)
    assert len(found) == len(text) // 128 - 1
    for end, repeats in found.items():
        alone = RepeatIndex(text[:end]).find(text[end : end + 32], 32, 2)
        assert torch.equal(repeats.index, alone.index)
        assert torch.equal(repeats.runs, alone.runs)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run `work(0)` to `work(count - 1)` at a time, switching between them often."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
