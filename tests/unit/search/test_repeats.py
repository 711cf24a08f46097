# SPDX-License-Identifier: Apache-2.0
"""Exact repeats against loops over the text, and cases that the loops miss: short texts, steps, collisions."""

from itertools import chain, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longmem.retrieval import repeats
from longmem.retrieval.repeats import LENGTHS, LONGEST, GrowingRepeats, RepeatIndex, Repeats, run_lengths

Text = list[int]
Case = tuple[Text, Text]
"""Token ids of a memory and of a context."""
Slots = list[tuple[int, int] | None]
"""Pairs of a place and its run; None for an empty slot."""


@st.composite
def cases(draw: st.DrawFn, most: int = 60) -> Case:
    """Draw a memory of at most `most` tokens and a context of at most 12, of few words, so that long runs repeat."""
    letters = st.integers(0, draw(st.integers(1, 3)))
    words = draw(st.lists(st.lists(letters, min_size=1, max_size=10), min_size=1, max_size=3))
    memory, context = (draw(st.lists(st.sampled_from(words), max_size=count)) for count in (15, 4))
    return list(chain(*memory))[:most], list(chain(*context, words[0]))[:12]


def find(memory: Text, context: Text, num_reading: int, slots: int) -> Repeats:
    return RepeatIndex(torch.tensor(memory).long()).find(torch.tensor(context), num_reading, slots)


def slots_of(found: Repeats) -> list[list[Slots]]:
    """Return the slots for each reader and length."""
    assert not found.index[~found.valid].any()
    assert not found.runs[~found.valid].any()
    rows = zip(found.index.tolist(), found.runs.tolist(), found.valid.tolist(), strict=True)
    pairs = [[(place, run) if there else None for place, run, there in zip(*row, strict=True)] for row in rows]
    slots = found.index.shape[1] // len(LENGTHS)
    return [[row[first : first + slots] for first in range(0, len(row), slots)] for row in pairs]


def naive_run(text: Text, place: int, reader: int, longest: int) -> int:
    run = 0
    while run < longest and place - run >= 0 and text[place - run] == text[reader - run]:
        run += 1
    return run


def naive_slots(memory: Text, context: Text, num_reading: int, slots: int) -> list[list[Slots]]:
    text = memory + context
    readers = range(len(text) - num_reading, len(text))
    lengths = list(pairwise([*LENGTHS, LONGEST + 1]))
    return [[naive_places(text, len(memory), reader, *pair, slots) for pair in lengths] for reader in readers]


def naive_places(text: Text, num_stored: int, reader: int, length: int, next_length: int, slots: int) -> Slots:
    last = text[reader + 1 - length : reader + 1]
    equal = [place for place in range(length - 1, num_stored) if text[place + 1 - length : place + 1] == last]
    found: Slots = []
    for place in equal[::-1][:slots]:
        run = naive_run(text, place, reader, LONGEST)
        # where the next length repeats too, the place wastes a slot of this one
        found.append((place, run) if run < next_length else None)
    return found + [None] * (slots - len(found))


@settings(max_examples=300)
@given(case=cases(), reading=st.integers(1, 12), slots=st.integers(1, 5))
def test_repeats_are_those_of_the_loop(case: Case, reading: int, slots: int) -> None:
    memory, context = case
    reading = min(reading, len(context))
    found = find(memory, context, reading, slots)
    assert found.index.shape == found.valid.shape == found.runs.shape == (reading, len(LENGTHS) * slots)
    assert slots_of(found) == naive_slots(memory, context, reading, slots)
    assert not found.valid.any() or int(found.index[found.valid].max()) < len(memory)


@pytest.mark.parametrize("size", range(10))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_memories_and_contexts(size: int, length: int) -> None:
    """Check one repeated token: shorter than the longest n-gram, everything still repeats."""
    memory, context = [7] * size, [7] * length
    assert slots_of(find(memory, context, length, 2)) == naive_slots(memory, context, length, 2)


def test_an_empty_memory_has_no_repeats() -> None:
    found = find([], [1, 1, 1, 1], 3, 2)
    assert found.index.shape == (3, len(LENGTHS) * 2)
    assert not found.valid.any()


@pytest.mark.parametrize(("token", "expected"), [(5, [[(0, 1)], [None], [None], [None]]), (6, [[None]] * 4)])
def test_a_memory_of_one_token(token: int, expected: list[Slots]) -> None:
    assert slots_of(find([5], [9, token], 1, 1)) == [expected]


def test_each_length_has_the_places_whose_run_is_no_longer() -> None:
    """Check the example of the module's docstring: "the old mill stood, the old man, this old …" after "the old"."""
    the, old, mill, stood, man, this, what = range(7)
    memory = [the, old, mill, stood, the, old, man, this, old]
    one, two, more = [(8, 1), None, None], [(5, 2), (1, 2), None], [None] * 3
    assert slots_of(find(memory, [what, the, old], 1, 3)) == [[one, two, more, more]]


def test_one_repeated_token_is_found_at_its_longest_runs_only() -> None:
    nothing: Slots = [None] * 3
    # every one of the newest places also ends a run of eight
    assert slots_of(find([7] * 40, [7, 7], 1, 3)) == [[nothing] * 3 + [[(39, 16), (38, 16), (37, 16)]]]
    # runs of 3, 4 and 5 tokens
    assert slots_of(find([7] * 5, [7, 7], 1, 3)) == [[nothing, [None, None, (2, 3)], [(4, 5), (3, 4), None], nothing]]


def test_what_repeats_only_in_the_context_is_not_found() -> None:
    assert not find([9, 9, 9], [1, 2, 3, 1, 2, 3, 1, 2, 3], 9, 4).valid.any()


def test_a_long_run_is_counted_up_to_the_longest() -> None:
    memory = list(range(30))
    found = find([*memory, 99], memory, 30, 1)
    assert [max(runs) for runs in found.runs.tolist()] == [min(token + 1, LONGEST) for token in range(30)]
    assert found.valid.sum(dim=1).tolist() == [1] * 30
    assert found.index.amax(dim=1).tolist() == memory


@given(case=cases(), slots=st.integers(1, 3))
def test_step_by_step_finds_what_all_at_once_does(case: Case, slots: int) -> None:
    memory, context = case
    index = RepeatIndex(torch.tensor(memory).long())
    whole = index.find(torch.tensor(context), len(context), slots)
    steps = [index.find(torch.tensor(context[: read + 1]), 1, slots) for read in range(len(context))]
    for name in ("index", "valid", "runs"):
        assert torch.equal(torch.cat([getattr(step, name) for step in steps]), getattr(whole, name))


# ---- hashes


@pytest.mark.parametrize("factor", [0, 2**63])
@given(case=cases(most=20), slots=st.integers(1, 5))
def test_collisions_cost_slots_and_never_give_a_false_place(factor: int, case: Case, slots: int) -> None:
    """Check collisions: with factor 0 all hashes are equal, with 2^63 there are two."""
    memory, context = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_FACTOR", np.uint64(factor))
        few, enough = (slots_of(find(memory, context, len(context), count)) for count in (slots, 20))
    true = naive_slots(memory, context, len(context), 20)
    for token, length in product(range(len(context)), range(len(LENGTHS))):
        assert set(few[token][length]) <= {*true[token][length], None}
        assert set(enough[token][length]) - {None} == set(true[token][length]) - {None}, "slots for all: nothing lost"


def test_a_collision_hides_an_older_place(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, context = [5, 6], [5]
    assert find(memory, context, 1, 1).valid.any()
    monkeypatch.setattr(repeats, "_FACTOR", np.uint64(0))
    assert not find(memory, context, 1, 1).valid.any()
    assert find(memory, context, 1, 2).valid.any()


# ---- runs


@given(
    text=st.lists(st.integers(0, 2), min_size=2, max_size=25),
    segment=st.integers(1, 10),
    longest=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_runs_are_those_of_the_loop(text: Text, segment: int, longest: int, seed: int) -> None:
    segment = min(segment, len(text) - 1)
    num_stored = len(text) - segment
    index = torch.randint(num_stored, (segment, 2, 5), generator=torch.Generator().manual_seed(seed))
    readers = num_stored + torch.arange(segment)
    found = run_lengths(torch.tensor(text), index, readers, longest)
    for token, head, slot in product(range(segment), range(2), range(5)):
        place = int(index[token, head, slot])
        assert found[token, head, slot] == naive_run(text, place, num_stored + token, longest)


def test_a_run_goes_back_from_the_segment_into_the_memory() -> None:
    """Check a reader at the segment's first token: three of the four equal tokens before it are the memory's."""
    text = torch.tensor([5, 1, 2, 3, 4, 9, 1, 2, 3, 4])
    for longest in (0, 2, 4, 8):
        runs = run_lengths(text, torch.tensor([[[4, 3]]]), torch.tensor([9]), longest)
        assert runs.tolist() == [[[min(longest, 4), 0]]]


def test_a_repeat_is_found_from_the_memory_into_the_segment() -> None:
    """Check a run across the border: two of the reader's three tokens are the memory's last."""
    assert slots_of(find([1, 2, 3, 8, 1, 2], [3], 1, 1)) == [[[None], [(2, 3)], [None], [None]]]


# ---- an index that grows


@st.composite
def walks(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Return a text, and views of it: most move on by a little, some jump ahead or go back."""
    length = draw(st.integers(1, 300))
    text = draw(st.lists(st.integers(0, 3), min_size=length, max_size=length))
    views = []
    first = end = 0
    for _ in range(draw(st.integers(1, 20))):
        if draw(st.integers(0, 5)):
            end = min(length, end + draw(st.integers(0, 40)))
            first = min(end, first + draw(st.integers(0, 30)))
        else:
            first, end = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        views.append((first, end))
    return text, views


@given(walk=walks(), slots=st.integers(1, 5), num_reading=st.integers(1, 12), limited=st.booleans())
def test_a_grown_index_finds_what_a_new_one_finds(
    walk: tuple[list[int], list[tuple[int, int]]], slots: int, num_reading: int, limited: bool
) -> None:
    text, views = torch.tensor(walk[0]), walk[1]
    context = torch.tensor([0, 1, 2, 3, 1, 1, 0, 2, 2, 1, 0, 1])
    growing = GrowingRepeats()
    kept: list[tuple[RepeatIndex, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        if limited:  # positions are as few as the longest view needs
            patch.setattr(repeats, "REPEAT_MEMORY_TOKENS", max(end - first for first, end in views))
        for first, end in views:
            kept.append((growing.index(text[first:end], first), first, end))
        for index, first, end in kept:  # also after the index has grown and forgotten
            found = index.find(context, num_reading, slots)
            expected = RepeatIndex(text[first:end]).find(context, num_reading, slots)
            for name in ("index", "valid", "runs"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), (name, first, end)


def test_a_grown_index_has_few_parts_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a step takes what is new, and that memory is bounded by the view's length."""
    taken: list[int] = []
    whole = repeats._sorted_part

    def counted(text: Tensor, skipped: int, position: int) -> list[np.ndarray]:
        taken.append(len(text))
        return whole(text, skipped, position)

    monkeypatch.setattr(repeats, "_sorted_part", counted)
    text = torch.from_numpy(np.random.default_rng(0).integers(0, 9, 60_000))
    growing, view = GrowingRepeats(), 4096
    for end in range(64, len(text), 64):
        first = max(0, end - view)
        growing.index(text[first:end], first)
        assert len(growing._parts) <= 4
        assert growing.num_bytes <= 2 * (view + 64) * 8 * len(LENGTHS)
    assert max(taken) == 64 + LENGTHS[-1] - 1
