# SPDX-License-Identifier: Apache-2.0
"""Cutting into segments: every token but the first is predicted exactly once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.text.segments import cut_passages, cut_segments
from longmem.types import DocumentKey, Fingerprint, KVBlock

KEY = DocumentKey("default", "moby-dick")


@given(num_tokens=st.integers(1, 300), segment_tokens=st.integers(1, 64))
def test_every_token_but_the_first_is_a_target_once_and_in_order(num_tokens: int, segment_tokens: int) -> None:
    sequence = np.random.default_rng(num_tokens).integers(0, 50_000, num_tokens).astype(np.int32)
    segments = cut_segments(KEY, sequence, segment_tokens)

    positions = [segment.start_token + 1 + i for segment in segments for i in range(len(segment.targets))]
    assert positions == list(range(1, num_tokens))
    np.testing.assert_array_equal(np.concatenate([segment.targets for segment in segments]), sequence[1:])
    np.testing.assert_array_equal(np.concatenate([segment.tokens for segment in segments]), sequence)

    assert [segment.index for segment in segments] == list(range(-(-num_tokens // segment_tokens)))
    assert [segment.start_token for segment in segments] == [s.index * segment_tokens for s in segments]
    assert all(segment.num_tokens == segment_tokens for segment in segments[:-1])
    assert all(len(segment.targets) == segment.num_tokens for segment in segments[:-1])
    assert 1 <= segments[-1].num_tokens <= segment_tokens
    assert len(segments[-1].targets) == segments[-1].num_tokens - 1
    assert segments[-1].end_token == num_tokens
    assert all(segment.key == KEY for segment in segments)


@given(
    text=st.text(alphabet="ab é中😀\n", min_size=1, max_size=60),
    segment_tokens=st.integers(1, 16),
    gap=st.integers(0, 3),
    start=st.booleans(),
)
def test_passages_join_to_the_text_and_hold_their_tokens(text: str, segment_tokens: int, gap: int, start: bool) -> None:
    """Spans as tokenizers give them: bytes of one character share its span, and some characters belong to none."""
    spans = [(0, 0)] if start else []
    for place in range(0, len(text), 1 + gap):
        spans += [(place, place + 1)] * len(text[place].encode())
    sequence = np.zeros(len(spans), np.int32)
    segments = cut_segments(KEY, sequence, segment_tokens)
    passages = cut_passages(text, np.array(spans, np.int32), segments)
    assert "".join(passage.text for passage in passages) == text
    begin = 0
    for segment, passage in zip(segments, passages, strict=True):
        assert passage.start == begin
        begin += len(passage.text)
        first = segment.start_token + 1
        expected = spans[first : first + len(segment.targets)]
        found = zip(passage.starts.tolist(), passage.lengths.tolist(), strict=True)
        assert [(place, place + length) for place, length in found] == expected
        # a character is in the passage where its last byte, or its only token, is first predicted
        assert all(end <= begin for _, end in expected)


def test_segments_ask_for_readings_only_where_they_are_kept() -> None:
    sequence = np.arange(9, dtype=np.int32)
    assert not any(segment.keep_readings for segment in cut_segments(KEY, sequence, 4))
    assert all(segment.keep_readings for segment in cut_segments(KEY, sequence, 4, keep_readings=True))


def test_a_border_is_predicted_by_the_segment_before_it() -> None:
    first, second = cut_segments(KEY, np.arange(10, 18, dtype=np.int32), 4)
    assert (first.tokens.tolist(), first.targets.tolist()) == ([10, 11, 12, 13], [11, 12, 13, 14])
    assert (second.tokens.tolist(), second.targets.tolist()) == ([14, 15, 16, 17], [15, 16, 17])


def test_a_lone_last_token_makes_a_segment_without_targets() -> None:
    """Check a lone last token: it has no targets but is written to the memory."""
    *_, last = cut_segments(KEY, np.arange(9, dtype=np.int32), 4)
    assert (last.index, last.start_token, last.tokens.tolist(), last.targets.tolist()) == (2, 8, [8], [])


def test_segments_are_copies_that_cannot_be_changed() -> None:
    sequence = np.arange(8, dtype=np.int32)
    [segment] = cut_segments(KEY, sequence, 8)
    sequence[:] = -1
    assert segment.tokens.tolist() == list(range(8))
    for part in (segment.tokens, segment.targets):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 7


def test_the_checksum_names_place_and_tokens_of_the_block_to_come() -> None:
    sequence = np.array([1, 2, 3, 4] * 2, dtype=np.int32)
    first, second = cut_segments(KEY, sequence, 4)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.tokens_checksum() != second.tokens_checksum(), "the same tokens at another place"
    [other] = cut_segments(KEY, np.array([1, 2, 3, 5], dtype=np.int32), 4)
    assert first.tokens_checksum() != other.tokens_checksum()

    numbers = np.zeros((4, 1, 2), np.float16)
    identity = Fingerprint("b", "t", 1, 1, 2, 4, 4, "float32", "float16")
    block = KVBlock(KEY, second.index, second.start_token, second.tokens, numbers, numbers, identity)
    assert block.tokens_checksum() == second.tokens_checksum()


def test_an_empty_sequence_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="empty sequence"):
        cut_segments(KEY, np.array([], dtype=np.int32), 4)


def test_segments_that_are_only_stored_have_no_targets() -> None:
    sequence = np.arange(11, dtype=np.int32)
    scored, stored = (cut_segments(KEY, sequence, 4, scored=scored) for scored in (True, False))
    assert [segment.tokens.tolist() for segment in stored] == [segment.tokens.tolist() for segment in scored]
    assert [len(segment.targets) for segment in stored] == [0, 0, 0]
