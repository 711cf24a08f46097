# SPDX-License-Identifier: Apache-2.0
"""Builds a transformers KV cache of stored keys and values, moved to new positions.

Stored keys have no position. The attention's own function rotates them to the positions 0, 1, 2, … of the cache, as if
the backbone had read these tokens there. ALiBi (BLOOM) needs no rotation: it counts places of the cache.
"""

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from longmem.backbone.backbone import Backbone
from longmem.backbone.fast.rotation import rotation_of
from longmem.backbone.preallocated_cache import CacheMemory, PreallocatedLayer
from longmem.errors import ConfigError

CONVERTED_TOKENS = 64
"""Tokens that are converted at a time: those of all layers of SmolLM2-135M are 1.5 MB in float32, and stay in the
cache."""


@runtime_checkable
class Rows(Protocol):
    """Keys, or values, of all layers [tokens, stored_heads, head_dim]: a tensor, or rows that are read on demand."""

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Return `size` tokens at a time, in order."""


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
        self._memory = CacheMemory()

    def assemble(
        self,
        keys: Sequence[Rows],
        values: Sequence[Rows],
        batch: int = 1,
        room: int = 0,
    ) -> Any:
        """Return a transformers cache of the tokens at positions 0, 1, … in the order of the parts, equal in every row.

        Keys and values are those of all layers, before position encoding; parts may have different dtypes. They are
        computed with in the backbone's dtype. Layers with a sliding window keep what their window reaches, as they do
        in transformers. The cache has memory for `room` tokens more, and grows beyond. Once its layers are gone, the
        next cache uses their memory, so that tensors which were taken from them are overwritten.
        """
        backbone = self._backbone
        cache = backbone.new_cache()
        tables: dict[str | None, tuple[Tensor, Tensor]] = {}
        count, shape = sum(map(len, keys)), backbone.shape
        size = (backbone.num_layers, batch, shape.kv_heads, count + room, shape.head_dim)
        memory, lease = self._memory.take(size, backbone.dtype, backbone.device)
        for parts, whole in zip((keys, values), memory, strict=True):
            self._fill(whole[:, 0, :, :count], parts)
        for index, (layer_keys, layer_values) in enumerate(zip(*memory, strict=True)):
            attention = backbone.family.attention_of(backbone.layers[index])
            stored_keys, stored_values = layer_keys[:, :, :count], layer_values[:, :, :count]
            rotated = self._rotated(stored_keys[:1], attention, tables)
            if type(cache.layers[index]) is DynamicLayer:
                stored_keys[:1].copy_(rotated)
                for stored in (stored_keys, stored_values):
                    stored[1:].copy_(stored[:1])
                cache.layers[index] = PreallocatedLayer(layer_keys, layer_values, count, lease)
            else:
                cache.update(rotated.expand(batch, -1, -1, -1), stored_values[:1].expand(batch, -1, -1, -1), index)
        return cache

    def _fill(
        self,
        target: Float[Tensor, "layers kv_heads tokens head_dim"],
        parts: Sequence[Rows],
    ) -> None:
        """Copy the parts one after the other. They are tens of megabytes: each number is moved once."""
        layers, heads, _, dim = target.shape
        for place, part in zip(target.split([len(part) for part in parts], dim=2), parts, strict=True):
            step = CONVERTED_TOKENS if part.device.type == target.device.type == "cpu" else max(len(part), 1)
            for to, rows in zip(place.split(step, dim=2), part.split(step), strict=True):
                to.copy_(_widened(rows, to.dtype).view(-1, layers, heads, dim).permute(1, 2, 0, 3))

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
        # it rotates queries, too: there are none
        rotated: Tensor = rotation_of(attention)(keys[:, :0], keys, cos, sin)[1]
        return rotated


def _widened(rows: Float[Tensor, "*any"], dtype: torch.dtype) -> Float[Tensor, "*any"]:
    """Return rows for a copy to `dtype`: float16 as float32, which is exact. Two copies are then faster than torch's
    own one of float16 to bfloat16 (torch 2.13, findings/torch_copies_float16_to_bfloat16_slower_than_in_two_steps.sh).
    """
    return rows.float() if rows.dtype == torch.float16 and dtype == torch.bfloat16 else rows
