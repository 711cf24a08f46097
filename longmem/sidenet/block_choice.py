# SPDX-License-Identifier: Apache-2.0
"""Choice of the memory tokens that every layer reads: the near past, and older blocks that resemble what asks.

    a document's segment         its predecessor in memory asks     │ sink │ blocks by age │ near past │ segment
    a prompt that continues it   the end of the prompt asks         │ sink │ blocks, best last │ near past │ prompt
    a prompt of its own          the end of the prompt asks         │ sink │ near past │ blocks, best last │ prompt

All that asks lies before the first predicted token, so that no prediction depends on a token after it. It asks with
keys of the memory layer, or with token ids. A model attends best to what is near: the best block is nearest to a
prompt, and the near past only where the prompt continues it. Blocks that follow each other stay together. For a prompt
of its own the near past is memory like any other, so that its best blocks are read once more, next to the prompt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from longmem.config import LongMemConfig
from longmem.dtypes import to_array
from longmem.memory.view import MemoryView
from longmem.retrieval.base import AbstractChunkSearch
from longmem.sidenet.token_overlap import TokenOverlap

BEST_BLOCKS = 8
"""Blocks that each asking token votes for."""
SEARCHED_KEYS = 32
"""Keys that are searched for each asking token. In a novel they are in 28 blocks on average, never in fewer than 8."""
ASKING_AT_ONCE = 256
"""Asking tokens that are compared with the memory together: of 65,536 tokens, 64 MiB instead of 1 GiB for 4,096."""
VOTE_POWER = 4
"""Exponent of a similarity in a vote: a few close matches outweigh many vague ones."""
PROMPT_TOKENS = 128
"""Newest tokens of a prompt that ask. A question is mostly at its end."""
ANSWER_TOKENS = 16
"""Tokens behind a match that a prompt wants too, because an answer follows what the question repeats."""


@dataclass(frozen=True)
class Asking:
    """Tokens that ask for blocks."""

    tokens: Int64[Tensor, " asking"]
    keys: Float32[Tensor, "asking width"]
    """Keys of the memory layer in the form of the view, all heads concatenated."""
    ahead: int = 0
    """Tokens behind a match that are wanted too: the last tokens of a block also count for the next one."""
    best_last: bool = False
    """True to read the best block last, with its neighbours; False to read blocks by age."""
    continues: bool = True
    """True where the text that asks continues the memory."""

    @classmethod
    def near_past(cls, view: MemoryView, config: LongMemConfig) -> "Asking":
        """Return the tokens that ask for a segment of a document."""
        keys = view.keys[:, -config.segment_tokens :, 0].transpose(0, 1).flatten(1)
        return cls(view.text[-config.segment_tokens :], keys.float())

    @classmethod
    def prompt(
        cls, tokens: Int[Tensor, " prompt"], keys: Float[Tensor, "prompt kv_heads head_dim"], *, continues: bool
    ) -> "Asking":
        """Return the tokens that ask for what follows a prompt; `keys` have the form of the view."""
        newest = slice(-PROMPT_TOKENS, None)
        return cls(tokens[newest].long(), keys[newest].flatten(1).float(), ANSWER_TOKENS, True, continues)


def tokens_to_read(
    view: MemoryView,
    config: LongMemConfig,
    asking: Asking | None = None,
    search: AbstractChunkSearch | None = None,
) -> Int64[Tensor, " read"] | None:
    """Return the places of the tokens to read, in the order of their new positions; None for an empty memory.

    Without `asking`, the near past of the memory asks. A `search` that skips products makes the choice faster, and
    changes it only where rounding decides.
    """
    count = view.num_chunks
    near = min(config.near_tokens, count)
    parts = [torch.arange(count - near, count, device=view.keys.device)]
    continues = asking is None or asking.continues
    chosen = chosen_blocks(view, config, count - near if continues else count, asking, search)
    if chosen is not None:
        offsets = torch.arange(config.block_tokens, device=chosen.device)
        parts.insert(0 if continues else 1, (chosen[:, None] + offsets).flatten())
    places = torch.cat(parts)
    return places if len(places) else None


def chosen_blocks(
    view: MemoryView,
    config: LongMemConfig,
    num_older: int,
    asking: Asking | None = None,
    search: AbstractChunkSearch | None = None,
) -> Int64[Tensor, " blocks"] | None:
    """Return the first places of the chosen blocks among the `num_older` oldest tokens in reading order, or None.

    Blocks are counted from the newest token backwards; what is left at the oldest end is never read.
    """
    num_blocks = num_older // config.block_tokens
    if not num_blocks or not config.read_blocks:
        return None
    blocks = BlockRow(view, num_older - num_blocks * config.block_tokens, num_blocks, config.block_tokens)
    asking = asking or Asking.near_past(view, config)
    best = _SCORES[config.block_choice](blocks, asking, search).topk(min(config.read_blocks, num_blocks)).indices
    order = best_run_last(best) if asking.best_last else best.sort().values
    return blocks.first + order * config.block_tokens


def best_run_last(best: Int64[Tensor, " blocks"]) -> Int64[Tensor, " blocks"]:
    """Return blocks, given best first, in reading order: runs of neighbours by age, the run with the best one last."""
    blocks, rank = best.sort()
    run = torch.cat([blocks[:1] * 0, (blocks.diff() > 1).cumsum(0)])
    best_rank = torch.full_like(blocks, len(best)).scatter_reduce(0, run, rank, "amin")
    return blocks[best_rank[run].argsort(descending=True, stable=True)]


@dataclass(frozen=True)
class BlockRow:
    """Consecutive blocks of a view."""

    view: MemoryView
    first: int
    """First place of the oldest block."""
    count: int
    size: int
    """Tokens of a block."""

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + self.count * self.size)

    @property
    def keys(self) -> Float[Tensor, "places width"]:
        """Keys of the memory layer in the form and type of the view, all heads concatenated."""
        return self.view.keys[:, self.places, 0].transpose(0, 1).flatten(1)


def score_by_keys(
    blocks: BlockRow, asking: Asking, search: AbstractChunkSearch | None = None
) -> Float64[Tensor, " blocks"]:
    """Return the votes of the asking tokens: each votes for the blocks that hold the most similar keys."""
    if search is not None and search.skips_products:
        matches = _searched_matches(blocks, asking.keys, search)
    else:
        matches = _compared_matches(blocks, asking.keys)
    scores = torch.zeros(blocks.count + 1, dtype=torch.float64, device=asking.keys.device)
    for found in matches:
        # float64: the sum does not depend on its order beyond what a comparison can see
        votes = found.similarity.double().clamp(min=0).pow(VOTE_POWER)
        scores.scatter_add_(0, found.block.flatten(), votes.flatten())
        # what follows a match at the end of a block is in the next block
        continued = found.offset >= blocks.size - asking.ahead
        scores.scatter_add_(0, found.block[continued] + 1, votes[continued])
    return scores[:-1]


class _Matches(NamedTuple):
    """The best blocks of each asking token, and in each of them its closest key."""

    block: Int64[Tensor, "asking best"]
    offset: Int64[Tensor, "asking best"]
    """Place of the key in its block."""
    similarity: Float32[Tensor, "asking best"]


def _compared_matches(blocks: BlockRow, asking: Float32[Tensor, "asking width"]) -> Iterator[_Matches]:
    """Compare with all keys."""
    keys = blocks.keys.float()
    for some in asking.split(ASKING_AT_ONCE):
        closest, at = (some @ keys.T).unflatten(1, (blocks.count, blocks.size)).max(dim=2)
        # of equal ones the oldest, as the search finds them: a text may repeat itself
        similarity, block = closest.sort(dim=1, descending=True, stable=True)
        best = block[:, : min(BEST_BLOCKS, blocks.count)]
        yield _Matches(best, at.gather(1, best), similarity[:, : best.shape[1]])


def _searched_matches(
    blocks: BlockRow, asking: Float32[Tensor, "asking width"], search: AbstractChunkSearch
) -> Iterator[_Matches]:
    """Find the closest keys of each token. Tokens whose closest keys are in too few blocks compare with all keys.

    The first key found of a block is its closest, so the first blocks found are the best: the result is that of
    `_compared_matches`. Measured, 1,024 tokens and 40,000 keys of a novel take 57 ms instead of 319.
    """
    wanted = min(BEST_BLOCKS, blocks.count)
    hits = search.search(asking[:, None], blocks.keys[None], SEARCHED_KEYS)
    ids, similarity = hits.ids[:, 0], hits.scores[:, 0]
    block = ids.div(blocks.size, rounding_mode="floor")
    found_before = (block[:, :, None] == block[:, None, :]).tril(-1).any(dim=2)
    new = ~found_before & (ids >= 0)
    best = new & (new.cumsum(dim=1) <= wanted)
    enough = best.sum(dim=1) == wanted
    at = best[enough].nonzero()[:, 1].unflatten(0, (-1, wanted))
    yield _Matches(*(each[enough].gather(1, at) for each in (block, ids % blocks.size, similarity)))
    if not enough.all():
        yield from _compared_matches(blocks, asking[~enough])


def score_by_overlap(
    blocks: BlockRow, asking: Asking, _search: AbstractChunkSearch | None = None
) -> Float64[Tensor, " blocks"]:
    """Return the cosine of idf-weighted token counts of the asking tokens and of each block."""
    text = to_array(blocks.view.text[blocks.places]).reshape(blocks.count, blocks.size)
    ahead = min(asking.ahead, blocks.size)
    # tokens in front of a block count twice: as its own, and as those of the block that they are in
    tokens = np.concatenate([text.ravel(), text[:-1, blocks.size - ahead :].ravel()])
    owner = np.concatenate(
        [np.repeat(np.arange(blocks.count), blocks.size), np.repeat(np.arange(1, blocks.count), ahead)]
    )
    found = TokenOverlap(tokens, owner, blocks.count).similarity(to_array(asking.tokens))
    return torch.from_numpy(found).to(blocks.view.keys.device)


def score_by_both(
    blocks: BlockRow, asking: Asking, search: AbstractChunkSearch | None = None
) -> Float64[Tensor, " blocks"]:
    """Return the mean of both scores, each divided by its maximum."""
    parts = [score(blocks, asking, search) for score in (score_by_keys, score_by_overlap)]
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([part / part.max().clamp(min=tiny) for part in parts]).mean(dim=0)


def score_at_random(
    blocks: BlockRow, _asking: Asking, _search: AbstractChunkSearch | None = None
) -> Float64[Tensor, " blocks"]:
    """Return random scores; one position of a document has the same on every worker."""
    random = torch.Generator().manual_seed(blocks.view.end_token)
    return torch.rand(blocks.count, dtype=torch.float64, generator=random).to(blocks.view.keys.device)


_SCORES: dict[str, Callable[[BlockRow, Asking, AbstractChunkSearch | None], Tensor]] = {
    "keys": score_by_keys,
    "overlap": score_by_overlap,
    "both": score_by_both,
    "random": score_at_random,
}
