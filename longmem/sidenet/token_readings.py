# SPDX-License-Identifier: Apache-2.0
"""Places that each token of a segment read, with their weights: what a score reports of a reading on request.

places of the copies    retrieved in every head's slots, then repeats        weights: the copy distribution
without a copy head     retrieved in every head's slots                      weights: mean attention over heads
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from longmem.dtypes import to_array
from longmem.memory.view import MemoryView
from longmem.retrieval.repeats import LONGEST, run_lengths
from longmem.types import PLACES, TokenReadings


@dataclass(frozen=True)
class PlacesRead:
    """Places of one row's tokens in its view, some of them several times."""

    index: Int64[Tensor, "tokens read"]
    """Place in the view; anything where the weight is 0."""
    weights: Float32[Tensor, "tokens read"]
    """Weights, which sum to one; zero for slots without a place."""
    share: Float32[Tensor, " tokens"]
    """Share of the copies in the output; 0 where nothing is copied."""
    continued: bool
    """True where the token after a place is taken, False where the place itself is."""


def token_readings(
    read: PlacesRead | None,
    layers_read: Int64[Tensor, " read"] | None,
    view: MemoryView | None,
    tokens: Int[Tensor, " tokens"],
    targets: Int[Tensor, " targets"],
    uncopied: Float32[Tensor, " targets"],
    first: int = 0,
) -> TokenReadings:
    """Return the readings of a segment's targets. `len(targets)` of its `tokens` predict them, from the `first` on.

    `layers_read` are the places that every layer read, ascending; `uncopied` are log-probabilities before copies are
    mixed in.
    """
    count = len(targets)
    blocks = torch.empty((0, 2), dtype=torch.int32)
    if view is not None and layers_read is not None:
        blocks = _intervals(positions_of(view)[layers_read])
    if read is None or view is None:
        zeros = torch.zeros(count)
        nothing = torch.full((count, PLACES), -1, dtype=torch.int32)
        return _as_arrays(zeros, uncopied, zeros, nothing, nothing.float().clamp(min=0), nothing.clamp(min=0), blocks)
    device = view.starts.device
    # the memory, followed by the segment: the token after the newest stored one is the segment's first
    sequence = torch.cat([view.text, tokens.long().to(device)])
    positions = torch.cat([positions_of(view), torch.tensor([view.end_token], device=device)])
    rows = slice(first, first + count)
    index, weights = read.index[rows], read.weights[rows].float()
    taken = index + int(read.continued)
    hits = sequence[taken] == targets.long().to(device)[:, None]
    places, heaviest = _heaviest(index, weights)
    readers = len(sequence) - len(tokens) + first + torch.arange(count, device=device)
    found = heaviest > 0
    return _as_arrays(
        read.share[rows],
        uncopied,
        (weights * hits).sum(dim=1),
        positions[places + int(read.continued)].where(found, -1),
        heaviest,
        run_lengths(sequence, places, readers, LONGEST).where(found, 0),
        blocks,
    )


def positions_of(view: MemoryView) -> Int64[Tensor, " places"]:
    """Return the document position of each place of a view."""
    offsets = torch.arange(view.chunk_size, device=view.starts.device)
    return (view.starts[:, None] + offsets).flatten()[view.slots_in_order]


def _heaviest(
    index: Int64[Tensor, "tokens read"], weights: Float32[Tensor, "tokens read"]
) -> tuple[Int64[Tensor, "tokens places"], Float32[Tensor, "tokens places"]]:
    """Return the distinct places with the largest summed weights, newest first where weights are equal; weight 0 where
    there are fewer."""
    ordered, order = index.sort(dim=1, descending=True, stable=True)
    group = torch.zeros_like(ordered)
    group[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1)
    # one more column for each kept place, so that there are always enough
    room = (len(index), index.shape[1] + PLACES)
    sums = weights.new_zeros(room).scatter_add(1, group, weights.gather(1, order))
    distinct = ordered.new_zeros(room).scatter(1, group, ordered)
    best = sums.sort(dim=1, descending=True, stable=True)
    return distinct.gather(1, best.indices[:, :PLACES]), best.values[:, :PLACES]


def _intervals(positions: Int64[Tensor, " read"]) -> Int[Tensor, "blocks 2"]:
    """Return the half-open intervals that ascending positions form."""
    breaks = (positions.diff() != 1).nonzero().flatten() + 1
    parts = [part for part in positions.tensor_split(breaks.cpu()) if len(part)]
    if not parts:
        return torch.empty((0, 2), dtype=torch.int32)
    return torch.tensor([[int(part[0]), int(part[-1]) + 1] for part in parts], dtype=torch.int32)


def _as_arrays(
    share: Tensor, uncopied: Tensor, copied: Tensor, places: Tensor, weights: Tensor, runs: Tensor, blocks: Tensor
) -> TokenReadings:
    return TokenReadings(
        copy_share=to_array(share.float()),
        uncopied=to_array(uncopied.float()),
        copied=to_array(copied.float()),
        places=to_array(places.int()),
        weights=to_array(weights.float()),
        runs=to_array(runs.to(torch.uint8)),
        blocks=to_array(blocks),
    )
