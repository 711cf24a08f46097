"""Which tokens of a memory the retrieved chunks stand for, and which tokens came next.

A view keeps chunks of `chunk` slots, of which a short chunk fills only some. Counting only real tokens, oldest first,
gives each its *place*: the token after place p is place p + 1, whatever the chunks are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from longmem.memory.view import MemoryView


@dataclass(frozen=True)
class RetrievedPositions:
    """The tokens of retrieved chunks; `retrieved` is slots · chunk."""

    index: Int64[Tensor, "tokens heads retrieved"]
    """Place of each token; 0 where `valid` is false."""
    valid: Bool[Tensor, "tokens heads retrieved"]
    """False for missing slots, padding and, if continuations are asked for, the newest token, which has none yet."""


def num_searchable(view: MemoryView, continued: bool) -> int:
    """Chunks that may be retrieved: all, or with `continued` those with a token whose continuation is known. Only the
    newest chunk can have none."""
    if view.num_chunks and continued and int(view.lengths[-1]) == 1:
        return view.num_chunks - 1
    return view.num_chunks


def places_of(chunk_ids: Int64[Tensor, "tokens heads slots"], view: MemoryView, continued: bool) -> RetrievedPositions:
    """Every token of the chunks, in slot order; every chunk id (but -1) must be below `num_searchable`."""
    offsets = torch.arange(view.chunk_size, device=chunk_ids.device)
    first = view.lengths.cumsum(0) - view.lengths
    ids = chunk_ids.clamp(min=0)
    index = first[ids][..., None] + offsets
    valid = (offsets < view.lengths[ids][..., None]) & (chunk_ids >= 0)[..., None]
    if continued:
        valid &= index + 1 < view.lengths.sum()
    index, valid = index.flatten(2), valid.flatten(2)
    return RetrievedPositions(index.where(valid, 0), valid)
