# SPDX-License-Identifier: Apache-2.0
"""Perplexities against sums by hand, and invariants of any segments."""

import math
from dataclasses import asdict, astuple, replace
from json import dumps

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longmem.scoring.metrics import Interval, SegmentNats, compute_perplexities

SEGMENTS = [SegmentNats(20.0, 22.0, 10), SegmentNats(60.0, 60.0, 20), SegmentNats(10.0, 12.0, 10)]

lists_of_segments = st.lists(
    st.builds(SegmentNats, st.floats(0.0, 4000.0), st.floats(0.0, 4000.0), st.integers(1, 1024)),
    min_size=2,
    max_size=20,
)


def test_values_by_hand() -> None:
    result = compute_perplexities(SEGMENTS, num_words=30, num_bytes=150)
    assert result.token.longmem.value == pytest.approx(math.exp(90 / 40))
    assert result.token.backbone.value == pytest.approx(math.exp(94 / 40))
    assert result.word.longmem.value == pytest.approx(math.exp(90 / 30))
    assert result.byte.backbone.value == pytest.approx(math.exp(94 / 150))
    assert result.bits_per_byte.longmem == pytest.approx(90 / 150 / math.log(2))
    assert result.bits_per_byte.backbone == pytest.approx(94 / 150 / math.log(2))
    assert result.change.value == pytest.approx(math.exp((90 - 94) / 40) - 1)


def test_bytes_and_bits_tell_the_same() -> None:
    result = compute_perplexities(SEGMENTS, num_words=30, num_bytes=150)
    assert result.byte.longmem.value is not None
    assert math.log2(result.byte.longmem.value) == pytest.approx(result.bits_per_byte.longmem)


def test_word_interval_is_the_token_interval_in_other_units() -> None:
    result = compute_perplexities(SEGMENTS, num_words=30, num_bytes=150)
    for token, word in zip(asdict(result.token.longmem).values(), asdict(result.word.longmem).values(), strict=True):
        assert word == pytest.approx(token ** (40 / 30))


def test_interval_agrees_with_the_normal_approximation() -> None:
    """Compare with mean ± 1.96 standard errors for many segments of equal length."""
    nats = [100.0 + 10.0 * math.sin(index) for index in range(2000)]
    interval = compute_perplexities([SegmentNats(n, n, 100) for n in nats], 1, 1).token.longmem
    mean = sum(nats) / len(nats)
    error = math.sqrt(sum((n - mean) ** 2 for n in nats)) / len(nats)
    assert interval.low is not None
    assert interval.high is not None
    assert math.log(interval.low) * 100 == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert math.log(interval.high) * 100 == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_change_is_paired() -> None:
    """Check segments of very different difficulty, each with exactly 1 % fewer nats per token: the change has no
    spread."""
    segments = [SegmentNats(nats - 0.5, nats, 50) for nats in (50.0, 200.0, 100.0, 400.0)]
    result = compute_perplexities(segments, 10, 10)
    assert astuple(result.change) == pytest.approx([math.exp(-0.01) - 1] * 3)
    assert result.token.longmem.high is not None
    assert result.token.backbone.low is not None
    assert result.token.longmem.high > result.token.backbone.low


def test_equal_models_do_not_differ() -> None:
    change = compute_perplexities([SegmentNats(n, n, 7) for n in (1.0, 2.0, 3.0)], 1, 1).change
    assert change == Interval(0.0, 0.0, 0.0)


@given(lists_of_segments)
def test_bounds(segments: list[SegmentNats]) -> None:
    """Check low ≤ value ≤ high, and none of them beyond the best and the worst segment."""
    interval = compute_perplexities(segments, 1, 1).token.longmem
    rates = [segment.longmem / segment.num_tokens for segment in segments]
    assume(max(rates) < 700)
    assert interval.value is not None
    assert interval.low is not None
    assert interval.high is not None
    rounding = 1e-9
    low, value, high = (math.log(part) for part in (interval.low, interval.value, interval.high))
    assert min(rates) - rounding <= low <= value + rounding
    assert value - rounding <= high <= max(rates) + rounding


@given(lists_of_segments, st.randoms())
def test_values_do_not_depend_on_order(segments: list[SegmentNats], random: object) -> None:
    shuffled = list(segments)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ours, theirs = compute_perplexities(segments, 40, 300), compute_perplexities(shuffled, 40, 300)
    assert ours.change.value == theirs.change.value
    assert ours.bits_per_byte == theirs.bits_per_byte
    for unit in ("token", "word", "byte"):
        assert getattr(ours, unit).longmem.value == getattr(theirs, unit).longmem.value
        assert getattr(ours, unit).backbone.value == getattr(theirs, unit).backbone.value


def test_sums_do_not_lose_small_segments() -> None:
    segments = [SegmentNats(1e16, 1e16, 1), *[SegmentNats(1.0, 0.0, 1)] * 1000]
    change = compute_perplexities(segments, 1, 1).change
    assert change.value == pytest.approx(math.exp(1000 / 1001) - 1)


def test_repeated_calls_agree_exactly() -> None:
    assert compute_perplexities(SEGMENTS, 30, 150) == compute_perplexities(SEGMENTS, 30, 150)


def test_without_a_baseline_the_figures_of_memory_stay_and_the_others_are_none() -> None:
    alone = compute_perplexities([replace(each, backbone=None) for each in SEGMENTS], 30, 150)
    both = compute_perplexities(SEGMENTS, 30, 150)
    for unit in ("token", "word", "byte"):
        assert getattr(alone, unit).longmem == getattr(both, unit).longmem
        assert getattr(alone, unit).backbone == Interval(None, None, None)
    assert alone.change == Interval(None, None, None)
    assert (alone.bits_per_byte.longmem, alone.bits_per_byte.backbone) == (both.bits_per_byte.longmem, None)


def test_a_baseline_of_some_segments_is_refused() -> None:
    with pytest.raises(AssertionError, match="scored 2 of 3 segments"):
        compute_perplexities([replace(SEGMENTS[0], backbone=None), *SEGMENTS[1:]], 30, 150)


def test_one_segment_has_no_interval() -> None:
    result = compute_perplexities(SEGMENTS[:1], 8, 40)
    assert astuple(result.token.longmem) == (pytest.approx(math.exp(2.0)), None, None)
    assert astuple(result.change) == (pytest.approx(math.exp(-0.2) - 1), None, None)


def test_segment_without_targets_changes_nothing() -> None:
    assert compute_perplexities([*SEGMENTS, SegmentNats(0.0, 0.0, 0)], 8, 40) == compute_perplexities(SEGMENTS, 8, 40)


def test_nothing_to_divide_by() -> None:
    result = compute_perplexities(SEGMENTS, num_words=0, num_bytes=0)
    assert result.word.longmem == result.byte.backbone == Interval(None, None, None)
    assert result.bits_per_byte.longmem is None
    assert result.token.longmem.value is not None


def test_no_tokens() -> None:
    result = compute_perplexities([], 0, 0)
    assert result.token.longmem == result.change == Interval(None, None, None)


def test_overflow_stays_json() -> None:
    segments = [SegmentNats(2000.0, 1.0, 1), SegmentNats(2000.0, 1.0, 1)]
    result = compute_perplexities(segments, 1, 1)
    assert result.token.longmem.value is None
    assert result.change.value is None
    assert result.token.backbone.value == pytest.approx(math.e)
    dumps(asdict(result), allow_nan=False)
