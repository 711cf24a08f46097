"""What the executor of one process does with puts: they wait for the disk, nothing else does."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from longmem.executor import InlineExecutor
from longmem.memory.lance_store import LanceMemoryStore
from longmem.memory.opening import MemoryStore
from longmem.model import LongMem
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment

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

    first, second, *_ = cut(model, DocumentKey("default", "slow-disk"), TEXT)
    with InlineExecutor(model, LanceMemoryStore(str(tmp_path / "memory.lance"), on_step)) as executor:
        executor.submit("encode", first)
        (encoded,) = executor.wait(1.0)
        executor.submit("put", first)
        assert executor.slots("put") == 0
        executor.submit("score", first)
        executor.submit("encode", second)
        done = [(each.stage, each.segment.index) for _ in range(2) for each in executor.wait(1.0)]
        assert (encoded.stage, done) == ("encode", [("score", 0), ("encode", 1)])
        assert executor.wait(0.01) == []
        may_write.set()
        (stored,) = executor.wait(60.0)
        assert (stored.stage, stored.error) == ("put", None)
        assert executor.slots("put") == 1
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        assert [info.segment for info in store.segments(first.key)] == [0]


def test_closing_in_process_waits_for_a_put_that_has_begun(model: LongMem, tmp_path: Path) -> None:
    (segment, *_) = cut(model, DocumentKey("default", "closed"), TEXT)
    with InlineExecutor(model, MemoryStore.open(str(tmp_path / "memory.lance"))) as executor:
        executor.submit("encode", segment)
        executor.wait(1.0)
        executor.submit("put", segment)
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
