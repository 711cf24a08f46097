# SPDX-License-Identifier: Apache-2.0
"""Both caches against their definition in a naive implementation."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.baselines import neural_cache, ngram_cache
from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.neural_cache import NeuralCache, PointerWeights
from benchmarks.baselines.ngram_cache import CacheWeights, NgramCache, earlier_occurrences
from longmem.backbone.backbone import Backbone

SEGMENT = 16


@pytest.mark.parametrize("half_count", [0.0, 1.5])
def test_ngram_cache_equals_dictionaries(few_tokens: Backbone, random_sequence: Callable, half_count: float) -> None:
    sequence = random_sequence(400)
    frozen = FrozenBackbone(few_tokens, SEGMENT)
    weights = CacheWeights((0.3, 0.2, 0.1), half_count)
    found = NgramCache(frozen, weights).logprobs(sequence)

    contexts: Counter[tuple[int, ...]] = Counter()
    pairs: Counter[tuple[tuple[int, ...], int]] = Counter()
    tokens = sequence.tolist()
    for target, backbone in enumerate(np.exp(frozen.logprobs(sequence).astype(np.float64)), start=1):
        given, cached = 1.0, 0.0
        histories = [(order, tuple(tokens[target - order : target])) for order in (2, 1, 0) if order <= target]
        for (_, history), weight in zip(histories, weights.order_weights[-len(histories) :], strict=True):
            if count := contexts[history]:
                share = weight * count / (count + half_count)
                given -= share
                cached += share * pairs[history, tokens[target]] / count
        assert found[target - 1] == pytest.approx(np.log(given * backbone + cached), abs=1e-5)
        for _, history in histories:
            contexts[history] += 1
            pairs[history, tokens[target]] += 1


def test_ngram_cache_without_weights_is_the_backbone(few_tokens: Backbone, random_sequence: Callable) -> None:
    frozen = FrozenBackbone(few_tokens, SEGMENT)
    sequence = random_sequence(100)
    found = NgramCache(frozen, CacheWeights((0.0, 0.0, 0.0))).logprobs(sequence)
    np.testing.assert_allclose(found, frozen.logprobs(sequence), atol=1e-6)


def test_ngram_weights_must_leave_something_to_the_backbone() -> None:
    with pytest.raises(AssertionError, match="backbone"):
        CacheWeights((0.5, 0.3, 0.2))


def test_ngram_cache_is_as_fast_as_sorting() -> None:
    """Count 300,000 tokens of an 8,192-token vocabulary: few passes, and codes that do not overflow."""
    sequence = np.random.default_rng(0).zipf(1.3, size=300_000).clip(max=8191).astype(np.int32)
    counts = ngram_cache.past_counts(sequence)
    assert counts.contexts.shape == (3, 299_999)
    assert (counts.hits <= counts.contexts).all()
    np.testing.assert_array_equal(counts.contexts[2], np.arange(299_999))


def test_earlier_occurrences() -> None:
    np.testing.assert_array_equal(earlier_occurrences(np.array([5, 3, 5, 5, 3, 9])), [0, 0, 1, 2, 1, 0])
    assert earlier_occurrences(np.array([], np.int64)).shape == (0,)


def test_ngram_fit_finds_the_best_of_its_grid(few_tokens: Backbone, random_sequence: Callable) -> None:
    frozen = FrozenBackbone(few_tokens, SEGMENT)
    books = [(frozen.logprobs(each), each) for each in (random_sequence(300), random_sequence(200, seed=1))]
    best, nats = ngram_cache.fit(iter(books))
    scores = [NgramCache(frozen, best).logprobs(sequence) for _, sequence in books]
    assert nats == pytest.approx(-np.concatenate(scores).mean(dtype=np.float64), abs=1e-6)
    backbone_nats = -np.concatenate([each for each, _ in books]).mean(dtype=np.float64)
    assert nats < backbone_nats


@pytest.mark.parametrize("memory_tokens", [40, 1000])
def test_neural_cache_equals_brute_force(few_tokens: Backbone, random_sequence: Callable, memory_tokens: int) -> None:
    """Compare in float64, one target at a time, over the stored float16 keys."""
    sequence = random_sequence(120)
    weights = PointerWeights(share=0.3, sharpness=12.0)
    baseline = NeuralCache(few_tokens, SEGMENT, 2, weights, memory_tokens=memory_tokens, top_k=8)
    found = baseline.logprobs(sequence)
    frozen = np.exp(FrozenBackbone(few_tokens, SEGMENT).logprobs(sequence).astype(np.float64))
    keys = stored_keys(few_tokens, sequence[:-1], layer=2)
    for position in range(len(sequence) - 1):
        start = position // SEGMENT * SEGMENT
        memory = range(max(0, start - memory_tokens), start)
        if not memory:
            assert found[position] == pytest.approx(np.log(frozen[position]), abs=1e-5)
            continue
        mean = keys[memory].mean(axis=0)
        similarity = {j: cosine(keys[position] - mean, keys[j] - mean) for j in memory}
        best = sorted(memory, key=lambda j: -similarity[j])[:8]
        attention = np.exp([12.0 * similarity[j] for j in best])
        followed = np.array([sequence[j + 1] == sequence[position + 1] for j in best])
        pointer = (attention * followed).sum() / attention.sum()
        assert found[position] == pytest.approx(np.log(0.7 * frozen[position] + 0.3 * pointer), abs=1e-3)


def test_neural_fit_finds_the_best_of_its_grid(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(300)
    best, nats = neural_cache.fit(NeuralCache(few_tokens, SEGMENT, 2).retrieve(sequence))
    scores = NeuralCache(few_tokens, SEGMENT, 2, best).logprobs(sequence)
    assert nats == pytest.approx(-scores.mean(dtype=np.float64), abs=1e-6)
    assert nats < -FrozenBackbone(few_tokens, SEGMENT).logprobs(sequence).mean(dtype=np.float64)


def stored_keys(backbone: Backbone, tokens: np.ndarray, layer: int) -> np.ndarray:
    """Return position-free keys rounded to float16, all heads joined: [tokens, kv_heads * head_dim], as float64."""
    import torch

    parts = [torch.from_numpy(tokens[start : start + SEGMENT]) for start in range(0, len(tokens), SEGMENT)]
    keys = [backbone.forward(part[None], layer, 1).keys[0].flatten(1).half() for part in parts]
    stored: np.ndarray = torch.cat(keys).double().numpy()
    return stored


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
