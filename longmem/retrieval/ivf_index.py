# SPDX-License-Identifier: Apache-2.0
"""Inverted-file (IVF) index: k-means cells of keys, built for fixed stretches of a document.

    start of the view                                                        end of the view
    ├ exact ┼ stretch ┼──────────────── stretch ────────────────┼ stretch ┼ exact ┤
            │ cells   │ cells                                    │ cells   │

A document is partitioned into stretches at fixed positions, on several scales. Small stretches are complete soon. A
cell of a large stretch holds similar keys of a longer past, so fewer cells have to be searched. A view is covered by
the largest stretches that lie wholly in it, and each stretch is clustered by itself. So cells depend only on the text
of the stretch: not on where a reader began, what it evicted, or how many readers there are. The chunks at both ends of
the view, which include the newest tokens, are searched exactly.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

STRETCHES = (16_384, 65_536, 262_144)
"""Tokens of a stretch on each scale; each scale divides the next. Up to one stretch of the smallest scale is searched
exactly at either end of a view. Clustering takes time quadratic in the length: about 50 µs of CPU per token in all for
the largest scale."""

CELL_CHUNKS = 256
"""Mean number of chunks of a cell. Small cells fit a query better, but every query is compared with every mean."""

ASSIGNED_CHUNKS = 16_384
"""Chunks assigned to cells at a time: their distances to 1,024 means take 64 MB."""


@dataclass(frozen=True)
class Cells:
    """Cells of the chunks of one stretch."""

    means: Float32[Tensor, "index_heads cells index_dim"]
    cell_of: Int64[Tensor, "index_heads chunks"]

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays, including `members`."""
        return self.means.nbytes + 2 * self.cell_of.nbytes

    @cached_property
    def members(self) -> Int64[Tensor, "index_heads chunks"]:
        """Chunks sorted by cell, and by age within a cell, oldest first."""
        return self.cell_of.argsort(dim=1, stable=True)

    @cached_property
    def sizes(self) -> Int64[Tensor, "index_heads cells"]:
        """Number of chunks of each cell."""
        num_cells = self.means.shape[1]
        return torch.stack([torch.bincount(head_cells, minlength=num_cells) for head_cells in self.cell_of])

    def narrow(self, num_chunks: int) -> "Cells":
        """Return the cells of the first `num_chunks` chunks."""
        return self if num_chunks >= self.cell_of.shape[1] else Cells(self.means, self.cell_of[:, :num_chunks])

    def with_keys(self, first: int, keys: Float[Tensor, "index_heads changed index_dim"]) -> "Cells":
        """Return cells with the same means, in which the chunks from `first` on are assigned by their new keys."""
        cell_of = self.cell_of.clone()
        cell_of[:, first : first + keys.shape[1]] = nearest_means(keys, self.means)
        return Cells(self.means, cell_of)


@dataclass(frozen=True)
class KeyCells:
    """Stretches that lie wholly in a view, each with the index of its first chunk, in ascending order."""

    stretches: tuple[tuple[int, Cells], ...]

    def narrow(self, num_chunks: int) -> "KeyCells":
        """Return the cells of the first `num_chunks` chunks of the view."""
        return KeyCells(
            tuple((first, cells.narrow(num_chunks - first)) for first, cells in self.stretches if first < num_chunks)
        )

    def with_keys(self, first: int, keys: Float[Tensor, "index_heads changed index_dim"]) -> "KeyCells":
        """Return cells with the same means, in which the chunks from `first` on are assigned by their new keys."""
        changed = []
        for start, cells in self.stretches:
            begin, end = max(first, start), min(first + keys.shape[1], start + cells.cell_of.shape[1])
            part = keys[:, begin - first : end - first]
            changed.append((start, cells.with_keys(begin - start, part) if begin < end else cells))
        return KeyCells(tuple(changed))

    def outside(self, num_chunks: int) -> Int64[Tensor, " outside"]:
        """Return those of the first `num_chunks` chunks that are in no stretch, in ascending order."""
        inside = torch.zeros(num_chunks, dtype=torch.bool)
        for first, cells in self.stretches:
            inside[first : first + cells.cell_of.shape[1]] = True
        return (~inside).nonzero().squeeze(1)


def cover(start_token: int, end_token: int) -> list[tuple[int, int]]:
    """Return first token and length of the largest stretches wholly in `[start_token, end_token)`, in order."""
    smallest = STRETCHES[0]
    covered, first = [], -(-start_token // smallest) * smallest
    while first + smallest <= end_token:
        length = max(scale for scale in STRETCHES if first % scale == 0 and first + scale <= end_token)
        covered.append((first, length))
        first += length
    return covered


def nearest_means(
    keys: Float[Tensor, "index_heads chunks index_dim"], means: Float32[Tensor, "index_heads cells index_dim"]
) -> Int64[Tensor, "index_heads chunks"]:
    """Return the nearest mean of each key by Euclidean distance; the first one if several are equally near."""
    distances = means.square().sum(dim=2)[:, None] - 2 * torch.einsum("hcd,hmd->hcm", keys.float(), means)
    return distances.argmin(dim=2)
