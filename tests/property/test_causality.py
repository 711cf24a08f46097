# SPDX-License-Identifier: Apache-2.0
"""A token's score depends on no token at or after it, and on no token before its window."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longmem.model.longmem import LongMem
from longmem.scoring.text import TextScores
from longmem.store.config import MemoryStore
from longmem.store.document import DocumentMemory
from tests.inputs import EVERY_FORM, form_of_size

Shape = tuple[int, int, int, int]
Models = Callable[[Shape, str], LongMem]

# (segment_tokens, chunk_tokens, memory_tokens, top_k): windows of zero, one segment, all, and in between
SHAPES = [(16, 4, 64, 8), (16, 1, 16, 3), (12, 3, 21, 6), (8, 8, 24, 8), (16, 4, 0, 8)]
MAX_CHARACTERS = 70

forms = st.sampled_from(sorted(EVERY_FORM))
texts = st.text("abcdefgh ", min_size=20, max_size=MAX_CHARACTERS)  # few letters: chunks resemble one another


@pytest.fixture(scope="module")
def models(small_model: Callable[..., LongMem]) -> Models:
    @cache
    def model(shape: Shape, form: str) -> LongMem:
        segment, chunk, memory, top_k = shape
        sizes = {"segment_tokens": segment, "chunk_tokens": chunk, "memory_tokens": memory, "top_k": top_k}
        return small_model("llama", **form_of_size(form, **sizes, kv_dtype="float32"))

    return model


def own_memory() -> DocumentMemory:
    return MemoryStore.open("memory://").document("book")


def other_letters(text: str, start: int) -> str:
    """Return the text with every character from `start` on replaced by another one."""
    return text[:start] + "".join(chr(ord("A") + ord(letter) % 26) for letter in text[start:])


def same_before(one: TextScores, other: TextScores, position: int, segment_tokens: int) -> None:
    """Check that log-probabilities of the targets before `position`, and the reading for them, are bit-identical.

    Target i is token i of the text, predicted at position i of the sequence, whose token 0 is the start token.
    """
    assert np.array_equal(one.logprobs[:position], other.logprobs[:position])
    assert np.array_equal(one.backbone_logprobs[:position], other.backbone_logprobs[:position])
    for first, second in zip(one.segments, other.segments, strict=True):
        if (first.segment + 1) * segment_tokens <= position + 1:
            assert first.retrieval.chunks_digest == second.retrieval.chunks_digest


@settings(max_examples=20)
@given(text=texts, shape=st.sampled_from(SHAPES), form=forms, data=st.data())
def test_changing_the_future_moves_nothing(
    models: Models,
    shape: Shape,
    form: str,
    text: str,
    data: st.DataObject,
) -> None:
    position = data.draw(st.integers(0, len(text) - 1))
    changed = other_letters(text, position)
    assert changed[position:] != text[position:]
    model = models(shape, form)
    one, other = (model.score(each, own_memory()) for each in (text, changed))
    assert len(one.logprobs) == len(text)
    same_before(one, other, position, shape[0])


@settings(max_examples=12)
@given(text=texts, shape=st.sampled_from(SHAPES), form=forms, data=st.data())
@example(text="a" * 40, shape=SHAPES[0], form="default", data=None)
def test_a_document_that_ends_earlier_scores_the_same_so_far(
    models: Models,
    shape: Shape,
    form: str,
    text: str,
    data: st.DataObject | None,
) -> None:
    """Compare bit by bit in whole segments; in the cut one the shorter matrices may round differently."""
    length = data.draw(st.integers(1, len(text))) if data else 20
    model = models(shape, form)
    whole, part = (model.score(each, own_memory()) for each in (text, text[:length]))
    np.testing.assert_allclose(part.logprobs, whole.logprobs[:length], rtol=0, atol=1e-5)
    exact = (length + 1) // shape[0] * shape[0] - 1  # the last target of whole segments lies in the next one
    if exact > 0:
        assert np.array_equal(part.logprobs[:exact], whole.logprobs[:exact])


@settings(max_examples=12)
@given(document=texts, text=texts, shape=st.sampled_from(SHAPES), form=forms, data=st.data())
def test_a_text_that_follows_a_document_has_no_future_either(
    models: Models,
    shape: Shape,
    form: str,
    document: str,
    text: str,
    data: st.DataObject,
) -> None:
    model = models(shape, form)
    memory = own_memory()
    model.score(document, memory)
    position = data.draw(st.integers(0, len(text) - 1))
    one, other = (model.score(each, memory.as_read_only()) for each in (text, other_letters(text, position)))
    same_before(one, other, position, shape[0])


LONG = "the cat sat on the mat and the dog sat on the log and the cat ate the rat"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", EVERY_FORM)
def test_the_window_is_exactly_as_long_as_configured(models: Models, shape: Shape, form: str) -> None:
    """Check both sides of the window: a change before it has no effect, a change inside has one.

    Otherwise the tests above would also pass for a model without any memory.
    """
    segment, _, memory, _ = shape
    model = models(shape, form)
    before = model.score(LONG, own_memory()).segments
    last = len(LONG) // segment - 1
    start = last * segment
    assert before[last].retrieval.memory_tokens == min(memory, start)

    def moved(place: int) -> bool:
        """Return True if another token at this index changes the last whole segment's log-probabilities."""
        changed = LONG[: place - 1] + "#" + LONG[place:]
        after = model.score(changed, own_memory()).segments
        return not np.array_equal(before[last].logprobs, after[last].logprobs)

    # the last token whose own segment lies wholly before the window: local attention carries it no further
    outside = (start - memory) // segment * segment - 1
    if outside > 0:
        assert not moved(outside)
        assert not moved(1)
    # of a segment's tokens the first reaches the most keys, in a window that reads more than it leaves out
    inside = max(1, start - segment)
    assert moved(inside) == (memory > 0)
