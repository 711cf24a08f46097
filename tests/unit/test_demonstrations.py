# SPDX-License-Identifier: Apache-2.0
"""Demonstrations are packed whole, in order, and named by their content."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.errors import ConfigError, DocumentError
from longmem.text.demonstrations import check_fits, digest, pack, positions_of, segments_of
from longmem.types import DocumentKey

KEY = DocumentKey("icl", "x")
SEGMENT = 12
LENGTHS = st.lists(st.integers(1, SEGMENT - 1), min_size=1, max_size=30)


def examples(lengths: list[int]) -> list[np.ndarray]:
    """Return examples that are each filled with their own number."""
    return [np.full(length, number + 1, dtype=np.int32) for number, length in enumerate(lengths)]


@given(LENGTHS, st.sampled_from([None, 0]))
def test_every_example_is_whole_in_one_segment_and_in_order(lengths: list[int], start: int | None) -> None:
    packed = pack(examples(lengths), SEGMENT, start)
    assert all(0 < len(part) <= SEGMENT for part in packed)
    begins = [] if start is None else [start]
    np.testing.assert_array_equal(np.concatenate(packed), np.concatenate([np.array(begins), *examples(lengths)]))
    homes = [{index for index, part in enumerate(packed) if number + 1 in part} for number in range(len(lengths))]
    assert all(len(home) == 1 for home in homes)


@given(LENGTHS)
def test_a_segment_ends_only_where_the_next_example_does_not_fit(lengths: list[int]) -> None:
    packed = pack(examples(lengths), SEGMENT, None)
    for part, following in pairwise(packed):
        assert len(part) + int((following == following[0]).sum()) > SEGMENT


@given(LENGTHS, st.integers(1, SEGMENT), st.sampled_from([None, 0]))
def test_packs_are_short_and_a_longer_example_has_its_own(lengths: list[int], limit: int, start: int | None) -> None:
    own = examples(lengths)
    packed = pack(own, SEGMENT, start, limit)
    begins = [] if start is None else [start]
    np.testing.assert_array_equal(np.concatenate(packed), np.concatenate([np.array(begins), *own]))
    for part in packed:
        assert len(part) <= limit or len(set(part.tolist()) - set(begins)) == 1
    positions = positions_of(own, packed, SEGMENT)
    found = [packed[place // SEGMENT][place % SEGMENT :] for place in positions]
    for example, behind in zip(own, found, strict=True):
        np.testing.assert_array_equal(behind[: len(example)], example)


def test_a_pack_ends_where_the_next_example_does_not_fit_it() -> None:
    assert [len(part) for part in pack(examples([3, 2, 2, 6, 1, 1]), SEGMENT, None, 5)] == [5, 2, 6, 2]
    assert [len(part) for part in pack(examples([3, 2, 2]), SEGMENT, 0, 5)] == [4, 4]


def test_more_examples_begin_with_the_segments_of_fewer() -> None:
    few, many = (pack(examples([5, 4, 7, 3, 9, 2][:count]), SEGMENT, 0) for count in (3, 6))
    for part, same in zip(few[:-1], many, strict=False):
        np.testing.assert_array_equal(part, same)


def test_what_fills_a_segment_to_the_last_token_fits() -> None:
    assert [len(part) for part in pack(examples([SEGMENT, SEGMENT]), SEGMENT, None)] == [SEGMENT, SEGMENT]
    assert [len(part) for part in pack(examples([SEGMENT - 1, SEGMENT]), SEGMENT, 0)] == [SEGMENT, SEGMENT]


@pytest.mark.parametrize(
    ("lengths", "start", "message"),
    [
        ([3, SEGMENT + 1], None, f"demonstration 2 has {SEGMENT + 1} tokens, a segment holds {SEGMENT}"),
        ([SEGMENT], 0, f"demonstration 1 has {SEGMENT} tokens"),
        ([3, 0], None, "demonstration 2 has no tokens"),
    ],
)
def test_examples_that_cannot_be_packed(lengths: list[int], start: int | None, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        pack(examples(lengths), SEGMENT, start)


def test_segments_begin_where_their_index_says_and_predict_nothing() -> None:
    segments = segments_of(KEY, pack(examples([9, 9, 4]), SEGMENT, None), SEGMENT)
    assert [(each.index, each.start_token, each.num_tokens) for each in segments] == [(0, 0, 9), (1, 12, 9), (2, 24, 4)]
    for each in segments:
        assert len(each.targets) == 0
        assert not each.tokens.flags.writeable


def test_the_name_changes_with_tokens_order_and_borders() -> None:
    parts = pack(examples([5, 4, 7]), SEGMENT, None)
    others = [
        pack(examples([5, 4, 7]), SEGMENT + 1, None)[:1] + parts[1:] + parts[:1],
        [np.concatenate(parts)],
        parts[::-1],
        parts[:-1],
        pack(examples([5, 4, 7]), SEGMENT, 0),
    ]
    assert digest(parts) == digest([part.copy() for part in parts])
    assert len({digest(each) for each in [parts, *others]}) == 1 + len(others)


def test_demonstrations_larger_than_memory_say_what_would_hold_them() -> None:
    segments = segments_of(KEY, pack(examples([9, 9, 4]), SEGMENT, None), SEGMENT)
    check_fits(segments, 28, "three demonstrations")
    with pytest.raises(ConfigError, match=r"three .* 28 positions, the memory has 27.*--memory-tokens 28"):
        check_fits(segments, 27, "three demonstrations")
    with pytest.raises(ConfigError, match="use longer packs than --pack-tokens 9, fewer demonstrations"):
        check_fits(segments, 27, "three demonstrations", 9)
