# SPDX-License-Identifier: Apache-2.0
"""Demonstrations as a document: whole examples packed into segments, encoded once and read by many items.

    segment 0                      segment 1
    ├ start, demo, demo, demo ┤    ├ demo, demo, demo, demo ┤     …
                              └ free: the next example would not fit

No example is split. A block may be shorter than its segment; free positions hold no tokens and are never read.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from jaxtyping import Int32

from longmem.errors import ConfigError, DocumentError
from longmem.types import DocumentKey, Segment

Tokens = Int32[np.ndarray, "..."]
"""Token ids of one example or segment."""


def pack(
    examples: Sequence[Tokens], segment_tokens: int, start_token: int | None, pack_tokens: int | None = None
) -> list[Tokens]:
    """Pack examples in order into one array per segment, of at most `pack_tokens` (None: `segment_tokens`).

    An example longer than `pack_tokens` has a segment of its own. The first segment begins with exactly one start token
    if there is one. Raises DocumentError for an example that is longer than a segment or has no tokens.
    """
    limit = segment_tokens if pack_tokens is None else min(pack_tokens, segment_tokens)
    parts: list[list[Tokens]] = []
    if start_token is not None and not (examples and examples[0][:1].tolist() == [start_token]):
        parts.append([np.array([start_token], dtype=np.int32)])
    first_room = segment_tokens - len(parts)
    room = limit - len(parts)
    for number, example in enumerate(examples, start=1):
        if not len(example):
            raise DocumentError(f"demonstration {number} has no tokens: expected at least one; leave it out")
        if len(example) > (first_room if number == 1 else segment_tokens):
            raise DocumentError(
                f"demonstration {number} has {len(example)} tokens, a segment holds {segment_tokens} (the first one "
                "with the start token): leave it out, or use longer segments"
            )
        if not parts or (len(example) > room and number > 1):
            parts.append([])
            room = limit
        parts[-1].append(example)
        room -= len(example)
    return [np.concatenate(part) for part in parts]


def positions_of(examples: Sequence[Tokens], packed: Sequence[Tokens], segment_tokens: int) -> list[int]:
    """Return the position in the document at which each packed example begins."""
    index, used = 0, sum(map(len, packed)) - sum(map(len, examples))
    positions = []
    for example in examples:
        if used + len(example) > len(packed[index]):
            index, used = index + 1, 0
        positions.append(index * segment_tokens + used)
        used += len(example)
    return positions


def digest(packed: Sequence[Tokens]) -> str:
    """Return the XXH3-128 of packed demonstrations, which depends on tokens and segment borders."""
    hashed = xxhash.xxh3_128()
    for part in packed:
        hashed.update(f"{len(part)},".encode())
        hashed.update(np.ascontiguousarray(part).data)
    return hashed.hexdigest()


def segments_of(key: DocumentKey, packed: Sequence[Tokens], segment_tokens: int) -> list[Segment]:
    """Return packed demonstrations as the segments of a document."""
    segments = []
    for index, part in enumerate(packed):
        tokens = part.copy()
        tokens.flags.writeable = False
        segments.append(Segment(key, index, index * segment_tokens, tokens, tokens[:0]))
    return segments


def check_fits(segments: Sequence[Segment], memory_tokens: int, what: str, pack_tokens: int | None = None) -> None:
    """Raise ConfigError if a memory of `memory_tokens` does not reach back to the first packed demonstration.

    `pack_tokens` are those of a pack that may be made longer; None where segments are filled.
    """
    needed = segments[-1].end_token
    if needed > memory_tokens:
        longer = "" if pack_tokens is None else f"longer packs than --pack-tokens {pack_tokens}, "
        raise ConfigError(
            f"{what}: packed whole they take {needed:,} positions, the memory has {memory_tokens:,}: use {longer}fewer "
            f"demonstrations in memory, or --memory-tokens {needed}"
        )
