# SPDX-License-Identifier: Apache-2.0
"""Benchmark of attention in C against torch's."""

import pytest

from benchmarks.speed import attention as benchmark
from longmem.backbone.fast.attention import is_available


@pytest.mark.skipif(not is_available(), reason="needs a C compiler and a processor with AVX-512 BF16")
@pytest.mark.parametrize("cached", [0, 48])
def test_both_are_timed(cached: int) -> None:
    table = benchmark.attention(32, cached, 4, 2, 32, repeats=2)
    assert [line.name for line in table.lines] == ["torch", "C"]
    assert all(int(line.notes["GFLOP/s"]) >= 0 for line in table.lines)
