# SPDX-License-Identifier: Apache-2.0
"""Keys, or values, of all layers of consecutive tokens: an array for each block, which is neither moved nor changed.

    block 7             block 8             block 9
    ├───────────────────┼───────────────────┼───────────────────┤
             │       rows(first, last): the same arrays  │

A segment reads a few thousand of 65,536 tokens, so nothing needs them in one array. A window takes a block and drops
another without a copy, and a view keeps the blocks that it covers. Rows stay as they were stored; those that are read
are dequantised.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from longmem.dtypes import to_tensor
from longmem.kv_format import dequantised
from longmem.types import KVArray


class LayerStates:
    """Immutable rows of consecutive tokens, oldest first."""

    def __init__(self, parts: Sequence[Shaped[Tensor, "_ stored_heads width"]]) -> None:
        """Take arrays of one type and width, at least one; their owner changes them no more."""
        self._parts = tuple(parts)
        self._starts = torch.tensor([0, *map(len, self._parts)]).cumsum(0)
        """First row of each part, and the number of all rows."""

    @staticmethod
    def of(stored: KVArray, device: torch.device | str) -> "LayerStates":
        """Return a copy of stored keys or values."""
        return LayerStates([to_tensor(stored, device)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __add__(self, later: "LayerStates") -> "LayerStates":
        return LayerStates([*self._parts, *later._parts])

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    @property
    def stored_heads(self) -> int:
        return int(self._parts[0].shape[1])

    def gather(self, index: Int64[Tensor, " read"], first_head: int = 0) -> Float[Tensor, "read heads head_dim"]:
        """Return a copy of rows, in the order of `index`: their heads from `first_head` on."""
        wanted = self._parts[0][:, first_head:]
        found = wanted.new_empty((len(index), *wanted.shape[1:]))
        place = 0
        # rows of one part that follow each other in `index` are copied at once
        owners, counts = torch.unique_consecutive(self._owners(index), return_counts=True)
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            local = index[place : place + count] - int(self._starts[owner])
            torch.index_select(self._parts[owner][:, first_head:], 0, local, out=found[place : place + count])
            place += count
        return dequantised(found) if found.dtype == torch.int8 else found

    def rows(self, first: int, last: int) -> "LayerStates":
        """Return the rows `[first, last)`, which keep no other block alive."""
        assert 0 <= first <= last <= len(self), f"rows [{first}, {last}) of {len(self)}"
        parts = []
        for begin, part in zip(self._starts.tolist(), self._parts, strict=False):
            low, high = max(first - begin, 0), min(last - begin, len(part))
            if low < high:
                parts.append(part[low:high])
        return LayerStates(parts or [self._parts[0][:0]])

    def replaced(self, first: int, rows: "LayerStates") -> "LayerStates":
        """Return all rows, with others in place of as many from `first` on."""
        last = first + len(rows)
        return self.rows(0, first) + rows + self.rows(last, len(self))

    def newest(self, count: int) -> "LayerStates":
        """Return the blocks that hold the newest `count` rows, whole, and at least one."""
        kept = int(torch.searchsorted(self._starts, max(len(self) - count, 0), right=True)) - 1
        return LayerStates(self._parts[min(kept, len(self._parts) - 1) :])

    def _owners(self, index: Int64[Tensor, " read"]) -> Int64[Tensor, " read"]:
        """Return the part of each row."""
        return torch.searchsorted(self._starts.to(index.device), index, right=True) - 1
