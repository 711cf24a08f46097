"""Exact repeats: where in a memory the last tokens of a reader stand again.

    memory   … the old mill stood … the old man …       reader   … the old ▸

    one token again:  the newest places of "old" after another word than "the"
    two tokens again: both places above;  four or more: wherever so many stand again

Similar keys find what is alike; equal tokens find what was said, however long ago and whatever stood around it.

The index is one sorted list for each of `LENGTHS`: above, the hash of so many tokens, below, the place where they end.
One sort orders by both, and bisection finds the newest place of a hash. What it finds is compared token by token, so a
collision can only cost a slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt64
from torch import Tensor

from longmem.config import REPEAT_MEMORY_TOKENS

LENGTHS = (1, 2, 4, 8)
"""Equal tokens, the reader's own among them. Each is twice the one before: so the hashes are made."""
LONGEST = 16
"""Runs are counted up to here."""
_PLACE_MASK = np.uint64(REPEAT_MEMORY_TOKENS)
"""24 bits for the place leave 40 for the hash."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, whose bits look random: leading bits of a product with it depend on all bits."""


@dataclass(frozen=True)
class Repeats:
    """What each reading token found; `found` is len(LENGTHS) · slots: by length, and newest first for each."""

    index: Int64[Tensor, "tokens found"]
    """Place in the memory; 0 where `valid` is false."""
    valid: Bool[Tensor, "tokens found"]
    runs: Int64[Tensor, "tokens found"]
    """Equal tokens up to the place and up to the reader, at most LONGEST; 0 where `valid` is false."""


class RepeatIndex:
    """Where every run of tokens of one memory ends. Costs one sort of 8 bytes a token for each length."""

    def __init__(self, text: Int64[Tensor, " places"]) -> None:
        """`text`: all tokens of the memory, oldest first."""
        assert len(text) <= REPEAT_MEMORY_TOKENS, f"{len(text)} tokens, at most {REPEAT_MEMORY_TOKENS} have a place"
        self._text = text
        places = np.arange(len(text), dtype=np.uint64)
        self._entries = [np.sort(hashes | places) for hashes in _hashes(text)]

    def find(self, context: Int64[Tensor, " context"], num_reading: int, slots: int) -> Repeats:
        """At most `slots` places for each length: those where the run has this length and not the next one.

        `context` follows the memory, and its last `num_reading` tokens read. What follows a place is in the memory or
        the first token of `context`, which every reader knows.
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
    """How many tokens ending at each place equal those ending at the reader of its row, counted up to `longest`."""
    if longest == 0:
        return torch.zeros_like(index)
    # row i: the tokens that end at place i - 1, where -1 stands for those before the first
    ends = torch.cat([text.new_full((longest,), -1), text]).unfold(0, longest, 1)
    here = ends[readers + 1].view(-1, *[1] * (index.ndim - 1), longest)
    equal = (ends[index + 1] == here).flip(-1).to(torch.uint8)
    runs = equal.cumprod(dim=-1, dtype=torch.uint8).sum(dim=-1, dtype=torch.int64)
    return torch.minimum(runs, index + 1)


def _hashes(text: Int64[Tensor, " text"]) -> Iterator[UInt64[np.ndarray, " text"]]:
    """For each length, hashes of the tokens that end at each place, with room for a place below. The first places have
    fewer tokens before them; no run of that length ends there."""
    mixed = (text.cpu().numpy().astype(np.uint64) + np.uint64(1)) * _FACTOR
    for length in LENGTHS:
        if length > 1:
            older = np.zeros_like(mixed)
            older[length // 2 :] = mixed[: -(length // 2)]
            mixed = ((mixed ^ (mixed >> np.uint64(29))) + older) * _FACTOR
        yield mixed & ~_PLACE_MASK


def _newest(
    entries: UInt64[np.ndarray, " places"], asked: UInt64[np.ndarray, " tokens"], slots: int
) -> Int64[np.ndarray, "tokens slots"]:
    """The last places of each hash, -1 where there are no more."""
    if not len(entries):
        return np.full((len(asked), slots), -1)
    at = np.searchsorted(entries, asked | _PLACE_MASK, side="right")[:, None] - 1 - np.arange(slots)
    there = entries[at.clip(min=0)]
    same = (at >= 0) & (there & ~_PLACE_MASK == asked[:, None])
    return np.where(same, (there & _PLACE_MASK).astype(np.int64), -1)
