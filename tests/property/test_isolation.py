# SPDX-License-Identifier: Apache-2.0
"""No data of one document or namespace is ever read while scoring another one."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem.model.longmem import LongMem
from longmem.runtime.executor import Completion, Stage
from longmem.runtime.inline_executor import InlineExecutor
from longmem.scoring.text import TextScores
from longmem.store.config import MemoryStore
from longmem.store.document import DocumentMemory
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment, SegmentScore
from tests.inputs import EVERY_FORM, form_of_size

TEXTS = [
    "the cat sat on the mat and the dog sat on the log and the cat ate",
    "the cat sat on the mat and the dog sat on the log and the dog ate",  # differs at the end only
    "a completely different text of about the same length as the others",
    "the cat sat",
    "zz",
    "in a text of this length there is something to be found in memory, and something else to be found again",
]

text_numbers = st.integers(0, len(TEXTS) - 1)
# names that differ subtly, contain escapes, or are no paths; any two of them name different documents
names = st.sampled_from(["a", "A", "a ", "", "a/b", "../a", "a'; --", "ä", "a\u0308", "\0", "*", "a%2Fb"]) | st.text(
    max_size=5
)
keys = st.builds(DocumentKey, names, names)
alike_keys = st.builds(DocumentKey, st.sampled_from("ab"), st.sampled_from("ab"))  # of three, two share a name


@pytest.fixture(scope="module", params=EVERY_FORM)
def model(request: pytest.FixtureRequest, small_model: Callable[..., LongMem]) -> LongMem:
    sizes = {"segment_tokens": 16, "memory_tokens": 32, "top_k": 8}
    return small_model("llama", **form_of_size(request.param, **sizes))


@pytest.fixture(scope="module")
def alone(model: LongMem) -> Callable[[int], TextScores]:
    """Return a function that scores a text in a store without other documents."""

    @cache
    def scores(number: int) -> TextScores:
        return model.score(TEXTS[number], MemoryStore.open("memory://").document("only"))

    return scores


def same(one: TextScores, other: TextScores) -> bool:
    return np.array_equal(one.logprobs, other.logprobs) and all(
        first.retrieval.chunks_digest == second.retrieval.chunks_digest
        and first.retrieval.memory_tokens == second.retrieval.memory_tokens
        for first, second in zip(one.segments, other.segments, strict=True)
    )


def test_memory_matters_and_texts_differ(model: LongMem, alone: Callable[[int], TextScores]) -> None:
    """Check that the memory affects the scores; otherwise everything below would pass with a memory that is never
    read."""
    for number in (0, 2, 5):
        assert not np.array_equal(alone(number).logprobs, alone(number).backbone_logprobs)
        assert alone(number).segments[-1].retrieval.memory_tokens > 0
        first = cut_segments(DocumentKey("", ""), model.tokenizer.sequence(TEXTS[number]), 16)[1]
        encoded = model.encode(first)
        unread = model.score_segment(first, encoded.block.keys, encoded.state, None)
        assert not np.array_equal(unread.logprobs, alone(number).segments[1].logprobs)


@settings(max_examples=6)
@given(documents=st.dictionaries(keys, text_numbers, min_size=1, max_size=4), data=st.data())
def test_scores_do_not_depend_on_what_else_is_in_the_store(
    model: LongMem, alone: Callable[[int], TextScores], documents: dict[DocumentKey, int], data: st.DataObject
) -> None:
    with MemoryStore.open("memory://") as store:
        order = data.draw(st.permutations(list(documents)))
        again = data.draw(st.lists(st.sampled_from(list(documents)), max_size=1))
        for key in [*order, *again]:
            memory = store.document(key.document, namespace=key.namespace)
            assert same(model.score(TEXTS[documents[key]], memory), alone(documents[key])), key
        assert store.documents() == sorted(documents)


@settings(max_examples=5)
@given(one=keys, other=keys, text=text_numbers)
def test_deleting_and_forking_others_changes_nothing(
    model: LongMem, alone: Callable[[int], TextScores], one: DocumentKey, other: DocumentKey, text: int
) -> None:
    if one == other:
        other = DocumentKey(one.namespace, f"not {one.document}")
    with MemoryStore.open("memory://") as store:
        memory = store.document(one.document, namespace=one.namespace)
        model.score(TEXTS[2], store.document(other.document, namespace=other.namespace))
        model.score(TEXTS[text], memory)
        store.delete(other)
        assert same(model.score(TEXTS[text], memory), alone(text))
        store.fork(one, other)
        store.delete(one)
        # the fork reads the forked blocks, with equal results
        fork = store.document(other.document, namespace=other.namespace)
        assert same(model.score(TEXTS[text], fork), alone(text))
        assert store.segments(one) == []


def test_a_text_that_follows_one_document_reads_that_one(model: LongMem) -> None:
    with MemoryStore.open("memory://") as store:
        scores = {}
        for name, number in (("a", 0), ("b", 2)):
            model.score(TEXTS[number], store.document(name))
        for _ in range(2):
            for name in ("a", "b"):
                found = model.score(TEXTS[5], store.document(name).as_read_only()).logprobs
                assert np.array_equal(scores.setdefault(name, found), found)
        assert not np.array_equal(scores["a"], scores["b"])
        assert len(store.documents()) == 2


# ---- many documents at once, one reader


def run(executor: InlineExecutor, stage: Stage, segment: Segment) -> Any:
    executor.submit(stage, segment)
    (completion,) = executor.wait(60.0)
    assert isinstance(completion, Completion)
    assert (completion.stage, completion.segment, completion.error) == (stage, segment, None)
    return completion.result


def segments_of(model: LongMem, key: DocumentKey, number: int) -> list[Segment]:
    return cut_segments(key, model.tokenizer.sequence(TEXTS[number]), model.config.segment_tokens)


def ready(
    progress: dict[DocumentKey, dict[str, set[int]]], segments: dict[DocumentKey, list[Segment]]
) -> Iterator[Any]:
    """Yield every task that may run next: put after encode, score after the puts of all the past."""
    for key, done in progress.items():
        for segment in segments[key]:
            index = segment.index
            if index not in done["encode"]:
                yield "encode", segment
            elif index not in done["put"]:
                yield "put", segment
            if index in done["encode"] and index not in done["score"] and set(range(index)) <= done["put"]:
                yield "score", segment


@settings(max_examples=6)
@given(
    documents=st.dictionaries(alike_keys, text_numbers, min_size=3, max_size=3),
    window_bytes=st.sampled_from([0, 20_000, 2**30]),
    random=st.randoms(use_true_random=False),
)
def test_one_reader_of_many_documents_in_any_order(
    model: LongMem,
    alone: Callable[[int], TextScores],
    documents: dict[DocumentKey, int],
    window_bytes: int,
    random: Any,
) -> None:
    segments = {key: segments_of(model, key, number) for key, number in documents.items()}
    progress: dict[DocumentKey, dict[str, set[int]]] = {
        key: {"encode": set(), "put": set(), "score": set()} for key in documents
    }
    found: dict[tuple[DocumentKey, int], SegmentScore] = {}
    with InlineExecutor(model, MemoryStore.open("memory://"), window_bytes=window_bytes) as executor:
        while tasks := list(ready(progress, segments)):
            stage, segment = random.choice(tasks)
            result = run(executor, stage, segment)
            progress[segment.key][stage].add(segment.index)
            if stage == "score":
                found[segment.key, segment.index] = result
    for key, number in documents.items():
        for expected in alone(number).segments:
            score = found[key, expected.segment]
            assert score.key == key
            assert np.array_equal(score.logprobs, expected.logprobs)
            assert score.retrieval.chunks_digest == expected.retrieval.chunks_digest


@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_forgotten_document_is_not_read_by_the_next_one_of_its_name(
    form: str, small_model: Callable[..., LongMem]
) -> None:
    # the whole past, so that no chunk leaves the window
    model = small_model("llama", **form_of_size(form, segment_tokens=16, memory_tokens=96))
    key = DocumentKey("default", "book")
    with InlineExecutor(model, MemoryStore.open("memory://")) as executor:
        for number in (0, 2):
            scores = []
            for segment in segments_of(model, key, number):
                run(executor, "encode", segment)
                run(executor, "put", segment)
                scores.append(run(executor, "score", segment))
            executor.delete(key)
            assert executor.stored(key) == []
            expected = model.score(TEXTS[number], MemoryStore.open("memory://").document("book")).segments
            for score, wanted in zip(scores, expected, strict=True):
                assert np.array_equal(score.logprobs, wanted.logprobs), "keys of the forgotten document were read"


def test_handles_of_one_document_share_nothing_but_the_store(
    model: LongMem, alone: Callable[[int], TextScores]
) -> None:
    with MemoryStore.open("memory://") as one, MemoryStore.open("memory://") as other:
        memories: list[DocumentMemory] = [store.document("book") for store in (one, other)]
        assert same(model.score(TEXTS[0], memories[0]), alone(0))
        assert same(model.score(TEXTS[2], memories[1]), alone(2))
        assert memories[0].num_tokens == len(TEXTS[0]) + 1
        assert memories[1].num_tokens == len(TEXTS[2]) + 1
