# SPDX-License-Identifier: Apache-2.0
"""Token positions of retrieved chunks.

A view stores chunks of `chunk` slots; a short chunk fills only some of them. The position of a token counts the real
tokens of the view before it, so the token after position p has position p + 1 for any chunking.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from longmem.memory.view import MemoryView


@dataclass(frozen=True)
class RetrievedPositions:
    """Token positions of the retrieved chunks, relative to the start of the view; `retrieved` is slots · chunk."""

    index: Int64[Tensor, "tokens heads retrieved"]
    """Position of each token; 0 where `valid` is false."""
    valid: Bool[Tensor, "tokens heads retrieved"]
    """False for missing slots and padding. If continuations are read, also for the newest token, which has none yet."""


def num_searchable(view: MemoryView, continued: bool) -> int:
    """Return the number of chunks that may be retrieved.

    These are all chunks; or with `continued`, those with a token whose continuation is known. Only the newest chunk can
    have no such token.
    """
    if view.num_chunks and continued and int(view.lengths[-1]) == 1:
        return view.num_chunks - 1
    return view.num_chunks


def places_of(chunk_ids: Int64[Tensor, "tokens heads slots"], view: MemoryView, continued: bool) -> RetrievedPositions:
    """Return the position of every token of the chunks, in slot order.

    Args:
        chunk_ids: Ids below `num_searchable`, or -1 for a missing slot.
    """
    offsets = torch.arange(view.chunk_size, device=chunk_ids.device)
    first = view.lengths.cumsum(0) - view.lengths
    ids = chunk_ids.clamp(min=0)
    index = first[ids][..., None] + offsets
    valid = (offsets < view.lengths[ids][..., None]) & (chunk_ids >= 0)[..., None]
    if continued:
        valid &= index + 1 < view.lengths.sum()
    index, valid = index.flatten(2), valid.flatten(2)
    return RetrievedPositions(index.where(valid, 0), valid)
