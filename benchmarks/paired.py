# SPDX-License-Identifier: Apache-2.0
"""Metrics of scored documents, paired by segment, with the intervals of `longmem.scoring.metrics`."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from benchmarks.baselines.base import LogProbs
from longmem.scoring.metrics import Interval, Perplexities, SegmentNats, compute_perplexities

Chosen = Bool[np.ndarray, " targets"]


def compare_scores(
    ours: Sequence[LogProbs],
    theirs: Sequence[LogProbs],
    segment_tokens: int,
    chosen: Sequence[Chosen] | None = None,
) -> Perplexities:
    """Return perplexities of one array per document, with equal targets in both.

    `chosen` selects targets without breaking the pairing: the chosen targets of one segment are still drawn together.
    """
    segments = []
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert len(our) == len(their), f"document {index}: {len(our)} targets against {len(their)}"
        keep = np.ones(len(our), np.bool_) if chosen is None else chosen[index]
        for start in range(0, len(our), segment_tokens):
            part = slice(start, start + segment_tokens)
            kept = keep[part]
            our_nats, their_nats = (-float(logprobs[part][kept].sum(dtype=np.float64)) for logprobs in (our, their))
            segments.append(SegmentNats(our_nats, their_nats, int(kept.sum())))
    return compute_perplexities(segments, num_words=0, num_bytes=0)


def nats_difference(change: Interval) -> Interval:
    """Convert a relative change of perplexity into a difference of nats per token."""
    return Interval(*(None if part is None else math.log1p(part) for part in (change.value, change.low, change.high)))
