# SPDX-License-Identifier: Apache-2.0
"""Parts of a memory that every layer reads: what each is worth alone, and controls that must be worth nothing.

Every segment is encoded once, and read once for each row. Rows that read nothing are the backbone alone, in segments
and in overlapping windows. A gain that another book's memory or a shuffled one also gives is no memory of the book.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import base
from benchmarks.memory_scoring import OtherBook, ReadingChange, own_memory
from benchmarks.paired import Chosen, compare_scores
from longmem.errors import ConfigError
from longmem.memory.context import LocalMemory, text_key
from longmem.memory.layer_states import LayerStates
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.evaluation_window import cut_windows
from longmem.scoring.metrics import Interval
from longmem.scoring.window_scores import score_window
from longmem.sidenet.cache_reader import CacheReader
from longmem.text.segments import cut_segments
from longmem.types import Segment

ALL = "all parts"
ALONE = "segments alone"
POSITIONS = (0, 2_048, 8_192, 16_384, 32_768, 65_536)
"""Lower bounds of buckets of book tokens before the target."""


@dataclass(frozen=True)
class Part:
    """Settings and controls of one row."""

    settings: dict[str, Any]
    """Changed fields of its configuration."""
    copies: bool = True
    other_book: bool = False
    shuffled: bool = False


NOTHING = {"near_tokens": 0, "read_blocks": 0}
PARTS = {
    ALL: Part({}),
    "copies only": Part(NOTHING),
    "near past only": Part({"read_blocks": 0}, copies=False),
    "blocks only": Part({"near_tokens": 0}, copies=False),
    "near past and blocks": Part({}, copies=False),
    "near past and copies": Part({"read_blocks": 0}),
    "all, blocks by overlap": Part({"block_choice": "overlap"}),
    "all, blocks by both": Part({"block_choice": "both"}),
    "all, random blocks": Part({"block_choice": "random"}),
    "all, of another book": Part({}, other_book=True),
    "all, keys with values of other places": Part({}, shuffled=True),
}


@dataclass(frozen=True)
class PartRow:
    """Results of one row on all documents."""

    name: str
    perplexity: Interval
    changes: dict[str, Interval]
    """Relative change against each reference, paired over segments."""
    by_position: dict[int, dict[str, Interval]]
    """Changes for the targets from a position of the book up to the next one."""


def run(
    model: LongMem, documents: Mapping[str, base.Sequence], windows: Sequence[tuple[int, int]], only: Sequence[str]
) -> Iterator[list[PartRow]]:
    """Score every document in every part of `only` (all where empty), and yield the rows of all documents so far; the
    first rows are the references.

    Raises ConfigError for a model that reads one layer, an unknown part, or a single document.
    """
    if not isinstance(model.sidenet, CacheReader):
        raise ConfigError("expected a model that reads the memory at every layer (memory_layers=all)")
    if unknown := sorted(set(only) - set(PARTS)):
        raise ConfigError(f"no part is named {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    if len(documents) < 2:
        raise ConfigError("expected at least two documents: each reads the memory of another as a control")
    parts = {name: part for name, part in PARTS.items() if not only or name in only}
    scores: dict[str, list[base.LogProbs]] = {}
    sequences = list(documents.values())
    for index, sequence in enumerate(sequences):
        for window, stride in windows:
            found = [score_window(model, each, str(index)) for each in cut_windows(sequence, window, stride)]
            scores.setdefault(f"windows of {window:,}, stride {stride:,}", []).append(np.concatenate(found))
        other = sequences[(index + 1) % len(sequences)]
        for name, logprobs in score_parts(model, sequence, other, parts).items():
            scores.setdefault(name, []).append(logprobs)
        references = [ALONE, *(name for name in scores if name.startswith("windows"))]
        positions = [np.arange(1, len(each)) for each in sequences[: index + 1]]
        size = model.config.segment_tokens
        yield [_row(name, scores, references, size, positions) for name in [*references, *parts]]


def score_parts(
    model: LongMem, sequence: base.Sequence, other: base.Sequence, parts: Mapping[str, Part]
) -> dict[str, base.LogProbs]:
    """Return log-probabilities of a document's targets for each part, and of its segments alone."""
    past, others = LocalMemory(model), OtherBook(model, other)
    found: dict[str, list[base.LogProbs]] = {name: [] for name in (ALONE, *parts)}
    for segment in cut_segments(text_key(None), sequence, model.config.segment_tokens):
        encoded = model.encode(segment)
        view = past.view(segment.index)
        found[ALONE].append(encoded.backbone_logprobs)
        for name, part in parts.items():
            change: ReadingChange = others if part.other_book else shuffled_layers if part.shuffled else own_memory
            with reading(model, part):
                score = model.score_segment(segment, encoded.block.keys, encoded.state, change(segment, view))
            found[name].append(score.logprobs)
        past.accept(encoded.block)
    return {name: np.concatenate(logprobs) for name, logprobs in found.items()}


@contextmanager
def reading(model: LongMem, part: Part) -> Iterator[None]:
    """Let the model read only a part of its memory."""
    reader = model.sidenet
    assert isinstance(reader, CacheReader), "checked by run"
    config, copy_head = reader.config, reader.copy_head
    try:
        reader.config = replace(config, **part.settings)
        reader.copy_head = copy_head if part.copies else None
        yield
    finally:
        reader.config, reader.copy_head = config, copy_head


def shuffled_layers(segment: Segment, view: MemoryView | None) -> MemoryView | None:
    """Return the document's own keys, each with the values (of every layer) and the token of another place."""
    if view is None:
        return None
    assert view.layer_values is not None, "a view of one layer"
    random = torch.Generator().manual_seed(segment.index)
    order = torch.randperm(view.num_chunks, generator=random).to(view.keys.device)
    return replace(
        view,
        values=view.values[:, order],
        tokens=view.tokens[order],
        layer_values=LayerStates.of(view.layer_values.gather(order)),
    )


def _row(
    name: str,
    scores: Mapping[str, list[base.LogProbs]],
    references: Sequence[str],
    segment_tokens: int,
    positions: Sequence[np.ndarray],
) -> PartRow:
    own = scores[name]
    by_position = {}
    for low, high in zip(POSITIONS, [*POSITIONS[1:], None], strict=True):
        chosen: list[Chosen] = [(each >= low) & (high is None or each < high) for each in positions]
        if any(part.any() for part in chosen):
            by_position[low] = {
                other: compare_scores(own, scores[other], segment_tokens, chosen).change for other in references
            }
    return PartRow(
        name=name,
        perplexity=compare_scores(own, own, segment_tokens).token.longmem,
        changes={other: compare_scores(own, scores[other], segment_tokens).change for other in references},
        by_position=by_position,
    )


def figures(rows: Sequence[PartRow]) -> dict[str, Any]:
    """Return all rows in JSON form."""
    return {"rows": [asdict(row) for row in rows]}


def markdown(rows: Sequence[PartRow]) -> str:
    """Return a table of all rows, and one of the gain of all parts by position in the book."""
    references = list(rows[0].changes)
    lines = [
        "| read at every layer | perplexity | " + " | ".join(f"against {name}" for name in references) + " |",
        "|---|--:|" + "--:|" * len(references),
    ]
    for row in rows:
        changes = ("" if name == row.name else _percent(change) for name, change in row.changes.items())
        lines.append(f"| {row.name} | {row.perplexity.value:.2f} | " + " | ".join(changes) + " |")
    whole = next((row for row in rows if row.name == ALL), None)
    if whole is not None:
        lines += ["", "| all parts, from token | " + " | ".join(references) + " |", "|--:|" + "--:|" * len(references)]
        for low, changed in whole.by_position.items():
            lines.append(f"| {low:,} | " + " | ".join(map(_percent, changed.values())) + " |")
    return "\n".join(lines) + "\n"


def _percent(change: Interval) -> str:
    inside = "" if change.low is None or change.high is None else f" ({change.low:+.1%} to {change.high:+.1%})"
    return f"{change.value:+.1%}{inside}" if change.value is not None else ""
