# SPDX-License-Identifier: Apache-2.0
"""A cache of stored keys and values goes on like the cache that transformers makes while it reads."""

from pathlib import Path

import pytest
import torch

from longmem.backbone.backbone import Backbone
from longmem.backbone.cache_assembly import CONVERTED_TOKENS, CacheAssembly
from longmem.backbone.families import FAMILIES
from longmem.backbone.small import save_small_backbone
from longmem.config import Dtype
from longmem.errors import ConfigError

MOVABLE = sorted(name for name, family in FAMILIES.items() if not family.keys_have_positions)


@pytest.mark.parametrize("family", MOVABLE)
def test_it_goes_on_like_transformers_own_cache(tmp_path: Path, family: str) -> None:
    save_small_backbone(tmp_path / family, family)
    backbone = Backbone.load(tmp_path / family)
    # longer than the sliding windows of the small models
    tokens = torch.randint(0, 200, (1, 60), generator=torch.Generator().manual_seed(1))
    read = backbone.forward(tokens[:, :44], range(backbone.num_layers), None)
    assembled = CacheAssembly(backbone).assemble([read.keys[0]], [read.values[0]], batch=2)
    own = backbone.new_cache()
    with torch.no_grad():
        backbone.run(tokens[:, :44], own)
        expected = backbone.run(tokens[:, 44:], own)
        found = backbone.run(tokens[:, 44:].expand(2, -1), assembled)
    torch.testing.assert_close(found, expected.expand(2, -1, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_several_dtypes_give_the_cache_of_their_sum(tmp_path: Path, dtype: Dtype) -> None:
    """Parts are longer than what is converted at a time, and one is empty."""
    save_small_backbone(tmp_path / "llama", "llama")
    backbone = Backbone.load(tmp_path / "llama", dtype=dtype)
    shape = (backbone.num_layers * backbone.shape.kv_heads, backbone.shape.head_dim)
    random = torch.Generator().manual_seed(2)
    kinds = {
        1: torch.bfloat16,
        2 * CONVERTED_TOKENS + 3: torch.float16,
        CONVERTED_TOKENS: torch.float32,
        0: torch.float16,
    }
    keys, values = (
        [torch.randn(length, *shape, generator=random).to(kind) for length, kind in kinds.items()] for _ in range(2)
    )
    assembly = CacheAssembly(backbone)
    found = assembly.assemble(keys, values)
    joined = assembly.assemble(*([torch.cat([part.to(backbone.dtype) for part in parts])] for parts in (keys, values)))
    for ours, theirs in zip(found.layers, joined.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_keys_that_hold_positions_are_refused(tmp_path: Path, family: str) -> None:
    save_small_backbone(tmp_path / family, family)
    with pytest.raises(ConfigError, match="rotary or ALiBi"):
        CacheAssembly(Backbone.load(tmp_path / family))
