# SPDX-License-Identifier: Apache-2.0
"""Controls of the memory's effect: LongMem with its own memory, without, with another book's, and with shuffled values.

A gain that another book's memory also gives is not memory of the book. A gain that persists with shuffled values does
not come from the content read. A second analysis splits the difference between own memory and none by properties of the
target: its frequency, its earlier occurrences in the book, and its position there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from benchmarks.baselines import base
from benchmarks.baselines.ngram_cache import earlier_occurrences
from benchmarks.memory_scoring import OtherBook, ReadingChange, no_memory, own_memory, score_readings, shuffled_values
from benchmarks.paired import Chosen, compare_scores, nats_difference
from longmem.model.longmem import LongMem
from longmem.scoring.metrics import Interval

OWN, OFF, OTHER, SHUFFLED = "own memory", "memory off", "another book's memory", "own keys, shuffled values"

PER_MILLION = (0, 10, 100, 1_000, 10_000)
"""Lower bounds of frequency buckets: occurrences per million tokens of all scored books."""
EARLIER = (0, 1, 2, 4, 16, 64)
"""Lower bounds of buckets of earlier occurrences of the target in its book."""
POSITIONS = (0, 512, 2_048, 8_192, 32_768, 131_072)
"""Lower bounds of buckets of book tokens before the target."""


@dataclass(frozen=True)
class Bucket:
    """Targets between two bounds."""

    at_least: int
    below: int | None
    num_targets: int
    difference: Interval
    """Difference of nats per target with and without memory: negative where memory helps."""


def run(model: LongMem, documents: Mapping[str, base.Sequence]) -> Iterator[dict[str, Any]]:
    """Score every document in four ways, and yield the figures of all so far; the other book is the next one of the
    list."""
    if len(documents) < 2:
        raise ValueError("expected at least two documents: one must read the memory of another")
    sequences = list(documents.values())
    scores: dict[str, list[base.LogProbs]] = {name: [] for name in (OWN, OFF, OTHER, SHUFFLED)}
    for index, sequence in enumerate(sequences):
        other = OtherBook(model, sequences[(index + 1) % len(sequences)])
        readings: dict[str, ReadingChange] = {OWN: own_memory, OFF: no_memory, OTHER: other, SHUFFLED: shuffled_values}
        for name, logprobs in score_readings(model, sequence, readings).items():
            scores[name].append(logprobs)
        yield _figures(sequences[: index + 1], scores, model.config.segment_tokens)


def _figures(
    sequences: Sequence[base.Sequence], scores: Mapping[str, list[base.LogProbs]], segment_tokens: int
) -> dict[str, Any]:
    compared = {name: compare_scores(logprobs, scores[OFF], segment_tokens) for name, logprobs in scores.items()}
    measures = {
        "occurrences per million tokens": (frequencies(sequences), PER_MILLION),
        "earlier occurrences in the book": (
            [earlier_occurrences(_wide(sequence))[1:] for sequence in sequences],
            EARLIER,
        ),
        "position in the book": ([np.arange(1, len(sequence)) for sequence in sequences], POSITIONS),
    }
    return {
        "readings": {
            name: {"perplexity": asdict(figures.token.longmem), "change_to_memory_off": asdict(figures.change)}
            for name, figures in compared.items()
        },
        "memory_on_minus_off": {
            title: [asdict(bucket) for bucket in buckets(scores[OWN], scores[OFF], values, bounds, segment_tokens)]
            for title, (values, bounds) in measures.items()
        },
    }


def buckets(
    ours: Sequence[base.LogProbs],
    theirs: Sequence[base.LogProbs],
    values: Sequence[Int64[np.ndarray, " targets"]],
    bounds: Sequence[int],
    segment_tokens: int,
) -> list[Bucket]:
    """Return the difference of nats over the targets whose value lies in [bound, next bound), paired over segments."""
    found = []
    for low, high in zip(bounds, [*bounds[1:], None], strict=True):
        chosen: list[Chosen] = [(value >= low) & (high is None or value < high) for value in values]
        change = compare_scores(ours, theirs, segment_tokens, chosen).change
        found.append(Bucket(low, high, int(sum(part.sum() for part in chosen)), nats_difference(change)))
    return found


def frequencies(sequences: Sequence[base.Sequence]) -> list[Int64[np.ndarray, " targets"]]:
    """Return the occurrences per million tokens of every target, counted over all documents, rounded down."""
    joined = np.concatenate([_wide(sequence)[1:] for sequence in sequences])
    per_million = np.bincount(joined, minlength=1) * 1_000_000 // max(1, len(joined))
    return [per_million[_wide(sequence)[1:]] for sequence in sequences]


def markdown(figures: Mapping[str, Any]) -> str:
    """Return four Markdown tables."""
    lines = ["| reading | perplexity | against memory off |", "|---|---|---|"]
    for name, reading in figures["readings"].items():
        changed = _range(reading["change_to_memory_off"], 100, ".2f")
        lines.append(f"| {name} | {_range(reading['perplexity'], 1, '.2f')} | {changed} % |")
    for title, rows in figures["memory_on_minus_off"].items():
        lines += ["", f"| {title} | targets | nats, memory on less off |", "|---|---|---|"]
        for row in rows:
            upper = "and more" if row["below"] is None else f"to {row['below'] - 1:,}"
            difference = _range(row["difference"], 1, "+.4f")
            lines.append(f"| {row['at_least']:,} {upper} | {row['num_targets']:,} | {difference} |")
    return "\n".join(lines) + "\n"


def _range(interval: Mapping[str, float | None], factor: float, form: str) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return ""
    inside = "" if low is None or high is None else f" ({low * factor:{form}} to {high * factor:{form}})"
    return f"{value * factor:{form}}{inside}"


def _wide(sequence: base.Sequence) -> Int64[np.ndarray, " tokens"]:
    return sequence.astype(np.int64)
