# SPDX-License-Identifier: Apache-2.0
"""Ablations: one row per size and form, each equal to the validation result for that setting."""

from collections.abc import Callable
from math import exp
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations
from longmem.model.longmem import LongMem
from longmem.training.validation import validate


@pytest.fixture
def folder(tmp_path: Path, small_model: Callable[..., LongMem]) -> Path:
    form = {"query": "key_space", "keys": "unit", "values": "next", "retrieval": "joint", "copy_head": True}
    small_model("llama", **form, chunk_tokens=1, memory_tokens=64).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def documents() -> list[np.ndarray]:
    return [np.random.default_rng(0).integers(0, 20, 129).astype(np.int32)]


def test_sizes_are_read_from_one_trained_model(
    folder: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ablations, "SIZES", {"chunk_tokens": [1, 4], "top_k": [4, 16], "kv_dtype": ["float16", "int8"]})
    lines = list(ablations.sizes(folder, documents, "float32"))
    assert [(line.group, line.name) for line in lines] == [
        ("chunk_tokens", "1"), ("chunk_tokens", "4"), ("top_k", "4"), ("top_k", "16"),
        ("kv_dtype", "float16"), ("kv_dtype", "int8"),
    ]  # fmt: skip
    (float16, int8) = ablations.sizes(folder, documents, "float32", "kv_dtype")
    assert [float16.perplexity, int8.perplexity] == [line.perplexity for line in lines[4:]]
    four = LongMem.from_pretrained(folder, chunk_tokens=4)
    assert lines[1].perplexity == pytest.approx(exp(validate(four, documents).with_memory), rel=1e-6)
    assert len({line.perplexity for line in lines[:2]}) == 2
    ablations.draw(lines, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert ablations.markdown(lines).count("\n") == 2 + len(lines)


def test_every_form_starts_untrained_and_the_paper_s_equals_the_backbone(
    folder: Path, documents: list[np.ndarray]
) -> None:
    lines = {line.name: line for line in ablations.forms(folder, documents, "float32")}
    assert set(lines) == set(ablations.FORMS)
    for name in ("paper's form", "paper's form, chunk 1", "copy_head=false"):
        assert lines[name].change == pytest.approx(0, abs=1e-5)
    # twenty random letters contain many repeats
    assert lines["default"].change < -0.01
    assert all(np.isfinite(line.perplexity) for line in lines.values())
