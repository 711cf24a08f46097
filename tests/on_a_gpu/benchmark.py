# SPDX-License-Identifier: Apache-2.0
"""GPU benchmark on a simulated device, where no tensor may stay on the CPU."""

import gc

import pytest

from benchmarks.speed.gpu import gpu
from benchmarks.speed.shapes import Shape
from tests.on_a_gpu.pretended import pretended_gpu

TINY = Shape(
    "tiny Llama",
    "llama",
    {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
)


def test_every_table_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    # the times are not read, and each would be preceded by a pause of a quarter of a second
    monkeypatch.setattr(gc, "collect", lambda: 0)
    with pretended_gpu() as device:
        search, fusion, segment, context = gpu(TINY, device, "float32", 4096, [2048], repeats=2, compiled=False)
    assert search.lines[0].notes["recall"] == "1.0000"
    assert len(fusion.lines) == 2
    assert all(float(line.notes["largest difference"]) < 1e-3 for line in fusion.lines)
    assert segment.title.endswith("to the floor's time")
    assert [line.name for line in context.lines][1] == "full attention"
    for table in (search, fusion, segment, context):
        assert all(line.timing.median_s > 0 for line in table.lines)
