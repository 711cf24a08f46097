# SPDX-License-Identifier: Apache-2.0
"""Benchmark of reading at every layer: each case does its part of one segment's work."""

from pathlib import Path

from benchmarks.speed import every_layer as benchmark
from longmem import LongMem
from longmem.backbone.small import save_small_backbone


def test_every_case_runs_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "llama", "llama", max_position_embeddings=1024)
    sizes = {"segment_tokens": 64, "memory_tokens": 512, "near_tokens": 64, "read_blocks": 2, "block_tokens": 16}
    model = LongMem.from_backbone(tmp_path / "llama", memory_layers="all", top_k=8, **sizes)
    copy_head = model.sidenet.copy_head
    table = benchmark.every_layer(model, "a text that goes on and on, " * 60, 5, 600, repeats=2)
    assert model.sidenet.copy_head is copy_head
    assert "64 tokens behind 96 memory tokens" in table.title
    assert [line.name.split(",")[0] for line in table.lines] == [
        "plain transformers",
        "reading at every layer",
        "reading at every layer",
        "encoding",
        "one window of 600",
    ]
    assert table.settings["encoding_and_reading_of_published"] > 0
