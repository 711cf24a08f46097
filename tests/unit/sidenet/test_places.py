# SPDX-License-Identifier: Apache-2.0
"""Places of retrieved tokens against loops over the real tokens of a view."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.memory.view import MemoryView
from longmem.retrieval.positions import num_searchable, places_of

RandomView = Callable[..., MemoryView]


@st.composite
def chunk_lengths(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw a chunk size and the length of every chunk: short ones anywhere, as where blocks ended inside a chunk."""
    chunk = draw(st.integers(1, 5))
    return chunk, draw(st.lists(st.integers(1, chunk), min_size=1, max_size=8))


def real_tokens(view: MemoryView) -> list[tuple[int, int]]:
    """Return chunk and offset of every token, oldest first: the place of a token is its index in this list."""
    return [(chunk, offset) for chunk, length in enumerate(view.lengths.tolist()) for offset in range(length)]


def naive_places(ids: Tensor, view: MemoryView, continued: bool) -> tuple[list[int], list[bool]]:
    """Return index and validity in slot order, flat."""
    place_of = {token: place for place, token in enumerate(real_tokens(view))}
    index, valid = [], []
    for chunk in ids.flatten().tolist():
        for offset in range(view.chunk_size):
            place = place_of.get((chunk, offset))
            there = place is not None and not (continued and place == len(place_of) - 1)
            index.append(place if there and place is not None else 0)
            valid.append(there)
    return index, valid


@given(lengths=chunk_lengths(), continued=st.booleans(), slots=st.integers(1, 6), seed=st.integers(0, 1000))
def test_places_are_those_of_the_loop(
    random_view: RandomView, lengths: tuple[int, list[int]], continued: bool, slots: int, seed: int
) -> None:
    view = random_view(2, 3, chunk=lengths[0], lengths=lengths[1])
    searchable = num_searchable(view, continued)
    ids = torch.randint(-1, max(searchable, 0), (3, 2, slots), generator=torch.Generator().manual_seed(seed))
    found = places_of(ids, view, continued)
    index, valid = naive_places(ids, view, continued)
    assert found.index.shape == found.valid.shape == (3, 2, slots * lengths[0])
    assert found.index.flatten().tolist() == index
    assert found.valid.flatten().tolist() == valid


@given(lengths=chunk_lengths(), continued=st.booleans())
def test_a_chunk_is_searched_when_one_of_its_tokens_can_be_read(
    random_view: RandomView, lengths: tuple[int, list[int]], continued: bool
) -> None:
    view = random_view(2, 3, chunk=lengths[0], lengths=lengths[1])
    readable = real_tokens(view)[: -1 if continued else None]
    assert sorted({chunk for chunk, _ in readable}) == list(range(num_searchable(view, continued)))


@given(lengths=chunk_lengths())
def test_slots_in_order_spell_the_text(random_view: RandomView, lengths: tuple[int, list[int]]) -> None:
    view = random_view(2, 3, chunk=lengths[0], lengths=lengths[1])
    slots = view.slots_in_order
    assert slots.tolist() == [chunk * view.chunk_size + offset for chunk, offset in real_tokens(view)]
    text = [token for row, length in zip(view.tokens, lengths[1], strict=True) for token in row[:length].tolist()]
    assert view.tokens.flatten()[slots].tolist() == text


def test_what_follows_a_short_chunk_is_the_next_chunk(random_view: RandomView) -> None:
    view = random_view(1, 2, chunk=3, lengths=[3, 1, 2])
    places = places_of(torch.tensor([[[1]]]), view, continued=True)
    assert (places.index.tolist(), places.valid.tolist()) == ([[[3, 0, 0]]], [[[True, False, False]]])
    assert view.slots_in_order[3 + 1] == 2 * 3, "the first slot of the chunk after it"


@pytest.mark.parametrize(("lengths", "readable"), [([2, 2], [2]), ([2, 1], []), ([1], [])], ids=str)
def test_the_newest_token_has_no_continuation(random_view: RandomView, lengths: list[int], readable: list[int]) -> None:
    view = random_view(1, 2, chunk=2, lengths=lengths)
    newest = torch.tensor([[[len(lengths) - 1]]])
    places = places_of(newest, view, continued=True)
    assert places.index[places.valid].tolist() == readable
    assert places_of(newest, view, continued=False).valid.sum() == lengths[-1]


@pytest.mark.parametrize("continued", [True, False])
def test_an_empty_memory_has_nothing_to_search(random_view: RandomView, continued: bool) -> None:
    view = random_view(1, 2, chunk=2, lengths=[2])
    empty = replace(
        view,
        chunk_keys=view.chunk_keys[:, :0],
        keys=view.keys[:, :0],
        values=view.values[:, :0],
        tokens=view.tokens[:0],
        starts=view.starts[:0],
        lengths=view.lengths[:0],
    )
    assert num_searchable(empty, continued) == 0
    assert empty.slots_in_order.tolist() == []
