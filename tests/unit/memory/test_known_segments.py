# SPDX-License-Identifier: Apache-2.0
"""Segments that a writer knows: those of a set, in memory that does not grow with a document."""

from hypothesis import given
from hypothesis import strategies as st

from longmem.store.lance.known_segments import KnownSegments

NUMBERS = st.integers(0, 12)


@given(st.lists(NUMBERS), st.lists(NUMBERS))
def test_it_holds_what_a_set_holds(stored: list[int], added: list[int]) -> None:
    known = KnownSegments(stored)
    for segment in added:
        known.add(segment)
    assert [segment in known for segment in range(-1, 14)] == [
        segment in {*stored, *added} for segment in range(-1, 14)
    ]


def test_segments_in_order_are_not_kept_one_by_one() -> None:
    known = KnownSegments([7, 6, 9])
    for segment in (8, 5, *range(10, 100_000)):
        known.add(segment)
    assert known._others == set()
    assert known._run == range(5, 100_000)
