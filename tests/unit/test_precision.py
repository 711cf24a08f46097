"""Which type a job computes in, where it may choose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from longmem import precision
from longmem.errors import ConfigError
from longmem.model_source import ModelSource
from longmem.precision import bfloat16_difference, bfloat16_speedup, choose_dtype
from longmem.scoring import score_text
from longmem.types import Document
from pipelines.command_line import JobDtype, SearchEngine
from pipelines.options import model_source


@pytest.fixture
def source(small_backbone: Callable[[str], Path]) -> ModelSource:
    settings = {"segment_tokens": 32, "memory_tokens": 64, "top_k": 8}
    return ModelSource(str(small_backbone("llama")), settings=settings)


def test_speed_is_measured() -> None:
    assert 0 < bfloat16_speedup() < 1000


def test_the_difference_is_that_of_two_models(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same sample, read from the beginning."""
    text = "the memory of a long text"
    monkeypatch.setattr(precision, "language_reference", lambda: Document("sample", text * 20, "here"))
    exact, rounded = (
        score_text(replace(source, dtype=dtype).open(), text * 20).perplexity for dtype in ("float32", "bfloat16")
    )
    assert rounded != exact
    assert bfloat16_difference(source) == rounded / exact - 1


def test_a_machine_that_emulates_bfloat16_does_not_even_load_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 0.12)
    choice = choose_dtype(ModelSource("nowhere"))
    assert choice.dtype == "float32"
    assert str(choice) == (
        "computing in float32: matrix products in bfloat16 are 0.12 times as fast here, at least 1.5 are wanted"
    )


@pytest.mark.parametrize(("difference", "dtype"), [(0.00099, "bfloat16"), (-0.00101, "float32")])
def test_a_fast_machine_asks_for_the_perplexity(
    difference: float, dtype: str, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 3.04)
    monkeypatch.setattr(precision, "bfloat16_difference", lambda _source: difference)
    choice = choose_dtype(source)
    assert choice.dtype == dtype
    assert str(choice) == (
        f"computing in {dtype}: matrix products in bfloat16 are 3.04 times as fast here and change the perplexity of "
        f"4,096 tokens by {difference:+.3%}, at most 0.1% is allowed"
    )


def chosen(source: ModelSource, dtype: JobDtype, console: Console, **gpus: bool) -> ModelSource:
    """What the options of a command make of it."""
    settings = {name: source.settings.get(name) for name in ("segment_tokens", "memory_tokens", "top_k")}
    return model_source(source.source, dtype, SearchEngine.TORCH, console, chunk_tokens=None, **gpus, **settings)


def test_commands_say_what_was_chosen(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 2.0)
    monkeypatch.setattr(precision, "MAX_DIFFERENCE", 1.0)
    monkeypatch.setattr(precision, "SAMPLE_TOKENS", 256)
    console = Console(record=True, width=300)
    with console.capture() as said:
        assert chosen(source, JobDtype.AUTO, console).dtype == "bfloat16"
    assert said.get().startswith("computing in bfloat16: matrix products in bfloat16 are 2.00 times as fast here and")
    with console.capture() as said:
        assert chosen(source, JobDtype.FLOAT32, console).dtype == "float32"
        assert chosen(source, JobDtype.BFLOAT16, console).dtype == "bfloat16"
    assert said.get() == ""


@pytest.mark.parametrize("workers", ["on_gpu", "encoders_on_gpu"])
def test_the_cpu_here_does_not_speak_for_gpus_elsewhere(workers: str, source: ModelSource) -> None:
    with pytest.raises(ConfigError, match="workers are to use GPUs: give --dtype float32 or bfloat16"):
        chosen(source, JobDtype.AUTO, Console(), **{workers: True})
