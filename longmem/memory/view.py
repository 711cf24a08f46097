# SPDX-License-Identifier: Apache-2.0
"""Memory view of one segment: an immutable, position-bounded piece of one document's memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from longmem.memory.layer_states import LayerStates
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.retrieval.repeats import GrowingRepeats, RepeatIndex

T = TypeVar("T")


@dataclass(frozen=True)
class MemoryView:
    """Chunks that lie wholly in `[start_token, end_token)` of one document, oldest first.

    Keys and values are indexed by head first but laid out by token, as they were stored: tensors that all heads
    retrieve together are contiguous. Slots of a partial chunk beyond its length hold zeros and are masked, never read.
    """

    chunk_keys: Float[Tensor, "index_heads chunks index_dim"]
    """Mean key of each chunk over its real tokens: one matrix for each KV head, or one with all heads concatenated.

    In the second case, where all heads search together, `index_heads` is 1 and `index_dim` is kv_heads · head_dim. The
    dtype is float32; where a chunk is one token, these are the keys themselves, in their own dtype.
    """
    keys: Shaped[Tensor, "kv_heads chunks chunk head_dim"]
    """Keys in the form that the reader requested (`longmem.memory.key_transform`)."""
    values: Shaped[Tensor, "kv_heads chunks chunk head_dim"]
    tokens: Int32[Tensor, "chunks chunk"]
    starts: Int64[Tensor, " chunks"]
    """Document position of each chunk's first token."""
    lengths: Int64[Tensor, " chunks"]
    """Number of real tokens of each chunk; less than `chunk` only where a block ended inside it."""
    sketch: KeySketch | None
    """Low-rank sketch of the chunk keys, where the memory is long enough to benefit and the search reads it."""
    cells: KeyCells | None
    """Cells (IVF clusters) of the chunk keys, where the search is approximate."""
    end_token: int
    """Document position of the reading segment's first token: all chunks lie before it."""
    layer_keys: LayerStates | None = None
    """Keys of all layers as stored, in a memory of several layers (whose chunks are single tokens)."""
    layer_values: LayerStates | None = None
    """Values of all layers; `values` are those of the searched one."""
    growing_repeats: GrowingRepeats | None = None
    """Index of repeats of the window that this view is a part of; None to index the view alone."""
    first_place: int = 0
    """Number of tokens that the window took before the first one of this view."""

    @property
    def num_chunks(self) -> int:
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def chunk_size(self) -> int:
        """Number of slots of a chunk."""
        return int(self.tokens.shape[1])

    @cached_property
    def slots_in_order(self) -> Int64[Tensor, " places"]:
        """Storage slot of each place (`longmem.retrieval.positions`): an index into the concatenated chunks."""
        if self.chunk_size == 1:
            return torch.arange(self.num_chunks, device=self.lengths.device)
        offsets = torch.arange(self.chunk_size, device=self.lengths.device)
        return (offsets < self.lengths[:, None]).flatten().nonzero().squeeze(1)

    @cached_property
    def text(self) -> Int64[Tensor, " places"]:
        """Token of each place: the whole memory, oldest first."""
        tokens = self.tokens.flatten()
        return (tokens if self.chunk_size == 1 else tokens[self.slots_in_order]).long()

    @cached_property
    def repeats(self) -> RepeatIndex:
        """Index of the places where every run of tokens ends; made on first use and shared by all readers of this
        view."""
        if self.growing_repeats is None:
            return RepeatIndex(self.text)
        return self.growing_repeats.index(self.text, self.first_place)

    @cached_property
    def derived(self) -> "DerivedStructures":
        """Structures that readers derived from this view; kept as long as the view is."""
        return DerivedStructures()


class DerivedStructures:
    """Structures by the keys of those who make them. A thread waits while another one makes a structure."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self._lock = RLock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """Return the structure of this key, which `make` returns the first time."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            kept: T = self._made[key]
            return kept
