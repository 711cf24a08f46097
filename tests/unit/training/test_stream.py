# SPDX-License-Identifier: Apache-2.0
"""Rows share out the documents, read each whole and in order, and can resume at any position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.errors import DocumentError
from longmem.training.row_stream import RowStream, Sequences

SEGMENT = 4


def documents(lengths: list[int]) -> Sequences:
    """Return documents; document d is d·1000, d·1000 + 1, …"""
    return [lambda d=d, n=n: np.arange(d * 1000, d * 1000 + n, dtype=np.int32) for d, n in enumerate(lengths)]


def full_segments(length: int) -> int:
    return (length - 1) // SEGMENT


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), rows=st.integers(1, 3), seed=st.integers(0, 5))
def test_one_epoch_reads_every_full_segment_once(lengths: list[int], rows: int, seed: int) -> None:
    # whole rounds of the rows over the documents, so that every row reads every document
    expected = sorted((d * 1000 + SEGMENT * s) for d, n in enumerate(lengths) for s in range(full_segments(n)))
    if not expected:
        return
    streams = [RowStream(documents(lengths), row, rows, SEGMENT, seed) for row in range(rows)]
    found: list[int] = []
    for stream in streams:
        while True:
            before = stream.position
            segment = stream.next()
            if (stream.position.taken - 1) * rows + stream._row >= len(lengths):
                break
            assert segment.index == (before.segment if stream.position.taken == before.taken else 0)
            assert segment.targets.tolist() == [token + 1 for token in segment.tokens]
            found.append(int(segment.tokens[0]))
    assert sorted(found) == expected


def test_a_document_begins_with_segment_zero_and_runs_in_order() -> None:
    stream = RowStream(documents([13, 9]), 0, 1, SEGMENT, seed=0)
    indices = [stream.next().index for _ in range(10)]
    assert indices in (
        [0, 1, 2, 0, 1] * 2,
        [0, 1, 0, 1, 2] * 2,
        [0, 1, 2, 0, 1, 0, 1, 0, 1, 2],
        [0, 1, 0, 1, 2, 0, 1, 2, 0, 1],
    )


def test_epochs_have_orders_of_their_own() -> None:
    stream = RowStream(documents([5] * 20), 0, 1, SEGMENT, seed=0)
    first, second = ([int(stream.next().tokens[0]) for _ in range(20)] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second


@given(steps=st.integers(0, 25))
def test_goes_on_from_any_place(steps: int) -> None:
    stream = RowStream(documents([13, 9, 22, 5]), 1, 2, SEGMENT, seed=3)
    read = [stream.next() for _ in range(steps)]
    again = RowStream(documents([13, 9, 22, 5]), 1, 2, SEGMENT, seed=3)
    past = again.restore(stream.state())
    inside = [segment for segment in read if read and segment.key == read[-1].key]
    assert [segment.tokens.tolist() for segment in past] == [segment.tokens.tolist() for segment in inside]
    assert [again.next().tokens.tolist() for _ in range(9)] == [stream.next().tokens.tolist() for _ in range(9)]


@pytest.mark.parametrize("seed", range(20))
def test_one_long_document_among_many_short_ones_is_found_by_every_row(seed: int) -> None:
    lengths = [2] * 40 + [9]
    for row in range(8):
        assert RowStream(documents(lengths), row, 8, SEGMENT, seed).next().tokens[0] == 40_000


def test_documents_without_a_full_segment_are_an_error() -> None:
    with pytest.raises(DocumentError, match="no training document has 5 tokens"):
        RowStream(documents([4, 2]), 0, 1, SEGMENT, seed=0).next()
