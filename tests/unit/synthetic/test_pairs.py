# SPDX-License-Identifier: Apache-2.0
"""Pairs: every line is in memory whole and once, and the queried one is not in the local context."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.errors import ConfigError, DocumentError
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.batch import ItemScore, TargetScores
from longmem.synthetic import trial as trial_module
from longmem.synthetic.memory import packed_memory, start_of, tokens_of
from longmem.synthetic.pairs import PairPlan, draw_pairs, pair_trials
from longmem.synthetic.trial import Question, ask, judge, was_read
from longmem.synthetic.vocabulary import words_of
from longmem.text.demonstrations import pack, positions_of
from longmem.text.language_reference import language_reference
from tests.inputs import DEFAULT_FORM

TEXT = language_reference().text
WORDS = words_of(TEXT, 1000)


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model(**DEFAULT_FORM, segment_tokens=128)


@given(st.integers(0, 10**6), st.integers(10, 400))
def test_keys_and_values_of_a_dictionary_are_all_different(seed: int, count: int) -> None:
    drawn = draw_pairs(PairPlan(subject="lookup", examples=(count,), shots=(0,), seed=seed), WORDS, count)
    assert len({pair.key for pair in drawn}) == len({pair.value for pair in drawn}) == count
    keys = {word for pair in drawn for word in pair.key.split()}
    assert not keys & {word for pair in drawn for word in pair.value.split()}
    assert drawn == draw_pairs(PairPlan(subject="lookup", examples=(count,), shots=(0,), seed=seed), WORDS, count)


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(30, 500))
def test_labels_are_even_and_no_word_is_both(seed: int, choices: int, count: int) -> None:
    plan = PairPlan(subject="labels", examples=(count,), shots=(0,), choices=choices, seed=seed)
    drawn = draw_pairs(plan, WORDS, count)
    keys, labels = [pair.key for pair in drawn], [pair.value for pair in drawn]
    assert len(set(keys)) == count
    assert not set(keys) & set(labels)
    counts = [labels.count(label) for label in set(labels)]
    assert len(counts) == choices
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(10, 20))
def test_examples_are_packed_whole_and_found_where_they_were_put(lengths: list[int], size: int) -> None:
    examples = [np.full(length, number, np.int32) for number, length in enumerate(lengths, start=1)]
    segments = pack(examples, size, 0)
    positions = positions_of(examples, segments, size)
    memory = np.full(len(segments) * size, -1, np.int32)
    for index, tokens in enumerate(segments):
        assert len(tokens) <= size
        memory[index * size : index * size + len(tokens)] = tokens
    for example, position in zip(examples, positions, strict=True):
        np.testing.assert_array_equal(memory[position : position + len(example)], example)
    assert len(memory[memory >= 0]) == 1 + sum(lengths)


def test_pairs_queried_line_is_in_memory_and_not_in_context(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Question, MemoryView]] = []

    def watched(
        model: LongMem, questions: Sequence[Question], view: MemoryView, keep_readings: bool
    ) -> list[ItemScore]:
        seen.extend((question, view) for question in questions)
        return ask(model, questions, view, keep_readings)

    monkeypatch.setattr(trial_module, "ask", watched)
    plan = PairPlan(subject="lookup", examples=(30,), shots=(0, 2), questions=4, choices=4)
    trials = list(pair_trials(model, TEXT, plan))
    assert [trial.shots for trial in trials] == [0] * 4 + [2] * 4
    for question, view in seen:
        stored, answer = view.tokens.flatten(), question.answers[0]
        place = int((view.starts == question.position).nonzero())
        np.testing.assert_array_equal(stored[place : place + len(answer)].numpy(), answer)
        assert bytes(answer.astype(np.uint32)) not in bytes(question.context.astype(np.uint32))
        # the bytes of all memory hold the line once
        text = model.tokenizer.decode(stored.tolist())
        assert text.count(model.tokenizer.decode(answer.tolist()) + "\n") == 1


def test_trials_follow_the_seed(model: LongMem) -> None:
    plan = PairPlan(subject="labels", examples=(40,), shots=(0,), questions=3, choices=3)
    assert list(pair_trials(model, TEXT, plan)) == list(pair_trials(model, TEXT, plan))


def test_a_line_that_was_in_memory_is_found(model: LongMem) -> None:
    """Check a key as its own query: a model that searches keys by keys finds equal tokens first."""
    line = tokens_of(model.tokenizer, "brown owl, seven geese\n")
    start = start_of(model.tokenizer)
    segments = pack([line], 128, model.tokenizer.start_token)
    positions = positions_of([line], segments, 128)
    view = packed_memory(model, segments)
    question = Question(np.concatenate([start, line[:10]]), [line[10:]], positions[0] + 10)
    scores = ask(model, [question], view)
    assert judge("lookup", question, scores, view, 1, 0, 0.0).read
    assert not was_read(scores[0], positions[0] + 200, view.chunk_size)


def scored(longmem: list[float], backbone: list[float], greedy: list[bool], reads: list[list[int]]) -> ItemScore:
    sides = (
        TargetScores(
            np.asarray(values, np.float32), np.asarray(greedy), np.arange(len(values)), np.zeros(0, np.float32)
        )
        for values in (longmem, backbone)
    )
    return ItemScore("answer", *sides, np.asarray(reads, np.int64))


def test_judging_by_hand(random_view: Callable[..., MemoryView]) -> None:
    """Check by hand, with chunks of 4: the answer is at 6 and 7, so places 5 and 6 predict it."""
    view = random_view(1, 8, chunks=3, lengths=[4, 4, 4])
    right = scored([-1, -1], [-3, -3], [True, False], [[4, -1], [0, 4]])
    wrong = scored([-2, -1], [-1, -1], [True, True], [[0, 0], [0, 0]])
    question = Question(np.zeros(3, np.int32), [np.zeros(2, np.int32)] * 2, 6)
    trial = judge("lookup", question, [right, wrong], view, 5, 1, 0.5)
    assert (trial.chosen, trial.greedy, trial.read) == (True, False, True)
    assert (trial.chosen_without, trial.greedy_without) == (False, False)
    assert (trial.nats, trial.nats_without, trial.choices, trial.memory_tokens) == (2.0, 6.0, 2, 12)
    assert not was_read(scored([-1, -1], [-1, -1], [True, True], [[4, -1], [0, 8]]), 6, 4)


def test_a_tie_is_not_a_choice(random_view: Callable[..., MemoryView]) -> None:
    same = scored([-1], [-1], [True], [[0]])
    question = Question(np.zeros(3, np.int32), [np.zeros(1, np.int32)] * 2, 1)
    assert not judge("labels", question, [same, same], random_view(1, 8), 5, 0, 0.5).chosen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subject": "riddles"}, "lookup or labels"),
        ({"examples": (5,), "shots": (0,)}, "examples must be at least 10"),
        ({"examples": (20,), "shots": (30,)}, "examples must be at least 31"),
        ({"examples": ()}, "examples must be at least"),
        ({"shots": (-1,)}, "shots must be"),
        ({"questions": 0}, "questions must be"),
        ({"choices": 1}, "choices must be"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_a_plan_that_cannot_be_asked_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairPlan(**{"subject": "labels", **settings})  # type: ignore[arg-type]


def test_more_demonstrations_than_words_are_refused() -> None:
    plan = PairPlan(subject="labels", examples=(1000,))
    with pytest.raises(ConfigError, match="need 1010 different words, the text has 500"):
        draw_pairs(plan, WORDS[:500], 1000)
    with pytest.raises(ConfigError, match="need more than the 20 words"):
        draw_pairs(PairPlan(subject="lookup", examples=(1000,)), WORDS[:20], 1000)


def test_a_question_longer_than_a_segment_is_refused(small_model: Callable[..., LongMem]) -> None:
    small = small_model(**DEFAULT_FORM, segment_tokens=64)
    with pytest.raises(DocumentError, match="the local context holds 64"):
        list(pair_trials(small, TEXT, PairPlan(subject="labels", examples=(40,), shots=(16,), questions=1)))
