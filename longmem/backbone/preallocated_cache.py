# SPDX-License-Identifier: Apache-2.0
"""Layers of a transformers KV cache in memory that is allocated once, and used again for the next cache.

A cache of transformers grows by concatenation: for each segment, every layer allocates memory and copies all that it
holds. The pages of that memory are new each time, and the first write to each costs a fault.
"""

import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicLayer

Held = Float[Tensor, "batch kv_heads held head_dim"]
Added = Float[Tensor, "batch kv_heads added head_dim"]


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Cache layer that writes further tokens behind those that it holds, and grows as usual once there is no room."""

    def __init__(self, keys: Held, values: Held, num_tokens: int) -> None:
        """Hold the first `num_tokens` of both tensors, the rest of which is room."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._whole: tuple[Held, Held] | None = (keys, values)
        self._hold(num_tokens)

    def update(self, key_states: Added, value_states: Added, *args: Any, **kwargs: Any) -> tuple[Held, Held]:
        first = self.get_seq_length()
        last = first + key_states.shape[2]
        if self._whole is None or last > self._whole[0].shape[2]:
            self._whole = None
            grown: tuple[Held, Held] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            target = whole[:, :, first:last]
            assert (target.shape, target.dtype) == (states.shape, states.dtype), (target.shape, states.shape)
            target.copy_(states)
        self._hold(last)
        return self.keys, self.values

    def _hold(self, num_tokens: int) -> None:
        assert self._whole is not None
        self.keys, self.values = (whole[:, :, :num_tokens] for whole in self._whole)

    def reset(self) -> None:
        self._whole = None
        super().reset()

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._whole = None
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._whole = None
        super().batch_select_indices(indices)


class CacheMemory:
    """Memory of one cache of batch 1, kept for the next: two tensors of the largest size so far.

    While its cache lives, another gets memory of its own. Not thread-safe.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None
        self._user: weakref.ref[Any] | None = None

    def __reduce__(self) -> Any:
        # copies and pickles have no memory yet
        return CacheMemory, ()

    def take(
        self, cache: Any, size: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return two tensors [layers, batch, kv_heads, tokens, head_dim] for keys and values of `cache`."""
        _, batch, _, tokens, _ = size
        if batch == 1 and (self._user is None or self._user() is None):
            if not self._suits(size, dtype, device):
                # first, or both would be allocated for a moment
                self._kept = None
                self._kept = _empty(size, dtype, device), _empty(size, dtype, device)
            assert self._kept is not None
            self._user = weakref.ref(cache)
            keys, values = self._kept
            return keys[:, :, :, :tokens], values[:, :, :, :tokens]
        return _empty(size, dtype, device), _empty(size, dtype, device)

    def _suits(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
        if self._kept is None:
            return False
        kept, _ = self._kept
        writable = torch.is_inference_mode_enabled() or not kept.is_inference()
        same = (*kept.shape[:3], kept.shape[4], kept.dtype, kept.device) == (*size[:3], size[4], dtype, device)
        return same and writable and kept.shape[3] >= size[3]


def _empty(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)
