# SPDX-License-Identifier: Apache-2.0
"""Segments that a writer knows: those of a set, in memory that does not grow with a document."""

from pathlib import Path

import lancedb
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from longmem.store.lance.catalogue import CATALOGUE
from longmem.store.lance.known_segments import KnownSegments
from longmem.store.lance.store import LanceMemoryStore
from tests.blocks import make_block

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


def test_a_damaged_row_without_a_number_is_no_known_segment(tmp_path: Path) -> None:
    folder = str(tmp_path / "memory.lance")
    with LanceMemoryStore(folder) as store:
        store.put(make_block(segment=0))
    catalogue = lancedb.connect(folder).open_table(CATALOGUE)
    row = catalogue.search().to_arrow().to_pylist()[0] | {"block": "damaged", "segment": None}
    catalogue.add(pa.Table.from_pylist([row], schema=catalogue.schema))
    with LanceMemoryStore(folder) as store:
        assert not store.put(make_block(segment=1)).duplicate
