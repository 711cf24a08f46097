# SPDX-License-Identifier: Apache-2.0
"""Keys, or values, of all layers of consecutive tokens: rows of one block after another, never moved nor changed.

    block 7             block 8             block 9
    ├───────────────────┼───────────────────┼───────────────────┤
             │       rows(first, last): the same blocks  │

A segment reads a few thousand of 65,536 tokens, so nothing needs them in one array. A window takes a block and drops
another without a copy, and a view keeps the blocks that it covers. Rows stay as they were stored; those that are read
are dequantised.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from longmem.kv_format import dequantised
from longmem.memory.stored_rows import AbstractRows, TensorRows


class LayerStates:
    """Immutable rows of consecutive tokens, oldest first."""

    def __init__(self, blocks: Sequence[AbstractRows]) -> None:
        """Take the rows of at least one block; all have one type and width."""
        self._blocks = tuple(blocks)
        self._starts = torch.tensor([0, *map(len, self._blocks)]).cumsum(0)
        """First row of each block, and the number of all rows."""

    @staticmethod
    def of(rows: Shaped[Tensor, "rows stored_heads width"]) -> "LayerStates":
        """Return the rows of a tensor, whose owner changes it no more."""
        return LayerStates([TensorRows(rows)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __add__(self, later: "LayerStates") -> "LayerStates":
        return LayerStates([*self._blocks, *later._blocks])

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows, in memory or on disk."""
        return sum(block.num_bytes for block in self._blocks)

    @property
    def device(self) -> torch.device:
        return self._blocks[0].device

    @property
    def stored_heads(self) -> int:
        return self._blocks[0].row_shape[0]

    def gather(self, index: Int64[Tensor, " read"]) -> Float[Tensor, "read stored_heads head_dim"]:
        """Return a copy of rows, in the order of `index`. Raises StoreError for a file that cannot be read."""
        like = self._blocks[0]
        found = torch.empty((len(index), *like.row_shape), dtype=like.dtype, device=like.device)
        index = index.to(like.device)
        # rows of one block that follow each other in `index` are copied together
        owners = torch.searchsorted(self._starts.to(like.device), index, right=True) - 1
        begin = 0
        for owner, count in zip(*map(Tensor.tolist, owners.unique_consecutive(return_counts=True)), strict=True):
            end = begin + count
            self._blocks[owner].take(index[begin:end] - int(self._starts[owner]), found[begin:end])
            begin = end
        if found.dtype == torch.int8:
            return dequantised(found)
        return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found

    def chosen(self, index: Int64[Tensor, " read"]) -> "ChosenRows":
        """Return the rows of `gather(index)`, to be read a few at a time."""
        return ChosenRows(self, index)

    def rows(self, first: int, last: int) -> "LayerStates":
        """Return the rows `[first, last)`, which keep no other block alive."""
        assert 0 <= first <= last <= len(self), f"rows [{first}, {last}) of {len(self)}"
        parts = []
        for begin, block in zip(self._starts.tolist(), self._blocks, strict=False):
            low, high = max(first - begin, 0), min(last - begin, len(block))
            if low < high:
                parts.append(block.part(low, high))
        return LayerStates(parts or [self._blocks[0].part(0, 0)])

    def replaced(self, first: int, rows: "LayerStates") -> "LayerStates":
        """Return all rows, with others in place of as many from `first` on."""
        return self.rows(0, first) + rows + self.rows(first + len(rows), len(self))

    def newest(self, count: int) -> "LayerStates":
        """Return the blocks that hold the newest `count` rows, whole, and at least one."""
        kept = int(torch.searchsorted(self._starts, max(len(self) - count, 0), right=True)) - 1
        return LayerStates(self._blocks[min(kept, len(self._blocks) - 1) :])


class ChosenRows:
    """Rows to be gathered: all of a segment are tens of megabytes, which need not be in memory at once."""

    def __init__(self, states: LayerStates, index: Int64[Tensor, " read"]) -> None:
        self._states, self._index = states, index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def device(self) -> torch.device:
        return self._states.device

    def split(self, size: int) -> Iterator[Float[Tensor, "_ stored_heads head_dim"]]:
        """Gather `size` rows at a time, in order, as `Tensor.split` cuts them. Raises StoreError, as `gather` does."""
        return map(self._states.gather, self._index.split(size))
