# SPDX-License-Identifier: Apache-2.0
"""Exact repeats: positions in a memory where the last tokens before a reading token occur again.

    memory   … the old mill stood … the old man …       reader   … the old ▸

    match of 1 token:   the newest positions of "old" after another word than "the"
    match of 2 tokens:  both positions above; for 4 or more, the positions with that many equal tokens

Similar keys find similar text. Equal tokens find literal repeats, at any distance and in any context.

The index is one sorted list for each of `LENGTHS`. The upper bits of an entry are the hash of that many tokens, the
lower bits the position where they end. One sort orders by both, and bisection finds the newest position of a hash.
Positions found are compared token by token, so a hash collision can only cost a slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt64
from torch import Tensor

from longmem.config import REPEAT_MEMORY_TOKENS

LENGTHS = (1, 2, 4, 8)
"""Numbers of equal tokens, including the reading token. The hashes need each length to be twice the previous one."""
LONGEST = 16
"""Largest run length that is counted."""
_POSITION_MASK = np.uint64(REPEAT_MEMORY_TOKENS)
"""Bits of the position: 24 bits, which leave 40 for the hash."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio (Fibonacci hashing): the upper bits of a product with it depend on all bits."""


@dataclass(frozen=True)
class Repeats:
    """Matches of each reading token; `found` is len(LENGTHS) · slots, ordered by length, then newest first."""

    index: Int64[Tensor, "tokens found"]
    """Position in the memory; 0 where `valid` is false."""
    valid: Bool[Tensor, "tokens found"]
    runs: Int64[Tensor, "tokens found"]
    """Number of equal tokens that end at the position and at the reader, at most LONGEST; 0 where `valid` is false."""


class RepeatIndex:
    """Index of all runs of tokens of one memory. Costs one sort of 8 bytes per token for each length."""

    def __init__(self, text: Int64[Tensor, " memory"]) -> None:
        """Build the index.

        Args:
            text: All tokens of the memory, oldest first.
        """
        assert len(text) <= REPEAT_MEMORY_TOKENS, f"{len(text)} tokens, at most {REPEAT_MEMORY_TOKENS} have a position"
        self._text = text
        positions = np.arange(len(text), dtype=np.uint64)
        self._entries = [np.sort(hashes | positions) for hashes in _hashes(text)]

    def find(self, context: Int64[Tensor, " context"], num_reading: int, slots: int) -> Repeats:
        """Find at most `slots` positions for each length: those where the run has this length but not the next one.

        Args:
            context: Tokens after the memory. The last `num_reading` of them read. The token after a match is in the
                memory or the first of `context`, so every reader knows it.
        """
        text = torch.cat([self._text, context])
        num_tail = min(len(text), num_reading + LENGTHS[-1])
        asked = [hashes[-num_reading:] for hashes in _hashes(text[-num_tail:])]
        found = np.concatenate([_newest(*pair, slots) for pair in zip(self._entries, asked, strict=True)], axis=1)
        index = torch.from_numpy(found).to(text.device)
        readers = torch.arange(len(text) - num_reading, len(text), device=text.device)
        runs = run_lengths(text, index.clamp(min=0), readers, LONGEST)
        least = torch.tensor(LENGTHS, device=text.device).repeat_interleave(slots)
        next_length = torch.tensor([*LENGTHS[1:], LONGEST + 1], device=text.device).repeat_interleave(slots)
        valid = (index >= 0) & (runs >= least) & (runs < next_length)
        return Repeats(index.where(valid, 0), valid, runs.where(valid, 0))


def run_lengths(
    text: Int64[Tensor, " text"],
    index: Int64[Tensor, "*found"],
    readers: Int64[Tensor, " tokens"],
    longest: int,
) -> Int64[Tensor, "*found"]:
    """Count the equal tokens that end at each position and at the reader of its row, up to `longest`."""
    if longest == 0:
        return torch.zeros_like(index)
    # row i: the tokens that end at position i - 1; -1 before the first token
    ends = torch.cat([text.new_full((longest,), -1), text]).unfold(0, longest, 1)
    here = ends[readers + 1].view(-1, *[1] * (index.ndim - 1), longest)
    equal = (ends[index + 1] == here).flip(-1).to(torch.uint8)
    runs = equal.cumprod(dim=-1, dtype=torch.uint8).sum(dim=-1, dtype=torch.int64)
    return torch.minimum(runs, index + 1)


def _hashes(text: Int64[Tensor, " text"]) -> Iterator[UInt64[np.ndarray, " text"]]:
    """Yield, for each length, the hash of the tokens that end at each position, with zeros in the bits of the position.

    The first `length - 1` positions have fewer tokens before them; no run of that length ends there.
    """
    mixed = (text.cpu().numpy().astype(np.uint64) + np.uint64(1)) * _FACTOR
    for length in LENGTHS:
        if length > 1:
            older = np.zeros_like(mixed)
            older[length // 2 :] = mixed[: -(length // 2)]
            mixed = ((mixed ^ (mixed >> np.uint64(29))) + older) * _FACTOR
        yield mixed & ~_POSITION_MASK


def _newest(
    entries: UInt64[np.ndarray, " memory"], asked: UInt64[np.ndarray, " tokens"], slots: int
) -> Int64[np.ndarray, "tokens slots"]:
    """Return the newest positions of each hash, or -1 where there are no more."""
    if not len(entries):
        return np.full((len(asked), slots), -1)
    at = np.searchsorted(entries, asked | _POSITION_MASK, side="right")[:, None] - 1 - np.arange(slots)
    there = entries[at.clip(min=0)]
    same = (at >= 0) & (there & ~_POSITION_MASK == asked[:, None])
    return np.where(same, (there & _POSITION_MASK).astype(np.int64), -1)
