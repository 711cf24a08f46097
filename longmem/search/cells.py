"""Cells of alike keys, for a search that looks into the promising ones only (an inverted file, "IVF").

    start of the view                                                     end of the view
    ├── exact ──┼──────── stretch ────────┼──────── stretch ────────┼── exact ──┤
                │ cells of alike keys     │ cells of alike keys     │

A document is cut into stretches at fixed positions, and a stretch is clustered once it is complete, by itself. So what
shares a cell is decided by the text of the stretch alone, not by when a reader began, what it has dropped, or how many
readers there are. Stretches that the view cuts are searched exactly, the newest tokens among them.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

STRETCH_TOKENS = 16_384
"""What may be left over at both ends of a view is searched exactly, and clustering costs the square of it."""

CELL_CHUNKS = 256
"""Chunks of a cell, on average. Small cells are probed closely, but every query is compared with every cell's mean."""


@dataclass(frozen=True)
class Cells:
    """The chunks of one stretch by cell."""

    means: Float32[Tensor, "index_heads cells index_dim"]
    cell_of: Int64[Tensor, "index_heads chunks"]

    @cached_property
    def members(self) -> Int64[Tensor, "index_heads chunks"]:
        """Chunks by cell, oldest first in each."""
        return self.cell_of.argsort(dim=1, stable=True)

    @cached_property
    def sizes(self) -> Int64[Tensor, "index_heads cells"]:
        """Chunks of each cell."""
        num_cells = self.means.shape[1]
        return torch.stack([torch.bincount(of_head, minlength=num_cells) for of_head in self.cell_of])

    def with_keys(self, first: int, keys: Float32[Tensor, "index_heads changed index_dim"]) -> "Cells":
        """The same cells after some chunks were given other keys."""
        cell_of = self.cell_of.clone()
        cell_of[:, first : first + keys.shape[1]] = _nearest(keys, self.means)
        return Cells(self.means, cell_of)


@dataclass(frozen=True)
class KeyCells:
    """The stretches that lie wholly in a view, each with the index of its first chunk; ascending."""

    stretches: tuple[tuple[int, Cells], ...]

    def narrow(self, num_chunks: int) -> "KeyCells":
        """Without what lies behind so many chunks."""
        return KeyCells(tuple(each for each in self.stretches if each[0] + each[1].cell_of.shape[1] <= num_chunks))

    def with_keys(self, first: int, keys: Float32[Tensor, "index_heads changed index_dim"]) -> "KeyCells":
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


def make_cells(keys: Float32[Tensor, "index_heads chunks index_dim"]) -> Cells:
    """Cluster the chunk keys of a stretch. The same keys give the same cells, on one kind of CPU and with one number of
    threads."""
    from longmem.search.faiss_search import cluster_means

    num_cells = max(1, keys.shape[1] // CELL_CHUNKS)
    means = torch.stack([cluster_means(of_head, num_cells) for of_head in keys])
    return Cells(means, _nearest(keys, means))


def _nearest(
    keys: Float32[Tensor, "index_heads chunks index_dim"], means: Float32[Tensor, "index_heads cells index_dim"]
) -> Int64[Tensor, "index_heads chunks"]:
    """By Euclidean distance; of equal ones the first."""
    distances = means.square().sum(dim=2)[:, None] - 2 * torch.einsum("hcd,hmd->hcm", keys, means)
    return distances.argmin(dim=2)
