# SPDX-License-Identifier: Apache-2.0
"""Benchmark of approximate search: exact search is the reference, and more probed cells come closer to it."""

from pathlib import Path

import faiss
import pytest

from benchmarks.speed import approximate
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.testing import small_longmem


def test_more_cells_find_more_and_all_of_them_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.retrieval.ivf_index.STRETCHES", (64, 256))
    monkeypatch.setattr(approximate, "STRETCHES", (64, 256))
    monkeypatch.setattr("longmem.retrieval.ivf_index.CELL_CHUNKS", 8)
    small_longmem(tmp_path, chunk_tokens=1, top_k=4).save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), search="ivf", settings={"memory_tokens": 512})
    table = approximate.approximate(source, [], 512, [1, 8, 64], scored_segments=3, repeats=2)
    assert [line.name for line in table.lines] == [
        approximate.EXACT,
        "ivf, 1 cells",
        "ivf, 8 cells",
        "ivf, 64 cells",
        "clustering, for each 32 tokens",
    ]
    recalls = [float(line.notes["recall"]) for line in table.lines[:4]]
    assert recalls[0] == recalls[3] == 1.0
    assert recalls[1] < recalls[2] <= 1.0
    assert table.lines[3].notes["perplexity"] == table.lines[0].notes["perplexity"]
    assert all(line.timing.cpu_median_s > 0 for line in table.lines)


def test_an_index_of_faiss_grows_with_the_views_and_passes_over_what_they_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check an exact engine, which must find everything, and run the approximate kinds."""
    kinds = {"flat": lambda dim, _num_keys: faiss.IndexFlatIP(dim)} | approximate.KINDS
    monkeypatch.setattr(approximate, "KINDS", kinds)
    monkeypatch.setattr("benchmarks.speed.faiss_indexes.SPARE_HITS", 64)
    small_longmem(tmp_path, chunk_tokens=1, top_k=4, retrieval="joint").save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), search="ivf", settings={"memory_tokens": 512})
    table = approximate.approximate(source, [], 512, [64], scored_segments=3, repeats=2, with_faiss=True)
    by_name = {line.name: line for line in table.lines}
    assert by_name["flat"].notes["recall"] == "1.0000"
    assert by_name["flat"].notes["perplexity"] == by_name[approximate.EXACT].notes["perplexity"]
    assert set(approximate.KINDS) < set(by_name)
    assert all(0 < float(by_name[name].notes["recall"]) <= 1 for name in kinds)


def test_an_index_of_faiss_is_one_search_for_all_heads(tmp_path: Path) -> None:
    small_longmem(tmp_path, chunk_tokens=1, top_k=4, retrieval="per_head").save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), search="ivf", settings={"memory_tokens": 512})
    with pytest.raises(ConfigError, match="retrieval=joint and chunk_tokens=1, this model has per_head and 1"):
        approximate.approximate(source, [], 512, [64], scored_segments=3, repeats=2, with_faiss=True)
