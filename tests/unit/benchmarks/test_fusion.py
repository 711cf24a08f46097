# SPDX-License-Identifier: Apache-2.0
"""Benchmark of reading: all its cases give equal results on a real memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.speed.fusion import CompiledGather, ListeningGather, WholeGather, fusion
from benchmarks.speed.real_memory import real_memory
from longmem.model.source import ModelSource
from longmem.retrieval.gather import AbstractGather, TorchGather
from longmem.testing import small_longmem


@pytest.mark.parametrize("chunk_tokens", [1, 4])
def test_every_case_reads_the_same(tmp_path: Path, chunk_tokens: int) -> None:
    small_longmem(tmp_path, chunk_tokens=chunk_tokens, top_k=8).save_pretrained(tmp_path / "model")
    memory = real_memory(ModelSource(str(tmp_path / "model"), settings={"memory_tokens": 256}), [])
    engine = memory.model.search
    table = fusion(memory, "small", repeats=2, compiled=False)
    assert memory.model.search is engine
    assert "32 tokens" in table.title
    assert [line.name.split(",")[0] for line in table.lines] == ["in C", "torch", "torch"]
    for line in table.lines:
        # sums of at most some dozen float32 numbers of size one, in another order
        assert float(line.notes["largest difference"]) < 1e-4
        assert line.timing.cpu_median_s > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("gather", [TorchGather, pytest.param(CompiledGather, marks=pytest.mark.slow)])
def test_it_is_asked_for_keys_and_for_values(gather: Callable[[], AbstractGather]) -> None:
    heard = ListeningGather(gather())
    random = torch.Generator().manual_seed(0)
    rows = torch.randn((2, 9, 4), generator=random)
    ids = torch.randint(9, (3, 4, 5), generator=random)
    queries, weights = torch.randn((3, 4, 4), generator=random), torch.rand((3, 4, 5), generator=random)
    found = [heard.products(queries, ids, rows), heard.mixtures(weights, ids, rows)]
    for one, other in zip(found, heard.again(WholeGather()), strict=True):
        torch.testing.assert_close(one, other)
