# SPDX-License-Identifier: Apache-2.0
"""Median over documents, and the document that decides a pooled figure, against sums by hand."""

import math

import pytest

from pipelines.perplexity.spread import change_spread, perplexity_spread

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
