# SPDX-License-Identifier: Apache-2.0
"""Choice of a job's compute dtype."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longmem.model import precision
from longmem.model.precision import DtypeComparison, bfloat16_speedup, choose_dtype, compare_reading
from longmem.model.source import ModelSource
from longmem.scoring.text import score_text
from longmem.types import Document
from longmem.wording import signed


@pytest.fixture
def source(small_backbone: Callable[[str], Path]) -> ModelSource:
    settings = {"segment_tokens": 32, "memory_tokens": 64, "top_k": 8}
    return ModelSource(str(small_backbone("llama")), settings=settings)


def test_speed_is_measured() -> None:
    assert 0 < bfloat16_speedup() < 1000


def test_the_change_is_that_of_two_models(source: ModelSource) -> None:
    """Compare one sample, read from the beginning."""
    text = "the memory of a long text" * 20
    exact, rounded = (score_text(replace(source, dtype=dtype).open(), text) for dtype in ("float32", "bfloat16"))
    change = compare_reading(source, Document("sample", text, "here"))
    assert rounded.perplexity != exact.perplexity
    assert change.relative == pytest.approx(rounded.perplexity / exact.perplexity - 1, abs=1e-9)
    assert (change.document, change.num_tokens) == ("sample", len(exact.logprobs))
    assert 0 < change.margin < 1


def test_a_change_that_is_not_clear_is_looked_at_longer(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check limits far from the change, equal to its first value, and below it."""
    sample = Document("sample", "the memory of a long text" * 100, "here")
    monkeypatch.setattr(precision, "SAMPLE_TOKENS", (64, 64))
    first = compare_reading(source, sample)
    assert first.num_tokens == 64
    monkeypatch.setattr(precision, "SAMPLE_TOKENS", (64, 512))
    for limit, least, most in ((1.0, 64, 64), (abs(first.relative), 128, 512), (1e-12, 64, 512)):
        monkeypatch.setattr(precision, "MAX_CHANGE", limit)
        change = compare_reading(source, sample)
        assert least <= change.num_tokens <= most
        assert change.is_clear or change.num_tokens == 512


@pytest.mark.parametrize(
    ("relative", "margin", "clear"),
    [(0.0005, 0.0004, True), (0.0005, 0.0006, False), (-0.0015, 0.0004, True), (-0.0015, 0.0006, False)],
)
def test_a_change_is_clear_when_no_limit_is_within_its_interval(relative: float, margin: float, clear: bool) -> None:
    assert DtypeComparison("a", 4096, relative, margin, 1.0).is_clear is clear


def test_a_text_of_one_segment_says_nothing_of_its_spread(source: ModelSource) -> None:
    change = compare_reading(source, Document("sample", "one", "here"))
    assert change.margin == float("inf")
    assert not change.is_clear


def test_a_machine_that_emulates_bfloat16_does_not_even_load_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 0.12)
    choice = choose_dtype(ModelSource("nowhere"))
    assert choice.dtype == "float32"
    assert str(choice) == (
        "computing in float32: matrix products in bfloat16 are 0.12 times as fast here, at least 1.5 are wanted"
    )


@pytest.mark.parametrize(
    ("relative", "gain", "dtype"),
    [(0.00099, 1.1, "bfloat16"), (-0.00101, 1.3, "float32"), (0.0001, 1.09, "float32")],
)
def test_a_fast_machine_asks_for_perplexity_and_gain(
    relative: float, gain: float, dtype: str, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = DtypeComparison("moby-dick", 4096, relative, 0.0002, gain)
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 3.04)
    monkeypatch.setattr(precision, "compare_reading", lambda *_: change)
    choice = choose_dtype(source)
    assert choice.dtype == dtype
    assert str(choice) == (
        f"computing in {dtype}: matrix products in bfloat16 are 3.04 times as fast here, reading the first 4,096 "
        f"tokens of moby-dick {gain:.2f} times (at least 1.1 are wanted); their perplexity changes "
        f"by {signed(relative, '+.3%')} ± 0.020% (at most 0.1% is allowed)"
    )
