# SPDX-License-Identifier: Apache-2.0
"""Metrics of predictions: accuracy, macro-F1, exact match and F1 of SQuAD 1.1, paired bootstrap.

SQuAD's measures are defined by its official evaluation script (Rajpurkar et al. 2016): answers are compared in lower
case, without punctuation, articles and extra spaces; the best of all accepted answers counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, UInt16

NUM_RESAMPLES = 2000
BOOTSTRAP_SEED = 20230607
QUANTILES = (0.025, 0.975)
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Difference:
    """Mean difference of two paired scores with its 95% interval; bounds are None for a single item."""

    value: float
    low: float | None
    high: float | None


def accuracy(golds: Sequence[str], predictions: Sequence[str | None]) -> float:
    """Return the share of correct predictions; None counts as wrong."""
    return sum(gold == prediction for gold, prediction in zip(golds, predictions, strict=True)) / len(golds)


def macro_f1(golds: Sequence[str], predictions: Sequence[str | None]) -> float:
    """Return the mean F1 over the labels that occur among golds or predictions."""
    scores = []
    for label in sorted({*golds, *(prediction for prediction in predictions if prediction is not None)}):
        hits = sum(gold == prediction == label for gold, prediction in zip(golds, predictions, strict=True))
        scores.append(2 * hits / (golds.count(label) + list(predictions).count(label)))
    return sum(scores) / len(scores)


def normalise_answer(text: str) -> list[str]:
    """Return the words of an answer that are compared."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1 if the answer equals an accepted one, else 0."""
    return float(any(normalise_answer(answer) == normalise_answer(right) for right in accepted))


def answer_f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the harmonic mean of word precision and recall, maximised over the accepted answers."""
    return max(_word_f1(normalise_answer(answer), normalise_answer(right)) for right in accepted)


def _word_f1(answer: list[str], accepted: list[str]) -> float:
    common = sum((Counter(answer) & Counter(accepted)).values())
    return 2 * common / (len(answer) + len(accepted)) if common else 0.0


def paired_bootstrap(
    ours: Float64[np.ndarray, "seeds items"], theirs: Float64[np.ndarray, "seeds items"]
) -> Difference:
    """Return the difference of mean scores on equal items and seeds with a bootstrap interval.

    Seeds and items are resampled independently, so the interval covers both other demonstrations and other
    items.
    """
    difference = ours - theirs
    seeds, items = difference.shape
    value = float(difference.mean())
    if items < 2:
        return Difference(value, None, None)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty(NUM_RESAMPLES)
    for index in range(NUM_RESAMPLES):
        by_item = difference[generator.integers(seeds, size=seeds)].mean(axis=0)
        means[index] = by_item[generator.integers(items, size=items)].mean()
    low, high = np.quantile(means, QUANTILES).tolist()
    return Difference(value, low, high)


@lru_cache(1)
def _draws(
    seeds: int, items: int
) -> tuple[UInt16[np.ndarray, "resamples seeds"], UInt16[np.ndarray, "resamples items"]]:
    """Return how often each seed and each item is drawn in every resample."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    by_seed, by_item = (generator.multinomial(count, [1 / count] * count, NUM_RESAMPLES) for count in (seeds, items))
    return by_seed.astype(np.uint16), by_item.astype(np.uint16)


def mean_interval(scores: Float64[np.ndarray, "seeds items"]) -> tuple[float, float] | tuple[None, None]:
    """Return the 95% interval of the mean score: seeds and items are resampled independently, as for differences.

    All means of equal shape share their resamples, because a page has hundreds of them. None for a single item.
    """
    seeds, items = scores.shape
    if items < 2:
        return None, None
    by_seed, by_item = _draws(seeds, items)
    means = np.einsum("ni,ni->n", by_seed @ scores, by_item, dtype=np.float64) / scores.size
    low, high = np.quantile(means, QUANTILES).tolist()
    return low, high


def distance_of_shares(golds: Sequence[str], predictions: Sequence[str | None]) -> float:
    """Return the total variation distance between the distributions of predictions and golds.

    It is 0 if each label is predicted as often as it occurs, and near 1 if predicted labels never occur.
    """
    wanted: Counter[str | None] = Counter(golds)
    given = Counter(predictions)
    return sum(abs(wanted[label] - given[label]) for label in {*wanted, *given}) / len(golds) / 2
