# SPDX-License-Identifier: Apache-2.0
"""Items in batches against naive methods: `score` of one text, decoding step by step, and plain transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from longmem.config import PAPER_FORM
from longmem.errors import DocumentError
from longmem.memory.context import windows_of
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, score_items
from longmem.scoring.generate import Decoder
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import MemoryStore
from longmem.types import DocumentKey, Segment
from tests.inputs import DEFAULT_FORM, EVERY_FORM

FORMS: dict[str, dict[str, Any]] = {"paper": PAPER_FORM, "default": {**DEFAULT_FORM, "kv_dtype": "float32"}}
DOCUMENT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse"
TEXTS = ("Call me", "having little money", "years ago, never mind", "x", "Some years ago, never", "purse purse purse")
TOLERANCE = 1e-5
"""Tolerance in nats for any order and any batch."""


@pytest.fixture(params=FORMS, ids=list(FORMS))
def model(request: pytest.FixtureRequest, small_model: Callable[..., LongMem]) -> LongMem:
    return small_model(**FORMS[request.param])


@pytest.fixture
def store(model: LongMem) -> AbstractMemoryStore:
    store = MemoryStore.open("memory://")
    model.score(DOCUMENT, store.document("book"))
    return store


def items_of(model: LongMem) -> list[Item]:
    return [Item(text, model.tokenizer.sequence(text), 1) for text in TEXTS]


def whole(model: LongMem, store: AbstractMemoryStore) -> Any:
    return windows_of(model, store).whole(store.document("book").segments[-1])


def test_items_are_scored_like_texts_that_follow_the_document(model: LongMem, store: AbstractMemoryStore) -> None:
    view = whole(model, store)
    memory = store.document("book").as_read_only()
    for item, score in zip(items_of(model), score_items(model, items_of(model), [view] * len(TEXTS)), strict=True):
        expected = model.score(item.name, memory)
        assert score.name == item.name
        np.testing.assert_allclose(score.longmem.logprobs, expected.logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(score.backbone.logprobs, expected.backbone_logprobs, atol=TOLERANCE)


def test_only_the_targets_are_scored(model: LongMem, store: AbstractMemoryStore) -> None:
    view = whole(model, store)
    tokens = model.tokenizer.sequence(TEXTS[1])
    everything = score_items(model, [Item("all", tokens, 1)], [view])[0]
    for first in (2, len(tokens) - 1):
        part = score_items(model, [Item("part", tokens, first)], [view])[0]
        np.testing.assert_allclose(part.longmem.logprobs, everything.longmem.logprobs[first - 1 :], atol=TOLERANCE)
        np.testing.assert_array_equal(part.longmem.greedy, everything.longmem.greedy[first - 1 :])
        np.testing.assert_array_equal(part.reads, everything.reads[first - 1 :])


def test_batch_size_and_order_change_nothing(model: LongMem, store: AbstractMemoryStore) -> None:
    view = whole(model, store)
    items = items_of(model)
    views = [view if index % 3 else None for index in range(len(items))]
    alone = score_items(model, items, views, batch_tokens=1)
    order = [3, 0, 5, 1, 4, 2]
    mixed = score_items(model, [items[i] for i in order], [views[i] for i in order])
    for index, score in zip(order, mixed, strict=True):
        np.testing.assert_allclose(score.longmem.logprobs, alone[index].longmem.logprobs, atol=TOLERANCE)
        np.testing.assert_array_equal(score.longmem.greedy, alone[index].longmem.greedy)
        np.testing.assert_array_equal(score.reads, alone[index].reads)
        assert score.reads.shape[1] == 0 or views[index] is not None


def test_greedy_is_the_token_that_decoding_would_choose(model: LongMem, store: AbstractMemoryStore) -> None:
    decoder = Decoder(model, store.document("book"))
    tokens = model.tokenizer.sequence("Some years ").tolist()
    chosen = []
    logits = decoder.feed(tokens)
    for _ in range(4):
        chosen.append(int(logits.argmax()))
        logits = decoder.feed(chosen[-1:])
    item = Item("greedy", np.asarray(tokens + chosen, dtype=np.int32), len(tokens))
    wrong = Item("wrong", np.asarray([*tokens, *chosen[:3], (chosen[3] + 1) % 256], dtype=np.int32), len(tokens))
    view = whole(model, store)
    scores = score_items(model, [item, wrong], [view, view])
    assert scores[0].longmem.greedy.tolist() == [True] * 4
    assert scores[1].longmem.greedy.tolist() == [True] * 3 + [False]


def test_backbone_is_plain_transformers(model: LongMem, small_backbone: Callable[[str], Any]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(small_backbone("llama")).eval()
    for item, score in zip(items_of(model), score_items(model, items_of(model), [None] * len(TEXTS)), strict=True):
        tokens = torch.from_numpy(item.tokens.astype(np.int64))
        with torch.no_grad():
            logits = plain(tokens[None, :-1]).logits[0].log_softmax(dim=1)
        expected = logits.gather(1, tokens[1:, None])[:, 0]
        np.testing.assert_allclose(score.backbone.logprobs, expected.numpy(), atol=TOLERANCE)
        np.testing.assert_array_equal(score.backbone.greedy, (logits.argmax(1) == tokens[1:]).numpy())


def test_reads_are_positions_of_the_document(model: LongMem, store: AbstractMemoryStore) -> None:
    item = items_of(model)[1]
    score = score_items(model, [item], [whole(model, store)])[0]
    end = store.document("book").segments[-1].end_token
    assert score.reads.shape[0] == item.num_targets
    assert score.reads.min() >= -1
    assert score.reads.max() < end
    assert (score.reads >= 0).any(axis=1).all()


@pytest.mark.parametrize(("chunk_tokens", "lengths"), [(1, [1] * 20), (4, [4, 1, 4, 2, 4, 4, 4])])
def test_what_is_found_by_repetition_only_is_read_too(
    chunk_tokens: int, lengths: list[int], small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    """Check one retrieved chunk that is not the one with the item's words."""
    settings = {**FORMS["default"], "chunk_tokens": chunk_tokens, "top_k": chunk_tokens}
    model, without = (small_model(**settings, copy_repeats=repeats) for repeats in (3, 0))
    shape = model.backbone.shape
    view = random_view(shape.kv_heads, shape.head_dim, chunk=chunk_tokens, lengths=lengths, key_space=model.key_space)
    last = 10
    words = view.text[last - 6 : last + 1].tolist()
    item = Item("words", np.array([*words, words[0]], dtype=np.int32), len(words))
    read, retrieved = (score_items(each, [item], [view])[0].reads for each in (model, without))
    chunk_start = int(view.starts[view.starts <= last].max())
    assert chunk_start in read
    assert chunk_start not in retrieved
    np.testing.assert_array_equal(read[:, :1], retrieved)


@pytest.mark.parametrize(
    ("num_tokens", "first_target", "message"),
    [
        (34, 33, "33 tokens are read, but the local context holds 32"),
        (5, 0, "at least one token to read and one to predict"),
        (5, 5, "at least one token to read and one to predict"),
        (1, 1, "at least one token to read and one to predict"),
    ],
)
def test_items_that_cannot_be_scored(model: LongMem, num_tokens: int, first_target: int, message: str) -> None:
    item = Item("odd", np.zeros(num_tokens, dtype=np.int32), first_target)
    with pytest.raises(DocumentError, match=f"item odd: .*{message}"):
        score_items(model, [item], [None])


def test_alternatives_are_targets_of_other_items(model: LongMem, store: AbstractMemoryStore) -> None:
    view = whole(model, store)
    prompt = model.tokenizer.sequence("Some years")
    tokens = np.array([97, 98, 99], dtype=np.int32)
    rows = [Item(str(each), np.append(prompt, each).astype(np.int32), len(prompt), tokens) for each in tokens]
    scores = score_items(model, rows, [view] * len(rows))
    for side in ("longmem", "backbone"):
        alone = np.array([getattr(score, side).logprobs[0] for score in scores])
        for score in scores:
            np.testing.assert_allclose(getattr(score, side).alternatives, alone, atol=TOLERANCE)


def test_the_first_choice_is_greedy_and_nothing_else_is(model: LongMem, store: AbstractMemoryStore) -> None:
    prompt, view = model.tokenizer.sequence("Some years"), whole(model, store)
    (first,) = score_items(model, [Item("any", np.append(prompt, 97).astype(np.int32), len(prompt))], [view])
    chosen = first.longmem.first_choice
    rows = [Item("one", np.append(prompt, each).astype(np.int32), len(prompt)) for each in (chosen, (chosen + 1) % 256)]
    assert [score.longmem.greedy[0] for score in score_items(model, rows, [view] * 2)] == [True, False]


def test_places_taken_are_those_of_a_segment_after_the_document(model: LongMem, store: AbstractMemoryStore) -> None:
    """Compare with the readings of the same text as the document's next segment, which another function computes."""
    view, text = whole(model, store), TEXTS[1]
    tokens = model.tokenizer.sequence(text)
    segment = Segment(DocumentKey("", "book"), 1, view.end_token, tokens[:-1], tokens[1:], keep_readings=True)
    encoded = model.encode(replace(segment, start_token=0))
    readings = model.score_segment(segment, encoded.block.keys, encoded.state, view).readings
    assert readings is not None
    for first in (1, 3, len(tokens) - 1):
        [score] = score_items(model, [Item("a", tokens, first)], [view], keep_places=True)
        assert score.taken is not None
        assert score.taken.positions.tolist() == sorted(set(score.taken.positions.tolist()))
        assert score.taken.weights.sum() == pytest.approx(1, abs=1e-5)
        weights = dict(zip(score.taken.positions.tolist(), score.taken.weights.tolist(), strict=True))
        for place, weight in zip(readings.places[first - 1], readings.weights[first - 1], strict=True):
            assert weights[int(place)] == pytest.approx(float(weight), abs=1e-4)
        assert max(weights.values()) == pytest.approx(float(readings.weights[first - 1, 0]), abs=1e-4)
        assert score.taken.copy_share == pytest.approx(float(readings.copy_share[first - 1]), abs=1e-4)


def test_places_are_kept_only_on_request_and_where_a_memory_is_read(model: LongMem, store: AbstractMemoryStore) -> None:
    view, item = whole(model, store), Item("a", model.tokenizer.sequence(TEXTS[1]), 3)
    assert score_items(model, [item], [view])[0].taken is None
    with_memory, without = score_items(model, [item, item], [view, None], keep_places=True)
    assert with_memory.taken is not None
    assert without.taken is None


@pytest.mark.parametrize("form", ["paper", "default", "all layers"])
def test_readings_of_targets_are_those_of_a_segment_after_the_document(
    small_model: Callable[..., LongMem], form: str
) -> None:
    """Compare with the readings of the same text as the document's next segment, from any first target on."""
    # the near past alone: which older blocks are read depends on the prompt
    blocks = {"read_blocks": 0} if form == "all layers" else {}
    model = small_model(**{**EVERY_FORM[form], **blocks, "kv_dtype": "float32"})
    store = MemoryStore.open("memory://")
    model.score(DOCUMENT, store.document("book"))
    view, tokens = whole(model, store), model.tokenizer.tokens(TEXTS[1])
    segment = Segment(DocumentKey("", "book"), 1, view.end_token, tokens[:-1], tokens[1:], keep_readings=True)
    encoded = model.encode(replace(segment, start_token=0))
    expected = model.score_segment(segment, encoded.block.keys, encoded.state, view).readings
    assert expected is not None
    assert (expected.places >= 0).all(), "else little is compared"
    for first in (1, 3, len(tokens) - 1):
        item = Item("a", tokens, first)
        with_memory, without = score_items(model, [item, item], [view, None], keep_readings=True)
        found = with_memory.readings
        assert found is not None
        for name in ("copy_share", "uncopied", "copied", "weights"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name)[first - 1 :], atol=1e-4, err_msg=name
            )
        np.testing.assert_array_equal(found.places, expected.places[first - 1 :])
        np.testing.assert_array_equal(found.runs, expected.runs[first - 1 :])
        np.testing.assert_array_equal(found.blocks, expected.blocks)
        assert (len(found.blocks) > 0) == (form == "all layers")
        assert without.readings is not None
        assert (without.readings.places == -1).all()
        np.testing.assert_allclose(without.readings.uncopied, without.longmem.logprobs, atol=TOLERANCE)
    assert score_items(model, [item], [view])[0].readings is None
