# SPDX-License-Identifier: Apache-2.0
"""Memory of a context against its definition: every length encoded from scratch, and no token before the memory."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from longmem.memory.context import ContextMemory, read_blocks
from longmem.memory.sliding_window import SlidingWindow
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.text import remembered_text
from longmem.store.config import MemoryStore
from longmem.types import DocumentKey, KVBlock, Segment

SEGMENT = 32
TOKENS = np.random.default_rng(0).integers(256, size=150).astype(np.int32)


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model(segment_tokens=SEGMENT, memory_tokens=128)


def blocks_from_the_right(model: LongMem, start: int, end: int) -> list[KVBlock]:
    """Compute the definition: cut from the newest token backwards, encode each piece alone."""
    pieces = []
    while end > start:
        first = max(start, end - SEGMENT)
        part = TOKENS[first:end]
        pieces.append(model.encode(Segment(DocumentKey("", ""), 0, first, part, part[1:])).block)
        end = first
    return pieces[::-1]


def assert_same(view: MemoryView | None, expected: MemoryView | None) -> None:
    assert view is not None
    assert expected is not None
    for name in (field.name for field in fields(MemoryView)):
        # an index that grows is compared by what it finds
        if name not in ("growing_repeats", "first_place"):
            np.testing.assert_array_equal(getattr(view, name), getattr(expected, name), err_msg=name)
    context = expected.text[-8:]
    found, wanted = (each.repeats.find(context, len(context), 4) for each in (view, expected))
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@pytest.mark.parametrize("num_tokens", [1, 4, 31, 32, 33, 64, 100, 128])
def test_a_view_is_its_tokens_encoded_from_the_right(
    model: LongMem, naive_view: Callable[..., MemoryView | None], num_tokens: int
) -> None:
    start = len(TOKENS) - num_tokens
    expected = naive_view(blocks_from_the_right(model, start, len(TOKENS)), start, len(TOKENS), model.key_space)
    assert_same(ContextMemory(model, TOKENS).view(num_tokens), expected)


def test_lengths_share_their_whole_segments(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda segment: encoded.append(segment.num_tokens) or encode(segment))
    memory = ContextMemory(model, TOKENS)
    for num_tokens in (10, 42, 74, 128, 96):
        memory.view(num_tokens)
    assert sorted(encoded) == [10, 10, 10, SEGMENT, SEGMENT, SEGMENT, SEGMENT]


def test_a_shorter_view_knows_nothing_of_what_lies_before_it(model: LongMem) -> None:
    changed = TOKENS.copy()
    changed[: len(TOKENS) - 50] = 7
    memory, other = ContextMemory(model, TOKENS), ContextMemory(model, changed)
    memory.view(128)
    assert_same(memory.view(50), other.view(50))


def test_no_more_than_there_is_or_may_be(model: LongMem) -> None:
    assert ContextMemory(model, TOKENS[:0]).view(10) is None
    assert ContextMemory(model, TOKENS).view(0) is None
    short, long = ContextMemory(model, TOKENS[:5]).view(10), ContextMemory(model, TOKENS).view(1000)
    assert short is not None
    assert long is not None
    assert (short.num_tokens, long.num_tokens) == (5, 128)


@pytest.mark.parametrize("num_tokens", [0, 20, 70, 150])
def test_a_document_comes_before_the_context(
    model: LongMem, naive_view: Callable[..., MemoryView | None], num_tokens: int
) -> None:
    store = MemoryStore.open("memory://")
    model.score("having little or no money in my purse, and nothing particular to interest me", store.document("book"))
    document = read_blocks(store.document("book"), SlidingWindow.of(model.config))
    offset = document[-1].end_token
    tokens = TOKENS[len(TOKENS) - num_tokens :]
    own = blocks_from_the_right(model, len(TOKENS) - num_tokens, len(TOKENS))
    placed = [replace(each, start_token=each.start_token - len(TOKENS) + num_tokens + offset) for each in own]
    end = offset + num_tokens
    expected = naive_view([*document, *placed], max(0, end - 128), end, model.key_space)
    assert_same(ContextMemory(model, tokens, document).view(num_tokens), expected)


def test_only_blocks_that_may_be_read_are_fetched(model: LongMem) -> None:
    store = MemoryStore.open("memory://")
    model.score("x" * 200, store.document("book"))
    window = SlidingWindow.of(model.config)
    assert len(read_blocks(store.document("book"), window)) < len(store.document("book").segments)
    assert read_blocks(store.document("none"), window) == []


def test_what_is_only_remembered_costs_no_logits(model: LongMem) -> None:
    rows: list[int] = []
    head = model.backbone.model.get_output_embeddings()
    counting = head.register_forward_hook(lambda _head, _inputs, logits: rows.append(len(logits)))
    ContextMemory(model, TOKENS).view(100)
    remembered_text(model, "the cat sat on the mat, " * 5)
    assert sum(rows) == 0
    model.score("the cat sat")
    counting.remove()
    assert sum(rows) > 0, "what is counted"
