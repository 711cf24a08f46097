# SPDX-License-Identifier: Apache-2.0
"""Book-level n-gram cache: predicts the tokens that followed the last tokens earlier in this book.

Kuhn and De Mori 1990, "A cache-based natural language model for speech recognition" (IEEE TPAMI 12, 570-583); with
longer contexts Jelinek et al. 1991, "A dynamic language model for speech recognition" (HLT '91).

    p(w) = (1 - Σ_n w_n) · p_backbone(w) + Σ_n w_n · c_n(h_n, w) / c_n(h_n)        n = 2, 1, 0 last tokens

c_n count all pairs of a context h_n and its next token that lie wholly before w, this segment included. The weight
grows with the count of the context, w_n = λ_n · c_n(h_n) / (c_n(h_n) + κ). An unseen context leaves all mass to the
backbone. The cache has four weights for all books. Their defaults were chosen by `python -m benchmarks fit-caches` on
the first 30,000 tokens of each validation book.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64, Int64

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence

ORDERS = (2, 1, 0)
"""Context lengths, longest first."""


@dataclass(frozen=True)
class CacheWeights:
    """Weight λ of each order of ORDERS (their sum is below one), and κ in counts."""

    order_weights: tuple[float, float, float] = (0.3, 0.1, 0.0)
    half_count: float = 2.0
    """Count κ at which a context gets half of λ; 0 gives every seen context the full λ."""

    def __post_init__(self) -> None:
        assert sum(self.order_weights) < 1, f"weights {self.order_weights} leave nothing to the backbone"


class NgramCache(AbstractBaseline):
    """Counts of the document's own past, mixed with another baseline's probabilities."""

    name = "n-gram cache"

    def __init__(self, backbone: AbstractBaseline, weights: CacheWeights | None = None) -> None:
        self._backbone = backbone
        self._weights = weights or CacheWeights()

    @property
    def description(self) -> str:
        weights = ", ".join(f"{weight:g}" for weight in self._weights.order_weights)
        return (
            f"last 2, 1 and 0 tokens with weights {weights}; half of it after {self._weights.half_count:g} occurrences"
        )

    def logprobs(self, sequence: Sequence) -> LogProbs:
        return mix(self._backbone.logprobs(sequence), past_counts(sequence), self._weights)


@dataclass(frozen=True)
class PastCounts:
    """Earlier occurrences of each target's context, and of the context with the target; rows in the order of ORDERS."""

    contexts: Int64[np.ndarray, "orders targets"]
    hits: Int64[np.ndarray, "orders targets"]


def past_counts(sequence: Sequence) -> PastCounts:
    """Return the counts for every target of a document, in O(n log n)."""
    tokens = sequence.astype(np.int64)
    size = int(tokens.max()) + 1
    context = np.zeros(len(tokens) - 1, np.int64)
    contexts, hits = [], []
    for order in reversed(ORDERS):
        if order:
            older = np.concatenate([np.full(order - 1, size, np.int64), tokens[: len(tokens) - order]])
            context = np.unique(context * (size + 1) + older, return_inverse=True)[1] if len(older) else context
        contexts.append(earlier_occurrences(context))
        hits.append(earlier_occurrences(context * size + tokens[1:]))
    return PastCounts(np.stack(contexts[::-1]), np.stack(hits[::-1]))


def earlier_occurrences(codes: Int64[np.ndarray, " items"]) -> Int64[np.ndarray, " items"]:
    """Return the number of equal earlier items for each item."""
    order = np.argsort(codes, kind="stable")
    first = np.flatnonzero(np.diff(codes[order], prepend=-1))
    ranks = np.arange(len(codes)) - np.repeat(first, np.diff(first, append=len(codes)))
    earlier = np.empty_like(ranks)
    earlier[order] = ranks
    return earlier


def mix(backbone: LogProbs, counts: PastCounts, weights: CacheWeights) -> LogProbs:
    """Return the mixture of the module's formula, computed in float64."""
    seen = counts.contexts > 0
    trust = np.divide(
        counts.contexts, counts.contexts + weights.half_count, out=np.zeros(seen.shape, np.float64), where=seen
    )
    shares = np.array(weights.order_weights)[:, None] * trust
    cached = (shares * counts.hits / np.maximum(counts.contexts, 1)).sum(axis=0)
    mixture: Float64[np.ndarray, " targets"] = (1 - shares.sum(axis=0)) * np.exp(backbone.astype(np.float64)) + cached
    # zero probability in float32 under the backbone, and the first occurrence in the book
    scores: LogProbs = np.log(np.maximum(mixture, np.finfo(np.float64).tiny)).astype(np.float32)
    return scores


def fit(books: Iterable[tuple[LogProbs, Sequence]]) -> tuple[CacheWeights, float]:
    """Return the weights with the least mean negative log-probability per token on validation books, and that mean.

    `books` are pairs (backbone's scores, sequence). Searches a grid over all four weights, one book in memory at a
    time.
    """
    grid = product(
        (0.1, 0.15, 0.2, 0.3, 0.4), (0.0, 0.05, 0.1, 0.15, 0.2), (0.0, 0.02, 0.05), (0.0, 0.5, 1.0, 2.0, 4.0)
    )
    choices = [CacheWeights((two, one, none), half_count) for two, one, none, half_count in grid]
    nats, num_targets = np.zeros(len(choices)), 0
    for backbone, sequence in books:
        counts = past_counts(sequence)
        nats -= [mix(backbone, counts, weights).sum(dtype=np.float64) for weights in choices]
        num_targets += len(backbone)
    best = int(nats.argmin())
    return choices[best], float(nats[best] / num_targets)
