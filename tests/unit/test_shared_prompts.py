# SPDX-License-Identifier: Apache-2.0
"""Endings of one context: the context is run once for each memory, and the scores are those of whole rows."""

from collections.abc import Callable

import numpy as np
import pytest

from longmem.backbone.shared_prompts import MIN_SAVED_TOKENS
from longmem.memory.context import ContextMemory
from longmem.model.longmem import LongMem
from longmem.scoring.batch import CACHE_TOKENS, Item, score_items
from longmem.sidenet.reading_model import ReadingInput
from longmem.testing import FAMILIES
from tests.inputs import EVERY_FORM

TOLERANCE = 1e-5
"""Tolerance in nats for float32, whose sums have another order in one pass than in two."""
NUM_PROMPT = 35
ENDINGS = (" and the dog", " and the cat sat", " or", " x")
"""Endings of different lengths; the last one is scored from its first token like the others."""
PAST = "the cat sat on the mat and the dog sat on the cat, " * 4


@pytest.fixture(autouse=True)
def share_short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prompts that fit the segments of small models."""
    monkeypatch.setattr("longmem.backbone.shared_prompts.MIN_SAVED_TOKENS", NUM_PROMPT)


def endings_of(model: LongMem, *, start: bool) -> list[Item]:
    """Return items that differ behind their first `NUM_PROMPT` tokens."""
    text = PAST[7:]
    prompt = (model.tokenizer.sequence(text) if start else model.tokenizer.tokens(text))[:NUM_PROMPT]
    return [
        Item(ending, np.concatenate([prompt, model.tokenizer.tokens(ending)]), NUM_PROMPT, np.arange(3, dtype=np.int32))
        for ending in ENDINGS
    ]


def open_model(small_model: Callable[..., LongMem], form: str, family: str = "llama") -> LongMem:
    sizes = {"segment_tokens": 64, "memory_tokens": 128, "kv_dtype": "float32"}
    return small_model(family, **{**EVERY_FORM[form], **sizes})


def count_run(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of all tokens that the backbone runs."""
    shapes: list[tuple[int, ...]] = []
    run = model.backbone.run

    def counted(tokens: object, cache: object = None) -> object:
        shapes.append(tuple(getattr(tokens, "shape", ())))
        return run(tokens, cache)

    monkeypatch.setattr(model.backbone, "run", counted)
    return shapes


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("form", EVERY_FORM)
def test_endings_of_one_context_are_scored_as_each_alone(
    small_model: Callable[..., LongMem], form: str, start: bool
) -> None:
    model = open_model(small_model, form)
    past = ContextMemory(model, model.tokenizer.sequence(PAST))
    items = [item for item in endings_of(model, start=start) for _ in range(3)]
    views = [past.view(128), past.view(70), None] * len(ENDINGS)
    together = score_items(model, items, views, keep_places=True)
    for item, view, found in zip(items, views, together, strict=True):
        [alone] = score_items(model, [item], [view], keep_places=True)
        assert found.name == alone.name
        for side in ("longmem", "backbone"):
            one, other = getattr(found, side), getattr(alone, side)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE)
            np.testing.assert_allclose(one.alternatives, other.alternatives, atol=TOLERANCE)
        np.testing.assert_array_equal(found.reads, alone.reads)
        assert (found.taken is None) == (alone.taken is None)


def test_endings_of_one_context_in_every_family(small_model: Callable[..., LongMem]) -> None:
    """Check caches of every architecture: sliding layers and shared heads are repeated for rows too."""
    for family in FAMILIES:
        form = "paper" if FAMILIES[family].keys_have_positions else "all layers"
        model = open_model(small_model, form, family)
        items = endings_of(model, start=True)
        view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
        for item, found in zip(items, score_items(model, items, [view] * len(items)), strict=True):
            [alone] = score_items(model, [item], [view])
            np.testing.assert_allclose(found.longmem.logprobs, alone.longmem.logprobs, atol=TOLERANCE, err_msg=family)
            np.testing.assert_allclose(found.backbone.logprobs, alone.backbone.logprobs, atol=TOLERANCE, err_msg=family)


def test_a_context_runs_once_for_each_memory(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(small_model, "all layers")
    view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
    items = endings_of(model, start=False)
    score_items(model, items[:1], [view])
    shapes = count_run(model, monkeypatch)
    score_items(model, items, [view] * len(items))
    rest = max(item.num_read for item in items) - NUM_PROMPT
    # the pass without memory has the sink in front of the context
    assert shapes == [(1, 1 + NUM_PROMPT), (len(items), rest), (1, NUM_PROMPT), (len(items), rest)]


def test_answers_of_one_token_cost_one_pass(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check answers that differ in their last token, which is predicted and not read."""
    model = open_model(small_model, "all layers")
    view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
    prompt = endings_of(model, start=True)[0].tokens[:NUM_PROMPT]
    items = [Item(str(token), np.append(prompt, token).astype(np.int32), NUM_PROMPT) for token in range(97, 101)]
    alone = [score_items(model, [item], [view])[0] for item in items]
    shapes = count_run(model, monkeypatch)
    together = score_items(model, items, [view] * len(items))
    # the start token predicts without memory, and is known
    assert shapes == [(1, NUM_PROMPT), (1, NUM_PROMPT - 1)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.longmem.logprobs, other.longmem.logprobs, atol=TOLERANCE)


def test_the_caches_of_endings_are_bounded(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check more endings than caches fit: they run in several batches, with the same scores."""
    model = open_model(small_model, "all layers")
    view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
    prompt = endings_of(model, start=False)[0].tokens[:NUM_PROMPT]
    # the caches hold the memory too: near past, blocks, prompt and two tokens behind it
    ends = np.random.default_rng(0).integers(1, 255, (CACHE_TOKENS // (24 + 3 * 4 + NUM_PROMPT + 2) + 5, 3))
    items = [Item(str(row), np.concatenate([prompt, end]).astype(np.int32), NUM_PROMPT) for row, end in enumerate(ends)]
    shapes = count_run(model, monkeypatch)
    scores = score_items(model, items, [view] * len(items))
    read = model.config.near_tokens + model.config.read_blocks * model.config.block_tokens
    assert len(items) / 2 < max(rows for rows, _ in shapes) <= CACHE_TOKENS // (read + NUM_PROMPT + 2)
    assert [score.name for score in scores] == [item.name for item in items]
    [alone] = score_items(model, items[-1:], [view])
    np.testing.assert_allclose(scores[-1].longmem.logprobs, alone.longmem.logprobs, atol=TOLERANCE)


def test_one_ending_asked_for_twice_is_no_shared_prompt(small_model: Callable[..., LongMem]) -> None:
    model = open_model(small_model, "all layers")
    view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
    prompt = endings_of(model, start=False)[0].tokens[: NUM_PROMPT + 1]
    item = Item("one", prompt, NUM_PROMPT)
    first, second = score_items(model, [item, item], [view, view])
    np.testing.assert_array_equal(first.longmem.logprobs, second.longmem.logprobs)


def test_short_prompts_of_many_questions_run_together(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check questions whose prompts are not worth a pass of their own, at the real bound."""
    monkeypatch.setattr("longmem.backbone.shared_prompts.MIN_SAVED_TOKENS", MIN_SAVED_TOKENS)
    model = open_model(small_model, "default")
    questions = np.random.default_rng(0).integers(1, 255, (12, NUM_PROMPT)).astype(np.int32)
    endings = np.random.default_rng(1).integers(1, 255, (4, 4)).astype(np.int32)
    items = [
        Item("item", np.concatenate([question, ending]), NUM_PROMPT) for question in questions for ending in endings
    ]
    shapes = count_run(model, monkeypatch)
    score_items(model, items, [None] * len(items))
    assert len(shapes) == 1


def test_a_sidenet_reads_no_more_tokens_at_once_than_without_shared_prompts(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(small_model, "default")
    view = ContextMemory(model, model.tokenizer.sequence(PAST)).view(128)
    prompt = endings_of(model, start=True)[0].tokens[:NUM_PROMPT]
    items = [Item("item", np.append(prompt, [row, row + 1]).astype(np.int32), NUM_PROMPT) for row in range(1, 40)]
    sizes: list[int] = []
    forward = model.sidenet.forward

    def counted(given: ReadingInput, *others: object) -> object:
        sizes.append(given.tokens.numel())
        return forward(given, *others)

    monkeypatch.setattr(model.sidenet, "forward", counted)
    score_items(model, items, [view] * len(items), batch_tokens=200)
    assert len(sizes) > 1
    assert max(sizes) <= 200
