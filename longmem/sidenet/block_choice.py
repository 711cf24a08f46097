# SPDX-License-Identifier: Apache-2.0
"""Choice of the memory tokens that every layer reads: the near past, and older blocks that resemble it.

The newest `segment_tokens` of the memory ask for blocks, with their keys of the memory layer or with their token ids.
No token of the reading segment takes part, so that no prediction depends on a token after it.
"""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from longmem.config import LongMemConfig
from longmem.dtypes import to_array
from longmem.memory.view import MemoryView
from longmem.sidenet.token_overlap import TokenOverlap

BEST_BLOCKS = 8
"""Blocks that each asking token votes for."""
ASKING_AT_ONCE = 256
"""Asking tokens that are compared with the memory together: of 65,536 tokens, 64 MiB instead of 1 GiB for 4,096."""
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
    scores = _SCORES[config.block_choice](view, config, first, num_blocks)
    order = scores.topk(min(config.read_blocks, num_blocks)).indices.sort().values
    return first + order * config.block_tokens


def score_by_keys(view: MemoryView, config: LongMemConfig, first: int, num_blocks: int) -> Float64[Tensor, " blocks"]:
    """Return the votes of the asking tokens: each votes for the blocks that hold the most similar keys."""
    keys = view.keys[:, :, 0].transpose(0, 1).flatten(1)
    older = keys[first : first + num_blocks * config.block_tokens].float()
    votes = torch.zeros(num_blocks, dtype=torch.float64, device=keys.device)
    for asking in keys[-config.segment_tokens :].float().split(ASKING_AT_ONCE):
        similarity = (asking @ older.T).unflatten(1, (num_blocks, config.block_tokens))
        best = similarity.amax(dim=2).topk(min(BEST_BLOCKS, num_blocks))
        # float64: the sum does not depend on its order beyond what a comparison can see
        votes.scatter_add_(0, best.indices.flatten(), best.values.double().clamp(min=0).pow(VOTE_POWER).flatten())
    return votes


def score_by_overlap(
    view: MemoryView, config: LongMemConfig, first: int, num_blocks: int
) -> Float64[Tensor, " blocks"]:
    """Return the cosine of idf-weighted token counts of the asking tokens and of each block."""
    text = to_array(view.text)
    blocks = text[first : first + num_blocks * config.block_tokens]
    owner = np.repeat(np.arange(num_blocks), config.block_tokens)
    found = TokenOverlap(blocks, owner, num_blocks).similarity(text[-config.segment_tokens :])
    return torch.from_numpy(found).to(view.keys.device)


def score_by_both(view: MemoryView, config: LongMemConfig, first: int, num_blocks: int) -> Float64[Tensor, " blocks"]:
    """Return the mean of both scores, each divided by its maximum."""
    parts = [score(view, config, first, num_blocks) for score in (score_by_keys, score_by_overlap)]
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([part / part.max().clamp(min=tiny) for part in parts]).mean(dim=0)


def score_at_random(
    view: MemoryView, _config: LongMemConfig, _first: int, num_blocks: int
) -> Float64[Tensor, " blocks"]:
    """Return random scores; one position of a document has the same on every worker."""
    random = torch.Generator().manual_seed(view.end_token)
    return torch.rand(num_blocks, dtype=torch.float64, generator=random).to(view.keys.device)


_SCORES = {"keys": score_by_keys, "overlap": score_by_overlap, "both": score_by_both, "random": score_at_random}
