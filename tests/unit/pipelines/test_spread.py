# SPDX-License-Identifier: Apache-2.0
"""Median over documents, and the document that decides a pooled figure, against sums by hand."""

import math
from dataclasses import replace

import pytest

from pipelines.perplexity.records import SegmentRecord
from pipelines.perplexity.spread import change_spread, perplexity_spread, spread_of, spread_remarks

NAMES = ["a", "b", "c", "strange"]


def test_a_document_that_decides_the_pooled_perplexity_is_named() -> None:
    nats, tokens = [40.0, 42.0, 41.0, 90.0], [10, 10, 10, 10]
    spread = perplexity_spread(NAMES, nats, tokens)
    assert spread.median == pytest.approx(math.exp((4.1 + 4.2) / 2))
    assert spread.dominant is not None
    assert spread.dominant.document == "strange"
    assert spread.dominant.without == pytest.approx(math.exp(123 / 30))


def test_equal_documents_have_no_dominant_one() -> None:
    assert perplexity_spread(NAMES, [40.0, 42.0, 41.0, 43.0], [10, 10, 10, 10]).dominant is None
    assert change_spread(NAMES, [-1.0, -1.1, -0.9, -1.0], [10, 10, 10, 10]).dominant is None


def test_a_document_that_decides_the_change_is_named() -> None:
    spread = change_spread(NAMES, [-0.1, 0.1, 0.0, -9.0], [10, 10, 10, 10])
    assert spread.dominant is not None
    assert (spread.dominant.document, spread.dominant.without) == ("strange", pytest.approx(0.0))
    assert spread.median == pytest.approx(math.expm1(-0.005))


def test_two_documents_are_too_few_and_an_empty_one_does_not_count() -> None:
    spread = perplexity_spread(["a", "b", "empty"], [10.0, 90.0, 0.0], [10, 10, 0])
    assert spread.dominant is None
    assert spread.median == pytest.approx(math.exp(5))
    assert perplexity_spread(["empty"], [0.0], [0]).median is None


def test_perplexities_beyond_a_float_do_not_overflow() -> None:
    assert math.isfinite(perplexity_spread(NAMES, [1e6] * 4, [10] * 4).median or math.inf)


def segment(document: str, index: int, longmem: float, backbone: float) -> SegmentRecord:
    return SegmentRecord(
        document=document,
        segment=index,
        start_token=10 * index,
        num_tokens=10,
        nll_longmem=longmem,
        nll_backbone=backbone,
        memory_tokens=0,
        gate_mean=0.0,
        copy_mean=0.0,
        distance_mean=0.0,
        empty_slots=0,
        distance_histogram=[],
        chunks_digest="",
    )


def test_without_a_baseline_only_memory_has_a_spread() -> None:
    nats = {"a": 20.0, "b": 20.5, "c": 20.0, "d": 60.0}
    segments = [replace(segment(name, 0, each, 0.0), nll_backbone=None) for name, each in nats.items()]
    spread = spread_of(segments)
    absent = {"median": None, "dominant": None}
    assert (spread["backbone"], spread["change"]) == (absent, absent)
    summary = {
        "counts": {"documents": 4},
        "settings": {"memory_tokens": 1024},
        "perplexity": {"token": {"longmem": {"value": math.exp(120.5 / 40)}}},
        "spread": spread,
    }
    assert spread_remarks(summary) == [
        "Median over 4 documents, each counted once: perplexity 7.576 (with memory).",
        "One document decides the perplexity (with memory): without d it is 7.513, not 20.34.",
    ]
    with pytest.raises(AssertionError, match="scored 1 of 5 segments"):
        spread_of([*segments, segment("e", 0, 1.0, 1.0)])


def test_a_summary_says_which_document_decides_it() -> None:
    segments = [segment(name, index, 20.0, 22.0) for name in "abcd" for index in range(2)]
    segments += [segment("greek", index, 60.0, 61.0) for index in range(3)]
    pooled = {
        side: {"value": math.exp(sum(getattr(each, f"nll_{side}") for each in segments) / 110)}
        for side in ("longmem", "backbone")
    }
    summary = {
        "counts": {"documents": 5},
        "settings": {"memory_tokens": 1024},
        "perplexity": {"token": pooled},
        "change": {"value": pooled["longmem"]["value"] / pooled["backbone"]["value"] - 1},
        "spread": spread_of(segments),
    }
    median, *decided = spread_remarks(summary)
    assert median == (
        "Median over 5 documents, each counted once: perplexity 7.389 (with memory) and 9.025 (without memory), "
        "change −18.1%."
    )
    assert decided == [
        "One document decides the perplexity (with memory): without greek it is 7.389, not 22.00.",
        "One document decides the perplexity (without memory): without greek it is 9.025, not 26.14.",
    ]
    off = spread_remarks({**summary, "settings": {"memory_tokens": 0}})[0]
    assert "7.389 (LongMem, memory off) and 9.025 (backbone alone)" in off
    assert spread_remarks({**summary, "counts": {"documents": 1}}) == []
    assert spread_remarks({"counts": {"documents": 5}}) == [], "the summary of an earlier version"
