# SPDX-License-Identifier: Apache-2.0
"""Puts in the executor of one process: they wait for the disk, nothing else does."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from mmap import mmap
from pathlib import Path
from threading import Event

import lancedb  # noqa: F401 - else the first put loads it, and the puts of these tests have time limits
import numpy as np
import pytest

from longmem import stored_format
from longmem.errors import ConflictError, StoreError
from longmem.model.longmem import LongMem
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.runtime.inline_executor import InlineExecutor
from longmem.store.config import MemoryStore
from longmem.store.lance.store import LanceMemoryStore
from longmem.system import heap
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, PutReceipt, Segment

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money. "


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model("llama")


def cut(model: LongMem, key: DocumentKey, text: str) -> list[Segment]:
    return cut_segments(key, model.tokenizer.sequence(text), model.config.segment_tokens)


def test_a_slow_disk_holds_up_no_segment_in_process(model: LongMem, tmp_path: Path) -> None:
    may_write = Event()

    def on_step(step: str) -> None:
        if step == "put:begin":
            assert may_write.wait(60)

    segments = cut(model, DocumentKey("default", "slow-disk"), 4 * TEXT)
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), on_step)) as executor:
        for segment in segments[:PUT_SEGMENTS]:
            executor.submit("encode", segment)
            executor.wait(1.0)
            executor.submit("put", segment)
        executor.submit("score", segments[0])
        executor.submit("encode", segments[PUT_SEGMENTS])
        done = [(each.stage, each.segment.index) for _ in range(2) for each in executor.wait(1.0)]
        assert done == [("score", 0), ("encode", PUT_SEGMENTS)]
        assert executor.wait(0.01) == []
        may_write.set()
        stored = executor.wait(60.0)
        assert [(each.stage, each.segment.index, each.error) for each in stored] == [
            ("put", index, None) for index in range(PUT_SEGMENTS)
        ]
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        assert [info.segment for info in store.segments(segments[0].key)] == list(range(PUT_SEGMENTS))


def encoded(executor: InlineExecutor, segments: list[Segment]) -> None:
    for segment in segments:
        executor.submit("encode", segment)
        assert [each.error for each in executor.wait(1.0)] == [None]


def test_the_heap_of_a_long_job_is_trimmed(model: LongMem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[None] = []
    monkeypatch.setattr(heap, "trim_heap", lambda: trims.append(None))
    monkeypatch.setattr(heap, "TRIM_S", inf)
    segments = cut(model, DocumentKey("default", "long"), TEXT)[:2]
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"))) as executor:
        encoded(executor, segments)
        assert trims == []
        monkeypatch.setattr(heap, "TRIM_S", 0.0)
        encoded(executor, segments)
        assert len(trims) == 2


def test_the_heap_is_trimmed_while_a_long_text_is_scored(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[None] = []
    monkeypatch.setattr(heap, "trim_heap", lambda: trims.append(None))
    for seconds, per_segment in ((inf, 0), (0.0, 1)):
        monkeypatch.setattr(heap, "TRIM_S", seconds)
        scores = model.score(TEXT)
        assert len(trims) == per_segment * len(scores.segments)


def test_puts_wait_for_each_other_only_while_there_is_other_work(model: LongMem, tmp_path: Path) -> None:
    begun: list[str] = []
    first, second, third, *_ = cut(model, DocumentKey("default", "few"), TEXT)
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), begun.append)) as executor:
        encoded(executor, [first, second])
        for segment in (first, second):
            executor.submit("put", segment)
        executor.submit("encode", third)
        assert [each.stage for each in executor.wait(60.0)] == ["encode"]
        assert (executor.slots("put"), begun) == (PUT_SEGMENTS - 2, [])
        assert [each.segment.index for each in executor.wait(60.0)] == [0, 1]
        assert (executor.slots("put"), begun.count("put:catalogue")) == (PUT_SEGMENTS, 1)


def test_large_blocks_are_put_one_at_a_time(model: LongMem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_format, "BATCH_BYTES", 2 * model.fingerprint.block_bytes - 1)
    begun: list[str] = []
    first, second, *_ = cut(model, DocumentKey("default", "large"), TEXT)
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), begun.append)) as executor:
        assert executor.slots("put") == 1
        encoded(executor, [first])
        executor.submit("put", first)
        assert executor.slots("put") == 0
        executor.submit("encode", second)
        done = [*executor.wait(60.0), *executor.wait(60.0)]
        assert {(each.stage, each.segment.index) for each in done} == {("encode", 1), ("put", 0)}
        assert (executor.slots("put"), begun.count("put:catalogue")) == (1, 1)


def test_an_error_belongs_to_the_segment_that_meets_it(model: LongMem, tmp_path: Path) -> None:
    """Check that the other blocks of the commit are stored."""
    first, second, third, *_ = cut(model, DocumentKey("default", "changed"), TEXT)
    store = MemoryStore.open(str(tmp_path / "memory.lance"))
    store.put(model.encode(replace(second, tokens=second.tokens[::-1].copy())).block)
    with InlineExecutor(model, store) as executor:
        encoded(executor, [first, second, third])
        for segment in (first, second, third):
            executor.submit("put", segment)
        done = {each.segment.index: each for each in executor.wait(60.0)}
        assert {index: type(each.error) for index, each in done.items()} == {
            0: type(None),
            1: ConflictError,
            2: type(None),
        }
        for index in (0, 2):
            receipt = done[index].result
            assert isinstance(receipt, PutReceipt)
            assert not receipt.duplicate, "the group left nothing behind when it failed"
        assert [info.segment for info in executor.stored(first.key)] == [0, 1, 2]


def test_trouble_that_all_would_meet_is_met_once(model: LongMem, tmp_path: Path) -> None:
    """Check an error common to all blocks, such as a full disk: eight retries would be eight waits."""
    tries = []

    def on_step(step: str) -> None:
        if step == "put:begin":
            tries.append(step)
            raise StoreError("the disk is full")

    segments = cut(model, DocumentKey("default", "full"), TEXT)[:3]
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), on_step)) as executor:
        encoded(executor, segments)
        for segment in segments:
            executor.submit("put", segment)
        done = executor.wait(60.0)
        assert [(each.segment.index, str(each.error), each.result) for each in done] == [
            (index, "the disk is full", None) for index in range(3)
        ]
        assert len(tries) == 1
        assert executor.slots("put") == PUT_SEGMENTS


def test_closing_in_process_waits_for_a_put_that_has_begun(model: LongMem, tmp_path: Path) -> None:
    (segment, *_) = cut(model, DocumentKey("default", "closed"), TEXT)
    with InlineExecutor(model, MemoryStore.open(str(tmp_path / "memory.lance"))) as executor:
        encoded(executor, [segment])
        executor.submit("put", segment)
        executor.wait(0.0)
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        assert len(store.segments(segment.key)) == 1


def test_an_unexpected_error_of_a_put_reaches_the_caller(model: LongMem, tmp_path: Path) -> None:
    def on_step(step: str) -> None:
        raise ZeroDivisionError(step)

    (segment, *_) = cut(model, DocumentKey("default", "broken"), TEXT)
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), on_step)) as executor:
        executor.submit("encode", segment)
        executor.wait(1.0)
        executor.submit("put", segment)
        with pytest.raises(ZeroDivisionError):
            executor.wait(60.0)


def test_what_waits_in_this_process_is_no_part_of_the_heap(model: LongMem) -> None:
    """Check the heap: keys and values stay while a store caches them, the state until it is scored."""
    (segment, *_) = cut(model, DocumentKey("default", "waiting"), TEXT)
    with InlineExecutor(model, MemoryStore.open("memory://")) as executor:
        executor.submit("encode", segment)
        executor.wait(1.0)
        (encoded,) = vars(executor)["_encoded"].values()
        for array in (encoded.block.keys, encoded.block.values, encoded.state):
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap)
