# SPDX-License-Identifier: Apache-2.0
"""The rule of what may be read, against its definition: positions counted one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.config import LongMemConfig
from longmem.memory.sliding_window import SlidingWindow

counts = st.integers(0, 200)
sizes = st.integers(1, 40)


@given(memory=counts, segment=sizes, end=counts, oldest=counts)
def test_before_is_every_position_that_is_near_enough_and_held(
    memory: int, segment: int, end: int, oldest: int
) -> None:
    expected = [place for place in range(500) if oldest <= place < end and end - place <= memory]
    assert list(SlidingWindow(memory, segment).before(end, oldest)) == expected


@given(memory=counts, segment=sizes, index=st.integers(0, 12))
def test_a_segment_reads_the_segments_that_hold_its_positions(memory: int, segment: int, index: int) -> None:
    window = SlidingWindow(memory, segment)
    positions = window.before_segment(index)
    assert positions == window.before(index * segment)
    assert list(window.segments_before(index)) == sorted({place // segment for place in positions})


@given(segment=sizes, start=counts, length=st.integers(1, 200))
def test_segments_hold_the_positions_and_no_others(segment: int, start: int, length: int) -> None:
    positions = range(start, start + length)
    segments = SlidingWindow(0, segment).segments(positions)
    assert list(segments) == sorted({place // segment for place in positions})


@pytest.mark.parametrize("index", [0, 1, 5])
def test_without_memory_nothing_is_read(index: int) -> None:
    window = SlidingWindow.of(LongMemConfig(memory_tokens=0))
    assert not window.before_segment(index)
    assert not window.segments_before(index)
    assert window.segments_before(index).start == index
