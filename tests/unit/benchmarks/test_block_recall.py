# SPDX-License-Identifier: Apache-2.0
"""Benchmark of choices of blocks: weights against plain transformers, and rows on a small model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import block_recall
from longmem import LongMem
from longmem.backbone.small import save_small_backbone
from longmem.errors import ConfigError, DocumentError

SIZES = {"segment_tokens": 16, "memory_tokens": 256, "near_tokens": 16, "read_blocks": 3, "block_tokens": 8, "top_k": 8}


@pytest.fixture
def model(tmp_path: Path) -> LongMem:
    save_small_backbone(tmp_path / "llama", "llama")
    return LongMem.from_backbone(tmp_path / "llama", memory_layers="all", **SIZES)


def sequence(num_tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 40, size=num_tokens).astype(np.int32)


def test_weights_of_blocks_are_the_attention_of_plain_transformers(model: LongMem, tmp_path: Path) -> None:
    older = block_recall.older_tokens(model)
    assert older == 88  # 128 positions without start, 16 near tokens and 16 of the segment: 95, of which 11 blocks
    text = sequence(older + 32)
    before = model.backbone.model.config._attn_implementation
    found = block_recall.block_weights(model, text, older, 8)
    assert model.backbone.model.config._attn_implementation == before
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", attn_implementation="eager").eval()
    tokens = torch.tensor([[model.tokenizer.start_token, *text.tolist()]])
    with torch.no_grad():
        attentions = plain(tokens, output_attentions=True).attentions
    expected = sum(layer[0, :, -16:, 1 : 1 + older].double().sum(dim=(0, 1)) for layer in attentions)
    torch.testing.assert_close(found, expected.view(11, 8).sum(dim=1), rtol=0, atol=1e-3)


def test_every_choice_has_a_share_of_the_heaviest_blocks(model: LongMem) -> None:
    documents = {"a": sequence(200), "b": sequence(170, seed=1)}
    *_, rows = block_recall.run(model, documents, [0, 2])
    names = [row.name for row in rows]
    assert names == [
        "keys of layer 3",
        "keys of layer 0",
        "keys of layer 2",
        "keys of these layers",
        "overlap",
        "both",
        "random",
        block_recall.BEST,
    ]
    best = rows[-1]
    assert best.recall == 1
    assert all(0 < row.weight <= best.weight < 1 for row in rows)
    assert all(0 <= row.recall < 1 for row in rows[:-1])
    table = block_recall.markdown(rows)
    assert "| most weight | " in table
    assert "| 100.0% |" in table


def test_what_leaves_no_choice_is_refused(model: LongMem, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layers 0 to 3, got 9"):
        next(block_recall.run(model, {"a": sequence(200)}, [9]))
    one = LongMem.from_backbone(tmp_path / "llama", segment_tokens=16)
    with pytest.raises(ConfigError, match="every layer"):
        next(block_recall.run(one, {"a": sequence(200)}, []))
    few = LongMem.from_backbone(tmp_path / "llama", memory_layers="all", **{**SIZES, "near_tokens": 72})
    with pytest.raises(ConfigError, match="so that there is a choice"):
        next(block_recall.run(few, {"a": sequence(200)}, []))
    without = LongMem.from_backbone(tmp_path / "llama", memory_layers="all", sink=False, **SIZES)
    with pytest.raises(ConfigError, match="expected sink=True"):
        next(block_recall.run(without, {"a": sequence(200)}, []))


def test_a_document_without_a_full_history_is_refused(model: LongMem) -> None:
    """The last segment, of 16 tokens, needs 104 before it; 127 tokens that are read have seven whole segments."""
    with pytest.raises(DocumentError, match="a: expected at least 120 tokens in whole segments, got 128"):
        next(block_recall.run(model, {"a": sequence(128)}, []))
    rows = next(block_recall.run(model, {"a": sequence(129)}, []))
    assert rows[-1].recall == 1
