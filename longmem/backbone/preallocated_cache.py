# SPDX-License-Identifier: Apache-2.0
"""Layers of a transformers KV cache in memory that is allocated once, and used again for the next cache.

A cache of transformers grows by concatenation: for each segment, every layer allocates memory and copies all that it
holds. The pages of that memory are new each time, and the first write to each costs a fault.
"""

import weakref
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicLayer

Held = Float[Tensor, "batch kv_heads held head_dim"]
Added = Float[Tensor, "batch kv_heads added head_dim"]


class Lease:
    """Use of the memory of a cache; it ends once no layer that lies in that memory is referred to."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Cache layer that writes further tokens behind those that it holds, and grows as usual once there is no room."""

    def __init__(self, keys: Held, values: Held, num_tokens: int, lease: Lease | None = None) -> None:
        """Hold the first `num_tokens` of both tensors, the rest of which is room."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._whole: tuple[Held, Held] | None = (keys, values)
        self._held: tuple[Held, Held] | None = None
        self._lease: Lease | None = lease
        self._hold(num_tokens)

    def update(self, key_states: Added, value_states: Added, *args: Any, **kwargs: Any) -> tuple[Held, Held]:
        if self._whole is None or not self._has_room(self._whole[0], key_states):
            self._whole = self._held = self._lease = None
            grown: tuple[Held, Held] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        first = self.get_seq_length()
        last = first + key_states.shape[2]
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            target = whole[:, :, first:last]
            assert (target.shape, target.dtype) == (states.shape, states.dtype), (target.shape, states.shape)
            target.copy_(states)
        self._hold(last)
        return self.keys, self.values

    def _has_room(self, whole: Tensor, states: Added) -> bool:
        # other methods, also of later versions of transformers, put other tensors in place of the two
        if self._held is None or self.keys is not self._held[0] or self.values is not self._held[1]:
            return False
        writable = torch.is_inference_mode_enabled() or not whole.is_inference()
        return writable and self.keys.shape[2] + states.shape[2] <= whole.shape[2]

    def _hold(self, num_tokens: int) -> None:
        assert self._whole is not None
        keys, values = self._whole
        self.keys, self.values = self._held = keys[:, :, :num_tokens], values[:, :, :num_tokens]


class CacheMemory:
    """Memory of one cache of batch 1, kept for the next: as many numbers as the largest so far.

    While layers of that cache are referred to, another cache gets memory of its own. Tensors of a cache without its
    layers are overwritten. Strides are those of new tensors, so that results do not depend on earlier caches. Not
    thread-safe.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None
        self._user: weakref.ref[Lease] | None = None

    def __reduce__(self) -> Any:
        # copies and pickles have no memory yet
        return CacheMemory, ()

    def take(
        self, size: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> tuple[tuple[Tensor, Tensor], Lease]:
        """Return two tensors [layers, batch, kv_heads, tokens, head_dim] for keys and values, and their lease."""
        lease, count = Lease(), prod(size)
        if size[1] > 1 or (self._user is not None and self._user() is not None):
            return (_empty(size, dtype, device), _empty(size, dtype, device)), lease
        if not self._suits(count, dtype, device):
            # first, or both would be allocated for a moment
            self._kept = None
            self._kept = _empty((count,), dtype, device), _empty((count,), dtype, device)
        assert self._kept is not None
        self._user = weakref.ref(lease)
        keys, values = self._kept
        return (keys[:count].view(size), values[:count].view(size)), lease

    def _suits(self, count: int, dtype: torch.dtype, device: torch.device) -> bool:
        if self._kept is None:
            return False
        kept, _ = self._kept
        writable = not kept.requires_grad and (torch.is_inference_mode_enabled() or not kept.is_inference())
        return writable and (kept.dtype, kept.device) == (dtype, device) and len(kept) >= count


def _empty(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)
