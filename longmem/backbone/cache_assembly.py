# SPDX-License-Identifier: Apache-2.0
"""Builds a transformers KV cache of stored keys and values, moved to new positions.

Stored keys have no position. The module's own `apply_rotary_pos_emb` rotates them to the positions 0, 1, 2, … of the
cache, as if the backbone had read these tokens there. ALiBi (BLOOM) needs no rotation: it counts places of the cache.
"""

import sys
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longmem.backbone.backbone import Backbone
from longmem.errors import ConfigError


class CacheAssembly:
    """Assembles caches for one backbone.

    Raises ConfigError for a backbone that adds positions to its embeddings: its keys cannot be moved.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.family.keys_have_positions:
            raise ConfigError(
                f"memory_layers=all needs a backbone with rotary or ALiBi positions, got {backbone.name} "
                f"({backbone.model.config.model_type}), which adds positions to its embeddings; use memory_layers=one"
            )
        self._backbone = backbone

    def assemble(
        self,
        keys: Float[Tensor, "tokens stored_heads head_dim"],
        values: Float[Tensor, "tokens stored_heads head_dim"],
        batch: int = 1,
    ) -> Any:
        """Return a transformers cache which holds the tokens at positions 0 to `tokens - 1`, for every row.

        Keys and values are those of all layers, before position encoding. They are computed with in the backbone's
        dtype. Layers with a sliding window keep what their window reaches, as they do in transformers.
        """
        backbone = self._backbone
        cache = backbone.new_cache()
        tables: dict[str | None, tuple[Tensor, Tensor]] = {}
        by_layer = (len(keys), backbone.num_layers, backbone.shape.kv_heads, backbone.shape.head_dim)
        # [layers, kv_heads, tokens, head_dim], each layer contiguous
        moved_keys, moved_values = (
            part.to(backbone.device, backbone.dtype).view(by_layer).permute(1, 2, 0, 3).contiguous()
            for part in (keys, values)
        )
        for index, (layer_keys, layer_values) in enumerate(zip(moved_keys, moved_values, strict=True)):
            attention = backbone.family.attention_of(backbone.layers[index])
            rotated = self._rotated(layer_keys[None], attention, tables)
            size = (batch, -1, -1, -1)
            cache.update(rotated.expand(size), layer_values[None].expand(size), index)
        return cache

    def _rotated(
        self,
        keys: Float[Tensor, "1 kv_heads tokens head_dim"],
        attention: nn.Module,
        tables: dict[str | None, tuple[Tensor, Tensor]],
    ) -> Float[Tensor, "1 kv_heads tokens head_dim"]:
        """Rotate keys to positions 0, 1, …; `tables` keeps the tables of each kind of layer between calls."""
        backbone = self._backbone
        if backbone.family.rotary is None:
            return keys
        make_tables = getattr(backbone.stack, backbone.family.rotary)
        # Gemma 3 has one table for its sliding layers and one for the others
        by_type = "layer_type" in signature(make_tables.forward).parameters
        layer_type = str(attention.layer_type) if by_type else None
        if layer_type not in tables:
            positions = torch.arange(keys.shape[2], device=keys.device)[None]
            tables[layer_type] = make_tables(keys, positions, *([layer_type] if by_type else []))
        cos, sin = tables[layer_type]
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        rotated: Tensor = rotate(keys, keys, cos, sin)[1]
        return rotated
