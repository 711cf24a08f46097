# SPDX-License-Identifier: Apache-2.0
"""Exact repeats: positions in a memory where the last tokens before a reading token occur again.

    memory   … the old mill stood … the old man …       reader   … the old ▸

    match of 1 token:   the newest positions of "old" after another word than "the"
    match of 2 tokens:  both positions above; for 4 or more, the positions with that many equal tokens

Similar keys find similar text. Equal tokens find literal repeats, at any distance and in any context.

The index is one sorted list for each of `LENGTHS`. The upper bits of an entry are the hash of that many tokens, the
lower bits the position where they end. One sort orders by both, and bisection finds the newest position of a hash.
Positions found are compared token by token, so a hash collision can only cost a slot.

A memory that grows keeps its lists as a few sorted parts of growing size (`GrowingRepeats`), as a log-structured merge
tree does: a segment adds a short part, and short parts are merged into longer ones. The parts hold positions in
ascending order, so that the newest part is asked first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt64
from torch import Tensor

from longmem.config import REPEAT_MEMORY_TOKENS

LENGTHS = (1, 2, 4, 8)
"""Numbers of equal tokens, including the reading token. The hashes need each length to be twice the previous one."""
LONGEST = 16
"""Largest run length that is counted."""
GROWTH = 8
"""Ratio of the lengths of neighbouring parts. Less means more parts to ask, more means longer merges."""
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


SortedPart = list[UInt64[np.ndarray, " _"]]
"""Sorted entries of consecutive positions, one list for each of `LENGTHS`."""


class RepeatIndex:
    """Index of all runs of tokens of one memory. Costs one sort of 8 bytes per token for each length."""

    def __init__(
        self, text: Int64[Tensor, " memory"], parts: Sequence[SortedPart] | None = None, first: int = 0
    ) -> None:
        """Build the index, unless its sorted parts are given.

        Args:
            text: All tokens of the memory, oldest first.
            parts: Parts, the newest first, which may hold older and newer positions too.
            first: Position in the parts of the memory's first token.
        """
        assert len(text) <= REPEAT_MEMORY_TOKENS, f"{len(text)} tokens, at most {REPEAT_MEMORY_TOKENS} have a position"
        self._text = text
        self._parts = [_sorted_part(text, 0, 0)] if parts is None else parts
        self._first = first

    def find(self, context: Int64[Tensor, " context"], num_reading: int, slots: int) -> Repeats:
        """Find at most `slots` positions for each length: those where the run has this length but not the next one.

        Args:
            context: Tokens after the memory. The last `num_reading` of them read. The token after a match is in the
                memory or the first of `context`, so every reader knows it.
        """
        text = torch.cat([self._text, context])
        num_tail = min(len(text), num_reading + LENGTHS[-1])
        asked = [hashes[-num_reading:] for hashes in _hashes(text[-num_tail:])]
        end = self._first + len(self._text)
        newest = [
            _newest([part[which] for part in self._parts], hashes, slots, self._first, end)
            for which, hashes in enumerate(asked)
        ]
        found = np.concatenate(newest, axis=1)
        index = torch.from_numpy(found).to(text.device)
        readers = torch.arange(len(text) - num_reading, len(text), device=text.device)
        runs = run_lengths(text, index.clamp(min=0), readers, LONGEST)
        least = torch.tensor(LENGTHS, device=text.device).repeat_interleave(slots)
        next_length = torch.tensor([*LENGTHS[1:], LONGEST + 1], device=text.device).repeat_interleave(slots)
        valid = (index >= 0) & (runs >= least) & (runs < next_length)
        return Repeats(index.where(valid, 0), valid, runs.where(valid, 0))


class GrowingRepeats:
    """Index of a memory that grows at its end, and forgets its start. Its places are counted from the first one ever.

    Gives the same repeats as an index that is built anew for each view. Threads take turns to make indexes.
    """

    def __init__(self) -> None:
        self._parts: list[SortedPart] = []
        """Parts of consecutive places, the oldest first. Each is replaced as a whole, so that indexes keep theirs."""
        self._base = 0
        """Place of position 0 in the parts."""
        self._end = 0
        """Place after the newest position."""
        self._tail = torch.zeros(0, dtype=torch.int64)
        """Newest tokens, as many as the hash of a run reaches back."""
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        return sum(entries.nbytes for part in self._parts for entries in part)

    def index(self, text: Int64[Tensor, " memory"], first: int) -> RepeatIndex:
        """Return the index of a memory whose first token is at place `first`. Takes the tokens it has not seen yet.

        Views in ascending order are the fast ones. One that begins before what is kept gets an index of its own.
        """
        with self._lock:
            grown = self._grown(text, first)
        return RepeatIndex(text) if grown is None else grown

    def _grown(self, text: Int64[Tensor, " memory"], first: int) -> RepeatIndex | None:
        end = first + len(text)
        if first < self._base:
            return None
        if first > self._end:
            self._parts, self._base, self._end, self._tail = [], first, first, self._tail[:0]
        garbage = first - self._base
        if garbage > end - first or end - self._base > REPEAT_MEMORY_TOKENS:
            self._forget(garbage)
        if end > self._end:
            self._append(text[self._end - first :].cpu())
        return RepeatIndex(text, self._parts[::-1], first - self._base)

    def _append(self, tokens: Int64[Tensor, " added"]) -> None:
        reached = torch.cat([self._tail, tokens])
        self._parts.append(_sorted_part(reached, len(self._tail), self._end - self._base))
        self._end += len(tokens)
        self._tail = reached[-(LENGTHS[-1] - 1) :].clone()
        while len(self._parts) > 1 and len(self._parts[-2][0]) < GROWTH * len(self._parts[-1][0]):
            newer, older = self._parts.pop(), self._parts.pop()
            # stable: the sort that merges two sorted lists in one pass
            self._parts.append(
                [np.sort(np.concatenate(pair), kind="stable") for pair in zip(older, newer, strict=True)]
            )

    def _forget(self, positions: int) -> None:
        """Drop the oldest positions. Each place is copied about once for each time its number of places is dropped."""
        dropped = np.uint64(positions)
        kept = [[entries[(entries & _POSITION_MASK) >= dropped] - dropped for entries in part] for part in self._parts]
        self._parts = [part for part in kept if len(part[0])]
        self._base += positions


def _sorted_part(text: Int64[Tensor, " text"], skipped: int, position: int) -> SortedPart:
    """Return the entries of a text, without those of its first `skipped` tokens; the next one is at `position`."""
    positions = np.arange(position, position + len(text) - skipped, dtype=np.uint64)
    return [np.sort(hashes[skipped:] | positions) for hashes in _hashes(text)]


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
    parts: Sequence[UInt64[np.ndarray, " _"]], asked: UInt64[np.ndarray, " tokens"], slots: int, first: int, end: int
) -> Int64[np.ndarray, "tokens slots"]:
    """Return the newest positions of each hash in [first, end), counted from `first`; -1 where there are no more.

    `parts` are sorted lists, the newest first.
    """
    found = np.full((len(asked), slots), -1)
    for entries in parts:
        if not len(entries) or end == first:
            continue
        at = np.searchsorted(entries, asked | np.uint64(end - 1), side="right")[:, None] - 1 - np.arange(slots)
        there = entries[at.clip(min=0)]
        same = (at >= 0) & (there & ~_POSITION_MASK == asked[:, None])
        positions = np.where(same, (there & _POSITION_MASK).astype(np.int64) - first, -1).clip(min=-1)
        # behind those of newer parts
        both = np.concatenate([found, positions], axis=1)
        found = np.take_along_axis(both, np.argsort(both < 0, axis=1, kind="stable")[:, :slots], axis=1)
    return found
