# SPDX-License-Identifier: Apache-2.0
"""Choice of the memory tokens that every layer reads: the near past, and older blocks that resemble it.

The newest `segment_tokens` of the memory ask with their keys of the memory layer. No token of the reading segment takes
part, so that no prediction depends on a token after it.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView

BEST_BLOCKS = 8
"""Blocks that each asking token votes for."""
VOTE_POWER = 4
"""Exponent of a similarity in a vote: a few close matches outweigh many vague ones."""


def tokens_to_read(view: MemoryView, config: LongMemConfig) -> Int64[Tensor, " read"] | None:
    """Return the places of the tokens to read, oldest first; None for an empty memory."""
    count = view.num_chunks
    near = min(config.near_tokens, count)
    places = torch.arange(count - near, count, device=view.keys.device)
    older = chosen_blocks(view, config, count - near)
    if older is not None:
        offsets = torch.arange(config.block_tokens, device=older.device)
        places = torch.cat([(older[:, None] + offsets).flatten(), places])
    return places if len(places) else None


def chosen_blocks(view: MemoryView, config: LongMemConfig, num_older: int) -> Int64[Tensor, " blocks"] | None:
    """Return the first places of the chosen blocks among the `num_older` oldest tokens, ascending; None for none.

    Blocks are counted from the newest token backwards; what is left at the oldest end is never read.
    """
    num_blocks = num_older // config.block_tokens
    if not num_blocks or not config.read_blocks:
        return None
    first = num_older - num_blocks * config.block_tokens
    wanted = min(config.read_blocks, num_blocks)
    keys = view.keys[:, :, 0].transpose(0, 1).flatten(1)
    asking = keys[-config.segment_tokens :].float()
    similarity = asking @ keys[first:num_older].float().T
    best = similarity.unflatten(1, (num_blocks, config.block_tokens)).amax(dim=2).topk(min(BEST_BLOCKS, num_blocks))
    votes = torch.zeros(num_blocks, dtype=torch.float64, device=keys.device)
    # float64: the sum does not depend on its order beyond what a comparison can see
    votes.scatter_add_(0, best.indices.flatten(), best.values.double().clamp(min=0).pow(VOTE_POWER).flatten())
    order = votes.topk(wanted).indices.sort().values
    return first + order * config.block_tokens
