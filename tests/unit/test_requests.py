# SPDX-License-Identifier: Apache-2.0
"""Requests return the results of the plain functions, and fetch a document once."""

from collections.abc import Callable

import numpy as np
import pytest

from longmem.errors import DocumentError, MissingBlockError
from longmem.memory.context import windows_of
from longmem.model.longmem import LongMem
from longmem.runtime.requests import CompletionsRequest, ItemsRequest
from longmem.scoring.batch import Item, score_items
from longmem.scoring.generate import complete, generate
from longmem.store.in_memory import InMemoryStore
from longmem.types import DocumentKey, KVBlock

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse"
KEY = DocumentKey("default", "book")


class CountingStore(InMemoryStore):
    """Store that counts the fetches of blocks."""

    num_reads = 0

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        self.num_reads += 1
        return super().read(key, first_segment, last_segment, ahead=ahead)


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model()


@pytest.fixture
def store(model: LongMem) -> CountingStore:
    store = CountingStore()
    model.score(TEXT, store.document("book"))
    store.num_reads = 0
    return store


def items_of(model: LongMem, texts: tuple[str, ...] = ("Call me", "money in my", "x y")) -> tuple[Item, ...]:
    return tuple(Item(text, model.tokenizer.sequence(text), 1) for text in texts)


def test_items_read_the_whole_document_and_it_is_fetched_once(model: LongMem, store: CountingStore) -> None:
    windows, last = windows_of(model, store), store.segments(KEY)[-1]
    first, again = (ItemsRequest(last, items_of(model)).answer(model, windows) for _ in range(2))
    assert store.num_reads == 1
    for ours, same, item in zip(first, again, items_of(model), strict=True):
        expected = model.score(item.name, store.document("book").as_read_only())
        np.testing.assert_allclose(ours.longmem.logprobs, expected.logprobs, atol=1e-5)
        np.testing.assert_array_equal(ours.longmem.logprobs, same.longmem.logprobs)


def test_a_document_written_again_is_fetched_again(model: LongMem, store: CountingStore) -> None:
    windows = windows_of(model, store)
    ItemsRequest(store.segments(KEY)[-1], items_of(model)).answer(model, windows)
    store.delete(KEY)
    model.score(TEXT[::-1], store.document("book"))
    found = ItemsRequest(store.segments(KEY)[-1], items_of(model)).answer(model, windows)
    fresh = ItemsRequest(store.segments(KEY)[-1], items_of(model)).answer(model, windows_of(model, store))
    for ours, expected in zip(found, fresh, strict=True):
        np.testing.assert_array_equal(ours.longmem.logprobs, expected.longmem.logprobs)


def test_a_document_that_is_gone_is_an_error(model: LongMem, store: CountingStore) -> None:
    last = store.segments(KEY)[-1]
    store.delete(KEY)
    with pytest.raises(MissingBlockError):
        ItemsRequest(last, items_of(model)).answer(model, windows_of(model, store))


def test_without_memory_nothing_is_fetched(model: LongMem, store: CountingStore) -> None:
    answer = ItemsRequest(None, items_of(model)).answer(model, windows_of(model, store))
    for ours, expected in zip(answer, score_items(model, items_of(model), [None] * 3), strict=True):
        np.testing.assert_array_equal(ours.longmem.logprobs, expected.longmem.logprobs)
    assert store.num_reads == 0


def test_completions_are_what_generate_says(model: LongMem, store: CountingStore) -> None:
    memory = store.document("book").as_read_only()
    prompts = ("Call me", "Some years")
    expected = [generate(model, prompt, memory, max_new_tokens=6) for prompt in prompts]
    tokens = tuple(model.tokenizer.sequence(prompt) for prompt in prompts)
    store.num_reads = 0
    request = CompletionsRequest(store.segments(KEY)[-1], tokens, 6, "\0never")
    assert request.answer(model, windows_of(model, store)) == expected
    assert store.num_reads == 1


def test_a_completion_ends_before_its_last_words(model: LongMem) -> None:
    prompt = model.tokenizer.sequence("Call me")
    whole = complete(model, prompt, None, 8, "\0never")
    until = whole[2:4]
    assert complete(model, prompt, None, 8, until) == whole[: whole.index(until)]


def test_a_prompt_must_leave_room_in_its_segment(model: LongMem) -> None:
    size = model.config.segment_tokens
    prompt = model.tokenizer.sequence("x" * (size - 1))
    assert len(prompt) == size
    assert complete(model, prompt, None, 1, "\0never") is not None
    with pytest.raises(DocumentError, match=f"a prompt of {size} tokens leaves room for 1 of 2 new ones"):
        complete(model, prompt, None, 2, "\0never")
