# SPDX-License-Identifier: Apache-2.0
"""Statistics of suffix identification by context length, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from longmem.scoring.metrics import BOOTSTRAP_SEED, NUM_RESAMPLES, QUANTILES, Interval
from pipelines.suffix.scoring import SuffixScore

WAYS = ("memory", "no_memory", "backbone")
"""Compared models: LongMem, LongMem with an empty memory, and the frozen backbone, on the same local context."""

SCORINGS = ("probability", "information")
"""Score of an answer: its log-probability (the task's protocol), or the nats that the context adds to it."""


@dataclass(frozen=True)
class WayFigures:
    """Figures of one model at one context length."""

    accuracy: Interval
    """Share of examples that are right by probability."""
    accuracy_information: Interval
    """Share of examples that are right by information."""
    nll_per_token: Interval
    """Mean nats per token of the correct candidates."""


@dataclass(frozen=True)
class LengthFigures:
    """Figures of all models at one context length; means over examples."""

    context_tokens: int
    num_examples: int
    local_tokens: float
    memory_tokens: float
    memory: WayFigures
    no_memory: WayFigures
    backbone: WayFigures
    accuracy_gain: Interval
    """Accuracy with memory minus accuracy without, on the same examples."""
    accuracy_information_gain: Interval
    """Difference of the accuracies by information."""
    nll_gain: Interval
    """Nats per token with memory minus those without; negative if memory helps."""


def is_correct(score: SuffixScore, way: str, scoring: str = "probability") -> bool:
    """Return whether the correct candidate scores higher than every other; a tie counts as wrong.

    By information, a candidate's score is its log-probability less that without any context: pointwise mutual
    information (Holtzman et al. 2021, arXiv 2104.08315). It does not favour texts that are probable anywhere.
    """
    nats = np.array(getattr(score, f"nll_{way}"))
    if scoring == "information":
        nats = nats - score.nll_alone
    return bool((nats[score.label] < np.delete(nats, score.label)).all())


def figures_by_length(scores: Sequence[SuffixScore]) -> list[LengthFigures]:
    """Return the figures by ascending context length."""
    lengths = sorted({score.context_tokens for score in scores})
    return [_figures([score for score in scores if score.context_tokens == length]) for length in lengths]


def chance(scores: Sequence[SuffixScore]) -> float:
    """Return the expected accuracy of a uniform guess."""
    return float(np.mean([1 / len(score.suffix_tokens) for score in scores]))


def mean_interval(values: Float64[np.ndarray, " examples"]) -> Interval:
    """Return a mean with its 95% percentile bootstrap interval over examples; no interval for fewer than two."""
    if len(values) < 2:
        return Interval(float(values.mean()), None, None)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, QUANTILES).tolist()
    return Interval(float(values.mean()), low, high)


def _figures(scores: list[SuffixScore]) -> LengthFigures:
    correct = {
        (way, scoring): np.array([is_correct(score, way, scoring) for score in scores], dtype=np.float64)
        for way in WAYS
        for scoring in SCORINGS
    }
    nats = {way: np.array([_gold_nats(score, way) for score in scores]) for way in WAYS}
    ways = {
        way: WayFigures(
            accuracy=mean_interval(correct[way, "probability"]),
            accuracy_information=mean_interval(correct[way, "information"]),
            nll_per_token=mean_interval(nats[way]),
        )
        for way in WAYS
    }
    gains = {by: mean_interval(correct["memory", by] - correct["no_memory", by]) for by in SCORINGS}
    return LengthFigures(
        context_tokens=scores[0].context_tokens,
        num_examples=len(scores),
        local_tokens=float(np.mean([score.local_tokens for score in scores])),
        memory_tokens=float(np.mean([score.memory_tokens for score in scores])),
        **ways,
        accuracy_gain=gains["probability"],
        accuracy_information_gain=gains["information"],
        nll_gain=mean_interval(nats["memory"] - nats["no_memory"]),
    )


def _gold_nats(score: SuffixScore, way: str) -> float:
    return float(getattr(score, f"nll_{way}")[score.label] / score.suffix_tokens[score.label])
