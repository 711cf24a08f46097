# SPDX-License-Identifier: Apache-2.0
"""Benchmark of norms, gated activations and rotary positions in C against torch's."""

import pytest

from benchmarks.speed import elementwise as benchmark
from longmem.backbone.fast.attention import is_available


@pytest.mark.skipif(not is_available(), reason="needs a C compiler and a processor with AVX-512 BF16")
def test_each_is_timed_on_torch_and_in_c() -> None:
    tables = list(benchmark.elementwise(8, 192, 256, repeats=2))
    titles = [table.title.split(" of ")[0].split(",")[0] for table in tables]
    assert titles == ["norm", "gated activation", "rotation", "one layer"]
    for table in tables:
        assert [line.name for line in table.lines] == ["torch", "C"]
