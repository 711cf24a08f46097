"""Cells of alike keys, for a search that looks into the promising ones only (an inverted file, "IVF").

    start of the view                                                        end of the view
    ├ exact ┼ stretch ┼──────────────── stretch ────────────────┼ stretch ┼ exact ┤
            │ cells   │ cells of alike keys                      │ cells   │

A document is cut into stretches at fixed positions, on several scales: small ones are complete soon, and in large ones
a cell holds what is alike in a longer past, so that fewer have to be looked into. A view is covered by the largest
stretches that lie wholly in it, and a stretch is clustered by itself. So what shares a cell is decided by the text
of the stretch alone, not by when a reader began, what it has dropped, or how many readers there are. What is left at
both ends of the view is searched exactly, the newest tokens among it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

STRETCHES = (16_384, 65_536, 262_144)
"""Tokens of a stretch on each scale; each divides the next. Up to one of the smallest is searched exactly at either
end of a view. Clustering costs the square of the length: with the largest, some 50 µs of CPU a token in all."""

CELL_CHUNKS = 256
"""Chunks of a cell, on average. Small cells are probed closely, but every query is compared with every cell's mean."""

ASSIGNED_CHUNKS = 16_384
"""Compared with all means at a time: distances to 1,024 of them take 64 MB."""


@dataclass(frozen=True)
class Cells:
    """The chunks of one stretch by cell."""

    means: Float32[Tensor, "index_heads cells index_dim"]
    cell_of: Int64[Tensor, "index_heads chunks"]

    @property
    def num_bytes(self) -> int:
        """With the lists that are made of it."""
        return self.means.nbytes + 2 * self.cell_of.nbytes

    @cached_property
    def members(self) -> Int64[Tensor, "index_heads chunks"]:
        """Chunks by cell, oldest first in each."""
        return self.cell_of.argsort(dim=1, stable=True)

    @cached_property
    def sizes(self) -> Int64[Tensor, "index_heads cells"]:
        """Chunks of each cell."""
        num_cells = self.means.shape[1]
        return torch.stack([torch.bincount(of_head, minlength=num_cells) for of_head in self.cell_of])

    def narrow(self, num_chunks: int) -> "Cells":
        """The first chunks alone, in the same cells."""
        return self if num_chunks >= self.cell_of.shape[1] else Cells(self.means, self.cell_of[:, :num_chunks])

    def with_keys(self, first: int, keys: Float[Tensor, "index_heads changed index_dim"]) -> "Cells":
        """The same cells after some chunks were given other keys."""
        cell_of = self.cell_of.clone()
        cell_of[:, first : first + keys.shape[1]] = nearest_means(keys, self.means)
        return Cells(self.means, cell_of)


@dataclass(frozen=True)
class KeyCells:
    """The stretches that lie wholly in a view, each with the index of its first chunk; ascending."""

    stretches: tuple[tuple[int, Cells], ...]

    def narrow(self, num_chunks: int) -> "KeyCells":
        """Without the chunks behind so many."""
        return KeyCells(
            tuple((first, cells.narrow(num_chunks - first)) for first, cells in self.stretches if first < num_chunks)
        )

    def with_keys(self, first: int, keys: Float[Tensor, "index_heads changed index_dim"]) -> "KeyCells":
        """The same cells after the chunks from `first` on were given other keys."""
        changed = []
        for start, cells in self.stretches:
            begin, end = max(first, start), min(first + keys.shape[1], start + cells.cell_of.shape[1])
            part = keys[:, begin - first : end - first]
            changed.append((start, cells.with_keys(begin - start, part) if begin < end else cells))
        return KeyCells(tuple(changed))

    def outside(self, num_chunks: int) -> Int64[Tensor, " outside"]:
        """Those of the first `num_chunks` that are in no stretch."""
        inside = torch.zeros(num_chunks, dtype=torch.bool)
        for first, cells in self.stretches:
            inside[first : first + cells.cell_of.shape[1]] = True
        return (~inside).nonzero().squeeze(1)


def cover(start_token: int, end_token: int) -> list[tuple[int, int]]:
    """The largest stretches that lie wholly in `[start_token, end_token)`: first token and length of each, in order."""
    smallest = STRETCHES[0]
    covered, at = [], -(-start_token // smallest) * smallest
    while at + smallest <= end_token:
        length = max(each for each in STRETCHES if at % each == 0 and at + each <= end_token)
        covered.append((at, length))
        at += length
    return covered


def nearest_means(
    keys: Float[Tensor, "index_heads chunks index_dim"], means: Float32[Tensor, "index_heads cells index_dim"]
) -> Int64[Tensor, "index_heads chunks"]:
    """By Euclidean distance; of equal ones the first."""
    distances = means.square().sum(dim=2)[:, None] - 2 * torch.einsum("hcd,hmd->hcm", keys.float(), means)
    return distances.argmin(dim=2)
