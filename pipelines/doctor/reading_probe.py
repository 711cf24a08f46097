# SPDX-License-Identifier: Apache-2.0
"""Probe of a memory at every layer: which of its tokens a backbone should read, measured on one text.

Every segment is encoded once, and those with older blocks to choose from are read once for each way. Ways are compared
with the settings of the model over the same targets, without copies.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32

from longmem.config import BlockChoice
from longmem.errors import ConfigError, DocumentError
from longmem.memory.context import LocalMemory, text_key
from longmem.model.longmem import LongMem
from longmem.sidenet.cache_reader import CacheReader
from longmem.text.segments import cut_segments

MOST_SEGMENTS = 4
STRETCH = 256
"""Neighbouring targets that count as one observation of a difference: those of one stretch depend on each other."""
CLEAR = 2.0
"""Standard errors from which a difference is told from chance."""
ALONE = "nothing"


@dataclass(frozen=True)
class ReadingWay:
    """One way to read, and what it gave."""

    name: str
    settings: dict[str, Any] | None
    """Changed settings of the model; None for a segment alone, which reads nothing."""
    perplexity: float
    change: float
    """Change of nats per token against the settings of the model; negative is better."""
    error: float
    """Standard error of the change, over stretches of `STRETCH` targets."""

    @property
    def is_clear(self) -> bool:
        """True if the change can be told from chance."""
        return abs(self.change) > CLEAR * self.error


@dataclass(frozen=True)
class ReadingProbe:
    """Ways to read, the best first, on targets of one text."""

    ways: list[ReadingWay]
    num_tokens: int

    @property
    def advice(self) -> ReadingWay | None:
        """The best way that is clearly better than the settings of the model, if any; random blocks are a control."""
        clear = (way for way in self.ways if way.settings and way.change < 0 and way.is_clear)
        return next((way for way in clear if way.settings != {"block_choice": "random"}), None)

    @property
    def is_useless(self) -> bool:
        """True if reading nothing is clearly better than the settings of the model."""
        return any(way.settings is None and way.change < 0 and way.is_clear for way in self.ways)


def ways_of(model: LongMem) -> dict[str, dict[str, Any]]:
    """Return the ways that are compared, by name: changed settings of the model, none for the first."""
    own = model.config
    ways: dict[str, dict[str, Any]] = {f"near past and blocks by {own.block_choice}": {}}
    for choice in get_args(BlockChoice):
        if choice != own.block_choice:
            ways[f"near past and blocks by {choice}"] = {"block_choice": choice}
    longer = own.near_tokens + own.read_blocks * own.block_tokens
    return ways | {
        "near past alone": {"read_blocks": 0},
        "near past alone, as long as both": {"near_tokens": longer, "read_blocks": 0},
    }


def probe_reading(
    model: LongMem,
    text: str,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
    limit_tokens: int | None = None,
) -> ReadingProbe:
    """Measure on the beginning of a text; `tell` gets the forwards that are done, and their number.

    `limit_tokens` is the number of tokens to read, by default those of `MOST_SEGMENTS` segments.

    Raises ConfigError for a model that stores one layer or reads no blocks, DocumentError for a text without a choice.
    """
    reader, own = model.sidenet, model.config
    if not isinstance(reader, CacheReader) or not own.read_blocks:
        raise ConfigError("expected a model that reads blocks at every layer: use --memory-layers all")
    sequence = model.tokenizer.sequence(text)[: (limit_tokens or MOST_SEGMENTS * own.segment_tokens) + 1]
    segments = [each for each in cut_segments(text_key(None), sequence, own.segment_tokens) if len(each.targets)]
    most_read = own.near_tokens + own.read_blocks * own.block_tokens
    read = {segment.index for segment in segments if segment.start_token > most_read + own.block_tokens}
    if not read:
        needed = ((most_read + own.block_tokens) // own.segment_tokens + 1) * own.segment_tokens + 1
        if limit_tokens is not None and limit_tokens < needed:
            raise ConfigError(f"--limit-tokens must be at least {needed} with these sizes, got {limit_tokens}")
        raise DocumentError(
            f"expected a text of more than {needed} tokens, so that a segment of {own.segment_tokens} has more blocks "
            f"to choose from than the {own.read_blocks} it reads, got {len(sequence)}; give a longer text"
        )
    ways, past = ways_of(model), LocalMemory(model)
    found: dict[str, list[Float32[np.ndarray, " targets"]]] = {name: [] for name in (ALONE, *ways)}
    copy_head, done, total = reader.copy_head, 0, len(segments) + len(read) * len(ways)
    try:
        reader.copy_head = None
        for segment in segments:
            encoded, done = model.encode(segment), done + 1
            tell(done, total)
            if segment.index in read:
                found[ALONE].append(encoded.backbone_logprobs)
                for name, settings in ways.items():
                    reader.config = replace(own, **settings)
                    score = model.score_segment(segment, encoded.block.keys, encoded.state, past.view(segment.index))
                    found[name].append(score.logprobs)
                    done += 1
                    tell(done, total)
            past.accept(encoded.block)
    finally:
        reader.config, reader.copy_head = own, copy_head
    nats = {name: -np.concatenate(parts).astype(np.float64) for name, parts in found.items()}
    reference = nats[next(iter(ways))]
    measured = [_way(name, ways.get(name), each, reference) for name, each in nats.items()]
    return ReadingProbe(sorted(measured, key=lambda way: way.perplexity), len(reference))


def _way(name: str, settings: dict[str, Any] | None, nats: np.ndarray, reference: np.ndarray) -> ReadingWay:
    differences = nats - reference
    stretches = np.array_split(differences, max(2, len(differences) // STRETCH))
    error = np.std([part.mean() for part in stretches], ddof=1) / math.sqrt(len(stretches))
    return ReadingWay(name, settings, float(np.exp(nats.mean())), float(differences.mean()), float(error))
