# SPDX-License-Identifier: Apache-2.0
"""Compute type of a job: given, that of the job to resume, or chosen once by this machine and remembered."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from longmem.config import Dtype
from longmem.model import precision, remembered_dtype
from longmem.model.longmem import LongMem
from longmem.model.precision import DtypeChoice
from longmem.model.remembered_dtype import RememberedChoice, remembered_choices, settled_dtype
from longmem.model.source import REFERENCE_MODEL, ModelSource
from pipelines.command.compute_type import with_compute_type
from pipelines.doctor.machine import _compute_types


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "longmem" / "compute-types"


@pytest.fixture
def large(small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """Return a model that is measured, because the limit of small ones is a byte."""
    monkeypatch.setattr(remembered_dtype, "SMALL_BYTES", 1)
    return ModelSource(str(small_backbone("llama")), settings={"segment_tokens": 32, "memory_tokens": 64, "top_k": 8})


class Measured:
    """Measurement that counts its calls."""

    def __init__(self, dtype: Dtype = "bfloat16") -> None:
        self.sources: list[ModelSource] = []
        self._dtype = dtype

    def __call__(self, source: ModelSource) -> DtypeChoice:
        self.sources.append(source)
        return DtypeChoice(self._dtype, 1.9, None)


def test_a_choice_is_made_once_and_remembered(large: ModelSource, cache: Path) -> None:
    measured = Measured()
    first = settled_dtype(replace(large, search="native"), choose=measured)
    assert first == RememberedChoice(large.source, "bfloat16", str(DtypeChoice("bfloat16", 1.9, None)))
    assert settled_dtype(large, choose=measured) == first
    assert [source.search for source in measured.sources] == ["auto"]
    assert len(list(cache.iterdir())) == 1
    assert list(remembered_choices()) == [first]


def test_what_may_change_the_choice_is_measured_anew(
    large: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured()
    settled_dtype(large, choose=measured)
    settled_dtype(replace(large, settings={**large.settings, "segment_tokens": 64}), choose=measured)
    folder = tmp_path / "model"
    LongMem.from_backbone(large.source, **large.settings).save_pretrained(folder)
    saved = ModelSource(str(folder))
    settled_dtype(saved, choose=measured)
    assert len(measured.sources) == 3
    settled_dtype(saved, choose=measured)
    assert len(measured.sources) == 3
    (folder / "sidenet.safetensors").touch()
    settled_dtype(saved, choose=measured)
    (tmp_path / "cpuinfo").write_text("model name : another processor\nMHz : 1\n")
    monkeypatch.setattr(remembered_dtype, "CPU_INFO", tmp_path / "cpuinfo")
    settled_dtype(large, choose=measured)
    (tmp_path / "cpuinfo").write_text("model name : another processor\nMHz : 2\n")
    settled_dtype(large, choose=measured)
    assert len(measured.sources) == 5


def test_a_damaged_file_is_measured_again_and_said(
    large: ModelSource, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Measured()
    settled_dtype(large, choose=measured)
    (file,) = cache.iterdir()
    file.write_text("{")
    found = settled_dtype(large, choose=measured)
    assert len(measured.sources) == 2
    assert "cannot be read" in caplog.text
    assert json.loads(file.read_text())["dtype"] == "bfloat16"
    assert found == next(remembered_choices())


def test_small_models_compute_in_float32_unmeasured(small_backbone: Callable[[str], Path], cache: Path) -> None:
    for source in (str(REFERENCE_MODEL), str(small_backbone("gpt2"))):
        assert settled_dtype(ModelSource(source), choose=Measured()) is None
    assert not cache.exists()


def settle(source: ModelSource, asked: str, **more: object) -> tuple[str, str]:
    """Return the type that a command computes in, and what it prints."""
    console = Console(width=300)
    settings = {"on_gpu": False, "resumed": None, **more}
    with console.capture() as said:
        found = with_compute_type(source, asked, console, **settings)  # type: ignore[arg-type]
    return found.dtype, said.get()


def test_commands_say_what_was_chosen(large: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 2.0)
    monkeypatch.setattr(precision, "MAX_CHANGE", 1.0)
    monkeypatch.setattr(precision, "MIN_GAIN", 0.0)
    monkeypatch.setattr(precision, "SAMPLE_TOKENS", (128, 256))
    dtype, said = settle(large, "auto")
    assert dtype == "bfloat16"
    begin, *progress, chosen = said.splitlines()
    assert begin.startswith("measuring float32 and bfloat16 with this model, once on this machine")
    assert progress[0].endswith(" · tokens 0 of 256 (0%)"), "shown before the models are loaded"
    assert " · tokens 128 of 256 (50%) · " in progress[-1], "with an estimate"
    assert progress[-1].endswith(" left")
    assert chosen.startswith("computing in bfloat16: matrix products in bfloat16 are 2.00 times as fast here, ")
    assert ", reading the first 128 tokens of python-language-reference " in chosen
    assert settle(large, "auto") == ("bfloat16", f"{chosen}\n"), "remembered"
    assert settle(large, "float32") == ("float32", "")
    assert settle(large, "bfloat16") == ("bfloat16", "")
    finding = _compute_types()
    assert finding.value.endswith(f"; {large.source} bfloat16")


def test_a_small_model_says_nothing(small_backbone: Callable[[str], Path]) -> None:
    assert settle(ModelSource(str(small_backbone("llama"))), "auto") == ("float32", "")
    assert _compute_types().value == "float32 for models below 64 MiB; no larger one was measured here"


def test_a_resumed_job_keeps_its_type(large: ModelSource, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        (tmp_path / "job.json").write_text(json.dumps({"identity": {"model": {"compute_dtype": dtype}}}))
        assert settle(large, "auto", resumed=tmp_path) == (dtype, "")
        assert settle(large, "float32", resumed=tmp_path) == ("float32", ""), "what is given is compared by the job"


def test_the_cpu_here_does_not_speak_for_gpus_elsewhere(large: ModelSource) -> None:
    dtype, said = settle(large, "auto", on_gpu=True)
    assert dtype == "float32"
    assert said.startswith("computing in float32: this machine's CPU does not speak for GPUs")
